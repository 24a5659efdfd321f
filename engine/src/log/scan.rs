//! Reading one segment file with pread, in large pieces: for recovery and for verification, which
//! must see what the disk holds and must get an error, not a signal, where it cannot be read.

use rowship_proto::control::{SEGMENT_END_FRAME_BYTES, SEGMENT_HEADER_BYTES, SegmentEnd};
use rowship_proto::frame::FrameError;
use rowship_proto::sim::{Mark, mark};
use rowship_proto::verify::{PADDING, StreamVerifier, check_padding, find_live_frame, stands_here};
use rowship_proto::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};

use super::LogError;
use super::segment::{SegmentHeader, segment_file_name};
use crate::edge::Disk;

/// Bytes of one read. A frame is read whole, so the buffer can grow to the largest frame.
const READ_STEP_BYTES: u64 = 1 << 20;

/// One segment file, and a buffer over a part of it.
pub struct SegmentScan<'d, D> {
    disk: &'d D,
    name: String,
    base: Lsn,
    /// Bytes of the file.
    segment_bytes: u64,
    buffer: Vec<u8>,
    buffer_offset: u64,
}

/// What stands at a place of a segment.
pub enum Found<'b> {
    /// The frame that continues the stream, whole: `bytes` are header, body and padding.
    Frame {
        /// Its header.
        header: FrameHeader,
        /// All its bytes.
        bytes: &'b [u8],
        /// The verifier, moved on behind this frame.
        after: StreamVerifier,
    },
    /// Not that frame, for this reason.
    Invalid {
        /// What does not hold.
        error: FrameError,
        /// Whether a whole header that was written for just this place stands there. If not,
        /// it may be zeroes, a recycled segment's bytes, or a torn write.
        live: bool,
    },
}

impl<'d, D: Disk> SegmentScan<'d, D> {
    /// A scan of the segment file with this header.
    pub fn new(disk: &'d D, header: &SegmentHeader) -> SegmentScan<'d, D> {
        SegmentScan::of_file(disk, header.base, header.segment_bytes)
    }

    /// A scan of a file whose header page may be unreadable.
    pub fn of_file(disk: &'d D, base: Lsn, file_bytes: u64) -> SegmentScan<'d, D> {
        let name = segment_file_name(base);
        let (buffer, buffer_offset) = (Vec::new(), 0);
        SegmentScan { disk, name, base, segment_bytes: file_bytes, buffer, buffer_offset }
    }

    /// LSN just behind the file's last byte.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.base.plus(self.segment_bytes)
    }

    /// Forgets what was read: the next access reads again.
    pub fn reread(&mut self) {
        self.buffer.clear();
    }

    /// Up to `len` bytes at `lsn`, fewer at the end of the file.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn bytes(&mut self, lsn: Lsn, len: u64) -> Result<&[u8], LogError> {
        assert!(lsn >= self.base, "a scan stays in its segment");
        let offset = lsn.since(self.base);
        let end = offset.saturating_add(len).min(self.segment_bytes);
        let held = self.buffer_offset..self.buffer_offset + self.buffer.len() as u64;
        if !(held.start <= offset && end <= held.end) && offset < end {
            let read_end = end.max(offset + READ_STEP_BYTES).min(self.segment_bytes);
            self.buffer.resize(index(read_end - offset), 0);
            self.buffer_offset = offset;
            let read = self.disk.read_exact_at(&self.name, offset, &mut self.buffer);
            if let Err(source) = read {
                self.buffer.clear();
                return Err(LogError::io("read", self.disk.path(&self.name))(source));
            }
        }
        if offset >= end {
            return Ok(&[]);
        }
        let start = index(offset - self.buffer_offset);
        Ok(&self.buffer[start..start + index(end - offset)])
    }

