//! Files: the production [`Disk`], and the data directory with its lock.
//!
//! Files are opened anew for each call. The calls are few (start, preparation, `node.state`), so a
//! cache of open files would save nothing that matters and would need a limit of its own. The
//! write path goes through the ring and keeps its file open there.

mod direct;
mod directory;
mod map;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};

use self::direct::{ReadBuffers, open_direct, read_direct};
pub(super) use self::direct::{direct_memory, is_not_direct};
pub use self::directory::{DataDirectory, DirectoryError};
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::map::map_file;
use super::{DIRECT_PAGE_BYTES, Disk, Map};

/// One directory of files on a real file system.
#[derive(Clone, Debug)]
pub struct FileDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// For syncing its entries.
    directory: File,
    free_bytes_min: u64,
    read_buffers: Arc<ReadBuffers>,
}

/// Mode of every file: the log holds the rows of its users.
pub const FILE_MODE: u32 = 0o600;

/// How long a start waits for writes of a process that has ended.
const SETTLE_MAX: Duration = Duration::from_secs(60);
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// Smaller reads go through the page cache.
const COLD_BYTES_MIN: usize = 64 << 10;

/// Zeroes are written in pieces of this many bytes: large enough that the number of calls does
/// not matter.
const ZERO_STEP_BYTES: u64 = 1 << 20;

/// Gently, they are written in pieces of this many bytes: one takes no longer than the writes that
/// wait behind it.
const GENTLE_STEP_BYTES: u64 = 256 << 10;
/// Where they have to go through the page cache, so much is synced at once: the journal's commits
/// for each piece would be in the way as well.
const GENTLE_SYNC_BYTES: u64 = 4 << 20;
/// After each piece, a pause of so many times its own time.
const GENTLE_PAUSES: u32 = 3;
/// And no longer, however slow the disk is at the moment: others wait for this worker.
const GENTLE_PAUSE_MAX: Duration = Duration::from_millis(50);

impl FileDisk {
    /// Opens an existing directory, without its lock: reading a live node's directory is fine,
    /// for writing go through [`DataDirectory`].
    ///
    /// # Errors
    /// When it is missing, or not a directory.
    pub fn open(path: &Path) -> io::Result<FileDisk> {
        FileDisk::with_free_bytes_min(path, 0)
    }

    /// The same, where [`Disk::create_zeroed`] refuses (as for a full disk) to leave less than
    /// `free_bytes_min` free: the log stops growing before the table's flushes are starved.
    ///
    /// # Errors
    /// When it is missing, or not a directory.
    pub fn with_free_bytes_min(path: &Path, free_bytes_min: u64) -> io::Result<FileDisk> {
        let directory = File::open(path)?;
        if !directory.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let path = path.to_path_buf();
        let read_buffers = Arc::default();
        Ok(FileDisk { inner: Arc::new(Inner { path, directory, free_bytes_min, read_buffers }) })
    }

    /// Bytes that this process may still use on the directory's file system.
    ///
    /// # Errors
    /// The system's.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let status = rustix::fs::fstatvfs(&self.inner.directory)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }

    /// The full path of a file in it.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.full_path(name)
    }

    fn full_path(&self, name: &str) -> PathBuf {
        assert!(!name.contains('/'), "plain file names only");
        self.inner.path.join(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.inner.directory.sync_all()
    }

    fn fill_new_file(
        &self,
        path: &Path,
        bytes: u64,
        reserved_bytes: u64,
        hurry: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        // Asked first: a file system that is told to reserve more than it has may take all there is
        // before it says so, and whoever writes meanwhile finds a full disk.
        let free = self.free_bytes()?;
        if free < bytes.saturating_add(self.inner.free_bytes_min) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "no space for a file of {bytes} bytes: {free} bytes are free, and {} bytes \
                     stay so",
                    self.inner.free_bytes_min
                ),
            ));
        }
        let file = new_file(path)?;
        let mut reserved = false;
        if bytes > 0 {
            // First the reservation, so that a full disk is known before anything is written.
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => reserved = true,
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let from = if reserved { reserved_bytes.min(bytes) } else { 0 };
        write_zeroes(&file, path, from, bytes, hurry)?;
        file.sync_all()
    }
}

