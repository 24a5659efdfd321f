//! Scenario `fanout`: what each further replica costs the primary, its clients, and in lag.
//!
//! What replicas cost the primary is told from the same work in the same time: a closed loop would
//! put more commits into each write the slower all is. And from nodes that sleep (`--busy-poll-us
//! 0`): else they are awake for what they expect at once, up to a core whatever their replicas.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::limits::Limit;
use super::{Common, log_position, quantile_ms};
use crate::figure::Figure;
use crate::load::{self, Input, OpenLoop, Span};
use crate::node::{Cluster, Layout};
use crate::process::cpu_seconds;
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "fanout";
const CLIENTS: usize = 8;
const ROWS: [usize; 2] = [1, 100];
/// Rows per second, one per transaction, of the loads whose CPU is told.
const CPU_RATES: [f64; 2] = [5_000.0, 20_000.0];
/// Rate of the open loop that shows the lag.
const LAG_RATE: f64 = 5_000.0;
const LAG_MARKERS: f64 = 500.0;
const LOOK_PAUSE: Duration = Duration::from_micros(100);
/// Of the nodes whose CPU is told.
const SLEEPING: &str = "--busy-poll-us=0";

/// How many replicas.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Numbers of replicas, in ascending order; what a primary alone costs is measured as well
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    pub replicas: Vec<usize>,
}

impl Plan {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { replicas: vec![1, 2] }
    }
}

/// Values of one number of replicas and one size of transactions, one per round.
#[derive(Default)]
struct Rounds {
    rows: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// CPU seconds of the primary at one rate, one value per round.
#[derive(Default)]
struct Cpu {
    /// Per million rows.
    rows: Vec<f64>,
    /// Per gigabyte that it sent.
    shipped: Vec<f64>,
}

/// Values of one number of replicas.
#[derive(Default)]
struct Found {
    replicas: usize,
    loads: [Rounds; 2],
    cpu: [Cpu; 2],
    lag_p50: Vec<f64>,
    lag_p99: Vec<f64>,
}

/// Runs the scenario.
///
/// # Errors
/// When a node fails or refuses a write.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    let counts = std::iter::once(0).chain(options.replicas.iter().copied().filter(|n| *n > 0));
    let mut all = Vec::new();
    for replicas in counts {
        let layout = plan.layout(Layout { replicas, ..Layout::asynchronous() });
        let mut limits = [4, 64].map(|kib| Limit::commit_ms(&plan.directory, 1.0, kib));
        let mut found = Found { replicas, ..Found::default() };
        let scratch = plan.scratch()?;
        let cluster = Cluster::start(scratch.path(), &layout).await?;
        load::preload(&cluster, plan.keys).await?;
        for round in 0..plan.rounds {
            sink.progress(format!("{replicas} replicas, round {}", round + 1));
            limits.iter_mut().try_for_each(Limit::measure)?;
            one_round(plan, &cluster, &mut found).await?;
        }
        cluster.stop().await?;
        cpu_rounds(plan, layout, sink, &mut found).await?;
        put(plan, sink, &found, &limits)?;
        all.push(found);
    }
    further(plan, sink, &all)
}

fn input(plan: &Common, transaction_rows: usize) -> Input {
    Input { keys: plan.keys, pick: plan.pick, transaction_rows }
}

async fn one_round(plan: &Common, cluster: &Cluster, found: &mut Found) -> Result<()> {
    let span = Span::of(plan.measured);
    for (rows, rounds) in ROWS.iter().zip(&mut found.loads) {
        cluster.wait_until_streaming().await?;
        let ran = load::closed(cluster, CLIENTS, 1, input(plan, *rows), span).await?;
        rounds.rows.push(ran.per_second() * *rows as f64);
        rounds.p50.push(quantile_ms(&ran.latency, 0.5));
        rounds.p99.push(quantile_ms(&ran.latency, 0.99));
    }
    if found.replicas > 0 {
        let (rate, markers, look_pause) = (LAG_RATE, LAG_MARKERS, LOOK_PAUSE);
        let open = OpenLoop { rate, clients: CLIENTS, markers, look_pause };
        let lags = load::open(cluster, open, input(plan, 1), span).await?;
        found.lag_p50.push(quantile_ms(&lags.visible, 0.5));
        found.lag_p99.push(quantile_ms(&lags.visible, 0.99));
    }
    Ok(())
}

