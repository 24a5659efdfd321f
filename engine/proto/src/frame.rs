//! Frames: what the log is made of, on disk and on the wire, byte for byte the same.
//!
//! ```text
//!  0        4     5     6      8            12          16
//!  | magic  | ver | kind| flags | stored_len | raw_len   |
//! 16                        40           48             56
//!  | epoch: counter node nonce | lsn         | committed |
//! 56             64          68      72              80
//!  | sealed_wall | txn_count | (zero) | body_checksum |
//! 80                88                 96
//!  | chain_previous | header_checksum  | body, padded with zeroes to 8 bytes ...
//! ```
//!
//! `header_checksum` covers the 88 bytes before it, so it covers the body through
//! `body_checksum`, and the whole past through `chain_previous`: it *is* the frame's chain value.
//! A length is trusted before the body arrives; a missing, reordered, stale or forked frame does
//! not pass; a stream with its bodies left out still verifies.
//!
//! Sources: XXH3-64 (<https://github.com/Cyan4973/xxHash>); chaining of headers as in
//! TigerBeetle's `parent` and in PostgreSQL's `xl_prev`.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::position::{Epoch, LogId, Lsn};
use crate::sim::{Bug, planted};

#[cfg(target_endian = "big")]
compile_error!("the formats are little-endian structs read in place");

/// Size of a frame header in bytes.
pub const FRAME_HEADER_BYTES: usize = 96;
/// First four bytes of every frame: "RSF1".
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"RSF1");
/// The version of the frame format that this crate writes, and the only one it reads.
pub const FRAME_VERSION: u8 = 1;
/// Largest frame body that any setting allows, in bytes.
pub const FRAME_BODY_BYTES_LIMIT: usize = 16 << 20;

/// Flag: a reader that does not know this frame's kind may skip its body.
pub const FLAG_SKIPPABLE: u16 = 1 << 0;
/// Flag: repeats a record that stands earlier in the log, so that a segment can be read alone.
pub const FLAG_REPEAT: u16 = 1 << 1;
/// Unknown flags among these mean "stop": the body cannot be read without knowing them.
/// (Compression and encryption will take the first two.) Unknown flags elsewhere may be ignored.
pub const FLAGS_MUST_UNDERSTAND: u16 = 0xff00;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Transactions of rows: [`crate::row`].
    Rows = 1,
    /// First frame of a segment: [`crate::control::SegmentStart`].
    SegmentStart = 2,
    /// Last frame of a segment: [`crate::control::SegmentEnd`].
    SegmentEnd = 3,
    /// First frame of an epoch: [`crate::control::EpochStarted`].
    EpochStart = 4,
    /// Names of tables: [`crate::control::TableDefinitions`].
    TableDefine = 5,
    /// The epoch history at the head of a segment: [`crate::control::EpochHistoryPart`].
    EpochHistory = 6,
    /// A change of the ack policy and the range it covers: [`crate::control::AckPolicyChanged`].
    AckPolicy = 7,
    /// "End a window here and pin a snapshot": empty body.
    Mark = 8,
}

impl FrameKind {
    /// The kind with this number, if this version knows it.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<FrameKind> {
        Some(match number {
            1 => FrameKind::Rows,
            2 => FrameKind::SegmentStart,
            3 => FrameKind::SegmentEnd,
            4 => FrameKind::EpochStart,
            5 => FrameKind::TableDefine,
            6 => FrameKind::EpochHistory,
            7 => FrameKind::AckPolicy,
            8 => FrameKind::Mark,
            _ => return None,
        })
    }
}

/// A frame header as it lies in the log. Fields are only meaningful after [`FrameHeader::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrameHeader {
    /// [`FRAME_MAGIC`].
    pub magic: u32,
    /// [`FRAME_VERSION`].
    pub version: u8,
    /// See [`FrameKind`]; kept as a number, for kinds of the future.
    pub kind: u8,
    /// `FLAG_*`.
    pub flags: u16,
    /// Body bytes that follow the header, without padding.
    pub stored_len: u32,
    /// Body bytes before compression; equal to `stored_len` as long as there is none.
    pub raw_len: u32,
    /// Writer's epoch.
    pub epoch: Epoch,
    /// Where this frame starts.
    pub lsn: Lsn,
    /// The writer's `committed` position when it sealed the frame.
    pub committed: Lsn,
    /// The writer's wall clock at sealing, nanoseconds since 1970.
    pub sealed_wall_ns: u64,
    /// Transactions in the body.
    pub txn_count: u32,
    /// Zero.
    pub reserved: u32,
    /// XXH3-64 of the stored body.
    pub body_checksum: u64,
    /// `header_checksum` of the frame before this one, zero for the first of a log.
    pub chain_previous: u64,
    /// XXH3-64, seeded from the log id, of all fields above.
    pub header_checksum: u64,
}

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);
const _: () = assert!(align_of::<FrameHeader>() == 8);

