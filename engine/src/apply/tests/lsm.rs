//! What only the table on disk can get wrong: its files, its limits, and what it knows without
//! the disk.

use std::fs;
use std::path::Path;

use rowship_proto::row::Existed;

use super::super::lsm::{LsmSettings, LsmTable, Opened};
use super::super::table::{KEY_BYTES_MAX, TableError};
use super::*;

const START: Lsn = Lsn(4096);

fn open(path: &Path, durable: Mark) -> Opened {
    LsmTable::open(path, LsmSettings::tiny(), durable, true).expect("opens")
}

/// Applies the whole log in one window.
fn apply(table: &Arc<LsmTable>, log: &LogWriter) -> Mark {
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 1);
    harness.feed(vec![log.window(Lsn::ZERO, log.end(), 1)]);
    harness.turn(&mut Random::new(1)).flatten().expect("published")
}

fn flush_all(table: &LsmTable) -> Mark {
    assert!(table.seal());
    let mut last = None;
    while let Some(mark) = table.flush().expect("flushes") {
        last = Some(mark);
    }
    last.expect("there was something to flush")
}

fn numbered(rows: u32) -> LogWriter {
    let mut log = LogWriter::new(START);
    for number in 0..rows {
        log.put(1, &number.to_le_bytes(), &[7; 20], Existed::No);
    }
    log.frame();
    log
}

fn id(key: &[u8]) -> RowId<'_> {
    RowId { hash: key_hash(SEED, TableId(1), key), table: TableId(1), key }
}

#[test]
fn memory_answers_for_its_rows_and_for_most_rows_that_are_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let table = Arc::new(open(&directory.path().join("table"), Mark::ZERO).table);
    let log = numbered(1000);
    let at = apply(&table, &log).lsn;
    let known = Resident::Found(Some(bytes::Bytes::from_static(&[7; 20])));
    assert_eq!(table.get_resident(id(&1u32.to_le_bytes()), at), known);
    assert_eq!(table.get_resident(id(b"nowhere"), at), Resident::Found(None));
    flush_all(&table);
    assert_eq!(table.get_resident(id(&1u32.to_le_bytes()), at), Resident::Cold);
    let told =
        |number: &u32| table.get_resident(id(&number.to_le_bytes()), at) == Resident::Found(None);
    let told = (5000..6000u32).filter(told).count();
    assert!(told > 950, "filters in memory told {told} of 1000");
}

#[test]
fn the_feeder_waits_while_memtables_are_full() {
    let directory = tempfile::tempdir().unwrap();
    let table = Arc::new(open(&directory.path().join("table"), Mark::ZERO).table);
    let mut log = LogWriter::new(START);
    let mut random = Random::new(9);
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 1);
    let (mut windows, mut start) = (0, Lsn::ZERO);
    while table.ready() {
        log.put(1, &[windows], &[1; 3000], Existed::No);
        log.frame();
        harness.feed(vec![log.window(start, log.end(), 1)]);
        harness.turn(&mut random);
        start = log.end();
        windows += 1;
        assert!(windows < 20, "two sealed memtables and the active one take about six rows");
    }
    assert_eq!(table.status().sealed_memtables, LsmSettings::tiny().sealed_memtables_max);
    table.flush().unwrap();
    assert!(table.ready());
    check_position(&*table, &log, log.end());
}

/// Rows that are written over and over do not fill a memtable. It is sealed all the same once the
/// log is long enough: a restart would have to replay all of it.
#[test]
fn rows_written_over_and_over_are_flushed_by_the_length_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let table = Arc::new(open(&directory.path().join("table"), Mark::ZERO).table);
    let mut log = LogWriter::new(START);
    let mut random = Random::new(3);
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 1);
    let (mut start, mut flushes, mut durable) = (Lsn::ZERO, 0, Lsn::ZERO);
    for round in 0..2_000u32 {
        let existed = if round < 4 { Existed::No } else { Existed::Yes };
        log.put(1, &[(round % 4) as u8], &round.to_le_bytes(), existed);
        log.frame();
        harness.feed(vec![log.window(start, log.end(), 1)]);
        harness.turn(&mut random).flatten().expect("published");
        start = log.end();
        assert!(table.status().memtable_bytes < LsmSettings::tiny().memtable_bytes);
        if let Some(mark) = table.flush().unwrap() {
            (flushes, durable) = (flushes + 1, mark.lsn);
            table.recorded(durable).unwrap();
        }
        let replayed = start.since(durable);
        assert!(replayed <= LsmSettings::tiny().replay_bytes + 4096, "{replayed} bytes");
    }
    assert!(flushes > 2, "the log was long enough for some");
    check_position(&*table, &log, log.end());
}

