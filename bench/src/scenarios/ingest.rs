//! Scenario `ingest`: how many rows a primary with one replica takes, by clients, rows per
//! transaction and what a reply promises.

use anyhow::Result;
use serde_json::json;

use super::limits::Limit;
use super::{Common, quantile_ms};
use crate::figure::Figure;
use crate::load::{self, Input, Span};
use crate::node::{Cluster, Layout};
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "ingest";

/// One load: connections, transactions that each sends together, rows per transaction.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Connections.
    pub clients: usize,
    /// Transactions sent together.
    pub depth: usize,
    /// Rows in a transaction.
    pub rows: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { clients, depth, rows } = self;
        match depth {
            1 => write!(f, "{clients} clients x {rows} rows"),
            _ => write!(f, "{clients} clients x {depth} pipelined x {rows} rows"),
        }
    }
}

/// The loads of this scenario.
pub const SHAPES: [Shape; 6] = [
    Shape { clients: 1, depth: 1, rows: 1 },
    Shape { clients: 8, depth: 1, rows: 1 },
    Shape { clients: 1, depth: 1, rows: 100 },
    Shape { clients: 8, depth: 1, rows: 100 },
    Shape { clients: 50, depth: 16, rows: 1 },
    Shape { clients: 50, depth: 64, rows: 1 },
];

/// What one system did with one load, a value for each round.
#[derive(Default)]
pub struct Rounds {
    rows_per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    all: Option<hdrhistogram::Histogram<u64>>,
    limits: Option<(Figure, Option<Figure>)>,
}

impl Rounds {
    /// Adds a round of one system.
    ///
    /// # Errors
    /// When a write is refused.
    pub async fn add<S: System>(&mut self, system: &S, shape: Shape, plan: &Common) -> Result<()> {
        let input = Input { keys: plan.keys, pick: plan.pick, transaction_rows: shape.rows };
        let span = Span::of(plan.measured);
        let ran = load::closed(system, shape.clients, shape.depth, input, span).await?;
        self.rows_per_second.push(ran.per_second() * shape.rows as f64);
        self.p50.push(quantile_ms(&ran.latency, 0.5));
        self.p99.push(quantile_ms(&ran.latency, 0.99));
        match &mut self.all {
            Some(all) => all.add(&ran.latency)?,
            None => self.all = Some(ran.latency),
        }
        Ok(())
    }

    /// States what binds rows per second, and the median latency.
    pub fn bind(&mut self, rows_per_second: Figure, p50: Option<Figure>) {
        self.limits = Some((rows_per_second, p50));
    }

    /// Rows per second.
    #[must_use]
    pub fn rows_per_second(&self, scenario: &'static str, name: &str) -> Figure {
        Figure::new(scenario, &format!("{name}: rows/s"), "rows/s", self.rows_per_second.clone())
    }

    /// Median latency of a transaction (of all that are sent together).
    #[must_use]
    pub fn p50_ms(&self, scenario: &'static str, name: &str) -> Figure {
        Figure::new(scenario, &format!("{name}: p50"), "ms", self.p50.clone())
    }

    /// Puts all figures out.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put<S: System>(
        &self,
        sink: &Sink,
        scenario: &'static str,
        system: &S,
        shape: Shape,
        plan: &Common,
    ) -> Result<()> {
        let name = format!("{}, {shape}", system.name());
        let settings = settings(
            system.durability(),
            json!({
                "clients": shape.clients, "pipelined": shape.depth, "transaction_rows": shape.rows,
                "keys": plan.keys, "pick": plan.pick.to_string(), "replicas": system.pids().1.len(),
                "seconds": plan.measured.as_secs_f64(),
            }),
        );
        let (mut rate, mut p50) =
            (self.rows_per_second(scenario, &name), self.p50_ms(scenario, &name));
        if let Some((rate_limit, p50_limit)) = &self.limits {
            rate = rate.with_limit(rate_limit);
            p50 = p50_limit.iter().fold(p50, Figure::with_limit);
        }
        sink.figure(&rate, &settings)?;
        sink.figure(&p50, &settings)?;
        let p99 = Figure::new(scenario, &format!("{name}: p99"), "ms", self.p99.clone());
        sink.figure(&p99, &settings)?;
        match &self.all {
            Some(all) => sink.histogram(scenario, &name, all),
            None => Ok(()),
        }
    }
}

/// What bounds the loads on one layout.
struct Bounds {
    small: Limit,
    large: Limit,
    upserts: Limit,
}

impl Bounds {
    fn new(plan: &Common, layout: &Layout) -> Bounds {
        // A round trip to the client, and one to the replica where the reply waits for it. Both
        // disks may write at the same time.
        let (trips, writes) = match (layout.client_ack, layout.ack.as_str()) {
            (Some(_), _) => (1.0, false),
            (None, "async") => (1.0, true),
            _ => (2.0, true),
        };
        let commit = |kib| Limit::commit_ms(&plan.directory, trips, if writes { kib } else { 0 });
        Bounds { small: commit(4), large: commit(64), upserts: Limit::upserts(plan.keys) }
    }

    fn measure(&mut self) -> Result<()> {
        self.small.measure()?;
        self.large.measure()?;
        self.upserts.measure()
    }

    fn bind(&self, shape: Shape, found: &mut Rounds) {
        let commit = if shape.rows == 1 { &self.small } else { &self.large };
        match shape.depth {
            1 => {
                let rate = commit.closed_loop(SCENARIO, shape.clients * shape.rows);
                found.bind(rate, Some(commit.figure(SCENARIO)));
            }
            _ => found.bind(self.upserts.figure(SCENARIO), None),
        }
    }
}

/// Runs the scenario, of it only what has `only` in its name.
///
/// # Errors
/// When a node fails or refuses a write, or nothing has that name.
pub async fn run(plan: &Common, only: &str, sink: &Sink) -> Result<()> {
    let layouts =
        [Layout::memory(), Layout::asynchronous(), Layout::semi_sync(), Layout::synchronous()];
    let mut measured = false;
    for layout in layouts {
        let wanted = |shape: &&Shape| format!("{}, {shape}", layout.name).contains(only);
        let shapes: Vec<Shape> = SHAPES.iter().filter(wanted).copied().collect();
        if shapes.is_empty() {
            continue;
        }
        measured = true;
        one_layout(plan, &shapes, sink, plan.layout(layout)).await?;
    }
    anyhow::ensure!(measured, "nothing of this scenario has '{only}' in its name");
    Ok(())
}

async fn one_layout(plan: &Common, shapes: &[Shape], sink: &Sink, layout: Layout) -> Result<()> {
    let scratch = plan.scratch()?;
    let cluster = Cluster::start(scratch.path(), &layout).await?;
    load::preload(&cluster, plan.keys).await?;
    let mut bounds = Bounds::new(plan, &layout);
    let mut rounds: Vec<Rounds> = shapes.iter().map(|_| Rounds::default()).collect();
    for round in 0..plan.rounds {
        bounds.measure()?;
        for (shape, found) in shapes.iter().zip(&mut rounds) {
            sink.progress(format!("{}, {shape}, round {}", layout.name, round + 1));
            found.add(&cluster, *shape, plan).await?;
            cluster.wait_until_streaming().await?;
        }
    }
    for (shape, found) in shapes.iter().zip(&mut rounds) {
        bounds.bind(*shape, found);
        found.put(sink, SCENARIO, &cluster, *shape, plan)?;
    }
    cluster.stop().await
}
