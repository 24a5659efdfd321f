//! Full disks: on a small file system of their own, which needs root to mount.

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::{Node, assert_identical, assert_rows, set_rows, start_and_end};

/// A tmpfs of its own size that is the data directory of one node (whose standard error is kept
/// beside it, where there is space); unmounted when dropped.
struct SmallDisk {
    scratch: tempfile::TempDir,
    name: &'static str,
}

impl SmallDisk {
    /// None, with a line that says so, where mounting is not allowed.
    fn mount(name: &'static str, mib: u64) -> Option<SmallDisk> {
        let disk = SmallDisk { scratch: tempfile::tempdir().unwrap(), name };
        let options = format!("size={mib}m,mode=0700");
        std::fs::create_dir(disk.path()).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "rowship-test"])
            .arg(disk.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(disk);
        }
        println!("SKIPPED: a file system of {mib} MiB cannot be mounted (needs root)");
        None
    }

    /// The data directory.
    fn path(&self) -> PathBuf {
        self.scratch.path().join(self.name)
    }

    /// Takes all free space but `left` bytes.
    fn fill(&self, left: u64) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let piece = [0xA5; 4096];
        let free = || {
            let status = rustix::fs::statvfs(self.path()).unwrap();
            status.f_bavail * status.f_frsize
        };
        while free() >= left + piece.len() as u64 {
            match std::io::Write::write_all(&mut file, &piece) {
                Ok(()) => {}
                // The node takes some of it at the same time.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn value(row: u64) -> String {
    format!("{row:0>200}")
}

/// Writes rows one after the other until one is refused: how many were acknowledged, and why not
/// the next one.
fn fill_with_rows(node: &Node, from: u64) -> (u64, String) {
    let mut client = node.client();
    for row in from..200_000 {
        let reply = client.call(&["SET", &format!("t:{row}"), &value(row)]).unwrap();
        if let Some(error) = reply.error() {
            return (row, error);
        }
    }
    panic!("the disk never fills");
}

/// Writes rows until writes have been refused for so long that nobody gives space back any more:
/// right after the first refusal the table's compaction often does. Returns the acknowledged rows,
/// why the next was refused, and the status then.
fn fill_for_good(node: &Node) -> (u64, String, serde_json::Value) {
    let (mut rows, mut error) = fill_with_rows(node, 0);
    let mut client = node.client();
    let mut refused_since = std::time::Instant::now();
    while refused_since.elapsed() < std::time::Duration::from_secs(2) {
        let reply = client.call(&["SET", &format!("t:{rows}"), &value(rows)]).unwrap();
        if reply.error().is_none() {
            (rows, error) = fill_with_rows(node, rows + 1);
            refused_since = std::time::Instant::now();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    (rows, error, node.status())
}

#[test]
fn a_full_disk_refuses_writes_and_they_resume_when_segments_are_retired() {
    let Some(disk) = SmallDisk::mount("primary", 8) else { return };
    let mut node = Node::primary(disk.scratch.path(), "primary", &["--checkpoint-ms", "20"]);
    node.start();
    let (rows, error, status) = fill_for_good(&node);
    println!("{rows} rows, then: {error}");
    assert!(rows > 1000, "{rows}");
    assert!(error.starts_with("DISKFULL ") && error.contains("log retire"), "{error}");
    assert!(error.contains(disk.path().to_str().unwrap()), "where: {error}");
    // Reads go on, the table is not hurt, and the log has kept its reserve.
    assert_rows(&node, 0..rows, value);
    assert!(status["log"]["full"].is_string(), "{status:#}");
    assert!(status["table"]["paused"].is_null(), "{status:#}");
    assert!(status["events"].to_string().contains("no space for a segment"), "{status:#}");
    assert!(node.call(&["SET", "t:0", "x"]).error().is_some(), "still refused");
    assert_eq!(node.call(&["PING"]).text().as_deref(), Some("PONG"));
    let to = (u64::MAX / 4).to_string();
    let mut client = node.client();
    let before = status["log"]["segments"].as_u64().unwrap();
    client.ask(&["ROWSHIP.RETIRE", &to]).unwrap();
    let status = node.until("space again", |status| status["log"]["full"].is_null());
    assert!(status["log"]["segments"].as_u64().unwrap() < before);
    set_rows(&node, rows..rows + 500, value);
    assert_rows(&node, 0..rows + 500, value);
    let (code, out, _) = node.verify_log();
    assert_eq!(code, 0, "{out}");
    node.stop();
    node.start();
    assert_rows(&node, 0..rows + 500, value);
    node.stop();
}

#[test]
fn space_that_others_took_comes_back_and_writes_go_on_by_themselves() {
    let Some(disk) = SmallDisk::mount("primary", 8) else { return };
    let mut node = Node::primary(disk.scratch.path(), "primary", &[]);
    node.start();
    set_rows(&node, 0..300, value);
    // Not even the reserve is left: the table's flushes have no space either.
    disk.fill(0);
    let (rows, error) = fill_with_rows(&node, 300);
    println!("{rows} rows, then: {error}");
    assert!(error.starts_with("DISKFULL "), "{error}");
    assert_rows(&node, 0..rows, value);
    disk.free();
    node.until("space again", |status| {
        status["log"]["full"].is_null() && status["table"]["paused"].is_null()
    });
    set_rows(&node, rows..rows + 600, value);
    // Full again, and killed: a start without space says so, and loses nothing.
    disk.fill(0);
    node.kill();
    let mut refused = Node::primary(disk.scratch.path(), "primary", &[]);
    let (code, log) = start_and_end_or_serve(&mut refused);
    println!("start on a full disk: {code:?}");
    if let Some(code) = code {
        assert_eq!(code, 7, "{log}");
        assert!(log.to_lowercase().contains("space"), "{log}");
    }
    refused.kill();
    disk.free();
    node.start();
    assert_rows(&node, 0..rows + 600, value);
    set_rows(&node, 0..50, value);
    let (code, out, _) = node.verify_log();
    assert_eq!(code, 0, "{out}");
    node.stop();
}

/// A start that either ends by itself (its code) or serves (none).
fn start_and_end_or_serve(node: &mut Node) -> (Option<i32>, String) {
    let before = node.log().len();
    node.spawn();
    let until = std::time::Instant::now() + support::PATIENCE;
    loop {
        let log = node.log().split_off(before);
        if log.contains("\"ready\"") || log.contains(" ready ") {
            return (None, log);
        }
        if !node.is_running() {
            let status = node.wait_for_end();
            return (status.code(), node.log().split_off(before));
        }
        assert!(std::time::Instant::now() < until, "{log}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_new_node_on_a_full_disk_says_so() {
    let Some(disk) = SmallDisk::mount("primary", 2) else { return };
    disk.fill(64 << 10);
    let mut node = Node::primary(disk.scratch.path(), "primary", &[]);
    let (code, log) = start_and_end(&mut node);
    assert_eq!(code, 7, "{log}");
    assert!(log.to_lowercase().contains("space"), "{log}");
    disk.free();
    node.start();
    set_rows(&node, 0..5, value);
    assert_rows(&node, 0..5, value);
    node.stop();
}

#[test]
fn a_replica_on_a_full_disk_pauses_says_so_and_resumes() {
    let Some(disk) = SmallDisk::mount("r1", 6) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut replica = Node::replica(disk.scratch.path(), "r1", &primary, &[]);
    replica.start();
    set_rows(&primary, 0..300, value);
    replica.catch_up_with(&primary);
    disk.fill(1 << 20);
    set_rows(&primary, 300..2000, value);
    let status = replica.until("full", |status| status["log"]["full"].is_string());
    let events = status["events"].to_string();
    assert!(events.contains("no space for a segment"), "{events}");
    // It reads on, and the primary writes on.
    assert_rows(&replica, 0..300, value);
    set_rows(&primary, 2000..2100, value);
    let lag = primary.until("lag grows", |status| {
        status["replicas"][0]["lag_bytes"].as_u64().unwrap() > 200_000
    });
    assert!(lag["replicas"][0]["lag_ms"].as_u64().unwrap() > 0);
    disk.free();
    replica.catch_up_with(&primary);
    let status = replica.until("space", |status| status["log"]["full"].is_null());
    assert_eq!(status["upstream"]["state"], "streaming");
    assert_identical(&primary, &replica);
    let (code, out, _) = replica.verify_log();
    assert_eq!(code, 0, "{out}");
    replica.stop();
}
