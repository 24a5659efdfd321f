//! Rot anywhere below the last write is found and named; what is not rot is not called damage.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rowship_proto::{FrameHeader, LogId, Lsn};

use super::node_state::{Checkpoint, Role};
use super::segment::segment_file_name;
use super::testing::{MemoryDisk, TINY_BODY_BYTES, TINY_SEGMENT_BYTES, TestLog};
use super::tools::{TailState, dump, promote, verify};
use super::{LogError, NodeState, RecoverInput, SegmentHeader, recover, write_bytes_max};
use crate::edge::disk::FileDisk;
use crate::edge::{Disk, Map};

type Log = TestLog<MemoryDisk>;

fn log(segments: u64) -> Log {
    let mut log = TestLog::create(MemoryDisk::new()).unwrap();
    log.define_table("planes").unwrap();
    log.fill_segments(segments, 11).unwrap();
    for _ in 0..8 {
        log.rows(&[900, 900]).unwrap();
    }
    log
}

fn damaged_at(error: &LogError) -> Lsn {
    match error {
        LogError::Damage { lsn, .. } => *lsn,
        other => panic!("{other}"),
    }
}

fn flip(log: &Log, lsn: Lsn, bits: u8) {
    let base = lsn.0 / TINY_SEGMENT_BYTES * TINY_SEGMENT_BYTES;
    log.disk.bend(&segment_file_name(Lsn(base)), lsn.0 - base, |byte| *byte ^= bits);
}

/// Some bytes of every frame: all of the header, and every 61st of the rest, with the last.
fn places(header: &FrameHeader) -> impl Iterator<Item = Lsn> {
    let (start, end) = (header.lsn.0, header.end().0);
    let head = (start..start + 96).step_by(5);
    head.chain((start + 96..end).step_by(61)).chain([end - 1]).map(Lsn)
}

#[test]
fn a_flip_anywhere_is_damage_or_reads_as_a_torn_last_write() {
    let log = log(2);
    let last_start = log.frames.last().unwrap().lsn;
    let mut torn = 0;
    for header in &log.frames {
        for lsn in places(header) {
            flip(&log, lsn, 0x04);
            let fork = log.disk.fork();
            let report = verify(&fork).unwrap();
            let found = recover(&fork, &log.input(None));
            let checkpointed = recover(&log.disk.fork(), &log.input(Some(log.checkpoint())));
            flip(&log, lsn, 0x04);
            let live_far_behind = last_start >= header.lsn.plus(write_bytes_max(TINY_BODY_BYTES));
            if live_far_behind {
                assert_eq!(damaged_at(&found.unwrap_err()), header.lsn, "flip at {lsn}");
                assert_eq!(Lsn(report.problems[0].lsn), header.lsn, "flip at {lsn}");
            } else {
                torn += 1;
                assert_eq!(found.unwrap().end, header.lsn, "flip at {lsn}");
                assert_eq!((report.problems_total, report.end_lsn), (0, header.lsn.0));
            }
            // Below the checkpoint nothing is torn; it is read from its segment's head.
            if header.lsn >= log.layout.header.base {
                assert_eq!(damaged_at(&checkpointed.unwrap_err()), header.lsn);
            }
        }
    }
    assert!(torn > 0);
}

#[test]
fn a_recorded_end_is_believed_just_there_and_spares_the_reading() {
    let log = log(3);
    let near = write_bytes_max(TINY_BODY_BYTES);
    let at = log.frames.iter().position(|frame| frame.lsn >= log.layout.header.base).unwrap() + 2;
    let (end, chain) = (log.frames[at].lsn, log.frames[at].chain_previous);
    let checkpoint = Some(Checkpoint { lsn: end, chain, epoch: log.epoch });
    let unsure = log.input(checkpoint);
    let known = RecoverInput { checkpoint_is_end: true, ..unsure.clone() };
    // Frames stand there: whatever was recorded, the log goes on.
    assert_eq!(recover(&log.disk.fork(), &known).unwrap().end, log.next);
    let zeroed = |bytes: u64| {
        let (disk, base) = (log.disk.fork(), log.layout.header.base);
        super::recover::zero(&disk, base, end, end.plus(bytes)).unwrap();
        disk
    };
    // Less than one write is gone: what stands behind it is seen, and then all is read.
    let disk = zeroed(near / 2);
    assert_eq!(damaged_at(&recover(&disk, &known).unwrap_err()), end);
    // One write and more is gone: only reading all the rest would show it.
    let disk = zeroed(near + 4096);
    assert_eq!(damaged_at(&recover(&disk, &unsure).unwrap_err()), end);
    assert_eq!(recover(&disk, &known).unwrap().end, end);
}

#[test]
fn a_bent_header_page_is_named_and_other_logs_are_refused() {
    let log = log(3);
    flip(&log, Lsn(65536 + 2000), 1);
    assert_eq!(damaged_at(&recover(&log.disk, &log.input(None)).unwrap_err()), Lsn(65536));
    let report = verify(&log.disk).unwrap();
    assert_eq!((report.problems_total, report.problems[0].offset), (1, 0));
    assert_eq!(report.end_lsn, log.next.0);
    flip(&log, Lsn(65536 + 2000), 1);
    let other = RecoverInput { log_id: LogId([9, 9]), ..log.input(None) };
    assert_eq!(damaged_at(&recover(&log.disk, &other).unwrap_err()), Lsn::ZERO);
}

