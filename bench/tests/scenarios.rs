//! Every scenario runs tiny, on real nodes: so it cannot rot.

use std::fs;
use std::future::Future;
use std::path::Path;

use bench::scenarios::{
    Common, catchup, fanout, footprint, growth, ingest, lag, limits, recovery, ship,
};
use bench::sink::{FIGURES_FILE, Sink};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::LocalSet;

const KEYS: [&str; 11] = [
    "scenario",
    "figure",
    "value",
    "unit",
    "runs",
    "min",
    "max",
    "limit",
    "limit_name",
    "ratio_to_limit",
    "settings",
];

/// A directory for nodes and one for figures.
struct Place {
    directory: TempDir,
    common: Common,
    sink: Sink,
}

impl Place {
    fn new() -> Place {
        let directory = TempDir::new().unwrap();
        let common = Common::tiny(&directory.path().join("nodes"));
        let sink = Sink::new(&directory.path().join("out"), true).unwrap();
        Place { directory, common, sink }
    }

    fn out(&self) -> std::path::PathBuf {
        self.directory.path().join("out")
    }

    /// All figures, after a look at each.
    fn figures(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out().join(FIGURES_FILE)).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &lines {
            let value = line["value"].as_f64().unwrap();
            // What a further replica costs against the first is a difference: noise, when tiny.
            assert!(value >= 0.0 || line["unit"] == "x", "{line}");
            assert!(line["min"].as_f64().unwrap() <= value, "{line}");
            assert!(line["max"].as_f64().unwrap() >= value, "{line}");
        }
        lines
    }

    fn files(&self, suffix: &str) -> usize {
        let entries = fs::read_dir(self.out()).unwrap().flatten();
        let ends = |path: &Path| path.extension().is_some_and(|found| found == suffix);
        entries.filter(|entry| ends(&entry.path())).count()
    }
}

fn run<F: Future<Output = anyhow::Result<()>>>(scenario: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, scenario).unwrap();
}

/// The figure of that name is there, and above zero.
fn positive(figures: &[Value], name: &str) -> f64 {
    let found = figures.iter().find(|figure| figure["figure"] == name);
    let known = || figures.iter().map(|figure| figure["figure"].to_string()).collect::<Vec<_>>();
    let found = found.unwrap_or_else(|| panic!("no {name} in {:?}", known()));
    let value = found["value"].as_f64().unwrap();
    assert!(value > 0.0, "{found}");
    value
}

#[test]
fn limits_gives_every_limit_as_lines_with_the_documented_keys() {
    let place = Place::new();
    limits::run(&place.common, &place.sink).unwrap();
    let figures = place.figures();
    for line in &figures {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, KEYS, "{line}");
        assert_eq!(line["scenario"], "limits");
    }
    for io in ["plain", "tokio-uring"] {
        for chunk in ["64 KiB", "256 KiB", "1 MiB"] {
            positive(&figures, &format!("loopback stream, {io}, {chunk}"));
        }
        positive(&figures, &format!("ping-pong, {io}: p50"));
    }
    for size in ["4 KiB", "64 KiB", "1 MiB"] {
        positive(&figures, &format!("O_DSYNC write, {size}"));
        positive(&figures, &format!("O_DSYNC write, {size}: p50"));
    }
    for name in ["lsm-tree memtable upserts", "lsm-tree upserts and flushes"] {
        positive(&figures, name);
    }
    positive(&figures, "memcpy, 256 MiB");
    positive(&figures, "XXH3, 1 MiB pieces");
    assert_eq!(place.files("hgrm"), 5, "two ping-pongs, three sizes");
}

#[test]
fn ingest_states_its_limit_with_every_rate() {
    let place = Place::new();
    run(ingest::run(&place.common, "", &place.sink));
    let figures = place.figures();
    let rates: Vec<&Value> = figures.iter().filter(|line| line["unit"] == "rows/s").collect();
    assert_eq!(rates.len(), 4 * ingest::SHAPES.len());
    for rate in rates {
        assert!(rate["value"].as_f64().unwrap() > 0.0, "{rate}");
        assert!(rate["ratio_to_limit"].as_f64().unwrap() > 0.0, "{rate}");
    }
    positive(&figures, "rowship async, 1 clients x 1 rows: p50");
    assert_eq!(place.files("hgrm"), 4 * ingest::SHAPES.len());
}

