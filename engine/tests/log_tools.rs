//! `rowship log verify`, `dump` and `retire` on the directories of real nodes, running ones too.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rowship::cli::reply::Reply;
use serde_json::Value;
use support::{
    Node, assert_identical, assert_rows, frames, rowship, segments, set_rows, start_and_end,
};

fn value(row: u64) -> String {
    format!("{row:0>200}")
}

/// Ends the load also when the test panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `rowship log retire --to LSN` on a running node: exit code and what it printed.
fn retire(node: &Node, to: u64) -> (i32, String) {
    let (code, out, err) =
        rowship(&["log", "retire", "--at", &node.address(), "--to", &to.to_string()]);
    (code, out + &err)
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {status:#}"))
}

#[test]
fn verify_and_dump_take_no_tail_in_flight_for_damage() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "10"]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &["--checkpoint-ms", "10"]);
    replica.start();
    set_rows(&primary, 0..100, value);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for connection in 0..2 {
            let (node, stop) = (&primary, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    set_rows(node, connection * 100..connection * 100 + 100, value);
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(8);
        let (mut turns, mut ends) = (0, [0, 0]);
        while Instant::now() < until || turns < 5 {
            for (node, end) in [&primary, &replica].into_iter().zip(&mut ends) {
                let (code, out, err) = node.verify_log();
                assert_eq!(code, 0, "turn {turns}, {}: {out}{err}", node.name);
                assert!(!out.contains("DAMAGE"), "{out}");
                let directory = node.directory.to_str().unwrap();
                let arguments = ["log", "dump", directory, "--json", "--from", &end.to_string()];
                let (code, out, err) = rowship(&arguments);
                assert_eq!(code, 0, "turn {turns}, {}: {err}", node.name);
                let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
                let found = number(&last, "/lsn");
                assert!(found >= *end, "the load goes on: {found}, {end}");
                *end = found;
            }
            turns += 1;
        }
        println!("{turns} turns over {ends:?} bytes of log");
        assert!(ends.iter().all(|end| *end > 3 * 65536), "segments rolled meanwhile: {ends:?}");
    });
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

#[test]
fn dump_shows_rows_from_an_lsn_on_up_to_a_limit() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &[]);
    node.start();
    set_rows(&node, 0..600, value);
    let mut client = node.client();
    client.ask(&["HSET", "planes:N1", "year", "1999", "evil", "\u{1b}[2J"]).unwrap();
    client.ask(&["DEL", "t:5"]).unwrap();
    let directory = node.directory.to_str().unwrap().to_owned();
    let all = frames(&node.directory);
    assert!(all.last().unwrap().base >= 65536, "several segments");
    for frame in [&all[0], &all[all.len() / 2], all.last().unwrap()] {
        // Any LSN within the frame finds it.
        for from in [frame.lsn, frame.lsn + 1, frame.lsn + frame.bytes - 1] {
            let from = from.to_string();
            let arguments = ["log", "dump", &directory, "--json", "--from", &from, "--limit", "2"];
            let (code, out, err) = rowship(&arguments);
            assert_eq!(code, 0, "{err}");
            let found: Vec<Value> =
                out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(number(&found[0], "/lsn"), frame.lsn);
            assert!(found.len() <= 2);
        }
    }
    let mut rows = Vec::new();
    let (_, out, _) = rowship(&["log", "dump", &directory, "--json"]);
    for line in out.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        for transaction in record["transactions"].as_array().into_iter().flatten() {
            rows.extend(transaction["rows"].as_array().unwrap().iter().cloned());
        }
    }
    assert_eq!(rows.len(), 602);
    assert_eq!((&rows[7]["table"], &rows[7]["key"]), (&"t".into(), &"7".into()));
    assert_eq!(rows[7]["value"], value(7));
    assert_eq!(rows[600]["columns"][0][1], "1999");
    assert_eq!((&rows[601]["operation"], &rows[601]["key"]), (&"delete".into(), &"5".into()));
    let from = all[all.len() - 3].lsn.to_string();
    let (code, text, _) = rowship(&["log", "dump", &directory, "--from", &from]);
    assert!(code == 0 && text.contains("delete t:5"), "{text}");
    assert!(text.contains("put planes:N1") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn tools_say_what_is_wrong_with_what_they_are_given() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().to_str().unwrap().to_owned();
    let missing = scratch.path().join("no").to_str().unwrap().to_owned();
    for tool in ["verify", "dump"] {
        let (code, _, err) = rowship(&["log", tool, &path]);
        assert_eq!(code, 4, "{err}");
        assert!(err.contains("no segment file"), "{err}");
        let (code, _, err) = rowship(&["log", tool, &missing]);
        assert_eq!(code, 4, "{err}");
        assert!(err.contains(&missing), "{err}");
    }
}

