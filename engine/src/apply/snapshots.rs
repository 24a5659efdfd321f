//! Which versions of a row somebody may still need.
//!
//! A version is needed only through the positions at which the table is or will be read:
//! - pinned positions,
//! - the newest published position and everything that will be published after it ("live"),
//! - positions at which this node may find itself after a restart: the durable position in
//!   `node.state`, and those that will be written there next (one per sealed memtable). What is
//!   above such a position is replayed before anything beyond it is read.
//!
//! A reader at p sees the newest version below p. So of two versions `older < newer` of one key,
//! the older one can go unless some such p has `older < p <= newer`. That is exact: a pin held for
//! an hour keeps one version per key, not all versions of that hour.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use rowship_proto::Lsn;
use rowship_sync::sync::atomic::{AtomicU64, Ordering};
use rowship_sync::sync::{Mutex, MutexGuard};

use super::publish::Mark;

/// The positions at which one table is read.
#[derive(Debug)]
pub struct Snapshots {
    positions: Mutex<Positions>,
    /// Highest `live` any collection has used: unpinned readers below it may miss versions.
    floor: AtomicU64,
}

#[derive(Debug)]
struct Positions {
    published: Mark,
    /// Positions a restart may begin at, ascending: the recorded one, then the promised ones.
    /// Bounded by the number of sealed memtables plus those not yet recorded.
    restarts: Vec<Lsn>,
    /// How many pins hold each position. Bounded by the number of readers.
    pins: BTreeMap<Lsn, usize>,
}

/// An unpinned position whose versions may be gone. Read again at the newest published one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {at} is not pinned, and versions below {floor} have been collected")]
pub struct Collected {
    /// Where the read was.
    pub at: Lsn,
    /// Where unpinned reads begin.
    pub floor: Lsn,
}

impl Snapshots {
    /// A table that was opened at `durable`.
    #[must_use]
    pub fn new(durable: Mark) -> Arc<Snapshots> {
        let restarts = vec![durable.lsn];
        let positions = Positions { published: durable, restarts, pins: BTreeMap::new() };
        Arc::new(Snapshots { positions: Mutex::new(positions), floor: AtomicU64::new(0) })
    }

    /// Takes notice of a new published position.
    pub fn publish(&self, mark: Mark) {
        let mut positions = self.lock();
        debug_assert!(positions.published.lsn <= mark.lsn);
        positions.published = mark;
    }

    /// The newest published position.
    #[must_use]
    pub fn published(&self) -> Mark {
        self.lock().published
    }

    /// The newest published position, which from now on may be where a restart begins.
    #[must_use]
    pub fn promise(&self) -> Mark {
        let mut positions = self.lock();
        let mark = positions.published;
        if positions.restarts.last() != Some(&mark.lsn) {
            positions.restarts.push(mark.lsn);
        }
        mark
    }

    /// Restarts begin at `durable` or at what has been promised above it.
    pub fn recorded(&self, durable: Lsn) {
        let mut positions = self.lock();
        positions.restarts.retain(|position| *position > durable);
        positions.restarts.insert(0, durable);
    }

    /// Pins the newest published position.
    #[must_use]
    pub fn pin(self: &Arc<Self>) -> Pin {
        let mut positions = self.lock();
        let mark = positions.published;
        *positions.pins.entry(mark.lsn).or_default() += 1;
        Pin { mark, snapshots: self.clone() }
    }

    /// How many pins there are.
    #[must_use]
    pub fn pins(&self) -> usize {
        self.lock().pins.values().sum()
    }

    /// Begins a collection: what it must keep. Unpinned readers below the newest published
    /// position may get [`Collected`] from now on.
    #[must_use]
    pub fn keep(&self) -> Keep {
        let positions = self.lock();
        let live = positions.published.lsn;
        let mut held: Vec<Lsn> =
            positions.pins.keys().chain(&positions.restarts).copied().collect();
        held.sort_unstable();
        held.dedup();
        // Before anything is dropped, and under the lock, so that no pin slips in between: a
        // reader that finds something missing also finds the floor above it.
        self.floor.fetch_max(live.0, Ordering::Release);
        Keep { held, live }
    }

    /// To be called *after* a read at `at`: whether what it found can be trusted.
    ///
    /// # Errors
    /// [`Collected`].
    pub fn check(&self, at: Lsn) -> Result<(), Collected> {
        // Acquire: with versions found missing, the floor that was raised before is seen too
        // (the reader has just synchronised with the installer of the new files, by a lock).
        let floor = Lsn(self.floor.load(Ordering::Acquire));
        if at >= floor || self.lock().pins.contains_key(&at) {
            Ok(())
        } else {
            Err(Collected { at, floor })
        }
    }

    fn lock(&self) -> MutexGuard<'_, Positions> {
        // No code that holds the lock can panic half-way through a change.
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one position readable while it lives.
#[derive(Debug)]
pub struct Pin {
    mark: Mark,
    snapshots: Arc<Snapshots>,
}

impl Pin {
    /// The position.
    #[must_use]
    pub fn at(&self) -> Lsn {
        self.mark.lsn
    }

