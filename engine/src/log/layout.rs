//! Where a segment ends, and how the next one opens. Pure: the appender asks, and writes.
//!
//! ```text
//! base      base + 4096                                             base + segment_bytes
//! | header  | segment start | repeats | frames ... | segment end | unused |
//! ```
//!
//! A segment opens with all that a reader needs who has no other segment: the table dictionary,
//! the epoch history, the ack policy in force. These repeats carry `FLAG_REPEAT`. Should a node
//! take over a log that ends between the segment start and the last of its repeats, it begins its
//! epoch there and writes *all* repeats again ([`Layout::repeat_frames`]): readers take
//! what they find in the segment and do not rely on its place.

use rowship_proto::control::{
    AckPolicyChanged, SEGMENT_END_FRAME_BYTES, SEGMENT_HEADER_BYTES, SegmentEnd, SegmentStart,
    TableDefinition, TableDefinitions,
};
use rowship_proto::frame::{FLAG_REPEAT, Seal, frame_bytes, sealed_frame};
use rowship_proto::position::EpochStart;
use rowship_proto::row::TableId;
use rowship_proto::sim::{Bug, planted};
use rowship_proto::{FrameHeader, FrameKind, Lsn};
use zerocopy::IntoBytes;

use super::{LogError, SegmentHeader};

/// The segment that is being written, and its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its header page.
    pub header: SegmentHeader,
}

/// What stands at the head of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// All tables defined so far: number and name.
    pub tables: &'a [(TableId, Vec<u8>)],
    /// All epochs so far, oldest first; the newest that fit an eighth of the segment are repeated.
    pub history: &'a [EpochStart],
    /// The ack policy in force, as text, with the range it covers.
    pub policy: Option<(AckPolicyChanged, &'a str)>,
}

/// A sealed frame: its header, and all its bytes.
pub type SealedFrame = (FrameHeader, Vec<u8>);

impl Layout {
    /// Whether a frame of `frame_bytes` at `next` leaves the segment room for its end.
    #[must_use]
    pub fn fits(&self, next: Lsn, frame_bytes: u64) -> bool {
        let end_bytes = if planted(Bug::SegmentEndOffByOne) { 0 } else { SEGMENT_END_FRAME_BYTES };
        next >= self.header.first_frame()
            && next.plus(frame_bytes).plus(end_bytes) <= self.header.end()
    }

    /// Bytes of the largest frame (header and padding included) that still fits at `next`.
    #[must_use]
    pub fn room_bytes(&self, next: Lsn) -> u64 {
        self.header.end().since(next.plus(SEGMENT_END_FRAME_BYTES))
    }

    /// The layout of the segment that follows.
    #[must_use]
    pub fn next(&self, segment_bytes: u64) -> Layout {
        Layout { header: self.header.next(segment_bytes) }
    }

    /// The frame that ends this segment, standing at `lsn`.
    ///
    /// # Panics
    /// When it does not fit: every segment keeps room for it.
    #[must_use]
    pub fn end_frame(&self, lsn: Lsn, next_segment_bytes: u64, seal: &Seal) -> SealedFrame {
        assert!(lsn.plus(SEGMENT_END_FRAME_BYTES) <= self.header.end());
        let end = SegmentEnd { next_base: self.header.end(), next_segment_bytes };
        sealed_frame(FrameKind::SegmentEnd, 0, lsn, end.as_bytes(), seal)
    }

    /// The frames that open this segment, in order, chained from `seal`. Their bytes may be more
    /// than [`super::write_bytes_max`]: split them into several writes.
    ///
    /// # Errors
    /// [`LogError::OpeningTooLarge`] when less than half of the segment would be left.
    pub fn opening_frames(
        &self,
        opening: &Opening<'_>,
        seal: &Seal,
    ) -> Result<Vec<SealedFrame>, LogError> {
        let bodies = self.repeat_bodies(opening);
        let start = SegmentStart {
            log_id: self.header.log_id,
            base: self.header.base,
            segment_bytes: self.header.segment_bytes,
            frame_body_bytes_max: self.header.frame_body_bytes_max,
            repeat_frames: bodies.len() as u64,
        };
        let start = (FrameKind::SegmentStart, 0, start.as_bytes().to_vec());
        let repeats = bodies.into_iter().map(|(kind, body)| (kind, FLAG_REPEAT, body));
        let bodies: Vec<_> = std::iter::once(start).chain(repeats).collect();
        let bytes = bodies.iter().map(|(_, _, body)| frame_bytes(body.len()) as u64).sum::<u64>();
        let segment_bytes = self.header.segment_bytes;
        if SEGMENT_HEADER_BYTES + bytes > segment_bytes / 2 {
            return Err(LogError::OpeningTooLarge { bytes, segment_bytes });
        }
        Ok(chained(self.header.first_frame(), bodies, seal))
    }

    /// Only the repeats, from `lsn` on: for a log whose last segment was not opened to the end.
    /// They take less than half of a segment; roll first if they do not fit.
    #[must_use]
    pub fn repeat_frames(&self, lsn: Lsn, opening: &Opening<'_>, seal: &Seal) -> Vec<SealedFrame> {
        let bodies = self.repeat_bodies(opening);
        let flagged = bodies.into_iter().map(|(kind, body)| (kind, FLAG_REPEAT, body));
        chained(lsn, flagged.collect(), seal)
    }

