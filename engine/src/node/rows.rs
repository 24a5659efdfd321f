//! One transaction's view of the rows: what it read, what it writes, and what its reply must
//! wait for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::control::TableDefinitions;
use rowship_proto::row::{
    Existed, KEY_BYTES_MAX, Operation, RowWrite, TRANSACTION_HEADER_BYTES, TableId, key_hash,
    row_bytes,
};
use rowship_proto::sim::{Bug, planted};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::appender::definitions_fit;
use super::fetch::Fetched;
use super::pending::{GivenHashMap, KeyBytes, PendingImage, RowKey};
use super::state::{Node, PrimaryRole};
use super::transaction::read_only;
use crate::apply::snapshots::Pin;
use crate::apply::table::Resident;
use crate::edge::Edge;
use crate::intake::execute::{Rows, View};
use crate::intake::key::{ClientKey, RowLimits, split_key};
use crate::intake::reply::Reply;

/// Implements [`Rows`] for one transaction of one connection.
pub struct TransactionRows<'a, E: Edge> {
    node: &'a Node<E>,
    connection: u64,
    limits: RowLimits,
    fetched: &'a Fetched,
    /// Keeps `at` readable, unless `fetched` does.
    _pin: Option<Pin>,
    /// All rows are read at this one position of the table.
    at: Lsn,
    /// How many rows the table has there.
    rows_at: u64,
    writes: Vec<Write>,
    /// Of so many of them it is known whether their rows existed before.
    settled: usize,
    by_key: ByKey,
    /// Of the log: hashes of keys are seeded with it.
    seed: u64,
    /// Plain reads show what was committed here.
    committed: Lsn,
    /// A row was found to be on disk: what came out is void, and rows must be fetched again.
    pub cold: bool,
    /// The reply must not leave before this is committed: it shows others' uncommitted images.
    pub saw: Lsn,
    /// The reply shows the connection's own writes up to here.
    pub saw_own: Lsn,
}

struct Write {
    /// The client's key.
    client_key: Bytes,
    row: Place,
    image: Option<Bytes>,
    /// See [`TransactionRows::settle`].
    existed: Existed,
}

enum Place {
    Known(RowKey),
    /// In a table that does not exist yet.
    New {
        table: Bytes,
        key: KeyBytes,
    },
}

impl Place {
    fn known(&self) -> Option<&RowKey> {
        match self {
            Place::Known(row) => Some(row),
            Place::New { .. } => None,
        }
    }

    fn new_table(&self) -> Option<&Bytes> {
        match self {
            Place::Known(_) => None,
            Place::New { table, .. } => Some(table),
        }
    }
}

fn operation(image: Option<&Bytes>) -> Operation {
    if image.is_some() { Operation::Put } else { Operation::Delete }
}

/// Places of writes by the hash of the client's key. Most transactions write a few rows, which are
/// compared one by one; the map is for the others.
#[derive(Default)]
struct ByKey(GivenHashMap<u64, usize>);

/// Writes up to which none are in the map.
const COMPARED_MAX: usize = 4;

impl ByKey {
    fn get(&self, seed: u64, key: &[u8], writes: &[Write]) -> Option<usize> {
        let compare = || writes.iter().position(|write| write.client_key == *key);
        if self.0.is_empty() {
            return compare();
        }
        let at = *self.0.get(&xxh3_64_with_seed(key, seed))?;
        // Of two keys with one hash the map has one.
        if writes[at].client_key == *key { Some(at) } else { compare() }
    }

    /// The last of `writes` is new.
    fn added(&mut self, seed: u64, writes: &[Write]) {
        if writes.len() <= COMPARED_MAX {
            return;
        }
        let known = if self.0.is_empty() { 0 } else { writes.len() - 1 };
        let new = writes.iter().enumerate().skip(known);
        self.0.extend(new.map(|(at, write)| (xxh3_64_with_seed(&write.client_key, seed), at)));
    }
}

/// Pending writes that a SCAN inside EXEC looks through at most: all others wait meanwhile.
const NEWER_MAX: usize = 64 << 10;

/// What became of a transaction's writes.
pub enum Written {
    /// It wrote nothing.
    Nothing,
    /// Appended up to here.
    To(Lsn),
    /// Not appended: answer this instead.
    Refused(Reply),
}

