//! What the agents of one node share on the ring thread.
//!
//! One [`Node`] per process, in an `Rc`. Positions are `Cell`s, each moved by one agent:
//! `appended` by the appender (primary) or the receiver (replica), `durable` by the writer,
//! `committed` by [`Node::refresh`] (primary) or the receiver (replica). No borrow of a `RefCell`
//! is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rowship_proto::ack::ClientPolicy;
use rowship_proto::hlc::Clock;
use rowship_proto::primary::{LinkId, Primary};
use rowship_proto::sim::{Bug, planted};
use rowship_proto::{Epoch, LogId, Lsn, Nanos};

use super::NodeError;
use super::appender::Appender;
use super::client::Client;
use super::dictionary::Dictionary;
use super::existence::Existence;
use super::greeting::Greeting;
use super::latency::{Stages, Stamps};
use super::pending::Pending;
use super::returning::{NextFrame, Returning};
use super::segments::Segments;
use super::settings::Settings;
use super::signal::Signal;
use super::tip::Tip;
use super::writer::WriteQueue;
use crate::apply::publish::Applied;
use crate::apply::table::Table;
use crate::edge::{Edge, Job, Stream, Worker, offload};
use crate::log::{Checkpoint, NodeState};

/// A node.
pub struct Node<E: Edge> {
    /// The world.
    pub edge: E,
    /// What the operator asked for.
    pub settings: Settings,
    /// The data directory.
    pub disk: E::Disk,
    /// The log's name; [`LogId::NONE`] on a replica that has not met its primary yet.
    pub log_id: Cell<LogId>,
    /// Seed of the log, for the lanes; set once it is known.
    pub lane_seed: Arc<OnceLock<u64>>,
    /// Largest frame body of this log.
    pub frame_body_bytes_max: Cell<usize>,
    /// What the role needs.
    pub role: Role<E>,
    /// Segments open for reading and writing.
    pub segments: Segments<E>,
    /// What waits to be written to them.
    pub writes: WriteQueue,
    /// Recent frames, still in memory.
    pub tip: RefCell<Tip>,
    /// Names of tables.
    pub dictionary: RefCell<Dictionary>,
    /// The rows.
    pub table: Arc<dyn Table>,
    /// How far they are applied.
    pub applied: Arc<Applied>,
    /// End of the log.
    pub appended: Cell<Lsn>,
    /// Survives power loss here.
    pub durable: Cell<Lsn>,
    /// The same place with its chain value, for the next checkpoint.
    pub durable_end: Cell<Checkpoint>,
    /// Committed, as far as this node knows.
    pub committed: Cell<Lsn>,
    /// Tails cut since the start.
    pub cuts: Cell<u64>,
    /// Handed to the lanes.
    pub dispatched: Cell<Lsn>,
    /// `visible`, as last seen on this thread.
    pub visible: Cell<Lsn>,
    /// Something moved: positions, links, role state, stop.
    pub changed: Signal,
    /// Replies may leave.
    pub replies: Signal,
    /// There may be room for a write again.
    pub room: Signal,
    /// The table has new files: compaction may have something to do.
    pub compact: tokio::sync::Notify,
    /// `node.state`, as it is durable.
    pub state: RefCell<NodeState>,
    /// Held while `node.state` is changed and written. A replica takes an epoch's first frames in
    /// before it has written that the epoch began: until then the history above does not know it.
    pub storing: tokio::sync::Mutex<()>,
    /// Reads and scans that may wait for the disk.
    pub reader: Worker<Job>,
    /// Segments: making them ready takes as long as writing them.
    pub preparation: Worker<Job>,
    /// Small files that must be durable before something goes on: `node.state`, known replicas.
    pub records: Worker<Job>,
    /// Flush and compaction of the table, step by step.
    pub maintenance: Worker<Job>,
    /// The node stops, and why.
    pub stopping: RefCell<Option<Stop>>,
    /// Replies are out (or told): links, writer and feed may end.
    pub closing: Cell<bool>,
    /// Events for operators, newest last.
    pub events: RefCell<VecDeque<String>>,
    /// Counters for operators.
    pub counters: Counters,
    /// Client connections, for a clean stop.
    pub clients: RefCell<BTreeMap<u64, Rc<Client<E>>>>,
    /// Number of the next connection or link.
    pub next_id: Cell<u64>,
    /// Where clients really connect.
    pub client_address: RefCell<String>,
    /// Where replicas really connect.
    pub replication_address: RefCell<String>,
    /// Why the table cannot flush: the disk is full. Writes are refused meanwhile.
    pub table_paused: RefCell<Option<String>>,
    /// Started at.
    pub started: Nanos,
    /// What the ring said at start.
    pub ring: crate::edge::uring::RingReport,
}

/// The role, fixed for the life of a process.
pub enum Role<E: Edge> {
    /// Takes writes.
    Primary(Box<PrimaryRole<E>>),
    /// Follows a primary.
    Replica(Box<ReplicaRole>),
}

