//! The replica's side of the protocol: whom to follow, what to cut, what to acknowledge.

use crate::control::{SEGMENT_BYTES_LIMITS, SEGMENT_HEADER_BYTES};
use crate::frame::{FRAME_BODY_BYTES_LIMIT, LSN_LIMIT};
use crate::message::{Ack, PROTOCOL_VERSIONS, Refuse, RefuseCode, Welcome};
use crate::position::{Epoch, EpochHistory, EpochVerdict, LogId, Lsn, Nanos};
use crate::sim::{Bug, Mark, mark, planted};

/// What a replica holds when it judges a welcome.
#[derive(Clone, Debug)]
pub struct Holdings<'a> {
    /// Its log, or [`LogId::NONE`].
    pub log_id: LogId,
    /// Highest epoch it has ever seen.
    pub highest_epoch: Epoch,
    /// Its epoch history.
    pub history: &'a EpochHistory,
    /// End of its log.
    pub end: Lsn,
    /// What its table holds; never cut below this.
    pub applied: Lsn,
}

/// A welcome that may be followed, and what must be done, in this order, before `Ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The directory is new: it takes this log for its own.
    pub adopt_log: bool,
    /// Persist this epoch as the highest seen.
    pub persist_epoch: bool,
    /// Cut the log to here.
    pub cut_to: Option<Lsn>,
}

impl Holdings<'_> {
    /// Judges a primary's welcome. The chain value at `resume` is the caller's to compare: it
    /// needs the log.
    ///
    /// # Errors
    /// The refusal to send; the caller also reports it, since its operator must act.
    pub fn judge(&self, welcome: &Welcome) -> Result<Follow, Refuse> {
        self.check_form(welcome)?;
        let adopt_log = self.log_id == LogId::NONE;
        if !adopt_log && self.log_id != welcome.log_id {
            let text = format!(
                "this replica holds log {}, the primary writes log {}",
                self.log_id, welcome.log_id
            );
            return Err(refuse(RefuseCode::OtherLog, text));
        }
        let persist_epoch = match self.highest_epoch.judge(&welcome.epoch) {
            EpochVerdict::Newer => true,
            EpochVerdict::Same => false,
            EpochVerdict::Older if planted(Bug::AcceptOldEpoch) => false,
            EpochVerdict::Forked => {
                mark(Mark::ForkedEpochRefused);
                let text = format!(
                    "the primary's epoch {} has the counter of {}, which this replica followed \
                     before: one primary's data directory is a copy or was restored from one",
                    welcome.epoch, self.highest_epoch
                );
                return Err(refuse(RefuseCode::ForkedEpoch, text));
            }
            EpochVerdict::Older => {
                let text = format!(
                    "the primary's epoch {} is over: this replica has seen {}",
                    welcome.epoch, self.highest_epoch
                );
                return Err(refuse(RefuseCode::StalePrimary, text));
            }
        };
        let fresh = self.history.entries().is_empty();
        if !fresh && welcome.resume > self.end {
            let text =
                format!("asked to resume at {} with a log up to {}", welcome.resume, self.end);
            return Err(refuse(RefuseCode::Protocol, text));
        }
        if welcome.resume < self.applied {
            mark(Mark::DivergedRefused);
            let text = format!(
                "the primary's log and this replica's part at LSN {}, below what is applied here \
                 ({}): committed rows differ; seed this replica anew",
                welcome.resume, self.applied
            );
            return Err(refuse(RefuseCode::Diverged, text));
        }
        // Both know the histories, so both must come to the same place. Where the primary's present
        // reign is the newest that both know, it has all that this replica has of it.
        let common = welcome.history.common_end(Lsn(u64::MAX), self.history, self.end);
        if !fresh && common != Some(welcome.resume) {
            let text = format!(
                "asked to resume at {}, which is not where the histories of both logs part",
                welcome.resume
            );
            return Err(refuse(RefuseCode::Protocol, text));
        }
        let cut_to = (!fresh && welcome.resume < self.end).then_some(welcome.resume);
        Ok(Follow { adopt_log, persist_epoch, cut_to })
    }

    fn check_form(&self, welcome: &Welcome) -> Result<(), Refuse> {
        if welcome.version < PROTOCOL_VERSIONS.0 || welcome.version > PROTOCOL_VERSIONS.1 {
            let text = format!("protocol version {} is not spoken here", welcome.version);
            return Err(refuse(RefuseCode::Version, text));
        }
        let (base, bytes) = welcome.segment;
        let segment_fits = base.0 <= LSN_LIMIT
            && (SEGMENT_BYTES_LIMITS.0..=SEGMENT_BYTES_LIMITS.1).contains(&bytes)
            && bytes.is_multiple_of(SEGMENT_HEADER_BYTES)
            && base.0.is_multiple_of(SEGMENT_HEADER_BYTES)
            && welcome.resume >= base.plus(SEGMENT_HEADER_BYTES)
            && welcome.resume.since(base) < bytes;
        let sizes_fit = welcome.resume.0 <= LSN_LIMIT
            && welcome.resume.0.is_multiple_of(8)
            && welcome.frame_body_bytes_max <= FRAME_BODY_BYTES_LIMIT as u64
            && welcome.frame_body_bytes_max > 0
            && welcome.frame_body_bytes_max <= bytes / 4;
        let epoch_fits = welcome.log_id != LogId::NONE && welcome.history.epoch() == welcome.epoch;
        if segment_fits && sizes_fit && epoch_fits {
            Ok(())
        } else {
            let text = "the welcome contradicts itself".to_owned();
            Err(refuse(RefuseCode::Protocol, text))
        }
    }
}

