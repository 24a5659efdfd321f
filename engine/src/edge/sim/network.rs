//! A network in memory: connections that deliver in order, each after its own delays.
//!
//! Faults it can inject, and why nodes must survive them:
//! - delay and little bandwidth: bytes of one connection come late and in pieces; those of
//!   different connections overtake one another;
//! - loss: TCP hides single packets, so what is seen of it is a connection that is reset, and
//!   what was on its way is gone; whoever sends it again does so on a new connection;
//! - partition, one way or both: nothing arrives, not even the news that the other end is gone;
//!   what was sent arrives after the link is whole again, if somebody still waits for it;
//! - a host that loses power says nothing to anybody: its connections stay half open;
//! - a flipped bit that TCP's checksum misses.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::pipe::{Pipe, Taken};
use super::random::Random;
use super::{Death, Process};

/// Delay and speed of one direction between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpeed {
    /// Least and most delay in milliseconds.
    pub delay_ms: (u64, u64),
    /// Bytes per millisecond.
    pub bytes_per_ms: u64,
}

/// A fast local network.
const FAST: LinkSpeed = LinkSpeed { delay_ms: (0, 2), bytes_per_ms: 100_000 };
/// Time after which an attempt to connect is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections that wait for `accept`.
const BACKLOG_MAX: usize = 128;

/// All hosts' network. One per simulation.
pub struct Network {
    random: RefCell<Random>,
    /// Speeds other than the usual one, by (from, to).
    speeds: RefCell<BTreeMap<(String, String), LinkSpeed>>,
    usual: Cell<LinkSpeed>,
    cuts: RefCell<BTreeSet<(String, String)>>,
    walls: RefCell<BTreeSet<(String, String)>>,
    /// What a name stands for, where that is not the host of that name.
    names: RefCell<BTreeMap<String, String>>,
    listeners: RefCell<BTreeMap<String, Rc<Backlog>>>,
    connections: RefCell<Vec<Weak<Connection>>>,
    next_connection: Cell<u64>,
    changed: Notify,
}

/// What a listener has been offered.
pub(super) struct Backlog {
    process: u64,
    waiting: RefCell<VecDeque<Rc<Connection>>>,
    arrived: Notify,
}

/// Two ends and a pipe each way.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) ends: [End; 2],
    /// `pipes[i]` carries what end `i` sends.
    pub(super) pipes: [Pipe; 2],
    /// Whose bytes carry checksums: bits may be flipped in it.
    checked: bool,
}

/// One end of a connection.
pub(super) struct End {
    pub(super) host: String,
    process: u64,
}

impl Network {
    pub(super) fn new(random: Random) -> Network {
        Network {
            random: RefCell::new(random),
            speeds: RefCell::default(),
            usual: Cell::new(FAST),
            cuts: RefCell::default(),
            walls: RefCell::default(),
            names: RefCell::default(),
            listeners: RefCell::default(),
            connections: RefCell::default(),
            next_connection: Cell::new(1),
            changed: Notify::new(),
        }
    }

    /// From now on `name` means the host `host`, for new connections.
    pub fn point(&self, name: &str, host: &str) {
        self.names.borrow_mut().insert(name.to_owned(), host.to_owned());
    }

    /// Speed of all directions that have none of their own.
    pub fn set_usual_speed(&self, speed: LinkSpeed) {
        self.usual.set(speed);
    }

    /// Speed of what `from` sends to `to`; `None` for the usual one.
    pub fn set_speed(&self, from: &str, to: &str, speed: Option<LinkSpeed>) {
        let key = (from.to_owned(), to.to_owned());
        match speed {
            Some(speed) => self.speeds.borrow_mut().insert(key, speed),
            None => self.speeds.borrow_mut().remove(&key),
        };
    }

    /// Nothing that `from` sends reaches `to` any more.
    pub fn cut(&self, from: &str, to: &str) {
        self.cuts.borrow_mut().insert((from.to_owned(), to.to_owned()));
    }

