//! The commands of scenario files.
//!
//! | Command | What it does |
//! |---|---|
//! | `cluster a b c` | machines of these names; the first is the primary |
//! | `ack POLICY`, `on-missing refuse` | settings for starts from now on |
//! | `start a`, `stop a`, `kill a`, `power-loss a` | begins or ends a node |
//! | `promote b`, `wipe a`, `copy a b`, `name b a` | what operators do to directories and names |
//! | `lead-to b` | the name of the primary stands for b from now on |
//! | `c1@a SET k v` | client c1, connected to a, sends this and waits a second for the reply |
//! | `c1 reply` | waits for a reply that is owed |
//! | `token c1 t` | keeps the token of c1's last write: `$t` stands for it |
//! | `$c1` | the token that c1 was given with a write whose fate is open |
//! | `fill a 100 500` | 100 acknowledged rows of 500 bytes |
//! | `cut a b`, `heal` | nothing passes between a and b; everything does again |
//! | `slow-disk a 500`, `fail-disk a`, `full a`, `space a` | what becomes of disks |
//! | `run 100` | lets so many milliseconds pass |
//! | `show a` | positions and links; `events a`: what was noted since it was asked last |

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rowship::edge::sim::network::LinkSpeed;
use rowship::edge::sim::{Death, Machine, Pace, Process, World};
use rowship::node::settings::OnMissing;
use rowship_proto::ack::ClientPolicy;
use rowship_proto::primary::LinkState;

use super::text::{shorten, show};
use crate::client::{Connection, TIMEOUT, words};
use crate::cluster::{CLIENT_PORT, Cluster, ClusterPlan, Member, PRIMARY_NAME, SimNode};
use crate::workload::CLIENT_HOST;

/// A cluster, and clients with names.
pub struct Stage {
    world: Rc<World>,
    process: Rc<Process>,
    cluster: RefCell<Option<Rc<Cluster>>>,
    plan: RefCell<ClusterPlan>,
    clients: RefCell<BTreeMap<String, Connection>>,
    tokens: RefCell<BTreeMap<String, String>>,
    events: RefCell<BTreeMap<(String, u64), usize>>,
    rows: Cell<u64>,
}

/// How long a command waits for what it is about.
const PATIENCE: Duration = Duration::from_secs(1);
/// Everything on a stage takes a millisecond: nothing is left to chance.
const EVEN: Pace = Pace { write_ms: (1, 1), job_ms: (1, 1), lane_ms: (1, 1) };

impl Default for Stage {
    fn default() -> Self {
        Stage::new()
    }
}

impl Stage {
    /// An empty stage. Lives inside a runtime whose clock is paused.
    #[must_use]
    pub fn new() -> Stage {
        let world = World::new(1);
        world.network.set_usual_speed(LinkSpeed { delay_ms: (1, 1), bytes_per_ms: 100_000 });
        let process = Machine::new(&world, CLIENT_HOST).start();
        let (cluster, plan, clients, tokens, events, rows) = Default::default();
        Stage { world, process, cluster, plan, clients, tokens, events, rows }
    }

