//! The ledger: every frame that any node has ever called committed, and the rows in them.
//!
//! It is what the nodes are held against: a node that calls other bytes committed at a place
//! breaks a promise, and so does a log that does not hold what was committed before.

use std::collections::BTreeMap;

use rowship::edge::sim::disk::MemoryDisk;
use rowship::edge::sim::trace::digest;
use rowship::log::segment::segment_file_name;
use rowship_proto::control::{SegmentEnd, TableDefinitions};
use rowship_proto::frame::FRAME_BODY_BYTES_LIMIT;
use rowship_proto::primary::FIRST_FRAME;
use rowship_proto::row::{Operation, Row, TableId, transactions};
use rowship_proto::value::Image;
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};

/// A committed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    lsn: Lsn,
    next: Lsn,
    epoch: Epoch,
    digest: u64,
}

/// One version of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its first byte.
    pub lsn: Lsn,
    /// End of its transaction: who sees all below sees the row.
    pub end: Lsn,
    /// The image as clients read it; `None` for a delete.
    pub value: Option<Value>,
}

/// An image as clients read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(Vec<u8>),
    /// Columns, in their order.
    Columns(Vec<(Vec<u8>, Vec<u8>)>),
}

/// See the module's description.
#[derive(Default)]
pub struct Ledger {
    seed: u64,
    frames: Vec<Frame>,
    tables: BTreeMap<TableId, Vec<u8>>,
    rows: BTreeMap<Vec<u8>, Vec<Version>>,
    transactions: u64,
    /// Nodes whose newest epoch is older do not know yet that a part was given up.
    counter_min: u64,
}

impl Ledger {
    /// Names the log by the seed of its checksums.
    pub fn name(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The end of everything that was ever committed.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.frames.last().map_or(FIRST_FRAME, |frame| frame.next)
    }

