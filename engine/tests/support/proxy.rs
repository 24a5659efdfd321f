//! A TCP proxy between two nodes that misbehaves on demand, each direction by itself.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a direction does to its bytes. Offsets count from when the fault was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Closes the whole connection after so many bytes; once.
    CutAfter(u64),
    /// Flips bit `.1` of the byte at offset `.0`; once.
    FlipBit(u64, u8),
    /// Sends the last so many bytes a second time, at the next opportunity; once.
    Replay(usize),
    /// Passes one byte per write.
    Trickle,
    /// Passes nothing, and keeps the connection open.
    Stall,
}

/// The proxy; closed when dropped.
pub struct Proxy {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<String>,
    /// Towards the target (the primary), and back from it.
    forth: Direction,
    back: Direction,
    open: Mutex<Vec<TcpStream>>,
    accepted: AtomicU64,
    closed: AtomicBool,
}

#[derive(Default)]
struct Direction {
    state: Mutex<State>,
}

struct State {
    fault: Fault,
    passed: u64,
    recent: Vec<u8>,
}

impl Default for State {
    fn default() -> State {
        State { fault: Fault::None, passed: 0, recent: Vec::new() }
    }
}

/// Bytes kept of each direction, for replays.
const RECENT_BYTES: usize = 64 << 10;

impl Proxy {
    /// A proxy to `target` on a port of its own.
    pub fn start(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            target: Mutex::new(target.to_owned()),
            forth: Direction::default(),
            back: Direction::default(),
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(near) = near else { return };
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                connect(&accepting, near);
            }
        });
        Proxy { address, shared }
    }

    /// Sets what happens to bytes that the replica sends.
    pub fn toward_primary(&self, fault: Fault) {
        self.shared.forth.set(fault);
    }

    /// Sets what happens to bytes that the primary sends.
    pub fn toward_replica(&self, fault: Fault) {
        self.shared.back.set(fault);
    }

    /// Whether the fault towards the replica is still to happen.
    pub fn pending_toward_replica(&self) -> bool {
        self.shared.back.state.lock().unwrap().fault != Fault::None
    }

    /// Whether the fault towards the primary is still to happen.
    pub fn pending_toward_primary(&self) -> bool {
        self.shared.forth.state.lock().unwrap().fault != Fault::None
    }

    /// Closes all connections; new ones are taken.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Where new connections go.
    pub fn retarget(&self, target: &str) {
        *self.shared.target.lock().unwrap() = target.to_owned();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.cut();
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Direction {
    fn set(&self, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.passed) = (fault, 0);
    }
}

fn connect(shared: &Arc<Shared>, near: TcpStream) {
    let target = shared.target.lock().unwrap().clone();
    let Ok(far) = TcpStream::connect(target) else { return };
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
        shared.open.lock().unwrap().push(stream.try_clone().unwrap());
    }
    let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let (one, two) = (shared.clone(), shared.clone());
    std::thread::spawn(move || pump(&one, &one.forth, near, far));
    std::thread::spawn(move || pump(&two, &two.back, far_too, near_too));
}

/// Moves bytes one way until either side ends.
fn pump(shared: &Shared, direction: &Direction, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || !pass(shared, direction, &mut to, buffer[..read].to_vec()) {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Passes `bytes` on; false when the connection is to end.
fn pass(shared: &Shared, direction: &Direction, to: &mut TcpStream, mut bytes: Vec<u8>) -> bool {
    let mut go_on = true;
    let mut step = bytes.len();
    let mut state = direction.state.lock().unwrap();
    while state.fault == Fault::Stall {
        drop(state);
        if shared.closed.load(Ordering::SeqCst) || to.peer_addr().is_err() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
        state = direction.state.lock().unwrap();
    }
    let passed = state.passed;
    let within = |offset: u64| offset.checked_sub(passed).filter(|at| *at < bytes.len() as u64);
    match state.fault {
        Fault::CutAfter(offset) => {
            if let Some(at) = within(offset) {
                bytes.truncate(at as usize);
                state.fault = Fault::None;
                go_on = false;
            }
        }
        Fault::FlipBit(offset, bit) => {
            if let Some(at) = within(offset) {
                bytes[at as usize] ^= 1 << (bit % 8);
                state.fault = Fault::None;
            }
        }
        Fault::Replay(count) if state.recent.len() >= count => {
            let old = state.recent[state.recent.len() - count..].to_vec();
            bytes.splice(0..0, old);
            state.fault = Fault::None;
        }
        Fault::Trickle => step = 1,
        _ => {}
    }
    state.passed += bytes.len() as u64;
    state.recent.extend_from_slice(&bytes);
    let excess = state.recent.len().saturating_sub(RECENT_BYTES);
    state.recent.drain(..excess);
    drop(state);
    bytes.chunks(step.max(1)).all(|chunk| to.write_all(chunk).is_ok()) && go_on
}
