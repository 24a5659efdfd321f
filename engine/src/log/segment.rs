//! Segment files: their names and their header page.
//!
//! ```text
//!  0          8         12        16            32      40
//!  | magic    | version | (zero)  | log_id      | base  | segment_bytes |
//! 48                    56                                        4088
//!  | frame_body_bytes_max | zeroes ...                            | checksum |
//! ```
//!
//! The page says nothing that differs between nodes: segment files of one name are equal on all.
//! `checksum` is XXH3-64 (not seeded, to tell rot from another log) of all bytes before it.

use rowship_proto::control::{SEGMENT_BYTES_LIMITS, SEGMENT_HEADER_BYTES};
use rowship_proto::{LogId, Lsn, frame};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::LogError;
use crate::edge::Disk;

/// First eight bytes of every segment file.
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"ROWSHIPS");
/// Version of the header page that this build writes, and the newest that it reads.
pub const SEGMENT_VERSION: u32 = 1;

/// What the header page says, in the layout in which it lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentHeader {
    magic: u64,
    version: u32,
    reserved: u32,
    /// The log.
    pub log_id: LogId,
    /// LSN of the first byte of the file.
    pub base: Lsn,
    /// Size of the file.
    pub segment_bytes: u64,
    /// Largest frame body in it.
    pub frame_body_bytes_max: u64,
}

const _: () = assert!(size_of::<SegmentHeader>() == 56);
const CHECKSUM_AT: usize = SEGMENT_HEADER_BYTES as usize - 8;

/// Why a page is not the header page of a usable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    /// Not a segment file.
    #[error("not a segment file (no magic)")]
    Magic,
    /// The file is shorter than its header page.
    #[error("the file is shorter than a header page")]
    Short,
    /// Rot, or a write that never finished.
    #[error("checksum of the header page does not hold")]
    Checksum,
    /// From a newer build.
    #[error("written by a newer rowship, segment version {0} (this build reads {SEGMENT_VERSION})")]
    Newer(u32),
    /// Checksum holds, but no writer writes this.
    #[error("impossible value in the header page: {0}")]
    Field(&'static str),
}

impl SegmentHeader {
    /// The header of a segment that starts at `base`.
    ///
    /// # Panics
    /// When sizes are outside of [`SEGMENT_BYTES_LIMITS`], not whole pages, or a frame is larger
    /// than a quarter of the segment: settings and stream are checked before.
    #[must_use]
    pub fn new(
        log_id: LogId,
        base: Lsn,
        segment_bytes: u64,
        frame_body_bytes_max: u64,
    ) -> SegmentHeader {
        SegmentHeader::from_peer(log_id, base, segment_bytes, frame_body_bytes_max)
            .expect("settings and log keep sizes within their limits")
    }

    /// The same from what a peer says.
    ///
    /// # Errors
    /// [`SegmentHeaderError::Field`].
    pub fn from_peer(
        log_id: LogId,
        base: Lsn,
        segment_bytes: u64,
        frame_body_bytes_max: u64,
    ) -> Result<SegmentHeader, SegmentHeaderError> {
        let (magic, version, reserved) = (SEGMENT_MAGIC, SEGMENT_VERSION, 0);
        let header = SegmentHeader {
            magic,
            version,
            reserved,
            log_id,
            base,
            segment_bytes,
            frame_body_bytes_max,
        };
        header.check_fields()?;
        Ok(header)
    }

