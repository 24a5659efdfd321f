//! Frames out of read-only maps of the segments: for shipping to replicas behind the tip, and for
//! apply. Owned by the ring thread; what it gives out ([`Bytes`]) may go anywhere.
//!
//! The caller says how far it may look (`limit`, below its node's appended position): bytes below
//! are complete and were verified when they were written, received or recovered. So frames are
//! walked by their headers only: magic, place, and the header's seeded checksum.

use std::collections::BTreeMap;
use std::io;
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
}

/// A range of a segment to be brought into memory, on a thread that may wait for the disk.
pub struct PopulateJob {
    map: Arc<dyn Map>,
    offset: usize,
    len: usize,
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
        let (base, map) = self.holder(lsn).ok()?;
        Some((base, map.bytes().len() as u64))
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

    /// Whole frames from `from` on, of one segment, that end at or below `limit`: as many as fit
    /// `bytes_max`, at least one. None when no frame from there ends below the limit.
    ///
    /// # Errors
    /// [`LogError::Retired`] or [`LogError::NotHeld`] by where `from` is; [`LogError::Damage`]
    /// when no frame stands at a place where one must.
    pub fn whole_frames(
        &self,
        from: Lsn,
        limit: Lsn,
        bytes_max: usize,
    ) -> Result<Option<FrameRun>, LogError> {
        if from >= limit {
            return Ok(None);
        }
        let (base, map) = self.holder(from)?;
        let (mut next, mut end, mut frames) = (from, from, 0);
        loop {
            if next != end || end >= limit || end.since(base) as usize >= map.bytes().len() {
                // Behind a segment end, or all of it taken.
                break;
            }
            let header = self.parse(base, map, end)?;
            let after = header.end();
            let over = after.since(from) as usize > bytes_max && frames > 0;
            if after > limit || over {
                break;
            }
            next = self.next_of(base, map, &header)?;
            end = after;
            frames += 1;
        }
        if frames == 0 {
            return Ok(None);
        }
        let (offset, len) = (from.since(base) as usize, end.since(from) as usize);
        let bytes = MapRange::share(map.clone(), offset, len);
        Ok(Some(FrameRun { bytes, frames, next }))
    }

    /// The header of the frame that starts at `lsn`; none when no frame starts just there (a
    /// question that a peer may ask). `lsn` must be below the appended position.
    ///
    /// # Errors
    /// [`LogError::Retired`] or [`LogError::NotHeld`].
    pub fn frame_at(&self, lsn: Lsn) -> Result<Option<FrameHeader>, LogError> {
        let (base, map) = self.holder(lsn)?;
        Ok(self.parse(base, map, lsn).ok())
    }

    /// Chain value of the frame that ends where `lsn` starts the next one, in a log that ends at
    /// `end` with `end_chain`: what a peer must have to go on from `lsn`. None when no frame
    /// starts there.
    ///
    /// # Errors
    /// As [`SegmentMaps::frame_at`].
    pub fn chain_at(&self, lsn: Lsn, end: Lsn, end_chain: u64) -> Result<Option<u64>, LogError> {
        if lsn == end {
            return Ok(Some(end_chain));
        }
        if lsn > end {
            return Ok(None);
        }
        Ok(self.frame_at(lsn)?.map(|header| header.chain_previous))
    }

