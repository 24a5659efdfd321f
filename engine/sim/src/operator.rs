//! The fate of processes, and the operator: who starts what has ended, replaces what is lost, and
//! judges how nodes end by themselves.

mod promotion;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rowship::edge::sim::Death;
use rowship::edge::sim::random::Random;
use rowship_proto::Lsn;

use crate::checker::Context;
use crate::client::{Connection, words};
use crate::cluster::{CLIENT_PORT, Cluster, Member, PRIMARY_NAME};
use crate::faults::{Chaos, Injected, Promotion};
use crate::history::History;
use crate::probe::{Probe, Violation};

/// See the module's description.
pub struct Operator {
    cluster: Rc<Cluster>,
    probe: Rc<Probe>,
    history: Rc<History>,
    injected: Rc<Injected>,
    chaos: Chaos,
    random: RefCell<Random>,
    /// Place of the present primary among the members.
    primary: Cell<usize>,
    /// The primary's process that was last stopped to raise its epoch.
    raised: Cell<u64>,
    /// When members that are down are started again.
    restarts: RefCell<BTreeMap<usize, u64>>,
    /// Members with new directories that have not caught up yet.
    behind: RefCell<BTreeSet<usize>>,
    /// What the checker must know.
    pub context: RefCell<Context>,
}

