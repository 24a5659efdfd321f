//! Nodes that write, follow, fail over and cut, beside logs of which every byte is known.

use std::collections::BTreeMap;

use super::LOG;
use super::input::Input;
use crate::ack::{AckPolicy, NodeName};
use crate::message::{Ack, Hello, PROTOCOL_VERSIONS, RefuseCode, Welcome};
use crate::position::{Epoch, EpochHistory, EpochVerdict, Located, LogId, Lsn, Nanos, Position};
use crate::primary::{FIRST_FRAME, Primary, Reign};
use crate::replica::{Follow, Holdings, Progress};

/// A few nodes begin reigns, append, and follow one another by real handshakes. Where both sides
/// resume is where their logs really part (compared byte by byte); who must be refused is refused,
/// with the right code; a token says "on history" of no log that has other bytes. And a replica's
/// acks say what moved, and how long ago. Returns how many times a node followed another, and how
/// many of these cut its log.
pub fn handshake(data: &[u8]) -> (u64, u64) {
    let mut input = Input::new(data);
    let mut world =
        World { nodes: Default::default(), nonce: 0, tokens: Vec::new(), followed: (0, 0) };
    for _ in 0..EVENTS_MAX {
        if input.is_done() {
            break;
        }
        let (at, other) = (input.below(NODES), input.below(NODES));
        match input.below(6) {
            0 => world.begin_reign(at, input.byte() < 32),
            1 | 2 => world.append(at, usize::from(input.byte() % 16)),
            3 if at != other => world.follow(at, other, usize::from(input.byte())),
            4 => world.apply(at, usize::from(input.byte())),
            _ => world.note_token(at, usize::from(input.byte())),
        }
        world.check_tokens();
    }
    progress(Input::new(data));
    world.followed
}

const NODES: usize = 4;
/// More events of one input find nothing new.
const EVENTS_MAX: usize = 200;
/// Tokens compared with all logs after each event.
const TOKENS_MAX: usize = 8;
/// What a segment holds here: all logs of one input.
const SEGMENT_BYTES: u64 = 1 << 20;
/// LSNs between two units of a log.
const UNIT: u64 = 8;

#[derive(Default)]
struct Node {
    log_id: LogId,
    history: EpochHistory,
    highest: Epoch,
    /// One entry for each eight bytes: the reign that wrote them.
    log: Vec<Epoch>,
    applied: usize,
    /// It writes, in the reign that its history ends with.
    reigns: bool,
}

impl Node {
    fn end(&self) -> Lsn {
        lsn(self.log.len())
    }
}

struct World {
    nodes: [Node; NODES],
    nonce: u64,
    tokens: Vec<(Position, Vec<Epoch>)>,
    /// Times a node followed another; how many of these cut its log.
    followed: (u64, u64),
}

impl World {
    /// `copied`: its data directory is a copy, so it takes the number of the reign it knows.
    fn begin_reign(&mut self, at: usize, copied: bool) {
        self.nonce += 1;
        let (node, nonce) = (&mut self.nodes[at], self.nonce);
        let known = node.highest.counter.max(node.history.epoch().counter);
        let free = copied && known > node.history.epoch().counter;
        let counter = if free { known } else { known + 1 };
        let epoch = Epoch { counter, node_id: at as u64, nonce };
        assert!(node.history.push(epoch, node.end()));
        (node.highest, node.log_id, node.reigns) = (epoch, LOG, true);
        node.log.push(epoch);
    }

    fn append(&mut self, at: usize, units: usize) {
        let node = &mut self.nodes[at];
        if node.reigns {
            let epoch = node.history.epoch();
            node.log.extend(std::iter::repeat_n(epoch, units));
        }
    }

    fn apply(&mut self, at: usize, back: usize) {
        let node = &mut self.nodes[at];
        node.applied = node.applied.max(node.log.len().saturating_sub(back));
    }

    /// `at` says hello to `to`, and follows it if both agree, `units` of its log behind the cut.
    fn follow(&mut self, at: usize, to: usize, units: usize) {
        if !self.nodes[to].reigns {
            return;
        }
        let (mine, theirs) = (&self.nodes[at], &self.nodes[to]);
        let same = mine.log.iter().zip(&theirs.log).take_while(|(mine, theirs)| mine == theirs);
        let (shared, fresh) = (same.count(), mine.log.is_empty());
        let (resume, epoch) = (lsn(shared), theirs.history.epoch());
        let verdict = mine.highest.judge(&epoch);
        let answer = primary_of(theirs).handle_hello(0, 1, "host:1", &hello(mine), FIRST_FRAME);
        let expected = match verdict {
            EpochVerdict::Older => Err(RefuseCode::StalePrimary),
            EpochVerdict::Forked => Err(RefuseCode::ForkedEpoch),
            _ if !fresh && shared == 0 => Err(RefuseCode::Diverged),
            _ => Ok(resume),
        };
        let answer = answer.map(|accepted| accepted.resume).map_err(|refused| refused.code);
        assert_eq!(answer, expected, "the primary's answer to a hello");
        // A primary that knew less would have welcomed it: the replica judges for itself.
        let holdings = Holdings {
            log_id: mine.log_id,
            highest_epoch: mine.highest,
            history: &mine.history,
            end: mine.end(),
            applied: lsn(mine.applied),
        };
        let follow = holdings.judge(&welcome(theirs, resume)).map_err(|refused| refused.code);
        let expected = match expected {
            // No common reign: there is no place where a welcome could resume.
            Err(RefuseCode::Diverged) if mine.applied == 0 => Err(RefuseCode::Protocol),
            Err(code) => Err(code),
            Ok(_) if shared < mine.applied => Err(RefuseCode::Diverged),
            Ok(_) => Ok(Follow {
                adopt_log: mine.log_id == LogId::NONE,
                persist_epoch: verdict == EpochVerdict::Newer,
                cut_to: (shared < mine.log.len()).then_some(resume),
            }),
        };
        assert_eq!(follow, expected, "the replica's answer to a welcome");
        if let Ok(follow) = follow {
            self.followed.0 += 1;
            self.followed.1 += u64::from(follow.cut_to.is_some());
            let end = (shared + units).min(theirs.log.len());
            let (log, history) = (theirs.log[..end].to_vec(), theirs.history.clone());
            let node = &mut self.nodes[at];
            (node.log, node.history, node.log_id) = (log, history, LOG);
            node.history.cut(node.end());
            (node.highest, node.reigns) = (epoch, false);
        }
    }

