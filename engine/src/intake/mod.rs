//! The client protocol, pure: bytes in, decisions out. No sockets, no clock, no tables.
//!
//! The way of a command: [`scan`] finds where it ends, within limits; [`mod@decode`] takes it
//! apart; [`session`] keeps the connection's state and answers an [`Action`], by way of the table
//! in [`command`]. Commands on rows then [`mod@execute`] over the [`Rows`] that the node
//! offers, and a [`Reply`] goes back as bytes.
//!
//! Invariant: memory per connection is bounded by [`QueryLimits`], [`SessionLimits`] and
//! [`RowLimits`], whatever a client sends.

pub mod command;
pub mod decode;
#[cfg(test)]
mod differential;
pub mod execute;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod glob;
mod hashes;
pub mod key;
pub mod parse;
mod parse_data;
pub mod reply;
pub mod scan;
pub mod session;
mod strings;
pub mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use decode::decode;
pub use execute::{DataCommand, Rows, View, execute};
pub use glob::glob_matches;
pub use key::{ClientKey, KeyError, RowLimits, split_key};
pub use reply::{Reply, RespVersion};
pub use scan::{Form, ProtocolError, QueryLimits, Scan, Scanner};
pub use session::{Action, NodeRole, Queued, RowType, ScanOptions, Session, SessionLimits};
