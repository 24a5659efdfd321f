//! The feed: committed and durable frames, in windows, to the apply lanes.
//!
//! At the tip a window is whatever has been committed since the last one. Behind, windows grow up
//! to `window_bytes_max`, and only the last image per key within each is applied.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rowship_proto::control::SegmentEnd;
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};
use zerocopy::FromBytes;

use super::NodeError;
use super::state::{Node, Stop};
use crate::apply::plan::Window;
use crate::edge::{Disk, Edge, Worker, offload};
use crate::log::LogError;
use crate::log::segment::segment_file_name;

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
        let mut window = next_window(&node, limit, lanes.len()).await;
        if std::mem::take(&mut first) && planted(Bug::ResumeOneFrameLate) {
            skip_frame(&mut window);
        }
        if limit > limit_of(&node) {
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
        return node.durable.get();
    }
    node.committed.get().min(node.durable.get())
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
    let mut parts = Vec::new();
    let (mut end, mut bytes) = (start, 0);
    for run in node.tip.borrow().from(start, limit, bytes_max) {
        end = run.next;
        bytes += run.bytes.len();
        parts.push(run.bytes);
    }
    if parts.is_empty() {
        mark(Mark::FedFromMaps);
        while end < limit && bytes < bytes_max {
            let read = node.segments.read(end, limit, bytes_max - bytes);
            let Some((run, next)) = read.map_err(|error| NodeError::log(&error))? else { break };
            let verified = verify(node, run.clone(), end).await;
            verified.map_err(|error| NodeError::log(&error))?;
            (end, bytes) = (next, bytes + run.len());
            parts.push(run);
        }
    }
    if end == start {
        return Ok(None);
    }
    Ok(Some((Window::new(start, end, parts, lanes), end)))
}

/// What comes out of the maps may have rotted since it was written: checks it, on a worker, which
/// also brings cold pages in.
pub(super) async fn verify<E: Edge>(
    node: &Node<E>,
    run: Bytes,
    start: Lsn,
) -> Result<(), LogError> {
    let seed = node.log_id.get().seed();
    let body_max = rowship_proto::frame::FRAME_BODY_BYTES_LIMIT;
    let checked = offload(&node.reader, move || check_run(&run, start, seed, body_max));
    match checked.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((lsn, error))) => {
            mark(Mark::DamageFound);
            let held = node.segments.maps.borrow().segment_of(lsn);
            let base = held.map_or(start, |(base, _)| base);
            Err(LogError::Damage {
                segment: node.disk.path(&segment_file_name(base)),
                offset: lsn.since(base),
                lsn,
                what: error.to_string(),
            })
        }
        Err(source) => {
            let file = node.disk.path("");
            Err(LogError::Io { doing: "check", file, source })
        }
    }
}

/// Checks every frame of a run.
fn check_run(
    run: &[u8],
    start: Lsn,
    seed: u64,
    body_max: usize,
) -> Result<(), (Lsn, rowship_proto::frame::FrameError)> {
    let mut at = 0;
    while at < run.len() {
        let lsn = start.plus(at as u64);
        let header = FrameHeader::parse(&run[at..], seed, body_max).map_err(|e| (lsn, e))?;
        let body = run[at..]
            .get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.stored_len as usize)
            .ok_or((lsn, rowship_proto::frame::FrameError::Body("frame is cut short")))?;
        header.check_body(body).map_err(|error| (lsn, error))?;
        if header.kind() == Some(FrameKind::SegmentEnd) {
            SegmentEnd::parse(body, lsn).map_err(|error| (lsn, error))?;
        }
        at += header.frame_bytes();
    }
    Ok(())
}
