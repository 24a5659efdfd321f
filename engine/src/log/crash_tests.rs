//! What power loss may leave of the last write, and that recovery ends at the last whole frame.

use rowship_proto::frame::FrameError;
use rowship_proto::verify::first_frame;
use rowship_proto::{FrameKind, Lsn};

use super::node_state::{NodeState, Role};
use super::recover::Recovered;
use super::scan::SegmentScan;
use super::segment::{list_segments, segment_file_name};
use super::testing::{MemoryDisk, TEST_LOG, TINY_BODY_BYTES, TestLog, next_random, test_epoch};
use super::tools::{TailState, verify};
use super::{LogError, cut, recover, write_bytes_max};
use crate::edge::Disk;

type Log = TestLog<MemoryDisk>;

fn log() -> Log {
    let mut log = TestLog::create(MemoryDisk::new()).unwrap();
    log.define_table("planes").unwrap();
    log
}

/// Recovers, and checks all that must hold of any recovery.
fn recover_well(log: &Log, disk: &MemoryDisk) -> Recovered {
    let input = log.input(None);
    let recovered = recover(disk, &input).unwrap();
    for (base, bytes) in list_segments(disk).unwrap() {
        let mut scan = SegmentScan::of_file(disk, base, bytes);
        let from = recovered.end.max(first_frame(base));
        let live = scan.find_live_frame(from, scan.end(), TEST_LOG.seed()).unwrap();
        assert_eq!(live, None, "nothing live is left behind the end");
    }
    let again = recover(disk, &input).unwrap();
    assert_eq!((again.end, again.chain, again.torn), (recovered.end, recovered.chain, None));
    let report = verify(disk).unwrap();
    assert_eq!((report.problems.as_slice(), report.tail), (&[][..], TailState::Clean));
    assert_eq!(report.end_lsn, recovered.end.0);
    recovered
}

/// End of the last frame of which every byte is in `disk`, among those of the whole log.
fn whole_end(log: &Log, disk: &MemoryDisk, after: &MemoryDisk) -> Lsn {
    let (torn, whole) = (disk.contents(), after.contents());
    let segments = list_segments(after).unwrap();
    for header in &log.frames {
        let at_or_below = segments.partition_point(|(base, _)| *base <= header.lsn);
        let (base, _) = segments[at_or_below - 1];
        let name = segment_file_name(base);
        let range = header.lsn.since(base) as usize..header.end().since(base) as usize;
        if torn[&name][range.clone()] != whole[&name][range] {
            return header.lsn;
        }
    }
    log.next
}

/// Lets power fail in the last write of `write`, in many ways, and recovers each time.
fn tear(mut log: Log, write: impl FnOnce(&mut Log)) {
    let (before, calls) = (log.disk.fork(), log.disk.calls());
    write(&mut log);
    assert_eq!(log.disk.calls(), calls + 1, "the tests tears one write");
    let after = log.disk.fork();
    let (old, new) = (before.contents(), after.contents());
    let changed = |name: &&String| old[*name] != new[*name];
    let name = new.keys().find(changed).unwrap().clone();
    let (old, new) = (&old[&name], &new[&name]);
    let first = (0..new.len()).find(|at| old[*at] != new[*at]).unwrap();
    let last = (0..new.len()).rfind(|at| old[*at] != new[*at]).unwrap();
    let try_torn = |torn: &[u8]| {
        let disk = before.fork();
        disk.put(&name, torn);
        let expected = whole_end(&log, &disk, &after);
        let recovered = recover_well(&log, &disk);
        assert_eq!(recovered.end, expected);
    };
    for cut in first..=last + 1 {
        try_torn(&[&new[..cut], &old[cut..]].concat());
    }
    let mut random = 7;
    for _ in 0..300 {
        let mut torn = old.clone();
        for sector in first / 512..=last / 512 {
            random = next_random(random);
            if random >> 63 == 1 {
                let range = sector * 512..(sector + 1) * 512;
                torn[range.clone()].copy_from_slice(&new[range]);
            }
        }
        try_torn(&torn);
    }
}

#[test]
fn a_write_torn_anywhere_is_cut_at_the_last_whole_frame() {
    let mut log = log();
    log.rows(&[100, 5, 3000]).unwrap();
    tear(log, |log| log.rows(&[700, 30, 1200]).unwrap());
}

