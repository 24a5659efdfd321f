//! Transactions: a command of its own, or all that MULTI has queued.
//!
//! Rows that are on disk are fetched first; then everything runs in one go, so nothing comes
//! between its reads and its writes.

use std::rc::Rc;

use bytes::Bytes;
use rowship_proto::Lsn;
use rowship_proto::sim::{Bug, Mark, mark, planted};

use super::appender::Full;
use super::aside::{self, Aside};
use super::client::Client;
use super::fetch::{Fetched, Reach};
use super::outbox::Needs;
use super::pieces;
use super::rows::{TransactionRows, Written};
use super::settings::OnMissing;
use super::state::{Node, PrimaryRole, count};
use crate::edge::Edge;
use crate::intake::execute::Rows as _;
use crate::intake::execute::{DataCommand, Keys, View, execute};
use crate::intake::reply::Reply;
use crate::intake::session::{Queued, Session};

/// Keys of one transaction, repetitions included: it runs in one go, and all others wait for it.
/// (Reads of many rows that are no transaction run in [`pieces`].)
const TRANSACTION_KEYS_MAX: usize = 16 * 1024;

/// What runs in one go.
struct Transaction<'a> {
    commands: &'a [Queued],
    /// EXEC, not a command of its own.
    exec: bool,
    /// Keys that EXEC compares with the images they had at WATCH.
    watched: Vec<(Bytes, Option<Bytes>)>,
}

impl Transaction<'_> {
    fn data(&self) -> impl Iterator<Item = &DataCommand> {
        self.commands.iter().filter_map(Queued::data)
    }

    fn keys(&self) -> Keys {
        let mut keys = Keys::of(self.data());
        keys.values.extend(self.watched.iter().map(|(key, _)| key.clone()));
        keys
    }

    /// The whole of it is refused; EXEC says so in Redis's words.
    fn refused(&self, reply: Reply) -> Reply {
        match reply {
            Reply::Error(text) if self.exec => {
                Reply::error(format!("EXECABORT Transaction discarded because of: {text}"))
            }
            reply => reply,
        }
    }
}

/// One transaction: a command of its own, or all of an EXEC.
pub async fn run<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Rc<Client<E>>,
    session: &mut Session,
    commands: &[Queued],
    exec: bool,
) -> (Reply, Needs) {
    let watched = if exec { client.watched.take() } else { Vec::new() };
    let this = Transaction { commands, exec, watched };
    let writes = this.data().any(DataCommand::is_write);
    if writes && let Err(reply) = may_write(node, client) {
        return (this.refused(reply), Needs::default());
    }
    if let [Queued::Data(command)] = commands
        && !exec
        && client.watched.borrow().is_empty()
        && let Some(pieces) = pieces::pieces(command)
    {
        return pieces::run(node, client, &pieces).await;
    }
    let keys =
        this.watched.len() + this.data().map(|command| command.keys().count()).sum::<usize>();
    if keys > TRANSACTION_KEYS_MAX {
        let text = format!(
            "ERR transaction of {keys} keys; at most {TRANSACTION_KEYS_MAX} run in one go: split it"
        );
        return (this.refused(Reply::error(text)), Needs::default());
    }
    // Mostly all rows are in memory: so it is tried without asking for each of them first.
    let mut reach = aside::has_scans(commands).then_some(Reach::All);
    loop {
        let fetched = match reach {
            None => Fetched::default(),
            Some(reach) => match node.fetch(&this.keys(), &client.limits, reach).await {
                Ok(fetched) => fetched,
                Err(reply) => return (this.refused(reply), Needs::default()),
            },
        };
        let mut aside = Aside::bring(node, commands, &fetched).await;
        let admitted = match (writes, node.primary()) {
            (true, Some(primary)) => admitted(node, client, primary).await,
            _ => Ok(()),
        };
        let mut execute = || execute_all(node, client, session, &this, &fetched, &mut aside);
        let outcome = match admitted {
            Ok(()) => execute(),
            Err(reply) => {
                if planted(Bug::RefusedIsAppended)
                    && node.primary().is_some_and(|primary| node.admission(primary).is_ok())
                {
                    let _ = execute();
                }
                Some((this.refused(reply), Needs::default()))
            }
        };
        node.release(fetched);
        match outcome {
            Some(done) => return done,
            None if reach.is_none() => reach = Some(Reach::Cold),
            None => reach = Some(Reach::All),
        }
    }
}

/// The answer to a write on a replica.
pub(super) fn read_only<E: Edge>(node: &Node<E>) -> Reply {
    let upstream = node.replica().map(|replica| replica.upstream.borrow());
    let primary = match upstream.as_ref().map(|upstream| upstream.client_address.as_str()) {
        None | Some("") => "unknown: this replica has not reached it yet",
        Some(address) => address,
    };
    let text = format!("READONLY You can't write against a read only replica. Primary: {primary}");
    Reply::error(text)
}

