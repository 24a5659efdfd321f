//! What must hold at every moment, looked at from outside: positions of every node, and the bytes
//! that it calls committed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rowship::apply::table::ScanLimits;
use rowship::log::segment::segment_file_name;
use rowship_proto::primary::FIRST_FRAME;
use rowship_proto::verify::find_live_frame;
use rowship_proto::{EpochHistory, LogId, Lsn};

use crate::cluster::{Cluster, Member, SimNode};
use crate::ledger::{Ledger, value_of};

/// Looks at the nodes of a cluster, again and again.
pub struct Probe {
    cluster: Rc<Cluster>,
    /// What was committed.
    pub ledger: RefCell<Ledger>,
    seen: RefCell<BTreeMap<String, Seen>>,
    /// Members whose disks have rotted: what they hold is no longer what they wrote.
    pub rotten: RefCell<BTreeSet<String>>,
    /// Times looked.
    pub looks: Cell<u64>,
}

/// What was seen of one process.
#[derive(Clone, Copy, Default)]
struct Seen {
    process: u64,
    /// Its committed bytes below have been held against the ledger.
    compared: Lsn,
    /// Highest visible position.
    visible: Lsn,
    /// A primary's: committed when it was seen first, and at the last look.
    committed: Option<(Lsn, Lsn)>,
}

/// A promise that was broken, in words.
pub type Violation = String;

impl Probe {
    /// A probe that has seen nothing yet.
    #[must_use]
    pub fn new(cluster: Rc<Cluster>) -> Probe {
        let (ledger, seen, rotten, looks) = Default::default();
        Probe { cluster, ledger, seen, rotten, looks }
    }

    /// Looks at all nodes that run.
    ///
    /// # Errors
    /// The first promise that is found broken.
    pub fn look(&self) -> Result<(), Violation> {
        self.looks.set(self.looks.get() + 1);
        for member in self.cluster.running() {
            let Some(node) = member.node() else { continue };
            let name = member.name();
            self.look_at(member, &node).map_err(|what| format!("{name}: {what}"))?;
        }
        Ok(())
    }

    fn look_at(&self, member: &Member, node: &SimNode) -> Result<(), Violation> {
        let mut all = self.seen.borrow_mut();
        let seen = all.entry(member.name().to_owned()).or_default();
        if seen.process != member.process_id() {
            *seen = Seen { process: member.process_id(), ..Seen::default() };
        }
        check_positions(node, seen)?;
        if let Some(primary) = node.primary() {
            let history = primary.machine.borrow().history().clone();
            check_reign(node, &history, seen)?;
        }
        let log_id = node.log_id.get();
        if log_id == LogId::NONE || self.rotten.borrow().contains(member.name()) {
            return Ok(());
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.name(log_id.seed());
        if newest_counter(node) < ledger.counter_min() {
            return Ok(());
        }
        check_end(member, node, log_id.seed())?;
        let segments = member.segments();
        let Some(oldest) = segments.first().map(|base| base.plus(FIRST_FRAME.0)) else {
            return Ok(());
        };
        // Frames, not parts of them: what is committed beyond this node's end says nothing here.
        let committed = node.committed.get().min(node.durable.get());
        let from = seen.compared.max(oldest);
        seen.compared = ledger.compare(&member.machine.disk, &segments, from, committed)?;
        Ok(())
    }

    /// Holds every row of a node's table against the ledger, at the position that it shows.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_table(&self, member: &Member) -> Result<(), Violation> {
        let node = member.node().ok_or_else(|| format!("{} does not run", member.name()))?;
        let ledger = self.ledger.borrow();
        let pin = node.table.pin();
        let (mut found, mut from) = (BTreeMap::new(), 0);
        loop {
            let limits = ScanLimits { rows_max: 1000, bytes_max: 1 << 20 };
            let page = node.table.scan(pin.at(), from, limits);
            let page = page.map_err(|error| error.to_string())?;
            for row in page.rows {
                let key = ledger.client_key(row.table, &row.key)?;
                found.insert(key, value_of(&row.value)?);
            }
            let Some(next) = page.next_hash else { break };
            from = next;
        }
        let expected = ledger.state_at(pin.at());
        if found == expected {
            let rows = node.applied.mark().rows;
            if rows != found.len() as u64 {
                let there = found.len();
                return Err(format!("{}: counts {rows} rows, {there} are there", member.name()));
            }
            return Ok(());
        }
        let all: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        let differs = |key: &&&Vec<u8>| found.get(**key) != expected.get(**key);
        let key = all.iter().find(differs).expect("they differ");
        Err(format!(
            "{}: row {} at LSN {} is {}, but the log says {}",
            member.name(),
            String::from_utf8_lossy(key),
            pin.at(),
            short(found.get(*key)),
            short(expected.get(*key)),
        ))
    }
}

