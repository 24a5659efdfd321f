//! Does this stream of frames hold? One [`StreamVerifier`] follows one stream, on the wire or on
//! disk, and accepts exactly the frames that continue it: right place, right chain, an epoch that
//! may follow, a body that its header vouches for.
//!
//! Invariant: a frame is checked in two steps, header first, so that a length is trusted before
//! any of the body is there; nothing moves until the body has been accepted as well.

use crate::control::{SEGMENT_HEADER_BYTES, SegmentEnd};
use crate::frame::{FrameError, FrameHeader, FrameKind};
use crate::position::{Epoch, EpochVerdict, Lsn};
use crate::row::{Operation, key_hash, transactions};
use crate::value::Image;

/// Follows one stream of frames. Create it with the place where the next frame must stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamVerifier {
    /// [`crate::LogId::seed`] of the log.
    pub seed: u64,
    /// Largest body in bytes that this log allows.
    pub body_max: usize,
    /// Where the next frame must stand.
    pub next: Lsn,
    /// Chain value of the frame before, zero before the first frame of a log.
    pub chain: u64,
    /// Epoch of the frame before; [`Epoch::NONE`] before the first frame: any epoch may follow.
    pub epoch: Epoch,
}

impl StreamVerifier {
    /// Checks the header of the next frame; moves nothing. `bytes` holds at least the header.
    ///
    /// A newer epoch begins with its epoch-start frame. Only where the log ended at a roll do other
    /// frames of the new epoch come before that: the segment end, when the segment has no room for
    /// the epoch start, or the segment start, when the segment end was the last frame.
    ///
    /// # Errors
    /// Whatever keeps these bytes from being the next frame.
    pub fn header(&self, bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        let header = FrameHeader::parse(bytes, self.seed, self.body_max)?;
        self.continues(&header)?;
        Ok(header)
    }

    /// Checks place, chain and epoch of a header that has been parsed already.
    ///
    /// # Errors
    /// [`FrameError::Lsn`], [`FrameError::Chain`] or [`FrameError::Epoch`].
    pub fn continues(&self, header: &FrameHeader) -> Result<(), FrameError> {
        if header.lsn != self.next {
            return Err(FrameError::Lsn { found: header.lsn, expected: self.next });
        }
        if header.chain_previous != self.chain {
            let found = header.chain_previous;
            return Err(FrameError::Chain { found, expected: self.chain });
        }
        let may_begin = matches!(
            header.kind(),
            Some(FrameKind::EpochStart | FrameKind::SegmentStart | FrameKind::SegmentEnd)
        );
        let follows = match self.epoch.judge(&header.epoch) {
            EpochVerdict::Same => true,
            EpochVerdict::Newer => may_begin || self.epoch == Epoch::NONE,
            EpochVerdict::Older | EpochVerdict::Forked => false,
        };
        if follows {
            Ok(())
        } else {
            Err(FrameError::Epoch { found: header.epoch, previous: self.epoch })
        }
    }

    /// Whether this header, accepted next, is the first of its epoch. The reign's start, as an
    /// [`crate::EpochHistory`] records it, is then the LSN of this frame.
    #[must_use]
    pub fn begins_epoch(&self, header: &FrameHeader) -> bool {
        header.epoch != self.epoch
    }

    /// Accepts a frame whose header passed [`StreamVerifier::header`], with its body (without
    /// padding), and moves on behind it; behind a segment end, to the next segment's first frame.
    ///
    /// # Errors
    /// [`FrameError::BodyChecksum`], or [`FrameError::Body`] for a segment end that leads nowhere.
    /// Nothing has moved then.
    pub fn accept(&mut self, header: &FrameHeader, body: &[u8]) -> Result<(), FrameError> {
        if body.len() != header.stored_len as usize {
            return Err(FrameError::Body("not as long as its header says"));
        }
        header.check_body(body)?;
        let next = match header.kind() {
            Some(FrameKind::SegmentEnd) => SegmentEnd::parse(body, header.lsn)?.next_frame(),
            _ => header.end(),
        };
        self.advance(header, next);
        Ok(())
    }

    /// Accepts a frame whose body has been left out of the stream.
    ///
    /// # Errors
    /// [`FrameError::Body`] for a segment end: where the stream goes on stands in its body, so
    /// that is never left out.
    pub fn accept_elided(&mut self, header: &FrameHeader) -> Result<(), FrameError> {
        if header.kind() == Some(FrameKind::SegmentEnd) {
            return Err(FrameError::Body("a segment end was elided"));
        }
        self.advance(header, header.end());
        Ok(())
    }

    fn advance(&mut self, header: &FrameHeader, next: Lsn) {
        assert_eq!(header.lsn, self.next, "a frame is accepted where the stream stands");
        self.next = next;
        self.chain = header.chain();
        self.epoch = header.epoch;
    }
}

