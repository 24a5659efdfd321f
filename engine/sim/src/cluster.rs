//! Machines, and the nodes that run on them.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::{Rc, Weak};

use rowship::edge::sim::disk::MemoryDisk;
use rowship::edge::sim::{Death, Machine, Process, SimEdge, World};
use rowship::edge::uring::RingReport;
use rowship::log::segment::LogFile;
use rowship::log::tools::promote;
use rowship::log::{NodeState, RecoverInput, recover};
use rowship::node::NodeError;
use rowship::node::settings::{OnMissing, Settings, TableKind};
use rowship::node::start::serve;
use rowship::node::state::Node;
use rowship_proto::Lsn;
use rowship_proto::ack::{AckPolicy, NodeName};
use tokio::task::LocalSet;

/// A node of the simulation.
pub type SimNode = Node<SimEdge>;

/// What all nodes of a cluster are told.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// When writes are committed.
    pub ack: String,
    /// What happens to writes while replicas are missing.
    pub on_missing: OnMissing,
    /// Apply lanes of each node.
    pub lanes: usize,
    /// Size at which a table is flushed.
    pub memtable_bytes: u64,
    /// How long replicas gather before they write.
    pub replica_write_delay_ms: u64,
    /// Windows up to this size are applied on the ring thread.
    pub small_window_bytes: usize,
    /// Size of segments.
    pub segment_bytes: u64,
}

impl Default for ClusterPlan {
    fn default() -> Self {
        ClusterPlan {
            ack: "async".to_owned(),
            on_missing: OnMissing::Wait,
            lanes: 3,
            memtable_bytes: 16 << 10,
            replica_write_delay_ms: 10,
            small_window_bytes: 1 << 10,
            segment_bytes: 64 << 10,
        }
    }
}

/// One machine with what runs on it.
pub struct Member {
    /// Its machine.
    pub machine: Rc<Machine>,
    process: RefCell<Option<Rc<Process>>>,
    node: Rc<RefCell<Weak<SimNode>>>,
    exit: Rc<RefCell<Option<Exit>>>,
    /// Whether its directory is a primary's.
    pub is_primary: Cell<bool>,
}

/// How a process ended by itself: nothing to say, or why it could not go on.
pub type Exit = Result<(), NodeError>;

/// All members, by their place in the list.
pub struct Cluster {
    /// The world they are in.
    pub world: Rc<World>,
    /// The members.
    pub members: Vec<Member>,
    /// What they are told.
    pub plan: RefCell<ClusterPlan>,
}

/// Name that always stands for the present primary.
pub const PRIMARY_NAME: &str = "primary";
/// Port for clients.
pub const CLIENT_PORT: &str = "7401";
/// Port for replicas.
pub const REPLICATION_PORT: &str = rowship::edge::sim::network::REPLICATION_PORT;

impl Cluster {
    /// Machines of these names, nothing running on them.
    #[must_use]
    pub fn new(world: &Rc<World>, names: &[&str], plan: ClusterPlan) -> Cluster {
        let member = |name: &&str| Member {
            machine: Machine::new(world, name),
            process: RefCell::default(),
            node: Rc::default(),
            exit: Rc::default(),
            is_primary: Cell::new(false),
        };
        let members = names.iter().map(member).collect();
        Cluster { world: world.clone(), members, plan: RefCell::new(plan) }
    }