/// Bytes behind the end of a log that are looked at: more than one write may leave there.
const BEHIND_BYTES: usize = 12 << 10;

/// While nothing is written, no live frame stands behind the end of the log: a later recovery
/// would take it for a part of the log, or for damage.
fn check_end(member: &Member, node: &SimNode, seed: u64) -> Result<(), Violation> {
    let end = node.appended.get();
    let quiet = node.writes.is_idle() && node.segments.changing.try_lock().is_ok();
    let held = node.segments.maps.borrow().segment_of(end);
    let Some((base, _)) = held.filter(|_| quiet && end == node.durable.get()) else {
        return Ok(());
    };
    let offset = end.since(base);
    let bytes = member.machine.disk.peek(&segment_file_name(base), offset, BEHIND_BYTES);
    match find_live_frame(&bytes, end, seed) {
        None => Ok(()),
        Some(lsn) => Err(format!("the log ends at {end}, but a live frame stands at {lsn}")),
    }
}

fn short(value: Option<&crate::ledger::Value>) -> String {
    let text = format!("{value:?}");
    text.chars().take(80).collect()
}

fn newest_counter(node: &SimNode) -> u64 {
    match node.primary() {
        Some(primary) => primary.machine.borrow().history().epoch().counter,
        None => node.state.borrow().history.epoch().counter,
    }
}

fn check_positions(node: &SimNode, seen: &mut Seen) -> Result<(), Violation> {
    let shown = node.visible.get();
    let visible = node.applied.visible();
    let (dispatched, durable) = (node.dispatched.get(), node.durable.get());
    let (committed, appended) = (node.committed.get(), node.appended.get());
    let positions = format!(
        "shown {shown}, visible {visible}, dispatched {dispatched}, committed {committed}, \
         durable {durable}, appended {appended}"
    );
    // A replica without a log stands at the first frame, and its log at zero.
    let fresh = appended == Lsn::ZERO;
    let below = |low: Lsn, high: Lsn| low <= high || (fresh && low <= FIRST_FRAME);
    // What a primary commits is durable there first; a replica applies what it has received.
    let held = if node.primary().is_some() { durable } else { appended };
    let ordered = below(shown, visible)
        && below(visible, dispatched)
        && below(dispatched, committed)
        && below(dispatched, held)
        && below(durable, appended);
    if !ordered {
        return Err(format!("positions out of order: {positions}"));
    }
    if visible < seen.visible {
        return Err(format!("visible went back from {}: {positions}", seen.visible));
    }
    seen.visible = visible;
    Ok(())
}

/// What a primary says is committed never goes back; and what it has inherited commits only
/// together with the start record of its own epoch.
fn check_reign(node: &SimNode, history: &EpochHistory, seen: &mut Seen) -> Result<(), Violation> {
    let now = node.committed.get();
    let (first, last) = *seen.committed.get_or_insert((now, now));
    let start = history.last().map_or(Lsn::ZERO, |entry| entry.start);
    if now < last {
        return Err(format!("committed went back from {last} to {now}"));
    }
    if now > first && now <= start {
        return Err(format!(
            "{now} of the inherited tail was committed without the epoch's start at {start}"
        ));
    }
    seen.committed = Some((first, now));
    Ok(())
}
