//! The disk behind the file system: the model, and what is to go wrong with it, and when.
//!
//! Every request passes [`Shared::run`]. There the power goes (the request is neither answered nor
//! refused: it waits until the node is dead), and there single requests fail.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::Errno;

use super::model::Model;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Look,
    Read,
    Write,
    Resize,
    Sync,
    Create,
    Rename,
    Remove,
    SyncDirectory,
}

/// Which requests: of this kind, on paths with this part, and not the first `skip` of them.
#[derive(Clone, Debug)]
pub struct Which {
    /// None: all that change something, or sync.
    pub operation: Option<Operation>,
    pub path: &'static str,
    pub skip: u64,
}

impl Which {
    pub fn new(operation: Operation, path: &'static str, skip: u64) -> Which {
        Which { operation: Some(operation), path, skip }
    }

    /// Any change or sync but the first `skip`.
    pub fn any(skip: u64) -> Which {
        Which { operation: None, path: "", skip }
    }

    /// Whether this request is meant; counts it.
    fn meets(&mut self, operation: Operation, path: &str) -> bool {
        let looks = matches!(operation, Operation::Look | Operation::Read);
        let kind = self.operation.map_or(!looks, |meant| meant == operation);
        if !kind || !path.contains(self.path) {
            return false;
        }
        self.skip = match self.skip.checked_sub(1) {
            Some(rest) => rest,
            None => return true,
        };
        false
    }
}

/// Requests that fail with this error; all of them from the first one on, or only that one.
#[derive(Clone, Debug)]
pub struct Fault {
    pub which: Which,
    pub error: Errno,
    pub once: bool,
}

/// The request at which the power goes: before it had its effect, or before it was answered.
#[derive(Clone, Debug)]
pub struct Trigger {
    pub which: Which,
    pub after: bool,
}

/// Syncs that are answered and do nothing: a disk (or an engine) that lies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    pub files: bool,
    pub directories: bool,
}

/// Requests so far, for tests that look at how a node writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub writes: u64,
    /// Writes through a descriptor opened with `O_DSYNC`.
    pub durable_writes: u64,
    pub syncs: u64,
    /// Requests that were answered with an error of [`Fault`].
    pub failed: u64,
    /// Syncs of the same file after one of them failed.
    pub syncs_after_failure: u64,
    /// Refused as [`State::direct`] says.
    pub direct_refused: u64,
}

/// What a file system says to `O_DIRECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    Supported,
    /// Files cannot be opened so.
    NotOpened,
    /// They can, and reads and writes are refused: the pages are not what the disk wants.
    NotUsed,
}

impl State {
    /// Refuses an operation with these flags of its file, at this moment of its use.
    pub fn refuse_direct(&mut self, flags: i32, at: Direct) -> Result<(), Errno> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        if flags & direct == 0 || self.direct != at {
            return Ok(());
        }
        self.seen.direct_refused += 1;
        Err(Errno::EINVAL)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// The power is gone: nothing is answered.
    Frozen,
    /// The node is dead: whatever still comes from it is refused.
    Dead,
}

pub struct State {
    pub model: Model,
    pub lies: Lies,
    pub faults: Vec<Fault>,
    pub seen: Seen,
    pub direct: Direct,
    /// Bytes of all files at most.
    pub capacity: u64,
    trigger: Option<Trigger>,
    phase: Phase,
    failed_syncs: Vec<u64>,
}

pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Longer than a test leaves a node without power.
const FROZEN_MAX: Duration = Duration::from_secs(30);
/// More than any test writes.
const CAPACITY: u64 = 4 << 30;

impl Shared {
    pub fn new(model: Model, lies: Lies) -> Shared {
        let state = State {
            model,
            lies,
            faults: Vec::new(),
            seen: Seen::default(),
            direct: Direct::Supported,
            capacity: CAPACITY,
            trigger: None,
            phase: Phase::Running,
            failed_syncs: Vec::new(),
        };
        Shared { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out one request, unless it is to fail or the power is gone.
    pub fn run<T>(
        &self,
        operation: Operation,
        path: impl FnOnce(&Model) -> String,
        act: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.alive(self.lock())?;
        let path = path(&state.model);
        if let Some(error) = state.fault(operation, &path) {
            return Err(error);
        }
        let Some(after) = state.meets_trigger(operation, &path) else {
            return act(&mut state);
        };
        if after {
            // Done, and nobody will hear of it.
            let _ = act(&mut state);
        }
        state.phase = Phase::Frozen;
        self.changed.notify_all();
        drop(self.alive(state)?);
        Err(Errno::EIO)
    }

    /// Waits while the power is gone. Not for ever: a test that waits for its own disk would never
    /// end, and could not even be killed.
    fn alive<'a>(&'a self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Errno> {
        let frozen = |state: &mut State| state.phase == Phase::Frozen;
        let waited = self.changed.wait_timeout_while(state, FROZEN_MAX, frozen);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            state.phase = Phase::Dead;
        }
        if state.phase == Phase::Dead { Err(Errno::EIO) } else { Ok(state) }
    }

    pub fn arm(&self, trigger: Trigger) {
        self.lock().trigger = Some(trigger);
    }

    /// Waits until the trigger was met, for so long at most.
    pub fn wait_for_trigger(&self, patience: Duration) -> bool {
        let running = |state: &mut State| state.phase == Phase::Running;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, running);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// From now on nothing is answered.
    pub fn freeze(&self) {
        self.lock().phase = Phase::Frozen;
    }

    /// From now on everything is refused.
    pub fn release(&self) {
        self.lock().phase = Phase::Dead;
        self.changed.notify_all();
    }
}

impl State {
    fn meets_trigger(&mut self, operation: Operation, path: &str) -> Option<bool> {
        let trigger = self.trigger.as_mut()?;
        let met = trigger.which.meets(operation, path).then_some(trigger.after);
        if met.is_some() {
            self.trigger = None;
        }
        met
    }

    fn fault(&mut self, operation: Operation, path: &str) -> Option<Errno> {
        let at = self.faults.iter_mut().position(|fault| fault.which.meets(operation, path))?;
        self.seen.failed += 1;
        let fault =
            if self.faults[at].once { self.faults.remove(at) } else { self.faults[at].clone() };
        Some(fault.error)
    }

    /// A sync that nothing stands in the way of.
    pub fn sync(&mut self, number: u64, lie: bool) -> Result<(), Errno> {
        self.seen.syncs += 1;
        self.seen.syncs_after_failure += u64::from(self.failed_syncs.contains(&number));
        if lie { Ok(()) } else { self.model.sync(number) }
    }

    /// A sync that has failed.
    pub fn fail_sync(&mut self, number: u64) {
        self.model.lose_unsynced(number);
        self.failed_syncs.push(number);
    }

    /// Whether so many more bytes fit.
    pub fn has_room_for(&self, bytes: u64) -> Result<(), Errno> {
        let used = self.model.used_bytes();
        if used + bytes <= self.capacity { Ok(()) } else { Err(Errno::ENOSPC) }
    }
}
