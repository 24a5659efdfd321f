//! Offline promotion: makes a replica's directory a primary's.

use rowship_proto::Lsn;

use crate::edge::Disk;
use crate::log::node_state::{NodeState, Role};
use crate::log::recover::{Recovered, recover};
use crate::log::{LogError, RecoverInput};

/// What promotion found and did.
#[derive(Clone, Debug)]
pub struct Promoted {
    /// The stored state: role primary, marked as promoted.
    pub state: NodeState,
    /// The log that the new primary goes on with.
    pub recovered: Recovered,
}

impl Promoted {
    /// Where the new epoch will start.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.recovered.end
    }
}

/// Recovers the log and stores the new role. The caller holds the directory's lock. The epoch is
/// drawn by the next start, one above the highest that this node has seen, and is durable before
/// its first frame is written, as at every start of a primary.
///
/// # Errors
/// [`LogError::NoState`], [`LogError::NotReplica`], [`LogError::State`], and those of [`recover`]
/// (a replica that never met its primary has no log: [`LogError::NoSegments`]).
pub fn promote<D: Disk>(disk: &D) -> Result<Promoted, LogError> {
    let state = NodeState::load(disk)?;
    let mut state = state.ok_or_else(|| LogError::NoState { directory: disk.path("") })?;
    if state.role != Role::Replica {
        return Err(LogError::NotReplica);
    }
    let recovered = recover(disk, &RecoverInput::of(&state))?;
    state.role = Role::Primary;
    state.promoted = true;
    state.history = recovered.history.clone();
    (state.checkpoint, state.checkpoint_is_end) = (Some(recovered.checkpoint()), true);
    if recovered.epoch.counter > state.epoch_highest.counter {
        state.epoch_highest = recovered.epoch;
    }
    state.store(disk)?;
    Ok(Promoted { state, recovered })
}
