//! `rowship config --print`.

use clap::Args;

use super::CommandResult;
use super::config::ConfigArgs;
use super::exit::Exit;

/// Flags of `rowship config`.
#[derive(Debug, Args)]
pub struct ConfigCommandArgs {
    /// Print the settings in force as a configuration file
    #[arg(long, required = true)]
    print: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Prints the settings in force.
///
/// # Errors
/// What is wrong with the settings.
pub fn run(args: &ConfigCommandArgs) -> CommandResult {
    super::output::print(&args.config.load()?.print())?;
    Ok(Exit::Ok)
}
