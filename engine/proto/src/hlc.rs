//! Hybrid logical clock: wall time that never runs backwards.
//!
//! Source: Kulkarni, Demirbas et al., "Logical Physical Clocks and Consistent Snapshots in
//! Globally Distributed Databases" (2014). One 64-bit word: 48 bits of milliseconds since 1970,
//! 16 bits of counter.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One reading of the clock; ordered.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Hlc(pub u64);

/// How far ahead of this node's wall clock a seen reading may be, in milliseconds. Beyond it the
/// reading is not adopted: one node with a broken clock must not drag all others along.
pub const DRIFT_MS_MAX: u64 = 60_000;

/// The clock of one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
}

impl Clock {
    /// A clock that continues after `last`, read from the log at start.
    #[must_use]
    pub fn restore(last: Hlc) -> Clock {
        Clock { last }
    }

    /// The next reading, above all before.
    pub fn tick(&mut self, wall_ns: u64) -> Hlc {
        let wall = Hlc((wall_ns / 1_000_000) << 16);
        self.last = if wall > self.last { wall } else { Hlc(self.last.0 + 1) };
        self.last
    }

    /// Takes notice of another node's reading. Returns false, and ignores it, when it is more than
    /// [`DRIFT_MS_MAX`] ahead of the wall clock.
    pub fn observe(&mut self, seen: Hlc, wall_ns: u64) -> bool {
        if (seen.0 >> 16) > wall_ns / 1_000_000 + DRIFT_MS_MAX {
            return false;
        }
        self.last = self.last.max(seen);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn readings_grow_when_the_wall_clock_stands_or_goes_back() {
        let mut clock = Clock::default();
        let first = clock.tick(5 * MS);
        let second = clock.tick(5 * MS);
        let third = clock.tick(2 * MS);
        assert!(first < second && second < third);
        assert_eq!(clock.tick(9 * MS), Hlc(9 << 16));
    }

    #[test]
    fn a_reading_from_far_ahead_is_not_adopted() {
        let mut clock = Clock::restore(Hlc(1 << 16));
        assert!(!clock.observe(Hlc((DRIFT_MS_MAX + 3) << 16), MS));
        assert!(clock.observe(Hlc(DRIFT_MS_MAX << 16), MS));
        assert!(clock.tick(MS) > Hlc(DRIFT_MS_MAX << 16));
    }
}
