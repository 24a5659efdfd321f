//! [`Watermark`].

use crossbeam::utils::CachePadded;

use crate::sync::atomic::{AtomicU64, Ordering};

/// A position that only grows: one logical writer at a time, any number of readers.
///
/// Promise: whoever reads a value sees everything that was written to memory before the writer
/// advanced to it. "One writer at a time" may move between threads, as long as one writer's last
/// [`Watermark::advance`] happens before the next one's first (a [`Countdown`] gives that).
///
/// It has a cache line to itself: lanes and readers spin over neighbouring data otherwise.
///
/// [`Countdown`]: crate::Countdown
#[derive(Debug)]
pub struct Watermark {
    position: CachePadded<AtomicU64>,
}

impl Watermark {
    /// A watermark that stands at `position`.
    #[must_use]
    pub fn new(position: u64) -> Watermark {
        Watermark { position: CachePadded::new(AtomicU64::new(position)) }
    }

    /// The position, and with it the sight of everything below it.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Acquire pairs with the release in `advance`.
        self.position.load(Ordering::Acquire)
    }

    /// Moves on to `to`, which may equal the present position.
    ///
    /// # Panics
    /// When `to` is below it: a reader may already have acted on the higher one.
    pub fn advance(&self, to: u64) {
        // One read-modify-write instead of load and store: it also notices two writers at once,
        // costs one locked instruction per window, and lets loom see the race with readers (it
        // remembers only the last access to an atomic: the writer's own load would hide theirs).
        let before = self.position.fetch_max(to, Ordering::Release);
        assert!(before <= to, "watermark moved back from {before} to {to}");
    }
}

#[cfg(all(test, not(rowship_loom)))]
mod tests {
    use super::*;

    #[test]
    fn stands_where_it_was_put() {
        let watermark = Watermark::new(7);
        assert_eq!(watermark.get(), 7);
        watermark.advance(7);
        watermark.advance(9);
        assert_eq!(watermark.get(), 9);
    }

    #[test]
    #[should_panic(expected = "moved back from 9 to 8")]
    fn never_goes_back() {
        let watermark = Watermark::new(9);
        watermark.advance(8);
    }
}
