//! Commands that wait for a position: WAIT, WAITAOF and ROWSHIP.WAITPOS.

use std::rc::Rc;
use std::time::Duration;

use rowship_proto::Position;
use rowship_proto::position::Located;
use rowship_proto::sim::{Bug, Mark, mark, planted};

use super::client::Client;
use super::state::{Node, PrimaryRole};
use crate::edge::Edge;
use crate::intake::reply::Reply;

/// Runs until `look` finds something or the time is over (0 is no limit).
async fn until<E: Edge, T>(
    node: &Node<E>,
    timeout_ms: u64,
    look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let found = node.changed.until(look);
    if timeout_ms == 0 {
        return Some(found.await);
    }
    tokio::select! {
        biased;
        found = found => Some(found),
        () = tokio::time::sleep(Duration::from_millis(timeout_ms)) => None,
    }
}

/// WAIT: how many replicas have received this connection's writes.
pub async fn wait<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    replicas: u64,
    timeout_ms: u64,
) -> Reply {
    until(node, timeout_ms, || {
        let done = node.primary().is_none_or(|primary| holding(primary, client).0 >= replicas);
        (done || client.outbox.is_broken() || node.is_stopping()).then_some(())
    })
    .await;
    replicas_now(node, client)
}

/// What WAIT answers when it does not wait.
pub fn replicas_now<E: Edge>(node: &Node<E>, client: &Client<E>) -> Reply {
    match node.primary() {
        Some(primary) => count(holding(primary, client).0),
        None => Reply::error("ERR WAIT cannot be used with replica instances."),
    }
}

/// How many replicas hold this connection's writes, and on how many they are durable.
fn holding<E: Edge>(primary: &PrimaryRole<E>, client: &Client<E>) -> (u64, u64) {
    let (held, durable) = primary.machine.borrow().count_holding(client.last_write.get());
    (held as u64, durable as u64)
}

fn count(replicas: u64) -> Reply {
    Reply::Integer(i64::try_from(replicas).unwrap_or(i64::MAX))
}

/// WAITAOF: whether they are durable here, and on how many replicas.
pub async fn wait_aof<E: Edge>(
    node: &Node<E>,
    client: &Client<E>,
    local: bool,
    replicas: u64,
    timeout_ms: u64,
) -> Reply {
    let _asks = Asks::begin(node, replicas);
    until(node, timeout_ms, || {
        let here = !local || node.durable.get() >= client.last_write.get();
        let there = |primary: &PrimaryRole<E>| holding(primary, client).1 >= replicas;
        let done = here && node.primary().is_none_or(there);
        (done || client.outbox.is_broken() || node.is_stopping()).then_some(())
    })
    .await;
    durable_now(node, client)
}

/// While it lives, replicas write at once what they receive.
struct Asks<'a, E: Edge>(Option<&'a Node<E>>);

impl<'a, E: Edge> Asks<'a, E> {
    fn begin(node: &'a Node<E>, replicas: u64) -> Asks<'a, E> {
        let asks = Asks((replicas > 0).then_some(node));
        asks.add(1);
        asks
    }

    fn add(&self, by: isize) {
        let Some(node) = self.0 else { return };
        if let Some(primary) = node.primary() {
            let waits = primary.durable_waits.get();
            primary.durable_waits.set(waits.saturating_add_signed(by));
            node.changed.notify();
        }
    }
}

impl<E: Edge> Drop for Asks<'_, E> {
    fn drop(&mut self) {
        self.add(-1);
    }
}

/// What WAITAOF answers when it does not wait.
pub fn durable_now<E: Edge>(node: &Node<E>, client: &Client<E>) -> Reply {
    let Some(primary) = node.primary() else {
        return Reply::error("ERR WAITAOF cannot be used with replica instances.");
    };
    let here = node.durable.get() >= client.last_write.get();
    Reply::Array(vec![Reply::Integer(i64::from(here)), count(holding(primary, client).1)])
}

/// `[reached | lost | timeout, this node's visible position]`.
pub async fn wait_position<E: Edge>(
    node: &Rc<Node<E>>,
    client: &Client<E>,
    token: &Position,
    timeout_ms: u64,
) -> Reply {
    // Looked up again at every change: the epoch history may grow while waiting.
    let answer = until(node, timeout_ms, || {
        let located = match node.primary() {
            Some(primary) => primary.machine.borrow().history().locate(token),
            None => match node.storing.try_lock() {
                Ok(_stored) => node.state.borrow().history.locate(token),
                // An epoch may be beginning in which the token is lost: look again after that.
                Err(_) => Located::Unknown,
            },
        };
        match located {
            Located::Lost if !planted(Bug::WaitByLsnAlone) => {
                mark(Mark::WaitLost);
                Some("lost")
            }
            Located::Lost | Located::OnHistory if node.visible.get() >= token.lsn => {
                Some("reached")
            }
            Located::Lost | Located::OnHistory | Located::Unknown => {
                (node.is_stopping() || client.outbox.is_broken()).then_some("timeout")
            }
        }
    })
    .await;
    let answer = answer.unwrap_or("timeout");
    let lsn = node.visible.get();
    let visible = Position { epoch: node.epoch_below(lsn).await, lsn };
    Reply::Array(vec![Reply::text(answer), Reply::text(visible.to_string())])
}
