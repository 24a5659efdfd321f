//! Frames out of read-only maps of the segments: for shipping to replicas behind the tip, and for
//! apply. Owned by the ring thread; what it gives out ([`Bytes`]) may go anywhere.
//!
//! The caller says how far it may look (`limit`, below its node's appended position): bytes below
//! are complete and were verified when they were written, received or recovered. Since then they
//! may have rotted, and their pages may have gone cold: so a [`Reading`] runs on a worker, brings
//! them in and checks them again, bodies included.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rowship_proto::control::{SEGMENT_HEADER_BYTES, SegmentEnd};
use rowship_proto::frame::FrameError;
use rowship_proto::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};

use super::LogError;
use super::segment::segment_file_name;
use crate::edge::{Map, MapRange};

/// The maps of all segments, by base.
pub struct SegmentMaps {
    seed: u64,
    body_max: usize,
    segments: BTreeMap<Lsn, Arc<dyn Map>>,
}

/// A run of whole frames of one segment, as it lies in the log.
#[derive(Clone, Debug)]
pub struct FrameRun {
    /// The frames, shared with the map.
    pub bytes: Bytes,
    /// How many.
    pub frames: usize,
    /// Where the frame behind them starts; in the next segment behind a segment end.
    pub next: Lsn,
    /// The last frame is a mark: whoever applies ends a window here.
    pub mark: bool,
}

/// One segment's part of a log, to be read on a thread that may wait for the disk.
pub struct Reading {
    seed: u64,
    body_max: usize,
    base: Lsn,
    map: Arc<dyn Map>,
    from: Lsn,
}

impl SegmentMaps {
    /// No segments yet. `seed` is that of the log, `body_max` the largest body that any of its
    /// segments may have, in bytes.
    #[must_use]
    pub fn new(seed: u64, body_max: usize) -> SegmentMaps {
        SegmentMaps { seed, body_max, segments: BTreeMap::new() }
    }

    /// Adds the segment with this base.
    pub fn add(&mut self, base: Lsn, map: Arc<dyn Map>) {
        self.segments.insert(base, map);
    }

    /// Forgets the segment with this base, before its file is retired or cut. Bytes that were
    /// given out keep their map.
    pub fn remove(&mut self, base: Lsn) {
        self.segments.remove(&base);
    }

    /// Forgets segments that begin above `end`: the log was cut there.
    pub fn remove_above(&mut self, end: Lsn) {
        self.segments.retain(|base, _| *base <= end);
    }

    /// Base and size in bytes of the segment that holds `lsn`.
    #[must_use]
    pub fn segment_of(&self, lsn: Lsn) -> Option<(Lsn, u64)> {
        let (base, map) = self.map_of(lsn)?;
        Some((base, map.bytes().len() as u64))
    }

    /// Base and map of the segment that holds `lsn`.
    #[must_use]
    pub fn map_of(&self, lsn: Lsn) -> Option<(Lsn, &Arc<dyn Map>)> {
        self.holder(lsn).ok()
    }

    /// First frame of the oldest segment.
    #[must_use]
    pub fn oldest(&self) -> Option<Lsn> {
        self.segments.keys().next().map(|base| base.plus(SEGMENT_HEADER_BYTES))
    }

    /// Bases of all segments held, oldest first.
    pub fn bases(&self) -> impl Iterator<Item = Lsn> {
        self.segments.keys().copied()
    }

    /// The part of the log from `from` to the end of its segment.
    ///
    /// # Errors
    /// [`LogError::Retired`] or [`LogError::NotHeld`] by where `from` is.
    pub fn reading(&self, from: Lsn) -> Result<Reading, LogError> {
        let (base, map) = self.holder(from)?;
        let (seed, body_max) = (self.seed, self.body_max);
        Ok(Reading { seed, body_max, base, map: map.clone(), from })
    }

    fn holder(&self, lsn: Lsn) -> Result<(Lsn, &Arc<dyn Map>), LogError> {
        let found = self.segments.range(..=lsn).next_back();
        let Some((base, map)) = found else {
            return Err(match self.oldest() {
                Some(oldest) => LogError::Retired { lsn, oldest },
                None => LogError::NotHeld { lsn },
            });
        };
        if lsn.since(*base) >= map.bytes().len() as u64 {
            return Err(LogError::NotHeld { lsn });
        }
        Ok((*base, map))
    }
}

