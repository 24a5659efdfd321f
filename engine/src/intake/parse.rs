//! From arguments to commands: one small function per command or family, named by the rows of
//! [`super::table`]; those of data commands are in `parse_data`. Arity is checked before
//! these are called.

use std::borrow::Cow;
use std::vec::IntoIter;

use bytes::Bytes;
use rowship_proto::{Lsn, Position};

use super::command::{Client, Command, Hello};
use super::glob::PATTERN_BYTES_MAX;
use super::reply::Reply;
use super::scan::parse_integer;
use super::session::{Action, RowType, ScanOptions};

/// Most rows that one SCAN or ROWSHIP.DUMP step looks at, whatever COUNT says: COUNT is a hint,
/// and a step must not hold the reader thread for long.
pub const SCAN_COUNT_MAX: u64 = 10_000;
/// Rows of one SCAN step without COUNT, as in Redis.
const SCAN_COUNT_DEFAULT: u64 = 10;
/// Longest name of a client in bytes; Redis has no limit, but it stays for the connection's life.
const CLIENT_NAME_BYTES_MAX: usize = 256;

pub(super) const NOT_AN_INTEGER: Reply =
    Reply::Error(Cow::Borrowed("ERR value is not an integer or out of range"));
pub(super) const SYNTAX: Reply = Reply::Error(Cow::Borrowed("ERR syntax error"));

/// What a parse function answers: a command, or what the client is told instead.
pub(super) type Parsed = Result<Command, Reply>;

/// The arguments behind a command's name (or behind `container|subcommand`).
pub(super) struct Arguments {
    /// Its name as errors spell it.
    pub(super) name: Cow<'static, str>,
    words: IntoIter<Bytes>,
}

impl Arguments {
    pub(super) fn new(name: Cow<'static, str>, words: IntoIter<Bytes>) -> Arguments {
        Arguments { name, words }
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.words.next()
    }

    /// The next argument, which the command's arity promises.
    pub(super) fn word(&mut self) -> Result<Bytes, Reply> {
        let name = &self.name;
        self.words.next().ok_or_else(|| wrong_number(name))
    }

    pub(super) fn rest(self) -> Vec<Bytes> {
        self.words.collect()
    }

    pub(super) fn integer(&mut self) -> Result<i64, Reply> {
        parse_integer(&self.word()?).ok_or(NOT_AN_INTEGER)
    }

    pub(super) fn pairs(mut self) -> Result<Vec<(Bytes, Bytes)>, Reply> {
        if self.len() == 0 || !self.len().is_multiple_of(2) {
            return Err(wrong_number(&self.name));
        }
        let mut pairs = Vec::with_capacity(self.len() / 2);
        while let (Some(name), Some(value)) = (self.words.next(), self.words.next()) {
            pairs.push((name, value));
        }
        Ok(pairs)
    }

    pub(super) fn end(self) -> Result<(), Reply> {
        if self.len() == 0 { Ok(()) } else { Err(wrong_number(&self.name)) }
    }
}

pub(super) fn wrong_number(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

/// At most 128 bytes of what a client sent, for an error.
pub(super) fn excerpt(word: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&word[..word.len().min(128)])
}

pub(super) fn is(word: &[u8], option: &str) -> bool {
    word.eq_ignore_ascii_case(option.as_bytes())
}

fn act(action: Action) -> Parsed {
    Ok(Command::Act(action))
}

// Connection.

pub(super) fn ping(mut arguments: Arguments) -> Parsed {
    let reply = match arguments.next() {
        Some(text) => Reply::Bulk(text),
        None => Reply::Simple("PONG".into()),
    };
    arguments.end()?;
    Ok(Command::Constant(reply))
}

pub(super) fn echo(mut arguments: Arguments) -> Parsed {
    Ok(Command::Constant(Reply::Bulk(arguments.word()?)))
}

pub(super) fn select(mut arguments: Arguments) -> Parsed {
    match arguments.integer()? {
        0 => Ok(Command::Constant(Reply::OK)),
        _ => Err(Reply::error("ERR DB index is out of range")),
    }
}

pub(super) fn quit(_: Arguments) -> Parsed {
    Ok(Command::Quit)
}

pub(super) fn reset(_: Arguments) -> Parsed {
    Ok(Command::Reset)
}

pub(super) fn auth(_: Arguments) -> Parsed {
    Err(NO_AUTHENTICATION)
}

pub(super) fn shutdown(_: Arguments) -> Parsed {
    Err(Reply::error("ERR SHUTDOWN is not supported: stop the rowship process with SIGTERM"))
}

