//! What the node does for each thing a client asks: [`Action`]s become reads, transactions and
//! replies.

use std::rc::Rc;

use bytes::Bytes;
use rowship_proto::ack::{AckPolicy, ClientPolicy};
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{Lsn, Position};

use super::appender::Full;
use super::client::Client;
use super::outbox::Needs;
use super::rows::{Fetched, Reach, TransactionRows, Written};
use super::settings::OnMissing;
use super::state::{Node, PrimaryRole, count};
use super::{pieces, scans, status, waits};
use crate::edge::Edge;
use crate::intake::execute::Rows as _;
use crate::intake::execute::{DataCommand, Keys, View, execute};
use crate::intake::reply::Reply;
use crate::intake::session::{Action, Session};

/// Does `action` and puts its reply into the outbox; false ends the connection.
pub async fn run<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Rc<Client<E>>,
    session: &mut Session,
    action: Action,
) -> bool {
    let version = session.version();
    let (reply, needs) = match action {
        Action::Nothing => return true,
        Action::Reply(reply) => (reply, Needs::default()),
        Action::Close(reply) => {
            client.outbox.push(&reply, version, Needs::default());
            return false;
        }
        Action::Reset(reply) => {
            client.watched.borrow_mut().clear();
            set_policy(node, client, ClientPolicy::Node).await;
            (reply, Needs::default())
        }
        Action::Unwatch(reply) => {
            client.watched.borrow_mut().clear();
            (reply, Needs::default())
        }
        Action::Watch(keys) => watch(node, client, keys).await,
        Action::ReadOnly => (read_only(node), Needs::default()),
        Action::Run(command) => transaction(node, client, &[command], false).await,
        Action::Transaction(commands) => transaction(node, client, &commands, true).await,
        other => (ask(node, client, other).await, Needs::default()),
    };
    client.outbox.push(&reply, version, needs);
    true
}

/// Everything that touches no row of a transaction.
async fn ask<E: Edge>(node: &Rc<Node<E>>, client: &Rc<Client<E>>, action: Action) -> Reply {
    match action {
        Action::Scan(options) => {
            show_committed(node, client).await;
            scans::scan(node, &options).await
        }
        Action::Dbsize => {
            show_committed(node, client).await;
            Reply::Integer(i64::try_from(node.applied.mark().rows).unwrap_or(i64::MAX))
        }
        Action::Dump { cursor, count } => scans::dump(node, cursor, count).await,
        Action::Wait { replicas, timeout_ms } => {
            waits::wait(node, client, replicas, timeout_ms).await
        }
        Action::WaitAof { local, replicas, timeout_ms } => {
            waits::wait_aof(node, client, local, replicas, timeout_ms).await
        }
        Action::Role => status::role(node),
        Action::Info(sections) => Reply::Verbatim(status::info(node, &sections).await),
        Action::ConfigGet(patterns) => status::config_get(node, &patterns),
        Action::Ack(words) => ack(node, client, &words).await,
        Action::Position => position(node, client),
        Action::WaitPosition { token, timeout_ms } => {
            waits::wait_position(node, client, &token, timeout_ms).await
        }
        Action::Status => Reply::text(status::json(node).await.to_string()),
        Action::Retire(lsn) => super::retention::retire(node, lsn).await,
        _ => Reply::error("ERR not something this node does"),
    }
}

/// Scans and counts read the table, which on a primary trails what is committed by what the lanes
/// still hold. Waits until it shows what is committed now, and what this connection wrote before,
/// where the reply of that write holds up this one anyway.
async fn show_committed<E: Edge>(node: &Node<E>, client: &Client<E>) {
    let Some(primary) = node.primary() else { return };
    let committed = node.committed.get();
    node.changed
        .until(|| {
            let own = client.last_write.get();
            let open = client.policy.get() != 0 || own <= primary.limits.borrow()[0].open_to;
            let goal = if open { committed } else { committed.max(own) };
            let done = node.visible.get() >= goal;
            (done || client.outbox.is_broken() || node.is_stopping()).then_some(())
        })
        .await;
}

async fn set_policy<E: Edge>(node: &Node<E>, client: &Client<E>, policy: ClientPolicy) {
    // Replies on their way are judged by the policy under which they were written.
    client.outbox.drained().await;
    node.drop_policy(client.policy.get());
    client.policy.set(match policy {
        ClientPolicy::Node => 0,
        policy => node.use_policy(policy),
    });
}