#[test]
fn what_was_torn_is_told() {
    let mut log = log();
    let end = log.next;
    log.disk.lose_power_at(0, |sector| sector == 0);
    assert!(log.rows(&[2000]).is_err());
    log.disk.restore_power();
    let torn = recover_well(&log, &log.disk).torn.unwrap();
    assert_eq!((torn.at, torn.what), (end, FrameError::BodyChecksum));
    let reached = end.0.next_multiple_of(512) - end.0;
    assert_eq!(torn.bytes_dropped, reached);
}

#[test]
fn a_torn_write_in_a_recycled_segment_is_cut_as_well() {
    // The stale frames of the recycled file are of the same log, with other LSNs.
    let mut donor = log();
    donor.fill_segments(2, 3).unwrap();
    let stale = donor.disk.contents()[&segment_file_name(Lsn::ZERO)].clone();
    let mut log = log();
    log.disk.put("spare-0.log", &stale);
    log.fill_segments(2, 9).unwrap();
    assert!(!log.disk.contents().contains_key("spare-0.log"));
    tear(log, |log| log.rows(&[700, 30, 1200]).unwrap());
}

#[test]
fn an_epoch_start_and_a_segment_end_may_be_torn_too() {
    tear(log(), |log| log.begin_epoch(2).unwrap());
    let mut log = log();
    log.fill_segments(2, 5).unwrap();
    // The next segment is prepared before, so that ending this one is a single write.
    super::prepare::prepare_next(
        &log.disk,
        &log.layout.next(65536).header,
        super::prepare::Fill::Zeroes,
    )
    .unwrap();
    tear(log, |log| log.end_segment().unwrap());
}

#[test]
fn a_torn_opening_leaves_a_log_that_ends_at_the_roll_or_in_the_opening() {
    let mut log = log();
    log.end_segment().unwrap();
    let before = log.disk.fork();
    let mut ended = recover_well(&log, &before);
    assert_eq!(ended.end, log.next);
    assert_eq!(ended.active.map(|active| active.base), Some(Lsn(65536)));
    // The dictionary is that of the segment before, though the checkpoint stands in this one.
    let input = log.input(Some(log.checkpoint()));
    assert_eq!(recover(&before, &input).unwrap().tables, log.tables);
    before.remove(&segment_file_name(Lsn(65536))).unwrap();
    ended = recover_well(&log, &before);
    assert_eq!((ended.end, ended.active), (log.next, None));
    let checkpoint = Some(log.checkpoint());
    log.disk.lose_power_at(0, |sector| sector == 0);
    assert!(log.begin_epoch(2).is_err());
    log.disk.restore_power();
    let opened = recover(&log.disk, &log.input(checkpoint)).unwrap();
    assert!(opened.end > first_frame(Lsn(65536)));
    assert!(opened.opening_left > 0);
    assert_eq!(opened.tables, log.tables);
    assert_eq!(opened.history.epoch(), test_epoch(2));
}

#[test]
fn recovery_finds_all_that_a_restart_needs() {
    let mut log = log();
    log.fill_segments(3, 1).unwrap();
    log.begin_epoch(2).unwrap();
    log.define_table("airports").unwrap();
    let checkpoint = Some(log.checkpoint());
    log.rows(&[10, 20]).unwrap();
    for input in [log.input(None), log.input(checkpoint)] {
        let found = recover(&log.disk, &input).unwrap();
        assert_eq!((found.end, found.chain, found.epoch), (log.next, log.chain, log.epoch));
        assert_eq!(found.history, log.history);
        assert_eq!(found.tables, log.tables);
        assert_eq!(found.clock.0, log.frames.iter().map(|f| u64::from(f.txn_count)).sum::<u64>());
        assert_eq!(found.committed, log.frames.iter().map(|f| f.committed).max().unwrap());
        assert_eq!(found.policy.unwrap().1, "async");
        assert_eq!((found.oldest, found.opening_left), (Lsn(4096), 0));
        assert_eq!(found.segments.len(), 3);
    }
    // A node that lost its history finds it in the segments, though the oldest are gone.
    log.disk.remove(&segment_file_name(Lsn::ZERO)).unwrap();
    let mut input = log.input(None);
    input.history = Default::default();
    assert_eq!(recover(&log.disk, &input).unwrap().history, log.history);
}

