//! Cutting a tail that the primary does not have (it was never committed).
//!
//! A cut may be interrupted at any moment and must leave a log that recovery takes for a shorter
//! one, never for damage. So it goes from the end towards the new end: first the later segments,
//! newest first; then zeroes over whole frames, in pieces of at most one write, each durable
//! before the piece below it. Whatever sectors of the last piece were lost, nothing
//! live stands further than one write behind the first frame that does not hold.

use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::verify::{first_frame, stands_here};
use rowship_proto::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};

use super::node_state::{Checkpoint, NodeState};
use super::recover::zero;
use super::scan::SegmentScan;
use super::segment::{SegmentHeader, list_segments, segment_file_name};
use super::{LogError, write_bytes_max};
use crate::edge::Disk;

/// Cuts the log at `to`, durable when it returns; returns the new end to go on from. `end` is
/// where the log ends now, `applied` how far this node has applied it. The checkpoint and the
/// epoch history of `state` move back first, and are stored.
///
/// # Errors
/// [`LogError::CutBelowApplied`]; [`LogError::Damage`] when no frame starts at `to`;
/// [`LogError::NotHeld`] when no segment holds it. Nothing is cut then. [`LogError::Io`].
pub fn cut<D: Disk>(
    disk: &D,
    state: &mut NodeState,
    to: Lsn,
    end: Lsn,
    applied: Lsn,
) -> Result<Checkpoint, LogError> {
    let applied = applied.max(state.table_durable.lsn);
    if to < applied {
        return Err(LogError::CutBelowApplied { to, applied });
    }
    assert!(to < end, "there is something to cut");
    let segments = list_segments(disk)?;
    let holder = segments.iter().rfind(|(base, _)| first_frame(*base) <= to);
    let (base, bytes) = *holder.ok_or(LogError::NotHeld { lsn: to })?;
    let mut scan = SegmentScan::of_file(disk, base, bytes);
    let header = SegmentHeader::read(disk, base)?;
    let header = header.map_err(|error| scan.damage(base, error.to_string()))?;
    let seed = state.log_id.seed();
    let end_here = end.min(scan.end());
    let pieces = pieces_to_zero(&mut scan, &header, seed, to, end_here)?;

    let first = scan.bytes(to, FRAME_HEADER_BYTES as u64)?;
    let chain = FrameHeader::parse(first, seed, usize::MAX).map(|header| header.chain_previous);
    let chain = chain.map_err(|error| scan.damage(to, error.to_string()))?;
    let checkpoint = Checkpoint { lsn: to, chain, epoch: state.history.epoch_below(to) };
    if state.checkpoint.is_some_and(|old| old.lsn > to) {
        state.checkpoint = Some(checkpoint);
    }
    state.checkpoint_is_end = false;
    state.committed = state.committed.min(to);
    state.history.cut(to);
    state.store(disk)?;

    mark(Mark::TailCut);
    if planted(Bug::CutNotSynced) {
        return Ok(checkpoint);
    }
    for (later, _) in segments.iter().filter(|(later, _)| *later > base).rev() {
        mark(Mark::SegmentCut);
        let name = segment_file_name(*later);
        disk.remove(&name).map_err(LogError::io("remove", disk.path(&name)))?;
    }
    for (from, to) in pieces.iter().rev() {
        zero(disk, base, *from, *to)?;
    }
    Ok(checkpoint)
}

/// Whole frames from `from` to `end`, in pieces of at most one write; and what a write in flight
/// may have left behind `end`.
fn pieces_to_zero<D: Disk>(
    scan: &mut SegmentScan<'_, D>,
    header: &SegmentHeader,
    seed: u64,
    from: Lsn,
    end: Lsn,
) -> Result<Vec<(Lsn, Lsn)>, LogError> {
    let piece_bytes_max = write_bytes_max(header.frame_body_bytes_max);
    let mut pieces: Vec<(Lsn, Lsn)> = Vec::new();
    let mut at = from;
    while at < end {
        let head = scan.bytes(at, FRAME_HEADER_BYTES as u64)?;
        if !stands_here(head, at, seed) {
            return Err(scan.damage(at, "no frame starts here, where the log is to be cut"));
        }
        let body_max = usize::try_from(header.frame_body_bytes_max).expect("at most 16 MiB");
        let frame = FrameHeader::parse(head, seed, body_max);
        let frame = frame.map_err(|error| scan.damage(at, error.to_string()))?;
        match pieces.last_mut() {
            Some((start, end)) if frame.end().since(*start) <= piece_bytes_max => {
                *end = frame.end();
            }
            _ => pieces.push((at, frame.end())),
        }
        at = frame.end();
        if frame.kind() == Some(FrameKind::SegmentEnd) {
            return Ok(pieces);
        }
    }
    let residue_end = at.plus(piece_bytes_max).min(scan.end());
    if residue_end > at {
        pieces.push((at, residue_end));
    }
    Ok(pieces)
}
