//! The beginning of a primary's reign: a new epoch, durable before its first byte leaves; the
//! inherited tail back in the pending images; the epoch's start record.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rowship_proto::ack::ClientPolicy;
use rowship_proto::control::EpochStarted;
use rowship_proto::hlc::Clock;
use rowship_proto::primary::{Primary, Reign};
use rowship_proto::row::{Operation, transactions};
use rowship_proto::sim::{Mark, mark};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};
use tokio::sync::Notify;
use zerocopy::IntoBytes;

use super::NodeError;
use super::appender::{Appender, Moment};
use super::existence::Existence;
use super::greeting::Greeting;
use super::latency::Stamps;
use super::lent::Lent;
use super::pending::{Pending, PendingImage, RowKey};
use super::returning::Returning;
use super::settings::Settings;
use super::state::{Node, PrimaryRole, ReplyLimit};
use crate::edge::Edge;
use crate::log::pool::FramePool;
use crate::log::prepare::Fill;
use crate::log::{Layout, LogError, NodeState, Recovered};

/// The state of a primary that continues `log`. The new epoch goes into `state`; the caller makes
/// it durable before the first byte is written. `returned` is woken when a frame buffer comes back.
pub fn role<E: Edge>(
    edge: &E,
    settings: &Settings,
    state: &mut NodeState,
    log: &Recovered,
    committed: Lsn,
    returned: &Arc<Notify>,
) -> Result<PrimaryRole<E>, NodeError> {
    let counter = state.epoch_highest.counter + 1;
    let epoch = Epoch { counter, node_id: state.node_id, nonce: edge.random() };
    let mut history = log.history.clone();
    if !history.push(epoch, log.end) {
        return Err(NodeError::internal(&"the log knows an epoch newer than node.state does"));
    }
    // When the log ends at a segment's end, that has announced the size of the next one.
    let announced = log.next_segment_bytes.unwrap_or(state.segment_bytes);
    let header = log.active.unwrap_or_else(|| log.last.next(announced));
    state.epoch_highest = epoch;
    state.history = history.clone();
    state.promoted = false;
    state.segment_bytes = settings.cluster.segment_bytes;
    let segment_min = 4 * (header.frame_body_bytes_max);
    let segment_bytes = settings.cluster.segment_bytes.max(segment_min);
    let body_max = usize::try_from(header.frame_body_bytes_max).expect("at most 16 MiB");
    let wake = returned.clone();
    let buffer_bytes = rowship_proto::frame::frame_bytes(body_max);
    let pool = FramePool::new(settings.node.frame_buffers, buffer_bytes, move || wake.notify_one());
    let pool = pool
        .map_err(|error| NodeError::internal(&format!("cannot allocate frame buffers: {error}")))?;
    let place = (log.end, log.chain);
    let appender = Appender::new(pool, Layout { header }, place, epoch, segment_bytes);
    let reign = Reign {
        log_id: state.log_id,
        epoch,
        // Not known before it is written: until then nothing can commit.
        epoch_start_end: Lsn(u64::MAX),
        replicas_max: settings.node.replicas_max,
        peer_timeout: settings.cluster.peer_timeout_ms * 1_000_000,
    };
    let policy = settings.cluster.ack.clone();
    let machine = Primary::new(reign, history, policy, log.end, committed);
    let (lsn, open_to) = (Lsn::ZERO, Lsn::ZERO);
    let node = ReplyLimit { policy: ClientPolicy::Node, users: 1, lsn, open_to };
    Ok(PrimaryRole {
        machine: RefCell::new(machine),
        appender: RefCell::new(appender),
        pending: RefCell::new(Pending::default()),
        existence: RefCell::new(Existence::new(
            settings.node.cache_bytes / EXISTENCE_PART,
            state.log_id.seed(),
        )),
        clock: RefCell::new(Clock::restore(log.clock)),
        stamps: RefCell::new(Stamps::default()),
        lent: Lent::new((settings.node.frame_buffers / LENT_PART).max(1)),
        links: RefCell::new(BTreeMap::new()),
        // As many as may follow: all of them may come at once, after a restart of this node.
        greeting: Greeting::new(settings.node.replicas_max),
        stages: RefCell::new(BTreeMap::new()),
        limits: RefCell::new(vec![node]),
        returning: Returning::default(),
        durable_waits: Cell::new(0),
        epoch,
        known: super::retention::Known::default(),
        opening_left: Cell::new(log.opening_left),
    })
}

