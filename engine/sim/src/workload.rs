//! What clients do: writers on whatever `primary` stands for, readers on any node.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rowship::cli::reply::Reply;
use rowship::edge::sim::random::Random;
use rowship::edge::sim::{Machine, Process};
use rowship_proto::Position;

use crate::client::{Connection, words};
use crate::cluster::{CLIENT_PORT, Cluster, PRIMARY_NAME};
use crate::history::{Action, History, Outcome};
use crate::ledger::Value;

/// How long a client waits for a reply.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a client that was thrown out waits before it comes again.
const BACKOFF: Duration = Duration::from_millis(30);
/// How long WAITPOS waits, in milliseconds.
const WAIT_MS: u64 = 700;
/// Largest value of a lone row; some are much smaller.
const VALUE_BYTES_MAX: u64 = 2500;
/// Largest value of a row in a transaction of three: a frame's body is 4 KiB.
const GROUP_VALUE_BYTES_MAX: u64 = 900;

/// What the clients of one run share.
pub struct Workload {
    cluster: Rc<Cluster>,
    /// What they were told.
    pub history: Rc<History>,
    /// Writes whose fate was left open, with their tokens: to be asked about later.
    open: RefCell<Vec<(usize, Position)>>,
    /// They finish what they are at, and end.
    pub over: Cell<bool>,
    process: Rc<Process>,
}

impl Workload {
    /// Clients of this cluster, none running yet. They have a host of their own.
    #[must_use]
    pub fn new(cluster: Rc<Cluster>) -> Rc<Workload> {
        let process = Machine::new(&cluster.world, CLIENT_HOST).start();
        let history = Rc::new(History::default());
        let open = RefCell::default();
        Rc::new(Workload { cluster, history, open, over: Cell::new(false), process })
    }

    /// Runs a client until the workload is over.
    pub async fn client(self: Rc<Self>, number: u64, mut random: Random) {
        let mut client = Client {
            writes: random.chance(700),
            load: self,
            number,
            writes_begun: 0,
            reads_begun: 0,
            random: random.fork(),
            session: None,
        };
        while !client.load.over.get() {
            if client.step().await.is_err() {
                client.session = None;
                tokio::time::sleep(BACKOFF).await;
            }
            let pause_ms = match random.below(10) {
                0 => random.below(100),
                1..=3 => random.below(10),
                _ => 0,
            };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }
}

/// The machine that clients are on.
pub const CLIENT_HOST: &str = "client";

/// A connection, and whom it leads to.
struct Session {
    connection: Connection,
    id: u64,
    process: u64,
    on_primary: bool,
}

struct Client {
    load: Rc<Workload>,
    number: u64,
    writes: bool,
    writes_begun: u64,
    reads_begun: u64,
    random: Random,
    session: Option<Session>,
}

/// A connection that is of no more use.
struct Broken;

impl Client {
    async fn step(&mut self) -> Result<(), Broken> {
        if self.session.is_none() || self.random.chance(20) {
            let host = match self.writes {
                true => PRIMARY_NAME.to_owned(),
                false => self.any_host(),
            };
            self.session = Some(self.connect(&host).await?);
        }
        if !self.writes {
            return self.read(None).await;
        }
        match self.random.below(100) {
            0..30 => self.write_one().await,
            30..50 => self.write_group().await,
            50..62 => self.increment().await,
            62..66 => self.delete().await,
            66..76 => self.read(None).await,
            76..86 => self.burst().await,
            86..90 => self.write_loosely().await,
            90..93 => self.ask_later().await,
            _ => self.write_and_follow().await,
        }
    }

    fn any_host(&mut self) -> String {
        let members = &self.load.cluster.members;
        let at = self.random.below(members.len() as u64) as usize;
        members[at].name().to_owned()
    }

    async fn connect(&mut self, host: &str) -> Result<Session, Broken> {
        let address = format!("{host}:{CLIENT_PORT}");
        let connection = Connection::open(&self.load.process, &address).await;
        let connection = connection.map_err(|_| Broken)?;
        let host = connection.host();
        let member = self.load.cluster.member(&host).ok_or(Broken)?;
        let (process, on_primary) = (member.process_id(), member.is_primary.get());
        let id = self.load.history.connection();
        Ok(Session { connection, id, process, on_primary })
    }

    fn begin(&self, action: Action) -> usize {
        let session = self.session.as_ref().expect("connected");
        self.load.history.invoke(session.process, session.on_primary, session.id, action)
    }

