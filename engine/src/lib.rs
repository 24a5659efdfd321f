//! rowship: a replicated row store built around its log.
//!
//! Read `ARCHITECTURE.md` beside this crate first: it follows one write through the house.

pub mod apply;
pub mod cli;
pub mod edge;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod intake;
pub mod log;
pub mod node;
