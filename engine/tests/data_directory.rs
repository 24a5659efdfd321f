//! The data directory and the table in it: what is refused, with which exit code and words, and
//! what is rebuilt.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{
    Node, PATIENCE, Random, assert_identical, assert_rows, rowship, segments, set_rows,
    start_and_end,
};
use xxhash_rust::xxh3::xxh3_64;

fn value(row: u64) -> String {
    format!("{row:0>200}")
}

/// Size of each of the two slots of `node.state`.
const SLOT_BYTES: usize = 128 << 10;

fn stopped_primary(scratch: &Path, rows: u64) -> Node {
    let mut node = Node::primary(scratch, "primary", &[]);
    node.start();
    set_rows(&node, 0..rows, value);
    node.stop();
    node
}

/// Asserts that the node refuses with this code and all of these words.
fn assert_refused(node: &mut Node, code: i32, words: &[&str]) {
    let (found, log) = start_and_end(node);
    assert_eq!(found, code, "{log}");
    for word in words {
        assert!(log.contains(word), "'{word}' is missing in:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_directory_in_use_names_who_uses_it() {
    let scratch = tempfile::tempdir().unwrap();
    let mut first = Node::primary(scratch.path(), "primary", &[]);
    first.start();
    set_rows(&first, 0..5, value);
    let mut second = Node::primary(scratch.path(), "primary", &[]);
    let addresses = std::fs::read(first.directory.join("addresses.json")).unwrap();
    let words = format!("is in use by process {}", first.pid());
    assert_refused(&mut second, 4, &[&words]);
    std::fs::write(first.directory.join("addresses.json"), addresses).unwrap();
    assert_rows(&first, 0..5, value);
}

/// A killed process does not wait for its disk: what it has asked for may be written late, and
/// whoever asked for it holds a lock on the segment until then.
#[test]
fn a_start_waits_for_writes_of_a_process_that_has_ended() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 5);
    let segment = File::open(&segments(&node.directory)[0].1).unwrap();
    rustix::fs::flock(&segment, rustix::fs::FlockOperation::LockShared).unwrap();
    let before = node.log().len();
    node.spawn();
    let until = std::time::Instant::now() + PATIENCE;
    while !node.log()[before..].contains("waiting for the last write of a killed process") {
        assert!(node.is_running() && std::time::Instant::now() < until, "{}", node.log());
        assert!(!node.log()[before..].contains("log recovered"), "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    rustix::fs::flock(&segment, rustix::fs::FlockOperation::Unlock).unwrap();
    node.until_listening();
    assert_rows(&node, 0..5, value);
}

/// The kernel would round the allocator's memory up to them, long after the start: see
/// ARCHITECTURE.md. Buffers for the disk may be in huge pages: they are small.
#[test]
fn a_nodes_rows_are_not_in_huge_pages() {
    const BUFFERS_BYTES_MAX: u64 = 64 << 20;
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &[]);
    node.start();
    set_rows(&node, 0..5, value);
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", node.pid()));
    let off = read("status").unwrap().lines().any(|line| line == "THP_enabled:\t0");
    let system = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    assert!(off || !system.unwrap_or_default().contains("[always]"));
    // Regions for which they were asked for have the flag `hg`.
    let mut region_kb = 0;
    for line in read("smaps").unwrap().lines() {
        if let Some(size) = line.strip_prefix("Size:") {
            region_kb = size.trim().trim_end_matches(" kB").parse().unwrap();
        }
        let asked = line.strip_prefix("VmFlags:").is_some_and(|flags| flags.contains(" hg"));
        assert!(off || !asked || region_kb << 10 <= BUFFERS_BYTES_MAX, "{region_kb} kB");
    }
}

#[test]
fn files_and_directory_are_for_their_user_only() {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            }
            found.push(path);
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let node = stopped_primary(scratch.path(), 700);
    let mut found = vec![node.directory.clone()];
    walk(&node.directory, &mut found);
    assert!(found.len() > 10, "{found:?}");
    for path in found {
        let metadata = std::fs::metadata(&path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.mode() & 0o777, expected, "{}", path.display());
    }
}

