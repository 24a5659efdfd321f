//! A directory of files in memory, for tests and for simulation.
//!
//! Faults it can inject, and why the log must survive them:
//! - power loss in the middle of a write: of the sectors (512 bytes) of the write in flight any
//!   subset may have reached the disk, in any order; calls before it are durable, later ones
//!   never happen. Disks promise whole sectors and nothing more.
//! - power loss between two calls: renames and removes are either done or not.
//! - a full disk: creating files fails, and leaves nothing behind.
//!
//! Files are anonymous memory files of the system, so that maps of them see later writes exactly
//! as maps of real files do.

mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::MemfdFlags;

pub use self::writer::{
    TEST_LOG, TINY_BODY_BYTES, TINY_SEGMENT_BYTES, TestLog, next_random, test_epoch,
};
use crate::edge::disk::map_file;
use crate::edge::{Disk, Map};

/// Disks write whole sectors of this many bytes.
pub const SECTOR_BYTES: usize = 512;

/// See the module's description. Clones share the files.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Arc<File>>,
    capacity_bytes: Option<u64>,
    fuse: Option<Fuse>,
    calls: u64,
    bytes_written: u64,
}

/// Power loss at the `calls_left`-th changing call from now; see [`MemoryDisk::lose_power_at`].
struct Fuse {
    calls_left: u64,
    keep: Box<dyn FnMut(usize) -> bool + Send>,
    blown: bool,
}

impl MemoryDisk {
    /// An empty directory on a disk without end.
    #[must_use]
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// From now on the files together may have this many bytes.
    pub fn set_capacity_bytes(&self, bytes: u64) {
        self.lock().capacity_bytes = Some(bytes);
    }

    /// Changing calls (create, write, rename, remove) until now.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Bytes of all durable writes until now.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.lock().bytes_written
    }

    /// Lets power fail in changing call number `call` from now, 0 being the next. If that is a
    /// write, `keep` says of each of its sectors whether it reached the disk. That call and all
    /// later ones fail, reads too, until [`MemoryDisk::restore_power`].
    pub fn lose_power_at(&self, call: u64, keep: impl FnMut(usize) -> bool + Send + 'static) {
        self.lock().fuse = Some(Fuse { calls_left: call, keep: Box::new(keep), blown: false });
    }

    /// Power is back; returns whether it had failed at all.
    pub fn restore_power(&self) -> bool {
        self.lock().fuse.take().is_some_and(|fuse| fuse.blown)
    }

    /// A second directory with equal files that shares nothing with this one.
    ///
    /// # Panics
    /// When the system has no memory left.
    #[must_use]
    pub fn fork(&self) -> MemoryDisk {
        let fork = MemoryDisk::new();
        for (name, bytes) in self.contents() {
            fork.put(&name, &bytes);
        }
        fork
    }

    /// All files with their bytes.
    ///
    /// # Panics
    /// When the system cannot read its own memory.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        let read = |file: &File| content(file).expect("a memory file can be read");
        state.files.iter().map(|(name, file)| (name.clone(), read(file))).collect()
    }

    /// Puts a file there, whatever was under that name.
    ///
    /// # Panics
    /// When the system has no memory left.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let file = memory_file(bytes.len() as u64).expect("memory for a test file");
        file.write_all_at(bytes, 0).expect("memory for a test file");
        self.lock().files.insert(name.to_owned(), Arc::new(file));
    }

    /// Changes bytes behind everyone's back, as rot does.
    ///
    /// # Panics
    /// When there is no such file or place.
    pub fn bend(&self, name: &str, offset: u64, change: impl FnOnce(&mut u8)) {
        let file = self.lock().files[name].clone();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("the place is inside the file");
        change(&mut byte[0]);
        file.write_all_at(&byte, offset).expect("the place is inside the file");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the files")
    }
}

