//! The simulated twin of [`super::uring`]: virtual time, a seeded network, seeded disks.
//!
//! Everything runs on one thread, on tokio's current-thread runtime with its clock paused: when
//! nothing can go on, time jumps to the next timer. A *machine* is what outlives a process: a
//! name, a disk, a wall clock. A *process* is one life of a node on it. It ends when somebody says
//! so, at any await of its tasks ([`Process::die`]): from then on all that it still calls waits for
//! ever, and whoever runs it drops its tasks. Power can also fail inside any changing call of its
//! disk ([`MemoryDisk::lose_power_at`]).
//!
//! What is random is drawn from the world's seed; what happens is folded into [`trace`], so that
//! two runs of a seed can be compared.

pub mod disk;
mod file;
pub mod network;
mod pipe;
pub mod random;
mod stream;
pub mod trace;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rowship_proto::Nanos;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::disk::MemoryDisk;
use self::network::Network;
use self::random::Random;
pub use self::stream::{SimListener, SimStream};
use self::trace::Kind;
use super::{DIRECT_PAGE_BYTES, Edge, RingFile, Worker};

/// Wall clock at the start of every simulation: 2026-01-01, in nanoseconds since 1970.
const WALL_START_NS: u64 = 1_767_225_600_000_000_000;

/// What all machines share. Lives inside a runtime whose clock is paused.
pub struct World {
    start: Instant,
    random: RefCell<Random>,
    next_process: Cell<u64>,
    faults: RefCell<BTreeMap<&'static str, u64>>,
    /// What connects the machines.
    pub network: Network,
}

impl World {
    /// The world of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Rc<World> {
        let mut random = Random::new(seed);
        let network = Network::new(random.fork());
        Rc::new(World {
            start: Instant::now(),
            random: RefCell::new(random),
            next_process: Cell::new(1),
            faults: RefCell::default(),
            network,
        })
    }

    /// Virtual milliseconds since the start.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Draws from the world's dice.
    pub fn with_random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.borrow_mut())
    }

    /// Counts a fault that was injected.
    pub fn count_fault(&self, kind: &'static str) {
        tracing::info!(at_ms = self.now_ms(), "fault: {kind}");
        *self.faults.borrow_mut().entry(kind).or_default() += 1;
    }

    /// Faults injected so far, by kind.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.faults.borrow().clone()
    }
}

/// How quick a machine is, as (least, most) milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A durable write of the log.
    pub write_ms: (u64, u64),
    /// A job of a worker, before it is done.
    pub job_ms: (u64, u64),
    /// A lane's turn, before it is done.
    pub lane_ms: (u64, u64),
}

impl Pace {
    /// A machine in good order.
    pub const USUAL: Pace = Pace { write_ms: (0, 3), job_ms: (0, 3), lane_ms: (0, 2) };
}

/// What outlives a process.
pub struct Machine {
    /// Its name in the network.
    pub name: String,
    /// Its data directory.
    pub disk: MemoryDisk,
    /// The world it is in.
    pub world: Rc<World>,
    /// How far its wall clock is off, in milliseconds.
    pub wall_offset_ms: Cell<i64>,
    /// How quick it is.
    pub pace: Cell<Pace>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By itself.
    Ended,
    /// By a signal that it cannot catch. The system goes on: what was written is in the page
    /// cache, and what was sent arrives.
    Killed,
    /// With its machine: what was not synced may be lost, and no connection is told.
    PowerLost,
}

/// One life of a node.
pub struct Process {
    /// Counted through the whole world.
    pub id: u64,
    /// Where it runs.
    pub machine: Rc<Machine>,
    disk: MemoryDisk,
    alive: Cell<bool>,
    death: Cell<Option<Death>>,
    died: Notify,
    asked_to_stop: Cell<bool>,
    stop: Notify,
}

impl Machine {
    /// A machine with an empty disk.
    #[must_use]
    pub fn new(world: &Rc<World>, name: &str) -> Rc<Machine> {
        Rc::new(Machine {
            name: name.to_owned(),
            disk: MemoryDisk::new(),
            world: world.clone(),
            wall_offset_ms: Cell::new(0),
            pace: Cell::new(Pace::USUAL),
        })
    }

    /// Begins a process. The one before must be dead.
    #[must_use]
    pub fn start(self: &Rc<Self>) -> Rc<Process> {
        let id = self.world.next_process.get();
        self.world.next_process.set(id + 1);
        self.world.network.host_is_up(&self.name);
        trace::note(Kind::Process, &[id, self.world.now_ms()]);
        Rc::new(Process {
            id,
            machine: self.clone(),
            disk: self.disk.mount(),
            alive: Cell::new(true),
            death: Cell::new(None),
            died: Notify::new(),
            asked_to_stop: Cell::new(false),
            stop: Notify::new(),
        })
    }
}

impl Process {
    /// Its edge.
    #[must_use]
    pub fn edge(self: &Rc<Self>) -> SimEdge {
        SimEdge { process: self.clone() }
    }