/// Loads of fixed rates on nodes that sleep.
async fn cpu_rounds(
    plan: &Common,
    mut layout: Layout,
    sink: &Sink,
    found: &mut Found,
) -> Result<()> {
    layout.flags.push(SLEEPING.to_owned());
    let scratch = plan.scratch()?;
    let cluster = Cluster::start(scratch.path(), &layout).await?;
    load::preload(&cluster, plan.keys).await?;
    let span = Span::of(plan.measured);
    for round in 0..plan.rounds {
        sink.progress(format!("{} replicas, CPU, round {}", found.replicas, round + 1));
        for (rate, cpu) in CPU_RATES.iter().zip(&mut found.cpu) {
            cluster.wait_until_streaming().await?;
            let before = costs(&cluster).await?;
            load::paced(&cluster, (*rate, CLIENTS), input(plan, 1), span).await?;
            // What is still to be sent belongs to this load.
            cluster.wait_until_streaming().await?;
            let after = costs(&cluster).await?;
            let seconds = after.cpu - before.cpu;
            cpu.rows.push(seconds / ((after.rows - before.rows) as f64 / 1e6));
            let shipped = (after.log - before.log) as f64 * found.replicas as f64 / 1e9;
            if shipped > 0.0 {
                cpu.shipped.push(seconds / shipped);
            }
        }
    }
    cluster.stop().await
}

/// What the primary has done so far.
struct Costs {
    cpu: f64,
    log: u64,
    rows: u64,
}

async fn costs(cluster: &Cluster) -> Result<Costs> {
    let status = cluster.primary.status().await?;
    let rows = status["counters"]["rows"].as_u64().unwrap_or(0);
    let log = log_position(&status, "appended")?;
    Ok(Costs { cpu: cpu_seconds(cluster.primary.pid()), log, rows })
}

fn describe(plan: &Common, replicas: usize) -> Value {
    settings(
        "O_DSYNC on the primary",
        json!({
            "replicas": replicas, "clients": CLIENTS, "keys": plan.keys, "flags": plan.flags,
            "pick": plan.pick.to_string(), "seconds": plan.measured.as_secs_f64(),
            "lag_at_rows_per_second": LAG_RATE, "cpu_of": format!("primary, {SLEEPING}"),
        }),
    )
}

fn put(plan: &Common, sink: &Sink, found: &Found, limits: &[Limit]) -> Result<()> {
    let settings = describe(plan, found.replicas);
    for ((rows, rounds), limit) in ROWS.iter().zip(&found.loads).zip(limits) {
        let name = format!("{} replicas, {CLIENTS} clients x {rows} rows", found.replicas);
        let figure = |what: &str, unit, values: &Vec<f64>| {
            Figure::new(SCENARIO, &format!("{name}: {what}"), unit, values.clone())
        };
        let rate = limit.closed_loop(SCENARIO, CLIENTS * rows);
        sink.figure(&figure("rows/s", "rows/s", &rounds.rows).with_limit(&rate), &settings)?;
        let p50 = figure("p50", "ms", &rounds.p50).with_limit(&limit.figure(SCENARIO));
        sink.figure(&p50, &settings)?;
        sink.figure(&figure("p99", "ms", &rounds.p99), &settings)?;
    }
    for (rate, cpu) in CPU_RATES.iter().zip(&found.cpu) {
        let name = format!("{} replicas, {rate} rows/s", found.replicas);
        let figure = |what: &str, unit, values: &Vec<f64>| {
            Figure::new(SCENARIO, &format!("{name}: {what}"), unit, values.clone())
        };
        sink.figure(&figure("CPU per million rows", "s", &cpu.rows), &settings)?;
        if !cpu.shipped.is_empty() {
            sink.figure(&figure("CPU per GB shipped", "s/GB", &cpu.shipped), &settings)?;
        }
    }
    for (what, values) in [("p50", &found.lag_p50), ("p99", &found.lag_p99)] {
        if !values.is_empty() {
            let name = format!("{} replicas, {LAG_RATE} rows/s: visible {what}", found.replicas);
            sink.figure(&Figure::new(SCENARIO, &name, "ms", values.clone()), &settings)?;
        }
    }
    Ok(())
}

/// What the second and each further replica costs the primary, against the first, per row.
fn further(plan: &Common, sink: &Sink, all: &[Found]) -> Result<()> {
    let with = |count| all.iter().find(|found| found.replicas == count);
    let (Some(none), Some(one)) = (with(0), with(1)) else { return Ok(()) };
    for (at, rate) in CPU_RATES.iter().enumerate() {
        let cpu = |found: &Found, round: usize| found.cpu[at].rows[round];
        let first = |round| cpu(one, round) - cpu(none, round);
        if (0..plan.rounds).any(|round| first(round) <= 0.0) {
            sink.say(&format!("{rate} rows/s: the first replica's cost is lost in the noise"));
            continue;
        }
        for found in all.iter().filter(|found| found.replicas > 1) {
            let others = (found.replicas - 1) as f64;
            // A small difference of large numbers: all rounds are shown, negative ones too, for
            // the range says how little of it is known.
            let each = |round| (cpu(found, round) - cpu(one, round)) / others / first(round);
            let name = format!(
                "{rate} rows/s, CPU of each replica from the second to number {} against the first",
                found.replicas
            );
            let figure = Figure::new(SCENARIO, &name, "x", (0..plan.rounds).map(each).collect());
            sink.figure(&figure, &describe(plan, found.replicas))?;
        }
    }
    Ok(())
}
