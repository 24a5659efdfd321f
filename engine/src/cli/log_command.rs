//! `rowship log`: what the log of a data directory holds.

pub mod dump;
pub mod retire;
pub mod verify;

use std::path::Path;

use clap::Subcommand;

use super::CommandResult;
use super::exit::{Exit, Failure};
use crate::edge::disk::FileDisk;
use crate::log::{LogError, StateError};

/// Subcommands of `rowship log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print frames, transactions and rows (works on a running node's directory)
    Dump(dump::DumpArgs),
    /// Check every frame, chain and checksum (works on a running node's directory)
    Verify(verify::VerifyArgs),
    /// Let a node give back segments that it no longer needs
    Retire(retire::RetireArgs),
}

/// Runs a subcommand.
///
/// # Errors
/// Its own.
pub fn run(command: &LogCommand) -> CommandResult {
    match command {
        LogCommand::Dump(args) => dump::run(args),
        LogCommand::Verify(args) => verify::run(args),
        LogCommand::Retire(args) => retire::run(args),
    }
}

/// Opens a data directory for reading, without its lock.
fn open_for_reading(path: &Path) -> Result<FileDisk, Failure> {
    FileDisk::open(path).map_err(|error| {
        let message = format!("cannot read data directory {}: {error}", path.display());
        Failure::new(Exit::DataDirectory, message)
    })
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        let exit = match &error {
            LogError::Damage { .. } => Exit::LogDamaged,
            LogError::State(StateError::Broken { .. } | StateError::Malformed { .. }) => {
                Exit::LogDamaged
            }
            LogError::Io { .. } | LogError::State(StateError::Io { .. }) => Exit::DiskFailed,
            LogError::DiskFull { .. } => Exit::DiskFull,
            LogError::CutBelowApplied { .. } => Exit::Refused,
            LogError::Retired { .. } | LogError::OpeningTooLarge { .. } => Exit::Usage,
            LogError::NoSegments { .. }
            | LogError::Exists { .. }
            | LogError::NotReplica
            | LogError::Newer { .. }
            | LogError::NoState { .. }
            | LogError::State(StateError::Newer { .. }) => Exit::DataDirectory,
            LogError::NotHeld { .. } => Exit::Internal,
        };
        Failure::new(exit, error.to_string())
    }
}
