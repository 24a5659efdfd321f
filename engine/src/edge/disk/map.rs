//! Maps of segments, and reads past the system's memory for what is not in it.
//!
//! Touching a page of a map that is not in memory makes the system read it, and keep it: memory
//! that on a virtual machine must first be had from the host, for bytes of a log that are wanted
//! once. So a large range that is cold is read with `O_DIRECT`, into buffers that serve again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::direct::{ReadBuffers, open_direct, read_direct};
use crate::edge::{DIRECT_PAGE_BYTES as PAGE_BYTES, Map};

/// Pages are faulted in by steps of this many bytes, so that one call never holds the map's lock
/// for long (8 MiB are a few milliseconds from a cold disk).
const POPULATE_STEP_BYTES: usize = 8 << 20;
/// Smaller ranges come in by the map.
const COLD_BYTES_MIN: usize = 2 * PAGE_BYTES;

/// Maps a whole file for reading. The file must never become shorter while it is mapped; the
/// log's files never do (they are created whole, renamed and unlinked, never truncated).
#[cfg(any(test, feature = "sim"))]
pub(crate) fn map_file(file: &File) -> io::Result<Arc<dyn Map>> {
    Ok(Arc::new(map(file, None)?))
}

/// The same, for a file at `path`, whose cold parts are read into `buffers` where there are direct
/// reads.
pub(super) fn map_path(path: PathBuf, buffers: &Arc<ReadBuffers>) -> io::Result<Arc<dyn Map>> {
    let file = File::open(&path)?;
    let direct = open_direct(&path, OpenOptions::new().read(true))?;
    let cold = Cold { path, file: identity(&file)?, buffers: buffers.clone() };
    Ok(Arc::new(map(&file, direct.map(|_| cold))?))
}

fn map(file: &File, cold: Option<Cold>) -> io::Result<FileMap> {
    // SAFETY: The map is read-only. The file is not truncated (see above), and its blocks are
    // allocated, so no access faults. Its bytes do change under the map, by this process's own
    // writes: readers only look below a position that the writer published after the write was
    // done, and bytes below it do not change until the segment is retired; recycling waits for
    // the positions of all readers (see `log::retire`). Other processes are kept out by the
    // directory's lock and mode.
    let map = unsafe { memmap2::Mmap::map(file)? };
    if cold.is_some() {
        // What is touched comes in, and not what may stand behind it: that is read past the cache.
        map.advise(memmap2::Advice::Random)?;
    }
    Ok(FileMap { map, cold })
}

struct FileMap {
    map: memmap2::Mmap,
    cold: Option<Cold>,
}

/// How a file is read past the system's memory.
struct Cold {
    path: PathBuf,
    /// Another file may have come by the path since.
    file: (u64, u64),
    buffers: Arc<ReadBuffers>,
}

/// Device and number of a file.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Map for FileMap {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.map.len());
        let mut at = offset;
        while at < end {
            let step = (end - at).min(POPULATE_STEP_BYTES);
            // Page by page otherwise, where nothing is read ahead.
            self.map.advise_range(memmap2::Advice::WillNeed, at, step)?;
            match self.map.advise_range(memmap2::Advice::PopulateRead, at, step) {
                Ok(()) => {}
                // Kernels before 5.14 do not know it: then the pages come in when touched.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_unreadable(&error) => {
                    return Err(io::Error::other("the disk cannot read these pages"));
                }
                Err(error) => return Err(error),
            }
            at += step;
        }
        Ok(())
    }

    fn read_cold(&self, offset: usize, len: usize) -> io::Result<Option<Bytes>> {
        let end = offset.saturating_add(len).min(self.map.len());
        let start = offset / PAGE_BYTES * PAGE_BYTES;
        let whole = end.next_multiple_of(PAGE_BYTES);
        let Some(cold) = &self.cold else { return Ok(None) };
        if len < COLD_BYTES_MIN || whole > self.map.len() || !self.is_cold(start, whole - start) {
            return Ok(None);
        }
        let Some(file) = cold.open() else { return Ok(None) };
        read_direct(&file, offset as u64, end - offset, &cold.buffers)
    }
}

