//! `node.state`: who this node is, and where its log stands.
//!
//! ```text
//! slot 0 at 0, slot 1 at 128 KiB; each:
//!  0       8         12         16         24         32
//!  | magic | version | body_len | sequence | checksum | body: fixed part, epoch history, name |
//! ```
//!
//! Versions may change the body, never the head. Slots are written in turn, each write durable
//! before the next, so a torn write harms only the slot that is not in force. `checksum` is
//! XXH3-64 of the head before it and the body. The file comes into being by a rename, with its
//! first slot written: a file without a whole slot is damage, not a beginning.

use std::io;

use rowship_proto::position::EpochStart;
use rowship_proto::{Epoch, EpochHistory, LogId, Lsn};
use xxhash_rust::xxh3::Xxh3;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::edge::Disk;

/// Name of the file.
pub const STATE_FILE: &str = "node.state";
/// The newest version that this build reads, and the one it writes.
pub const STATE_VERSION: u32 = 1;
/// Bytes of one slot. The largest body is 40 KiB (1024 epochs and a name).
pub const STATE_SLOT_BYTES: u64 = 128 << 10;
/// Longest node name in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 255;

/// What the directory is. A replica's becomes a primary's only by an explicit promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Writes the log.
    Primary,
    /// Follows a primary.
    Replica,
}

/// A place up to which the log is known to be whole and durable, from which recovery goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where the next frame starts.
    pub lsn: Lsn,
    /// Chain value of the frame before.
    pub chain: u64,
    /// Epoch of the frame before.
    pub epoch: Epoch,
}

impl Checkpoint {
    /// Of a node that has no log yet.
    pub const NONE: Checkpoint = Checkpoint { lsn: Lsn::ZERO, chain: 0, epoch: Epoch::NONE };
}

/// What the table has made durable by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableDurable {
    /// All rows below are in the table's own files: a restart replays from here.
    pub lsn: Lsn,
    /// Rows in the table at that position.
    pub row_count: u64,
}

/// The content of `node.state`. Change fields, then [`NodeState::store`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// What this directory is.
    pub role: Role,
    /// Promoted offline; the next start of the primary begins the new epoch and clears it.
    pub promoted: bool,
    /// The log, [`LogId::NONE`] for a replica that has not met its primary.
    pub log_id: LogId,
    /// This node.
    pub node_id: u64,
    /// Which life of this node: drawn when the directory is made.
    pub incarnation: u64,
    /// Name by which operators know it, at most [`NODE_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Highest epoch ever seen (or begun): lower ones are refused.
    pub epoch_highest: Epoch,
    /// Where each epoch of this node's log starts.
    pub history: EpochHistory,
    /// From where recovery must find everything whole; none before the first roll or timer.
    pub checkpoint: Option<Checkpoint>,
    /// The log ends at the checkpoint, and nothing stands behind it: after a clean stop or a
    /// promotion. Whoever is to append to the log takes this back first, durably.
    pub checkpoint_is_end: bool,
    /// Committed at least up to here: what readers of this node have seen stays seen.
    pub committed: Lsn,
    /// See [`TableDurable`].
    pub table_durable: TableDurable,
    /// Size of the segments that are made next.
    pub segment_bytes: u64,
    /// Largest frame body now in force.
    pub frame_body_bytes_max: u64,
    /// Of the slot in force; 0 before the first store.
    sequence: u64,
}

/// Why `node.state` cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk failed.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Path.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// From a newer build.
    #[error(
        "{file} was written by a newer rowship, version {version} (this build reads up to \
         {STATE_VERSION})"
    )]
    Newer {
        /// Path.
        file: String,
        /// Its version.
        version: u32,
    },
    /// Neither slot holds.
    #[error(
        "{file} is damaged: neither of its two slots has a checksum that holds. Who this node is \
         and which epochs it saw is lost: start it again from an empty directory"
    )]
    Broken {
        /// Path.
        file: String,
    },
    /// Checksum holds, content does not.
    #[error("{file} has an impossible value: {what}")]
    Malformed {
        /// Path.
        file: String,
        /// Which one.
        what: &'static str,
    },
}