/// Keys that a connection watches.
const WATCHED_MAX: usize = 1024;
/// Keys of one transaction, repetitions included: it runs in one go, and all others wait for it.
/// (Reads of many rows that are no transaction run in [`pieces`].)
const TRANSACTION_KEYS_MAX: usize = 16 * 1024;

async fn watch<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Rc<Client<E>>,
    keys: Vec<Bytes>,
) -> (Reply, Needs) {
    if client.watched.borrow().len() + keys.len() > WATCHED_MAX {
        let text = format!("ERR more than {WATCHED_MAX} watched keys");
        return (Reply::error(text), Needs::default());
    }
    let mut reach = Reach::Cold;
    let wanted = Keys { values: keys.clone(), existence: Vec::new() };
    loop {
        let fetched = match node.fetch(&wanted, &client.limits, reach).await {
            Ok(fetched) => fetched,
            Err(reply) => return (reply, Needs::default()),
        };
        let images = watch_now(node, client, &keys, &fetched);
        node.release(fetched);
        match images {
            Some(Ok(images)) => {
                client.watched.borrow_mut().extend(keys.into_iter().zip(images));
                return (Reply::OK, Needs::default());
            }
            Some(Err(reply)) => return (reply, Needs::default()),
            None => reach = Reach::All,
        }
    }
}

/// The keys' images, as they are now: a row that is written and gets the very same image back has
/// not changed for this watch. None when a row must be fetched first.
fn watch_now<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    keys: &[Bytes],
    fetched: &Fetched,
) -> Option<Result<Vec<Option<Bytes>>, Reply>> {
    let mut rows = TransactionRows::new(node, client.id, client.limits, fetched);
    // Copies: the image may be a part of something much larger.
    let copy = |image: Option<Bytes>| image.map(|image| Bytes::copy_from_slice(&image));
    let images = keys.iter().map(|key| rows.read(key, View::Latest).map(copy)).collect();
    (!rows.cold).then_some(images)
}

/// One transaction: a command of its own, or all of an EXEC.
async fn transaction<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Rc<Client<E>>,
    commands: &[DataCommand],
    exec: bool,
) -> (Reply, Needs) {
    let watched = std::mem::take(&mut *client.watched.borrow_mut());
    let watched = if exec {
        watched
    } else {
        *client.watched.borrow_mut() = watched;
        Vec::new()
    };
    let writes = commands.iter().any(DataCommand::is_write);
    if writes && let Err(reply) = may_write(node, client) {
        return (refused(reply, exec), Needs::default());
    }
    if let [command] = commands
        && !exec
        && client.watched.borrow().is_empty()
        && let Some(pieces) = pieces::pieces(command)
    {
        return pieces::run(node, client, &pieces).await;
    }
    let mut keys = Keys::of(commands);
    keys.values.extend(watched.iter().map(|(key, _)| key.clone()));
    if keys.len() > TRANSACTION_KEYS_MAX {
        let text = format!(
            "ERR transaction of {} keys; at most {TRANSACTION_KEYS_MAX} run in one go: split it",
            keys.len()
        );
        return (refused(Reply::error(text), exec), Needs::default());
    }
    let mut reach = Reach::Cold;
    loop {
        let fetched = match node.fetch(&keys, &client.limits, reach).await {
            Ok(fetched) => fetched,
            Err(reply) => return (refused(reply, exec), Needs::default()),
        };
        let admitted = match (writes, node.primary()) {
            (true, Some(primary)) => admitted(node, client, primary).await,
            _ => Ok(()),
        };
        let outcome = match admitted {
            Ok(()) => execute_all(node, client, commands, &watched, &fetched, exec),
            Err(reply) => {
                if planted(Bug::RefusedIsAppended)
                    && node.primary().is_some_and(|primary| node.admission(primary).is_ok())
                {
                    let _ = execute_all(node, client, commands, &watched, &fetched, exec);
                }
                Some((refused(reply, exec), Needs::default()))
            }
        };
        node.release(fetched);
        match outcome {
            Some(done) => return done,
            None => reach = Reach::All,
        }
    }
}

/// The answer to a write on a replica.
fn read_only<E: Edge>(node: &Node<E>) -> Reply {
    let upstream = node.replica().map(|replica| replica.upstream.borrow());
    let primary = match upstream.as_ref().map(|upstream| upstream.client_address.as_str()) {
        None | Some("") => "unknown: this replica has not reached it yet",
        Some(address) => address,
    };
    let text = format!("READONLY You can't write against a read only replica. Primary: {primary}");
    Reply::error(text)
}

