//! Joining: a replica's part of the handshake. Judges the primary's welcome and does what it
//! asks before the stream begins: take the log for its own, persist the epoch, cut a tail.

use std::rc::Rc;

use rowship_proto::message::{
    Hello, Message, PROTOCOL_VERSIONS, Ready, Refuse, RefuseCode, Welcome,
};
use rowship_proto::replica::{Follow, Holdings, Progress};
use rowship_proto::verify::{StreamVerifier, first_frame};
use rowship_proto::{LogId, Lsn};

use super::NodeError;
use super::receive::{Ended, ReplicaLink, bad_peer, lost};
use super::state::{Node, ReplicaRole, count};
use crate::edge::{Edge, Stream, offload};
use crate::log::prepare::Fill;
use crate::log::{LogError, SegmentHeader, SegmentMaps, cut};

pub(super) fn hello<E: Edge>(node: &Node<E>) -> Hello {
    let state = node.state.borrow();
    Hello {
        versions: PROTOCOL_VERSIONS,
        log_id: node.log_id.get(),
        node_id: state.node_id,
        incarnation: state.incarnation,
        highest_epoch: state.epoch_highest,
        end: node.appended.get(),
        client_port: node.client_port(),
        history: state.history.clone(),
        name: node.settings.node.name.clone(),
    }
}

/// Judges the welcome and does what it asks, in order: persist the epoch, cut, open the segment;
/// then says `Ready`. Nothing is changed for a primary whose log is not this one, whatever epoch
/// it claims.
pub(super) async fn prepare<E: Edge>(
    node: &Rc<Node<E>>,
    replica: &ReplicaRole,
    link: &Rc<ReplicaLink<E::Stream>>,
    welcome: &Welcome,
) -> Result<StreamVerifier, Ended> {
    let (end, visible) = (node.appended.get(), node.visible.get());
    let follow = {
        let state = node.state.borrow();
        let holdings = Holdings {
            log_id: node.log_id.get(),
            highest_epoch: state.epoch_highest,
            history: &state.history,
            end,
            applied: node.dispatched.get().max(visible),
        };
        holdings.judge(welcome)
    };
    let checked = match follow {
        Ok(follow) => node.check_place(replica, welcome).await.map(|()| follow),
        refused => refused,
    };
    let follow = match checked {
        Ok(follow) => follow,
        Err(refused) => return Err(refuse(node, link, refused).await),
    };
    take_over(node, &follow, welcome).await?;
    // What an earlier primary had written is no backlog.
    {
        let mut upstream = replica.upstream.borrow_mut();
        upstream.appended = welcome.committed.max(welcome.resume);
        upstream.told = false;
    }
    node.forget_committed_above(welcome.resume, follow.cut_to.is_some());
    if let Some(to) = follow.cut_to {
        node.cut_tail(replica, to).await.map_err(Ended::Fatal)?;
    }
    let body_max = welcome.frame_body_bytes_max;
    let (base, bytes) = welcome.segment;
    let header = SegmentHeader::from_peer(welcome.log_id, base, bytes, body_max)
        .map_err(|error| bad_peer(node, &error))?;
    ensure(node, header, welcome.committed).await?;
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
    let epoch = node.state.borrow().history.epoch_below(resume);
    let body_max = usize::try_from(body_max).unwrap_or(usize::MAX);
    Ok(StreamVerifier { seed: welcome.log_id.seed(), body_max, next: resume, chain, epoch })
}

/// Persists the epoch, and makes the primary's log this node's own if it has none: durable before
/// anything is answered.
async fn take_over<E: Edge>(
    node: &Rc<Node<E>>,
    follow: &Follow,
    welcome: &Welcome,
) -> Result<(), Ended> {
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
    Ok(())
}

async fn refuse<E: Edge>(node: &Node<E>, link: &ReplicaLink<E::Stream>, refused: Refuse) -> Ended {
    count(&node.counters.peers_refused, 1);
    let text = refused.text.clone();
    // The primary should know, but if it is gone the refusal stands all the same.
    let _ = link.stream.write_all(Message::Refuse(refused).encode().into()).await;
    Ended::Refused(text)
}

/// Makes a segment ready, waiting while the disk is full.
/// `primary_end` is what is known of the primary's log.
pub(super) async fn ensure<E: Edge>(
    node: &Node<E>,
    header: SegmentHeader,
    primary_end: Lsn,
) -> Result<(), Ended> {
    let (worker, fill) = (&node.preparation, Fill::of_replica(&header, primary_end));
    let ensured =
        node.segments.ensure(&node.edge, &node.disk, worker, (header, fill), || true).await;
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

impl<E: Edge> Node<E> {
    /// A replica hears how far the primary has committed.
    pub(super) fn learn_committed(&self, committed: Lsn) {
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
        assert!(self.log_id.get() != LogId::NONE);
        self.appended.set(lsn);
        self.durable.set(lsn);
        self.tip.borrow_mut().reset(lsn);
    }

    /// Cuts an uncommitted tail, physically and durably, before anything of a new epoch comes.
    async fn cut_tail(&self, replica: &ReplicaRole, to: Lsn) -> Result<(), NodeError> {
        // What the feed is reading now may be gone when it has it.
        self.cuts.set(self.cuts.get() + 1);
        let idle = || (self.writes.is_idle() || self.is_closing()).then_some(());
        self.changed.until(idle).await;
        let from = self.appended.get();
        let applied = self.dispatched.get().max(self.visible.get());
        let _changing = self.segments.changing.lock().await;
        let _storing = self.storing.lock().await;
        let (mut copy, disk) = (self.state.borrow().clone(), self.disk.clone());
        let done = offload(&self.preparation, move || {
            cut(&disk, &mut copy, to, from, applied).map(|end| (copy, end))
        });
        let done = done.await.map_err(|error| NodeError::internal(&error))?;
        let (copy, end) = done.map_err(|error| NodeError::log(&error))?;
        *self.state.borrow_mut() = copy;
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
    async fn check_place(&self, replica: &ReplicaRole, welcome: &Welcome) -> Result<(), Refuse> {
        let (resume, end) = (welcome.resume, self.appended.get());
        let last = (end, replica.chain.get());
        // A log without a frame yet starts wherever the primary's does.
        let chain = match end {
            Lsn::ZERO => Some(last.1),
            _ => match self.segments.chain_at(&self.disk, &self.reader, resume, last).await {
                Err(error @ LogError::Io { .. }) => {
                    let text = format!("this replica cannot read its own log: {error}");
                    return Err(Refuse { code: RefuseCode::Damaged, lsn: resume, text });
                }
                chain => chain.ok().flatten(),
            },
        };
        if chain != Some(welcome.resume_chain) {
            let text = format!(
                "this replica's log and the primary's differ just below LSN {resume}: seed it anew"
            );
            return Err(Refuse { code: RefuseCode::Diverged, lsn: resume, text });
        }
        let held = self.segments.maps.borrow().segment_of(resume);
        let same_segment = match held {
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