#[test]
fn retire_keeps_what_table_and_replicas_need_and_the_rest_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "20"]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    set_rows(&primary, 0..600, value);
    replica.catch_up_with(&primary);
    primary.until("r1 acknowledged", |status| {
        status["replicas"][0]["durable"] == status["log"]["appended"]
    });
    let held = number(&primary.status(), "/log/appended");
    replica.stop();
    set_rows(&primary, 600..3000, value);
    // The replica that is away keeps all it has not acknowledged.
    let (code, text) = retire(&primary, u64::MAX / 4);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("replica r1 still needs it"), "{text}");
    let oldest = number(&primary.status(), "/log/oldest_lsn");
    assert!(oldest > 4096 && oldest <= held, "{oldest}, held {held}");
    assert_eq!(segments(&primary.directory)[0].0 + 4096, oldest);
    replica.follow(&primary.replication_address());
    replica.start();
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
    // Now only table and checkpoint keep something. The spares are taken by the next rolls.
    primary.until("r1 acknowledged", |status| {
        status["replicas"][0]["durable"] == status["log"]["appended"]
    });
    let (code, text) = retire(&primary, u64::MAX / 4);
    assert_eq!(code, 0, "{text}");
    let status = primary.status();
    let oldest = number(&status, "/log/oldest_lsn");
    assert!(oldest > held && oldest <= number(&status, "/table/durable_lsn"), "{status:#}");
    assert!(number(&status, "/counters/segments_retired") > 5, "{status:#}");
    let spares = || primary.directory.read_dir().unwrap().filter(is_spare).count();
    assert_eq!(spares(), 1, "one spare is kept by default");
    let log_files = segments(&primary.directory).len();
    set_rows(&primary, 3000..3600, value);
    assert_eq!(spares(), 0, "it has become a segment again");
    assert!(segments(&primary.directory).len() > log_files);
    let (code, out, err) = primary.verify_log();
    assert_eq!(code, 0, "stale frames of a recycled file are no damage: {out}{err}");
    let (code, _, err) =
        rowship(&["log", "dump", primary.directory.to_str().unwrap(), "--from", "5000"]);
    assert!(code == 2 && err.contains("has been retired"), "{code} {err}");
    // A fresh replica cannot begin, and is told so.
    let mut fresh = Node::replica(scratch.path(), "fresh", &primary, &[]);
    fresh.start();
    let told = fresh.until("refused", |status| status["upstream"]["state"] == "refused");
    let why = told["upstream"]["last_error"].as_str().unwrap();
    assert!(why.contains("retired") && why.contains(&oldest.to_string()), "{why}");
    fresh.stop();
    for hard in [true, false] {
        if hard {
            primary.kill()
        } else {
            primary.stop()
        }
        primary.start();
        assert_rows(&primary, 0..3600, value);
        let (code, out, err) = primary.verify_log();
        assert_eq!(code, 0, "{out}{err}");
    }
    replica.kill();
    replica.follow(&primary.replication_address());
    replica.start();
    replica.catch_up_with(&primary);
    assert_identical(&primary, &replica);
}

fn is_spare(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("spare-")
}

