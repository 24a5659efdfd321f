//! The appender: the primary's open frame, sealing, and the roll to the next segment.
//!
//! Transactions go, in their final form, straight into a buffer of the fixed pool. A frame's LSN
//! is known when it is opened, because the segment has kept room for a frame of full size; chain
//! and checksums are fixed when it is sealed. Admission (see [`Node::admission`]) makes sure that
//! a transaction finds what it needs: one free buffer, and the next segment ready if the present
//! one is full.

use std::time::Duration;

use bytes::Bytes;
use rowship_proto::control::{AckPolicyChanged, TableDefinition, TableDefinitions};
use rowship_proto::frame::{Seal, frame_bytes, sealed_frame};
use rowship_proto::row::{RowWrite, TableId, append_transaction, transaction_bytes};
use rowship_proto::sim::{Mark, mark};
use rowship_proto::{Epoch, EpochHistory, FrameBuilder, FrameHeader, FrameKind, Lsn};

use super::dictionary::Dictionary;
use super::state::{Node, PrimaryRole, count};
use super::tip::Run;
use crate::edge::Edge;
use crate::log::layout::Opening;
use crate::log::pool::{FrameBuffer, FramePool};
use crate::log::{Layout, LogError};

/// The appender's state.
pub struct Appender {
    pool: FramePool,
    open: Option<FrameBuilder<FrameBuffer>>,
    layout: Layout,
    next: Lsn,
    chain: u64,
    seed: u64,
    epoch: Epoch,
    body_max: usize,
    segment_bytes: u64,
}

/// What the appender needs to seal: clocks and positions of this moment.
#[derive(Clone, Copy)]
pub struct Moment {
    /// Committed now.
    pub committed: Lsn,
    /// Wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
}

/// Why a transaction cannot be appended now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Full {
    /// Wait: buffers, segment or uncommitted bytes.
    Wait,
    /// The disk is full.
    Disk(String),
}

impl Appender {
    /// Continues a log at `next`.
    #[must_use]
    pub fn new(
        pool: FramePool,
        layout: Layout,
        (next, chain): (Lsn, u64),
        epoch: Epoch,
        segment_bytes: u64,
    ) -> Appender {
        let header = layout.header;
        let body_max = usize::try_from(header.frame_body_bytes_max).expect("at most 16 MiB");
        let seed = header.log_id.seed();
        let open = None;
        Appender { pool, open, layout, next, chain, seed, epoch, body_max, segment_bytes }
    }

    /// Largest transaction in bytes.
    #[must_use]
    pub fn body_max(&self) -> usize {
        self.body_max
    }