    /// The part of `from`'s segment from there on, up to `bytes_max` long, to be populated ahead
    /// of reading it. None when `from` is in no segment that is held.
    #[must_use]
    pub fn populate_range(&self, from: Lsn, bytes_max: usize) -> Option<PopulateJob> {
        let (base, map) = self.holder(from).ok()?;
        let offset = usize::try_from(from.since(base)).ok()?;
        let len = (map.bytes().len() - offset).min(bytes_max);
        Some(PopulateJob { map: map.clone(), offset, len })
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

    fn parse(&self, base: Lsn, map: &Arc<dyn Map>, lsn: Lsn) -> Result<FrameHeader, LogError> {
        let rest = map.bytes().get(lsn.since(base) as usize..).unwrap_or(&[]);
        let head = &rest[..rest.len().min(FRAME_HEADER_BYTES)];
        let parsed = FrameHeader::parse(head, self.seed, self.body_max);
        let placed = parsed.and_then(|header| {
            if header.lsn != lsn {
                return Err(FrameError::Lsn { found: header.lsn, expected: lsn });
            }
            if header.frame_bytes() > rest.len() {
                return Err(FrameError::Field("stored_len"));
            }
            Ok(header)
        });
        placed.map_err(|error| damage(base, lsn, &error))
    }

    fn next_of(
        &self,
        base: Lsn,
        map: &Arc<dyn Map>,
        header: &FrameHeader,
    ) -> Result<Lsn, LogError> {
        if header.kind() != Some(FrameKind::SegmentEnd) {
            return Ok(header.end());
        }
        let start = header.lsn.since(base) as usize + FRAME_HEADER_BYTES;
        let body = &map.bytes()[start..start + header.stored_len as usize];
        let end = SegmentEnd::parse(body, header.lsn);
        end.map(|end| end.next_frame()).map_err(|error| damage(base, header.lsn, &error))
    }
}

impl PopulateJob {
    /// Brings the range into memory; may wait for the disk.
    ///
    /// # Errors
    /// The system's. Reading goes on without it, only slower.
    pub fn run(&self) -> io::Result<()> {
        self.map.populate(self.offset, self.len)
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

    #[test]
    fn every_frame_is_given_once_in_runs_of_any_size() {
        let (log, maps) = log_and_maps();
        for bytes_max in [0, 97, 1000, 5000, 1 << 20] {
            let (mut from, mut frames, mut runs) = (Lsn(4096), 0, 0);
            while let Some(run) = maps.whole_frames(from, log.next, bytes_max).unwrap() {
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
        let upto = |limit| maps.whole_frames(first.lsn, limit, 1 << 20).unwrap();
        assert!(upto(first.lsn).is_none());
        assert!(upto(second.lsn.plus(0)).is_some_and(|run| run.frames == 1));
        assert!(upto(Lsn(second.lsn.0 - 8)).is_none());
        assert!(upto(second.end()).is_some_and(|run| run.frames == 2));
    }

    #[test]
    fn places_that_are_gone_bent_or_not_there_are_told_apart() {
        let (log, mut maps) = log_and_maps();
        let middle = log.frames[3].lsn;
        assert!(maps.frame_at(middle.plus(8)).unwrap().is_none());
        let damage = maps.whole_frames(middle.plus(8), log.next, 100).unwrap_err();
        assert!(matches!(damage, LogError::Damage { lsn, .. } if lsn == middle.plus(8)));
        log.disk.bend(&segment_file_name(Lsn::ZERO), middle.0 + 20, |byte| *byte ^= 1);
        let damage = maps.whole_frames(log.frames[2].lsn, log.next, 1 << 20).unwrap_err();
        assert!(matches!(damage, LogError::Damage { lsn, .. } if lsn == middle));
        let far = maps.whole_frames(Lsn(1 << 40), Lsn(1 << 41), 100).unwrap_err();
        assert!(matches!(far, LogError::NotHeld { .. }));
        maps.remove(Lsn::ZERO);
        let retired = maps.whole_frames(middle, log.next, 100).unwrap_err();
        let oldest = Lsn(65536 + 4096);
        assert!(matches!(retired, LogError::Retired { oldest: at, .. } if at == oldest));
        assert_eq!(maps.oldest(), Some(oldest));
    }

    #[test]
    fn a_chain_is_told_for_every_frame_start_and_for_the_end() {
        let (log, maps) = log_and_maps();
        let chain_at = |lsn| maps.chain_at(lsn, log.next, log.chain).unwrap();
        for pair in log.frames.windows(2) {
            assert_eq!(chain_at(pair[1].lsn), Some(pair[0].chain()));
        }
        assert_eq!(chain_at(log.next), Some(log.chain));
        assert_eq!(chain_at(log.next.plus(8)), None);
        assert_eq!(chain_at(log.frames[5].lsn.plus(16)), None);
    }

    #[test]
    fn bytes_given_out_outlive_their_segment_and_can_be_populated() {
        let (log, mut maps) = log_and_maps();
        let run = maps.whole_frames(Lsn(4096), log.next, 1 << 20).unwrap().unwrap();
        maps.populate_range(Lsn(4096), 1 << 30).unwrap().run().unwrap();
        assert!(maps.populate_range(Lsn(1 << 40), 1).is_none());
        maps.remove(Lsn::ZERO);
        log.disk.remove(&segment_file_name(Lsn::ZERO)).unwrap();
        let header = FrameHeader::parse(&run.bytes, TEST_LOG.seed(), 4096).unwrap();
        assert_eq!(header, log.frames[0]);
    }
}