#[test]
fn paths_that_cannot_be_a_data_directory_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let serve = |path: &Path| {
        let path = path.to_str().unwrap();
        rowship(&["serve", "--preset", "tiny", "--listen", "127.0.0.1:0", "--data-dir", path])
    };
    for (path, words) in [
        (file.clone(), "is not a directory"),
        (file.join("below"), "is not a directory"),
        (PathBuf::from("/proc/no-such/data"), "/proc/no-such/data"),
    ] {
        let (code, _, err) = serve(&path);
        assert_eq!(code, 4, "{}: {err}", path.display());
        assert!(err.contains(words), "{err}");
        assert!(err.contains(path.to_str().unwrap()), "{err}");
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let node = stopped_primary(scratch.path(), 5);
    let directory = node.directory.to_str().unwrap();
    let serve = ["serve", "--preset", "tiny", "--listen", "127.0.0.1:0"];
    let other_user = |arguments: &[&str]| {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", support::binary()])
            .args(arguments)
            .output();
        output.ok().map(|output| {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code().unwrap_or(-1), text)
        })
    };
    let is_root = rustix::process::geteuid().is_root();
    match other_user(&["--version"]) {
        Some((0, _)) if is_root => {
            let arguments = [&serve[..], &["--data-dir", directory]].concat();
            let (code, err) = other_user(&arguments).unwrap();
            assert_eq!(code, 4, "{err}");
            assert!(err.contains("cannot be written") && err.contains("Permission"), "{err}");
        }
        other => println!("SKIPPED: another user's directory needs root and setpriv: {other:?}"),
    }
    let bind = |arguments: &[&str]| Command::new("mount").args(arguments).status();
    let bound = bind(&["--bind", "-o", "ro", directory, directory]);
    if !bound.is_ok_and(|status| status.success()) {
        println!("SKIPPED: a read-only mount needs root");
        return;
    }
    let (code, _, err) = rowship(&[&serve[..], &["--data-dir", directory]].concat());
    let (verify_code, out, _) = node.verify_log();
    Command::new("umount").arg(directory).status().unwrap();
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("cannot be written") && err.contains("ead-only"), "{err}");
    assert_eq!(verify_code, 0, "reading is enough to verify: {out}");
}

#[test]
fn a_directory_from_a_newer_version_is_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 5);
    let path = node.directory.join("node.state");
    let good = std::fs::read(&path).unwrap();
    let mut newer = good.clone();
    for slot in newer.chunks_mut(SLOT_BYTES) {
        let body_len = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
        slot[8] = 9;
        let summed = [&slot[..24], &slot[32..32 + body_len]].concat();
        slot[24..32].copy_from_slice(&xxh3_64(&summed).to_le_bytes());
    }
    std::fs::write(&path, &newer).unwrap();
    assert_refused(&mut node, 4, &["newer rowship, version 9", path.to_str().unwrap()]);
    assert!(std::fs::read(&path).unwrap() == newer, "it is not written over");
    std::fs::write(&path, &good).unwrap();

    let (base, path) = segments(&node.directory)[0].clone();
    assert_eq!(base, 0);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut page = vec![0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    let whole = page.clone();
    page[8] = 9;
    let checksum = xxh3_64(&page[..4088]);
    page[4088..].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&page, 0).unwrap();
    assert_refused(&mut node, 4, &["newer rowship", "version 9", path.to_str().unwrap()]);
    file.write_all_at(&whole, 0).unwrap();
    node.start();
    assert_rows(&node, 0..5, value);
}

#[test]
fn a_lost_or_broken_node_state_is_refused_and_one_torn_slot_is_survived() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 50);
    let path = node.directory.join("node.state");
    let good = std::fs::read(&path).unwrap();
    let log = |node: &Node| std::fs::read(&segments(&node.directory)[0].1).unwrap();
    let before = log(&node);
    std::fs::remove_file(&path).unwrap();
    assert_refused(&mut node, 4, &["node.state", "not a whole data directory"]);
    assert!(!path.exists(), "none is made up");
    let mut random = Random(7);
    let garbage: Vec<u8> = (0..good.len()).map(|_| random.next() as u8).collect();
    for bytes in [&garbage[..], &[], &good[..100]] {
        std::fs::write(&path, bytes).unwrap();
        assert_refused(&mut node, 4, &["node.state is damaged", "neither of its two slots"]);
        assert!(std::fs::read(&path).unwrap() == bytes, "it is left as it was");
    }
    assert!(log(&node) == before, "the log is left alone");
    // A write of the state that was torn: the slot with the lower number is in force.
    let sequence = |slot: usize| {
        let at = slot * SLOT_BYTES + 16;
        u64::from_le_bytes(good[at..at + 8].try_into().unwrap())
    };
    let newest = usize::from(sequence(1) > sequence(0));
    let mut torn = good.clone();
    torn[newest * SLOT_BYTES + 40] ^= 1;
    std::fs::write(&path, &torn).unwrap();
    node.start();
    assert_rows(&node, 0..50, value);
}

