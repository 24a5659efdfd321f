//! Receiving: a replica's link to its primary.
//!
//! Bytes are read into large buffers, verified in place (header, chain, body), and handed on as
//! slices of those buffers: to the writer, which puts them at the same LSN of this node's log,
//! and to the tip, from where they are applied once they are committed and durable.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rowship_proto::control::{SegmentEnd, TableDefinitions};
use rowship_proto::frame::frame_bytes;
use rowship_proto::message::{
    Hello, Message, MessageError, PROTOCOL_VERSIONS, Ready, Refuse, RefuseCode, Welcome,
};
use rowship_proto::position::EpochVerdict;
use rowship_proto::replica::{Holdings, Progress};
use rowship_proto::verify::{StreamVerifier, check_padding, first_frame};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameHeader, FrameKind, LogId, Lsn};

use super::NodeError;
use super::state::{Node, ReplicaRole, Stop, count};
use super::tip::Run;
use crate::edge::{Edge, Stream, offload};
use crate::log::{LogError, SegmentHeader, SegmentMaps, cut};

/// How a link ended.
enum Ended {
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
        let ended = match node.edge.connect(&address).await {
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
        heard: Cell::new(node.edge.now()),
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

struct ReplicaLink<S> {
    stream: S,
    closed: Cell<bool>,
    progress: Cell<Progress>,
    streaming: Cell<bool>,
    heard: Cell<u64>,
    timeout_ms: Cell<u64>,
    wants_received: Cell<bool>,
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
        if node.edge.now().saturating_sub(link.heard.get()) > timeout * 1_000_000 {
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
    let hello = hello(node).await;
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

async fn hello<E: Edge>(node: &Node<E>) -> Hello {
    let state = node.state.lock().await;
    Hello {
        versions: PROTOCOL_VERSIONS,
        log_id: node.log_id.get(),
        node_id: state.node_id,
        incarnation: state.incarnation,
        highest_epoch: state.epoch_highest,
        end: node.appended.get(),
        history: state.history.clone(),
        name: node.settings.node.name.clone(),
    }
}

/// Judges the welcome and does what it asks, in order: persist the epoch, cut, open the segment;
/// then says `Ready`. Nothing is changed for a primary whose log is not this one, whatever epoch
/// it claims.
async fn prepare<E: Edge>(
    node: &Rc<Node<E>>,
    replica: &ReplicaRole,
    link: &Rc<ReplicaLink<E::Stream>>,
    welcome: &Welcome,
) -> Result<StreamVerifier, Ended> {
    let (end, visible) = (node.appended.get(), node.visible.get());
    let follow = {
        let state = node.state.lock().await;
        let holdings = Holdings {
            log_id: node.log_id.get(),
            highest_epoch: state.epoch_highest,
            history: &state.history,
            end,
            applied: node.dispatched.get().max(visible),
        };
        holdings.judge(welcome)
    };
    let follow = match follow.and_then(|follow| node.check_place(replica, welcome).map(|()| follow))
    {
        Ok(follow) => follow,
        Err(refused) => return Err(refuse(node, link, refused).await),
    };
    if follow.persist_epoch || follow.adopt_log {
        let adopted = follow.adopt_log.then_some(welcome.log_id);
        let (epoch, body_max) = (welcome.epoch, welcome.frame_body_bytes_max);
        let segment_bytes = welcome.segment.1;
        node.update_state(|state| {
            state.epoch_highest = epoch;
            if let Some(log_id) = adopted {
                state.log_id = log_id;
                state.segment_bytes = segment_bytes;
                state.frame_body_bytes_max = body_max;
            }
        })
        .await
        .map_err(Ended::Fatal)?;
        if let Some(log_id) = adopted {
            node.log_id.set(log_id);
            node.lane_seed.get_or_init(|| log_id.seed());
            let body_max = usize::try_from(body_max).unwrap_or(usize::MAX);
            *node.segments.maps.borrow_mut() = SegmentMaps::new(log_id.seed(), body_max);
            node.frame_body_bytes_max.set(body_max);
        }
    }
    node.forget_committed_above(welcome.resume, follow.cut_to.is_some());
    if let Some(to) = follow.cut_to {
        node.cut_tail(replica, to).await.map_err(Ended::Fatal)?;
    }
    let body_max = welcome.frame_body_bytes_max;
    let (base, bytes) = welcome.segment;
    let header = SegmentHeader::from_peer(welcome.log_id, base, bytes, body_max)
        .map_err(|error| bad_peer(node, &error))?;
    ensure(node, header).await?;
    if node.appended.get() == Lsn::ZERO {
        node.start_log_at(welcome.resume);
    }
    let resume = welcome.resume;
    let chain = replica.chain.get();
    assert_eq!(chain, welcome.resume_chain, "checked before anything was changed");
    let now = node.edge.now();
    link.progress.set(Progress::new(now, resume, visible));
    link.timeout_ms.set(u64::from(welcome.peer_timeout_ms).max(1));
    link.wants_received.set(welcome.wants_received);
    let ready = Message::Ready(Ready { resume, chain, visible }).encode();
    link.stream.write_all(ready.into()).await.map_err(|error| lost(&error))?;
    link.streaming.set(true);
    node.learn_committed(welcome.committed);
    let epoch = node.state.lock().await.history.epoch_below(resume);
    let body_max = usize::try_from(body_max).unwrap_or(usize::MAX);
    Ok(StreamVerifier { seed: welcome.log_id.seed(), body_max, next: resume, chain, epoch })
}

async fn refuse<E: Edge>(node: &Node<E>, link: &ReplicaLink<E::Stream>, refused: Refuse) -> Ended {
    count(&node.counters.peers_refused, 1);
    let text = refused.text.clone();
    // The primary should know, but if it is gone the refusal stands all the same.
    let _ = link.stream.write_all(Message::Refuse(refused).encode().into()).await;
    Ended::Refused(text)
}

/// Makes a segment ready, waiting while the disk is full.
async fn ensure<E: Edge>(node: &Node<E>, header: SegmentHeader) -> Result<(), Ended> {
    let ensured = node.segments.ensure(&node.edge, &node.disk, &node.preparation, header).await;
    match ensured {
        Ok(()) => {
            *node.segments.failure.borrow_mut() = None;
            Ok(())
        }
        Err(error @ LogError::DiskFull { .. }) => {
            *node.segments.failure.borrow_mut() = Some(error.to_string());
            Err(Ended::Refused(error.to_string()))
        }
        Err(error) => Err(Ended::Fatal(NodeError::log(&error))),
    }
}

/// Least free room for a read: smaller reads would cost more system calls than they save copies.
const RECEIVE_ROOM_MIN: usize = 64 << 10;

fn lost(error: &dyn std::fmt::Display) -> Ended {
    Ended::Retry(format!("the link broke: {error}"))
}

fn bad_peer<E: Edge>(node: &Node<E>, what: &dyn std::fmt::Display) -> Ended {
    count(&node.counters.peers_refused, 1);
    Ended::Refused(format!("the primary sent bytes that do not hold: {what}; nothing of them kept"))
}

/// Reads once. A buffer whose room has run out is replaced by a fresh one with the unparsed rest.
async fn read<E: Edge>(
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
    let (read, buffer) = link.stream.read(buffer).await;
    link.heard.set(node.edge.now());
    match read {
        Ok(0) => Err(Ended::Retry("the primary closed the link".to_owned())),
        Ok(_) => Ok(buffer),
        Err(error) => Err(lost(&error)),
    }
}

/// What is next in the buffer.
enum Parsed {
    /// A whole, verified frame of so many bytes.
    Frame(FrameHeader, usize),
    Message(Message, usize),
    /// So many bytes at least are needed in all.
    Incomplete(usize),
}

async fn stream<E: Edge>(
    node: &Rc<Node<E>>,
    replica: &ReplicaRole,
    link: &Rc<ReplicaLink<E::Stream>>,
    mut buffer: BytesMut,
    mut verifier: StreamVerifier,
    welcome: &Welcome,
) -> Result<(), Ended> {
    loop {
        let mut run = RunBuilder::new(&verifier);
        let needed = loop {
            let rest = &buffer[run.len..];
            match parse(&verifier, rest).map_err(|error| bad_peer(node, &error))? {
                Parsed::Incomplete(bytes) => break bytes,
                Parsed::Message(message, len) => {
                    take_run(node, link, replica, &mut buffer, run, &verifier).await?;
                    buffer.advance(len);
                    notice(node, replica, message)?;
                    run = RunBuilder::new(&verifier);
                }
                Parsed::Frame(header, len) => {
                    let body = &rest[FRAME_HEADER_BYTES..][..header.stored_len as usize];
                    let begins_epoch = verifier.begins_epoch(&header);
                    let epoch = begins_epoch.then_some((header.epoch, verifier.next));
                    if begins_epoch && welcome.epoch.judge(&header.epoch) == EpochVerdict::Newer {
                        return Err(bad_peer(node, &"a frame of an epoch newer than its own"));
                    }
                    check_padding(&header, &rest[..len]).map_err(|e| bad_peer(node, &e))?;
                    verifier.accept(&header, body).map_err(|error| bad_peer(node, &error))?;
                    let control =
                        Control::of(&header, body).map_err(|error| bad_peer(node, &error))?;
                    run.add(len, &header);
                    if epoch.is_some() || control.is_some() {
                        take_run(node, link, replica, &mut buffer, run, &verifier).await?;
                        begin_epoch(node, epoch).await?;
                        handle_control(node, control, welcome).await?;
                        run = RunBuilder::new(&verifier);
                    }
                }
            }
        };
        take_run(node, link, replica, &mut buffer, run, &verifier).await?;
        let room = needed.saturating_sub(buffer.len()).max(RECEIVE_ROOM_MIN);
        buffer = read(node, link, buffer, room).await?;
    }
}

fn parse(verifier: &StreamVerifier, bytes: &[u8]) -> Result<Parsed, String> {
    if bytes.len() < 4 {
        return Ok(Parsed::Incomplete(FRAME_HEADER_BYTES));
    }
    match Message::decode(bytes) {
        Ok(Some((message, len))) => return Ok(Parsed::Message(message, len)),
        Ok(None) => return Ok(Parsed::Incomplete(FRAME_HEADER_BYTES)),
        Err(MessageError::Magic) => {}
        Err(error) => return Err(error.to_string()),
    }
    if bytes.len() < FRAME_HEADER_BYTES {
        return Ok(Parsed::Incomplete(FRAME_HEADER_BYTES));
    }
    let header = verifier.header(bytes).map_err(|error| error.to_string())?;
    let len = frame_bytes(header.stored_len as usize);
    if bytes.len() < len {
        return Ok(Parsed::Incomplete(len));
    }
    Ok(Parsed::Frame(header, len))
}

fn notice<E: Edge>(node: &Node<E>, replica: &ReplicaRole, message: Message) -> Result<(), Ended> {
    let Message::Notice(notice) = message else {
        return match message {
            Message::Refuse(refused) => Err(Ended::Refused(refused.text)),
            _ => Err(bad_peer(node, &"unexpected message")),
        };
    };
    {
        let mut upstream = replica.upstream.borrow_mut();
        upstream.appended = upstream.appended.max(notice.appended);
        upstream.heard = node.edge.now();
    }
    if notice.committed > notice.appended {
        return Err(bad_peer(node, &"it has committed more than it has written"));
    }
    node.learn_committed(notice.committed);
    Ok(())
}

/// Verified frames at the front of the buffer that belong into one run.
struct RunBuilder {
    start: Lsn,
    len: usize,
    frames: u64,
    committed: Lsn,
}

impl RunBuilder {
    fn new(verifier: &StreamVerifier) -> RunBuilder {
        RunBuilder { start: verifier.next, len: 0, frames: 0, committed: Lsn::ZERO }
    }

    fn add(&mut self, len: usize, header: &FrameHeader) {
        self.len += len;
        self.frames += 1;
        self.committed = self.committed.max(header.committed);
    }
}

/// Hands the run at the front of the buffer to the writer and the tip.
async fn take_run<E: Edge>(
    node: &Node<E>,
    link: &ReplicaLink<E::Stream>,
    replica: &ReplicaRole,
    buffer: &mut BytesMut,
    run: RunBuilder,
    verifier: &StreamVerifier,
) -> Result<(), Ended> {
    if run.len == 0 {
        return Ok(());
    }
    let bytes = buffer.split_to(run.len).freeze();
    let (run_frames, chain, epoch) = (run.frames, verifier.chain, verifier.epoch);
    let ready = node.changed.until(|| {
        (node.writes.has_room() || link.closed.get() || node.is_stopping()).then_some(())
    });
    ready.await;
    let (start, next) = (run.start, verifier.next);
    let run = (Run { start, next, bytes, chain, epoch }, run.committed);
    node.tip.borrow_mut().push(run.0.clone(), node.durable.get());
    node.appended.set(next);
    replica.chain.set(chain);
    node.writes.push(run.0);
    count(&node.counters.frames, run_frames);
    let now = node.edge.now();
    let mut progress = link.progress.get();
    progress.received(now, next);
    link.progress.set(progress);
    {
        let mut upstream = replica.upstream.borrow_mut();
        upstream.appended = upstream.appended.max(next);
        upstream.heard = now;
    }
    node.learn_committed(run.1);
    node.changed.notify();
    Ok(())
}

/// A frame that changes more than the table.
enum Control {
    Tables(Vec<(rowship_proto::row::TableId, Bytes)>),
    SegmentEnd(SegmentEnd),
}

impl Control {
    fn of(
        header: &FrameHeader,
        body: &[u8],
    ) -> Result<Option<Control>, rowship_proto::frame::FrameError> {
        Ok(match header.kind() {
            Some(FrameKind::TableDefine) => {
                let tables = TableDefinitions::parse(body)?;
                let owned = |name| Bytes::copy_from_slice(name);
                Some(Control::Tables(
                    tables.into_iter().map(|table| (table.id, owned(table.name))).collect(),
                ))
            }
            Some(FrameKind::SegmentEnd) => {
                Some(Control::SegmentEnd(SegmentEnd::parse(body, header.lsn)?))
            }
            _ => None,
        })
    }
}

/// A reign begins at this frame, whatever kind it is.
async fn begin_epoch<E: Edge>(
    node: &Rc<Node<E>>,
    epoch: Option<(Epoch, Lsn)>,
) -> Result<(), Ended> {
    let Some((epoch, start)) = epoch else { return Ok(()) };
    let push = |state: &mut crate::log::NodeState| {
        state.history.push(epoch, start);
    };
    node.update_state(push).await.map_err(Ended::Fatal)
}

async fn handle_control<E: Edge>(
    node: &Rc<Node<E>>,
    control: Option<Control>,
    welcome: &Welcome,
) -> Result<(), Ended> {
    let Some(control) = control else { return Ok(()) };
    match control {
        Control::Tables(tables) => {
            let mut dictionary = node.dictionary.borrow_mut();
            for (id, name) in tables {
                dictionary.define(id, name);
            }
            Ok(())
        }
        Control::SegmentEnd(end) => {
            let header = SegmentHeader::from_peer(
                node.log_id.get(),
                end.next_base,
                end.next_segment_bytes,
                welcome.frame_body_bytes_max,
            );
            let header = header.map_err(|error| bad_peer(node, &error))?;
            ensure(node, header).await
        }
    }
}

impl<E: Edge> Node<E> {
    /// A replica hears how far the primary has committed.
    fn learn_committed(&self, committed: Lsn) {
        if committed > self.committed.get() {
            self.committed.set(committed);
            self.changed.notify();
        }
    }

    /// What this node heard of as committed beyond the common part of the logs says nothing about
    /// the bytes that will stand there now (after async, a promoted replica may lack some of it).
    /// Before the cut: while it waits for the disk nothing of the tail may be applied.
    fn forget_committed_above(&self, resume: Lsn, cuts: bool) {
        let committed = self.committed.get();
        if committed <= resume {
            return;
        }
        if cuts {
            self.event(format!(
                "the log was committed up to LSN {committed} under an earlier epoch; the present \
                 primary has it only up to {resume}"
            ));
        }
        self.committed.set(resume);
    }

    /// A new replica's log starts here.
    fn start_log_at(&self, lsn: Lsn) {
        assert_eq!(self.log_id.get() == LogId::NONE, false);
        self.appended.set(lsn);
        self.durable.set(lsn);
        self.tip.borrow_mut().reset(lsn);
    }

    /// Cuts an uncommitted tail, physically and durably, before anything of a new epoch comes.
    async fn cut_tail(&self, replica: &ReplicaRole, to: Lsn) -> Result<(), NodeError> {
        let idle = || (self.writes.is_idle() || self.is_closing()).then_some(());
        self.changed.until(idle).await;
        let from = self.appended.get();
        let applied = self.dispatched.get().max(self.visible.get());
        let mut state = self.state.lock().await;
        let (mut copy, disk) = (state.clone(), self.disk.clone());
        let done = offload(&self.preparation, move || {
            cut(&disk, &mut copy, to, from, applied).map(|end| (copy, end))
        });
        let done = done.await.map_err(|error| NodeError::internal(&error))?;
        let (copy, end) = done.map_err(|error| NodeError::log(&error))?;
        *state = copy;
        drop(state);
        self.segments.close_above(to);
        self.appended.set(to);
        self.durable.set(to);
        self.durable_end.set(end);
        replica.chain.set(end.chain);
        self.tip.borrow_mut().reset(to);
        self.event(format!("cut the uncommitted tail of the log from LSN {from} back to {to}"));
        self.changed.notify();
        Ok(())
    }

    /// Whether the place where the primary wants to go on is one of this log: the same bytes
    /// below it, in the same segment.
    fn check_place(&self, replica: &ReplicaRole, welcome: &Welcome) -> Result<(), Refuse> {
        let (resume, end) = (welcome.resume, self.appended.get());
        let maps = self.segments.maps.borrow();
        // A log without a frame yet starts wherever the primary's does.
        let chain = match end {
            Lsn::ZERO => Some(replica.chain.get()),
            _ => maps.chain_at(resume, end, replica.chain.get()).ok().flatten(),
        };
        if chain != Some(welcome.resume_chain) {
            let text = format!(
                "this replica's log and the primary's differ just below LSN {resume}: seed it anew"
            );
            return Err(Refuse { code: RefuseCode::Diverged, lsn: resume, text });
        }
        let same_segment = match maps.segment_of(resume) {
            Some(held) if resume > first_frame(held.0) => held == welcome.segment,
            _ => resume == first_frame(welcome.segment.0),
        };
        let body_max = self.frame_body_bytes_max.get() as u64;
        if !same_segment || (end > Lsn::ZERO && welcome.frame_body_bytes_max != body_max) {
            let text = format!("the welcome names another segment than this log has at {resume}");
            return Err(Refuse { code: RefuseCode::Protocol, lsn: resume, text });
        }
        Ok(())
    }
}
