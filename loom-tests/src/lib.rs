//! Models of `engine/sync`, one file per type, checked by loom over all interleavings.
//!
//! Run with `RUSTFLAGS="--cfg rowship_loom" cargo test -p loom-tests --release`; without that cfg
//! this package is empty.
#![cfg(rowship_loom)]

#[cfg(test)]
mod countdown;
#[cfg(test)]
mod row;
#[cfg(test)]
mod watermark;
