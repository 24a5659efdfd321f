//! Scenario `lag`: rows at a fixed rate; how long until their reply, and until the replica shows
//! them, counted from when each should have been sent; by stage; and what a pause of the replica
//! costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use hdrhistogram::Histogram;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::spawn_local;

use super::limits::Limit;
use super::{Common, quantile_ms, replica_row};
use crate::clock::PreciseTimer;
use crate::figure::Figure;
use crate::load::{self, Input, Lags, OpenLoop, Span};
use crate::node::{Cluster, Layout};
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "lag";
/// Connections of the closed loop that finds the maximum, and of the open loops.
const CLIENTS: usize = 8;
/// Of the maximum, the last rate.
const SHARE_OF_MAXIMUM: f64 = 0.8;
/// Rate of the run in which the replica stands still.
const PAUSED_AT_RATE: f64 = 5_000.0;
/// After a pause the lag is back when so many markers in a row are below twice the median.
const BACK_MARKERS: usize = 10;
const QUANTILES: [(f64, &str); 5] =
    [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"), (1.0, "max")];
const STAGES: [&str; 5] = ["sent", "received", "durable", "applied", "visible"];

/// How the rows come.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Rows per second; 80 % of the maximum comes last
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,20000,50000")]
    pub rates: Vec<f64>,
    /// Marker rows per second, beside these
    #[arg(long, default_value_t = 500.0)]
    pub markers: f64,
    /// Microseconds between two looks at the replica
    #[arg(long, default_value_t = 100)]
    pub look_us: u64,
    /// Milliseconds for which the replica stands still
    #[arg(long, default_value_t = 1000)]
    pub pause_ms: u64,
}

impl Plan {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { rates: vec![1_000.0], markers: 200.0, look_us: 500, pause_ms: 100 }
    }

    fn open_loop(&self, rate: f64) -> Result<OpenLoop> {
        for (value, name) in [(rate, "--rates"), (self.markers, "--markers")] {
            anyhow::ensure!(value > 0.0 && value.is_finite(), "{name}: {value} is not above 0");
        }
        let look_pause = Duration::from_micros(self.look_us);
        Ok(OpenLoop { rate, clients: CLIENTS, markers: self.markers, look_pause })
    }
}

/// Runs the scenario.
///
/// # Errors
/// When a node fails, refuses a write, or does not show the last marker.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    let maximum = maximum(plan, sink).await?;
    let top = maximum.median() * SHARE_OF_MAXIMUM;
    let rates = options.rates.iter().map(|rate| (*rate, format!("{rate} rows/s")));
    for (rate, shown) in rates.chain([(top, "80 % of maximum".to_owned())]) {
        let mut rounds = Rounds::new(plan);
        for round in 0..plan.rounds {
            sink.progress(format!("{shown}, round {}", round + 1));
            rounds.limits.iter_mut().try_for_each(Limit::measure)?;
            rounds.run(plan, options, rate).await?;
        }
        rounds.put(plan, options, sink, (rate, &shown))?;
    }
    pauses(plan, options, sink).await
}

fn input(plan: &Common) -> Input {
    Input { keys: plan.keys, pick: plan.pick, transaction_rows: 1 }
}

fn describe(plan: &Common, options: &Plan, rate: f64) -> Value {
    settings(
        "O_DSYNC on the primary",
        json!({
            "rows_per_second": rate, "clients": CLIENTS, "transaction_rows": 1, "replicas": 1,
            "markers_per_second": options.markers, "look_us": options.look_us,
            "keys": plan.keys, "pick": plan.pick.to_string(), "flags": plan.flags,
            "seconds": plan.measured.as_secs_f64(), "counted": "from the intended time of a row",
        }),
    )
}

/// A cluster whose replica came after the preload: stage latencies count from then on.
async fn cluster(plan: &Common, directory: &std::path::Path) -> Result<Cluster> {
    let layout = plan.layout(Layout { replicas: 0, ..Layout::asynchronous() });
    let mut cluster = Cluster::start(directory, &layout).await?;
    load::preload(&cluster, plan.keys).await?;
    let replica = cluster.start_replica(0).await?;
    cluster.replicas.push(Some(replica));
    cluster.wait_until_streaming().await?;
    Ok(cluster)
}

