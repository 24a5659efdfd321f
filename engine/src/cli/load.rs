//! `rowship load`: the lines of a CSV file as rows.
//!
//! The header names the columns. A line becomes the hash `TABLE:<values of the key columns>`, the
//! values joined by `--separator` (default `:`); the key's columns stay columns as well, so that
//! HGETALL gives back the whole line. Rows are upserts: loading a file again is harmless.

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod progress;
pub mod rows;
pub mod sender;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::CommandResult;
use super::client::Client;
use super::config::units::human_count;
use super::exit::{Exit, Failure};
use progress::Progress;
use rows::{CsvRows, KeyPlan, RowError};
use sender::{Batch, Sender, Shared};

/// A batch ends here even when it has fewer rows: with several connections this bounds memory.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Bad lines printed one by one; the rest is only counted.
const BAD_LINES_SHOWN_MAX: u64 = 20;

/// Flags of `rowship load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// CSV file with a header line, plain or gzip
    #[arg(value_name = "FILE.csv[.gz]")]
    file: PathBuf,
    /// Client address of the primary
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
    to: String,
    /// Table to load into: the prefix of all keys
    #[arg(long)]
    table: String,
    /// Columns that make the key, such as carrier,flight,day
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', required = true)]
    key: Vec<String>,
    /// What stands between the values of the key columns
    #[arg(long, default_value = ":")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    separator: String,
    /// At a bad line: stop there, or skip it and go on
    #[arg(long, value_enum, default_value_t = OnError::Stop)]
    on_error: OnError,
    /// Rows sent together on a connection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Connections used in parallel
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    /// Make each batch one transaction (MULTI ... EXEC)
    #[arg(long)]
    transaction: bool,
    /// Ack policy for these rows instead of the node's (as in ROWSHIP.ACK)
    #[arg(long, value_name = "POLICY")]
    ack_policy: Option<String>,
}

/// What happens at a bad line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnError {
    /// The load ends there; rows before it stay.
    Stop,
    /// It is reported and counted.
    Skip,
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Client address of the primary.
    pub to: String,
    /// How lines become keys.
    pub key: KeyPlan,
    /// What happens at a bad line.
    pub on_error: OnError,
    /// Rows sent together, at most 10,000: their replies must fit the socket buffers.
    pub batch: usize,
    /// Connections used in parallel.
    pub connections: usize,
    /// Each batch is a transaction.
    pub transaction: bool,
    /// Instead of the node's policy.
    pub ack_policy: Option<String>,
}

/// What a load did.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadSummary {
    /// Rows that the node acknowledged.
    pub rows: u64,
    /// Bad lines left out.
    pub skipped: u64,
    /// Error replies.
    pub errors: u64,
    /// From the first byte to the last acknowledgement.
    pub seconds: f64,
}

/// Loads a file, with progress on standard error and a summary on standard output.
///
/// # Errors
/// An unreadable file, a bad line, a refused row or a lost node, each with its place.
pub fn run(args: &LoadArgs) -> CommandResult {
    if args.table.is_empty() || args.table.contains(':') {
        let message = "--table must be a name without ':', which ends it in a key";
        return Err(Failure::new(Exit::Usage, message));
    }
    let plan = LoadPlan {
        to: args.to.clone(),
        key: KeyPlan {
            table: args.table.clone(),
            columns: args.key.clone(),
            separator: args.separator.clone(),
        },
        on_error: args.on_error,
        batch: args.batch as usize,
        connections: args.connections as usize,
        transaction: args.transaction,
        ack_policy: args.ack_policy.clone(),
    };
    let (input, read, total) = open(&args.file)?;
    let shown = args.file.display();
    let (result, summary) = load(input, &plan, Some(Progress::new(read, total)));
    super::output::print(&format!("{}\n", summary.line(&args.table)))?;
    match result {
        Ok(()) => Ok(Exit::Ok),
        Err(Failure { code, message }) => {
            Err(Failure { code, message: format!("{shown}: {message}") })
        }
    }
}

impl LoadSummary {
    /// One line for people.
    #[must_use]
    pub fn line(&self, table: &str) -> String {
        let LoadSummary { rows, skipped, errors, seconds } = *self;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people; never negative"
        )]
        let rate = (rows as f64 / seconds.max(1e-6)) as u64;
        format!(
            "{table}: {} rows in {seconds:.2} s, {} rows/s; {errors} errors, {skipped} lines \
             skipped",
            human_count(rows),
            human_count(rate)
        )
    }
}