    /// Does one command and says what came of it.
    ///
    /// # Errors
    /// It is no command.
    pub async fn command(&self, line: &str) -> Result<String, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((client, host)) = word.split_once('@') {
            return self.send(client, host, rest).await;
        }
        match word {
            "cluster" => return self.begin(rest),
            "ack" => {
                self.replan(|plan| rest.clone_into(&mut plan.ack));
                return Ok(String::new());
            }
            "on-missing" => {
                let refuse = rest == "refuse";
                self.replan(|plan| {
                    plan.on_missing = if refuse { OnMissing::Refuse } else { OnMissing::Wait };
                });
                return Ok(String::new());
            }
            "run" => {
                let pause_ms = rest.parse().map_err(|_| "how many milliseconds?".to_owned())?;
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                return Ok(String::new());
            }
            "token" => return self.keep_token(rest).await,
            "heal" => {
                self.world.network.heal_all();
                return Ok(String::new());
            }
            _ if rest == "reply" => return Ok(self.reply(word).await),
            _ => {}
        }
        let cluster = self.cluster.borrow().clone().ok_or("no cluster yet")?;
        let parts: Vec<&str> = rest.split_whitespace().collect();
        let member = |at: usize| {
            let name = parts.get(at).copied().unwrap_or_default();
            cluster.member(name).ok_or_else(|| format!("no member '{name}'"))
        };
        match word {
            "promote" | "wipe" | "copy" | "lead-to" | "cut" => {
                self.arrange(word, &cluster, member(0)?, member(1).ok())
            }
            "slow-disk" | "fail-disk" | "full" | "space" => {
                let number = parts.get(1).and_then(|number| number.parse().ok());
                Ok(bend(word, member(0)?, number.unwrap_or(0)))
            }
            "start" => Ok(self.start(&cluster, member(0)?).await),
            "stop" | "kill" | "power-loss" => Ok(end(word, member(0)?).await),
            "fill" => self.fill(parts.first(), parts.get(1), parts.get(2)).await,
            "show" => Ok(show_member(member(0)?)),
            "events" => Ok(self.show_events(member(0)?)),
            _ => Err("no such command".to_owned()),
        }
    }

    fn replan(&self, change: impl Fn(&mut ClusterPlan)) {
        change(&mut self.plan.borrow_mut());
        if let Some(cluster) = &*self.cluster.borrow() {
            change(&mut cluster.plan.borrow_mut());
        }
    }

    fn begin(&self, names: &str) -> Result<String, String> {
        let names: Vec<&str> = names.split_whitespace().collect();
        let first = *names.first().ok_or("which machines?")?;
        let cluster = Cluster::new(&self.world, &names, self.plan.borrow().clone());
        for member in &cluster.members {
            member.machine.pace.set(EVEN);
        }
        cluster.members[0].is_primary.set(true);
        self.world.network.point(PRIMARY_NAME, first);
        *self.cluster.borrow_mut() = Some(Rc::new(cluster));
        Ok(String::new())
    }

    async fn start(&self, cluster: &Cluster, member: &Member) -> String {
        if member.is_running() {
            return format!("{} runs already", member.name());
        }
        cluster.start(member);
        let ready = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let named = |node: Rc<SimNode>| !node.client_address.borrow().is_empty();
                if !member.is_running() || member.node().is_some_and(named) {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, ready).await;
        let name = member.name();
        match member.take_exit() {
            Some(Err(error)) => {
                format!("{name} ends with exit code {}: {}", error.exit, shorten(&error.message))
            }
            Some(Ok(())) => format!("{name} has stopped"),
            None if waited.is_err() => format!("{name} is not ready yet"),
            None => format!("{name} is ready"),
        }
    }

    fn arrange(
        &self,
        word: &str,
        cluster: &Cluster,
        member: &Member,
        other: Option<&Member>,
    ) -> Result<String, String> {
        let network = &self.world.network;
        match (word, other) {
            _ if word != "cut" && word != "lead-to" && member.is_running() => {
                return Ok(format!("{} runs", member.name()));
            }
            ("promote", _) => match cluster.promote(member) {
                Ok(end) => return Ok(format!("the log of {} ends at {end}", member.name())),
                Err(why) => return Ok(format!("refused: {}", shorten(&why))),
            },
            ("wipe", _) => cluster.wipe(member),
            ("lead-to", _) => network.point(PRIMARY_NAME, member.name()),
            ("copy", Some(other)) => {
                for (name, bytes) in member.machine.disk.contents() {
                    other.machine.disk.put(&name, &bytes);
                }
                other.is_primary.set(member.is_primary.get());
            }
            ("cut", Some(other)) => {
                network.cut(member.name(), other.name());
                network.cut(other.name(), member.name());
            }
            _ => return Err("between which two?".to_owned()),
        }
        Ok(String::new())
    }

    async fn send(&self, client: &str, host: &str, command: &str) -> Result<String, String> {
        let mut command = command.to_owned();
        for (name, token) in &*self.tokens.borrow() {
            command = command.replace(&format!("${name}"), token);
        }
        let known = self.clients.borrow_mut().remove(client);
        let mut connection = match known {
            Some(connection) if connection.host() == host => connection,
            _ => {
                let address = format!("{host}:{CLIENT_PORT}");
                match Connection::open(&self.process, &address).await {
                    Ok(connection) => connection,
                    Err(error) => return Ok(format!("({error})")),
                }
            }
        };
        let sent = connection.send(&[words(&command)]).await;
        self.clients.borrow_mut().insert(client.to_owned(), connection);
        match sent {
            Ok(()) => Ok(self.reply(client).await),
            Err(error) => Ok(format!("({error})")),
        }
    }

    async fn reply(&self, client: &str) -> String {
        let Some(mut connection) = self.clients.borrow_mut().remove(client) else {
            return "(no connection)".to_owned();
        };
        match connection.reply_within(PATIENCE).await {
            Ok(reply) => {
                self.clients.borrow_mut().insert(client.to_owned(), connection);
                let shown = show(&reply);
                // A write whose fate is open comes with its token.
                if let Some((_, rest)) = shown.split_once("ROWSHIP.WAITPOS ") {
                    let token = rest.split_whitespace().next().unwrap_or_default();
                    self.tokens.borrow_mut().insert(client.to_owned(), token.to_owned());
                }
                shorten(&shown)
            }
            Err(error) if error == TIMEOUT => {
                self.clients.borrow_mut().insert(client.to_owned(), connection);
                "(no reply yet)".to_owned()
            }
            Err(error) => format!("({error})"),
        }
    }

    async fn keep_token(&self, rest: &str) -> Result<String, String> {
        let (client, name) = rest.split_once(' ').ok_or("whose token, under what name?")?;
        let connection = self.clients.borrow_mut().remove(client);
        let mut connection = connection.ok_or("no such client")?;
        connection.send(&[words("ROWSHIP.POSITION")]).await?;
        let reply = connection.reply_within(PATIENCE).await?;
        self.clients.borrow_mut().insert(client.to_owned(), connection);
        let rowship::cli::reply::Reply::Array(parts) = &reply else { return Ok(show(&reply)) };
        let token = parts[0].text().unwrap_or_default();
        self.tokens.borrow_mut().insert(name.to_owned(), token);
        Ok(shorten(&show(&reply)))
    }

    /// Acknowledged rows, one after the other, of so many bytes.
    async fn fill(
        &self,
        host: Option<&&str>,
        rows: Option<&&str>,
        bytes: Option<&&str>,
    ) -> Result<String, String> {
        let number = |word: Option<&&str>| word.and_then(|word| word.parse::<usize>().ok());
        let (Some(host), Some(rows), Some(bytes)) = (host, number(rows), number(bytes)) else {
            return Err("where, how many rows, of how many bytes?".to_owned());
        };
        let address = format!("{host}:{CLIENT_PORT}");
        let mut connection = Connection::open(&self.process, &address).await?;
        let mut acked = 0;
        for _ in 0..rows {
            self.rows.set(self.rows.get() + 1);
            let key = format!("row:{}", self.rows.get());
            let command = vec![b"SET".to_vec(), key.into_bytes(), vec![b'x'; bytes]];
            connection.send(&[command]).await?;
            match connection.reply_within(PATIENCE).await {
                Ok(rowship::cli::reply::Reply::Status(_)) => acked += 1,
                Ok(reply) => return Ok(format!("after {acked} rows: {}", shorten(&show(&reply)))),
                Err(error) => return Ok(format!("after {acked} rows: ({error})")),
            }
        }
        Ok(format!("{acked} rows acknowledged"))
    }

    fn show_events(&self, member: &Member) -> String {
        let Some(node) = member.node() else { return "(not running)".to_owned() };
        let mut seen = self.events.borrow_mut();
        let seen = seen.entry((member.name().to_owned(), member.process_id())).or_default();
        let events = node.events.borrow();
        let new: Vec<String> = events.iter().skip(*seen).map(|event| shorten(event)).collect();
        *seen = events.len();
        if new.is_empty() { "(none)".to_owned() } else { new.join("\n") }
    }
}

