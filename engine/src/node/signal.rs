//! Waiting on the ring thread: a task waits until something it can see has changed.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes every waiting task so that it looks again. Single-threaded, so between looking and
/// waiting nothing can happen, and no wake-up is lost.
///
/// At most one waker per waiting task is kept: one task per connection and a few of the node's.
#[derive(Default)]
pub struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Lets all waiting tasks look again.
    pub fn notify(&self) {
        // Taken out first: a waker may run code that waits anew.
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waker in waiting.drain(..) {
            waker.wake();
        }
        // Keeps the allocation when nobody waited anew meanwhile.
        let mut now = self.waiting.borrow_mut();
        if now.is_empty() {
            *now = waiting;
        }
    }

    /// Waits until `look` returns something. Safe to drop and to race.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match look() {
            Some(found) => Poll::Ready(found),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_waiter_sees_the_change_that_woke_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let state = Rc::new((Signal::default(), Cell::new(0)));
            let other = state.clone();
            let waiter = tokio::task::spawn_local(async move {
                other.0.until(|| (other.1.get() >= 3).then(|| other.1.get())).await
            });
            for _ in 0..5 {
                tokio::task::yield_now().await;
                state.1.set(state.1.get() + 1);
                state.0.notify();
            }
            assert!(waiter.await.unwrap() >= 3);
        });
    }
}
