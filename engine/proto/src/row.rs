//! Rows and transactions: the body of a [`crate::FrameKind::Rows`] frame.
//!
//! ```text
//! transaction  | origin: u64 | clock: u64 | row_count: u32 | rows_len: u32 | rows ...
//! row          | key_hash: u64 | table: u32 | value_len: u32 | key_len: u16 | op: u8 | existed: u8
//!              | (zero): u32 | key | value | zeroes to 8 bytes
//! ```
//!
//! A row's LSN is that of its first byte: it is also its sequence number in the table. Images are
//! always whole, so applying a row twice, or only the last of several, gives the same table.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::frame::{FrameBuilder, FrameError};
use crate::hlc::Hlc;
use crate::position::Lsn;

/// Number of a table, as defined in the log by [`crate::control::TableDefinitions`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct TableId(pub u32);

impl TableId {
    /// Holds the keys that have no prefix; it has no name that a client could spell.
    pub const NO_PREFIX: TableId = TableId(0);
}

/// Longest key of a row in bytes (without the table's prefix).
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// What a row does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// The value is the whole new image.
    Put = 1,
    /// The row is gone; no value.
    Delete = 2,
    // 3 and 4 are kept for `patch` and `delta`.
}

impl Operation {
    /// By how many rows it changes the table.
    #[must_use]
    pub fn rows_delta(self, existed: Existed) -> i64 {
        match (self, existed) {
            (Operation::Put, Existed::No) => 1,
            (Operation::Delete, Existed::Yes) => -1,
            _ => 0,
        }
    }
}

/// Whether the row existed just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Existed {
    /// It did not.
    No = 0,
    /// It did.
    Yes = 1,
    /// The writer did not look.
    Unknown = 2,
}

/// Header of a transaction, as it lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TransactionHeader {
    /// Node id of the node where a client wrote it.
    pub origin: u64,
    /// Hybrid logical clock at that node.
    pub clock: Hlc,
    /// Rows that follow.
    pub row_count: u32,
    /// Their bytes.
    pub rows_len: u32,
}

/// Header of a row, as it lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RowHeader {
    /// [`key_hash`] of table and key; selects the apply lane.
    pub key_hash: u64,
    /// The table.
    pub table: TableId,
    /// Bytes of the value.
    pub value_len: u32,
    /// Bytes of the key.
    pub key_len: u16,
    /// An [`Operation`].
    pub operation: u8,
    /// An [`Existed`].
    pub existed: u8,
    /// Zero.
    pub reserved: u32,
}

/// Size of a [`TransactionHeader`].
pub const TRANSACTION_HEADER_BYTES: usize = 24;
/// Size of a [`RowHeader`].
pub const ROW_HEADER_BYTES: usize = 24;
const _: () = assert!(size_of::<TransactionHeader>() == TRANSACTION_HEADER_BYTES);
const _: () = assert!(size_of::<RowHeader>() == ROW_HEADER_BYTES);

/// Of a table's number and a key, so many bytes are hashed in one go.
const HASHED_WHOLE_MAX: usize = 64;

/// Hash of a row's identity under the log's seed ([`crate::LogId::seed`]).
#[must_use]
pub fn key_hash(seed: u64, table: TableId, key: &[u8]) -> u64 {
    let number = table.0.to_le_bytes();
    // A short key is hashed in one go, together with its table: the same value, without the half
    // kilobyte of state that pieces need.
    let mut whole = [0; HASHED_WHOLE_MAX];
    let len = number.len() + key.len();
    if let Some(whole) = whole.get_mut(..len) {
        whole[..number.len()].copy_from_slice(&number);
        whole[number.len()..].copy_from_slice(key);
        return xxh3_64_with_seed(whole, seed);
    }
    let mut hash = Xxh3::with_seed(seed);
    hash.update(&number);
    hash.update(key);
    hash.digest()
}

/// A checked row, borrowed from a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// LSN of its first byte: its version in the table.
    pub lsn: Lsn,
    /// [`key_hash`] of table and key.
    pub key_hash: u64,
    /// The table.
    pub table: TableId,
    /// What happens to the key.
    pub operation: Operation,
    /// Whether it existed just before.
    pub existed: Existed,
    /// The key without the table's prefix.
    pub key: &'a [u8],
    /// The image ([`crate::value`]) for a put, empty for a delete.
    pub value: &'a [u8],
}

/// A row to be written. The image must be a valid [`crate::value::Image`].
#[derive(Clone, Copy, Debug)]
pub struct RowWrite<'a> {
    /// [`key_hash`] of table and key.
    pub key_hash: u64,
    /// The table.
    pub table: TableId,
    /// What happens to the key.
    pub operation: Operation,
    /// Whether it existed just before.
    pub existed: Existed,
    /// The key, at most [`KEY_BYTES_MAX`].
    pub key: &'a [u8],
    /// The image, empty for a delete.
    pub value: &'a [u8],
}

