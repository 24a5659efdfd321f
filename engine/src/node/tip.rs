//! The tip: the newest frames of the log, still in memory, for whoever sends or applies them at
//! once. Readers further behind use the maps.

use std::collections::VecDeque;

use bytes::Bytes;
use rowship_proto::sim::{Mark, mark};
use rowship_proto::{Epoch, FrameHeader, Lsn};
use zerocopy::FromBytes;

/// A run of whole frames, contiguous, within one segment.
#[derive(Clone, Debug)]
pub struct Run {
    /// LSN of the first frame.
    pub start: Lsn,
    /// LSN of the frame behind the last one (in the next segment, after a segment's end).
    pub next: Lsn,
    /// The frames.
    pub bytes: Bytes,
    /// Chain value of the last frame.
    pub chain: u64,
    /// Epoch of the last frame.
    pub epoch: Epoch,
    /// The last frame is a mark: a window ends here. Marks are nowhere else in a run.
    pub mark: bool,
}

impl Run {
    /// Its frames from `from` up to `limit`. Nothing when no frame starts there, or none ends.
    fn part(&self, from: Lsn, limit: Lsn) -> Option<Run> {
        if self.start == from && self.next <= limit {
            return Some(self.clone());
        }
        mark(Mark::RunDivided);
        let (mut begin, mut end, mut last) = (None, 0, None);
        while let Ok((header, _)) = FrameHeader::read_from_prefix(&self.bytes[end..]) {
            if header.lsn == from {
                begin = Some(end);
            }
            let next = end + header.frame_bytes();
            let beyond = if next == self.bytes.len() { self.next } else { header.end() };
            if next > self.bytes.len() || beyond > limit {
                break;
            }
            (end, last) = (next, Some((header, beyond)));
        }
        let (begin, (header, next)) = (begin?, last?);
        (begin < end).then(|| Run {
            start: from,
            next,
            bytes: self.bytes.slice(begin..end),
            chain: header.chain(),
            epoch: header.epoch,
            mark: self.mark && next == self.next,
        })
    }
}

/// A backlog comes in runs of megabytes; those who do not keep up with it read it from the disk
/// soon.
const BYTES_MAX: u64 = 4 << 20;

/// The newest runs, oldest first, without gaps. What is not durable yet is always here.
///
/// Limit: `runs_max` durable runs, back to 4 MiB before the end; not yet durable ones are
/// bounded by the frame pool on a primary and by the write queue on a replica.
#[derive(Debug)]
pub struct Tip {
    runs: VecDeque<Run>,
    runs_max: usize,
    end: Lsn,
}

impl Tip {
    /// An empty tip of a log that ends at `end`.
    #[must_use]
    pub fn new(end: Lsn, runs_max: usize) -> Tip {
        Tip { runs: VecDeque::new(), runs_max, end }
    }

    /// Adds the next run; drops the oldest durable ones beyond the limit.
    ///
    /// # Panics
    /// When it does not follow the last one.
    pub fn push(&mut self, run: Run, durable: Lsn) {
        assert_eq!(run.start, self.end, "runs follow one another");
        self.end = run.next;
        self.runs.push_back(run);
        self.trim(durable, self.runs_max);
    }

    /// Drops durable runs, oldest first, until at most `keep` runs are left.
    pub fn trim(&mut self, durable: Lsn, keep: usize) {
        while let Some(run) = self.runs.front() {
            let over = self.runs.len() > keep || self.end.since(run.start) > BYTES_MAX;
            if run.next > durable || !over {
                break;
            }
            self.runs.pop_front();
        }
    }

    /// Empties the tip of a log that was cut to `end`.
    pub fn reset(&mut self, end: Lsn) {
        self.runs.clear();
        self.end = end;
    }

    /// The frames from `from` on, in segment order without a gap, up to `bytes_max` (at least one
    /// run) and not beyond `limit`. Runs at both ends may be parts. Nothing when no frame of the
    /// tip starts there.
    pub fn from(&self, from: Lsn, limit: Lsn, bytes_max: usize) -> Vec<Run> {
        let at = self.runs.partition_point(|run| run.next <= from);
        let (mut bytes, mut from) = (0, from);
        let mut found = Vec::new();
        for run in self.runs.range(at..) {
            if bytes > 0 && bytes + run.bytes.len() > bytes_max {
                break;
            }
            let Some(part) = run.part(from, limit) else { break };
            bytes += part.bytes.len();
            from = part.next;
            let ends = from < run.next;
            found.push(part);
            if ends {
                break;
            }
        }
        found
    }

