//! Requests that fail: the disk says EIO or is full, and what a node does then.

use fuser::Errno;

use super::archive::Archive;
use super::cluster::Site;
use super::state::{Direct, Fault, Operation, Which};
use crate::support::{Node, Random, assert_identical, assert_rows, seed, set_rows, start_and_end};

/// Exit code of a node whose disk has failed.
const DISK_FAILED: i32 = 6;

fn fault(operation: Operation, path: &'static str, error: Errno) -> Fault {
    Fault { which: Which::new(operation, path, 0), error, once: true }
}

/// Files that cannot be read from now on. Not only once: the system reads ahead, and reads again
/// what that did not bring.
fn unreadable(path: &'static str) -> Fault {
    Fault { once: false, ..fault(Operation::Read, path, Errno::EIO) }
}

fn value(row: u64) -> String {
    format!("{row:0>200}")
}

/// Writes until the node is gone.
fn write_until_it_ends(node: &mut Node, archive: &mut Archive, random: &mut Random) -> i32 {
    let address = node.address();
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while archive.write_some(&address, random) || node.is_running() {
        assert!(std::time::Instant::now() < until, "it goes on:\n{}", node.log());
    }
    node.wait_for_end().code().unwrap_or(-1)
}

/// One failing request ends the node with its code; it is not tried again; the restart, from what
/// a power loss leaves, has all that was acknowledged.
fn a_failure_ends_the_node(operation: Operation, path: &'static str) {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut site) = Site::primary(scratch.path(), &["--checkpoint-ms", "50"]) else { return };
    let Site { node, disk } = &mut site;
    let mut random = Random(seed("ROWSHIP_POWER_SEED"));
    node.start();
    let mut archive = Archive::default();
    for _ in 0..20 {
        assert!(archive.write_some(&node.address(), &mut random));
    }
    disk.state().faults.push(fault(operation, path, Errno::EIO));
    let code = write_until_it_ends(node, &mut archive, &mut random);
    assert_eq!(code, DISK_FAILED, "{operation:?} of {path}:\n{}", node.log());
    assert!(node.log().contains("Input/output error"), "it says why:\n{}", node.log());
    let seen = disk.state().seen;
    assert_eq!((seen.failed, seen.syncs_after_failure), (1, 0), "{operation:?} of {path}");
    disk.lose_power(node, &mut random);
    node.start();
    archive.check(node).unwrap();
    let (code, out, err) = node.verify_log();
    assert_eq!(code, 0, "{out}{err}");
    assert!(archive.write_some(&node.address(), &mut random), "writes go on");
}

#[test]
fn a_sync_of_the_log_that_fails_is_not_tried_again() {
    a_failure_ends_the_node(Operation::Sync, "segment-");
}

#[test]
fn a_write_of_the_log_that_fails_ends_the_node() {
    a_failure_ends_the_node(Operation::Write, "segment-");
}

#[test]
fn a_sync_of_the_state_that_fails_is_not_tried_again() {
    a_failure_ends_the_node(Operation::Sync, "node.state");
}

#[test]
fn a_sync_of_the_table_that_fails_is_not_tried_again() {
    a_failure_ends_the_node(Operation::Sync, "table/tables/");
}

#[test]
fn a_sync_of_the_tables_manifest_that_fails_is_not_tried_again() {
    a_failure_ends_the_node(Operation::Sync, "table/v");
}

#[test]
fn a_sync_of_the_tables_directory_that_fails_is_not_tried_again() {
    a_failure_ends_the_node(Operation::SyncDirectory, "table");
}

#[test]
fn a_write_of_the_table_that_fails_ends_the_node() {
    a_failure_ends_the_node(Operation::Write, "table/tables/");
}

#[test]
fn without_direct_reads_and_writes_the_cache_serves() {
    for direct in [Direct::NotOpened, Direct::NotUsed] {
        let scratch = tempfile::tempdir().unwrap();
        let Some(mut site) = Site::primary(scratch.path(), &[]) else { return };
        let Site { node, disk } = &mut site;
        let mut random = Random(seed("ROWSHIP_POWER_SEED"));
        disk.state().direct = direct;
        node.start();
        let mut archive = Archive::default();
        for _ in 0..50 {
            assert!(archive.write_some(&node.address(), &mut random));
        }
        set_rows(node, 0..2000, value);
        disk.lose_power(node, &mut random);
        disk.state().direct = direct;
        node.start();
        archive.check(node).unwrap();
        // Out of the log, which is not at the tip after a restart.
        let mut replica = Node::replica(scratch.path(), "r1", node, &[]);
        replica.start();
        replica.catch_up_with(node);
        assert_identical(node, &replica);
        assert!(disk.state().seen.direct_refused > 0, "{direct:?}");
        let (code, out, err) = node.verify_log();
        assert_eq!(code, 0, "{out}{err}");
    }
}

/// A primary with a log of several segments, of which the first cannot be read any more.
fn unreadable_segment(scratch: &tempfile::TempDir) -> Option<Site> {
    let flags = ["--checkpoint-ms", "10", "--memtable-bytes", "1GiB"];
    let mut site = Site::primary(scratch.path(), &flags)?;
    site.node.start();
    set_rows(&site.node, 0..1000, value);
    Some(site)
}

const FIRST_SEGMENT: &str = "segment-00000000000000000000";

