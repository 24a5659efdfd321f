//! Directories that are not what was written: bodies of the fuzz targets `recovery` and
//! `state_file`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rowship_proto::frame::FRAME_HEADER_BYTES;
use rowship_proto::fuzzing::Input;
use rowship_proto::verify::stands_here;
use rowship_proto::{Epoch, FrameHeader, LogId, Lsn};
use xxhash_rust::xxh3::Xxh3;

use super::node_state::{STATE_FILE, STATE_SLOT_BYTES, TableDurable};
use super::recover::Recovered;
use super::segment::segment_file_name;
use super::testing::{MemoryDisk, SECTOR_BYTES, TEST_LOG, TINY_SEGMENT_BYTES, TestLog};
use super::tools::verify;
use super::{Checkpoint, LogError, NodeState, RecoverInput, Role, SegmentHeader, prepare, recover};

/// Real logs, bent in many places: bytes, sectors, frames in other places, files that are gone.
/// Recovery gives a prefix of what was written, byte for byte, with all that this prefix says and
/// nothing else; or it stops, and has changed nothing. It never ends a log below its checkpoint,
/// nor before a live frame that no torn write can explain. Doing it again, also after the power
/// failed in the middle of it, gives the same. Returns where the recovered log ends, if it does.
pub fn recovery(data: &[u8]) -> Option<Lsn> {
    let mut input = Input::new(data);
    let written = &logs()[input.below(logs().len())];
    let checkpoint = match input.below(4) {
        0 | 1 => None,
        _ => Some(written.checkpoint(usize::from(input.byte()))),
    };
    let fuse = input.byte();
    let disk = written.fork();
    for _ in 0..CHANGES_MAX {
        if input.is_done() {
            break;
        }
        bend(&disk, written, &mut input);
    }
    let before = disk.contents();
    let asked = written.input(checkpoint);
    // Whatever it finds, it must come to an end with a report.
    let report = verify(&disk).ok();
    if fuse > 0 {
        disk.lose_power_at(u64::from(fuse % 8), move |sector| {
            !(sector + usize::from(fuse)).is_multiple_of(3)
        });
        let first = recover(&disk, &asked);
        if !disk.restore_power() {
            assert!(first.is_ok() || disk.contents() == before, "changed something, then refused");
        }
    }
    let recovered = match recover(&disk, &asked) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(!matches!(error, LogError::Io { .. }), "{error}");
            // With power lost on the way some of the cut may be done, which cannot lead here.
            assert!(disk.contents() == before, "changed something, then refused: {error}");
            return None;
        }
    };
    written.check_prefix(&recovered, &disk, checkpoint);
    assert_eq!(summary(&recovered), written.pristine(&recovered, checkpoint));
    if let Some(report) = report.filter(|_| checkpoint.is_none() && recovered.oldest == FIRST) {
        // Files behind the end that cannot continue the log are recovery's to remove.
        let (end, roll) = (recovered.end, recovered.last.end());
        let bound = if recovered.active.is_some() { end } else { roll };
        let below = report.problems.iter().find(|problem| problem.lsn < bound.0);
        // Without a single frame the report names the end of none.
        let end_lsn = report.end_lsn.max(report.first_lsn);
        assert_eq!((below, end_lsn), (None, recovered.end.0));
    }
    let after = disk.contents();
    let again = recover(&disk, &asked).expect("what was recovered can be recovered");
    assert!(again.torn.is_none(), "a second recovery cuts again");
    assert_eq!(summary(&again), summary(&recovered));
    assert!(disk.contents() == after, "a second recovery changes something");
    Some(recovered.end)
}

