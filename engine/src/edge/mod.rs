//! The edge: the only place with syscalls. Agents and the log are generic over these traits.
//!
//! [`uring`] is production: sockets and files on an io_uring, memory maps, the machine's clock. The
//! simulated twins (`sim`, behind the feature of that name) implement the same traits under tokio's
//! paused clock. Neither knows the protocol. What io_uring touches is in here, so that
//! replacing it stays a one-folder change.

pub mod disk;
mod ring;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod uring;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rowship_proto::Nanos;

/// Everything a node needs of the world. One value per node, cheap to clone, used on the ring
/// thread only (what crosses threads is [`Disk`] and [`Worker`]).
pub trait Edge: Clone + 'static {
    /// A connected socket.
    type Stream: Stream;
    /// A listening socket.
    type Listener: Listener<Stream = Self::Stream>;
    /// One directory of files.
    type Disk: Disk;
    /// A file written through the ring.
    type File: RingFile;

    /// Monotonic time in nanoseconds.
    fn now(&self) -> Nanos;
    /// Wall clock in nanoseconds since 1970.
    fn wall_ns(&self) -> u64;
    /// A random word.
    fn random(&self) -> u64;
    /// Number of this process, for operators.
    fn process_id(&self) -> u32;
    /// Returns when the operator asks the process to stop; never, where that cannot be noticed.
    fn asked_to_stop(&self) -> impl Future<Output = ()>;
    /// Connects to `host:port`; name resolution included.
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Self::Stream>>;
    /// Listens on `host:port`.
    fn listen(&self, address: &str) -> io::Result<Self::Listener>;
    /// Opens a file of `disk` for writing through the ring, each write durable when it returns.
    fn open_durable(&self, disk: &Self::Disk, name: &str) -> io::Result<Self::File>;
    /// Something is expected within so long: this thread looks for it instead of sleeping, as long
    /// as nobody else keeps the core for long at once.
    fn stay_awake(&self, time: Duration);
    /// Nothing is expected any more.
    fn may_sleep(&self);
    /// Memory of this process's own that is resident, in bytes; pages of mapped files, which the
    /// system can take back at any time, do not count. 0 where that is not known.
    fn resident_bytes(&self) -> u64;
    /// Starts a worker: a thread (in simulation a task) that calls `turn` for each job, in order.
    /// The worker ends when its handle and all clones are dropped.
    fn worker<J: Send + 'static>(
        &self,
        name: &str,
        queue_max: usize,
        turn: impl FnMut(J) + Send + 'static,
    ) -> io::Result<Worker<J>>;
}

/// A connected socket. Clones share the socket; one task reads, one task writes.
pub trait Stream: Clone + 'static {
    /// Reads once into the spare capacity of `buffer` (which must have some) and returns how many
    /// bytes were added; 0 is the end. Never drop a pending read: its bytes would be lost.
    fn read(&self, buffer: BytesMut) -> impl Future<Output = (io::Result<usize>, BytesMut)>;
    /// Writes all of it.
    fn write_all(&self, bytes: Bytes) -> impl Future<Output = io::Result<()>>;
    /// Writes all parts in order, with as few submissions as the system allows.
    fn write_all_parts(&self, parts: Vec<Bytes>) -> impl Future<Output = io::Result<()>>;
    /// Shuts both directions down; pending reads and writes end.
    fn shutdown(&self);
    /// Whether the other end has stopped sending, or is gone. Asks the system without waiting,
    /// for those who have no read pending that would tell them.
    fn is_hung_up(&self) -> bool;
    /// `host:port` of the other end, for messages.
    fn peer(&self) -> String;
}

/// A listening socket.
pub trait Listener: 'static {
    /// What it accepts.
    type Stream: Stream;
    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>>;
    /// `host:port` it really listens on.
    fn local_address(&self) -> io::Result<String>;
}

/// A file that is written through the ring.
pub trait RingFile: Clone + 'static {
    /// Writes all parts one behind the other from `offset` on; when it returns they survive power
    /// loss. Only the last call may be unfinished when the power goes.
    ///
    /// What stands behind them in their last page ([`DIRECT_PAGE_BYTES`]) may be zeroes afterwards:
    /// calls follow one another through the file, and nobody needs what is behind the last one.
    fn write_durable_parts(
        &self,
        parts: Vec<Bytes>,
        offset: u64,
    ) -> impl Future<Output = io::Result<()>>;
}

/// What writes past the system's page cache are aligned to, in the file and in memory: at least
/// what disks ask for. One that asks for more refuses them, and is written to through the cache.
pub const DIRECT_PAGE_BYTES: usize = 4096;

