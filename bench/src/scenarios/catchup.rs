//! Scenario `catchup`: a replica is stopped, a backlog is written, the replica is started; until it
//! shows the backlog's last row, and its own disk has it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tokio::task::{JoinHandle, spawn_local};

use super::limits::Limit;
use super::{Common, log_position};
use crate::client::Client;
use crate::figure::Figure;
use crate::load::{self, Input};
use crate::node::{Cluster, Layout, await_number};
use crate::process::cpu_seconds;
use crate::rows::{Keys, MARKER_KEY, Rows};
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "catchup";
/// Longest wait for the marker.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Connections that go on writing while the replica catches up.
const WRITERS: u64 = 4;

/// What the replica misses.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Rows of the backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: u64,
    /// Rows per transaction
    #[arg(long, value_delimiter = ',', default_value = "1,100")]
    pub transaction_rows: Vec<usize>,
    /// Only the keys of --zipf and --hot (uniform without them), not all three kinds
    #[arg(long)]
    pub one_kind: bool,
    /// Only without writes going on
    #[arg(long)]
    pub quiet: bool,
}

impl Plan {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { rows: 2_000, transaction_rows: vec![100], one_kind: false, quiet: false }
    }

    fn kinds(&self, common: &Common) -> Vec<Keys> {
        if self.one_kind {
            return vec![common.pick];
        }
        vec![Keys::Uniform, Keys::Zipf(0.99), Keys::Hot]
    }
}

/// One kind of backlog.
#[derive(Clone, Copy)]
struct Case {
    input: Input,
    writes: bool,
}

impl Case {
    fn name(&self, system: &str) -> String {
        let Input { pick, transaction_rows, .. } = self.input;
        let beside = if self.writes { ", writes going on" } else { "" };
        format!("{system}, {transaction_rows} rows/transaction, {pick}{beside}")
    }
}

/// Values of one case, one per round.
#[derive(Default)]
struct Rounds {
    rows: Vec<f64>,
    written: Vec<f64>,
    sent: Vec<f64>,
    megabytes: Vec<f64>,
    cpu: Vec<f64>,
    start: Vec<f64>,
    beside: Vec<f64>,
}

/// Runs the scenario.
///
/// # Errors
/// When a node fails, or the replica does not catch up.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    let scratch = plan.scratch()?;
    let layout = plan.layout(Layout::asynchronous());
    let mut cluster = Cluster::start(scratch.path(), &layout).await?;
    load::preload(&cluster, plan.keys).await?;
    let mut number = 1;
    for &transaction_rows in &options.transaction_rows {
        for pick in options.kinds(plan) {
            let input = Input { keys: plan.keys, pick, transaction_rows };
            let kinds: &[bool] = if options.quiet { &[false] } else { &[false, true] };
            for &writes in kinds {
                let case = Case { input, writes };
                let mut limit = Limit::upserts(plan.keys);
                let mut rounds = Rounds::default();
                for round in 0..plan.rounds {
                    let name = case.name(cluster.name());
                    sink.progress(format!("{name}, round {}", round + 1));
                    limit.measure()?;
                    one_round(&mut cluster, options.rows, case, number, &mut rounds).await?;
                    number += 1;
                }
                put(plan, options, sink, (&cluster, case), (rounds, &limit))?;
            }
        }
    }
    cluster.stop().await
}