    /// Looks at the place where `verifier` stands; moves nothing.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn frame(&mut self, verifier: &StreamVerifier) -> Result<Found<'_>, LogError> {
        let (lsn, seed, end) = (verifier.next, verifier.seed, self.end());
        let head = self.bytes(lsn, FRAME_HEADER_BYTES as u64)?;
        let live = stands_here(head, lsn, seed);
        let header = match verifier.header(head) {
            Ok(header) => header,
            Err(error) => return Ok(Found::Invalid { error, live }),
        };
        let bytes = self.bytes(lsn, header.frame_bytes() as u64)?;
        let kept = match header.kind() {
            Some(FrameKind::SegmentEnd) => 0,
            _ => SEGMENT_END_FRAME_BYTES,
        };
        let checked = if header.end().plus(kept) > end {
            Err(FrameError::Field("stored_len"))
        } else {
            check_frame(&header, bytes, *verifier, end)
        };
        Ok(match checked {
            Ok(after) => {
                let bytes = self.bytes(lsn, header.frame_bytes() as u64)?;
                Found::Frame { header, bytes, after }
            }
            Err(error) => Found::Invalid { error, live },
        })
    }

    /// The first live frame at or after `from` and before `to`.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn find_live_frame(
        &mut self,
        from: Lsn,
        to: Lsn,
        seed: u64,
    ) -> Result<Option<Lsn>, LogError> {
        let header_bytes = FRAME_HEADER_BYTES as u64;
        let to = to.min(self.end());
        let mut at = from;
        while at < to {
            // Each piece holds the header of a frame that starts at its last place.
            let step = READ_STEP_BYTES.min(to.since(at));
            let piece = self.bytes(at, step + header_bytes)?;
            if let Some(found) = find_live_frame(piece, at, seed) {
                return Ok((found < to).then_some(found));
            }
            at = at.plus(step);
        }
        Ok(None)
    }

    /// Whether anything was written to this segment: whether a live frame stands anywhere in it.
    /// All of it is read, since damage at its head would hide all that stands behind.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn is_written(&mut self, seed: u64) -> Result<bool, LogError> {
        let first = self.base.plus(SEGMENT_HEADER_BYTES);
        Ok(self.find_live_frame(first, self.end(), seed)?.is_some())
    }

    /// What to say of a live header at `lsn` that cannot be gone on from.
    #[must_use]
    pub fn refusal(&self, lsn: Lsn, error: &FrameError) -> LogError {
        match error {
            FrameError::Version(_) | FrameError::NotUnderstood { .. } => {
                let segment = self.disk.path(&self.name);
                LogError::Newer { segment, lsn, what: error.to_string() }
            }
            _ => self.damage(lsn, error.to_string()),
        }
    }

    /// The damage of this place, for the operator.
    #[must_use]
    pub fn damage(&self, lsn: Lsn, what: impl Into<String>) -> LogError {
        mark(Mark::DamageFound);
        let (segment, offset) = (self.disk.path(&self.name), lsn.since(self.base));
        LogError::Damage { segment, offset, lsn, what: what.into() }
    }
}

/// Checks all that must hold of a frame's bytes once they are there; the verifier behind it.
fn check_frame(
    header: &FrameHeader,
    frame: &[u8],
    mut verifier: StreamVerifier,
    segment_end: Lsn,
) -> Result<StreamVerifier, FrameError> {
    let body = &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize];
    verifier.accept(header, body)?;
    check_padding(header, frame)?;
    if header.kind() == Some(FrameKind::SegmentEnd) {
        let end = SegmentEnd::parse(body, header.lsn)?;
        if end.next_base != segment_end {
            return Err(FrameError::Body("segment end does not lead to the end of its segment"));
        }
    }
    Ok(verifier)
}

/// An error of bytes that a torn write can leave behind. All others need a whole header with a
/// right checksum, or a whole body, and that is never what a torn write leaves.
#[must_use]
pub fn may_be_torn(error: &FrameError, live: bool) -> bool {
    match error {
        FrameError::BodyChecksum => true,
        error => *error == PADDING || !live,
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64-bit machines")
}

#[cfg(test)]
mod tests {
    use rowship_proto::Epoch;
    use rowship_proto::frame::{Seal, sealed_frame};

    use super::*;
    use crate::log::testing::{MemoryDisk, TEST_LOG};

    #[test]
    fn a_live_frame_is_found_across_the_bounds_of_a_read() {
        let base = Lsn(8192);
        for before in [0, 8, 88, 96, 104] {
            let at = Lsn(base.0 + 4096 + READ_STEP_BYTES - before);
            let seal = Seal::first(TEST_LOG, Epoch::NONE);
            let (_, frame) = sealed_frame(FrameKind::Mark, 0, at, b"", &seal);
            let mut file = vec![0; 2 * READ_STEP_BYTES as usize];
            file[index(at.since(base))..][..frame.len()].copy_from_slice(&frame);
            let disk = MemoryDisk::new();
            disk.put(&segment_file_name(base), &file);
            let mut scan = SegmentScan::of_file(&disk, base, file.len() as u64);
            let seed = TEST_LOG.seed();
            let mut find = |to| scan.find_live_frame(base.plus(4096), to, seed).unwrap();
            assert_eq!(find(Lsn(u64::MAX)), Some(at));
            assert_eq!(find(at), None);
            assert_eq!(find(at.plus(8)), Some(at));
        }
    }
}