impl NodeState {
    /// A state for a new directory, not stored yet.
    ///
    /// # Panics
    /// When the name is longer than [`NODE_NAME_BYTES_MAX`]: settings are checked before.
    #[must_use]
    pub fn new(role: Role, node_id: u64, incarnation: u64, name: &str) -> NodeState {
        assert!(name.len() <= NODE_NAME_BYTES_MAX);
        NodeState {
            role,
            promoted: false,
            log_id: LogId::NONE,
            node_id,
            incarnation,
            name: name.to_owned(),
            epoch_highest: Epoch::NONE,
            history: EpochHistory::default(),
            checkpoint: None,
            checkpoint_is_end: false,
            committed: Lsn::ZERO,
            table_durable: TableDurable::default(),
            segment_bytes: 0,
            frame_body_bytes_max: 0,
            sequence: 0,
        }
    }

    /// Reads the state; `None` when there is no such file.
    ///
    /// # Errors
    /// See [`StateError`]. One torn slot is no error: the other is in force.
    pub fn load(disk: &impl Disk) -> Result<Option<NodeState>, StateError> {
        let file = || disk.path(STATE_FILE);
        let mut newest: Option<Slot> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; STATE_SLOT_BYTES as usize];
            match disk.read_exact_at(STATE_FILE, slot * STATE_SLOT_BYTES, &mut bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(source) => return Err(StateError::Io { doing: "read", file: file(), source }),
            }
            let Some(slot) = Slot::parse(bytes) else { continue };
            if slot.head.version > STATE_VERSION {
                return Err(StateError::Newer { file: file(), version: slot.head.version });
            }
            if newest.as_ref().is_none_or(|newest| slot.head.sequence > newest.head.sequence) {
                newest = Some(slot);
            }
        }
        let newest = newest.ok_or_else(|| StateError::Broken { file: file() })?;
        let state = decode(&newest);
        state.map(Some).map_err(|what| StateError::Malformed { file: file(), what })
    }

    /// Makes the state durable. After an error nothing is known about the file: stop the node.
    ///
    /// # Errors
    /// [`StateError::Io`].
    ///
    /// # Panics
    /// When the name has grown longer than [`NODE_NAME_BYTES_MAX`].
    pub fn store(&mut self, disk: &impl Disk) -> Result<(), StateError> {
        assert!(self.name.len() <= NODE_NAME_BYTES_MAX);
        let first = self.sequence == 0;
        let sequence = self.sequence + 1;
        let bytes = encode(self, sequence);
        assert!(bytes.len() as u64 <= STATE_SLOT_BYTES, "bounded by name and ENTRIES_MAX");
        let error =
            |doing| move |source| StateError::Io { doing, file: disk.path(STATE_FILE), source };
        if first {
            disk.create_zeroed(NEW_FILE, 2 * STATE_SLOT_BYTES).map_err(error("create"))?;
            let offset = (sequence % 2) * STATE_SLOT_BYTES;
            disk.write_durable_at(NEW_FILE, offset, &bytes).map_err(error("write"))?;
            disk.rename(NEW_FILE, STATE_FILE).map_err(error("rename into place"))?;
        } else {
            let offset = (sequence % 2) * STATE_SLOT_BYTES;
            disk.write_durable_at(STATE_FILE, offset, &bytes).map_err(error("write"))?;
        }
        self.sequence = sequence;
        Ok(())
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SlotHead {
    magic: u64,
    version: u32,
    body_len: u32,
    sequence: u64,
    checksum: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct StateBody {
    role: u32,
    /// [`FLAG_PROMOTED`] and [`FLAG_CHECKPOINT_IS_END`].
    flags: u32,
    log_id: LogId,
    node_id: u64,
    incarnation: u64,
    epoch_highest: Epoch,
    /// Zero LSN means "none": no frame starts there.
    checkpoint_lsn: Lsn,
    checkpoint_chain: u64,
    checkpoint_epoch: Epoch,
    committed: Lsn,
    table_durable_lsn: Lsn,
    table_row_count: u64,
    segment_bytes: u64,
    frame_body_bytes_max: u64,
    history_entries: u32,
    name_len: u32,
}

const FLAG_PROMOTED: u32 = 1;
const FLAG_CHECKPOINT_IS_END: u32 = 2;
const FLAGS: u32 = FLAG_PROMOTED | FLAG_CHECKPOINT_IS_END;
const HEAD_BYTES: usize = 32;
const _: () = assert!(size_of::<SlotHead>() == HEAD_BYTES);
const _: () = assert!(size_of::<StateBody>() == 152);
const _: () = assert!(
    HEAD_BYTES
        + size_of::<StateBody>()
        + EpochHistory::ENTRIES_MAX * size_of::<EpochStart>()
        + NODE_NAME_BYTES_MAX
        <= STATE_SLOT_BYTES as usize
);
const STATE_MAGIC: u64 = u64::from_le_bytes(*b"ROWSHIPN");
const NEW_FILE: &str = "node.state.new";

/// A slot whose checksum holds.
struct Slot {
    head: SlotHead,
    body: Vec<u8>,
}

impl Slot {
    fn parse(mut bytes: Vec<u8>) -> Option<Slot> {
        let (head, _) = SlotHead::read_from_prefix(&bytes).ok()?;
        let end = HEAD_BYTES.checked_add(head.body_len as usize)?;
        if head.magic != STATE_MAGIC || end > bytes.len() {
            return None;
        }
        bytes.truncate(end);
        let body = bytes.split_off(HEAD_BYTES);
        (head.checksum == checksum(&head, &body)).then_some(Slot { head, body })
    }
}

fn checksum(head: &SlotHead, body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&head.as_bytes()[..HEAD_BYTES - 8]);
    hash.update(body);
    hash.digest()
}

fn encode(state: &NodeState, sequence: u64) -> Vec<u8> {
    let none = Checkpoint { lsn: Lsn::ZERO, chain: 0, epoch: Epoch::NONE };
    let checkpoint = state.checkpoint.unwrap_or(none);
    let history = state.history.entries();
    let fixed = StateBody {
        role: match state.role {
            Role::Primary => 1,
            Role::Replica => 2,
        },
        flags: FLAG_PROMOTED * u32::from(state.promoted)
            + FLAG_CHECKPOINT_IS_END * u32::from(state.checkpoint_is_end),
        log_id: state.log_id,
        node_id: state.node_id,
        incarnation: state.incarnation,
        epoch_highest: state.epoch_highest,
        checkpoint_lsn: checkpoint.lsn,
        checkpoint_chain: checkpoint.chain,
        checkpoint_epoch: checkpoint.epoch,
        committed: state.committed,
        table_durable_lsn: state.table_durable.lsn,
        table_row_count: state.table_durable.row_count,
        segment_bytes: state.segment_bytes,
        frame_body_bytes_max: state.frame_body_bytes_max,
        history_entries: u32::try_from(history.len()).expect("at most ENTRIES_MAX"),
        name_len: u32::try_from(state.name.len()).expect("at most NODE_NAME_BYTES_MAX"),
    };
    let body = [fixed.as_bytes(), history.as_bytes(), state.name.as_bytes()].concat();
    let body_len = u32::try_from(body.len()).expect("a slot is 128 KiB");
    let (magic, version) = (STATE_MAGIC, STATE_VERSION);
    let mut head = SlotHead { magic, version, body_len, sequence, checksum: 0 };
    head.checksum = checksum(&head, &body);
    [head.as_bytes(), &body].concat()
}

fn decode(slot: &Slot) -> Result<NodeState, &'static str> {
    let (fixed, rest) = StateBody::read_from_prefix(&slot.body).map_err(|_| "length")?;
    let history_bytes = (fixed.history_entries as usize).checked_mul(size_of::<EpochStart>());
    let (history, name) =
        rest.split_at_checked(history_bytes.ok_or("history")?).ok_or("history length")?;
    let entries: Result<Vec<EpochStart>, _> =
        history.chunks_exact(size_of::<EpochStart>()).map(EpochStart::read_from_bytes).collect();
    let entries = entries.map_err(|_| "history entry")?;
    if name.len() != fixed.name_len as usize || name.len() > NODE_NAME_BYTES_MAX {
        return Err("name length");
    }
    if fixed.flags & !FLAGS != 0 {
        return Err("flags");
    }
    Ok(NodeState {
        role: match fixed.role {
            1 => Role::Primary,
            2 => Role::Replica,
            _ => return Err("role"),
        },
        promoted: fixed.flags & FLAG_PROMOTED != 0,
        log_id: fixed.log_id,
        node_id: fixed.node_id,
        incarnation: fixed.incarnation,
        name: std::str::from_utf8(name).map_err(|_| "name")?.to_owned(),
        epoch_highest: fixed.epoch_highest,
        history: EpochHistory::from_entries(entries).ok_or("epoch history out of order")?,
        checkpoint: (fixed.checkpoint_lsn != Lsn::ZERO).then_some(Checkpoint {
            lsn: fixed.checkpoint_lsn,
            chain: fixed.checkpoint_chain,
            epoch: fixed.checkpoint_epoch,
        }),
        checkpoint_is_end: fixed.flags & FLAG_CHECKPOINT_IS_END != 0,
        committed: fixed.committed,
        table_durable: TableDurable {
            lsn: fixed.table_durable_lsn,
            row_count: fixed.table_row_count,
        },
        segment_bytes: fixed.segment_bytes,
        frame_body_bytes_max: fixed.frame_body_bytes_max,
        sequence: slot.head.sequence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::MemoryDisk;

    fn state() -> NodeState {
        let mut state = NodeState::new(Role::Replica, 7, 9, "north");
        let epoch = Epoch { counter: 3, node_id: 1, nonce: 5 };
        state.log_id = LogId([1, 2]);
        state.epoch_highest = Epoch { counter: 4, ..epoch };
        assert!(state.history.push(epoch, Lsn(4096)));
        state.checkpoint = Some(Checkpoint { lsn: Lsn(8192), chain: 77, epoch });
        state.committed = Lsn(8000);
        state.table_durable = TableDurable { lsn: Lsn(4096), row_count: 12 };
        (state.segment_bytes, state.frame_body_bytes_max) = (65536, 4096);
        state
    }

    #[test]
    fn a_stored_state_comes_back_whole() {
        let disk = MemoryDisk::new();
        assert_eq!(NodeState::load(&disk).unwrap(), None);
        let mut state = state();
        state.store(&disk).unwrap();
        assert_eq!(NodeState::load(&disk).unwrap(), Some(state.clone()));
        for counter in 1..=EpochHistory::ENTRIES_MAX as u64 + 9 {
            let epoch = Epoch { counter: 10 + counter, node_id: 1, nonce: 1 };
            state.history.push(epoch, Lsn(8192 + counter));
        }
        state.checkpoint = None;
        state.name = "n".repeat(NODE_NAME_BYTES_MAX);
        (state.promoted, state.checkpoint_is_end) = (true, true);
        state.store(&disk).unwrap();
        assert_eq!(NodeState::load(&disk).unwrap(), Some(state));
        assert_eq!(disk.list().unwrap().len(), 1);
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_state_before_or_after() {
        for stores in [1, 2] {
            let disk = MemoryDisk::new();
            let mut before = state();
            (0..stores).for_each(|_| before.store(&disk).unwrap());
            let mut after = before.clone();
            after.epoch_highest.counter = 99;
            let fork = disk.fork();
            after.store(&fork).unwrap();
            let (old, new) = (&disk.contents()[STATE_FILE], &fork.contents()[STATE_FILE]);
            let first = (0..old.len()).find(|at| old[*at] != new[*at]).unwrap();
            let last = (0..old.len()).rfind(|at| old[*at] != new[*at]).unwrap();
            for cut in first..=last + 1 {
                let torn = [&new[..cut], &old[cut..]].concat();
                disk.put(STATE_FILE, &torn);
                let mut loaded = NodeState::load(&disk).unwrap().unwrap();
                assert_eq!(loaded, if cut <= last { before.clone() } else { after.clone() });
                // And the next store goes to the torn slot, not over the good one.
                loaded.store(&disk).unwrap();
                let whole = NodeState::load(&disk).unwrap().unwrap();
                assert_eq!(whole.sequence, loaded.sequence);
            }
        }
    }

    #[test]
    fn power_loss_while_the_file_is_made_leaves_no_file() {
        for call in 0..3 {
            let disk = MemoryDisk::new();
            disk.lose_power_at(call, |sector| sector == 0);
            assert!(state().store(&disk).is_err());
            assert!(disk.restore_power());
            assert_eq!(NodeState::load(&disk).unwrap(), None);
            let mut again = state();
            again.store(&disk).unwrap();
            assert_eq!(NodeState::load(&disk).unwrap(), Some(again));
        }
    }

    #[test]
    fn newer_and_broken_files_are_told_apart() {
        let disk = MemoryDisk::new();
        let mut state = state();
        state.store(&disk).unwrap();
        let mut slot = encode(&state, 9);
        slot[8] = 2;
        let (mut head, body) = SlotHead::read_from_prefix(&slot).unwrap();
        head.checksum = checksum(&head, body);
        let newer = [head.as_bytes(), body].concat();
        disk.write_durable_at(STATE_FILE, 0, &newer).unwrap();
        let refused = NodeState::load(&disk).unwrap_err().to_string();
        assert!(refused.contains("newer rowship, version 2"), "{refused}");
        disk.put(STATE_FILE, &[1; 2 * STATE_SLOT_BYTES as usize]);
        assert!(matches!(NodeState::load(&disk), Err(StateError::Broken { .. })));
        disk.put(STATE_FILE, &[]);
        assert!(matches!(NodeState::load(&disk), Err(StateError::Broken { .. })));
    }
}
