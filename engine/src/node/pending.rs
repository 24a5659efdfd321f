//! Pending images: what was written and is not yet in the table, by key.
//!
//! Reads on the primary go here first. An image stays until the table shows it (`visible`), and
//! longer while a cold read that began before is under way, so that such a read can never hide a
//! newer write.
//!
//! Limit: bytes here are bounded by `uncommitted_bytes_max` of log, through the intake's
//! admission.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::row::{TableId, key_hash};
use smallvec::SmallVec;

use crate::apply::table::RowId;

/// A row's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// [`rowship_proto::row::key_hash`] of both.
    pub hash: u64,
    /// Its table.
    pub table: TableId,
    /// Its key in the table.
    pub key: KeyBytes,
}

/// Mostly without memory of their own.
pub type KeyBytes = SmallVec<[u8; 24]>;

impl RowKey {
    /// The row of `key` in `table`, under the log's `seed`.
    #[must_use]
    pub fn of(seed: u64, table: TableId, key: &[u8]) -> RowKey {
        RowKey { hash: key_hash(seed, table, key), table, key: KeyBytes::from_slice(key) }
    }

    /// The same for the table.
    #[must_use]
    pub fn id(&self) -> RowId<'_> {
        RowId { hash: self.hash, table: self.table, key: &self.key }
    }
}

impl Hash for RowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// For maps whose keys bring a hash that is seeded from the log's id: no client can choose keys
/// that collide, and hashing them once more would cost more than the look-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct GivenHash(u64);

