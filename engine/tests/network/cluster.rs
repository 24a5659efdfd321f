//! A primary and its replicas, each on a machine of its own, under a load that remembers what was
//! acknowledged; and what must hold during a fault and after it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, Loss, desk, wire};
use crate::support::load::Load;
use crate::support::{Node, PATIENCE, assert_identical};

/// Silence on a link that ends it, in these tests.
pub const PEER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Within this time after the end of a fault all replicas stream and have caught up: an attempt to
/// connect that had just begun (at most a peer timeout), the longest pause between two attempts
/// (16 x 20 ms), and what a busy machine takes to send and apply what was missed.
pub const HEALED_MAX: Duration = Duration::from_secs(5);
/// A silent link is closed within this time: the peer timeout, and a busy machine's delay.
pub const NOTICED_MAX: Duration = Duration::from_millis(3500);

/// Flags of every node: quick heartbeats, and addresses other than loopback.
pub fn flags(peer_timeout_ms: &str) -> Vec<String> {
    let flags = ["--heartbeat-ms", "50", "--reconnect-ms", "20", "--allow-unauthenticated"];
    let timeout = ["--peer-timeout-ms", peer_timeout_ms];
    flags.iter().chain(&timeout).map(|flag| (*flag).to_owned()).collect()
}

/// Node 0 is the primary; node n runs on machine n + 1. Nodes end before their network does.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub load: Load,
    pub lab: Lab,
    // Last: removed when nobody writes in it any more.
    _scratch: tempfile::TempDir,
}

/// How acknowledgements came in over some time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub per_second: u64,
    /// Longest time without one.
    pub stall: Duration,
}

/// The number of a node's machine.
pub fn machine(node: usize) -> u8 {
    u8::try_from(node + 1).unwrap()
}

impl Cluster {
    /// A primary with `replicas` named r1, r2 and so on; all stream. `None` without a lab.
    pub fn start(replicas: usize, primary_flags: &[&str]) -> Option<Cluster> {
        Cluster::start_with(replicas, &flags("1500"), primary_flags)
    }

    pub fn start_with(replicas: usize, all: &[String], primary_flags: &[&str]) -> Option<Cluster> {
        let lab = Lab::new(machine(replicas))?;
        let scratch = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for at in 0..=replicas {
            let name = if at == 0 { "primary".to_owned() } else { format!("r{at}") };
            let mut node = Node::primary(scratch.path(), &name, &[]);
            let (clients, replicas) = (desk(machine(at)), wire(machine(at)));
            node.flags = all.to_vec();
            let listen = ["--listen", &clients, "--replication-listen", &replicas];
            node.flags.extend(listen.map(str::to_owned));
            if at == 0 {
                node.flags.extend(primary_flags.iter().map(|flag| (*flag).to_owned()));
            } else {
                node.follow(&wire(1));
            }
            lab.on(machine(at), || {
                node.start();
            });
            nodes.push(node);
        }
        // Many nodes are read elsewhere: a reader each would be most of the load.
        let load = Load::new(if replicas > 3 { 1 } else { replicas + 1 }, false);
        let cluster = Cluster { nodes, load, lab, _scratch: scratch };
        for (at, node) in cluster.loaded() {
            cluster.load.node_is_up(at, &node.address());
        }
        cluster.converge(PATIENCE);
        Some(cluster)
    }

    /// The nodes that the load knows.
    fn loaded(&self) -> impl Iterator<Item = (usize, &Node)> {
        let known = if self.nodes.len() > 4 { 1 } else { self.nodes.len() };
        self.nodes.iter().enumerate().take(known)
    }

    pub fn primary(&self) -> &Node {
        &self.nodes[0]
    }

    /// Stops a node cleanly, or kills it.
    pub fn end(&mut self, at: usize, cleanly: bool) {
        if self.loaded().any(|(known, _)| known == at) {
            self.load.node_goes_down(at);
        }
        if cleanly { self.nodes[at].stop() } else { self.nodes[at].kill() }
    }

    /// Starts a node again, on its machine.
    pub fn begin(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        self.lab.on(machine(at), || {
            node.start();
        });
        if self.loaded().any(|(known, _)| known == at) {
            self.load.node_is_up(at, &self.nodes[at].address());
        }
    }

