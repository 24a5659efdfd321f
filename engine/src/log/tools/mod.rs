//! Library behind `rowship log verify`, `rowship log dump` and `rowship promote`.
//!
//! Verify and dump only read, need no lock, and work on the directory of a live node. They take
//! any [`crate::edge::Disk`]; production opens one with `FileDisk::open`.

mod dump;
mod promote;
mod verify;

pub use self::dump::{DumpRecord, DumpRow, DumpTransaction, dump};
pub use self::promote::{Promoted, promote};
pub use self::verify::{Problem, TailState, VerifyReport, verify};