    /// The position, and how many rows there are.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Moves on to the newest published position: how a thread that reads all the time follows.
    pub fn refresh(&mut self) {
        *self = self.snapshots.pin();
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut positions = self.snapshots.lock();
        if let Some(count) = positions.pins.get_mut(&self.mark.lsn) {
            *count -= 1;
            if *count == 0 {
                positions.pins.remove(&self.mark.lsn);
            }
        }
    }
}

/// What one collection must keep.
#[derive(Clone, Debug)]
pub struct Keep {
    held: Vec<Lsn>,
    live: Lsn,
}

impl Keep {
    /// Whether some reader may need the version at `older` although its key has one at `newer`.
    #[must_use]
    pub fn needs(&self, older: Lsn, newer: Lsn) -> bool {
        let above = self.held.partition_point(|position| *position <= older);
        newer >= self.live || self.held.get(above).is_some_and(|position| *position <= newer)
    }

    /// Whether a delete at `lsn` may still have something to hide, where nothing older than what
    /// this collection sees exists: then it must stay.
    #[must_use]
    pub fn needs_delete(&self, lsn: Lsn) -> bool {
        // Without a held position at or below it, everything older than it goes now.
        lsn >= self.live || self.held.first().is_some_and(|position| *position <= lsn)
    }
}

/// Decides version by version, newest first within a key, keys in any order but each in one run.
#[derive(Debug)]
pub struct Collector<K> {
    keep: Keep,
    /// Whether nothing older than this collection's input exists.
    bottom: bool,
    newest: Option<(K, Lsn)>,
}

impl<K: PartialEq> Collector<K> {
    /// A collection under `keep`; `bottom` when nothing older than its input exists.
    #[must_use]
    pub fn new(keep: Keep, bottom: bool) -> Collector<K> {
        Collector { keep, bottom, newest: None }
    }

    /// Whether the next version stays.
    pub fn stays(&mut self, key: K, lsn: Lsn, is_delete: bool) -> bool {
        let newer = match &self.newest {
            Some((previous, newer)) if *previous == key => Some(*newer),
            _ => None,
        };
        let stays = match newer {
            // The same version twice: flushed, then replayed. One is enough.
            Some(newer) if newer == lsn => false,
            Some(newer) if !self.keep.needs(lsn, newer) => false,
            _ => !(self.bottom && is_delete && !self.keep.needs_delete(lsn)),
        };
        // Also when this one goes: what is older is hidden by it just the same.
        self.newest = Some((key, lsn));
        stays
    }
}

#[cfg(all(test, not(rowship_loom)))]
mod tests {
    use super::*;

    fn at(lsn: u64) -> Mark {
        Mark { lsn: Lsn(lsn), rows: 0 }
    }

    /// Versions of one key, newest first, that stay; deletes are marked.
    fn staying(keep: &Keep, bottom: bool, versions: &[(u64, bool)]) -> Vec<u64> {
        let mut collector = Collector::new(keep.clone(), bottom);
        let stays = |version: &&(u64, bool)| collector.stays(0, Lsn(version.0), version.1);
        versions.iter().filter(stays).map(|version| version.0).collect()
    }

    const PUTS: [(u64, bool); 5] =
        [(120, false), (90, false), (70, false), (40, false), (10, false)];

    #[test]
    fn keeps_what_live_readers_and_a_restart_need() {
        let snapshots = Snapshots::new(at(50));
        snapshots.publish(at(100));
        // 120 ran ahead, 90 is what live readers see, 40 is what a restart at 50 sees.
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120, 90, 40]);
        snapshots.recorded(Lsn(95));
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120, 90]);
    }

    #[test]
    fn keeps_promised_positions_until_one_is_recorded() {
        let snapshots = Snapshots::new(at(5));
        snapshots.publish(at(80));
        assert_eq!(snapshots.promise(), at(80));
        snapshots.publish(at(130));
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120, 70]);
        snapshots.recorded(Lsn(80));
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120, 70]);
        let _ = snapshots.promise();
        snapshots.recorded(Lsn(130));
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120]);
    }

    #[test]
    fn a_pin_keeps_one_version_and_only_while_it_lives() {
        let snapshots = Snapshots::new(at(41));
        snapshots.recorded(Lsn(41));
        let pin = snapshots.pin();
        snapshots.publish(at(200));
        snapshots.recorded(Lsn(200));
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120, 40]);
        assert_eq!(snapshots.check(pin.at()), Ok(()));
        drop(pin);
        assert_eq!(staying(&snapshots.keep(), false, &PUTS), [120]);
        let collected = Collected { at: Lsn(41), floor: Lsn(200) };
        assert_eq!(snapshots.check(Lsn(41)), Err(collected));
        assert_eq!(snapshots.check(Lsn(200)), Ok(()));
    }

    #[test]
    fn deletes_go_only_at_the_bottom_and_when_they_hide_nothing() {
        let versions = [(120, true), (40, false)];
        let snapshots = Snapshots::new(at(50));
        snapshots.publish(at(200));
        assert_eq!(staying(&snapshots.keep(), true, &versions), [120, 40]);
        snapshots.recorded(Lsn(200));
        assert_eq!(staying(&snapshots.keep(), false, &versions), [120]);
        assert!(staying(&snapshots.keep(), true, &versions).is_empty());
    }

    #[test]
    fn the_same_version_twice_becomes_one() {
        let keep = Snapshots::new(at(0)).keep();
        assert_eq!(staying(&keep, false, &[(120, false), (120, false)]), [120]);
    }
}
