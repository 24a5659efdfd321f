//! What a data directory holds: its role, its log (recovered), its table.

use std::sync::Arc;

use rowship_proto::Lsn;
use rowship_proto::primary::FIRST_FRAME;
use rowship_proto::sim;

use super::NodeError;
use super::settings::{Settings, TableKind};
use super::start::{new_log_id, table_path};
use crate::apply::lsm::{LsmSettings, LsmTable, REPLAY_PART};
use crate::apply::memory::MemoryTable;
use crate::apply::publish::Mark;
use crate::apply::table::{Table, TableError};
use crate::edge::{Disk, Edge};
use crate::log::node_state::{Role as StoredRole, TableDurable};
use crate::log::prepare::{Fill, prepare_next};
use crate::log::segment::{list_segments, segment_file_name};
use crate::log::{NodeState, RecoverInput, Recovered, SegmentHeader, recover};

/// A directory that can be served.
pub struct Found {
    /// `node.state`.
    pub state: NodeState,
    /// The log; none on a replica that has not met its primary yet.
    pub recovered: Option<Recovered>,
    /// For the operator.
    pub events: Vec<String>,
}

/// Reads the directory, makes what a new one needs, and recovers the log.
pub fn find<E: Edge>(edge: &E, disk: &E::Disk, settings: &Settings) -> Result<Found, NodeError> {
    let wanted = match settings.node.replica_of {
        None => StoredRole::Primary,
        Some(_) => StoredRole::Replica,
    };
    let loaded = NodeState::load(disk).map_err(|error| NodeError::state(&error))?;
    let mut events = Vec::new();
    let mut state = match loaded {
        Some(state) => state,
        None => {
            refuse_orphans(disk)?;
            new_state(edge, wanted, settings)
        }
    };
    check_role(&state, wanted, settings)?;
    if state.log_id == rowship_proto::LogId::NONE && wanted == StoredRole::Primary {
        state.log_id = new_log_id(edge);
        state.segment_bytes = settings.cluster.segment_bytes;
        state.frame_body_bytes_max = settings.cluster.frame_body_bytes_max as u64;
    }
    state.name = settings.node.name.as_str().to_owned();
    let input = RecoverInput::of(&state);
    // Before anything is written to the log.
    state.checkpoint_is_end = false;
    state.store(disk).map_err(|error| NodeError::state(&error))?;
    let segments = list_segments(disk).map_err(|error| NodeError::log(&error))?;
    let untouched = state.history.entries().is_empty() && state.checkpoint.is_none();
    if segments.is_empty() && untouched {
        if wanted == StoredRole::Replica {
            return Ok(Found { state, recovered: None, events });
        }
        let (bytes, body_max) = (state.segment_bytes, state.frame_body_bytes_max);
        let header = SegmentHeader::new(state.log_id, Lsn::ZERO, bytes, body_max);
        prepare_next(disk, &header, Fill::Zeroes).map_err(|error| NodeError::log(&error))?;
    }
    settle(disk, segments.iter().map(|(base, _)| *base))?;
    let recovered = recover(disk, &input);
    let mut recovered = recovered.map_err(|error| NodeError::log(&error))?;
    // Headers say it only up to the frame before the last one: the last rows that readers saw
    // would be hidden again until somebody says that they are committed.
    recovered.committed = recovered.committed.max(state.committed.min(recovered.end));
    if let Some(torn) = &recovered.torn {
        sim::mark(sim::Mark::TornTailCut);
        events.push(format!(
            "the last write of the log was torn: cut at LSN {} ({} bytes dropped; {})",
            torn.at, torn.bytes_dropped, torn.what
        ));
    }
    if state.frame_body_bytes_max != settings.cluster.frame_body_bytes_max as u64 {
        events.push(format!(
            "frame_body_bytes_max stays {} for this log: it was fixed when the log was made",
            state.frame_body_bytes_max
        ));
    }
    tracing::info!(
        end = %recovered.end,
        committed = %recovered.committed,
        frames_read = recovered.frames_read,
        bytes_read = recovered.bytes_read,
        segments = recovered.segments.len(),
        "log recovered"
    );
    state.history = recovered.history.clone();
    Ok(Found { state, recovered: Some(recovered), events })
}

/// Waits for what the process before has asked its disk for.
fn settle<D: Disk>(disk: &D, bases: impl Iterator<Item = Lsn>) -> Result<(), NodeError> {
    for base in bases {
        let name = segment_file_name(base);
        disk.settle(&name).map_err(|error| {
            NodeError::disk(&format!("cannot wait for writes to {}: {error}", disk.path(&name)))
        })?;
    }
    Ok(())
}

/// Segments without a `node.state` belong to somebody: they are not written over.
fn refuse_orphans<D: Disk>(disk: &D) -> Result<(), NodeError> {
    let segments = list_segments(disk).map_err(|error| NodeError::log(&error))?;
    if segments.is_empty() {
        return Ok(());
    }
    Err(NodeError::directory(&format!(
        "{} holds log segments but no node.state: it is not a whole data directory. Restore the \
         file, or use an empty directory",
        disk.path("")
    )))
}

