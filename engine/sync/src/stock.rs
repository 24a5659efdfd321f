//! [`Stock`].

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::sync::{Arc, Mutex, MutexGuard};

/// A fixed number of things that are lent out and come back, from any thread. Clones share it.
///
/// # Why nobody waits for ever
/// A thing is back before `returned` is called. So whoever finds nothing, and then waits for a call
/// of `returned` that it has not seen yet, finds something after it, unless another was faster.
pub struct Stock<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    free: Mutex<Vec<T>>,
    returned: Box<dyn Fn() + Send + Sync>,
}

/// A thing on loan; dropping it gives it back.
pub struct Lent<T> {
    /// `None` only while it is dropped.
    thing: Option<T>,
    home: Arc<Shared<T>>,
}

impl<T> Stock<T> {
    /// All of `things` are free. `returned` is called, on any thread, whenever one has come back.
    #[must_use]
    pub fn new(things: Vec<T>, returned: impl Fn() + Send + Sync + 'static) -> Stock<T> {
        let (free, returned) = (Mutex::new(things), Box::new(returned));
        Stock { shared: Arc::new(Shared { free, returned }) }
    }

    /// The thing that came back last, or `None`: then wait for `returned`.
    #[must_use]
    pub fn take(&self) -> Option<Lent<T>> {
        let thing = self.shared.free().pop()?;
        Some(Lent { thing: Some(thing), home: self.shared.clone() })
    }

    /// How many are free now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.shared.free().len()
    }
}

impl<T> Shared<T> {
    fn free(&self) -> MutexGuard<'_, Vec<T>> {
        self.free.lock().expect("nothing panics while it holds the lock")
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        // Not with the lock held: whoever is told may take at once.
        let thing = self.thing.take();
        self.home.free().extend(thing);
        (self.home.returned)();
    }
}

impl<T> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.thing.as_ref().expect("it leaves only in drop")
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.thing.as_mut().expect("it leaves only in drop")
    }
}

impl<T> Clone for Stock<T> {
    fn clone(&self) -> Stock<T> {
        Stock { shared: self.shared.clone() }
    }
}

impl<T> fmt::Debug for Stock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stock").field("free", &self.free()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Lent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(rowship_loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn there_are_never_more_than_there_were() {
        let returned = Arc::new(AtomicUsize::new(0));
        let seen = returned.clone();
        let count = move || {
            seen.fetch_add(1, Ordering::Relaxed);
        };
        let stock = Stock::new(vec![1, 2], count);
        let (mut one, other) = (stock.take().unwrap(), stock.take().unwrap());
        assert!(stock.take().is_none() && stock.free() == 0);
        *one += 10;
        drop((one, other));
        assert_eq!((returned.load(Ordering::Relaxed), stock.free()), (2, 2));
        let (one, other) = (stock.take().unwrap(), stock.take().unwrap());
        assert_eq!(*one + *other, 13);
    }
}