    /// The segment being written.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// End of everything appended, the open frame included.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.open.as_ref().map_or(self.next, FrameBuilder::next_lsn)
    }

    /// The segment that comes next.
    #[must_use]
    pub fn next_layout(&self) -> Layout {
        self.layout.next(self.segment_bytes)
    }

    /// Chain value at the end of the sealed log.
    #[must_use]
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// Whether buffers are so few that nobody should hold durable frames in them.
    #[must_use]
    pub fn pool_is_low(&self) -> bool {
        self.pool.free() <= 1
    }

    /// Bytes of the largest frame.
    fn frame_max(&self) -> u64 {
        frame_bytes(self.body_max) as u64
    }

    /// Whether a frame of full size, and `before` bytes in front of it, need the next segment.
    fn must_roll(&self, before: u64) -> bool {
        !self.layout.fits(self.next, before + self.frame_max())
    }

    fn seal(&self, moment: Moment) -> Seal {
        Seal {
            seed: self.seed,
            epoch: self.epoch,
            committed: moment.committed.min(self.next),
            wall_ns: moment.wall_ns,
            chain_previous: self.chain,
        }
    }

    /// Whether the open frame has something in it.
    pub(super) fn has_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.is_empty())
    }

    /// Seals the open frame, if it has something in it.
    fn seal_open(&mut self, moment: Moment) -> Option<Run> {
        if self.open.as_ref().is_none_or(FrameBuilder::is_empty) {
            return None;
        }
        let (header, buffer) = self.open.take()?.seal(&self.seal(moment));
        let bytes = buffer.freeze(header.frame_bytes());
        Some(self.advance(&header, header.end(), bytes))
    }

    fn advance(&mut self, header: &FrameHeader, next: Lsn, bytes: Bytes) -> Run {
        assert_eq!(header.lsn, self.next);
        self.next = next;
        self.chain = header.chain();
        let (start, chain, epoch) = (header.lsn, header.chain(), header.epoch);
        let mark = header.kind() == Some(FrameKind::Mark);
        Run { start, next, bytes, chain, epoch, mark, copy: false }
    }

    /// A control frame at the end of the sealed log.
    fn control(&mut self, kind: FrameKind, body: &[u8], moment: Moment) -> Run {
        assert!(self.open.as_ref().is_none_or(FrameBuilder::is_empty));
        self.open = None;
        let (header, bytes) = sealed_frame(kind, 0, self.next, body, &self.seal(moment));
        self.advance(&header, header.end(), Bytes::from(bytes))
    }

    /// Ends this segment and opens the next, whose file must be ready.
    fn roll(
        &mut self,
        dictionary: &Dictionary,
        history: &EpochHistory,
        policy: &str,
        moment: Moment,
    ) -> Result<Vec<Run>, LogError> {
        mark(Mark::SegmentRolled);
        let next = self.next_layout();
        let end = self.layout.end_frame(self.next, self.segment_bytes, &self.seal(moment));
        let mut runs = vec![self.advance(&end.0, next.header.first_frame(), end.1.into())];
        self.layout = next;
        runs.extend(self.open_segment(dictionary, history, policy, moment)?);
        Ok(runs)
    }

    /// The frames that open the present segment, which must be empty.
    pub fn open_segment(
        &mut self,
        dictionary: &Dictionary,
        history: &EpochHistory,
        policy: &str,
        moment: Moment,
    ) -> Result<Vec<Run>, LogError> {
        let tables: Vec<(TableId, Vec<u8>)> =
            dictionary.tables().map(|(id, name)| (id, name.to_vec())).collect();
        let from = self.next;
        let opening = Opening {
            tables: &tables,
            history: history.entries(),
            policy: Some((AckPolicyChanged { from, to: Lsn::ZERO, reason: 0 }, policy)),
        };
        let frames = self.layout.opening_frames(&opening, &self.seal(moment))?;
        let runs = frames
            .into_iter()
            .map(|(header, bytes)| self.advance(&header, header.end(), bytes.into()));
        Ok(runs.collect())
    }

    /// All repeats of a segment's opening, again: a crash left the opening unfinished.
    pub fn repeat_opening(
        &mut self,
        dictionary: &Dictionary,
        history: &EpochHistory,
        policy: &str,
        moment: Moment,
    ) -> Vec<Run> {
        mark(Mark::OpeningRepeated);
        let tables: Vec<(TableId, Vec<u8>)> =
            dictionary.tables().map(|(id, name)| (id, name.to_vec())).collect();
        let opening = Opening {
            tables: &tables,
            history: history.entries(),
            policy: Some((AckPolicyChanged { from: self.next, to: Lsn::ZERO, reason: 0 }, policy)),
        };
        let frames = self.layout.repeat_frames(self.next, &opening, &self.seal(moment));
        let runs = frames
            .into_iter()
            .map(|(header, bytes)| self.advance(&header, header.end(), bytes.into()));
        runs.collect()
    }

    /// Whether a control frame with this body leaves the segment its end.
    #[must_use]
    pub fn control_fits(&self, body_len: usize) -> bool {
        self.layout.fits(self.next, frame_bytes(body_len) as u64)
    }

    /// Appends at start, before there are clients: a roll if the body does not fit, then the
    /// control frame.
    ///
    /// # Errors
    /// [`LogError::OpeningTooLarge`].
    pub fn append_control(
        &mut self,
        kind: FrameKind,
        body: &[u8],
        context: (&Dictionary, &EpochHistory, &str),
        moment: Moment,
    ) -> Result<Vec<Run>, LogError> {
        let (dictionary, history, policy) = context;
        let mut runs = Vec::new();
        if !self.control_fits(body.len()) {
            runs = self.roll(dictionary, history, policy, moment)?;
        }
        runs.push(self.control(kind, body, moment));
        Ok(runs)
    }
}

/// Whether the definitions of these new tables fit one frame body of `body_max` bytes.
#[must_use]
pub fn definitions_fit(names: &[Bytes], body_max: usize) -> bool {
    names.iter().map(|name| TableDefinitions::encoded_bytes(name)).sum::<usize>() <= body_max
}

impl<E: Edge> Node<E> {
    fn moment(&self) -> Moment {
        Moment { committed: self.committed.get(), wall_ns: self.edge.wall_ns() }
    }

    /// Whether a transaction of any size can be appended right now.
    ///
    /// # Errors
    /// Why not.
    pub fn admission(&self, primary: &PrimaryRole<E>) -> Result<(), Full> {
        let appender = primary.appender.borrow();
        if let Some(paused) = &*self.table_paused.borrow() {
            return Err(Full::Disk(paused.clone()));
        }
        let unapplied = appender.end().since(self.visible.get());
        let uncommitted = appender.end().since(self.committed.get());
        let limit = self.settings.cluster.uncommitted_bytes_max;
        if unapplied > limit || uncommitted > limit {
            mark(Mark::UncommittedFull);
            return Err(Full::Wait);
        }
        // A transaction may need a frame of definitions and a frame of rows behind the open one.
        // Where these might not fit, the next segment must be ready.
        let open_end = appender
            .open
            .as_ref()
            .map_or(appender.next, |open| open.lsn().plus(appender.frame_max()));
        let may_roll = !appender.layout.fits(open_end, 2 * appender.frame_max());
        let next_base = appender.layout.header.end();
        if may_roll && !self.segments.is_ready(next_base) {
            return Err(match &*self.segments.failure.borrow() {
                Some(failure) => Full::Disk(failure.clone()),
                None => Full::Wait,
            });
        }
        if appender.pool.free() < 1 {
            drop(appender);
            self.tip.borrow_mut().trim(self.durable.get(), 0);
            if primary.appender.borrow().pool.free() < 1 {
                mark(Mark::PoolExhausted);
                return Err(Full::Wait);
            }
        }
        Ok(())
    }

