//! Writes a log for tests, the way a primary does: one write of whole frames at a time, each
//! durable before the next, rolling by [`Layout`].

use rowship_proto::control::{AckPolicyChanged, EpochStarted, TableDefinition, TableDefinitions};
use rowship_proto::frame::{FRAME_HEADER_BYTES, FrameBuilder, Seal, sealed_frame};
use rowship_proto::hlc::Hlc;
use rowship_proto::row::{Existed, Operation, RowWrite, TableId, append_transaction, key_hash};
use rowship_proto::value::encode_string;
use rowship_proto::{Epoch, EpochHistory, FrameHeader, FrameKind, LogId, Lsn};
use zerocopy::IntoBytes;

use crate::edge::Disk;
use crate::log::layout::{Opening, SealedFrame};
use crate::log::node_state::{Checkpoint, NodeState, Role};
use crate::log::prepare::{Fill, prepare_next};
use crate::log::segment::segment_file_name;
use crate::log::{Layout, LogError, RecoverInput, SegmentHeader, write_bytes_max};

/// Segment size of the tiny preset.
pub const TINY_SEGMENT_BYTES: u64 = 64 << 10;
/// Body limit of the tiny preset.
pub const TINY_BODY_BYTES: u64 = 4 << 10;
/// The log that tests write.
pub const TEST_LOG: LogId = LogId([0x1234, 0x5678]);

/// A log being written.
pub struct TestLog<D> {
    /// Where it is written.
    pub disk: D,
    /// The segment being written.
    pub layout: Layout,
    /// Where the next frame goes.
    pub next: Lsn,
    /// Chain value of the last frame.
    pub chain: u64,
    /// Epoch written in.
    pub epoch: Epoch,
    /// Where each epoch starts.
    pub history: EpochHistory,
    /// Tables defined so far.
    pub tables: Vec<(TableId, Vec<u8>)>,
    /// Header of every frame written.
    pub frames: Vec<FrameHeader>,
    /// Rows written so far.
    pub rows: u64,
}

/// The epoch with this counter that tests use.
#[must_use]
pub fn test_epoch(counter: u64) -> Epoch {
    Epoch { counter, node_id: 1, nonce: counter * 7 }
}