#[test]
fn largest_keys_and_large_values_survive_flush_compaction_and_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table");
    let mut log = LogWriter::new(START);
    log.put(1, &[9; KEY_BYTES_MAX], b"long key", Existed::No);
    log.put(1, b"large", &vec![3; 5 << 20], Existed::No);
    log.put(1, b"", b"", Existed::No);
    log.frame();
    let durable = {
        let table = Arc::new(open(&path, Mark::ZERO).table);
        apply(&table, &log);
        let durable = flush_all(&table);
        while table.compact().unwrap() {}
        durable
    };
    let opened = open(&path, durable);
    check_position(&opened.table, &log, log.end());
}

#[test]
fn a_failed_flush_loses_nothing_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table");
    let table = Arc::new(open(&path, Mark::ZERO).table);
    let log = numbered(100);
    apply(&table, &log);
    assert!(table.seal());
    // Where the next manifest should go, there is a directory.
    fs::create_dir(path.join("v1")).unwrap();
    let error = table.flush().unwrap_err();
    assert!(matches!(error, TableError::Io { .. }), "{error}");
    assert!(table.status().paused.is_some());
    assert_eq!(fs::read_dir(path.join("tables")).unwrap().count(), 0, "leftovers are removed");
    check_position(&*table, &log, log.end());
    fs::remove_dir(path.join("v1")).unwrap();
    assert!(table.flush().unwrap().is_some());
    assert_eq!(table.status().paused, None);
    check_position(&*table, &log, log.end());
}

#[test]
fn a_table_that_does_not_open_is_set_aside_until_its_rebuild_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table");
    let log = numbered(100);
    let durable = {
        let table = Arc::new(open(&path, Mark::ZERO).table);
        apply(&table, &log);
        flush_all(&table)
    };
    fs::write(path.join("current"), b"no").unwrap();
    let opened = open(&path, durable);
    assert_eq!(opened.durable, Mark::ZERO);
    let aside = opened.rebuilt.expect("it says so").aside.expect("files are kept");
    assert!(aside.ends_with("table.broken-1") && aside.join("tables").exists());
    assert!(scan_is_empty(&opened.table, log.end()));
    // A crash before the new position was recorded: the empty table is not taken for the old one.
    drop(opened.table);
    let opened = open(&path, durable);
    assert_eq!(opened.durable, Mark::ZERO);
    assert!(opened.rebuilt.is_some());
    opened.table.recorded(Lsn::ZERO).unwrap();
    drop(opened.table);
    assert_eq!(open(&path, Mark::ZERO).rebuilt, None);
}

fn scan_is_empty(table: &dyn Table, at: Lsn) -> bool {
    scan_all(table, at, ScanLimits { rows_max: 10, bytes_max: 1000 }).is_empty()
}

#[test]
fn a_table_that_has_vanished_is_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(&directory.path().join("table"), Mark { lsn: Lsn(9000), rows: 3 });
    assert_eq!(opened.durable, Mark::ZERO);
    assert_eq!(opened.rebuilt.expect("it says so").aside, None);
}

#[test]
fn a_flipped_bit_is_found_when_read_and_the_next_start_rebuilds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table");
    let log = numbered(1000);
    let durable = {
        let table = Arc::new(open(&path, Mark::ZERO).table);
        apply(&table, &log);
        flush_all(&table)
    };
    let file = fs::read_dir(path.join("tables")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&file).unwrap();
    bytes[2000] ^= 4;
    fs::write(&file, bytes).unwrap();
    let opened = open(&path, durable);
    assert_eq!(opened.rebuilt, None);
    let limits = ScanLimits { rows_max: 10_000, bytes_max: 1 << 20 };
    let error = opened.table.scan(log.end(), 0, limits).unwrap_err();
    assert!(matches!(error, TableError::Damaged { .. }), "{error}");
    drop(opened.table);
    let opened = open(&path, durable);
    assert_eq!(opened.durable, Mark::ZERO);
    assert!(opened.rebuilt.is_some());
}

