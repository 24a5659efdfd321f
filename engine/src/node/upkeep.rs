//! Periodic work on the ring thread: segments ahead, checkpoints, table maintenance, silent links.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rowship_proto::Lsn;
use rowship_proto::sim::{self, Bug, planted};

use super::NodeError;
use super::state::{Node, Role, Stop};
use crate::apply::publish::Mark;
use crate::apply::table::TableError;
use crate::edge::{Disk, Edge, Stream, offload};
use crate::log::node_state::TableDurable;
use crate::log::prepare::Fill;
use crate::log::{LogError, SegmentHeader, write_bytes_max};

/// Keeps the segment after the present one ready.
pub async fn prepare_segments<E: Edge>(node: Rc<Node<E>>) {
    loop {
        let header = node.changed.until(|| match next_header(&node) {
            _ if node.is_stopping() => Some(None),
            Some(header) if !node.segments.is_ready(header.base) => Some(Some(header)),
            _ => None,
        });
        let Some(header) = header.await else { return };
        let (worker, fill) = (&node.preparation, fill(&node, &header));
        // Half of the segment before it is time enough to do it gently.
        let (reached, half) = (node.segments.reached.clone(), header.segment_bytes / 2);
        let hurry = move || header.base.since(Lsn(reached.load(Ordering::Relaxed))) < half;
        let segments = &node.segments;
        let ensured = segments.ensure(&node.edge, &node.disk, worker, (header, fill), hurry).await;
        match ensured {
            Ok(()) => {
                if node.segments.failure.borrow_mut().take().is_some() {
                    node.event("there is space for segments again".to_owned());
                }
                node.room.notify();
                node.changed.notify();
            }
            Err(error @ LogError::DiskFull { .. }) => {
                sim::mark(sim::Mark::DiskFull);
                let before = node.segments.failure.replace(Some(error.to_string()));
                if before.is_none() {
                    node.event(error.to_string());
                }
                node.room.notify();
                tokio::time::sleep(DISK_FULL_PAUSE).await;
            }
            Err(_) if node.is_stopping() => return,
            Err(error) => return node.stop(Stop::Failed(NodeError::log(&error))),
        }
    }
}

/// Pause between attempts to make a segment on a full disk.
const DISK_FULL_PAUSE: Duration = Duration::from_millis(500);

/// Whether a replica that has made `durable` leaves the disk to its backlog, which goes up to
/// `end`, before it prepares the segment that begins at `next`: not once `end` is in the second
/// half of the segment before that, or behind it.
fn leaves_disk(durable: Lsn, end: Lsn, (next, bytes): (Lsn, u64), write_bytes_max: u64) -> bool {
    let backlog = end.0.saturating_sub(durable.0);
    backlog > BACKLOG_WRITES * write_bytes_max && end.plus(bytes / 2) < next
}

/// More than so many of the largest writes are a backlog: with defaults, 8 MiB.
const BACKLOG_WRITES: u64 = 4;

fn next_header<E: Edge>(node: &Node<E>) -> Option<SegmentHeader> {
    match &node.role {
        Role::Primary(primary) => Some(primary.appender.borrow().next_layout().header),
        // Which kind it takes is known when the primary has said how far its log goes.
        Role::Replica(replica) if !replica.upstream.borrow().told => None,
        Role::Replica(replica) => {
            let (base, bytes) = node.segments.maps.borrow().segment_of(node.appended.get())?;
            let body_max = node.frame_body_bytes_max.get() as u64;
            let (end, next) = (replica.upstream.borrow().appended, base.plus(bytes));
            if leaves_disk(node.durable.get(), end, (next, bytes), write_bytes_max(body_max)) {
                return None;
            }
            Some(SegmentHeader::new(node.log_id.get(), next, bytes, body_max))
        }
    }
}

fn fill<E: Edge>(node: &Node<E>, header: &SegmentHeader) -> Fill {
    match &node.role {
        Role::Primary(_) => Fill::Zeroes,
        Role::Replica(replica) => Fill::of_replica(header, replica.upstream.borrow().appended),
    }
}