/// A `node.state` with any bytes, as they are and with a checksum that holds. It is refused, or it
/// says what it said after storing it anew; a slot that does not hold never hides one that does.
/// Returns whether it was read.
pub fn state_file(data: &[u8]) -> bool {
    let (whole, slot) = (MemoryDisk::new(), STATE_SLOT_BYTES as usize);
    let mut file = vec![0; 2 * slot];
    let half = data.len().min(2 * slot) / 2;
    file[..half].copy_from_slice(&data[..half]);
    file[slot..slot + half].copy_from_slice(&data[half..2 * half]);
    whole.put(STATE_FILE, &file);
    let as_it_is = stored_anew(&whole);
    repair_slot(&mut file[..slot]);
    whole.put(STATE_FILE, &file);
    let repaired = stored_anew(&whole);
    // Beside a real one with a higher number, whatever is in the other slot.
    let mut real = NodeState::new(Role::Replica, 7, 9, "north");
    (real.log_id, real.epoch_highest) = (LogId([1, 2]), Epoch { counter: 3, node_id: 1, nonce: 5 });
    real.table_durable = TableDurable { lsn: Lsn(4096), row_count: 12 };
    let beside = MemoryDisk::new();
    real.store(&beside).expect("memory takes it");
    let mut both = beside.contents()[STATE_FILE].clone();
    let rot = half.min(slot);
    both[..rot].copy_from_slice(&data[..rot]);
    beside.put(STATE_FILE, &both);
    if as_it_is.is_none() {
        let found = NodeState::load(&beside).expect("one slot holds");
        assert_eq!(found, Some(real), "a slot that does not hold hides one that does");
    }
    as_it_is.or(repaired).is_some()
}

fn stored_anew(disk: &MemoryDisk) -> Option<NodeState> {
    let mut state = NodeState::load(disk).ok()??;
    state.store(disk).expect("what was read can be stored");
    assert_eq!(NodeState::load(disk).expect("it was stored"), Some(state.clone()));
    Some(state)
}

/// Head: magic, version, body length, sequence; then the checksum of these and the body.
fn repair_slot(slot: &mut [u8]) {
    slot[..8].copy_from_slice(b"ROWSHIPN");
    slot[8..12].copy_from_slice(&1u32.to_le_bytes());
    let body_len = usize::from(u16::from_le_bytes([slot[12], slot[13]])) % 2048;
    slot[12..16].copy_from_slice(&(body_len as u32).to_le_bytes());
    // The number of entries of the history must fit what is there, to get anywhere.
    let (entries_at, name_at) = (32 + 144, 32 + 148);
    let entries = u32::from(slot[entries_at]) % 4;
    let name_len = (body_len as u32).saturating_sub(152 + entries * 32);
    slot[entries_at..name_at].copy_from_slice(&entries.to_le_bytes());
    slot[name_at..name_at + 4].copy_from_slice(&name_len.to_le_bytes());
    slot[20..24].fill(0);
    let mut hash = Xxh3::new();
    hash.update(&slot[..24]);
    hash.update(&slot[32..32 + body_len]);
    slot[24..32].copy_from_slice(&hash.digest().to_le_bytes());
}

/// First frame of every log here.
const FIRST: Lsn = Lsn(4096);
/// More changes of one input find nothing new.
const CHANGES_MAX: usize = 12;

/// A log as it was written.
struct Written {
    files: BTreeMap<String, Vec<u8>>,
    frames: Vec<FrameHeader>,
    known: RecoverInput,
}

/// A few real ones: young, rolled, ended at a roll, of several reigns, with a segment prepared.
fn logs() -> &'static [Written] {
    static LOGS: OnceLock<Vec<Written>> = OnceLock::new();
    LOGS.get_or_init(|| (0..4).map(|shape| write_log(shape).expect("memory takes it")).collect())
}

fn write_log(shape: usize) -> Result<Written, LogError> {
    let mut log = TestLog::create(MemoryDisk::new())?;
    log.define_table("planes")?;
    log.rows(&[100, 10])?;
    if shape > 0 {
        log.fill_segments(2, 5 + shape as u64)?;
        log.rows(&[900, 900])?;
        log.begin_epoch(3)?;
        log.define_table("trains")?;
        log.rows(&[1500])?;
        log.rows(&[3000, 3000])?;
    }
    match shape {
        2 => log.end_segment()?,
        3 => {
            log.roll()?;
            log.rows(&[10])?;
            log.begin_epoch(4)?;
            log.rows(&[20, 2000])?;
            prepare::prepare_next(
                &log.disk,
                &log.layout.next(TINY_SEGMENT_BYTES).header,
                prepare::Fill::Zeroes,
            )?;
        }
        _ => {}
    }
    Ok(Written { files: log.disk.contents(), known: log.input(None), frames: log.frames })
}

