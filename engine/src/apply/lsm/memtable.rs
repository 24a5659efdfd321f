//! Rows in memory, in order of their storage keys, without comparing their way there.
//!
//! Storage keys begin with a hash that is uniform, so its high bits say where in the order a key
//! stands: an array of small sorted buckets is sorted as a whole. An insert or lookup touches one
//! bucket, mostly one line of the processor's cache, where a skip list of the same rows would
//! follow some twenty pointers.
//!
//! ```text
//! hash:   | shard | bucket | tag: 31 bits | ... |
//! bucket: entries (tag, LSN, place of the row), in order of (tag, LSN)
//! row:    | key bytes: u32 | value bytes: u32 | storage key ... | value ... |
//! ```
//!
//! Keys of one tag are mostly one key: an insert does not look at rows, and who reads tells them
//! apart.
//!
//! Rows are appended to chunks of their shard. A version that nobody can need any more (see
//! `snapshots`) is replaced where it lies by one of the same size: rows that are written over and
//! over do not fill the memtable, and are flushed once. Locks are per shard. Lanes
//! own ranges of hashes, so two of them rarely meet in one; readers hold one for the length of a
//! binary search and of reading one row.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use lsm_tree::{InternalValue, Slice, ValueType};
use rowship_proto::Lsn;
use smallvec::SmallVec;

use super::super::snapshots::Keep;

/// Bytes of a full memtable per bucket: three rows or so.
const BUCKET_BYTES: u64 = 512;
/// Bits of the hash that choose a bucket (shard included), at least and at most.
const BUCKET_BITS: std::ops::RangeInclusive<u32> = 4..=22;
/// Bits of the hash that choose a shard, at most.
const SHARD_BITS_MAX: u32 = 8;
/// What a version takes beside its bytes: lengths, an entry, and its share of empty entries.
const VERSION_OVERHEAD_BYTES: u64 = 48;
/// Bits of a place within a chunk: chunks of 64 KiB, and larger ones for a row that needs it.
const CHUNK_BITS: u32 = 16;
const CHUNK_BYTES: usize = 1 << CHUNK_BITS;
const ROW_HEADER_BYTES: usize = 8;
/// Keys that are brought in at once without asking for memory.
const BROUGHT_IN: usize = 16;
/// Of each row, so many lines of the processor's cache: as long as most rows are.
const BROUGHT_IN_LINES: usize = 4;
const LINE_BYTES: usize = 64;

/// A memtable.
pub struct Memtable {
    shards: Vec<RwLock<Shard>>,
    shard_bits: u32,
    bucket_bits: u32,
    bytes: AtomicU64,
}

struct Shard {
    buckets: Vec<Bucket>,
    chunks: Vec<Vec<u8>>,
}

/// In order of tag, and of one tag by LSN. It fills a cache line.
type Bucket = SmallVec<[Entry; 3]>;

#[derive(Clone, Copy)]
struct Entry {
    lsn: u64,
    /// Bits of the hash behind those that all of a bucket share, above [`SAME_KEY`].
    tag: u32,
    /// Chunk and place in it: see [`CHUNK_BITS`].
    place: u32,
}

/// Of an entry's tag: known to be of the same key as the entry in front. (Without, it may be.)
/// With it, a row is replaced without a look at the newer one.
const SAME_KEY: u32 = 1;

impl Entry {
    fn tag(&self) -> u32 {
        self.tag & !SAME_KEY
    }

    fn same_key(&self) -> bool {
        self.tag & SAME_KEY != 0
    }

    fn order(&self) -> (u32, u64) {
        (self.tag(), self.lsn)
    }
}

/// One version, where it lies.
#[derive(Clone, Copy)]
struct Version<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

impl Version<'_> {
    fn is(&self, key: (&[u8], &[u8])) -> bool {
        self.key.strip_prefix(key.0) == Some(key.1)
    }
}

