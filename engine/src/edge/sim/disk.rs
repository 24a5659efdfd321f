//! A directory of files in memory, for tests and for simulation.
//!
//! Faults it can inject, and why the log must survive them:
//! - power loss in the middle of a write: of the sectors (512 bytes) of the write in flight any
//!   subset may have reached the disk, in any order; calls before it are durable, later ones
//!   never happen. Disks promise whole sectors and nothing more.
//! - power loss between two calls: renames and removes are either done or not.
//! - bytes of a killed process that were written and not synced: they stay readable, as in the
//!   page cache, and a later power loss may still take them.
//! - a write or sync that fails: nobody knows which of its sectors are there.
//! - a full disk: creating and growing files fails, and leaves nothing behind.
//! - rot: a byte is not what was written.
//!
//! Not injected: writes that are reported as done and never happen, or go elsewhere. Only a
//! copy on another node could cover for those, and that is not promised.
//!
//! Files are anonymous memory files of the system, so that maps of them see later writes exactly
//! as maps of real files do (`file.rs`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::file::MemoryFile;
use super::trace;
use crate::edge::{Disk, Map};

/// Disks write whole sectors of this many bytes.
pub const SECTOR_BYTES: usize = 512;

/// See the module's description. Clones share the files.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    /// Which mount of the directory this handle belongs to: see [`MemoryDisk::mount`].
    mount: u64,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Arc<MemoryFile>>,
    capacity_bytes: Option<u64>,
    fuse: Option<Fuse>,
    calls: u64,
    bytes_written: u64,
    mount: u64,
    /// What sectors held before the writes that are not synced yet, by file and sector.
    unsynced: BTreeMap<(String, u64), Vec<u8>>,
    /// The next sync fails.
    failing: bool,
}

/// A write that is in the page cache and on its way to the disk.
#[derive(Debug)]
pub struct PendingWrite {
    name: String,
    offset: u64,
    len: usize,
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

    /// Whether power has failed, and is not back.
    #[must_use]
    pub fn has_lost_power(&self) -> bool {
        self.lock().fuse.as_ref().is_some_and(|fuse| fuse.blown)
    }

    /// A handle for a new process. Handles of earlier mounts fail from now on: a process that
    /// died must not change anything any more.
    #[must_use]
    pub fn mount(&self) -> MemoryDisk {
        let mut state = self.lock();
        state.mount += 1;
        MemoryDisk { state: self.state.clone(), mount: state.mount }
    }

