//! Segment files that this node has open: maps for readers, ring files for the writer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rowship_proto::Lsn;
use rowship_proto::sim::{Mark, mark};

use crate::edge::{Disk, Edge, Job, Worker, offload};
use crate::log::prepare::{Fill, prepare_ahead};
use crate::log::reader::FrameRun;
use crate::log::{LogError, SegmentHeader, SegmentMaps};

/// Open segments. Ring thread only; borrows are never held across an await.
pub struct Segments<E: Edge> {
    /// For readers.
    pub maps: RefCell<SegmentMaps>,
    files: RefCell<BTreeMap<Lsn, OpenSegment<E>>>,
    /// Segments that exist but could not be prepared lately, with the reason: a full disk.
    pub failure: RefCell<Option<String>>,
    /// How far writes have come, for those who prepare the segment after it.
    pub reached: Arc<AtomicU64>,
    /// Held while segment files are made or go: a cut must not take away what is being opened.
    pub changing: tokio::sync::Mutex<()>,
}

struct OpenSegment<E: Edge> {
    file: E::File,
    bytes: u64,
}

impl<E: Edge> Segments<E> {
    /// None open.
    #[must_use]
    pub fn new(maps: SegmentMaps) -> Segments<E> {
        Segments {
            maps: RefCell::new(maps),
            files: RefCell::new(BTreeMap::new()),
            failure: RefCell::new(None),
            reached: Arc::default(),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether the segment with this base can be written.
    #[must_use]
    pub fn is_ready(&self, base: Lsn) -> bool {
        self.files.borrow().contains_key(&base)
    }

    /// Opens an existing segment for the writer.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn open_file(
        &self,
        edge: &E,
        disk: &E::Disk,
        header: &SegmentHeader,
    ) -> Result<(), LogError> {
        let name = header.file_name();
        let file = edge.open_durable(disk, &name).map_err(|source| LogError::Io {
            doing: "open",
            file: disk.path(&name),
            source,
        })?;
        let open = OpenSegment { file, bytes: header.segment_bytes };
        self.files.borrow_mut().insert(header.base, open);
        Ok(())
    }

    /// Makes the segment ready for writing and reading, if it is not: takes a spare or makes a
    /// new file on the preparation worker, gently while there is no `hurry`.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] can be tried again; others are final.
    pub async fn ensure(
        &self,
        edge: &E,
        disk: &E::Disk,
        worker: &Worker<Job>,
        (header, fill): (SegmentHeader, Fill),
        hurry: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), LogError> {
        let _changing = self.changing.lock().await;
        let open = self.files.borrow().get(&header.base).map(|open| open.bytes);
        match open {
            Some(bytes) if bytes == header.segment_bytes => return Ok(()),
            // Prepared ahead with the size of the one before, but the stream says another.
            Some(_) => self.close(header.base),
            None => {}
        }
        let (name, its_disk) = (header.file_name(), disk.clone());
        let prepared = offload(worker, move || -> Result<_, LogError> {
            prepare_ahead(&its_disk, &header, fill, &hurry)?;
            let name = header.file_name();
            let path = its_disk.path(&name);
            its_disk.map(&name).map_err(|source| LogError::Io { doing: "map", file: path, source })
        });
        let map = prepared.await.map_err(|source| LogError::Io {
            doing: "prepare",
            file: disk.path(&name),
            source,
        })??;
        self.open_file(edge, disk, &header)?;
        self.maps.borrow_mut().add(header.base, map);
        Ok(())
    }

    /// The file that holds `lsn`, and the base of its segment.
    #[must_use]
    pub fn file_for(&self, lsn: Lsn) -> Option<(Lsn, E::File)> {
        let files = self.files.borrow();
        let (base, open) = files.range(..=lsn).next_back()?;
        (lsn.since(*base) < open.bytes).then(|| (*base, open.file.clone()))
    }

    /// Closes the files of segments that end at or below `durable`: there will be no more writes in
    /// them, or the log would have a descriptor for each. Their maps stay. A log that is cut back
    /// into one of them has it opened again ([`Segments::ensure`]).
    pub fn close_written(&self, durable: Lsn) {
        self.files.borrow_mut().retain(|base, open| base.plus(open.bytes) > durable);
    }

    /// Forgets segments that begin above `end`: the log was cut there.
    pub fn close_above(&self, end: Lsn) {
        self.files.borrow_mut().retain(|base, _| *base <= end);
        self.maps.borrow_mut().remove_above(end);
    }

    /// Forgets a segment that has been retired.
    pub fn close(&self, base: Lsn) {
        self.files.borrow_mut().remove(&base);
        self.maps.borrow_mut().remove(base);
    }

    /// Whole frames from `from` up to `limit`, read and checked on `worker`: pages of a map may be
    /// cold, and what they hold may have rotted since it was written. See
    /// [`Reading::whole_frames`](crate::log::reader::Reading::whole_frames).
    ///
    /// # Errors
    /// As there, with the path of the file.
    pub async fn read(
        &self,
        disk: &E::Disk,
        worker: &Worker<Job>,
        (from, limit): (Lsn, Lsn),
        bytes_max: usize,
    ) -> Result<Option<FrameRun>, LogError> {
        let reading = self.maps.borrow().reading(from)?;
        let read = offload(worker, move || reading.whole_frames(limit, bytes_max)).await;
        whole(disk, read)
    }

    /// Chain value of the frame that ends where `lsn` starts the next one, in a log that ends at
    /// `end` with the chain value beside it: what a peer must have to go on from `lsn`. None when
    /// no frame starts there.
    ///
    /// # Errors
    /// [`LogError::Retired`], [`LogError::NotHeld`] or [`LogError::Io`].
    pub async fn chain_at(
        &self,
        disk: &E::Disk,
        worker: &Worker<Job>,
        lsn: Lsn,
        end: (Lsn, u64),
    ) -> Result<Option<u64>, LogError> {
        if lsn >= end.0 {
            return Ok((lsn == end.0).then_some(end.1));
        }
        let reading = self.maps.borrow().reading(lsn)?;
        whole(disk, offload(worker, move || reading.chain_previous()).await)
    }
}

/// What a worker has read, its complaints with the paths of files.
fn whole<D: Disk, T>(disk: &D, read: io::Result<Result<T, LogError>>) -> Result<T, LogError> {
    let gone = |source| LogError::Io { doing: "read", file: disk.path(""), source };
    read.map_err(gone)?.map_err(|error| match error {
        LogError::Damage { segment, offset, lsn, what } => {
            mark(Mark::DamageFound);
            LogError::Damage { segment: disk.path(&segment), offset, lsn, what }
        }
        LogError::Io { doing, file, source } => {
            LogError::Io { doing, file: disk.path(&file), source }
        }
        error => error,
    })
}