/// A transaction that is refused whole; EXEC says so in Redis's words.
fn refused(reply: Reply, exec: bool) -> Reply {
    match reply {
        Reply::Error(text) if exec => {
            Reply::error(format!("EXECABORT Transaction discarded because of: {text}"))
        }
        reply => reply,
    }
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
    commands: &[DataCommand],
    watched: &[(Bytes, Option<Bytes>)],
    fetched: &Fetched,
    exec: bool,
) -> Option<(Reply, Needs)> {
    let mut rows = TransactionRows::new(node, client.id, client.limits, fetched);
    for (key, image) in watched {
        match rows.read(key, View::Latest) {
            Ok(now) if now == *image => {}
            // That it has changed is something seen, too.
            Ok(_) => return Some((Reply::NullArray, needs_of(client, &rows))),
            Err(_) if rows.cold => return None,
            Err(reply) => return Some((reply, Needs::default())),
        }
    }
    // Between WATCH and EXEC, reads see what EXEC will compare with.
    let latest = exec || !client.watched.borrow().is_empty();
    let view = if latest { View::Latest } else { View::Plain };
    let mut replies = Vec::with_capacity(commands.len());
    let reply_bytes_max = rows.reply_bytes_max();
    let mut reply_bytes = Reply::Array(Vec::new()).encoded_bytes_max();
    for command in commands {
        let reply = execute(command, view, &mut rows);
        if rows.cold {
            return None;
        }
        reply_bytes += reply.encoded_bytes_max();
        // Each reply alone is bounded; short commands queued by the thousand can ask for as many.
        if exec && reply_bytes > reply_bytes_max {
            let text =
                format!("ERR replies are larger than replies_bytes_max ({reply_bytes_max} bytes)");
            return Some((refused(Reply::error(text), exec), needs_of(client, &rows)));
        }
        replies.push(reply);
    }
    let policy = client.policy.get();
    let mut needs = needs_of(client, &rows);
    if let Some(primary) = node.primary() {
        match rows.append(primary) {
            Written::Nothing => {}
            Written::To(end) => {
                client.last_write.set(end);
                needs.own = Some((policy, end));
            }
            Written::Refused(reply) => return Some((refused(reply, exec), needs)),
        }
    }
    let reply = if exec { Reply::Array(replies) } else { replies.remove(0) };
    Some((reply, needs))
}

/// What a reply must wait for that shows what `rows` has read.
pub(super) fn needs_of<E: Edge>(client: &Client<E>, rows: &TransactionRows<'_, E>) -> Needs {
    let own = (rows.saw_own > Lsn::ZERO).then(|| (client.policy.get(), rows.saw_own));
    Needs { own, committed: rows.saw }
}

async fn ack<E: Edge>(node: &Node<E>, client: &Client<E>, words: &[Bytes]) -> Reply {
    let Some(primary) = node.primary() else {
        return Reply::error("ERR ROWSHIP.ACK is for connections to a primary");
    };
    let text = words.iter().map(|word| String::from_utf8_lossy(word)).collect::<Vec<_>>().join(" ");
    let policy = match text.to_ascii_lowercase().as_str() {
        "" => {
            let limits = primary.limits.borrow();
            let word = match &limits[client.policy.get()].policy {
                ClientPolicy::Node => primary.machine.borrow().policy().to_string(),
                ClientPolicy::Memory => "memory".to_owned(),
                ClientPolicy::Policy(policy) => policy.to_string(),
            };
            return Reply::text(word);
        }
        "node" => ClientPolicy::Node,
        "memory" => ClientPolicy::Memory,
        _ => match text.parse::<AckPolicy>() {
            Ok(policy) => ClientPolicy::Policy(policy),
            Err(error) => {
                return Reply::error(format!("ERR {error} | memory | node"));
            }
        },
    };
    set_policy(node, client, policy).await;
    Reply::OK
}

/// `[token, level]` of this connection's last write.
fn position<E: Edge>(node: &Node<E>, client: &Client<E>) -> Reply {
    let lsn = client.last_write.get();
    let Some(primary) = node.primary() else {
        return Reply::error("ERR this connection has written nothing: replicas are read only");
    };
    if lsn == Lsn::ZERO {
        return Reply::Array(vec![Reply::Null, Reply::text("none")]);
    }
    let level = if node.visible.get() >= lsn {
        "visible"
    } else if node.committed.get() >= lsn {
        "committed"
    } else if node.durable.get() >= lsn {
        "durable"
    } else {
        "memory"
    };
    let token = Position { epoch: primary.epoch, lsn };
    Reply::Array(vec![Reply::text(token.to_string()), Reply::text(level)])
}
