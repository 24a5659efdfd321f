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
    /// Its bytes are a copy, and hold no buffer that others wait for.
    pub copy: bool,
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
            copy: self.copy,
        })
    }
}

/// A larger run is no longer to read from the disk than many small ones.
const COPY_BYTES_MAX: usize = 64 << 10;
const COPIES_MAX: usize = 4096;

/// The newest runs, oldest first, without gaps. What is not durable yet is always here.
///
/// Durable runs hold the buffers they came in (of the frame pool, or of a receiver) only while they
/// are among the newest few. Small ones stay as copies: the disk would be asked for each, by
/// everybody who is a little behind.
///
/// Limits: `runs_max` durable runs in their buffers, and 4096 copies of at most 64 KiB, back to
/// `bytes_max` before the end (a backlog comes in runs of megabytes; those who do not keep up with
/// it read it from the disk soon); not yet durable ones are bounded by the frame pool on a primary
/// and by the write queue on a replica.
#[derive(Debug)]
pub struct Tip {
    runs: VecDeque<Run>,
    /// So many of the oldest are copies.
    copies: usize,
    runs_max: usize,
    bytes_max: u64,
    end: Lsn,
}

impl Tip {
    /// An empty tip of a log that ends at `end`.
    #[must_use]
    pub fn new(end: Lsn, runs_max: usize, bytes_max: usize) -> Tip {
        let (runs, copies, bytes_max) = (VecDeque::new(), 0, bytes_max as u64);
        Tip { runs, copies, runs_max, bytes_max, end }
    }

    /// Adds the next run; drops the oldest durable ones beyond the limits.
    ///
    /// # Panics
    /// When it does not follow the last one.
    pub fn push(&mut self, run: Run, durable: Lsn) {
        assert_eq!(run.start, self.end, "runs follow one another");
        self.end = run.next;
        self.runs.push_back(run);
        self.trim(durable, self.runs_max);
    }

    /// Leaves at most the newest `keep` of durable runs in their buffers.
    pub fn trim(&mut self, durable: Lsn, keep: usize) {
        let mut gone = 0;
        while let Some(run) = self.runs.get(gone) {
            let over =
                self.end.since(run.start) > self.bytes_max || self.copies > COPIES_MAX + gone;
            if run.next > durable || !over {
                break;
            }
            gone += 1;
        }
        self.drop_oldest(gone);
        while self.runs.len() - self.copies > keep {
            let run = &mut self.runs[self.copies];
            if run.next > durable {
                break;
            }
            if run.bytes.len() <= COPY_BYTES_MAX {
                run.bytes = Bytes::copy_from_slice(&run.bytes);
                run.copy = true;
                self.copies += 1;
            } else {
                self.drop_oldest(self.copies + 1);
            }
        }
    }

    fn drop_oldest(&mut self, count: usize) {
        self.runs.drain(..count);
        self.copies = self.copies.saturating_sub(count);
    }

    /// Empties the tip of a log that was cut to `end`.
    pub fn reset(&mut self, end: Lsn) {
        self.runs.clear();
        self.copies = 0;
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

    const BYTES_MAX: usize = 4 << 20;

    fn run(start: u64, next: u64) -> Run {
        let bytes = Bytes::from(vec![0; 8]);
        let (start, next, chain, epoch) = (Lsn(start), Lsn(next), 0, Epoch::NONE);
        Run { start, next, bytes, chain, epoch, mark: false, copy: false }
    }

    /// A run of real length.
    fn full(start: u64, next: u64) -> Run {
        Run { bytes: Bytes::from(vec![1; (next - start) as usize]), ..run(start, next) }
    }

    #[test]
    fn large_runs_are_kept_only_near_the_end() {
        let mut tip = Tip::new(Lsn(0), 9, BYTES_MAX);
        for at in 0..9 {
            let start = at << 20;
            tip.push(full(start, start + (1 << 20)), Lsn(start));
        }
        assert_eq!(tip.len(), 4);
        tip.push(run(9 << 20, 30 << 20), Lsn(0));
        assert_eq!(tip.len(), 5, "not durable");
        tip.trim(Lsn(30 << 20), 9);
        assert!(tip.is_empty());
    }

    #[test]
    fn small_runs_stay_as_copies_and_give_their_buffers_back() {
        let mut tip = Tip::new(Lsn(0), 2, BYTES_MAX);
        let runs: Vec<Run> = (0..5).map(|at| full(at * 1000, at * 1000 + 1000)).collect();
        for run in &runs {
            tip.push(run.clone(), run.start);
        }
        let found = tip.from(Lsn(0), Lsn(u64::MAX), usize::MAX);
        let held: Vec<bool> =
            found.iter().zip(&runs).map(|(a, b)| a.bytes.as_ptr() == b.bytes.as_ptr()).collect();
        assert_eq!(held, [false, false, false, true, true]);
        assert!(found.iter().zip(held).all(|(run, held)| run.copy != held));
        assert!(found.iter().zip(&runs).all(|(a, b)| a.bytes == b.bytes && a.next == b.next));
        // Nothing stays before a large one that goes.
        tip.push(full(5000, 5000 + COPY_BYTES_MAX as u64 + 1), Lsn(5000));
        let end = 5001 + COPY_BYTES_MAX as u64;
        tip.push(full(end, end + 8), Lsn(end));
        tip.trim(Lsn(end), 1);
        assert_eq!(tip.from(Lsn(end), Lsn(u64::MAX), 0).len(), 1);
        assert_eq!(tip.len(), 1);
    }

    #[test]
    fn copies_are_bounded_in_number_and_in_bytes() {
        let mut tip = Tip::new(Lsn(0), 1, BYTES_MAX);
        for at in 0..2 * COPIES_MAX as u64 {
            tip.push(run(at * 8, at * 8 + 8), Lsn(at * 8));
        }
        assert_eq!(tip.len(), COPIES_MAX + 2, "one durable in its buffer, one not durable");
        let mut tip = Tip::new(Lsn(0), 1, BYTES_MAX);
        for at in 0..2000 {
            tip.push(run(at * 8192, at * 8192 + 8192), Lsn(at * 8192));
        }
        assert_eq!(tip.len(), 512);
    }

    #[test]
    fn what_is_not_durable_is_never_dropped() {
        let mut tip = Tip::new(Lsn(0), 1, BYTES_MAX);
        tip.push(full(0, 100_000), Lsn(0));
        tip.push(full(100_000, 200_000), Lsn(0));
        assert_eq!(tip.len(), 2);
        tip.push(full(200_000, 300_000), Lsn(200_000));
        assert_eq!(tip.len(), 1);
        assert!(tip.from(Lsn(0), Lsn(300_000), 100).is_empty());
        assert_eq!(tip.from(Lsn(200_000), Lsn(300_000), 100).len(), 1);
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
        let mut tip = Tip::new(start, 9, BYTES_MAX);
        let run = Run { start, next, bytes: bytes.clone(), chain, epoch, mark: true, copy: false };
        tip.push(run, start);
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
        let mut tip = Tip::new(Lsn(0), 9, BYTES_MAX);
        for at in 0..4 {
            tip.push(run(at * 8, at * 8 + 8), Lsn(0));
        }
        assert_eq!(tip.from(Lsn(8), Lsn(24), 100).len(), 2);
        assert_eq!(tip.from(Lsn(8), Lsn(32), 1).len(), 1);
        assert!(tip.from(Lsn(4), Lsn(32), 100).is_empty());
    }
}