    /// What `from` sends reaches `to` again.
    pub fn heal(&self, from: &str, to: &str) {
        self.cuts.borrow_mut().remove(&(from.to_owned(), to.to_owned()));
        self.wake_all();
    }

    /// As [`Network::cut`], but it stays when cuts of other origin heal, until it is opened.
    pub fn wall(&self, from: &str, to: &str) {
        self.walls.borrow_mut().insert((from.to_owned(), to.to_owned()));
    }

    /// What `from` sends reaches `to` again, whatever it was that kept it.
    pub fn open(&self, from: &str, to: &str) {
        self.walls.borrow_mut().remove(&(from.to_owned(), to.to_owned()));
        self.heal(from, to);
    }

    /// All cuts and walls are gone, all links fast.
    pub fn heal_all(&self) {
        self.cuts.borrow_mut().clear();
        self.walls.borrow_mut().clear();
        self.speeds.borrow_mut().clear();
        self.wake_all();
    }

    pub(super) fn is_cut(&self, from: &str, to: &str) -> bool {
        let way = (from.to_owned(), to.to_owned());
        self.cuts.borrow().contains(&way) || self.walls.borrow().contains(&way)
    }

    /// Resets a connection between these hosts, if there is one; whether there was. Where not
    /// `both` ends are told, the other one finds out when it sends.
    pub fn reset_one(&self, one: &str, other: &str, both: bool) -> bool {
        let between = |connection: &Rc<Connection>| {
            let hosts = [connection.ends[0].host.as_str(), connection.ends[1].host.as_str()];
            hosts == [one, other] || hosts == [other, one]
        };
        let found: Vec<_> = self.live().into_iter().filter(between).collect();
        if found.is_empty() {
            return false;
        }
        let connection = self.random.borrow_mut().pick(&found).clone();
        let told = self.random.borrow_mut().below(2) as usize;
        connection.pipes[1 - told].reset();
        if both {
            connection.pipes[told].reset();
        } else {
            connection.pipes[told].fall_silent();
            connection.pipes[told].answer();
        }
        true
    }

    /// Flips a bit of what travels next on a link between nodes; whether there is such a link.
    pub fn flip_bit(&self) -> bool {
        let found: Vec<_> = self.live().into_iter().filter(|it| it.checked).collect();
        if found.is_empty() {
            return false;
        }
        let mut random = self.random.borrow_mut();
        let connection = random.pick(&found).clone();
        connection.pipes[random.below(2) as usize].flip_next(random.word());
        true
    }

