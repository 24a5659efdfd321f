//! What frames say while a log is read: epochs, tables, policy, positions.

use std::collections::BTreeMap;

use rowship_proto::control::{
    AckPolicyChanged, EpochHistoryPart, EpochStarted, SegmentStart, TableDefinitions, read_whole,
    read_with_text,
};
use rowship_proto::frame::{FLAG_REPEAT, FrameError};
use rowship_proto::hlc::Hlc;
use rowship_proto::row::{TableId, transactions};
use rowship_proto::{Epoch, EpochHistory, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};

use super::segment::SegmentHeader;

/// What the frames say, collected.
pub(super) struct Seen {
    pub(super) history: EpochHistory,
    pub(super) tables: BTreeMap<TableId, Vec<u8>>,
    pub(super) committed: Lsn,
    pub(super) clock: Hlc,
    pub(super) policy: Option<(AckPolicyChanged, String)>,
    pub(super) opening: Opening,
    pub(super) frames: u64,
    /// The epoch being read, and its first frame that was read.
    pub(super) reign: Option<(Epoch, Lsn)>,
}

/// How far a segment's opening has come: its repeats, all of them, one right behind the other. A
/// reign that found them cut short writes all of them again.
#[derive(Default)]
pub(super) struct Opening {
    repeats: u64,
    left: u64,
}

impl Opening {
    /// The next frame of the segment. A hostile count only keeps the opening from being whole.
    pub(super) fn frame(&mut self, header: &FrameHeader, body: &[u8]) {
        if header.kind() == Some(FrameKind::SegmentStart) {
            let start = read_whole::<SegmentStart>(body, "segment start");
            self.repeats = start.map_or(0, |start| start.repeat_frames);
            self.left = self.repeats;
        } else if header.flags & FLAG_REPEAT != 0 {
            self.left = self.left.saturating_sub(1);
        } else if self.left > 0 {
            self.left = self.repeats;
        }
    }

    /// Repeats that are missing.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

impl Seen {
    pub(super) fn new(history: &EpochHistory, start: Lsn) -> Seen {
        let mut history = history.clone();
        // What starts in the bytes that are read is told by them, not by what was known.
        history.cut(start);
        Seen {
            history,
            tables: BTreeMap::new(),
            committed: Lsn::ZERO,
            clock: Hlc::default(),
            policy: None,
            opening: Opening::default(),
            frames: 0,
            reign: None,
        }
    }

    pub(super) fn frame(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        segment: &SegmentHeader,
    ) -> Result<(), FrameError> {
        self.frames += 1;
        self.committed = self.committed.max(header.committed);
        if self.reign.is_none_or(|(epoch, _)| epoch != header.epoch) {
            // A reign may have ended with nothing but a segment's start.
            self.settle();
            self.reign = Some((header.epoch, header.lsn));
        }
        self.opening.frame(header, body);
        let repeat = header.flags & FLAG_REPEAT != 0;
        if !repeat && header.kind() != Some(FrameKind::SegmentStart) {
            // Repeats may still say that this epoch started before the bytes that are read.
            self.settle();
        }
        match header.kind() {
            Some(FrameKind::Rows) => {
                let body_lsn = header.lsn.plus(FRAME_HEADER_BYTES as u64);
                for transaction in transactions(body, body_lsn) {
                    self.clock = self.clock.max(transaction?.header.clock);
                }
            }
            Some(FrameKind::SegmentStart) => {
                let start = read_whole::<SegmentStart>(body, "segment start")?;
                let said = (start.log_id, start.base, start.segment_bytes);
                if said != (segment.log_id, segment.base, segment.segment_bytes) {
                    return Err(FrameError::Body("segment start differs from its header page"));
                }
            }
            Some(FrameKind::TableDefine) => self.define(body)?,
            Some(FrameKind::EpochHistory) => self.remember(body)?,
            Some(FrameKind::AckPolicy) => {
                let (changed, text) = read_with_text::<AckPolicyChanged>(body, "ack policy")?;
                self.policy = Some((changed, text.to_owned()));
            }
            Some(FrameKind::EpochStart) => {
                let (_, text) = read_with_text::<EpochStarted>(body, "epoch start")?;
                let changed = AckPolicyChanged { from: header.lsn, to: Lsn::ZERO, reason: 0 };
                self.policy = Some((changed, text.to_owned()));
            }
            Some(FrameKind::SegmentEnd | FrameKind::Mark) | None => {}
        }
        Ok(())
    }

