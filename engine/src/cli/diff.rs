//! `rowship diff A B`: are the rows of two nodes identical at one position of the log?
//!
//! Both nodes must first come to rest at the same visible position. Then both are streamed in
//! full, page by page (`ROWSHIP.DUMP`), and compared. Nodes list rows in the same order, so equal
//! tables meet row by row, and memory holds only what one side has and the other has not yet
//! shown. The position must not move during the dump; otherwise it starts over.

mod compare;
mod dump;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::CommandResult;
use super::client::{Client, ClientError};
use super::config::units::human_count;
use super::exit::{Exit, Failure};
use super::output;
use compare::Comparison;
pub use compare::Differences;
use dump::{Dump, DumpError};

/// How often the nodes are asked where they are.
const POLL_PERIOD: Duration = Duration::from_millis(20);
/// A dump is started over this often when writes get in between.
const TRIES_MAX: usize = 3;

/// Flags of `rowship diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Client address of one node
    #[arg(value_name = "A")]
    a: String,
    /// Client address of the other
    #[arg(value_name = "B")]
    b: String,
    /// How long to wait until both are at the same position, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Rows of A, and of B, that were read.
    pub rows: [u64; 2],
    /// Where both were.
    pub position: String,
    /// What differs.
    pub differences: Differences,
}

/// Compares and prints; [`Exit::Failed`] when rows differ.
///
/// # Errors
/// When the nodes cannot be asked, or do not come to rest.
pub fn run(args: &DiffArgs) -> CommandResult {
    let outcome = diff(&args.a, &args.b, Duration::from_secs(args.timeout))?;
    let text = if args.json {
        format!("{}\n", outcome.json(&args.a, &args.b))
    } else {
        outcome.text(&args.a, &args.b)
    };
    output::print(&text)?;
    Ok(if outcome.differences.none() { Exit::Ok } else { Exit::Failed })
}

/// Compares all rows of the nodes at `a` and `b`.
///
/// # Errors
/// When the nodes cannot be asked, or do not come to rest.
pub fn diff(a: &str, b: &str, timeout: Duration) -> Result<Outcome, Failure> {
    let mut nodes = [Client::connect(a)?, Client::connect(b)?];
    for _ in 0..TRIES_MAX {
        wait_for_same_position(&mut nodes, timeout)?;
        match compare_at_rest(&mut nodes) {
            Ok(outcome) => return Ok(outcome),
            Err(DumpError::Moved) => {}
            Err(DumpError::Failed(failure)) => return Err(failure),
        }
    }
    let message = format!(
        "writes went on during {TRIES_MAX} comparisons of {a} and {b}: pause them, then run it \
         again"
    );
    Err(Failure::new(Exit::Failed, message))
}

/// Waits until all nodes show the same position.
///
/// # Errors
/// When they cannot be asked, or do not within `timeout`: says whether writes are going on.
pub fn wait_for_same_position(nodes: &mut [Client], timeout: Duration) -> Result<Value, Failure> {
    let deadline = Instant::now() + timeout;
    let mut first_seen: Option<Vec<(Value, Value)>> = None;
    loop {
        let mut positions = Vec::new();
        for node in nodes.iter_mut() {
            let status = node.status().map_err(Failure::from)?;
            let log = &status["log"];
            if log["visible"].is_null() {
                return Err(node.unexpected("ROWSHIP.STATUS").into());
            }
            positions.push((log["epoch"].clone(), log["visible"].clone()));
        }
        if positions.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(positions[0].1.clone());
        }
        let first = first_seen.get_or_insert_with(|| positions.clone());
        if Instant::now() >= deadline {
            let moving = *first != positions;
            return Err(Failure::new(
                Exit::Failed,
                not_at_rest(nodes, &positions, moving, timeout),
            ));
        }
        std::thread::sleep(POLL_PERIOD);
    }
}

fn not_at_rest(
    nodes: &[Client],
    positions: &[(Value, Value)],
    moving: bool,
    timeout: Duration,
) -> String {
    let why = if moving {
        "writes are going on, or a node is catching up: pause writes, or give a longer --timeout"
    } else {
        "nothing moves: a node is stuck or not connected (see rowship status)"
    };
    let mut text = format!("not at one position after {} s; {why}", timeout.as_secs());
    for (node, (epoch, visible)) in nodes.iter().zip(positions) {
        let _ = write!(text, "\n  {}: epoch {epoch}, visible {visible}", node.address());
    }
    text
}

fn compare_at_rest(nodes: &mut [Client; 2]) -> Result<Outcome, DumpError> {
    let [a, b] = nodes;
    let mut dumps = [Dump::new(a), Dump::new(b)];
    let mut comparison = Comparison::default();
    while let Some(side) = comparison.wants() {
        match dumps[side].next_row()? {
            Some((key, image)) => comparison.add(side, key, image),
            None => comparison.end(side),
        }
    }
    let positions = dumps.each_ref().map(|dump| dump.position().unwrap_or_default().to_owned());
    let differences = comparison.finish();
    // A comparison that was cut short has not read both to their ends: positions still count.
    if positions[0] != positions[1] {
        return Err(DumpError::Moved);
    }
    let [position, _] = positions;
    Ok(Outcome { rows: dumps.map(|dump| dump.rows()), position, differences })
}

impl Outcome {
    /// For people; one line when all is well.
    #[must_use]
    pub fn text(&self, a: &str, b: &str) -> String {
        let [rows_a, rows_b] = self.rows.map(human_count);
        let position = &self.position;
        if self.differences.none() {
            return format!("identical: {rows_a} rows at position {position}\n");
        }
        let mut text = format!("{a} and {b} differ at position {position}\n");
        let _ = writeln!(text, "read {rows_a} rows of {a}, {rows_b} of {b}");
        text.push_str(&self.differences.text(a, b));
        text
    }

    fn json(&self, a: &str, b: &str) -> Value {
        serde_json::json!({
            "identical": self.differences.none(),
            "a": a,
            "b": b,
            "position": self.position,
            "rows": self.rows,
            "differences": self.differences.json(),
        })
    }
}

impl From<ClientError> for DumpError {
    fn from(error: ClientError) -> DumpError {
        DumpError::Failed(error.into())
    }
}