#[test]
fn versions_and_file_sets_do_not_pile_up_under_a_hot_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("table");
    let table = Arc::new(open(&path, Mark::ZERO).table);
    let mut log = LogWriter::new(START);
    let mut random = Random::new(9);
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 2);
    let mut start = Lsn::ZERO;
    for round in 0..3000u32 {
        log.put(1, &[(round % 3) as u8], &[1; 100], Existed::Unknown);
        log.frame();
        harness.feed(vec![log.window(start, log.end(), 2)]);
        while harness.turn(&mut random).is_some() {}
        start = log.end();
        if let Some(mark) = table.flush().unwrap() {
            table.recorded(mark.lsn).unwrap();
            while table.compact().unwrap() {}
        }
    }
    let status = table.status();
    assert!(status.disk_tables <= 4, "{status:?}");
    assert!(status.disk_bytes < 16 << 10, "{status:?}");
    let manifests = fs::read_dir(&path).unwrap().flatten();
    let is_manifest = |name: &str| name.starts_with('v');
    let manifests = manifests.filter(|entry| entry.file_name().to_str().is_some_and(is_manifest));
    assert_eq!(manifests.count(), 1);
    check_position(&*table, &log, log.end());
}

#[test]
fn a_pin_from_long_ago_still_reads_its_position() {
    let directory = tempfile::tempdir().unwrap();
    let table = Arc::new(open(&directory.path().join("table"), Mark::ZERO).table);
    // So low that the number of installed sets of files comes near it.
    let mut log = LogWriter::new(Lsn(8));
    let mut random = Random::new(9);
    let mut harness = Harness::new(table.clone(), Mark::ZERO, 1);
    let (mut start, mut pin) = (Lsn::ZERO, None);
    for round in 0..60u32 {
        log.put(1, &(round % 7).to_le_bytes(), &round.to_le_bytes(), Existed::Unknown);
        log.frame();
        harness.feed(vec![log.window(start, log.end(), 1)]);
        harness.turn(&mut random);
        start = log.end();
        pin.get_or_insert_with(|| table.pin());
        let mark = flush_all(&table);
        table.recorded(mark.lsn).unwrap();
        while table.compact().unwrap() {}
    }
    let pin = pin.expect("taken in the first round");
    assert!(pin.at() < Lsn(200));
    check_position(&*table, &log, pin.at());
    check_position(&*table, &log, log.end());
}

/// Needs a file system of at most a few MiB, for instance
/// `mount -t tmpfs -o size=2m none DIR`, named in `ROWSHIP_TEST_SMALL_DIR`.
#[test]
#[ignore = "needs a small file system, see its doc"]
fn a_full_disk_pauses_the_table_until_there_is_space() {
    let directory = std::env::var("ROWSHIP_TEST_SMALL_DIR").expect("see the test's doc");
    let path = Path::new(&directory).join("table");
    let filler = Path::new(&directory).join("filler");
    let table = Arc::new(open(&path, Mark::ZERO).table);
    let log = numbered(2000);
    apply(&table, &log);
    assert!(table.seal());
    let mut bytes = 4 << 20;
    while bytes > 0 {
        let grown = fs::OpenOptions::new().create(true).append(true).open(&filler);
        let wrote = std::io::Write::write_all(&mut grown.unwrap(), &vec![1; bytes]);
        bytes = if wrote.is_ok() { bytes } else { bytes / 2 };
    }
    for _ in 0..3 {
        let error = table.flush().unwrap_err();
        assert!(matches!(error, TableError::NoSpace { .. }), "{error}");
        assert_eq!(fs::read_dir(path.join("tables")).unwrap().count(), 0);
        assert!(table.status().paused.is_some());
        check_position(&*table, &log, log.end());
    }
    fs::remove_file(&filler).unwrap();
    let durable = table.flush().unwrap().expect("it goes on by itself");
    assert_eq!(table.status().paused, None);
    drop(table);
    check_position(&open(&path, durable).table, &log, log.end());
}
