//! Names of places in the log: [`Lsn`], [`Epoch`], [`Position`], and the [`EpochHistory`] by which
//! positions of different epochs are compared.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Monotonic time in nanoseconds since an arbitrary start of this process; never compared between
/// machines.
pub type Nanos = u64;

/// A byte offset in the endless log. Frames start at multiples of eight.
///
/// Segment header pages take part in the numbering, so the byte at LSN `l` of a segment with base
/// `b` is at file offset `l - b`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Below every byte of every log.
    pub const ZERO: Lsn = Lsn(0);

    /// The LSN `bytes` further on; panics on overflow of 64 bits, which 500 years of 1 GB/s do
    /// not reach: hostile values are range-checked before they get here.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0.checked_add(bytes).expect("an LSN stays below 2^64"))
    }

    /// Bytes from `base` to here, zero when `base` is further on.
    #[must_use]
    pub fn since(self, base: Lsn) -> u64 {
        self.0.saturating_sub(base.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// 128-bit name of a log, drawn at random when a primary makes its data directory.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct LogId(pub [u64; 2]);

impl LogId {
    /// "No log yet": what a new replica sends.
    pub const NONE: LogId = LogId([0, 0]);

    /// Seed of all checksums and key hashes of this log: no client can plant a frame in a value,
    /// or choose keys that share one lane, without knowing it.
    #[must_use]
    pub fn seed(self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.as_bytes())
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0[0], self.0[1])
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One reign of one writer. Ordered by `counter`; two epochs with one counter and different
/// writers or nonces are a fork and are never ordered: receivers refuse the second.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Epoch {
    /// Grows at every start of a primary and at every promotion; 0 is "none yet".
    pub counter: u64,
    /// Node id of the writer.
    pub node_id: u64,
    /// Random; tells apart two writers that both believe to be next.
    pub nonce: u64,
}

impl Epoch {
    /// Before the first epoch of a log.
    pub const NONE: Epoch = Epoch { counter: 0, node_id: 0, nonce: 0 };

    /// How a receiver that has seen `self` as its highest must take `offered`.
    #[must_use]
    pub fn judge(&self, offered: &Epoch) -> EpochVerdict {
        if offered.counter > self.counter {
            EpochVerdict::Newer
        } else if offered == self {
            EpochVerdict::Same
        } else if offered.counter == self.counter {
            EpochVerdict::Forked
        } else {
            EpochVerdict::Older
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}-{:016x}", self.counter, self.node_id, self.nonce)
    }
}

/// The answer of [`Epoch::judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochVerdict {
    /// Higher counter: persist it, then go on.
    Newer,
    /// The very same reign.
    Same,
    /// Equal counter, other writer or nonce: two directories claim one epoch. Refuse.
    Forked,
    /// Lower counter: a writer whose reign is over. Refuse.
    Older,
}

/// A place in the log that can be compared across failovers: "`lsn`, as written in the reign of
/// `epoch`". Clients hold it as a token, spelled `counter-node-nonce:lsn` (see `Display`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The reign that wrote the byte just below `lsn`.
    pub epoch: Epoch,
    /// End of the bytes meant.
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.lsn)
    }
}

impl std::str::FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Position, InvalidPosition> {
        let parse = || -> Option<Position> {
            let (epoch, lsn) = text.split_once(':')?;
            let mut parts = epoch.split('-');
            let counter = parts.next()?.parse().ok()?;
            let node_id = u64::from_str_radix(parts.next()?, 16).ok()?;
            let nonce = u64::from_str_radix(parts.next()?, 16).ok()?;
            if parts.next().is_some() {
                return None;
            }
            let lsn = Lsn(lsn.parse().ok()?);
            Some(Position { epoch: Epoch { counter, node_id, nonce }, lsn })
        };
        parse().ok_or(InvalidPosition)
    }
}

/// A token that does not spell a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position token (expected counter-node-nonce:lsn, as ROWSHIP.POSITION prints it)")]
pub struct InvalidPosition;

/// Where each epoch starts. Kept by every node, in `node.state` and at the head of every segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochHistory {
    entries: Vec<EpochStart>,
}

/// One line of an [`EpochHistory`]: the epoch and the LSN of its epoch-start frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EpochStart {
    /// The reign.
    pub epoch: Epoch,
    /// Its first byte.
    pub start: Lsn,
}

/// Where a position stands in a history; the answer of [`EpochHistory::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// The history contains it: it is comparable by LSN with positions of this node.
    OnHistory,
    /// Its bytes were cut, or belong to a reign this history never had.
    Lost,
    /// Its epoch is newer than all this node knows: cannot tell yet.
    Unknown,
}

impl EpochHistory {
    /// More than this are forgotten, oldest first (a start of a primary each; 64 KiB per slot of
    /// `node.state`). A position of a forgotten epoch is answered as lost.
    pub const ENTRIES_MAX: usize = 1024;

    /// From entries in order of counter and start; `None` when they are out of order.
    #[must_use]
    pub fn from_entries(entries: Vec<EpochStart>) -> Option<EpochHistory> {
        let ordered = entries.windows(2).all(|pair| {
            pair[0].epoch.counter < pair[1].epoch.counter && pair[0].start <= pair[1].start
        });
        (ordered && entries.len() <= Self::ENTRIES_MAX).then_some(EpochHistory { entries })
    }

    /// All entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The newest entry.
    #[must_use]
    pub fn last(&self) -> Option<&EpochStart> {
        self.entries.last()
    }

