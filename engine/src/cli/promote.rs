//! `rowship promote DIR`: makes the directory of a stopped replica a primary's.

use std::path::PathBuf;

use clap::Args;

use super::CommandResult;
use super::exit::{Exit, Failure};
use super::output;
use crate::edge::disk::DataDirectory;

/// Flags of `rowship promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Data directory of a replica that is not running
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Stores the new role; the next start draws the new epoch.
///
/// # Errors
/// When the directory is in use, no replica's, or its log is damaged.
pub fn run(args: &PromoteArgs) -> CommandResult {
    let unusable =
        |error: &dyn std::fmt::Display| Failure::new(Exit::DataDirectory, error.to_string());
    let directory =
        DataDirectory::open_existing(&args.directory, 0).map_err(|error| unusable(&error))?;
    let promoted = crate::log::tools::promote(&directory.disk)?;
    let shown = args.directory.display();
    output::print(&format!(
        "{shown} is a primary's directory now; its log ends at LSN {}.\n\
         Start it without --replica-of, and the other replicas with --replica-of its address. \
         Never start the old primary again: a replica that has followed the new one refuses it \
         only as long as its epoch is the lower one, and each of its starts raises that. What it \
         wrote beyond that LSN is lost.\n",
        promoted.end()
    ))?;
    Ok(Exit::Ok)
}
