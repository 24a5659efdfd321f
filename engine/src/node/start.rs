//! Start and stop: from a data directory to a running node, and back to a synced log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use rowship_proto::{LogId, Lsn};
use tokio::sync::Notify;

use super::dictionary::Dictionary;
use super::listen::open_for_business;
use super::open::{Found, OpenedTable, find, open_table};
use super::segments::Segments;
use super::settings::Settings;
use super::signal::Signal;
use super::state::{Counters, Node, ReplicaRole, Role, Stop};
use super::supervise::spawn;
use super::tip::Tip;
use super::writer::WriteQueue;
use super::{NodeError, feed, upkeep};
use crate::apply::lane::Lane;
use crate::apply::plan::Window;
use crate::apply::publish::Applied;
use crate::edge::disk::{DataDirectory, DirectoryError};
use crate::edge::uring::{self, RingReport};
use crate::edge::{Disk, Edge, Job, Worker};
use crate::log::node_state::Role as StoredRole;
use crate::log::{Checkpoint, NodeState, Recovered, SegmentMaps, write_bytes_max};

/// Jobs that may wait for a worker. Each waits in a task of its own, so this only bounds memory.
const JOBS_MAX: usize = 256;
/// Windows that may wait for a lane: one to work on and one in hand.
const LANE_WINDOWS_MAX: usize = 2;
/// Runs kept in memory behind the durable position.
const TIP_RUNS_MAX: usize = 8;
/// And how far back the tip goes, in units of `transfer_bytes`: with defaults, 4 MiB.
const TIP_TRANSFERS: usize = 2;

/// Runs a node until it is told to stop (SIGTERM, SIGINT) or cannot go on.
///
/// # Errors
/// Why it ended.
pub fn run(mut settings: Settings) -> Result<(), NodeError> {
    let ring = uring::probe().map_err(|error| no_ring(&error))?;
    tracing::info!(kernel = ring.kernel, features = ?ring.features, "io_uring works");
    let reserve = settings.node.disk_reserve_bytes;
    // The table's library and everything else that makes files: readable by this user only.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let directory = DataDirectory::open(&settings.node.data_dir, reserve);
    let directory = directory.map_err(|error| match &error {
        DirectoryError::Io { source, .. } => NodeError::directory_or_full(&error, source),
        _ => NodeError::directory(&error),
    })?;
    if let Some(warning) = &directory.warning {
        tracing::warn!("{warning}");
    }
    if settings.node.allow_unauthenticated {
        tracing::warn!("--allow-unauthenticated: anybody who reaches this node can read and write");
    }
    fit_descriptors(&mut settings, uring::raise_descriptor_limit());
    let keepalive = Duration::from_millis(settings.cluster.client_keepalive_ms.max(1000));
    let disk = directory.disk.clone();
    let served = uring::run(keepalive, |edge| serve(edge, settings, disk, ring, |_| ()));
    let result = served.map_err(|error| no_ring(&error))?;
    // The lock of the directory is held until everything else is over.
    drop(directory);
    result
}

/// File descriptors kept for everything that is not a connection: segments, tables, the ring.
const DESCRIPTORS_OWN: u64 = 512;

/// Lowers `clients_max` to what the system's limit on open files leaves: otherwise clients could
/// take the descriptors that the log and the table need, and stop the node.
fn fit_descriptors(settings: &mut Settings, descriptors: u64) {
    // Each replica may have a half-open link beside its live one.
    let others = DESCRIPTORS_OWN + 2 * settings.node.replicas_max as u64;
    let clients_max = descriptors.saturating_sub(others).max(1);
    if clients_max < settings.node.clients_max as u64 {
        tracing::warn!(
            descriptors,
            clients_max,
            "the limit on open files (`ulimit -n`) is too low for clients_max = {}: lowered",
            settings.node.clients_max
        );
        settings.node.clients_max = usize::try_from(clients_max).unwrap_or(usize::MAX);
    }
}

fn no_ring(error: &std::io::Error) -> NodeError {
    NodeError::ring(&format!(
        "io_uring is not available: {error}. rowship needs it. Usual causes: the sysctl \
         kernel.io_uring_disabled is 1 or 2 (set it to 0); a container's seccomp profile forbids \
         io_uring_setup, io_uring_enter and io_uring_register (allow them); a kernel older than \
         5.11; too little locked memory (raise `ulimit -l`)"
    ))
}

/// The queues of the apply lanes, in order.
type Lanes = Vec<Worker<Arc<Window>>>;