    /// The newest epoch, or [`Epoch::NONE`].
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.entries.last().map_or(Epoch::NONE, |entry| entry.epoch)
    }

    /// Adds a reign; entries that start at or above `start` were cut and are dropped first.
    /// Returns false, and changes nothing, when `epoch` is not newer than what remains.
    pub fn push(&mut self, epoch: Epoch, start: Lsn) -> bool {
        let keep = self.entries.partition_point(|entry| entry.start < start);
        if keep > 0 && self.entries[keep - 1].epoch.counter >= epoch.counter {
            return false;
        }
        self.entries.truncate(keep);
        self.entries.push(EpochStart { epoch, start });
        if self.entries.len() > Self::ENTRIES_MAX {
            self.entries.remove(0);
        }
        true
    }

    /// Forgets reigns that start at or above `end`: their bytes have been cut.
    pub fn cut(&mut self, end: Lsn) {
        self.entries.retain(|entry| entry.start < end);
    }

    /// The epoch that wrote the byte just below `lsn`.
    #[must_use]
    pub fn epoch_below(&self, lsn: Lsn) -> Epoch {
        let after = self.entries.partition_point(|entry| entry.start < lsn);
        if after == 0 { Epoch::NONE } else { self.entries[after - 1].epoch }
    }

    /// Where `position` stands, when this node's log ends at `end`.
    #[must_use]
    pub fn locate(&self, position: &Position) -> Located {
        let Some(index) = self.entries.iter().position(|entry| entry.epoch == position.epoch)
        else {
            let newer = position.epoch.counter > self.epoch().counter;
            return if newer { Located::Unknown } else { Located::Lost };
        };
        let reign_end = self.entries.get(index + 1).map_or(Lsn(u64::MAX), |next| next.start);
        if position.lsn > self.entries[index].start && position.lsn <= reign_end {
            Located::OnHistory
        } else {
            Located::Lost
        }
    }

    /// The highest LSN up to which a log with history `other` that ends at `other_end` can be the
    /// same as this one that ends at `end`; `None` when they share no reign. The rule is that of
    /// Kafka's KIP-101: the newest reign both know, up to where the first of both left it.
    #[must_use]
    pub fn common_end(&self, end: Lsn, other: &EpochHistory, other_end: Lsn) -> Option<Lsn> {
        let reign_end = |history: &EpochHistory, index: usize, log_end: Lsn| {
            history.entries.get(index + 1).map_or(log_end, |next| next.start.min(log_end))
        };
        for (mine_index, mine) in self.entries.iter().enumerate().rev() {
            if let Some(their_index) = other.entries.iter().position(|theirs| theirs == mine) {
                let mine_end = reign_end(self, mine_index, end);
                let their_end = reign_end(other, their_index, other_end);
                return Some(mine_end.min(their_end));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node_id: 7, nonce: counter * 10 }
    }

    fn history(starts: &[(u64, u64)]) -> EpochHistory {
        let mut history = EpochHistory::default();
        for &(counter, start) in starts {
            assert!(history.push(epoch(counter), Lsn(start)));
        }
        history
    }

    #[test]
    fn tokens_round_trip_through_text() {
        let position = Position { epoch: epoch(3), lsn: Lsn(4096) };
        assert_eq!(position.to_string().parse(), Ok(position));
        assert!("3:x".parse::<Position>().is_err());
        assert!("3-1-2-3:4".parse::<Position>().is_err());
    }

    #[test]
    fn equal_counter_with_another_nonce_is_a_fork() {
        let mine = epoch(4);
        assert_eq!(mine.judge(&mine), EpochVerdict::Same);
        assert_eq!(mine.judge(&Epoch { nonce: 1, ..mine }), EpochVerdict::Forked);
        assert_eq!(mine.judge(&epoch(3)), EpochVerdict::Older);
        assert_eq!(mine.judge(&epoch(5)), EpochVerdict::Newer);
    }

    #[test]
    fn token_of_a_cut_tail_is_lost_not_reached() {
        let history = history(&[(1, 4096), (2, 8000)]);
        let at = |counter, lsn| Position { epoch: epoch(counter), lsn: Lsn(lsn) };
        assert_eq!(history.locate(&at(1, 8000)), Located::OnHistory);
        assert_eq!(history.locate(&at(1, 8008)), Located::Lost);
        assert_eq!(history.locate(&at(2, 9000)), Located::OnHistory);
        assert_eq!(history.locate(&at(3, 100)), Located::Unknown);
        let forked = Position { epoch: Epoch { nonce: 99, ..epoch(2) }, lsn: Lsn(9000) };
        assert_eq!(history.locate(&forked), Located::Lost);
    }

    #[test]
    fn common_end_is_where_the_first_left_the_newest_shared_reign() {
        let primary = history(&[(1, 4096), (3, 8000)]);
        let replica = history(&[(1, 4096), (2, 9000)]);
        assert_eq!(primary.common_end(Lsn(20000), &replica, Lsn(9500)), Some(Lsn(8000)));
        let behind = history(&[(1, 4096)]);
        assert_eq!(primary.common_end(Lsn(20000), &behind, Lsn(5000)), Some(Lsn(5000)));
        assert_eq!(primary.common_end(Lsn(20000), &history(&[(9, 4096)]), Lsn(5000)), None);
    }

    #[test]
    fn a_cut_forgets_reigns_above_it() {
        let mut history = history(&[(1, 4096), (2, 9000)]);
        history.cut(Lsn(9000));
        assert_eq!(history.epoch(), epoch(1));
        assert!(!history.push(epoch(1), Lsn(9000)));
        assert!(history.push(epoch(3), Lsn(9000)));
        assert_eq!(history.epoch_below(Lsn(9000)), epoch(1));
        assert_eq!(history.epoch_below(Lsn(9001)), epoch(3));
    }
}
