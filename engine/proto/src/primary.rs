//! The primary's side of the protocol: who follows, how far each is, and what is committed.
//!
//! Grammar: `handle_*` takes one input; afterwards [`Primary::committed`] and
//! [`Primary::replies_to`] answer for the new state. Links are numbered by the caller.
//!
//! Invariants: `acked <= shipped <= appended` for every replica; `committed` never goes back;
//! what was inherited from earlier epochs commits only together with this epoch's start record
//! (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", section 5.4.2).

use std::collections::BTreeMap;

use crate::ack::{AckPolicy, ClientPolicy, NodeName, ReplicaPositions};
use crate::message::{Ack, Hello, PROTOCOL_VERSIONS, Ready, Refuse, RefuseCode};
use crate::position::{Epoch, EpochHistory, EpochVerdict, LogId, Lsn, Nanos};
use crate::sim::{Bug, Mark, mark, planted};

/// The caller's number of a connection.
pub type LinkId = u64;

/// So many times the peer timeout a replica may be mute while it joins.
pub const JOIN_TIMEOUTS: u64 = 12;

/// What a primary is from start to stop.
#[derive(Clone, Debug)]
pub struct Reign {
    /// The log.
    pub log_id: LogId,
    /// This epoch.
    pub epoch: Epoch,
    /// End of this epoch's start record: `committed` moves to here or beyond, never below. The
    /// highest LSN as long as that is not written.
    pub epoch_start_end: Lsn,
    /// Replicas connected at once.
    pub replicas_max: usize,
    /// A link with nothing heard for this long is dead.
    pub peer_timeout: Nanos,
}

/// State of one replica's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected.
    Down,
    /// Welcomed, not yet `Ready`.
    Joining,
    /// Receiving the stream.
    Streaming,
}

/// What the primary knows of a replica. Positions are those of the present connection.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Drawn when its data directory was made.
    pub incarnation: u64,
    /// Its link, meaningful unless `state` is down.
    pub link: LinkId,
    /// State of the link.
    pub state: LinkState,
    /// Where it connected from.
    pub address: String,
    /// Where it listens for clients, on that host.
    pub client_port: u16,
    /// Sent.
    pub shipped: Lsn,
    /// Acknowledged.
    pub acked: Ack,
    /// Highest durable position it ever acknowledged in this epoch of this primary.
    pub durable_promised: Lsn,
    /// Times it resumed below what it had acknowledged as durable: it lost data.
    pub promises_broken: u64,
    /// Last sign of life.
    pub heard: Nanos,
    /// It has once been ready for the stream in this reign.
    pub streamed: bool,
    resume: Lsn,
    resume_chain: u64,
}

/// A hello that is taken: answer `Welcome` with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Stream from here.
    pub resume: Lsn,
    /// Close this link of the same replica first: it is half open.
    pub replaces: Option<LinkId>,
    /// The replica acknowledged more as durable than it has now, up to here.
    pub promise_broken: Option<Lsn>,
}

/// The primary's state machine.
#[derive(Debug)]
pub struct Primary {
    reign: Reign,
    history: EpochHistory,
    policy: AckPolicy,
    appended: Lsn,
    durable: Lsn,
    committed: Lsn,
    replicas: BTreeMap<NodeName, Replica>,
}

impl Primary {
    /// A primary at the start of its reign. `inherited` is the end of the log it found,
    /// `committed` what is known committed of it; `history` includes this epoch.
    #[must_use]
    pub fn new(
        reign: Reign,
        history: EpochHistory,
        policy: AckPolicy,
        inherited: Lsn,
        committed: Lsn,
    ) -> Primary {
        assert_eq!(history.epoch(), reign.epoch);
        assert!(committed <= inherited);
        let (appended, durable) = (inherited, inherited);
        let replicas = BTreeMap::new();
        Primary { reign, history, policy, appended, durable, committed, replicas }
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &AckPolicy {
        &self.policy
    }

    /// This node's epoch history.
    #[must_use]
    pub fn history(&self) -> &EpochHistory {
        &self.history
    }

    /// End of the log.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.appended
    }

    /// Durable here.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Committed; never goes back.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// All replicas seen in this reign, by name.
    #[must_use]
    pub fn replicas(&self) -> &BTreeMap<NodeName, Replica> {
        &self.replicas
    }

