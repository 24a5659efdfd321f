//! What a restart finds: reads the log from its last checkpoint to its end and tells a torn tail
//! from damage. Reads only; [`mod@super::recover`] acts on it.
//!
//! Reading starts at the head of the segment that holds the checkpoint, since the dictionary and
//! the policy stand there; what lies between is verified like all the rest.
//!
//! The rule for the first frame X that does not hold. At most [`write_bytes_max`] bytes are ever
//! unsynced, in one write that starts at or before X, so nothing live can stand `write_bytes_max`
//! behind X or in a later segment: if it does, X was durable, and X is damage. X is damage as well
//! below the checkpoint, and when a whole header with right checksum and place stands at X but
//! does not continue the log, since no torn write leaves that. Otherwise the log ends at X.
//!
//! To see that nothing stands behind X, all that is left of the log's files is read. Where X is the
//! end that a clean stop has recorded, nothing was written since, and only the place of one write
//! is looked at.

use rowship_proto::control::SegmentEnd;
use rowship_proto::frame::FrameError;
use rowship_proto::sim::{Mark, mark};
use rowship_proto::verify::{StreamVerifier, first_frame};
use rowship_proto::{Epoch, EpochHistory, FRAME_HEADER_BYTES, FrameHeader, FrameKind, LogId, Lsn};

use super::node_state::{Checkpoint, NodeState};
use super::recover::{Recovered, TornTail};
use super::scan::{Found, SegmentScan, may_be_torn};
use super::seen::{Opening, Seen};
use super::segment::{
    SegmentFile, SegmentHeader, SegmentHeaderError, list_segments, segment_file_name,
};
use super::{LogError, write_bytes_max};
use crate::edge::Disk;

/// What a node knows about its log before it reads it.
#[derive(Clone, Debug)]
pub struct RecoverInput {
    /// The log.
    pub log_id: LogId,
    /// Everything below must be whole; without one, reading starts at the oldest segment.
    pub checkpoint: Option<Checkpoint>,
    /// Nothing was written behind the checkpoint: what lies further behind than one write need not
    /// be read when the log ends just there.
    pub checkpoint_is_end: bool,
    /// Epochs known so far.
    pub history: EpochHistory,
}

impl RecoverInput {
    /// As `node.state` has it.
    #[must_use]
    pub fn of(state: &NodeState) -> RecoverInput {
        RecoverInput {
            log_id: state.log_id,
            checkpoint: state.checkpoint,
            checkpoint_is_end: state.checkpoint_is_end,
            history: state.history.clone(),
        }
    }
}

/// What was found, and what is to be done about it.
pub(crate) struct Survey {
    pub recovered: Recovered,
    /// Bytes of the last segment to overwrite with zeroes: what a torn write may have left.
    pub zero: Option<(Lsn, Lsn)>,
    /// Bases of files behind the end that no continuation of this log can use.
    pub remove: Vec<Lsn>,
    /// From here on the bytes are to be written and synced again.
    pub rewrite_from: Lsn,
}

/// Reads the log.
pub(crate) fn survey<D: Disk>(disk: &D, input: &RecoverInput) -> Result<Survey, LogError> {
    let segments = list_segments(disk)?;
    if segments.is_empty() {
        return Err(LogError::NoSegments { directory: disk.path("") });
    }
    let start = start_index(disk, input, &segments)?;
    let walk = Walk::start(disk, input, &segments, start)?;
    walk.run()
}

/// The segment where reading starts: the newest at or below the checkpoint that is opened to the
/// end, so that the dictionary is whole.
fn start_index<D: Disk>(
    disk: &D,
    input: &RecoverInput,
    segments: &[SegmentFile],
) -> Result<usize, LogError> {
    let Some(checkpoint) = input.checkpoint else { return Ok(0) };
    let at_or_below = segments.partition_point(|(base, _)| first_frame(*base) <= checkpoint.lsn);
    let Some(mut index) = at_or_below.checked_sub(1) else {
        let (base, bytes) = segments[0];
        let what = format!(
            "the oldest segment starts above the checkpoint at LSN {}: segments are missing",
            checkpoint.lsn
        );
        return Err(SegmentScan::of_file(disk, base, bytes).damage(base, what));
    };
    while index > 0 && !opening_is_whole(disk, input.log_id, segments[index])? {
        index -= 1;
    }
    Ok(index)
}