/// One directory of files, for everything that is not the write path: start, preparation,
/// reading. Calls may block, so after start they run on workers, never on the ring thread.
/// Names are plain file names without separators.
pub trait Disk: Clone + Send + Sync + 'static {
    /// Names and sizes of all files, sorted by name.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Creates `name` with `bytes` really allocated and zeroed, durable, directory entry
    /// included. The error of a full disk comes from here.
    fn create_zeroed(&self, name: &str, bytes: u64) -> io::Result<()>;
    /// The same, leaving the disk to others most of the time, for as long as there is no `hurry`.
    /// The blocks of the first `reserved_bytes` may be only reserved, where the file system can:
    /// writing to them cannot fail for want of space, and costs more than writing to zeroes.
    fn create_ahead(
        &self,
        name: &str,
        bytes: u64,
        _reserved_bytes: u64,
        _hurry: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        self.create_zeroed(name, bytes)
    }
    /// Writes and syncs, creating the file when it is missing.
    fn write_durable_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads exactly `buffer.len()` bytes.
    fn read_exact_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Waits until no write to this file is under way that a [`RingFile`] of a process that has
    /// ended was asked for: a killed process does not wait for its disk, and what comes late would
    /// land on what is written next. An error when that takes a minute.
    fn settle(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }
    /// Renames and syncs the directory.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes and syncs the directory.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Maps the whole file for reading. The map sees later writes to the file.
    fn map(&self, name: &str) -> io::Result<Arc<dyn Map>>;
    /// Gives memory back that has served reads, and does no more. To be called now and then.
    fn tidy(&self) {}
    /// Where this directory is, for messages.
    fn path(&self, name: &str) -> String;
}

/// A read-only map of a file.
pub trait Map: Send + Sync + 'static {
    /// All its bytes.
    fn bytes(&self) -> &[u8];
    /// Brings a range into memory, so that touching it does not wait for the disk. May block.
    /// An error means that the disk cannot read it: whoever touches it then ends with SIGBUS.
    fn populate(&self, offset: usize, len: usize) -> io::Result<()>;
    /// A copy of a range that is better not brought into the system's memory: it is large, and most
    /// of it is not there. Nothing where the map is as good. May block.
    /// An error means that the disk cannot read it.
    fn read_cold(&self, _offset: usize, _len: usize) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}

/// Puts a small file in place as a whole: after a crash there is the old one or the new one.
///
/// # Errors
/// The system's.
pub fn replace_file<D: Disk>(disk: &D, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // Gone, or a crash had left one.
        Err(_) | Ok(()) => {}
    }
    disk.write_durable_at(&temporary, 0, bytes)?;
    disk.rename(&temporary, name)
}

/// A range of a map, as an owner for [`Bytes::from_owner`].
pub struct MapRange {
    map: Arc<dyn Map>,
    offset: usize,
    len: usize,
}

impl MapRange {
    /// `len` bytes of `map` from `offset`, shared without a copy.
    ///
    /// # Panics
    /// When the range is not inside the map.
    #[must_use]
    pub fn share(map: Arc<dyn Map>, offset: usize, len: usize) -> Bytes {
        assert!(offset + len <= map.bytes().len());
        Bytes::from_owner(MapRange { map, offset, len })
    }
}

impl AsRef<[u8]> for MapRange {
    fn as_ref(&self) -> &[u8] {
        &self.map.bytes()[self.offset..self.offset + self.len]
    }
}

/// The sending side of a worker's bounded queue.
pub struct Worker<J> {
    jobs: tokio::sync::mpsc::Sender<J>,
}

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Worker { jobs: self.jobs.clone() }
    }
}

impl<J: Send + 'static> Worker<J> {
    /// A handle that feeds the returned queue of at most `queue_max` jobs.
    #[must_use]
    pub fn channel(queue_max: usize) -> (Worker<J>, tokio::sync::mpsc::Receiver<J>) {
        let (jobs, queue) = tokio::sync::mpsc::channel(queue_max);
        (Worker { jobs }, queue)
    }

    /// Hands a job over, waiting while the queue is full. Returns false when the worker is gone.
    pub async fn send(&self, job: J) -> bool {
        self.jobs.send(job).await.is_ok()
    }

    /// Hands a job over, or gives it back when the queue is full or the worker is gone.
    ///
    /// # Errors
    /// The job.
    pub fn try_send(&self, job: J) -> Result<(), J> {
        self.jobs.try_send(job).map_err(|error| match error {
            tokio::sync::mpsc::error::TrySendError::Full(job)
            | tokio::sync::mpsc::error::TrySendError::Closed(job) => job,
        })
    }
}

/// A closure for a worker that runs anything: see [`offload`].
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs `work` on `worker` and waits for its result, without blocking the ring thread.
///
/// # Errors
/// `BrokenPipe` when the worker has ended (its thread panicked, or the node is stopping).
pub async fn offload<T: Send + 'static>(
    worker: &Worker<Job>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "worker thread has ended");
    let job: Job = Box::new(move || {
        // The waiter may have given up: then nobody needs the result.
        let _ = done.send(work());
    });
    if !worker.send(job).await {
        return Err(gone());
    }
    result.await.map_err(|_| gone())
}
