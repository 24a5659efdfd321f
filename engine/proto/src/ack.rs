//! When is a byte committed: the ack policies, and the pure functions from positions to positions.
//!
//! `committed` never depends on `visible` (a replica applies only what is committed, so that would
//! wait for itself). The word for a policy is the same in the configuration, in `ROWSHIP.ACK`, in
//! the log's control records and in status:
//!
//! ```text
//! async
//! semi-sync [FIRST|ANY] k [received|durable] [(name, ...)]
//! sync [committed|visible] (name, ...)
//! ```
//!
//! `memory` exists for single connections only: see [`ClientPolicy`].

use std::fmt;
use std::str::FromStr;

use crate::position::Lsn;
use crate::sim::{Bug, Mark, mark, planted};

/// Most names in a policy; more would not be a list that somebody keeps in mind.
pub const POLICY_NAMES_MAX: usize = 64;
/// Longest name of a node in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 64;

/// How much a replica must have done with a byte before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckLevel {
    /// Arrived, and header, chain and checksums hold; in memory.
    Received,
    /// Survives power loss there.
    Durable,
}

/// Whose acknowledgements count for semi-sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// Any of the replicas that are connected.
    AnyReplica,
    /// Any of these.
    AnyOf(Vec<NodeName>),
    /// The first `k` of these, in this order, that are connected.
    FirstOf(Vec<NodeName>),
}

/// When `committed` moves, and when replies leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Durable on the primary.
    Async,
    /// Durable on the primary, and at `level` on `count` replicas.
    SemiSync {
        /// How many replicas.
        count: usize,
        /// What they must have done.
        level: AckLevel,
        /// Which ones count.
        quorum: Quorum,
    },
    /// Durable on the primary and on every named replica.
    Sync {
        /// The replicas.
        names: Vec<NodeName>,
        /// Replies also wait until their bytes are visible on all of them.
        visible: bool,
    },
}

/// What one connection asked for with `ROWSHIP.ACK`: it moves only that connection's own write
/// replies, never `committed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientPolicy {
    /// The node's policy.
    #[default]
    Node,
    /// Reply at once; the write may vanish even without a crash of the machine.
    Memory,
    /// This policy, more or less than the node's.
    Policy(AckPolicy),
}

/// A checked name of a node: 1 to [`NODE_NAME_BYTES_MAX`] of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// A policy or name that does not parse; the text says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPolicy(pub String);

/// What the primary knows of one replica when it decides.
#[derive(Clone, Debug)]
pub struct ReplicaPositions<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// Connected, and past its handshake.
    pub streaming: bool,
    /// It acknowledged these, on this connection.
    pub received: Lsn,
    /// It acknowledged these, on this connection.
    pub durable: Lsn,
    /// It acknowledged these, on this connection.
    pub visible: Lsn,
}