    /// The lowest LSN that a known replica may still ask for.
    #[must_use]
    pub fn needed_from(&self) -> Lsn {
        let needs = self.replicas.values().map(|replica| replica.durable_promised);
        needs.min().unwrap_or(Lsn(u64::MAX))
    }

    /// This epoch's start record ends at `end`: from there on things can commit.
    pub fn handle_epoch_started(&mut self, end: Lsn) {
        assert!(end > self.appended);
        self.reign.epoch_start_end = end;
    }

    /// Bytes were appended up to `end`.
    pub fn handle_appended(&mut self, end: Lsn) {
        assert!(end >= self.appended);
        self.appended = end;
    }

    /// Bytes up to `end` are durable here.
    pub fn handle_durable(&mut self, end: Lsn) {
        assert!(end >= self.durable && end <= self.appended);
        self.durable = end;
        self.recompute();
    }

    /// Answers a hello. `oldest` is the first LSN still in the log.
    ///
    /// # Errors
    /// The refusal to send before closing the link.
    pub fn handle_hello(
        &mut self,
        now: Nanos,
        link: LinkId,
        address: &str,
        hello: &Hello,
        oldest: Lsn,
    ) -> Result<Accepted, Refuse> {
        self.check_hello(hello)?;
        let resume = self.resume_for(hello, oldest)?;
        if resume > FIRST_FRAME {
            mark(Mark::ResumedInside);
        }
        let mut accepted = Accepted { resume, replaces: None, promise_broken: None };
        let mut replica = Replica {
            incarnation: hello.incarnation,
            link,
            state: LinkState::Joining,
            address: address.to_owned(),
            client_port: hello.client_port,
            shipped: resume,
            acked: Ack::default(),
            durable_promised: resume,
            promises_broken: 0,
            heard: now,
            streamed: false,
            resume,
            resume_chain: 0,
        };
        if let Some(known) = self.replicas.get(&hello.name) {
            let live = known.state != LinkState::Down;
            if live && known.incarnation != hello.incarnation {
                let text = format!(
                    "the name '{}' is in use by another replica at {}; give each its own --name",
                    hello.name, known.address
                );
                return Err(refuse(RefuseCode::NameInUse, Lsn::ZERO, text));
            }
            accepted.replaces = live.then_some(known.link);
            replica.streamed = known.streamed;
            if known.incarnation == hello.incarnation {
                replica.promises_broken = known.promises_broken;
                if resume < known.durable_promised {
                    accepted.promise_broken = Some(known.durable_promised);
                    replica.promises_broken += 1;
                }
            }
        } else if self.replicas.len() >= NAMES_MAX {
            let text = format!("{NAMES_MAX} names of replicas are known: restart the primary");
            return Err(refuse(RefuseCode::TooMany, Lsn::ZERO, text));
        }
        let known_live = accepted.replaces.is_some();
        if !known_live && self.live_replicas() >= self.reign.replicas_max {
            let text = format!("replicas_max = {} are connected", self.reign.replicas_max);
            return Err(refuse(RefuseCode::TooMany, Lsn::ZERO, text));
        }
        self.replicas.insert(hello.name.clone(), replica);
        // A replaced link may have carried a vote.
        self.recompute();
        Ok(accepted)
    }

    /// Notes the chain value that the welcomed replica must answer with.
    pub fn handle_welcomed(&mut self, link: LinkId, resume_chain: u64) {
        if let Some(replica) = self.by_link(link) {
            replica.resume_chain = resume_chain;
        }
    }

    /// The replica has cut its tail and is ready for the stream.
    ///
    /// # Errors
    /// The refusal to send before closing the link.
    pub fn handle_ready(&mut self, now: Nanos, link: LinkId, ready: &Ready) -> Result<(), Refuse> {
        let Some(replica) = self.by_link(link) else { return Err(unknown_link()) };
        if replica.state != LinkState::Joining {
            return Err(protocol("ready sent twice"));
        }
        if ready.resume != replica.resume || ready.chain != replica.resume_chain {
            let text = format!(
                "the replica's log differs from this one at LSN {}: it must be seeded anew",
                ready.resume
            );
            return Err(refuse(RefuseCode::Diverged, ready.resume, text));
        }
        if ready.visible > ready.resume {
            return Err(protocol("visible beyond the end of the log"));
        }
        replica.state = LinkState::Streaming;
        replica.streamed = true;
        replica.heard = now;
        replica.acked = Ack {
            received: ready.resume,
            durable: ready.resume,
            applied: ready.visible,
            visible: ready.visible,
            ..Ack::default()
        };
        self.recompute();
        Ok(())
    }

