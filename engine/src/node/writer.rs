//! The log writer: one durable write at a time, of everything that has come together meanwhile.
//!
//! On a primary it also decides when the open frame is sealed: when the write before is done.
//! That is the whole group commit: batches form by themselves under load, and a lone write leaves
//! at once. A replica that nobody waits for gathers longer: its writes take the disk's and the
//! processor's time from whoever does wait, on the same machine or in the same storage.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{FrameHeader, Nanos};
use zerocopy::FromBytes;

use super::NodeError;
use super::state::{Node, ReplicaRole, Stop, count};
use super::tip::Run;
use crate::edge::{Disk, Edge, RingFile};
use crate::log::{Checkpoint, segment, write_bytes_max};

/// Runs that wait to be written.
///
/// Limit: on a primary what the frame pool holds, on a replica [`WriteQueue::bytes_max`].
pub struct WriteQueue {
    runs: RefCell<VecDeque<Run>>,
    bytes: Cell<usize>,
    /// Since when the oldest of them waits.
    since: Cell<Nanos>,
    /// A write is in flight.
    busy: Cell<bool>,
    /// Mean of what small writes take.
    small_write_ns: Cell<Nanos>,
    /// Bytes beyond which a receiver waits.
    pub bytes_max: usize,
}

impl WriteQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(bytes_max: usize) -> WriteQueue {
        let (runs, bytes, since, busy, small_write_ns) = Default::default();
        WriteQueue { runs, bytes, since, busy, small_write_ns, bytes_max }
    }

    /// Adds a run.
    pub fn push(&self, run: Run, now: Nanos) {
        let mut runs = self.runs.borrow_mut();
        if runs.is_empty() {
            self.since.set(now);
        }
        self.bytes.set(self.bytes.get() + run.bytes.len());
        runs.push_back(run);
    }

    /// Whether a receiver may add more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.get() < self.bytes_max
    }

    /// A write is in flight.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }

    fn is_half_full(&self) -> bool {
        self.bytes.get() >= self.bytes_max / 2
    }

    /// Nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.busy.get() && self.runs.borrow().is_empty()
    }

    /// The next runs that belong into one write: contiguous in one segment, at most `bytes_max`
    /// (but at least one run).
    fn take_batch(&self, bytes_max: usize) -> Vec<Run> {
        let mut runs = self.runs.borrow_mut();
        let mut batch: Vec<Run> = Vec::new();
        let mut bytes = 0;
        while let Some(run) = runs.front() {
            let contiguous = batch.last().is_none_or(|last| {
                last.next == run.start && last.start.plus(last.bytes.len() as u64) == run.start
            });
            if !contiguous || (bytes > 0 && bytes + run.bytes.len() > bytes_max) {
                break;
            }
            bytes += run.bytes.len();
            batch.push(runs.pop_front().expect("just seen"));
        }
        self.bytes.set(self.bytes.get() - bytes);
        batch
    }
}

/// A larger write takes long enough for sleeping, and comes of a load that needs the cores.
const SMALL_WRITE_BYTES_MAX: usize = 32 << 10;

/// What the writer does next.
enum Next {
    Write(Vec<Run>),
    /// See [`Node::hold_up`].
    Wait(Duration),
    End,
}

/// Runs until the node stops and everything is written.
pub async fn run<E: Edge>(node: Rc<Node<E>>) {
    loop {
        let body_max = node.frame_body_bytes_max.get() as u64;
        let batch_bytes = usize::try_from(write_bytes_max(body_max)).unwrap_or(usize::MAX);
        let next = node
            .changed
            .until(|| {
                if let Some(left) = node.hold_up() {
                    return Some(Next::Wait(left));
                }
                let batch = node.writes.take_batch(batch_bytes);
                if !batch.is_empty() {
                    return Some(Next::Write(batch));
                }
                node.is_closing().then_some(Next::End)
            })
            .await;
        let batch = match next {
            Next::Write(batch) => batch,
            Next::Wait(left) => {
                let all = node.changed.until(|| node.hold_up().is_none().then_some(()));
                tokio::select! {
                    biased;
                    () = all => {}
                    () = tokio::time::sleep(left) => {}
                }
                continue;
            }
            Next::End => return,
        };
        node.writes.busy.set(true);
        if planted(Bug::AckBeforeSync) {
            node.handle_durable(batch.last().expect("never empty"));
        }
        let small = batch.iter().map(|run| run.bytes.len()).sum::<usize>() <= SMALL_WRITE_BYTES_MAX;
        if small {
            node.stay_awake_for_write();
        } else if node.primary().is_some_and(|primary| node.wants_durable(primary)) {
            // To replicas first: their writes are waited for as well, and have a way to go.
            tokio::task::yield_now().await;
        }
        let started = node.edge.now();
        let written = write(&node, &batch, batch_bytes).await;
        node.writes.busy.set(false);
        match written {
            Ok(()) => {
                let took_ns = node.edge.now().saturating_sub(started);
                if small {
                    node.writes.small_write_ns.set(mean(node.writes.small_write_ns.get(), took_ns));
                }
                if let Some(primary) = node.primary() {
                    primary.returning.written(took_ns);
                }
                node.handle_durable(batch.last().expect("never empty"));
                if node.primary().is_some() {
                    // Answers first: who they go to decides when the next write begins.
                    tokio::task::yield_now().await;
                }
                node.stay_awake_for_answers(small);
            }
            Err(error) => {
                mark(Mark::WriteFailed);
                return node.stop(Stop::Failed(error));
            }
        }
    }
}

