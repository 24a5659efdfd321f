//! Replies on their way out of one connection: in order, each with what it waits for.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use rowship_proto::Lsn;

use super::signal::Signal;
use crate::intake::reply::{Reply, RespVersion};

/// What a reply waits for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// The connection's own write, under this policy.
    pub own: Option<(usize, Lsn)>,
    /// Committed up to here: it shows others' writes.
    pub committed: Lsn,
}

impl Needs {
    /// What a reply waits for that shows both; both are of one connection, so of one policy.
    #[must_use]
    pub fn and(self, other: Needs) -> Needs {
        let own = match (self.own, other.own) {
            (Some((policy, end)), Some((_, other))) => Some((policy, end.max(other))),
            (own, other) => own.or(other),
        };
        Needs { own, committed: self.committed.max(other.committed) }
    }
}

/// An encoded reply.
pub(super) struct Outgoing {
    pub(super) needs: Needs,
    pub(super) bytes: Bytes,
    pub(super) version: RespVersion,
}

/// Replies in order, with what each waits for. Its reader adds, its writer takes.
///
/// Limit: beyond `bytes_max` the connection is not read any further.
pub struct Outbox {
    pub(super) queue: RefCell<VecDeque<Outgoing>>,
    pub(super) bytes: Cell<usize>,
    bytes_max: usize,
    reply_bytes_max: usize,
    /// A write is in flight.
    pub(super) sending: Cell<bool>,
    /// The socket is of no more use.
    pub(super) broken: Cell<bool>,
    /// No more replies will come: close when these are out.
    pub(super) last: Cell<bool>,
    pub(super) changed: Signal,
}

/// What every queued reply costs beyond its bytes.
pub(super) const REPLY_OVERHEAD_BYTES: usize = 128;

impl Outbox {
    pub(super) fn new(bytes_max: usize, reply_bytes_max: usize) -> Outbox {
        let queue = RefCell::new(VecDeque::new());
        let (bytes, sending, broken, last, changed) = Default::default();
        Outbox { queue, bytes, bytes_max, reply_bytes_max, sending, broken, last, changed }
    }

    /// Adds a reply. One that is larger than a reply may be is replaced by an error that says so.
    pub fn push(&self, reply: &Reply, version: RespVersion, needs: Needs) {
        let bytes = reply.encoded_bytes_max();
        let mut encoded = BytesMut::with_capacity(bytes.min(self.reply_bytes_max));
        if bytes > self.reply_bytes_max {
            too_large(self.reply_bytes_max).encode(version, &mut encoded);
        } else {
            reply.encode(version, &mut encoded);
        }
        self.bytes.set(self.bytes.get() + encoded.len() + REPLY_OVERHEAD_BYTES);
        let bytes = encoded.freeze();
        self.queue.borrow_mut().push_back(Outgoing { needs, bytes, version });
        self.changed.notify();
    }

    /// Waits until the connection may be read further.
    pub(super) async fn room(&self) {
        let room = || (self.bytes.get() < self.bytes_max || self.broken.get()).then_some(());
        self.changed.until(room).await;
    }

    /// Drops what has not left: nobody takes it any more.
    pub(super) fn give_up(&self) {
        self.broken.set(true);
        self.queue.borrow_mut().clear();
        self.bytes.set(0);
        self.changed.notify();
    }

    /// Waits until every reply so far has left.
    pub async fn drained(&self) {
        self.changed.until(|| self.is_empty().then_some(())).await;
    }

    /// The socket is of no more use.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Everything has left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.broken.get() || (self.queue.borrow().is_empty() && !self.sending.get())
    }
}

/// What a command is told that would answer more than a reply may hold.
pub fn too_large(reply_bytes_max: usize) -> Reply {
    Reply::error(format!(
        "ERR reply is larger than replies_bytes_max ({reply_bytes_max} bytes): ask for less at once"
    ))
}