    /// Transactions in it.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions
    }

    /// Keys that were ever written, with all their versions in order.
    #[must_use]
    pub fn rows(&self) -> &BTreeMap<Vec<u8>, Vec<Version>> {
        &self.rows
    }

    /// Versions of one key.
    #[must_use]
    pub fn versions(&self, key: &[u8]) -> &[Version] {
        self.rows.get(key).map_or(&[], Vec::as_slice)
    }

    /// Least counter of the newest epoch of nodes that can be held against this ledger.
    #[must_use]
    pub fn counter_min(&self) -> u64 {
        self.counter_min
    }

    /// A promotion gave up what the promoted node's log, which ends at `end`, does not hold, as the
    /// ack policy in force allows. Reigns from `counter` on know it.
    ///
    /// # Errors
    /// That log is no log.
    pub fn give_up(
        &mut self,
        disk: &MemoryDisk,
        bases: &[Lsn],
        end: Lsn,
        counter: u64,
    ) -> Result<(), String> {
        self.counter_min = counter;
        let mut at = bases.first().map_or(end, |base| base.plus(FIRST_FRAME.0));
        while at < end {
            let Some(base) = bases.iter().rfind(|base| **base <= at) else { break };
            let Some((frame, _, _)) = self.read(disk, *base, at)? else { break };
            let found = self.frames.binary_search_by_key(&at, |known| known.lsn);
            if found.ok().map(|at| self.frames[at]) != Some(frame) {
                break;
            }
            at = frame.next;
        }
        self.frames.retain(|frame| frame.next <= at);
        for versions in self.rows.values_mut() {
            versions.retain(|version| version.lsn < at);
        }
        self.rows.retain(|_, versions| !versions.is_empty());
        Ok(())
    }

    /// Holds the frames of a node's log from `from` up to `committed` against the ledger, and
    /// takes over what is beyond it. Returns where to go on next time.
    ///
    /// # Errors
    /// What differs.
    pub fn compare(
        &mut self,
        disk: &MemoryDisk,
        bases: &[Lsn],
        from: Lsn,
        committed: Lsn,
    ) -> Result<Lsn, String> {
        let mut at = from;
        while at < committed {
            let Some(base) = bases.iter().rfind(|base| **base <= at) else {
                return Ok(at);
            };
            let Some((frame, header, bytes)) = self.read(disk, *base, at)? else { return Ok(at) };
            if header.end() > committed {
                return Ok(at);
            }
            self.check(frame)?;
            if at == self.end() {
                self.frames.push(frame);
                self.learn(&header, &bytes)?;
            }
            at = frame.next;
        }
        Ok(at)
    }

    fn read(
        &self,
        disk: &MemoryDisk,
        base: Lsn,
        at: Lsn,
    ) -> Result<Option<(Frame, FrameHeader, Vec<u8>)>, String> {
        let name = segment_file_name(base);
        let head = disk.peek(&name, at.since(base), FRAME_HEADER_BYTES);
        if head.is_empty() {
            // Behind the last segment that is there.
            return Ok(None);
        }
        let header = FrameHeader::parse(&head, self.seed, FRAME_BODY_BYTES_LIMIT);
        let header = header.map_err(|error| format!("no frame at LSN {at}: {error}"))?;
        if header.lsn != at {
            return Err(format!("the frame at LSN {at} says it is at {}", header.lsn));
        }
        let bytes = disk.peek(&name, at.since(base), header.frame_bytes());
        let body = bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
        let body = body.get(..header.stored_len as usize).unwrap_or_default();
        header.check_body(body).map_err(|error| format!("frame at LSN {at}: {error}"))?;
        let next = match header.kind() {
            Some(FrameKind::SegmentEnd) => {
                let end = SegmentEnd::parse(body, at).map_err(|error| error.to_string())?;
                end.next_frame()
            }
            _ => header.end(),
        };
        let frame = Frame { lsn: at, next, epoch: header.epoch, digest: digest(&bytes) };
        Ok(Some((frame, header, bytes)))
    }

    fn check(&self, frame: Frame) -> Result<(), String> {
        if frame.lsn >= self.end() {
            return match frame.lsn == self.end() {
                true => Ok(()),
                false => {
                    Err(format!("frames are missing between LSN {} and {}", self.end(), frame.lsn))
                }
            };
        }
        let found = self.frames.binary_search_by_key(&frame.lsn, |known| known.lsn);
        let known = found.ok().map(|at| self.frames[at]);
        if known == Some(frame) {
            return Ok(());
        }
        Err(format!("other bytes at LSN {} than were committed: {frame:?}, {known:?}", frame.lsn))
    }

    fn learn(&mut self, header: &FrameHeader, bytes: &[u8]) -> Result<(), String> {
        let body = &bytes[FRAME_HEADER_BYTES..][..header.stored_len as usize];
        match header.kind() {
            Some(FrameKind::TableDefine) => {
                let tables = TableDefinitions::parse(body).map_err(|error| error.to_string())?;
                for table in tables {
                    self.tables.insert(table.id, table.name.to_vec());
                }
            }
            Some(FrameKind::Rows) => {
                let body_lsn = header.lsn.plus(FRAME_HEADER_BYTES as u64);
                for transaction in transactions(body, body_lsn) {
                    let transaction = transaction.map_err(|error| error.to_string())?;
                    self.transactions += 1;
                    for row in transaction.rows() {
                        let row = row.map_err(|error| error.to_string())?;
                        self.learn_row(&row, transaction.end())?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn learn_row(&mut self, row: &Row<'_>, end: Lsn) -> Result<(), String> {
        let value = match row.operation {
            Operation::Put => Some(value_of(row.value)?),
            Operation::Delete => None,
        };
        let version = Version { lsn: row.lsn, end, value };
        let key = self.client_key(row.table, row.key)?;
        self.rows.entry(key).or_default().push(version);
        Ok(())
    }

    /// The key as clients spell it.
    ///
    /// # Errors
    /// The table was never defined.
    pub fn client_key(&self, table: TableId, key: &[u8]) -> Result<Vec<u8>, String> {
        if table == TableId::NO_PREFIX {
            return Ok(key.to_vec());
        }
        let name = self.tables.get(&table);
        let name = name.ok_or_else(|| format!("table {table:?} was never defined"))?;
        Ok([name.as_slice(), b":", key].concat())
    }

    /// All rows that a reader at `at` sees.
    #[must_use]
    pub fn state_at(&self, at: Lsn) -> BTreeMap<Vec<u8>, Value> {
        let newest = |versions: &Vec<Version>| {
            let version = versions.iter().rfind(|version| version.lsn < at)?;
            version.value.clone()
        };
        self.rows
            .iter()
            .filter_map(|(key, versions)| Some((key.clone(), newest(versions)?)))
            .collect()
    }
}

/// An image's bytes as clients read them.
///
/// # Errors
/// They are no image.
pub fn value_of(bytes: &[u8]) -> Result<Value, String> {
    match Image::parse(bytes).map_err(|error| error.to_string())? {
        Image::String(text) => Ok(Value::Text(text.to_vec())),
        Image::Columns(columns) => Ok(Value::Columns(
            columns.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        )),
    }
}
