//! The stream from the primary: frames and notices, verified where they lie in the receive
//! buffer, and handed on as slices of it to the writer and the tip.

use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use rowship_proto::control::{SegmentEnd, TableDefinitions};
use rowship_proto::frame::frame_bytes;
use rowship_proto::message::{Message, MessageError, NOTICE_WANTS_DURABLE, Welcome};
use rowship_proto::position::EpochVerdict;
use rowship_proto::verify::{StreamVerifier, check_padding};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};

use super::join::ensure;
use super::receive::{Ended, RECEIVE_ROOM_MIN, ReplicaLink, bad_peer, read};
use super::state::{Node, ReplicaRole, count};
use super::tip::Run;
use crate::edge::Edge;
use crate::log::SegmentHeader;

/// What is next in the buffer.
enum Parsed {
    /// A whole, verified frame of so many bytes.
    Frame(FrameHeader, usize),
    Message(Message, usize),
    /// So many bytes at least are needed in all.
    Incomplete(usize),
}

pub(super) async fn stream<E: Edge>(
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
                    if epoch.is_some() || control.is_some() || run.mark {
                        take_run(node, link, replica, &mut buffer, run, &verifier).await?;
                        begin_epoch(node, epoch).await?;
                        handle_control(node, replica, control, welcome).await?;
                        run = RunBuilder::new(&verifier);
                    }
                }
            }
        };
        let received_bytes = run.len;
        take_run(node, link, replica, &mut buffer, run, &verifier).await?;
        node.stay_awake_for_primary(replica, received_bytes);
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
        upstream.told = true;
        upstream.heard = node.edge.now();
    }
    replica.gathers.set(notice.flags & NOTICE_WANTS_DURABLE == 0);
    node.changed.notify();
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
    mark: bool,
}

impl RunBuilder {
    fn new(verifier: &StreamVerifier) -> RunBuilder {
        RunBuilder { start: verifier.next, len: 0, frames: 0, committed: Lsn::ZERO, mark: false }
    }

    fn add(&mut self, len: usize, header: &FrameHeader) {
        self.len += len;
        self.frames += 1;
        self.committed = self.committed.max(header.committed);
        self.mark = header.kind() == Some(FrameKind::Mark);
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
    if node.is_closing() {
        // The writer may have ended: this run is asked for again after the restart.
        return Err(Ended::Retry("the node is stopping".to_owned()));
    }
    let (start, next) = (run.start, verifier.next);
    let mark = run.mark;
    let run = (Run { start, next, bytes, chain, epoch, mark, copy: false }, run.committed);
    let now = node.edge.now();
    node.tip.borrow_mut().push(run.0.clone(), node.durable.get());
    node.appended.set(next);
    replica.chain.set(chain);
    node.writes.push(run.0, now);
    count(&node.counters.frames, run_frames);
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
    replica: &ReplicaRole,
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
            let primary_end = replica.upstream.borrow().appended;
            ensure(node, header, primary_end).await
        }
    }
}