#[test]
fn only_what_stands_above_the_checkpoint_is_written_again() {
    let mut log = log();
    log.fill_segments(2, 1).unwrap();
    let checkpoint = log.checkpoint();
    log.rows(&[500]).unwrap();
    let tail = log.next.since(checkpoint.lsn);
    let (before, contents) = (log.disk.bytes_written(), log.disk.contents());
    recover(&log.disk, &log.input(Some(checkpoint))).unwrap();
    assert_eq!(log.disk.bytes_written() - before, tail);
    assert_eq!(log.disk.contents(), contents);
}

#[test]
fn a_cut_leaves_nothing_live_and_survives_power_loss_at_every_call() {
    let mut log = log();
    log.rows(&[10]).unwrap();
    let mut state = log.state(Role::Replica);
    state.store(&log.disk).unwrap();
    let to = log.checkpoint();
    log.fill_segments(3, 6).unwrap();
    log.begin_epoch(2).unwrap();
    log.rows(&[10]).unwrap();
    assert!(log.layout.header.base >= Lsn(2 * 65536));
    state.history = log.history.clone();
    state.checkpoint = Some(log.checkpoint());
    state.store(&log.disk).unwrap();
    let refused = cut(&log.disk, &mut state, to.lsn, log.next, to.lsn.plus(8)).unwrap_err();
    assert!(matches!(refused, LogError::CutBelowApplied { .. }));
    let mut random = 1;
    for call in 0.. {
        let (disk, mut state) = (log.disk.fork(), state.clone());
        random = next_random(random);
        let mut sectors = random;
        disk.lose_power_at(call, move |_| {
            sectors = next_random(sectors);
            sectors >> 63 == 1
        });
        let done = cut(&disk, &mut state, to.lsn, log.next, to.lsn);
        let lost_power = disk.restore_power();
        assert_eq!(done.is_err(), lost_power);
        let stored = NodeState::load(&disk).unwrap().unwrap();
        let found = recover(&disk, &super::RecoverInput::of(&stored)).unwrap();
        assert!(found.end >= to.lsn && found.end <= log.next);
        if found.end > to.lsn {
            let mut stored = stored;
            cut(&disk, &mut stored, to.lsn, found.end, to.lsn).unwrap();
        }
        let found = recover_well(&log, &disk);
        assert_eq!((found.end, found.chain, found.epoch), (to.lsn, to.chain, to.epoch));
        assert_eq!(found.history.epoch(), test_epoch(1));
        if !lost_power {
            assert!(call > 8, "the cut took several writes");
            assert_eq!(done.unwrap(), to);
            break;
        }
    }
}

#[test]
fn a_cut_log_goes_on_in_a_new_epoch() {
    let mut log = log();
    let mut state = log.state(Role::Replica);
    state.store(&log.disk).unwrap();
    let to = log.checkpoint();
    log.fill_segments(3, 2).unwrap();
    cut(&log.disk, &mut state, to.lsn, log.next, Lsn::ZERO).unwrap();
    let header = super::SegmentHeader::read(&log.disk, Lsn::ZERO).unwrap().unwrap();
    let mut next = TestLog {
        layout: super::Layout { header },
        next: to.lsn,
        chain: to.chain,
        history: state.history.clone(),
        ..TestLog::create(MemoryDisk::new()).unwrap()
    };
    next.disk = log.disk.clone();
    next.begin_epoch(2).unwrap();
    next.fill_segments(3, 4).unwrap();
    let found = recover_well(&next, &next.disk);
    assert_eq!((found.end, found.epoch), (next.next, test_epoch(2)));
}

#[test]
fn a_write_is_at_least_one_whole_frame() {
    let frame = rowship_proto::frame::frame_bytes(TINY_BODY_BYTES as usize) as u64;
    assert!(write_bytes_max(TINY_BODY_BYTES) >= frame);
    assert!(log().frames.iter().any(|frame| frame.kind() == Some(FrameKind::EpochStart)));
}
