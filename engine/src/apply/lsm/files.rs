//! The directory of the tree: opening, setting aside, cleaning up, and faults.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, TryLockError};

use lsm_tree::{AbstractTree, AnyTree, Config, Error};

use super::super::publish::Mark;
use super::super::table::TableError;

/// Broken tables that may lie around before opening refuses: they take the space of their rows,
/// and whoever finds eight of them has a disk that wants replacing.
const BROKEN_MAX: usize = 8;

/// The file that names the tree's present set of files; it is there once the tree is complete.
const CURRENT: &str = "current";

/// A table that had to be made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// What was wrong.
    pub reason: String,
    /// Where its files are now, if there were any.
    pub aside: Option<PathBuf>,
}

/// Where a tree is about to be opened.
pub struct Place {
    path: PathBuf,
    /// Whether the log reaches back far enough for a new table.
    rebuildable: bool,
    rebuilt: Option<Rebuilt>,
}

impl Place {
    pub fn new(path: &Path, rebuildable: bool) -> Place {
        Place { path: path.to_owned(), rebuildable, rebuilt: None }
    }

    /// Finds out what is left of the table, and sets it aside when it is known to be no good.
    pub fn prepare(&mut self, durable: Mark) -> Result<(), TableError> {
        let exists = |path: &Path| path.try_exists().map_err(|error| io_fault(&self.path, error));
        let damaged = marker(&self.path, "damaged");
        let known_damaged = exists(&damaged)?;
        let rebuilding = exists(&marker(&self.path, "rebuild"))?;
        let complete = exists(&self.path.join(CURRENT))?;
        if known_damaged {
            self.set_aside("it was found damaged while it ran".into())?;
            return fs::remove_file(&damaged)
                .and_then(|()| sync_parent(&self.path))
                .map_err(|error| io_fault(&self.path, error));
        }
        if rebuilding {
            let reason = "a rebuild had begun and was not recorded".into();
            self.rebuilt = Some(Rebuilt { reason, aside: None });
        } else if !complete && durable != Mark::ZERO {
            self.set_aside(format!("it is not there, though durable to LSN {}", durable.lsn))?;
        }
        Ok(())
    }

    /// Where the log must be replayed from, when `node.state` says `durable`.
    pub fn durable(&self, durable: Mark) -> Mark {
        if self.rebuilt.is_some() { Mark::ZERO } else { durable }
    }

    /// Moves what is there out of the way, having noted that it will be missing. What cannot be
    /// made anew stays where it is.
    pub fn set_aside(&mut self, reason: String) -> Result<(), TableError> {
        if !self.rebuildable {
            return Err(TableError::Damaged { path: self.path.clone(), reason });
        }
        let aside = self.move_away().map_err(|error| io_fault(&self.path, error))?;
        self.rebuilt = Some(Rebuilt { reason, aside });
        Ok(())
    }

    fn move_away(&self) -> io::Result<Option<PathBuf>> {
        // First the note, then the move: between the two the table is only rebuilt needlessly.
        File::create(marker(&self.path, "rebuild"))?.sync_all()?;
        sync_parent(&self.path)?;
        if !self.path.try_exists()? {
            return Ok(None);
        }
        for number in 1..=BROKEN_MAX {
            let aside = marker(&self.path, &format!("broken-{number}"));
            if !aside.try_exists()? {
                fs::rename(&self.path, &aside)?;
                sync_parent(&self.path)?;
                return Ok(Some(aside));
            }
        }
        let message = format!("{BROKEN_MAX} broken tables lie beside it: remove them");
        Err(io::Error::other(message))
    }

    /// The tree has been opened.
    pub fn finish(self) -> Result<(Files, Option<Rebuilt>), TableError> {
        // The crate syncs inside the tree's directory; the entry of the directory is ours.
        sync_parent(&self.path).map_err(|error| io_fault(&self.path, error))?;
        Ok((Files::new(self.path), self.rebuilt))
    }
}

/// Opens the tree; [`TableError::Damaged`] when it should be set aside.
pub fn open_tree(path: &Path, config: Config) -> Result<AnyTree, TableError> {
    // The crate asserts about what it finds in the directory.
    let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
    let damaged = |reason: String| TableError::Damaged { path: path.to_owned(), reason };
    match opened {
        Ok(Ok(tree)) => Ok(tree),
        Ok(Err(Error::Io(error))) if may_pass(&error) => Err(io_fault(path, error)),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(_) => Err(damaged("the tree's own checks failed".into())),
    }
}

