//! `rowship call HOST:PORT COMMAND...`: a tiny client for machines without redis-cli.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;

use super::CommandResult;
use super::client::{Client, REPLY_TIMEOUT};
use super::exit::Exit;
use super::output;
use super::reply::Reply;

/// Flags of `rowship call`.
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub struct CallArgs {
    /// Client address of a node, host:port
    #[arg(value_name = "HOST:PORT")]
    address: String,
    /// The command and its arguments, such as HGETALL planes:N14228
    #[arg(required = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Speak RESP3 (HELLO 3): maps, doubles and booleans stay what they are
    #[arg(long)]
    resp3: bool,
    /// How long to wait for the reply, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = REPLY_TIMEOUT.as_secs())]
    timeout: u64,
}

/// Sends the command and prints the reply: as redis-cli does on a terminal, raw otherwise. Ends
/// with [`Exit::Failed`] when the reply is an error.
///
/// # Errors
/// When there is no reply.
pub fn run(args: &CallArgs) -> CommandResult {
    let mut client = Client::connect(&args.address)?;
    client.set_reply_timeout(Duration::from_secs(args.timeout))?;
    if args.resp3 {
        client.ask(&["HELLO", "3"])?;
    }
    let reply = client.call(&args.command)?;
    if output::is_terminal() {
        let mut text = String::new();
        show(&reply, 0, &mut text);
        output::print(&text)?;
    } else {
        let mut bytes = Vec::new();
        raw(&reply, &mut bytes);
        output::write(&bytes)?;
    }
    Ok(if reply.error().is_some() { Exit::Failed } else { Exit::Ok })
}

/// As redis-cli prints it; a nested line starts `indent` further right.
fn show(reply: &Reply, indent: usize, text: &mut String) {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Writing to a string cannot fail.
    let _ = match reply {
        // A node's words may not move the cursor of whoever looks at them.
        Reply::Status(words) => writeln!(text, "{}", words.escape_ascii()),
        Reply::Error(words) => writeln!(text, "(error) {}", words.escape_ascii()),
        Reply::Integer(number) => writeln!(text, "(integer) {number}"),
        Reply::Number(number) => writeln!(text, "(double) {}", lossy(number)),
        Reply::Boolean(value) => writeln!(text, "({value})"),
        Reply::Bulk(bytes) => writeln!(text, "\"{}\"", bytes.escape_ascii()),
        Reply::Null => writeln!(text, "(nil)"),
        Reply::Array(items) if items.is_empty() => writeln!(text, "(empty array)"),
        Reply::Map(pairs) if pairs.is_empty() => writeln!(text, "(empty map)"),
        Reply::Array(items) => {
            let width = items.len().to_string().len();
            for (at, item) in items.iter().enumerate() {
                let lead = if at == 0 { 0 } else { indent };
                let _ = write!(text, "{:lead$}{:>width$}) ", "", at + 1);
                show(item, indent + width + 2, text);
            }
            Ok(())
        }
        Reply::Map(pairs) => {
            let width = pairs.len().to_string().len();
            for (at, (name, value)) in pairs.iter().enumerate() {
                let lead = if at == 0 { 0 } else { indent };
                let mut shown = String::new();
                show(name, 0, &mut shown);
                let _ = write!(text, "{:lead$}{:>width$}# {} => ", "", at + 1, shown.trim_end());
                show(value, indent + width + 2, text);
            }
            Ok(())
        }
    };
}

/// One line per value, nothing added: for scripts.
fn raw(reply: &Reply, bytes: &mut Vec<u8>) {
    match reply {
        Reply::Status(text) | Reply::Error(text) | Reply::Number(text) | Reply::Bulk(text) => {
            bytes.extend_from_slice(text);
        }
        Reply::Integer(number) => bytes.extend_from_slice(number.to_string().as_bytes()),
        Reply::Boolean(value) => bytes.extend_from_slice(value.to_string().as_bytes()),
        Reply::Null => {}
        Reply::Array(items) => return items.iter().for_each(|item| raw(item, bytes)),
        Reply::Map(pairs) => {
            return pairs.iter().for_each(|(name, value)| {
                raw(name, bytes);
                raw(value, bytes);
            });
        }
    }
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn bulk(text: &'static str) -> Reply {
        Reply::Bulk(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn nested_replies_are_printed_like_redis_cli() {
        let inner = Reply::Array(vec![bulk("a"), Reply::Null]);
        let reply = Reply::Array(vec![Reply::Integer(3), inner, bulk("x\n")]);
        let mut text = String::new();
        show(&reply, 0, &mut text);
        assert_eq!(text, "1) (integer) 3\n2) 1) \"a\"\n   2) (nil)\n3) \"x\\n\"\n");
        let mut text = String::new();
        show(&Reply::Map(vec![(bulk("year"), bulk("1999"))]), 0, &mut text);
        assert_eq!(text, "1# \"year\" => \"1999\"\n");
    }

    #[test]
    fn raw_form_adds_nothing() {
        let reply = Reply::Array(vec![bulk("a b"), Reply::Null, Reply::Integer(1)]);
        let mut bytes = Vec::new();
        raw(&reply, &mut bytes);
        assert_eq!(bytes, b"a b\n\n1\n");
    }
}
