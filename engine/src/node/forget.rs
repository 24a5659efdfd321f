//! Pages of the log that nobody will read again go back to the system as the log grows.
//!
//! Otherwise the log ends up in all memory there is, and each new page of it is memory that was
//! not used before, which costs many times the write itself on machines that must first be given
//! it. Given back, the pages of the log before serve the segment that is prepared next.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use rowship_proto::Lsn;

use super::state::Node;
use super::upkeep::pause;
use crate::edge::{Disk, Edge, offload};
use crate::log::segment::segment_file_name;

/// How often it is looked how far that is.
const PERIOD: Duration = Duration::from_millis(100);
/// What is only just behind everyone stays: for a replica that connects anew.
const KEPT_BYTES: u64 = 32 << 20;
/// So much at once: about a millisecond, for which reads of cold rows wait.
const STEP_BYTES: u64 = 8 << 20;

/// Gives pages back until the node stops.
pub async fn run<E: Edge>(node: Rc<Node<E>>) {
    let mut forgotten = node.needed_from();
    while pause(&node, PERIOD).await {
        node.disk.tidy();
        let needed = node.needed_from();
        // What has been retired is gone with its pages.
        forgotten = node.segments.maps.borrow().oldest().map_or(forgotten, |at| forgotten.max(at));
        while let Some(step) = next_step(forgotten, needed, |lsn| node.segment_of(lsn)) {
            match node.forget(&step).await {
                Ok(Ok(())) => {}
                // Retired meanwhile, or a file system that does not take the hint.
                Ok(Err(error)) => tracing::debug!("pages of the log stay in memory: {error}"),
                Err(_) => return,
            }
            forgotten = step.to;
        }
    }
}

/// Pages from one LSN to another, in one segment.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    base: Lsn,
    from: Lsn,
    to: Lsn,
}

/// What to give back next, if `needed` has gone far enough beyond what has been given back.
fn next_step(
    forgotten: Lsn,
    needed: Lsn,
    segment_of: impl Fn(Lsn) -> Option<(Lsn, u64)>,
) -> Option<Step> {
    if needed.0 < forgotten.0 + KEPT_BYTES + STEP_BYTES {
        return None;
    }
    let (base, bytes) = segment_of(forgotten)?;
    // Whole pieces of the file, from their beginning: of memory that the system keeps in one, a
    // part cannot go.
    let from = base.plus(forgotten.since(base) / STEP_BYTES * STEP_BYTES);
    Some(Step { base, from, to: from.plus(STEP_BYTES).min(base.plus(bytes)) })
}

impl<E: Edge> Node<E> {
    /// Below it, nobody reads the log: neither lanes nor replicas, known ones that are away among
    /// them, nor most restarts, which scan the segment that is being written.
    fn needed_from(&self) -> Lsn {
        let durable = self.durable.get();
        let restart = self.segment_of(durable).map_or(durable, |(base, _)| base);
        let own = restart.min(self.dispatched.get());
        let Some(primary) = self.primary() else { return own };
        let machine = primary.machine.borrow();
        let away = primary.known.unseen(&machine).into_iter().map(|(_, durable)| durable);
        away.fold(own.min(machine.needed_from()), Lsn::min)
    }

    async fn forget(&self, step: &Step) -> io::Result<io::Result<()>> {
        let map = self.segments.maps.borrow().map_of(step.from).map(|(_, map)| map.clone());
        let (disk, name) = (self.disk.clone(), segment_file_name(step.base));
        let (offset, bytes) = (step.from.since(step.base), step.to.since(step.from));
        offload(&self.reader, move || {
            if let Some(map) = map {
                map.forget(offset as usize, bytes as usize)?;
            }
            disk.forget_pages(&name, offset, bytes)
        })
        .await
    }

    fn segment_of(&self, lsn: Lsn) -> Option<(Lsn, u64)> {
        self.segments.maps.borrow().segment_of(lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 20 << 20;

    fn segment_of(lsn: Lsn) -> Option<(Lsn, u64)> {
        Some((Lsn(lsn.0 / SEGMENT * SEGMENT), SEGMENT))
    }

    #[test]
    fn steps_end_at_segments_and_leave_what_is_only_just_behind() {
        let (mut forgotten, needed) = (Lsn(4096), Lsn(100 << 20));
        let mut steps = Vec::new();
        while let Some(step) = next_step(forgotten, needed, segment_of) {
            assert_eq!(step.base, segment_of(forgotten).unwrap().0);
            assert_eq!(step.from.since(step.base) % STEP_BYTES, 0);
            assert!(step.from <= forgotten && step.to > forgotten);
            assert!(step.to <= step.base.plus(SEGMENT));
            forgotten = step.to;
            steps.push(step.to.0);
        }
        assert_eq!(steps.len(), 10, "{steps:?}");
        let kept = needed.since(forgotten);
        assert!((KEPT_BYTES..KEPT_BYTES + STEP_BYTES).contains(&kept), "{kept}");
    }

    #[test]
    fn nothing_that_is_needed_or_not_there_is_given_back() {
        let far = Lsn(1 << 40);
        assert_eq!(next_step(Lsn(0), Lsn(KEPT_BYTES), segment_of), None);
        assert_eq!(next_step(far, Lsn(4096), segment_of), None);
        assert_eq!(next_step(Lsn(0), far, |_| None), None);
    }
}