impl<'a, E: Edge> TransactionRows<'a, E> {
    /// A view for `connection`.
    #[must_use]
    pub fn new(
        node: &'a Node<E>,
        connection: u64,
        limits: RowLimits,
        fetched: &'a Fetched,
    ) -> Self {
        // Rows that were fetched and rows still in memory must show the same position: half a
        // transaction would be seen otherwise. What a primary has committed since then is pending.
        let (mark, pin) = match &fetched.pins {
            Some(pins) => (pins.table.mark(), None),
            None => {
                let pin = node.table.pin();
                (pin.mark(), Some(pin))
            }
        };
        let committed = node.committed.get();
        let (writes, settled, by_key, cold, saw, saw_own) = Default::default();
        TransactionRows {
            node,
            connection,
            limits,
            fetched,
            _pin: pin,
            at: mark.lsn,
            rows_at: mark.rows,
            writes,
            settled,
            by_key,
            seed: node.log_id.get().seed(),
            committed,
            cold,
            saw,
            saw_own,
        }
    }

    /// A view of exactly what was committed when `fetched` was pinned, whatever came since: reads
    /// in several pieces show one position.
    #[must_use]
    pub fn at_the_fetch(mut self) -> Self {
        let committed = self.fetched.pins.as_ref().map(|pins| pins.committed);
        self.committed = committed.unwrap_or(self.committed);
        self
    }

    fn row_key(&self, key: &Bytes) -> Result<Option<RowKey>, Reply> {
        let parts = split_key(key, &self.limits).map_err(|error| error.reply())?;
        Ok(self.table_of(&parts).map(|table| RowKey::of(self.seed, table, parts.key)))
    }

    fn table_of(&self, key: &ClientKey<'_>) -> Option<TableId> {
        match key.table {
            None => Some(TableId::NO_PREFIX),
            Some(name) => self.node.dictionary.borrow().id(name),
        }
    }

    fn own(&self, key: &Bytes) -> Option<usize> {
        self.by_key.get(self.seed, key, &self.writes)
    }

    fn stored(&mut self, client_key: &Bytes, row: &RowKey) -> Result<Option<Bytes>, Reply> {
        if let Some(image) = self.fetched.rows.get(client_key) {
            return Ok(image.clone());
        }
        let id = row.id();
        match self.node.table.get_resident(id, self.at) {
            Resident::Found(image) => Ok(image),
            Resident::Cold => Err(self.is_cold()),
        }
    }

    /// The row must be fetched, or was and a flush has moved it since.
    fn is_cold(&mut self) -> Reply {
        self.cold = true;
        Reply::error("ERR a row went to disk while the command waited")
    }

    /// Whether the row exists, pending writes included. None when it must be fetched to know.
    fn exists(&self, primary: &PrimaryRole<E>, client_key: &Bytes, row: &RowKey) -> Option<bool> {
        if let Some(exists) = primary.existence.borrow_mut().get(row) {
            return Some(exists);
        }
        let pending = primary.pending.borrow().latest(row).map(|latest| latest.image.is_some());
        let fetched = || self.fetched.rows.get(client_key).map(Option::is_some);
        let resident = || self.node.table.exists_resident(row.id(), self.at);
        let exists = pending.or_else(fetched).or_else(resident)?;
        primary.existence.borrow_mut().put(row, exists);
        Some(exists)
    }

    /// Finds out which rows existed before they were written: of all of them at once, whose memory
    /// then comes at once. Rows that must be fetched for that make all of it void.
    pub fn settle(&mut self) {
        let Some(primary) = self.node.primary() else { return };
        let new = &self.writes[self.settled..];
        if new.len() > 1 {
            primary.existence.borrow().bring_in(new.iter().filter_map(|write| write.row.known()));
        }
        for at in self.settled..self.writes.len() {
            let Write { client_key, row, .. } = &self.writes[at];
            let exists = match row {
                Place::Known(row) => self.exists(primary, client_key, row),
                Place::New { .. } => Some(false),
            };
            self.writes[at].existed = match exists {
                Some(true) => Existed::Yes,
                Some(false) => Existed::No,
                None => {
                    self.cold = true;
                    Existed::Unknown
                }
            };
        }
        self.settled = self.writes.len();
    }

