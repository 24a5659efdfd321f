//! A tiny writer of real frames that remembers every row: the plain map of any position.

use std::collections::BTreeMap;

use bytes::Bytes;
use rowship_proto::frame::{FrameBuilder, Seal, sealed_frame};
use rowship_proto::hlc::Hlc;
use rowship_proto::row::{
    Existed, Operation, RowWrite, TableId, append_transaction, key_hash, transaction_bytes,
};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameKind, Lsn};

use super::plan::Window;

/// Seed of the test log.
pub const SEED: u64 = 0x5eed_0000_1234_5678;

/// What a position holds.
pub type State = BTreeMap<(u32, Vec<u8>), Vec<u8>>;

/// Marsaglia's xorshift64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

#[derive(Clone)]
struct Written {
    lsn: Lsn,
    hash: u64,
    table: u32,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    existed: Existed,
}

/// Appends frames to `bytes`, starting at some LSN.
pub struct LogWriter {
    start: Lsn,
    /// Everything so far.
    pub bytes: Vec<u8>,
    /// Ends of frames: where windows may end.
    pub ends: Vec<Lsn>,
    pending: Vec<Written>,
    rows: Vec<Written>,
    newest: State,
}

impl LogWriter {
    pub fn new(start: Lsn) -> LogWriter {
        let (bytes, pending, rows) = (Vec::new(), Vec::new(), Vec::new());
        LogWriter { start, bytes, ends: vec![start], pending, rows, newest: State::new() }
    }

    pub fn end(&self) -> Lsn {
        self.start.plus(self.bytes.len() as u64)
    }

    pub fn put(&mut self, table: u32, key: &[u8], value: &[u8], existed: Existed) {
        let hash = key_hash(SEED, TableId(table), key);
        self.push(hash, table, key, Some(value), existed);
    }

    pub fn delete(&mut self, table: u32, key: &[u8], existed: Existed) {
        let hash = key_hash(SEED, TableId(table), key);
        self.push(hash, table, key, None, existed);
    }

    pub fn row_with_hash(&mut self, table: TableId, key: &[u8], value: &[u8], hash: u64) {
        self.push(hash, table.0, key, Some(value), Existed::No);
    }

    fn push(&mut self, hash: u64, table: u32, key: &[u8], value: Option<&[u8]>, existed: Existed) {
        match value {
            Some(value) => self.newest.insert((table, key.to_vec()), value.to_vec()),
            None => self.newest.remove(&(table, key.to_vec())),
        };
        let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
        self.pending.push(Written { lsn: Lsn::ZERO, hash, table, key, value, existed });
    }

    /// Seals what was put or deleted as one transaction in one frame.
    pub fn frame(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        let rows: Vec<RowWrite<'_>> = pending.iter().map(row_write).collect();
        let buffer = vec![0; FRAME_HEADER_BYTES + transaction_bytes(&rows) + 8];
        let mut frame = FrameBuilder::new(buffer, FrameKind::Rows, 0, self.end());
        let mut lsns = Vec::new();
        append_transaction(&mut frame, 1, Hlc(1), &rows, |_, lsn| lsns.push(lsn));
        for (row, lsn) in pending.iter_mut().zip(lsns) {
            row.lsn = lsn;
        }
        let (header, buffer) = frame.seal(&seal());
        self.bytes.extend_from_slice(&buffer[..header.frame_bytes()]);
        self.ends.push(self.end());
        self.rows.append(&mut pending);
    }

    /// Appends a control frame.
    pub fn mark(&mut self) {
        let (header, bytes) = sealed_frame(FrameKind::Mark, 0, self.end(), b"", &seal());
        self.bytes.extend_from_slice(&bytes[..header.frame_bytes()]);
        self.ends.push(self.end());
    }

    /// Appends frames of random puts and deletes over `keys` keys.
    pub fn random_frames(&mut self, random: &mut Random, frames: usize, keys: u64) {
        for _ in 0..frames {
            if random.below(10) == 0 {
                self.mark();
                continue;
            }
            for _ in 0..=random.below(12) {
                // A few hot keys among many.
                let range = if random.below(2) == 0 { keys } else { 3 };
                let number = random.below(range);
                let (table, key) = (number as u32 % 3, number.to_string());
                let exists = self.exists(table, key.as_bytes());
                let existed = if exists { Existed::Yes } else { Existed::No };
                if random.below(4) == 0 {
                    self.delete(table, key.as_bytes(), existed);
                } else {
                    let value = vec![random.below(256) as u8; random.below(60) as usize];
                    self.put(table, key.as_bytes(), &value, existed);
                }
            }
            self.frame();
        }
    }

    /// What the log holds below `position`.
    pub fn state(&self, position: Lsn) -> State {
        let mut state = State::new();
        for row in self.rows.iter().take_while(|row| row.lsn < position) {
            match &row.value {
                Some(value) => state.insert((row.table, row.key.clone()), value.clone()),
                None => state.remove(&(row.table, row.key.clone())),
            };
        }
        state
    }

    /// The last row of each key that lies in `start..end`.
    pub fn last_rows(&self, start: Lsn, end: Lsn) -> BTreeMap<(u32, Vec<u8>), Lsn> {
        let inside = self.rows.iter().filter(|row| row.lsn >= start && row.lsn < end);
        inside.map(|row| ((row.table, row.key.clone()), row.lsn)).collect()
    }

    /// Whether rows wait for [`LogWriter::frame`].
    pub fn is_open(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether the newest row of this key is a put.
    pub fn exists(&self, table: u32, key: &[u8]) -> bool {
        self.newest.contains_key(&(table, key.to_vec()))
    }

    /// All keys ever written.
    pub fn keys(&self) -> Vec<(u32, Vec<u8>)> {
        let mut keys: Vec<_> = self.rows.iter().map(|row| (row.table, row.key.clone())).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// One window over `start..end`, cut into parts of whole frames.
    pub fn window(&self, start: Lsn, end: Lsn, lanes: usize) -> Window {
        let offset = |lsn: Lsn| lsn.since(self.start) as usize;
        let middle = self.ends.iter().copied().find(|cut| *cut > start).unwrap_or(end);
        let cut = |from, to| Bytes::copy_from_slice(&self.bytes[offset(from)..offset(to)]);
        let parts = vec![cut(start, middle.min(end)), cut(middle.min(end), end)];
        Window::new(start, end, parts, lanes)
    }

    /// Windows of random size that cover `from..` to the end of the log.
    pub fn windows(&self, random: &mut Random, from: Lsn, lanes: usize) -> Vec<Window> {
        let mut windows = Vec::new();
        let mut start = from;
        let mut at = self.ends.partition_point(|end| *end <= from);
        while at < self.ends.len() {
            let last = (at + random.below(6) as usize).min(self.ends.len() - 1);
            windows.push(self.window(start, self.ends[last], lanes));
            (start, at) = (self.ends[last], last + 1);
        }
        windows
    }
}

fn row_write(row: &Written) -> RowWrite<'_> {
    let operation = if row.value.is_some() { Operation::Put } else { Operation::Delete };
    let value = row.value.as_deref().unwrap_or_default();
    let (key_hash, table, existed, key) = (row.hash, TableId(row.table), row.existed, &row.key);
    RowWrite { key_hash, table, operation, existed, key, value }
}

fn seal() -> Seal {
    let epoch = Epoch { counter: 1, node_id: 1, nonce: 1 };
    Seal { seed: SEED, epoch, committed: Lsn::ZERO, wall_ns: 0, chain_previous: 0 }
}
