//! Frames of a log as records that people and scripts can read.

use rowship_proto::control::{
    AckPolicyChanged, EpochHistoryPart, EpochStarted, SegmentEnd, SegmentStart, TableDefinitions,
    read_whole, read_with_text,
};
use rowship_proto::frame::FrameError;
use rowship_proto::row::{Existed, Operation, Row, TableId, transactions};
use rowship_proto::value::Image;
use rowship_proto::verify::{StreamVerifier, first_frame};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;

use crate::edge::Disk;
use crate::log::scan::{Found, SegmentScan, may_be_torn};
use crate::log::segment::{SegmentFile, SegmentHeader, list_segments};
use crate::log::survey::body_of;
use crate::log::{LogError, write_bytes_max};

/// One frame. Text that is not UTF-8 is shown with replacement characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpRecord {
    /// Where it starts.
    pub lsn: u64,
    /// Bytes in the log.
    pub frame_bytes: u64,
    /// Its kind, by name; "unknown" for kinds of the future.
    pub kind: &'static str,
    /// Repeats an earlier record.
    pub repeat: bool,
    /// Writer's epoch.
    pub epoch: String,
    /// Writer's committed position at sealing.
    pub committed: u64,
    /// Writer's clock at sealing, nanoseconds since 1970.
    pub sealed_wall_ns: u64,
    /// Chain value, in hexadecimal.
    pub chain: String,
    /// Transactions of a rows frame.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transactions: Vec<DumpTransaction>,
    /// What a control frame says.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpTransaction {
    /// Node id of the node that took it in.
    pub origin: u64,
    /// Its hybrid logical clock.
    pub clock: u64,
    /// Its rows.
    pub rows: Vec<DumpRow>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DumpRow {
    /// Its LSN.
    pub lsn: u64,
    /// The table's name if the part of the log that was read defines it, else its number.
    pub table: String,
    /// "put" or "delete".
    pub operation: &'static str,
    /// "yes", "no" or "unknown".
    pub existed: &'static str,
    /// Key without the table's prefix.
    pub key: String,
    /// A string's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Columns in order: name, value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<(String, String)>,
}

/// Gives the frames that end above `from`, in order, at most `limit`, to `sink` until it returns
/// false. Returns how many. Reading starts at the head of `from`'s segment, for its dictionary;
/// it ends without error at the first frame that is not there, in the last segment with frames.
///
/// # Errors
/// [`LogError::NoSegments`], [`LogError::Retired`], [`LogError::Io`]; [`LogError::Damage`] where
/// a frame does not hold and the log goes on behind it in a later segment.
pub fn dump<D: Disk>(
    disk: &D,
    from: Lsn,
    limit: u64,
    mut sink: impl FnMut(&DumpRecord) -> bool,
) -> Result<u64, LogError> {
    let read = read_frames(disk, from, limit, &mut sink);
    // A live node may retire what is being read.
    let retired = |oldest: Lsn| LogError::Retired { lsn: from, oldest };
    match read {
        Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let first = list_segments(disk)?.first().map(|(base, _)| first_frame(*base));
            Err(first.map_or(LogError::NoSegments { directory: disk.path("") }, retired))
        }
        other => other,
    }
}

