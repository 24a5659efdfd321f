//! Replication connections that have not said who they are.
//!
//! Anybody may connect; only a hello that is accepted makes a connection a replica's link, which
//! `replicas_max` bounds and silence ends. Before that a connection has the time of a peer
//! timeout, and there is a bound on how many there are: a further one takes the place of the
//! oldest. So connections that stay mute cannot keep a replica out, which says hello at once.

use std::cell::RefCell;
use std::collections::VecDeque;

use rowship_proto::Nanos;
use rowship_proto::primary::LinkId;

/// Connections before their hello, oldest first.
pub struct Greeting<S> {
    waiting: RefCell<VecDeque<(LinkId, Nanos, S)>>,
    waiting_max: usize,
}

impl<S> Greeting<S> {
    /// At most `waiting_max` connections wait at once.
    #[must_use]
    pub fn new(waiting_max: usize) -> Greeting<S> {
        Greeting { waiting: RefCell::default(), waiting_max }
    }

    /// A new connection; returns the oldest one when there are too many: it is to be closed.
    #[must_use]
    pub fn begin(&self, link: LinkId, now: Nanos, stream: S) -> Option<S> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back((link, now, stream));
        let over = waiting.len() > self.waiting_max;
        over.then(|| waiting.pop_front()).flatten().map(|oldest| oldest.2)
    }

    /// The connection has been greeted, or has ended. False when it had been given up before.
    pub fn end(&self, link: LinkId) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|known| known.0 == link);
        at.is_some_and(|at| waiting.remove(at).is_some())
    }

    /// Connections that came before `deadline`: they are to be closed.
    #[must_use]
    pub fn overdue(&self, deadline: Nanos) -> Vec<S> {
        let mut waiting = self.waiting.borrow_mut();
        let overdue = waiting.iter().take_while(|known| known.1 < deadline).count();
        waiting.drain(..overdue).map(|known| known.2).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mute_connection_makes_room_for_a_new_one() {
        let greeting = Greeting::new(2);
        assert_eq!(greeting.begin(1, 10, "a"), None);
        assert_eq!(greeting.begin(2, 11, "b"), None);
        assert_eq!(greeting.begin(3, 12, "c"), Some("a"));
        assert!(!greeting.end(1) && greeting.end(3));
        assert_eq!(greeting.begin(4, 13, "d"), None);
    }

    #[test]
    fn only_what_waits_for_too_long_is_overdue() {
        let greeting = Greeting::new(9);
        for (link, name) in [(1, "a"), (2, "b"), (3, "c")] {
            assert_eq!(greeting.begin(link, link * 10, name), None);
        }
        assert_eq!(greeting.overdue(30), ["a", "b"]);
        assert!(greeting.overdue(30).is_empty() && greeting.end(3));
    }
}
