//! Segment files on the ring: whatever is written is durable when the write returns.
//!
//! Files are opened with `O_DSYNC`, so that write and sync are one operation and one trip through
//! the ring. Writes go through the system's page cache, where readers' maps find them; those that
//! nobody will read soon go past it ([`Caching::Bypass`]), with `O_DIRECT`: the cache would have to
//! be given memory for each of their pages, which on a virtual machine can take several times what
//! the write does.
//!
//! Such writes begin and end at pages of the file and of memory. So a copy is made, that also holds
//! what stands before it in the first page, and zeroes up to the end of the last.

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
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::ring::Ring;
use super::super::{Caching, DIRECT_PAGE_BYTES as PAGE_BYTES, RingFile};
use super::{length, not_nothing, write_parts};

/// A file whose writes are durable when they return.
#[derive(Clone)]
pub struct UringFile {
    inner: Rc<Inner>,
    ring: Rc<Ring>,
}

struct Inner {
    cached: Rc<File>,
    path: PathBuf,
    direct: RefCell<Direct>,
    /// For the copies, while there are direct writes.
    room: RefCell<Option<MmapMut>>,
    /// Where the last write ended, if it was a direct one: then its last page is in `last_page`.
    direct_end: Cell<Option<u64>>,
    last_page: RefCell<Vec<u8>>,
}

/// The same file, opened with `O_DIRECT`: once it is wanted, since few files are.
enum Direct {
    Unopened,
    Open(Rc<File>),
    Unsupported,
}

