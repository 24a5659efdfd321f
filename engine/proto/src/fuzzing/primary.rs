//! The primary's state machine under any sequence of events, beside a plain copy of its rules.

use std::collections::BTreeMap;

use super::input::Input;
use super::{LOG, START};
use crate::ack::{AckLevel, AckPolicy, ClientPolicy, NodeName, Quorum};
use crate::message::{Ack, Hello, PROTOCOL_VERSIONS, Ready, RefuseCode};
use crate::position::{Epoch, EpochHistory, Lsn, Nanos};
use crate::primary::{JOIN_TIMEOUTS, LinkId, LinkState, Primary, Reign};

/// Replicas come, go, and say what they like; bytes are appended and become durable. After each
/// event: `acked <= shipped <= appended` for every live replica, `committed` and the replies that
/// may leave are what their definitions say (tried out position by position), `committed` never
/// goes back, and what was refused has changed nothing. Returns how far `committed` has come.
pub fn primary(data: &[u8]) -> Lsn {
    let mut world = World::new(Input::new(data));
    for _ in 0..EVENTS_MAX {
        if world.input.is_done() {
            break;
        }
        world.event();
        world.check();
    }
    world.committed
}

/// Where the log of all inputs ended when the reign began.
const INHERITED: Lsn = Lsn(START.0 + 800);
/// What was known committed of it.
const COMMITTED: Lsn = Lsn(START.0 + 200);
const PEER_TIMEOUT: Nanos = 100;
const REPLICAS_MAX: usize = 3;
/// More events of one input find nothing new.
const EVENTS_MAX: usize = 200;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const POLICIES: [&str; 8] = [
    "async",
    "semi-sync 1",
    "semi-sync 2 received",
    "semi-sync ANY 2 (a, b, c)",
    "semi-sync FIRST 1 (a, b)",
    "semi-sync FIRST 2 received (c, a, b)",
    "sync (a, b)",
    "sync committed (a)",
];

/// What a replica is known to be.
struct Known {
    incarnation: u64,
    link: LinkId,
    state: LinkState,
    resume: Lsn,
    chain: u64,
    shipped: Lsn,
    acked: Ack,
    promised: Lsn,
    streamed: bool,
    heard: Nanos,
}

struct World<'a> {
    input: Input<'a>,
    primary: Primary,
    known: BTreeMap<NodeName, Known>,
    now: Nanos,
    links: LinkId,
    appended: Lsn,
    durable: Lsn,
    committed: Lsn,
    epoch_start_end: Lsn,
    policies: [AckPolicy; POLICIES.len()],
}