    /// Bytes up to `end` were handed to the link.
    pub fn handle_shipped(&mut self, link: LinkId, end: Lsn) {
        let appended = self.appended;
        if let Some(replica) = self.by_link(link) {
            assert!(end >= replica.shipped && end <= appended);
            replica.shipped = end;
        }
    }

    /// A replica's positions; returns those before.
    ///
    /// # Errors
    /// The refusal to send before closing the link: the positions are impossible.
    pub fn handle_ack(&mut self, now: Nanos, link: LinkId, ack: &Ack) -> Result<Ack, Refuse> {
        let committed = self.committed;
        let Some(replica) = self.by_link(link) else { return Err(unknown_link()) };
        if replica.state != LinkState::Streaming {
            return Err(protocol("ack before ready"));
        }
        let before = replica.acked;
        if ack.received < before.received
            || ack.durable < before.durable
            || ack.applied < before.applied
            || ack.visible < before.visible
        {
            return Err(protocol("a position went back"));
        }
        if ack.received > replica.shipped || ack.durable > ack.received {
            return Err(protocol("a position is beyond what was sent"));
        }
        if ack.visible > ack.applied || ack.applied > ack.received {
            return Err(protocol("applied is beyond received"));
        }
        // What it had applied when it joined may be ahead of what this reign has committed yet.
        if ack.applied > committed.max(replica.resume) {
            return Err(protocol("applied is beyond committed"));
        }
        replica.heard = now;
        replica.acked = *ack;
        replica.durable_promised = replica.durable_promised.max(ack.durable);
        self.recompute();
        Ok(before)
    }

    /// The link is gone. What never got as far as the stream leaves nothing behind: a hello alone
    /// proves nothing, and must not take a name or hold back retention.
    pub fn handle_link_down(&mut self, link: LinkId) {
        if let Some(replica) = self.by_link(link) {
            replica.state = LinkState::Down;
        }
        self.replicas.retain(|_, replica| replica.state != LinkState::Down || replica.streamed);
        // `FIRST k` now looks at another replica.
        self.recompute();
    }

    /// Links to give up: nothing was heard of them for too long. One that joins is given
    /// [`JOIN_TIMEOUTS`] as long: it may have to fill its first segment, or to cut a tail.
    #[must_use]
    pub fn silent_links(&self, now: Nanos) -> Vec<LinkId> {
        let timeout = self.reign.peer_timeout;
        let silent = |replica: &&Replica| {
            let silence = now.saturating_sub(replica.heard);
            match replica.state {
                LinkState::Down => false,
                LinkState::Joining => silence > timeout.saturating_mul(JOIN_TIMEOUTS),
                LinkState::Streaming => silence > timeout,
            }
        };
        self.replicas.values().filter(silent).map(|replica| replica.link).collect()
    }

    /// Up to where replies of writes may leave under a connection's policy.
    #[must_use]
    pub fn replies_to(&self, policy: &ClientPolicy) -> Lsn {
        let positions = self.positions();
        match policy {
            ClientPolicy::Memory => Lsn(u64::MAX),
            ClientPolicy::Node => self.policy.replies_to(self.committed, &positions),
            ClientPolicy::Policy(policy) => {
                let holds = policy.holds_to(self.durable, &positions);
                policy.replies_to(self.bounded(holds), &positions)
            }
        }
    }

    /// How many streaming replicas hold everything below `lsn` (received, durable).
    #[must_use]
    pub fn count_holding(&self, lsn: Lsn) -> (usize, usize) {
        let live = || self.replicas.values().filter(|r| r.state == LinkState::Streaming);
        let received = live().filter(|replica| replica.acked.received >= lsn).count();
        let durable = live().filter(|replica| replica.acked.durable >= lsn).count();
        (received, durable)
    }

