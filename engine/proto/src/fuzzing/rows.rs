//! Rows, transactions, images and control bodies.

use zerocopy::IntoBytes;

use super::{LOG, START, input::Input};
use crate::ack::{AckPolicy, NODE_NAME_BYTES_MAX, NodeName};
use crate::control::{
    AckPolicyChanged, EpochHistoryPart, EpochStarted, SegmentEnd, SegmentStart, TableDefinitions,
    read_whole, read_with_text,
};
use crate::frame::{FRAME_HEADER_BYTES, FrameBuilder, FrameKind, Seal};
use crate::hlc::Hlc;
use crate::position::{EpochHistory, Lsn, Position};
use crate::row::{
    Existed, Operation, RowWrite, TableId, append_transaction, key_hash, transaction_bytes,
    transactions,
};
use crate::value::{Image, encode_columns, encode_string};

/// Rows that an input describes are the same after they were written and read. An input that is
/// read as a body or as an image is taken for just what the drawings of `row.rs` and `value.rs`
/// say: by second readers, written down from the drawings. Returns how many rows were written.
pub fn rows(data: &[u8]) -> u64 {
    assert_eq!(image_as_read(data), image_as_drawn(data), "an image is not what is drawn");
    assert_eq!(body_as_read(data), body_as_drawn(data), "a body is not what is drawn");
    rows_round_trip(Input::new(data))
}

/// A control body, by its first byte. What is read is the same after writing it anew; so are the
/// texts that people write: policies, tokens and names. Returns whether it was read.
pub fn control(data: &[u8]) -> bool {
    let Some((kind, body)) = data.split_first() else { return false };
    match kind % 7 {
        0 => read_whole::<SegmentStart>(body, "").is_ok_and(|start| {
            assert_eq!(start.as_bytes(), body);
            true
        }),
        1 => SegmentEnd::parse(body, START).is_ok_and(|end| {
            assert_eq!(end.as_bytes(), body);
            assert!(START < end.next_base && end.next_base < end.next_frame(), "it leads forward");
            true
        }),
        2 => read_with_text::<EpochStarted>(body, "").is_ok_and(|(head, text)| {
            assert_eq!([head.as_bytes(), text.as_bytes()].concat(), body);
            true
        }),
        3 => read_with_text::<AckPolicyChanged>(body, "").is_ok_and(|(head, text)| {
            assert_eq!([head.as_bytes(), text.as_bytes()].concat(), body);
            true
        }),
        4 => {
            super::read_tables(body);
            TableDefinitions::parse(body).is_ok()
        }
        5 => epoch_history(body),
        _ => texts(body),
    }
}

fn epoch_history(body: &[u8]) -> bool {
    let Ok(entries) = EpochHistoryPart::parse(body) else { return false };
    assert_eq!(entries.as_bytes(), body, "a history has one encoding");
    let Some(history) = EpochHistory::from_entries(entries.clone()) else { return false };
    assert_eq!(history.entries(), entries);
    // Reign by reign, as a node comes to know them. (Reigns that start at one place replace one
    // another then, so only histories without such are compared.)
    if entries.windows(2).all(|pair| pair[0].start < pair[1].start) {
        let mut pushed = EpochHistory::default();
        assert!(entries.iter().all(|entry| pushed.push(entry.epoch, entry.start)));
        assert_eq!(pushed, history);
    }
    true
}

fn texts(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    let policy = text.parse::<AckPolicy>();
    if let Ok(policy) = &policy {
        assert_eq!(policy.to_string().parse(), Ok(policy.clone()), "a policy is what it says");
    }
    let token = text.parse::<Position>();
    if let Ok(token) = &token {
        assert_eq!(token.to_string().parse(), Ok(*token), "a token is what it says");
    }
    let name = NodeName::new(text);
    if let Ok(name) = &name {
        assert!(name.as_str() == text && text.len() <= NODE_NAME_BYTES_MAX);
    }
    policy.is_ok() || token.is_ok() || name.is_ok()
}

#[derive(Debug, PartialEq)]
enum Content {
    String(Vec<u8>),
    Columns(Vec<(Vec<u8>, Vec<u8>)>),
}

fn image_as_read(bytes: &[u8]) -> Option<Content> {
    Some(match Image::parse(bytes).ok()? {
        Image::String(value) => Content::String(value.to_vec()),
        Image::Columns(columns) => {
            let all: Vec<_> =
                columns.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            for (name, _) in &all {
                let first = all.iter().find(|column| column.0 == *name).map(|column| &column.1[..]);
                assert_eq!(columns.get(name), first);
            }
            Content::Columns(all)
        }
    })
}

fn image_as_drawn(bytes: &[u8]) -> Option<Content> {
    let (prefix, rest) = (bytes.get(..4)?, bytes.get(4..)?);
    if prefix == [1, 0, 0, 0] {
        return Some(Content::String(rest.to_vec()));
    }
    let count = usize::from(prefix[2]) + 256 * usize::from(prefix[3]);
    if prefix[..2] != [2, 0] || count == 0 {
        return None;
    }
    let (index, data) = (rest.get(..count * 8)?, rest.get(count * 8..)?);
    let end = |slot: usize| number(&index[slot * 4..slot * 4 + 4]);
    let (mut columns, mut at) = (Vec::new(), 0);
    for column in 0..count {
        let (name_end, value_end) = (end(2 * column), end(2 * column + 1));
        let (name, value) = (data.get(at..name_end)?, data.get(name_end..value_end)?);
        columns.push((name.to_vec(), value.to_vec()));
        at = value_end;
    }
    (at == data.len()).then_some(Content::Columns(columns))
}

