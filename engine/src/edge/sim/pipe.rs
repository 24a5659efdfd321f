//! One direction of a connection: bytes on their way, each part with the time when it arrives.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes that may be on their way or unread; beyond it the sender waits.
const PIPE_BYTES_MAX: usize = 128 << 10;

/// See the module's description.
pub(super) struct Pipe {
    parts: RefCell<VecDeque<(u64, Bytes)>>,
    bytes: Cell<usize>,
    /// When the last part is through: parts keep their order.
    busy_until_ms: Cell<u64>,
    state: Cell<State>,
    flip: Cell<Option<u64>>,
    /// Whoever sends to the silent end is told that it knows nothing of this connection.
    answers: Cell<bool>,
    readable: Notify,
    writable: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended: what is on its way arrives, then the end.
    Finished,
    /// The sender's host is gone and says nothing.
    Silent,
    /// The connection is broken: nothing more arrives but that news.
    Reset,
    /// The receiver is gone: what is sent vanishes.
    Abandoned,
}

/// What there is to read.
pub(super) enum Taken {
    /// These bytes.
    Bytes(Bytes),
    /// The end.
    End,
    /// The connection is broken.
    Reset,
    /// Nothing before this time.
    At(u64),
    /// Nothing before something happens.
    Wait,
}

impl Pipe {
    pub(super) fn new() -> Pipe {
        let (parts, bytes, busy_until_ms, flip, answers, readable, writable) = Default::default();
        let state = Cell::new(State::Open);
        Pipe { parts, bytes, busy_until_ms, state, flip, answers, readable, writable }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.get() == State::Open
    }

    pub(super) fn is_silent(&self) -> bool {
        self.state.get() == State::Silent
    }

    /// The host of the silent end is there again, and has forgotten the connection.
    pub(super) fn answer(&self) {
        self.answers.set(true);
    }

    /// The receiver has sent something: if the silent end is there to answer, it says that there
    /// is no such connection.
    pub(super) fn provoke(&self) {
        if self.is_silent() && self.answers.get() {
            self.reset();
        }
    }

    /// Whether the receiver has been told, or can be, that no more will come.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state.get(), State::Finished | State::Reset)
    }

    pub(super) fn room(&self) -> usize {
        match self.state.get() {
            // It vanishes: there is always room for that.
            State::Abandoned => PIPE_BYTES_MAX,
            _ => PIPE_BYTES_MAX - self.bytes.get().min(PIPE_BYTES_MAX),
        }
    }

    pub(super) fn put(&self, now_ms: u64, delay_ms: u64, bytes_per_ms: u64, part: Bytes) {
        if self.state.get() != State::Open {
            return;
        }
        let takes_ms = part.len() as u64 / bytes_per_ms.max(1);
        let arrives = self.busy_until_ms.get().max(now_ms + delay_ms) + takes_ms;
        self.busy_until_ms.set(arrives);
        self.bytes.set(self.bytes.get() + part.len());
        self.parts.borrow_mut().push_back((arrives, part));
        self.readable.notify_one();
    }

    pub(super) fn take(&self, now_ms: u64, room: usize, cut: bool) -> Taken {
        if cut {
            return Taken::Wait;
        }
        if self.state.get() == State::Reset {
            return Taken::Reset;
        }
        let mut parts = self.parts.borrow_mut();
        let Some((arrives, part)) = parts.front_mut() else {
            return if self.state.get() == State::Finished { Taken::End } else { Taken::Wait };
        };
        if *arrives > now_ms {
            return Taken::At(*arrives);
        }
        let taken = part.split_to(part.len().min(room));
        if part.is_empty() {
            parts.pop_front();
        }
        self.bytes.set(self.bytes.get() - taken.len());
        self.writable.notify_one();
        Taken::Bytes(self.flipped(taken))
    }

    fn flipped(&self, bytes: Bytes) -> Bytes {
        let Some(word) = self.flip.take() else { return bytes };
        let mut bent = bytes.to_vec();
        let at = (word >> 3) as usize % bent.len();
        bent[at] ^= 1 << (word & 7);
        Bytes::from(bent)
    }

    /// One bit of the next bytes arrives flipped.
    pub(super) fn flip_next(&self, word: u64) {
        self.flip.set(Some(word));
    }

    /// The sender sends no more.
    pub(super) fn finish(&self) {
        if matches!(self.state.get(), State::Open | State::Silent) {
            self.state.set(State::Finished);
        }
        self.wake();
    }

    /// The sender's host has lost power: what is on its way may be lost, and no word is said.
    pub(super) fn fall_silent(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Silent);
            self.parts.borrow_mut().clear();
            self.bytes.set(0);
        }
    }

    /// The connection breaks: what is on its way is lost.
    pub(super) fn reset(&self) {
        if self.state.get() != State::Abandoned {
            self.state.set(State::Reset);
            self.parts.borrow_mut().clear();
            self.bytes.set(0);
        }
        self.wake();
    }

    /// The receiver is gone.
    pub(super) fn abandon(&self) {
        self.state.set(State::Abandoned);
        self.parts.borrow_mut().clear();
        self.bytes.set(0);
        self.wake();
    }

    /// Whether a sender learns that its bytes lead nowhere.
    pub(super) fn refuses(&self) -> Option<io::ErrorKind> {
        match self.state.get() {
            State::Finished => Some(io::ErrorKind::BrokenPipe),
            State::Reset => Some(io::ErrorKind::ConnectionReset),
            State::Open | State::Silent | State::Abandoned => None,
        }
    }

    pub(super) fn wake(&self) {
        self.readable.notify_one();
        self.writable.notify_one();
    }

    pub(super) async fn readable(&self) {
        self.readable.notified().await;
    }

    pub(super) async fn writable(&self) {
        self.writable.notified().await;
    }
}