#[test]
fn a_replica_that_was_away_too_long_is_told_and_keeps_its_rows() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "20"]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    set_rows(&primary, 0..200, value);
    replica.catch_up_with(&primary);
    replica.stop();
    // The operator has given it up for good, and says so.
    primary.stop();
    std::fs::remove_file(primary.directory.join("replicas.json")).unwrap();
    primary.start();
    set_rows(&primary, 200..2000, value);
    let (code, text) = retire(&primary, u64::MAX / 4);
    assert_eq!(code, 0, "{text}");
    assert!(number(&primary.status(), "/log/oldest_lsn") > 3 * 65536);
    replica.follow(&primary.replication_address());
    replica.start();
    let told = replica.until("refused", |status| status["upstream"]["state"] == "refused");
    let why = told["upstream"]["last_error"].as_str().unwrap();
    assert!(why.contains("retired"), "{why}");
    assert_rows(&replica, 0..200, value);
    let (code, out, err) = replica.verify_log();
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn tools_run_while_segments_are_retired() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--checkpoint-ms", "10", "--memtable-bytes", "16KiB"];
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let (node, stopped) = (&primary, &stop);
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                set_rows(node, 0..400, value);
                let reply = node.call(&["ROWSHIP.RETIRE", &(u64::MAX / 4).to_string()]);
                assert!(matches!(reply, Reply::Array(_)), "{reply:?}");
            }
        });
        let until = Instant::now() + Duration::from_secs(6);
        let mut turns = 0;
        while Instant::now() < until || turns < 5 {
            let (code, out, err) = primary.verify_log();
            assert_eq!(code, 0, "turn {turns}: {out}{err}");
            let (code, _, err) = rowship(&["log", "dump", primary.directory.to_str().unwrap()]);
            assert!(code == 0 || err.contains("has been retired"), "turn {turns}: {code} {err}");
            turns += 1;
        }
        println!("{turns} turns");
    });
    assert!(number(&primary.status(), "/counters/segments_retired") > 5);
    primary.kill();
    primary.start();
    assert_rows(&primary, 0..400, value);
}

#[test]
fn a_lost_segment_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &[]);
    node.start();
    set_rows(&node, 0..1200, value);
    node.stop();
    let found = segments(&node.directory);
    assert!(found.len() >= 4);
    let (base, path) = &found[1];
    let aside = scratch.path().join("aside");
    std::fs::rename(path, &aside).unwrap();
    let (code, out, err) = node.verify_log();
    assert!(code == 1 && out.contains(&base.to_string()), "{out}{err}");
    let (code, log) = start_and_end(&mut node);
    assert!(code == 5 && log.contains(&base.to_string()), "{code}: {log}");
    std::fs::rename(&aside, path).unwrap();
    node.start();
    assert_rows(&node, 0..1200, value);
}

#[test]
fn a_restarted_primary_keeps_what_an_absent_replica_needs() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "away", &primary, &[]);
    replica.start();
    set_rows(&primary, 0..50, |row| format!("{row}"));
    replica.catch_up_with(&primary);
    replica.stop();
    set_rows(&primary, 0..2000, |row| format!("{row} {}", "x".repeat(200)));
    // A clean stop makes the table durable, so that only the replica keeps the log.
    primary.stop();
    primary.start();
    set_rows(&primary, 0..2000, |row| format!("{row} {}", "y".repeat(200)));
    let absent = &primary.status()["replicas"][0];
    assert_eq!((&absent["name"], &absent["state"]), (&"away".into(), &"down".into()));
    assert!(absent["lag_bytes"].as_u64() > Some(800_000), "{absent}");
    assert!(absent["lag_ms"].as_u64() > Some(0), "{absent}");
    let (code, out, err) =
        rowship(&["log", "retire", "--at", &primary.address(), "--to", "100000000"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("0 segment(s) retired") && out.contains("replica away"), "{out}");
    replica.follow(&primary.replication_address());
    replica.start();
    replica.catch_up_with(&primary);
    support::assert_identical(&primary, &replica);
    let garbage = primary.directory.join("replicas.json");
    primary.stop();
    std::fs::write(&garbage, b"{").unwrap();
    let (code, said) = support::start_and_end(&mut primary);
    assert!(code == 4 && said.contains("replicas.json"), "{code}: {said}");
}

#[test]
fn a_table_that_was_never_flushed_does_not_keep_the_log() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--memtable-bytes", "64MiB", "--checkpoint-ms", "20"];
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    set_rows(&primary, 0..1500, value);
    let status =
        primary.until("checkpoint above", |status| status["log"]["segments"].as_u64() > Some(4));
    assert_eq!(number(&status, "/table/durable_lsn"), 0, "all rows are in memory: {status:#}");
    let before = number(&status, "/log/segments");
    primary.until("all but the last segments retired", |_| {
        assert_eq!(retire(&primary, u64::MAX / 4).0, 0);
        // The checkpoint follows within its period.
        number(&primary.status(), "/log/segments") <= 3
    });
    assert!(before > 4);
    primary.kill();
    primary.start();
    support::assert_rows(&primary, 0..1500, value);
}