fn read_frames<D: Disk>(
    disk: &D,
    from: Lsn,
    limit: u64,
    sink: &mut impl FnMut(&DumpRecord) -> bool,
) -> Result<u64, LogError> {
    let segments = list_segments(disk)?;
    let Some((oldest, _)) = segments.first() else {
        return Err(LogError::NoSegments { directory: disk.path("") });
    };
    let oldest = first_frame(*oldest);
    if from < oldest && from > Lsn::ZERO {
        return Err(LogError::Retired { lsn: from, oldest });
    }
    let holder = segments.iter().rposition(|(base, _)| first_frame(*base) <= from).unwrap_or(0);
    let mut tables = BTreeMap::new();
    let (mut stream, mut count) = (None, 0);
    for (index, (base, bytes)) in segments.iter().enumerate().skip(holder) {
        let mut scan = SegmentScan::of_file(disk, *base, *bytes);
        let header = SegmentHeader::read(disk, *base)?;
        let header = header.map_err(|error| scan.damage(*base, error.to_string()))?;
        let mut verifier = continue_in(&mut scan, &header, stream)?;
        loop {
            let (frame, body, after) = match scan.frame(&verifier)? {
                Found::Frame { header, bytes, after } => (header, body_of(&header, bytes), after),
                Found::Invalid { error, live } => {
                    let later = &segments[index + 1..];
                    if !goes_on(disk, &mut scan, &verifier, (&error, live), later)? {
                        return Ok(count);
                    }
                    // Read while it was written? What is behind proves that it is complete now.
                    scan.reread();
                    if matches!(scan.frame(&verifier)?, Found::Frame { .. }) {
                        continue;
                    }
                    return Err(scan.refusal(verifier.next, &error));
                }
            };
            learn_tables(&frame, body, &mut tables);
            if frame.end() > from {
                if count == limit {
                    return Ok(count);
                }
                let record = record(&frame, body, &tables);
                let record = record.map_err(|error| damage_at(disk, &header, frame.lsn, &error))?;
                count += 1;
                if !sink(&record) {
                    return Ok(count);
                }
            }
            verifier = after;
            if frame.kind() == Some(FrameKind::SegmentEnd) {
                break;
            }
        }
        stream = Some(verifier);
    }
    Ok(count)
}

