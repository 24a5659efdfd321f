//! What becomes of the cluster when its primary is lost.

use std::time::Duration;

use rowship::edge::sim::Death;
use rowship::log::NodeState;

use super::Operator;
use crate::cluster::{Member, PRIMARY_NAME};
use crate::faults::Promotion;
use crate::probe::Violation;

impl Operator {
    /// The primary is gone: it comes back, or another takes its place.
    pub(super) async fn lose_primary(&self) -> Result<(), Violation> {
        let unfit = !self.behind.borrow().is_empty() || !self.probe.rotten.borrow().is_empty();
        let promotes = match self.chaos.promotion {
            Promotion::Never => false,
            Promotion::Lossy => true,
            Promotion::Safe => !unfit,
            // What is only in their memories must still be there.
            Promotion::AfterCleanStop => {
                let replicas = self.replicas();
                let run = |at: &usize| self.cluster.members[*at].is_running();
                !unfit && replicas.iter().all(run)
            }
        };
        if !promotes || self.draw(|random| random.chance(300)) {
            self.kill(self.primary());
            return Ok(());
        }
        // One that is down is not started again: each start would raise its epoch.
        let stale = self.chaos.promotion == Promotion::Safe
            && self.primary().is_running()
            && self.draw(|random| random.chance(400));
        if stale {
            self.isolate();
        } else {
            self.kill(self.primary());
        }
        self.promote(stale).await
    }

    /// Cuts the primary off from everybody, and lets it live.
    fn isolate(&self) {
        let network = &self.cluster.world.network;
        let name = self.primary().name();
        for at in self.replicas() {
            let other = self.cluster.members[at].name();
            network.wall(name, other);
            network.wall(other, name);
        }
        self.cluster.world.count_fault("primary isolated");
    }

    async fn promote(&self, stale: bool) -> Result<(), Violation> {
        let old = self.primary.get();
        let (replicas, superseded) = (self.replicas(), self.primary().process_id());
        self.context.borrow_mut().superseded.insert(superseded, self.history.tick());
        if !self.stop_replicas(&replicas).await? {
            // What was in their memories is lost: only the old primary has it.
            self.context.borrow_mut().superseded.remove(&superseded);
            return Ok(());
        }
        // Who has not even seen the present reign is no candidate, whatever may be given up.
        let counter_min = self.probe.ledger.borrow().counter_min().max(1);
        let end = |at: &usize| {
            let end = self.cluster.members[*at].log_end().ok()?;
            (end.0 >= counter_min).then_some((end, *at))
        };
        let ends: Vec<_> = replicas.iter().filter_map(end).collect();
        let best = match self.chaos.promotion {
            _ if ends.is_empty() => None,
            Promotion::Lossy => {
                let newest = ends.iter().map(|((counter, _), _)| *counter).max();
                let fit =
                    |((counter, _), at): &(_, usize)| (Some(*counter) == newest).then_some(*at);
                let fit: Vec<usize> = ends.iter().filter_map(fit).collect();
                Some(self.draw(|random| *random.pick(&fit)))
            }
            _ => ends.iter().max().map(|(_, at)| *at),
        };
        let old_member = &self.cluster.members[old];
        let Some(best) = best else {
            // Nobody has a log yet: the old one comes back.
            self.context.borrow_mut().superseded.remove(&superseded);
            self.cluster.world.network.heal_all();
            return Ok(());
        };
        self.crown(best)?;
        if stale {
            self.tempt(old, best).await;
        }
        old_member.die(Death::Killed);
        let _ = old_member.take_exit();
        self.wipe(old);
        self.cluster.world.network.heal_all();
        Ok(())
    }

