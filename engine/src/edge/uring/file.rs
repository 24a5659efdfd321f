//! Segment files on the ring: whatever is written is durable when the write returns.
//!
//! Files are opened with `O_DSYNC`, so that write and sync are one operation and one trip through
//! the ring; and with `O_DIRECT`: through the system's page cache a write needs one of the kernel's
//! workers, which has to wake up for it, and memory for each new page, which a virtual machine must
//! first be given. Readers' maps find what was written all the same. Where a file system has no
//! direct writes they go through the cache.
//!
//! Both ways, writes begin and end at pages of the file: direct ones must, and the cache would read
//! the rest of a page that it does not have. So a copy is made, that also holds what stands before
//! it in the first page, and zeroes up to the end of the last.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use io_uring::{opcode, types};
use memmap2::MmapMut;
use rustix::fs::{FlockOperation, OFlags};

use super::super::disk::{direct_memory, is_not_direct};
use super::super::ring::Ring;
use super::super::{DIRECT_PAGE_BYTES as PAGE_BYTES, RingFile};
use super::{length, not_nothing};

/// Room for copies grows by so much.
const ROOM_STEP_BYTES: usize = 64 << 10;

/// A file whose writes are durable when they return.
#[derive(Clone)]
pub struct UringFile {
    inner: Rc<Inner>,
    ring: Rc<Ring>,
}

struct Inner {
    path: PathBuf,
    file: RefCell<Rc<File>>,
    /// For the copies. Limit: as large as the largest write, and less than [`ROOM_STEP_BYTES`]
    /// more.
    room: RefCell<Option<MmapMut>>,
    /// Where the last write ended: its last page is in `last_page`.
    end: Cell<Option<u64>>,
    last_page: RefCell<Vec<u8>>,
}

impl UringFile {
    /// Opens a file of fixed size, of whole pages, whose blocks are there.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(path: &Path, ring: Rc<Ring>) -> io::Result<UringFile> {
        let file = match open(path, OFlags::DSYNC | OFlags::DIRECT) {
            Err(error) if is_not_direct(&error) => open_cached(path)?,
            opened => opened?,
        };
        let inner = Inner {
            path: path.to_path_buf(),
            file: RefCell::new(file),
            room: RefCell::default(),
            end: Cell::default(),
            last_page: RefCell::default(),
        };
        Ok(UringFile { inner: Rc::new(inner), ring })
    }

    async fn write(&self, parts: &[Bytes], offset: u64) -> io::Result<()> {
        let file = &self.inner.file.borrow().clone();
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        if bytes == 0 {
            return Ok(());
        }
        let known_end = self.inner.end.take();
        let head = usize::try_from(offset % PAGE_BYTES as u64).expect("less than a page");
        let whole = (head + bytes).next_multiple_of(PAGE_BYTES);
        let start = offset - head as u64;
        let mut pages = match self.inner.room.take() {
            Some(pages) if pages.len() >= whole => pages,
            _ => direct_memory(whole.next_multiple_of(ROOM_STEP_BYTES))?,
        };
        if head > 0 {
            if known_end == Some(offset) {
                pages[..PAGE_BYTES].copy_from_slice(&self.inner.last_page.borrow());
            } else {
                pages = self.read_page(file, pages, start).await?;
            }
        }
        let mut at = head;
        for part in parts {
            pages[at..][..part.len()].copy_from_slice(part);
            at += part.len();
        }
        pages[at..whole].fill(0);
        let pages = self.write_pages(file, pages, whole, start).await?;
        let mut last_page = self.inner.last_page.borrow_mut();
        last_page.clear();
        last_page.extend_from_slice(&pages[whole - PAGE_BYTES..whole]);
        self.inner.end.set(Some(offset + bytes as u64));
        self.inner.room.replace(Some(pages));
        Ok(())
    }

    /// Reads one page of the file into the first of `pages`.
    async fn read_page(
        &self,
        file: &Rc<File>,
        mut pages: MmapMut,
        start: u64,
    ) -> io::Result<MmapMut> {
        let descriptor = types::Fd(file.as_raw_fd());
        let entry = opcode::Read::new(descriptor, pages.as_mut_ptr(), length(PAGE_BYTES))
            .offset(start)
            .build();
        // SAFETY: it writes into the map's first page; the map is kept, and its pages do not move.
        let (read, (_, pages)) = unsafe { self.ring.start(entry, (file.clone(), pages)) }.await;
        if read? < PAGE_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(pages)
    }

    /// Writes the first `bytes` of `pages`, whole pages.
    async fn write_pages(
        &self,
        file: &Rc<File>,
        mut pages: MmapMut,
        bytes: usize,
        start: u64,
    ) -> io::Result<MmapMut> {
        let mut done = 0;
        while done < bytes {
            let rest = &pages[done..bytes];
            let descriptor = types::Fd(file.as_raw_fd());
            let entry = opcode::Write::new(descriptor, rest.as_ptr(), length(rest.len()))
                .offset(start + done as u64)
                .build();
            // SAFETY: it reads pages of the map, which is kept, and whose pages do not move.
            let write = unsafe { self.ring.start(entry, (file.clone(), pages)) };
            // What has been received meanwhile is checked while the disk is at work.
            self.ring.hand_over();
            let (written, (_, kept)) = write.await;
            pages = kept;
            // What ends within a page is written again from that page's beginning.
            done += not_nothing(written? / PAGE_BYTES * PAGE_BYTES)?;
        }
        Ok(pages)
    }
}

