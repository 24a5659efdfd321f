//! The rows that are written: a 64-bit key, a value of 120 bytes.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// Bytes of a value.
pub const VALUE_BYTES: usize = 120;
/// A row beside all others, for [`crate::load`]'s markers.
pub const MARKER_KEY: u64 = 0xffff_fff0;
/// Of ten rows of [`Keys::Hot`], so many go to one key.
const HOT_OF_TEN: u32 = 9;

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: u64,
    /// Its value.
    pub value: [u8; VALUE_BYTES],
}

impl Row {
    /// A row whose value begins with `number`.
    #[must_use]
    pub fn numbered(key: u64, number: u64) -> Row {
        let mut value = [b'm'; VALUE_BYTES];
        value[..8].copy_from_slice(&number.to_le_bytes());
        Row { key, value }
    }

    /// The number of [`Row::numbered`] out of a value; 0 when there is none.
    #[must_use]
    pub fn number(value: &[u8]) -> u64 {
        value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// Which keys are written how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys {
    /// Each as often as any other.
    Uniform,
    /// By Zipf's law with this exponent.
    Zipf(f64),
    /// Nine rows of ten to one key, the others uniform.
    Hot,
}

impl std::fmt::Display for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Keys::Uniform => f.write_str("uniform"),
            Keys::Zipf(exponent) => write!(f, "zipf {exponent}"),
            Keys::Hot => f.write_str("hot key"),
        }
    }
}

/// An endless stream of rows, the same for the same seed.
pub struct Rows {
    random: SmallRng,
    keys: u64,
    pick: Keys,
    zipf: Option<Zipf<f64>>,
    /// Values are cut out of it at random places: making 120 random bytes per row would cost more
    /// than sending them.
    noise: Vec<u8>,
}

impl Rows {
    /// Rows with keys below `keys`.
    #[must_use]
    pub fn new(seed: u64, keys: u64, pick: Keys) -> Rows {
        let mut random = SmallRng::seed_from_u64(seed);
        let zipf = match pick {
            Keys::Zipf(exponent) => Zipf::new(keys as f64, exponent).ok(),
            _ => None,
        };
        let mut noise = vec![0; 1 << 16];
        random.fill_bytes(&mut noise);
        Rows { random, keys, pick, zipf, noise }
    }

    fn key(&mut self) -> u64 {
        match (self.pick, &self.zipf) {
            (Keys::Zipf(_), Some(zipf)) => zipf.sample(&mut self.random) as u64 - 1,
            (Keys::Hot, _) if self.random.random_ratio(HOT_OF_TEN, 10) => 0,
            _ => self.random.random_range(0..self.keys),
        }
    }

    fn with_key(&mut self, key: u64) -> Row {
        let at = self.random.random_range(0..self.noise.len() - VALUE_BYTES);
        let mut value = [0; VALUE_BYTES];
        value.copy_from_slice(&self.noise[at..at + VALUE_BYTES]);
        Row { key, value }
    }

    /// The next row.
    pub fn row(&mut self) -> Row {
        let key = self.key();
        self.with_key(key)
    }

    /// The rows of one transaction, ordered by key. With uniform keys they differ (an SQL upsert of
    /// several rows must not meet a key twice); with others a key may come again.
    pub fn transaction(&mut self, rows: usize, into: &mut Vec<Row>) {
        into.clear();
        while into.len() < rows {
            let missing = rows - into.len();
            into.extend((0..missing).map(|_| self.row()));
            into.sort_by_key(|row| row.key);
            if self.pick == Keys::Uniform && rows as u64 <= self.keys {
                into.dedup_by_key(|row| row.key);
            }
        }
    }

    /// All keys once, in order: what a run starts from.
    pub fn all(&mut self) -> impl Iterator<Item = Row> + '_ {
        (0..self.keys).map(|key| self.with_key(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_of_first(pick: Keys) -> f64 {
        let mut rows = Rows::new(1, 1000, pick);
        let first = (0..20_000).filter(|_| rows.row().key == 0).count();
        first as f64 / 20_000.0
    }

    #[test]
    fn keys_come_as_often_as_stated() {
        assert!(share_of_first(Keys::Uniform) < 0.005);
        let zipf = share_of_first(Keys::Zipf(0.99));
        assert!((0.10..0.16).contains(&zipf), "{zipf}");
        let hot = share_of_first(Keys::Hot);
        assert!((0.88..0.92).contains(&hot), "{hot}");
    }

    #[test]
    fn a_transaction_has_each_uniform_key_once_and_the_same_seed_gives_the_same() {
        let (mut rows, mut again) =
            (Rows::new(3, 120, Keys::Uniform), Rows::new(3, 120, Keys::Uniform));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..50 {
            rows.transaction(100, &mut first);
            again.transaction(100, &mut second);
            assert!(first.len() == 100 && first.windows(2).all(|pair| pair[0].key < pair[1].key));
            assert_eq!(first, second);
        }
        assert_eq!(Row::number(&Row::numbered(1, 77).value), 77);
    }
}