#[test]
fn ship_brings_the_log_to_replicas_without_applying_it() {
    let place = Place::new();
    run(ship::run(&place.common, &ship::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for (from, replicas) in [("page cache", 1), ("page cache", 2), ("cold file", 1)] {
        let name = format!("ship, 100 rows/transaction, {from}, {replicas} replicas: each");
        positive(&figures, &name);
    }
    let rates: Vec<&Value> = figures.iter().filter(|line| line["unit"] == "MB/s").collect();
    assert!(rates.iter().all(|rate| rate["ratio_to_limit"].as_f64().unwrap() > 0.0));
}

#[test]
fn growth_measures_at_each_length_and_refuses_lengths_that_do_not_rise() {
    let place = Place::new();
    run(growth::run(&place.common, &growth::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for what in ["cost per row", "time per row", "memory of the primary", "memory of the replica"] {
        positive(&figures, &format!("0.04 M rows of log: {what}"));
        positive(&figures, &format!("0.08 M rows of log: {what}"));
    }
    let log = |rows: &str| positive(&figures, &format!("{rows} M rows of log: log"));
    // The first frames of a segment, and what is not a row, do not double.
    assert!((1.7..2.1).contains(&(log("0.08") / log("0.04"))), "{figures:?}");
    let falling = growth::Plan { rows: vec![80_000, 40_000] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = growth::run(&place.common, &falling, &place.sink);
    let error = LocalSet::new().block_on(&runtime, refused).unwrap_err();
    assert!(error.to_string().contains("must rise"), "{error}");
}

#[test]
fn catchup_waits_for_the_last_row_of_every_kind() {
    let place = Place::new();
    run(catchup::run(&place.common, &catchup::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for kind in ["uniform", "zipf 0.99", "hot key"] {
        for beside in ["", ", writes going on"] {
            let name = format!("rowship async, 100 rows/transaction, {kind}{beside}");
            let written = positive(&figures, &format!("{name}: written rows/s"));
            let in_log = positive(&figures, &format!("{name}: rows/s"));
            // Of rows on one key a transaction keeps the last; of 500 keys hardly any comes twice.
            let most = if kind == "hot key" { 0.2 } else { 1.01 };
            assert!(in_log / written < most, "{kind}: {written} written, {in_log} in the log");
            positive(&figures, &format!("{name}: log"));
            let share = positive(&figures, &format!("{name}: share of the start"));
            assert!(share < 1.0, "{share}");
            let in_log = positive(&figures, &format!("{name}: rows in the log"));
            // The marker is a row more; of hot keys, most of a transaction is one row.
            assert!(in_log < if kind == "hot key" { 0.5 } else { 1.01 }, "{in_log}");
        }
    }
    positive(
        &figures,
        "rowship async, 100 rows/transaction, uniform, writes going on: written beside",
    );
}

#[test]
fn lag_gives_distributions_stages_and_curves() {
    let place = Place::new();
    run(lag::run(&place.common, &lag::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for rate in ["1000 rows/s", "80 % of maximum"] {
        for what in ["commit", "visible"] {
            let at = |quantile| positive(&figures, &format!("{rate}: {what} {quantile}"));
            assert!(at("p50") <= at("p99") && at("p99") <= at("max"));
        }
        let at = |stage| positive(&figures, &format!("{rate}: stage {stage}: p50"));
        assert!(at("sent") <= at("visible"));
    }
    let paused = "replica stands still 100 ms at 5000 rows/s: most lag";
    assert!(positive(&figures, paused) > 50.0, "a stopped replica shows nothing");
    assert_eq!(place.files("hgrm"), 4);
    assert_eq!(place.files("csv"), 3);
}

#[test]
fn fanout_measures_a_primary_alone_and_with_replicas() {
    let place = Place::new();
    run(fanout::run(&place.common, &fanout::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for replicas in 0..=2 {
        for rows in [1, 100] {
            positive(&figures, &format!("{replicas} replicas, 8 clients x {rows} rows: rows/s"));
        }
    }
    positive(&figures, "2 replicas, 5000 rows/s: visible p50");
}

#[test]
fn recovery_starts_after_every_end() {
    let place = Place::new();
    run(recovery::run(&place.common, &recovery::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for ended in ["stopped cleanly", "kill -9", "kill -9, no checkpoint", "table lost"] {
        positive(&figures, &format!("4 MB of log, 500 keys, {ended}: listens after"));
    }
    let scanned = positive(&figures, "4 MB of log, 500 keys, kill -9, no checkpoint: scanned");
    assert!(scanned > 3.9, "{scanned} MB of 4 were scanned");
    positive(&figures, "4 MB of log, 500 keys, table lost: rebuild");
}

#[test]
fn footprint_gives_memory_and_bytes_per_row() {
    let place = Place::new();
    run(footprint::run(&place.common, &footprint::Plan::tiny(), &place.sink));
    let figures = place.figures();
    for node in ["primary", "replica"] {
        positive(&figures, &format!("{node}, idle, empty: private"));
        positive(&figures, &format!("{node}, after as many rows: private"));
        positive(&figures, &format!("{node}, most during as many rows: private"));
        positive(&figures, &format!("{node}, after catching up: private"));
        positive(&figures, &format!("{node}, after catching up: resident"));
    }
    positive(&figures, "primary, dead replica, backlog of 100 rows/transaction: private");
    positive(&figures, "primary, dead replica, backlog of 100 rows/transaction, most: private");
    positive(&figures, "replica, most during catching up: private");
    let log = positive(&figures, "log per row, 8 clients x 100 rows");
    assert!(log > 128.0, "{log} bytes of log for a row of 128");
    positive(&figures, "wire to a replica per row, 8 clients x 100 rows");
}