    /// How many rows there are, with everything pending and what this transaction has written.
    pub fn count(&mut self) -> u64 {
        self.settle();
        let own = |write: &Write| operation(write.image.as_ref()).rows_delta(write.existed);
        let mut delta = self.writes.iter().map(own).sum();
        if let Some(primary) = self.node.primary() {
            let (rows, end) = primary.pending.borrow().rows_above(self.at);
            delta += rows;
            self.saw = self.saw.max(end);
        }
        self.rows_at.saturating_add_signed(delta)
    }

    /// The newest images of the rows that are newer than the table at this position, by client
    /// key: those whose hash is at least `from` and below `to`.
    ///
    /// # Errors
    /// When there are more than may be looked through in one go.
    pub fn newer(
        &mut self,
        from: u64,
        to: Option<u64>,
    ) -> Result<BTreeMap<Bytes, Option<Bytes>>, Reply> {
        let seed = self.seed;
        let dictionary = self.node.dictionary.borrow();
        let within = |table: TableId, key: &[u8]| {
            let hash = key_hash(seed, table, key);
            hash >= from && to.is_none_or(|to| hash < to)
        };
        let mut newer = BTreeMap::new();
        if let Some(primary) = self.node.primary() {
            let pending = primary.pending.borrow();
            let keys = pending.keys_above(self.at);
            if keys.len() > NEWER_MAX {
                let text = format!(
                    "ERR cannot scan inside a transaction now: {} rows are newer than the table, \
                     and at most {NEWER_MAX} can be looked through; try again",
                    keys.len()
                );
                return Err(Reply::error(text));
            }
            let keys = keys.filter(|_| !planted(Bug::ScanForgetsPending));
            for row in keys.filter(|row| within(row.table, &row.key)) {
                let Some(latest) = pending.latest(row) else { continue };
                let key = Bytes::from(dictionary.client_key(row.table, &row.key));
                newer.insert(key, latest.image.clone());
            }
            self.saw = self.saw.max(pending.rows_above(self.at).1);
        }
        for Write { client_key, row, image, .. } in &self.writes {
            // A table that this transaction begins has no place in the order yet: such a row is
            // shown now, and perhaps once more later.
            if row.known().is_none_or(|row| within(row.table, &row.key)) {
                newer.insert(client_key.clone(), image.clone());
            }
        }
        Ok(newer)
    }

    /// Appends what was written and [settled](TransactionRows::settle). Admission was asked for
    /// just before.
    pub fn append(mut self, primary: &PrimaryRole<E>) -> Written {
        if self.writes.is_empty() {
            return Written::Nothing;
        }
        // Before tables are defined: a refused transaction leaves nothing behind.
        let (bytes, max) = (self.transaction_bytes(), self.node.frame_body_bytes_max.get());
        if bytes > max {
            let text = format!(
                "ERR transaction of {bytes} bytes is larger than a frame body of {max} bytes \
                 (frame_body_bytes_max): split it"
            );
            return Written::Refused(Reply::error(text));
        }
        if let Err(reply) = self.define_tables(primary) {
            return Written::Refused(reply);
        }
        let writes = self.with_rows();
        let rows: Vec<RowWrite<'_>> = writes
            .iter()
            .map(|(row, image, existed)| RowWrite {
                key_hash: row.hash,
                table: row.table,
                operation: operation(image.as_ref()),
                existed: *existed,
                key: &row.key,
                value: image.as_deref().unwrap_or_default(),
            })
            .collect();
        let end = self.node.append(primary, &rows);
        drop(rows);
        let mut pending = primary.pending.borrow_mut();
        let mut existence = primary.existence.borrow_mut();
        for (row, image, existed) in writes {
            // Most rows are there before and after: that is remembered already.
            if existed != Existed::Yes || image.is_none() {
                existence.put(&row, image.is_some());
            }
            let rows_delta = operation(image.as_ref()).rows_delta(existed);
            let image = PendingImage { end, connection: self.connection, image };
            pending.insert(row, image, rows_delta);
        }
        Written::To(end)
    }