fn refuse(code: RefuseCode, text: String) -> Refuse {
    Refuse { code, lsn: Lsn::ZERO, text }
}

/// A replica's positions on one link and when each moved last, for its acks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    received: (Lsn, Nanos),
    durable: (Lsn, Nanos),
    applied: (Lsn, Nanos),
    visible: (Lsn, Nanos),
}

impl Progress {
    /// At the start of a stream: everything below `resume` is durable.
    #[must_use]
    pub fn new(now: Nanos, resume: Lsn, visible: Lsn) -> Progress {
        let (resume, visible) = ((resume, now), (visible, now));
        Progress { received: resume, durable: resume, applied: visible, visible }
    }

    /// Verified up to `lsn`.
    pub fn received(&mut self, now: Nanos, lsn: Lsn) {
        assert!(lsn >= self.received.0);
        self.received = (lsn, now);
    }

    /// Durable up to `lsn`; keeps its time when that is nothing new.
    pub fn durable(&mut self, now: Nanos, lsn: Lsn) {
        assert!(lsn <= self.received.0);
        if lsn > self.durable.0 {
            self.durable = (lsn, now);
        }
    }

    /// Applied and visible up to these; unchanged ones keep their time.
    pub fn visible(&mut self, now: Nanos, applied: Lsn, visible: Lsn) {
        assert!(visible <= applied && applied <= self.received.0);
        if applied > self.applied.0 {
            self.applied = (applied, now);
        }
        if visible > self.visible.0 {
            self.visible = (visible, now);
        }
    }

    /// The ack to send now.
    #[must_use]
    pub fn ack(&self, now: Nanos) -> Ack {
        let age = |position: (Lsn, Nanos)| now.saturating_sub(position.1);
        Ack {
            received: self.received.0,
            durable: self.durable.0,
            applied: self.applied.0,
            visible: self.visible.0,
            received_age_ns: age(self.received),
            durable_age_ns: age(self.durable),
            applied_age_ns: age(self.applied),
            visible_age_ns: age(self.visible),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node_id: 1, nonce: counter }
    }

    fn history(starts: &[(u64, u64)]) -> EpochHistory {
        let mut history = EpochHistory::default();
        for &(counter, start) in starts {
            history.push(epoch(counter), Lsn(start));
        }
        history
    }

