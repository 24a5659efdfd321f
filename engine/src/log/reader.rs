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
