//! What crosses threads in rowship.
//!
//! Everything here is written against [`sync`], the only switch between std and loom: with
//! `RUSTFLAGS="--cfg rowship_loom"` the very same source runs under the model checker, in the
//! package `loom-tests` (one file per type), and so does what `engine/src/apply` shares between
//! threads. The shape of the switch is tokio's (`tokio/src/loom`).
//!
//! - [`Watermark`]: a position that one writer moves and many threads read.
//! - [`Countdown`]: how N lanes agree that they are all done with one window, without a lock.
//! - [`stock::Stock`]: a fixed number of things (frame buffers), lent out and taken back.
#![forbid(unsafe_code)]

mod countdown;
pub mod stock;
pub mod sync;
mod watermark;

pub use countdown::Countdown;
pub use watermark::Watermark;