/// The error of [`check_padding`].
pub const PADDING: FrameError = FrameError::Body("padding is not zero");

/// Whether the bytes between the end of the body and the end of the frame are zero. `frame` is
/// the whole frame. No checksum covers them, and all copies of a log are identical in them.
///
/// # Errors
/// [`PADDING`].
pub fn check_padding(header: &FrameHeader, frame: &[u8]) -> Result<(), FrameError> {
    let body_end = crate::FRAME_HEADER_BYTES + header.stored_len as usize;
    let padding = frame.get(body_end..header.frame_bytes());
    match padding {
        Some(bytes) if bytes.iter().all(|byte| *byte == 0) => Ok(()),
        _ => Err(PADDING),
    }
}

/// Whether a frame with a whole, right header (whatever it says) was written for exactly this
/// place of this log: the test that tells live bytes from residue and from recycled ones.
/// It holds for versions and kinds that this build cannot read.
#[must_use]
pub fn stands_here(bytes: &[u8], lsn: Lsn, seed: u64) -> bool {
    use zerocopy::FromBytes;
    FrameHeader::read_from_prefix(bytes).is_ok_and(|(header, _)| {
        header.magic == crate::frame::FRAME_MAGIC
            && header.lsn == lsn
            && header.checksum(seed) == header.header_checksum
    })
}

/// The place of the first live frame in `bytes`, which start at `lsn` (a multiple of eight); see
/// [`stands_here`]. Frames whose header is cut off by the end of `bytes` are not seen.
#[must_use]
pub fn find_live_frame(bytes: &[u8], lsn: Lsn, seed: u64) -> Option<Lsn> {
    assert!(lsn.0.is_multiple_of(8));
    let magic = crate::frame::FRAME_MAGIC.to_le_bytes();
    bytes.chunks_exact(8).enumerate().find_map(|(index, word)| {
        let at = lsn.plus(index as u64 * 8);
        (word[..4] == magic && stands_here(&bytes[index * 8..], at, seed)).then_some(at)
    })
}

/// LSN of the first frame of the segment with this base.
#[must_use]
pub fn first_frame(base: Lsn) -> Lsn {
    base.plus(SEGMENT_HEADER_BYTES)
}

/// What [`check_rows`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsChecked {
    /// Transactions.
    pub transactions: u64,
    /// Rows of all of them.
    pub rows: u64,
}

