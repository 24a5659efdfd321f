//! [`Countdown`].

use crossbeam::utils::CachePadded;

use crate::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// The end of one window: N lanes arrive once each, and the last one to arrive is told so, with
/// the sum of what they all brought.
///
/// # Why completions come in the order of the windows, without a lock
/// Every lane takes windows first in, first out: it arrives at window k+1 only after it has
/// arrived at window k *and has done what being last there asked of it* (published k). Window k+1
/// completes only when all lanes have arrived, among them the lane L that was last at k. So
/// publish(k) precedes L's arrival at k+1 in L's own program order, that arrival releases, and the
/// last lane at k+1 acquires it: publish(k) happens before publish(k+1). The publisher moves from
/// thread to thread, and still is one writer at a time.
///
/// For the same reason the publisher sees what all lanes wrote for the window: each arrival is a
/// release, and the counter's read-modify-writes form one release sequence that the last arrival
/// acquires.
#[derive(Debug)]
pub struct Countdown {
    /// Both fields are only written in `arrive`, together: one cache line for the two.
    state: CachePadded<State>,
}

#[derive(Debug)]
struct State {
    remaining: AtomicUsize,
    sum: AtomicI64,
}

impl Countdown {
    /// For `lanes` arrivals.
    ///
    /// # Panics
    /// When `lanes` is zero: such a window would never complete.
    #[must_use]
    pub fn new(lanes: usize) -> Countdown {
        assert!(lanes > 0, "a window without lanes never completes");
        let (remaining, sum) = (AtomicUsize::new(lanes), AtomicI64::new(0));
        Countdown { state: CachePadded::new(State { remaining, sum }) }
    }

    /// One lane is done and brings `amount`. The last of them gets the sum of all amounts, and
    /// must publish before it arrives anywhere else.
    ///
    /// # Panics
    /// When more lanes arrive than were announced.
    #[must_use = "the last lane to arrive must publish the window"]
    pub fn arrive(&self, amount: i64) -> Option<i64> {
        // Relaxed: ordered before the release below, and read after its acquire.
        self.state.sum.fetch_add(amount, Ordering::Relaxed);
        // Release hands over this lane's rows, acquire takes over all others'.
        let before = self.state.remaining.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "more lanes arrived at a window than it has");
        (before == 1).then(|| self.state.sum.load(Ordering::Relaxed))
    }
}

#[cfg(all(test, not(rowship_loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lane_completes_and_gets_the_sum() {
        let countdown = Countdown::new(3);
        assert_eq!(countdown.arrive(5), None);
        assert_eq!(countdown.arrive(-7), None);
        assert_eq!(countdown.arrive(1), Some(-1));
    }

    #[test]
    #[should_panic(expected = "more lanes arrived")]
    fn a_lane_too_many_is_a_bug() {
        let countdown = Countdown::new(1);
        let _ = countdown.arrive(0);
        let _ = countdown.arrive(0);
    }
}