/// What is wrong with bytes that should be a frame. All of these are the fault of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all, or zeroes.
    #[error("no frame magic")]
    Magic,
    /// Checksum of the header does not hold (or it belongs to another log).
    #[error("header checksum does not hold")]
    HeaderChecksum,
    /// A version this build does not read.
    #[error("frame version {0} is not supported (this build reads version {FRAME_VERSION})")]
    Version(u8),
    /// A kind or flag that this build must know to go on.
    #[error("frame kind {kind} with flags {flags:#06x} needs a newer version")]
    NotUnderstood {
        /// The header's kind.
        kind: u8,
        /// The header's flags.
        flags: u16,
    },
    /// Body longer than the limit of this log.
    #[error("frame body of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Announced bytes.
        len: usize,
        /// Allowed bytes.
        max: usize,
    },
    /// `lsn` is not where this frame was found.
    #[error("frame says LSN {found}, expected {expected}")]
    Lsn {
        /// LSN in the header.
        found: Lsn,
        /// LSN of the place.
        expected: Lsn,
    },
    /// The frame before is not the one this was chained to.
    #[error("chain is broken: frame follows {found:016x}, expected {expected:016x}")]
    Chain {
        /// `chain_previous` in the header.
        found: u64,
        /// Chain value of the frame before.
        expected: u64,
    },
    /// An epoch lower than, or forked from, that of the frame before.
    #[error("epoch {found} cannot follow {previous}")]
    Epoch {
        /// Epoch in the header.
        found: Epoch,
        /// Epoch of the frame before.
        previous: Epoch,
    },
    /// Checksum of the body does not hold.
    #[error("body checksum does not hold")]
    BodyChecksum,
    /// The body's structure is not what its kind says.
    #[error("malformed body: {0}")]
    Body(&'static str),
    /// A field has a value that no writer writes.
    #[error("impossible value in header field {0}")]
    Field(&'static str),
}

impl FrameHeader {
    /// Parses and checks the first [`FRAME_HEADER_BYTES`] of `bytes`: magic, checksum under
    /// `seed`, version, kind, flags and lengths. Position and chain are [`crate::verify`]'s part.
    ///
    /// # Errors
    /// What does not hold. `bytes` shorter than a header is [`FrameError::Magic`].
    pub fn parse(bytes: &[u8], seed: u64, body_max: usize) -> Result<FrameHeader, FrameError> {
        let Ok((header, _)) = FrameHeader::read_from_prefix(bytes) else {
            return Err(FrameError::Magic);
        };
        if header.magic != FRAME_MAGIC {
            return Err(FrameError::Magic);
        }
        if header.checksum(seed) != header.header_checksum {
            return Err(FrameError::HeaderChecksum);
        }
        if header.version != FRAME_VERSION {
            return Err(FrameError::Version(header.version));
        }
        let kind_skippable = header.flags & FLAG_SKIPPABLE != 0;
        let kind_known = FrameKind::from_u8(header.kind).is_some();
        if header.flags & FLAGS_MUST_UNDERSTAND != 0 || !(kind_known || kind_skippable) {
            let FrameHeader { kind, flags, .. } = header;
            return Err(FrameError::NotUnderstood { kind, flags });
        }
        if header.stored_len as usize > body_max {
            let len = header.stored_len as usize;
            return Err(FrameError::TooLong { len, max: body_max });
        }
        if header.raw_len != header.stored_len {
            return Err(FrameError::Field("raw_len"));
        }
        if !header.lsn.0.is_multiple_of(8) || header.lsn.0 > LSN_LIMIT {
            return Err(FrameError::Field("lsn"));
        }
        if header.committed > header.lsn {
            return Err(FrameError::Field("committed"));
        }
        Ok(header)
    }

    /// The checksum that belongs in `header_checksum`.
    #[must_use]
    pub fn checksum(&self, seed: u64) -> u64 {
        xxh3_64_with_seed(&self.as_bytes()[..FRAME_HEADER_BYTES - 8], seed)
    }

    /// The chain value that the next frame must carry.
    #[must_use]
    pub fn chain(&self) -> u64 {
        self.header_checksum
    }

    /// Known kind, or `None` for a skippable kind of the future.
    #[must_use]
    pub fn kind(&self) -> Option<FrameKind> {
        FrameKind::from_u8(self.kind)
    }

    /// Header, body and padding, in bytes.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(self.stored_len as usize)
    }

    /// LSN just behind this frame's padding. For a segment-end frame the *next frame* starts
    /// further on: see [`crate::control::SegmentEnd::next_frame`].
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.lsn.plus(self.frame_bytes() as u64)
    }

    /// Checks `body` (without padding) against the header.
    ///
    /// # Errors
    /// [`FrameError::BodyChecksum`].
    pub fn check_body(&self, body: &[u8]) -> Result<(), FrameError> {
        if planted(Bug::SkipBodyChecksum) {
            return Ok(());
        }
        debug_assert_eq!(body.len(), self.stored_len as usize);
        if xxh3_64(body) == self.body_checksum { Ok(()) } else { Err(FrameError::BodyChecksum) }
    }
}

