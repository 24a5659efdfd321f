//! Bodies of control frames: records that belong to the history, and that any reader of the log
//! (a replica, recovery, a tool) needs to make sense of what follows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::frame::FrameError;
use crate::position::{Epoch, EpochStart, LogId, Lsn};
use crate::row::TableId;

/// Bytes of the header page of a segment file; the first frame of a segment follows it.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Smallest and largest segment in bytes. The smallest is for tests; settings start at 64 MiB.
pub const SEGMENT_BYTES_LIMITS: (u64, u64) = (64 << 10, 4 << 30);
/// Longest name of a table (the prefix of a key) in bytes.
pub const TABLE_NAME_BYTES_MAX: usize = 255;

/// Body of the first frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentStart {
    /// The log.
    pub log_id: LogId,
    /// LSN of the segment's first byte, its header page.
    pub base: Lsn,
    /// Size of the segment file.
    pub segment_bytes: u64,
    /// Largest frame body in this segment, in bytes.
    pub frame_body_bytes_max: u64,
    /// Frames of [`crate::FrameKind::TableDefine`], [`crate::FrameKind::EpochHistory`] and
    /// [`crate::FrameKind::AckPolicy`], all with [`crate::frame::FLAG_REPEAT`], that follow.
    pub repeat_frames: u64,
}

/// Body of the last frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentEnd {
    /// Base of the next segment.
    pub next_base: Lsn,
    /// Size of the next segment in bytes.
    pub next_segment_bytes: u64,
}

/// Bytes of a whole segment-end frame; every segment keeps this much room for it.
pub const SEGMENT_END_FRAME_BYTES: u64 = crate::frame::frame_bytes(size_of::<SegmentEnd>()) as u64;

impl SegmentEnd {
    /// LSN of the frame that follows a segment-end frame.
    #[must_use]
    pub fn next_frame(&self) -> Lsn {
        self.next_base.plus(SEGMENT_HEADER_BYTES)
    }

    /// Parses the body of a segment-end frame at `lsn` and checks that it leads forward.
    ///
    /// # Errors
    /// [`FrameError::Body`].
    pub fn parse(body: &[u8], lsn: Lsn) -> Result<SegmentEnd, FrameError> {
        let end = read_whole::<SegmentEnd>(body, "segment end")?;
        let size_allowed = (SEGMENT_BYTES_LIMITS.0..=SEGMENT_BYTES_LIMITS.1)
            .contains(&end.next_segment_bytes)
            && end.next_segment_bytes.is_multiple_of(SEGMENT_HEADER_BYTES);
        let leads_on = end.next_base > lsn
            && end.next_base.since(lsn) <= SEGMENT_BYTES_LIMITS.1
            && end.next_base.0.is_multiple_of(SEGMENT_HEADER_BYTES);
        if size_allowed && leads_on { Ok(end) } else { Err(FrameError::Body("segment end")) }
    }
}

/// Fixed part of the body of an epoch-start frame; the ack policy in force follows as UTF-8 text
/// (see [`crate::ack::AckPolicy`]). The new epoch itself is the one in the frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EpochStarted {
    /// The epoch before, [`Epoch::NONE`] for the first.
    pub previous: Epoch,
    /// The inherited `committed`; what lies between it and this frame commits with this frame.
    pub inherited_committed: Lsn,
}

/// Body of an ack-policy frame: the range of the log it is about, then the policy as UTF-8 text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AckPolicyChanged {
    /// First byte it covers.
    pub from: Lsn,
    /// End of what it covers, or zero while that is open.
    pub to: Lsn,
    /// 0 the operator changed it; 1 a degrade; 2 the end of a degrade.
    pub reason: u64,
}

/// One definition in the body of a table-definition frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDefinition<'a> {
    /// Number of the table, never 0.
    pub id: TableId,
    /// Its name: the part of a client's key before the first colon. May be empty.
    pub name: &'a [u8],
}

/// The body of a table-definition frame: `id: u32, name_len: u32, name` for each.
#[derive(Clone, Copy, Debug)]
pub struct TableDefinitions;

impl TableDefinitions {
    /// Bytes of one definition.
    #[must_use]
    pub fn encoded_bytes(name: &[u8]) -> usize {
        8 + name.len()
    }