    fn welcome(resume: u64) -> Welcome {
        let history = history(&[(1, 4096), (3, 8000)]);
        Welcome {
            version: 1,
            log_id: LogId([1, 1]),
            node_id: 1,
            epoch: history.epoch(),
            resume: Lsn(resume),
            resume_chain: 5,
            segment: (Lsn(0), 65536),
            frame_body_bytes_max: 4096,
            committed: Lsn(9000),
            heartbeat_ms: 500,
            peer_timeout_ms: 5000,
            wants_received: false,
            history,
            client_address: String::new(),
        }
    }

    fn judge(end: u64, applied: u64, welcome: &Welcome) -> Result<Follow, RefuseCode> {
        let history = history(&[(1, 4096), (2, 8000)]);
        let holdings = Holdings {
            log_id: LogId([1, 1]),
            highest_epoch: epoch(2),
            history: &history,
            end: Lsn(end),
            applied: Lsn(applied),
        };
        holdings.judge(welcome).map_err(|refused| refused.code)
    }

    #[test]
    fn an_uncommitted_tail_is_cut_and_the_new_epoch_persisted() {
        let follow = Follow { adopt_log: false, persist_epoch: true, cut_to: Some(Lsn(8000)) };
        assert_eq!(judge(8800, 7000, &welcome(8000)), Ok(follow));
    }

    #[test]
    fn nothing_applied_is_ever_cut() {
        assert_eq!(judge(8800, 8400, &welcome(8000)), Err(RefuseCode::Diverged));
    }

    #[test]
    fn stale_and_forked_primaries_are_refused() {
        let mut stale = welcome(8000);
        stale.history = history(&[(1, 4096)]);
        stale.epoch = epoch(1);
        assert_eq!(judge(8800, 0, &stale), Err(RefuseCode::StalePrimary));
        let mut forked = welcome(8000);
        let twin = Epoch { nonce: 99, ..epoch(2) };
        forked.history = history(&[(1, 4096)]);
        forked.history.push(twin, Lsn(8000));
        forked.epoch = twin;
        assert_eq!(judge(8800, 0, &forked), Err(RefuseCode::ForkedEpoch));
    }

    #[test]
    fn contradictory_welcomes_are_refused() {
        let bend = |change: &dyn Fn(&mut Welcome)| {
            let mut bent = welcome(8000);
            change(&mut bent);
            judge(8800, 0, &bent)
        };
        assert_eq!(bend(&|w| w.segment.1 = u64::MAX), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.segment.0 = Lsn(!4095)), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.resume = Lsn(9000)), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.frame_body_bytes_max = 0), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.segment.1 = 65_544), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.resume = Lsn(7000)), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.epoch = epoch(9)), Err(RefuseCode::Protocol));
        assert_eq!(bend(&|w| w.log_id = LogId([3, 3])), Err(RefuseCode::OtherLog));
    }

    #[test]
    fn a_new_directory_adopts_the_log() {
        let history = EpochHistory::default();
        let holdings = Holdings {
            log_id: LogId::NONE,
            highest_epoch: Epoch::NONE,
            history: &history,
            end: Lsn::ZERO,
            applied: Lsn::ZERO,
        };
        let follow = Follow { adopt_log: true, persist_epoch: true, cut_to: None };
        assert_eq!(holdings.judge(&welcome(4096)), Ok(follow));
    }

    #[test]
    fn acks_carry_how_long_ago_each_position_moved() {
        let mut progress = Progress::new(10, Lsn(4096), Lsn(4096));
        progress.received(20, Lsn(5000));
        progress.durable(30, Lsn(5000));
        progress.visible(35, Lsn(4096), Lsn(4096));
        let ack = progress.ack(40);
        assert_eq!((ack.received_age_ns, ack.durable_age_ns, ack.visible_age_ns), (20, 10, 30));
    }
}
