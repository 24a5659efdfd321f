//! Replays the fuzz corpus through the bodies of the fuzz targets, on stable Rust.
//!
//! The seeds are written by real encoders: `cargo test -p rowship-proto --test corpus -- --ignored`
//! writes them anew. Inputs that fuzzing found a defect with lie in `fuzz/regressions`.

use std::fs;
use std::path::{Path, PathBuf};

use rowship_proto::ack::NodeName;
use rowship_proto::control::{
    AckPolicyChanged, EpochStarted, SegmentEnd, SegmentStart, TableDefinition, TableDefinitions,
};
use rowship_proto::frame::{FLAG_REPEAT, Seal, sealed_frame};
use rowship_proto::fuzzing::{
    Accepted, LOG, START, control, frame_stream, handshake, message, primary, rows,
};
use rowship_proto::hlc::Hlc;
use rowship_proto::message::{
    Ack, Hello, Message, Notice, PROTOCOL_VERSIONS, Ready, Refuse, RefuseCode, Welcome,
};
use rowship_proto::position::EpochStart;
use rowship_proto::row::{Existed, Operation, RowWrite, TableId, append_transaction, key_hash};
use rowship_proto::value::{encode_columns, encode_string};
use rowship_proto::{
    Epoch, EpochHistory, FRAME_HEADER_BYTES, FrameBuilder, FrameHeader, FrameKind, Lsn,
};
use zerocopy::IntoBytes;

/// A row to write: table, key, operation, existed, image.
type Written<'a> = (TableId, &'a [u8], Operation, Existed, &'a [u8]);

/// All seeds of a target together; beyond this the corpus is no longer small.
const CORPUS_BYTES_MAX: u64 = 50 << 10;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(kind).join(target)
}

/// Names and bytes of all inputs of a target: its seeds, and what once showed a defect.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut inputs = Vec::new();
    for kind in ["corpus", "regressions"] {
        // Most targets have no regressions.
        let Ok(entries) = fs::read_dir(folder(kind, target)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            inputs.push((name, fs::read(&path).unwrap()));
        }
    }
    inputs
}

fn replay<T>(target: &str, body: fn(&[u8]) -> T, seeds: &[(&str, Vec<u8>, T)])
where
    T: PartialEq + std::fmt::Debug,
{
    let inputs = inputs(target);
    let bytes: u64 = inputs.iter().map(|(_, input)| input.len() as u64).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpus of {target} has {bytes} bytes");
    for (_, input) in &inputs {
        body(input);
    }
    for (name, seed, expected) in seeds {
        let input = inputs.iter().find(|(input, _)| input == name);
        let (_, input) = input.unwrap_or_else(|| panic!("no {target}/{name}: write it anew"));
        assert!(input == seed, "{target}/{name} is not what the encoders write: a new format?");
        assert_eq!(body(input), *expected, "{target}/{name}");
    }
}

#[test]
fn frame_streams_of_the_corpus_replay() {
    replay("frame_stream", frame_stream, &frame_seeds());
}

#[test]
fn messages_of_the_corpus_replay() {
    replay("message", message, &message_seeds());
}

#[test]
fn rows_of_the_corpus_replay() {
    replay("rows", rows, &row_seeds());
}

#[test]
fn control_bodies_of_the_corpus_replay() {
    replay("control", control, &control_seeds());
}

#[test]
fn primaries_of_the_corpus_replay() {
    replay("primary", primary, &primary_seeds());
}

#[test]
fn handshakes_of_the_corpus_replay() {
    replay("handshake", handshake, &handshake_seeds());
}

/// No body may depend on its input being whole.
#[test]
fn cut_and_flipped_seeds_are_survived() {
    bend(frame_stream, frame_seeds());
    bend(message, message_seeds());
    bend(rows, row_seeds());
    bend(control, control_seeds());
    bend(primary, primary_seeds());
    bend(handshake, handshake_seeds());
}

fn bend<T>(body: fn(&[u8]) -> T, seeds: Vec<(&str, Vec<u8>, T)>) {
    for (_, seed, _) in seeds {
        for at in (0..seed.len()).step_by(7) {
            body(&seed[..at]);
            let mut flipped = seed.clone();
            flipped[at] ^= 1 << (at % 8);
            body(&flipped);
        }
    }
}