    /// Appends one definition to a body.
    pub fn encode(definition: &TableDefinition<'_>, body: &mut Vec<u8>) {
        let name_len = u32::try_from(definition.name.len()).expect("table names are short");
        body.extend_from_slice(&definition.id.0.to_le_bytes());
        body.extend_from_slice(&name_len.to_le_bytes());
        body.extend_from_slice(definition.name);
    }

    /// Parses a whole body.
    ///
    /// # Errors
    /// [`FrameError::Body`].
    pub fn parse(mut body: &[u8]) -> Result<Vec<TableDefinition<'_>>, FrameError> {
        let mut definitions = Vec::new();
        while !body.is_empty() {
            let malformed = FrameError::Body("table definition");
            let (head, rest) = body.split_at_checked(8).ok_or(malformed)?;
            let id = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
            let len = u32::from_le_bytes(head[4..].try_into().expect("four bytes")) as usize;
            let (name, rest) = rest.split_at_checked(len).ok_or(malformed)?;
            if id == 0 || len > TABLE_NAME_BYTES_MAX {
                return Err(malformed);
            }
            definitions.push(TableDefinition { id: TableId(id), name });
            body = rest;
        }
        Ok(definitions)
    }
}

/// The body of an epoch-history frame: a run of [`EpochStart`], oldest first.
#[derive(Clone, Copy, Debug)]
pub struct EpochHistoryPart;

impl EpochHistoryPart {
    /// Parses a whole body.
    ///
    /// # Errors
    /// [`FrameError::Body`].
    pub fn parse(body: &[u8]) -> Result<Vec<EpochStart>, FrameError> {
        // Entry by entry: the body may lie at any address.
        let entries = body.chunks(size_of::<EpochStart>()).map(EpochStart::read_from_bytes);
        entries.collect::<Result<_, _>>().map_err(|_| FrameError::Body("epoch history"))
    }
}

/// Reads a fixed-size body that must be there in full, with nothing behind it.
///
/// # Errors
/// [`FrameError::Body`] naming `what`.
pub fn read_whole<T: FromBytes>(body: &[u8], what: &'static str) -> Result<T, FrameError> {
    T::read_from_bytes(body).map_err(|_| FrameError::Body(what))
}

/// Reads a fixed-size head and the UTF-8 text behind it.
///
/// # Errors
/// [`FrameError::Body`] naming `what`.
pub fn read_with_text<'a, T: FromBytes>(
    body: &'a [u8],
    what: &'static str,
) -> Result<(T, &'a str), FrameError> {
    let (head, text) = T::read_from_prefix(body).map_err(|_| FrameError::Body(what))?;
    let text = std::str::from_utf8(text).map_err(|_| FrameError::Body(what))?;
    Ok((head, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_definitions_round_trip_and_refuse_the_unspeakable_id() {
        let mut body = Vec::new();
        for (id, name) in [(1, &b"planes"[..]), (2, b"")] {
            TableDefinitions::encode(&TableDefinition { id: TableId(id), name }, &mut body);
        }
        let parsed = TableDefinitions::parse(&body).unwrap();
        assert_eq!(parsed[0], TableDefinition { id: TableId(1), name: b"planes" });
        assert_eq!(parsed[1], TableDefinition { id: TableId(2), name: b"" });
        body[0] = 0;
        assert!(TableDefinitions::parse(&body).is_err());
        assert!(TableDefinitions::parse(&body[..5]).is_err());
    }

    #[test]
    fn a_history_reads_the_same_wherever_its_bytes_lie() {
        let epoch = Epoch { counter: 1, node_id: 2, nonce: 3 };
        let entry = EpochStart { epoch, start: Lsn(4096) };
        for shift in 0..8 {
            let bytes = [&[0; 8][..shift], entry.as_bytes(), entry.as_bytes()].concat();
            assert_eq!(EpochHistoryPart::parse(&bytes[shift..]), Ok(vec![entry; 2]));
            assert!(EpochHistoryPart::parse(&bytes[shift + 1..]).is_err());
        }
    }

    #[test]
    fn a_segment_end_must_lead_forward() {
        let end = SegmentEnd { next_base: Lsn(65536), next_segment_bytes: 65536 };
        assert_eq!(SegmentEnd::parse(end.as_bytes(), Lsn(60000)), Ok(end));
        assert!(SegmentEnd::parse(end.as_bytes(), Lsn(65536)).is_err());
        let huge = SegmentEnd { next_segment_bytes: !4095, ..end };
        assert!(SegmentEnd::parse(huge.as_bytes(), Lsn(60000)).is_err());
    }
}
