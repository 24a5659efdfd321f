//! Bodies of the fuzz targets in `fuzz/`, beside the parsers that they attack; the tests replay
//! the corpus through the same bodies.
//!
//! Random bytes hardly ever pass a checksum, so each body looks at its input twice: as it is, and
//! with magic, lengths, places and checksums repaired, so that what lies behind them is reached.

mod handshake;
mod input;
mod primary;
mod rows;

use zerocopy::{FromBytes, IntoBytes};

pub use self::handshake::handshake;
pub use self::input::Input;
pub use self::primary::primary;
pub use self::rows::{control, rows};

use crate::ack::AckPolicy;
use crate::control::{
    AckPolicyChanged, EpochHistoryPart, EpochStarted, SegmentStart, TableDefinitions, read_whole,
    read_with_text,
};
use crate::frame::{
    FLAGS_MUST_UNDERSTAND, FRAME_MAGIC, FRAME_VERSION, FrameError, Seal, frame_bytes,
};
use crate::message::{MESSAGE_BODY_BYTES_MAX, MESSAGE_HEADER_BYTES, MESSAGE_MAGIC, Message};
use crate::row::{Row, RowWrite, TransactionHeader, append_transaction, transactions};
use crate::value::{Image, encode_columns, encode_string};
use crate::verify::{StreamVerifier, check_rows, find_live_frame};
use crate::{
    Epoch, EpochHistory, FRAME_HEADER_BYTES, FrameBuilder, FrameHeader, FrameKind, LogId, Lsn,
};

/// The log of all inputs.
pub const LOG: LogId = LogId([3, 4]);
/// Where their first frame stands.
pub const START: Lsn = Lsn(4096);
/// Largest body in bytes: inputs are smaller.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What was accepted of an input as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Frames, or messages.
    pub count: u64,
    /// Rows in rows frames.
    pub rows: u64,
    /// Bytes of all that.
    pub bytes: usize,
}

/// A stream of frames. Nothing panics; what is refused moves nothing; rows that parse are the
/// same after they were encoded anew, at the same LSNs.
pub fn frame_stream(data: &[u8]) -> Accepted {
    let accepted = walk_frames(data);
    let (repaired, frames) = repair_frames(data);
    assert!(walk_frames(&repaired).count >= frames, "a repaired frame was refused");
    let _ = find_live_frame(data, START, LOG.seed());
    accepted
}

/// A stream of messages. Nothing panics; what is decoded is the same after encoding it anew.
pub fn message(data: &[u8]) -> Accepted {
    let accepted = walk_messages(data);
    walk_messages(&repair_messages(data));
    accepted
}

fn verifier() -> StreamVerifier {
    let (seed, epoch) = (LOG.seed(), Epoch::NONE);
    StreamVerifier { seed, body_max: BODY_BYTES_MAX, next: START, chain: 0, epoch }
}

fn walk_frames(data: &[u8]) -> Accepted {
    let mut verifier = verifier();
    let mut accepted = Accepted::default();
    while data.len() - accepted.bytes >= FRAME_HEADER_BYTES {
        let rest = &data[accepted.bytes..];
        let Ok(header) = verifier.header(rest) else { break };
        let Some(frame) = rest.get(..header.frame_bytes()) else { break };
        let body = &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize];
        let before = verifier;
        if verifier.accept(&header, body).is_err() {
            assert_eq!(verifier, before, "a refused frame moved the verifier");
            break;
        }
        assert!(verifier.next > before.next, "a stream must lead forward");
        accepted.rows += read_body(&header, body);
        accepted.count += 1;
        accepted.bytes += frame.len();
    }
    accepted
}

/// Reads a body as its kind says; returns the rows in it.
fn read_body(header: &FrameHeader, body: &[u8]) -> u64 {
    match header.kind() {
        Some(FrameKind::Rows) => return read_rows(header, body),
        Some(FrameKind::SegmentStart) => {
            let _ = read_whole::<SegmentStart>(body, "segment start");
        }
        Some(FrameKind::EpochStart) => {
            let _ = read_with_text::<EpochStarted>(body, "epoch start");
        }
        Some(FrameKind::TableDefine) => read_tables(body),
        Some(FrameKind::EpochHistory) => {
            let _ = EpochHistoryPart::parse(body).map(EpochHistory::from_entries);
        }
        Some(FrameKind::AckPolicy) => read_policy(body),
        // A segment end was read when it was accepted; a mark has no body.
        Some(FrameKind::SegmentEnd | FrameKind::Mark) | None => {}
    }
    0
}

fn read_tables(body: &[u8]) {
    let Ok(definitions) = TableDefinitions::parse(body) else { return };
    let mut encoded = Vec::new();
    for definition in &definitions {
        TableDefinitions::encode(definition, &mut encoded);
    }
    assert_eq!(encoded, body, "table definitions have one encoding");
}

fn read_policy(body: &[u8]) {
    let Ok((_, text)) = read_with_text::<AckPolicyChanged>(body, "ack policy") else { return };
    let Ok(policy) = text.parse::<AckPolicy>() else { return };
    assert_eq!(policy.to_string().parse(), Ok(policy), "a policy is what it says it is");
}

type TransactionRead<'a> = (TransactionHeader, Vec<Row<'a>>);

fn read_transactions(lsn: Lsn, body: &[u8]) -> Result<Vec<TransactionRead<'_>>, FrameError> {
    let whole = transactions(body, lsn.plus(FRAME_HEADER_BYTES as u64)).map(|transaction| {
        let transaction = transaction?;
        let rows = transaction.rows().collect::<Result<Vec<_>, _>>()?;
        Ok((transaction.header, rows))
    });
    whole.collect()
}

