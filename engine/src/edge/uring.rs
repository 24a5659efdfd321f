//! Production: sockets and durable writes through io_uring, the machine's clocks, worker threads.

mod file;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use io_uring::{opcode, types};
use rowship_proto::Nanos;

pub use self::file::UringFile;
use super::disk::FileDisk;
use super::ring::{self, Ring};
use super::{Edge, Listener, Stream, Worker};

/// The production edge. Lives inside [`run`].
#[derive(Clone)]
pub struct UringEdge {
    inner: Rc<Inner>,
}

struct Inner {
    ring: Rc<Ring>,
    start: Instant,
    keepalive: Duration,
    workers: Rc<RefCell<Vec<std::thread::JoinHandle<()>>>>,
}

/// Entries of the submission queue: sends, reads and writes that can be handed over at once
/// without an extra system call. Each connection has at most two in flight.
const RING_ENTRIES: u32 = 4096;
/// How many connections the kernel keeps waiting for `accept`.
const ACCEPT_BACKLOG: i32 = 1024;
/// Most parts of one gathered write; the kernel's limit is 1024.
const PARTS_MAX: usize = 256;
/// Who keeps the core for longer needs it: longer than a turn of another node or the work of an
/// interrupt takes, while a program that computes keeps it for milliseconds.
const CORE_TAKEN_MAX: Duration = Duration::from_micros(100);
/// Connections are not handed on to other programs.
const CLOSE_ON_EXEC: i32 = rustix::net::SocketFlags::CLOEXEC.bits() as i32;

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
    let workers = Rc::new(RefCell::new(Vec::new()));
    let kept = workers.clone();
    let result = ring::block_on(RING_ENTRIES, |ring| {
        let inner = Inner { ring, start: Instant::now(), keepalive, workers };
        node(UringEdge { inner: Rc::new(inner) })
    })?;
    // All tasks are gone, and with them the workers' handles: the queues are closed.
    for worker in kept.borrow_mut().drain(..) {
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
    ring::block_on(8, |ring| async move {
        let nothing = opcode::Nop::new().build();
        // SAFETY: it uses no memory.
        unsafe { ring.start(nothing, ()) }.await.0
    })??;
    let uname = rustix::system::uname();
    let features = features()?;
    Ok(RingReport { kernel: uname.release().to_string_lossy().into_owned(), features })
}

