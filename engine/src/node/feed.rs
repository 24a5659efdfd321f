//! The feed: committed frames, in windows, to the apply lanes.
//!
//! At the tip a window is whatever has been committed since the last one. Behind, windows grow up
//! to `window_bytes_max`, and only the last image per key within each is applied.
//!
//! A window of a few rows is applied here, while no lane is busy: that takes less than waking one
//! up, and nobody has to be waited for.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{FrameHeader, Lsn};
use zerocopy::FromBytes;

use super::NodeError;
use super::state::{Node, PrimaryRole, Stop};
use super::tip::Run;
use crate::apply::lane::{ApplyFailed, Lane};
use crate::apply::plan::Window;
use crate::edge::{Edge, Worker};

/// Runs until the node stops. `lanes` are the queues of the lanes, in order.
pub async fn run<E: Edge>(node: Rc<Node<E>>, lanes: Vec<Worker<Arc<Window>>>) {
    let mut first = true;
    loop {
        let limit = node
            .changed
            .until(|| {
                let limit = limit_of(&node);
                let go = limit > node.dispatched.get() && node.table.ready();
                match go {
                    _ if node.is_closing() => Some(None),
                    true => Some(Some(limit)),
                    false => None,
                }
            })
            .await;
        let Some(limit) = limit else { return };
        if let Some(primary) = node.primary() {
            give_way(&node, primary).await;
        }
        let cuts = node.cuts.get();
        let mut window = next_window(&node, limit).await;
        if std::mem::take(&mut first) && planted(Bug::ResumeOneFrameLate) {
            skip_frame(&mut window);
        }
        if cuts != node.cuts.get() || limit > limit_of(&node) {
            // The log was cut while the window was put together: it is not what stands there now.
            continue;
        }
        match window {
            Ok(Some(next)) => {
                let here = is_small(&node, &next);
                // Before the lanes have it: from here on a cut below `end` must be refused.
                node.dispatched.set(next.end);
                let shares = if here { 1 } else { lanes.len() };
                let window = Arc::new(Window::new(next.start, next.end, next.parts, shares));
                if here {
                    if apply_here(&node, &window).is_err() {
                        // Whoever follows the lanes stops the node. Nothing more may be applied:
                        // it would be shown without this.
                        return;
                    }
                    continue;
                }
                for lane in &lanes {
                    // Waits while the lane's queue is full: that is the limit of what is in
                    // flight between the feed and the table.
                    if !lane.send(window.clone()).await {
                        let text = "an apply lane has ended: a fault of rowship";
                        return node.stop(Stop::Failed(NodeError::internal(&text)));
                    }
                }
            }
            // No frame ends at or below the limit: a primary said that a part of a frame is
            // committed. It will say more, or it is not to be believed.
            Ok(None) => {
                let moved = || {
                    let now = limit_of(&node);
                    (now != limit || node.is_closing()).then_some(())
                };
                node.changed.until(moved).await;
            }
            Err(error) => return node.stop(Stop::Failed(error)),
        }
    }
}

/// Up to where frames may be applied.
fn limit_of<E: Edge>(node: &Node<E>) -> Lsn {
    if planted(Bug::ApplyBeyondCommitted) {
        return node.appended.get();
    }
    node.committed.get().min(node.appended.get())
}

/// On a primary nobody waits for rows to be in the table: replies leave first, and what a crowd of
/// clients is about to write is on its way to the disk.
async fn give_way<E: Edge>(node: &Node<E>, primary: &PrimaryRole<E>) {
    tokio::task::yield_now().await;
    if let Some(wait_ns) = primary.returning.crowd_wait_ns(node.edge.now()) {
        let written = || (node.writes.is_busy() || node.is_closing()).then_some(());
        tokio::select! {
            biased;
            () = node.changed.until(written) => {}
            () = tokio::time::sleep(Duration::from_nanos(wait_ns)) => {}
        }
        tokio::task::yield_now().await;
    }
}

/// What becomes a window.
struct Next {
    start: Lsn,
    end: Lsn,
    parts: Vec<Bytes>,
}

/// Whether a window is better applied on this thread: it is small, and nothing before it is still
/// on its way through the lanes.
fn is_small<E: Edge>(node: &Node<E>, next: &Next) -> bool {
    let bytes: usize = next.parts.iter().map(Bytes::len).sum();
    bytes <= node.settings.node.small_window_bytes && node.applied.visible() == next.start
}

/// One lane for all rows of one window.
fn apply_here<E: Edge>(node: &Node<E>, window: &Arc<Window>) -> Result<(), ApplyFailed> {
    mark(Mark::AppliedHere);
    let (seed, table, applied) =
        (node.log_id.get().seed(), node.table.clone(), node.applied.clone());
    Lane::new(0, 1, seed, table, applied).turn(window).map(|_| ())
}

/// For [`Bug::ResumeOneFrameLate`].
fn skip_frame(window: &mut Result<Option<Next>, NodeError>) {
    let Ok(Some(window)) = window else { return };
    if let Ok((header, _)) = FrameHeader::read_from_prefix(&window.parts[0]) {
        bytes::Buf::advance(&mut window.parts[0], header.frame_bytes());
    }
}

/// The window that starts where the last one ended.
async fn next_window<E: Edge>(node: &Node<E>, limit: Lsn) -> Result<Option<Next>, NodeError> {
    let start = node.dispatched.get();
    let bytes_max = node.settings.node.window_bytes_max;
    let (mut parts, mut end, mut bytes) = (Vec::new(), start, 0);
    for run in up_to_mark(node.tip.borrow().from(start, limit, bytes_max)) {
        end = run.next;
        bytes += run.bytes.len();
        parts.push(run.bytes);
    }
    let mut marked = !parts.is_empty();
    if !marked {
        mark(Mark::FedFromMaps);
    }
    // What is not durable yet is at the tip.
    let stored = limit.min(node.durable.get());
    while !marked && end < stored && bytes < bytes_max {
        let range = (end, stored);
        let read = node.segments.read(&node.disk, &node.reader, range, bytes_max - bytes).await;
        let Some(run) = read.map_err(|error| NodeError::log(&error))? else { break };
        (end, bytes, marked) = (run.next, bytes + run.bytes.len(), run.mark);
        parts.push(run.bytes);
    }
    if end == start {
        return Ok(None);
    }
    Ok(Some(Next { start, end, parts }))
}

/// The runs of one window: none behind a mark, which ends it.
fn up_to_mark(mut runs: Vec<Run>) -> Vec<Run> {
    if let Some(at) = runs.iter().position(|run| run.mark) {
        runs.truncate(at + 1);
    }
    runs
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rowship_proto::Epoch;

    use super::*;

    #[test]
    fn a_mark_ends_a_window() {
        let run = |at: u64, mark| Run {
            start: Lsn(at * 8),
            next: Lsn(at * 8 + 8),
            bytes: Bytes::new(),
            chain: 0,
            epoch: Epoch::NONE,
            mark,
            copy: false,
        };
        let ends = |marks: &[bool]| {
            let runs = marks.iter().zip(0..).map(|(&mark, at)| run(at, mark)).collect();
            up_to_mark(runs).last().map(|run: &Run| run.next.0)
        };
        assert_eq!(ends(&[false, false, false]), Some(24));
        assert_eq!(ends(&[false, true, false]), Some(16));
        assert_eq!(ends(&[true, false, true]), Some(8));
        assert_eq!(ends(&[]), None);
    }
}