fn opening_is_whole<D: Disk>(
    disk: &D,
    log_id: LogId,
    (base, bytes): SegmentFile,
) -> Result<bool, LogError> {
    let Ok(header) = SegmentHeader::read(disk, base)? else { return Ok(false) };
    let mut scan = SegmentScan::of_file(disk, base, bytes);
    let mut verifier = adopt(&mut scan, log_id, &header)?;
    let mut opening = Opening::default();
    loop {
        let Found::Frame { header, bytes, after } = scan.frame(&verifier)? else {
            return Ok(false);
        };
        opening.frame(&header, body_of(&header, bytes));
        if opening.left() == 0 {
            return Ok(true);
        }
        verifier = after;
    }
}

/// A verifier at the head of a segment, that takes the chain as it finds it.
fn adopt<D: Disk>(
    scan: &mut SegmentScan<'_, D>,
    log_id: LogId,
    header: &SegmentHeader,
) -> Result<StreamVerifier, LogError> {
    let next = header.first_frame();
    let (seed, body_max) = (log_id.seed(), body_max(header));
    let head = scan.bytes(next, FRAME_HEADER_BYTES as u64)?;
    let chain = FrameHeader::parse(head, seed, body_max).map_or(0, |first| first.chain_previous);
    // The first frame of a log follows nothing.
    let chain = if header.base == Lsn::ZERO { 0 } else { chain };
    Ok(StreamVerifier { seed, body_max, next, chain, epoch: Epoch::NONE })
}

struct Walk<'a, D> {
    disk: &'a D,
    input: &'a RecoverInput,
    segments: &'a [SegmentFile],
    header: SegmentHeader,
    scan: SegmentScan<'a, D>,
    verifier: StreamVerifier,
    seen: Seen,
    /// Whether the walk has come by the checkpoint (or there is none).
    passed: bool,
    /// What the last segment end said of the next segment, when the log ends there.
    announced: Option<u64>,
    start: Lsn,
}