/// Whether the log goes on behind a frame that does not hold, so that this is not its end: see
/// [`crate::log::survey`] for the rule.
fn goes_on<D: Disk>(
    disk: &D,
    scan: &mut SegmentScan<'_, D>,
    verifier: &StreamVerifier,
    (error, live): (&FrameError, bool),
    later: &[SegmentFile],
) -> Result<bool, LogError> {
    let (at, seed) = (verifier.next, verifier.seed);
    let far = at.plus(write_bytes_max(verifier.body_max as u64));
    if !may_be_torn(error, live) || scan.find_live_frame(far, scan.end(), seed)?.is_some() {
        return Ok(true);
    }
    for (base, bytes) in later {
        if SegmentScan::of_file(disk, *base, *bytes).is_written(seed)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn continue_in<D: Disk>(
    scan: &mut SegmentScan<'_, D>,
    header: &SegmentHeader,
    stream: Option<StreamVerifier>,
) -> Result<StreamVerifier, LogError> {
    let (seed, next) = (header.log_id.seed(), header.first_frame());
    let body_max = usize::try_from(header.frame_body_bytes_max).expect("at most 16 MiB");
    if let Some(verifier) = stream {
        return Ok(StreamVerifier { body_max, ..verifier });
    }
    let head = scan.bytes(next, FRAME_HEADER_BYTES as u64)?;
    let chain = FrameHeader::parse(head, seed, body_max).map_or(0, |first| first.chain_previous);
    Ok(StreamVerifier { seed, body_max, next, chain, epoch: Epoch::NONE })
}

fn damage_at<D: Disk>(disk: &D, header: &SegmentHeader, lsn: Lsn, error: &FrameError) -> LogError {
    SegmentScan::new(disk, header).damage(lsn, error.to_string())
}

fn learn_tables(header: &FrameHeader, body: &[u8], tables: &mut BTreeMap<TableId, String>) {
    if header.kind() != Some(FrameKind::TableDefine) {
        return;
    }
    // A body that does not parse is reported when its record is made.
    for definition in TableDefinitions::parse(body).unwrap_or_default() {
        tables.insert(definition.id, text(definition.name));
    }
}

fn record(
    header: &FrameHeader,
    body: &[u8],
    tables: &BTreeMap<TableId, String>,
) -> Result<DumpRecord, FrameError> {
    let mut record = DumpRecord {
        lsn: header.lsn.0,
        frame_bytes: header.frame_bytes() as u64,
        kind: kind_name(header.kind()),
        repeat: header.flags & rowship_proto::frame::FLAG_REPEAT != 0,
        epoch: header.epoch.to_string(),
        committed: header.committed.0,
        sealed_wall_ns: header.sealed_wall_ns,
        chain: format!("{:016x}", header.chain()),
        transactions: Vec::new(),
        fields: BTreeMap::new(),
    };
    if header.kind() == Some(FrameKind::Rows) {
        let body_lsn = header.lsn.plus(FRAME_HEADER_BYTES as u64);
        for transaction in transactions(body, body_lsn) {
            let transaction = transaction?;
            let rows: Result<Vec<DumpRow>, FrameError> =
                transaction.rows().map(|row| Ok(dump_row(&row?, tables))).collect();
            let (origin, clock) = (transaction.header.origin, transaction.header.clock.0);
            record.transactions.push(DumpTransaction { origin, clock, rows: rows? });
        }
    } else {
        record.fields = control_fields(header.kind(), body)?;
    }
    Ok(record)
}

fn dump_row(row: &Row<'_>, tables: &BTreeMap<TableId, String>) -> DumpRow {
    let (value, columns) = match Image::parse(row.value) {
        _ if row.operation == Operation::Delete => (None, Vec::new()),
        Ok(Image::String(value)) => (Some(text(value)), Vec::new()),
        Ok(Image::Columns(columns)) => {
            (None, columns.iter().map(|(name, value)| (text(name), text(value))).collect())
        }
        Err(error) => (Some(format!("({error})")), Vec::new()),
    };
    DumpRow {
        lsn: row.lsn.0,
        table: match tables.get(&row.table) {
            Some(name) => name.clone(),
            None => row.table.0.to_string(),
        },
        operation: match row.operation {
            Operation::Put => "put",
            Operation::Delete => "delete",
        },
        existed: match row.existed {
            Existed::Yes => "yes",
            Existed::No => "no",
            Existed::Unknown => "unknown",
        },
        key: text(row.key),
        value,
        columns,
    }
}

fn control_fields(
    kind: Option<FrameKind>,
    body: &[u8],
) -> Result<BTreeMap<String, String>, FrameError> {
    let mut fields = BTreeMap::new();
    let mut add = |name: &str, value: String| fields.insert(name.to_owned(), value);
    match kind {
        Some(FrameKind::SegmentStart) => {
            let start = read_whole::<SegmentStart>(body, "segment start")?;
            add("log_id", start.log_id.to_string());
            add("base", start.base.to_string());
            add("segment_bytes", start.segment_bytes.to_string());
            add("frame_body_bytes_max", start.frame_body_bytes_max.to_string());
            add("repeat_frames", start.repeat_frames.to_string());
        }
        Some(FrameKind::SegmentEnd) => {
            let end = read_whole::<SegmentEnd>(body, "segment end")?;
            add("next_base", end.next_base.to_string());
            add("next_segment_bytes", end.next_segment_bytes.to_string());
        }
        Some(FrameKind::EpochStart) => {
            let (started, policy) = read_with_text::<EpochStarted>(body, "epoch start")?;
            add("previous", started.previous.to_string());
            add("inherited_committed", started.inherited_committed.to_string());
            add("policy", policy.to_owned());
        }
        Some(FrameKind::TableDefine) => {
            for definition in TableDefinitions::parse(body)? {
                add(&definition.id.0.to_string(), text(definition.name));
            }
        }
        Some(FrameKind::EpochHistory) => {
            for entry in EpochHistoryPart::parse(body)? {
                add(&entry.epoch.to_string(), entry.start.to_string());
            }
        }
        Some(FrameKind::AckPolicy) => {
            let (changed, policy) = read_with_text::<AckPolicyChanged>(body, "ack policy")?;
            add("from", changed.from.to_string());
            add("to", changed.to.to_string());
            add("reason", changed.reason.to_string());
            add("policy", policy.to_owned());
        }
        Some(FrameKind::Rows | FrameKind::Mark) | None => {}
    }
    Ok(fields)
}

fn kind_name(kind: Option<FrameKind>) -> &'static str {
    match kind {
        Some(FrameKind::Rows) => "rows",
        Some(FrameKind::SegmentStart) => "segment_start",
        Some(FrameKind::SegmentEnd) => "segment_end",
        Some(FrameKind::EpochStart) => "epoch_start",
        Some(FrameKind::TableDefine) => "table_define",
        Some(FrameKind::EpochHistory) => "epoch_history",
        Some(FrameKind::AckPolicy) => "ack_policy",
        Some(FrameKind::Mark) => "mark",
        None => "unknown",
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
