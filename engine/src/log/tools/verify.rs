//! Reads every byte of a log and tells every place that does not hold.
//!
//! Unlike recovery it starts at the oldest segment, checks rows down to their images, and goes on
//! behind a damaged place, at the next frame that stands where it belongs.

use rowship_proto::control::SegmentEnd;
use rowship_proto::verify::{StreamVerifier, check_rows};
use rowship_proto::{Epoch, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};
use serde::Serialize;

use crate::edge::Disk;
use crate::log::scan::{Found, SegmentScan, may_be_torn};
use crate::log::segment::{SegmentFile, SegmentHeader, list_segments, segment_file_name};
use crate::log::survey::body_of;
use crate::log::{LogError, NodeState, write_bytes_max};

/// Problems after which a report stops listing them: whoever has this many needs a new disk, not
/// a longer list. They are still counted.
pub const PROBLEMS_MAX: usize = 1000;

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Frames that hold.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Segment files, prepared ones included.
    pub segments: u64,
    /// Rows in these frames.
    pub rows: u64,
    /// Transactions in these frames.
    pub transactions: u64,
    /// First frame of the oldest segment.
    pub first_lsn: u64,
    /// End of the last frame that holds: where the next one goes.
    pub end_lsn: u64,
    /// Epochs that frames were written in, in order.
    pub epochs: Vec<String>,
    /// Every damaged place, at most 1000.
    pub problems: Vec<Problem>,
    /// How many problems there are in all.
    pub problems_total: u64,
    /// What stands behind the last frame.
    pub tail: TailState,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Path of the segment file.
    pub segment: String,
    /// Offset in it, in bytes.
    pub offset: u64,
    /// The same as an LSN.
    pub lsn: u64,
    /// What does not hold.
    pub what: String,
}

/// What stands behind the last frame that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TailState {
    /// Nothing of this log.
    #[default]
    Clean,
    /// A part of a write: in flight if the node is running, torn if it is not (its next start
    /// cuts it). No damage.
    InFlight,
}

/// Verifies the log in this directory.
///
/// # Errors
/// [`LogError::NoSegments`], [`LogError::Io`]. Damage is no error but in the report.
pub fn verify<D: Disk>(disk: &D) -> Result<VerifyReport, LogError> {
    // Before anything else is read: a running node moves it on.
    let durable = checkpoint_of(disk);
    let segments = list_segments(disk)?;
    if segments.is_empty() {
        return Err(LogError::NoSegments { directory: disk.path("") });
    }
    let (report, verifier) = Default::default();
    let mut run = Run { disk, report, verifier, epoch: Epoch::NONE, durable };
    run.report.segments = segments.len() as u64;
    run.report.first_lsn = rowship_proto::verify::first_frame(segments[0].0).0;
    let log = run.log_header(&segments)?;
    if let Some(log) = log {
        run.segments(segments, &log)?;
    }
    Ok(run.report)
}

struct Run<'d, D> {
    disk: &'d D,
    report: VerifyReport,
    /// Where the stream stands; none when a problem broke it.
    verifier: Option<StreamVerifier>,
    epoch: Epoch,
    /// Everything below was durable when verification began, as far as the node has noted it.
    durable: Lsn,
}

/// The checkpoint that `node.state` knows. A state that cannot be read is not the log's damage.
fn checkpoint_of(disk: &impl Disk) -> Lsn {
    let state = NodeState::load(disk).ok().flatten();
    state.and_then(|state| state.checkpoint).map_or(Lsn::ZERO, |checkpoint| checkpoint.lsn)
}

