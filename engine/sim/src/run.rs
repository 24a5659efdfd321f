//! One seed from start to verdict.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use rowship::edge::sim::World;
use rowship::edge::sim::random::Random;
use rowship::edge::sim::trace::{self, Trace};
use rowship_proto::sim::{Bug, Mark, plant, take_marks};
use tokio::task::LocalSet;

use crate::checker::{self, Checked};
use crate::cluster::{Cluster, ClusterPlan};
use crate::faults::{Chaos, Injected, weather};
use crate::operator::Operator;
use crate::probe::{Probe, Violation};
use crate::workload::Workload;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// The seed.
    pub seed: u64,
    /// How long things go wrong, in virtual milliseconds.
    pub chaos_ms: u64,
    /// A fault planted in the code under test.
    pub bug: Option<Bug>,
}

impl RunOptions {
    /// A short run of this seed.
    #[must_use]
    pub fn short(seed: u64) -> RunOptions {
        RunOptions { seed, chaos_ms: SHORT_MS, bug: None }
    }
}

/// Length of the chaos of a short run.
pub const SHORT_MS: u64 = 6_000;
/// Longest time from the last fault until all nodes agree and clients have their replies.
const CONVERGE_MS: u64 = 30_000;
/// Names of the members.
const NAMES: &[&str] = &["alpha", "bravo", "charlie"];

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Virtual time that passed.
    pub virtual_ms: u64,
    /// Faults injected, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Committed transactions.
    pub commits: u64,
    /// Times that all nodes were looked at.
    pub looks: u64,
    /// What clients were told, and was checked.
    pub checked: Checked,
    /// Rare paths reached.
    pub marks: Vec<Mark>,
    /// Everything that happened, as a number.
    pub trace: Trace,
}

/// A promise was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was run.
    pub options: RunOptions,
    /// What was found.
    pub what: Violation,
    /// What was drawn from the seed.
    pub plan: String,
    /// When, in virtual milliseconds.
    pub at_ms: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { options, what, plan, at_ms } = self;
        let RunOptions { seed, chaos_ms, bug } = options;
        write!(
            f,
            "seed {seed} failed after {at_ms} virtual ms: {what}\n  {plan}\n  replay: cargo run -p \
             rowship-sim -- --seed {seed}"
        )?;
        if *chaos_ms != SHORT_MS {
            write!(f, " --chaos-ms {chaos_ms}")?;
        }
        bug.map_or(Ok(()), |bug| write!(f, " --bug {}", bug.name()))
    }
}

/// Runs one seed. Everything of it happens on this thread.
///
/// # Errors
/// A promise was broken.
pub fn run(options: RunOptions) -> Result<Report, Box<Failure>> {
    trace::reset();
    let _ = take_marks();
    plant(options.bug);
    let told = RefCell::new((String::new(), None));
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without input and output can be built");
        LocalSet::new().block_on(&runtime, simulate(options, &told))
    }));
    plant(None);
    let (plan, world) = told.into_inner();
    let failed = |what| {
        let at_ms = world.map_or(0, |at_ms| at_ms);
        Box::new(Failure { options, what, plan, at_ms })
    };
    match ran {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(what)) => Err(failed(what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Err(failed(format!("panic: {}", text.unwrap_or_default())))
        }
    }
}

/// Plan and time, for the report of a failure.
type Told = RefCell<(String, Option<u64>)>;

