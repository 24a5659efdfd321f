//! Scenarios, limits and peers of rowship, as figures: one JSON line each, or a readable table.
//!
//! `cargo run --release -p bench -- SCENARIO [--json]`. Each scenario also runs tiny as a test,
//! and gives a hash of what it did, so that it cannot rot: the same work gives the same hash.

pub mod figure;
pub mod frames;
