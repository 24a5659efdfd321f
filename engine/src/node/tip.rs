//! The tip: the newest frames of the log, still in memory, for whoever sends or applies them at
//! once. Readers further behind use the maps.

use std::collections::VecDeque;

use bytes::Bytes;
use rowship_proto::{Epoch, Lsn};

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

/// The newest runs, oldest first, without gaps. What is not durable yet is always here.
///
/// Limit: `runs_max` durable runs; not yet durable ones are bounded by the frame pool on a primary
/// and by the write queue on a replica.
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
        while self.runs.len() > keep && self.runs.front().is_some_and(|run| run.next <= durable) {
            self.runs.pop_front();
        }
    }

    /// Empties the tip of a log that was cut to `end`.
    pub fn reset(&mut self, end: Lsn) {
        self.runs.clear();
        self.end = end;
    }

    /// The run that starts at `from`, and those that follow it without a gap in their bytes'
    /// segment order, up to `bytes_max` (at least one) and not beyond `limit`.
    pub fn from(&self, from: Lsn, limit: Lsn, bytes_max: usize) -> Vec<Run> {
        let Ok(at) = self.runs.binary_search_by_key(&from, |run| run.start) else {
            return Vec::new();
        };
        let mut bytes = 0;
        let mut found = Vec::new();
        for run in self.runs.range(at..) {
            if run.next > limit || (bytes > 0 && bytes + run.bytes.len() > bytes_max) {
                break;
            }
            bytes += run.bytes.len();
            found.push(run.clone());
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

    fn run(start: u64, next: u64) -> Run {
        let bytes = Bytes::from(vec![0; 8]);
        Run { start: Lsn(start), next: Lsn(next), bytes, chain: 0, epoch: Epoch::NONE, mark: false }
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