impl<D: Disk> TestLog<D> {
    /// A new log in the tiny preset: first segment opened, epoch 1 begun.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn create(disk: D) -> Result<TestLog<D>, LogError> {
        TestLog::create_sized(disk, TINY_SEGMENT_BYTES)
    }

    /// The same, with a first segment of another size.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn create_sized(disk: D, segment_bytes: u64) -> Result<TestLog<D>, LogError> {
        let header = SegmentHeader::new(TEST_LOG, Lsn::ZERO, segment_bytes, TINY_BODY_BYTES);
        prepare_next(&disk, &header, Fill::Zeroes)?;
        let mut log = TestLog {
            disk,
            layout: Layout { header },
            next: header.first_frame(),
            chain: 0,
            epoch: Epoch::NONE,
            history: EpochHistory::default(),
            tables: Vec::new(),
            frames: Vec::new(),
            rows: 0,
        };
        log.begin_epoch(1)?;
        Ok(log)
    }

    /// Starts an epoch, as a start of a primary does; opens the segment if nothing did.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn begin_epoch(&mut self, counter: u64) -> Result<(), LogError> {
        let previous = self.epoch;
        self.epoch = test_epoch(counter);
        assert!(self.history.push(self.epoch, self.next));
        if self.next == self.layout.header.first_frame() {
            self.open()?;
        }
        let inherited_committed = self.next;
        let started = EpochStarted { previous, inherited_committed };
        let body = [started.as_bytes(), b"async"].concat();
        self.control(FrameKind::EpochStart, &body)
    }

    /// Defines the next table.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn define_table(&mut self, name: &str) -> Result<(), LogError> {
        let id = TableId(u32::try_from(self.tables.len() + 1).expect("few tables"));
        let mut body = Vec::new();
        TableDefinitions::encode(&TableDefinition { id, name: name.as_bytes() }, &mut body);
        self.tables.push((id, name.as_bytes().to_vec()));
        self.control(FrameKind::TableDefine, &body)
    }

    /// One control frame in one write.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn control(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), LogError> {
        self.make_room(FRAME_HEADER_BYTES + body.len().next_multiple_of(8))?;
        let frame = sealed_frame(kind, 0, self.next, body, &self.seal());
        self.write(vec![frame])
    }

    /// Frames of rows with values of these sizes in bytes, all in one write.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn rows(&mut self, value_bytes: &[usize]) -> Result<(), LogError> {
        let frame_bytes = |bytes: &usize| FRAME_HEADER_BYTES + 24 + 24 + 8 + 8 + bytes + 8;
        self.make_room(value_bytes.iter().map(frame_bytes).sum())?;
        let (mut lsn, mut seal, mut frames) = (self.next, self.seal(), Vec::new());
        for bytes in value_bytes {
            let (header, bytes) = self.rows_frame(lsn, *bytes, &seal);
            lsn = header.end();
            seal.chain_previous = header.chain();
            frames.push((header, bytes));
        }
        self.write(frames)
    }

    /// Ends the segment and opens the next.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn roll(&mut self) -> Result<(), LogError> {
        self.end_segment()?;
        self.open()
    }

    /// Only ends the segment: where a crash may leave the log between two writes.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn end_segment(&mut self) -> Result<(), LogError> {
        let next = self.layout.next(TINY_SEGMENT_BYTES);
        prepare_next(&self.disk, &next.header, Fill::Zeroes)?;
        let end = self.layout.end_frame(self.next, TINY_SEGMENT_BYTES, &self.seal());
        self.write(vec![end])?;
        self.layout = next;
        self.next = next.header.first_frame();
        Ok(())
    }

    /// Writes rows of pseudo-random sizes until this many segments have been begun.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn fill_segments(&mut self, segments: u64, seed: u64) -> Result<(), LogError> {
        let mut random = seed;
        while self.layout.header.base.0 < (segments - 1) * TINY_SEGMENT_BYTES {
            random = next_random(random);
            let size = usize::try_from((random >> 33) % 1500).expect("small");
            let sizes = [size, 10];
            self.rows(&sizes[..1 + (random >> 60) as usize % 2])?;
        }
        Ok(())
    }

    /// The end of the log, as a checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { lsn: self.next, chain: self.chain, epoch: self.epoch }
    }

    /// What a node that knows all epochs and this checkpoint recovers with.
    #[must_use]
    pub fn input(&self, checkpoint: Option<Checkpoint>) -> RecoverInput {
        RecoverInput {
            log_id: TEST_LOG,
            checkpoint,
            checkpoint_is_end: false,
            history: self.history.clone(),
        }
    }

    /// A node's state that fits this log.
    #[must_use]
    pub fn state(&self, role: Role) -> NodeState {
        let mut state = NodeState::new(role, 1, 1, "test");
        state.log_id = TEST_LOG;
        state.epoch_highest = self.epoch;
        state.history = self.history.clone();
        state
    }

    fn rows_frame(&mut self, lsn: Lsn, value_bytes: usize, seal: &Seal) -> SealedFrame {
        let buffer = vec![0; FRAME_HEADER_BYTES + TINY_BODY_BYTES as usize];
        let mut builder = FrameBuilder::new(buffer, FrameKind::Rows, 0, lsn);
        self.rows += 1;
        let key = (self.rows % 100).to_string();
        let value = encode_string(&vec![b'a' + (self.rows % 26) as u8; value_bytes]);
        let (table, key) = (TableId(0), key.as_bytes());
        let key_hash = key_hash(TEST_LOG.seed(), table, key);
        let (operation, existed) = (Operation::Put, Existed::Unknown);
        let row = RowWrite { key_hash, table, operation, existed, key, value: &value };
        append_transaction(&mut builder, 1, Hlc(self.rows), &[row], |_, _| {});
        let (header, mut bytes) = builder.seal(seal);
        bytes.truncate(header.frame_bytes());
        (header, bytes)
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), LogError> {
        if self.layout.fits(self.next, bytes as u64) { Ok(()) } else { self.roll() }
    }

    fn open(&mut self) -> Result<(), LogError> {
        let policy = AckPolicyChanged { from: Lsn::ZERO, to: Lsn::ZERO, reason: 0 };
        let opening = Opening {
            tables: &self.tables,
            history: self.history.entries(),
            policy: Some((policy, "async")),
        };
        let frames = self.layout.opening_frames(&opening, &self.seal())?;
        self.write(frames)
    }

    fn seal(&self) -> Seal {
        let committed = self.frames.last().map_or(Lsn::ZERO, |last| last.lsn);
        let (epoch, chain_previous) = (self.epoch, self.chain);
        Seal { seed: TEST_LOG.seed(), epoch, committed, wall_ns: 1, chain_previous }
    }

    fn write(&mut self, frames: Vec<SealedFrame>) -> Result<(), LogError> {
        let bytes: Vec<u8> = frames.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        assert!(bytes.len() as u64 <= write_bytes_max(TINY_BODY_BYTES));
        let base = self.layout.header.base;
        let name = segment_file_name(base);
        let written = self.disk.write_durable_at(&name, self.next.since(base), &bytes);
        written.map_err(LogError::io("write", self.disk.path(&name)))?;
        for (header, _) in frames {
            assert_eq!(header.lsn, self.next);
            self.next = header.end();
            self.chain = header.chain();
            self.frames.push(header);
        }
        Ok(())
    }
}

/// The next of a sequence of pseudo-random numbers (a linear congruential generator with the
/// constants of Knuth's MMIX; use its high bits).
#[must_use]
pub fn next_random(random: u64) -> u64 {
    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}