/// Refusals that come before a write is appended.
fn may_write<E: Edge>(node: &Node<E>, client: &Client<E>) -> Result<(), Reply> {
    let Some(primary) = node.primary() else { return Err(read_only(node)) };
    if node.is_stopping() {
        return Err(Reply::error("ERR the node is stopping"));
    }
    if node.settings.cluster.on_missing == OnMissing::Refuse {
        let policy = primary.limits.borrow()[client.policy.get()].policy.clone();
        let missing = primary.machine.borrow().missing(&policy);
        if !missing.is_empty() {
            count(&node.counters.writes_refused, 1);
            mark(Mark::RefusedForReplica);
            let text = format!(
                "NOREPLICAS Not enough good replicas to write. Missing: {}",
                missing.join(", ")
            );
            return Err(Reply::error(text));
        }
    }
    Ok(())
}

/// Waits until a transaction can be appended; the caller appends without another await.
async fn admitted<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    primary: &PrimaryRole<E>,
) -> Result<(), Reply> {
    node.room
        .until(|| {
            // Replicas may have gone while this waited for rows or for room.
            if let Err(reply) = may_write(node, client) {
                return Some(Err(reply));
            }
            if client.outbox.is_broken() {
                return Some(Err(Reply::error("ERR the client is gone")));
            }
            match node.admission(primary) {
                Ok(()) => Some(Ok(())),
                Err(Full::Wait) => None,
                Err(Full::Disk(why)) => {
                    count(&node.counters.writes_refused, 1);
                    Some(Err(Reply::error(format!("DISKFULL write refused: {why}"))))
                }
            }
        })
        .await
}

/// None when a row must be fetched first: nothing has happened then.
fn execute_all<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    session: &mut Session,
    this: &Transaction<'_>,
    fetched: &Fetched,
    aside: &mut Aside,
) -> Option<(Reply, Needs)> {
    let mut rows = TransactionRows::new(node, client.id, client.limits, fetched);
    for (key, image) in &this.watched {
        match rows.read(key, View::Latest) {
            Ok(now) if now == *image => {}
            // That it has changed is something seen, too.
            Ok(_) => return Some((Reply::NullArray, needs_of(client, &rows))),
            Err(_) if rows.cold => return None,
            Err(reply) => return Some((reply, Needs::default())),
        }
    }
    // What is said to the session counts only if the transaction is not refused.
    let words = this.commands.iter().any(|command| matches!(command, Queued::Session(_)));
    let mut after = words.then(|| session.clone());
    let mut replies = match answers(node, client, this, aside, &mut rows, after.as_mut()) {
        Ok(replies) => replies,
        Err(_) if rows.cold => return None,
        Err(reply) => return Some((this.refused(reply), needs_of(client, &rows))),
    };
    rows.settle();
    if rows.cold {
        return None;
    }
    let policy = client.policy.get();
    let mut needs = needs_of(client, &rows);
    if let Some(primary) = node.primary() {
        match rows.append(primary) {
            Written::Nothing => {}
            Written::To(end) => {
                client.last_write.set(end);
                if let Some(last) = client.answered.take() {
                    primary.returning.returned(last, node.edge.now());
                }
                needs.own = Some((policy, end));
            }
            Written::Refused(reply) => return Some((this.refused(reply), needs)),
        }
    }
    if let Some(after) = after {
        *session = after;
    }
    let reply = if this.exec { Reply::Array(replies) } else { replies.remove(0) };
    Some((reply, needs))
}

/// One reply for each command, or what the whole of EXEC is answered instead.
fn answers<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    this: &Transaction<'_>,
    aside: &mut Aside,
    rows: &mut TransactionRows<'_, E>,
    mut session: Option<&mut Session>,
) -> Result<Vec<Reply>, Reply> {
    // Between WATCH and EXEC, reads see what EXEC will compare with.
    let latest = this.exec || !client.watched.borrow().is_empty();
    let view = if latest { View::Latest } else { View::Plain };
    let version = session.as_ref().map(|session| session.version());
    let mut replies = Vec::with_capacity(this.commands.len());
    let reply_bytes_max = rows.reply_bytes_max();
    let mut reply_bytes = Reply::Array(Vec::new()).encoded_bytes_max();
    for command in this.commands {
        let mut reply = match (command, session.as_mut()) {
            (Queued::Data(command), _) => execute(command, view, rows),
            (Queued::Act(action), _) => aside.answer(node, client, action, rows),
            (Queued::Session(words), Some(session)) => session.answer(words),
            (Queued::Session(_), None) => unreachable!("it is there when there are such words"),
        };
        if rows.cold {
            return Err(reply);
        }
        if let Some(session) = &session
            && Some(session.version()) != version
        {
            reply = Reply::In(session.version(), Box::new(reply));
        }
        reply_bytes += reply.encoded_bytes_max();
        // Each reply alone is bounded; short commands queued by the thousand can ask for as many.
        if this.exec && reply_bytes > reply_bytes_max {
            let text =
                format!("ERR replies are larger than replies_bytes_max ({reply_bytes_max} bytes)");
            return Err(Reply::error(text));
        }
        replies.push(reply);
    }
    Ok(replies)
}

/// What a reply must wait for that shows what `rows` has read.
pub(super) fn needs_of<E: Edge>(client: &Client<E>, rows: &TransactionRows<'_, E>) -> Needs {
    let own = (rows.saw_own > Lsn::ZERO).then(|| (client.policy.get(), rows.saw_own));
    Needs { own, committed: rows.saw }
}
