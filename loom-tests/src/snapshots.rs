//! `Snapshots`: a collection takes no version from under a reader without telling it.

use std::sync::Arc as StdArc;

use loom::thread;
use rowship_proto::Lsn;
use rowship_sync::sync::{Arc, Mutex};

use super::publish::Mark;
use super::snapshots::Snapshots;

/// A key with versions at 1 and 3: a reader at 2 needs the older, one at 4 the newer.
const OLDER: Lsn = Lsn(1);
const NEWER: Lsn = Lsn(3);
const BETWEEN: Mark = Mark { lsn: Lsn(2), rows: 1 };
const BEHIND: Mark = Mark { lsn: Lsn(4), rows: 1 };

struct Model {
    snapshots: StdArc<Snapshots>,
    /// Whether the older version is still there. Behind a lock, as the tables' files are.
    older: Mutex<bool>,
}

impl Model {
    /// Publishes the next position and collects, beside what `read` does on this thread.
    fn run(read: impl FnOnce(&Model)) {
        let snapshots = Snapshots::new(Mark::ZERO);
        snapshots.publish(BETWEEN);
        let model = Arc::new(Model { snapshots, older: Mutex::new(true) });
        let collector = {
            let model = model.clone();
            thread::spawn(move || {
                model.snapshots.publish(BEHIND);
                let keep = model.snapshots.keep();
                if !keep.needs(OLDER, NEWER) {
                    *model.older.lock().unwrap() = false;
                }
            })
        };
        read(&model);
        collector.join().unwrap();
    }

    /// Whether the version is there, and whether the reader may believe what it found.
    fn read_at(&self, at: Lsn) -> (bool, bool) {
        let found = *self.older.lock().unwrap();
        (found, self.snapshots.check(at).is_ok())
    }
}

/// Property: a pinned position stays readable, whatever is collected after the pin was taken.
#[test]
fn a_pinned_reader_finds_its_version() {
    loom::model(|| {
        Model::run(|model| {
            let pin = model.snapshots.pin();
            let (found, trusted) = model.read_at(pin.at());
            assert!(trusted, "a pinned read is refused");
            assert!(found || pin.at() > NEWER, "the version of a pinned position is gone");
            drop(pin);
            assert_eq!(model.snapshots.pins(), 0);
        });
    });
}

/// Property: without a pin a reader finds its version, or is told that it may be missing one.
#[test]
fn an_unpinned_reader_is_told_when_its_version_may_be_gone() {
    loom::model(|| {
        Model::run(|model| {
            let (found, trusted) = model.read_at(BETWEEN.lsn);
            assert!(found || !trusted, "a missing version is not told");
        });
    });
}