    /// Stops all replicas, in ways that the policy's promise covers; whether all that they had
    /// confirmed is on their disks.
    async fn stop_replicas(&self, replicas: &[usize]) -> Result<bool, Violation> {
        let orderly = self.chaos.promotion == Promotion::AfterCleanStop;
        let together = self.draw(|random| random.chance(400)).then_some(1);
        for at in replicas {
            let member = &self.cluster.members[*at];
            match together.unwrap_or(self.draw(|random| random.below(3))) {
                0 if !orderly => member.die(Death::Killed),
                1 if !orderly => member.die(Death::PowerLost),
                _ => member.ask_to_stop(),
            }
        }
        for _ in 0..STOP_LOOKS_MAX {
            if replicas.iter().all(|at| !self.cluster.members[*at].is_running()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut whole = true;
        for at in replicas {
            let member = &self.cluster.members[*at];
            whole &= !member.is_running();
            member.die(Death::Killed);
            member.machine.disk.mend();
            match member.take_exit() {
                Some(exit) => {
                    whole &= exit.is_ok();
                    self.judge(member, exit.err())?;
                }
                None => whole &= !orderly,
            }
        }
        Ok(whole || !orderly)
    }

    /// Makes this stopped replica the primary.
    fn crown(&self, at: usize) -> Result<(), Violation> {
        let member = &self.cluster.members[at];
        let committed = self.probe.ledger.borrow().end();
        let end = self.cluster.promote(member).map_err(|why| format!("promotion: {why}"))?;
        self.cluster.world.count_fault("promotion");
        if self.chaos.promotion == Promotion::Lossy {
            let state = NodeState::load(&member.machine.disk.mount());
            let state = state.map_err(|error| error.to_string())?;
            let counter = state.map_or(0, |state| state.epoch_highest.counter) + 1;
            let (disk, segments) = (&member.machine.disk, member.segments());
            self.probe.ledger.borrow_mut().give_up(disk, &segments, end, counter)?;
            self.context.borrow_mut().given_up.push(self.history.tick());
        } else if end < committed {
            let name = member.name();
            return Err(format!(
                "committed up to {committed}, but the most advanced replica ({name}) has {end}"
            ));
        }
        self.primary.set(at);
        self.set_policy();
        self.cluster.world.network.point(PRIMARY_NAME, member.name());
        self.restarts.borrow_mut().clear();
        Ok(())
    }

    /// Lets replicas reach the new primary for a while: or only until they have heard of it.
    async fn let_follow(&self, old: &Member, new: &Member) {
        if self.draw(|random| random.chance(500)) {
            return self.pass(500).await;
        }
        let network = &self.cluster.world.network;
        for _ in 0..FOLLOW_LOOKS_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for at in self.replicas() {
                let other = &self.cluster.members[at];
                if other.name() != old.name() && knows_epoch_of(other, new) {
                    network.wall(new.name(), other.name());
                    network.wall(other.name(), new.name());
                }
            }
        }
    }

    /// The old primary lives and does not know. For a while the name leads to it, and replicas
    /// that have followed the new one reach it.
    async fn tempt(&self, old: usize, new: usize) {
        for (at, member) in self.cluster.members.iter().enumerate() {
            if at != old && !member.is_running() {
                self.start(member);
            }
        }
        let network = &self.cluster.world.network;
        let (old, new) = (&self.cluster.members[old], &self.cluster.members[new]);
        self.let_follow(old, new).await;
        let mut tempted = Vec::new();
        for at in self.replicas() {
            let other = &self.cluster.members[at];
            // Who has not heard of the new reign would follow the old one: nothing fences that.
            if other.name() != old.name() && knows_epoch_of(other, new) {
                network.open(old.name(), other.name());
                network.open(other.name(), old.name());
                tempted.push(other);
            }
        }
        network.point(PRIMARY_NAME, old.name());
        for other in tempted {
            self.cluster.world.count_fault("replica led to a stale primary");
            if self.draw(|random| random.chance(500)) {
                other.die(Death::PowerLost);
                self.start(other);
            } else {
                network.reset_one(new.name(), other.name(), true);
            }
        }
        self.pass(600).await;
        network.point(PRIMARY_NAME, new.name());
    }
}

/// Whether a replica has seen the reign of this primary.
fn knows_epoch_of(replica: &Member, primary: &Member) -> bool {
    let (Some(replica), Some(primary)) = (replica.node(), primary.node()) else { return false };
    let epoch = primary.primary().map(|primary| primary.epoch);
    Some(replica.state.borrow().epoch_highest) == epoch
}

/// How often replicas are looked at, every millisecond, until they have heard of a new primary.
const FOLLOW_LOOKS_MAX: usize = 500;
/// How often a clean stop is looked at, every 10 ms.
const STOP_LOOKS_MAX: usize = 1000;