    /// Sends all commands at once and notes each reply under the op of its number, if it has one.
    async fn call(
        &mut self,
        commands: &[Vec<Vec<u8>>],
        ops: &[Option<usize>],
        patience: Duration,
    ) -> Result<Vec<Reply>, Broken> {
        assert_eq!(commands.len(), ops.len());
        let history = self.load.history.clone();
        let session = self.session.as_mut().expect("connected");
        let mut replies = Vec::new();
        let sent = tokio::time::timeout(patience, session.connection.send(commands)).await;
        let mut broken = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(crate::client::TIMEOUT.to_owned()),
        };
        for op in ops {
            let reply = match &broken {
                None => session.connection.reply_within(patience).await,
                Some(error) => Err(error.clone()),
            };
            match reply {
                Ok(reply) => {
                    if let Some(op) = op {
                        history.reply(*op, outcome_of(&reply));
                    }
                    replies.push(reply);
                }
                Err(error) => {
                    if let Some(op) = op {
                        history.reply(*op, Outcome::Unknown(error.clone()));
                    }
                    broken = Some(error);
                }
            }
        }
        if broken.is_some() { Err(Broken) } else { Ok(replies) }
    }

    /// A value that nobody else writes.
    fn value(&mut self, bytes_max: u64) -> Vec<u8> {
        self.writes_begun += 1;
        let mut value = format!("c{}-{}-", self.number, self.writes_begun).into_bytes();
        let len = match self.random.below(4) {
            0 => self.random.below(bytes_max),
            1 => self.random.below(bytes_max / 4),
            _ => self.random.below(40.min(bytes_max)),
        };
        value.resize(value.len() + len as usize, b'x');
        value
    }

    fn key(&mut self) -> Vec<u8> {
        match self.random.below(4) {
            0 => format!("plain{}", self.random.below(3)).into_bytes(),
            _ => format!("k:{}", self.random.below(7)).into_bytes(),
        }
    }

    fn group(&mut self) -> Vec<Vec<u8>> {
        let group = self.random.below(3);
        ["ga", "gb", "gc"].iter().map(|table| format!("{table}:{group}").into_bytes()).collect()
    }

    async fn write_one(&mut self) -> Result<(), Broken> {
        let (command, action) = self.one_write();
        let op = self.begin(action);
        let replies = self.call(&[command], &[Some(op)], PATIENCE).await?;
        self.resolve(op, &replies[0]).await
    }

    fn one_write(&mut self) -> (Vec<Vec<u8>>, Action) {
        self.one_write_of(VALUE_BYTES_MAX)
    }

    fn one_write_of(&mut self, bytes_max: u64) -> (Vec<Vec<u8>>, Action) {
        let value = self.value(bytes_max);
        if self.random.chance(250) {
            let key = format!("h:{}", self.random.below(3)).into_bytes();
            let columns = vec![(b"v".to_vec(), value.clone()), (b"w".to_vec(), b"same".to_vec())];
            let command = vec![
                b"HSET".to_vec(),
                key.clone(),
                b"v".to_vec(),
                value,
                b"w".to_vec(),
                b"same".to_vec(),
            ];
            return (command, Action::Write { keys: vec![key], value: Value::Columns(columns) });
        }
        let key = self.key();
        let command = vec![b"SET".to_vec(), key.clone(), value.clone()];
        (command, Action::Write { keys: vec![key], value: Value::Text(value) })
    }

    async fn write_group(&mut self) -> Result<(), Broken> {
        let (keys, value) = (self.group(), self.value(GROUP_VALUE_BYTES_MAX));
        let action = Action::Write { keys: keys.clone(), value: Value::Text(value.clone()) };
        let op = self.begin(action);
        if self.random.chance(500) {
            let mut command = vec![b"MSET".to_vec()];
            command.extend(keys.into_iter().flat_map(|key| [key, value.clone()]));
            let replies = self.call(&[command], &[Some(op)], PATIENCE).await?;
            return self.resolve(op, &replies[0]).await;
        }
        let mut commands = vec![words("MULTI")];
        commands.extend(keys.into_iter().map(|key| vec![b"SET".to_vec(), key, value.clone()]));
        commands.push(words("EXEC"));
        let ops: Vec<_> = (0..commands.len()).map(|at| (at == 4).then_some(op)).collect();
        let replies = self.call(&commands, &ops, PATIENCE).await?;
        self.resolve(op, &replies[4]).await
    }

    async fn increment(&mut self) -> Result<(), Broken> {
        let key = format!("n:{}", self.random.below(2)).into_bytes();
        let op = self.begin(Action::Increment { key: key.clone() });
        self.call(&[vec![b"INCR".to_vec(), key]], &[Some(op)], PATIENCE).await.map(|_| ())
    }