/// Renews the checkpoint in `node.state`.
pub async fn checkpoint<E: Edge>(node: Rc<Node<E>>) {
    let period = Duration::from_millis(node.settings.node.checkpoint_ms.max(1));
    while pause(&node, period).await {
        let stored = match node.store_checkpoint().await {
            Ok(()) => node.store_known().await,
            failed => failed,
        };
        if let Err(error) = stored {
            return node.stop(Stop::Failed(error));
        }
    }
}

/// Sleeps; false when the node stops.
pub(super) async fn pause<E: Edge>(node: &Node<E>, period: Duration) -> bool {
    let stopping = node.changed.until(|| node.is_stopping().then_some(()));
    tokio::select! {
        biased;
        () = stopping => false,
        () = tokio::time::sleep(period) => true,
    }
}

/// Closes links of replicas that have been silent for too long, and connections that do not say
/// who they are.
pub async fn silence<E: Edge>(node: Rc<Node<E>>) {
    let period = Duration::from_millis((node.settings.cluster.heartbeat_ms / 2).max(1));
    while pause(&node, period).await {
        let Some(primary) = node.primary() else { return };
        let now = node.edge.now();
        let timeout = node.settings.cluster.peer_timeout_ms * 1_000_000;
        for stream in primary.greeting.overdue(now.saturating_sub(timeout)) {
            stream.shutdown();
        }
        let silent = primary.machine.borrow().silent_links(now);
        for link in silent {
            sim::mark(sim::Mark::SilentLinkClosed);
            node.event(format!("replica link {link} is silent: closed"));
            node.close_link(link);
        }
    }
}

/// How often it is looked whether reads of the log can give memory back.
const TIDY_PERIOD: Duration = Duration::from_millis(500);

/// Gives memory back that reads of the log no longer use.
pub async fn tidy_reads<E: Edge>(node: Rc<Node<E>>) {
    while pause(&node, TIDY_PERIOD).await {
        node.disk.tidy();
    }
}

/// How often clients whose command waits are asked whether they are still there.
const GONE_PERIOD: Duration = Duration::from_secs(1);

/// Gives up clients that went away while their command waits. They get the time that those get
/// who go away while only their replies wait.
pub async fn gone_clients<E: Edge>(node: Rc<Node<E>>) {
    let patience = node.settings.node.stop_timeout_ms * 1_000_000;
    while pause(&node, GONE_PERIOD).await {
        let now = node.edge.now();
        let clients = node.clients.borrow();
        let gone = clients.values().filter(|client| client.give_up_if_gone(now, patience)).count();
        drop(clients);
        if gone > 0 {
            tracing::debug!(gone, "gave up clients that went away while a command waited");
            node.changed.notify();
            node.room.notify();
        }
    }
}

/// How often the table is asked whether there is something to flush.
const MAINTENANCE_PERIOD: Duration = Duration::from_millis(20);
/// Flushes of a clean stop: as many as there can be sealed memtables, and some to spare.
const STOP_FLUSHES_MAX: usize = 16;
/// Pause after a flush that failed.
const MAINTENANCE_PAUSE: Duration = Duration::from_millis(500);

/// Flushes, on the maintenance worker, and keeps the durable position.
pub async fn maintain<E: Edge>(node: Rc<Node<E>>) {
    loop {
        // Not when the stop begins: what is still applied then needs room in the memtables.
        let closing = node.changed.until(|| node.is_closing().then_some(()));
        tokio::select! {
            biased;
            () = closing => return,
            () = tokio::time::sleep(MAINTENANCE_PERIOD) => {}
        }
        if node.table.status().sealed_memtables == 0 && node.table.ready() {
            continue;
        }
        if let Err(error) = flush(&node).await {
            return node.stop(Stop::Failed(error));
        }
    }
}