/// Bytes of a frame with a body of `body_len` bytes: header, body, padding.
#[must_use]
pub const fn frame_bytes(body_len: usize) -> usize {
    FRAME_HEADER_BYTES + body_len.next_multiple_of(8)
}

/// LSNs above this are refused as hostile: additions to an LSN below it cannot overflow.
pub const LSN_LIMIT: u64 = 1 << 62;

/// Who writes, for sealing.
#[derive(Clone, Copy, Debug)]
pub struct Seal {
    /// [`LogId::seed`] of the log.
    pub seed: u64,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The writer's `committed` now.
    pub committed: Lsn,
    /// The writer's wall clock now, in nanoseconds since 1970.
    pub wall_ns: u64,
    /// Chain value of the frame before.
    pub chain_previous: u64,
}

impl Seal {
    /// The very first seal of a log.
    #[must_use]
    pub fn first(log_id: LogId, epoch: Epoch) -> Seal {
        Seal { seed: log_id.seed(), epoch, committed: Lsn::ZERO, wall_ns: 0, chain_previous: 0 }
    }
}

/// Builds one frame in place, in a buffer of fixed size that it never grows.
///
/// The LSN is known from the start, so that rows know theirs; [`FrameBuilder::seal`] fixes the
/// chain and the checksums.
#[derive(Debug)]
pub struct FrameBuilder<B> {
    buffer: B,
    kind: FrameKind,
    flags: u16,
    lsn: Lsn,
    len: usize,
    txn_count: u32,
}

impl<B: AsMut<[u8]> + AsRef<[u8]>> FrameBuilder<B> {
    /// An empty frame at `lsn`, in `buffer` (its size bounds header and body).
    ///
    /// # Panics
    /// When `buffer` cannot hold a header, or `lsn` is not a multiple of eight.
    #[must_use]
    pub fn new(buffer: B, kind: FrameKind, flags: u16, lsn: Lsn) -> FrameBuilder<B> {
        assert!(buffer.as_ref().len() >= FRAME_HEADER_BYTES);
        assert!(lsn.0.is_multiple_of(8));
        FrameBuilder { buffer, kind, flags, lsn, len: FRAME_HEADER_BYTES, txn_count: 0 }
    }

    /// Start of the frame.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// LSN of the next byte that will be appended.
    #[must_use]
    pub fn next_lsn(&self) -> Lsn {
        self.lsn.plus(self.len as u64)
    }

