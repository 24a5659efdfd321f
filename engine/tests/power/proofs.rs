//! That this disk does what it says, and that the checks see what they are for.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rowship::edge::Disk;
use rowship::edge::disk::FileDisk;

use super::PowerDisk;
use super::archive::Archive;
use super::cluster::Site;
use super::model::{Body, Losses, Model, ROOT};
use super::state::{Lies, Operation, Trigger, Which};
use crate::support::{Node, Random, seed};

/// Chances that a power loss has to show what it does; one takes microseconds.
const DRAWS: u64 = 400;

fn new_file(model: &mut Model, name: &str) -> u64 {
    model.create(ROOT, name, 0o600, Body::File(super::model::File::default())).unwrap()
}

/// What is found under `name` after each of many power losses.
fn found(model: &Model, name: &str) -> Vec<Option<Vec<u8>>> {
    let mut random = Random(seed("ROWSHIP_POWER_SEED"));
    let draws = (0..DRAWS).map(|_| {
        let (after, _) = model.after_power_loss(&mut random);
        let number = after.lookup(ROOT, name).ok()?;
        Some(after.read(number, 0, 1 << 20).unwrap().to_vec())
    });
    draws.collect()
}

#[test]
fn what_was_synced_survives_and_what_was_not_may_be_kept_lost_or_torn() {
    let mut model = Model::new();
    let file = new_file(&mut model, "a");
    model.write(file, 0, &[1; 4096]).unwrap();
    model.sync(file).unwrap();
    model.sync(ROOT).unwrap();
    assert!(found(&model, "a").iter().all(|bytes| *bytes == Some(vec![1; 4096])));
    model.write(file, 1024, &[2; 2048]).unwrap();
    let found = found(&model, "a");
    assert!(found.iter().any(|bytes| *bytes == Some(vec![1; 4096])), "never lost");
    assert!(found.contains(&Some([vec![1; 1024], vec![2; 2048], vec![1; 1024]].concat())));
    let torn = |bytes: &Option<Vec<u8>>| {
        let bytes = bytes.as_ref().unwrap();
        assert!(bytes[..1024].iter().chain(&bytes[3072..]).all(|byte| *byte == 1));
        let twos = bytes.iter().filter(|byte| **byte == 2).count();
        (twos > 0 && twos < 2048, twos % 512 != 0)
    };
    assert!(found.iter().any(|bytes| torn(bytes).0), "never torn between sectors");
    assert!(found.iter().any(|bytes| torn(bytes).1), "never torn within a sector");
}

#[test]
fn a_name_is_durable_with_its_directory_only_and_a_rename_is_whole() {
    let mut model = Model::new();
    let old = new_file(&mut model, "name");
    model.write(old, 0, b"old").unwrap();
    model.sync(old).unwrap();
    assert!(found(&model, "name").iter().any(Option::is_none), "the file's sync is not enough");
    model.sync(ROOT).unwrap();
    let new = new_file(&mut model, "name.tmp");
    model.write(new, 0, b"new").unwrap();
    model.sync(new).unwrap();
    model.rename(ROOT, "name.tmp", "name").unwrap();
    let found = found(&model, "name");
    assert!(found.contains(&Some(b"old".to_vec())) && found.contains(&Some(b"new".to_vec())));
    assert!(found.iter().all(Option::is_some), "never neither");
}

#[test]
fn a_sync_that_failed_has_lost_its_writes_whatever_the_next_one_says() {
    let mut model = Model::new();
    let file = new_file(&mut model, "a");
    model.sync(ROOT).unwrap();
    model.write(file, 0, &[1; 100]).unwrap();
    model.lose_unsynced(file);
    assert_eq!(model.read(file, 0, 100).unwrap(), &[1; 100]);
    model.sync(file).unwrap();
    assert!(found(&model, "a").iter().all(|bytes| *bytes == Some(Vec::new())));
}

/// The kernel's part: `O_DSYNC` is a write and a sync, and maps see both kinds of writes.
#[test]
fn the_kernel_syncs_a_durable_write_before_it_returns() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(disk) = PowerDisk::mount(scratch.path().join("disk")) else { return };
    let files = FileDisk::open(disk.path()).unwrap();
    files.create_zeroed("file", 16 << 10).unwrap();
    let number = disk.state().model.lookup(ROOT, "file").unwrap();
    assert!(disk.state().model.is_synced(number) && disk.state().model.is_synced(ROOT));
    let map = files.map("file").unwrap();
    let before = disk.state().seen;
    let durable = rustix::fs::OFlags::DSYNC | rustix::fs::OFlags::DIRECT;
    let durable = i32::try_from(durable.bits()).unwrap();
    let path = disk.path().join("file");
    let file = File::options().write(true).custom_flags(durable).open(&path).unwrap();
    file.write_all_at(&[7; 8192], 4096).unwrap();
    let seen = disk.state().seen;
    assert_eq!(seen.durable_writes, before.durable_writes + 1);
    assert_eq!(seen.syncs, before.syncs + 1);
    assert!(disk.state().model.is_synced(number));
    assert_eq!(map.bytes()[4096..12288], [7; 8192]);
    let plain = File::options().write(true).open(&path).unwrap();
    plain.write_all_at(&[8; 5000], 100).unwrap();
    assert!(!disk.state().model.is_synced(number), "a plain write is not synced");
    assert_eq!(map.bytes()[100..5100], [8; 5000]);
}

