//! Scenario `limits`: what this machine gives at best. Other scenarios measure single limits of
//! these beside themselves, so that a slow moment of the machine hits figure and limit alike.

mod disk;
mod memory;
mod sockets;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::json;

use disk::first_writes;
pub use disk::{Writes, dsync_write};
pub use memory::{memcpy, memtable_upserts, tree_upserts, xxh3};
pub use sockets::{Io, PING_BYTES, loopback_stream, ping_pong};

use super::Common;
use crate::figure::Figure;
use crate::sink::{Sink, settings};

const SCENARIO: &str = "limits";
/// Chunks of the stream, sizes of writes: (bytes, name).
const CHUNKS: [(usize, &str); 3] =
    [(64 << 10, "64 KiB"), (256 << 10, "256 KiB"), (1 << 20, "1 MiB")];
/// Size, name, and writes for each second of `--seconds`.
const WRITES: [(usize, &str, f64); 3] =
    [(4 << 10, "4 KiB", 2_000.0), (64 << 10, "64 KiB", 500.0), (1 << 20, "1 MiB", 100.0)];

/// Values of one limit, one per round, and distributions of all rounds.
#[derive(Default)]
struct Found {
    figures: Vec<(String, &'static str, Vec<f64>)>,
    latencies: Vec<(String, Histogram<u64>)>,
}

impl Found {
    fn value(&mut self, name: String, unit: &'static str, value: f64) {
        match self.figures.iter_mut().find(|known| known.0 == name) {
            Some(known) => known.2.push(value),
            None => self.figures.push((name, unit, vec![value])),
        }
    }

    fn latency(&mut self, name: String, latency: Histogram<u64>) -> Result<()> {
        for (quantile, shown) in [(0.5, "p50"), (0.99, "p99")] {
            let micros = latency.value_at_quantile(quantile) as f64 / 1e3;
            self.value(format!("{name}: {shown}"), "us", micros);
        }
        match self.latencies.iter_mut().find(|known| known.0 == name) {
            Some(known) => known.1.add(latency)?,
            None => self.latencies.push((name, latency)),
        }
        Ok(())
    }
}

/// Runs the scenario.
///
/// # Errors
/// When sockets or files fail.
pub fn run(plan: &Common, sink: &Sink) -> Result<()> {
    let mut found = Found::default();
    for round in 0..plan.rounds {
        one_round(plan, sink, round, &mut found)?;
    }
    let settings = settings(
        "O_DSYNC",
        json!({
            "keys": plan.keys, "seconds": plan.measured.as_secs_f64(), "ping_bytes": PING_BYTES,
            "threads": "sockets: 2, all else: 1",
        }),
    );
    for (name, unit, values) in found.figures {
        sink.figure(&Figure::new(SCENARIO, &name, unit, values), &settings)?;
    }
    for (name, latency) in &found.latencies {
        sink.histogram(SCENARIO, name, latency)?;
    }
    Ok(())
}

fn one_round(plan: &Common, sink: &Sink, round: usize, found: &mut Found) -> Result<()> {
    let seconds = plan.measured.as_secs_f64();
    let progress = |what: &str| sink.progress(format!("{what}, round {}", round + 1));
    for io in [Io::Plain, Io::Uring] {
        for (chunk, shown) in CHUNKS {
            let name = format!("loopback stream, {io}, {shown}");
            progress(&name);
            let bytes = ((seconds * 1e9) as u64).max(1);
            found.value(name, "GB/s", loopback_stream(io, chunk, bytes)?);
        }
        let name = format!("ping-pong, {io}");
        progress(&name);
        found.latency(name, ping_pong(io, plan.measured / 2)?)?;
    }
    for (size, shown, per_second) in WRITES {
        let name = format!("O_DSYNC write, {shown}");
        progress(&name);
        let count = (per_second * seconds).max(10.0) as usize;
        let writes = dsync_write(&plan.directory, size, count)?;
        found.value(name.clone(), "MB/s", writes.megabytes_per_second);
        found.latency(name, writes.latency)?;
    }
    progress("first writes");
    let bytes = ((seconds * 256e6) as u64).max(1);
    let first = first_writes(&plan.directory, bytes)?;
    found.value("O_DSYNC write, 1 MiB, pages that were not in memory".into(), "MB/s", first);
    let rows = ((seconds * 250_000.0) as u64).max(1_000);
    progress("table library");
    let upserts = memtable_upserts(plan.keys, rows)?;
    found.value("lsm-tree memtable upserts".into(), "rows/s", upserts);
    let upserts = tree_upserts(&plan.directory, plan.keys, rows)?;
    found.value("lsm-tree upserts and flushes".into(), "rows/s", upserts);
    progress("memory");
    found.value("memcpy, 256 MiB".into(), "GB/s", memcpy(256 << 20));
    found.value("XXH3, 1 MiB pieces".into(), "GB/s", xxh3(256 << 20));
    Ok(())
}

/// Time of the ping-pong that is measured beside another scenario.
const PING_PONG_BESIDE: Duration = Duration::from_millis(300);
const WRITES_BESIDE: usize = 200;
const STREAM_BESIDE: u64 = 1 << 29;
const LARGE_WRITES_BESIDE: usize = 128;
const UPSERTS_BESIDE: u64 = 200_000;

/// One limit, measured again in each round of another scenario.
pub struct Limit {
    name: String,
    unit: &'static str,
    measure: Box<dyn Fn() -> Result<f64>>,
    values: Vec<f64>,
}

impl Limit {
    fn new(name: &str, unit: &'static str, measure: impl Fn() -> Result<f64> + 'static) -> Limit {
        Limit { name: name.to_owned(), unit, measure: Box::new(measure), values: Vec::new() }
    }