/// Everything between taking the directory and letting it go, on any edge. `look` is shown the
/// node before it does anything.
///
/// # Errors
/// Why it ended.
pub async fn serve<E: Edge>(
    edge: E,
    settings: Settings,
    disk: E::Disk,
    ring: RingReport,
    look: impl FnOnce(&Rc<Node<E>>),
) -> Result<(), NodeError> {
    let found = find(&edge, &disk, &settings)?;
    let published = Arc::new(Notify::new());
    let (node, lanes) = build(edge, settings, disk, ring, found, &published)?;
    look(&node);
    spawn_agents(&node, lanes, published);
    if let Role::Primary(_) = node.role {
        node.begin_reign().await?;
    }
    // Not before: the reign's first frames would wait until a whole segment is filled with zeroes.
    spawn(&node, "preparation", upkeep::prepare_segments(node.clone()));
    node.caught_up().await;
    if let Err(error) = open_for_business(&node).await {
        node.stop(Stop::Failed(error));
    }
    node.changed.until(|| node.is_stopping().then_some(())).await;
    close(&node).await
}

/// What `find` found and the settings become a node; nothing runs yet but idle workers.
fn build<E: Edge>(
    edge: E,
    settings: Settings,
    disk: E::Disk,
    ring: RingReport,
    found: Found,
    published: &Arc<Notify>,
) -> Result<(Rc<Node<E>>, Lanes), NodeError> {
    let Found { mut state, recovered, .. } = found;
    let log = recovered.as_ref();
    let mut table = open_table(&disk, &settings, &mut state, log)?;
    let events = found.events.into_iter().chain(std::mem::take(&mut table.events));
    let events: Vec<String> = events.collect();
    let wake = published.clone();
    let applied = Arc::new(Applied::new(table.start, Arc::new(move || wake.notify_one())));
    let seed = Arc::new(OnceLock::new());
    if state.log_id != LogId::NONE {
        seed.get_or_init(|| state.log_id.seed());
    }
    let lanes = start_lanes(&edge, settings.node.lanes, &table, &applied, &seed)?;
    let committed = log.map_or(table.start.lsn, |log| log.committed.max(table.start.lsn));
    let role = match state.role {
        StoredRole::Replica => {
            let replica = ReplicaRole::default();
            replica.chain.set(log.map_or(0, |log| log.chain));
            Role::Replica(Box::new(replica))
        }
        StoredRole::Primary => {
            let log = log.expect("a primary has a log");
            let role = super::reign::role(&edge, &settings, &mut state, log, committed, published)?;
            Role::Primary(Box::new(role))
        }
    };
    let segments = open_segments(&edge, &disk, &state, log)?;
    let parts = Parts { state, role, segments, table, applied, seed, committed };
    let node = Rc::new(assemble(edge, settings, disk, ring, log, parts)?);
    for event in events {
        node.event(event);
    }
    Ok((node, lanes))
}

/// A lane each; a replica that has no log yet learns the seed later: its lanes ask for it then.
fn start_lanes<E: Edge>(
    edge: &E,
    count: usize,
    table: &OpenedTable,
    applied: &Arc<Applied>,
    seed: &Arc<OnceLock<u64>>,
) -> Result<Lanes, NodeError> {
    let mut lanes = Vec::new();
    for index in 0..count {
        let (table, applied, seed) = (table.table.clone(), applied.clone(), seed.clone());
        let mut lane = None;
        let turn = move |window: Arc<Window>| {
            let lane = lane.get_or_insert_with(|| {
                let seed = *seed.get().expect("a window comes out of a log that is known");
                Lane::new(index, count, seed, table.clone(), applied.clone())
            });
            if applied.failure().is_none() {
                // Why a lane stops is kept in `applied`, which wakes the ring thread.
                let _ = lane.turn(&window);
            }
        };
        lanes.push(worker(edge, &format!("lane-{index}"), LANE_WINDOWS_MAX, turn)?);
    }
    Ok(lanes)
}

/// Maps all segments, and opens the one that is being written.
fn open_segments<E: Edge>(
    edge: &E,
    disk: &E::Disk,
    state: &NodeState,
    log: Option<&Recovered>,
) -> Result<Segments<E>, NodeError> {
    let body_max = usize::try_from(state.frame_body_bytes_max).unwrap_or(usize::MAX);
    let mut maps = SegmentMaps::new(state.log_id.seed(), body_max);
    for (base, _) in log.iter().flat_map(|log| &log.segments) {
        let name = crate::log::segment::segment_file_name(*base);
        let map = disk.map(&name);
        let map = map.map_err(|error| {
            NodeError::disk(&format!("cannot map {}: {error}", disk.path(&name)))
        })?;
        maps.add(*base, map);
    }
    let segments = Segments::new(maps);
    if let Some(active) = log.and_then(|log| log.active) {
        segments.open_file(edge, disk, &active).map_err(|error| NodeError::log(&error))?;
    }
    Ok(segments)
}

