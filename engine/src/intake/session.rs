//! One client connection as a state machine: arguments in, [`Action`]s out.
//!
//! Grammar: [`Session::handle`] takes the arguments of one command and answers one action, whose
//! reply the caller encodes in the version that [`Session::version`] has right after that call.
//! Replies leave in the order of the commands. The session knows its queue (MULTI), its name and
//! its version; rows, watched keys and the connection's ack policy are the caller's.

use bytes::{Bytes, BytesMut};
use rowship_proto::{Lsn, Position};

use super::command::{self, Client, Command, CommandInfo, Hello, InMulti};
use super::execute::DataCommand;
use super::key::{RowLimits, check_key};
use super::reply::{Reply, RespVersion};

/// What the connection's owner has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do (an empty line or array), and no reply.
    Nothing,
    /// Answer this.
    Reply(Reply),
    /// Answer this, then close the connection.
    Close(Reply),
    /// RESET: forget watched keys and the connection's ack policy, then answer this.
    Reset(Reply),
    /// Forget watched keys, then answer this (UNWATCH, DISCARD, a failed EXEC).
    Unwatch(Reply),
    /// WATCH: remember these keys (copies that keep no buffer alive), then answer OK.
    Watch(Vec<Bytes>),
    /// A write between MULTI and EXEC on a replica: answer `-READONLY`. EXEC will refuse.
    ReadOnly,
    /// Run one command as a transaction of its own.
    Run(DataCommand),
    /// EXEC: if a watched key has changed answer [`Reply::NullArray`], otherwise run all in one
    /// transaction and answer the array of their replies. Either way forget watched keys.
    Transaction(Vec<Queued>),
    /// SCAN.
    Scan(ScanOptions),
    /// DBSIZE.
    Dbsize,
    /// WAIT.
    Wait {
        /// Replicas that are to have received this connection's writes.
        replicas: u64,
        /// 0 waits without limit.
        timeout_ms: u64,
    },
    /// WAITAOF.
    WaitAof {
        /// Whether this node's disk counts.
        local: bool,
        /// Replicas that are to have made this connection's writes durable.
        replicas: u64,
        /// 0 waits without limit.
        timeout_ms: u64,
    },
    /// ROLE.
    Role,
    /// INFO: sections in lower case; none means the default ones.
    Info(Vec<String>),
    /// CONFIG GET: glob patterns of settings' names.
    ConfigGet(Vec<Bytes>),
    /// ROWSHIP.ACK: the words of a policy, none to ask for the one in force.
    Ack(Vec<Bytes>),
    /// ROWSHIP.POSITION.
    Position,
    /// ROWSHIP.WAITPOS.
    WaitPosition {
        /// What to wait for.
        token: Position,
        /// 0 waits without limit.
        timeout_ms: u64,
    },
    /// ROWSHIP.STATUS.
    Status,
    /// ROWSHIP.DUMP: rows with their values.
    Dump {
        /// 0 starts.
        cursor: u64,
        /// Rows to look at.
        count: u64,
    },
    /// ROWSHIP.RETIRE: segments wholly below this may go.
    Retire(Lsn),
}

/// A command that MULTI has queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queued {
    /// On rows.
    Data(DataCommand),
    /// SCAN, DBSIZE, WAIT, WAITAOF, ROLE, INFO or CONFIG GET: the caller answers it at its place,
    /// without waiting for anything.
    Act(Action),
    /// Words for [`Session::answer`]: what they do belongs to EXEC, and a reply may be much larger
    /// than its words.
    Session(Vec<Bytes>),
}

impl Queued {
    /// The command, if it is on rows.
    #[must_use]
    pub fn data(&self) -> Option<&DataCommand> {
        match self {
            Queued::Data(command) => Some(command),
            Queued::Act(_) | Queued::Session(_) => None,
        }
    }
}

/// Arguments of SCAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// 0 starts.
    pub cursor: u64,
    /// Rows to look at.
    pub count: u64,
    /// MATCH, for [`super::glob::glob_matches`].
    pub pattern: Option<Bytes>,
    /// TYPE.
    pub row_type: Option<RowType>,
}

/// The type that SCAN's TYPE option asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowType {
    /// Rows with one unnamed value.
    String,
    /// Rows with columns.
    Hash,
    /// A type that no row has: nothing matches.
    Other,
}

/// Limits on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Limits on keys.
    pub rows: RowLimits,
    /// Most commands that MULTI queues.
    pub queued_commands_max: usize,
    /// Most bytes that MULTI queues, [`QUEUED_ARG_BYTES`] per argument included.
    pub queued_bytes_max: usize,
    /// Most commands that MULTI queues whose work has nothing to do with their size: SCAN, INFO,
    /// COMMAND and their like. All others wait while EXEC runs.
    pub queued_acts_max: usize,
}

impl Default for SessionLimits {
    /// A transaction must fit one frame body of at most 16 MiB, so more queued bytes than that
    /// could never be written; the count bounds the replies of commands that write nothing.
    fn default() -> Self {
        SessionLimits {
            rows: RowLimits::default(),
            queued_commands_max: 64 << 10,
            queued_bytes_max: 32 << 20,
            queued_acts_max: 64,
        }
    }
}