    fn note_token(&mut self, at: usize, back: usize) {
        let node = &self.nodes[at];
        let end = node.log.len().saturating_sub(back);
        if end > 0 && self.tokens.len() < TOKENS_MAX {
            let position = Position { epoch: node.history.epoch_below(lsn(end)), lsn: lsn(end) };
            assert_eq!(position.epoch, node.log[end - 1], "who wrote the byte below a token");
            self.tokens.push((position, node.log[..end].to_vec()));
        }
    }

    fn check_tokens(&self) {
        for node in &self.nodes {
            for (position, written) in &self.tokens {
                let both = written.len().min(node.log.len());
                let same = written[..both] == node.log[..both];
                match node.history.locate(position) {
                    Located::OnHistory => assert!(same, "{position} was cut"),
                    Located::Lost => assert!(!same || both < written.len(), "{position} is there"),
                    Located::Unknown => assert!(both < written.len() || !same),
                }
            }
        }
    }
}

fn lsn(units: usize) -> Lsn {
    FIRST_FRAME.plus(units as u64 * UNIT)
}

fn primary_of(node: &Node) -> Primary {
    let reign = Reign {
        log_id: LOG,
        epoch: node.history.epoch(),
        epoch_start_end: Lsn(u64::MAX),
        replicas_max: 1,
        peer_timeout: 100,
    };
    Primary::new(reign, node.history.clone(), AckPolicy::Async, node.end(), FIRST_FRAME)
}

fn hello(node: &Node) -> Hello {
    Hello {
        versions: PROTOCOL_VERSIONS,
        log_id: node.log_id,
        node_id: 9,
        incarnation: 1,
        highest_epoch: node.highest,
        end: if node.log.is_empty() { Lsn::ZERO } else { node.end() },
        client_port: 7411,
        history: node.history.clone(),
        name: NodeName::new("replica").expect("a constant name is valid"),
    }
}

fn welcome(node: &Node, resume: Lsn) -> Welcome {
    Welcome {
        version: PROTOCOL_VERSIONS.1,
        log_id: LOG,
        node_id: 1,
        epoch: node.history.epoch(),
        resume,
        resume_chain: 0,
        segment: (Lsn::ZERO, SEGMENT_BYTES),
        frame_body_bytes_max: 4096,
        committed: FIRST_FRAME,
        heartbeat_ms: 500,
        peer_timeout_ms: 5000,
        wants_received: false,
        history: node.history.clone(),
        client_address: String::new(),
    }
}

/// Positions of one link, by name of the position: where it is, and since when.
fn progress(mut input: Input<'_>) {
    let (mut now, start): (Nanos, Lsn) = (u64::from(input.byte()), FIRST_FRAME);
    let mut progress = Progress::new(now, start, start);
    let names = ["received", "durable", "applied", "visible"];
    let mut model: BTreeMap<&str, (Lsn, Nanos)> =
        names.iter().map(|name| (*name, (start, now))).collect();
    for _ in 0..EVENTS_MAX {
        if input.is_done() {
            break;
        }
        now += u64::from(input.byte() % 16);
        let step = UNIT * u64::from(input.byte() % 8);
        let mut advance = |name, to: Lsn, always: bool| {
            let entry = model.get_mut(name).expect("one of the four");
            if to > entry.0 || always {
                *entry = (to, now);
            }
        };
        let ack = progress.ack(now);
        match input.below(3) {
            0 => {
                progress.received(now, ack.received.plus(step));
                advance("received", ack.received.plus(step), true);
            }
            1 => {
                let to = ack.durable.plus(step).min(ack.received);
                progress.durable(now, to);
                advance("durable", to, false);
            }
            _ => {
                let applied = ack.applied.plus(step).min(ack.durable);
                let visible = ack.visible.plus(step / 2).min(applied);
                progress.visible(now, applied, visible);
                advance("applied", applied, false);
                advance("visible", visible, false);
            }
        }
        let age = |name| now - model[name].1;
        let expected = Ack {
            received: model["received"].0,
            durable: model["durable"].0,
            applied: model["applied"].0,
            visible: model["visible"].0,
            received_age_ns: age("received"),
            durable_age_ns: age("durable"),
            applied_age_ns: age("applied"),
            visible_age_ns: age("visible"),
        };
        assert_eq!(progress.ack(now), expected);
    }
}
