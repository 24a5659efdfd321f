//! Seeded random numbers: the same seed gives the same run, on every machine.

/// A small generator (splitmix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014). Good enough to choose faults by; no secret depends on it.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The generator of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// A generator of its own, so that one part's draws do not move another's.
    #[must_use]
    pub fn fork(&mut self) -> Random {
        Random { state: self.word() }
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is no number below zero");
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    /// A number of `(least, most)`, both included.
    pub fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.below(most - least + 1)
    }

    /// True in `per_thousand` of 1000 cases.
    pub fn chance(&mut self, per_thousand: u64) -> bool {
        self.below(1000) < per_thousand
    }

    /// One of `items`, which are not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_numbers_within_their_bounds() {
        let (mut one, mut two) = (Random::new(7), Random::new(7));
        for _ in 0..1000 {
            let number = one.between((3, 9));
            assert!((3..=9).contains(&number));
            assert_eq!(number, two.between((3, 9)));
        }
        assert_ne!(one.fork().word(), one.word());
    }
}
