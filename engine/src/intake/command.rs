//! The table of commands: look-up, and what COMMAND tells of it. Adding a command is one row in
//! [`super::table`] and one function in [`super::parse`].

use std::borrow::Cow;

use bytes::Bytes;

use super::execute::DataCommand;
use super::parse::{self, Arguments, Parsed, excerpt, wrong_number};
use super::reply::{Reply, RespVersion};
use super::session::Action;
use super::table::COMMANDS;

/// A parsed command, in the form in which the session deals with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reads or writes rows by key.
    Data(DataCommand),
    /// The answer is known.
    Constant(Reply),
    /// The session has no say in it.
    Act(Action),
    /// QUIT.
    Quit,
    /// HELLO.
    Hello(Hello),
    /// RESET.
    Reset,
    /// CLIENT.
    Client(Client),
    /// MULTI.
    Multi,
    /// EXEC.
    Exec,
    /// DISCARD.
    Discard,
    /// WATCH.
    Watch(Vec<Bytes>),
}

/// Arguments of HELLO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The version asked for.
    pub version: Option<RespVersion>,
    /// SETNAME.
    pub name: Option<String>,
}

/// Subcommands of CLIENT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// CLIENT ID.
    Id,
    /// CLIENT GETNAME.
    GetName,
    /// CLIENT SETNAME.
    SetName(String),
}

/// What happens to a command between MULTI and EXEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InMulti {
    /// It waits for EXEC.
    Queue,
    /// It runs at once.
    Run,
    /// It is refused with this text, and EXEC will refuse too.
    Refuse(&'static str),
}

/// What the table says of one command.
pub struct CommandInfo {
    /// Lower case.
    pub name: &'static str,
    /// Arguments with the name included; negative: at least so many.
    pub arity: i32,
    /// Redis's flags, separated by spaces.
    pub flags: &'static str,
    /// First key, last key, step between keys, as COMMAND tells them.
    pub keys: (i64, i64, i64),
    /// Redis's group of commands.
    pub group: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Between MULTI and EXEC.
    pub in_multi: InMulti,
    pub(super) parse: ParseFn,
}

impl CommandInfo {
    /// Whether it is about rows.
    pub(super) fn has_keys(&self) -> bool {
        self.keys.0 > 0
    }

    /// Whether an error of its parser comes before all else, as unknown names do: Redis looks
    /// subcommands and their counts of arguments up in its table.
    pub(super) fn is_refused_by_its_table(&self, error: &Reply) -> bool {
        let Reply::Error(text) = error else { return false };
        ["client", "command", "config"].contains(&self.name)
            && ["ERR unknown subcommand", "ERR wrong number"]
                .iter()
                .any(|start| text.starts_with(start))
    }
}

pub(super) type ParseFn = fn(Arguments) -> Parsed;

/// Parses one command, its name first.
///
/// # Errors
/// What the client is told: Redis's texts for unknown names, counts and syntax.
pub fn parse(args: Vec<Bytes>) -> Result<Command, Reply> {
    let info = find_checked(&args)?;
    let mut words = args.into_iter();
    words.next();
    (info.parse)(Arguments::new(Cow::Borrowed(info.name), words))
}

/// The table's row for `args`, whose count is checked against it.
pub(super) fn find_checked(args: &[Bytes]) -> Result<&'static CommandInfo, Reply> {
    let name = args.first().map(Bytes::as_ref).unwrap_or_default();
    let info = find(name).ok_or_else(|| unknown_command(args))?;
    let wanted = usize::try_from(info.arity.unsigned_abs()).unwrap_or(usize::MAX);
    let fits = if info.arity < 0 { args.len() >= wanted } else { args.len() == wanted };
    if fits { Ok(info) } else { Err(wrong_number(info.name)) }
}

/// The table's row for a name in any case.
#[must_use]
pub fn find(name: &[u8]) -> Option<&'static CommandInfo> {
    let mut lower = [0; NAME_BYTES_MAX];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let at = COMMANDS.binary_search_by(|info| info.name.as_bytes().cmp(lower)).ok()?;
    Some(&COMMANDS[at])
}

fn unknown_command(args: &[Bytes]) -> Reply {
    let mut given = String::new();
    for word in args.iter().skip(1) {
        if given.len() >= EXCERPT_BYTES {
            break;
        }
        let room = EXCERPT_BYTES - given.len();
        given += &format!("'{}' ", String::from_utf8_lossy(&word[..word.len().min(room)]));
    }
    let name = excerpt(args.first().map(Bytes::as_ref).unwrap_or_default());
    Reply::error(format!("ERR unknown command '{name}', with args beginning with: {given}"))
}

/// COMMAND and its subcommands, which tell what is in the table.
pub(super) fn command_family(mut arguments: Arguments) -> Parsed {
    let Some(subcommand) = arguments.next() else {
        return Ok(Command::Constant(Reply::Array(COMMANDS.iter().map(describe).collect())));
    };
    let is = |name: &[u8]| subcommand.eq_ignore_ascii_case(name);
    let names = || COMMANDS.iter().map(|info| Bytes::from_static(info.name.as_bytes()));
    let reply = if is(b"count") {
        arguments.name = Cow::Borrowed("command|count");
        arguments.end()?;
        super::execute::count(COMMANDS.len())
    } else if is(b"list") {
        arguments.name = Cow::Borrowed("command|list");
        arguments.end()?;
        Reply::Array(names().map(Reply::Bulk).collect())
    } else if is(b"info") || is(b"docs") {
        let asked = arguments.rest();
        let asked = if asked.is_empty() { names().collect() } else { asked };
        if asked.len() > ASKED_NAMES_MAX {
            let text = format!("ERR COMMAND takes at most {ASKED_NAMES_MAX} names");
            return Err(Reply::error(text));
        }
        if is(b"info") {
            let describe_one = |name: &Bytes| find(name).map_or(Reply::NullArray, describe);
            Reply::Array(asked.iter().map(describe_one).collect())
        } else {
            Reply::Map(asked.iter().filter_map(|name| find(name).map(document)).collect())
        }
    } else {
        return Err(parse::unknown_subcommand(&subcommand, "COMMAND"));
    };
    Ok(Command::Constant(reply))
}

/// One element of COMMAND's reply, in the shape of Redis 7.
fn describe(info: &CommandInfo) -> Reply {
    let (first, last, step) = info.keys;
    let flags = info.flags.split(' ').filter(|flag| !flag.is_empty());
    Reply::Array(vec![
        Reply::Bulk(Bytes::from_static(info.name.as_bytes())),
        Reply::Integer(info.arity.into()),
        Reply::Set(flags.map(|flag| Reply::Simple(flag.into())).collect()),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
        Reply::Set(Vec::new()),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
    ])
}

fn document(info: &CommandInfo) -> (Reply, Reply) {
    let bulk = |text: &'static str| Reply::Bulk(Bytes::from_static(text.as_bytes()));
    let fields = vec![
        (bulk("summary"), bulk(info.summary)),
        (bulk("since"), bulk(env!("CARGO_PKG_VERSION"))),
        (bulk("group"), bulk(info.group)),
    ];
    (bulk(info.name), Reply::Map(fields))
}

/// Longer than every name in the table.
const NAME_BYTES_MAX: usize = 32;
/// Bytes of a client's arguments that the error for an unknown command repeats, as in Redis.
const EXCERPT_BYTES: usize = 128;
/// Most names that one COMMAND INFO or DOCS answers: a short request must not make a long reply.
const ASKED_NAMES_MAX: usize = 256;