async fn one_round(
    cluster: &mut Cluster,
    rows: u64,
    case: Case,
    number: u64,
    rounds: &mut Rounds,
) -> Result<()> {
    cluster.wait_until_streaming().await?;
    cluster.detach().await?;
    let before = written(cluster).await?;
    let transactions = rows.div_ceil(case.input.transaction_rows as u64);
    load::backlog(cluster, transactions, case.input, number).await?;
    let after = written(cluster).await?;
    let (bytes, in_log) = (after.0 - before.0, (after.1 - before.1) as f64);
    let beside = if case.writes { Some(Beside::start(cluster, case.input).await?) } else { None };
    let began = cluster.attach().await?;
    let started = began.elapsed().as_secs_f64();
    await_number(&mut cluster.reader(0).await?, MARKER_KEY, number, TIMEOUT).await?;
    cluster.await_durable(after.0).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(cluster.replica(0)?.pid());
    if let Some(beside) = beside {
        rounds.beside.push(beside.stop().await?);
    }
    // A key that comes again within a transaction is one row of the log: only rows that are there
    // count as caught up. Kinds of keys are compared by what clients wrote.
    let sent = (transactions * case.input.transaction_rows as u64) as f64;
    rounds.rows.push(in_log / seconds);
    rounds.written.push(sent / seconds);
    rounds.sent.push(in_log / sent);
    rounds.megabytes.push(bytes as f64 / 1e6 / seconds);
    rounds.cpu.push(cpu / in_log * 1e6);
    rounds.start.push(started / seconds);
    Ok(())
}

/// Bytes of the primary's log, and rows in it.
async fn written(cluster: &Cluster) -> Result<(u64, u64)> {
    let status = cluster.primary.status().await?;
    let rows = status["counters"]["rows"].as_u64().context("no counters.rows in status")?;
    Ok((log_position(&status, "appended")?, rows))
}

/// Writers that go on, one transaction of one row at a time each, until they are stopped.
struct Beside {
    over: Rc<Cell<bool>>,
    began: Instant,
    tasks: Vec<JoinHandle<Result<u64>>>,
}

impl Beside {
    async fn start(cluster: &Cluster, input: Input) -> Result<Beside> {
        let over = Rc::new(Cell::new(false));
        let mut tasks = Vec::new();
        for at in 0..WRITERS {
            let mut client = cluster.writer().await?;
            let mut rows = Rows::new(2_000 + at, input.keys, input.pick);
            let over = over.clone();
            tasks.push(spawn_local(async move {
                let mut written = 0;
                while !over.get() {
                    client.write(&[rows.row()]).await?;
                    written += 1;
                }
                Ok(written)
            }));
        }
        Ok(Beside { over, began: Instant::now(), tasks })
    }

    /// Rows per second that they wrote.
    async fn stop(self) -> Result<f64> {
        let seconds = self.began.elapsed().as_secs_f64();
        self.over.set(true);
        let mut rows = 0;
        for task in self.tasks {
            rows += task.await.context("a writer panicked")??;
        }
        Ok(rows as f64 / seconds)
    }
}

fn put(
    plan: &Common,
    options: &Plan,
    sink: &Sink,
    (cluster, case): (&Cluster, Case),
    (rounds, limit): (Rounds, &Limit),
) -> Result<()> {
    let name = case.name(cluster.name());
    let settings = settings(
        "O_DSYNC on primary and replica",
        json!({
            "rows": options.rows, "transaction_rows": case.input.transaction_rows,
            "keys": plan.keys, "pick": case.input.pick.to_string(), "replicas": 1,
            "writers_beside": if case.writes { WRITERS } else { 0 }, "flags": plan.flags,
            "rows_counted": "in the log: a key twice in a transaction is one; written: all",
            "counted": "from before the replica's start until it shows the last row, on its disk",
        }),
    );
    let figure =
        |what: &str, unit, values| Figure::new(SCENARIO, &format!("{name}: {what}"), unit, values);
    let mut rows = figure("rows/s", "rows/s", rounds.rows);
    // Of rows that hit one key again and again, most never reach the table: it does not bind them.
    if case.input.pick == Keys::Uniform {
        rows = rows.with_limit(&limit.figure(SCENARIO));
    }
    sink.figure(&rows, &settings)?;
    sink.figure(&figure("written rows/s", "rows/s", rounds.written), &settings)?;
    sink.figure(&figure("rows in the log", "of sent", rounds.sent), &settings)?;
    sink.figure(&figure("log", "MB/s", rounds.megabytes), &settings)?;
    sink.figure(&figure("CPU of the replica per million rows", "s", rounds.cpu), &settings)?;
    sink.figure(&figure("share of the start", "of time", rounds.start), &settings)?;
    if case.writes {
        sink.figure(&figure("written beside", "rows/s", rounds.beside), &settings)?;
    }
    Ok(())
}
