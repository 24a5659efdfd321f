//! The data directory of a node: made with the right modes, and held by one process at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::{FILE_MODE, FileDisk};

/// A data directory that this process holds. Dropping it lets go.
#[derive(Debug)]
pub struct DataDirectory {
    /// Its files.
    pub disk: FileDisk,
    /// What the operator should know: a file system on which the promises were not tested.
    pub warning: Option<String>,
    path: PathBuf,
    /// The lock lasts as long as this file is open.
    _lock: File,
}

/// Why a directory cannot be used. All of these are for the operator to put right.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process holds the lock.
    #[error("data directory {path} is in use by process {process}")]
    InUse {
        /// The directory.
        path: String,
        /// Number of that process, or "unknown".
        process: String,
    },
    /// Not there, and not to be made.
    #[error("data directory {path} does not exist")]
    Missing {
        /// The directory.
        path: String,
    },
    /// A file is in its place.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// The path.
        path: String,
    },
    /// No right to write there.
    #[error(
        "data directory {path} cannot be written: {source} (it must belong to the user that runs \
         rowship, on a file system that is not read-only)"
    )]
    NotWritable {
        /// The directory.
        path: String,
        /// The system's words.
        source: io::Error,
    },
    /// Any other failure of the system.
    #[error("cannot {doing} data directory {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The directory.
        path: String,
        /// The system's words.
        source: io::Error,
    },
}

impl DataDirectory {
    /// Takes the directory, making it (mode 0700, parents included) when it is missing.
    /// `free_bytes_min` as in [`FileDisk::with_free_bytes_min`].
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub fn open(path: &Path, free_bytes_min: u64) -> Result<DataDirectory, DirectoryError> {
        make_durably(path).map_err(|source| classify(path, "create", source))?;
        DataDirectory::open_existing(path, free_bytes_min)
    }

    /// Takes a directory that must be there already.
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub fn open_existing(
        path: &Path,
        free_bytes_min: u64,
    ) -> Result<DataDirectory, DirectoryError> {
        let opened = FileDisk::with_free_bytes_min(path, free_bytes_min);
        let disk = opened.map_err(|source| classify(path, "open", source))?;
        let lock = take_lock(path)?;
        let warning = file_system_warning(&disk, path)?;
        Ok(DataDirectory { disk, warning, path: path.to_path_buf(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

const DIRECTORY_MODE: u32 = 0o700;
const LOCK_FILE: &str = "lock";
/// More than any process number has digits.
const PROCESS_DIGITS_MAX: u64 = 20;

/// Makes the directory, its parents included, and each one's entry durable: whatever is synced in
/// a directory is gone after a power loss when the name of the directory is.
fn make_durably(path: &Path) -> io::Result<()> {
    let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(missing).collect();
    for directory in missing.iter().rev() {
        match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
            // By another process just now, or it is a name such as `new/..`.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            made => made?,
        }
        sync_parent(directory)?;
    }
    if missing.is_empty() {
        // A process that made it may have been killed before the sync. Where others made it, its
        // parent may be none of ours to open.
        match sync_parent(path) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn take_lock(path: &Path) -> Result<File, DirectoryError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path.join(LOCK_FILE));
    let mut file = opened.map_err(|source| classify(path, "lock", source))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The number is only for the message; a holder that has not written it yet, or
            // garbage in the file, must not hide that the lock is taken.
            let _ = (&mut file).take(PROCESS_DIGITS_MAX).read_to_string(&mut holder);
            let holder: Option<u32> = holder.trim().parse().ok();
            let process = holder.map_or("unknown".to_owned(), |number| number.to_string());
            return Err(DirectoryError::InUse { path: path.display().to_string(), process });
        }
        Err(error) => return Err(classify(path, "lock", error.into())),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(|source| classify(path, "lock", source))?;
    Ok(file)
}

fn file_system_warning(disk: &FileDisk, path: &Path) -> Result<Option<String>, DirectoryError> {
    const EXT4: u64 = 0xEF53;
    const XFS: u64 = 0x5846_5342;
    let status = rustix::fs::fstatfs(&disk.inner.directory);
    let status = status.map_err(|error| classify(path, "examine", error.into()))?;
    let magic = u64::try_from(status.f_type).unwrap_or(0);
    Ok(match magic {
        EXT4 | XFS => None,
        _ => Some(format!(
            "{} is on a file system (type {magic:#x}) that is neither ext4 nor xfs: what survives \
             a power loss there has not been tested",
            path.display()
        )),
    })
}

fn classify(path: &Path, doing: &'static str, source: io::Error) -> DirectoryError {
    let path = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => DirectoryError::Missing { path },
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            DirectoryError::NotADirectory { path }
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            DirectoryError::NotWritable { path, source }
        }
        _ => DirectoryError::Io { doing, path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_directory_is_made_private_and_held_by_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/data");
        let held = DataDirectory::open(&path, 0).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let lock = std::fs::metadata(path.join("lock")).unwrap();
        assert_eq!(lock.mode() & 0o777, 0o600);
        let refused = DataDirectory::open(&path, 0).unwrap_err().to_string();
        let expected = format!(
            "data directory {} is in use by process {}",
            path.display(),
            std::process::id()
        );
        assert_eq!(refused, expected);
        drop(held);
        DataDirectory::open(&path, 0).unwrap();
    }

    #[test]
    fn missing_and_mistaken_paths_are_named() {
        let parent = tempfile::tempdir().unwrap();
        let missing = DataDirectory::open_existing(&parent.path().join("no"), 0).unwrap_err();
        assert!(matches!(missing, DirectoryError::Missing { .. }), "{missing}");
        let file = parent.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let mistaken = DataDirectory::open(&file, 0).unwrap_err();
        assert!(matches!(mistaken, DirectoryError::NotADirectory { .. }), "{mistaken}");
    }
}