impl Reading {
    /// Whole frames that end at or below `limit`: as many as fit `bytes_max`, at least one, none
    /// behind a mark. Brings their pages in, which may wait for the disk, and checks every frame.
    /// None when no frame from there ends below the limit.
    ///
    /// # Errors
    /// [`LogError::Damage`] when no frame stands at a place where one must, or one has rotted;
    /// [`LogError::Io`] when the disk cannot read a page of it.
    pub fn whole_frames(&self, limit: Lsn, bytes_max: usize) -> Result<Option<FrameRun>, LogError> {
        let from = self.from;
        if from >= limit {
            return Ok(None);
        }
        let left = self.map.bytes().len() - from.since(self.base) as usize;
        let mut bytes = self.bring_in(left.min(bytes_max).min(limit.since(from) as usize))?;
        let (mut next, mut end, mut frames, mut mark) = (from, from, 0, false);
        // Behind a segment's end the next frame is elsewhere.
        while !mark && next == end && end < limit && (end.since(from) as usize) < left {
            let at = end.since(from) as usize;
            if at + FRAME_HEADER_BYTES > bytes.len() {
                if frames > 0 {
                    break;
                }
                bytes = self.bring_in(left.min(FRAME_HEADER_BYTES))?;
            }
            let header = self.parse(&bytes[at..], end, left - at)?;
            let after = header.end();
            let over = after.since(from) as usize > bytes_max && frames > 0;
            if after > limit || over {
                break;
            }
            if after.since(from) as usize > bytes.len() {
                // A first frame larger than asked for.
                bytes = self.bring_in(header.frame_bytes())?;
            }
            let body = &bytes[at + FRAME_HEADER_BYTES..][..header.stored_len as usize];
            header.check_body(body).map_err(|error| damage(self.base, end, &error))?;
            next = after;
            if header.kind() == Some(FrameKind::SegmentEnd) {
                let parsed = SegmentEnd::parse(body, end);
                next = parsed.map_err(|error| damage(self.base, end, &error))?.next_frame();
            }
            mark = header.kind() == Some(FrameKind::Mark);
            end = after;
            frames += 1;
        }
        if frames == 0 {
            return Ok(None);
        }
        bytes.truncate(end.since(from) as usize);
        Ok(Some(FrameRun { bytes, frames, next, mark }))
    }

    /// Chain value of the frame before the one that starts here; none when no frame starts just
    /// here (a question that a peer may ask). May wait for the disk.
    ///
    /// # Errors
    /// [`LogError::Io`] when the disk cannot read its page.
    pub fn chain_previous(&self) -> Result<Option<u64>, LogError> {
        let left = self.map.bytes().len() - self.from.since(self.base) as usize;
        let head = self.bring_in(left.min(FRAME_HEADER_BYTES))?;
        Ok(self.parse(&head, self.from, left).ok().map(|header| header.chain_previous))
    }

    /// So many bytes from where this reads, brought into memory before anything touches them: what
    /// the disk cannot read is an error here, and SIGBUS, the end of the process, there.
    fn bring_in(&self, len: usize) -> Result<Bytes, LogError> {
        let offset = self.from.since(self.base) as usize;
        let read = || {
            if let Some(copy) = self.map.read_cold(offset, len)? {
                return Ok(copy);
            }
            self.map.populate(offset, len)?;
            Ok(MapRange::share(self.map.clone(), offset, len))
        };
        let file = segment_file_name(self.base);
        read().map_err(|source| LogError::Io { doing: "read", file, source })
    }

    /// The header of the frame at `lsn`, whose segment goes on for `left` bytes from there.
    fn parse(&self, bytes: &[u8], lsn: Lsn, left: usize) -> Result<FrameHeader, LogError> {
        let head = &bytes[..bytes.len().min(FRAME_HEADER_BYTES)];
        let parsed = FrameHeader::parse(head, self.seed, self.body_max);
        let placed = parsed.and_then(|header| {
            if header.lsn != lsn {
                return Err(FrameError::Lsn { found: header.lsn, expected: lsn });
            }
            if header.frame_bytes() > left {
                return Err(FrameError::Field("stored_len"));
            }
            Ok(header)
        });
        placed.map_err(|error| damage(self.base, lsn, &error))
    }
}

