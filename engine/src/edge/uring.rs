//! Production: sockets and durable writes through io_uring (tokio-uring), the machine's clocks,
//! worker threads.

use std::cell::RefCell;
use std::io;
use std::net::ToSocketAddrs;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use rowship_proto::Nanos;
use tokio_uring::buf::BoundedBuf;

use super::disk::FileDisk;
use super::{Edge, Listener, RingFile, Stream, Worker};

/// The production edge. Lives inside [`run`].
#[derive(Clone)]
pub struct UringEdge {
    inner: Rc<Inner>,
}

struct Inner {
    start: Instant,
    keepalive: Duration,
    workers: RefCell<Vec<std::thread::JoinHandle<()>>>,
}

/// Entries of the submission queue: sends, reads and writes that can be handed over at once
/// without an extra system call. Each connection has at most two in flight.
const RING_ENTRIES: u32 = 4096;
/// How many connections the kernel keeps waiting for `accept`.
const ACCEPT_BACKLOG: i32 = 1024;
/// Most parts of one gathered write; the kernel's limit is 1024.
const PARTS_MAX: usize = 256;

/// Probes of an idle connection that may stay without an answer. They come so close together that
/// whoever is gone is known to be after twice the idle time (the kernel's own pace: minutes more).
const KEEPALIVE_PROBES: u32 = 3;

/// Runs a node's main task on a ring of its own, on this thread; joins the workers afterwards.
///
/// # Errors
/// When no ring can be set up: see [`probe`].
pub fn run<T, F>(keepalive: Duration, node: impl FnOnce(UringEdge) -> F) -> io::Result<T>
where
    F: Future<Output = T>,
{
    let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(RING_ENTRIES))?;
    let workers = RefCell::new(Vec::new());
    let inner = Rc::new(Inner { start: Instant::now(), keepalive, workers });
    let result = runtime.block_on(node(UringEdge { inner: inner.clone() }));
    // Dropping the runtime drops all tasks, and with them the workers' handles: the queues close.
    drop(runtime);
    for worker in inner.workers.borrow_mut().drain(..) {
        if worker.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
    Ok(result)
}

/// What a real submission said about io_uring on this machine.
#[derive(Clone, Debug)]
pub struct RingReport {
    /// Kernel release.
    pub kernel: String,
    /// Operations and features in use.
    pub features: Vec<String>,
}

/// Submits a real operation and reports what the ring can do.
///
/// # Errors
/// The system's error: `EPERM` where a container profile or `kernel.io_uring_disabled` forbids
/// io_uring, `ENOSYS` on old kernels, `ENOMEM` with too little locked memory.
pub fn probe() -> io::Result<RingReport> {
    let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(8))?;
    runtime.block_on(tokio_uring::no_op())?;
    let uname = rustix::system::uname();
    let features = features()?;
    Ok(RingReport { kernel: uname.release().to_string_lossy().into_owned(), features })
}

/// What the kernel's ring offers of what this edge uses, as it says itself.
fn features() -> io::Result<Vec<String>> {
    use io_uring::opcode;
    let ring = io_uring::IoUring::new(2)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let operations = [
        ("readv", opcode::Readv::CODE),
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("writev", opcode::Writev::CODE),
        ("accept", opcode::Accept::CODE),
        ("connect", opcode::Connect::CODE),
    ];
    let parameters = ring.params();
    let flags = [
        ("fast_poll", parameters.is_feature_fast_poll()),
        ("nodrop", parameters.is_feature_nodrop()),
        ("submit_stable", parameters.is_feature_submit_stable()),
    ];
    let operations = operations.into_iter().map(|(name, code)| (name, probe.is_supported(code)));
    let found = operations.chain(flags).filter(|(_, there)| *there);
    Ok(found.map(|(name, _)| name.to_owned()).collect())
}

/// Raises this process's limit on open files as far as it may, and returns it: the usual soft
/// limit of 1024 is below what the default settings allow in clients alone.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("cannot raise the limit on open files: {error}");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

impl Edge for UringEdge {
    type Stream = UringStream;
    type Listener = UringListener;
    type Disk = FileDisk;
    type File = UringFile;