impl FileMap {
    /// Whether at least half of these whole pages are not in the system's memory. A system that
    /// does not tell says that all are.
    fn is_cold(&self, offset: usize, len: usize) -> bool {
        let mut there = vec![0_u8; len.div_ceil(rustix::param::page_size())];
        // SAFETY: the range lies in the map, and the vector has a byte for each of its pages.
        let failed = unsafe {
            libc::mincore(self.map[offset..].as_ptr().cast_mut().cast(), len, there.as_mut_ptr())
        };
        let cold = there.iter().filter(|page| *page & 1 == 0).count();
        failed == 0 && cold * 2 >= there.len()
    }
}

impl Cold {
    /// The file, if it is still at its path, and can be read directly. Opened for each read: a
    /// descriptor for each segment of a log would be thousands.
    fn open(&self) -> Option<File> {
        let file = open_direct(&self.path, OpenOptions::new().read(true)).ok()??;
        (identity(&file).ok()? == self.file).then_some(file)
    }
}

/// What the kernel says about pages whose touch would be answered with SIGBUS.
fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::FAULT, Errno::HWPOISON].iter().any(|is| error.raw_os_error() == Some(is.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::super::FileDisk;
    use super::*;
    use crate::edge::Disk;

    const BYTES: usize = 256 << 10;

    /// A file of words that differ, synced; in memory or not.
    fn words(in_memory: bool) -> (tempfile::TempDir, FileDisk, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(directory.path()).unwrap();
        let words: Vec<u8> = (0..BYTES as u64 / 8).flat_map(u64::to_le_bytes).collect();
        disk.write_durable_at("a", 0, &words).unwrap();
        if !in_memory {
            let file = File::open(disk.path_of("a")).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        (directory, disk, words)
    }

    /// Files may be memory here: then nothing is ever cold.
    fn has_cold_files() -> bool {
        const TMPFS: i64 = 0x0102_1994;
        let found = rustix::fs::statfs(std::env::temp_dir().as_path()).unwrap().f_type;
        if found == TMPFS {
            println!("SKIPPED: files are memory here");
        }
        found != TMPFS
    }

    #[test]
    fn a_large_cold_range_is_read_and_not_brought_in() {
        if !has_cold_files() {
            return;
        }
        let (_directory, disk, words) = words(false);
        let map = disk.map("a").unwrap();
        for (offset, len) in [(0, BYTES), (8, 100_000), (5000, BYTES - 5000), (4096, 65_536)] {
            let read = map.read_cold(offset, len).unwrap().expect("it is cold");
            assert!(read == words[offset..offset + len], "{len} bytes from {offset}");
        }
        // Asked beyond its end, it is read to its end.
        let read = map.read_cold(BYTES - 70_000, 1 << 20).unwrap().unwrap();
        assert!(read == words[BYTES - 70_000..]);
        assert!(map.read_cold(0, COLD_BYTES_MIN - 1).unwrap().is_none(), "small");
        map.populate(0, BYTES).unwrap();
        assert!(map.read_cold(0, BYTES).unwrap().is_none(), "in memory by now");
    }

    #[test]
    fn what_is_in_memory_is_not_read_again() {
        let (_directory, disk, words) = words(true);
        let map = disk.map("a").unwrap();
        assert!(map.read_cold(0, BYTES).unwrap().is_none());
        assert!(map.bytes() == words);
    }

    #[test]
    fn another_file_at_the_same_path_is_not_read() {
        let (_directory, disk, words) = words(false);
        let map = disk.map("a").unwrap();
        disk.rename("a", "b").unwrap();
        assert!(map.read_cold(0, BYTES).unwrap().is_none(), "no file");
        disk.write_durable_at("a", 0, &[7; BYTES]).unwrap();
        assert!(map.read_cold(0, BYTES).unwrap().is_none(), "another");
        assert!(map.bytes() == words);
    }
}