/// Rows per second of a closed loop.
async fn maximum(plan: &Common, sink: &Sink) -> Result<Figure> {
    let scratch = plan.scratch()?;
    let cluster = cluster(plan, scratch.path()).await?;
    let mut values = Vec::new();
    for round in 0..plan.rounds {
        sink.progress(format!("maximum, round {}", round + 1));
        let span = Span::of(plan.measured);
        let ran = load::closed(&cluster, CLIENTS, 1, input(plan), span).await?;
        values.push(ran.per_second());
    }
    cluster.stop().await?;
    let figure = Figure::new(SCENARIO, "maximum, 8 clients", "rows/s", values);
    let options = json!({ "clients": CLIENTS, "transaction_rows": 1, "keys": plan.keys });
    sink.figure(&figure, &settings("O_DSYNC on the primary", options))?;
    Ok(figure)
}

/// All rounds of one rate.
struct Rounds {
    /// Of commit, and of what is visible.
    limits: [Limit; 2],
    /// The same, a histogram per round.
    found: [Vec<Histogram<u64>>; 2],
    rate: Vec<f64>,
    over_time: Vec<(f64, f64)>,
    /// (stage, quantile, milliseconds) of each round.
    stages: Vec<(String, f64)>,
}

impl Rounds {
    fn new(plan: &Common) -> Rounds {
        // There and back, and one write. To see a row: there, on to the replica, and the reader's
        // question and answer, whose first half overlaps with the row's way.
        let limits = [1.0, 1.5].map(|trips| Limit::commit_ms(&plan.directory, trips, 4));
        let found = [Vec::new(), Vec::new()];
        Rounds { limits, found, rate: Vec::new(), over_time: Vec::new(), stages: Vec::new() }
    }

    async fn run(&mut self, plan: &Common, options: &Plan, rate: f64) -> Result<()> {
        let scratch = plan.scratch()?;
        let cluster = cluster(plan, scratch.path()).await?;
        let open = options.open_loop(rate)?;
        let lags = load::open(&cluster, open, input(plan), Span::of(plan.measured)).await?;
        let status = cluster.primary.status().await?;
        let row = replica_row(&status, "replica-0").context("no replica in status")?;
        for stage in STAGES {
            for (field, shown) in [("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")] {
                let micros = row["stages"][stage][field].as_f64();
                let micros = micros.with_context(|| format!("no {stage} {field}: {status}"))?;
                self.stages.push((format!("stage {stage}: {shown}"), micros / 1e3));
            }
        }
        self.rate.push(lags.rate);
        self.over_time = lags.over_time;
        let [commit, visible] = &mut self.found;
        commit.push(lags.commit);
        visible.push(lags.visible);
        cluster.stop().await
    }

    fn put(
        &self,
        plan: &Common,
        options: &Plan,
        sink: &Sink,
        (rate, shown): (f64, &str),
    ) -> Result<()> {
        let settings = describe(plan, options, rate);
        let figure = |what: &str, unit, values| {
            Figure::new(SCENARIO, &format!("{shown}: {what}"), unit, values)
        };
        sink.figure(&figure("acknowledged", "rows/s", self.rate.clone()), &settings)?;
        for ((what, found), limit) in
            ["commit", "visible"].iter().zip(&self.found).zip(&self.limits)
        {
            let limit = limit.figure(SCENARIO);
            for (quantile, name) in QUANTILES {
                let values = found.iter().map(|round| quantile_ms(round, quantile)).collect();
                let figure = figure(&format!("{what} {name}"), "ms", values);
                sink.figure(&figure.with_limit(&limit), &settings)?;
            }
            let mut all = load::latencies();
            found.iter().try_for_each(|round| all.add(round))?;
            sink.histogram(SCENARIO, &format!("{shown} {what}"), &all)?;
        }
        let mut names: Vec<&String> = self.stages.iter().map(|(name, _)| name).collect();
        names.dedup();
        names.truncate(STAGES.len() * 3);
        for name in names {
            let of_name = self.stages.iter().filter(|stage| &stage.0 == name);
            let values = of_name.map(|stage| stage.1).collect();
            sink.figure(&figure(name, "ms", values), &settings)?;
        }
        let columns = ["seconds", "visible_lag_ms"];
        sink.curve(SCENARIO, shown, columns, &self.over_time)
    }
}

