//! `rowship serve`: settings, logging, and off it goes. What a node does is in [`crate::node`].

use std::io;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::CommandResult;
use super::config::ConfigArgs;
use super::exit::{Exit, Failure};
use crate::node::settings::{LogFormat, NodeSettings};

/// Flags of `rowship serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// End when the process that started this one ends (used by demo and tests)
    #[arg(long, hide = true)]
    stop_with_parent: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// Bad settings, or why the node ended.
pub fn run(args: &ServeArgs) -> CommandResult {
    let settings = args.config.load()?.draft.settings;
    if settings.node.data_dir.as_os_str().is_empty() {
        let message = "no data directory: give --data-dir DIR, or data_dir in section [node]";
        return Err(Failure::new(Exit::Usage, message));
    }
    if args.stop_with_parent {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal)
            .map_err(|error| Failure::new(Exit::Internal, format!("prctl: {error}")))?;
    }
    set_up_logging(&settings.node)?;
    only_huge_pages_that_are_asked_for();
    crate::node::run(settings)
        .map(|()| Exit::Ok)
        .map_err(|error| Failure { code: error.exit, message: error.message })
}

/// Where all memory is put into huge pages (`always`), the kernel's scanner fills up what the
/// allocator had given back in part: steps of 10 to 15 MiB, minutes after the start, and no speed
/// (ARCHITECTURE.md, "Huge pages for the disk only").
fn only_huge_pages_that_are_asked_for() {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    // Where it cannot be read, it may be so.
    let setting = std::fs::read_to_string(SETTING);
    if setting.is_ok_and(|setting| !setting.contains("[always]")) {
        return;
    }
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!(%error, "huge pages stay on: memory may grow by what they round up");
    }
}

fn set_up_logging(node: &NodeSettings) -> Result<(), Failure> {
    let bad = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, format!("log: {error}"));
    let filter = EnvFilter::try_new(&node.log_level).map_err(|error| bad(&error))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    let result = match node.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| bad(&error))
}