    /// Whether nothing has been appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == FRAME_HEADER_BYTES
    }

    /// Body bytes that still fit.
    #[must_use]
    pub fn room_bytes(&self) -> usize {
        // The padding must fit as well.
        (self.buffer.as_ref().len() & !7) - self.len.min(self.buffer.as_ref().len() & !7)
    }

    /// Transactions appended.
    #[must_use]
    pub fn txn_count(&self) -> u32 {
        self.txn_count
    }

    /// Counts one transaction as complete.
    pub fn count_txn(&mut self) {
        self.txn_count += 1;
    }

    /// Appends raw body bytes.
    ///
    /// # Panics
    /// When they do not fit: callers ask [`FrameBuilder::room_bytes`] first.
    pub fn append(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.buffer.as_mut()[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// Appends zeroes up to the next multiple of eight.
    pub fn pad(&mut self) {
        let end = self.len.next_multiple_of(8);
        self.buffer.as_mut()[self.len..end].fill(0);
        self.len = end;
    }

    /// Fixes chain and checksums. Returns the header, and the buffer whose first
    /// [`FrameHeader::frame_bytes`] bytes are the frame.
    #[must_use]
    pub fn seal(mut self, seal: &Seal) -> (FrameHeader, B) {
        let stored_len = self.len - FRAME_HEADER_BYTES;
        self.pad();
        let body = &self.buffer.as_ref()[FRAME_HEADER_BYTES..][..stored_len];
        let mut header = FrameHeader {
            magic: FRAME_MAGIC,
            version: FRAME_VERSION,
            kind: self.kind as u8,
            flags: self.flags,
            stored_len: u32::try_from(stored_len).expect("a body is at most 16 MiB"),
            raw_len: u32::try_from(stored_len).expect("a body is at most 16 MiB"),
            epoch: seal.epoch,
            lsn: self.lsn,
            committed: seal.committed,
            sealed_wall_ns: seal.wall_ns,
            txn_count: self.txn_count,
            reserved: 0,
            body_checksum: xxh3_64(body),
            chain_previous: seal.chain_previous,
            header_checksum: 0,
        };
        header.header_checksum = header.checksum(seal.seed);
        self.buffer.as_mut()[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
        (header, self.buffer)
    }
}

/// Builds and seals a frame with the given body, in a new buffer: for control records and tests.
#[must_use]
pub fn sealed_frame(
    kind: FrameKind,
    flags: u16,
    lsn: Lsn,
    body: &[u8],
    seal: &Seal,
) -> (FrameHeader, Vec<u8>) {
    let mut builder = FrameBuilder::new(vec![0; frame_bytes(body.len())], kind, flags, lsn);
    builder.append(body);
    builder.seal(seal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        Seal::first(LogId([1, 2]), Epoch { counter: 1, node_id: 2, nonce: 3 })
    }

    #[test]
    fn a_sealed_frame_parses_and_its_body_checks() {
        let (header, bytes) = sealed_frame(FrameKind::Mark, 0, Lsn(4096), b"hello", &seal());
        assert_eq!(bytes.len(), 96 + 8);
        let parsed = FrameHeader::parse(&bytes, seal().seed, 1024).unwrap();
        assert_eq!(parsed, header);
        assert_eq!(parsed.end(), Lsn(4096 + 104));
        parsed.check_body(&bytes[96..101]).unwrap();
        assert_eq!(parsed.check_body(b"hellO"), Err(FrameError::BodyChecksum));
    }

    #[test]
    fn every_flipped_header_bit_is_seen() {
        let (_, bytes) = sealed_frame(FrameKind::Rows, 0, Lsn(4096), b"x", &seal());
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut hostile = bytes.clone();
            hostile[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::parse(&hostile, seal().seed, 1024).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn frames_of_another_log_are_refused() {
        let (_, bytes) = sealed_frame(FrameKind::Rows, 0, Lsn(4096), b"x", &seal());
        let other = LogId([1, 3]).seed();
        assert_eq!(FrameHeader::parse(&bytes, other, 1024), Err(FrameError::HeaderChecksum));
    }

    #[test]
    fn unknown_kinds_stop_unless_marked_skippable() {
        let reseal = |kind: u8, flags: u16| {
            let (mut header, mut bytes) =
                sealed_frame(FrameKind::Mark, flags, Lsn(0), b"", &seal());
            header.kind = kind;
            header.header_checksum = header.checksum(seal().seed);
            bytes[..96].copy_from_slice(header.as_bytes());
            FrameHeader::parse(&bytes, seal().seed, 1024)
        };
        assert!(matches!(reseal(200, 0), Err(FrameError::NotUnderstood { kind: 200, .. })));
        assert_eq!(reseal(200, FLAG_SKIPPABLE).unwrap().kind(), None);
        assert!(matches!(reseal(1, 0x0100), Err(FrameError::NotUnderstood { .. })));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_body_is_there() {
        let (_, bytes) = sealed_frame(FrameKind::Rows, 0, Lsn(0), &[7; 2000], &seal());
        let parsed = FrameHeader::parse(&bytes[..96], seal().seed, 1024);
        assert_eq!(parsed, Err(FrameError::TooLong { len: 2000, max: 1024 }));
    }

    #[test]
    fn room_counts_the_padding() {
        let builder = FrameBuilder::new(vec![0; 96 + 13], FrameKind::Rows, 0, Lsn(0));
        assert_eq!(builder.room_bytes(), 8);
    }
}
