//! `rowship log retire`: asks a running node, which knows what is still needed.

use clap::Args;

use super::super::CommandResult;
use super::super::client::{Client, printable};
use super::super::exit::Exit;
use super::super::output;
use super::super::reply::Reply;

/// Flags of `rowship log retire`.
#[derive(Debug, Args)]
pub struct RetireArgs {
    /// Client address of the node
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
    at: String,
    /// Segments that lie wholly below this LSN may go
    #[arg(long, value_name = "LSN")]
    to: u64,
}

/// Sends the request and prints the answer.
///
/// # Errors
/// When the node cannot be asked, or refuses: a replica, or its own table, still needs the log.
pub fn run(args: &RetireArgs) -> CommandResult {
    let reply = Client::connect(&args.at)?.ask(&["ROWSHIP.RETIRE", &args.to.to_string()])?;
    let text = match &reply {
        Reply::Bulk(bytes) | Reply::Status(bytes) => printable(bytes),
        Reply::Integer(segments) => format!("{segments} segment(s) retired"),
        Reply::Array(parts) => match parts.as_slice() {
            [Reply::Integer(retired), Reply::Integer(oldest), kept] => {
                let kept = kept
                    .text()
                    .map_or_else(String::new, |why| format!("; more would have gone, but {why}"));
                format!("{retired} segment(s) retired; the log starts at LSN {oldest}{kept}")
            }
            _ => format!("{reply:?}"),
        },
        other => format!("{other:?}"),
    };
    output::print(&format!("{text}\n"))?;
    Ok(Exit::Ok)
}
