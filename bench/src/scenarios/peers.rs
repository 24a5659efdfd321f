//! Scenario `peers`: the same work on rowship and on a peer, in turn (ours, theirs, ours, ...), and
//! the ratio of the two, round by round.

mod figures;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::ingest::Shape;
use super::{Common, quantile_ms};
use crate::load::{self, Input, OpenLoop, Span};
use crate::node::{Cluster, Layout, await_number};
use crate::peers::{Kind, Peer, mariadb, postgres, redis, settle};
use crate::rows::MARKER_KEY;
use crate::sink::Sink;
use crate::system::System;
use figures::Shown;

const SCENARIO: &str = "peers";
/// Longest wait for a replica to have all: the slowest peer needs minutes for a million rows.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Pause between two looks at the replica, of the work `lag`.
const LOOK_PAUSE: Duration = Duration::from_micros(100);
/// Connections, and marker rows per second, of the work `lag`.
const LAG_CLIENTS: usize = 8;
const LAG_MARKERS: f64 = 500.0;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Rows per second that a primary with a replica takes.
    Ingest,
    /// The same, many transactions sent together.
    Pipelined,
    /// Rows per second of a replica that has been away.
    Catchup,
    /// Megabytes per second of the peer's own tool that fetches a log.
    Ship,
    /// Milliseconds from a row's intended time until the replica shows it.
    Lag,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 5] =
        [Work::Ingest, Work::Pipelined, Work::Catchup, Work::Ship, Work::Lag];

    fn name(self) -> &'static str {
        match self {
            Work::Ingest => "ingest",
            Work::Pipelined => "pipelined",
            Work::Catchup => "catchup",
            Work::Ship => "ship",
            Work::Lag => "lag",
        }
    }
}

/// What to compare, with whom.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds, seconds, keys.
    pub common: Common,
    /// The peers.
    pub only: Vec<Kind>,
    /// The works.
    pub works: Vec<Work>,
    /// Rows of a backlog.
    pub rows: u64,
    /// Rows per second of the work `lag`.
    pub rate: f64,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
enum Task {
    Closed(Work, Shape),
    Catchup(usize),
    Lag,
}

impl Task {
    fn work(self) -> Work {
        match self {
            Task::Closed(work, _) => work,
            Task::Catchup(_) => Work::Catchup,
            Task::Lag => Work::Lag,
        }
    }

    fn shape(self, plan: &Plan) -> String {
        match self {
            Task::Closed(_, shape) => shape.to_string(),
            Task::Catchup(rows) => format!("{} rows in transactions of {rows}", plan.rows),
            Task::Lag => format!("{LAG_CLIENTS} clients at {} rows/s", plan.rate),
        }
    }

    fn settings(self, plan: &Plan) -> Value {
        let common = &plan.common;
        let mut all = json!({ "keys": common.keys, "pick": common.pick.to_string() });
        match self {
            Task::Closed(_, Shape { clients, depth, rows }) => {
                all["clients"] = clients.into();
                all["pipelined"] = depth.into();
                all["transaction_rows"] = rows.into();
                all["seconds"] = common.measured.as_secs_f64().into();
            }
            Task::Catchup(rows) => {
                all["rows"] = plan.rows.into();
                all["transaction_rows"] = rows.into();
            }
            Task::Lag => {
                all["clients"] = LAG_CLIENTS.into();
                all["rows_per_second"] = plan.rate.into();
                all["markers_per_second"] = LAG_MARKERS.into();
                all["look_pause_us"] = (LOOK_PAUSE.as_micros() as u64).into();
                all["seconds"] = common.measured.as_secs_f64().into();
            }
        }
        all
    }
}

/// The tasks of a work.
fn tasks(work: Work) -> Vec<Task> {
    let closed = |shapes: &[(usize, usize, usize)]| {
        let shape = |&(clients, depth, rows): &_| Shape { clients, depth, rows };
        shapes.iter().map(|one| Task::Closed(work, shape(one))).collect()
    };
    match work {
        Work::Ingest => closed(&[(1, 1, 1), (8, 1, 1), (8, 1, 100)]),
        Work::Pipelined => closed(&[(50, 16, 1), (50, 64, 1)]),
        Work::Catchup => vec![Task::Catchup(1), Task::Catchup(100)],
        // Of the peer alone: see `ship`.
        Work::Ship => Vec::new(),
        Work::Lag => vec![Task::Lag],
    }
}

/// A measured value.
struct Measured {
    metric: &'static str,
    unit: &'static str,
    value: f64,
}

fn value(metric: &'static str, unit: &'static str, value: f64) -> Measured {
    Measured { metric, unit, value }
}

