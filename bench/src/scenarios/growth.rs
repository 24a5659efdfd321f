//! Scenario `growth`: what a row costs, and how much memory nodes have, as the log gets longer.
//!
//! One primary and one async replica live through all lengths. Just before each length is reached
//! the last rows are measured: CPU seconds of both processes until the replica shows them, and the
//! time that passes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use super::{Common, log_position};
use crate::figure::Figure;
use crate::load::{self, Input};
use crate::node::{Cluster, Layout};
use crate::process::{cpu_seconds, private_mib};
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "growth";
const TIMEOUT: Duration = Duration::from_secs(600);
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// Rows in a transaction.
const TRANSACTION_ROWS: u64 = 100;
/// Rows that are measured before each length; of a length so short that its own start would count,
/// the second half.
const MEASURED_ROWS_MAX: u64 = 1_000_000;

/// How long the log becomes.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Rows of log at which is measured, rising
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000,30000000",
        value_parser = clap::value_parser!(u64).range(2 * TRANSACTION_ROWS..))]
    pub rows: Vec<u64>,
}

impl Plan {
    /// Small enough for a test, and large enough for CPU time, which is counted in ticks of 10 ms.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { rows: vec![40_000, 80_000] }
    }
}

/// What was found at one length, a value for each round.
#[derive(Default)]
struct Found {
    cpu_us: Vec<f64>,
    elapsed_us: Vec<f64>,
    log_mb: Vec<f64>,
    primary_mib: Vec<f64>,
    replica_mib: Vec<f64>,
}

/// Runs the scenario.
///
/// # Errors
/// When lengths do not rise, or a node fails or refuses a write.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    let lengths = &options.rows;
    ensure!(lengths.is_sorted_by(|a, b| a < b), "--rows must rise: {lengths:?}");
    let mut found: Vec<Found> = lengths.iter().map(|_| Found::default()).collect();
    for round in 0..plan.rounds {
        let scratch = plan.scratch()?;
        let layout = plan.layout(Layout::asynchronous());
        let cluster = Cluster::start(scratch.path(), &layout).await?;
        load::preload(&cluster, plan.keys).await?;
        for (&rows, found) in lengths.iter().zip(&mut found) {
            sink.progress(format!("round {}: up to {rows} rows of log", round + 1));
            let measured = MEASURED_ROWS_MAX.min(rows / 2);
            grow(plan, &cluster, rows - measured).await?;
            measure(plan, &cluster, rows, found).await?;
        }
        cluster.stop().await?;
    }
    for (rows, found) in lengths.iter().zip(found) {
        put(plan, sink, *rows, found)?;
    }
    Ok(())
}

/// Writes until the log has so many rows, and waits until the replica shows them; returns how many
/// there were before. None are written when there are so many.
async fn grow(plan: &Common, cluster: &Cluster, rows: u64) -> Result<u64> {
    let status = cluster.primary.status().await?;
    let before = status["counters"]["rows"].as_u64().context("no counters.rows in status")?;
    let transactions = rows.saturating_sub(before).div_ceil(TRANSACTION_ROWS);
    if transactions > 0 {
        let input =
            Input { keys: plan.keys, pick: plan.pick, transaction_rows: TRANSACTION_ROWS as usize };
        load::backlog(cluster, transactions, input, rows).await?;
    }
    let until = Instant::now() + TIMEOUT;
    let appended = log_position(&cluster.primary.status().await?, "appended")?;
    loop {
        let status = cluster.replica(0)?.status().await?;
        if log_position(&status, "visible")? >= appended {
            return Ok(before);
        }
        ensure!(Instant::now() < until, "the replica does not show LSN {appended}: {status}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn measure(plan: &Common, cluster: &Cluster, rows: u64, found: &mut Found) -> Result<()> {
    let pids = [cluster.primary.pid(), cluster.replica(0)?.pid()];
    let cpu = || pids.iter().copied().map(cpu_seconds).sum::<f64>();
    let (began, cpu_before) = (Instant::now(), cpu());
    let before = grow(plan, cluster, rows).await?;
    let count = rows.saturating_sub(before) as f64;
    ensure!(count > 0.0, "the log has {before} rows already: --rows must be above --keys");
    found.cpu_us.push((cpu() - cpu_before) * 1e6 / count);
    found.elapsed_us.push(began.elapsed().as_secs_f64() * 1e6 / count);
    let appended = log_position(&cluster.primary.status().await?, "appended")?;
    found.log_mb.push(appended as f64 / 1e6);
    found.primary_mib.push(private_mib(pids[0])?);
    found.replica_mib.push(private_mib(pids[1])?);
    Ok(())
}

fn put(plan: &Common, sink: &Sink, rows: u64, found: Found) -> Result<()> {
    let settings = settings(
        "O_DSYNC on the primary",
        json!({
            "log_rows": rows, "measured_rows": MEASURED_ROWS_MAX.min(rows / 2),
            "transaction_rows": TRANSACTION_ROWS, "keys": plan.keys,
            "pick": plan.pick.to_string(), "replicas": 1, "flags": plan.flags,
            "cost": "CPU of primary and replica until the replica shows the rows",
            "memory": "resident without what is shared with files",
        }),
    );
    // Whole millions, as the defaults are, are shown without a point.
    let name = format!("{} M rows of log", rows as f64 / 1e6);
    for (what, unit, values) in [
        ("cost per row", "us", found.cpu_us),
        ("time per row", "us", found.elapsed_us),
        ("log", "MB", found.log_mb),
        ("memory of the primary", "MiB", found.primary_mib),
        ("memory of the replica", "MiB", found.replica_mib),
    ] {
        let figure = Figure::new(SCENARIO, &format!("{name}: {what}"), unit, values);
        sink.figure(&figure, &settings)?;
    }
    Ok(())
}