/// What `build` has put together.
struct Parts<E: Edge> {
    state: NodeState,
    role: Role<E>,
    segments: Segments<E>,
    table: OpenedTable,
    applied: Arc<Applied>,
    seed: Arc<OnceLock<u64>>,
    committed: Lsn,
}

fn assemble<E: Edge>(
    edge: E,
    settings: Settings,
    disk: E::Disk,
    ring: RingReport,
    log: Option<&Recovered>,
    parts: Parts<E>,
) -> Result<Node<E>, NodeError> {
    let Parts { state, role, segments, table, applied, seed, committed } = parts;
    let end = log.map_or(Lsn::ZERO, |log| log.end);
    let body_max = usize::try_from(state.frame_body_bytes_max).unwrap_or(usize::MAX);
    let queue_bytes = usize::try_from(write_bytes_max(body_max as u64)).unwrap_or(usize::MAX);
    let tip_bytes = TIP_TRANSFERS * settings.node.transfer_bytes;
    let tables = log.iter().flat_map(|log| &log.tables);
    let tables = tables.map(|(id, name)| (*id, Bytes::copy_from_slice(name)));
    let jobs = |name: &str| worker(&edge, name, JOBS_MAX, |job: Job| job());
    Ok(Node {
        log_id: Cell::new(state.log_id),
        lane_seed: seed,
        frame_body_bytes_max: Cell::new(body_max),
        role,
        segments,
        writes: WriteQueue::new(queue_bytes.max(settings.node.transfer_bytes)),
        tip: RefCell::new(Tip::new(end, TIP_RUNS_MAX, tip_bytes)),
        dictionary: RefCell::new(Dictionary::from_tables(tables)),
        table: table.table,
        applied,
        appended: Cell::new(end),
        durable: Cell::new(end),
        durable_end: Cell::new(log.map_or(Checkpoint::NONE, Recovered::checkpoint)),
        committed: Cell::new(committed),
        cuts: Cell::new(0),
        dispatched: Cell::new(table.start.lsn),
        visible: Cell::new(table.start.lsn),
        changed: Signal::default(),
        replies: Signal::default(),
        room: Signal::default(),
        compact: Notify::new(),
        state: RefCell::new(state),
        storing: tokio::sync::Mutex::new(()),
        reader: jobs("reader")?,
        preparation: jobs("preparation")?,
        records: jobs("records")?,
        maintenance: jobs("maintenance")?,
        stopping: RefCell::new(None),
        closing: Cell::new(false),
        events: RefCell::new(VecDeque::new()),
        counters: Counters::default(),
        clients: RefCell::new(BTreeMap::new()),
        next_id: Cell::new(1),
        client_address: RefCell::default(),
        replication_address: RefCell::default(),
        table_paused: RefCell::new(None),
        started: edge.now(),
        ring,
        edge,
        settings,
        disk,
    })
}

fn worker<E: Edge, J: Send + 'static>(
    edge: &E,
    name: &str,
    queue_max: usize,
    turn: impl FnMut(J) + Send + 'static,
) -> Result<Worker<J>, NodeError> {
    let worker = edge.worker(name, queue_max, turn);
    worker.map_err(|error| NodeError::internal(&format!("cannot start thread {name}: {error}")))
}

fn spawn_agents<E: Edge>(node: &Rc<Node<E>>, lanes: Lanes, published: Arc<Notify>) {
    spawn(node, "signals", wait_for_stop(node.clone()));
    spawn(node, "writer", super::writer::run(node.clone()));
    spawn(node, "feed", feed::run(node.clone(), lanes));
    spawn(node, "lanes' follower", upkeep::follow_lanes(node.clone(), published));
    spawn(node, "checkpoint", upkeep::checkpoint(node.clone()));
    spawn(node, "flush", upkeep::maintain(node.clone()));
    spawn(node, "compaction", upkeep::compact(node.clone()));
    spawn(node, "read buffers", upkeep::tidy_reads(node.clone()));
    spawn(node, "gone clients", upkeep::gone_clients(node.clone()));
    if node.primary().is_some() {
        spawn(node, "silence", upkeep::silence(node.clone()));
    }
}