struct Simulation {
    cluster: Rc<Cluster>,
    probe: Rc<Probe>,
    load: Rc<Workload>,
    injected: Rc<Injected>,
    operator: Operator,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

async fn simulate(options: RunOptions, told: &Told) -> Result<Report, Violation> {
    let world = World::new(options.seed);
    let mut random = world.with_random(Random::fork);
    let chaos = Chaos::draw(&mut random, options.chaos_ms);
    told.borrow_mut().0 = format!("{chaos:?}");
    // Not drawn, like what is chosen by the seed below: seeds that failed once go on as they did.
    // Replicas that write very late, with small tables: none may be flushed ahead of its log.
    let late = options.seed.is_multiple_of(4);
    let plan = ClusterPlan {
        ack: String::new(),
        on_missing: chaos.on_missing,
        lanes: random.between((1, 4)) as usize,
        memtable_bytes: (8 << random.between((10, 14))) / if late { 4 } else { 1 },
        replica_write_delay_ms: if late { 400 } else { [0, 10, 100][(options.seed % 3) as usize] },
        small_window_bytes: [0, 1 << 10][(options.seed / 3 % 2) as usize],
        segment_bytes: 64 << 10,
    };
    let names = &NAMES[..=chaos.replicas];
    let cluster = Rc::new(Cluster::new(&world, names, plan));
    let probe = Rc::new(Probe::new(cluster.clone()));
    let load = Workload::new(cluster.clone());
    let injected = Rc::new(Injected::default());
    let operator = Operator::new(&cluster, &probe, &load.history, &injected, &chaos, random.fork());
    operator.start_all();
    let sky = weather(cluster.clone(), injected.clone(), chaos.clone(), random.fork());
    tokio::task::spawn_local(sky);
    let mut clients = Vec::new();
    for number in 0..chaos.clients {
        let client = load.clone().client(number, random.fork());
        clients.push(tokio::task::spawn_local(client));
    }
    let mut simulation = Simulation { cluster, probe, load, injected, operator, clients };
    let outcome = simulation.go(&chaos, random.fork()).await;
    told.borrow_mut().1 = Some(world.now_ms());
    let checked = outcome?;
    Ok(Report {
        virtual_ms: world.now_ms(),
        faults: world.faults(),
        commits: simulation.probe.ledger.borrow().transactions(),
        looks: simulation.probe.looks.get(),
        checked,
        marks: take_marks(),
        trace: trace::present(),
    })
}

impl Simulation {
    async fn go(&mut self, chaos: &Chaos, mut random: Random) -> Result<Checked, Violation> {
        let probing = self.probe_until(chaos.length_ms, &mut random);
        let working = self.operator.work();
        tokio::pin!(working);
        tokio::select! {
            biased;
            probed = probing => probed?,
            worked = &mut working => return Err(worked.err().unwrap_or_default()),
        }
        self.injected.over.set(true);
        // The operator finishes what it is at.
        let finished = tokio::time::timeout(Duration::from_millis(CONVERGE_MS), working).await;
        finished.map_err(|_| "the operator does not finish".to_owned())??;
        self.calm().await;
        self.converge().await?;
        self.load.over.set(true);
        for client in &mut self.clients {
            let ended = tokio::time::timeout(Duration::from_millis(CONVERGE_MS), client).await;
            let ended = ended.map_err(|_| "a client does not come to an end".to_owned())?;
            ended.map_err(|error| format!("a client panicked: {error}"))?;
        }
        self.converge().await?;
        self.verdict()
    }

    async fn probe_until(&self, end_ms: u64, random: &mut Random) -> Result<(), Violation> {
        while self.cluster.world.now_ms() < end_ms {
            tokio::time::sleep(Duration::from_millis(random.between((1, 8)))).await;
            self.probe.look()?;
        }
        Ok(())
    }

    /// No more faults: everything is mended.
    async fn calm(&self) {
        // Effects that last on are ended by the weather, which looks up every few milliseconds.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.cluster.world.network.heal_all();
        for member in &self.cluster.members {
            member.machine.disk.mend();
            member.machine.pace.set(rowship::edge::sim::Pace::USUAL);
        }
    }

    /// All nodes run and show the same, all of it committed, within a bounded time.
    async fn converge(&self) -> Result<(), Violation> {
        let until_ms = self.cluster.world.now_ms() + CONVERGE_MS;
        loop {
            self.operator.tend(false)?;
            self.probe.look()?;
            match self.apart() {
                None => return Ok(()),
                Some(why) if self.cluster.world.now_ms() > until_ms => {
                    return Err(format!(
                        "no agreement {CONVERGE_MS} ms after the last fault: {why}"
                    ));
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// How nodes still differ. While clients write, being near is enough.
    fn apart(&self) -> Option<String> {
        let primary = self.operator.primary();
        let Some(node) = primary.node() else { return Some("no primary runs".to_owned()) };
        let (end, over) = (node.appended.get(), self.load.over.get());
        let near = if over { 0 } else { 256 << 10 };
        let open = node.primary().map_or(end, |primary| primary.appender.borrow().end());
        if over && open != end {
            return Some("a frame is open".to_owned());
        }
        for member in &self.cluster.members {
            let name = member.name();
            let Some(node) = member.node() else { return Some(format!("{name} does not run")) };
            let shown = node.visible.get();
            if shown.plus(near) < end {
                let upstream = node.replica().map(|replica| replica.upstream.borrow().clone());
                return Some(format!("{name} shows {shown} of {end}: {upstream:?}"));
            }
        }
        None
    }

    fn verdict(&self) -> Result<Checked, Violation> {
        self.probe.look()?;
        for member in &self.cluster.members {
            self.probe.check_table(member)?;
        }
        let ledger = self.probe.ledger.borrow();
        checker::check(&ledger, &self.load.history.ops(), &self.operator.context.borrow())
    }
}
