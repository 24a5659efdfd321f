//! Reads and writes past the system's page cache (`O_DIRECT`), and memory for them: whole pages,
//! aligned.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::edge::DIRECT_PAGE_BYTES as PAGE_BYTES;

/// From this size on memory is in huge pages, where the system has some: a disk is asked for pieces
/// of memory, and 1 MiB is one piece then, not 256.
const HUGE_BYTES_MIN: usize = 512 << 10;
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What is read into a buffer is at least one part in so many of it.
const LARGER_MAX: usize = 4;
/// Buffers that wait to serve again: for one more the oldest is freed.
const IDLE_BUFFERS_MAX: usize = 8;
/// After this time those too.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// What a file system says that has no such reads and writes, or not of these pages. Nothing was
/// read or written then.
pub fn is_not_direct(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

/// Opens a file for direct reads or writes. Nothing where the file system has none.
///
/// # Errors
/// The system's.
pub fn open_direct(path: &Path, how: &mut OpenOptions) -> io::Result<Option<File>> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    match how.custom_flags(flags).open(path) {
        Err(error) if is_not_direct(&error) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Reads exactly so many bytes. Nothing where the disk wants other pages than these.
///
/// # Errors
/// The system's; [`io::ErrorKind::UnexpectedEof`] where the file ends before.
pub fn read_direct(
    file: &File,
    offset: u64,
    len: usize,
    buffers: &Arc<ReadBuffers>,
) -> io::Result<Option<Bytes>> {
    let head = usize::try_from(offset % PAGE_BYTES as u64).expect("less than a page");
    let whole = (head + len).next_multiple_of(PAGE_BYTES);
    let mut buffer = buffers.take(whole)?;
    let mut done = 0;
    // At the file's end, less than the last page.
    while done < head + len {
        let memory = &mut buffer.memory_mut()[done..whole];
        match file.read_at(memory, offset - head as u64 + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_not_direct(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(Bytes::from_owner(buffer).slice(head..head + len)))
}

/// At least so many bytes, zeroes.
///
/// # Errors
/// The system's.
pub fn direct_memory(bytes: usize) -> io::Result<MmapMut> {
    if bytes < HUGE_BYTES_MIN {
        return MmapMut::map_anon(bytes);
    }
    let memory = MmapMut::map_anon(bytes.next_multiple_of(HUGE_PAGE_BYTES))?;
    // A last part that is small would be there as a whole.
    let huge = (bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES).max(HUGE_PAGE_BYTES);
    // Small pages do as well.
    if let Err(error) = memory.advise_range(Advice::HugePage, 0, huge) {
        tracing::trace!("no huge pages: {error}");
    }
    Ok(memory)
}

/// Page-aligned buffers for direct reads, which come back from any thread.
///
/// Limit: at most [`IDLE_BUFFERS_MAX`] wait here, for [`IDLE_MAX`]; in use are as many as readers
/// hold what they have read.
#[derive(Debug, Default)]
pub struct ReadBuffers {
    idle: Mutex<Vec<(MmapMut, Instant)>>,
}

/// One of them, in use.
pub struct ReadBuffer {
    /// `None` only while it is dropped.
    memory: Option<MmapMut>,
    home: Arc<ReadBuffers>,
}

impl ReadBuffers {
    /// A buffer of at least so many bytes: the one that came back last, or a new one.
    pub fn take(self: &Arc<ReadBuffers>, bytes: usize) -> io::Result<ReadBuffer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is much too large would be held by those who account for a little.
        let fits = |memory: &MmapMut| (bytes..=bytes * LARGER_MAX).contains(&memory.len());
        let fits = idle.iter().rposition(|(memory, _)| fits(memory));
        let memory = fits.map(|at| idle.remove(at).0);
        drop(idle);
        let memory = memory.map_or_else(|| direct_memory(bytes), Ok)?;
        Ok(ReadBuffer { memory: Some(memory), home: self.clone() })
    }

    /// Frees those that have not been used for a while.
    pub fn tidy(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < IDLE_MAX);
    }
}

impl ReadBuffer {
    /// All of it.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut idle = self.home.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == IDLE_BUFFERS_MAX {
            idle.remove(0);
        }
        idle.push((memory, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_serve_again_and_go_when_they_do_not() {
        let buffers = Arc::<ReadBuffers>::default();
        let idle = || buffers.idle.lock().unwrap().len();
        let at = |buffer: &ReadBuffer| buffer.as_ref().as_ptr();
        let first = buffers.take(8192).unwrap();
        let (place, bytes) = (at(&first), Bytes::from_owner(first));
        drop((bytes.slice(..10), bytes));
        assert_eq!(idle(), 1);
        let larger = buffers.take(1 << 20).unwrap();
        assert_ne!(at(&larger), place);
        let again = buffers.take(4096).unwrap();
        assert_eq!(at(&again), place);
        drop((larger, again));
        let many: Vec<ReadBuffer> = (0..20).map(|_| buffers.take(4096).unwrap()).collect();
        drop(many);
        assert_eq!(idle(), IDLE_BUFFERS_MAX);
        buffers.tidy();
        assert_eq!(idle(), IDLE_BUFFERS_MAX, "just used");
        for (_, since) in &mut *buffers.idle.lock().unwrap() {
            *since -= IDLE_MAX;
        }
        buffers.tidy();
        assert_eq!(idle(), 0);
    }
}