fn new_state<E: Edge>(edge: &E, role: StoredRole, settings: &Settings) -> NodeState {
    let (node_id, incarnation) = (edge.random(), edge.random());
    NodeState::new(role, node_id, incarnation, settings.node.name.as_str())
}

fn check_role(state: &NodeState, wanted: StoredRole, settings: &Settings) -> Result<(), NodeError> {
    let directory = settings.node.data_dir.display();
    match (state.role, wanted) {
        (StoredRole::Replica, StoredRole::Primary) => Err(NodeError::directory(&format!(
            "{directory} belongs to a replica. Start it with --replica-of HOST:PORT, or make it a \
             primary for good with `rowship promote {directory}`"
        ))),
        (StoredRole::Primary, StoredRole::Replica) => Err(NodeError::directory(&format!(
            "{directory} belongs to a primary and is not turned into a replica: its log may hold \
             writes that no other node has. Start it without --replica-of, or use an empty \
             directory"
        ))),
        _ => Ok(()),
    }
}

/// The table, and where apply goes on.
pub struct OpenedTable {
    /// The rows.
    pub table: Arc<dyn Table>,
    /// Replay starts here.
    pub start: Mark,
    /// For the operator.
    pub events: Vec<String>,
}

/// Opens the table and checks that the log reaches back to where it must be replayed from.
pub fn open_table<D: Disk>(
    disk: &D,
    settings: &Settings,
    state: &mut NodeState,
    log: Option<&Recovered>,
) -> Result<OpenedTable, NodeError> {
    let mut events = Vec::new();
    let (table, mut start): (Arc<dyn Table>, Mark) = match settings.node.table {
        TableKind::Memory => (Arc::new(MemoryTable::new()), Mark::ZERO),
        #[cfg(feature = "sim")]
        TableKind::Imaged => {
            let stored = state.table_durable;
            let durable = Mark { lsn: stored.lsn, rows: stored.row_count };
            let bytes = settings.node.memtable_bytes;
            let table = super::imaged::ImagedTable::open(disk.clone(), durable, bytes);
            (Arc::new(table.map_err(|error| NodeError::directory(&error))?), durable)
        }
        TableKind::Lsm => open_lsm(disk, settings, state, log, &mut events)?,
    };
    if start.lsn > FIRST_FRAME {
        sim::mark(sim::Mark::ReplayedFromMiddle);
    }
    start.lsn = start.lsn.max(FIRST_FRAME);
    if let Some(log) = log {
        if start.lsn < log.oldest {
            return Err(NodeError::damage(&format!(
                "the table must be replayed from LSN {} but the log was retired below {}: start \
                 this node again from an empty directory (a replica then follows its primary)",
                start.lsn, log.oldest
            )));
        }
        if start.lsn > log.end {
            return Err(NodeError::damage(&format!(
                "the table is at LSN {} but the log ends at {}: durable bytes of the log are \
                 missing",
                start.lsn, log.end
            )));
        }
    }
    Ok(OpenedTable { table, start, events })
}

/// The table on disk, and what it holds.
fn open_lsm<D: Disk>(
    disk: &D,
    settings: &Settings,
    state: &mut NodeState,
    log: Option<&Recovered>,
    events: &mut Vec<String>,
) -> Result<(Arc<dyn Table>, Mark), NodeError> {
    let stored = state.table_durable;
    let durable = Mark { lsn: stored.lsn, rows: stored.row_count };
    let path = table_path(&settings.node.data_dir);
    // A log that is not there yet has not lost anything either.
    let oldest = log.map_or(FIRST_FRAME, |log| log.oldest);
    let rebuildable = oldest <= FIRST_FRAME;
    let opened = LsmTable::open(&path, lsm_settings(settings), durable, rebuildable);
    let opened = opened.map_err(|error| match error {
        TableError::NoSpace { .. } => NodeError::full(&error),
        TableError::Damaged { path, reason } => NodeError::damage(&format!(
            "table at {} is damaged: {reason}. It cannot be rebuilt, as the log was \
             retired below LSN {oldest}; nothing was changed: start this node again from \
             an empty directory (a replica then follows its primary)",
            path.display()
        )),
        _ => NodeError::directory(&error),
    })?;
    if let Some(rebuilt) = &opened.rebuilt {
        events.push(format!(
            "the table did not open and is rebuilt from the log: {}{}",
            rebuilt.reason,
            rebuilt.aside.as_ref().map_or_else(String::new, |aside| {
                format!(" (its files are kept at {})", aside.display())
            })
        ));
    }
    if opened.durable != durable {
        let Mark { lsn, rows: row_count } = opened.durable;
        state.table_durable = TableDurable { lsn, row_count };
        state.store(disk).map_err(|error| NodeError::state(&error))?;
        let recorded = opened.table.recorded(lsn);
        recorded.map_err(|error| NodeError::directory(&error))?;
    }
    Ok((Arc::new(opened.table), opened.durable))
}

fn lsm_settings(settings: &Settings) -> LsmSettings {
    let node = &settings.node;
    LsmSettings {
        memtable_bytes: node.memtable_bytes,
        replay_bytes: REPLAY_PART * node.memtable_bytes,
        cache_bytes: node.cache_bytes,
        table_bytes: node.memtable_bytes,
        ..LsmSettings::default()
    }
}