    fn now(&self) -> Nanos {
        u64::try_from(self.inner.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> u64 {
        // RandomState is seeded by the system once per thread and differs at each call.
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u64(self.wall_ns());
        hasher.finish()
    }

    fn resident_bytes(&self) -> u64 {
        let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|statm| {
            // Size, resident, and how much of that is shared (mapped files), in pages.
            let mut pages = statm.split_whitespace().skip(1).map(str::parse::<u64>);
            let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
            Some(resident.saturating_sub(shared))
        });
        pages.unwrap_or(0) * rustix::param::page_size() as u64
    }

    fn process_id(&self) -> u32 {
        std::process::id()
    }

    async fn asked_to_stop(&self) {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate());
        let interrupt = signal(SignalKind::interrupt());
        let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
            tracing::warn!("signals cannot be caught: stop this node with kill");
            return std::future::pending().await;
        };
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }

    async fn connect(&self, address: &str) -> io::Result<UringStream> {
        let resolved = address.to_owned();
        // Name resolution may block: it gets a thread of tokio's blocking pool.
        let addresses = tokio::task::spawn_blocking(move || {
            resolved.to_socket_addrs().map(Iterator::collect::<Vec<_>>)
        });
        let addresses = addresses.await.map_err(io::Error::other)??;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match connect(address).await {
                Ok(std) => {
                    let stream = tokio_uring::net::TcpStream::from_std(std);
                    return self.stream(stream, address.to_string());
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn listen(&self, address: &str) -> io::Result<UringListener> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match bind(address) {
                Ok(std) => {
                    let local = std.local_addr()?.to_string();
                    let listener = Rc::new(tokio_uring::net::TcpListener::from_std(std));
                    return Ok(UringListener { listener, local, edge: self.clone() });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open_durable(&self, disk: &FileDisk, name: &str) -> io::Result<UringFile> {
        let dsync = i32::try_from(rustix::fs::OFlags::DSYNC.bits()).map_err(io::Error::other)?;
        let std =
            std::fs::OpenOptions::new().write(true).custom_flags(dsync).open(disk.path_of(name))?;
        Ok(UringFile { file: Rc::new(tokio_uring::fs::File::from_std(std)) })
    }

    fn worker<J: Send + 'static>(
        &self,
        name: &str,
        queue_max: usize,
        mut turn: impl FnMut(J) + Send + 'static,
    ) -> io::Result<Worker<J>> {
        let (worker, mut queue) = Worker::channel(queue_max);
        let thread = std::thread::Builder::new().name(format!("rowship-{name}"));
        let handle = thread.spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                turn(job);
            }
        })?;
        self.inner.workers.borrow_mut().push(handle);
        Ok(worker)
    }
}

impl UringEdge {
    fn stream(&self, stream: tokio_uring::net::TcpStream, peer: String) -> io::Result<UringStream> {
        stream.set_nodelay(true)?;
        let idle = self.inner.keepalive;
        let interval = (idle / KEEPALIVE_PROBES).max(Duration::from_secs(1));
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(idle)
            .with_interval(interval)
            .with_retries(KEEPALIVE_PROBES);
        let stream = UringStream { stream: Rc::new(stream), peer: peer.into() };
        socket2::SockRef::from(&stream.descriptor()).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    }
}

/// Connects beside the ring, so that it can be given up: dropped, this is over. On the ring a
/// connect goes on, with its socket, for as long as the kernel asks, which is minutes where packets
/// vanish.
async fn connect(address: std::net::SocketAddr) -> io::Result<std::net::TcpStream> {
    let std = tokio::net::TcpStream::connect(address).await?.into_std()?;
    // On the ring a read waits by itself.
    std.set_nonblocking(false)?;
    Ok(std)
}

fn bind(address: std::net::SocketAddr) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted node must get its port back while old connections linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    Ok(socket.into())
}

/// A TCP connection on the ring.
#[derive(Clone)]
pub struct UringStream {
    stream: Rc<tokio_uring::net::TcpStream>,
    peer: Rc<str>,
}

impl Stream for UringStream {
    async fn read(&self, buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        let filled = buffer.len();
        assert!(filled < buffer.capacity(), "a read needs room");
        let (result, slice) = self.stream.read(buffer.slice(filled..)).await;
        (result, slice.into_inner())
    }

    async fn write_all(&self, bytes: Bytes) -> io::Result<()> {
        self.stream.write_all(bytes).await.0
    }

    async fn write_all_parts(&self, parts: Vec<Bytes>) -> io::Result<()> {
        let mut rest = parts;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(PARTS_MAX));
            let (result, sent) = self.stream.writev(rest).await;
            rest = unwritten(sent, later, result?)?;
        }
        Ok(())
    }

    fn shutdown(&self) {
        // Already closed by the other end: nothing is left to shut down.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn is_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let descriptor = self.descriptor();
        let mut asked = [PollFd::new(&descriptor, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Errors and hang-ups are always reported; a poll that fails tells nothing.
        poll(&mut asked, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }
}

impl UringStream {
    fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: the descriptor is open: the stream owns it, and the borrow cannot outlive it.
        unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) }
    }
}

/// A listening TCP socket on the ring.
pub struct UringListener {
    listener: Rc<tokio_uring::net::TcpListener>,
    local: String,
    edge: UringEdge,
}

impl Listener for UringListener {
    type Stream = UringStream;

    async fn accept(&self) -> io::Result<UringStream> {
        let (stream, address) = self.listener.accept().await?;
        self.edge.stream(stream, address.to_string())
    }

    fn local_address(&self) -> io::Result<String> {
        Ok(self.local.clone())
    }
}

/// A file whose writes are durable when they return: opened with `O_DSYNC`, so that write and
/// sync are one operation and one trip through the ring.
#[derive(Clone)]
pub struct UringFile {
    file: Rc<tokio_uring::fs::File>,
}

impl RingFile for UringFile {
    async fn write_durable_parts(&self, parts: Vec<Bytes>, offset: u64) -> io::Result<()> {
        let (mut rest, mut offset) = (parts, offset);
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(PARTS_MAX));
            let (result, sent) = self.file.writev_at(rest, offset).await;
            let written = result?;
            offset += written as u64;
            rest = unwritten(sent, later, written)?;
        }
        Ok(())
    }
}

/// What is left of `sent` after its first `written` bytes, and `later`.
fn unwritten(sent: Vec<Bytes>, later: Vec<Bytes>, mut written: usize) -> io::Result<Vec<Bytes>> {
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut rest = Vec::with_capacity(later.len());
    for mut part in sent {
        let gone = written.min(part.len());
        written -= gone;
        if gone < part.len() {
            bytes::Buf::advance(&mut part, gone);
            rest.push(part);
        }
    }
    rest.extend(later);
    Ok(rest)
}