fn damage(base: Lsn, lsn: Lsn, error: &FrameError) -> LogError {
    let (segment, offset) = (segment_file_name(base), lsn.since(base));
    LogError::Damage { segment, offset, lsn, what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::Disk;
    use crate::log::testing::{MemoryDisk, TEST_LOG, TINY_BODY_BYTES, TestLog};

    fn log_and_maps() -> (TestLog<MemoryDisk>, SegmentMaps) {
        let mut log = TestLog::create(MemoryDisk::new()).unwrap();
        log.fill_segments(3, 4).unwrap();
        log.rows(&[100, 200]).unwrap();
        let mut maps = SegmentMaps::new(TEST_LOG.seed(), TINY_BODY_BYTES as usize);
        for (base, _) in crate::log::segment::list_segments(&log.disk).unwrap() {
            maps.add(base, log.disk.map(&segment_file_name(base)).unwrap());
        }
        (log, maps)
    }

    fn read(
        maps: &SegmentMaps,
        from: Lsn,
        limit: Lsn,
        bytes_max: usize,
    ) -> Result<Option<FrameRun>, LogError> {
        maps.reading(from)?.whole_frames(limit, bytes_max)
    }

    #[test]
    fn every_frame_is_given_once_in_runs_of_any_size() {
        let (log, maps) = log_and_maps();
        for bytes_max in [0, 97, 1000, 5000, 1 << 20] {
            let (mut from, mut frames, mut runs) = (Lsn(4096), 0, 0);
            while let Some(run) = read(&maps, from, log.next, bytes_max).unwrap() {
                let first = &log.frames[frames];
                let last = &log.frames[frames + run.frames - 1];
                assert_eq!((first.lsn, last.end().since(from)), (from, run.bytes.len() as u64));
                assert!(run.frames == 1 || run.bytes.len() <= bytes_max);
                frames += run.frames;
                runs += 1;
                let following = log.frames.get(frames).map_or(log.next, |header| header.lsn);
                assert_eq!(run.next, following);
                from = run.next;
            }
            assert_eq!((from, frames), (log.next, log.frames.len()));
            assert_eq!(bytes_max == 1 << 20, runs == 3, "one run per segment is enough");
        }
    }

    #[test]
    fn nothing_beyond_the_limit_is_given() {
        let (log, maps) = log_and_maps();
        let (first, second) = (&log.frames[0], &log.frames[1]);
        let upto = |limit| read(&maps, first.lsn, limit, 1 << 20).unwrap();
        assert!(upto(first.lsn).is_none());
        assert!(upto(second.lsn.plus(0)).is_some_and(|run| run.frames == 1));
        assert!(upto(Lsn(second.lsn.0 - 8)).is_none());
        assert!(upto(second.end()).is_some_and(|run| run.frames == 2));
    }

    #[test]
    fn places_that_are_gone_bent_or_not_there_are_told_apart() {
        let (log, mut maps) = log_and_maps();
        let middle = log.frames[3].lsn;
        assert_eq!(maps.reading(middle.plus(8)).unwrap().chain_previous().unwrap(), None);
        let damage = read(&maps, middle.plus(8), log.next, 100).unwrap_err();
        assert!(matches!(damage, LogError::Damage { lsn, .. } if lsn == middle.plus(8)));
        log.disk.bend(&segment_file_name(Lsn::ZERO), middle.0 + 20, |byte| *byte ^= 1);
        let damage = read(&maps, log.frames[2].lsn, log.next, 1 << 20).unwrap_err();
        assert!(matches!(damage, LogError::Damage { lsn, .. } if lsn == middle));
        let far = read(&maps, Lsn(1 << 40), Lsn(1 << 41), 100).unwrap_err();
        assert!(matches!(far, LogError::NotHeld { .. }));
        maps.remove(Lsn::ZERO);
        let retired = read(&maps, middle, log.next, 100).unwrap_err();
        let oldest = Lsn(65536 + 4096);
        assert!(matches!(retired, LogError::Retired { oldest: at, .. } if at == oldest));
        assert_eq!(maps.oldest(), Some(oldest));
    }

    #[test]
    fn a_body_that_has_rotted_is_not_given() {
        let (log, maps) = log_and_maps();
        let second = &log.frames[1];
        let inside = second.lsn.0 + FRAME_HEADER_BYTES as u64 + 3;
        log.disk.bend(&segment_file_name(Lsn::ZERO), inside, |byte| *byte ^= 1);
        let damage = read(&maps, log.frames[0].lsn, log.next, 1 << 20).unwrap_err();
        assert!(matches!(damage, LogError::Damage { lsn, .. } if lsn == second.lsn), "{damage}");
    }

    #[test]
    fn nothing_behind_a_mark_is_given_with_it() {
        let mut log = TestLog::create(MemoryDisk::new()).unwrap();
        log.rows(&[10]).unwrap();
        let from = log.frames.last().unwrap().lsn;
        log.control(FrameKind::Mark, b"").unwrap();
        let behind = log.next;
        log.rows(&[20]).unwrap();
        let mut maps = SegmentMaps::new(TEST_LOG.seed(), TINY_BODY_BYTES as usize);
        maps.add(Lsn::ZERO, log.disk.map(&segment_file_name(Lsn::ZERO)).unwrap());
        let marked = read(&maps, from, log.next, 1 << 20).unwrap().unwrap();
        assert_eq!((marked.next, marked.frames, marked.mark), (behind, 2, true));
        let rest = read(&maps, behind, log.next, 1 << 20).unwrap().unwrap();
        assert_eq!((rest.next, rest.mark), (log.next, false));
    }

    #[test]
    fn a_chain_is_told_for_every_frame_start() {
        let (log, maps) = log_and_maps();
        let chain_below = |lsn| maps.reading(lsn).unwrap().chain_previous().unwrap();
        for pair in log.frames.windows(2) {
            assert_eq!(chain_below(pair[1].lsn), Some(pair[0].chain()));
        }
        assert_eq!(chain_below(log.frames[5].lsn.plus(16)), None);
    }

    #[test]
    fn bytes_given_out_outlive_their_segment() {
        let (log, mut maps) = log_and_maps();
        let run = read(&maps, Lsn(4096), log.next, 1 << 20).unwrap().unwrap();
        maps.remove(Lsn::ZERO);
        log.disk.remove(&segment_file_name(Lsn::ZERO)).unwrap();
        let header = FrameHeader::parse(&run.bytes, TEST_LOG.seed(), 4096).unwrap();
        assert_eq!(header, log.frames[0]);
    }
}