    /// Runs held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowship_proto::frame::{Seal, sealed_frame};
    use rowship_proto::{FrameKind, LogId};

    fn run(start: u64, next: u64) -> Run {
        let bytes = Bytes::from(vec![0; 8]);
        Run { start: Lsn(start), next: Lsn(next), bytes, chain: 0, epoch: Epoch::NONE, mark: false }
    }

    #[test]
    fn large_runs_are_kept_only_near_the_end() {
        let mut tip = Tip::new(Lsn(0), 9);
        for at in 0..9 {
            let start = at << 20;
            tip.push(run(start, start + (1 << 20)), Lsn(start));
        }
        assert_eq!(tip.len(), 4);
        tip.push(run(9 << 20, 30 << 20), Lsn(0));
        assert_eq!(tip.len(), 5, "not durable");
        tip.trim(Lsn(30 << 20), 9);
        assert!(tip.is_empty());
    }

    #[test]
    fn what_is_not_durable_is_never_dropped() {
        let mut tip = Tip::new(Lsn(0), 1);
        tip.push(run(0, 8), Lsn(0));
        tip.push(run(8, 16), Lsn(0));
        assert_eq!(tip.len(), 2);
        tip.push(run(16, 24), Lsn(16));
        assert_eq!(tip.len(), 1);
        assert!(tip.from(Lsn(0), Lsn(24), 100).is_empty());
        assert_eq!(tip.from(Lsn(16), Lsn(24), 100).len(), 1);
    }

    #[test]
    fn a_run_is_divided_between_its_frames_only() {
        let mut seal = Seal::first(LogId([1, 2]), Epoch::NONE);
        let (mut bytes, mut ends) = (Vec::new(), vec![Lsn(4096)]);
        for body in [8, 16, 0] {
            let at = *ends.last().unwrap();
            let (header, frame) = sealed_frame(FrameKind::Mark, 0, at, &vec![0; body], &seal);
            seal.chain_previous = header.chain();
            ends.push(header.end());
            bytes.extend(frame);
        }
        // The first frame of the next segment follows.
        let next = Lsn(16384);
        let (start, chain, epoch) = (ends[0], seal.chain_previous, Epoch::NONE);
        let bytes = Bytes::from(bytes);
        let mut tip = Tip::new(start, 9);
        tip.push(Run { start, next, bytes: bytes.clone(), chain, epoch, mark: true }, start);
        let places = |from: Lsn, limit: Lsn| {
            let found = tip.from(from, limit, 0);
            found.first().map(|run| (run.start, run.next, run.bytes.len(), run.mark))
        };
        assert_eq!(places(start, next), Some((start, next, bytes.len(), true)));
        let first = ends[1].since(start) as usize;
        assert_eq!(
            places(start, ends[2].plus(8)),
            Some((start, ends[2], first + 8 + first, false))
        );
        assert_eq!(places(ends[1], next), Some((ends[1], next, bytes.len() - first, true)));
        assert_eq!(places(ends[1], ends[2]), Some((ends[1], ends[2], first + 8, false)));
        assert_eq!(places(ends[1], ends[1].plus(8)), None, "no frame ends there");
        assert_eq!(places(ends[1].plus(8), next), None, "no frame starts there");
        assert_eq!(places(ends[1], start), None);
        let middle = tip.from(ends[1], ends[2], 0).remove(0);
        let (header, _) = FrameHeader::read_from_prefix(&bytes[first..]).unwrap();
        assert_eq!(
            (middle.chain, &middle.bytes[..]),
            (header.chain(), &bytes[first..][..middle.bytes.len()])
        );
    }

    #[test]
    fn runs_are_given_up_to_the_limit_and_at_least_one() {
        let mut tip = Tip::new(Lsn(0), 9);
        for at in 0..4 {
            tip.push(run(at * 8, at * 8 + 8), Lsn(0));
        }
        assert_eq!(tip.from(Lsn(8), Lsn(24), 100).len(), 2);
        assert_eq!(tip.from(Lsn(8), Lsn(32), 1).len(), 1);
        assert!(tip.from(Lsn(4), Lsn(32), 100).is_empty());
    }
}