/// State of a primary.
pub struct PrimaryRole<E: Edge> {
    /// Protocol.
    pub machine: RefCell<Primary>,
    /// The open frame.
    pub appender: RefCell<Appender>,
    /// Written and not yet in the table.
    pub pending: RefCell<Pending>,
    /// Which rows exist.
    pub existence: RefCell<Existence>,
    /// Clock of transactions.
    pub clock: RefCell<Clock>,
    /// Seal times.
    pub stamps: RefCell<Stamps>,
    /// Frame buffers that senders hold.
    pub lent: Rc<super::lent::Lent>,
    /// Links by number.
    pub links: RefCell<BTreeMap<LinkId, Rc<Link<E>>>>,
    /// Connections that have not said hello.
    pub greeting: Greeting<E::Stream>,
    /// Stage latencies by replica name; they survive reconnects.
    pub stages: RefCell<BTreeMap<String, Stages>>,
    /// Up to where replies may leave, by policy in use. The first is the node's own.
    pub limits: RefCell<Vec<ReplyLimit>>,
    /// Who is about to write again.
    pub returning: Returning,
    /// Commands that wait for `durable` of replicas.
    pub durable_waits: Cell<usize>,
    /// The epoch.
    pub epoch: Epoch,
    /// Replicas known in all reigns.
    pub known: super::retention::Known,
    /// Repeats of the last segment's opening that a crash has left out.
    pub opening_left: Cell<u64>,
}

/// One policy in use and what it allows.
pub struct ReplyLimit {
    /// The policy.
    pub policy: ClientPolicy,
    /// Connections that use it.
    pub users: usize,
    /// Replies to writes up to here may leave.
    pub lsn: Lsn,
    /// Replies to writes up to here that may not leave are told that the fate of the write is
    /// open: replicas that the policy needs went missing under `on_missing = refuse`.
    pub open_to: Lsn,
}

/// The sending side of one replica.
pub struct Link<E: Edge> {
    /// Its number.
    pub id: LinkId,
    /// The socket.
    pub stream: E::Stream,
    /// Past `Ready`: the sender may start here.
    pub start: Cell<Option<Lsn>>,
    /// Closed.
    pub closed: Cell<bool>,
}

/// State of a replica.
#[derive(Default)]
pub struct ReplicaRole {
    /// Chain value at the end of the log.
    pub chain: Cell<u64>,
    /// What is known of the primary, for status and `-READONLY`.
    pub upstream: RefCell<Upstream>,
    /// The primary has said that nobody waits for `durable`: the writer may gather.
    pub gathers: Cell<bool>,
    /// How soon the next frame is expected.
    pub next_frame: NextFrame,
}

/// See [`ReplicaRole::upstream`].
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// Where clients reach the primary.
    pub client_address: String,
    /// `connecting`, `joining`, `streaming`, `refused`.
    pub state: &'static str,
    /// Why the last link ended.
    pub last_error: String,
    /// End of the primary's log, as last heard.
    pub appended: Lsn,
    /// Whether it has said so itself on this link: what it has committed may be much less.
    pub told: bool,
    /// Last sign of life.
    pub heard: Nanos,
    /// Links made.
    pub connects: u64,
}

/// Why the node stops.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The operator asked.
    Clean,
    /// It cannot go on.
    Failed(NodeError),
}

/// Counters for operators.
#[derive(Default)]
pub struct Counters {
    /// Client connections now.
    pub clients: Cell<usize>,
    /// Client connections so far.
    pub clients_total: Cell<u64>,
    /// Connections turned away for `clients_max`.
    pub clients_refused: Cell<u64>,
    /// Commands run.
    pub commands: Cell<u64>,
    /// Transactions appended.
    pub transactions: Cell<u64>,
    /// Rows appended.
    pub rows: Cell<u64>,
    /// Frames sealed or received.
    pub frames: Cell<u64>,
    /// Writes refused before they were appended.
    pub writes_refused: Cell<u64>,
    /// Writes whose fate was left open.
    pub writes_indeterminate: Cell<u64>,
    /// Peers that broke the protocol or were refused.
    pub peers_refused: Cell<u64>,
    /// Clients that broke the protocol.
    pub protocol_errors: Cell<u64>,
    /// Rows read on the reader thread.
    pub cold_reads: Cell<u64>,
    /// Segments recycled or removed.
    pub segments_retired: Cell<u64>,
    /// Durable writes of the log.
    pub log_writes: Cell<u64>,
    /// Bytes of them.
    pub log_bytes: Cell<u64>,
}

/// Adds to a counter.
pub fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().saturating_add(by));
}

/// Longer than an open frame stays open while nothing is being written.
const SEAL_PAUSE: Duration = Duration::from_millis(1);
/// Events kept for status.
const EVENTS_MAX: usize = 64;

impl<E: Edge> Node<E> {
    /// The primary's state, on a primary.
    #[must_use]
    pub fn primary(&self) -> Option<&PrimaryRole<E>> {
        match &self.role {
            Role::Primary(primary) => Some(primary),
            Role::Replica(_) => None,
        }
    }