    /// Replicas that writes would wait for under `policy`: empty when it can be met now.
    #[must_use]
    pub fn missing(&self, policy: &ClientPolicy) -> Vec<String> {
        match policy {
            ClientPolicy::Memory => Vec::new(),
            ClientPolicy::Node => self.policy.missing(&self.positions()),
            ClientPolicy::Policy(policy) => policy.missing(&self.positions()),
        }
    }

    fn check_hello(&self, hello: &Hello) -> Result<(), Refuse> {
        let (min, max) = PROTOCOL_VERSIONS;
        if hello.versions.0 > max || hello.versions.1 < min {
            let text = format!(
                "replica speaks protocol versions {} to {}, this primary {min} to {max}",
                hello.versions.0, hello.versions.1
            );
            return Err(refuse(RefuseCode::Version, Lsn::ZERO, text));
        }
        if hello.log_id != LogId::NONE && hello.log_id != self.reign.log_id {
            let text = format!(
                "the replica holds log {}, this primary writes log {}: use an empty data \
                 directory, or another primary",
                hello.log_id, self.reign.log_id
            );
            return Err(refuse(RefuseCode::OtherLog, Lsn::ZERO, text));
        }
        match self.reign.epoch.judge(&hello.highest_epoch) {
            EpochVerdict::Newer if planted(Bug::AcceptOldEpoch) => Ok(()),
            EpochVerdict::Newer => {
                mark(Mark::StalePrimaryNoticed);
                let text = format!(
                    "the replica has seen epoch {}, newer than this primary's {}",
                    hello.highest_epoch, self.reign.epoch
                );
                Err(refuse(RefuseCode::StalePrimary, Lsn::ZERO, text))
            }
            EpochVerdict::Forked => {
                mark(Mark::ForkedEpochRefused);
                let text = format!(
                    "two primaries claim epoch {}: {} and {}; one data directory is a copy",
                    self.reign.epoch.counter, self.reign.epoch, hello.highest_epoch
                );
                Err(refuse(RefuseCode::ForkedEpoch, Lsn::ZERO, text))
            }
            EpochVerdict::Same | EpochVerdict::Older => Ok(()),
        }
    }

    fn resume_for(&self, hello: &Hello, oldest: Lsn) -> Result<Lsn, Refuse> {
        let fresh = hello.history.entries().is_empty();
        let resume = if fresh {
            oldest.max(FIRST_FRAME)
        } else {
            let common = self.history.common_end(self.appended, &hello.history, hello.end);
            common.ok_or_else(|| {
                let text = "the replica's log and this one share no epoch: seed it anew".to_owned();
                refuse(RefuseCode::Diverged, hello.end, text)
            })?
        };
        if resume < oldest || (fresh && oldest > FIRST_FRAME) {
            mark(Mark::RetiredRefused);
            let text = format!(
                "the log below LSN {oldest} was retired and the replica needs it from {}: seed it \
                 with a copy of a node that has it",
                if fresh { FIRST_FRAME } else { resume }
            );
            return Err(refuse(RefuseCode::Retired, oldest, text));
        }
        Ok(resume)
    }

    fn live_replicas(&self) -> usize {
        self.replicas.values().filter(|replica| replica.state != LinkState::Down).count()
    }

    fn by_link(&mut self, link: LinkId) -> Option<&mut Replica> {
        self.replicas.values_mut().find(|r| r.link == link && r.state != LinkState::Down)
    }

    fn positions(&self) -> Vec<ReplicaPositions<'_>> {
        self.replicas
            .iter()
            .map(|(name, replica)| ReplicaPositions {
                name,
                streaming: replica.state == LinkState::Streaming,
                received: replica.acked.received,
                durable: replica.acked.durable,
                visible: replica.acked.visible,
            })
            .collect()
    }

    /// Below the end of this epoch's start record nothing is newly decided.
    fn bounded(&self, holds: Lsn) -> Lsn {
        if self.may_decide(holds) { holds } else { self.committed.min(holds) }
    }

    fn recompute(&mut self) {
        let holds = self.policy.holds_to(self.durable, &self.positions());
        if self.may_decide(holds) && holds > self.committed {
            self.committed = holds;
        }
    }

    fn may_decide(&self, holds: Lsn) -> bool {
        holds >= self.reign.epoch_start_end || planted(Bug::CommitInheritedTail)
    }
}

/// Names of replicas remembered in one reign, for retention and events; a peer that invents names
/// must not fill the memory.
const NAMES_MAX: usize = 1024;