#[test]
#[ignore = "writes the seeds anew"]
fn write_the_seeds() {
    write("frame_stream", frame_seeds());
    write("message", message_seeds());
    write("rows", row_seeds());
    write("control", control_seeds());
    write("primary", primary_seeds());
    write("handshake", handshake_seeds());
}

fn write<T>(target: &str, seeds: Vec<(&str, Vec<u8>, T)>) {
    let folder = folder("corpus", target);
    fs::create_dir_all(&folder).unwrap();
    for (name, seed, _) in seeds {
        fs::write(folder.join(name), seed).unwrap();
    }
}

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, node_id: 7, nonce: counter * 10 }
}

/// Frames one behind the other.
struct Stream {
    bytes: Vec<u8>,
    next: Lsn,
    chain: u64,
    frames: u64,
    rows: u64,
}

impl Stream {
    fn new() -> Stream {
        Stream { bytes: Vec::new(), next: START, chain: 0, frames: 0, rows: 0 }
    }

    fn seal(&self, counter: u64) -> Seal {
        Seal {
            chain_previous: self.chain,
            committed: START,
            wall_ns: 1_700_000_000_000_000_000,
            ..Seal::first(LOG, epoch(counter))
        }
    }

    fn push(&mut self, header: &FrameHeader, frame: &[u8]) {
        self.bytes.extend_from_slice(&frame[..header.frame_bytes()]);
        (self.next, self.chain) = (header.end(), header.chain());
        self.frames += 1;
    }

    fn control(&mut self, counter: u64, kind: FrameKind, flags: u16, body: &[u8]) {
        let (header, frame) = sealed_frame(kind, flags, self.next, body, &self.seal(counter));
        self.push(&header, &frame);
    }

    fn segment_start(&mut self, counter: u64) {
        let start = SegmentStart {
            log_id: LOG,
            base: Lsn(self.next.0 - 4096),
            segment_bytes: 64 << 10,
            frame_body_bytes_max: 4096,
            repeat_frames: 0,
        };
        self.control(counter, FrameKind::SegmentStart, 0, start.as_bytes());
    }

    fn epoch_start(&mut self, counter: u64) {
        let previous = epoch(counter - 1);
        let started = EpochStarted { previous, inherited_committed: START };
        let body = [started.as_bytes(), b"semi-sync ANY 1 durable (b, c)"].concat();
        self.control(counter, FrameKind::EpochStart, 0, &body);
    }

    /// A frame with transactions of the given numbers of rows.
    fn rows(&mut self, counter: u64, transactions: &[usize]) {
        let (table, strings) = (TableId(1), TableId::NO_PREFIX);
        let columns: [(&[u8], &[u8]); 3] = [(b"year", b"1999"), (b"", b""), (b"seats", b"149")];
        let (row, string) = (encode_columns(&columns), encode_string(b"a value"));
        let images: [Written<'_>; 3] = [
            (table, b"N14228", Operation::Put, Existed::No, &row),
            (strings, b"counter", Operation::Put, Existed::Unknown, &string),
            (table, b"N24211", Operation::Delete, Existed::Yes, b""),
        ];
        let mut frame = FrameBuilder::new(vec![0; 4096], FrameKind::Rows, 0, self.next);
        for count in transactions {
            let writes: Vec<RowWrite<'_>> = images
                .iter()
                .cycle()
                .take(*count)
                .map(|&(table, key, operation, existed, value)| {
                    let key_hash = key_hash(LOG.seed(), table, key);
                    RowWrite { key_hash, table, operation, existed, key, value }
                })
                .collect();
            append_transaction(&mut frame, 7, Hlc(1 << 16), &writes, |_, _| {});
            self.rows += *count as u64;
        }
        let (header, buffer) = frame.seal(&self.seal(counter));
        self.push(&header, &buffer);
    }

    fn expected(&self) -> Accepted {
        Accepted { count: self.frames, rows: self.rows, bytes: self.bytes.len() }
    }
}

