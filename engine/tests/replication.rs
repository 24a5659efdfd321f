//! A primary and its replicas as real processes: rows arrive, positions and tokens keep their word.

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rowship::cli::reply::Reply;
use rowship_proto::ack::NodeName;
use rowship_proto::message::{Hello, Message, PROTOCOL_VERSIONS, Ready};
use rowship_proto::{Epoch, EpochHistory, LogId, Lsn};
use serde_json::Value;
use support::peer::Peer;
use support::{Frame, Node, assert_identical, assert_rows, frames, segments, set_rows};

fn text(reply: Reply) -> String {
    reply.text().unwrap_or_else(|| panic!("not text: {reply:?}"))
}

#[test]
fn rows_arrive_on_replicas_and_survive_restarts_of_all() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    let mut client = primary.client();
    for row in 0..2000 {
        client.queue(&["HSET", &format!("planes:{}", row % 700), "n", &row.to_string()]);
        if row % 100 == 99 {
            client.flush().unwrap();
            for _ in 0..100 {
                assert!(client.receive().unwrap().error().is_none());
            }
        }
    }
    replica.catch_up_with(&primary);
    assert_eq!(text(replica.call(&["HGET", "planes:0", "n"])), "1400");
    assert_identical(&primary, &replica);
    assert!(replica.call(&["SET", "a", "b"]).error().unwrap().starts_with("READONLY"));
    primary.stop();
    replica.stop();
    primary.start();
    replica.follow(&primary.replication_address());
    replica.start();
    replica.until("streaming", |status| status["upstream"]["state"] == "streaming");
    assert!(client.call(&["PING"]).is_err(), "the old connection is closed");
    primary.call(&["SET", "after", "restart"]);
    replica.catch_up_with(&primary);
    assert_eq!(text(replica.call(&["GET", "after"])), "restart");
    assert_identical(&primary, &replica);
    for node in [&primary, &replica] {
        let (code, out, err) = node.verify_log();
        assert_eq!(code, 0, "{out}{err}");
    }
}

#[test]
fn a_token_is_reached_on_a_replica_and_a_later_one_is_not_yet() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    let mut client = primary.client();
    client.ask(&["SET", "k", "v"]).unwrap();
    let Reply::Array(position) = client.ask(&["ROWSHIP.POSITION"]).unwrap() else { panic!() };
    let token = text(position[0].clone());
    let wait = |token: &str, timeout: &str| match replica.call(&["ROWSHIP.WAITPOS", token, timeout])
    {
        Reply::Array(parts) => text(parts[0].clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(&token, "30000"), "reached");
    assert_eq!(text(replica.call(&["GET", "k"])), "v");
    let (epoch, lsn) = token.split_once(':').unwrap();
    let later = format!("{epoch}:{}", lsn.parse::<u64>().unwrap() + 8_000_000);
    assert_eq!(wait(&later, "50"), "timeout");
    let forked = token.replacen(&epoch[epoch.len() - 4..], "0000", 1);
    assert_eq!(wait(&forked, "50"), "lost");
}

#[test]
fn names_of_tables_never_fill_a_segment() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut client = primary.client();
    let mut refused = None;
    for table in 0..200 {
        let key = format!("{table:0>240}:k");
        if let Some(error) = client.call(&["SET", &key, "v"]).unwrap().error() {
            refused = Some((table, error));
            break;
        }
    }
    let (tables, error) = refused.expect("200 long names are more than a quarter of 64 KiB");
    assert!(tables > 20 && error.starts_with("ERR too many tables"), "{tables}: {error}");
    // Several segments, each of which opens with all these names.
    for row in 0..300 {
        let key = format!("{:0>240}:{row}", 7);
        assert!(client.call(&["SET", &key, &"x".repeat(900)]).unwrap().error().is_none());
    }
    let status = primary.status();
    assert!(status["log"]["segments"].as_u64().unwrap() > 4, "{status:#}");
    primary.kill();
    primary.start();
    assert_eq!(text(primary.call(&["GET", &format!("{:0>240}:299", 7)])), "x".repeat(900));
    let (code, out, err) = primary.verify_log();
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn a_hello_alone_keeps_no_segment() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "10"]);
    primary.start();
    let mut ghost = Peer::connect(&primary.replication_address());
    ghost.say(&hello("ghost"));
    primary.until("joining", |status| status["replicas"][0]["state"] == "joining");
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    replica.catch_up_with(&primary);
    let known = primary.directory.join("replicas.json");
    replica.until("remembered", |_| {
        std::fs::read_to_string(&known).is_ok_and(|known| known.contains("r1"))
    });
    let known = std::fs::read_to_string(&known).unwrap();
    assert!(!known.contains("ghost"), "{known}");
}

fn hello(name: &str) -> Message {
    Message::Hello(Hello {
        versions: PROTOCOL_VERSIONS,
        log_id: LogId::NONE,
        node_id: 99,
        incarnation: 99,
        highest_epoch: Epoch::NONE,
        end: Lsn::ZERO,
        client_port: 0,
        history: EpochHistory::default(),
        name: NodeName::new(name).unwrap(),
    })
}

#[test]
fn a_replica_that_is_behind_hears_first_how_far() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut client = primary.client();
    for at in 0..100 {
        client.ask(&["SET", &format!("t:{at}"), &"v".repeat(1000)]).unwrap();
    }
    let appended = primary.status()["log"]["appended"].as_u64().unwrap();
    let mut behind = Peer::connect(&primary.replication_address());
    behind.say(&hello("behind"));
    let Some(Message::Welcome(welcome)) = behind.hear() else { panic!("no welcome") };
    assert!(welcome.resume.0 + 100_000 < appended, "{} of {appended}", welcome.resume);
    let (resume, chain, visible) = (welcome.resume, welcome.resume_chain, Lsn::ZERO);
    behind.say(&Message::Ready(Ready { resume, chain, visible }));
    let Some(Message::Notice(notice)) = behind.hear() else { panic!("no notice") };
    assert_eq!(notice.appended.0, appended);
}