impl Shard {
    fn version(&self, entry: Entry) -> Version<'_> {
        let chunk = &self.chunks[(entry.place >> CHUNK_BITS) as usize];
        let row = &chunk[entry.place as usize % CHUNK_BYTES..];
        let (lengths, row) = row.split_at(ROW_HEADER_BYTES);
        let length = |at: usize| {
            let bytes = lengths[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        let (key, row) = row.split_at(length(0));
        Version { key, value: &row[..length(4)] }
    }

    /// Where the first entry stands that is not below `order`.
    fn find(&self, bucket: usize, order: (u32, u64)) -> usize {
        self.buckets[bucket].partition_point(|entry| entry.order() < order)
    }

    /// Of the versions of `key` in front of entry `at`: the oldest, when nobody needs it. (One for
    /// each that comes keeps their number; a reader that holds on to versions for long leaves some
    /// behind, which the flush drops.)
    fn oldest_not_needed(
        &self,
        bucket: usize,
        at: usize,
        key: (&[u8], &[u8]),
        keep: &Keep,
    ) -> Option<usize> {
        let entries = &self.buckets[bucket][..at];
        let [.., older, newer] = entries else { return None };
        if older.tag() != newer.tag() || keep.needs(Lsn(older.lsn), Lsn(newer.lsn)) {
            return None;
        }
        let is = |entry: &Entry| self.version(*entry).is(key);
        (is(older) && (newer.same_key() || is(newer))).then_some(at - 2)
    }

    /// Writes over the row at `place` if the new one has its size. Its key is the same.
    fn overwrite(&mut self, place: u32, key: (&[u8], &[u8]), value: (&[u8], &[u8])) -> bool {
        let chunk = &mut self.chunks[(place >> CHUNK_BITS) as usize];
        let row = &mut chunk[place as usize % CHUNK_BYTES..];
        let (lengths, row) = row.split_at_mut(ROW_HEADER_BYTES);
        let value_bytes = value.0.len() + value.1.len();
        if lengths[4..] != (value_bytes as u32).to_le_bytes() {
            return false;
        }
        let (front, back) =
            row[key.0.len() + key.1.len()..][..value_bytes].split_at_mut(value.0.len());
        front.copy_from_slice(value.0);
        back.copy_from_slice(value.1);
        true
    }

    /// Appends a row; returns its place.
    fn append(&mut self, key: (&[u8], &[u8]), value: (&[u8], &[u8])) -> u32 {
        let key_bytes = key.0.len() + key.1.len();
        let value_bytes = value.0.len() + value.1.len();
        let bytes = ROW_HEADER_BYTES + key_bytes + value_bytes;
        // Rows begin in the first 64 KiB of a chunk: in a larger one there is only one.
        let has_room =
            |chunk: &Vec<u8>| chunk.len() < CHUNK_BYTES && chunk.capacity() - chunk.len() >= bytes;
        if !self.chunks.last().is_some_and(has_room) {
            self.chunks.push(Vec::with_capacity(bytes.max(CHUNK_BYTES)));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        let place = u32::try_from(number << CHUNK_BITS | chunk.len());
        let place = place.expect("a shard is a small part of a memtable, not 4 GiB");
        chunk.extend_from_slice(&(key_bytes as u32).to_le_bytes());
        chunk.extend_from_slice(&(value_bytes as u32).to_le_bytes());
        for part in [key.0, key.1, value.0, value.1] {
            chunk.extend_from_slice(part);
        }
        place
    }
}

impl Memtable {
    /// An empty one that will be sealed at about so many bytes.
    pub fn new(sealed_at_bytes: u64) -> Memtable {
        let bits = (sealed_at_bytes / BUCKET_BYTES).max(1).ilog2();
        let bits = bits.clamp(*BUCKET_BITS.start(), *BUCKET_BITS.end());
        let shard_bits = bits.min(SHARD_BITS_MAX);
        let bucket_bits = bits - shard_bits;
        let shard = |_| {
            let buckets = vec![Bucket::new(); 1 << bucket_bits];
            RwLock::new(Shard { buckets, chunks: Vec::new() })
        };
        let shards = (0..1usize << shard_bits).map(shard).collect();
        Memtable { shards, shard_bits, bucket_bits, bytes: AtomicU64::new(0) }
    }

    /// Adds a version of a row whose storage key and value are given in two parts each; the same
    /// one again changes nothing. Of the older ones, those go that `keep` does not need.
    pub fn insert(&self, key: (&[u8], &[u8]), lsn: Lsn, value: (&[u8], &[u8]), keep: &Keep) {
        let (shard, bucket, tag) = self.place(key.0);
        let mut shard = self.shards[shard].write().unwrap_or_else(PoisonError::into_inner);
        let at = shard.find(bucket, (tag, lsn.0));
        let same_order = shard.buckets[bucket][at..].iter();
        let same_order = same_order.take_while(|entry| entry.order() == (tag, lsn.0));
        if same_order.map(|entry| shard.version(*entry)).any(|version| version.is(key)) {
            return;
        }
        let shard = &mut *shard;
        if let Some(behind) = shard.buckets[bucket].get_mut(at) {
            behind.tag &= !SAME_KEY;
        }
        if let Some(gone) = shard.oldest_not_needed(bucket, at, key, keep) {
            let Entry { place, .. } = shard.buckets[bucket][gone];
            if shard.overwrite(place, key, value) {
                // The one between is newer, and the new one is newer still.
                shard.buckets[bucket][gone] = shard.buckets[bucket][gone + 1];
                shard.buckets[bucket][gone].tag &= !SAME_KEY;
                let tag = tag | SAME_KEY;
                shard.buckets[bucket][gone + 1] = Entry { lsn: lsn.0, tag, place };
                return;
            }
        }
        let before = at.checked_sub(1).map(|before| shard.buckets[bucket][before]);
        let same = before.is_some_and(|it| it.tag() == tag && shard.version(it).is(key));
        let place = shard.append(key, value);
        let tag = if same { tag | SAME_KEY } else { tag };
        shard.buckets[bucket].insert(at, Entry { lsn: lsn.0, tag, place });
        let bytes = key.0.len() + key.1.len() + value.0.len() + value.1.len();
        self.bytes.fetch_add(bytes as u64 + VERSION_OVERHEAD_BYTES, Ordering::Relaxed);
    }

    /// Looks at the buckets of keys, given in order by their first parts, and then at the rows that
    /// these lead to: the memory of several is on its way at once, where inserts would wait for
    /// each in turn.
    pub fn bring_in<K: AsRef<[u8]>>(&self, keys: impl Iterator<Item = K>) {
        let places: SmallVec<[(usize, usize, u32); BROUGHT_IN]> =
            keys.map(|key| self.place(key.as_ref())).collect();
        let mut seen = 0;
        for of_one_shard in places.chunk_by(|a, b| a.0 == b.0) {
            let shard = self.read(of_one_shard[0].0);
            for (_, bucket, _) in of_one_shard {
                seen += shard.buckets[*bucket].len();
            }
            for (_, bucket, tag) in of_one_shard {
                // The last but one is what is mostly written over; the last is not looked at.
                let of_tag = |entry: &&Entry| entry.tag() == *tag;
                let mut newest_first = shard.buckets[*bucket].iter().rev().filter(of_tag);
                if let Some(older) = newest_first.nth(1) {
                    let chunk = &shard.chunks[(older.place >> CHUNK_BITS) as usize];
                    let row = &chunk[older.place as usize % CHUNK_BYTES..];
                    for line in row.chunks(LINE_BYTES).take(BROUGHT_IN_LINES) {
                        seen += usize::from(line[0]);
                    }
                }
            }
        }
        // What it saw is of no use: that it looked is.
        std::hint::black_box(seen);
    }

    /// What `read` makes of the value of the newest version of `key` below `at`.
    pub fn get<R>(&self, key: &[u8], at: Lsn, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let (shard, bucket, tag) = self.place(key);
        let shard = self.read(shard);
        let behind = shard.find(bucket, (tag, at.0));
        let older = shard.buckets[bucket][..behind].iter().rev();
        let same_tag = older.take_while(|entry| entry.tag() == tag);
        let mut versions = same_tag.map(|entry| shard.version(*entry));
        versions.find(|version| version.key == key).map(|version| read(version.value))
    }

    /// All versions, by key, and of one key the newest first: the order that files have.
    pub fn versions(&self) -> impl Iterator<Item = InternalValue> + '_ {
        self.buckets_from(0).flat_map(move |(at, bucket)| {
            let entries = self.newest_first(at, bucket);
            entries.into_iter().map(move |entry| {
                let shard = self.read(at);
                let version = shard.version(entry);
                let (key, value) = (Slice::from(version.key), Slice::from(version.value));
                InternalValue::from_components(key, value, entry.lsn, ValueType::Value)
            })
        })
    }

    /// The entries of a bucket by key, and of one key the newest first.
    fn newest_first(&self, shard: usize, bucket: usize) -> Vec<Entry> {
        let shard = self.read(shard);
        let mut entries = shard.buckets[bucket].to_vec();
        entries.reverse();
        entries.sort_by(|a, b| {
            a.tag().cmp(&b.tag()).then_with(|| shard.version(*a).key.cmp(shard.version(*b).key))
        });
        entries
    }

    /// The newest version below `at` of each key from `from` on, in order.
    pub fn newest_from<'a>(
        &'a self,
        from: &'a [u8],
        at: Lsn,
    ) -> impl Iterator<Item = (Slice, Slice)> + 'a {
        let (shard, bucket, _) = self.place(from);
        let first = shard << self.bucket_bits | bucket;
        self.buckets_from(first).flat_map(move |(shard, bucket)| {
            let mut found: Vec<(Slice, Slice)> = Vec::new();
            for entry in self.newest_first(shard, bucket) {
                let shard = self.read(shard);
                let version = shard.version(entry);
                let newer = found.last().is_some_and(|(key, _)| **key == *version.key);
                if entry.lsn < at.0 && version.key >= from && !newer {
                    found.push((version.key.into(), version.value.into()));
                }
            }
            found.into_iter()
        })
    }

    /// Bytes of all versions, with what they take beside.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether there is no version.
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Shard and bucket of each bucket from number `first` on.
    fn buckets_from(&self, first: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let all = self.shards.len() << self.bucket_bits;
        (first..all).map(|at| (at >> self.bucket_bits, at & ((1 << self.bucket_bits) - 1)))
    }

    /// Shard, bucket and tag of a storage key, of which at least the hash is given.
    fn place(&self, key: &[u8]) -> (usize, usize, u32) {
        let mut hash = [0; 8];
        let len = key.len().min(8);
        hash[..len].copy_from_slice(&key[..len]);
        let hash = u64::from_be_bytes(hash);
        let number = (hash >> (u64::BITS - self.shard_bits - self.bucket_bits)) as usize;
        let tag = (hash << (self.shard_bits + self.bucket_bits) >> 32) as u32 & !SAME_KEY;
        (number >> self.bucket_bits, number & ((1 << self.bucket_bits) - 1), tag)
    }

    // A panic inside (out of memory) may leave a version out, never half of one in: its entry comes
    // last. The lane that panicked publishes nothing more.
    fn read(&self, shard: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard].read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::apply::publish::Mark;
    use crate::apply::snapshots::Snapshots;

    fn key(hash: u64, rest: &str) -> Vec<u8> {
        [&hash.to_be_bytes()[..], rest.as_bytes()].concat()
    }

    fn insert(table: &Memtable, key: &[u8], lsn: u64, value: &str) {
        insert_keeping(table, key, lsn, value, &Snapshots::new(Mark::ZERO).keep());
    }

    fn insert_keeping(table: &Memtable, key: &[u8], lsn: u64, value: &str, keep: &Keep) {
        let (front, back) = key.split_at(8);
        let header = lsn.to_le_bytes();
        table.insert((front, back), Lsn(lsn), (&header, value.as_bytes()), keep);
    }

    fn text(value: &[u8]) -> String {
        String::from_utf8(value[8..].to_vec()).unwrap()
    }

    /// Against a plain map, with hashes that share buckets, and in an order that has none.
    #[test]
    fn reads_and_iterates_as_a_sorted_map_does() {
        for sealed_at_bytes in [1, 4 << 10, 1 << 20] {
            let table = Memtable::new(sealed_at_bytes);
            let mut map: BTreeMap<(Vec<u8>, u64), String> = BTreeMap::new();
            let mut state = 7u64;
            for number in 0..4_000u64 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let hash = (state >> 60) << 60 | (state >> 50) & 3;
                let key = key(hash, ["", "a", "b"][number as usize % 3]);
                let lsn = (state >> 52) & !7;
                let value = number.to_string();
                insert(&table, &key, lsn, &value);
                // What is there stays: a version never changes.
                map.entry((key, lsn)).or_insert(value);
            }
            for at in [0, 100, 1_000, 5_000] {
                let below = |key: &[u8]| {
                    let range = (key.to_vec(), 0)..(key.to_vec(), at);
                    map.range(range).next_back().map(|(_, value)| value.clone())
                };
                let keys: std::collections::BTreeSet<_> = map.keys().map(|(k, _)| k).collect();
                for key in &keys {
                    assert_eq!(table.get(key, Lsn(at), text), below(key));
                }
                let from = key(5 << 60, "a");
                let expected: Vec<_> = keys
                    .iter()
                    .filter(|key| ***key >= from)
                    .filter_map(|key| Some(((*key).clone(), below(key)?)))
                    .collect();
                let found = table.newest_from(&from, Lsn(at));
                let found: Vec<_> = found.map(|(k, v)| (k.to_vec(), text(&v))).collect();
                assert_eq!(found, expected);
            }
            let mut expected: Vec<_> = map.into_iter().collect();
            expected.sort_by(|((a, x), _), ((b, y), _)| a.cmp(b).then(y.cmp(x)));
            let found = table
                .versions()
                .map(|entry| ((entry.key.user_key.to_vec(), entry.key.seqno), text(&entry.value)));
            assert!(found.eq(expected));
        }
    }

    #[test]
    fn the_same_version_again_takes_no_more_memory() {
        let table = Memtable::new(4 << 10);
        assert!(table.is_empty());
        insert(&table, &key(1, "a"), 8, "one");
        let bytes = table.bytes();
        insert(&table, &key(1, "a"), 8, "one");
        assert_eq!(table.bytes(), bytes);
        insert(&table, &key(1, "a"), 16, "two");
        assert_eq!(table.bytes(), 2 * bytes);
    }

    /// A row that is written over and over takes no more memory; what a pin needs stays.
    #[test]
    fn versions_that_nobody_needs_are_replaced() {
        let table = Memtable::new(4 << 10);
        let snapshots = Snapshots::new(Mark::ZERO);
        let (a, b) = (key(9, "a"), key(9, "b"));
        let mut pins = Vec::new();
        for number in 1..=500u64 {
            let lsn = number * 8;
            let keep = snapshots.keep();
            insert_keeping(&table, &a, lsn, &format!("{number:03}"), &keep);
            if number.is_multiple_of(250) {
                insert_keeping(&table, &b, lsn, "b", &keep);
            }
            snapshots.publish(Mark { lsn: Lsn(lsn + 8), rows: 1 });
            if number == 100 {
                pins.push(snapshots.pin());
            }
            assert_eq!(table.get(&a, Lsn(lsn + 8), text), Some(format!("{number:03}")));
            for pin in &pins {
                assert_eq!(table.get(&a, pin.at(), text).as_deref(), Some("100"));
            }
        }
        let versions = table.versions().filter(|entry| entry.key.user_key == a).count();
        assert!(versions < 12, "{versions} versions of one row");
        assert!(table.bytes() < 1_500, "{}", table.bytes());
    }

    /// Three keys of one hash, whose versions come in any order within a window.
    #[test]
    fn what_is_replaced_is_never_another_keys_version() {
        let table = Memtable::new(4 << 10);
        let snapshots = Snapshots::new(Mark::ZERO);
        let keys = ["a", "b", "c"].map(|name| key(9, name));
        let found = |at: u64| keys.each_ref().map(|key| table.get(key, Lsn(at), text));
        let (mut shown, mut state, mut lsn) = ([const { None }; 3], 11u64, 8);
        for _ in 0..3_000 {
            let (keep, before, mut newest) = (snapshots.keep(), lsn, shown.clone());
            let mut writes = Vec::new();
            for _ in 0..1 + state % 5 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let which = [0, 0, 0, 0, 0, 0, 1, 2][(state >> 40) as usize % 8];
                let order = state >> 60;
                newest[which] = Some(format!("{lsn:07}"));
                writes.push((order, lsn, which));
                lsn += 8;
            }
            writes.sort_unstable();
            for (_, at, which) in writes {
                insert_keeping(&table, &keys[which], at, &format!("{at:07}"), &keep);
                assert_eq!(found(before), shown, "before the window is published");
            }
            snapshots.publish(Mark { lsn: Lsn(lsn), rows: 3 });
            assert_eq!(found(lsn), newest);
            shown = newest;
        }
        let rows = lsn / 8;
        assert!(table.bytes() < 64 * rows, "some are replaced: {} of {rows} rows", table.bytes());
    }

    /// Rows beyond the size of a chunk, and chunks that are full to the byte.
    #[test]
    fn rows_of_any_size_read_back() {
        let table = Memtable::new(4 << 10);
        let sizes = [0, 1, CHUNK_BYTES - 32, CHUNK_BYTES, 5, 3 * CHUNK_BYTES, 7];
        for (at, size) in sizes.iter().enumerate() {
            insert(&table, &key(3, &at.to_string()), 8, &"x".repeat(*size));
        }
        for (at, size) in sizes.iter().enumerate() {
            let found = table.get(&key(3, &at.to_string()), Lsn(16), <[u8]>::len);
            assert_eq!(found, Some(8 + size));
        }
    }
}