/// Whether an open that failed so may succeed another time, with the same files. A disk that
/// cannot read is among that: a cable is put right, and the log that a rebuild would need may have
/// been retired. An operator who knows better removes the table.
fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, PermissionDenied, ReadOnlyFilesystem, TimedOut};
    const DISK_OR_LIMITS: [i32; 3] = [5, 23, 24]; // EIO, ENFILE, EMFILE
    is_full(error)
        || matches!(error.kind(), OutOfMemory | PermissionDenied | ReadOnlyFilesystem | TimedOut)
        || error.raw_os_error().is_some_and(|code| DISK_OR_LIMITS.contains(&code))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn io_fault(path: &Path, error: io::Error) -> TableError {
    let path = path.to_owned();
    if is_full(&error) {
        TableError::NoSpace { path, error: error.to_string() }
    } else {
        TableError::Io { path, error }
    }
}

/// `<path>.<suffix>`, beside the tree.
fn marker(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// The directory of an open tree.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    /// Shared by whoever writes files, taken alone by whoever removes leftovers.
    writers: RwLock<()>,
    /// File number from which on failed writes may have left something.
    leftovers_from: Mutex<Option<u64>>,
}

impl Files {
    fn new(path: PathBuf) -> Files {
        Files { path, writers: RwLock::default(), leftovers_from: Mutex::default() }
    }

    /// Runs work that writes files of `tree`, and removes what failed work has left behind.
    pub fn writing<R>(
        &self,
        tree: &AnyTree,
        work: impl FnOnce() -> lsm_tree::Result<R>,
    ) -> Result<R, TableError> {
        let (first, result) = {
            let _writer = self.writers.read().unwrap_or_else(PoisonError::into_inner);
            (tree.next_table_id(), work())
        };
        if result.is_err() {
            let mut from = self.leftovers_from.lock().unwrap_or_else(PoisonError::into_inner);
            *from = Some(from.map_or(first, |from| from.min(first)));
        }
        self.remove_leftovers(tree);
        result.map_err(|error| self.fault(error))
    }

    fn remove_leftovers(&self, tree: &AnyTree) {
        let mut from = self.leftovers_from.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = *from else { return };
        let _alone = match self.writers.try_write() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
            // Another turn is writing: its end comes back here.
            Err(TryLockError::WouldBlock) => return,
        };
        match self.try_remove_leftovers(tree, first) {
            Ok(()) => *from = None,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "leftover files stay")
            }
        }
    }

    /// Removes files that no set names. The crate does that at open only, and a full disk needs it
    /// now: each failed flush leaves a file as large as the disk had room for.
    fn try_remove_leftovers(&self, tree: &AnyTree, first: u64) -> io::Result<()> {
        let version = tree.current_version();
        let on_disk = fs::read(self.path.join(CURRENT))?;
        if on_disk.first_chunk::<8>() != Some(&version.id().to_le_bytes()) {
            // A newer set has reached the disk, though its installation failed: it names files
            // that the tree in memory does not. The next set replaces it.
            return Err(io::Error::other("the set of files on disk is not the one in memory"));
        }
        for entry in fs::read_dir(self.path.join("tables"))? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            let Some(number) = number.filter(|number| *number >= first) else { continue };
            if !version.iter_tables().any(|table| table.id() == number) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// What the crate's error means for us. Damage is noted, so that the next start sets the table
    /// aside. Not for the ring thread: it writes.
    pub fn fault(&self, error: Error) -> TableError {
        let reason = match error {
            Error::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return io_fault(&self.path, error);
            }
            other => other.to_string(),
        };
        let noted = File::create(marker(&self.path, "damaged")).and_then(|file| file.sync_all());
        if let Err(error) = noted.and_then(|()| sync_parent(&self.path)) {
            tracing::error!(%error, path = %self.path.display(), "cannot note that it is damaged");
        }
        TableError::Damaged { path: self.path.clone(), reason }
    }

    /// The rebuild has a recorded position: the note can go.
    pub fn forget_rebuild(&self) -> Result<(), TableError> {
        fs::remove_file(marker(&self.path, "rebuild"))
            .and_then(|()| sync_parent(&self.path))
            .map_err(|error| io_fault(&self.path, error))
    }
}
