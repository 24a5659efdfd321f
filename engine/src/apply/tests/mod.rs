//! Tests of the room as a whole: random logs, random windows, random interleavings, against a
//! plain map.

pub mod log;