impl RingFile for UringFile {
    async fn write_durable_parts(&self, parts: Vec<Bytes>, offset: u64) -> io::Result<()> {
        match self.write(&parts, offset).await {
            Err(error) if is_not_direct(&error) => {
                // Nothing was written. If it was not that, it is told now.
                self.inner.file.replace(open_cached(&self.inner.path)?);
                self.write(&parts, offset).await
            }
            written => written,
        }
    }
}

fn open_cached(path: &Path) -> io::Result<Rc<File>> {
    // Much slower: whoever looks for the reason should find it.
    tracing::info!("no direct writes to {}: they go through the page cache", path.display());
    open(path, OFlags::DSYNC)
}

fn open(path: &Path, flags: OFlags) -> io::Result<Rc<File>> {
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    // Held by whatever is under way in it, even when this process has ended: see `Disk::settle`.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
    Ok(Rc::new(file))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::disk::FileDisk;
    use super::super::super::{Disk, Edge};
    use super::super::run;
    use super::*;

    const FILE_BYTES: usize = 256 << 10;

    /// A file of nines.
    fn nines() -> (tempfile::TempDir, FileDisk) {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(directory.path()).unwrap();
        disk.write_durable_at("a", 0, &[9; FILE_BYTES]).unwrap();
        (directory, disk)
    }

    /// A file of nines, mapped and touched, with writes in it one behind the other, of so many
    /// bytes and of their numbers: direct ones before the `cached_from`th. Every time what is in
    /// the file must be in the map.
    fn write(first: usize, lens: [usize; 3], cached_from: usize) -> Vec<u8> {
        let (_directory, disk) = nines();
        let map = disk.map("a").unwrap();
        let opened = disk.clone();
        run(Duration::from_secs(60), |edge| async move {
            let file = edge.open_durable(&opened, "a").unwrap();
            let mut at = first;
            for (index, bytes) in lens.into_iter().enumerate() {
                if index == cached_from {
                    file.inner.file.replace(open_cached(&file.inner.path).unwrap());
                }
                let number = index as u8 + 1;
                assert!(!map.bytes()[at..][..bytes].contains(&number));
                let parts = [bytes / 3, bytes - bytes / 3].map(|len| vec![number; len].into());
                file.write_durable_parts(parts.to_vec(), at as u64).await.unwrap();
                assert!(map.bytes()[at..][..bytes].iter().all(|byte| *byte == number));
                at += bytes;
                let mut found = vec![0; FILE_BYTES];
                opened.read_exact_at("a", 0, &mut found).unwrap();
                assert!(found == map.bytes(), "after write {number}");
            }
        })
        .unwrap();
        let mut found = vec![0; FILE_BYTES];
        disk.read_exact_at("a", 0, &mut found).unwrap();
        found
    }

    #[test]
    fn writes_follow_one_another_with_zeroes_up_to_the_pages_end() {
        for first in [0, 8, 4096, 5000] {
            for lens in [[8, 16, 24], [4096, 8192, 4096], [10_000, 20_008, 30_000]] {
                for cached_from in 0..=lens.len() {
                    let found = write(first, lens, cached_from);
                    let mut expected = vec![9; first];
                    for (len, number) in lens.into_iter().zip(1..) {
                        expected.extend(vec![number; len]);
                    }
                    expected.resize(expected.len().next_multiple_of(PAGE_BYTES), 0);
                    expected.resize(FILE_BYTES, 9);
                    assert!(found == expected, "{lens:?} from {first}, cached from {cached_from}");
                }
            }
        }
    }

    #[test]
    fn what_is_written_does_not_stay_in_the_systems_memory() {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(directory.path()).unwrap();
        disk.create_zeroed("a", FILE_BYTES as u64).unwrap();
        let (opened, parts) = (disk.clone(), vec![vec![1; FILE_BYTES].into()]);
        run(Duration::from_secs(60), |edge| async move {
            let file = edge.open_durable(&opened, "a").unwrap();
            file.write_durable_parts(parts, 0).await.unwrap();
        })
        .unwrap();
        const TMPFS: i64 = 0x0102_1994;
        if rustix::fs::statfs(std::env::temp_dir().as_path()).unwrap().f_type == TMPFS {
            println!("SKIPPED: files are memory here");
            return;
        }
        let cold = disk.map("a").unwrap().read_cold(0, FILE_BYTES).unwrap();
        assert!(cold.expect("not in memory").iter().all(|byte| *byte == 1));
    }

    #[test]
    fn a_file_is_settled_when_nobody_can_write_to_it_any_more() {
        let (_directory, disk) = nines();
        let opened = disk.clone();
        let other = std::fs::File::open(disk.path_of("a")).unwrap();
        let lock = move || rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
        run(Duration::from_secs(60), |edge| async move {
            let file = edge.open_durable(&opened, "a").unwrap();
            assert_eq!(lock(), Err(rustix::io::Errno::WOULDBLOCK));
            let mut write = Box::pin(file.write_durable_parts(vec![vec![1; 8192].into()], 0));
            let begun = std::future::poll_fn(|context| {
                std::task::Poll::Ready(write.as_mut().poll(context).is_pending())
            });
            assert!(begun.await);
            // Nobody waits for it any more, and it is under way.
            drop(write);
            drop(file);
            assert_eq!(lock(), Err(rustix::io::Errno::WOULDBLOCK));
            while lock().is_err() {
                tokio::task::yield_now().await;
            }
        })
        .unwrap();
        disk.settle("a").unwrap();
        let mut found = vec![0; 8192];
        disk.read_exact_at("a", 0, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn what_was_cut_and_written_again_is_not_taken_from_the_write_before() {
        let (_directory, disk) = nines();
        let opened = disk.clone();
        run(Duration::from_secs(60), |edge| async move {
            let file = edge.open_durable(&opened, "a").unwrap();
            for (number, at, bytes) in [(1, 0, 5000), (2, 4500, 500), (3, 5000, 5000)] {
                let parts = vec![vec![number; bytes].into()];
                file.write_durable_parts(parts, at).await.unwrap();
            }
            let mut found = vec![0; 10_000];
            opened.read_exact_at("a", 0, &mut found).unwrap();
            assert!(found == [vec![1; 4500], vec![2; 500], vec![3; 5000]].concat());
            // Cut by somebody else, and written by this one from there on.
            opened.write_durable_at("a", 4096, &[0; 5904]).unwrap();
            file.write_durable_parts(vec![vec![4; 10].into()], 4100).await.unwrap();
        })
        .unwrap();
        let mut found = vec![0; 8192];
        disk.read_exact_at("a", 0, &mut found).unwrap();
        let expected = [vec![1; 4096], vec![0; 4], vec![4; 10], vec![0; 4082]];
        assert!(found == expected.concat());
    }
}
