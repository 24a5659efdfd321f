//! The switch between std and loom. Nothing else in the workspace names `loom`, and no type of
//! this package names `std::sync` directly.

#[cfg(not(rowship_loom))]
pub use std::sync::{Arc, Mutex, MutexGuard};
/// Atomic integers.
#[cfg(not(rowship_loom))]
pub mod atomic {
    pub use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
}

#[cfg(rowship_loom)]
pub use loom::sync::{Arc, Mutex, MutexGuard};
/// Atomic integers, as the model checker sees them.
#[cfg(rowship_loom)]
pub mod atomic {
    pub use loom::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
}