    /// Loses what the primary and a replica send each other.
    pub fn cut(&self, replicas: &[usize]) {
        let losses = replicas.iter().flat_map(|at| Loss::both(1, machine(*at)));
        self.lab.lose(&losses.collect::<Vec<_>>());
    }

    /// The fault is over; everybody has caught up soon afterwards, without help.
    pub fn heal(&self) {
        let lost = self.lab.heal();
        assert!(lost > 0, "no packet was lost: the fault did not happen");
        let took = self.converge(HEALED_MAX);
        eprintln!("{lost} packets lost; all streamed and had caught up {took:?} after the end");
    }

    /// Waits until all replicas stream and show what the primary holds now.
    pub fn converge(&self, patience: Duration) -> Duration {
        let began = Instant::now();
        let goal = self.primary().status()["log"]["appended"].as_u64().unwrap();
        for node in &self.nodes[1..] {
            let there = |status: &Value| {
                status["upstream"]["state"] == "streaming"
                    && status["log"]["visible"].as_u64().unwrap() >= goal
            };
            within(node, "caught up", patience.saturating_sub(began.elapsed()), there);
        }
        self.load.check();
        began.elapsed()
    }

    /// Waits for `writes` more acknowledged transactions.
    pub fn expect_progress(&self, writes: u64) {
        let goal = self.load.acknowledged() + writes;
        let until = Instant::now() + PATIENCE;
        while self.load.acknowledged() < goal {
            self.load.check();
            assert!(Instant::now() < until, "no progress: {:#}", self.primary().status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How fast writes are acknowledged during `time`.
    pub fn pace(&self, time: Duration) -> Pace {
        let began = Instant::now();
        let first = self.load.acknowledged();
        let (mut last, mut stall) = ((first, began), Duration::ZERO);
        while began.elapsed() < time {
            std::thread::sleep(Duration::from_millis(2));
            let now = self.load.acknowledged();
            if now != last.0 {
                last = (now, Instant::now());
            }
            stall = stall.max(last.1.elapsed());
        }
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap();
        Pace { per_second: (last.0 - first) * 1000 / millis, stall }
    }

    /// The row of a replica in the primary's status.
    pub fn row(&self, at: usize) -> Value {
        row(&self.primary().status(), &self.nodes[at].name)
    }

    /// Sockets that a node has open.
    pub fn sockets(&self, at: usize) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.nodes[at].pid())).unwrap();
        let targets = all.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// At rest nothing lags, everything acknowledged is everywhere, all nodes are identical, and
    /// all logs verify.
    pub fn finish(mut self) {
        self.load.pause();
        for node in &self.nodes[1..] {
            node.catch_up_with(self.primary());
        }
        self.primary().until("without lag", |status| {
            let mut rows = status["replicas"].as_array().unwrap().iter();
            rows.all(|row| row["lag_bytes"] == 0 && row["lag_ms"] == 0)
        });
        for node in &self.nodes {
            self.load.tally().check(node);
        }
        for node in &self.nodes[1..] {
            assert_identical(self.primary(), node);
        }
        self.load.resume();
        self.load.stop();
        for at in (0..self.nodes.len()).rev() {
            self.nodes[at].stop();
            let (code, out, err) = self.nodes[at].verify_log();
            assert_eq!(code, 0, "{}: {out}{err}", self.nodes[at].name);
        }
    }
}

/// The row of a replica in a primary's status.
pub fn row(status: &Value, name: &str) -> Value {
    let mut rows = status["replicas"].as_array().unwrap().iter();
    rows.find(|row| row["name"] == name).cloned().unwrap_or_else(|| panic!("no {name}: {status:#}"))
}

/// Waits until a node's status is as wanted, for so long; returns how long it took.
pub fn within(
    node: &Node,
    what: &str,
    patience: Duration,
    mut look: impl FnMut(&Value) -> bool,
) -> Duration {
    let began = Instant::now();
    let mut client = node.client();
    loop {
        let status = client.status().unwrap();
        if look(&status) {
            return began.elapsed();
        }
        let text = || format!("{}: not {what} after {patience:?}: {status:#}", node.name);
        assert!(began.elapsed() < patience, "{}\n{}", text(), node.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}