const NO_AUTHENTICATION: Reply = Reply::Error(Cow::Borrowed(
    "ERR AUTH is not supported: rowship has no authentication yet, connect without it",
));

pub(super) fn hello(mut arguments: Arguments) -> Parsed {
    let mut hello = Hello::default();
    if let Some(version) = arguments.next() {
        let version = parse_integer(&version).ok_or_else(|| {
            Reply::error("ERR Protocol version is not an integer or out of range")
        })?;
        hello.version = Some(match version {
            2 => super::reply::RespVersion::Resp2,
            3 => super::reply::RespVersion::Resp3,
            _ => return Err(Reply::error("NOPROTO unsupported protocol version")),
        });
    }
    while let Some(option) = arguments.next() {
        if is(&option, "auth") && arguments.len() >= 2 {
            return Err(NO_AUTHENTICATION);
        } else if is(&option, "setname") && arguments.len() >= 1 {
            hello.name = Some(client_name(&arguments.word()?)?);
        } else {
            let option = excerpt(&option);
            return Err(Reply::error(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    Ok(Command::Hello(hello))
}

fn client_name(name: &[u8]) -> Result<String, Reply> {
    if name.len() > CLIENT_NAME_BYTES_MAX {
        let text = format!("ERR Client names cannot be longer than {CLIENT_NAME_BYTES_MAX} bytes");
        return Err(Reply::error(text));
    }
    match std::str::from_utf8(name) {
        Ok(text) if name.iter().all(u8::is_ascii_graphic) => Ok(text.to_owned()),
        _ => Err(Reply::error(
            "ERR Client names cannot contain spaces, newlines or special characters.",
        )),
    }
}

pub(super) fn client(mut arguments: Arguments) -> Parsed {
    let subcommand = arguments.word()?;
    let mut under = |name: &'static str| {
        arguments.name = Cow::Borrowed(name);
        Ok::<(), Reply>(())
    };
    if is(&subcommand, "id") {
        under("client|id")?;
        arguments.end()?;
        Ok(Command::Client(Client::Id))
    } else if is(&subcommand, "getname") {
        under("client|getname")?;
        arguments.end()?;
        Ok(Command::Client(Client::GetName))
    } else if is(&subcommand, "setname") {
        under("client|setname")?;
        let name = arguments.word()?;
        arguments.end()?;
        Ok(Command::Client(Client::SetName(client_name(&name)?)))
    } else if is(&subcommand, "setinfo") {
        under("client|setinfo")?;
        client_set_info(arguments)
    } else {
        Err(unknown_subcommand(&subcommand, "CLIENT"))
    }
}

/// What a client library says of itself is checked and then forgotten.
fn client_set_info(mut arguments: Arguments) -> Parsed {
    let (attribute, value) = (arguments.word()?, arguments.word()?);
    arguments.end()?;
    let known = ["lib-name", "lib-ver"].into_iter().find(|known| is(&attribute, known));
    let Some(known) = known else {
        let attribute = excerpt(&attribute);
        return Err(Reply::error(format!("ERR Unrecognized option '{attribute}'")));
    };
    if !value.iter().all(u8::is_ascii_graphic) {
        let text = format!("ERR {known} cannot contain spaces, newlines or special characters.");
        return Err(Reply::error(text));
    }
    Ok(Command::Constant(Reply::OK))
}

pub(super) fn unknown_subcommand(subcommand: &[u8], container: &str) -> Reply {
    let subcommand = excerpt(subcommand);
    Reply::error(format!("ERR unknown subcommand '{subcommand}'. Try {container} HELP."))
}

// Transactions.

pub(super) fn multi(_: Arguments) -> Parsed {
    Ok(Command::Multi)
}

pub(super) fn exec(_: Arguments) -> Parsed {
    Ok(Command::Exec)
}

pub(super) fn discard(_: Arguments) -> Parsed {
    Ok(Command::Discard)
}

pub(super) fn watch(arguments: Arguments) -> Parsed {
    Ok(Command::Watch(arguments.rest()))
}

pub(super) fn unwatch(_: Arguments) -> Parsed {
    act(Action::Unwatch(Reply::OK))
}

// Scans.

pub(super) fn scan(mut arguments: Arguments) -> Parsed {
    let cursor = cursor(&arguments.word()?)?;
    let mut options =
        ScanOptions { cursor, count: SCAN_COUNT_DEFAULT, pattern: None, row_type: None };
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or(SYNTAX)?;
        if is(&option, "count") {
            options.count = scan_count(&value)?;
        } else if is(&option, "match") {
            if value.len() > PATTERN_BYTES_MAX {
                let text = format!("ERR pattern is longer than {PATTERN_BYTES_MAX} bytes");
                return Err(Reply::error(text));
            }
            options.pattern = Some(value);
        } else if is(&option, "type") {
            options.row_type = Some(match () {
                () if is(&value, "string") => RowType::String,
                () if is(&value, "hash") => RowType::Hash,
                () => RowType::Other,
            });
        } else {
            return Err(SYNTAX);
        }
    }
    act(Action::Scan(options))
}

fn cursor(word: &[u8]) -> Result<u64, Reply> {
    let digits = std::str::from_utf8(word).ok().filter(|_| word.iter().all(u8::is_ascii_digit));
    let cursor = digits.and_then(|digits| digits.parse().ok());
    cursor.ok_or_else(|| Reply::error("ERR invalid cursor"))
}

fn scan_count(word: &[u8]) -> Result<u64, Reply> {
    let count = parse_integer(word).ok_or(NOT_AN_INTEGER)?;
    let count = u64::try_from(count).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
    Ok(count.min(SCAN_COUNT_MAX))
}

// The server and its replication.

pub(super) fn dbsize(_: Arguments) -> Parsed {
    act(Action::Dbsize)
}

pub(super) fn role(_: Arguments) -> Parsed {
    act(Action::Role)
}

pub(super) fn info(arguments: Arguments) -> Parsed {
    let section = |word: &Bytes| excerpt(word).to_ascii_lowercase();
    act(Action::Info(arguments.rest().iter().map(section).collect()))
}

pub(super) fn config(mut arguments: Arguments) -> Parsed {
    let subcommand = arguments.word()?;
    if is(&subcommand, "get") {
        if arguments.len() == 0 {
            return Err(wrong_number("config|get"));
        }
        return act(Action::ConfigGet(arguments.rest()));
    }
    if is(&subcommand, "set") {
        return Err(Reply::error(
            "ERR CONFIG SET is not supported: settings are given when rowship starts \
             (see rowship config --print)",
        ));
    }
    Err(unknown_subcommand(&subcommand, "CONFIG"))
}

pub(super) fn wait(mut arguments: Arguments) -> Parsed {
    let replicas = replica_count(arguments.integer()?)?;
    act(Action::Wait { replicas, timeout_ms: timeout_ms(&arguments.word()?)? })
}

pub(super) fn wait_aof(mut arguments: Arguments) -> Parsed {
    let local = match arguments.integer()? {
        0 => false,
        1 => true,
        _ => return Err(Reply::error("ERR value is out of range, value must between 0 and 1")),
    };
    let replicas = replica_count(arguments.integer()?)?;
    act(Action::WaitAof { local, replicas, timeout_ms: timeout_ms(&arguments.word()?)? })
}

fn replica_count(count: i64) -> Result<u64, Reply> {
    let negative = |_| Reply::error("ERR value is out of range, must be positive");
    u64::try_from(count).map_err(negative)
}

fn timeout_ms(word: &[u8]) -> Result<u64, Reply> {
    let timeout = parse_integer(word)
        .ok_or_else(|| Reply::error("ERR timeout is not an integer or out of range"))?;
    u64::try_from(timeout).map_err(|_| Reply::error("ERR timeout is negative"))
}

pub(super) fn ack(arguments: Arguments) -> Parsed {
    act(Action::Ack(arguments.rest()))
}

pub(super) fn position(_: Arguments) -> Parsed {
    act(Action::Position)
}

pub(super) fn wait_position(mut arguments: Arguments) -> Parsed {
    let token = arguments.word()?;
    // The text of the error says what a token looks like, whatever the bytes were.
    let token: Position = String::from_utf8_lossy(&token)
        .parse()
        .map_err(|error| Reply::error(format!("ERR {error}")))?;
    act(Action::WaitPosition { token, timeout_ms: timeout_ms(&arguments.word()?)? })
}

pub(super) fn status(_: Arguments) -> Parsed {
    act(Action::Status)
}

pub(super) fn dump(mut arguments: Arguments) -> Parsed {
    let cursor = cursor(&arguments.word()?)?;
    act(Action::Dump { cursor, count: scan_count(&arguments.word()?)? })
}

pub(super) fn retire(mut arguments: Arguments) -> Parsed {
    let lsn = cursor(&arguments.word()?)
        .map_err(|_| Reply::error("ERR LSN is not an unsigned 64-bit integer"))?;
    act(Action::Retire(Lsn(lsn)))
}