    pub(super) fn define(&mut self, body: &[u8]) -> Result<(), FrameError> {
        for definition in TableDefinitions::parse(body)? {
            let known = self.tables.entry(definition.id).or_insert_with(|| definition.name.into());
            if known != definition.name {
                return Err(FrameError::Body("table number defined twice, with two names"));
            }
        }
        Ok(())
    }

    pub(super) fn remember(&mut self, body: &[u8]) -> Result<(), FrameError> {
        for entry in EpochHistoryPart::parse(body)? {
            let last = self.history.last();
            let newer = last.is_none_or(|last| entry.epoch.counter > last.epoch.counter);
            if newer && last.is_some_and(|last| entry.start < last.start) {
                return Err(FrameError::Body("epoch history out of order"));
            }
            if newer {
                self.history.push(entry.epoch, entry.start);
            }
        }
        Ok(())
    }

    /// Enters the epoch being read, unless it is known by now.
    pub(super) fn settle(&mut self) {
        if let Some((epoch, first)) = self.reign
            && epoch.counter > self.history.epoch().counter
        {
            self.history.push(epoch, first);
        }
    }
}

#[cfg(test)]
mod tests {
    use rowship_proto::LogId;
    use rowship_proto::frame::{Seal, sealed_frame};
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn an_opening_is_whole_when_all_repeats_stand_in_one_row() {
        let start = SegmentStart {
            log_id: LogId([1, 2]),
            base: Lsn::ZERO,
            segment_bytes: 64 << 10,
            frame_body_bytes_max: 4096,
            repeat_frames: 3,
        };
        let seal = Seal::first(start.log_id, Epoch { counter: 1, node_id: 1, nonce: 1 });
        let header = |kind, flags| sealed_frame(kind, flags, Lsn(4096), b"", &seal).0;
        let mut opening = Opening::default();
        let (repeat, reign) = (FrameKind::TableDefine, FrameKind::EpochStart);
        opening.frame(&header(FrameKind::SegmentStart, 0), start.as_bytes());
        let mut left = |kind, flags| {
            opening.frame(&header(kind, flags), b"");
            opening.left()
        };
        assert_eq!(left(repeat, FLAG_REPEAT), 2);
        assert_eq!(left(reign, 0), 3, "a crash: the next reign writes all of them again");
        assert_eq!(left(repeat, FLAG_REPEAT), 2);
        assert_eq!(left(repeat, FLAG_REPEAT), 1);
        assert_eq!(left(reign, 0), 3, "and a crash in the middle of that");
        assert_eq!((0..3).map(|_| left(repeat, FLAG_REPEAT)).last(), Some(0));
        assert_eq!(left(FrameKind::Rows, 0), 0);
    }

    #[test]
    fn a_reign_of_nothing_but_a_segment_start_is_kept() {
        let (log_id, body_max) = (LogId([1, 2]), 4096);
        let segment = SegmentHeader::new(log_id, Lsn::ZERO, 64 << 10, body_max);
        let epoch = |counter| Epoch { counter, node_id: 1, nonce: counter };
        let start = SegmentStart {
            log_id,
            base: Lsn::ZERO,
            segment_bytes: segment.segment_bytes,
            frame_body_bytes_max: body_max,
            repeat_frames: 1,
        };
        let previous = epoch(1);
        let started = EpochStarted { previous, inherited_committed: Lsn::ZERO };
        let seal = |counter| Seal::first(log_id, epoch(counter));
        let kind = FrameKind::SegmentStart;
        let (first, _) = sealed_frame(kind, 0, Lsn(4096), start.as_bytes(), &seal(1));
        let kind = FrameKind::EpochStart;
        let (second, _) = sealed_frame(kind, 0, first.end(), started.as_bytes(), &seal(2));
        let mut seen = Seen::new(&EpochHistory::default(), Lsn(4096));
        seen.frame(&first, start.as_bytes(), &segment).unwrap();
        seen.frame(&second, started.as_bytes(), &segment).unwrap();
        let entries: Vec<_> =
            seen.history.entries().iter().map(|at| (at.epoch, at.start)).collect();
        assert_eq!(entries, [(epoch(1), Lsn(4096)), (epoch(2), first.end())]);
    }
}