/// Whether the file is not there (any more).
fn is_gone(error: &LogError) -> bool {
    matches!(error, LogError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

/// How the walk through one segment ended.
enum Ended {
    /// With its segment end: the stream goes on in the next one.
    Rolled(SegmentEnd),
    /// With a frame that is not there (yet), and nothing behind it.
    Tail,
    /// With a damaged place that has been reported, and nothing behind it.
    Broken,
}

impl<'d, D: Disk> Run<'d, D> {
    /// Any readable header page: it names the log, and the limits for pages that are not.
    fn log_header(&mut self, segments: &[SegmentFile]) -> Result<Option<SegmentHeader>, LogError> {
        for (base, _) in segments {
            match SegmentHeader::read(self.disk, *base) {
                Ok(Ok(header)) => return Ok(Some(header)),
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        self.problem(segments[0].0, segments[0].0, "no segment has a readable header page");
        Ok(None)
    }

    fn segments(
        &mut self,
        mut segments: Vec<SegmentFile>,
        log: &SegmentHeader,
    ) -> Result<(), LogError> {
        let seed = log.log_id.seed();
        let mut index = 0;
        while index < segments.len() {
            let (base, bytes) = segments[index];
            let walked = self.walk(base, bytes, log);
            if matches!(&walked, Err(error) if is_gone(error)) {
                // A live node may retire the oldest segments meanwhile: the log starts later.
                segments = list_segments(self.disk)?;
                if segments.first().is_some_and(|(oldest, _)| *oldest > base) {
                    self.report.first_lsn = rowship_proto::verify::first_frame(segments[0].0).0;
                    self.verifier = None;
                    index = 0;
                    continue;
                }
            }
            let (mut scan, header, mut ended) = walked?;
            // A live node may have rolled since the directory was listed.
            segments = list_segments(self.disk)?;
            self.report.segments = segments.len() as u64;
            index = segments.partition_point(|(other, _)| *other <= base);
            let next = segments.get(index).map(|(next, _)| *next);
            if let Ended::Rolled(end) = &ended
                && next == Some(end.next_base)
            {
                continue;
            }
            let written = self.first_written(&segments[index..], seed)?;
            if let (Ended::Tail, Some(_)) = (&ended, written) {
                // Read while it was written? What is behind proves that it is complete now.
                scan.reread();
                ended = self.segment(&mut scan, &header)?;
            }
            let (Some(written), Some(next)) = (written, next) else {
                if matches!(ended, Ended::Tail) {
                    self.check_checkpoint(base);
                }
                break;
            };
            if segments.first().is_some_and(|(first, _)| *first > base) {
                // It was retired meanwhile, and maybe the ones behind it: the log begins later now.
                self.verifier = None;
                continue;
            }
            let what = match ended {
                Ended::Rolled(end) if end.next_base == next => continue,
                Ended::Rolled(end) => {
                    format!("the segment {} that follows is missing", end.next_base)
                }
                Ended::Tail => format!("no frame, but the later segment {written} has frames"),
                Ended::Broken if base.plus(bytes) == next => String::new(),
                Ended::Broken => {
                    format!("the segment {} that follows is missing", base.plus(bytes))
                }
            };
            if !what.is_empty() {
                let at = self.verifier.map_or(base, |verifier| verifier.next);
                self.problem(base, at.min(base.plus(bytes)), &what);
            }
            self.verifier = None;
        }
        Ok(())
    }

    /// A log that ends below what its node knows to be durable has lost its end, even where that
    /// looks like a torn write.
    fn check_checkpoint(&mut self, base: Lsn) {
        let end = self.verifier.map_or(base, |verifier| verifier.next);
        // A replica that has cut its tail meanwhile has taken its checkpoint back.
        let durable = self.durable.min(checkpoint_of(self.disk));
        if end < durable {
            let what = format!("no frame, but the log was durable up to LSN {durable}");
            self.problem(base, end, &what);
            self.report.tail = TailState::Clean;
        }
    }

    /// Walks through one segment: its scan and header page, for a second look, and its end.
    fn walk(
        &mut self,
        base: Lsn,
        bytes: u64,
        log: &SegmentHeader,
    ) -> Result<(SegmentScan<'d, D>, SegmentHeader, Ended), LogError> {
        let header = self.header(base, bytes, log)?;
        let mut scan = SegmentScan::of_file(self.disk, base, bytes);
        let ended = self.segment(&mut scan, &header)?;
        Ok((scan, header, ended))
    }

    /// The first of these segments that has frames.
    fn first_written(&self, segments: &[SegmentFile], seed: u64) -> Result<Option<Lsn>, LogError> {
        for (base, bytes) in segments {
            if SegmentScan::of_file(self.disk, *base, *bytes).is_written(seed)? {
                return Ok(Some(*base));
            }
        }
        Ok(None)
    }

    /// The segment's header page, or what it must have been.
    fn header(
        &mut self,
        base: Lsn,
        bytes: u64,
        log: &SegmentHeader,
    ) -> Result<SegmentHeader, LogError> {
        let what = match SegmentHeader::read(self.disk, base)? {
            Ok(header) if header.log_id != log.log_id => {
                format!("belongs to the log {}", header.log_id)
            }
            Ok(header) if header.segment_bytes != bytes => {
                format!("the file has {bytes} bytes, its header says {}", header.segment_bytes)
            }
            Ok(header) => return Ok(header),
            Err(error) => error.to_string(),
        };
        self.problem(base, base, &what);
        let (segment_bytes, body_max) = (log.segment_bytes, log.frame_body_bytes_max);
        Ok(SegmentHeader::new(log.log_id, base, segment_bytes, body_max))
    }

    /// Walks from where the stream stands (or the segment's first frame) as far as frames go.
    fn segment(
        &mut self,
        scan: &mut SegmentScan<'_, D>,
        header: &SegmentHeader,
    ) -> Result<Ended, LogError> {
        let seed = header.log_id.seed();
        let body_max = usize::try_from(header.frame_body_bytes_max).expect("at most 16 MiB");
        let base = header.base;
        let mut verifier = match self.verifier {
            Some(verifier) if verifier.next >= header.first_frame() => {
                StreamVerifier { body_max, ..verifier }
            }
            _ => self.adopt(scan, header.first_frame(), seed, body_max)?,
        };
        loop {
            self.verifier = Some(verifier);
            let (error, live) = match scan.frame(&verifier)? {
                Found::Frame { header, bytes, after } => {
                    let ended = self.count(base, &header, body_of(&header, bytes), seed);
                    self.report.end_lsn = after.next.0;
                    self.verifier = Some(after);
                    if let Some(end) = ended {
                        return Ok(Ended::Rolled(end));
                    }
                    verifier = after;
                    continue;
                }
                Found::Invalid { error, live } => (error, live),
            };
            let at = verifier.next;
            let far = at.plus(write_bytes_max(header.frame_body_bytes_max));
            let beyond = scan.find_live_frame(far, scan.end(), seed)?;
            if may_be_torn(&error, live) && beyond.is_none() {
                let residue = scan.find_live_frame(at.plus(8), far, seed)?.is_some();
                let in_flight = live || residue;
                self.report.tail = if in_flight { TailState::InFlight } else { TailState::Clean };
                return Ok(Ended::Tail);
            }
            if beyond.is_some() {
                // Read while it was written? What stands behind proves that it is complete now.
                scan.reread();
                if matches!(scan.frame(&verifier)?, Found::Frame { .. }) {
                    continue;
                }
            }
            self.problem(base, at, &error.to_string());
            let Some(next) = self.behind(scan, at, live, seed, body_max)? else {
                return Ok(Ended::Broken);
            };
            verifier = next;
        }
    }

    /// Where to go on behind a frame at `at` that does not hold.
    fn behind(
        &self,
        scan: &mut SegmentScan<'_, D>,
        at: Lsn,
        live: bool,
        seed: u64,
        body_max: usize,
    ) -> Result<Option<StreamVerifier>, LogError> {
        if live {
            // The header holds: it says where the next frame is, and what chain it has.
            let parsed =
                FrameHeader::parse(scan.bytes(at, FRAME_HEADER_BYTES as u64)?, seed, body_max);
            if let Ok(header) = parsed {
                let next = header.end();
                if header.kind() != Some(FrameKind::SegmentEnd) && next < scan.end() {
                    let (chain, epoch) = (header.chain(), header.epoch);
                    return Ok(Some(StreamVerifier { seed, body_max, next, chain, epoch }));
                }
            }
        }
        match scan.find_live_frame(at.plus(8), scan.end(), seed)? {
            Some(next) => self.adopt(scan, next, seed, body_max).map(Some),
            None => Ok(None),
        }
    }

    /// A verifier at `next` that takes chain and epoch as it finds them.
    fn adopt(
        &self,
        scan: &mut SegmentScan<'_, D>,
        next: Lsn,
        seed: u64,
        body_max: usize,
    ) -> Result<StreamVerifier, LogError> {
        let head = scan.bytes(next, FRAME_HEADER_BYTES as u64)?;
        let chain =
            FrameHeader::parse(head, seed, body_max).map_or(0, |first| first.chain_previous);
        Ok(StreamVerifier { seed, body_max, next, chain, epoch: Epoch::NONE })
    }

    /// Counts a frame that holds; where it leads if it ends its segment.
    fn count(
        &mut self,
        base: Lsn,
        header: &FrameHeader,
        body: &[u8],
        seed: u64,
    ) -> Option<SegmentEnd> {
        self.report.frames += 1;
        self.report.bytes += header.frame_bytes() as u64;
        if self.epoch != header.epoch {
            self.epoch = header.epoch;
            self.report.epochs.push(header.epoch.to_string());
        }
        match header.kind() {
            Some(FrameKind::Rows) => match check_rows(header, body, seed) {
                Ok(checked) => {
                    self.report.rows += checked.rows;
                    self.report.transactions += checked.transactions;
                }
                Err(error) => self.problem(base, header.lsn, &error.to_string()),
            },
            Some(FrameKind::SegmentEnd) => return SegmentEnd::parse(body, header.lsn).ok(),
            _ => {}
        }
        None
    }

    fn problem(&mut self, base: Lsn, lsn: Lsn, what: &str) {
        self.report.problems_total += 1;
        if self.report.problems.len() < PROBLEMS_MAX {
            let segment = self.disk.path(&segment_file_name(base));
            let (offset, lsn) = (lsn.since(base), lsn.0);
            self.report.problems.push(Problem { segment, offset, lsn, what: what.to_owned() });
        }
    }
}