/// Real zeroes, up to the file's end: blocks that are only reserved are converted at their first
/// write, and that costs a journal commit in each of the log's syncs. They go past the page cache:
/// nobody reads them, all of them would wait there for one sync, with the log's syncs behind it,
/// and each page would have to be let go of again when the log is written to it directly.
fn write_zeroes(
    file: &File,
    path: &Path,
    from: u64,
    end: u64,
    hurry: &dyn Fn() -> bool,
) -> io::Result<()> {
    let zeroes = direct_memory(GENTLE_SYNC_BYTES as usize)?;
    let mut direct = open_direct(path, OpenOptions::new().write(true))?;
    let page = DIRECT_PAGE_BYTES as u64;
    let mut at = from / page * page;
    while at < end {
        let began = Instant::now();
        let gently = if direct.is_some() { GENTLE_STEP_BYTES } else { GENTLE_SYNC_BYTES };
        let step = if hurry() { ZERO_STEP_BYTES } else { gently };
        let rest = &zeroes[..(end - at).min(step) as usize];
        let whole = &rest[..rest.len() / DIRECT_PAGE_BYTES * DIRECT_PAGE_BYTES];
        let written = match &direct {
            Some(direct) if !whole.is_empty() => direct.write_at(whole, at),
            _ => file.write_at(rest, at),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if direct.is_some() && is_not_direct(&error) => direct = None,
            Err(error) => return Err(error),
        }
        if !hurry() {
            if direct.is_none() {
                file.sync_data()?;
            }
            std::thread::sleep((GENTLE_PAUSES * began.elapsed()).min(GENTLE_PAUSE_MAX));
        }
    }
    Ok(())
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.inner.path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Renamed or removed since: a live node's directory changes under its readers.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.create_ahead(name, bytes, 0, &|| true)
    }

    fn create_ahead(
        &self,
        name: &str,
        bytes: u64,
        reserved_bytes: u64,
        hurry: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let path = self.full_path(name);
        // A leftover is unlinked, never truncated: someone may still have it mapped.
        remove_if_there(&path)?;
        if let Err(error) = self.fill_new_file(&path, bytes, reserved_bytes, hurry) {
            // The error that matters is the first one; what cannot be removed now is replaced
            // by the next try.
            let _ = remove_if_there(&path);
            return Err(error);
        }
        self.sync_directory()
    }

    fn write_durable_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.full_path(name);
        match OpenOptions::new().write(true).open(&path) {
            Ok(file) => {
                file.write_all_at(bytes, offset)?;
                file.sync_data()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = new_file(&path)?;
                file.write_all_at(bytes, offset)?;
                file.sync_all()?;
                self.sync_directory()
            }
            Err(error) => Err(error),
        }
    }

    fn read_exact_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let path = self.full_path(name);
        let file = File::open(&path)?;
        if buffer.len() >= COLD_BYTES_MIN
            && is_cold(&file, offset + buffer.len() as u64 - 1)
            && let Some(direct) = open_direct(&path, OpenOptions::new().read(true))?
            && let Some(read) =
                read_direct(&direct, offset, buffer.len(), &self.inner.read_buffers)?
        {
            buffer.copy_from_slice(&read);
            return Ok(());
        }
        // Only what is asked for comes in.
        rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
        file.read_exact_at(buffer, offset)
    }

    fn settle(&self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.full_path(name))?;
        let until = Instant::now() + SETTLE_MAX;
        let mut told = false;
        while let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(error.into());
            }
            if Instant::now() >= until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the last write of a killed process is not done: the disk does not answer",
                ));
            }
            if !told {
                tracing::warn!("waiting for the last write of a killed process to {name}");
                told = true;
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.full_path(from), self.full_path(to))?;
        self.sync_directory()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.full_path(name))?;
        self.sync_directory()
    }

    fn map(&self, name: &str) -> io::Result<Arc<dyn Map>> {
        self::map::map_path(self.full_path(name), &self.inner.read_buffers)
    }

    fn tidy(&self) {
        self.inner.read_buffers.tidy();
    }

    fn path(&self, name: &str) -> String {
        self.full_path(name).display().to_string()
    }
}

