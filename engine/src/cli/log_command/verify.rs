//! `rowship log verify DIR`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::super::CommandResult;
use super::super::config::units::{human_bytes, human_count};
use super::super::exit::{Exit, Failure};
use super::super::output;
use crate::log::tools::{TailState, VerifyReport, verify};

/// Problems printed one by one; `--json` has more.
const PROBLEMS_SHOWN_MAX: usize = 20;

/// Flags of `rowship log verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Data directory of a node, running or not
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Verifies and prints; [`Exit::Failed`] when something does not hold.
///
/// # Errors
/// When there is no log, or it cannot be read.
pub fn run(args: &VerifyArgs) -> CommandResult {
    let report = verify(&super::open_for_reading(&args.directory)?)?;
    if args.json {
        let json = serde_json::to_string(&report)
            .map_err(|error| Failure::new(Exit::Internal, format!("report: {error}")))?;
        output::print(&format!("{json}\n"))?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(if report.problems_total == 0 { Exit::Ok } else { Exit::Failed })
}

fn text(report: &VerifyReport) -> String {
    let mut text = format!(
        "{} frames ({}) with {} rows in {} transactions, in {} segments; LSN {} to {}\n",
        human_count(report.frames),
        human_bytes(report.bytes),
        human_count(report.rows),
        human_count(report.transactions),
        human_count(report.segments),
        report.first_lsn,
        report.end_lsn,
    );
    if report.tail == TailState::InFlight {
        text.push_str(
            "behind the last frame: a part of a write, in flight if the node is running, torn if \
             it is not (its next start cuts it); no damage\n",
        );
    }
    for problem in report.problems.iter().take(PROBLEMS_SHOWN_MAX) {
        let _ = writeln!(
            text,
            "DAMAGE in {} at offset {} (LSN {}): {}",
            problem.segment, problem.offset, problem.lsn, problem.what
        );
    }
    let shown = report.problems.len().min(PROBLEMS_SHOWN_MAX) as u64;
    match report.problems_total {
        0 => text.push_str("the log is whole\n"),
        total if total > shown => {
            let _ = writeln!(text, "and {} more damaged places", human_count(total - shown));
        }
        _ => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tools::Problem;

    #[test]
    fn damage_is_named_exactly_and_a_tail_in_flight_is_none() {
        let mut report =
            VerifyReport { frames: 3, tail: TailState::InFlight, ..Default::default() };
        let whole = text(&report);
        assert!(whole.contains("no damage\n") && whole.ends_with("the log is whole\n"));
        let (segment, what) = ("d/segment-0.log".to_owned(), "chain is broken".to_owned());
        let problem = Problem { segment, offset: 4096, lsn: 5000, what };
        report.problems = vec![problem; 30];
        report.problems_total = 2000;
        let damaged = text(&report);
        let line = "DAMAGE in d/segment-0.log at offset 4096 (LSN 5000): chain is broken\n";
        assert_eq!(damaged.matches(line).count(), PROBLEMS_SHOWN_MAX);
        assert!(damaged.ends_with("and 1,980 more damaged places\n"), "{damaged}");
        assert!(!damaged.contains("whole"));
    }
}