/// What a queued argument counts beyond its own bytes: its handle and its share of the command.
pub const QUEUED_ARG_BYTES: usize = 64;

/// What this node is, as HELLO tells it. Fixed for the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// Takes writes.
    Primary,
    /// Follows a primary.
    Replica,
}

/// One client connection.
#[derive(Clone, Debug)]
pub struct Session {
    id: u64,
    role: NodeRole,
    limits: SessionLimits,
    version: RespVersion,
    name: String,
    queue: Option<Queue>,
}

/// Commands between MULTI and EXEC.
#[derive(Clone, Debug, Default)]
struct Queue {
    commands: Vec<Queued>,
    bytes: usize,
    acts: usize,
    /// A command was refused: EXEC will refuse too, so nothing more needs to be kept.
    aborted: bool,
}

impl Session {
    /// A new connection. `id` is what CLIENT ID answers: unique in this process, from 1.
    #[must_use]
    pub fn new(id: u64, role: NodeRole, limits: SessionLimits) -> Session {
        let (version, name) = (RespVersion::default(), String::new());
        Session { id, role, limits, version, name, queue: None }
    }

    /// What CLIENT ID answers.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What CLIENT SETNAME set, or nothing.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version in which to encode the reply of the command just handled.
    #[must_use]
    pub fn version(&self) -> RespVersion {
        self.version
    }

    /// Whether the connection is between MULTI and EXEC.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.queue.is_some()
    }

    /// Takes one command, its name first.
    pub fn handle(&mut self, args: Vec<Bytes>) -> Action {
        let Some(name) = args.first() else { return Action::Nothing };
        if [&b"post"[..], b"host:"].iter().any(|http| name.eq_ignore_ascii_case(http)) {
            let text = "ERR this port speaks RESP, not HTTP; connection closed";
            return Action::Close(Reply::error(text));
        }
        let outcome = match &mut self.queue {
            None => command::parse(args).and_then(|command| {
                check_keys(&command, &self.limits.rows)?;
                Ok(self.run(command))
            }),
            Some(_) => self.handle_in_transaction(args),
        };
        outcome.unwrap_or_else(|error| {
            // Whatever is refused between MULTI and EXEC makes EXEC refuse, except what Redis
            // lets pass: EXEC and its like never get here.
            if let Some(queue) = &mut self.queue {
                queue.abort();
            }
            Action::Reply(error)
        })
    }

    fn handle_in_transaction(&mut self, args: Vec<Bytes>) -> Result<Action, Reply> {
        let info = command::find_checked(&args)?;
        match info.in_multi {
            InMulti::Run => Ok(self.run(command::parse(args)?)),
            InMulti::Refuse(text) => Err(Reply::error(text)),
            InMulti::Queue => self.enqueue(info, args),
        }
    }

    fn enqueue(&mut self, info: &CommandInfo, args: Vec<Bytes>) -> Result<Action, Reply> {
        let SessionLimits { queued_bytes_max, queued_commands_max, queued_acts_max, rows } =
            self.limits;
        let role = self.role;
        let queue = self.queue.as_mut().expect("only called between MULTI and EXEC");
        let bytes = args.iter().map(|arg| arg.len() + QUEUED_ARG_BYTES).sum::<usize>();
        if queue.bytes + bytes > queued_bytes_max {
            let text = "ERR transaction is larger than may be queued";
            return Err(Reply::error(format!("{text} ({queued_bytes_max} bytes)")));
        }
        if queue.commands.len() >= queued_commands_max {
            let text = "ERR transaction has more commands than may be queued";
            return Err(Reply::error(format!("{text} ({queued_commands_max})")));
        }
        // An aborted queue still checks what it is given, as Redis does, but keeps nothing.
        let args = if queue.aborted { args } else { copy_together(&args) };
        let queued = parse_queued(info, args, bytes, &rows)?;
        // As in Redis: known now, so said now.
        if role == NodeRole::Replica && queued.data().is_some_and(DataCommand::is_write) {
            queue.abort();
            return Ok(Action::ReadOnly);
        }
        let acts = queue.acts + usize::from(queued.data().is_none());
        if acts > queued_acts_max {
            let text = "ERR transaction has more commands like SCAN and INFO than may be queued";
            return Err(Reply::error(format!("{text} ({queued_acts_max})")));
        }
        if !queue.aborted {
            queue.commands.push(queued);
            queue.bytes += bytes;
            queue.acts = acts;
        }
        Ok(Action::Reply(Reply::QUEUED))
    }

    fn run(&mut self, command: Command) -> Action {
        match command {
            Command::Data(command) => Action::Run(command),
            Command::Constant(reply) => Action::Reply(reply),
            Command::Act(action) => action,
            Command::Quit => Action::Close(Reply::OK),
            Command::Hello(hello) => Action::Reply(self.hello(hello)),
            Command::Reset => {
                *self = Session::new(self.id, self.role, self.limits);
                Action::Reset(Reply::Simple("RESET".into()))
            }
            Command::Client(client) => Action::Reply(self.client(client)),
            Command::Multi => match self.queue {
                Some(_) => Action::Reply(Reply::error("ERR MULTI calls can not be nested")),
                None => {
                    self.queue = Some(Queue::default());
                    Action::Reply(Reply::OK)
                }
            },
            Command::Exec => match self.queue.take() {
                None => Action::Reply(Reply::error("ERR EXEC without MULTI")),
                Some(queue) if queue.aborted => Action::Unwatch(Reply::error(
                    "EXECABORT Transaction discarded because of previous errors.",
                )),
                Some(queue) => Action::Transaction(queue.commands),
            },
            Command::Discard => match self.queue.take() {
                None => Action::Reply(Reply::error("ERR DISCARD without MULTI")),
                Some(_) => Action::Unwatch(Reply::OK),
            },
            Command::Watch(_) if self.queue.is_some() => {
                Action::Reply(Reply::error("ERR WATCH inside MULTI is not allowed"))
            }
            Command::Watch(keys) => Action::Watch(copy_together(&keys)),
        }
    }

    /// Does what the words of a [`Queued::Session`] say.
    pub fn answer(&mut self, words: &[Bytes]) -> Reply {
        match command::parse(words.to_vec()) {
            Ok(Command::Constant(reply)) | Err(reply) => reply,
            Ok(Command::Hello(hello)) => self.hello(hello),
            Ok(Command::Client(client)) => self.client(client),
            Ok(_) => unreachable!("nothing else is queued as words"),
        }
    }

    fn hello(&mut self, hello: Hello) -> Reply {
        self.version = hello.version.unwrap_or(self.version);
        if let Some(name) = hello.name {
            self.name = name;
        }
        let version = match self.version {
            RespVersion::Resp2 => 2,
            RespVersion::Resp3 => 3,
        };
        let role = match self.role {
            NodeRole::Primary => "master",
            NodeRole::Replica => "replica",
        };
        let id = i64::try_from(self.id).unwrap_or(i64::MAX);
        let fields = [
            ("server", Reply::text("rowship")),
            ("version", Reply::text(env!("CARGO_PKG_VERSION"))),
            ("proto", Reply::Integer(version)),
            ("id", Reply::Integer(id)),
            ("mode", Reply::text("standalone")),
            ("role", Reply::text(role)),
            ("modules", Reply::Array(Vec::new())),
        ];
        Reply::Map(fields.into_iter().map(|(name, value)| (Reply::text(name), value)).collect())
    }

    fn client(&mut self, client: Client) -> Reply {
        match client {
            Client::Id => Reply::Integer(i64::try_from(self.id).unwrap_or(i64::MAX)),
            Client::GetName if self.name.is_empty() => Reply::Null,
            Client::GetName => Reply::text(self.name.as_str()),
            Client::SetName(name) => {
                self.name = name;
                Reply::OK
            }
        }
    }
}

