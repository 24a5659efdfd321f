//! The node: agents around one ring thread.
//!
//! ```text
//! clients -> client (one per connection) -> commands -> rows -> appender (open frame)
//!                ^ outbox: replies wait         |            |  sealed
//!                |                          pending       tip + writes
//!                |                              |            |        \
//!                +---- refresh: committed <-----+-- ack --- writer    ship (one per replica)
//!                                               |            |            |
//!                                            feed -> lanes -> visible     v
//! primary's replica: receive -> (tip + writes) -> writer -> acks; the same feed and lanes
//! ```
//!
//! - [`state`]: what agents share, and which one moves which position. [`signal`]: waiting.
//! - Primary: [`client`], [`commands`], [`transaction`], [`aside`], [`scans`], [`rows`], [`fetch`],
//!   [`pending`], [`existence`], [`appender`], [`greeting`], [`ship`], [`lent`], [`latency`].
//! - Replica: [`receive`] (the link), [`join`] (handshake, cut), [`stream`] (frames).
//! - Both: [`writer`], [`tip`], [`segments`], [`feed`], [`dictionary`], [`upkeep`] (periodic
//!   work), [`retention`], [`status`].
//! - [`open`] finds what a directory holds, [`reign`] begins a primary's epoch, [`start`] wires
//!   all of it to an edge and stops it, [`supervise`] watches the agents. `imaged` (feature `sim`)
//!   is the table of the simulation.
//!
//! Invariant: nothing here blocks the ring thread. What may wait for the disk goes to a worker:
//! `reader` (cold rows, scans, checking what comes out of maps), `preparation` (segments),
//! `records` (`node.state`), `maintenance` (flush and compaction), and the lanes.

pub mod appender;
pub mod aside;
pub mod client;
pub mod commands;
pub mod dictionary;
pub mod existence;
pub mod feed;
pub mod fetch;
pub mod greeting;
#[cfg(feature = "sim")]
pub mod imaged;
pub mod join;
pub mod latency;
pub mod lent;
pub mod listen;
mod load;
pub mod open;
pub mod outbox;
pub mod pending;
pub mod pieces;
pub mod receive;
pub mod reign;
pub mod retention;
pub mod returning;
pub mod rows;
pub mod scans;
pub mod segments;
pub mod settings;
pub mod ship;
pub mod signal;
pub mod start;
pub mod state;
pub mod status;
pub mod stream;
pub mod supervise;
pub mod tip;
pub mod transaction;
pub mod upkeep;
pub mod waits;
pub mod writer;

use std::fmt::Display;
use std::io;

use crate::log::{LogError, StateError};

pub use start::run;

/// Whether space is what is missing: it can come back.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a node ended: exit code (see `cli::exit::Exit`) and message.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// The exit code.
    pub exit: u8,
    /// What happened, where, and what to do.
    pub message: String,
}

impl NodeError {
    fn new(exit: u8, message: &dyn Display) -> NodeError {
        NodeError { exit, message: message.to_string() }
    }

    /// Configuration.
    pub(crate) fn usage(message: &dyn Display) -> NodeError {
        NodeError::new(2, message)
    }

    /// io_uring is not to be had.
    pub(crate) fn ring(message: &dyn Display) -> NodeError {
        NodeError::new(3, message)
    }

    /// The data directory cannot be used.
    pub(crate) fn directory(message: &dyn Display) -> NodeError {
        NodeError::new(4, message)
    }

    /// The data directory cannot be used; or the disk is full, when that is why.
    pub(crate) fn directory_or_full(message: &dyn Display, error: &io::Error) -> NodeError {
        if is_full(error) { NodeError::full(message) } else { NodeError::directory(message) }
    }

    /// The log is damaged.
    pub(crate) fn damage(message: &dyn Display) -> NodeError {
        NodeError::new(5, message)
    }

    /// The disk failed.
    pub(crate) fn disk(message: &dyn Display) -> NodeError {
        NodeError::new(6, message)
    }

    /// The disk is full.
    pub(crate) fn full(message: &dyn Display) -> NodeError {
        NodeError::new(7, message)
    }

    /// Our own fault.
    pub(crate) fn internal(message: &dyn Display) -> NodeError {
        NodeError::new(10, message)
    }

    /// `node.state` cannot be read or written.
    pub(crate) fn state(error: &StateError) -> NodeError {
        match error {
            StateError::Io { source, .. } => NodeError::directory_or_full(error, source),
            _ => NodeError::directory(error),
        }
    }

    /// By the kind of a log error.
    pub(crate) fn log(error: &LogError) -> NodeError {
        match error {
            LogError::Damage { .. } | LogError::NoSegments { .. } => NodeError::damage(error),
            LogError::Io { source, .. } | LogError::State(StateError::Io { source, .. })
                if is_full(source) =>
            {
                NodeError::full(error)
            }
            LogError::Io { .. } => NodeError::disk(error),
            LogError::DiskFull { .. } => NodeError::full(error),
            LogError::State(StateError::Newer { .. } | StateError::Broken { .. })
            | LogError::State(StateError::Malformed { .. })
            | LogError::NotReplica
            | LogError::Newer { .. }
            | LogError::NoState { .. } => NodeError::directory(error),
            LogError::State(StateError::Io { .. }) => NodeError::disk(error),
            LogError::CutBelowApplied { .. } => NodeError::new(8, error),
            _ => NodeError::internal(error),
        }
    }
}