/// From the first moment on: also a node that is still applying its log can be stopped.
async fn wait_for_stop<E: Edge>(node: Rc<Node<E>>) {
    let stopping = node.changed.until(|| node.is_stopping().then_some(()));
    tokio::select! {
        biased;
        () = stopping => {}
        () = node.edge.asked_to_stop() => node.stop(Stop::Clean),
    }
}

/// Replies in flight finish or are told, the log is synced, and sockets are closed.
async fn close<E: Edge>(node: &Rc<Node<E>>) -> Result<(), NodeError> {
    let patience = Duration::from_millis(node.settings.node.stop_timeout_ms);
    let failed = matches!(&*node.stopping.borrow(), Some(Stop::Failed(_)));
    if !failed {
        tracing::info!("stopping");
        let replied = node.replies.until(|| {
            let clients = node.clients.borrow();
            clients.values().all(|client| client.outbox.is_empty()).then_some(())
        });
        if tokio::time::timeout(patience, replied).await.is_err() {
            tracing::warn!("some replies were still waiting: their clients are told so");
        }
    }
    if !failed {
        // While the feed still runs: what is committed is applied, so that it can be flushed.
        let applied = node.changed.until(|| {
            let goal = node.committed.get().min(node.durable.get());
            (node.visible.get() >= goal || node.table_paused.borrow().is_some()).then_some(())
        });
        if tokio::time::timeout(patience, applied).await.is_err() {
            tracing::warn!("apply is behind: the next start goes on with it");
        }
    }
    node.closing.set(true);
    node.changed.notify();
    node.replies.notify();
    node.room.notify();
    if !failed {
        let written = node.changed.until(|| node.is_quiet().then_some(()));
        if tokio::time::timeout(patience, written).await.is_err() {
            return Err(NodeError::disk(&"the log's last write does not finish; it may be lost"));
        }
        // A moment for links and clients to take what is on its way.
        let sent = node.replies.until(|| {
            let clients = node.clients.borrow();
            clients.values().all(|client| client.outbox.is_empty()).then_some(())
        });
        let told = tokio::time::timeout(CLOSE_PAUSE, sent).await;
        if told.is_err() {
            tracing::warn!("some clients did not take their last reply");
        }
        node.store_checkpoint().await?;
        node.store_known().await?;
        match tokio::time::timeout(patience, node.flush_all()).await {
            Ok(flushed) => flushed?,
            Err(_) => tracing::warn!("the table's flush takes long: the next start replays more"),
        }
    }
    for client in node.clients.borrow().values() {
        client.shutdown();
    }
    let links: Vec<u64> = node
        .primary()
        .map(|primary| primary.links.borrow().keys().copied().collect())
        .unwrap_or_default();
    for link in links {
        node.close_link(link);
    }
    // Lets tasks see the end of their sockets before the ring goes.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let stop = node.stopping.borrow().clone();
    match stop {
        Some(Stop::Failed(error)) => Err(error),
        _ => {
            node.store_end().await?;
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// How long a stopping node waits for clients to take the last replies.
const CLOSE_PAUSE: Duration = Duration::from_millis(500);

impl<E: Edge> Node<E> {
    /// Nothing is being written, and nothing waits to be.
    pub(super) fn is_quiet(&self) -> bool {
        let open = self.primary().is_some_and(|p| p.appender.borrow().end() > self.durable.get());
        self.writes.is_idle() && !open
    }

    /// Waits until the table shows everything that was known committed at start, so that readers
    /// never see an older state than before the restart.
    async fn caught_up(&self) {
        let goal = self.committed.get().min(self.durable.get());
        let started = self.edge.now();
        if goal > self.visible.get() {
            tracing::info!(from = %self.visible.get(), to = %goal, "applying the log to the table");
        }
        let signals =
            self.changed.until(|| (self.visible.get() >= goal || self.is_stopping()).then_some(()));
        signals.await;
        let took_ms = (self.edge.now() - started) / 1_000_000;
        if took_ms > 0 {
            tracing::info!(took_ms, "table is at {}", self.visible.get());
        }
    }
}

/// Where the on-disk table is, in the data directory.
#[must_use]
pub fn table_path(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("table")
}

/// A log id from random words; never [`LogId::NONE`].
pub fn new_log_id<E: Edge>(edge: &E) -> LogId {
    LogId([edge.random() | 1, edge.random()])
}