/// A primary alone on its disk, whose checkpoint never comes while it runs.
fn lone_primary(scratch: &tempfile::TempDir) -> Option<Site> {
    Site::primary(scratch.path(), &["--checkpoint-ms", "600000"])
}

/// Rounds in which a disk that lies must be found out. Most losses leave a hole that recovery names
/// as damage; about one in sixty takes just the end of the log, and only who remembers what was
/// acknowledged can see that. The rounds end with the first of these.
const LIAR_ROUNDS: u64 = 600;

/// Power loss on a disk that lies, again and again on new directories: what was found wrong.
fn find_out(lies: Lies) -> Option<Vec<String>> {
    let mut random = Random(seed("ROWSHIP_POWER_SEED"));
    let mut found = Vec::new();
    for _ in 0..LIAR_ROUNDS {
        let scratch = tempfile::tempdir().unwrap();
        let mut site = lone_primary(&scratch)?;
        let Site { node, disk } = &mut site;
        node.start();
        let mut archive = Archive::default();
        // Only now: the start is not what this is about.
        disk.state().lies = lies;
        for _ in 0..60 {
            assert!(archive.write_some(&node.address(), &mut random));
        }
        disk.lose_power(node, &mut random);
        disk.state().lies = Lies::default();
        node.spawn();
        let until = std::time::Instant::now() + crate::support::PATIENCE;
        while node.is_running() && !node.directory.join("addresses.json").exists() {
            assert!(std::time::Instant::now() < until, "{}", node.log());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        if node.is_running() {
            found.extend(archive.check(node).err());
        } else {
            found.push(node.log().lines().last().unwrap_or_default().to_owned());
        }
        if found.iter().any(|text| text.contains("is lost")) {
            break;
        }
    }
    Some(found)
}

#[test]
fn a_disk_that_lies_about_syncs_of_files_is_found_out() {
    let Some(found) = find_out(Lies { files: true, directories: false }) else { return };
    println!("{found:#?}");
    assert!(found.iter().any(|text| text.contains("is lost")), "{found:#?}");
}

#[test]
fn a_disk_that_lies_about_syncs_of_directories_is_found_out() {
    let Some(found) = find_out(Lies { files: false, directories: true }) else { return };
    println!("{found:#?}");
    assert!(!found.is_empty());
}

/// More requests than a first start makes: the sweep ends by itself.
const START_REQUESTS_MAX: u64 = 200;

/// The power goes at requests all over a first start, one after the other. What comes up then is a
/// new node or a whole one, and what it acknowledges is there after the next power loss.
#[test]
fn a_first_start_may_lose_power_at_any_request() {
    let mut random = Random(seed("ROWSHIP_POWER_SEED"));
    let (mut at, mut losses) = (0, Losses::default());
    for skip in (random.below(STEP as u64)..START_REQUESTS_MAX).step_by(STEP) {
        let scratch = tempfile::tempdir().unwrap();
        let Some(mut site) = lone_primary(&scratch) else { return };
        let Site { node, disk } = &mut site;
        disk.arm(Trigger { which: Which::any(skip), after: random.below(2) == 0 });
        node.spawn();
        let met = until_met_or_up(disk, node);
        losses.add(disk.lose_power(node, &mut random));
        node.start();
        let mut archive = Archive::default();
        assert!(archive.write_some(&node.address(), &mut random));
        losses.add(disk.lose_power(node, &mut random));
        node.start();
        archive.check(node).unwrap();
        let (code, out, err) = node.verify_log();
        assert_eq!(code, 0, "request {skip}: {out}{err}");
        if !met {
            break;
        }
        at = skip;
    }
    println!("{at} requests, {losses:?}");
    assert!((20..START_REQUESTS_MAX - STEP as u64).contains(&at), "{at} requests");
    assert!(losses.entries_lost + losses.sectors_lost > 0, "{losses:?}");
}

/// The first one is drawn: every request is met in the end, over several runs.
const STEP: usize = 5;

/// Whether the chosen request came before the node was up.
fn until_met_or_up(disk: &PowerDisk, node: &Node) -> bool {
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        if disk.wait_for_trigger(std::time::Duration::from_millis(5)) {
            return true;
        }
        // Asked of the disk, not of the file system, which may stop answering at any time.
        if node.log().contains(" ready ") {
            return false;
        }
        assert!(std::time::Instant::now() < until, "{}", node.log());
    }
}

/// A lying engine would look like this: writes of segments that nobody syncs.
#[test]
fn every_write_of_a_segment_is_a_durable_one() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut site) = lone_primary(&scratch) else { return };
    let Site { node, disk } = &mut site;
    node.start();
    let address = node.address();
    let before = disk.state().seen;
    assert!(Archive::default().write_some(&address, &mut Random(1)));
    let seen = disk.state().seen;
    assert!(seen.durable_writes > before.durable_writes, "{before:?} {seen:?}");
    disk.arm(Trigger { which: Which::new(Operation::Sync, "segment-", 0), after: false });
    // The write is there, its sync is not answered: no reply comes.
    assert!(!Archive::default().write_some(&address, &mut Random(1)));
    assert!(disk.wait_for_trigger(std::time::Duration::ZERO), "acknowledged without a sync");
}