async fn flush<E: Edge>(node: &Rc<Node<E>>) -> Result<(), NodeError> {
    if !node.log_is_durable().await {
        return Ok(());
    }
    let table = node.table.clone();
    let flushed = offload(&node.maintenance, move || table.flush()).await;
    match flushed.map_err(|error| NodeError::internal(&error))? {
        Ok(Some(mark)) => node.record_table(mark).await?,
        // Nothing to flush, or no more room in the first level, or (when paused) nobody knows yet
        // whether there is space again: compaction finds out.
        Ok(None) => {
            node.compact.notify_one();
            return Ok(());
        }
        Err(error @ TableError::NoSpace { .. }) => {
            node.pause_table(&error);
            tokio::time::sleep(MAINTENANCE_PAUSE).await;
            return Ok(());
        }
        Err(error) => return Err(NodeError::disk(&error)),
    }
    node.resume_table();
    // The feed may have waited for room in the memtables.
    node.changed.notify();
    node.compact.notify_one();
    Ok(())
}

/// Compacts after flushes, step by step: flushes have their turn between steps.
pub async fn compact<E: Edge>(node: Rc<Node<E>>) {
    loop {
        let stopping = node.changed.until(|| node.is_stopping().then_some(()));
        tokio::select! {
            biased;
            () = stopping => return,
            () = node.compact.notified() => {}
        }
        let mut waited_for_space = false;
        while !node.is_stopping() {
            let table = node.table.clone();
            let compacted = offload(&node.maintenance, move || table.compact()).await;
            match compacted {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break,
                Ok(Err(error @ TableError::NoSpace { .. })) => {
                    waited_for_space = true;
                    node.pause_table(&error);
                    tokio::time::sleep(MAINTENANCE_PAUSE).await;
                }
                Ok(Err(error)) => return node.stop(Stop::Failed(NodeError::disk(&error))),
                Err(error) => return node.stop(Stop::Failed(NodeError::internal(&error))),
            }
        }
        if waited_for_space {
            node.resume_table();
        }
    }
}

/// Follows what lanes publish: `visible` on this thread, pending images, whoever waits.
pub async fn follow_lanes<E: Edge>(
    node: Rc<Node<E>>,
    published: std::sync::Arc<tokio::sync::Notify>,
) {
    loop {
        published.notified().await;
        if let Some(failure) = node.applied.failure() {
            let text = format!("apply has stopped: {failure}");
            return node.stop(Stop::Failed(NodeError::damage(&text)));
        }
        let visible = node.applied.visible();
        if visible > node.visible.get() {
            node.visible.set(visible);
            if let Some(primary) = node.primary() {
                primary.pending.borrow_mut().handle_visible(visible);
            }
        }
        node.changed.notify();
        node.room.notify();
        if node.is_closing() {
            return;
        }
    }
}

impl<E: Edge> Node<E> {
    /// Notes how far the log is durable, so that recovery need not look further back, and how far
    /// it is committed, so that a restart shows what was shown before.
    pub(super) async fn store_checkpoint(&self) -> Result<(), NodeError> {
        let present = || {
            let end = self.durable_end.get();
            (end, self.committed.get().min(end.lsn))
        };
        let (end, committed) = present();
        if end.lsn == rowship_proto::Lsn::ZERO {
            return Ok(());
        }
        {
            let state = self.state.borrow();
            let known = state.checkpoint.is_some_and(|checkpoint| checkpoint.lsn >= end.lsn);
            if known && state.committed >= committed {
                return Ok(());
            }
        }
        // Looked at again under the lock: a cut may have moved both back meanwhile.
        self.update_state(|state| {
            let (end, committed) = present();
            (state.checkpoint, state.committed) = (Some(end), committed);
        })
        .await
    }

    /// The last thing of a clean stop: the log ends where it is durable, and stays so. The next
    /// start need not look for more behind. A log whose last write is not over is left as it is.
    pub(super) async fn store_end(&self) -> Result<(), NodeError> {
        let end = || {
            let end = self.durable_end.get();
            let ended = self.is_closing() && self.is_quiet() && self.appended.get() == end.lsn;
            (ended && end.lsn != rowship_proto::Lsn::ZERO).then_some(end)
        };
        if end().is_none() {
            return Ok(());
        }
        self.update_state(|state| {
            // Under the lock: a cut may have moved it meanwhile.
            if let Some(end) = end() {
                (state.checkpoint, state.checkpoint_is_end) = (Some(end), true);
            }
        })
        .await
    }

