//! Bodies of the fuzz targets in `fuzz/` that need the engine; those of the formats and the
//! protocol are in [`rowship_proto::fuzzing`]. Each stands beside what it attacks, and says what
//! must hold. Behind the feature `fuzzing`, which adds nothing else; the tests below replay seeds
//! and regressions on stable Rust.

pub use crate::apply::fuzzing::windows;
pub use crate::cli::config::fuzzing::config;
pub use crate::cli::load::fuzzing::csv;
pub use crate::intake::fuzzing::commands;
pub use crate::log::fuzzing::{recovery, state_file};

#[cfg(test)]
mod tests;
