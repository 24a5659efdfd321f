//! Holds what clients were told against the ledger, when all is over.
//!
//! The ledger gives every write its place, so there is nothing to search for: a write that was
//! acknowledged has one place, in the order in which clients saw it done; a write that was refused
//! has none; a read shows the rows of one single position.

use std::collections::{BTreeMap, BTreeSet};

use rowship_proto::Lsn;

use crate::history::{Action, Op, Outcome};
use crate::ledger::{Ledger, Value, Version};
use crate::probe::Violation;

/// What the checker must know beside the ledger and the history.
#[derive(Default)]
pub struct Context {
    /// Moments (of the history's clock) at which a promotion gave up what was not replicated, as
    /// the policy allows: what was acknowledged before may be lost.
    pub given_up: Vec<u64>,
    /// Since when a primary's process was no longer the primary, whether it knew or not.
    pub superseded: BTreeMap<u64, u64>,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    /// Acknowledged writes.
    pub acked: u64,
    /// Refused ones.
    pub refused: u64,
    /// Those nobody was told about.
    pub open: u64,
    /// Reads.
    pub reads: u64,
    /// Answers of WAITPOS.
    pub waits: u64,
    /// Censuses.
    pub censuses: u64,
}

/// Where a write stands: the end of its transaction, once for each time it is there.
type Places = BTreeMap<Vec<u8>, Vec<Lsn>>;

/// Checks a whole history.
///
/// # Errors
/// The first promise that was broken.
pub fn check(ledger: &Ledger, ops: &[Op], context: &Context) -> Result<Checked, Violation> {
    let mut checker =
        Checker { ledger, context, places: places(ledger), checked: Checked::default() };
    checker.check_writes(ops)?;
    checker.check_counters(ops)?;
    checker.check_order(ops)?;
    checker.check_reads(ops)?;
    checker.check_waits(ops)?;
    checker.check_censuses(ops)?;
    Ok(checker.checked)
}

struct Checker<'a> {
    ledger: &'a Ledger,
    context: &'a Context,
    places: Places,
    checked: Checked,
}

fn identity(value: &Value) -> Vec<u8> {
    match value {
        Value::Text(text) => text.clone(),
        Value::Columns(columns) => columns[0].1.clone(),
    }
}

fn places(ledger: &Ledger) -> Places {
    let mut places = Places::new();
    for versions in ledger.rows().values() {
        for version in versions {
            if let Some(value) = &version.value {
                places.entry(identity(value)).or_default().push(version.end);
            }
        }
    }
    places
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned()
}