    async fn delete(&mut self) -> Result<(), Broken> {
        let key = self.key();
        let op = self.begin(Action::Delete { key: key.clone() });
        self.call(&[vec![b"DEL".to_vec(), key]], &[Some(op)], PATIENCE).await.map(|_| ())
    }

    /// Many writes without waiting for replies in between.
    async fn burst(&mut self) -> Result<(), Broken> {
        let (mut commands, mut ops) = (Vec::new(), Vec::new());
        // Many small rows fill frames to the brim.
        let (least, bytes_max) = *self.random.pick(&[(5, VALUE_BYTES_MAX), (30, 30)]);
        for _ in 0..self.random.between((least, 2 * least + 30)) {
            let (command, action) = self.one_write_of(bytes_max);
            commands.push(command);
            ops.push(Some(self.begin(action)));
        }
        self.call(&commands, &ops, PATIENCE).await.map(|_| ())
    }

    async fn read(&mut self, after: Option<Position>) -> Result<(), Broken> {
        self.reads_begun += 1;
        if after.is_none() && self.reads_begun.is_multiple_of(READS_PER_CENSUS) {
            return self.census().await;
        }
        let mut keys = self.group();
        if self.random.chance(500) {
            keys.extend((0..2).map(|_| self.key()));
        }
        if self.random.chance(300) {
            keys.push(format!("n:{}", self.random.below(2)).into_bytes());
        }
        let op = self.begin(Action::Read { keys: keys.clone(), after });
        let mut command = vec![b"MGET".to_vec()];
        command.extend(keys);
        self.call(&[command], &[Some(op)], PATIENCE).await.map(|_| ())
    }

    /// Counts, lists and looks at all rows in one EXEC, which is to show one position.
    async fn census(&mut self) -> Result<(), Broken> {
        let keys = all_keys();
        let mut commands = vec![words("MULTI"), words("DBSIZE"), words("SCAN 0 COUNT 1000")];
        commands.extend(keys.iter().map(|key| vec![b"EXISTS".to_vec(), key.clone()]));
        commands.push(words("EXEC"));
        let op = self.begin(Action::Census);
        let replies = self.call(&commands, &vec![None; commands.len()], PATIENCE).await;
        let outcome = match &replies {
            Err(Broken) => Outcome::Unknown("the connection broke".to_owned()),
            Ok(replies) => match replies.last() {
                Some(Reply::Array(parts)) => Outcome::Counted(misfit(&keys, parts)),
                Some(other) => outcome_of(other),
                None => Outcome::Unknown("no reply".to_owned()),
            },
        };
        self.load.history.reply(op, outcome);
        replies.map(|_| ())
    }

    /// Writes, asks for the token, and waits for it on any node before it reads there.
    async fn write_and_follow(&mut self) -> Result<(), Broken> {
        let (command, action) = self.one_write();
        let op = self.begin(action);
        let replies =
            self.call(&[command, words("ROWSHIP.POSITION")], &[Some(op), None], PATIENCE).await?;
        self.resolve(op, &replies[0]).await?;
        let token = match &replies[1] {
            // The token is that of the connection's last write: of an earlier one then.
            _ if matches!(outcome_of(&replies[0]), Outcome::Refused(_)) => None,
            Reply::Array(parts) => parts[0].text().and_then(|token| token.parse().ok()),
            _ => None,
        };
        let Some(token) = token else { return Ok(()) };
        let host = self.any_host();
        let there = self.connect(&host).await?;
        let here = self.session.replace(there);
        let answer = self.wait(op, token).await;
        let followed = match answer.as_deref() {
            Ok("reached") => self.read(Some(token)).await,
            Ok(_) => Ok(()),
            Err(_) => Err(Broken),
        };
        self.session = here;
        followed
    }

    /// Writes without waiting even for the local disk, and keeps the token: a crash may take the
    /// write, and WAITPOS must know.
    async fn write_loosely(&mut self) -> Result<(), Broken> {
        let there = self.connect(PRIMARY_NAME).await?;
        let here = self.session.replace(there);
        let (command, action) = self.one_write();
        let op = self.begin(action);
        let commands = [words("ROWSHIP.ACK memory"), command, words("ROWSHIP.POSITION")];
        let replies = self.call(&commands, &[None; 3], PATIENCE).await;
        self.session = here;
        let replies = replies?;
        let outcome = outcome_of(&replies[1]);
        if matches!(outcome, Outcome::Refused(_)) {
            self.load.history.reply(op, outcome);
            return Ok(());
        }
        let token = match &replies[2] {
            Reply::Array(parts) => parts[0].text().and_then(|token| token.parse().ok()),
            _ => None,
        };
        self.load.history.reply(op, Outcome::Open(token));
        self.load.open.borrow_mut().extend(token.map(|token| (op, token)));
        Ok(())
    }