/// What the kernel's ring offers of what this edge uses, as it says itself.
fn features() -> io::Result<Vec<String>> {
    let ring = io_uring::IoUring::new(2)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let operations = [
        ("recv", opcode::Recv::CODE),
        ("send", opcode::Send::CODE),
        ("writev", opcode::Writev::CODE),
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("accept", opcode::Accept::CODE),
        ("async_cancel", opcode::AsyncCancel::CODE),
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

    fn stay_awake(&self, time: Duration) {
        self.inner.ring.stay_awake(time, CORE_TAKEN_MAX);
    }

    fn may_sleep(&self) {
        self.inner.ring.may_sleep();
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
                Ok(socket) => return self.stream(socket, address.to_string()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn listen(&self, address: &str) -> io::Result<UringListener> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match bind(address) {
                Ok(listener) => {
                    let local = listener.local_addr()?.to_string();
                    let listener = Rc::new(listener);
                    return Ok(UringListener { listener, local, edge: self.clone() });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open_durable(&self, disk: &FileDisk, name: &str) -> io::Result<UringFile> {
        UringFile::open(&disk.path_of(name), self.inner.ring.clone())
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
    fn stream(&self, socket: TcpStream, peer: String) -> io::Result<UringStream> {
        socket.set_nodelay(true)?;
        let idle = self.inner.keepalive;
        let interval = (idle / KEEPALIVE_PROBES).max(Duration::from_secs(1));
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(idle)
            .with_interval(interval)
            .with_retries(KEEPALIVE_PROBES);
        socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
        let ring = self.inner.ring.clone();
        Ok(UringStream { socket: Rc::new(socket), ring, peer: peer.into() })
    }
}

/// Connects beside the ring, so that it can be given up: dropped, this is over. On the ring a
/// connect goes on, with its socket, for as long as the kernel asks, which is minutes where packets
/// vanish.
async fn connect(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let std = tokio::net::TcpStream::connect(address).await?.into_std()?;
    // On the ring a read waits by itself.
    std.set_nonblocking(false)?;
    Ok(std)
}

fn bind(address: std::net::SocketAddr) -> io::Result<TcpListener> {
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
    socket: Rc<TcpStream>,
    ring: Rc<Ring>,
    peer: Rc<str>,
}

impl Stream for UringStream {
    async fn read(&self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        let spare = buffer.spare_capacity_mut();
        assert!(!spare.is_empty(), "a read needs room");
        let (room, at) = (length(spare.len()), spare.as_mut_ptr().cast());
        let entry = opcode::Recv::new(self.descriptor(), at, room).build();
        let kept = (self.socket.clone(), buffer);
        // SAFETY: it writes into the buffer's spare room, which lies on the heap and is its alone.
        let (read, (_, mut buffer)) = unsafe { self.ring.start(entry, kept) }.await;
        if let Ok(bytes) = read {
            // SAFETY: the kernel has filled so many bytes behind the old end, all within the room.
            unsafe { buffer.set_len(buffer.len() + bytes) };
        }
        (read, buffer)
    }

    async fn write_all(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let entry =
                opcode::Send::new(self.descriptor(), bytes.as_ptr(), length(bytes.len())).build();
            let kept = (self.socket.clone(), bytes);
            // SAFETY: it reads shared bytes, which nobody changes and which do not move.
            let (sent, (_, rest)) = unsafe { self.ring.start(entry, kept) }.await;
            bytes = rest;
            bytes::Buf::advance(&mut bytes, not_nothing(sent?)?);
        }
        Ok(())
    }

    async fn write_all_parts(&self, mut parts: Vec<Bytes>) -> io::Result<()> {
        if parts.len() == 1 {
            return self.write_all(parts.remove(0)).await;
        }
        write_parts(&self.ring, &self.socket, parts).await
    }

    fn shutdown(&self) {
        // Already closed by the other end: nothing is left to shut down.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn is_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut asked = [PollFd::new(&*self.socket, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Errors and hang-ups are always reported; a poll that fails tells nothing.
        poll(&mut asked, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }
}

impl UringStream {
    fn descriptor(&self) -> types::Fd {
        types::Fd(self.socket.as_raw_fd())
    }
}

/// A listening TCP socket on the ring.
pub struct UringListener {
    listener: Rc<TcpListener>,
    local: String,
    edge: UringEdge,
}

impl Listener for UringListener {
    type Stream = UringStream;

    async fn accept(&self) -> io::Result<UringStream> {
        let descriptor = types::Fd(self.listener.as_raw_fd());
        let (no_address, no_length) = (std::ptr::null_mut(), std::ptr::null_mut());
        let entry =
            opcode::Accept::new(descriptor, no_address, no_length).flags(CLOSE_ON_EXEC).build();
        // SAFETY: it uses no memory.
        let accepted =
            unsafe { self.edge.inner.ring.start(entry, self.listener.clone()) }.await.0?;
        let descriptor = i32::try_from(accepted).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        // Who is gone already is met by the first read.
        let peer = socket.peer_addr().map_or_else(|_| "(gone)".to_owned(), |peer| peer.to_string());
        self.edge.stream(socket, peer)
    }

    fn local_address(&self) -> io::Result<String> {
        Ok(self.local.clone())
    }
}

/// Writes all parts, in order.
async fn write_parts(ring: &Rc<Ring>, target: &Rc<TcpStream>, parts: Vec<Bytes>) -> io::Result<()> {
    let mut rest = parts;
    while !rest.is_empty() {
        let later = rest.split_off(rest.len().min(PARTS_MAX));
        let slices: Vec<IoSlice<'static>> = rest
            .iter()
            .map(|part| {
                // SAFETY: the slice goes to the kernel only, together with the shared bytes that
                // it stands for, which nobody changes, and which do not move.
                IoSlice::new(unsafe { std::slice::from_raw_parts(part.as_ptr(), part.len()) })
            })
            .collect();
        // A slice for writing is what the system calls an iovec: std says so.
        let descriptor = types::Fd(target.as_raw_fd());
        let entry =
            opcode::Writev::new(descriptor, slices.as_ptr().cast(), length(slices.len())).build();
        // SAFETY: list and bytes are on the heap, and kept until the end.
        let (written, (_, sent, _)) =
            unsafe { ring.start(entry, (target.clone(), rest, slices)) }.await;
        let written = not_nothing(written?)?;
        rest = unwritten(sent, later, written);
    }
    Ok(())
}

/// A length as the ring takes it: what is longer goes in several.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(1 << 30)
}

fn not_nothing(written: usize) -> io::Result<usize> {
    if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}

/// What is left of `sent` after its first `written` bytes, and `later`.
fn unwritten(sent: Vec<Bytes>, later: Vec<Bytes>, mut written: usize) -> Vec<Bytes> {
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
    rest
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[test]
    fn many_parts_arrive_in_order_at_one_who_takes_little_at_once() {
        const PARTS: usize = 3 * PARTS_MAX;
        const BYTES: usize = 20_000;
        let received = run(Duration::from_secs(60), |edge| async move {
            let listener = edge.listen("127.0.0.1:0").unwrap();
            let near = edge.connect(&listener.local_address().unwrap()).await.unwrap();
            let far = listener.accept().await.unwrap();
            let parts = (0..PARTS).map(|part| Bytes::from(vec![part as u8; BYTES])).collect();
            let sent = tokio::task::spawn_local(async move { near.write_all_parts(parts).await });
            let mut received = Vec::new();
            while received.len() < PARTS * BYTES {
                let (read, bytes) = far.read(BytesMut::with_capacity(8192)).await;
                assert!(read.unwrap() > 0, "closed after {} bytes", received.len());
                received.extend_from_slice(&bytes);
            }
            sent.await.unwrap().unwrap();
            received
        });
        for (part, bytes) in received.unwrap().chunks(BYTES).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == part as u8), "part {part}");
        }
    }

    #[test]
    fn a_socket_stays_open_for_an_operation_that_nobody_waits_for() {
        let counts = run(Duration::from_secs(60), |edge| async move {
            let listener = edge.listen("127.0.0.1:0").unwrap();
            let near = edge.connect(&listener.local_address().unwrap()).await.unwrap();
            let _far = listener.accept().await.unwrap();
            let before = Rc::strong_count(&near.socket);
            let mut read = Box::pin(near.read(BytesMut::with_capacity(16)));
            assert!(poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_pending())).await);
            drop(read);
            (before, Rc::strong_count(&near.socket))
        });
        assert_eq!(counts.unwrap(), (1, 2));
    }
}