    /// The whole page.
    #[must_use]
    pub fn to_page(&self) -> Vec<u8> {
        let mut page = vec![0; SEGMENT_HEADER_BYTES as usize];
        page[..size_of::<SegmentHeader>()].copy_from_slice(self.as_bytes());
        let checksum = xxh3_64(&page[..CHECKSUM_AT]);
        page[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Parses a whole page.
    ///
    /// # Errors
    /// What does not hold; a page that is too short is [`SegmentHeaderError::Magic`].
    pub fn parse(page: &[u8]) -> Result<SegmentHeader, SegmentHeaderError> {
        let Ok((header, _)) = SegmentHeader::read_from_prefix(page) else {
            return Err(SegmentHeaderError::Magic);
        };
        if header.magic != SEGMENT_MAGIC || page.len() != SEGMENT_HEADER_BYTES as usize {
            return Err(SegmentHeaderError::Magic);
        }
        if xxh3_64(&page[..CHECKSUM_AT]).to_le_bytes() != page[CHECKSUM_AT..] {
            return Err(SegmentHeaderError::Checksum);
        }
        if header.version != SEGMENT_VERSION {
            return Err(SegmentHeaderError::Newer(header.version));
        }
        header.check_fields()?;
        Ok(header)
    }

    fn check_fields(&self) -> Result<(), SegmentHeaderError> {
        let size_allowed = (SEGMENT_BYTES_LIMITS.0..=SEGMENT_BYTES_LIMITS.1)
            .contains(&self.segment_bytes)
            && self.segment_bytes.is_multiple_of(SEGMENT_HEADER_BYTES);
        let base_allowed = base_allowed(self.base.0);
        let body_allowed = self.frame_body_bytes_max > 0
            && self.frame_body_bytes_max <= frame::FRAME_BODY_BYTES_LIMIT as u64
            && self.frame_body_bytes_max <= self.segment_bytes / 4;
        match (size_allowed, base_allowed, body_allowed) {
            (false, _, _) => Err(SegmentHeaderError::Field("segment_bytes")),
            (_, false, _) => Err(SegmentHeaderError::Field("base")),
            (_, _, false) => Err(SegmentHeaderError::Field("frame_body_bytes_max")),
            (true, true, true) => Ok(()),
        }
    }

    /// Name of the segment's file.
    #[must_use]
    pub fn file_name(&self) -> String {
        segment_file_name(self.base)
    }

    /// LSN of the first frame.
    #[must_use]
    pub fn first_frame(&self) -> Lsn {
        self.base.plus(SEGMENT_HEADER_BYTES)
    }

    /// LSN just behind the file's last byte: the base of the next segment.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.base.plus(self.segment_bytes)
    }

    /// The header of the segment that follows, with that size.
    #[must_use]
    pub fn next(&self, segment_bytes: u64) -> SegmentHeader {
        SegmentHeader::new(self.log_id, self.end(), segment_bytes, self.frame_body_bytes_max)
    }

    /// Reads the page of the file of that base; the outer error is the disk's.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn read(
        disk: &impl Disk,
        base: Lsn,
    ) -> Result<Result<SegmentHeader, SegmentHeaderError>, LogError> {
        let name = segment_file_name(base);
        let mut page = vec![0; SEGMENT_HEADER_BYTES as usize];
        match disk.read_exact_at(&name, 0, &mut page) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(Err(SegmentHeaderError::Short));
            }
            Err(source) => return Err(LogError::io("read", disk.path(&name))(source)),
        }
        Ok(SegmentHeader::parse(&page).and_then(|header| {
            if header.base == base { Ok(header) } else { Err(SegmentHeaderError::Field("base")) }
        }))
    }
}

/// Whether a segment can start there.
fn base_allowed(base: u64) -> bool {
    base.is_multiple_of(SEGMENT_HEADER_BYTES) && base < frame::LSN_LIMIT
}

/// `segment-<base as 20 decimal digits>.log`: sorted by name is sorted by base.
#[must_use]
pub fn segment_file_name(base: Lsn) -> String {
    format!("segment-{:020}.log", base.0)
}

/// `spare-<number>.log`.
#[must_use]
pub fn spare_file_name(number: u64) -> String {
    format!("spare-{number}.log")
}

/// What a file in the data directory is to the log, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogFile {
    /// The segment with this base.
    Segment(Lsn),
    /// A spare.
    Spare(u64),
}