    /// Removes all files.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.files.clear();
        state.unsynced.clear();
    }

    /// Reads for an onlooker, whatever process the files belong to now; shorter at the end of the
    /// file, empty when there is no such file.
    ///
    /// # Panics
    /// When the system cannot read its own memory.
    #[must_use]
    pub fn peek(&self, name: &str, offset: u64, len: usize) -> Vec<u8> {
        let Some(file) = self.lock().files.get(name).cloned() else { return Vec::new() };
        let bytes = file.len().expect("a memory file has a size");
        let len = len.min(usize::try_from(bytes.saturating_sub(offset)).unwrap_or(usize::MAX));
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, offset).expect("the place is inside the file");
        found
    }

    /// From now on the files together may grow without limit again.
    pub fn lift_capacity(&self) {
        self.lock().capacity_bytes = None;
    }

    /// Bytes of all files together.
    ///
    /// # Panics
    /// When the system cannot tell the size of its own memory.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes().expect("a memory file has a size")
    }

    /// Lets the next sync fail. Its sectors stay as unknown as before it.
    pub fn fail_next_sync(&self) {
        self.lock().failing = true;
    }

    /// Names of all files, for an onlooker.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().files.keys().cloned().collect()
    }

    /// What was still to go wrong does not: no sync fails, no power is lost, there is space.
    pub fn mend(&self) {
        let mut state = self.lock();
        (state.failing, state.fuse, state.capacity_bytes) = (false, None, None);
    }

    /// Starts a write inside a file: its bytes can be read (and are seen by maps) at once, and are
    /// durable after [`MemoryDisk::finish_write`]. Until then a power loss may take any of its
    /// sectors.
    ///
    /// # Errors
    /// No such file, a write beyond its end, or no power.
    pub fn start_write(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<PendingWrite> {
        let mut state = self.open()?;
        let file = state.file(name)?;
        if offset + bytes.len() as u64 > file.len()? {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for sector in covered_sectors(offset, bytes.len()) {
            let key = (name.to_owned(), sector);
            if let Entry::Vacant(vacant) = state.unsynced.entry(key) {
                vacant.insert(read_sector(&file, sector)?);
            }
        }
        let blown = state.power_fails_now()?;
        tracing::trace!(name, offset, len = bytes.len(), "write starts");
        note(&state, name, offset, bytes);
        file.write_all_at(bytes, offset)?;
        if blown {
            return Err(no_power());
        }
        Ok(PendingWrite { name: name.to_owned(), offset, len: bytes.len() })
    }

    /// The write is on the disk.
    ///
    /// # Errors
    /// The sync failed, or no power.
    pub fn finish_write(&self, write: PendingWrite) -> io::Result<()> {
        let mut state = self.open()?;
        state.powered()?;
        if std::mem::take(&mut state.failing) {
            return Err(io::Error::other("the disk reports a write error"));
        }
        state.synced(&write.name, write.offset, write.len);
        state.bytes_written += write.len as u64;
        Ok(())
    }

    /// Power is lost: of the sectors that are not synced, those for which `keep` says so have
    /// reached the disk. Returns how many have not.
    ///
    /// # Panics
    /// When the system cannot write its own memory.
    pub fn lose_unsynced(&self, mut keep: impl FnMut(usize) -> bool) -> usize {
        let mut state = self.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        let mut lost = 0;
        for (index, ((name, sector), before)) in unsynced.into_iter().enumerate() {
            let Some(file) = state.files.get(&name).filter(|_| !keep(index)) else { continue };
            file.write_all_at(&before, sector * SECTOR_BYTES as u64)
                .expect("a memory file can be written");
            lost += 1;
        }
        lost
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
        let read = |file: &MemoryFile| content(file).expect("a memory file can be read");
        state.files.iter().map(|(name, file)| (name.clone(), read(file))).collect()
    }

    /// Puts a file there, whatever was under that name.
    ///
    /// # Panics
    /// When the system has no memory left.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let file = MemoryFile::new(bytes.len() as u64).expect("memory for a test file");
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

    /// The files, for a call of a process that lives.
    fn open(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if self.mount == state.mount { Ok(state) } else { Err(no_power()) }
    }
}

impl State {
    fn file(&self, name: &str) -> io::Result<Arc<MemoryFile>> {
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

    /// These bytes are durable now.
    fn synced(&mut self, name: &str, offset: u64, len: usize) {
        if self.unsynced.is_empty() {
            return;
        }
        for sector in covered_sectors(offset, len) {
            self.unsynced.remove(&(name.to_owned(), sector));
        }
    }

    /// The file is gone, or is another one now.
    fn forget_unsynced(&mut self, name: &str) {
        self.unsynced.retain(|(file, _), _| file != name);
    }

    fn used_bytes(&self) -> io::Result<u64> {
        self.files.values().map(|file| file.len()).sum()
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
        let state = self.open()?;
        state.powered()?;
        let size = |(name, file): (&String, &Arc<MemoryFile>)| Ok((name.clone(), file.len()?));
        state.files.iter().map(size).collect()
    }

    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<()> {
        let mut state = self.open()?;
        if state.power_fails_now()? {
            return Err(no_power());
        }
        note(&state, name, bytes, b"create");
        state.files.remove(name);
        state.forget_unsynced(name);
        state.check_capacity(bytes)?;
        state.files.insert(name.to_owned(), Arc::new(MemoryFile::new(bytes)?));
        Ok(())
    }

    fn write_durable_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.open()?;
        let fails = state.power_fails_now()?;
        note(&state, name, offset, bytes);
        let len = match state.files.get(name) {
            Some(file) => file.len()?,
            None => 0,
        };
        state.check_capacity((offset + bytes.len() as u64).saturating_sub(len))?;
        if !state.files.contains_key(name) {
            state.files.insert(name.to_owned(), Arc::new(MemoryFile::new(0)?));
        }
        let file = state.files[name].clone();
        if !fails {
            state.synced(name, offset, bytes.len());
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
        let file = self.open()?.file(name)?;
        file.read_exact_at(buffer, offset)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.open()?;
        if state.power_fails_now()? {
            return Err(no_power());
        }
        note(&state, from, 0, to.as_bytes());
        let file = state.file(from)?;
        state.files.remove(from);
        state.forget_unsynced(from);
        state.forget_unsynced(to);
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.open()?;
        if state.power_fails_now()? {
            return Err(no_power());
        }
        note(&state, name, 0, b"remove");
        state.file(name)?;
        state.files.remove(name);
        state.forget_unsynced(name);
        Ok(())
    }

    fn map(&self, name: &str) -> io::Result<Arc<dyn Map>> {
        self.open()?.file(name)?.map()
    }

    fn path(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

fn note(state: &State, name: &str, place: u64, bytes: &[u8]) {
    let numbers = [state.calls, trace::digest(name.as_bytes()), place, trace::digest(bytes)];
    trace::note(trace::Kind::Disk, &numbers);
}

/// Numbers of the sectors that a write of `len` bytes at `offset` touches.
fn covered_sectors(offset: u64, len: usize) -> std::ops::Range<u64> {
    let sector = SECTOR_BYTES as u64;
    offset / sector..(offset + len as u64).div_ceil(sector)
}

/// A whole sector, shorter at the end of the file.
fn read_sector(file: &MemoryFile, sector: u64) -> io::Result<Vec<u8>> {
    let at = sector * SECTOR_BYTES as u64;
    let len = file.len()?.saturating_sub(at).min(SECTOR_BYTES as u64);
    let mut bytes = vec![0; usize::try_from(len).expect("a sector is small")];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn no_power() -> io::Error {
    io::Error::other("power is lost")
}

fn content(file: &MemoryFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).expect("test files are small");
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
    fn a_write_in_flight_is_seen_at_once_and_may_be_lost_in_part() {
        let disk = MemoryDisk::new();
        disk.create_zeroed("a", 4096).unwrap();
        let map = disk.map("a").unwrap();
        let write = disk.start_write("a", 0, &[9; 1024]).unwrap();
        assert_eq!(map.bytes()[..1024], [9; 1024]);
        // The process is killed: the bytes stay, and a later power loss takes a part of them.
        drop(write);
        assert_eq!(disk.lose_unsynced(|sector| sector == 1), 1);
        assert_eq!((map.bytes()[0], map.bytes()[512]), (0, 9));
        let write = disk.start_write("a", 0, &[7; 1024]).unwrap();
        disk.finish_write(write).unwrap();
        assert_eq!(disk.lose_unsynced(|_| false), 0);
        assert_eq!(map.bytes()[..1024], [7; 1024]);
    }

    #[test]
    fn a_handle_of_an_earlier_mount_is_refused() {
        let disk = MemoryDisk::new();
        let first = disk.mount();
        first.write_durable_at("a", 0, b"one").unwrap();
        let second = disk.mount();
        assert!(first.write_durable_at("a", 0, b"two").is_err());
        assert_eq!(second.list().unwrap().len(), 1);
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
