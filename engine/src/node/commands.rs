//! What the node does for each thing a client asks: [`Action`]s become reads, transactions and
//! replies.

use std::rc::Rc;

use bytes::Bytes;
use rowship_proto::ack::{AckPolicy, ClientPolicy};
use rowship_proto::{Lsn, Position};

use super::client::Client;
use super::fetch::{Fetched, Reach};
use super::outbox::Needs;
use super::rows::TransactionRows;
use super::state::Node;
use super::{scans, status, transaction, waits};
use crate::edge::Edge;
use crate::intake::execute::Rows as _;
use crate::intake::execute::{Keys, View};
use crate::intake::reply::Reply;
use crate::intake::session::{Action, Queued, Session};

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
        Action::ReadOnly => (transaction::read_only(node), Needs::default()),
        Action::Run(command) => {
            transaction::run(node, client, session, &[Queued::Data(command)], false).await
        }
        Action::Transaction(commands) => {
            transaction::run(node, client, session, &commands, true).await
        }
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
        Action::Info(sections) => Reply::Verbatim(status::info(node, &sections)),
        Action::ConfigGet(patterns) => status::config_get(node, &patterns),
        Action::Ack(words) => ack(node, client, &words).await,
        Action::Position => position(node, client),
        Action::WaitPosition { token, timeout_ms } => {
            waits::wait_position(node, client, &token, timeout_ms).await
        }
        Action::Status => Reply::text(status::json(node).to_string()),
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