impl Written {
    fn fork(&self) -> MemoryDisk {
        let disk = MemoryDisk::new();
        self.files.iter().for_each(|(name, bytes)| disk.put(name, bytes));
        disk
    }

    fn input(&self, checkpoint: Option<Checkpoint>) -> RecoverInput {
        RecoverInput { checkpoint, ..self.known.clone() }
    }

    /// Behind some frame: what a node may have noted.
    fn checkpoint(&self, at: usize) -> Checkpoint {
        let last = &self.frames[at % self.frames.len()];
        Checkpoint { lsn: self.behind(last), chain: last.chain(), epoch: last.epoch }
    }

    /// Where the frame that follows `last` goes.
    fn behind(&self, last: &FrameHeader) -> Lsn {
        let next = self.frames.iter().find(|frame| frame.lsn > last.lsn);
        let ends = last.kind() == Some(rowship_proto::FrameKind::SegmentEnd);
        let roll = Lsn(last.lsn.0.next_multiple_of(TINY_SEGMENT_BYTES) + FIRST.0);
        next.map_or(if ends { roll } else { last.end() }, |next| next.lsn)
    }

    /// What stands at `lsn` in these files, as far as the file goes.
    fn bytes(files: &BTreeMap<String, Vec<u8>>, lsn: Lsn, len: usize) -> &[u8] {
        let base = lsn.0 / TINY_SEGMENT_BYTES * TINY_SEGMENT_BYTES;
        let file = files.get(&segment_file_name(Lsn(base))).map_or(&[][..], Vec::as_slice);
        let rest = file.get((lsn.0 - base) as usize..).unwrap_or(&[]);
        &rest[..len.min(rest.len())]
    }

    fn check_prefix(&self, found: &Recovered, disk: &MemoryDisk, checkpoint: Option<Checkpoint>) {
        let files = disk.contents();
        let start = Lsn(found.end.0 - found.bytes_read);
        let kept: Vec<&FrameHeader> =
            self.frames.iter().filter(|frame| frame.lsn < found.end).collect();
        let last = kept.last().map(|last| (self.behind(last), last.chain(), last.epoch));
        let empty = (FIRST, 0, Epoch::NONE);
        assert_eq!((found.end, found.chain, found.epoch), last.unwrap_or(empty), "no prefix");
        for frame in kept.iter().filter(|frame| frame.lsn >= start) {
            let len = frame.frame_bytes();
            let (there, meant) =
                (Self::bytes(&files, frame.lsn, len), Self::bytes(&self.files, frame.lsn, len));
            assert!(there == meant, "an altered frame at LSN {} was accepted", frame.lsn);
        }
        if let Some(checkpoint) = checkpoint {
            assert!(found.end >= checkpoint.lsn, "ends below its checkpoint");
        }
        // Nothing that was written behind the end still stands there.
        for frame in self.frames.iter().filter(|frame| frame.lsn >= found.end) {
            let there = Self::bytes(&files, frame.lsn, FRAME_HEADER_BYTES);
            let stands = stands_here(there, frame.lsn, TEST_LOG.seed());
            assert!(!stands, "the end at {} leaves a live frame at {}", found.end, frame.lsn);
        }
    }