fn bend(word: &str, member: &Member, number: u64) -> String {
    let disk = &member.machine.disk;
    match word {
        "slow-disk" => member.machine.pace.set(Pace { write_ms: (number, number), ..EVEN }),
        "fail-disk" => disk.fail_next_sync(),
        "full" => disk.set_capacity_bytes(disk.used_bytes()),
        _ => {
            disk.mend();
            member.machine.pace.set(EVEN);
        }
    }
    String::new()
}

async fn end(word: &str, member: &Member) -> String {
    match word {
        "kill" => member.die(Death::Killed),
        "power-loss" => {
            // Nothing that was not synced has reached the disk.
            member.machine.disk.lose_unsynced(|_| false);
            member.die(Death::PowerLost);
        }
        _ => {
            member.ask_to_stop();
            let stopped = async {
                while member.is_running() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            if tokio::time::timeout(Duration::from_secs(20), stopped).await.is_err() {
                return "does not stop".to_owned();
            }
        }
    }
    match member.take_exit() {
        Some(Err(error)) => format!("exit code {}: {}", error.exit, shorten(&error.message)),
        _ => String::new(),
    }
}

fn show_member(member: &Member) -> String {
    let name = member.name();
    let Some(node) = member.node() else {
        return match member.take_exit() {
            Some(Err(error)) => {
                format!("{name} has ended with exit code {}: {}", error.exit, error.message)
            }
            _ => format!("{name} does not run"),
        };
    };
    let (appended, durable) = (node.appended.get(), node.durable.get());
    let (committed, visible) = (node.committed.get(), node.visible.get());
    let mut shown = format!(
        "{name}: appended {appended}, durable {durable}, committed {committed}, visible {visible}"
    );
    if let Some(primary) = node.primary() {
        let machine = primary.machine.borrow();
        for (replica, state) in machine.replicas() {
            let link = match state.state {
                LinkState::Down => "down",
                LinkState::Joining => "joining",
                LinkState::Streaming => "streaming",
            };
            let durable = state.acked.durable;
            shown.push_str(&format!("\n  {replica}: {link}, durable {durable}"));
        }
        let missing = machine.missing(&ClientPolicy::Node);
        if !missing.is_empty() {
            shown.push_str(&format!("\n  waits for: {}", missing.join(", ")));
        }
    }
    if let Some(replica) = node.replica() {
        let upstream = replica.upstream.borrow();
        shown.push_str(&format!("\n  {}", upstream.state));
        if upstream.state == "refused" {
            shown.push_str(&format!(": {}", shorten(&upstream.last_error)));
        }
    }
    shown
}
