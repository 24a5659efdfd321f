//! Rows for commands that are not in memory: read on the reader thread, at one snapshot.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::row::TableId;

use super::pending::RowKey;
use super::state::{Node, PrimaryRole, count};
use crate::apply::snapshots::Pin;
use crate::edge::{Edge, offload};
use crate::intake::execute::Keys;
use crate::intake::key::{RowLimits, split_key};
use crate::intake::reply::Reply;

/// Rows fetched on the reader thread, by client key, at one snapshot.
#[derive(Default)]
pub struct Fetched {
    pub(super) rows: HashMap<Bytes, Option<Bytes>>,
    pub(super) pins: Option<Pins>,
}

/// A snapshot: while it lives no newer write can be missed.
pub(super) struct Pins {
    pub(super) table: Pin,
    pending: Option<Lsn>,
    /// What was committed when it was taken.
    pub(super) committed: Lsn,
}

impl Fetched {
    /// The table's position at which its rows were read, if there were any to be read.
    #[must_use]
    pub fn at(&self) -> Option<Lsn> {
        self.pins.as_ref().map(|pins| pins.table.at())
    }
}

/// Which rows [`Node::fetch`] brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those that are neither pending nor in memory: mostly none.
    Cold,
    /// All: none of them can turn cold before the command runs.
    All,
}

impl<E: Edge> Node<E> {
    /// Fetches rows on the reader thread. The result keeps what was written meanwhile from being
    /// missed; give it to [`Node::release`].
    ///
    /// # Errors
    /// The reply that ends the command.
    pub async fn fetch(
        &self,
        keys: &Keys,
        limits: &RowLimits,
        reach: Reach,
    ) -> Result<Fetched, Reply> {
        let pin = self.table.pin();
        let mut rows = HashMap::new();
        let wanted = self.wanted(keys, limits, reach, pin.at(), &mut rows)?;
        if wanted.is_empty() && reach == Reach::Cold {
            return Ok(Fetched::default());
        }
        let mut fetched = Fetched { rows, pins: Some(self.pins(pin)) };
        match self.read_wanted(&mut fetched, wanted).await {
            Ok(()) => Ok(fetched),
            Err(reply) => {
                self.release(fetched);
                Err(reply)
            }
        }
    }

    /// The snapshot of this moment; give it to [`Node::release`].
    #[must_use]
    pub fn snapshot(&self) -> Fetched {
        let pins = self.pins(self.table.pin());
        Fetched { rows: HashMap::new(), pins: Some(pins) }
    }

    /// Replaces the rows of `fetched` by those of `keys`, of the same snapshot.
    ///
    /// # Errors
    /// The reply that ends the command.
    pub async fn fetch_next(
        &self,
        fetched: &mut Fetched,
        keys: &Keys,
        limits: &RowLimits,
    ) -> Result<(), Reply> {
        fetched.rows.clear();
        let at = fetched.pins.as_ref().expect("a snapshot has pins").table.at();
        let wanted = self.wanted(keys, limits, Reach::All, at, &mut fetched.rows)?;
        self.read_wanted(fetched, wanted).await
    }

    /// Both pins are of one moment: what the table does not show yet is pending.
    fn pins(&self, table: Pin) -> Pins {
        let pending = self.primary().map(|primary| primary.pending.borrow_mut().pin());
        Pins { table, pending, committed: self.committed.get() }
    }

    /// Which of `keys` must be fetched. Rows of tables that do not exist go to `known`: what
    /// somebody writes there meanwhile is pending, or came later.
    fn wanted(
        &self,
        keys: &Keys,
        limits: &RowLimits,
        reach: Reach,
        at: Lsn,
        known: &mut HashMap<Bytes, Option<Bytes>>,
    ) -> Result<Vec<Wanted>, Reply> {
        let seed = self.log_id.get().seed();
        let committed = self.committed.get();
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        let all = keys.values.iter().map(|key| (key, true));
        let all = all.chain(keys.existence.iter().map(|key| (key, false)));
        for (key, value) in all.filter(|(key, _)| seen.insert(*key)) {
            let parts = split_key(key, limits).map_err(|error| error.reply())?;
            let table = match parts.table {
                None => TableId::NO_PREFIX,
                Some(name) => match self.dictionary.borrow().id(name) {
                    Some(table) => table,
                    None => {
                        known.insert(key.clone(), None);
                        continue;
                    }
                },
            };
            let row = RowKey::of(seed, table, parts.key);
            if reach == Reach::Cold {
                // A plain read may need the table below images that are not committed.
                let pending = |primary: &PrimaryRole<E>| {
                    primary.pending.borrow().plain(&row, committed, 0).is_some()
                };
                if self.primary().is_some_and(pending)
                    || self.table.exists_resident(row.id(), at).is_some()
                {
                    continue;
                }
            }
            wanted.push(Wanted { client_key: key.clone(), row, value });
        }
        Ok(wanted)
    }

    async fn read_wanted(&self, fetched: &mut Fetched, wanted: Vec<Wanted>) -> Result<(), Reply> {
        count(&self.counters.cold_reads, wanted.len() as u64);
        let at = fetched.pins.as_ref().expect("only a snapshot is read").table.at();
        let (table, bytes_max) = (self.table.clone(), self.reply_bytes_max());
        let read = offload(&self.reader, move || {
            let (mut rows, mut bytes) = (Vec::with_capacity(wanted.len()), 0);
            for Wanted { client_key, row, value } in wanted {
                let mut image = table.get(row.id(), at).map_err(|error| error.to_string())?;
                if !value {
                    // Nobody looks into it.
                    image = image.map(|_| Bytes::new());
                }
                bytes += image.as_ref().map_or(0, Bytes::len);
                if bytes > bytes_max {
                    return Err(format!(
                        "they hold more than replies_bytes_max ({bytes_max} bytes); ask for fewer"
                    ));
                }
                rows.push((client_key, image));
            }
            Ok(rows)
        });
        match read.await {
            Ok(Ok(rows)) => {
                fetched.rows.extend(rows);
                Ok(())
            }
            Ok(Err(error)) => Err(Reply::error(format!("ERR cannot read the rows: {error}"))),
            Err(error) => Err(Reply::error(format!("ERR the node is stopping: {error}"))),
        }
    }

    /// Lets go of what [`Node::fetch`] or [`Node::snapshot`] pinned.
    pub fn release(&self, fetched: Fetched) {
        let pending = fetched.pins.and_then(|pins| pins.pending);
        if let (Some(at), Some(primary)) = (pending, self.primary()) {
            primary.pending.borrow_mut().unpin(at);
        }
    }
}

/// A row to be fetched.
struct Wanted {
    client_key: Bytes,
    row: RowKey,
    /// Its value, not only whether it exists.
    value: bool,
}
