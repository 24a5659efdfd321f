//! One client connection: two tasks on one socket.
//!
//! The reader scans, decodes and runs commands one after the other and puts each reply, encoded,
//! into the [`Outbox`], together with what it must wait for. The writer sends replies in order,
//! as many at once as may leave. So a slow disk or replica holds up replies, never the reading of
//! the next commands; and a client that does not take its replies holds up only itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rowship_proto::ack::ClientPolicy;
use rowship_proto::message::{MESSAGE_MAGIC, Message, Refuse, RefuseCode};
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{Lsn, Nanos, Position};

use super::commands;
use super::outbox::{Needs, Outbox, REPLY_OVERHEAD_BYTES};
use super::returning::Answered;
use super::state::{Node, ReplyLimit, Role, count};
use super::supervise::spawn;
use crate::apply::table::KEY_BYTES_MAX;
use crate::edge::{Edge, Listener, Stream};
use crate::intake::decode::decode;
use crate::intake::key::RowLimits;
use crate::intake::reply::Reply;
use crate::intake::scan::{QueryLimits, Scan, Scanner};
use crate::intake::session::{NodeRole, Session, SessionLimits};

/// Accepts clients until the node stops.
pub async fn accept<E: Edge>(node: Rc<Node<E>>, listener: E::Listener) {
    loop {
        match listener.accept().await {
            Ok(stream) if !node.is_stopping() => {
                spawn(&node, "client", serve(node.clone(), stream));
            }
            Ok(_) => return,
            Err(error) => {
                tracing::warn!("cannot accept a client: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Pause after a failed accept (out of descriptors, most likely), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection is to its commands.
pub struct Client<E: Edge> {
    /// Its number, never 0.
    pub id: u64,
    /// Index of its policy in [`super::state::PrimaryRole::limits`].
    pub policy: Cell<usize>,
    /// End of its last write, and the policy's word for it.
    pub last_write: Cell<Lsn>,
    /// Keys under WATCH with the images they had.
    pub watched: RefCell<Vec<(Bytes, Option<Bytes>)>>,
    /// Limits on keys and values.
    pub limits: RowLimits,
    /// Replies on their way out.
    pub outbox: Outbox,
    /// Its last write was answered, and it has not written again.
    pub answered: Cell<Option<Answered>>,
    stream: E::Stream,
    /// A read is pending, which will tell when the client goes away.
    reading: Cell<bool>,
    /// Since when the client is known to have stopped sending, while no read is pending.
    hung_up: Cell<Option<Nanos>>,
}

/// Most reply bytes that are put into one send.
const SEND_BYTES_MAX: usize = 256 << 10;
/// First size of a connection's query buffer; it grows with what arrives, up to the limit.
const QUERY_BYTES_MIN: usize = 4 << 10;
/// Most that a query buffer grows at once, whatever the client announces.
const QUERY_GROW_BYTES: usize = 1 << 20;

/// A connection from accept to close.
async fn serve<E: Edge>(node: Rc<Node<E>>, stream: E::Stream) {
    let counters = &node.counters;
    if counters.clients.get() >= node.settings.node.clients_max {
        count(&counters.clients_refused, 1);
        // Redis's own words; the client may be gone already.
        let text = Bytes::from_static(b"-ERR max number of clients reached\r\n");
        let _ = stream.write_all(text).await;
        return stream.shutdown();
    }
    counters.clients.set(counters.clients.get() + 1);
    count(&counters.clients_total, 1);
    let settings = &node.settings.node;
    let value_bytes_max = node.frame_body_bytes_max.get();
    let client = Rc::new(Client {
        id: node.new_id(),
        policy: Cell::new(0),
        last_write: Cell::new(Lsn::ZERO),
        watched: RefCell::new(Vec::new()),
        limits: RowLimits {
            key_bytes_max: settings.key_bytes_max.min(KEY_BYTES_MAX),
            value_bytes_max,
        },
        outbox: Outbox::new(settings.replies_bytes_max, node.reply_bytes_max()),
        answered: Cell::new(None),
        stream,
        reading: Cell::new(false),
        hung_up: Cell::new(None),
    });
    node.clients.borrow_mut().insert(client.id, client.clone());
    let writer = tokio::task::spawn_local(write(node.clone(), client.clone()));
    read(&node, &client).await;
    client.outbox.last.set(true);
    client.outbox.changed.notify();
    node.replies.notify();
    finish(&node, &client, writer).await;
    client.stream.shutdown();
    node.drop_policy(client.policy.get());
    node.clients.borrow_mut().remove(&client.id);
    counters.clients.set(counters.clients.get() - 1);
    node.replies.notify();
}

/// A client that has stopped sending may still wait for replies (`printf ... | nc`), but not
/// forever: its connection is given up after the time that a clean stop waits.
async fn finish<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    mut writer: tokio::task::JoinHandle<()>,
) {
    let patience = Duration::from_millis(node.settings.node.stop_timeout_ms);
    let ended = tokio::select! {
        biased;
        ended = &mut writer => ended,
        () = tokio::time::sleep(patience) => {
            client.outbox.give_up();
            client.stream.shutdown();
            writer.await
        }
    };
    // Its own supervisor stops the node.
    assert!(ended.is_ok(), "the writer of a client connection panicked");
}

async fn read<E: Edge>(node: &Rc<Node<E>>, client: &Rc<Client<E>>) {
    let settings = &node.settings.node;
    let limits = QueryLimits {
        query_bytes_max: settings.query_bytes_max,
        bulk_bytes_max: settings.bulk_bytes_max,
        ..QueryLimits::default()
    };
    let session_limits = SessionLimits { rows: client.limits, ..SessionLimits::default() };
    let role = match node.role {
        Role::Primary(_) => NodeRole::Primary,
        Role::Replica(_) => NodeRole::Replica,
    };
    let mut session = Session::new(client.id, role, session_limits);
    let mut scanner = Scanner::new(limits);
    let mut buffer = BytesMut::with_capacity(QUERY_BYTES_MIN);
    loop {
        if buffer.starts_with(&MESSAGE_MAGIC.to_le_bytes()) {
            return not_a_client(node, client).await;
        }
        let wanted = match scanner.scan(&buffer) {
            Ok(Scan::Complete { len, form }) => {
                let command = buffer.split_to(len).freeze();
                let action = match decode(&command, form) {
                    Ok(args) => session.handle(args),
                    Err(error) => return broken(node, client, &session, &error.reply()),
                };
                count(&node.counters.commands, 1);
                if !commands::run(node, client, &mut session, action).await {
                    return;
                }
                client.outbox.room().await;
                if client.outbox.broken.get() || node.is_closing() {
                    return;
                }
                continue;
            }
            Ok(Scan::Incomplete { bytes_needed_min }) => bytes_needed_min,
            Err(error) => return broken(node, client, &session, &error.reply()),
        };
        // What the client announces is believed only as fast as it arrives.
        let grow = wanted.clamp(QUERY_BYTES_MIN, QUERY_GROW_BYTES.max(buffer.len()));
        if buffer.capacity() - buffer.len() < wanted.min(QUERY_BYTES_MIN) {
            buffer.reserve(grow);
        }
        client.reading.set(true);
        let (read, filled) = client.stream.read(buffer).await;
        client.reading.set(false);
        buffer = filled;
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// A replica at the wrong port: its operator should read why.
async fn not_a_client<E: Edge>(node: &Node<E>, client: &Client<E>) {
    count(&node.counters.protocol_errors, 1);
    let text = match node.replication_address.borrow().as_str() {
        "" => "this is a port for clients, and this node is a replica itself".to_owned(),
        address => format!("this is a port for clients; replicas connect to {address}"),
    };
    tracing::warn!(peer = client.stream.peer(), "a replica connected to the port for clients");
    let refuse = Refuse { code: RefuseCode::Protocol, lsn: Lsn::ZERO, text };
    // It may be gone already, and has been logged.
    let _ = client.stream.write_all(Message::Refuse(refuse).encode().into()).await;
}

fn broken<E: Edge>(node: &Node<E>, client: &Client<E>, session: &Session, reply: &Reply) {
    count(&node.counters.protocol_errors, 1);
    tracing::debug!(peer = client.stream.peer(), "client broke the protocol");
    client.outbox.push(reply, session.version(), Needs::default());
}

/// Sends replies in order, each when what it waits for has come.
async fn write<E: Edge>(node: Rc<Node<E>>, client: Rc<Client<E>>) {
    let outbox = &client.outbox;
    loop {
        // Two signals, one look: replies may become ready, or new ones may come.
        let batch = {
            let ready = node.replies.until(|| next_batch(&node, &client));
            let more = outbox.changed.until(|| next_batch(&node, &client));
            tokio::select! {
                biased;
                batch = ready => batch,
                batch = more => batch,
            }
        };
        let Some(parts) = batch else { return };
        outbox.sending.set(true);
        let timeout = Duration::from_millis(node.settings.node.client_write_timeout_ms);
        let send = client.stream.write_all_parts(parts);
        tokio::pin!(send);
        let sent = tokio::select! {
            biased;
            sent = &mut send => sent,
            () = tokio::time::sleep(timeout) => {
                tracing::warn!(peer = client.stream.peer(), "client takes no replies: closed");
                client.stream.shutdown();
                send.await
            }
        };
        outbox.sending.set(false);
        if let Err(error) = sent {
            tracing::debug!(peer = client.stream.peer(), "cannot send: {error}");
            outbox.give_up();
            // Ends the reader's pending read.
            client.stream.shutdown();
        }
        outbox.changed.notify();
        if outbox.is_empty() && node.is_stopping() {
            node.replies.notify();
        }
    }
}

/// The replies that may leave now; `Some(None)` when no more will come.
fn next_batch<E: Edge>(node: &Node<E>, client: &Client<E>) -> Option<Option<Vec<Bytes>>> {
    let outbox = &client.outbox;
    let mut queue = outbox.queue.borrow_mut();
    if queue.is_empty() {
        return (outbox.last.get() || outbox.broken.get()).then_some(None);
    }
    let mut together = BytesMut::new();
    let mut parts = Vec::new();
    let (mut bytes, mut wrote) = (0, false);
    while let Some(reply) = queue.front() {
        let told = match node.judge(&reply.needs) {
            Verdict::Wait => break,
            Verdict::Leave => None,
            Verdict::Open(text) => Some((text, reply.version)),
        };
        if bytes >= SEND_BYTES_MAX {
            break;
        }
        let reply = queue.pop_front().expect("just seen");
        wrote |= reply.needs.own.is_some();
        outbox.bytes.set(outbox.bytes.get() - reply.bytes.len() - REPLY_OVERHEAD_BYTES);
        let out = match told {
            None => reply.bytes,
            Some((text, version)) => {
                let mut encoded = BytesMut::new();
                Reply::error(text).encode(version, &mut encoded);
                encoded.freeze()
            }
        };
        bytes += out.len();
        // Small ones are copied together, large ones go as they are.
        if out.len() < 4096 {
            together.extend_from_slice(&out);
        } else {
            if !together.is_empty() {
                parts.push(together.split().freeze());
            }
            parts.push(out);
        }
    }
    if !together.is_empty() {
        parts.push(together.freeze());
    }
    if wrote && let Some(primary) = node.primary() {
        client.answered.set(Some(primary.returning.answer(node.edge.now())));
    }
    (!parts.is_empty()).then_some(Some(parts))
}

/// Whether a reply may leave.
enum Verdict {
    Wait,
    Leave,
    /// Tell the client that the fate of its write is open.
    Open(String),
}

impl<E: Edge> Client<E> {
    /// Ends the connection: its pending read and write return.
    pub fn shutdown(&self) {
        self.stream.shutdown();
    }

    /// Gives the connection up when its client has stopped sending for `patience` while a command
    /// waits, so that nothing reads from it: WAIT without replicas would wait forever. Returns
    /// whether it did.
    pub fn give_up_if_gone(&self, now: Nanos, patience: Nanos) -> bool {
        if self.reading.get() || self.outbox.broken.get() || !self.stream.is_hung_up() {
            self.hung_up.set(None);
            return false;
        }
        let since = self.hung_up.get().unwrap_or(now);
        self.hung_up.set(Some(since));
        if now.saturating_sub(since) < patience {
            return false;
        }
        self.outbox.give_up();
        self.stream.shutdown();
        true
    }
}

/// Least that one reply may be, whatever the settings say: two pages of a scan.
const REPLY_BYTES_MIN: usize = 8 << 20;

impl<E: Edge> Node<E> {
    /// Most bytes of one reply, and of the rows that one command or transaction reads: a command
    /// of a few bytes per key could otherwise ask for the whole table at once. Any one row fits,
    /// with what RESP adds to its columns.
    pub(super) fn reply_bytes_max(&self) -> usize {
        let row = 4 * self.frame_body_bytes_max.get();
        self.settings.node.replies_bytes_max.max(row).max(REPLY_BYTES_MIN)
    }

    fn judge(&self, needs: &Needs) -> Verdict {
        let Some(primary) = self.primary() else { return Verdict::Leave };
        if planted(Bug::ReplyBeforeCommitted) {
            let lsn = needs.own.map_or(needs.committed, |(_, lsn)| lsn.max(needs.committed));
            return if lsn <= self.durable.get() { Verdict::Leave } else { Verdict::Wait };
        }
        let limits = primary.limits.borrow();
        let own = needs.own.filter(|&(policy, lsn)| limits[policy].lsn < lsn);
        let others = (needs.committed > self.committed.get()).then_some((0, needs.committed));
        // Either one alone holds the reply up.
        let Some((_, lsn)) = own.or(others) else { return Verdict::Leave };
        let open =
            |held: Option<(usize, Lsn)>| held.is_some_and(|(at, lsn)| lsn <= limits[at].open_to);
        if open(own) || open(others) || self.is_closing() {
            count(&self.counters.writes_indeterminate, 1);
            mark(Mark::Indeterminate);
            let token = Position { epoch: primary.epoch, lsn };
            return Verdict::Open(format!(
                "INDETERMINATE the write is in the log but not acknowledged as asked; \
                 ROWSHIP.WAITPOS {token} tells what became of it"
            ));
        }
        Verdict::Wait
    }

    /// Under `on_missing = refuse`: when replicas that a policy in use needs have gone, replies
    /// that wait for them are told so, with a token.
    pub(super) fn leave_open_writes(&self, primary: &super::state::PrimaryRole<E>) {
        use super::settings::OnMissing;
        if self.settings.cluster.on_missing != OnMissing::Refuse {
            return;
        }
        let (machine, end) = (primary.machine.borrow(), primary.appender.borrow().end());
        for limit in primary.limits.borrow_mut().iter_mut() {
            if !machine.missing(&limit.policy).is_empty() {
                limit.open_to = end;
            }
        }
        self.replies.notify();
        self.room.notify();
        self.changed.notify();
    }

    /// The index of `policy` among those in use, one more user counted.
    pub(super) fn use_policy(&self, policy: ClientPolicy) -> usize {
        let Some(primary) = self.primary() else { return 0 };
        let lsn = primary.machine.borrow().replies_to(&policy);
        let mut limits = primary.limits.borrow_mut();
        let known = limits.iter().position(|limit| limit.policy == policy);
        let limit = ReplyLimit { policy, users: 0, lsn, open_to: Lsn::ZERO };
        let at = match known {
            Some(at) => at,
            None => match limits.iter().skip(1).position(|limit| limit.users == 0) {
                Some(free) => {
                    limits[free + 1] = limit;
                    free + 1
                }
                None => {
                    limits.push(limit);
                    limits.len() - 1
                }
            },
        };
        limits[at].users += 1;
        at
    }

    /// One user of a policy less.
    pub(super) fn drop_policy(&self, at: usize) {
        if let Some(primary) = self.primary() {
            let mut limits = primary.limits.borrow_mut();
            limits[at].users = limits[at].users.saturating_sub(1);
        }
    }
}