impl NodeName {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidPolicy`] that says what a name may hold.
    pub fn new(text: &str) -> Result<NodeName, InvalidPolicy> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=NODE_NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed) {
            Ok(NodeName(text.to_owned()))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(InvalidPolicy(format!(
                "'{shown}' is not a node name: 1 to {NODE_NAME_BYTES_MAX} characters of A-Z a-z \
                 0-9 . _ - are allowed"
            )))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AckPolicy {
    /// The highest LSN for which the policy holds, for `committed`. Not yet bounded by the
    /// inherited tail: see [`crate::primary`].
    #[must_use]
    pub fn holds_to(&self, durable_here: Lsn, replicas: &[ReplicaPositions<'_>]) -> Lsn {
        let there = match self {
            AckPolicy::Async => durable_here,
            AckPolicy::SemiSync { count, level, quorum } => {
                semi_sync_holds_to(*count, *level, quorum, replicas)
            }
            AckPolicy::Sync { names, .. } => all_hold_to(names, replicas, |r| r.durable),
        };
        there.min(durable_here)
    }

    /// The highest LSN for which replies may leave, given `committed` (or what stands for it).
    #[must_use]
    pub fn replies_to(&self, committed: Lsn, replicas: &[ReplicaPositions<'_>]) -> Lsn {
        match self {
            AckPolicy::Sync { names, visible: true } => {
                all_hold_to(names, replicas, |replica| replica.visible).min(committed)
            }
            _ => committed,
        }
    }

    /// Names of the replicas that must be connected for the policy to be met and are not, or
    /// a count when any replica would do. Empty when it can be met now.
    #[must_use]
    pub fn missing(&self, replicas: &[ReplicaPositions<'_>]) -> Vec<String> {
        let streams = |name: &&NodeName| !replicas.iter().any(|r| r.streaming && r.name == *name);
        match self {
            AckPolicy::Async => Vec::new(),
            AckPolicy::Sync { names, .. } => {
                names.iter().filter(streams).map(NodeName::to_string).collect()
            }
            AckPolicy::SemiSync { count, quorum: Quorum::AnyReplica, .. } => {
                let live = replicas.iter().filter(|replica| replica.streaming).count();
                let short = count.saturating_sub(live);
                if short == 0 { Vec::new() } else { vec![format!("any {short} more replica(s)")] }
            }
            AckPolicy::SemiSync {
                count,
                quorum: Quorum::AnyOf(names) | Quorum::FirstOf(names),
                ..
            } => {
                let absent: Vec<_> =
                    names.iter().filter(streams).map(NodeName::to_string).collect();
                if names.len() - absent.len() >= *count { Vec::new() } else { absent }
            }
        }
    }

    /// Whether some policy decision waits for `received`, so that replicas should acknowledge it
    /// at once instead of together with `durable`.
    #[must_use]
    pub fn wants_received(&self) -> bool {
        matches!(self, AckPolicy::SemiSync { level: AckLevel::Received, .. })
    }

    /// Whether replies wait for `visible` of replicas.
    #[must_use]
    pub fn wants_visible(&self) -> bool {
        matches!(self, AckPolicy::Sync { visible: true, .. })
    }

    /// Whether some decision waits for `durable` of a replica, so that replicas should write at
    /// once what they receive.
    #[must_use]
    pub fn wants_durable(&self) -> bool {
        match self {
            AckPolicy::Async => false,
            AckPolicy::SemiSync { level, .. } => *level == AckLevel::Durable,
            AckPolicy::Sync { .. } => true,
        }
    }
}

fn semi_sync_holds_to(
    count: usize,
    level: AckLevel,
    quorum: &Quorum,
    replicas: &[ReplicaPositions<'_>],
) -> Lsn {
    let position = |replica: &ReplicaPositions<'_>| match level {
        AckLevel::Received => replica.received.max(replica.durable),
        AckLevel::Durable if planted(Bug::ReceivedCountsAsDurable) => replica.received,
        AckLevel::Durable => replica.durable,
    };
    let live = |name: &NodeName| replicas.iter().find(|r| r.streaming && r.name == name);
    let mut positions: Vec<Lsn> = match quorum {
        Quorum::AnyReplica => {
            replicas.iter().filter(|replica| replica.streaming).map(position).collect()
        }
        Quorum::AnyOf(names) => names.iter().filter_map(live).map(position).collect(),
        Quorum::FirstOf(names) => names.iter().filter_map(live).take(count).map(position).collect(),
    };
    if positions.len() < count {
        mark(Mark::WaitedForReplica);
        return Lsn::ZERO;
    }
    positions.sort_unstable_by(|a, b| b.cmp(a));
    positions[count - 1]
}

fn all_hold_to(
    names: &[NodeName],
    replicas: &[ReplicaPositions<'_>],
    position: impl Fn(&ReplicaPositions<'_>) -> Lsn,
) -> Lsn {
    let at = |name: &NodeName| {
        let replica = replicas.iter().find(|replica| replica.streaming && replica.name == name);
        replica.map_or(Lsn::ZERO, &position)
    };
    names.iter().map(at).min().unwrap_or(Lsn::ZERO)
}

impl fmt::Display for AckPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |names: &[NodeName]| names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        match self {
            AckPolicy::Async => f.write_str("async"),
            AckPolicy::SemiSync { count, level, quorum } => {
                let level = match level {
                    AckLevel::Received => "received",
                    AckLevel::Durable => "durable",
                };
                match quorum {
                    Quorum::AnyReplica => write!(f, "semi-sync ANY {count} {level}"),
                    Quorum::AnyOf(names) => {
                        write!(f, "semi-sync ANY {count} {level} ({})", list(names))
                    }
                    Quorum::FirstOf(names) => {
                        write!(f, "semi-sync FIRST {count} {level} ({})", list(names))
                    }
                }
            }
            AckPolicy::Sync { names, visible } => {
                let until = if *visible { "visible" } else { "committed" };
                write!(f, "sync {until} ({})", list(names))
            }
        }
    }
}

impl FromStr for AckPolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<AckPolicy, InvalidPolicy> {
        let (words, names) = split_names(text)?;
        let mut words = words.into_iter().peekable();
        let policy = match words.next().as_deref() {
            Some("async") if names.is_none() => AckPolicy::Async,
            Some("semi-sync") => {
                let order = words.next_if(|word| matches!(word.as_str(), "first" | "any"));
                let count = match words.next_if(|word| word.parse::<usize>().is_ok()) {
                    Some(word) => word.parse().map_err(|_| grammar(text))?,
                    None => 1,
                };
                let level = match words.next_if(|w| matches!(w.as_str(), "received" | "durable")) {
                    Some(word) if word == "received" => AckLevel::Received,
                    _ => AckLevel::Durable,
                };
                let quorum = match (order.as_deref(), names) {
                    (Some("first"), Some(names)) => Quorum::FirstOf(names),
                    (Some("first"), None) => return Err(grammar(text)),
                    (_, Some(names)) => Quorum::AnyOf(names),
                    (_, None) => Quorum::AnyReplica,
                };
                AckPolicy::SemiSync { count, level, quorum }
            }
            Some("sync") => {
                let until = words.next_if(|w| matches!(w.as_str(), "visible" | "committed"));
                let visible = until.as_deref() != Some("committed");
                let names = names.ok_or_else(|| {
                    InvalidPolicy("sync needs the names of its replicas: sync (a, b)".to_owned())
                })?;
                AckPolicy::Sync { names, visible }
            }
            _ => return Err(grammar(text)),
        };
        if words.next().is_some() {
            return Err(grammar(text));
        }
        policy.check()
    }
}

impl AckPolicy {
    fn check(self) -> Result<AckPolicy, InvalidPolicy> {
        if let AckPolicy::SemiSync { count, quorum, .. } = &self {
            let named = match quorum {
                Quorum::AnyReplica => POLICY_NAMES_MAX,
                Quorum::AnyOf(names) | Quorum::FirstOf(names) => names.len(),
            };
            if *count == 0 || *count > named {
                return Err(InvalidPolicy(format!(
                    "semi-sync with {count} replica(s) cannot be met: 1 to {named} are possible"
                )));
            }
        }
        Ok(self)
    }
}

fn grammar(text: &str) -> InvalidPolicy {
    let shown: String = text.chars().take(120).collect();
    InvalidPolicy(format!(
        "'{shown}' is not an ack policy; allowed: async | semi-sync [FIRST|ANY] [k] \
         [received|durable] [(name, ...)] | sync [visible|committed] (name, ...)"
    ))
}

/// Splits `text` into lower-case words and the list in parentheses at its end.
fn split_names(text: &str) -> Result<(Vec<String>, Option<Vec<NodeName>>), InvalidPolicy> {
    let (head, list) = match text.split_once('(') {
        None => (text, None),
        Some((head, rest)) => {
            let list = rest.trim_end().strip_suffix(')').ok_or_else(|| grammar(text))?;
            (head, Some(list))
        }
    };
    let words = head.split_whitespace().map(str::to_ascii_lowercase).collect();
    let Some(list) = list else { return Ok((words, None)) };
    let mut names = Vec::new();
    for name in list.split(',') {
        let name = NodeName::new(name.trim())?;
        if names.contains(&name) {
            return Err(InvalidPolicy(format!("replica '{name}' is named twice")));
        }
        names.push(name);
    }
    if names.len() > POLICY_NAMES_MAX {
        return Err(InvalidPolicy(format!("more than {POLICY_NAMES_MAX} replica names")));
    }
    Ok((words, Some(names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn policy(text: &str) -> AckPolicy {
        text.parse().unwrap()
    }

    fn holds(text: &str, here: u64, replicas: &[(&str, bool, u64, u64)]) -> u64 {
        let names: Vec<_> = replicas.iter().map(|replica| name(replica.0)).collect();
        let positions: Vec<_> = replicas
            .iter()
            .zip(&names)
            .map(|(&(_, streaming, received, durable), name)| ReplicaPositions {
                name,
                streaming,
                received: Lsn(received),
                durable: Lsn(durable),
                visible: Lsn::ZERO,
            })
            .collect();
        policy(text).holds_to(Lsn(here), &positions).0
    }

    #[test]
    fn policies_round_trip_through_text() {
        for text in [
            "async",
            "semi-sync ANY 1 durable",
            "semi-sync ANY 2 received (a, b, c)",
            "semi-sync FIRST 1 durable (a, b)",
            "sync visible (a)",
            "sync committed (a, b)",
        ] {
            assert_eq!(policy(text).to_string(), text);
        }
        assert_eq!(policy("semi-sync").to_string(), "semi-sync ANY 1 durable");
        assert_eq!(policy("sync (a,b)").to_string(), "sync visible (a, b)");
    }

    #[test]
    fn policies_that_cannot_be_met_or_read_are_refused() {
        for text in [
            "",
            "asink",
            "async (a)",
            "semi-sync 0",
            "semi-sync 3 (a, b)",
            "sync",
            "sync ()",
            "semi-sync FIRST 1",
            "sync (a, a)",
            "sync (a",
            "async now",
            "sync (a b)",
        ] {
            assert!(text.parse::<AckPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn who_waits_for_a_replicas_disk_says_so() {
        for (text, wants) in [
            ("async", false),
            ("semi-sync 1 received", false),
            ("semi-sync 1 durable", true),
            ("sync committed (a)", true),
        ] {
            assert_eq!(policy(text).wants_durable(), wants, "{text}");
        }
    }

    #[test]
    fn async_commits_what_is_durable_here() {
        assert_eq!(holds("async", 100, &[]), 100);
    }

    #[test]
    fn semi_sync_takes_the_kth_best_and_never_more_than_here() {
        let replicas = [("a", true, 90, 80), ("b", true, 70, 60), ("c", false, 100, 100)];
        assert_eq!(holds("semi-sync 1", 100, &replicas), 80);
        assert_eq!(holds("semi-sync 2", 100, &replicas), 60);
        assert_eq!(holds("semi-sync 3", 100, &replicas), 0);
        assert_eq!(holds("semi-sync 1 received", 100, &replicas), 90);
        assert_eq!(holds("semi-sync 1 received", 50, &replicas), 50);
        assert_eq!(holds("semi-sync 1 (b, c)", 100, &replicas), 60);
    }

    #[test]
    fn first_waits_for_its_first_connected_names() {
        let replicas = [("a", true, 10, 10), ("b", true, 70, 60)];
        assert_eq!(holds("semi-sync FIRST 1 (a, b)", 100, &replicas), 10);
        let replicas = [("a", false, 10, 10), ("b", true, 70, 60)];
        assert_eq!(holds("semi-sync FIRST 1 (a, b)", 100, &replicas), 60);
    }

    #[test]
    fn sync_waits_for_every_name_even_an_absent_one() {
        let replicas = [("a", true, 90, 80), ("b", true, 70, 60)];
        assert_eq!(holds("sync (a, b)", 100, &replicas), 60);
        assert_eq!(holds("sync (a, b, c)", 100, &replicas), 0);
    }

    #[test]
    fn missing_names_whom_a_write_would_wait_for() {
        let (a, b) = (name("a"), name("b"));
        let at = |name, streaming| ReplicaPositions {
            name,
            streaming,
            received: Lsn::ZERO,
            durable: Lsn::ZERO,
            visible: Lsn::ZERO,
        };
        let replicas = [at(&a, true), at(&b, false)];
        assert_eq!(policy("sync (a, b, c)").missing(&replicas), ["b", "c"]);
        assert!(policy("semi-sync 1").missing(&replicas).is_empty());
        assert_eq!(policy("semi-sync 2").missing(&replicas), ["any 1 more replica(s)"]);
        assert!(policy("semi-sync 1 (a, b)").missing(&replicas).is_empty());
    }
}