impl LogFile {
    /// Parses a file name; `None` for files that are not the log's. Only the exact spelling that
    /// [`segment_file_name`] and [`spare_file_name`] write counts, with a base that can be one.
    #[must_use]
    pub fn parse(name: &str) -> Option<LogFile> {
        let number = |prefix: &str| -> Option<u64> {
            name.strip_prefix(prefix)?.strip_suffix(".log")?.parse().ok()
        };
        let file = match (number("segment-"), number("spare-")) {
            (Some(base), _) if base_allowed(base) => LogFile::Segment(Lsn(base)),
            (None, Some(spare)) => LogFile::Spare(spare),
            _ => return None,
        };
        (file.name() == name).then_some(file)
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            LogFile::Segment(base) => segment_file_name(*base),
            LogFile::Spare(number) => spare_file_name(*number),
        }
    }
}

/// The log's files of a directory with their sizes: segments by base, then spares by number.
///
/// # Errors
/// [`LogError::Io`].
pub fn list_log_files(disk: &impl Disk) -> Result<Vec<(LogFile, u64)>, LogError> {
    let files = disk.list().map_err(LogError::io("list", disk.path("")))?;
    let parsed = files.iter().filter_map(|(name, bytes)| Some((LogFile::parse(name)?, *bytes)));
    let mut listed: Vec<_> = parsed.collect();
    listed.sort_unstable();
    Ok(listed)
}

/// Base and size in bytes of a segment's file.
pub type SegmentFile = (Lsn, u64);

/// The segment files, oldest first.
///
/// # Errors
/// [`LogError::Io`].
pub fn list_segments(disk: &impl Disk) -> Result<Vec<SegmentFile>, LogError> {
    let files = list_log_files(disk)?;
    let segment = |(file, bytes): (LogFile, u64)| match file {
        LogFile::Segment(base) => Some((base, bytes)),
        LogFile::Spare(_) => None,
    };
    Ok(files.into_iter().filter_map(segment).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader::new(LogId([1, 2]), Lsn(65536), 65536, 4096)
    }

    #[test]
    fn a_header_page_round_trips_and_every_flip_is_seen() {
        let page = header().to_page();
        assert_eq!(SegmentHeader::parse(&page), Ok(header()));
        assert_eq!(page.len(), 4096);
        for at in 0..page.len() {
            let mut hostile = page.clone();
            hostile[at] ^= 0x10;
            assert!(SegmentHeader::parse(&hostile).is_err(), "byte {at}");
        }
        assert!(SegmentHeader::parse(&page[..100]).is_err());
    }

    #[test]
    fn newer_and_impossible_pages_are_refused_by_name() {
        let newer = SegmentHeader { version: 9, ..header() };
        assert_eq!(SegmentHeader::parse(&newer.to_page()), Err(SegmentHeaderError::Newer(9)));
        for (bad, field) in [
            (SegmentHeader { base: Lsn(8), ..header() }, "base"),
            (SegmentHeader { segment_bytes: 5, ..header() }, "segment_bytes"),
            (SegmentHeader { frame_body_bytes_max: 65536, ..header() }, "frame_body_bytes_max"),
        ] {
            let refused = SegmentHeader::parse(&bad.to_page());
            assert_eq!(refused, Err(SegmentHeaderError::Field(field)));
        }
    }

    #[test]
    fn only_exact_names_are_the_logs() {
        let segment = LogFile::Segment(Lsn(65536));
        assert_eq!(segment.name(), "segment-00000000000000065536.log");
        assert_eq!(LogFile::parse(&segment.name()), Some(segment));
        assert_eq!(LogFile::parse("spare-3.log"), Some(LogFile::Spare(3)));
        for name in
            ["segment-65536.log", "spare-03.log", "segment-.log", "node.state", "spare-+3.log"]
        {
            assert_eq!(LogFile::parse(name), None, "{name}");
        }
    }
}