    /// The member of this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.machine.name == name)
    }

    fn settings(&self, member: &Member) -> Settings {
        let plan = self.plan.borrow();
        let name = NodeName::new(&member.machine.name).expect("machines have names of nodes");
        let mut settings = Settings::defaults(PathBuf::from("data"), name).tiny();
        settings.cluster.ack = plan.ack.parse::<AckPolicy>().expect("plans spell policies right");
        settings.cluster.on_missing = plan.on_missing;
        settings.cluster.segment_bytes = plan.segment_bytes;
        settings.cluster.heartbeat_ms = 50;
        settings.cluster.peer_timeout_ms = 400;
        let node = &mut settings.node;
        node.listen = format!("{}:{CLIENT_PORT}", member.machine.name);
        node.replication_listen = format!("{}:{REPLICATION_PORT}", member.machine.name);
        let upstream = format!("{PRIMARY_NAME}:{REPLICATION_PORT}");
        node.replica_of = (!member.is_primary.get()).then_some(upstream);
        node.table = TableKind::Imaged;
        node.lanes = plan.lanes;
        node.memtable_bytes = plan.memtable_bytes;
        node.replica_write_delay_ms = plan.replica_write_delay_ms;
        node.small_window_bytes = plan.small_window_bytes;
        node.reconnect_ms = 20;
        node.checkpoint_ms = 200;
        node.stop_timeout_ms = 1000;
        settings
    }

    /// Starts a node on the member's machine, in the role of its directory.
    pub fn start(&self, member: &Member) {
        assert!(!member.is_running(), "{} runs already", member.machine.name);
        let process = member.machine.start();
        *member.process.borrow_mut() = Some(process.clone());
        *member.node.borrow_mut() = Weak::new();
        *member.exit.borrow_mut() = None;
        let (settings, edge, disk) = (self.settings(member), process.edge(), process.disk());
        let (slot, exit) = (member.node.clone(), member.exit.clone());
        let ring = RingReport { kernel: "simulated".to_owned(), features: Vec::new() };
        let served = async move {
            let look = |node: &Rc<SimNode>| *slot.borrow_mut() = Rc::downgrade(node);
            serve(edge, settings, disk, ring, look).await
        };
        tokio::task::spawn_local(async move {
            // All tasks of a node live in a set of their own, which goes with the process.
            let tasks = LocalSet::new();
            let ended = tokio::select! {
                biased;
                () = process.dead() => None,
                ended = tasks.run_until(served) => Some(ended),
            };
            if let Some(ended) = ended {
                if process.disk().has_lost_power() {
                    process.die(Death::PowerLost);
                } else {
                    process.die(Death::Ended);
                    *exit.borrow_mut() = Some(ended);
                }
            }
            drop(tasks);
        });
    }

    /// The directory of a stopped replica becomes a primary's.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn promote(&self, member: &Member) -> Result<Lsn, String> {
        assert!(!member.is_running(), "promotion is offline");
        let promoted = promote(&member.machine.disk.mount()).map_err(|error| error.to_string())?;
        member.is_primary.set(true);
        Ok(promoted.end())
    }

    /// Empties a stopped member's directory: it comes back as a new replica.
    pub fn wipe(&self, member: &Member) {
        assert!(!member.is_running());
        member.machine.disk.wipe();
        member.is_primary.set(false);
    }

    /// All members that run.
    pub fn running(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.is_running())
    }
}

impl Member {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Whether a process runs on it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.borrow().as_ref().is_some_and(|process| process.is_alive())
    }

    /// The process that runs, or ran last.
    #[must_use]
    pub fn process(&self) -> Option<Rc<Process>> {
        self.process.borrow().clone()
    }

    /// Number of the process that runs, or ran last.
    #[must_use]
    pub fn process_id(&self) -> u64 {
        self.process.borrow().as_ref().map_or(0, |process| process.id)
    }

    /// The node that runs, once it has been put together.
    #[must_use]
    pub fn node(&self) -> Option<Rc<SimNode>> {
        self.is_running().then(|| self.node.borrow().upgrade()).flatten()
    }

    /// How the last process ended by itself, if it did; asked once.
    #[must_use]
    pub fn take_exit(&self) -> Option<Exit> {
        self.exit.borrow_mut().take()
    }

    /// Ends the process, if one runs.
    pub fn die(&self, death: Death) {
        if let Some(process) = self.process() {
            process.die(death);
        }
    }

    /// Asks the process to stop, if one runs.
    pub fn ask_to_stop(&self) {
        if let Some(process) = self.process() {
            process.ask_to_stop();
        }
    }

    /// Bases of all its segment files, in order.
    #[must_use]
    pub fn segments(&self) -> Vec<Lsn> {
        let names = self.machine.disk.names();
        let base = |name: &String| match LogFile::parse(name) {
            Some(LogFile::Segment(base)) => Some(base),
            _ => None,
        };
        names.iter().filter_map(base).collect()
    }

    /// Where the log of a stopped member ends, as (counter of the last epoch, LSN): what an
    /// operator compares before a promotion. Recovers the log, as the next start would.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub fn log_end(&self) -> Result<(u64, Lsn), String> {
        assert!(!self.is_running());
        let disk: MemoryDisk = self.machine.disk.mount();
        let state = NodeState::load(&disk).map_err(|error| error.to_string())?;
        let state = state.ok_or_else(|| "an empty directory".to_owned())?;
        let recovered = recover(&disk, &RecoverInput::of(&state));
        let recovered = recovered.map_err(|error| error.to_string())?;
        Ok((recovered.epoch.counter, recovered.end))
    }
}