impl UringFile {
    /// Opens a file of fixed size, whose blocks are there.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(path: &Path, ring: Rc<Ring>) -> io::Result<UringFile> {
        let inner = Inner {
            cached: open(path, OFlags::DSYNC)?,
            path: path.to_path_buf(),
            direct: RefCell::new(Direct::Unopened),
            room: RefCell::default(),
            direct_end: Cell::default(),
            last_page: RefCell::default(),
        };
        Ok(UringFile { inner: Rc::new(inner), ring })
    }

    /// The file for direct writes. None where there are none.
    fn direct(&self) -> io::Result<Option<Rc<File>>> {
        let mut direct = self.inner.direct.borrow_mut();
        if matches!(*direct, Direct::Unopened) {
            *direct = match open(&self.inner.path, OFlags::DSYNC | OFlags::DIRECT) {
                Err(error) if is_unsupported(&error) => Direct::Unsupported,
                opened => Direct::Open(opened?),
            };
        }
        Ok(match &*direct {
            Direct::Open(file) => Some(file.clone()),
            _ => None,
        })
    }

    async fn write_cached(&self, parts: Vec<Bytes>, offset: u64) -> io::Result<()> {
        self.inner.direct_end.set(None);
        self.inner.room.take();
        write_parts(&self.ring, &self.inner.cached, parts, Some(offset)).await
    }

    async fn write_direct(&self, file: &Rc<File>, parts: &[Bytes], offset: u64) -> io::Result<()> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let head = usize::try_from(offset % PAGE_BYTES as u64).expect("less than a page");
        let whole = (head + bytes).next_multiple_of(PAGE_BYTES);
        let start = offset - head as u64;
        let mut pages = match self.inner.room.take() {
            Some(pages) if pages.len() >= whole => pages,
            _ => MmapMut::map_anon(whole)?,
        };
        if head > 0 {
            if self.inner.direct_end.take() == Some(offset) {
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
        self.inner.direct_end.set(Some(offset + bytes as u64));
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
    async fn write_durable_parts(
        &self,
        parts: Vec<Bytes>,
        offset: u64,
        caching: Caching,
    ) -> io::Result<()> {
        let direct = match caching {
            Caching::Bypass => self.direct()?,
            Caching::Keep => None,
        };
        let Some(direct) = direct else { return self.write_cached(parts, offset).await };
        match self.write_direct(&direct, &parts, offset).await {
            Err(error) if is_unsupported(&error) => {
                tracing::debug!("no direct writes to this file: {error}");
                self.inner.direct.replace(Direct::Unsupported);
                self.write_cached(parts, offset).await
            }
            written => written,
        }
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<Rc<File>> {
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map(Rc::new)
}

/// What a file system says that has no direct writes, or not such ones. Nothing was written then.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::disk::FileDisk;
    use super::super::super::{Disk, Edge};
    use super::super::run;
    use super::*;
    use Caching::{Bypass, Keep};

    const FILE_BYTES: usize = 256 << 10;

    /// A file of nines, mapped and touched, with writes in it one behind the other, of so many
    /// bytes and of their numbers. Every time what is in the file must be in the map.
    fn write(first: usize, writes: &[(usize, Caching)]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(directory.path()).unwrap();
        disk.write_durable_at("a", 0, &[9; FILE_BYTES]).unwrap();
        let map = disk.map("a").unwrap();
        let (opened, writes) = (disk.clone(), writes.to_vec());
        run(Duration::from_secs(60), |edge| async move {
            let file = edge.open_durable(&opened, "a").unwrap();
            let mut at = first;
            for ((bytes, caching), number) in writes.into_iter().zip(1..) {
                assert!(!map.bytes()[at..][..bytes].contains(&number));
                let parts = [bytes / 3, bytes - bytes / 3].map(|len| vec![number; len].into());
                file.write_durable_parts(parts.to_vec(), at as u64, caching).await.unwrap();
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

    /// Nines, then so many of each number, then zeroes up to a page's end, then nines.
    fn expected(first: usize, lens: &[usize], zeroes: bool) -> Vec<u8> {
        let mut bytes = vec![9; first];
        for (&len, number) in lens.iter().zip(1..) {
            bytes.extend(vec![number; len]);
        }
        if zeroes {
            bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
        }
        bytes.resize(FILE_BYTES, 9);
        bytes
    }

    #[test]
    fn writes_past_the_cache_and_through_it_follow_one_another() {
        for first in [0, 8, 4096, 5000] {
            for lens in [[8, 16, 24], [4096, 8192, 4096], [10_000, 20_008, 30_000]] {
                for ways in 0..8 {
                    let caching = |at: usize| if ways >> at & 1 == 1 { Bypass } else { Keep };
                    let writes = [0, 1, 2].map(|at| (lens[at], caching(at)));
                    let found = write(first, &writes);
                    // Zeroes show that the write did go past the cache.
                    let direct = writes[2].1 == Bypass;
                    let last = expected(first, &lens, direct);
                    let behind = writes[..2].iter().any(|(_, caching)| *caching == Bypass);
                    let end = first + lens.iter().sum::<usize>();
                    let same = if behind && !direct { end } else { FILE_BYTES };
                    assert!(found[..same] == last[..same], "from {first}: {writes:?}");
                }
            }
        }
    }

    #[test]
    fn what_goes_past_the_cache_does_not_stay_in_memory() {
        let cold_after = |caching| {
            let directory = tempfile::tempdir().unwrap();
            let disk = FileDisk::open(directory.path()).unwrap();
            disk.write_durable_at("a", 0, &[9; FILE_BYTES]).unwrap();
            let (opened, parts) = (disk.clone(), vec![vec![1; FILE_BYTES].into()]);
            run(Duration::from_secs(60), |edge| async move {
                let file = edge.open_durable(&opened, "a").unwrap();
                file.write_durable_parts(parts, 0, caching).await.unwrap();
            })
            .unwrap();
            disk.map("a").unwrap().read_cold(0, FILE_BYTES).unwrap()
        };
        assert_eq!(cold_after(Keep), None);
        const TMPFS: i64 = 0x0102_1994;
        if rustix::fs::statfs(std::env::temp_dir().as_path()).unwrap().f_type == TMPFS {
            println!("SKIPPED: files are memory here");
            return;
        }
        assert!(cold_after(Bypass).expect("not in memory").iter().all(|byte| *byte == 1));
    }

    #[test]
    fn what_was_cut_and_written_again_is_not_taken_from_the_write_before() {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(directory.path()).unwrap();
        disk.write_durable_at("a", 0, &[9; FILE_BYTES]).unwrap();
        let opened = disk.clone();
        run(Duration::from_secs(60), |edge| async move {
            let file = edge.open_durable(&opened, "a").unwrap();
            for (number, at, bytes, caching) in
                [(1, 0, 5000, Bypass), (2, 4500, 500, Keep), (3, 5000, 5000, Bypass)]
            {
                let parts = vec![vec![number; bytes].into()];
                file.write_durable_parts(parts, at, caching).await.unwrap();
            }
        })
        .unwrap();
        let mut found = vec![0; 10_000];
        disk.read_exact_at("a", 0, &mut found).unwrap();
        assert!(found == [vec![1; 4500], vec![2; 500], vec![3; 5000]].concat());
    }
}
