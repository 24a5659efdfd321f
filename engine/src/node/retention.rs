//! `log retire`: old segments go when the operator says so, and never while somebody needs them.
//!
//! Replicas that a primary has known are remembered in a file of its own beside `node.state`, so
//! that a restart does not forget one that is away. An operator who has given a replica up for
//! good takes its line out of that file while the primary is stopped.

use std::rc::Rc;

use std::cell::RefCell;
use std::collections::BTreeMap;

use rowship_proto::Lsn;
use rowship_proto::primary::Primary;

use super::NodeError;
use super::state::{Node, count};
use crate::edge::{Disk, Edge, offload, replace_file};
use crate::intake::reply::Reply;
use crate::log::retire::{self, RetireFloors, SPARES_MAX};
use crate::log::segment::list_segments;

/// The replicas that a primary has known in all its reigns, with what each had made durable.
#[derive(Default)]
pub struct Known {
    replicas: RefCell<BTreeMap<String, u64>>,
}

const KNOWN_FILE: &str = "replicas.json";
/// Names that are remembered; those beyond hold nothing back once the primary has restarted.
const KNOWN_MAX: usize = 4096;
/// More than so many names could fill.
const KNOWN_BYTES_MAX: u64 = 1 << 20;

impl Known {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// When it cannot be read: forgetting a replica silently could cost it the log it needs.
    pub fn load<D: Disk>(&self, disk: &D) -> Result<(), NodeError> {
        let unreadable = |error: &dyn std::fmt::Display| {
            NodeError::directory(&format!(
                "cannot read {}: {error}. It names the replicas whose log must be kept; put it \
                 right, or remove it if none is away",
                disk.path(KNOWN_FILE)
            ))
        };
        let files = disk.list().map_err(|error| unreadable(&error))?;
        let Some((_, bytes)) = files.into_iter().find(|(name, _)| name == KNOWN_FILE) else {
            return Ok(());
        };
        if bytes > KNOWN_BYTES_MAX {
            return Err(unreadable(&format!("{bytes} bytes are too many")));
        }
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
        disk.read_exact_at(KNOWN_FILE, 0, &mut text).map_err(|error| unreadable(&error))?;
        *self.replicas.borrow_mut() =
            serde_json::from_slice(&text).map_err(|error| unreadable(&error))?;
        Ok(())
    }

    /// Takes over what this reign knows; whether anything is new.
    fn learn(&self, machine: &Primary) -> bool {
        let mut known = self.replicas.borrow_mut();
        let mut news = false;
        // A hello alone proves nothing.
        for (name, replica) in machine.replicas().iter().filter(|(_, known)| known.streamed) {
            let lsn = replica.durable_promised.0;
            if known.len() < KNOWN_MAX || known.contains_key(name.as_str()) {
                news |= known.insert(name.to_string(), lsn) != Some(lsn);
            }
        }
        news
    }

    /// Those of earlier reigns that this one has not seen: name, and what each had made durable.
    pub fn unseen(&self, machine: &Primary) -> Vec<(String, Lsn)> {
        let known = self.replicas.borrow();
        let seen = |name: &str| machine.replicas().keys().any(|seen| seen.as_str() == name);
        let unseen = known.iter().filter(|(name, _)| !seen(name));
        unseen.map(|(name, lsn)| (name.clone(), Lsn(*lsn))).collect()
    }
}

impl<E: Edge> Node<E> {
    /// Writes the known replicas down, if anything about them is new.
    pub(super) async fn store_known(&self) -> Result<(), NodeError> {
        let Some(primary) = self.primary() else { return Ok(()) };
        if !primary.known.learn(&primary.machine.borrow()) {
            return Ok(());
        }
        let text = serde_json::json!(&*primary.known.replicas.borrow()).to_string();
        let disk = self.disk.clone();
        let stored =
            offload(&self.records, move || replace_file(&disk, KNOWN_FILE, text.as_bytes()));
        let stored = stored.await.map_err(|error| NodeError::internal(&error))?;
        // Not the log: a full disk here is told, and does not stop the node.
        if let Err(error) = stored {
            self.event(format!("cannot write {}: {error}", self.disk.path(KNOWN_FILE)));
        }
        Ok(())
    }
}

/// ROWSHIP.RETIRE: lets segments go that lie wholly below `to`, as far as nobody needs them.
/// Answers `[segments retired, oldest LSN left, what keeps more]`.
pub async fn retire<E: Edge>(node: &Rc<Node<E>>, to: Lsn) -> Reply {
    // What is only in memory would be missing after a restart without the log below it: a table
    // that has been quiet for long is brought to disk first.
    if let Err(error) = node.flush_all().await {
        return Reply::error(format!("ERR cannot flush the table: {error}"));
    }
    let (checkpoint, table_durable) = {
        let state = node.state.borrow();
        (state.checkpoint.map(|end| end.lsn).unwrap_or_default(), state.table_durable.lsn)
    };
    let replicas = node.primary().map_or_else(Vec::new, |primary| {
        primary.known.learn(&primary.machine.borrow());
        let known = primary.known.replicas.borrow();
        known.iter().map(|(name, lsn)| (name.clone(), Lsn(*lsn))).collect()
    });
    let floors = RetireFloors { checkpoint, table_durable, replicas };
    let _changing = node.segments.changing.lock().await;
    let disk = node.disk.clone();
    let planned = offload(&node.preparation, move || {
        list_segments(&disk).map(|segments| retire::plan(&segments, to, &floors))
    });
    let plan = match planned.await {
        Ok(Ok(plan)) => plan,
        Ok(Err(error)) => return Reply::error(format!("ERR {error}")),
        Err(error) => return Reply::error(format!("ERR the node is stopping: {error}")),
    };
    for base in &plan.retire {
        node.segments.close(*base);
    }
    let (disk, going) = (node.disk.clone(), plan.clone());
    let spares = node.settings.node.spare_segments.min(SPARES_MAX);
    let done = offload(&node.preparation, move || retire::retire(&disk, &going, spares)).await;
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Reply::error(format!("ERR {error}")),
        Err(error) => return Reply::error(format!("ERR the node is stopping: {error}")),
    }
    count(&node.counters.segments_retired, plan.retire.len() as u64);
    if !plan.retire.is_empty() {
        node.event(format!(
            "retired {} segment(s): the log starts at LSN {}",
            plan.retire.len(),
            plan.oldest
        ));
    }
    let kept = plan.kept_by.map_or(Reply::Null, Reply::text);
    let retired = i64::try_from(plan.retire.len()).unwrap_or(i64::MAX);
    let oldest = i64::try_from(plan.oldest.0).unwrap_or(i64::MAX);
    Reply::Array(vec![Reply::Integer(retired), Reply::Integer(oldest), kept])
}
