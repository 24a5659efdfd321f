//! The command line: one file per command. Commands other than `serve` are clients of a node, or
//! read a data directory; they may use sockets and files directly.

pub mod call;
pub mod client;
pub mod config;
pub mod config_command;
pub mod demo;
pub mod diff;
pub mod exit;
#[cfg(test)]
mod fake_server;
pub mod interrupt;
pub mod load;
pub mod log_command;
pub mod output;
pub mod promote;
pub mod reply;
pub mod serve;
pub mod status;
pub mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{EXIT_CODES_HELP, Exit, Failure};

/// A replicated row store built around its log.
#[derive(Debug, Parser)]
#[command(name = "rowship", version, after_help = EXIT_CODES_HELP)]
#[command(max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: a primary and two replicas, real rows, a write load, identical tables
    Demo(demo::DemoArgs),
    /// Run a node: a primary, or with --replica-of a replica
    Serve(Box<serve::ServeArgs>),
    /// Show the effective settings and where each comes from
    Config(Box<config_command::ConfigCommandArgs>),
    /// Load the lines of a CSV file as rows
    Load(load::LoadArgs),
    /// Show how a node is: positions, replicas and their lag, ack policy, table
    Status(status::StatusArgs),
    /// Compare all rows of two nodes at one position of the log
    Diff(diff::DiffArgs),
    /// Look into the log of a data directory, or shorten it
    #[command(subcommand)]
    Log(log_command::LogCommand),
    /// Make the directory of a stopped replica a primary's
    Promote(promote::PromoteArgs),
    /// Send one command to a node and print its reply
    Call(call::CallArgs),
}

/// Parses the command line, runs the command, and says how it ended.
#[must_use]
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Config(args) => config_command::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Log(command) => log_command::run(&command),
        Command::Promote(args) => promote::run(&args),
        Command::Call(args) => call::run(&args),
    };
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            eprintln!("rowship: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// What commands return.
pub type CommandResult = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
