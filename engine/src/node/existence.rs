//! Which rows exist, as far as this node has written or looked them up lately.
//!
//! Every write says in the log whether its row existed before: that is how all nodes count rows.
//! Asking the table for it costs a read of the disk once a row has left the memtables. All writes
//! of a primary pass through here in the order of the log, so what is remembered is always the
//! newest state; what is forgotten is asked for again.

use super::pending::RowKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::FromZeros;

/// Rows that share a place: as many as fill a line of the processor's cache.
const WAYS: usize = 4;
const VALID: u64 = 2;
const EXISTS: u64 = 1;

/// One row: 126 bits of two hashes, so that of rows that are told apart wrongly there will not be
/// one in the life of a cluster (and no client can make one: both are seeded from the log's id).
#[derive(Clone, Copy, FromZeros)]
#[repr(C)]
struct Remembered {
    hash: u64,
    /// The upper bits are of the other hash; then [`VALID`] and [`EXISTS`].
    other: u64,
}

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Place([Remembered; WAYS]);

/// A cache of fixed size.
pub struct Existence {
    places: Vec<Place>,
    seed: u64,
}

impl Existence {
    /// Takes about so many bytes, once they have been used. `seed` is the log's.
    ///
    /// # Panics
    /// When there is not that much address space.
    #[must_use]
    pub fn new(bytes: u64, seed: u64) -> Existence {
        let places = (bytes as usize / size_of::<Place>()).max(1);
        // A power of two: a place is chosen by bits of the hash. Pages of zeroes, which take memory
        // when they are written.
        let places = Place::new_vec_zeroed(1 << places.ilog2());
        Existence { places: places.expect("address space for the cache"), seed }
    }

    fn remembered(&self, row: &RowKey) -> (usize, Remembered) {
        let seed = self.seed.rotate_left(32) ^ u64::from(row.table.0);
        let other = xxh3_64_with_seed(&row.key, seed) & !(VALID | EXISTS) | VALID;
        (self.place(row), Remembered { hash: row.hash, other })
    }

    /// Whether the row exists, if that is remembered; it counts as put just now.
    pub fn get(&mut self, row: &RowKey) -> Option<bool> {
        let (place, wanted) = self.remembered(row);
        let same =
            |found: &Remembered| found.hash == wanted.hash && found.other & !EXISTS == wanted.other;
        let ways = &mut self.places[place].0;
        let at = ways.iter().position(same)?;
        ways[..=at].rotate_right(1);
        Some(ways[0].other & EXISTS != 0)
    }

    /// Looks at the places of rows: the memory of all of them is on its way at once.
    pub fn bring_in<'a>(&self, rows: impl Iterator<Item = &'a RowKey>) {
        let seen = rows.fold(0, |seen, row| seen ^ self.places[self.place(row)].0[0].hash);
        // What it saw is of no use: that it looked is.
        std::hint::black_box(seen);
    }

    fn place(&self, row: &RowKey) -> usize {
        row.hash as usize & (self.places.len() - 1)
    }

    /// The row exists from now on, or does not. Takes the place of the row that was put longest
    /// ago.
    pub fn put(&mut self, row: &RowKey, exists: bool) {
        let (place, mut put) = self.remembered(row);
        let ways = &mut self.places[place].0;
        let same =
            |found: &Remembered| found.hash == put.hash && found.other & !EXISTS == put.other;
        let at = ways.iter().position(same).unwrap_or(WAYS - 1);
        ways.copy_within(..at, 1);
        put.other |= if exists { EXISTS } else { 0 };
        ways[0] = put;
    }
}

#[cfg(test)]
mod tests {
    use rowship_proto::row::TableId;

    use super::*;

    fn row(number: u64) -> RowKey {
        RowKey::of(7, TableId(1), &number.to_le_bytes())
    }

    #[test]
    fn the_newest_state_is_remembered_or_none() {
        let mut existence = Existence::new(1 << 12, 7);
        let rows = 1_000;
        for number in 0..rows {
            assert_eq!(existence.get(&row(number)), None);
            existence.put(&row(number), true);
            existence.put(&row(number), number % 3 == 0);
            assert_eq!(existence.get(&row(number)), Some(number % 3 == 0));
        }
        let kept: Vec<u64> = (0..rows).filter(|n| existence.get(&row(*n)).is_some()).collect();
        assert!((200..=256).contains(&kept.len()), "{} of 256 places are used", kept.len());
        assert!(kept.iter().all(|n| existence.get(&row(*n)) == Some(n % 3 == 0)));
        assert!(kept.iter().sum::<u64>() / kept.len() as u64 > rows * 3 / 4, "the newest stay");
    }

    #[test]
    fn a_row_that_is_asked_for_stays() {
        let mut existence = Existence::new(size_of::<Place>() as u64, 7);
        (0..4).for_each(|number| existence.put(&row(number), true));
        assert_eq!(existence.get(&row(0)), Some(true));
        existence.put(&row(4), true);
        let kept = [0, 1, 2, 3, 4].map(|number| existence.get(&row(number)).is_some());
        assert_eq!(kept, [true, false, true, true, true]);
    }

    #[test]
    fn rows_of_one_hash_and_of_other_tables_are_told_apart() {
        let mut existence = Existence::new(1 << 12, 7);
        let one = row(1);
        let forged = RowKey { hash: one.hash, ..row(2) };
        let elsewhere = RowKey { table: TableId(2), ..one.clone() };
        existence.put(&one, true);
        assert_eq!(existence.get(&forged), None);
        assert_eq!(existence.get(&elsewhere), None);
        existence.put(&forged, false);
        assert_eq!(existence.get(&one), Some(true));
        assert_eq!(existence.get(&forged), Some(false));
    }
}