impl RowWrite<'_> {
    /// Bytes of this row in a frame.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        row_bytes(self.key.len(), self.value.len())
    }
}

/// Bytes of a row in a frame, by the lengths of its key and image.
#[must_use]
pub const fn row_bytes(key_len: usize, value_len: usize) -> usize {
    (ROW_HEADER_BYTES + key_len + value_len).next_multiple_of(8)
}

/// Bytes of a transaction in a frame.
#[must_use]
pub fn transaction_bytes(rows: &[RowWrite<'_>]) -> usize {
    TRANSACTION_HEADER_BYTES + rows.iter().map(RowWrite::encoded_bytes).sum::<usize>()
}

/// Appends a whole transaction; calls `placed` with each row's LSN, in order.
///
/// # Panics
/// When it does not fit: callers compare [`transaction_bytes`] with the builder's room.
pub fn append_transaction<B: AsMut<[u8]> + AsRef<[u8]>>(
    frame: &mut FrameBuilder<B>,
    origin: u64,
    clock: Hlc,
    rows: &[RowWrite<'_>],
    mut placed: impl FnMut(usize, Lsn),
) {
    let total = transaction_bytes(rows);
    assert!(total <= frame.room_bytes());
    let header = TransactionHeader {
        origin,
        clock,
        row_count: u32::try_from(rows.len()).expect("rows of a frame fit 32 bits"),
        rows_len: u32::try_from(total - TRANSACTION_HEADER_BYTES).expect("a body is below 4 GiB"),
    };
    frame.append(header.as_bytes());
    for (at, row) in rows.iter().enumerate() {
        placed(at, frame.next_lsn());
        let header = RowHeader {
            key_hash: row.key_hash,
            table: row.table,
            value_len: u32::try_from(row.value.len()).expect("a value fits its frame"),
            key_len: u16::try_from(row.key.len()).expect("keys are at most KEY_BYTES_MAX"),
            operation: row.operation as u8,
            existed: row.existed as u8,
            reserved: 0,
        };
        frame.append(header.as_bytes());
        frame.append(row.key);
        frame.append(row.value);
        frame.pad();
    }
    frame.count_txn();
}

/// A transaction in a frame, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// Its header.
    pub header: TransactionHeader,
    rows: &'a [u8],
    rows_lsn: Lsn,
}

impl<'a> Transaction<'a> {
    /// LSN just behind it: what its writer's reply waits for.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.rows_lsn.plus(self.rows.len() as u64)
    }

    /// The rows; each is checked as it is read.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row<'a>, FrameError>> + use<'a> {
        Rows { rest: self.rows, lsn: self.rows_lsn, left: self.header.row_count }
    }
}

/// Reads the transactions of a frame body that starts at `body_lsn` (the frame's LSN plus its
/// header). The iterator ends after the first error.
pub fn transactions(
    body: &[u8],
    body_lsn: Lsn,
) -> impl Iterator<Item = Result<Transaction<'_>, FrameError>> {
    Transactions { rest: body, lsn: body_lsn }
}

struct Transactions<'a> {
    rest: &'a [u8],
    lsn: Lsn,
}

impl<'a> Iterator for Transactions<'a> {
    type Item = Result<Transaction<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed =
            TransactionHeader::read_from_prefix(self.rest).ok().and_then(|(header, rest)| {
                let (rows, rest) = rest.split_at_checked(header.rows_len as usize)?;
                header.rows_len.is_multiple_of(8).then_some((header, rows, rest))
            });
        let Some((header, rows, rest)) = parsed else {
            self.rest = &[];
            return Some(Err(FrameError::Body("transaction is cut short")));
        };
        let rows_lsn = self.lsn.plus(TRANSACTION_HEADER_BYTES as u64);
        self.lsn = rows_lsn.plus(rows.len() as u64);
        self.rest = rest;
        Some(Ok(Transaction { header, rows, rows_lsn }))
    }
}

struct Rows<'a> {
    rest: &'a [u8],
    lsn: Lsn,
    left: u32,
}

impl<'a> Iterator for Rows<'a> {
    type Item = Result<Row<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() && self.left == 0 {
            return None;
        }
        match parse_row(self.rest, self.lsn) {
            Ok((row, bytes)) if self.left > 0 => {
                self.rest = &self.rest[bytes..];
                self.lsn = self.lsn.plus(bytes as u64);
                self.left -= 1;
                Some(Ok(row))
            }
            other => {
                (self.rest, self.left) = (&[], 0);
                Some(Err(other.err().unwrap_or(FrameError::Body("more rows than announced"))))
            }
        }
    }
}

