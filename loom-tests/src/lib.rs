//! Models of what crosses threads, one file per type, checked by loom over all interleavings: all
//! of `engine/sync`, and of `engine/src/apply` what lanes, readers and maintenance share. The very
//! source of production is compiled in, against loom's locks and atomics.
//!
//! Every model can fail: `ci/loom.sh --mutations` weakens or drops one step after the other in a
//! copy of the source, and each time a model must say so.
//!
//! Run with `RUSTFLAGS="--cfg rowship_loom" cargo test -p loom-tests --release`; without that cfg
//! this package is empty.
#![cfg(rowship_loom)]

#[cfg(test)]
mod apply;
#[cfg(test)]
mod countdown;
#[cfg(test)]
mod row;
#[cfg(test)]
mod stock;
#[cfg(test)]
mod watermark;