    /// The table has no space to flush: apply waits for it, and writes are refused.
    fn pause_table(&self, error: &TableError) {
        sim::mark(sim::Mark::ApplyPaused);
        if self.table_paused.replace(Some(error.to_string())).is_none() {
            self.event(format!("apply pauses: {error}"));
        }
        self.changed.notify();
        self.room.notify();
    }

    /// Files of the table could be written again.
    fn resume_table(&self) {
        if self.table_paused.borrow_mut().take().is_some() {
            self.event("the table has space again: apply goes on".to_owned());
            self.changed.notify();
            self.room.notify();
        }
    }

    /// Flushes everything that is applied, so that the next start replays little: for a clean stop,
    /// and before segments are retired. [`maintain`] may be in a flush at the same time.
    pub(super) async fn flush_all(&self) -> Result<(), NodeError> {
        for _ in 0..STOP_FLUSHES_MAX {
            let table = self.table.clone();
            let sealed = offload(&self.maintenance, move || table.seal());
            sealed.await.map_err(|error| NodeError::internal(&error))?;
            if !self.log_is_durable().await {
                return Ok(());
            }
            let table = self.table.clone();
            match offload(&self.maintenance, move || table.flush())
                .await
                .map_err(|error| NodeError::internal(&error))?
            {
                Ok(Some(mark)) => self.record_table(mark).await?,
                Ok(None) => return Ok(()),
                Err(error @ TableError::NoSpace { .. }) => {
                    tracing::warn!("{error}: the log above is kept, and replayed at a start");
                    return Ok(());
                }
                Err(error) => return Err(NodeError::disk(&error)),
            }
        }
        Ok(())
    }

    /// Waits until the log is durable for all that a memtable sealed by now can hold: a table must
    /// never know rows that its own log may lose. A replica applies before it writes. False when
    /// the node ends before.
    async fn log_is_durable(&self) -> bool {
        let dispatched = self.dispatched.get();
        if planted(Bug::FlushAheadOfLog) || self.durable.get() >= dispatched {
            return true;
        }
        sim::mark(sim::Mark::FlushWaited);
        let done = || (self.durable.get() >= dispatched || self.is_closing()).then_some(());
        self.changed.until(done).await;
        self.durable.get() >= dispatched
    }

    /// The table is durable up to `mark`: first here, then the table may forget what led there.
    pub(super) async fn record_table(&self, mark: Mark) -> Result<(), NodeError> {
        let ahead = planted(Bug::TableRecordedAhead);
        let mark = if ahead { self.applied.mark() } else { mark };
        let durable = TableDurable { lsn: mark.lsn, row_count: mark.rows };
        // Two flushes may finish one right after the other: the position never goes back.
        let newer = |state: &mut crate::log::NodeState| {
            if durable.lsn >= state.table_durable.lsn {
                state.table_durable = durable;
            }
        };
        self.update_state(newer).await?;
        let table = self.table.clone();
        let recorded = offload(&self.maintenance, move || table.recorded(mark.lsn)).await;
        let recorded = recorded.map_err(|error| NodeError::internal(&error))?;
        recorded.map_err(|error| NodeError::disk(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_comes_before_a_segment_that_is_not_needed_soon() {
        const SEGMENT: u64 = 1 << 20;
        let leaves = |durable, end| leaves_disk(Lsn(durable), Lsn(end), (Lsn(SEGMENT), SEGMENT), 8);
        let half = SEGMENT / 2;
        assert!(leaves(0, 40) && leaves(0, half - 8) && leaves(half - 48, half - 8));
        assert!(!leaves(0, 32) && !leaves(half - 40, half - 8), "no backlog");
        assert!(!leaves(100, 40), "ahead of what is known of the primary");
        assert!(!leaves(0, half) && !leaves(0, SEGMENT) && !leaves(0, 9 * SEGMENT), "needed soon");
    }
}
