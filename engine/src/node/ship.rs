//! Shipping: a primary's links to its replicas.
//!
//! Each link is two tasks on one socket: the receiver reads hello, ready and acks; the sender
//! sends frames as the log grows, straight from the sealed buffers at the tip and from the maps
//! behind it. A slow replica only ever holds up its own sender.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rowship_proto::frame::FrameHeader;
use rowship_proto::message::{
    Ack, Hello, Message, MessageError, NOTICE_WANTS_DURABLE, Notice, Refuse, RefuseCode, Welcome,
};
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{Lsn, Nanos};
use zerocopy::FromBytes;

use super::latency::Stages;
use super::load::{Ahead, Load};
use super::state::{Link, Node, PrimaryRole, count};
use super::supervise::spawn;
use super::tip::Run;
use crate::edge::{Edge, Listener, Stream};
use crate::log::LogError;

/// Accepts replicas until the node stops.
pub async fn accept<E: Edge>(node: Rc<Node<E>>, listener: E::Listener) {
    loop {
        match listener.accept().await {
            Ok(stream) if !node.is_stopping() => {
                spawn(&node, "replica link", receive(node.clone(), stream));
            }
            Ok(_) => return,
            Err(error) => {
                tracing::warn!("cannot accept a replica: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Pause after a failed accept (out of descriptors, most likely), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The receiving side of a link.
async fn receive<E: Edge>(node: Rc<Node<E>>, stream: E::Stream) {
    let (id, start) = (node.new_id(), Cell::new(None));
    let link: Rc<Link<E>> = Rc::new(Link { id, stream, start, closed: Cell::new(false) });
    let peer = link.stream.peer();
    let Some(primary) = node.primary() else { return };
    if let Some(oldest) = primary.greeting.begin(id, node.edge.now(), link.stream.clone()) {
        oldest.shutdown();
    }
    let outcome = converse(&node, primary, &link).await;
    if let Err(Refused { refuse, told }) = &outcome {
        count(&node.counters.peers_refused, 1);
        tracing::warn!(peer, code = ?refuse.code, "refused a replica: {}", refuse.text);
        // The peer may be gone already, and has been logged.
        let _ = link.stream.write_all(told.clone()).await;
    }
    primary.greeting.end(id);
    link.closed.set(true);
    link.stream.shutdown();
    primary.links.borrow_mut().remove(&id);
    primary.machine.borrow_mut().handle_link_down(id);
    node.leave_open_writes(primary);
    node.refresh();
    if outcome.is_ok() {
        tracing::info!(peer, "replica link closed");
    }
}

async fn converse<E: Edge>(
    node: &Rc<Node<E>>,
    primary: &PrimaryRole<E>,
    link: &Rc<Link<E>>,
) -> Result<(), Refused> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut greeted = false;
    loop {
        while let Some((message, len)) = match Message::decode(&buffer) {
            Err(MessageError::Magic) if !greeted => return Err(not_a_replica(node)),
            decoded => decoded.map_err(protocol)?,
        } {
            bytes::Buf::advance(&mut buffer, len);
            match message {
                Message::Hello(hello) if !greeted => {
                    greeted = true;
                    if !primary.greeting.end(link.id) {
                        return Err(too_late(node).into());
                    }
                    welcome(node, primary, link, &hello).await?;
                }
                Message::Refuse(refused) if greeted => {
                    node.event(format!("replica {} refuses: {}", link.stream.peer(), refused.text));
                    return Ok(());
                }
                message if greeted => handle(node, primary, link, message)?,
                _ => return Err(protocol("the first message must be a hello").into()),
            }
        }
        if buffer.capacity() - buffer.len() < READ_BYTES {
            buffer.reserve(READ_BYTES);
        }
        let (read, filled) = link.stream.read(buffer).await;
        buffer = filled;
        match read {
            Ok(0) | Err(_) if greeted || primary.greeting.end(link.id) => return Ok(()),
            Ok(0) | Err(_) => return Err(too_late(node).into()),
            Ok(_) => {}
        }
    }
}

/// A refusal, and the bytes that tell the peer.
struct Refused {
    refuse: Refuse,
    told: Bytes,
}

impl From<Refuse> for Refused {
    fn from(refuse: Refuse) -> Refused {
        let told = Message::Refuse(refuse.clone()).encode().into();
        Refused { refuse, told }
    }
}

/// Whoever connected does not speak our protocol: most likely a client at the wrong port, so it
/// is told in a client's.
fn not_a_replica<E: Edge>(node: &Node<E>) -> Refused {
    let told = format!(
        "-ERR this port is for replicas; clients connect to {}\r\n",
        node.client_address.borrow()
    );
    let refuse = protocol("what it sent is no message of a replica");
    Refused { refuse, told: told.into() }
}

/// The connection was given up before its hello came.
fn too_late<E: Edge>(node: &Node<E>) -> Refuse {
    let (waited, max) = (node.settings.cluster.peer_timeout_ms, node.settings.node.replicas_max);
    protocol(format!(
        "no hello within {waited} ms (peer_timeout_ms), or before {max} others connected \
         (replicas_max)"
    ))
}

/// A message of a replica that has been welcomed.
fn handle<E: Edge>(
    node: &Rc<Node<E>>,
    primary: &PrimaryRole<E>,
    link: &Rc<Link<E>>,
    message: Message,
) -> Result<(), Refuse> {
    let now = node.edge.now();
    match message {
        Message::Ready(ready) => {
            let name = {
                let mut machine = primary.machine.borrow_mut();
                machine.handle_ready(now, link.id, &ready)?;
                let mut replicas = machine.replicas().iter();
                replicas.find(|(_, replica)| replica.link == link.id).map(|(name, _)| name.clone())
            };
            if let Some(name) = name {
                let mut stages = primary.stages.borrow_mut();
                stages.entry(name.to_string()).or_insert_with(|| Stages::new(now));
            }
            tracing::info!(peer = link.stream.peer(), resume = %ready.resume, "replica streams");
            link.start.set(Some(ready.resume));
        }
        Message::Ack(ack) => {
            let before = primary.machine.borrow_mut().handle_ack(now, link.id, &ack)?;
            node.record_ack(primary, link.id, &before, &ack, now);
        }
        _ => return Err(protocol("unexpected message")),
    }
    node.refresh();
    Ok(())
}

/// Room for one read from a replica; a hello with a full history takes a few.
const READ_BYTES: usize = 8 << 10;

fn protocol(what: impl std::fmt::Display) -> Refuse {
    refuse(RefuseCode::Protocol, what.to_string())
}

fn refuse(code: RefuseCode, text: String) -> Refuse {
    Refuse { code, lsn: Lsn::ZERO, text }
}

async fn welcome<E: Edge>(
    node: &Rc<Node<E>>,
    primary: &PrimaryRole<E>,
    link: &Rc<Link<E>>,
    hello: &Hello,
) -> Result<(), Refuse> {
    let oldest = node.segments.maps.borrow().oldest().unwrap_or_default();
    let (now, peer) = (node.edge.now(), link.stream.peer());
    let accepted = primary.machine.borrow_mut().handle_hello(now, link.id, &peer, hello, oldest)?;
    if let Some(old) = accepted.replaces {
        mark(Mark::HalfOpenReplaced);
        tracing::info!(peer, name = %hello.name, "replaces its own half-open link");
        let old = primary.links.borrow_mut().remove(&old);
        if let Some(old) = old {
            old.closed.set(true);
            old.stream.shutdown();
        }
    }
    if let Some(promised) = accepted.promise_broken {
        mark(Mark::PromiseBroken);
        node.event(format!(
            "replica '{}' resumes at LSN {} but had acknowledged {promised} as durable: its disk \
             lost data",
            hello.name, accepted.resume
        ));
    }
    let resume = accepted.resume;
    let chain = node.chain_at(primary, resume).await;
    let segment = node.segments.maps.borrow().segment_of(resume);
    if let Err(error @ LogError::Io { .. }) = &chain {
        return Err(refuse(RefuseCode::Damaged, format!("the primary {error}")));
    }
    let (Some(segment), Ok(Some(chain))) = (segment, chain) else {
        let text = format!("the log at LSN {resume} cannot be read; see this primary's log");
        return Err(refuse(RefuseCode::Diverged, text));
    };
    let cluster = &node.settings.cluster;
    let answer = {
        let mut machine = primary.machine.borrow_mut();
        machine.handle_welcomed(link.id, chain);
        Welcome {
            version: rowship_proto::message::PROTOCOL_VERSIONS.1,
            log_id: node.log_id.get(),
            node_id: primary.epoch.node_id,
            epoch: primary.epoch,
            resume,
            resume_chain: chain,
            segment,
            frame_body_bytes_max: node.frame_body_bytes_max.get() as u64,
            committed: machine.committed(),
            heartbeat_ms: u32::try_from(cluster.heartbeat_ms).unwrap_or(u32::MAX),
            peer_timeout_ms: u32::try_from(cluster.peer_timeout_ms).unwrap_or(u32::MAX),
            wants_received: machine.policy().wants_received(),
            history: machine.history().clone(),
            client_address: node.client_address.borrow().clone(),
        }
    };
    primary.links.borrow_mut().insert(link.id, link.clone());
    spawn(node, "sender", send(node.clone(), link.clone(), hello.name.to_string()));
    let bytes = Message::Welcome(answer).encode();
    link.stream.write_all(bytes.into()).await.map_err(protocol)
}

impl<E: Edge> Link<E> {
    fn give_up(&self, name: &str, error: &std::io::Error) {
        tracing::info!(replica = name, "cannot send: {error}");
        self.stream.shutdown();
    }
}

/// What a sender does next.
enum Next {
    Frames(Vec<Run>),
    FromMaps,
    Notice,
    /// See [`Node::notice_wait`].
    Wait(Duration),
    End,
}

/// The sending side of a link: starts when the replica is ready.
async fn send<E: Edge>(node: Rc<Node<E>>, link: Rc<Link<E>>, name: String) {
    let start = node
        .changed
        .until(|| match link.start.get() {
            _ if link.closed.get() || node.is_closing() => Some(None),
            start => start.map(Some),
        })
        .await;
    let Some(mut shipped) = start else { return };
    if planted(Bug::ShipOneFrameLate) {
        let range = (shipped, node.durable.get());
        let run = node.segments.read(&node.disk, &node.reader, range, 1).await;
        shipped = run.ok().flatten().map_or(shipped, |run| run.next);
    }
    let mut told = Told { committed: Lsn::ZERO, wants_durable: false, noticed: None };
    let mut ahead = Ahead::default();
    let heartbeat = Duration::from_millis(node.settings.cluster.heartbeat_ms);
    loop {
        let step = {
            let look = node.changed.until(|| next(&node, &link, shipped, &told));
            tokio::select! {
                biased;
                step = look => step,
                () = tokio::time::sleep(heartbeat) => Next::Notice,
            }
        };
        let sent = match step {
            Next::End => return link.stream.shutdown(),
            Next::Wait(time) => {
                let waits = || matches!(next(&node, &link, shipped, &told), Some(Next::Wait(_)));
                tokio::select! {
                    biased;
                    () = node.changed.until(|| (!waits()).then_some(())) => {}
                    () = tokio::time::sleep(time) => {}
                }
                continue;
            }
            Next::Notice => {
                let (now, notice) = Told::now(&node);
                told = now;
                link.stream.write_all(Message::Notice(notice).encode().into()).await
            }
            Next::Frames(runs) => {
                // It would keep a segment's map for as long as the link lives.
                ahead = Ahead::default();
                let load = Load::lent(&node, runs);
                ship(&node, &link, &name, &mut shipped, &mut told, load).await
            }
            Next::FromMaps => match ahead.take(&node, shipped).await {
                Ok(load) => {
                    let next = load.to;
                    let sent = ship(&node, &link, &name, &mut shipped, &mut told, load);
                    tokio::join!(sent, ahead.read(&node, next)).0
                }
                Err(error) => return refuse_damaged(&node, &link, &name, shipped, &error).await,
            },
        };
        if let Err(error) = sent {
            return link.give_up(&name, &error);
        }
    }
}

/// What the replica has been told last.
struct Told {
    committed: Lsn,
    /// Whether somebody waits for `durable`.
    wants_durable: bool,
    /// When the last notice was sent.
    noticed: Option<Nanos>,
}

impl Told {
    fn now<E: Edge>(node: &Node<E>) -> (Told, Notice) {
        let wants_durable = node.primary().is_some_and(|primary| node.wants_durable(primary));
        let (committed, noticed) = (node.committed.get(), Some(node.edge.now()));
        let notice = Notice {
            committed,
            appended: node.appended.get(),
            wall_ns: node.edge.wall_ns(),
            flags: if wants_durable { NOTICE_WANTS_DURABLE } else { 0 },
        };
        (Told { committed, wants_durable, noticed }, notice)
    }
}

fn next<E: Edge>(node: &Node<E>, link: &Link<E>, shipped: Lsn, told: &Told) -> Option<Next> {
    if link.closed.get() {
        return Some(Next::End);
    }
    // First of all, and then between the frames of a backlog: a replica that is behind must know
    // how far, whatever it is sent.
    let overdue = node.settings.cluster.heartbeat_ms * 1_000_000;
    let now = node.edge.now();
    if told.noticed.is_none_or(|at| now.saturating_sub(at) >= overdue) {
        return Some(Next::Notice);
    }
    let primary = node.primary()?;
    // Before the frames that somebody waits for.
    if node.wants_durable(primary) != told.wants_durable {
        return Some(Next::Notice);
    }
    let machine = primary.machine.borrow();
    let acked = machine.replicas().values().find(|replica| replica.link == link.id)?.acked.received;
    let closing = node.is_closing();
    let appended = node.appended.get();
    let window_full = shipped.since(acked) >= node.settings.node.send_window_bytes;
    if shipped < appended && window_full {
        mark(Mark::SendWindowFull);
    } else if shipped < appended {
        let runs = node.tip.borrow().from(shipped, appended, node.settings.node.transfer_bytes);
        return Some(if runs.is_empty() { Next::FromMaps } else { Next::Frames(runs) });
    }
    if machine.committed() > told.committed {
        let held_up = if closing { None } else { node.notice_wait(primary, now) };
        return Some(held_up.map_or(Next::Notice, Next::Wait));
    }
    // A clean stop first lets replicas have everything, and what is committed of it.
    (closing && shipped >= appended).then_some(Next::End)
}

async fn ship<E: Edge>(
    node: &Node<E>,
    link: &Link<E>,
    name: &str,
    shipped: &mut Lsn,
    told: &mut Told,
    load: Load,
) -> std::io::Result<()> {
    let from = *shipped;
    let Load { parts, to, committed, loans } = load;
    // Before the send: an ack may arrive before the send's completion is seen.
    if let Some(primary) = node.primary() {
        primary.machine.borrow_mut().handle_shipped(link.id, to);
    }
    *shipped = to;
    let sent = link.stream.write_all_parts(parts).await;
    drop(loans);
    sent?;
    let now = node.edge.now();
    told.committed = told.committed.max(committed);
    if let Some(primary) = node.primary() {
        let stamps = primary.stamps.borrow();
        if let Some(stages) = primary.stages.borrow_mut().get_mut(name) {
            stages.sent(&stamps, from, to, now);
        }
    }
    Ok(())
}

/// The log here cannot be read: the replica is told why its link ends.
async fn refuse_damaged<E: Edge>(
    node: &Node<E>,
    link: &Link<E>,
    name: &str,
    from: Lsn,
    error: &LogError,
) {
    let text = format!("cannot ship to '{name}' from LSN {from}: {error}");
    // Once, not each time that the replica asks again.
    if !node.events.borrow().contains(&text) {
        node.event(text.clone());
    }
    let refusal = refuse(RefuseCode::Damaged, format!("the primary {text}"));
    // The replica may be gone already; the event stands.
    let _ = link.stream.write_all(Message::Refuse(refusal).encode().into()).await;
    link.stream.shutdown();
}

impl<E: Edge> Node<E> {
    /// Chain value just below `lsn`, which is a frame's start or the end of the log.
    async fn chain_at(&self, primary: &PrimaryRole<E>, lsn: Lsn) -> Result<Option<u64>, LogError> {
        if let Some(run) = self.tip.borrow().from(lsn, Lsn(u64::MAX), 0).first() {
            // Maybe not written yet, so not in the maps.
            let header = FrameHeader::read_from_prefix(&run.bytes).ok();
            return Ok(header.map(|(header, _)| header.chain_previous));
        }
        let end = (self.appended.get(), primary.appender.borrow().chain());
        self.segments.chain_at(&self.disk, &self.reader, lsn, end).await
    }

    fn record_ack(&self, primary: &PrimaryRole<E>, link: u64, before: &Ack, ack: &Ack, now: Nanos) {
        let machine = primary.machine.borrow();
        let Some((name, _)) = machine.replicas().iter().find(|(_, r)| r.link == link) else {
            return;
        };
        let mut stamps = primary.stamps.borrow_mut();
        if let Some(stages) = primary.stages.borrow_mut().get_mut(name.as_str()) {
            stages.acked(&stamps, before, ack, now);
        }
        let done = |acked: &Ack| acked.visible.min(acked.durable);
        let done = machine.replicas().values().map(|replica| done(&replica.acked)).min();
        if let Some(done) = done {
            stamps.forget(done);
        }
    }
}
