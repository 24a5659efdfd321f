//! Scenario `footprint`: memory of primary and replica, idle, loaded, and with a replica that is
//! gone; and bytes of log and of wire per row.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::{Common, log_position, replica_row};
use crate::figure::Figure;
use crate::load::{self, Input, Span};
use crate::node::{Cluster, Layout};
use crate::process::{private_mib, resident_mib};
use crate::rows::VALUE_BYTES;
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "footprint";
const CLIENTS: usize = 8;
const ROWS: [usize; 2] = [1, 100];
/// Between two looks at how much memory there is.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of a key on the wire to the primary, as rows have them there and in the log.
const KEY_BYTES: usize = 8;

/// How much is written while a replica is gone.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Rows of the backlog, and of the load before it that brings tables to their bounds
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: u64,
}

impl Plan {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { rows: 2_000 }
    }
}

/// Figures by name, a value for each round.
#[derive(Default)]
struct Found(Vec<(String, &'static str, Vec<f64>)>);

impl Found {
    fn push(&mut self, name: &str, unit: &'static str, value: f64) {
        match self.0.iter_mut().find(|known| known.0 == name) {
            Some(known) => known.2.push(value),
            None => self.0.push((name.to_owned(), unit, vec![value])),
        }
    }

    fn memory(&mut self, name: &str, pid: u32) -> Result<()> {
        self.push(&format!("{name}: resident"), "MiB", resident_mib(pid)?);
        self.push(&format!("{name}: private"), "MiB", private_mib(pid)?);
        Ok(())
    }
}

/// Runs the scenario.
///
/// # Errors
/// When a node fails or refuses a write.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    let mut found = Found::default();
    for round in 0..plan.rounds {
        sink.progress(format!("footprint, round {}", round + 1));
        one_round(plan, options, &mut found).await?;
    }
    let settings = settings(
        "O_DSYNC on the primary",
        json!({
            "clients": CLIENTS, "keys": plan.keys, "pick": plan.pick.to_string(), "replicas": 1,
            "seconds": plan.measured.as_secs_f64(), "backlog_rows": options.rows,
            "flags": plan.flags, "private": "resident without what is shared with files",
        }),
    );
    let row =
        Figure::new(SCENARIO, "the row itself", "bytes", vec![(KEY_BYTES + VALUE_BYTES) as f64]);
    for (name, unit, values) in found.0 {
        let figure = Figure::new(SCENARIO, &name, unit, values);
        let figure = if unit == "bytes" { figure.with_limit(&row) } else { figure };
        sink.figure(&figure, &settings)?;
    }
    Ok(())
}

async fn one_round(plan: &Common, options: &Plan, found: &mut Found) -> Result<()> {
    let scratch = plan.scratch()?;
    let layout = plan.layout(Layout::asynchronous());
    let mut cluster = Cluster::start(scratch.path(), &layout).await?;
    both(&cluster, "idle, empty", found)?;
    load::preload(&cluster, plan.keys).await?;
    for rows in ROWS {
        cluster.wait_until_streaming().await?;
        let before = Sent::of(&cluster.primary.status().await?)?;
        let input = Input { keys: plan.keys, pick: plan.pick, transaction_rows: rows };
        let load = load::closed(&cluster, CLIENTS, 1, input, Span::of(plan.measured));
        load.await?;
        both(&cluster, &format!("loaded, {CLIENTS} clients x {rows} rows"), found)?;
        cluster.wait_until_streaming().await?;
        let after = Sent::of(&cluster.primary.status().await?)?;
        let count = (after.rows - before.rows) as f64;
        let name = format!("per row, {CLIENTS} clients x {rows} rows");
        found.push(&format!("log {name}"), "bytes", (after.log - before.log) as f64 / count);
        let wire = (after.shipped - before.shipped) as f64 / count;
        found.push(&format!("wire to a replica {name}"), "bytes", wire);
    }
    both(&cluster, "after the load", found)?;
    // The same rows twice, with the replica and without: tables fill up to their bound either way.
    let as_many = async {
        for rows in ROWS {
            backlog(plan, options, &cluster, rows).await?;
        }
        cluster.wait_until_streaming().await
    };
    let pids = [cluster.primary.pid(), cluster.replica(0)?.pid()];
    let most = most_private_mib(as_many, &pids).await?;
    found.push("primary, most during as many rows: private", "MiB", most[0]);
    found.push("replica, most during as many rows: private", "MiB", most[1]);
    both(&cluster, "after as many rows", found)?;
    cluster.detach().await?;
    for rows in ROWS {
        let work = backlog(plan, options, &cluster, rows);
        let most = most_private_mib(work, &pids[..1]).await?;
        let name = format!("primary, dead replica, backlog of {rows} rows/transaction");
        found.push(&format!("{name}, most: private"), "MiB", most[0]);
        found.memory(&name, cluster.primary.pid())?;
    }
    cluster.attach().await?;
    let pids = [cluster.replica(0)?.pid()];
    let most = most_private_mib(cluster.wait_until_streaming(), &pids).await?;
    found.push("replica, most during catching up: private", "MiB", most[0]);
    both(&cluster, "after catching up", found)?;
    cluster.stop().await
}

/// The most private memory that each process has while `work` goes on. At a single moment it says
/// more about how full memtables happen to be.
async fn most_private_mib(
    work: impl Future<Output = Result<()>>,
    pids: &[u32],
) -> Result<Vec<f64>> {
    let mut work = pin!(work);
    let mut most = vec![0.0f64; pids.len()];
    loop {
        let done = tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = tokio::time::sleep(LOOK_PAUSE) => None,
        };
        for (most, pid) in most.iter_mut().zip(pids) {
            *most = most.max(private_mib(*pid)?);
        }
        if let Some(done) = done {
            return done.map(|()| most);
        }
    }
}

async fn backlog(plan: &Common, options: &Plan, cluster: &Cluster, rows: usize) -> Result<()> {
    let input = Input { keys: plan.keys, pick: plan.pick, transaction_rows: rows };
    load::backlog(cluster, options.rows.div_ceil(rows as u64), input, 1).await
}

fn both(cluster: &Cluster, when: &str, found: &mut Found) -> Result<()> {
    found.memory(&format!("primary, {when}"), cluster.primary.pid())?;
    found.memory(&format!("replica, {when}"), cluster.replica(0)?.pid())
}

/// What the primary has written and sent so far. Messages beside the log (heartbeats, notices of
/// what is committed) have no counter and are not in here.
struct Sent {
    rows: u64,
    log: u64,
    shipped: u64,
}

impl Sent {
    fn of(status: &Value) -> Result<Sent> {
        let replica = replica_row(status, "replica-0").context("no replica in status")?;
        let shipped = replica["shipped"].as_u64().context("no shipped in status")?;
        let rows = status["counters"]["rows"].as_u64().context("no counters.rows in status")?;
        Ok(Sent { rows, log: log_position(status, "appended")?, shipped })
    }
}