impl<'a, D: Disk> Walk<'a, D> {
    fn start(
        disk: &'a D,
        input: &'a RecoverInput,
        segments: &'a [SegmentFile],
        index: usize,
    ) -> Result<Walk<'a, D>, LogError> {
        for pair in segments[..=index].windows(2) {
            let ((base, bytes), (next, _)) = (pair[0], pair[1]);
            if base.plus(bytes) != next {
                let what = format!("the segment that starts here is missing (next is {next})");
                return Err(SegmentScan::of_file(disk, base, bytes).damage(base.plus(bytes), what));
            }
        }
        let header = read_header(disk, input.log_id, segments[index])?;
        let mut scan = SegmentScan::new(disk, &header);
        let mut verifier = adopt(&mut scan, input.log_id, &header)?;
        if let Some(checkpoint) = input.checkpoint.filter(|at| at.lsn == verifier.next) {
            verifier.chain = checkpoint.chain;
            verifier.epoch = checkpoint.epoch;
        }
        let start = verifier.next;
        let seen = Seen::new(&input.history, start);
        let passed = input.checkpoint.is_none();
        let announced = None;
        Ok(Walk { disk, input, segments, header, scan, verifier, seen, passed, announced, start })
    }

    fn run(mut self) -> Result<Survey, LogError> {
        loop {
            self.check_checkpoint()?;
            let (header, body, after) = match self.scan.frame(&self.verifier)? {
                Found::Frame { header, bytes, after } => (header, body_of(&header, bytes), after),
                Found::Invalid { error, live } => {
                    let torn = self.judge(error, live)?;
                    return self.finish(true, torn);
                }
            };
            let ended = match header.kind() {
                Some(FrameKind::SegmentEnd) => SegmentEnd::parse(body, header.lsn).ok(),
                _ => None,
            };
            if let Err(error) = self.seen.frame(&header, body, &self.header) {
                return Err(self.scan.damage(header.lsn, error.to_string()));
            }
            self.verifier = after;
            if let Some(end) = ended
                && !self.enter_next(&end)?
            {
                self.check_checkpoint()?;
                self.announced = Some(end.next_segment_bytes);
                return self.finish(false, None);
            }
        }
    }

    fn check_checkpoint(&mut self) -> Result<(), LogError> {
        let Some(checkpoint) = self.input.checkpoint else { return Ok(()) };
        if self.passed || self.verifier.next < checkpoint.lsn {
            return Ok(());
        }
        let here = (self.verifier.next, self.verifier.chain);
        if here != (checkpoint.lsn, checkpoint.chain) {
            let what = format!(
                "the log is not the one of the checkpoint at LSN {} (chain {:016x}, here LSN {} \
                 with {:016x})",
                checkpoint.lsn, checkpoint.chain, here.0, here.1
            );
            return Err(self.scan.damage(self.verifier.next, what));
        }
        self.passed = true;
        Ok(())
    }

    /// Goes on in the next segment; false when its file is not there, or not usable and empty:
    /// then the log ends at the roll.
    fn enter_next(&mut self, end: &SegmentEnd) -> Result<bool, LogError> {
        let found = self.segments.iter().find(|(base, _)| *base == end.next_base);
        let usable = match found {
            None => None,
            Some(file) => {
                let read = read_header(self.disk, self.input.log_id, *file);
                let fits = |header: &SegmentHeader| header.segment_bytes == end.next_segment_bytes;
                match read {
                    Ok(header) if fits(&header) => Some(header),
                    Err(error @ (LogError::Io { .. } | LogError::Newer { .. })) => {
                        return Err(error);
                    }
                    other => {
                        let mut scan = SegmentScan::of_file(self.disk, file.0, file.1);
                        if scan.is_written(self.verifier.seed)? {
                            let what = "not the segment that the one before leads to";
                            return Err(other.err().unwrap_or_else(|| scan.damage(file.0, what)));
                        }
                        None
                    }
                }
            }
        };
        let Some(header) = usable else {
            self.check_nothing_behind(end.next_base, "its segment is missing")?;
            return Ok(false);
        };
        self.verifier.body_max = body_max(&header);
        self.header = header;
        self.scan = SegmentScan::new(self.disk, &header);
        Ok(true)
    }

    /// Decides whether the log may end where the frame does not hold; the torn tail if any.
    fn judge(&mut self, error: FrameError, live: bool) -> Result<Option<TornTail>, LogError> {
        let (at, seed) = (self.verifier.next, self.verifier.seed);
        if !may_be_torn(&error, live) {
            return Err(self.scan.refusal(at, &error));
        }
        if !self.passed {
            return Err(self.scan.damage(at, format!("{error}, below the checkpoint")));
        }
        let far = at.plus(write_bytes_max(self.header.frame_body_bytes_max));
        let residue = self.scan.find_live_frame(at.plus(8), far, seed)?.is_some();
        let nothing = !live && !residue;
        if nothing && self.is_known_end(at) {
            mark(Mark::EndKnown);
            return Ok(None);
        }
        if let Some(beyond) = self.scan.find_live_frame(far, self.scan.end(), seed)? {
            let what = format!("{error}, but a whole frame stands behind it at LSN {beyond}");
            return Err(self.scan.damage(at, what));
        }
        self.check_nothing_behind(self.header.end(), &error.to_string())?;
        if nothing {
            return Ok(None);
        }
        let end = far.min(self.scan.end());
        let bytes = self.scan.bytes(at, end.since(at))?;
        let bytes_dropped = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(Some(TornTail { at, bytes_dropped: bytes_dropped as u64, what: error }))
    }

    /// Whether the process before has recorded that it ended its log here.
    fn is_known_end(&self, at: Lsn) -> bool {
        self.input.checkpoint_is_end
            && self.input.checkpoint.is_some_and(|checkpoint| checkpoint.lsn == at)
    }

    fn check_nothing_behind(&mut self, base: Lsn, what: &str) -> Result<(), LogError> {
        for (later, bytes) in self.segments.iter().filter(|(later, _)| *later >= base) {
            let mut scan = SegmentScan::of_file(self.disk, *later, *bytes);
            if scan.is_written(self.verifier.seed)? {
                let what = format!("{what}, but the later segment {later} has frames");
                return Err(self.scan.damage(self.verifier.next, what));
            }
        }
        Ok(())
    }

    /// `in_segment`: whether the end lies in the segment being read, or in one yet to be made.
    fn finish(mut self, in_segment: bool, torn: Option<TornTail>) -> Result<Survey, LogError> {
        let end = self.verifier.next;
        if !self.passed {
            let what = "the log ends below its checkpoint";
            return Err(self.scan.damage(self.header.end(), what));
        }
        self.check_oldest()?;
        let zero = if in_segment { self.residue(end)? } else { None };
        let (kept, remove) = self.sort_out()?;
        let checkpoint = self.input.checkpoint;
        self.seen.settle();
        self.seen.history.cut(end);
        let seen = self.seen;
        let recovered = Recovered {
            end,
            chain: self.verifier.chain,
            epoch: self.verifier.epoch,
            history: seen.history,
            tables: seen.tables.into_iter().collect(),
            committed: seen.committed,
            clock: seen.clock,
            policy: seen.policy,
            opening_left: seen.opening.left(),
            torn,
            oldest: first_frame(self.segments[0].0),
            active: in_segment.then_some(self.header),
            next_segment_bytes: self.announced,
            last: self.header,
            segments: kept,
            frames_read: seen.frames,
            bytes_read: end.since(self.start),
        };
        let rewrite_from = checkpoint.map_or(self.start, |at| at.lsn.max(self.start));
        Ok(Survey { recovered, zero, remove, rewrite_from })
    }

    /// Retiring always leaves a segment that was opened to its end long ago. Where the oldest is
    /// not even that, those before it are missing, and with them all that the log said.
    fn check_oldest(&self) -> Result<(), LogError> {
        let (oldest, bytes) = self.segments[0];
        let only = self.header.base == oldest && oldest > Lsn::ZERO;
        if only && (self.seen.frames == 0 || self.seen.opening.left() > 0) {
            let what = "the oldest segment is not opened to its end: those before it are missing";
            return Err(SegmentScan::of_file(self.disk, oldest, bytes).damage(oldest, what));
        }
        Ok(())
    }

    /// The range behind the end that a write in flight may have touched, if it is not zero.
    fn residue(&mut self, end: Lsn) -> Result<Option<(Lsn, Lsn)>, LogError> {
        let far = end.plus(write_bytes_max(self.header.frame_body_bytes_max)).min(self.scan.end());
        let bytes = self.scan.bytes(end, far.since(end))?;
        Ok(bytes.iter().any(|byte| *byte != 0).then_some((end, far)))
    }

    /// Segments to keep: all up to the last that was read, and prepared ones that continue it.
    fn sort_out(&self) -> Result<(Vec<SegmentFile>, Vec<Lsn>), LogError> {
        let (mut kept, mut remove) = (Vec::new(), Vec::new());
        let mut expected = self.header.end();
        for file in self.segments {
            let prepared = file.0 > self.header.base;
            let usable = || match read_header(self.disk, self.input.log_id, *file) {
                Err(LogError::Damage { .. }) => Ok(false),
                other => other.map(|_| true),
            };
            if prepared && !(file.0 == expected && usable()?) {
                remove.push(file.0);
                continue;
            }
            if prepared {
                expected = file.0.plus(file.1);
            }
            kept.push(*file);
        }
        Ok((kept, remove))
    }
}

pub(crate) fn body_of<'b>(header: &FrameHeader, frame: &'b [u8]) -> &'b [u8] {
    &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize]
}

fn body_max(header: &SegmentHeader) -> usize {
    usize::try_from(header.frame_body_bytes_max).expect("at most 16 MiB")
}

/// The header page of a segment file that must belong to this log.
fn read_header<D: Disk>(
    disk: &D,
    log_id: LogId,
    (base, bytes): SegmentFile,
) -> Result<SegmentHeader, LogError> {
    let what = match SegmentHeader::read(disk, base)? {
        Ok(header) if header.log_id != log_id => format!("belongs to the log {}", header.log_id),
        Ok(header) if header.segment_bytes != bytes => {
            format!("the file has {bytes} bytes, its header says {}", header.segment_bytes)
        }
        Ok(header) => return Ok(header),
        Err(error @ SegmentHeaderError::Newer(_)) => {
            let segment = disk.path(&segment_file_name(base));
            return Err(LogError::Newer { segment, lsn: base, what: error.to_string() });
        }
        Err(error) => error.to_string(),
    };
    let segment = disk.path(&segment_file_name(base));
    Err(LogError::Damage { segment, offset: 0, lsn: base, what })
}