/// What one round of one system gave.
struct Round {
    values: Vec<Measured>,
    latencies: Vec<(&'static str, Histogram<u64>)>,
}

async fn closed<S: System>(system: &S, shape: Shape, plan: &Plan) -> Result<Round> {
    let common = &plan.common;
    let input = Input { keys: common.keys, pick: common.pick, transaction_rows: shape.rows };
    let span = Span::of(common.measured);
    let ran = load::closed(system, shape.clients, shape.depth, input, span).await?;
    let values = vec![
        value("rows/s", "rows/s", ran.per_second() * shape.rows as f64),
        value("p50", "ms", quantile_ms(&ran.latency, 0.5)),
        value("p99", "ms", quantile_ms(&ran.latency, 0.99)),
    ];
    Ok(Round { values, latencies: vec![("latency", ran.latency)] })
}

async fn catch_up<S: System>(system: &mut S, rows: usize, plan: &Plan) -> Result<Round> {
    let common = &plan.common;
    let input = Input { keys: common.keys, pick: common.pick, transaction_rows: rows };
    system.detach().await?;
    load::backlog(system, plan.rows / rows as u64, input, 1).await?;
    let began = system.attach().await?;
    let mut reader = system.reader(0).await?;
    await_number(&mut reader, MARKER_KEY, 1, CATCH_UP_TIMEOUT).await?;
    system.await_replica_log().await?;
    let seconds = began.elapsed().as_secs_f64();
    let values = vec![value("rows/s", "rows/s", plan.rows as f64 / seconds)];
    Ok(Round { values, latencies: Vec::new() })
}

async fn lag<S: System>(system: &S, plan: &Plan) -> Result<Round> {
    let common = &plan.common;
    let input = Input { keys: common.keys, pick: common.pick, transaction_rows: 1 };
    let open = OpenLoop {
        rate: plan.rate,
        clients: LAG_CLIENTS,
        markers: LAG_MARKERS,
        look_pause: LOOK_PAUSE,
    };
    let lags = load::open(system, open, input, Span::of(common.measured)).await?;
    let (visible, commit) = (&lags.visible, &lags.commit);
    let values = vec![
        value("visible p50", "ms", quantile_ms(visible, 0.5)),
        value("visible p99", "ms", quantile_ms(visible, 0.99)),
        value("visible p99.9", "ms", quantile_ms(visible, 0.999)),
        value("visible max", "ms", quantile_ms(visible, 1.0)),
        value("commit p50", "ms", quantile_ms(commit, 0.5)),
        value("commit p99", "ms", quantile_ms(commit, 0.99)),
        value("commit p99.9", "ms", quantile_ms(commit, 0.999)),
        value("commit max", "ms", quantile_ms(commit, 1.0)),
        value("rate", "rows/s", lags.rate),
    ];
    Ok(Round { values, latencies: vec![("visible", lags.visible), ("commit", lags.commit)] })
}

/// One round of one system, from a replica that has all to a replica that has all: nothing of it
/// goes on while the other is measured.
async fn measure<S: System>(system: &mut S, task: Task, plan: &Plan) -> Result<Round> {
    // Also takes back what the last round's markers left.
    settle(system, 0, CATCH_UP_TIMEOUT).await?;
    // Nor does the disk still write what the other left, or what making directories left.
    let directory = std::fs::File::open(&plan.common.directory)?;
    rustix::fs::syncfs(&directory).context("syncing the file system of the nodes")?;
    let round = match task {
        Task::Closed(_, shape) => closed(system, shape, plan).await,
        Task::Catchup(rows) => catch_up(system, rows, plan).await,
        Task::Lag => lag(system, plan).await,
    };
    let round = round.with_context(|| format!("{}, {task:?}", system.name()))?;
    settle(system, 0, CATCH_UP_TIMEOUT).await?;
    Ok(round)
}

/// Megabytes per second of the peer's tool, for backlogs in transactions of 1 row and of 100.
async fn ship<P: Peer>(peer: &mut P, scratch: &Path, plan: &Plan, sink: &Sink) -> Result<()> {
    let common = &plan.common;
    for rows in [1, 100] {
        let input = Input { keys: common.keys, pick: common.pick, transaction_rows: rows };
        peer.begin_ship().await?;
        load::backlog(peer, plan.rows / rows as u64, input, 1).await?;
        settle(peer, 0, CATCH_UP_TIMEOUT).await?;
        let mut shown = Shown::default();
        for round in 0..common.rounds {
            sink.progress(format!("ship, {}, round {}", peer.name(), round + 1));
            let (bytes, taken) = peer.ship(scratch).await?;
            let seconds = taken.as_secs_f64();
            let values = vec![
                value("MB/s", "MB/s", bytes as f64 / 1e6 / seconds),
                value("rows/s", "rows/s", plan.rows as f64 / seconds),
            ];
            shown.add(Round { values, latencies: Vec::new() })?;
        }
        let shape = format!("{} rows in transactions of {rows}", plan.rows);
        let durability = format!("{}; the log, fetched by its own tool", peer.durability());
        let settings = json!({ "rows": plan.rows, "transaction_rows": rows });
        let name = format!("ship, {}, {shape}", peer.name());
        shown.put(sink, &name, &crate::sink::settings(&durability, settings))?;
        peer.end_ship().await?;
    }
    Ok(())
}

/// The works of one peer in one mode, beside one layout of ours.
async fn pair<P: Peer>(
    mode: P::Mode,
    layout: &Layout,
    works: &[Work],
    plan: &Plan,
    sink: &Sink,
) -> Result<()> {
    let works: Vec<Work> = works.iter().copied().filter(|work| plan.works.contains(work)).collect();
    if works.is_empty() {
        return Ok(());
    }
    sink.progress(format!("starting {} and a peer", layout.name));
    let scratch = plan.common.scratch()?;
    let (ours_in, theirs_in) = (scratch.path().join("ours"), scratch.path().join("theirs"));
    std::fs::create_dir(&ours_in)?;
    std::fs::create_dir(&theirs_in)?;
    let mut theirs = P::start(&theirs_in, mode).await?;
    let mut ours = Cluster::start(&ours_in, layout).await?;
    sink.say(&format!("\n{}: {}", ours.name(), ours.durability()));
    sink.say(&format!("{}: {}", theirs.name(), theirs.durability()));
    load::preload(&ours, plan.common.keys).await?;
    load::preload(&theirs, plan.common.keys).await?;
    for work in works {
        for task in tasks(work) {
            alternate(&mut ours, &mut theirs, task, plan, sink).await?;
        }
        if work == Work::Ship {
            ship(&mut theirs, &theirs_in, plan, sink).await?;
        }
    }
    theirs.stop().await?;
    ours.stop().await
}

/// One task on both, round by round, and its figures.
async fn alternate<P: Peer>(
    ours: &mut Cluster,
    theirs: &mut P,
    task: Task,
    plan: &Plan,
    sink: &Sink,
) -> Result<()> {
    let (work, shape) = (task.work().name(), task.shape(plan));
    let (mut our_rounds, mut their_rounds) = (Shown::default(), Shown::default());
    for round in 0..plan.common.rounds {
        let at = format!("{shape}, round {}", round + 1);
        sink.progress(format!("{work}, {}, {at}", ours.name()));
        our_rounds.add(measure(ours, task, plan).await?)?;
        sink.progress(format!("{work}, {}, {at}", theirs.name()));
        their_rounds.add(measure(theirs, task, plan).await?)?;
    }
    let more = task.settings(plan);
    let settings = |durability: &str| crate::sink::settings(durability, more.clone());
    let name = |system: &str| format!("{work}, {system}, {shape}");
    our_rounds.put(sink, &name(ours.name()), &settings(ours.durability()))?;
    their_rounds.put(sink, &name(theirs.name()), &settings(theirs.durability()))?;
    let both = format!("{} | {}", ours.durability(), theirs.durability());
    let ratio = name(&format!("{} / {}", ours.name(), theirs.name()));
    our_rounds.put_ratios(&their_rounds, sink, &ratio, &settings(&both))
}

async fn redis(plan: &Plan, sink: &Sink) -> Result<()> {
    use redis::{Mode, Redis};
    let all = [Work::Ingest, Work::Pipelined, Work::Catchup, Work::Lag];
    pair::<Redis>(Mode::Always, &Layout::asynchronous(), &all, plan, sink).await?;
    let memory = [Work::Ingest, Work::Pipelined, Work::Lag];
    pair::<Redis>(Mode::EverySecond, &Layout::memory(), &memory, plan, sink).await?;
    // Not like for like: the replica of theirs has it in memory only.
    pair::<Redis>(Mode::AlwaysAndWait, &Layout::semi_sync(), &[Work::Ingest], plan, sink).await
}

async fn postgres(plan: &Plan, sink: &Sink) -> Result<()> {
    use postgres::{Mode, Postgres};
    let all = [Work::Ingest, Work::Catchup, Work::Ship, Work::Lag];
    pair::<Postgres>(Mode::PhysicalAsync, &Layout::asynchronous(), &all, plan, sink).await?;
    let logical = [Work::Catchup, Work::Lag];
    pair::<Postgres>(Mode::LogicalAsync, &Layout::asynchronous(), &logical, plan, sink).await?;
    pair::<Postgres>(Mode::PhysicalSync, &Layout::semi_sync(), &[Work::Ingest], plan, sink).await
}

async fn mariadb(plan: &Plan, sink: &Sink) -> Result<()> {
    use mariadb::{Mariadb, Mode};
    let all = [Work::Ingest, Work::Catchup, Work::Ship, Work::Lag];
    pair::<Mariadb>(Mode::Async, &Layout::asynchronous(), &all, plan, sink).await?;
    pair::<Mariadb>(Mode::SemiSync, &Layout::semi_sync(), &[Work::Ingest], plan, sink).await
}

/// Runs the scenario.
///
/// # Errors
/// When a server fails or refuses a write.
pub async fn run(plan: &Plan, sink: &Sink) -> Result<()> {
    ensure!(plan.rows >= 100, "--rows must be at least 100: a transaction has as many");
    let began = Instant::now();
    for &kind in &plan.only {
        if let Some(missing) = kind.missing() {
            sink.say(&format!("{missing}; ci/peers.sh installs it"));
            continue;
        }
        match kind {
            Kind::Redis => redis(plan, sink).await?,
            Kind::Postgres => postgres(plan, sink).await?,
            Kind::Mariadb => mariadb(plan, sink).await?,
        }
    }
    sink.say(&format!("\ntook {:.0} s", began.elapsed().as_secs_f64()));
    Ok(())
}
