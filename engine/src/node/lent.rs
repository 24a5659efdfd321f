//! Frame buffers that senders hold.
//!
//! A sender whose replica takes nothing holds what it is sending until the link is given up. So
//! that such senders cannot empty the pool, and make all writes wait, only so many runs are lent
//! to senders at once, to all of them together; beyond that a sender takes a copy. Senders of the
//! same run hold the same buffer: it counts once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use rowship_proto::Lsn;

use super::tip::Run;

/// How many senders hold which run.
#[derive(Debug)]
pub struct Lent {
    senders: RefCell<BTreeMap<Lsn, usize>>,
    runs_max: usize,
}

/// A run that a sender holds; given back when dropped.
#[derive(Debug)]
pub struct Loan {
    lent: Rc<Lent>,
    start: Lsn,
}

impl Lent {
    /// At most `runs_max` different runs are lent at once.
    #[must_use]
    pub fn new(runs_max: usize) -> Rc<Lent> {
        Rc::new(Lent { senders: RefCell::default(), runs_max })
    }

    /// The bytes of a run for a sender: the run's own, together with a loan, or a copy, which needs
    /// none.
    #[must_use]
    pub fn lend(self: &Rc<Self>, run: &Run) -> (Bytes, Option<Loan>) {
        if run.copy {
            return (run.bytes.clone(), None);
        }
        let mut senders = self.senders.borrow_mut();
        if senders.len() >= self.runs_max && !senders.contains_key(&run.start) {
            return (Bytes::copy_from_slice(&run.bytes), None);
        }
        *senders.entry(run.start).or_default() += 1;
        (run.bytes.clone(), Some(Loan { lent: self.clone(), start: run.start }))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut senders = self.lent.senders.borrow_mut();
        let count = senders.get_mut(&self.start).expect("a run that is lent is known");
        *count -= 1;
        if *count == 0 {
            senders.remove(&self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowship_proto::Epoch;

    fn run(start: u64) -> Run {
        let bytes = Bytes::from(vec![7; 8]);
        let (start, next) = (Lsn(start), Lsn(start + 8));
        Run { start, next, bytes, chain: 0, epoch: Epoch::NONE, mark: false, copy: false }
    }

    #[test]
    fn beyond_the_limit_a_sender_gets_a_copy() {
        let lent = Lent::new(2);
        let runs = [run(0), run(8), run(16)];
        let shared = |at: usize, bytes: &Bytes| bytes.as_ptr() == runs[at].bytes.as_ptr();
        let first = lent.lend(&runs[0]);
        let again = lent.lend(&runs[0]);
        let second = lent.lend(&runs[1]);
        assert!(shared(0, &first.0) && shared(0, &again.0) && shared(1, &second.0));
        let third = lent.lend(&runs[2]);
        assert!(!shared(2, &third.0) && third.1.is_none());
        assert_eq!(third.0, runs[2].bytes);
        let (bytes, loan) = lent.lend(&Run { copy: true, ..runs[2].clone() });
        assert!(shared(2, &bytes) && loan.is_none(), "a copy is shared without a loan");
        // The same run once more is no further buffer.
        assert!(lent.lend(&runs[1]).1.is_some());
        drop(first);
        assert!(lent.lend(&runs[2]).1.is_none(), "another sender still holds the first run");
        drop(again);
        assert!(lent.lend(&runs[2]).1.is_some());
    }
}