/// Files of the table, largest first.
fn table_files(node: &Node) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<(u64, PathBuf)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::metadata(&path).unwrap();
            if metadata.is_dir() {
                walk(&path, found);
            } else {
                found.push((metadata.len(), path));
            }
        }
    }
    let mut found = Vec::new();
    walk(&node.directory.join("table"), &mut found);
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn a_table_that_does_not_open_is_set_aside_and_rebuilt() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &[]);
    node.start();
    let mut replica = Node::replica(scratch.path(), "r1", &node, &[]);
    replica.start();
    set_rows(&node, 0..1500, value);
    for round in 1..=2 {
        replica.catch_up_with(&node);
        node.stop();
        match round {
            1 => std::fs::write(node.directory.join("table/current"), [0xA5; 64]).unwrap(),
            _ => std::fs::remove_dir_all(node.directory.join("table")).unwrap(),
        }
        let before = node.log().len();
        node.start();
        let log = node.log().split_off(before);
        assert!(log.contains("rebuilt from the log"), "{log}");
        assert!(node.status()["events"].to_string().contains("rebuilt"), "{log}");
        assert!(node.directory.join("table.broken-1").exists(), "kept aside: {log}");
        replica.stop();
        replica.follow(&node.replication_address());
        replica.start();
        replica.until("streaming", |status| status["upstream"]["state"] == "streaming");
        node.call(&["SET", "t:0", &value(0)]);
        replica.catch_up_with(&node);
        assert_identical(&node, &replica);
    }
    node.stop();
    let before = node.log().len();
    node.start();
    assert!(!node.log().split_off(before).contains("rebuilt"), "once is enough");
}

#[test]
fn a_damaged_table_behind_a_retired_log_is_left_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 700);
    node.start();
    let to = node.status()["log"]["appended"].as_u64().unwrap();
    node.call(&["ROWSHIP.RETIRE", &to.to_string()]);
    assert!(node.status()["log"]["oldest_lsn"].as_u64().unwrap() > 65536, "some of it is retired");
    node.stop();
    let current = node.directory.join("table/current");
    let whole = std::fs::read(&current).unwrap();
    std::fs::write(&current, &whole[..3]).unwrap();
    for _ in 0..2 {
        assert_refused(&mut node, 5, &["is damaged", "was retired below", "nothing was changed"]);
        assert!(!node.directory.join("table.broken-1").exists());
    }
    std::fs::write(&current, whole).unwrap();
    node.start();
    assert_rows(&node, 0..700, value);
}

#[test]
fn rot_in_rows_of_the_table_never_answers_wrongly_and_a_restart_heals_it() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = stopped_primary(scratch.path(), 1500);
    let path = table_files(&node).remove(0);
    let len = std::fs::metadata(&path).unwrap().len();
    let file = File::options().write(true).open(&path).unwrap();
    // Data blocks come first in the file.
    file.write_all_at(&[0xA5; 512], len / 4).unwrap();
    let before = node.log().len();
    node.start();
    let mut client = node.client();
    let mut errors = 0;
    for row in 0..1500 {
        let Ok(reply) = client.call(&["GET", &format!("t:{row}")]) else { break };
        match reply.error() {
            Some(error) => {
                assert!(error.contains("damaged"), "{error}");
                errors += 1;
            }
            None => assert_eq!(reply.text(), Some(value(row)), "row {row}"),
        }
    }
    let log = node.log().split_off(before);
    assert!(errors > 0 || log.contains("rebuilt"), "found by reads or at the start: {log}");
    node.signal(rustix::process::Signal::TERM);
    node.wait_for_end();
    let before = node.log().len();
    node.start();
    let log = node.log().split_off(before);
    assert!(log.contains("rebuilt from the log"), "{log}");
    assert_rows(&node, 0..1500, value);
}