/// Checks the whole structure of a rows body: transactions and rows parse, the transaction count
/// of the header is right, every key hash is that of its key, every image is one.
///
/// # Errors
/// [`FrameError::Body`] with the first thing that does not hold.
pub fn check_rows(header: &FrameHeader, body: &[u8], seed: u64) -> Result<RowsChecked, FrameError> {
    let mut checked = RowsChecked::default();
    let body_lsn = header.lsn.plus(crate::FRAME_HEADER_BYTES as u64);
    for transaction in transactions(body, body_lsn) {
        checked.transactions += 1;
        for row in transaction?.rows() {
            let row = row?;
            checked.rows += 1;
            if row.key_hash != key_hash(seed, row.table, row.key) {
                return Err(FrameError::Body("key hash does not belong to its key"));
            }
            if row.operation == Operation::Put && Image::parse(row.value).is_err() {
                return Err(FrameError::Body("row value is not an image"));
            }
        }
    }
    if checked.transactions != u64::from(header.txn_count) {
        return Err(FrameError::Body("transaction count differs from its header"));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::frame::{FrameBuilder, Seal, sealed_frame};
    use crate::hlc::Hlc;
    use crate::position::LogId;
    use crate::row::{Existed, RowWrite, TableId, append_transaction};
    use crate::value::encode_string;

    const LOG: LogId = LogId([3, 4]);

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node_id: 1, nonce: counter }
    }

    fn verifier() -> StreamVerifier {
        let (next, epoch) = (Lsn(4096), epoch(2));
        StreamVerifier { seed: LOG.seed(), body_max: 4096, next, chain: 77, epoch }
    }

    fn frame(kind: FrameKind, lsn: u64, chain: u64, epoch: Epoch, body: &[u8]) -> Vec<u8> {
        let seal = Seal { chain_previous: chain, ..Seal::first(LOG, epoch) };
        sealed_frame(kind, 0, Lsn(lsn), body, &seal).1
    }

    #[test]
    fn a_chain_of_frames_is_followed_over_a_segment_end() {
        let mut verifier = verifier();
        let first = frame(FrameKind::Rows, 4096, 77, epoch(2), b"");
        let header = verifier.header(&first).unwrap();
        verifier.accept(&header, b"").unwrap();
        let end = SegmentEnd { next_base: Lsn(65536), next_segment_bytes: 65536 };
        let last = frame(FrameKind::SegmentEnd, 4192, header.chain(), epoch(2), end.as_bytes());
        let header = verifier.header(&last).unwrap();
        assert!(verifier.accept_elided(&header).is_err());
        verifier.accept(&header, end.as_bytes()).unwrap();
        assert_eq!(verifier.next, Lsn(65536 + 4096));
        assert_eq!(verifier.chain, header.chain());
    }

    #[test]
    fn misplaced_unchained_and_corrupt_frames_move_nothing() {
        let mut verifier = verifier();
        let lost = verifier.header(&frame(FrameKind::Rows, 4104, 77, epoch(2), b"")).unwrap_err();
        assert!(matches!(lost, FrameError::Lsn { .. }));
        let forked = verifier.header(&frame(FrameKind::Rows, 4096, 78, epoch(2), b"")).unwrap_err();
        assert!(matches!(forked, FrameError::Chain { .. }));
        let header = verifier.header(&frame(FrameKind::Rows, 4096, 77, epoch(2), b"ab")).unwrap();
        let before = verifier;
        assert_eq!(verifier.accept(&header, b"aB"), Err(FrameError::BodyChecksum));
        assert!(verifier.accept(&header, b"a").is_err());
        assert_eq!(verifier, before);
    }

    #[test]
    fn an_epoch_begins_only_where_it_may() {
        let verifier = verifier();
        let offer = |kind, epoch| verifier.header(&frame(kind, 4096, 77, epoch, b""));
        assert!(offer(FrameKind::EpochStart, epoch(3)).is_ok());
        assert!(offer(FrameKind::SegmentStart, epoch(3)).is_ok());
        assert!(matches!(offer(FrameKind::Rows, epoch(3)), Err(FrameError::Epoch { .. })));
        assert!(matches!(offer(FrameKind::EpochStart, epoch(1)), Err(FrameError::Epoch { .. })));
        let forked = Epoch { nonce: 99, ..epoch(2) };
        assert!(matches!(offer(FrameKind::EpochStart, forked), Err(FrameError::Epoch { .. })));
        let fresh = StreamVerifier { epoch: Epoch::NONE, ..verifier };
        assert!(fresh.header(&frame(FrameKind::Rows, 4096, 77, epoch(9), b"")).is_ok());
    }

    #[test]
    fn live_frames_are_found_by_place_and_seed_only() {
        let mut bytes = vec![0xAB; 256];
        bytes.extend(frame(FrameKind::Rows, 8192 + 256, 0, epoch(1), b"x"));
        assert_eq!(find_live_frame(&bytes, Lsn(8192), LOG.seed()), Some(Lsn(8192 + 256)));
        assert_eq!(find_live_frame(&bytes, Lsn(8200), LOG.seed()), None);
        assert_eq!(find_live_frame(&bytes, Lsn(8192), LOG.seed() ^ 1), None);
    }

    #[test]
    fn rows_are_checked_down_to_hash_and_image() {
        let build = |hash: u64, value: &[u8]| {
            let mut builder = FrameBuilder::new(vec![0; 1024], FrameKind::Rows, 0, Lsn(4096));
            let (table, key) = (TableId(1), &b"k"[..]);
            let (operation, existed) = (Operation::Put, Existed::No);
            let row = RowWrite { key_hash: hash, table, operation, existed, key, value };
            append_transaction(&mut builder, 1, Hlc(1), &[row], |_, _| {});
            let (header, bytes) = builder.seal(&Seal::first(LOG, epoch(1)));
            let body = bytes[96..][..header.stored_len as usize].to_vec();
            (header, body)
        };
        let hash = key_hash(LOG.seed(), TableId(1), b"k");
        let (header, body) = build(hash, &encode_string(b"v"));
        let checked = RowsChecked { transactions: 1, rows: 1 };
        assert_eq!(check_rows(&header, &body, LOG.seed()), Ok(checked));
        let two = FrameHeader { txn_count: 2, ..header };
        assert!(check_rows(&two, &body, LOG.seed()).is_err());
        let (header, body) = build(hash ^ 1, &encode_string(b"v"));
        assert!(check_rows(&header, &body, LOG.seed()).is_err());
        let (header, body) = build(hash, b"not an image");
        assert!(check_rows(&header, &body, LOG.seed()).is_err());
    }

    #[test]
    fn padding_must_be_zero() {
        let mut bytes = frame(FrameKind::Rows, 4096, 0, epoch(1), b"x");
        let header = FrameHeader::parse(&bytes, LOG.seed(), 4096).unwrap();
        check_padding(&header, &bytes).unwrap();
        *bytes.last_mut().unwrap() = 1;
        assert!(check_padding(&header, &bytes).is_err());
        assert!(check_padding(&header, &bytes[..96]).is_err());
    }
}