    /// Milliseconds of `trips` ping-pongs and one `O_DSYNC` write of so many KiB, if any.
    #[must_use]
    pub fn commit_ms(directory: &Path, trips: f64, kib: usize) -> Limit {
        let write = if kib == 0 { String::new() } else { format!(" + {kib} KiB O_DSYNC write") };
        let directory = directory.to_path_buf();
        let name = if trips == 1.0 { "ping-pong".into() } else { format!("{trips} ping-pongs") };
        Limit::new(&format!("limit: {name}{write}"), "ms", move || {
            let trip = ping_pong(Io::Plain, PING_PONG_BESIDE)?.value_at_quantile(0.5);
            let write = match kib {
                0 => 0,
                _ => dsync_write(&directory, kib << 10, WRITES_BESIDE)?.p50_ns(),
            };
            Ok((trip as f64 * trips + write as f64) / 1e6)
        })
    }

    /// Megabytes per second of the smaller of a loopback stream and `O_DSYNC` writes, both in
    /// pieces of 1 MiB.
    #[must_use]
    pub fn shipping(directory: &Path) -> Limit {
        let directory = directory.to_path_buf();
        let name = "limit: smaller of loopback stream and O_DSYNC writes, 1 MiB";
        Limit::new(name, "MB/s", move || {
            let stream = loopback_stream(Io::Plain, 1 << 20, STREAM_BESIDE)? * 1e3;
            let written = dsync_write(&directory, 1 << 20, LARGE_WRITES_BESIDE)?;
            Ok(stream.min(written.megabytes_per_second))
        })
    }

    /// Rows per second that one core brings into a memtable of the table library.
    #[must_use]
    pub fn upserts(keys: u64) -> Limit {
        Limit::new("limit: lsm-tree memtable upserts", "rows/s", move || {
            memtable_upserts(keys, UPSERTS_BESIDE)
        })
    }

    /// Megabytes per second that one core hashes.
    #[must_use]
    pub fn hashing() -> Limit {
        Limit::new("limit: XXH3", "MB/s", || Ok(xxh3(256 << 20) * 1e3))
    }

    /// Measures it once more. It blocks this thread, and so all of a load.
    ///
    /// # Errors
    /// When sockets or files fail.
    pub fn measure(&mut self) -> Result<()> {
        self.values.push((self.measure)()?);
        Ok(())
    }

    /// What a closed loop reaches at most in which `rows` rows are under way at any time, each as
    /// long as this limit says.
    ///
    /// # Panics
    /// When it was never measured.
    #[must_use]
    pub fn closed_loop(&self, scenario: &'static str, rows: usize) -> Figure {
        let rates = self.values.iter().map(|ms| rows as f64 * 1e3 / ms).collect();
        Figure::new(scenario, &format!("{}, closed loop", self.name), "rows/s", rates)
    }

    /// All rounds as a figure of that scenario.
    ///
    /// # Panics
    /// When it was never measured.
    #[must_use]
    pub fn figure(&self, scenario: &'static str) -> Figure {
        Figure::new(scenario, &self.name, self.unit, self.values.clone())
    }
}