async fn write<E: Edge>(node: &Node<E>, batch: &[Run], bytes_max: usize) -> Result<(), NodeError> {
    let start = batch[0].start;
    node.segments.reached.store(start.0, Ordering::Relaxed);
    let Some((base, file)) = node.segments.file_for(start) else {
        return Err(NodeError::internal(&format!("no segment is open for LSN {start}")));
    };
    let mut offset = start.since(base);
    for parts in writes_of(batch, bytes_max) {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        file.write_durable_parts(parts, offset).await.map_err(|error| {
            let path = node.disk.path(&segment::segment_file_name(base));
            NodeError::disk(&format!(
                "writing {bytes} bytes at offset {offset} of {path} failed: {error}. The log can \
                 no longer be trusted to this disk: the node stops and acknowledges nothing more"
            ))
        })?;
        count(&node.counters.log_writes, 1);
        count(&node.counters.log_bytes, bytes as u64);
        offset += bytes as u64;
    }
    Ok(())
}

/// A batch as single writes, each durable before the next: of whole frames, of at most `bytes_max`
/// bytes. Recovery tells a torn write from damage by that size, counted from the first frame that
/// does not hold: a frame in two writes would have a second write's worth of frames standing too
/// far behind it.
fn writes_of(batch: &[Run], bytes_max: usize) -> Vec<Vec<Bytes>> {
    let mut writes: Vec<Vec<Bytes>> = vec![Vec::new()];
    let mut room = bytes_max;
    for run in batch {
        let mut rest = run.bytes.clone();
        while !rest.is_empty() {
            let len = whole_frames(&rest, room);
            if len == 0 {
                assert!(room < bytes_max, "a frame is at most half of a write");
                writes.push(Vec::new());
                room = bytes_max;
                continue;
            }
            room -= len;
            writes.last_mut().expect("never empty").push(rest.split_to(len));
        }
    }
    writes
}

/// Bytes of the whole frames at the front of `run`, as many as fit `room`.
fn whole_frames(run: &[u8], room: usize) -> usize {
    let mut end = 0;
    while let Ok((header, _)) = FrameHeader::read_from_prefix(&run[end..]) {
        let next = end + header.frame_bytes();
        if next > room {
            break;
        }
        end = next;
    }
    end
}

/// A mean in which each of the last few counts most.
pub(super) fn mean(before: Nanos, new: Nanos) -> Nanos {
    if before == 0 { new } else { before - before / 8 + new / 8 }
}

impl<E: Edge> Node<E> {
    /// Not where small writes take longer than that.
    fn stay_awake_for_write(&self) {
        let longest = self.busy_poll();
        if Duration::from_nanos(self.writes.small_write_ns.get()) < longest {
            self.edge.stay_awake(longest);
        }
    }

    /// Clients that have just been answered are expected. Where what was written is little, and not
    /// committed yet: on a primary the acks that its replies wait for, on a replica the notice.
    fn stay_awake_for_answers(&self, small: bool) {
        let primary = self.primary();
        match primary.and_then(|primary| primary.returning.wait_ns(self.edge.now())) {
            Some(expected) => {
                let time = Duration::from_nanos(expected).min(self.busy_poll());
                self.edge.stay_awake(time);
            }
            None if small && self.committed.get() < self.durable.get() => {
                self.edge.stay_awake(self.busy_poll());
            }
            None => self.edge.may_sleep(),
        }
    }

    /// A replica that has received a little, not committed yet, is about to be told that it is; one
    /// whose acks are waited for, soon of the next frame, where frames have been coming soon.
    pub(super) fn stay_awake_for_primary(&self, replica: &ReplicaRole, received_bytes: usize) {
        let (now, longest_ns) = (self.edge.now(), self.settings.node.busy_poll_us * 1_000);
        if received_bytes > 0 {
            replica.next_frame.came(now, longest_ns);
        }
        let outstanding = self.committed.get() < self.appended.get();
        if !outstanding {
            replica.next_frame.wait_from(now);
        }
        let soon = !replica.gathers.get() && replica.next_frame.is_soon(longest_ns);
        if received_bytes <= SMALL_WRITE_BYTES_MAX && (outstanding || soon) {
            self.edge.stay_awake(self.busy_poll());
        } else {
            self.edge.may_sleep();
        }
    }