/// LSN, hash, table, operation, existed, key, value.
type Fields = (u64, u64, u32, u8, u8, Vec<u8>, Vec<u8>);
/// Origin, clock, rows.
type TransactionFields = (u64, u64, Vec<Fields>);

fn body_as_read(body: &[u8]) -> Option<Vec<TransactionFields>> {
    let read = transactions(body, START).map(|transaction| {
        let transaction = transaction.ok()?;
        let fields = transaction.rows().map(|row| {
            let row = row.ok()?;
            let (operation, existed) = (row.operation as u8, row.existed as u8);
            let (key, value) = (row.key.to_vec(), row.value.to_vec());
            Some((row.lsn.0, row.key_hash, row.table.0, operation, existed, key, value))
        });
        Some((
            transaction.header.origin,
            transaction.header.clock.0,
            fields.collect::<Option<_>>()?,
        ))
    });
    read.collect()
}

fn body_as_drawn(body: &[u8]) -> Option<Vec<TransactionFields>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < body.len() {
        let head = body.get(at..at + 24)?;
        let (count, bytes) = (number(&head[16..20]), number(&head[20..24]));
        let (mut next, mut rows) = (at + 24, Vec::new());
        let end = next + bytes;
        if !bytes.is_multiple_of(8) || end > body.len() {
            return None;
        }
        for _ in 0..count {
            let head = body[..end].get(next..next + 24)?;
            let (value_len, key_len) = (number(&head[12..16]), number(&head[16..18]));
            let (operation, existed) = (head[18], head[19]);
            let is_delete = operation == 2 && value_len == 0;
            if !(operation == 1 || is_delete) || existed > 2 {
                return None;
            }
            let key_end = next + 24 + key_len;
            let key = body[..end].get(next + 24..key_end)?.to_vec();
            let value = body[..end].get(key_end..key_end + value_len)?.to_vec();
            let lsn = START.0 + next as u64;
            let (hash, table) = (number(&head[..8]) as u64, number(&head[8..12]));
            rows.push((lsn, hash, u32::try_from(table).ok()?, operation, existed, key, value));
            next = (key_end + value_len).next_multiple_of(8);
            if next > end {
                return None;
            }
        }
        if next != end {
            return None;
        }
        found.push((number(&head[..8]) as u64, number(&head[8..16]) as u64, rows));
        at = end;
    }
    Some(found)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

struct Described {
    table: TableId,
    operation: Operation,
    existed: Existed,
    key: Vec<u8>,
    value: Vec<u8>,
}

fn describe(input: &mut Input<'_>) -> Described {
    let table = TableId(u32::from(input.byte() % 4));
    let existed = input.pick(&[Existed::No, Existed::Yes, Existed::Unknown]);
    let key_len = input.below(40);
    let key = input.bytes(key_len).to_vec();
    let (operation, value) = match input.below(3) {
        0 => (Operation::Delete, Vec::new()),
        1 => {
            let len = input.below(64);
            (Operation::Put, encode_string(input.bytes(len)))
        }
        _ => (Operation::Put, describe_columns(input)),
    };
    Described { table, operation, existed, key, value }
}

fn describe_columns(input: &mut Input<'_>) -> Vec<u8> {
    let mut columns: Vec<(&[u8], &[u8])> = Vec::new();
    for _ in 0..=input.below(8) {
        let (name_len, value_len) = (input.below(8), input.below(16));
        let name = input.bytes(name_len);
        if columns.iter().all(|column| column.0 != name) {
            columns.push((name, input.bytes(value_len)));
        }
    }
    let image = encode_columns(&columns);
    let Ok(Image::Columns(read)) = Image::parse(&image) else { panic!("columns were written") };
    assert_eq!(read.iter().collect::<Vec<_>>(), columns);
    image
}

fn rows_round_trip(mut input: Input<'_>) -> u64 {
    let buffer = vec![0; BODY_BYTES];
    let mut frame = FrameBuilder::new(buffer, FrameKind::Rows, 0, START);
    let mut written: Vec<TransactionFields> = Vec::new();
    while !input.is_done() {
        let described: Vec<Described> = (0..input.below(6)).map(|_| describe(&mut input)).collect();
        let rows: Vec<RowWrite<'_>> = described.iter().map(row_write).collect();
        if transaction_bytes(&rows) > frame.room_bytes() {
            break;
        }
        let (origin, clock) = (u64::from(input.byte()), u64::from(input.short()));
        let mut fields = Vec::new();
        append_transaction(&mut frame, origin, Hlc(clock), &rows, |at, lsn: Lsn| {
            let RowWrite { key_hash, table, operation, existed, key, value } = rows[at];
            let (operation, existed) = (operation as u8, existed as u8);
            let place = lsn.0 - FRAME_HEADER_BYTES as u64;
            fields.push((
                place,
                key_hash,
                table.0,
                operation,
                existed,
                key.to_vec(),
                value.to_vec(),
            ));
        });
        written.push((origin, clock, fields));
    }
    let (header, bytes) = frame.seal(&Seal::first(LOG, crate::Epoch::NONE));
    assert_eq!(header.txn_count as usize, written.len());
    let body = &bytes[FRAME_HEADER_BYTES..][..header.stored_len as usize];
    let rows = written.iter().map(|(_, _, rows)| rows.len() as u64).sum();
    assert_eq!(body_as_read(body), Some(written), "rows are not what was written");
    rows
}

fn row_write(row: &Described) -> RowWrite<'_> {
    let Described { table, operation, existed, .. } = *row;
    let key_hash = key_hash(LOG.seed(), table, &row.key);
    RowWrite { key_hash, table, operation, existed, key: &row.key, value: &row.value }
}

/// Room for what an input of a few KiB describes.
const BODY_BYTES: usize = 16 << 10;