impl World<'_> {
    fn new(mut input: Input<'_>) -> World<'_> {
        let policies: [AckPolicy; POLICIES.len()] =
            POLICIES.map(|text| text.parse().expect("a constant policy is valid"));
        let policy = policies[input.below(policies.len())].clone();
        let mut history = EpochHistory::default();
        assert!(history.push(epoch(1), START) && history.push(epoch(2), INHERITED));
        let epoch_start_end = Lsn(u64::MAX);
        let reign = Reign {
            log_id: LOG,
            epoch: epoch(2),
            epoch_start_end,
            replicas_max: REPLICAS_MAX,
            peer_timeout: PEER_TIMEOUT,
        };
        World {
            input,
            primary: Primary::new(reign, history, policy, INHERITED, COMMITTED),
            known: BTreeMap::new(),
            now: 0,
            links: 0,
            appended: INHERITED,
            durable: INHERITED,
            committed: COMMITTED,
            epoch_start_end,
            policies,
        }
    }

    fn event(&mut self) {
        match self.input.below(10) {
            0 => self.hello(),
            1 => self.welcomed(),
            2 | 3 => self.ready(),
            4 => self.shipped(),
            5 | 6 => self.ack(),
            7 => self.link_down(),
            8 => self.append(),
            _ => {
                self.now += u64::from(self.input.byte() / 4);
                let silent = self.known.values().filter(|known| {
                    let patience = match known.state {
                        LinkState::Down => Nanos::MAX,
                        LinkState::Joining => JOIN_TIMEOUTS * PEER_TIMEOUT,
                        LinkState::Streaming => PEER_TIMEOUT,
                    };
                    self.now - known.heard > patience
                });
                let silent: Vec<LinkId> = silent.map(|known| known.link).collect();
                assert_eq!(self.primary.silent_links(self.now), silent);
            }
        }
        self.recompute();
    }

    fn append(&mut self) {
        let bytes = 8 * u64::from(self.input.byte());
        let starts = self.epoch_start_end == Lsn(u64::MAX);
        match self.input.below(4) {
            0 if starts => {
                self.epoch_start_end = self.appended.plus(bytes + 8);
                self.primary.handle_epoch_started(self.epoch_start_end);
            }
            0 | 1 => {
                self.appended = self.appended.plus(bytes);
                self.primary.handle_appended(self.appended);
            }
            _ => {
                self.durable = self.durable.plus(bytes).min(self.appended);
                self.primary.handle_durable(self.durable);
            }
        }
    }

    /// A link that is, or was, somebody's.
    fn any_link(&mut self) -> LinkId {
        let back = u64::from(self.input.byte() % 4);
        self.links.saturating_sub(back)
    }

    fn by_link(&mut self, link: LinkId) -> Option<&mut Known> {
        self.known.values_mut().find(|known| known.link == link && known.state != LinkState::Down)
    }

    /// An honest replica's hello, with any part of any log that there may be.
    fn any_hello(&mut self) -> Hello {
        let name = name(self.input.pick(&NAMES));
        let incarnation = u64::from(self.input.byte() % 2);
        let (has_log, follows) = (self.input.below(4) > 0, self.input.below(2) == 0);
        let mut history = EpochHistory::default();
        let mut end = Lsn::ZERO;
        if has_log {
            end = START.plus(8 + 8 * u64::from(self.input.byte()));
            assert!(history.push(epoch(1), START));
            if follows && end > INHERITED {
                assert!(history.push(epoch(2), INHERITED));
            }
        }
        let highest_epoch = if self.input.byte() < 8 { epoch(3) } else { history.epoch() };
        let (versions, log_id, node_id) = (PROTOCOL_VERSIONS, LOG, 9);
        let client_port = 7411;
        Hello {
            versions,
            log_id,
            node_id,
            incarnation,
            highest_epoch,
            end,
            client_port,
            history,
            name,
        }
    }

    fn hello(&mut self) {
        let hello = self.any_hello();
        let Hello { end, incarnation, highest_epoch, ref name, .. } = hello;
        let oldest = START.plus(8 * u64::from(self.input.byte() / 32));
        // Where both logs part: within the reign that both know last.
        let resume = match hello.history.epoch().counter {
            0 => START,
            1 => end.min(INHERITED),
            _ => end.min(self.appended),
        };
        self.links += 1;
        let live = |known: &&Known| known.state != LinkState::Down;
        let count = self.known.values().filter(live).count();
        let same = self.known.get(name);
        let replaced = same.filter(live).map(|known| (known.link, known.incarnation));
        let expected = if highest_epoch == epoch(3) {
            Err(RefuseCode::StalePrimary)
        } else if resume < oldest {
            Err(RefuseCode::Retired)
        } else if replaced.is_some_and(|(_, living)| living != incarnation) {
            Err(RefuseCode::NameInUse)
        } else if replaced.is_none() && count >= REPLICAS_MAX {
            Err(RefuseCode::TooMany)
        } else {
            Ok(resume)
        };
        let (now, link) = (self.now, self.links);
        let answer = self.primary.handle_hello(now, link, "host:1", &hello, oldest);
        assert_eq!(answer.as_ref().map(|accepted| accepted.resume).map_err(|no| no.code), expected);
        // That a refusal changes nothing is seen by `check`.
        let Ok(accepted) = answer else { return };
        assert_eq!(accepted.replaces, replaced.map(|(link, _)| link));
        let same = same.filter(|known| known.incarnation == incarnation);
        let broken = same.map(|known| known.promised).filter(|promised| *promised > resume);
        assert_eq!(accepted.promise_broken, broken);
        let streamed = self.known.get(name).is_some_and(|known| known.streamed);
        let (state, shipped, promised, heard) = (LinkState::Joining, resume, resume, now);
        let (chain, acked) = (0, Ack::default());
        let known = Known {
            incarnation,
            link,
            state,
            resume,
            chain,
            shipped,
            acked,
            promised,
            streamed,
            heard,
        };
        self.known.insert(hello.name, known);
    }

    fn welcomed(&mut self) {
        let (link, chain) = (self.any_link(), u64::from(self.input.byte() % 4));
        self.primary.handle_welcomed(link, chain);
        if let Some(known) = self.by_link(link) {
            known.chain = chain;
        }
    }

    fn ready(&mut self) {
        let (link, bent) = (self.any_link(), self.input.byte());
        let visible = START.plus(8 * u64::from(self.input.byte() / 2));
        let now = self.now;
        let Some(known) = self.by_link(link) else {
            let ready = Ready { resume: START, chain: 0, visible };
            assert!(self.primary.handle_ready(now, link, &ready).is_err());
            return;
        };
        let mut ready = Ready { resume: known.resume, chain: known.chain, visible };
        match bent {
            0..8 => ready.chain += 1,
            8..16 => ready.resume = ready.resume.plus(8),
            _ => {}
        }
        let right = bent >= 16 && known.state == LinkState::Joining && visible <= ready.resume;
        if right {
            let resume = ready.resume;
            (known.state, known.streamed, known.heard) = (LinkState::Streaming, true, now);
            known.acked = Ack {
                received: resume,
                durable: resume,
                applied: visible,
                visible,
                ..Ack::default()
            };
        }
        assert_eq!(self.primary.handle_ready(now, link, &ready).is_ok(), right);
    }

    fn shipped(&mut self) {
        let (link, bytes, appended) =
            (self.any_link(), 8 * u64::from(self.input.byte()), self.appended);
        let Some(known) = self.by_link(link) else {
            return self.primary.handle_shipped(link, appended);
        };
        known.shipped = known.shipped.plus(bytes).min(appended);
        let shipped = known.shipped;
        self.primary.handle_shipped(link, shipped);
    }

    fn ack(&mut self) {
        let link = self.any_link();
        let mut ack = self.by_link(link).map(|known| known.acked).unwrap_or_default();
        let limits =
            self.by_link(link).map_or((START, START), |known| (known.shipped, known.resume));
        for at in 0..4 {
            let step = self.input.byte();
            let limit = match at {
                0 => limits.0,
                1 => ack.received,
                // Shown before it is durable there: see `node/writer.rs: gather` in the engine.
                2 => ack.received.min(self.committed.max(limits.1)),
                _ => ack.applied,
            };
            let position =
                [&mut ack.received, &mut ack.durable, &mut ack.applied, &mut ack.visible]
                    .into_iter()
                    .nth(at)
                    .expect("four positions");
            let forward = position.plus(8 * u64::from(step));
            *position = match step {
                // Wrong now and then: too far, or back.
                255 => limit.plus(8),
                254 => Lsn(position.0.saturating_sub(8)),
                _ => forward.min(limit.max(*position)),
            };
        }
        let (now, committed) = (self.now, self.committed);
        let right = self.by_link(link).is_some_and(|known| {
            let right = known.state == LinkState::Streaming
                && ack.received >= known.acked.received
                && ack.durable >= known.acked.durable
                && ack.applied >= known.acked.applied
                && ack.visible >= known.acked.visible
                && ack.received <= known.shipped
                && ack.durable <= ack.received
                && ack.applied <= ack.received
                && ack.visible <= ack.applied
                && ack.applied <= committed.max(known.resume);
            if right {
                (known.acked, known.heard) = (ack, now);
                known.promised = known.promised.max(ack.durable);
            }
            right
        });
        assert_eq!(self.primary.handle_ack(now, link, &ack).is_ok(), right, "{ack:?}");
    }

    fn link_down(&mut self) {
        let link = self.any_link();
        if let Some(known) = self.by_link(link) {
            known.state = LinkState::Down;
        }
        self.known.retain(|_, known| known.state != LinkState::Down || known.streamed);
        self.primary.handle_link_down(link);
    }

    fn recompute(&mut self) {
        let holds = self.highest(|lsn| self.holds(self.primary.policy(), lsn, self.durable));
        if holds >= self.epoch_start_end {
            self.committed = self.committed.max(holds);
        }
    }

    /// The highest of all positions there are for which this holds.
    fn highest(&self, holds: impl Fn(Lsn) -> bool) -> Lsn {
        let of = |known: &Known| [known.acked.received, known.acked.durable, known.acked.visible];
        let here = [Lsn::ZERO, self.durable, self.committed];
        let all = self.known.values().flat_map(of).chain(here);
        all.filter(|lsn| holds(*lsn)).max().unwrap_or(Lsn::ZERO)
    }

    fn streaming(&self, name: &NodeName) -> Option<&Known> {
        self.known.get(name).filter(|known| known.state == LinkState::Streaming)
    }

    /// Whether the policy holds for everything below `lsn`, by its definition.
    fn holds(&self, policy: &AckPolicy, lsn: Lsn, durable: Lsn) -> bool {
        let there = match policy {
            AckPolicy::Async => true,
            AckPolicy::Sync { names, .. } => names
                .iter()
                .all(|name| self.streaming(name).is_some_and(|known| known.acked.durable >= lsn)),
            AckPolicy::SemiSync { count, level, quorum } => {
                let has = |known: &&Known| {
                    let Ack { received, durable, .. } = known.acked;
                    durable >= lsn || (*level == AckLevel::Received && received >= lsn)
                };
                let live = |names: &[NodeName]| -> Vec<&Known> {
                    names.iter().filter_map(|name| self.streaming(name)).collect()
                };
                let asked: Vec<&Known> = match quorum {
                    Quorum::AnyReplica => {
                        self.known.keys().filter_map(|name| self.streaming(name)).collect()
                    }
                    Quorum::AnyOf(names) => live(names),
                    Quorum::FirstOf(names) => live(names).into_iter().take(*count).collect(),
                };
                asked.into_iter().filter(has).count() >= *count
            }
        };
        there && lsn <= durable
    }

    fn check(&self) {
        let primary = &self.primary;
        assert_eq!((primary.appended(), primary.durable()), (self.appended, self.durable));
        assert_eq!(primary.committed(), self.committed, "committed is not what the policy says");
        assert!(primary.committed() <= primary.durable());
        assert_eq!(primary.replicas().len(), self.known.len());
        for (name, replica) in primary.replicas() {
            let known = &self.known[name];
            assert_eq!((replica.state, replica.link), (known.state, known.link));
            assert_eq!((replica.shipped, replica.acked), (known.shipped, known.acked));
            assert_eq!((replica.heard, replica.incarnation), (known.heard, known.incarnation));
            if replica.state != LinkState::Down {
                assert!(replica.acked.received <= replica.shipped);
                assert!(replica.shipped <= primary.appended());
            }
        }
        let promised = self.known.values().map(|known| known.promised).min();
        assert_eq!(primary.needed_from(), promised.unwrap_or(Lsn(u64::MAX)));
        self.check_replies(&ClientPolicy::Node, primary.policy(), self.committed);
        for policy in &self.policies {
            let holds = self.highest(|lsn| self.holds(policy, lsn, self.durable));
            let inherits = holds < self.epoch_start_end;
            let bounded = if inherits { self.committed.min(holds) } else { holds };
            self.check_replies(&ClientPolicy::Policy(policy.clone()), policy, bounded);
        }
    }

    /// `committed` is that, or what stands for it under this policy.
    fn check_replies(&self, client: &ClientPolicy, policy: &AckPolicy, committed: Lsn) {
        let expected = match policy {
            AckPolicy::Sync { names, visible: true } => {
                let shown = |lsn: Lsn| {
                    let has = |known: &Known| known.acked.visible >= lsn;
                    lsn <= committed
                        && names.iter().all(|name| self.streaming(name).is_some_and(has))
                };
                if shown(committed) { committed } else { self.highest(shown) }
            }
            _ => committed,
        };
        assert_eq!(self.primary.replies_to(client), expected, "{policy}");
        // With nothing to wait for but their presence, who is not there?
        let can_be_met = self.holds(policy, Lsn::ZERO, self.durable);
        assert_eq!(self.primary.missing(client).is_empty(), can_be_met, "{policy}");
    }
}

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, node_id: 1, nonce: counter }
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a constant name is valid")
}