impl Hasher for GivenHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("such keys give their hash by write_u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A map from keys that bring their hash.
pub type GivenHashMap<K, V> = HashMap<K, V, BuildHasherDefault<GivenHash>>;

/// One written image.
#[derive(Clone, Debug)]
pub struct PendingImage {
    /// End of the transaction that wrote it.
    pub end: Lsn,
    /// The connection that wrote it, 0 for images found in the log at start.
    pub connection: u64,
    /// The image, `None` for a delete.
    pub image: Option<Bytes>,
}

/// A write, in the order of the log.
struct Written {
    image: PendingImage,
    key: RowKey,
    /// By how many rows this write and all before it have changed the table.
    rows_sum: i64,
    /// Number of the write of the same row before this one.
    previous: Option<u64>,
}

/// All pending images of a primary.
#[derive(Default)]
pub struct Pending {
    /// Number of the newest write of each row.
    newest: GivenHashMap<RowKey, u64>,
    order: VecDeque<Written>,
    /// Number of the first write in `order`: they are counted since the start.
    first: u64,
    /// [`Written::rows_sum`] of the last one that was let go.
    rows_sum_gone: i64,
    pins: BTreeMap<Lsn, usize>,
    visible: Lsn,
}

impl Pending {
    /// Adds an image, which changes the number of rows by `rows_delta`; `end` never goes back.
    pub fn insert(&mut self, key: RowKey, image: PendingImage, rows_delta: i64) {
        debug_assert!(self.order.back().is_none_or(|last| last.image.end <= image.end));
        let rows_sum = self.rows_sum() + rows_delta;
        let number = self.first + self.order.len() as u64;
        let previous = self.newest.insert(key.clone(), number);
        self.order.push_back(Written { image, key, rows_sum, previous });
    }

    fn written(&self, number: u64) -> Option<&Written> {
        let at = number.checked_sub(self.first)?;
        self.order.get(usize::try_from(at).ok()?)
    }

    fn rows_sum(&self) -> i64 {
        self.order.back().map_or(self.rows_sum_gone, |last| last.rows_sum)
    }

    /// Keys written above `at`, in order and with repetitions. `at` is not below `visible`, or
    /// pinned.
    pub fn keys_above(&self, at: Lsn) -> impl ExactSizeIterator<Item = &RowKey> {
        let first = self.order.partition_point(|written| written.image.end <= at);
        self.order.range(first..).map(|written| &written.key)
    }

    /// By how many rows the writes above `at` change the table, and the end of the last of them.
    #[must_use]
    pub fn rows_above(&self, at: Lsn) -> (i64, Lsn) {
        let first = self.order.partition_point(|written| written.image.end <= at);
        let before = first.checked_sub(1).map_or(self.rows_sum_gone, |at| self.order[at].rows_sum);
        (self.rows_sum() - before, self.order.back().map_or(Lsn::ZERO, |last| last.image.end))
    }

    fn newest(&self, key: &RowKey) -> Option<&Written> {
        self.written(*self.newest.get(key)?)
    }

    /// The newest image of `key`.
    #[must_use]
    pub fn latest(&self, key: &RowKey) -> Option<&PendingImage> {
        self.newest(key).map(|written| &written.image)
    }

    /// The newest image of `key` that is committed, or written by `connection` itself, or found in
    /// the log at start: that one may have been acknowledged before, so the image below it must
    /// not be shown again; the reply waits until its fate is known.
    #[must_use]
    pub fn plain(&self, key: &RowKey, committed: Lsn, connection: u64) -> Option<&PendingImage> {
        let mine = |image: &&PendingImage| {
            image.end <= committed || [0, connection].contains(&image.connection)
        };
        let older = |written: &&Written| written.previous.and_then(|number| self.written(number));
        std::iter::successors(self.newest(key), older).map(|written| &written.image).find(mine)
    }

    /// Images held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Keeps every image above the present `visible` until [`Pending::unpin`]; returns that
    /// position: the snapshot that the cold read must use.
    pub fn pin(&mut self) -> Lsn {
        *self.pins.entry(self.visible).or_default() += 1;
        self.visible
    }

    /// Ends a [`Pending::pin`].
    ///
    /// # Panics
    /// When `at` is not pinned.
    pub fn unpin(&mut self, at: Lsn) {
        let count = self.pins.get_mut(&at).expect("every unpin follows its pin");
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&at);
        }
        self.collect();
    }

    /// The table now shows everything below `visible`.
    pub fn handle_visible(&mut self, visible: Lsn) {
        self.visible = self.visible.max(visible);
        self.collect();
    }

    fn collect(&mut self) {
        let pinned = self.pins.keys().next().copied().unwrap_or(Lsn(u64::MAX));
        let floor = self.visible.min(pinned);
        while self.order.front().is_some_and(|written| written.image.end <= floor) {
            let written = self.order.pop_front().expect("just seen");
            self.rows_sum_gone = written.rows_sum;
            if let Entry::Occupied(newest) = self.newest.entry(written.key)
                && *newest.get() == self.first
            {
                newest.remove();
            }
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> RowKey {
        // Different keys of one hash are different rows.
        let hash = text.len() as u64;
        RowKey { hash, table: TableId(1), key: KeyBytes::from_slice(text.as_bytes()) }
    }

    fn image(end: u64, connection: u64, text: &'static str) -> PendingImage {
        let image = Some(Bytes::from_static(text.as_bytes()));
        PendingImage { end: Lsn(end), connection, image }
    }

    fn text(image: Option<&PendingImage>) -> Option<&[u8]> {
        image.and_then(|image| image.image.as_deref())
    }

    #[test]
    fn plain_reads_see_committed_images_and_their_own() {
        let mut pending = Pending::default();
        pending.insert(key("a"), image(10, 1, "one"), 1);
        pending.insert(key("a"), image(20, 2, "two"), 0);
        assert_eq!(text(pending.plain(&key("a"), Lsn(10), 9)), Some(&b"one"[..]));
        assert_eq!(text(pending.plain(&key("a"), Lsn(5), 9)), None);
        assert_eq!(text(pending.plain(&key("a"), Lsn(5), 2)), Some(&b"two"[..]));
        assert_eq!(text(pending.latest(&key("a"))), Some(&b"two"[..]));
    }

    #[test]
    fn images_go_when_the_table_shows_them_unless_a_cold_read_began_before() {
        let mut pending = Pending::default();
        pending.handle_visible(Lsn(5));
        pending.insert(key("a"), image(10, 1, "one"), 1);
        let snapshot = pending.pin();
        assert_eq!(snapshot, Lsn(5));
        pending.handle_visible(Lsn(10));
        assert_eq!(text(pending.latest(&key("a"))), Some(&b"one"[..]));
        pending.unpin(snapshot);
        assert!(pending.is_empty());
        assert!(pending.latest(&key("a")).is_none());
    }

    #[test]
    fn what_is_newer_than_a_position_is_counted_from_there() {
        let mut pending = Pending::default();
        for (end, name, rows_delta) in [(10, "a", 1), (20, "b", 1), (20, "c", 1), (30, "a", -1)] {
            pending.insert(key(name), image(end, 1, "any"), rows_delta);
        }
        let above = |pending: &Pending, at: u64| {
            let keys: Vec<RowKey> = pending.keys_above(Lsn(at)).cloned().collect();
            (keys, pending.rows_above(Lsn(at)))
        };
        let keys = |names: &[&'static str]| names.iter().map(|name| key(name)).collect::<Vec<_>>();
        let all = keys(&["a", "b", "c", "a"]);
        assert_eq!(above(&pending, 0), (all.clone(), (2, Lsn(30))));
        let snapshot = pending.pin();
        pending.handle_visible(Lsn(20));
        assert_eq!(above(&pending, 0), (all, (2, Lsn(30))), "pinned");
        pending.unpin(snapshot);
        assert_eq!(above(&pending, 20), (keys(&["a"]), (-1, Lsn(30))));
        pending.handle_visible(Lsn(30));
        assert_eq!(above(&pending, 30), (keys(&[]), (0, Lsn::ZERO)));
    }
}