impl State {
    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        self.powered()?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, name.to_owned());
        self.files.get(name).cloned().ok_or_else(missing)
    }

    fn powered(&self) -> io::Result<()> {
        if self.fuse.as_ref().is_some_and(|fuse| fuse.blown) { Err(no_power()) } else { Ok(()) }
    }

    /// Counts a changing call; true when power fails in this very call.
    fn power_fails_now(&mut self) -> io::Result<bool> {
        self.powered()?;
        self.calls += 1;
        let Some(fuse) = &mut self.fuse else { return Ok(false) };
        fuse.blown = fuse.calls_left == 0;
        fuse.calls_left = fuse.calls_left.saturating_sub(1);
        Ok(fuse.blown)
    }

    fn used_bytes(&self) -> io::Result<u64> {
        self.files.values().map(|file| Ok(file.metadata()?.len())).sum()
    }

    fn check_capacity(&self, bytes: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(capacity) if self.used_bytes()? + bytes > capacity => {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            _ => Ok(()),
        }
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.lock();
        state.powered()?;
        let size = |(name, file): (&String, &Arc<File>)| Ok((name.clone(), file.metadata()?.len()));
        state.files.iter().map(size).collect()
    }

    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<()> {
        let mut state = self.lock();
        if state.power_fails_now()? {
            return Err(no_power());
        }
        state.files.remove(name);
        state.check_capacity(bytes)?;
        state.files.insert(name.to_owned(), Arc::new(memory_file(bytes)?));
        Ok(())
    }

    fn write_durable_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let fails = state.power_fails_now()?;
        if !state.files.contains_key(name) {
            state.files.insert(name.to_owned(), Arc::new(memory_file(0)?));
        }
        let file = state.files[name].clone();
        if !fails {
            state.bytes_written += bytes.len() as u64;
            return file.write_all_at(bytes, offset);
        }
        let fuse = state.fuse.as_mut().expect("power fails by the fuse");
        for (index, sector) in sectors(offset, bytes.len()).enumerate() {
            if (fuse.keep)(index) {
                file.write_all_at(&bytes[sector.clone()], offset + sector.start as u64)?;
            }
        }
        Err(no_power())
    }

    fn read_exact_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = self.lock().file(name)?;
        file.read_exact_at(buffer, offset)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        if state.power_fails_now()? {
            return Err(no_power());
        }
        let file = state.file(from)?;
        state.files.remove(from);
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        if state.power_fails_now()? {
            return Err(no_power());
        }
        state.file(name)?;
        state.files.remove(name);
        Ok(())
    }

    fn map(&self, name: &str) -> io::Result<Arc<dyn Map>> {
        let file = self.lock().file(name)?;
        map_file(&file)
    }

    fn path(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

fn no_power() -> io::Error {
    io::Error::other("power is lost")
}

fn memory_file(bytes: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

fn content(file: &File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).expect("test files are small");
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Ranges of a write of `len` bytes at `offset` that lie in one sector each.
fn sectors(offset: u64, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let into = usize::try_from(offset % SECTOR_BYTES as u64).expect("less than a sector");
    let count = (into + len).div_ceil(SECTOR_BYTES);
    (0..count).map(move |index| {
        let start = (index * SECTOR_BYTES).saturating_sub(into);
        start..((index + 1) * SECTOR_BYTES - into).min(len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_keeps_just_the_chosen_sectors() {
        let disk = MemoryDisk::new();
        disk.create_zeroed("a", 4096).unwrap();
        disk.lose_power_at(0, |sector| sector == 1);
        assert!(disk.write_durable_at("a", 500, &[9; 1000]).is_err());
        assert!(disk.list().is_err());
        assert!(disk.restore_power());
        let bytes = &disk.contents()["a"];
        let kept: Vec<usize> = (0..4096).filter(|at| bytes[*at] == 9).collect();
        assert_eq!(kept, (512..1024).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_disk_refuses_and_keeps_nothing() {
        let disk = MemoryDisk::new();
        disk.set_capacity_bytes(8192);
        disk.create_zeroed("a", 8192).unwrap();
        let error = disk.create_zeroed("b", 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.list().unwrap().len(), 1);
    }
}