/// Bytes of a file that the system has in memory; None where that cannot be asked, or files are
/// memory.
fn in_memory(path: &Path) -> Option<u64> {
    const TMPFS: i64 = 0x0102_1994;
    if rustix::fs::statfs(path).unwrap().f_type == TMPFS {
        return None;
    }
    let asked = Command::new("fincore").args(["-b", "-n", "-o", "RES"]).arg(path).output().ok()?;
    String::from_utf8(asked.stdout).unwrap().trim().parse().ok()
}

#[test]
fn a_log_does_not_fill_the_systems_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--segment-bytes=64MiB", "--memtable-bytes=64MiB"];
    let (primary, mut replica) = support::pair(&scratch, &flags);
    let value = |row: u64| format!("{row:0>4000}");
    // More than a segment, as it is written.
    support::set_rows(&primary, 0..20_000, value);
    replica.catch_up_with(&primary);
    // And as a backlog, read by the primary and written by a replica that has restarted.
    replica.kill();
    support::set_rows(&primary, 0..20_000, value);
    replica.start();
    replica.catch_up_with(&primary);
    for node in [&primary, &replica] {
        let segments = support::segments(&node.directory);
        assert!(segments.len() >= 3, "{segments:?}");
        let kept = segments.iter().map(|(_, path)| in_memory(path)).collect::<Option<Vec<u64>>>();
        let Some(kept) = kept else {
            println!("SKIPPED: no fincore, or files are memory here");
            return;
        };
        // What recovery writes once more, since the last checkpoint, goes through it.
        assert!(kept.iter().sum::<u64>() < 48 << 20, "{}: {kept:?}", node.name);
    }
}

#[test]
fn a_backlog_is_the_primarys_log_byte_for_byte() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    // More than two segments.
    let value = |row: u64| format!("{row:0>3000}");
    set_rows(&primary, 0..3_500, value);
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    let durable = |status: &Value| status["log"]["durable"].as_u64().unwrap();
    replica.until("some of it", |status| durable(status) > 2 << 20);
    replica.kill();
    replica.start();
    replica.catch_up_with(&primary);
    assert_rows(&replica, 0..3_500, value);
    // At the tip again, in the page that the backlog ended in.
    set_rows(&primary, 200..300, |row| format!("small {row}"));
    replica.catch_up_with(&primary);
    assert_rows(&replica, 200..300, |row| format!("small {row}"));
    assert_identical(&primary, &replica);
    primary.stop();
    replica.stop();
    assert_eq!(replica.verify_log().0, 0);
    let (ours, theirs) = (frames(&replica.directory), frames(&primary.directory));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let read = |frame: &Frame| {
            let mut bytes = vec![0; frame.bytes as usize];
            let file = std::fs::File::open(&frame.segment).unwrap();
            file.read_exact_at(&mut bytes, frame.offset()).unwrap();
            bytes
        };
        assert_eq!((ours.lsn, ours.bytes), (theirs.lsn, theirs.bytes));
        assert!(read(ours) == read(theirs), "frame at LSN {}", ours.lsn);
    }
}

/// Bytes that this process has had written to disks, direct writes among them.
fn written_bytes(node: &Node) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", node.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap().parse().unwrap()
}

/// Nothing of it is committed: a new replica that takes that for the end of its primary's log
/// fills the next segment with zeroes just before the backlog fills it.
#[test]
fn a_backlog_that_is_not_committed_is_written_once() {
    const ROWS: usize = 4_000;
    const SEGMENT_BYTES: u64 = 4 << 20;
    let scratch = tempfile::tempdir().unwrap();
    // Large writes: the last page of each is written once more with the next.
    let large = ["--frame-body-bytes-max", "64KiB", "--segment-bytes", "4MiB"];
    let large = [large, ["--transfer-bytes", "256KiB", "--send-window-bytes", "1MiB"]].concat();
    let large = [&large[..], &["--uncommitted-bytes-max", "64MiB", "--table", "memory"]].concat();
    let flags = [&large[..], &["--ack", "semi-sync 1 durable"]].concat();
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    let mut client = primary.client();
    let fill = "x".repeat(3_000);
    for row in 0..ROWS {
        client.queue(&["SET", &format!("row:{row}"), &fill]);
        if row % 50 == 49 {
            client.flush().unwrap();
        }
    }
    let backlog = (ROWS * fill.len()) as u64;
    let durable = |status: &Value| status["log"]["durable"].as_u64().unwrap() >= backlog;
    let status = primary.until("written", durable);
    assert!(status["log"]["committed"].as_u64().unwrap() < backlog / 10);
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &large);
    replica.start();
    for _ in 0..ROWS {
        assert!(client.receive().unwrap().error().is_none());
    }
    replica.catch_up_with(&primary);
    replica.until("next segment", |_| segments(&replica.directory).len() == 4);
    let written = written_bytes(&replica);
    let size = |(_, path): &(u64, PathBuf)| path.metadata().unwrap().len();
    let files: u64 = segments(&replica.directory).iter().map(size).sum();
    // Every block once, as log or as zeroes; the first segment twice, since how far the primary's
    // log goes is said after it was made. (Without a disk beneath nothing is counted.)
    let once = files + SEGMENT_BYTES;
    assert!(written < once + SEGMENT_BYTES / 2, "{written} bytes written, {once} expected");
    assert_identical(&primary, &replica);
}