    fn repeat_bodies(&self, opening: &Opening<'_>) -> Vec<(FrameKind, Vec<u8>)> {
        let body_max = usize::try_from(self.header.frame_body_bytes_max).expect("at most 16 MiB");
        let mut bodies = Vec::new();
        for (id, name) in opening.tables {
            let bytes = TableDefinitions::encoded_bytes(name);
            let full = |body: &Vec<u8>| body.len() + bytes > body_max;
            if bodies.last().is_none_or(|(_, body)| full(body)) {
                bodies.push((FrameKind::TableDefine, Vec::new()));
            }
            let (_, body) = bodies.last_mut().expect("pushed just before");
            TableDefinitions::encode(&TableDefinition { id: *id, name }, body);
        }
        let entry_bytes = size_of::<EpochStart>();
        let segment_bytes = usize::try_from(self.header.segment_bytes).expect("64-bit machines");
        let kept = opening.history.len().min(segment_bytes / 8 / entry_bytes);
        let newest = &opening.history[opening.history.len() - kept..];
        for part in newest.chunks((body_max / entry_bytes).max(1)) {
            bodies.push((FrameKind::EpochHistory, part.as_bytes().to_vec()));
        }
        if let Some((changed, text)) = opening.policy {
            let body = [changed.as_bytes(), text.as_bytes()].concat();
            bodies.push((FrameKind::AckPolicy, body));
        }
        bodies
    }
}

fn chained(lsn: Lsn, bodies: Vec<(FrameKind, u16, Vec<u8>)>, seal: &Seal) -> Vec<SealedFrame> {
    let (mut lsn, mut seal) = (lsn, *seal);
    let mut frames = Vec::with_capacity(bodies.len());
    for (kind, flags, body) in bodies {
        let (header, bytes) = sealed_frame(kind, flags, lsn, &body, &seal);
        lsn = header.end();
        seal.chain_previous = header.chain();
        frames.push((header, bytes));
    }
    frames
}

#[cfg(test)]
mod tests {
    use rowship_proto::verify::StreamVerifier;
    use rowship_proto::{Epoch, LogId};

    use super::*;

    const LOG: LogId = LogId([1, 2]);

    fn layout() -> Layout {
        Layout { header: SegmentHeader::new(LOG, Lsn(65536), 65536, 4096) }
    }

    fn epoch() -> Epoch {
        Epoch { counter: 1, node_id: 2, nonce: 3 }
    }

    #[test]
    fn an_opening_verifies_as_a_stream_and_counts_its_repeats() {
        let name = |at: u32| format!("table-{at:0>200}").into_bytes();
        let tables: Vec<_> = (1..60).map(|at| (TableId(at), name(at))).collect();
        let start =
            |at: u64| EpochStart { epoch: Epoch { counter: at, ..epoch() }, start: Lsn(at) };
        let history: Vec<_> = (1..1000).map(start).collect();
        let policy = AckPolicyChanged { from: Lsn(1), to: Lsn(0), reason: 0 };
        let opening =
            Opening { tables: &tables, history: &history, policy: Some((policy, "async")) };
        let seal = Seal { chain_previous: 9, ..Seal::first(LOG, epoch()) };
        let frames = layout().opening_frames(&opening, &seal).unwrap();
        let next = layout().header.first_frame();
        let (seed, epoch) = (LOG.seed(), epoch());
        let mut verifier = StreamVerifier { seed, body_max: 4096, next, chain: 9, epoch };
        let mut newest_epoch = 0;
        for (_, bytes) in &frames {
            let header = verifier.header(bytes).unwrap();
            let body = &bytes[96..][..header.stored_len as usize];
            verifier.accept(&header, body).unwrap();
            if header.kind() == Some(FrameKind::EpochHistory) {
                let part = rowship_proto::control::EpochHistoryPart::parse(body).unwrap();
                newest_epoch = part.last().unwrap().epoch.counter;
            }
        }
        assert_eq!(newest_epoch, 999);
        let start: SegmentStart =
            rowship_proto::control::read_whole(&frames[0].1[96..][..48], "start").unwrap();
        assert_eq!(start.repeat_frames as usize, frames.len() - 1);
        assert!(frames.len() > 5, "{}", frames.len());
    }

    #[test]
    fn a_dictionary_that_would_fill_the_segment_is_refused() {
        let tables: Vec<_> = (1..200).map(|at| (TableId(at), vec![b'x'; 200])).collect();
        let opening = Opening { tables: &tables, history: &[], policy: None };
        let refused = layout().opening_frames(&opening, &Seal::first(LOG, epoch()));
        assert!(matches!(refused, Err(LogError::OpeningTooLarge { .. })));
    }

    #[test]
    fn every_frame_that_fits_leaves_room_for_the_segment_end() {
        let layout = layout();
        let next = Lsn(65536 + 65536 - 1000);
        let room = layout.room_bytes(next);
        assert!(layout.fits(next, room));
        assert!(!layout.fits(next, room + 8));
        let seal = Seal::first(LOG, epoch());
        let (header, _) = layout.end_frame(next.plus(room), 65536, &seal);
        assert_eq!(header.end(), layout.header.end());
    }
}