#[test]
fn kills_during_flush_and_compaction_lose_nothing() {
    const ROUNDS: u64 = 8;
    const KEYS: u64 = 300;
    let scratch = tempfile::tempdir().unwrap();
    // A memtable holds a fraction of the keys: it is flushed and compacted all the time.
    let mut node = Node::primary(scratch.path(), "primary", &["--memtable-bytes", "16KiB"]);
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("kills: seed {seed}");
    let mut random = Random(seed);
    // Of each key: the last version acknowledged, and the last one sent.
    let (mut acked, mut sent) = (vec![0; KEYS as usize], vec![0; KEYS as usize]);
    let (mut version, mut flushed) = (0, 0);
    node.start();
    for round in 0..ROUNDS {
        let mut client = node.client();
        let pid = rustix::process::Pid::from_raw(node.pid() as i32).unwrap();
        let after = std::time::Duration::from_millis(200 + random.below(900));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        'load: loop {
            let mut batch = Vec::new();
            for _ in 0..32 {
                version += 1;
                let key = random.below(KEYS) as usize;
                client.queue(&["SET", &format!("t:{key}"), &value(version)]);
                sent[key] = version;
                batch.push((key, version));
            }
            if client.flush().is_err() {
                break;
            }
            for (key, version) in batch {
                match client.receive() {
                    Ok(reply) => assert!(reply.error().is_none(), "{reply:?}"),
                    Err(_) => break 'load,
                }
                acked[key] = version;
            }
        }
        killer.join().unwrap();
        node.kill();
        node.start();
        flushed = flushed.max(node.status()["table"]["durable_lsn"].as_u64().unwrap());
        let mut client = node.client();
        let mut rows = 0;
        for key in 0..KEYS as usize {
            let found = client.ask(&["GET", &format!("t:{key}")]).unwrap().text();
            let found = found.map_or(0, |text| text.parse().unwrap());
            let (least, most) = (acked[key], sent[key]);
            assert!(least <= found && found <= most, "round {round}, key {key}: {found}");
            rows += u64::from(found > 0);
            (acked[key], sent[key]) = (found, found);
        }
        let count = client.ask(&["DBSIZE"]).unwrap();
        assert_eq!(format!("{count:?}"), format!("Integer({rows})"), "round {round}");
    }
    assert!(flushed > 100_000, "the table was flushed: {flushed}");
    let (code, out, err) = node.verify_log();
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn a_restart_after_a_clean_stop_replays_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &["--memtable-bytes", "1GiB"]);
    node.start();
    set_rows(&node, 0..1000, value);
    let end = node.status()["log"]["appended"].as_u64().unwrap();
    assert!(node.status()["table"]["durable_lsn"].as_u64().unwrap() < end);
    let started = std::time::Instant::now();
    node.stop();
    assert!(started.elapsed() < PATIENCE / 4, "a stop is bounded");
    let before = node.log().len();
    node.start();
    let durable = node.status()["table"]["durable_lsn"].as_u64().unwrap();
    assert!(durable >= end, "{durable} of {end}");
    let log = node.log().split_off(before);
    assert!(!log.contains("applying the log"), "{log}");
    assert_rows(&node, 0..1000, value);
}

#[test]
fn an_address_that_a_node_going_away_still_holds_is_waited_for() {
    let scratch = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let mut node = Node::primary(scratch.path(), "primary", &["--listen", &address]);
    node.spawn();
    let until = std::time::Instant::now() + support::PATIENCE;
    while !node.log().contains("is still taken") {
        assert!(std::time::Instant::now() < until && node.is_running(), "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(holder);
    node.until_listening();
    assert_eq!(node.call(&["PING"]).text().as_deref(), Some("PONG"));
    // One that stays taken is given up, and named.
    let mut second = Node::primary(scratch.path(), "second", &["--listen", &address]);
    let (code, log) = support::start_and_end(&mut second);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains(&format!("cannot listen for clients on {address}")), "{log}");
    node.stop();
}