/// Whether the byte at `offset` is not in the system's memory. A system that does not tell says
/// that it is.
fn is_cold(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let mut slices = [io::IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT);
    read == Err(Errno::AGAIN)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn disk() -> (tempfile::TempDir, FileDisk) {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(directory.path()).unwrap();
        (directory, disk)
    }

    #[test]
    fn created_files_are_zeroed_allocated_and_private() {
        let (directory, disk) = disk();
        let bytes = (9 << 20) + 4096;
        for (reserved_bytes, hurries) in [(0, true), (0, false), (5000, false), (bytes, true)] {
            disk.write_durable_at("a", 0, &[7; 10]).unwrap();
            disk.create_ahead("a", bytes, reserved_bytes, &|| hurries).unwrap();
            let metadata = std::fs::metadata(directory.path().join("a")).unwrap();
            assert_eq!(metadata.len(), bytes);
            assert!(metadata.blocks() * 512 >= metadata.len());
            assert_eq!(metadata.mode() & 0o777, FILE_MODE);
            let mut found = vec![1; bytes as usize];
            disk.read_exact_at("a", 0, &mut found).unwrap();
            assert!(found.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_file_that_does_not_fit_leaves_nothing_behind() {
        let (_directory, disk) = disk();
        let bytes = disk.free_bytes().unwrap() * 2;
        for reserved_bytes in [0, 4096, bytes] {
            let error = disk.create_ahead("huge", bytes, reserved_bytes, &|| true).unwrap_err();
            let kind = error.kind();
            assert!(
                matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge),
                "{error}"
            );
            assert_eq!(disk.list().unwrap(), []);
        }
    }

    #[test]
    fn the_reserve_is_kept_free() {
        let (directory, _) = disk();
        let disk = FileDisk::with_free_bytes_min(directory.path(), u64::MAX).unwrap();
        for reserved_bytes in [0, 4096] {
            let error = disk.create_ahead("a", 4096, reserved_bytes, &|| true).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(disk.list().unwrap(), []);
        }
    }

    #[test]
    fn a_map_sees_later_writes_and_outlives_its_name() {
        let (_directory, disk) = disk();
        disk.create_zeroed("a", 8192).unwrap();
        let map = disk.map("a").unwrap();
        disk.write_durable_at("a", 5000, b"later").unwrap();
        map.populate(5000, 100).unwrap();
        assert_eq!(&map.bytes()[5000..5005], b"later");
        disk.rename("a", "b").unwrap();
        disk.remove("b").unwrap();
        assert_eq!(&map.bytes()[5000..5005], b"later");
    }

    #[test]
    fn pages_that_cannot_be_read_are_an_error_before_they_are_touched() {
        let (directory, disk) = disk();
        disk.create_zeroed("a", 8192).unwrap();
        let map = disk.map("a").unwrap();
        // Pages behind a file's end are to a map what unreadable ones are.
        let file = OpenOptions::new().write(true).open(directory.path().join("a")).unwrap();
        file.set_len(4096).unwrap();
        map.populate(0, 4096).unwrap();
        let error = map.populate(0, 8192).unwrap_err();
        assert!(error.to_string().contains("cannot read"), "{error}");
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let (_directory, disk) = disk();
        disk.create_zeroed("a", 4096).unwrap();
        let error = disk.read_exact_at("a", 4090, &mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