    /// The writes with their rows: all tables are defined.
    fn with_rows(&mut self) -> Vec<(RowKey, Option<Bytes>, Existed)> {
        let dictionary = self.node.dictionary.borrow();
        let seed = self.seed;
        let with_row = |Write { row, image, existed, .. }: Write| {
            let row = match row {
                Place::Known(row) => row,
                Place::New { table, key } => {
                    let table = dictionary.id(&table).expect("defined just before");
                    RowKey::of(seed, table, &key)
                }
            };
            (row, image, existed)
        };
        std::mem::take(&mut self.writes).into_iter().map(with_row).collect()
    }

    fn transaction_bytes(&self) -> usize {
        let row = |write: &Write| {
            let value = write.image.as_ref().map_or(0, Bytes::len);
            let key = match &write.row {
                Place::Known(row) => &row.key,
                Place::New { key, .. } => key,
            };
            row_bytes(key.len(), value)
        };
        TRANSACTION_HEADER_BYTES + self.writes.iter().map(row).sum::<usize>()
    }

    fn define_tables(&self, primary: &PrimaryRole<E>) -> Result<(), Reply> {
        let dictionary = self.node.dictionary.borrow();
        let new: BTreeSet<Bytes> = self
            .writes
            .iter()
            .filter_map(|write| write.row.new_table())
            .map(|name| Bytes::copy_from_slice(name))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let (known, max) = (dictionary.len(), self.node.settings.cluster.tables_max as usize);
        let names = dictionary.tables().map(|(_, name)| name).chain(&new);
        let bytes: usize = names.map(|name| TableDefinitions::encoded_bytes(name)).sum();
        drop(dictionary);
        // Every segment opens with all names: they must leave it room for rows.
        let bytes_max = primary.appender.borrow().layout().header.segment_bytes / 4;
        if known + new.len() > max || bytes as u64 > bytes_max {
            let text = format!(
                "ERR too many tables: {known} exist, tables_max is {max} and all names together \
                 may take {bytes_max} bytes; a key's part before its first ':' names its table"
            );
            return Err(Reply::error(text));
        }
        let new: Vec<Bytes> = new.into_iter().collect();
        if !definitions_fit(&new, primary.appender.borrow().body_max()) {
            let text = "ERR too many new tables in one transaction: split it";
            return Err(Reply::error(text));
        }
        self.node.define_tables(primary, &new);
        Ok(())
    }
}

impl<E: Edge> Rows for TransactionRows<'_, E> {
    fn read(&mut self, key: &Bytes, view: View) -> Result<Option<Bytes>, Reply> {
        if let Some(at) = self.own(key) {
            return Ok(self.writes[at].image.clone());
        }
        let Some(row) = self.row_key(key)? else { return Ok(None) };
        if let Some(primary) = self.node.primary() {
            let pending = primary.pending.borrow();
            let found = match view {
                View::Latest => pending.latest(&row),
                View::Plain => pending.plain(&row, self.committed, self.connection),
            };
            if let Some(found) = found {
                if found.connection == self.connection {
                    self.saw_own = self.saw_own.max(found.end);
                } else {
                    self.saw = self.saw.max(found.end);
                }
                return Ok(found.image.clone());
            }
        }
        self.stored(key, &row)
    }

    fn write(&mut self, key: &Bytes, image: Option<Vec<u8>>) -> Result<(), Reply> {
        if self.node.primary().is_none() {
            return Err(read_only(self.node));
        }
        let parts = split_key(key, &self.limits).map_err(|error| error.reply())?;
        debug_assert!(parts.key.len() <= KEY_BYTES_MAX);
        let image = image.map(Bytes::from);
        // Of several writes of one transaction to one key only the last matters to anybody.
        if let Some(at) = self.own(key) {
            self.writes[at].image = image;
            return Ok(());
        }
        let row = match self.table_of(&parts) {
            Some(table) => Place::Known(RowKey::of(self.seed, table, parts.key)),
            None => Place::New {
                table: Bytes::copy_from_slice(parts.table.unwrap_or_default()),
                key: KeyBytes::from_slice(parts.key),
            },
        };
        let (client_key, existed) = (key.clone(), Existed::Unknown);
        self.writes.push(Write { client_key, row, image, existed });
        self.by_key.added(self.seed, &self.writes);
        Ok(())
    }

    fn value_bytes_max(&self) -> usize {
        self.limits.value_bytes_max
    }

    fn reply_bytes_max(&self) -> usize {
        self.node.reply_bytes_max()
    }
}