/// Rounds in which the replica stands still for a while in the middle.
async fn pauses(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    let (mut back, mut worst) = (Vec::new(), Vec::new());
    let mut curve = Vec::new();
    for round in 0..plan.rounds {
        sink.progress(format!("pause, round {}", round + 1));
        let paused = one_pause(plan, options).await?;
        worst.push(paused.lags.over_time.iter().map(|point| point.1).fold(0.0, f64::max));
        back.extend(paused.back_ms());
        curve = paused.lags.over_time;
    }
    let rate = PAUSED_AT_RATE;
    let name = format!("replica stands still {} ms at {rate} rows/s", options.pause_ms);
    let settings = describe(plan, options, rate);
    let figure =
        |what: &str, values| Figure::new(SCENARIO, &format!("{name}: {what}"), "ms", values);
    sink.figure(&figure("most lag", worst), &settings)?;
    // A run in which it never came back has no number: fewer runs than rounds show that.
    if !back.is_empty() {
        sink.figure(&figure("back below twice the median after", back), &settings)?;
    }
    sink.curve(SCENARIO, &name, ["seconds", "visible_lag_ms"], &curve)
}

/// A run with a pause; both moments in seconds since the loop began.
struct Paused {
    lags: Lags,
    stopped: f64,
    went_on: f64,
}

impl Paused {
    /// Milliseconds from the replica's going on until its lag is below twice the median before.
    fn back_ms(&self) -> Option<f64> {
        let points = &self.lags.over_time;
        let shown = |point: &(f64, f64)| point.0 + point.1 / 1e3;
        let before = points.iter().filter(|point| shown(point) < self.stopped);
        let mut before: Vec<f64> = before.map(|point| point.1).collect();
        before.sort_by(f64::total_cmp);
        let bound = 2.0 * before.get(before.len() / 2)?;
        let after: Vec<_> = points.iter().filter(|point| shown(point) >= self.went_on).collect();
        let calm = |some: &&[&(f64, f64)]| some.iter().all(|point| point.1 < bound);
        let first = after.windows(BACK_MARKERS).find(calm)?.first()?;
        Some((shown(first) - self.went_on) * 1e3)
    }
}

async fn one_pause(plan: &Common, options: &Plan) -> Result<Paused> {
    let scratch = plan.scratch()?;
    let cluster = std::rc::Rc::new(cluster(plan, scratch.path()).await?);
    let rest = Duration::from_millis(options.pause_ms);
    let span = Span { warm_up: plan.measured / 5, measured: plan.measured + rest };
    let before = span.warm_up + plan.measured / 2;
    let paused = spawn_local({
        let cluster = cluster.clone();
        async move {
            let mut timer = PreciseTimer::new()?;
            timer.sleep(before).await?;
            let stopped = Instant::now();
            cluster.replica(0)?.server().signal(Signal::STOP)?;
            timer.sleep(rest).await?;
            cluster.replica(0)?.server().signal(Signal::CONT)?;
            Ok::<_, anyhow::Error>((stopped, Instant::now()))
        }
    });
    let open = options.open_loop(PAUSED_AT_RATE)?;
    let lags = load::open(&*cluster, open, input(plan), span).await?;
    let (stopped, went_on) = paused.await.context("the pause panicked")??;
    let seconds = |moment: Instant| moment.saturating_duration_since(lags.began).as_secs_f64();
    let (stopped, went_on) = (seconds(stopped), seconds(went_on));
    let cluster = std::rc::Rc::into_inner(cluster).context("the cluster is still in use")?;
    cluster.stop().await?;
    Ok(Paused { lags, stopped, went_on })
}