    /// Appends one transaction; admission was asked for just before, without an await between.
    /// Returns the LSN of its end.
    ///
    /// # Panics
    /// When it is larger than a frame body: callers check that first.
    pub fn append(&self, primary: &PrimaryRole<E>, rows: &[RowWrite<'_>]) -> Lsn {
        let bytes = transaction_bytes(rows);
        let mut appender = primary.appender.borrow_mut();
        assert!(bytes <= appender.body_max);
        let mut runs = Vec::new();
        if appender.open.as_ref().is_some_and(|open| open.room_bytes() < bytes) {
            runs.extend(appender.seal_open(self.moment()));
        }
        if appender.open.is_none() {
            if appender.must_roll(0) {
                runs.extend(self.roll(primary, &mut appender));
            }
            let buffer = appender.pool.take().expect("admission saw a free buffer");
            let open = FrameBuilder::new(buffer, FrameKind::Rows, 0, appender.next);
            appender.open = Some(open);
        }
        let clock = primary.clock.borrow_mut().tick(self.edge.wall_ns());
        let open = appender.open.as_mut().expect("opened above");
        append_transaction(open, primary.epoch.node_id, clock, rows, |_, _| ());
        let end = open.next_lsn();
        drop(appender);
        count(&self.counters.transactions, 1);
        count(&self.counters.rows, rows.len() as u64);
        self.push_runs(primary, runs);
        // The writer seals what is open as soon as it is free.
        self.changed.notify();
        end
    }

    /// Defines new tables, in a frame of their own, before the first row that uses them. Their
    /// definitions fit one frame: see [`definitions_fit`].
    pub fn define_tables(&self, primary: &PrimaryRole<E>, names: &[Bytes]) {
        let mut appender = primary.appender.borrow_mut();
        let mut body = Vec::new();
        let mut dictionary = self.dictionary.borrow_mut();
        for name in names {
            let id = dictionary.next_id();
            TableDefinitions::encode(&TableDefinition { id, name }, &mut body);
            dictionary.define(id, name.clone());
        }
        drop(dictionary);
        let mut runs = Vec::new();
        runs.extend(appender.seal_open(self.moment()));
        if appender.must_roll(frame_bytes(body.len()) as u64) {
            runs.extend(self.roll(primary, &mut appender));
        }
        runs.push(appender.control(FrameKind::TableDefine, &body, self.moment()));
        drop(appender);
        self.push_runs(primary, runs);
    }

    fn roll(&self, primary: &PrimaryRole<E>, appender: &mut Appender) -> Vec<Run> {
        let machine = primary.machine.borrow();
        let policy = machine.policy().to_string();
        let dictionary = self.dictionary.borrow();
        appender
            .roll(&dictionary, machine.history(), &policy, self.moment())
            .expect("tables_max keeps the opening of a segment below half of it")
    }

    /// Seals the open frame when the writer is free for it.
    ///
    /// Returns how long it is better to wait before that.
    pub(super) fn seal_open_frame(&self) -> Option<Duration> {
        let primary = self.primary()?;
        if !self.writes.is_idle() || !primary.appender.borrow().has_open() {
            return None;
        }
        if !self.is_closing()
            && let Some(wait_ns) = primary.returning.wait_ns(self.edge.now())
        {
            return Some(Duration::from_nanos(wait_ns));
        }
        let sealed = primary.appender.borrow_mut().seal_open(self.moment());
        if let Some(run) = sealed {
            self.push_runs(primary, vec![run]);
        }
        None
    }

    /// Sealed frames go to the tip (for links and lanes) and to the writer.
    pub(super) fn push_runs(&self, primary: &PrimaryRole<E>, runs: Vec<Run>) {
        if runs.is_empty() {
            return;
        }
        let now = self.edge.now();
        for run in runs {
            count(&self.counters.frames, 1);
            primary.stamps.borrow_mut().sealed(run.next, now);
            self.appended.set(run.next);
            self.tip.borrow_mut().push(run.clone(), self.durable.get());
            self.writes.push(run, now);
        }
        primary.machine.borrow_mut().handle_appended(self.appended.get());
        self.changed.notify();
    }
}