/// LSN of the first frame of every log.
pub const FIRST_FRAME: Lsn = Lsn(crate::control::SEGMENT_HEADER_BYTES);

fn refuse(code: RefuseCode, lsn: Lsn, text: String) -> Refuse {
    Refuse { code, lsn, text }
}

fn protocol(text: &str) -> Refuse {
    refuse(RefuseCode::Protocol, Lsn::ZERO, text.to_owned())
}

fn unknown_link() -> Refuse {
    protocol("this link is no longer the replica's")
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_END: Lsn = Lsn(5000);

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node_id: 1, nonce: counter }
    }

    fn primary(policy: &str) -> Primary {
        let mut history = EpochHistory::default();
        history.push(epoch(1), Lsn(4096));
        history.push(epoch(2), Lsn(4800));
        let reign = Reign {
            log_id: LogId([1, 1]),
            epoch: epoch(2),
            epoch_start_end: START_END,
            replicas_max: 2,
            peer_timeout: 100,
        };
        let mut primary =
            Primary::new(reign, history, policy.parse().unwrap(), Lsn(4800), Lsn(4200));
        primary.handle_appended(Lsn(9000));
        primary
    }

    fn hello(name: &str, incarnation: u64, end: u64) -> Hello {
        let mut history = EpochHistory::default();
        if end > 0 {
            history.push(epoch(1), Lsn(4096));
        }
        if end > 4800 {
            history.push(epoch(2), Lsn(4800));
        }
        Hello {
            versions: PROTOCOL_VERSIONS,
            log_id: LogId([1, 1]),
            node_id: 9,
            incarnation,
            highest_epoch: history.epoch(),
            end: Lsn(end),
            client_port: 0,
            history,
            name: NodeName::new(name).unwrap(),
        }
    }

    fn join(primary: &mut Primary, link: LinkId, hello: &Hello) -> Lsn {
        let accepted = primary.handle_hello(0, link, "host:1", hello, FIRST_FRAME).unwrap();
        primary.handle_welcomed(link, 42);
        let visible = Lsn::ZERO;
        primary
            .handle_ready(0, link, &Ready { resume: accepted.resume, chain: 42, visible })
            .unwrap();
        accepted.resume
    }

    fn ack(received: u64, durable: u64) -> Ack {
        Ack { received: Lsn(received), durable: Lsn(durable), ..Ack::default() }
    }

    #[test]
    fn the_inherited_tail_commits_only_with_the_epoch_start() {
        let mut primary = primary("async");
        primary.handle_durable(Lsn(4900));
        assert_eq!(primary.committed(), Lsn(4200));
        primary.handle_durable(Lsn(5000));
        assert_eq!(primary.committed(), Lsn(5000));
    }

    #[test]
    fn semi_sync_commits_what_one_replica_made_durable() {
        let mut primary = primary("semi-sync 1");
        primary.handle_durable(Lsn(9000));
        assert_eq!(primary.committed(), Lsn(4200));
        assert_eq!(join(&mut primary, 1, &hello("a", 1, 0)), FIRST_FRAME);
        primary.handle_shipped(1, Lsn(9000));
        primary.handle_ack(0, 1, &ack(9000, 8000)).unwrap();
        assert_eq!(primary.committed(), Lsn(8000));
        primary.handle_link_down(1);
        assert_eq!(primary.committed(), Lsn(8000));
        assert_eq!(primary.missing(&ClientPolicy::Node), ["any 1 more replica(s)"]);
    }

    #[test]
    fn sync_replies_wait_until_visible() {
        let mut primary = primary("sync (a)");
        join(&mut primary, 1, &hello("a", 1, 0));
        primary.handle_durable(Lsn(9000));
        primary.handle_shipped(1, Lsn(9000));
        primary.handle_ack(0, 1, &ack(9000, 9000)).unwrap();
        assert_eq!(primary.committed(), Lsn(9000));
        assert_eq!(primary.replies_to(&ClientPolicy::Node), Lsn::ZERO);
        let visible = Ack { applied: Lsn(8500), visible: Lsn(8500), ..ack(9000, 9000) };
        primary.handle_ack(0, 1, &visible).unwrap();
        assert_eq!(primary.replies_to(&ClientPolicy::Node), Lsn(8500));
        let less = ClientPolicy::Policy(AckPolicy::Async);
        assert_eq!(primary.replies_to(&less), Lsn(9000));
    }

    #[test]
    fn impossible_positions_are_refused() {
        for (bad, what) in [
            (ack(9001, 0), "beyond sent"),
            (ack(8000, 8500), "durable beyond received"),
            (ack(4000, 4000), "went back"),
            (Ack { applied: Lsn(8000), ..ack(7000, 7000) }, "applied beyond received"),
            (Ack { applied: Lsn(8000), ..ack(8000, 8000) }, "applied beyond committed"),
        ] {
            let mut primary = primary("sync (a, b)");
            join(&mut primary, 1, &hello("a", 1, 0));
            primary.handle_shipped(1, Lsn(9000));
            let refused = primary.handle_ack(0, 1, &bad).unwrap_err();
            assert_eq!(refused.code, RefuseCode::Protocol, "{what}");
        }
    }

    #[test]
    fn the_same_incarnation_replaces_its_half_open_link_and_another_is_refused() {
        let mut primary = primary("async");
        join(&mut primary, 1, &hello("a", 1, 0));
        let again = primary.handle_hello(0, 2, "host:2", &hello("a", 1, 0), FIRST_FRAME).unwrap();
        assert_eq!(again.replaces, Some(1));
        let other = primary.handle_hello(0, 3, "host:3", &hello("a", 2, 0), FIRST_FRAME);
        assert_eq!(other.unwrap_err().code, RefuseCode::NameInUse);
        primary.handle_link_down(2);
        assert!(primary.handle_hello(0, 4, "h", &hello("a", 2, 0), FIRST_FRAME).is_ok());
    }

    #[test]
    fn a_tail_that_the_primary_does_not_have_is_to_be_cut() {
        let mut primary = primary("async");
        let mut longer = hello("a", 1, 4800);
        longer.end = Lsn(4900);
        assert_eq!(join(&mut primary, 1, &longer), Lsn(4800));
    }

    #[test]
    fn newer_and_forked_epochs_and_other_logs_are_refused() {
        let mut primary = primary("async");
        let mut offer = |change: &dyn Fn(&mut Hello)| {
            let mut hello = hello("a", 1, 5000);
            change(&mut hello);
            primary.handle_hello(0, 1, "h", &hello, FIRST_FRAME).map_err(|refused| refused.code)
        };
        assert_eq!(offer(&|h| h.highest_epoch = epoch(3)), Err(RefuseCode::StalePrimary));
        assert_eq!(offer(&|h| h.highest_epoch.nonce = 77), Err(RefuseCode::ForkedEpoch));
        assert_eq!(offer(&|h| h.log_id = LogId([9, 9])), Err(RefuseCode::OtherLog));
        assert_eq!(offer(&|h| h.versions = (2, 3)), Err(RefuseCode::Version));
        assert!(offer(&|_| ()).is_ok());
    }

    #[test]
    fn a_replica_that_needs_retired_bytes_is_told_the_oldest() {
        let mut primary = primary("async");
        let oldest = Lsn(4700);
        let refused = primary.handle_hello(0, 1, "h", &hello("a", 1, 0), oldest).unwrap_err();
        assert_eq!((refused.code, refused.lsn), (RefuseCode::Retired, oldest));
        let behind = primary.handle_hello(0, 1, "h", &hello("a", 1, 4600), oldest).unwrap_err();
        assert_eq!(behind.code, RefuseCode::Retired);
    }

    #[test]
    fn a_replica_that_lost_what_it_promised_is_an_event() {
        let mut primary = primary("async");
        join(&mut primary, 1, &hello("a", 1, 0));
        primary.handle_shipped(1, Lsn(9000));
        primary.handle_ack(0, 1, &ack(9000, 9000)).unwrap();
        primary.handle_link_down(1);
        let back = primary.handle_hello(0, 2, "h", &hello("a", 1, 8000), FIRST_FRAME).unwrap();
        assert_eq!(back.promise_broken, Some(Lsn(9000)));
    }

    #[test]
    fn silence_is_noticed() {
        let mut primary = primary("async");
        join(&mut primary, 1, &hello("a", 1, 0));
        assert!(primary.silent_links(100).is_empty());
        assert_eq!(primary.silent_links(101), [1]);
    }
}