#[test]
fn verification_goes_on_behind_damage_and_counts_what_holds() {
    let log = log(3);
    let whole = verify(&log.disk).unwrap();
    assert_eq!((whole.problems_total, whole.tail), (0, TailState::Clean));
    assert_eq!(whole.frames, log.frames.len() as u64);
    assert_eq!(whole.rows, log.frames.iter().map(|f| u64::from(f.txn_count)).sum::<u64>());
    assert_eq!((whole.first_lsn, whole.end_lsn), (4096, log.next.0));
    assert_eq!(whole.epochs.len(), 1);
    let (header, body) = (log.frames[10].lsn, log.frames[30].lsn.plus(100));
    flip(&log, header, 1);
    flip(&log, body, 1);
    let report = verify(&log.disk).unwrap();
    let lsns: Vec<_> = report.problems.iter().map(|problem| Lsn(problem.lsn)).collect();
    assert_eq!(lsns, [log.frames[10].lsn, log.frames[30].lsn]);
    assert_eq!(report.frames, log.frames.len() as u64 - 2);
}

#[test]
fn missing_segments_are_damage_and_named() {
    let log = log(4);
    for (removed, checkpoint) in [(1, None), (2, None), (2, Some(log.checkpoint()))] {
        let fork = log.disk.fork();
        let base = Lsn(removed * TINY_SEGMENT_BYTES);
        fork.remove(&segment_file_name(base)).unwrap();
        damaged_at(&recover(&fork, &log.input(checkpoint)).unwrap_err());
        let report = verify(&fork).unwrap();
        assert_eq!(report.problems_total, 1);
        assert!(report.problems[0].what.contains(&base.to_string()), "{report:?}");
    }
    let last = segment_file_name(log.layout.header.base);
    let fork = log.disk.fork();
    fork.remove(&last).unwrap();
    damaged_at(&recover(&fork, &log.input(Some(log.checkpoint()))).unwrap_err());
}

#[test]
fn a_forked_tail_is_damage_not_torn() {
    let log = log(2);
    let state = log.checkpoint();
    let mut other = TestLog {
        chain: 1,
        disk: log.disk.clone(),
        layout: log.layout,
        next: log.next,
        ..self::log(2)
    };
    other.rows(&[10]).unwrap();
    assert_eq!(damaged_at(&recover(&log.disk, &log.input(None)).unwrap_err()), state.lsn);
}

#[test]
fn frames_of_a_newer_version_are_neither_torn_nor_damage() {
    let log = log(2);
    let last = log.frames.last().unwrap();
    let newer = |change: fn(&mut FrameHeader)| {
        let mut header = *last;
        change(&mut header);
        header.header_checksum = header.checksum(super::testing::TEST_LOG.seed());
        let fork = log.disk.fork();
        let offset = header.lsn.since(log.layout.header.base);
        let name = segment_file_name(log.layout.header.base);
        fork.write_durable_at(&name, offset, zerocopy::IntoBytes::as_bytes(&header)).unwrap();
        recover(&fork, &log.input(None)).unwrap_err()
    };
    assert!(matches!(newer(|header| header.version = 2), LogError::Newer { .. }));
    assert!(matches!(newer(|header| header.kind = 99), LogError::Newer { .. }));
    assert!(matches!(newer(|header| header.raw_len = 1), LogError::Damage { .. }));
}

#[test]
fn prepared_segments_that_cannot_continue_the_log_are_removed() {
    let log = log(2);
    let next = log.layout.next(TINY_SEGMENT_BYTES).header;
    let far = next.next(TINY_SEGMENT_BYTES).next(TINY_SEGMENT_BYTES);
    for header in [&next, &far] {
        super::prepare::prepare_next(&log.disk, header, super::prepare::Fill::Zeroes).unwrap();
    }
    let found = recover(&log.disk, &log.input(None)).unwrap();
    assert_eq!(found.segments.last().unwrap().0, next.base);
    assert_eq!(super::segment::list_segments(&log.disk).unwrap(), found.segments);
    assert_eq!(SegmentHeader::read(&log.disk, next.base).unwrap(), Ok(next));
}

#[test]
fn an_empty_log_and_an_empty_directory_are_told_apart() {
    let disk = MemoryDisk::new();
    let log = log(1);
    let none = recover(&disk, &log.input(None)).unwrap_err();
    assert!(matches!(none, LogError::NoSegments { .. }), "{none}");
    super::prepare::prepare_next(&disk, &log.layout.header, super::prepare::Fill::Zeroes).unwrap();
    let empty = recover(&disk, &RecoverInput { history: Default::default(), ..log.input(None) });
    let empty = empty.unwrap();
    assert_eq!((empty.end, empty.chain, empty.frames_read), (Lsn(4096), 0, 0));
}

