//! A row, or a buffer of them, that only the types under test order: loom fails the model when
//! accesses that must be ordered are not.

use loom::cell::UnsafeCell;

/// Memory that is written by one thread at a time.
pub struct Row(UnsafeCell<bool>);

// SAFETY: that accesses are ordered is the very property of the models, and loom checks it at each
// access; a model that breaks it fails before the memory is touched.
unsafe impl Sync for Row {}

impl Row {
    pub fn new() -> Row {
        Row(UnsafeCell::new(false))
    }

    /// Inserts the row.
    pub fn write(&self) {
        // SAFETY: loom has checked that nobody else accesses it; the pointer is valid in here.
        self.0.with_mut(|row| unsafe { *row = true });
    }

    /// Whether it has been inserted.
    pub fn is_there(&self) -> bool {
        // SAFETY: loom has checked that all writes happened before; the pointer is valid in here.
        self.0.with(|row| unsafe { *row })
    }
}
