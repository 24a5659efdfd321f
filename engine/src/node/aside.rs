//! What EXEC does besides rows: SCAN, DBSIZE, WAIT, INFO and their like, each at its place among
//! the others.
//!
//! EXEC runs in one go, so what needs the disk or a lock is brought before: pages of the table,
//! which then are seen together with everything newer than the table, the transaction's own writes
//! included. WAIT and WAITAOF answer at once there, as in Redis.

use std::collections::VecDeque;
use std::rc::Rc;

use super::client::Client;
use super::fetch::Fetched;
use super::rows::TransactionRows;
use super::scans::{self, Listed};
use super::state::Node;
use super::{status, waits};
use crate::edge::Edge;
use crate::intake::reply::Reply;
use crate::intake::session::{Action, Queued};

/// What was brought for one EXEC.
pub struct Aside {
    /// One for each SCAN, in order: keys only, not the rows.
    listed: VecDeque<Result<Listed, Reply>>,
}

/// Whether pages are needed, for which rows must be read at one snapshot.
#[must_use]
pub fn has_scans(commands: &[Queued]) -> bool {
    commands.iter().any(|command| matches!(command, Queued::Act(Action::Scan(_))))
}

impl Aside {
    /// Brings what `commands` need, at the snapshot of `fetched`.
    pub async fn bring<E: Edge>(
        node: &Rc<Node<E>>,
        commands: &[Queued],
        fetched: &Fetched,
    ) -> Aside {
        let mut aside = Aside { listed: VecDeque::new() };
        let scans = || {
            commands.iter().filter_map(|command| match command {
                Queued::Act(Action::Scan(options)) => Some(options),
                _ => None,
            })
        };
        if let Some(at) = fetched.at() {
            let parts = scans().count();
            for options in scans() {
                aside.listed.push_back(scans::listed_at(node, at, options, parts).await);
            }
        }
        aside
    }

    /// The reply of `action`, which sees what commands before it have written to `rows`.
    pub fn answer<E: Edge>(
        &mut self,
        node: &Node<E>,
        client: &Client<E>,
        action: &Action,
        rows: &mut TransactionRows<'_, E>,
    ) -> Reply {
        let missing = || Reply::error("ERR not something this node does inside a transaction");
        match action {
            Action::Scan(options) => match self.listed.pop_front() {
                Some(Ok(listed)) => match rows.newer(options.cursor, listed.next_hash) {
                    Ok(newer) => scans::reply(listed, options, newer),
                    Err(error) => error,
                },
                Some(Err(error)) => error,
                None => missing(),
            },
            Action::Dbsize => Reply::Integer(i64::try_from(rows.count()).unwrap_or(i64::MAX)),
            Action::Wait { .. } => waits::replicas_now(node, client),
            Action::WaitAof { .. } => waits::durable_now(node, client),
            Action::Role => status::role(node),
            Action::Info(sections) => Reply::Verbatim(status::info(node, sections)),
            Action::ConfigGet(patterns) => status::config_get(node, patterns),
            _ => missing(),
        }
    }
}