impl Queue {
    fn abort(&mut self) {
        *self = Queue { aborted: true, ..Queue::default() };
    }
}

/// What waits for EXEC; an error makes EXEC refuse. As in Redis, only an unknown name or a wrong
/// count of arguments does: what is wrong within the arguments is that command's reply in EXEC.
fn parse_queued(
    info: &CommandInfo,
    args: Vec<Bytes>,
    bytes: usize,
    limits: &RowLimits,
) -> Result<Queued, Reply> {
    let words = if info.has_keys() { Vec::new() } else { args.clone() };
    let constant = |reply| Ok(Queued::Data(DataCommand::Constant(reply)));
    let parsed = command::parse(args).and_then(|command| {
        check_keys(&command, limits)?;
        Ok(command)
    });
    match parsed {
        Ok(Command::Data(command)) => Ok(Queued::Data(command)),
        // What was watched is forgotten by EXEC itself.
        Ok(Command::Act(Action::Unwatch(reply))) => constant(reply),
        Ok(Command::Act(action)) => Ok(Queued::Act(action)),
        // No larger than what the queue counts for it.
        Ok(Command::Constant(reply)) if reply.encoded_bytes_max() <= bytes => constant(reply),
        Ok(_) => Ok(Queued::Session(words)),
        Err(error) if info.is_refused_by_its_table(&error) => Err(error),
        Err(error) => constant(error),
    }
}

fn check_keys(command: &Command, limits: &RowLimits) -> Result<(), Reply> {
    let check = |key: &Bytes| check_key(key, limits).map_err(|error| error.reply());
    match command {
        Command::Data(command) => command.keys().try_for_each(|key| check(key).map(drop)),
        Command::Watch(keys) => keys.iter().try_for_each(|key| check(key).map(drop)),
        _ => Ok(()),
    }
}

/// Copies words that outlive their command into one allocation of their own: as slices they would
/// keep the whole read buffer alive that they came in.
fn copy_together(words: &[Bytes]) -> Vec<Bytes> {
    let mut copy = BytesMut::with_capacity(words.iter().map(Bytes::len).sum());
    for word in words {
        copy.extend_from_slice(word);
    }
    let mut copy = copy.freeze();
    words.iter().map(|word| copy.split_to(word.len())).collect()
}