fn make_unreadable(site: &Site) {
    site.disk.state().faults.push(unreadable(FIRST_SEGMENT));
    site.disk.forget_pages(&format!("primary/{FIRST_SEGMENT}.log"));
}

#[test]
fn log_that_cannot_be_read_is_not_shipped_and_the_primary_serves_on() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut site) = unreadable_segment(&scratch) else { return };
    // Its tip would serve a replica from memory.
    site.node.stop();
    site.node.start();
    make_unreadable(&site);
    let mut replica = Node::replica(scratch.path(), "r1", &site.node, &["--reconnect-ms", "20"]);
    replica.start();
    let told = replica.until("refused", |status| status["upstream"]["state"] == "refused");
    let why = told["upstream"]["last_error"].as_str().unwrap().to_owned();
    assert!(why.contains("the primary cannot") && why.contains(FIRST_SEGMENT), "{why}");
    assert!(site.disk.state().seen.failed > 0);
    // Everybody else is served on.
    set_rows(&site.node, 1000..1010, value);
    assert_rows(&site.node, 0..1010, value);
    site.disk.state().faults.clear();
    replica.catch_up_with(&site.node);
    assert_identical(&site.node, &replica);
    assert_rows(&replica, 0..1010, value);
}

/// Apply reads what the recovery did not: the part of the log below the checkpoint's segment.
#[test]
fn log_that_cannot_be_read_for_the_table_ends_the_node() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut site) = unreadable_segment(&scratch) else { return };
    std::thread::sleep(std::time::Duration::from_millis(100));
    site.node.kill();
    make_unreadable(&site);
    let (code, log) = start_and_end(&mut site.node);
    assert_eq!(code, DISK_FAILED, "{log}");
    assert!(log.contains("cannot read") && log.contains(FIRST_SEGMENT), "{log}");
    site.disk.state().faults.clear();
    site.node.start();
    assert_rows(&site.node, 0..1000, value);
}

/// A read of a log or a table that fails is an error, and no other answer.
#[test]
fn a_start_that_cannot_read_its_directory_changes_nothing() {
    for path in ["node.state", "segment-", "table/current", "table/v", "table/tables/"] {
        let scratch = tempfile::tempdir().unwrap();
        let Some(mut site) = Site::primary(scratch.path(), &[]) else { return };
        site.node.start();
        set_rows(&site.node, 0..1000, value);
        site.node.stop();
        // A new mount has nothing in memory.
        let mut random = Random(seed("ROWSHIP_POWER_SEED"));
        site.disk.lose_power(&mut site.node, &mut random);
        site.disk.state().faults.push(unreadable(path));
        let (code, log) = start_and_end(&mut site.node);
        println!("{path}: {code}: {}", log.lines().last().unwrap_or_default());
        assert!([4, 5, 6].contains(&code), "{path}: {code}: {log}");
        site.disk.state().faults.clear();
        site.node.start();
        assert_rows(&site.node, 0..1000, value);
        assert!(!site.node.log().contains("rebuilt"), "{path}: {}", site.node.log());
    }
}

#[test]
fn a_row_that_cannot_be_read_is_an_error_and_the_next_read_may_work() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut site) = Site::primary(scratch.path(), &["--cache-bytes", "64KiB"]) else { return };
    site.node.start();
    set_rows(&site.node, 0..3000, value);
    site.node.stop();
    site.disk.lose_power(&mut site.node, &mut Random(seed("ROWSHIP_POWER_SEED")));
    site.node.start();
    site.disk.state().faults.push(unreadable("table/tables/"));
    let mut client = site.node.client();
    let mut errors = 0;
    for row in (0..3000).step_by(50) {
        let reply = client.call(&["GET", &format!("t:{row}")]).unwrap();
        match reply.error() {
            Some(error) => {
                assert!(error.contains("Input/output error"), "{error}");
                errors += 1;
            }
            None => assert_eq!(reply.text(), Some(value(row)), "{row}"),
        }
    }
    assert!(errors > 0, "nothing was read from the disk");
    site.disk.state().faults.clear();
    assert_rows(&site.node, 0..3000, value);
}

/// A full disk refuses writes, serves reads, goes on when there is space; and power loss on a full
/// disk is like any other.
#[test]
fn a_full_disk_refuses_writes_and_survives_power_loss() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut site) = Site::primary(scratch.path(), &[]) else { return };
    let mut random = Random(seed("ROWSHIP_POWER_SEED"));
    site.disk.state().capacity = 6 << 20;
    site.node.start();
    let mut client = site.node.client();
    let mut rows = 0;
    let refused = loop {
        let reply = client.call(&["SET", &format!("t:{rows}"), &value(rows)]).unwrap();
        match reply.error() {
            None => rows += 1,
            Some(error) => break error,
        }
        assert!(rows < 100_000, "the disk never fills");
    };
    assert!(refused.starts_with("DISKFULL "), "{refused}");
    assert_rows(&site.node, 0..rows, value);
    site.disk.lose_power(&mut site.node, &mut random);
    site.disk.state().capacity = 6 << 20;
    site.node.start();
    assert_rows(&site.node, 0..rows, value);
    site.disk.state().capacity = 64 << 20;
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let mut client = site.node.client();
    while client.call(&["SET", "t:0", &value(0)]).unwrap().error().is_some() {
        assert!(std::time::Instant::now() < until, "{}", site.node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    set_rows(&site.node, rows..rows + 500, value);
    assert_rows(&site.node, 0..rows + 500, value);
}
