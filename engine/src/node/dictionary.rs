//! Names of tables: from a key's prefix to its number and back.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use rowship_proto::row::TableId;

/// The dictionary. Numbers are given out in order, from 1; both ways are kept.
#[derive(Clone, Debug, Default)]
pub struct Dictionary {
    ids: HashMap<Bytes, TableId>,
    names: BTreeMap<TableId, Bytes>,
}

impl Dictionary {
    /// From what the log holds.
    pub fn from_tables(tables: impl IntoIterator<Item = (TableId, Bytes)>) -> Dictionary {
        let mut dictionary = Dictionary::default();
        for (id, name) in tables {
            dictionary.define(id, name);
        }
        dictionary
    }

    /// Notes a definition. A later one replaces an earlier one of the same number: the earlier
    /// stood in a tail that was cut.
    pub fn define(&mut self, id: TableId, name: Bytes) {
        let old = self.names.insert(id, name.clone());
        if let Some(old) = old.filter(|old| self.ids.get(old) == Some(&id)) {
            self.ids.remove(&old);
        }
        self.ids.insert(name, id);
    }

    /// The number of `name`.
    #[must_use]
    pub fn id(&self, name: &[u8]) -> Option<TableId> {
        self.ids.get(name).copied()
    }

    /// The name of `id`.
    #[must_use]
    pub fn name(&self, id: TableId) -> Option<&Bytes> {
        self.names.get(&id)
    }

    /// How many tables there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The number that the next new table gets.
    #[must_use]
    pub fn next_id(&self) -> TableId {
        TableId(self.names.last_key_value().map_or(1, |(last, _)| last.0 + 1))
    }

    /// All definitions in order of their numbers.
    pub fn tables(&self) -> impl Iterator<Item = (TableId, &Bytes)> {
        self.names.iter().map(|(id, name)| (*id, name))
    }

    /// A client's key for a row, from its table and its key there.
    #[must_use]
    pub fn client_key(&self, table: TableId, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(key.len() + 16);
        if table != TableId::NO_PREFIX {
            match self.name(table) {
                Some(name) => full.extend_from_slice(name),
                // Rows are shown only after their definition, so this is damage; still name it.
                None => full.extend_from_slice(format!("table#{}", table.0).as_bytes()),
            }
            full.push(b':');
        }
        full.extend_from_slice(key);
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_from_a_cut_tail_is_replaced() {
        let mut dictionary = Dictionary::default();
        dictionary.define(TableId(1), Bytes::from_static(b"old"));
        dictionary.define(TableId(1), Bytes::from_static(b"new"));
        dictionary.define(TableId(2), Bytes::from_static(b"old"));
        assert_eq!(dictionary.id(b"new"), Some(TableId(1)));
        assert_eq!(dictionary.id(b"old"), Some(TableId(2)));
        assert_eq!(dictionary.next_id(), TableId(3));
        assert_eq!(dictionary.client_key(TableId(2), b"k"), b"old:k");
        assert_eq!(dictionary.client_key(TableId(0), b"k"), b"k");
    }
}