impl Checker<'_> {
    /// Whether a write acknowledged then may be gone; replies of a primary that was given up may
    /// still have been on their way.
    fn may_be_lost(&self, op: &Op) -> bool {
        let given_up = &self.context.given_up;
        let late = !given_up.is_empty() && self.context.superseded.contains_key(&op.process);
        late || given_up.iter().any(|moment| *moment >= op.replied)
    }

    fn check_writes(&mut self, ops: &[Op]) -> Result<(), Violation> {
        for op in ops {
            let Action::Write { keys, value } = &op.action else { continue };
            let id = identity(value);
            let places = self.places.get(&id).map_or(&[][..], Vec::as_slice);
            let name = shown(&id);
            if !places.is_empty() && places.len() != keys.len() {
                return Err(format!("write {name} of {} rows is at {places:?}", keys.len()));
            }
            if places.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(format!("write {name} was taken apart: it is at {places:?}"));
            }
            match &op.outcome {
                Outcome::Acked | Outcome::Number(_) => {
                    self.checked.acked += 1;
                    if places.is_empty() && !self.may_be_lost(op) {
                        return Err(format!("acknowledged write {name} is lost"));
                    }
                }
                Outcome::Refused(text) => {
                    self.checked.refused += 1;
                    if !places.is_empty() {
                        return Err(format!("write {name} was refused ({text}) and happened"));
                    }
                }
                Outcome::Pending | Outcome::Open(_) | Outcome::Unknown(_) => {
                    self.checked.open += 1;
                }
                Outcome::Rows(_) | Outcome::Answer(_) | Outcome::Counted(_) => {
                    return Err(format!("write {name} was answered with {:?}", op.outcome));
                }
            }
        }
        Ok(())
    }

    /// Every increment that was acknowledged is in the counter, once.
    fn check_counters(&mut self, ops: &[Op]) -> Result<(), Violation> {
        let mut told: BTreeMap<&[u8], (BTreeSet<i64>, u64)> = BTreeMap::new();
        for op in ops {
            let Action::Increment { key } = &op.action else { continue };
            let (numbers, open) = told.entry(key).or_default();
            match &op.outcome {
                Outcome::Number(number) => {
                    self.checked.acked += 1;
                    let again = !numbers.insert(*number);
                    if again && self.context.given_up.is_empty() {
                        let key = shown(key);
                        return Err(format!("two clients were told that {key} is {number}"));
                    }
                }
                Outcome::Refused(_) => self.checked.refused += 1,
                _ => *open += 1,
            }
        }
        if !self.context.given_up.is_empty() {
            return Ok(());
        }
        for (key, (numbers, open)) in told {
            let versions = self.ledger.versions(key);
            let last = versions.last().and_then(|version| version.value.clone());
            let last = last.map_or(0, |value| {
                String::from_utf8_lossy(&identity(&value)).parse::<i64>().unwrap_or(-1)
            });
            let (least, most) = (numbers.len() as i64, numbers.len() as i64 + open as i64);
            if !(least..=most).contains(&last) || last != versions.len() as i64 {
                return Err(format!(
                    "counter {} is {last} after {least} acknowledged and {open} open increments \
                     ({} rows of it)",
                    shown(key),
                    versions.len()
                ));
            }
        }
        Ok(())
    }

    fn place(&self, op: &Op) -> Option<Lsn> {
        let Action::Write { value, .. } = &op.action else { return None };
        self.places.get(&identity(value)).and_then(|places| places.first().copied())
    }

    /// A write that was acknowledged before another was begun stands before it.
    fn check_order(&self, ops: &[Op]) -> Result<(), Violation> {
        let mut placed: Vec<(Lsn, &Op)> =
            ops.iter().filter_map(|op| Some((self.place(op)?, op))).collect();
        placed.sort_by_key(|(lsn, _)| *lsn);
        let mut latest = 0;
        for (lsn, op) in placed {
            if acked(op) && op.replied < latest {
                return Err(format!(
                    "a write at {lsn} was acknowledged before one that stands below it was begun"
                ));
            }
            latest = latest.max(op.invoked);
        }
        Ok(())
    }

    fn check_reads(&mut self, ops: &[Op]) -> Result<(), Violation> {
        // The highest acknowledged position by the moment of its reply.
        let mut floors: Vec<(u64, Lsn)> = ops
            .iter()
            .filter(|op| acked(op))
            .filter_map(|op| Some((op.replied, self.place(op)?)))
            .collect();
        floors.sort_unstable();
        let mut highest = Lsn::ZERO;
        for floor in &mut floors {
            highest = highest.max(floor.1);
            floor.1 = highest;
        }
        let mut sessions: BTreeMap<u64, Lsn> = BTreeMap::new();
        for op in ops {
            let (Action::Read { keys, after }, Outcome::Rows(rows)) = (&op.action, &op.outcome)
            else {
                continue;
            };
            self.checked.reads += 1;
            check_group(rows)?;
            let Some((from, to)) = self.interval(keys, rows)? else { continue };
            let mut floor = after.map_or(Lsn::ZERO, |token| token.lsn);
            let superseded = self.context.superseded.get(&op.process);
            if op.on_primary && superseded.is_none_or(|since| *since > op.replied) {
                let before = floors.partition_point(|(replied, _)| *replied < op.invoked);
                floor = floor.max(before.checked_sub(1).map_or(Lsn::ZERO, |at| floors[at].1));
            }
            let session = sessions.entry(op.connection).or_default();
            floor = floor.max(*session);
            if to <= floor && self.context.given_up.is_empty() {
                return Err(format!(
                    "a read of {} shows positions {from} to {to}, but {floor} was seen before",
                    keys.iter().map(|key| shown(key)).collect::<Vec<_>>().join(" ")
                ));
            }
            *session = (*session).max(from);
        }
        Ok(())
    }

    /// The positions at which these rows are what a reader sees: from the first, below the second.
    fn interval(
        &self,
        keys: &[Vec<u8>],
        rows: &[Option<Value>],
    ) -> Result<Option<(Lsn, Lsn)>, Violation> {
        let mut candidates = vec![(Lsn::ZERO, Lsn(u64::MAX))];
        for (key, row) in keys.iter().zip(rows) {
            let spans = spans(self.ledger.versions(key), row.as_ref());
            let mut both = Vec::new();
            for (from, to) in candidates {
                for (start, end) in &spans {
                    let (from, to) = (from.max(*start), to.min(*end));
                    if from < to {
                        both.push((from, to));
                    }
                }
            }
            candidates = both;
        }
        // The widest claim in the reader's favour: any of the positions may have been the one.
        let from = candidates.iter().map(|span| span.0).min();
        let to = candidates.iter().map(|span| span.1).max();
        match (from, to) {
            (Some(from), Some(to)) => Ok(Some((from, to))),
            _ if !self.context.given_up.is_empty() => Ok(None),
            _ => {
                let pair = |(key, row): (&Vec<u8>, &Option<Value>)| {
                    let row = row.as_ref().map(|value| shown(&identity(value)));
                    format!("{}={row:?}", shown(key))
                };
                let all: Vec<String> = keys.iter().zip(rows).map(pair).collect();
                Err(format!("a read shows rows of no single position: {}", all.join(" ")))
            }
        }
    }

    fn check_waits(&mut self, ops: &[Op]) -> Result<(), Violation> {
        for op in ops {
            let (Action::Wait { about, token }, Outcome::Answer(answer)) =
                (&op.action, &op.outcome)
            else {
                continue;
            };
            self.checked.waits += 1;
            let there = match &ops[*about].action {
                Action::Write { .. } => self.place(&ops[*about]),
                _ => continue,
            };
            let lossy = self.may_be_lost(op);
            let name = format!("WAITPOS {token} was answered {answer}");
            match (answer.as_str(), there) {
                ("reached", None) if !lossy => {
                    return Err(format!("{name}, but the write is not there"));
                }
                // A primary that was replaced knows only its own reigns.
                ("lost", Some(_)) if self.context.superseded.contains_key(&op.process) => {}
                ("lost", Some(lsn)) => return Err(format!("{name}, but the write is at {lsn}")),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Checker<'_> {
    fn check_censuses(&mut self, ops: &[Op]) -> Result<(), Violation> {
        for op in ops {
            let Outcome::Counted(found) = &op.outcome else { continue };
            self.checked.censuses += 1;
            if let Some(found) = found {
                return Err(format!("inside one EXEC {found}"));
            }
        }
        Ok(())
    }
}

fn acked(op: &Op) -> bool {
    matches!(op.outcome, Outcome::Acked | Outcome::Number(_))
}

/// The first three rows of every read were always written together.
fn check_group(rows: &[Option<Value>]) -> Result<(), Violation> {
    if rows[0] == rows[1] && rows[1] == rows[2] {
        return Ok(());
    }
    let shown = |row: &Option<Value>| row.as_ref().map(|value| shown(&identity(value)));
    Err(format!(
        "half a transaction was seen: {:?}",
        rows[..3].iter().map(shown).collect::<Vec<_>>()
    ))
}

/// Positions at which this key has this value.
fn spans(versions: &[Version], value: Option<&Value>) -> Vec<(Lsn, Lsn)> {
    let mut spans = Vec::new();
    let mut at = (Lsn::ZERO, None);
    for version in versions {
        if at.1 == value {
            spans.push((at.0, version.end));
        }
        at = (version.end, version.value.as_ref());
    }
    if at.1 == value {
        spans.push((at.0, Lsn(u64::MAX)));
    }
    spans
}
