//! Replays the fuzz corpus through the bodies of the fuzz targets, on stable Rust.
//!
//! The seeds are written by real encoders: `cargo test -p rowship-proto --test corpus -- --ignored`
//! writes them anew. What fuzzing finds is added to the same folders under the name it was given.

use std::fs;
use std::path::{Path, PathBuf};

use rowship_proto::ack::NodeName;
use rowship_proto::control::{
    AckPolicyChanged, EpochStarted, SegmentEnd, SegmentStart, TableDefinition, TableDefinitions,
};
use rowship_proto::frame::{FLAG_REPEAT, Seal, sealed_frame};
use rowship_proto::fuzzing::{Accepted, LOG, START, frame_stream, message};
use rowship_proto::hlc::Hlc;
use rowship_proto::message::{
    Ack, Hello, Message, Notice, PROTOCOL_VERSIONS, Ready, Refuse, RefuseCode, Welcome,
};
use rowship_proto::position::EpochStart;
use rowship_proto::row::{Existed, Operation, RowWrite, TableId, append_transaction, key_hash};
use rowship_proto::value::{encode_columns, encode_string};
use rowship_proto::{Epoch, EpochHistory, FrameBuilder, FrameHeader, FrameKind, Lsn};
use zerocopy::IntoBytes;

/// The body of a fuzz target.
type Body = fn(&[u8]) -> Accepted;
/// A row to write: table, key, operation, existed, image.
type Written<'a> = (TableId, &'a [u8], Operation, Existed, &'a [u8]);

/// All seeds of a target together; beyond this the corpus is no longer small.
const CORPUS_BYTES_MAX: u64 = 50 << 10;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

/// Names and bytes of all inputs of a target.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read(&path).unwrap())
    });
    named.collect()
}

fn replay(target: &str, body: fn(&[u8]) -> Accepted, seeds: &[(&str, Vec<u8>, Accepted)]) {
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

/// Neither body may depend on its input being whole.
#[test]
fn cut_and_flipped_seeds_are_survived() {
    let targets: [(Body, _); 2] = [(frame_stream, frame_seeds()), (message, message_seeds())];
    for (body, seeds) in targets {
        for (_, seed, _) in seeds {
            for at in (0..seed.len()).step_by(7) {
                body(&seed[..at]);
                let mut flipped = seed.clone();
                flipped[at] ^= 1 << (at % 8);
                body(&flipped);
            }
        }
    }
}

#[test]
#[ignore = "writes the seeds anew"]
fn write_the_seeds() {
    for (target, seeds) in [("frame_stream", frame_seeds()), ("message", message_seeds())] {
        fs::create_dir_all(folder(target)).unwrap();
        for (name, seed, _) in seeds {
            fs::write(folder(target).join(name), seed).unwrap();
        }
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
    let text = "the log starts at LSN 65536".to_owned();
    let messages = [
        ("hello", Message::Hello(hello)),
        ("welcome", Message::Welcome(welcome)),
        ("refuse", Message::Refuse(Refuse { code: RefuseCode::Retired, lsn: Lsn(65536), text })),
        ("ready", Message::Ready(Ready { resume: Lsn(8192), chain: 77, visible: Lsn(8000) })),
        ("ack", Message::Ack(Ack { received: Lsn(9000), visible_age_ns: 5, ..Ack::default() })),
        ("notice", Message::Notice(Notice { committed: Lsn(1), appended: Lsn(2), wall_ns: 3 })),
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
