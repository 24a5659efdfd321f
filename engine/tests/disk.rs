//! Bytes that rot at rest, writes that tear, disks that fail: a real node finds it, names it, and
//! never passes it over. Disks that are busy: what has nothing to do with that goes on.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{
    Frame, Node, Random, assert_identical, assert_rows, flip, frames, segments, set_rows,
    start_and_end,
};

/// Fill of a row: with it, a segment of the tiny preset holds about two hundred.
fn value(row: u64) -> String {
    format!("{row:0>200}")
}

/// As in `log::write_bytes_max` for frame bodies of 4 KiB: rot this near the end looks torn.
const WRITE_BYTES_MAX: u64 = 2 * (4096 + 96);

fn seed(of: &str) -> Random {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("{of}: seed {seed}");
    Random(seed)
}

/// Asserts that `text` names the place of this frame.
fn assert_named(text: &str, frame: &Frame) {
    let (segment, offset) = (frame.segment.display(), frame.offset());
    let place = format!("{segment} at offset {offset} (LSN {})", frame.lsn);
    assert!(text.contains(&place), "{place} is not named in:\n{text}");
}

fn assert_whole(node: &Node) {
    let (code, out, err) = node.verify_log();
    assert_eq!(code, 0, "{out}{err}");
}

/// A stopped primary with `rows` rows.
fn stopped_primary(scratch: &Path, rows: u64, flags: &[&str]) -> Node {
    let mut node = Node::primary(scratch, "primary", flags);
    node.start();
    set_rows(&node, 0..rows, value);
    node.stop();
    node
}

#[test]
fn a_flipped_bit_below_the_checkpoint_is_named_by_verify_and_by_recovery() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 700, &[]);
    let frames = frames(&node.directory);
    let last_base = frames.last().unwrap().base;
    assert!(last_base >= 2 * 65536, "several segments");
    let mut random = seed("below the checkpoint");
    for round in 0..14 {
        // Recovery begins at the checkpoint's segment; every third round is sure to be there, and
        // one hits the very last frame.
        let in_last = |frame: &&Frame| frame.base == last_base;
        let among: Vec<&Frame> = match round {
            0 => frames.iter().rev().take(1).collect(),
            round if round % 3 == 0 => frames.iter().filter(in_last).collect(),
            _ => frames.iter().collect(),
        };
        let frame = among[random.below(among.len() as u64) as usize].clone();
        let (at, bit) = (frame.offset() + random.below(frame.bytes), random.next());
        flip(&frame.segment, at, bit);
        let (code, out, _) = node.verify_log();
        assert_eq!(code, 1, "flip at offset {at} of {frame:?}:\n{out}");
        assert_named(&out, &frame);
        assert_eq!(out.matches("DAMAGE").count(), 1, "one place:\n{out}");
        if frame.base == last_base {
            let before = std::fs::read(&frame.segment).unwrap();
            let (code, log) = start_and_end(&mut node);
            assert_eq!(code, 5, "flip at offset {at} of {frame:?}:\n{log}");
            assert_named(&log, &frame);
            assert!(log.contains("rowship log verify"), "a remedy: {log}");
            assert!(before == std::fs::read(&frame.segment).unwrap(), "nothing is changed");
        }
        flip(&frame.segment, at, bit);
        assert_whole(&node);
    }
    node.start();
    assert_rows(&node, 0..700, value);
}

#[test]
fn a_flipped_bit_in_a_header_page_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 700, &[]);
    let last_base = frames(&node.directory).last().unwrap().base;
    let mut random = seed("header pages");
    for (base, path) in segments(&node.directory) {
        if base > last_base {
            continue;
        }
        for at in [random.below(56), random.below(4096)] {
            let bit = random.next();
            flip(&path, at, bit);
            let (code, out, _) = node.verify_log();
            let place = format!("DAMAGE in {} at offset 0 (LSN {base})", path.display());
            assert!(code == 1 && out.contains(&place), "flip at {at}: {out}");
            if base == last_base {
                let (code, log) = start_and_end(&mut node);
                assert_eq!(code, 5, "{log}");
                assert!(log.contains(&format!("damage in {} at", path.display())), "{log}");
            }
            flip(&path, at, bit);
            assert_whole(&node);
        }
    }
    node.start();
    assert_rows(&node, 0..700, value);
}

