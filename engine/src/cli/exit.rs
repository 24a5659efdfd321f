//! Exit codes, the same for every command; scripts and service managers rely on them.

use std::fmt;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to do.
    Ok = 0,
    /// It ran, and the answer is no: rows differ, damage was found, a line or a reply is an error.
    Failed = 1,
    /// Usage or configuration: nothing was done.
    Usage = 2,
    /// The kernel or a container profile forbids io_uring.
    NoIoUring = 3,
    /// The data directory is in use, missing, read-only, from a newer version, or of another role.
    DataDirectory = 4,
    /// The log is damaged: the message names segment and offset.
    LogDamaged = 5,
    /// A write or sync failed: the node stopped itself.
    DiskFailed = 6,
    /// The disk is full: start again when there is space.
    DiskFull = 7,
    /// The primary's log and this replica's part below what is applied here: seed it anew. (Other
    /// refusals are retried, and shown in status: they may end without a restart.)
    Refused = 8,
    /// A host cannot be reached.
    Unreachable = 9,
    /// A fault of rowship itself.
    Internal = 10,
}

/// The end of `--help`.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
   0  done
   1  the answer is no: rows differ, damage was found, a line or a reply is an error
   2  usage or configuration; nothing was done
   3  io_uring is not available here
   4  data directory in use, missing, read-only, of a newer version or of another role
   5  the log is damaged; the message names segment and offset
   6  a write or sync failed: the node stopped itself
   7  the disk is full: start again when there is space
   8  this replica's applied rows are not in the primary's log: seed it anew
   9  a host cannot be reached
  10  a fault of rowship itself";

/// Why a command did not do what it was asked: printed to standard error, then the exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code, as in [`Exit`].
    pub code: u8,
    /// What happened, where, and what to do; one or more lines.
    pub message: String,
}

impl Failure {
    /// A failure with this code and message.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { code: exit as u8, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_code() {
        for code in Exit::Ok as u8..=Exit::Internal as u8 {
            assert!(EXIT_CODES_HELP.contains(&format!("\n  {code:>2}  ")), "code {code}");
        }
    }
}