type Seeds = Vec<(&'static str, Vec<u8>, Accepted)>;

fn frame_seeds() -> Seeds {
    let mut life = Stream::new();
    life.segment_start(1);
    life.epoch_start(1);
    let mut tables = Vec::new();
    for (id, name) in [(1, &b"planes"[..]), (2, b"")] {
        TableDefinitions::encode(&TableDefinition { id: TableId(id), name }, &mut tables);
    }
    life.control(1, FrameKind::TableDefine, 0, &tables);
    life.rows(1, &[1]);
    life.rows(1, &[3, 1, 6]);
    life.control(1, FrameKind::Mark, 0, b"");

    let mut roll = Stream::new();
    roll.segment_start(1);
    let history = [EpochStart { epoch: epoch(1), start: START }];
    roll.control(1, FrameKind::EpochHistory, FLAG_REPEAT, history.as_bytes());
    let changed = AckPolicyChanged { from: START, to: Lsn::ZERO, reason: 0 };
    let policy = [changed.as_bytes(), b"async"].concat();
    roll.control(1, FrameKind::AckPolicy, 0, &policy);
    let end = SegmentEnd { next_base: Lsn(64 << 10), next_segment_bytes: 64 << 10 };
    roll.control(1, FrameKind::SegmentEnd, 0, end.as_bytes());
    roll.next = end.next_frame();
    roll.segment_start(1);
    roll.epoch_start(2);
    roll.rows(2, &[2]);

    let mut torn = Stream::new();
    torn.epoch_start(1);
    let whole = torn.expected();
    torn.rows(1, &[3]);
    torn.bytes.truncate(torn.bytes.len() - 9);
    vec![
        ("life", life.bytes.clone(), life.expected()),
        ("roll", roll.bytes.clone(), roll.expected()),
        ("torn", torn.bytes, whole),
    ]
}

fn message_seeds() -> Seeds {
    let mut history = EpochHistory::default();
    assert!(history.push(epoch(1), Lsn(4096)));
    assert!(history.push(epoch(4), Lsn(8192)));
    let hello = Hello {
        versions: PROTOCOL_VERSIONS,
        log_id: LOG,
        node_id: 7,
        incarnation: 8,
        highest_epoch: history.epoch(),
        end: Lsn(8200),
        client_port: 7411,
        history: history.clone(),
        name: NodeName::new("replica-1").unwrap(),
    };
    let welcome = Welcome {
        version: 1,
        log_id: LOG,
        node_id: 2,
        epoch: history.epoch(),
        resume: Lsn(8192),
        resume_chain: 77,
        segment: (Lsn(0), 65536),
        frame_body_bytes_max: 4096,
        committed: Lsn(8000),
        heartbeat_ms: 500,
        peer_timeout_ms: 5000,
        wants_received: true,
        history,
        client_address: "127.0.0.1:7401".to_owned(),
    };
    let notice = Notice { committed: Lsn(1), appended: Lsn(2), wall_ns: 3, flags: 1 };
    let text = "the log starts at LSN 65536".to_owned();
    let messages = [
        ("hello", Message::Hello(hello)),
        ("welcome", Message::Welcome(welcome)),
        ("refuse", Message::Refuse(Refuse { code: RefuseCode::Retired, lsn: Lsn(65536), text })),
        ("ready", Message::Ready(Ready { resume: Lsn(8192), chain: 77, visible: Lsn(8000) })),
        ("ack", Message::Ack(Ack { received: Lsn(9000), visible_age_ns: 5, ..Ack::default() })),
        ("notice", Message::Notice(notice)),
    ];
    let accepted = |count, bytes: &[u8]| Accepted { count, rows: 0, bytes: bytes.len() };
    let mut seeds = Vec::new();
    let mut all = Vec::new();
    for (name, message) in messages {
        let bytes = message.encode();
        all.extend_from_slice(&bytes);
        let expected = accepted(1, &bytes);
        seeds.push((name, bytes, expected));
    }
    let expected = accepted(6, &all);
    seeds.push(("all", all, expected));
    seeds
}

fn row_seeds() -> Vec<(&'static str, Vec<u8>, u64)> {
    let mut stream = Stream::new();
    stream.rows(1, &[3, 1, 6]);
    let body = stream.bytes[FRAME_HEADER_BYTES..].to_vec();
    let columns: [(&[u8], &[u8]); 2] = [(b"year", b"1999"), (b"seats", b"149")];
    // Read as decisions: how many rows, and of each table, mark, key and image.
    let decisions = [
        &[2, 1, 0, 3][..],
        b"abc",
        &[0, 2, 1, 2],
        b"de",
        &[1, 5],
        b"value",
        &[9, 1, 0, 3, 2, 0, 1],
        b"x",
        &[2, 1, 4, 4],
        b"yearseat19991490",
    ];
    vec![
        ("body", body, 33),
        ("columns", encode_columns(&columns), 7),
        ("string", encode_string(b"a value"), 1),
        ("decisions", decisions.concat(), 5),
    ]
}

fn control_seeds() -> Vec<(&'static str, Vec<u8>, bool)> {
    let mut frames = Stream::new();
    frames.segment_start(1);
    let start = frames.bytes[FRAME_HEADER_BYTES..].to_vec();
    let end = SegmentEnd { next_base: Lsn(64 << 10), next_segment_bytes: 64 << 10 };
    let started = EpochStarted { previous: epoch(1), inherited_committed: START };
    let changed = AckPolicyChanged { from: START, to: Lsn::ZERO, reason: 0 };
    let mut tables = Vec::new();
    for (id, name) in [(1, &b"planes"[..]), (2, b"")] {
        TableDefinitions::encode(&TableDefinition { id: TableId(id), name }, &mut tables);
    }
    let history = [
        EpochStart { epoch: epoch(1), start: START },
        EpochStart { epoch: epoch(4), start: Lsn(8192) },
    ];
    let body = |kind: u8, parts: &[&[u8]]| [&[kind][..], &parts.concat()].concat();
    let policy = b"semi-sync FIRST 2 received (a, b)";
    vec![
        ("segment_start", body(0, &[&start]), true),
        ("segment_end", body(1, &[end.as_bytes()]), true),
        ("epoch_start", body(2, &[started.as_bytes(), b"async"]), true),
        ("ack_policy", body(3, &[changed.as_bytes(), policy]), true),
        ("tables", body(4, &[&tables]), true),
        ("history", body(5, &[history.as_bytes()]), true),
        ("policy", body(6, &[policy]), true),
        ("token", body(6, &[b"4-0000000000000007-0000000000000028:8200"]), true),
    ]
}

/// A byte for the policy, then events as `fuzzing/primary.rs` reads them.
fn primary_seeds() -> Vec<(&'static str, Vec<u8>, Lsn)> {
    let begins: &[u8] = &[8, 10, 0, 8, 20, 1];
    // Replica `a` says hello, with an empty log; it is welcomed, ready, sent to, and acknowledges.
    let joins: &[u8] = &[0, 0, 0, 0, 0, 99, 0, 1, 0, 3, 2, 0, 99, 0];
    let acks: &[u8] = &[4, 0, 255, 4, 0, 255, 5, 0, 250, 250, 0, 0];
    let durable: &[u8] = &[8, 255, 2];
    // Two replicas of which one is behind.
    let other: &[u8] = &[0, 1, 0, 0, 0, 99, 0, 1, 0, 3, 2, 0, 99, 0];
    let ships: &[u8] = &[4, 0, 255, 4, 1, 255, 4, 0, 255, 4, 1, 255];
    let both: &[u8] = &[5, 0, 200, 200, 0, 0, 5, 1, 150, 140, 0, 0];
    let two = [&[3][..], begins, durable, joins, other, ships, both].concat();
    let life = |policy: u8| [&[policy], begins, durable, joins, acks, &[7, 0], joins].concat();
    vec![
        ("async", life(0), Lsn(5056)),
        ("semi_sync", life(1), Lsn(5056)),
        ("first", life(4), Lsn(5056)),
        ("two", two, Lsn(5056)),
        ("sync", life(7), Lsn(5056)),
    ]
}

/// Events as `fuzzing/handshake.rs` reads them: who, to whom, what.
fn handshake_seeds() -> Vec<(&'static str, Vec<u8>, (u64, u64))> {
    let reigns = |who: u8| [who, 0, 0, 1];
    let appends = |who: u8| [who, 0, 1, 9];
    let follows = |who: u8, whom: u8, units: u8| [who, whom, 3, units];
    let begin = [reigns(0), appends(0), follows(1, 0, 200), follows(2, 0, 5)].concat();
    let failover = [reigns(1), appends(1), appends(0), follows(2, 1, 200), follows(0, 1, 200)];
    let token = [0, 0, 5, 2];
    vec![
        ("follow", begin.clone(), (2, 0)),
        ("failover", [&begin[..], &token, &failover.concat()].concat(), (4, 1)),
    ]
}