/// A file, gzip or not by its first bytes; how many of its bytes were read so far; its size.
#[expect(clippy::type_complexity, reason = "three parts, used once")]
fn open(path: &Path) -> Result<(Box<dyn Read>, Arc<AtomicU64>, u64), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Usage, format!("{}: cannot read it: {error}", path.display()))
    };
    let file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let read = Arc::new(AtomicU64::new(0));
    let counted = Counted { input: file, read: read.clone() };
    let mut buffered = BufReader::with_capacity(256 << 10, counted);
    let gzip = buffered.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    let input: Box<dyn Read> = if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
    } else {
        Box::new(buffered)
    };
    Ok((input, read, total))
}

struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// Loads from `input`. The summary holds what was done, whether or not it went well.
pub fn load(
    input: impl Read,
    plan: &LoadPlan,
    progress: Option<Progress>,
) -> (Result<(), Failure>, LoadSummary) {
    let start = Instant::now();
    let shared = Shared::default();
    let mut skipped = 0;
    std::thread::scope(|scope| {
        let senders = connect(plan).map(|clients| {
            let start = |client| Sender::start(scope, client, plan.transaction, &shared);
            clients.into_iter().map(start).collect::<Vec<_>>()
        });
        // Dropped at the end of this scope's closure, which ends the progress display.
        let _shown = progress.map(|progress| progress.start(scope, &shared));
        let result = senders.and_then(|senders| {
            read_rows(input, plan, senders, &shared, &mut skipped).map_err(|error| {
                let exit =
                    if matches!(error, RowError::Header(_)) { Exit::Usage } else { Exit::Failed };
                Failure::new(exit, error.to_string())
            })
        });
        if let Err(failure) = result {
            shared.note(failure);
        }
    });
    let summary = LoadSummary {
        rows: shared.rows.load(Ordering::Relaxed),
        skipped,
        errors: shared.errors.load(Ordering::Relaxed),
        seconds: start.elapsed().as_secs_f64(),
    };
    (shared.take_failure().map_or(Ok(()), Err), summary)
}

fn connect(plan: &LoadPlan) -> Result<Vec<Client>, Failure> {
    let mut clients = Vec::new();
    for _ in 0..plan.connections {
        let mut client = Client::connect(&plan.to)?;
        if let Some(policy) = &plan.ack_policy {
            client.ask(&["ROWSHIP.ACK", policy])?;
        }
        clients.push(client);
    }
    Ok(clients)
}

fn read_rows(
    input: impl Read,
    plan: &LoadPlan,
    senders: Vec<Sender>,
    shared: &Shared,
    skipped: &mut u64,
) -> Result<(), RowError> {
    let mut rows = CsvRows::new(input, plan.key.clone())?;
    let mut batches: Vec<Batch> = senders.iter().map(|_| Batch::default()).collect();
    let result = loop {
        if shared.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let line = match rows.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error @ RowError::Line { .. }) if plan.on_error == OnError::Skip => {
                *skipped += 1;
                report_skipped(&error, *skipped);
                continue;
            }
            // What came before the bad line is still sent: it is in the file before it.
            Err(error) => break Err(error),
        };
        #[expect(clippy::cast_possible_truncation, reason = "below the number of connections")]
        let at = (hash(&line.key) % senders.len() as u64) as usize;
        let batch = &mut batches[at];
        rows.encode(&line, &mut batch.commands);
        batch.lines.push(line.line);
        let full = batch.lines.len() >= plan.batch || batch.commands.len() >= BATCH_BYTES_MAX;
        if full && !senders[at].send(std::mem::take(batch)) {
            return Ok(());
        }
    };
    for (sender, batch) in senders.iter().zip(batches) {
        sender.send(batch);
    }
    result
}

/// Spreads keys over connections; only this process sees it.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

fn report_skipped(error: &RowError, skipped: u64) {
    if skipped <= BAD_LINES_SHOWN_MAX {
        eprintln!("skipped {error}");
    } else if skipped == BAD_LINES_SHOWN_MAX + 1 {
        eprintln!("more bad lines are counted, not shown");
    }
}