#[test]
fn a_flipped_bit_above_the_checkpoint_is_damage_unless_it_can_be_a_torn_write() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "600000"]);
    node.start();
    set_rows(&node, 0..500, value);
    node.kill();
    let frames = frames(&node.directory);
    let last = frames.last().unwrap();
    let mut random = seed("above the checkpoint");
    let far = |frame: &&Frame| frame.lsn + WRITE_BYTES_MAX <= last.lsn;
    let among: Vec<&Frame> = frames.iter().filter(far).collect();
    for _ in 0..8 {
        let frame = among[random.below(among.len() as u64) as usize];
        let (at, bit) = (frame.offset() + random.below(frame.bytes), random.next());
        flip(&frame.segment, at, bit);
        let (code, log) = start_and_end(&mut node);
        assert_eq!(code, 5, "flip at offset {at} of {frame:?}:\n{log}");
        assert_named(&log, frame);
        let (code, out, _) = node.verify_log();
        assert_eq!(code, 1, "{out}");
        assert_named(&out, frame);
        flip(&frame.segment, at, bit);
    }
    node.start();
    assert_rows(&node, 0..500, value);
}

#[test]
fn where_a_clean_stop_ended_the_log_counts_until_the_next_start_and_no_longer() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 20, &["--checkpoint-ms", "600000"]);
    let end = frames(&node.directory).last().unwrap().clone();
    node.start();
    set_rows(&node, 20..120, value);
    node.kill();
    // All that the second run wrote first is lost, more than a write can tear.
    let lost = vec![0; WRITE_BYTES_MAX as usize + 4096];
    let file = File::options().write(true).open(&end.segment).unwrap();
    file.write_all_at(&lost, end.offset() + end.bytes).unwrap();
    let (code, log) = start_and_end(&mut node);
    assert_eq!(code, 5, "{log}");
    assert!(log.contains("a whole frame stands behind it"), "{log}");
}

#[test]
fn damage_that_only_apply_reads_stops_the_start_and_a_peers_segment_heals_it() {
    let scratch = tempfile::tempdir().unwrap();
    // The checkpoint moves on, the table keeps everything in memory: a restart replays all.
    let flags = ["--checkpoint-ms", "10", "--memtable-bytes", "1GiB"];
    let mut primary = Node::primary(scratch.path(), "primary", &flags);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &[]);
    replica.start();
    set_rows(&primary, 0..700, value);
    replica.catch_up_with(&primary);
    std::thread::sleep(Duration::from_millis(100));
    primary.kill();
    let frames = frames(&primary.directory);
    let frame = frames.iter().find(|frame| frame.kind == "rows" && frame.base == 65536).unwrap();
    flip(&frame.segment, frame.offset() + 200, 3);
    let (code, log) = start_and_end(&mut primary);
    assert_eq!(code, 5, "{log}");
    assert_named(&log, frame);
    assert!(!log.contains("torn"), "{log}");
    let name = frame.segment.file_name().unwrap();
    std::fs::copy(replica.directory.join(name), &frame.segment).unwrap();
    primary.start();
    assert_rows(&primary, 0..700, value);
    assert_whole(&primary);
}

#[test]
fn damage_in_what_is_shipped_is_found_before_it_is_sent() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    set_rows(&primary, 0..700, value);
    // Its tip would serve a replica from memory.
    primary.stop();
    primary.start();
    let frames = frames(&primary.directory);
    let frame = frames.iter().find(|frame| frame.kind == "rows" && frame.base == 65536).unwrap();
    for at in [4, 150] {
        flip(&frame.segment, frame.offset() + at, 3);
        let name = format!("r{at}");
        let mut replica = Node::replica(scratch.path(), &name, &primary, &[]);
        replica.start();
        let told = replica.until("refused", |status| status["upstream"]["state"] == "refused");
        let why = told["upstream"]["last_error"].as_str().unwrap().to_owned();
        let offset = format!("at offset {} (LSN {})", frame.offset(), frame.lsn);
        assert!(why.contains(&offset) && why.contains("primary cannot ship"), "{why}");
        let status = primary.status();
        let events = status["events"].to_string();
        assert!(events.contains(&offset), "{events}");
        assert!(replica.status()["log"]["appended"].as_u64().unwrap() <= frame.lsn);
        // The others are served on.
        set_rows(&primary, 700..710, value);
        assert_whole(&replica);
        flip(&frame.segment, frame.offset() + at, 3);
        replica.catch_up_with(&primary);
        assert_identical(&primary, &replica);
    }
}