    /// Its data directory; refuses all calls once the process is dead and another has begun.
    #[must_use]
    pub fn disk(&self) -> MemoryDisk {
        self.disk.clone()
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive.get()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn death(&self) -> Option<Death> {
        self.death.get()
    }

    /// Asks it to stop, as SIGTERM does.
    pub fn ask_to_stop(&self) {
        self.asked_to_stop.set(true);
        self.stop.notify_waiters();
    }

    /// Ends it here and now. Its tasks are to be dropped by whoever runs them.
    pub fn die(&self, death: Death) {
        if !self.alive.replace(false) {
            return;
        }
        self.death.set(Some(death));
        let world = &self.machine.world;
        trace::note(Kind::Process, &[self.id, world.now_ms(), death as u64]);
        tracing::info!(at_ms = world.now_ms(), name = self.machine.name, ?death, "process ends");
        world.network.forget(self.id, death);
        if death == Death::PowerLost {
            let mut random = world.with_random(Random::fork);
            // Most disks are through with all or nothing; some stop half-way, or in any order.
            let kept = random.below(4);
            let half = random.below(24) as usize;
            let lost = self.machine.disk.lose_unsynced(|sector| match kept {
                0 => false,
                1 => sector < half,
                2 => random.chance(500),
                _ => true,
            });
            if lost > 0 {
                world.count_fault("unsynced sectors lost");
            }
            self.machine.disk.restore_power();
        }
        self.died.notify_waiters();
    }

    /// Returns when it is dead.
    pub async fn dead(&self) {
        let died = self.died.notified();
        if self.alive.get() {
            died.await;
        }
    }

    /// Waits for ever in a process that is dead.
    async fn lives(&self) {
        if !self.alive.get() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether power has failed inside a call of the disk; the process is dead then.
    fn check_power(&self) {
        if self.disk.has_lost_power() {
            self.machine.world.count_fault("power loss inside a disk call");
            self.die(Death::PowerLost);
        }
    }

    async fn pass(&self, range_ms: (u64, u64)) {
        match self.machine.world.with_random(|random| random.between(range_ms)) {
            0 => tokio::task::yield_now().await,
            pause_ms => tokio::time::sleep(Duration::from_millis(pause_ms)).await,
        }
    }
}

/// The simulated edge of one process.
#[derive(Clone)]
pub struct SimEdge {
    process: Rc<Process>,
}

impl Edge for SimEdge {
    type Stream = SimStream;
    type Listener = SimListener;
    type Disk = MemoryDisk;
    type File = SimFile;

    fn now(&self) -> Nanos {
        let elapsed = self.process.machine.world.start.elapsed();
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall_ns(&self) -> u64 {
        let offset_ns = self.process.machine.wall_offset_ms.get() * 1_000_000;
        (WALL_START_NS + self.now()).saturating_add_signed(offset_ns)
    }

    fn random(&self) -> u64 {
        self.process.machine.world.with_random(Random::word)
    }

    fn stay_awake(&self, _: Duration) {}

    fn may_sleep(&self) {}

    fn resident_bytes(&self) -> u64 {
        0
    }

    fn process_id(&self) -> u32 {
        u32::try_from(self.process.id).unwrap_or(u32::MAX)
    }

    async fn asked_to_stop(&self) {
        let asked = self.process.stop.notified();
        if !self.process.asked_to_stop.get() {
            asked.await;
        }
    }

    async fn connect(&self, address: &str) -> io::Result<SimStream> {
        self.process.lives().await;
        let network = &self.process.machine.world.network;
        let connection = network.connect(&self.process, address).await?;
        self.process.lives().await;
        Ok(SimStream::new(self.process.clone(), connection, 0))
    }

    fn listen(&self, address: &str) -> io::Result<SimListener> {
        let backlog = self.process.machine.world.network.listen(&self.process, address)?;
        Ok(SimListener { process: self.process.clone(), backlog, address: address.to_owned() })
    }

    fn open_durable(&self, disk: &MemoryDisk, name: &str) -> io::Result<SimFile> {
        let (process, disk, name) = (self.process.clone(), disk.clone(), name.to_owned());
        Ok(SimFile { process, disk, name: name.into() })
    }

    fn worker<J: Send + 'static>(
        &self,
        name: &str,
        queue_max: usize,
        mut turn: impl FnMut(J) + Send + 'static,
    ) -> io::Result<Worker<J>> {
        let (worker, mut queue) = Worker::channel(queue_max);
        let process = self.process.clone();
        let lane = name.starts_with("lane");
        tokio::task::spawn_local(async move {
            while let Some(job) = queue.recv().await {
                let pace = process.machine.pace.get();
                process.pass(if lane { pace.lane_ms } else { pace.job_ms }).await;
                process.lives().await;
                turn(job);
                process.check_power();
                process.lives().await;
            }
        });
        Ok(worker)
    }
}

/// A file whose writes take their time, and may be cut off.
#[derive(Clone)]
pub struct SimFile {
    process: Rc<Process>,
    disk: MemoryDisk,
    name: Rc<str>,
}

impl RingFile for SimFile {
    async fn write_durable_parts(&self, parts: Vec<Bytes>, offset: u64) -> io::Result<()> {
        self.process.lives().await;
        let mut bytes = parts.concat();
        // As production does.
        let end = (offset + bytes.len() as u64).next_multiple_of(DIRECT_PAGE_BYTES as u64);
        bytes.resize(usize::try_from(end - offset).map_err(io::Error::other)?, 0);
        let started = self.disk.start_write(&self.name, offset, &bytes);
        self.process.check_power();
        self.process.lives().await;
        let write = started?;
        self.process.pass(self.process.machine.pace.get().write_ms).await;
        self.process.lives().await;
        self.disk.finish_write(write)
    }
}