    /// What recovery says of the log that was never longer than what was found.
    fn pristine(&self, found: &Recovered, checkpoint: Option<Checkpoint>) -> Summary {
        let disk = self.fork();
        let in_segment = found.active.is_some();
        for (name, bytes) in &self.files {
            let Ok(header) = SegmentHeader::parse(&bytes[..FIRST.0 as usize]) else { continue };
            let behind = header.base >= found.end || (!in_segment && header.end() > found.end);
            if behind || header.base < found.oldest_base() {
                disk.put(name, &[]);
                crate::edge::Disk::remove(&disk, name).expect("it was put there");
            } else if header.end() > found.end {
                let mut bytes = bytes.clone();
                bytes[found.end.since(header.base) as usize..].fill(0);
                disk.put(name, &bytes);
            }
        }
        let found = recover(&disk, &self.input(checkpoint));
        summary(&found.expect("a log that was never bent"))
    }
}

impl Recovered {
    fn oldest_base(&self) -> Lsn {
        Lsn(self.oldest.0 - FIRST.0)
    }
}

/// What recovery says of the log itself.
#[derive(Debug, PartialEq)]
struct Summary {
    end: (Lsn, u64, Epoch),
    history: rowship_proto::EpochHistory,
    tables: Vec<(rowship_proto::row::TableId, Vec<u8>)>,
    committed: Lsn,
    clock: rowship_proto::hlc::Hlc,
    policy: Option<(rowship_proto::control::AckPolicyChanged, String)>,
    opening_left: u64,
    last: SegmentHeader,
}

fn summary(found: &Recovered) -> Summary {
    Summary {
        end: (found.end, found.chain, found.epoch),
        history: found.history.clone(),
        tables: found.tables.clone(),
        committed: found.committed,
        clock: found.clock,
        policy: found.policy.clone(),
        opening_left: found.opening_left,
        last: found.last,
    }
}

/// One change of the directory, as the input says.
fn bend(disk: &MemoryDisk, written: &Written, input: &mut Input<'_>) {
    let names: Vec<String> = disk.contents().into_keys().collect();
    if names.is_empty() {
        return;
    }
    let name = &names[input.below(names.len())];
    let mut bytes = disk.contents()[name].clone();
    let choice = input.below(9);
    let at = usize::from(input.short()) % bytes.len().max(1);
    match choice {
        // Somewhere in a frame, by its number: most bytes of a file are in no frame.
        0..3 => {
            let frame = &written.frames[at % written.frames.len()];
            let inside = usize::from(input.short()) % frame.frame_bytes();
            let base = Lsn(frame.lsn.0 / TINY_SEGMENT_BYTES * TINY_SEGMENT_BYTES);
            let name = segment_file_name(base);
            let bits = input.byte();
            let offset = frame.lsn.since(base) + inside as u64;
            // It may be gone, or shorter by now.
            if disk.contents().get(&name).is_some_and(|bytes| offset < bytes.len() as u64) {
                disk.bend(&name, offset, |byte| *byte ^= bits);
            }
            return;
        }
        3 if !bytes.is_empty() => bytes[at] ^= input.byte(),
        4 | 5 => {
            // Sectors that did not arrive, or that another write left.
            let sector = at / SECTOR_BYTES * SECTOR_BYTES;
            let count = usize::from(input.byte()) % 64 + 1;
            let end = (sector + count * SECTOR_BYTES).min(bytes.len());
            bytes[sector..end].fill(if choice == 4 { 0 } else { input.byte() });
        }
        6 => {
            // Another place's bytes.
            let from = usize::from(input.short()) % bytes.len().max(1) / 8 * 8;
            let len = 8 * usize::from(input.byte());
            let moved = bytes[from..(from + len).min(bytes.len())].to_vec();
            let at = at / 8 * 8;
            let end = (at + moved.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&moved[..end - at]);
        }
        7 => {
            // What the input says.
            let len = input.below(64);
            let bent = input.bytes(len);
            let end = (at + bent.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&bent[..end - at]);
        }
        8 => {
            let other = &names[input.below(names.len())];
            match input.below(4) {
                0 => crate::edge::Disk::remove(disk, name).expect("it is there"),
                1 => bytes = disk.contents()[other].clone(),
                2 => bytes.truncate(at),
                _ => {}
            }
            if !disk.contents().contains_key(name) {
                return;
            }
        }
        _ => {}
    }
    disk.put(name, &bytes);
}