fn read_rows(header: &FrameHeader, body: &[u8]) -> u64 {
    let checked = check_rows(header, body, LOG.seed());
    let Ok(read) = read_transactions(header.lsn, body) else {
        assert!(checked.is_err(), "the check passed what cannot be read");
        return 0;
    };
    let buffer = vec![0; frame_bytes(body.len())];
    let mut builder = FrameBuilder::new(buffer, FrameKind::Rows, header.flags, header.lsn);
    for (transaction, rows) in &read {
        let writes: Vec<RowWrite<'_>> = rows.iter().map(write_of).collect();
        append_transaction(
            &mut builder,
            transaction.origin,
            transaction.clock,
            &writes,
            |at, lsn| assert_eq!(rows[at].lsn, lsn, "a row stands where it was written"),
        );
        rows.iter().for_each(read_image);
    }
    let seal = Seal { chain_previous: header.chain_previous, ..Seal::first(LOG, header.epoch) };
    let (again, frame) = builder.seal(&seal);
    assert_eq!(again.stored_len, header.stored_len);
    let body_again = &frame[FRAME_HEADER_BYTES..][..again.stored_len as usize];
    let read_again = read_transactions(again.lsn, body_again);
    assert_eq!(read_again, Ok(read.clone()), "rows are the same after encoding them anew");
    let rows = read.iter().map(|(_, rows)| rows.len() as u64).sum();
    if let Ok(checked) = checked {
        assert_eq!(checked.rows, rows);
    }
    rows
}

fn write_of<'a>(row: &Row<'a>) -> RowWrite<'a> {
    let Row { key_hash, table, operation, existed, key, value, .. } = *row;
    RowWrite { key_hash, table, operation, existed, key, value }
}

fn read_image(row: &Row<'_>) {
    let encoded = match Image::parse(row.value) {
        Err(_) => return,
        Ok(Image::String(value)) => encode_string(value),
        Ok(Image::Columns(columns)) => encode_columns(&columns.iter().collect::<Vec<_>>()),
    };
    assert_eq!(encoded, row.value, "an image has one encoding");
}

/// The frames that `data` could be, made right: all that the bytes leave open is kept. Returns
/// the stream and how many of its frames must be accepted.
fn repair_frames(data: &[u8]) -> (Vec<u8>, u64) {
    let mut verifier = verifier();
    let (mut stream, mut frames, mut rest) = (Vec::new(), 0, data);
    while let Ok((mut header, behind)) = FrameHeader::read_from_prefix(rest) {
        (header.magic, header.version) = (FRAME_MAGIC, FRAME_VERSION);
        header.flags &= !FLAGS_MUST_UNDERSTAND;
        if header.kind().is_none() {
            header.kind = header.kind % (FrameKind::Mark as u8) + 1;
        }
        let body_len = fit(header.stored_len as usize, behind.len().min(BODY_BYTES_MAX));
        let body = &behind[..body_len];
        header.stored_len = u32::try_from(body_len).expect("inputs are small");
        header.raw_len = header.stored_len;
        header.lsn = verifier.next;
        header.committed = header.committed.min(header.lsn);
        header.body_checksum = xxhash_rust::xxh3::xxh3_64(body);
        header.chain_previous = verifier.chain;
        if verifier.continues(&header).is_err() {
            header.epoch = verifier.epoch;
        }
        header.header_checksum = header.checksum(LOG.seed());
        stream.extend_from_slice(header.as_bytes());
        stream.extend_from_slice(body);
        stream.resize(stream.len().next_multiple_of(8), 0);
        if verifier.accept(&header, body).is_err() || verifier.next.0 > 1 << 60 {
            break;
        }
        frames += 1;
        rest = behind.get(body_len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    (stream, frames)
}

/// `len` when it is at most `max`, otherwise something that is.
fn fit(len: usize, max: usize) -> usize {
    if len <= max { len } else { len % (max + 1) }
}

fn walk_messages(data: &[u8]) -> Accepted {
    let mut accepted = Accepted::default();
    loop {
        let rest = &data[accepted.bytes..];
        let Ok(decoded) = Message::decode(rest) else { return accepted };
        let Some((message, bytes)) = decoded else {
            assert!(rest.len() < MESSAGE_HEADER_BYTES + MESSAGE_BODY_BYTES_MAX, "waits forever");
            return accepted;
        };
        let encoded = message.encode();
        let again = Message::decode(&encoded);
        assert_eq!(again, Ok(Some((message, encoded.len()))), "the same after encoding it anew");
        accepted.count += 1;
        accepted.bytes += bytes;
    }
}

/// The messages that `data` could be, made right.
fn repair_messages(data: &[u8]) -> Vec<u8> {
    let (mut stream, mut rest) = (Vec::new(), data);
    while let Some((head, behind)) = rest.split_at_checked(MESSAGE_HEADER_BYTES) {
        let announced = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let body_len = fit(announced, behind.len().min(MESSAGE_BODY_BYTES_MAX));
        let body = &behind[..body_len];
        let mut fixed = head[..16].to_vec();
        fixed[..4].copy_from_slice(&MESSAGE_MAGIC.to_le_bytes());
        fixed[4] = if (1..=6).contains(&head[4]) { head[4] } else { head[4] % 6 + 1 };
        fixed[8..12].copy_from_slice(&u32::try_from(body_len).expect("small").to_le_bytes());
        let checksum = xxhash_rust::xxh3::xxh3_64(&[&fixed, body].concat());
        stream.extend_from_slice(&fixed);
        stream.extend_from_slice(&checksum.to_le_bytes());
        stream.extend_from_slice(body);
        stream.resize(stream.len().next_multiple_of(8), 0);
        rest = behind.get(body_len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    stream
}