    /// Connections of which both ends are open.
    fn live(&self) -> Vec<Rc<Connection>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.strong_count() > 0);
        let all = connections.iter().filter_map(Weak::upgrade);
        all.filter(|connection| connection.pipes.iter().all(Pipe::is_open)).collect()
    }

    fn wake_all(&self) {
        self.changed.notify_waiters();
        for connection in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            for pipe in &connection.pipes {
                pipe.wake();
            }
        }
    }

    /// A process is gone; what its host still says depends on how.
    pub(super) fn forget(&self, process: u64, death: Death) {
        self.listeners.borrow_mut().retain(|_, backlog| backlog.process != process);
        for connection in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            for side in 0..2 {
                if connection.ends[side].process != process {
                    continue;
                }
                match death {
                    // The system ends its connections: what was handed to it still arrives.
                    Death::Killed | Death::Ended => connection.pipes[side].finish(),
                    Death::PowerLost => connection.pipes[side].fall_silent(),
                }
                connection.pipes[1 - side].abandon();
            }
        }
    }

    /// A host is up again: it answers those who still send to what was there before.
    pub(super) fn host_is_up(&self, host: &str) {
        for connection in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            for side in 0..2 {
                if connection.ends[side].host == host && connection.pipes[side].is_silent() {
                    connection.pipes[side].answer();
                }
            }
        }
    }

    pub(super) fn speed(&self, from: &str, to: &str) -> LinkSpeed {
        let key = (from.to_owned(), to.to_owned());
        self.speeds.borrow().get(&key).copied().unwrap_or(self.usual.get())
    }

    /// Milliseconds that the next bytes from one host to another take.
    pub(super) fn delay_ms(&self, from: &str, to: &str) -> u64 {
        self.random.borrow_mut().between(self.speed(from, to).delay_ms)
    }

    /// Where bytes of one write are cut apart on their way: mostly nowhere.
    pub(super) fn split_at(&self, len: usize) -> usize {
        let mut random = self.random.borrow_mut();
        if len > 1 && random.chance(150) { 1 + random.below(len as u64 - 1) as usize } else { len }
    }

    pub(super) fn listen(&self, process: &Process, address: &str) -> io::Result<Rc<Backlog>> {
        let mut listeners = self.listeners.borrow_mut();
        if listeners.contains_key(address) {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        let (waiting, arrived) = Default::default();
        let backlog = Rc::new(Backlog { process: process.id, waiting, arrived });
        listeners.insert(address.to_owned(), backlog.clone());
        Ok(backlog)
    }

    /// Connects a process to an address; waits while there is no way to its host.
    pub(super) async fn connect(
        &self,
        process: &Process,
        address: &str,
    ) -> io::Result<Rc<Connection>> {
        let (name, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        let host = self.names.borrow().get(name).cloned().unwrap_or_else(|| name.to_owned());
        let from = process.machine.name.as_str();
        let way = async {
            loop {
                let changed = self.changed.notified();
                if !self.is_cut(from, &host) && !self.is_cut(&host, from) {
                    let there = self.delay_ms(from, &host);
                    let back = self.delay_ms(&host, from);
                    tokio::time::sleep(Duration::from_millis(there + back)).await;
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, way)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let backlog = self.listeners.borrow().get(&format!("{host}:{port}")).cloned();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let backlog = backlog.ok_or_else(refused)?;
        if backlog.waiting.borrow().len() >= BACKLOG_MAX {
            return Err(refused());
        }
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let ends = [
            End { host: from.to_owned(), process: process.id },
            End { host, process: backlog.process },
        ];
        let checked = port == REPLICATION_PORT;
        let connection =
            Rc::new(Connection { id, ends, pipes: [Pipe::new(), Pipe::new()], checked });
        self.connections.borrow_mut().push(Rc::downgrade(&connection));
        backlog.waiting.borrow_mut().push_back(connection.clone());
        backlog.arrived.notify_one();
        Ok(connection)
    }
}

/// The port between nodes: what travels there carries checksums.
pub const REPLICATION_PORT: &str = "7402";

impl Backlog {
    /// The next connection.
    pub(super) async fn accept(&self) -> Rc<Connection> {
        loop {
            if let Some(connection) = self.waiting.borrow_mut().pop_front() {
                return connection;
            }
            self.arrived.notified().await;
        }
    }
}

impl Connection {
    /// Takes what has arrived for end `side`; see [`Taken`].
    pub(super) fn take(&self, network: &Network, side: usize, now_ms: u64, room: usize) -> Taken {
        let (me, other) = (&self.ends[side], &self.ends[1 - side]);
        let cut = network.is_cut(&other.host, &me.host);
        self.pipes[1 - side].take(now_ms, room, cut)
    }

    /// Hands bytes over for the other end, as far as there is room.
    pub(super) fn put(&self, network: &Network, side: usize, now_ms: u64, bytes: &mut Bytes) {
        let (me, other) = (&self.ends[side], &self.ends[1 - side]);
        if !network.is_cut(&me.host, &other.host) {
            self.pipes[1 - side].provoke();
        }
        while !bytes.is_empty() {
            let room = self.pipes[side].room();
            if room == 0 {
                return;
            }
            let len = network.split_at(bytes.len().min(room));
            let part = bytes.split_to(len);
            let speed = network.speed(&me.host, &other.host);
            let delay_ms = network.delay_ms(&me.host, &other.host);
            self.pipes[side].put(now_ms, delay_ms, speed.bytes_per_ms, part);
        }
    }
}
