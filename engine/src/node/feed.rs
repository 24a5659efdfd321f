//! The feed: committed frames, in windows, to the apply lanes.
//!
//! At the tip a window is whatever has been committed since the last one. Behind, windows grow up
//! to `window_bytes_max`, and only the last image per key within each is applied.

use std::rc::Rc;
use std::sync::Arc;

use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{FrameHeader, Lsn};
use zerocopy::FromBytes;

use super::NodeError;
use super::state::{Node, Stop};
use super::tip::Run;
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
        let cuts = node.cuts.get();
        let mut window = next_window(&node, limit, lanes.len()).await;
        if std::mem::take(&mut first) && planted(Bug::ResumeOneFrameLate) {
            skip_frame(&mut window);
        }
        if cuts != node.cuts.get() || limit > limit_of(&node) {
            // The log was cut while the window was put together: it is not what stands there now.
            continue;
        }
        match window {
            Ok(Some((window, end))) => {
                // Before the lanes have it: from here on a cut below `end` must be refused.
                node.dispatched.set(end);
                let window = Arc::new(window);
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

/// For [`Bug::ResumeOneFrameLate`].
fn skip_frame(window: &mut Result<Option<(Window, Lsn)>, NodeError>) {
    let Ok(Some((window, _))) = window else { return };
    if let Ok((header, _)) = FrameHeader::read_from_prefix(&window.parts[0]) {
        bytes::Buf::advance(&mut window.parts[0], header.frame_bytes());
    }
}

/// The window that starts where the last one ended, and its end.
async fn next_window<E: Edge>(
    node: &Node<E>,
    limit: Lsn,
    lanes: usize,
) -> Result<Option<(Window, Lsn)>, NodeError> {
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
    Ok(Some((Window::new(start, end, parts, lanes), end)))
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