    /// Asks what became of a write that was left open some time ago.
    async fn ask_later(&mut self) -> Result<(), Broken> {
        let open = self.load.open.borrow().len() as u64;
        if open == 0 {
            return Ok(());
        }
        let at = self.random.below(open) as usize;
        let (op, token) = self.load.open.borrow_mut().swap_remove(at);
        self.wait(op, token).await.map(|_| ())
    }

    async fn wait(&mut self, about: usize, token: Position) -> Result<String, Broken> {
        let op = self.begin(Action::Wait { about, token });
        let command = words(&format!("ROWSHIP.WAITPOS {token} {WAIT_MS}"));
        let replies = self.call(&[command], &[Some(op)], PATIENCE).await?;
        let answer = match &replies[0] {
            Reply::Array(parts) => parts[0].text(),
            _ => None,
        };
        answer.ok_or(Broken)
    }

    /// A write that was left open is asked about, once.
    async fn resolve(&mut self, op: usize, reply: &Reply) -> Result<(), Broken> {
        if let Outcome::Open(Some(token)) = outcome_of(reply) {
            self.wait(op, token).await?;
        }
        Ok(())
    }
}

/// Every how many reads a client takes a census.
const READS_PER_CENSUS: u64 = 8;

/// Every key that any client writes.
fn all_keys() -> Vec<Vec<u8>> {
    let families =
        [("plain", 3), ("k:", 7), ("h:", 3), ("n:", 2), ("ga:", 3), ("gb:", 3), ("gc:", 3)];
    let of = |(family, count): (&str, u64)| {
        (0..count).map(|at| format!("{family}{at}").into_bytes()).collect::<Vec<_>>()
    };
    families.into_iter().flat_map(of).collect()
}

/// What a census' parts say that is not of one position: DBSIZE, SCAN, and EXISTS of each key.
fn misfit(keys: &[Vec<u8>], parts: &[Reply]) -> Option<String> {
    let (Reply::Integer(size), Reply::Array(scan)) = (&parts[0], &parts[1]) else {
        return Some(format!("DBSIZE is {:?}, SCAN {:?}", parts[0], parts[1]));
    };
    let there = |reply: &Reply| *reply == Reply::Integer(1);
    let existing: BTreeSet<&[u8]> = keys
        .iter()
        .zip(&parts[2..])
        .filter(|(_, reply)| there(reply))
        .map(|(key, _)| &key[..])
        .collect();
    let [cursor, Reply::Array(listed)] = &scan[..] else {
        return Some(format!("SCAN is {scan:?}"));
    };
    let whole = cursor.text().as_deref() == Some("0");
    let listed: BTreeSet<&[u8]> =
        listed.iter().filter_map(Reply::bytes).map(|key| &key[..]).collect();
    let fits = match whole {
        true => listed == existing,
        false => listed.is_subset(&existing),
    };
    let counted = usize::try_from(*size) == Ok(existing.len());
    let text = |keys: &BTreeSet<&[u8]>| {
        keys.iter().map(|key| String::from_utf8_lossy(key)).collect::<Vec<_>>().join(" ")
    };
    (!fits || !counted).then(|| {
        format!("{size} rows, SCAN lists [{}], there are [{}]", text(&listed), text(&existing))
    })
}

fn outcome_of(reply: &Reply) -> Outcome {
    match reply {
        Reply::Error(text) => {
            let text = String::from_utf8_lossy(text).into_owned();
            if let Some(rest) = text.strip_prefix("INDETERMINATE") {
                let token = rest.split_once("ROWSHIP.WAITPOS ").and_then(|(_, rest)| {
                    rest.split_whitespace().next().and_then(|token| token.parse().ok())
                });
                return Outcome::Open(token);
            }
            Outcome::Refused(text)
        }
        Reply::Integer(number) => Outcome::Number(*number),
        Reply::Status(_) => Outcome::Acked,
        Reply::Array(parts) if parts.iter().all(|part| matches!(part, Reply::Status(_))) => {
            Outcome::Acked
        }
        Reply::Array(parts) => match (&parts[..], parts.len()) {
            ([Reply::Bulk(word), Reply::Bulk(_)], 2)
                if matches!(&word[..], b"reached" | b"lost" | b"timeout") =>
            {
                Outcome::Answer(String::from_utf8_lossy(word).into_owned())
            }
            _ => Outcome::Rows(parts.iter().map(row_of).collect()),
        },
        other => Outcome::Unknown(format!("an unexpected reply: {other:?}")),
    }
}

fn row_of(reply: &Reply) -> Option<Value> {
    reply.bytes().map(|bytes| Value::Text(bytes.to_vec()))
}