    /// The replica's state, on a replica.
    #[must_use]
    pub fn replica(&self) -> Option<&ReplicaRole> {
        match &self.role {
            Role::Primary(_) => None,
            Role::Replica(replica) => Some(replica),
        }
    }

    /// A number for a connection or link.
    pub fn new_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Whether the node is on its way out.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.borrow().is_some()
    }

    /// Whether the last phase of stopping has begun.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Begins to stop; the first reason counts.
    pub fn stop(&self, stop: Stop) {
        if let Stop::Failed(error) = &stop {
            tracing::error!(exit = error.exit, "{}", error.message);
            self.closing.set(true);
        }
        self.stopping.borrow_mut().get_or_insert(stop);
        self.changed.notify();
        self.replies.notify();
        self.room.notify();
    }

    /// Notes an event for the log and for status.
    pub fn event(&self, text: String) {
        tracing::warn!("{text}");
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(text);
    }

    /// Epoch of the frame below `lsn`, once all epochs that have begun here are known.
    pub(super) async fn epoch_below(&self, lsn: Lsn) -> Epoch {
        if let Some(primary) = self.primary() {
            return primary.machine.borrow().history().epoch_below(lsn);
        }
        let _stored = self.storing.lock().await;
        self.state.borrow().history.epoch_below(lsn)
    }

    /// Changes `node.state` and makes the change durable.
    ///
    /// # Errors
    /// The failure, which is final for the node.
    pub async fn update_state<T>(
        &self,
        change: impl FnOnce(&mut NodeState) -> T,
    ) -> Result<T, NodeError> {
        let _storing = self.storing.lock().await;
        let mut next = self.state.borrow().clone();
        let result = change(&mut next);
        if planted(Bug::StateNotSynced) {
            *self.state.borrow_mut() = next;
            return Ok(result);
        }
        let disk = self.disk.clone();
        let stored = offload(&self.records, move || next.store(&disk).map(|()| next)).await;
        match stored {
            Ok(Ok(stored)) => {
                *self.state.borrow_mut() = stored;
                Ok(result)
            }
            Ok(Err(error)) => Err(NodeError::disk(&error)),
            Err(error) => Err(NodeError::internal(&error)),
        }
    }

    /// On a primary, after any input of the protocol: publishes `committed` and the limits of
    /// replies, and wakes whom that concerns.
    pub fn refresh(&self) {
        let Some(primary) = self.primary() else { return };
        let machine = primary.machine.borrow();
        let mut moved = false;
        for limit in primary.limits.borrow_mut().iter_mut() {
            let lsn = machine.replies_to(&limit.policy);
            moved |= lsn != limit.lsn;
            limit.lsn = lsn;
        }
        if machine.committed() != self.committed.get() {
            self.committed.set(machine.committed());
            moved = true;
        }
        drop(machine);
        if moved {
            self.replies.notify();
        }
        self.changed.notify();
    }

    /// Whether somebody waits for `durable` of replicas, or would with the next write.
    pub(super) fn wants_durable(&self, primary: &PrimaryRole<E>) -> bool {
        let by_policy = |limit: &ReplyLimit| match &limit.policy {
            ClientPolicy::Node => self.settings.cluster.ack.wants_durable(),
            ClientPolicy::Memory => false,
            ClientPolicy::Policy(policy) => limit.users > 0 && policy.wants_durable(),
        };
        primary.durable_waits.get() > 0 || primary.limits.borrow().iter().any(by_policy)
    }

    /// Whether replies wait for what replicas show, or would with the next write.
    pub(super) fn wants_visible(&self, primary: &PrimaryRole<E>) -> bool {
        let by_policy = |limit: &ReplyLimit| match &limit.policy {
            ClientPolicy::Node => self.settings.cluster.ack.wants_visible(),
            ClientPolicy::Memory => false,
            ClientPolicy::Policy(policy) => limit.users > 0 && policy.wants_visible(),
        };
        primary.limits.borrow().iter().any(by_policy)
    }

    /// How long it is better to wait before telling a replica what is committed: while a crowd of
    /// clients is about to write again, the next frame says it at once, and nobody has to be woken
    /// for it. Not where a reply waits for what replicas show.
    pub(super) fn notice_wait(&self, primary: &PrimaryRole<E>, now: Nanos) -> Option<Duration> {
        if self.wants_visible(primary) {
            return None;
        }
        if self.writes.is_idle() && primary.appender.borrow().has_open() {
            return Some(SEAL_PAUSE);
        }
        primary.returning.crowd_wait_ns(now).map(Duration::from_nanos)
    }

    /// Closes a link's socket; its tasks end by themselves.
    pub fn close_link(&self, id: LinkId) {
        let Some(primary) = self.primary() else { return };
        let link = primary.links.borrow_mut().remove(&id);
        if let Some(link) = link {
            link.closed.set(true);
            link.stream.shutdown();
            primary.machine.borrow_mut().handle_link_down(id);
            self.refresh();
        }
    }
}
