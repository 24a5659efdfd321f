//! Receiving: a replica's link to its primary.
//!
//! Bytes are read into large buffers, verified in place (header, chain, body), and handed on as
//! slices of those buffers: to the writer, which puts them at the same LSN of this node's log,
//! and to the tip, from where they are applied once they are committed.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rowship_proto::message::Message;
use rowship_proto::replica::Progress;
use rowship_proto::sim::{Mark, mark};

use super::NodeError;
use super::join::{hello, prepare};
use super::state::{Node, ReplicaRole, Stop, count};
use super::stream::stream;
use crate::edge::{Edge, Stream};

/// How a link ended.
pub(super) enum Ended {
    /// Try again: the connection, or the primary, went away.
    Retry(String),
    /// Try again, slowly: somebody must act first.
    Refused(String),
    /// The node cannot go on.
    Fatal(NodeError),
}

/// Follows the primary until the node stops.
pub async fn run<E: Edge>(node: Rc<Node<E>>, address: String) {
    let replica = node.replica().expect("only replicas receive");
    let pause = Duration::from_millis(node.settings.node.reconnect_ms);
    let mut attempts: u32 = 0;
    while !node.is_stopping() {
        replica.upstream.borrow_mut().state = "connecting";
        let ended = match connect(&node, &address).await {
            Ok(stream) => {
                replica.upstream.borrow_mut().connects += 1;
                let before = node.appended.get();
                let ended = follow(&node, replica, stream).await;
                if node.appended.get() > before {
                    attempts = 0;
                }
                ended
            }
            Err(error) => Ended::Retry(format!("cannot reach {address}: {error}")),
        };
        let wait = match ended {
            Ended::Fatal(error) => return node.stop(Stop::Failed(error)),
            Ended::Retry(why) => {
                note(&node, replica, "connecting", &why);
                // Doubles up to 16 times the setting: a primary that is down is not hammered.
                pause * (1 << attempts.min(4))
            }
            Ended::Refused(why) => {
                note(&node, replica, "refused", &why);
                pause * REFUSED_PAUSES
            }
        };
        attempts += 1;
        let stopping = node.changed.until(|| node.is_stopping().then_some(()));
        tokio::select! {
            biased;
            () = stopping => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Connects, within the time that the primary may be silent. The kernel would go on for minutes,
/// and ask less and less often: the link would come back long after the network does.
async fn connect<E: Edge>(node: &Node<E>, address: &str) -> std::io::Result<E::Stream> {
    let timeout = Duration::from_millis(node.settings.cluster.peer_timeout_ms);
    let connected = tokio::time::timeout(timeout, node.edge.connect(address)).await;
    connected.unwrap_or_else(|_| {
        let text = format!("no answer within {} ms (peer_timeout_ms)", timeout.as_millis());
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
    })
}

/// A refusal needs an operator: asking again is cheap but need not be quick.
const REFUSED_PAUSES: u32 = 10;

fn note<E: Edge>(node: &Node<E>, replica: &ReplicaRole, state: &'static str, why: &str) {
    let mut upstream = replica.upstream.borrow_mut();
    upstream.state = state;
    // Once per reason: a primary that is away for an hour is one line, not thousands.
    if upstream.last_error != why {
        why.clone_into(&mut upstream.last_error);
        drop(upstream);
        node.event(format!("replication link: {why}"));
    }
}

async fn follow<E: Edge>(node: &Rc<Node<E>>, replica: &ReplicaRole, stream: E::Stream) -> Ended {
    replica.upstream.borrow_mut().state = "joining";
    let link = Rc::new(ReplicaLink {
        stream,
        closed: Cell::new(false),
        progress: Cell::new(Progress::default()),
        streaming: Cell::new(false),
        reads_since: Cell::new(None),
        timeout_ms: Cell::new(node.settings.cluster.peer_timeout_ms),
        wants_received: Cell::new(false),
    });
    let watch = tokio::task::spawn_local(watch(node.clone(), link.clone()));
    let acks = tokio::task::spawn_local(acknowledge(node.clone(), link.clone()));
    let ended = match join_and_stream(node, replica, &link).await {
        Err(ended) => ended,
        Ok(()) => Ended::Retry("the primary closed the link".to_owned()),
    };
    link.closed.set(true);
    link.stream.shutdown();
    replica.gathers.set(false);
    node.changed.notify();
    // Both end by themselves once the link is closed; nothing of theirs may outlive the link.
    let (watched, acked) = (watch.await, acks.await);
    if watched.is_err() || acked.is_err() {
        return Ended::Fatal(NodeError::internal(&"a task of the replication link panicked"));
    }
    // What was received is written before the next hello names the log's end.
    node.changed.until(|| (node.writes.is_idle() || node.is_stopping()).then_some(())).await;
    ended
}

pub(super) struct ReplicaLink<S> {
    pub(super) stream: S,
    pub(super) closed: Cell<bool>,
    pub(super) progress: Cell<Progress>,
    pub(super) streaming: Cell<bool>,
    /// Since when a read is pending. While this node is busy with what it has read (it may fill a
    /// segment with zeroes, or wait for its disk), the primary is not the silent one.
    pub(super) reads_since: Cell<Option<u64>>,
    pub(super) timeout_ms: Cell<u64>,
    pub(super) wants_received: Cell<bool>,
}

/// Shuts the socket down when the primary is silent for too long, or the node stops: that ends
/// the pending read.
async fn watch<E: Edge>(node: Rc<Node<E>>, link: Rc<ReplicaLink<E::Stream>>) {
    loop {
        let timeout = link.timeout_ms.get();
        let over = node.changed.until(|| (link.closed.get() || node.is_stopping()).then_some(()));
        tokio::select! {
            biased;
            () = over => break,
            () = tokio::time::sleep(Duration::from_millis((timeout / 4).max(1))) => {}
        }
        let since = link.reads_since.get();
        if since.is_some_and(|at| node.edge.now().saturating_sub(at) > timeout * 1_000_000) {
            tracing::warn!(timeout_ms = timeout, "the primary is silent: closing the link");
            break;
        }
    }
    link.stream.shutdown();
}

/// Sends an ack whenever a position has moved, and as a heartbeat.
async fn acknowledge<E: Edge>(node: Rc<Node<E>>, link: Rc<ReplicaLink<E::Stream>>) {
    let heartbeat = Duration::from_millis(node.settings.cluster.heartbeat_ms);
    let mut sent = rowship_proto::message::Ack::default();
    loop {
        let moved = node.changed.until(|| {
            if link.closed.get() {
                return Some(false);
            }
            let now = node.edge.now();
            let mut progress = link.progress.get();
            let visible = node.visible.get();
            if link.streaming.get() {
                progress.durable(now, node.durable.get().max(progress.ack(now).durable));
                progress.visible(now, visible, visible);
                link.progress.set(progress);
            }
            let ack = progress.ack(now);
            let moved = ack.durable != sent.durable
                || ack.visible != sent.visible
                || (link.wants_received.get() && ack.received != sent.received);
            (link.streaming.get() && moved).then_some(true)
        });
        let go = tokio::select! {
            biased;
            go = moved => go,
            () = tokio::time::sleep(heartbeat) => true,
        };
        if !go {
            return;
        }
        if !link.streaming.get() {
            continue;
        }
        sent = link.progress.get().ack(node.edge.now());
        let bytes = Message::Ack(sent).encode();
        if link.stream.write_all(bytes.into()).await.is_err() {
            link.stream.shutdown();
            return;
        }
    }
}

async fn join_and_stream<E: Edge>(
    node: &Rc<Node<E>>,
    replica: &ReplicaRole,
    link: &Rc<ReplicaLink<E::Stream>>,
) -> Result<(), Ended> {
    let hello = hello(node);
    let bytes = Message::Hello(hello).encode();
    link.stream.write_all(bytes.into()).await.map_err(|error| lost(&error))?;
    let mut buffer = BytesMut::with_capacity(node.settings.node.transfer_bytes);
    let answer = loop {
        match Message::decode(&buffer) {
            Ok(Some((message, len))) => {
                buffer.advance(len);
                break message;
            }
            Ok(None) => buffer = read(node, link, buffer, RECEIVE_ROOM_MIN).await?,
            Err(error) => return Err(bad_peer(node, &error)),
        }
    };
    let welcome = match answer {
        Message::Welcome(welcome) => welcome,
        Message::Refuse(refused) => {
            return Err(Ended::Refused(format!("the primary refuses: {}", refused.text)));
        }
        _ => return Err(bad_peer(node, &"expected a welcome")),
    };
    let verifier = prepare(node, replica, link, &welcome).await?;
    {
        let mut upstream = replica.upstream.borrow_mut();
        upstream.client_address.clone_from(&welcome.client_address);
        upstream.state = "streaming";
        upstream.last_error.clear();
        upstream.heard = node.edge.now();
    }
    tracing::info!(resume = %welcome.resume, epoch = %welcome.epoch, "following the primary");
    node.changed.notify();
    stream(node, replica, link, buffer, verifier, &welcome).await
}

/// Least free room for a read: smaller reads would cost more system calls than they save copies.
pub(super) const RECEIVE_ROOM_MIN: usize = 64 << 10;

pub(super) fn lost(error: &dyn std::fmt::Display) -> Ended {
    Ended::Retry(format!("the link broke: {error}"))
}

pub(super) fn bad_peer<E: Edge>(node: &Node<E>, what: &dyn std::fmt::Display) -> Ended {
    count(&node.counters.peers_refused, 1);
    mark(Mark::BadPeerBytes);
    Ended::Refused(format!("the primary sent bytes that do not hold: {what}; nothing of them kept"))
}

/// Reads once. A buffer whose room has run out is replaced by a fresh one with the unparsed rest.
pub(super) async fn read<E: Edge>(
    node: &Node<E>,
    link: &ReplicaLink<E::Stream>,
    mut buffer: BytesMut,
    room_min: usize,
) -> Result<BytesMut, Ended> {
    if buffer.capacity() - buffer.len() < room_min {
        let bytes = node.settings.node.transfer_bytes.max(buffer.len() + room_min);
        let mut fresh = BytesMut::with_capacity(bytes);
        fresh.extend_from_slice(&buffer);
        buffer = fresh;
    }
    link.reads_since.set(Some(node.edge.now()));
    let (read, buffer) = link.stream.read(buffer).await;
    link.reads_since.set(None);
    match read {
        Ok(0) => Err(Ended::Retry("the primary closed the link".to_owned())),
        Ok(_) => Ok(buffer),
        Err(error) => Err(lost(&error)),
    }
}