fn parse_row(bytes: &[u8], lsn: Lsn) -> Result<(Row<'_>, usize), FrameError> {
    let Ok((header, rest)) = RowHeader::read_from_prefix(bytes) else {
        return Err(FrameError::Body("row is cut short"));
    };
    let operation = match header.operation {
        1 => Operation::Put,
        2 if header.value_len == 0 => Operation::Delete,
        _ => return Err(FrameError::Body("unknown row operation")),
    };
    let existed = match header.existed {
        0 => Existed::No,
        1 => Existed::Yes,
        2 => Existed::Unknown,
        _ => return Err(FrameError::Body("unknown existed mark")),
    };
    let (key_len, value_len) = (usize::from(header.key_len), header.value_len as usize);
    let total = row_bytes(key_len, value_len);
    if bytes.len() < total {
        return Err(FrameError::Body("row is cut short"));
    }
    let (key, value) = (&rest[..key_len], &rest[key_len..key_len + value_len]);
    let RowHeader { key_hash, table, .. } = header;
    Ok((Row { lsn, key_hash, table, operation, existed, key, value }, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FRAME_HEADER_BYTES, FrameKind, Seal};
    use crate::position::{Epoch, LogId};

    fn put<'a>(key: &'a [u8], value: &'a [u8]) -> RowWrite<'a> {
        let table = TableId(3);
        let key_hash = key_hash(9, table, key);
        let (operation, existed) = (Operation::Put, Existed::No);
        RowWrite { key_hash, table, operation, existed, key, value }
    }

    fn body_of(transactions: &[&[RowWrite<'_>]]) -> (Vec<u8>, Vec<Lsn>) {
        let mut frame = FrameBuilder::new(vec![0; 4096], FrameKind::Rows, 0, Lsn(8192));
        let mut lsns = Vec::new();
        for rows in transactions {
            append_transaction(&mut frame, 5, Hlc(77), rows, |_, lsn| lsns.push(lsn));
        }
        let (header, buffer) = frame.seal(&Seal::first(LogId([1, 1]), Epoch::NONE));
        assert_eq!(header.txn_count as usize, transactions.len());
        (buffer[FRAME_HEADER_BYTES..][..header.stored_len as usize].to_vec(), lsns)
    }

    #[test]
    fn a_key_has_one_hash_however_long_it_is_and_however_it_is_hashed() {
        let bytes: Vec<u8> = (0..400u32).map(|at| (at * 7) as u8).collect();
        for len in 0..bytes.len() - 4 {
            let table = TableId(u32::from_le_bytes(bytes[..4].try_into().unwrap()));
            let (key, whole) = (&bytes[4..][..len], &bytes[..4 + len]);
            assert_eq!(key_hash(9, table, key), xxh3_64_with_seed(whole, 9), "{len} bytes");
        }
    }

    #[test]
    fn transactions_and_rows_come_back_with_their_lsns() {
        let gone = RowWrite { operation: Operation::Delete, value: b"", ..put(b"gone", b"") };
        let (body, lsns) = body_of(&[&[put(b"a", b"one"), gone], &[put(b"", b"")]]);
        let mut seen = Vec::new();
        for transaction in transactions(&body, Lsn(8192 + 96)) {
            let transaction = transaction.unwrap();
            assert_eq!((transaction.header.origin, transaction.header.clock), (5, Hlc(77)));
            for row in transaction.rows() {
                let row = row.unwrap();
                seen.push((row.lsn, row.key.to_vec(), row.operation));
            }
        }
        let keys: Vec<_> = seen.iter().map(|row| row.1.clone()).collect();
        assert_eq!(keys, [b"a".to_vec(), b"gone".to_vec(), b"".to_vec()]);
        assert_eq!(seen.iter().map(|row| row.0).collect::<Vec<_>>(), lsns);
        assert_eq!(seen[1].2, Operation::Delete);
        assert!(lsns.iter().all(|lsn| lsn.0.is_multiple_of(8)));
    }

    #[test]
    fn bodies_cut_anywhere_or_bent_never_panic() {
        let (body, _) = body_of(&[&[put(b"a", b"one"), put(b"b", b"two")]]);
        let walk = |body: &[u8]| {
            transactions(body, Lsn(0)).all(|transaction| {
                transaction.is_ok_and(|transaction| transaction.rows().all(|row| row.is_ok()))
            })
        };
        assert!(walk(&body));
        for end in 1..body.len() {
            assert!(!walk(&body[..end]), "cut at {end}");
        }
        for at in 0..body.len() {
            let mut hostile = body.clone();
            hostile[at] ^= 0xff;
            walk(&hostile);
        }
    }
}