impl Operator {
    /// An operator whose first member is the primary.
    #[must_use]
    pub fn new(
        cluster: &Rc<Cluster>,
        probe: &Rc<Probe>,
        history: &Rc<History>,
        injected: &Rc<Injected>,
        chaos: &Chaos,
        random: Random,
    ) -> Operator {
        cluster.members[0].is_primary.set(true);
        cluster.world.network.point(PRIMARY_NAME, cluster.members[0].name());
        Operator {
            cluster: cluster.clone(),
            probe: probe.clone(),
            history: history.clone(),
            injected: injected.clone(),
            chaos: chaos.clone(),
            random: RefCell::new(random),
            primary: Cell::new(0),
            raised: Cell::new(0),
            restarts: RefCell::default(),
            behind: RefCell::default(),
            context: RefCell::default(),
        }
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.borrow_mut())
    }

    /// The present primary.
    #[must_use]
    pub fn primary(&self) -> &Member {
        &self.cluster.members[self.primary.get()]
    }

    fn replicas(&self) -> Vec<usize> {
        (0..self.cluster.members.len()).filter(|at| *at != self.primary.get()).collect()
    }

    fn set_policy(&self) {
        let name = |at: usize| self.cluster.members[at].name().to_owned();
        let names: Vec<String> = self.replicas().into_iter().map(name).collect();
        self.cluster.plan.borrow_mut().ack = self.chaos.ack_for(&names);
    }

    /// Starts all members.
    pub fn start_all(&self) {
        self.set_policy();
        for member in &self.cluster.members {
            self.cluster.start(member);
        }
    }

    /// Lets things happen to processes until it is over.
    ///
    /// # Errors
    /// A node ended as none may, or a promotion lost what must not be lost.
    pub async fn work(&self) -> Result<(), Violation> {
        let mut next_ms = self.draw(|random| random.between(self.chaos.blows_ms));
        while !self.injected.over.get() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.tend(true)?;
            if self.cluster.world.now_ms() >= next_ms {
                self.blow().await?;
                let pause = self.draw(|random| random.between(self.chaos.blows_ms));
                next_ms = self.cluster.world.now_ms() + pause;
            }
        }
        Ok(())
    }

    /// Looks after members that have ended, and starts them again after a while (at once when
    /// `later` is false).
    ///
    /// # Errors
    /// A node ended as none may.
    pub fn tend(&self, later: bool) -> Result<(), Violation> {
        let now_ms = self.cluster.world.now_ms();
        for (at, member) in self.cluster.members.iter().enumerate() {
            if member.is_running() {
                self.note_caught_up(at, member);
                continue;
            }
            if self.chaos.promotion == Promotion::AfterCleanStop {
                // What it had confirmed was in its memory: it counts again when it has caught up.
                self.behind.borrow_mut().insert(at);
            }
            if let Some(exit) = member.take_exit() {
                self.judge(member, exit.err())?;
            }
            let pause_ms = if later { self.draw(|random| random.between((0, 900))) } else { 0 };
            let mut restarts = self.restarts.borrow_mut();
            let restart_ms = *restarts.entry(at).or_insert(now_ms + pause_ms);
            if restart_ms <= now_ms || !later {
                restarts.remove(&at);
                drop(restarts);
                self.start(member);
            }
        }
        match self.chaos.promotion {
            Promotion::Lossy => self.replace_diverged(),
            _ => self.raise_epoch(),
        }
        Ok(())
    }

    /// A replica may have heard of a reign that the promoted one had not: of a start of the old
    /// primary that nobody followed any more. The next start of the new one is above that.
    fn raise_epoch(&self) {
        for at in self.replicas() {
            let Some(node) = self.cluster.members[at].node() else { continue };
            let Some(replica) = node.replica() else { continue };
            let upstream = replica.upstream.borrow();
            let known = ["newer than this primary's", "two primaries claim"];
            let behind = known.iter().any(|text| upstream.last_error.contains(text));
            let process = self.primary().process_id();
            let once = self.raised.get() != process && self.primary().is_running();
            if upstream.state == "refused" && behind && once {
                self.raised.set(process);
                self.cluster.world.count_fault("primary restarted to raise its epoch");
                self.primary().ask_to_stop();
                return;
            }
        }
    }

    fn start(&self, member: &Member) {
        member.machine.disk.mend();
        self.injected.full.borrow_mut().remove(member.name());
        self.injected.failing.borrow_mut().remove(member.name());
        self.cluster.start(member);
    }

    fn note_caught_up(&self, at: usize, member: &Member) {
        if !self.behind.borrow().contains(&at) {
            return;
        }
        let end = self.probe.ledger.borrow().end();
        let durable = member.node().map(|node| node.durable.get());
        if durable.is_some_and(|durable| durable >= end) {
            self.behind.borrow_mut().remove(&at);
        }
    }

    /// Whether a node may end like this, after what was done to it.
    fn judge(
        &self,
        member: &Member,
        error: Option<rowship::node::NodeError>,
    ) -> Result<(), Violation> {
        let Some(error) = error else { return Ok(()) };
        let name = member.name();
        let failing = self.injected.failing.borrow().contains(name);
        let full = self.injected.full.borrow().contains(name);
        let rotten = self.probe.rotten.borrow().contains(name);
        let expected = match error.exit {
            6 => failing,
            4 | 7 => full || rotten,
            5 => rotten,
            _ => false,
        };
        if expected {
            return Ok(());
        }
        Err(format!("{name} ended with exit code {}: {}", error.exit, error.message))
    }

    /// A replica that has applied what was given up is refused for good: it is made anew.
    fn replace_diverged(&self) {
        for at in self.replicas() {
            let member = &self.cluster.members[at];
            let Some(node) = member.node() else { continue };
            let Some(replica) = node.replica() else { continue };
            let upstream = replica.upstream.borrow();
            let known = ["seed", "newer than this primary's", "two primaries claim"];
            let anew = upstream.state == "refused"
                && known.iter().any(|text| upstream.last_error.contains(text));
            drop(upstream);
            if anew {
                drop(node);
                member.die(Death::Killed);
                self.wipe(at);
            }
        }
    }

    fn wipe(&self, at: usize) {
        let member = &self.cluster.members[at];
        self.cluster.wipe(member);
        self.probe.rotten.borrow_mut().remove(member.name());
        self.behind.borrow_mut().insert(at);
        self.cluster.world.count_fault("directory lost");
    }

    async fn blow(&self) -> Result<(), Violation> {
        let world = self.cluster.world.clone();
        let at = self.draw(|random| random.below(self.cluster.members.len() as u64)) as usize;
        let member = &self.cluster.members[at];
        match self.draw(|random| random.below(100)) {
            0..20 if at != self.primary.get() => self.kill(member),
            20..35 => {
                let (call, keep) = self.draw(|random| (random.below(12), random.fork()));
                let mut keep = keep;
                member.machine.disk.lose_power_at(call, move |_| keep.chance(500));
            }
            35..45 => {
                world.count_fault("clean stop");
                member.ask_to_stop();
            }
            45..53 => {
                world.count_fault("power loss of all");
                for member in &self.cluster.members {
                    member.die(Death::PowerLost);
                }
            }
            53..63 if self.chaos.wipes && at != self.primary.get() => {
                if self.behind.borrow().is_empty() {
                    member.die(Death::Killed);
                    self.wipe(at);
                }
            }
            63..70 if self.chaos.wipes && at != self.primary.get() => self.rot(at).await,
            53..75 if self.chaos.retires => self.retire().await,
            _ => self.lose_primary().await?,
        }
        Ok(())
    }

    fn kill(&self, member: &Member) {
        let power = self.draw(|random| random.chance(500));
        let (kind, death) = match power {
            true => ("power loss", Death::PowerLost),
            false => ("process killed", Death::Killed),
        };
        if member.is_running() {
            self.cluster.world.count_fault(kind);
            member.die(death);
        }
    }

    /// A byte of a replica's log rots. Whatever it does then, it must not serve wrong rows; after
    /// a while it is made anew, as its operator would.
    async fn rot(&self, at: usize) {
        let member = &self.cluster.members[at];
        member.die(Death::Killed);
        let disk = &member.machine.disk;
        let contents = disk.contents();
        let segments: Vec<_> =
            contents.iter().filter(|(name, _)| name.starts_with("segment-")).collect();
        let Some((name, bytes)) = segments.first() else { return };
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        let (place, bit) = self.draw(|random| (random.below(used + 1), random.below(8)));
        disk.bend(name, place, |byte| *byte ^= 1 << bit);
        self.probe.rotten.borrow_mut().insert(member.name().to_owned());
        self.cluster.world.count_fault("bit rot");
        self.start(member);
        let pause = self.draw(|random| random.between((200, 800)));
        tokio::time::sleep(Duration::from_millis(pause)).await;
        member.die(Death::Killed);
        let _ = member.take_exit();
        self.wipe(at);
    }

    /// Lets old segments go, when all replicas are there.
    async fn retire(&self) {
        let primary = self.primary();
        let Some(node) = primary.node() else { return };
        let Some(role) = node.primary() else { return };
        let needed = self.replicas().len();
        let all = role.machine.borrow().count_holding(Lsn::ZERO).0 >= needed;
        let committed = node.committed.get();
        drop(node);
        if !all {
            return;
        }
        let process = primary.process().expect("it runs");
        for member in &self.cluster.members {
            let address = format!("{}:{CLIENT_PORT}", member.name());
            let asked = async {
                let mut connection = Connection::open(&process, &address).await?;
                connection.send(&[words(&format!("ROWSHIP.RETIRE {committed}"))]).await?;
                connection.reply().await
            };
            // It may be away: then it keeps its segments for now.
            let _ = tokio::time::timeout(Duration::from_millis(500), asked).await;
        }
        self.cluster.world.count_fault("retire asked for");
    }

    pub(super) async fn pass(&self, most_ms: u64) {
        let pause = self.draw(|random| random.between((most_ms / 3, most_ms)));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}