#[test]
fn a_dump_names_tables_and_starts_and_stops_where_asked() {
    let log = log(3);
    let mut records = Vec::new();
    let from = log.frames[40].lsn;
    let count = dump(&log.disk, from, 5, |record| {
        records.push(record.clone());
        true
    });
    assert_eq!(count.unwrap(), 5);
    let lsns: Vec<_> = records.iter().map(|record| Lsn(record.lsn)).collect();
    assert_eq!(lsns, log.frames[40..45].iter().map(|f| f.lsn).collect::<Vec<_>>());
    let mut all = Vec::new();
    dump(&log.disk, Lsn::ZERO, u64::MAX, |record| {
        all.push(serde_json::to_value(record).unwrap());
        true
    })
    .unwrap();
    assert_eq!(all.len(), log.frames.len());
    assert_eq!(all[0]["kind"], "segment_start");
    let planes = all.iter().find(|record| record["kind"] == "table_define").unwrap();
    assert_eq!(planes["fields"]["1"], "planes");
    let rows = all.iter().find(|record| record["kind"] == "rows").unwrap();
    assert_eq!(rows["transactions"][0]["rows"][0]["operation"], "put");
}

#[test]
fn promotion_is_for_replicas_and_only_once() {
    let log = log(2);
    assert!(matches!(promote(&log.disk), Err(LogError::NoState { .. })));
    let mut state = log.state(Role::Replica);
    state.store(&log.disk).unwrap();
    let promoted = promote(&log.disk).unwrap();
    assert_eq!(promoted.end(), log.next);
    let stored = NodeState::load(&log.disk).unwrap().unwrap();
    assert_eq!((stored.role, stored.promoted), (Role::Primary, true));
    assert_eq!(stored.checkpoint, Some(log.checkpoint()));
    assert!(matches!(promote(&log.disk), Err(LogError::NotReplica)));
}

#[test]
fn a_log_on_a_real_file_system_recovers_and_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FileDisk::open(directory.path()).unwrap();
    let mut log = TestLog::create(disk.clone()).unwrap();
    log.fill_segments(3, 3).unwrap();
    let found = recover(&disk, &log.input(None)).unwrap();
    assert_eq!((found.end, found.frames_read), (log.next, log.frames.len() as u64));
    assert_eq!(verify(&disk).unwrap().frames, log.frames.len() as u64);
}

#[test]
fn a_log_that_grows_while_it_is_verified_is_not_damaged() {
    let mut log = log(1);
    let disk = log.disk.clone();
    let writer = std::thread::spawn(move || log.fill_segments(40, 5).unwrap());
    let mut ends = Vec::new();
    while !writer.is_finished() {
        let report = verify(&disk).unwrap();
        assert_eq!(report.problems, []);
        ends.push(report.end_lsn);
    }
    writer.join().unwrap();
    assert!(ends.is_sorted());
    assert!(verify(&disk).unwrap().end_lsn > 39 * TINY_SEGMENT_BYTES);
}

/// Reads as in a live node's directory: the first `early_bytes` of the first read of frames see
/// the moment `before`, all else sees `now`. (A read is not one moment: it copies page by page.)
#[derive(Clone)]
struct ReadWhileWritten {
    before: MemoryDisk,
    now: MemoryDisk,
    reads: Arc<AtomicU64>,
    early_bytes: usize,
}

impl Disk for ReadWhileWritten {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.now.list()
    }
    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.now.create_zeroed(name, bytes)
    }
    fn write_durable_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.now.write_durable_at(name, offset, bytes)
    }
    fn read_exact_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // Header pages are read by themselves, and are always there.
        self.now.read_exact_at(name, offset, buffer)?;
        if offset > 0 && self.reads.fetch_add(1, Ordering::Relaxed) == 0 {
            let early = buffer.len().min(self.early_bytes);
            self.before.read_exact_at(name, offset, &mut buffer[..early])?;
        }
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.now.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.now.remove(name)
    }
    fn map(&self, name: &str) -> io::Result<Arc<dyn Map>> {
        self.now.map(name)
    }
    fn path(&self, name: &str) -> String {
        self.now.path(name)
    }
}

#[test]
fn a_place_read_before_it_was_written_is_read_again() {
    // In the small segment one read sees both moments, in the large one two reads do.
    for (segment_bytes, early_bytes) in [(64 << 10, 16 << 10), (4 << 20, 4 << 20)] {
        let mut log = TestLog::create_sized(MemoryDisk::new(), segment_bytes).unwrap();
        log.rows(&[10]).unwrap();
        let before = log.disk.fork();
        while log.next.0 < segment_bytes / 4 * 3 {
            log.rows(&[3000]).unwrap();
        }
        let (now, reads) = (log.disk.clone(), Arc::default());
        let disk = ReadWhileWritten { before, now, reads, early_bytes };
        let report = verify(&disk).unwrap();
        assert_eq!((report.problems.as_slice(), report.end_lsn), (&[][..], log.next.0));
    }
}