impl<E: Edge> Node<E> {
    /// Makes the epoch durable, brings the inherited tail back into memory, and appends the
    /// epoch's start record.
    pub(super) async fn begin_reign(self: &Rc<Self>) -> Result<(), NodeError> {
        let primary = self.primary().expect("only primaries reign");
        self.update_state(|_| ()).await?;
        primary.known.load(&self.disk)?;
        self.restore_pending(primary).await?;
        let previous = {
            let machine = primary.machine.borrow();
            let entries = machine.history().entries();
            entries.len().checked_sub(2).map_or(Epoch::NONE, |at| entries[at].epoch)
        };
        let policy = self.settings.cluster.ack.to_string();
        let head = EpochStarted { previous, inherited_committed: self.committed.get() };
        let body = [head.as_bytes(), policy.as_bytes()].concat();
        let (present, next, fits) = {
            let appender = primary.appender.borrow();
            let present = appender.layout().header;
            (present, appender.next_layout().header, appender.control_fits(body.len()))
        };
        self.ensure_now(present).await?;
        if !fits {
            self.ensure_now(next).await?;
        }
        let moment = Moment { committed: self.committed.get(), wall_ns: self.edge.wall_ns() };
        let runs = {
            let mut appender = primary.appender.borrow_mut();
            let mut machine = primary.machine.borrow_mut();
            let dictionary = self.dictionary.borrow();
            let history = machine.history().clone();
            let mut runs = Vec::new();
            let failed = |error: LogError| NodeError::log(&error);
            if appender.end() == appender.layout().header.first_frame() {
                let opened = appender.open_segment(&dictionary, &history, &policy, moment);
                runs.extend(opened.map_err(failed)?);
                primary.opening_left.set(0);
            }
            let context = (&*dictionary, &history, policy.as_str());
            let kind = FrameKind::EpochStart;
            let started = appender.append_control(kind, &body, context, moment).map_err(failed)?;
            let rolled = started.len() > 1;
            machine.handle_epoch_started(started.last().expect("the record").next);
            runs.extend(started);
            if primary.opening_left.get() > 0 && !rolled {
                runs.extend(appender.repeat_opening(&dictionary, &history, &policy, moment));
            }
            runs
        };
        self.push_runs(primary, runs);
        tracing::info!(epoch = %primary.epoch, ack = policy, "begins its reign");
        self.changed.notify();
        Ok(())
    }

    async fn ensure_now(&self, header: crate::log::SegmentHeader) -> Result<(), NodeError> {
        let (worker, fill) = (&self.preparation, Fill::Zeroes);
        let ensured =
            self.segments.ensure(&self.edge, &self.disk, worker, (header, fill), || true).await;
        ensured.map_err(|error| NodeError::log(&error))
    }

    /// Images of the inherited tail: written by a reign before, committed only with this one's
    /// start record. Whoever reads them waits for that: they may have been acknowledged before.
    async fn restore_pending(&self, primary: &PrimaryRole<E>) -> Result<(), NodeError> {
        let (mut at, end) = (self.committed.get(), self.appended.get());
        let seed = self.log_id.get().seed();
        let body_max = self.frame_body_bytes_max.get();
        if at < end {
            mark(Mark::TailInherited);
        }
        while at < end {
            let read = self.segments.read(&self.disk, &self.reader, (at, end), RESTORE_BYTES).await;
            let Some(run) = read.map_err(|error| NodeError::log(&error))? else { break };
            let mut pending = primary.pending.borrow_mut();
            let mut offset = 0;
            while offset < run.bytes.len() {
                let lsn = at.plus(offset as u64);
                let damaged = |error| NodeError::damage(&format!("frame at LSN {lsn}: {error}"));
                let frame = &run.bytes[offset..];
                let header = FrameHeader::parse(frame, seed, body_max).map_err(damaged)?;
                let body = &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize];
                if header.kind() == Some(FrameKind::Rows) {
                    restore_frame(&mut pending, body, lsn, seed).map_err(damaged)?;
                }
                offset += header.frame_bytes();
            }
            at = run.next;
        }
        Ok(())
    }
}

/// Bytes of log read at once while pending images are restored.
const RESTORE_BYTES: usize = 4 << 20;
/// Beside the cache for blocks, so small a part of it remembers which rows exist.
const EXISTENCE_PART: u64 = 4;
/// One in so many frame buffers may be with senders: the rest is for writing and applying.
const LENT_PART: usize = 2;

fn restore_frame(
    pending: &mut Pending,
    body: &[u8],
    lsn: Lsn,
    seed: u64,
) -> Result<(), rowship_proto::frame::FrameError> {
    let body_lsn = lsn.plus(FRAME_HEADER_BYTES as u64);
    for transaction in transactions(body, body_lsn) {
        let transaction = transaction?;
        let end = transaction.end();
        for row in transaction.rows() {
            let row = row?;
            let key = RowKey::of(seed, row.table, row.key);
            let image = match row.operation {
                Operation::Put => Some(Bytes::copy_from_slice(row.value)),
                Operation::Delete => None,
            };
            let rows_delta = row.operation.rows_delta(row.existed);
            pending.insert(key, PendingImage { end, connection: 0, image }, rows_delta);
        }
    }
    Ok(())
}
