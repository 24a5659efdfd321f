//! What the disk gives: `O_DSYNC` writes, one after the other, into a file whose blocks are
//! allocated and zeroed, as the log's segments are.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use tempfile::NamedTempFile;

use crate::load::latencies;

/// Largest prepared file; longer measurements begin at its start again.
const FILE_BYTES_MAX: u64 = 256 << 20;
const MIB: u64 = 1 << 20;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What a row of writes took.
pub struct Writes {
    /// Of each write, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Megabytes per second, all together.
    pub megabytes_per_second: f64,
}

impl Writes {
    /// Median of one write, in nanoseconds.
    #[must_use]
    pub fn p50_ns(&self) -> u64 {
        self.latency.value_at_quantile(0.5)
    }
}

/// Writes `count` times `size` bytes in `directory`.
///
/// # Errors
/// When the file cannot be made or written.
pub fn dsync_write(directory: &Path, size: usize, count: usize) -> Result<Writes> {
    std::fs::create_dir_all(directory)?;
    let shown = || format!("O_DSYNC writes in {}", directory.display());
    let prepared = prepare(directory, (size as u64) * (count as u64)).with_context(shown)?;
    measure(prepared.path(), size, count, FILE_BYTES_MAX).with_context(shown)
}

/// Megabytes per second of 1 MiB writes into a file whose blocks are only reserved, so that each
/// page comes into memory by its write. Where a virtual machine must first be given that memory,
/// this, and not [`dsync_write`], is what bounds a log that grows.
///
/// # Errors
/// When the file cannot be made or written.
pub fn first_writes(directory: &Path, bytes: u64) -> Result<f64> {
    let shown = || format!("first O_DSYNC writes in {}", directory.display());
    let file = new_file(directory).with_context(shown)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes.next_multiple_of(MIB))
        .with_context(shown)?;
    file.as_file().sync_all().with_context(shown)?;
    let writes = measure(file.path(), MIB as usize, bytes.div_ceil(MIB) as usize, bytes);
    Ok(writes.with_context(shown)?.megabytes_per_second)
}

fn new_file(directory: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix("rowship-limits.").tempfile_in(directory)
}

fn prepare(directory: &Path, bytes: u64) -> Result<NamedTempFile> {
    let mut file = new_file(directory)?;
    let mut left = bytes.min(FILE_BYTES_MAX);
    while left > 0 {
        let some = left.min(ZEROES.len() as u64);
        file.write_all(&ZEROES[..some as usize])?;
        left -= some;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

fn measure(path: &Path, size: usize, count: usize, file_bytes: u64) -> Result<Writes> {
    let flags = i32::try_from(OFlags::DSYNC.bits()).context("O_DSYNC")?;
    let file: File = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let places = (file_bytes / size as u64).max(1);
    let data = vec![0x5a; size];
    let mut latency = latencies();
    let start = Instant::now();
    for at in 0..count as u64 {
        let sent = Instant::now();
        file.write_all_at(&data, (at % places) * size as u64)?;
        latency.saturating_record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    let megabytes = (size as f64) * (count as f64) / 1e6;
    Ok(Writes { latency, megabytes_per_second: megabytes / start.elapsed().as_secs_f64() })
}