#[test]
fn a_torn_last_write_is_cut_and_told() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "600000"]);
    let mut random = seed("torn tail");
    let mut rows = 0;
    for round in 0..5 {
        node.start();
        set_rows(&node, rows..rows + 20, value);
        let mut client = node.client();
        client.ask(&["SET", "last", &value(round)]).unwrap();
        node.kill();
        let last = frames(&node.directory).pop().unwrap();
        assert_eq!(last.kind, "rows");
        // Any prefix of the frame reached the disk, then zeroes or what a recycled file held.
        let kept = 1 + random.below(last.bytes - 40);
        let rest = vec![if round % 2 == 0 { 0 } else { 0xA5 }; (last.bytes - kept) as usize];
        let file = File::options().write(true).open(&last.segment).unwrap();
        file.write_all_at(&rest, last.offset() + kept).unwrap();
        let (code, out, _) = node.verify_log();
        assert_eq!(code, 0, "a torn tail is no damage: {out}");
        let before = node.log().len();
        node.start();
        let told = format!("cut at LSN {} ", last.lsn);
        // Less than a header, and zeroes behind it, is the same as no frame at all.
        let log = node.log().split_off(before);
        assert!(kept < 96 || log.contains(&told), "kept {kept} of {last:?}: {log}");
        if kept >= 96 {
            assert!(node.status()["events"].to_string().contains(&told));
        }
        assert_rows(&node, 0..rows + 20, value);
        let found = node.call(&["GET", "last"]).text();
        assert_eq!(found, (round > 0).then(|| "again".to_owned()));
        node.call(&["SET", "last", "again"]);
        assert_whole(&node);
        node.kill();
        rows += 20;
    }
}

#[test]
fn a_write_that_fails_is_not_acknowledged_and_ends_the_node() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &["--checkpoint-ms", "600000"]);
    node.start();
    set_rows(&node, 0..20, value);
    node.stop();
    // A limit on the size of files: writes beyond it fail with EFBIG, where the signal that comes
    // with it is ignored. It leaves the shell's child no room in the segment.
    let appended = frames(&node.directory).last().map(|last| last.offset() + last.bytes).unwrap();
    let limit_blocks = (appended + 12_000) / 512;
    let script = "trap '' XFSZ; exec \"$0\" \"$@\"";
    let flags = ["--preset", "tiny", "--name", "primary", "--checkpoint-ms", "600000"];
    let log = scratch.path().join("limited.stderr");
    let mut child = Command::new("sh")
        .args(["-c", script, support::binary(), "serve"])
        .args(flags)
        .args(["--listen", "127.0.0.1:0", "--replication-listen", "127.0.0.1:0", "--data-dir"])
        .arg(&node.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let until = Instant::now() + support::PATIENCE;
    let told = || std::fs::read_to_string(&log).unwrap();
    while !told().contains("ready") {
        assert!(Instant::now() < until, "{}", told());
        std::thread::sleep(Duration::from_millis(10));
    }
    let limit = rustix::process::Rlimit {
        current: Some(limit_blocks * 512),
        maximum: Some(limit_blocks * 512),
    };
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    let mut client = node.client();
    let mut acknowledged = 0;
    for row in 20..500 {
        match client.call(&["SET", &format!("t:{row}"), &value(row)]) {
            Ok(reply) if reply.error().is_none() => acknowledged = row,
            _ => break,
        }
    }
    assert!((20..499).contains(&acknowledged), "{acknowledged}: {}", told());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(6), "{}", told());
    assert!(told().contains("acknowledges nothing more"), "{}", told());
    node.start();
    assert_rows(&node, 0..acknowledged + 1, value);
    assert_whole(&node);
}

#[test]
fn while_a_segment_is_filled_with_zeroes_checkpoints_and_status_go_on() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--segment-bytes", "512MiB", "--checkpoint-ms", "10"];
    let mut node = Node::primary(scratch.path(), "primary", &flags);
    node.start();
    let filling = node.directory.join("prepare.tmp");
    let until = Instant::now() + support::PATIENCE;
    while !filling.exists() {
        assert!(segments(&node.directory).len() < 2, "the second segment is there already");
        assert!(Instant::now() < until, "no second segment is made");
        std::thread::sleep(Duration::from_millis(1));
    }
    let state = || std::fs::read(node.directory.join("node.state")).unwrap();
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    let (mut last, mut stored, mut looks) = (state(), 0, 0);
    while filling.exists() {
        set_rows(&node, looks..looks + 1, value);
        let asked = Instant::now();
        node.status();
        slowest = slowest.max(asked.elapsed());
        looks += 1;
        let now = state();
        stored += u64::from(now != last);
        last = now;
    }
    let took = began.elapsed();
    assert!(looks > 3, "{looks} looks in {took:?}: it was ready too soon to see anything");
    assert!(slowest < took / 2, "one of {looks} answers took {slowest:?} of {took:?}");
    assert!(stored > 2, "{stored} checkpoints, {looks} looks in {took:?}");
    node.stop();
}