    fn busy_poll(&self) -> Duration {
        Duration::from_micros(self.settings.node.busy_poll_us)
    }

    /// Seals the open frame when its time has come. How much longer the next write waits: on a
    /// primary for clients that come back at once, on a replica for more to write.
    fn hold_up(&self) -> Option<Duration> {
        self.seal_open_frame().or_else(|| self.gather())
    }

    fn gather(&self) -> Option<Duration> {
        let gathers = self.replica()?.gathers.get() && !self.is_closing();
        if !gathers || self.writes.runs.borrow().is_empty() || self.writes.is_half_full() {
            return None;
        }
        let delay_ns = self.settings.node.replica_write_delay_ms * 1_000_000;
        let left = (self.writes.since.get() + delay_ns).saturating_sub(self.edge.now());
        (left > 0).then(|| {
            mark(Mark::WriteGathered);
            Duration::from_nanos(left)
        })
    }

    /// Everything up to the end of this run survives power loss on this node.
    pub(super) fn handle_durable(&self, last: &Run) {
        let lsn = last.next;
        assert!(lsn >= self.durable.get());
        self.durable.set(lsn);
        self.durable_end.set(Checkpoint { lsn, chain: last.chain, epoch: last.epoch });
        self.segments.close_written(lsn);
        if let Some(primary) = self.primary() {
            // The pool must never be held by the tip while the appender waits for a buffer.
            let keep = if primary.appender.borrow().pool_is_low() { 0 } else { usize::MAX };
            self.tip.borrow_mut().trim(lsn, keep);
            primary.machine.borrow_mut().handle_durable(lsn);
            self.refresh();
        }
        self.changed.notify();
        self.room.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowship_proto::frame::{Seal, frame_bytes, sealed_frame};
    use rowship_proto::{Epoch, FrameKind, LogId, Lsn};

    fn run(start: u64, len: usize, next: u64) -> Run {
        let bytes = Bytes::from(vec![0; len]);
        let (start, next, chain, epoch) = (Lsn(start), Lsn(next), 0, Epoch::NONE);
        Run { start, next, bytes, chain, epoch, mark: false, copy: false }
    }

    #[test]
    fn a_write_ends_at_the_segment_and_at_its_limit() {
        let queue = WriteQueue::new(100);
        for (start, len, next) in [(0, 8, 8), (8, 8, 64), (64, 8, 72), (72, 80, 152)] {
            queue.push(run(start, len, next), 0);
        }
        assert!(!queue.has_room());
        let starts = |batch: Vec<Run>| batch.iter().map(|run| run.start.0).collect::<Vec<_>>();
        assert_eq!(starts(queue.take_batch(50)), [0, 8]);
        assert_eq!(starts(queue.take_batch(50)), [64]);
        assert_eq!(starts(queue.take_batch(50)), [72]);
        assert!(queue.is_idle() && queue.has_room());
    }

    /// A run of frames with bodies of these lengths.
    fn frames(start: u64, bodies: &[usize]) -> Run {
        let mut seal = Seal::first(LogId([1, 2]), Epoch::NONE);
        let (mut bytes, mut next) = (Vec::new(), Lsn(start));
        for len in bodies {
            let (header, frame) = sealed_frame(FrameKind::Mark, 0, next, &vec![0; *len], &seal);
            (next, seal.chain_previous) = (header.end(), header.chain());
            bytes.extend(frame);
        }
        Run {
            start: Lsn(start),
            next,
            bytes: bytes.into(),
            chain: 0,
            epoch: Epoch::NONE,
            mark: false,
            copy: false,
        }
    }

    #[test]
    fn no_single_write_is_larger_than_recovery_expects_or_parts_a_frame() {
        let empty = frame_bytes(0);
        let batch = [frames(0, &[8, 0, 0, 16]), frames(8192, &[0]), frames(16384, &[0, 0])];
        let writes = writes_of(&batch, 2 * empty + 16);
        let sizes: Vec<usize> =
            writes.iter().map(|parts| parts.iter().map(Bytes::len).sum()).collect();
        assert_eq!(sizes, [2 * empty + 8, 2 * empty + 16, 2 * empty, empty]);
        for part in writes.iter().flatten() {
            assert_eq!(whole_frames(part, usize::MAX), part.len());
        }
    }
}
