//! What one lane does with one window. Pure: frames in, rows out.

use std::cmp::Reverse;

use bytes::Bytes;
use rowship_proto::frame::{FRAME_BODY_BYTES_LIMIT, FrameError};
use rowship_proto::row::{Row, key_hash, transactions};
use rowship_proto::sim::{Bug, Mark, mark, planted};
use rowship_proto::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Lsn};
use rowship_sync::Countdown;

use super::table::KEY_BYTES_MAX;
use super::{ApplyError, RowFault};

/// A stretch of committed log that all lanes take as a whole: `visible` only ever stops at the end
/// of a window.
#[derive(Debug)]
pub struct Window {
    /// Where the window before ended.
    pub start: Lsn,
    /// End of this one.
    pub end: Lsn,
    /// Runs of whole frames (header, body, padding) in order of LSN; one run lies in one segment.
    pub parts: Vec<Bytes>,
    /// Who of the lanes is done with it.
    pub(super) countdown: Countdown,
}

impl Window {
    /// A window for `lanes` lanes. It may hold no rows at all.
    ///
    /// # Panics
    /// When it ends before it starts, or there are no lanes.
    #[must_use]
    pub fn new(start: Lsn, end: Lsn, parts: Vec<Bytes>, lanes: usize) -> Window {
        assert!(start <= end, "a window ends where it starts, or later");
        Window { start, end, parts, countdown: Countdown::new(lanes) }
    }
}

/// Which share of the rows: lane `index` of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// From 0.
    pub index: usize,
    /// How many lanes there are.
    pub count: usize,
}

impl Share {
    /// Whether rows with this key hash are this lane's. The high bits choose, so each lane owns a
    /// contiguous range of hashes, which is also a contiguous range of the table's keys.
    #[must_use]
    pub fn owns(self, key_hash: u64) -> bool {
        let lane = (u128::from(key_hash) * self.count as u128) >> 64;
        lane == self.index as u128
    }
}

/// A lane's part of a window.
#[derive(Debug, Default)]
pub struct LanePlan<'w> {
    /// The last row of each key, in order of the table's keys.
    pub rows: Vec<Row<'w>>,
    /// How many more rows there are after the window than before, among this lane's keys. Counted
    /// over all its rows, also those that a later one in the window replaces.
    pub rows_delta: i64,
}

/// Plans `share` of `window` under the log's `seed`.
///
/// # Errors
/// [`ApplyError::Frame`] or [`ApplyError::Row`]; never a panic, whatever the bytes are.
pub fn plan<'w>(window: &'w Window, share: Share, seed: u64) -> Result<LanePlan<'w>, ApplyError> {
    let mut plan = LanePlan::default();
    let mut expected = window.start;
    for part in &window.parts {
        expected = plan_part(part, expected, window.end, share, seed, &mut plan)?;
    }
    keep_last_of_each_key(&mut plan.rows);
    Ok(plan)
}

/// Walks one run of frames that starts at `from` or later; returns its end.
fn plan_part<'w>(
    part: &'w [u8],
    from: Lsn,
    end: Lsn,
    share: Share,
    seed: u64,
    plan: &mut LanePlan<'w>,
) -> Result<Lsn, ApplyError> {
    let (mut rest, mut expected, mut first) = (part, from, true);
    while !rest.is_empty() {
        let fault = |error| ApplyError::Frame { lsn: expected, error };
        let header = FrameHeader::parse(rest, seed, FRAME_BODY_BYTES_LIMIT).map_err(fault)?;
        // Between parts lie segment headers, which are not frames: only there may LSNs jump.
        let in_place = header.lsn == expected || (first && header.lsn > expected);
        if !in_place || header.end() > end {
            let expected = if in_place { end } else { expected };
            return Err(fault(FrameError::Lsn { found: header.lsn, expected }));
        }
        let Some((frame, behind)) = rest.split_at_checked(header.frame_bytes()) else {
            return Err(fault(FrameError::Body("frame is cut short")));
        };
        if header.kind() == Some(FrameKind::Rows) {
            let body = &frame[FRAME_HEADER_BYTES..][..header.stored_len as usize];
            plan_body(body, header.lsn, share, seed, plan)?;
        }
        (rest, expected, first) = (behind, header.end(), false);
    }
    Ok(expected)
}

fn plan_body<'w>(
    body: &'w [u8],
    frame_lsn: Lsn,
    share: Share,
    seed: u64,
    plan: &mut LanePlan<'w>,
) -> Result<(), ApplyError> {
    let fault = |error| ApplyError::Frame { lsn: frame_lsn, error };
    for transaction in transactions(body, frame_lsn.plus(FRAME_HEADER_BYTES as u64)) {
        for row in transaction.map_err(fault)?.rows() {
            let row = row.map_err(fault)?;
            if !share.owns(row.key_hash) {
                continue;
            }
            check_row(&row, seed)?;
            plan.rows_delta += row.operation.rows_delta(row.existed);
            plan.rows.push(row);
        }
    }
    Ok(())
}

fn check_row(row: &Row<'_>, seed: u64) -> Result<(), ApplyError> {
    let fault = |reason| ApplyError::Row { lsn: row.lsn, reason };
    if row.key.len() > KEY_BYTES_MAX {
        return Err(fault(RowFault::KeyTooLong { len: row.key.len() }));
    }
    let expected = key_hash(seed, row.table, row.key);
    if row.key_hash != expected {
        return Err(fault(RowFault::KeyHash { found: row.key_hash, expected }));
    }
    Ok(())
}

/// Sorting costs about what a hash map would, allocates nothing, and leaves the rows in the order
/// of the table's keys, which is the order a skip list and a B-tree like best.
fn keep_last_of_each_key(rows: &mut Vec<Row<'_>>) {
    rows.sort_unstable_by_key(|row| (row.key_hash, row.table, row.key, Reverse(row.lsn)));
    if planted(Bug::LoseLastImage) {
        rows.sort_unstable_by_key(|row| (row.key_hash, row.table, row.key, row.lsn));
    }
    rows.dedup_by(|older, newer| {
        let same =
            (older.key_hash, older.table, older.key) == (newer.key_hash, newer.table, newer.key);
        if same {
            mark(Mark::ImageReplaced);
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::log::{LogWriter, SEED};
    use rowship_proto::row::{Existed, TableId};

    fn window(log: &LogWriter) -> Window {
        Window::new(Lsn(4096), log.end(), vec![Bytes::from(log.bytes.clone())], 1)
    }

    const WHOLE: Share = Share { index: 0, count: 1 };

    #[test]
    fn keeps_the_last_image_of_each_key_and_counts_all_rows() {
        let mut log = LogWriter::new(Lsn(4096));
        log.put(1, b"a", b"one", Existed::No);
        log.put(1, b"b", b"two", Existed::No);
        log.frame();
        log.mark();
        log.delete(1, b"a", Existed::Yes);
        log.put(1, b"a", b"three", Existed::No);
        log.put(2, b"a", b"other table", Existed::Yes);
        log.frame();
        let window = window(&log);
        let plan = plan(&window, WHOLE, SEED).unwrap();
        let mut rows: Vec<_> =
            plan.rows.iter().map(|row| (row.table.0, row.key, row.value)).collect();
        rows.sort_unstable();
        let expected: [(u32, &[u8], &[u8]); 3] =
            [(1, b"a", b"three"), (1, b"b", b"two"), (2, b"a", b"other table")];
        assert_eq!(rows, expected);
        assert_eq!(plan.rows_delta, 2);
        assert!(plan.rows.is_sorted_by_key(|row| (row.key_hash, row.table, row.key)));
    }

    #[test]
    fn every_row_belongs_to_exactly_one_lane() {
        let mut log = LogWriter::new(Lsn(4096));
        for at in 0..500u32 {
            log.put(1, &at.to_le_bytes(), b"v", Existed::No);
        }
        log.frame();
        let window = window(&log);
        for count in 1..=5 {
            let shares: Vec<usize> = (0..count)
                .map(|index| plan(&window, Share { index, count }, SEED).unwrap().rows.len())
                .collect();
            assert_eq!(shares.iter().sum::<usize>(), 500);
            assert!(shares.iter().all(|rows| *rows > 500 / count / 2), "uneven: {shares:?}");
        }
        assert!(Share { index: 4, count: 5 }.owns(u64::MAX));
    }

    #[test]
    fn names_the_lsn_of_a_frame_that_is_not_one() {
        let mut log = LogWriter::new(Lsn(4096));
        log.put(1, b"a", b"one", Existed::No);
        log.frame();
        let second = log.end();
        log.put(1, b"b", b"two", Existed::No);
        log.frame();
        let at = (second.0 - 4096) as usize;
        log.bytes[at + 20] ^= 1;
        let error = plan(&window(&log), WHOLE, SEED).unwrap_err();
        let ApplyError::Frame { lsn, error: FrameError::HeaderChecksum } = error else {
            panic!("{error}")
        };
        assert_eq!(lsn, second);
    }

    #[test]
    fn frames_out_of_place_or_beyond_the_window_are_refused() {
        let mut log = LogWriter::new(Lsn(4096));
        log.put(1, b"a", b"one", Existed::No);
        log.frame();
        let bytes = Bytes::from(log.bytes.clone());
        let twice = [&bytes[..], &bytes[..]].concat();
        let end = Lsn(1 << 20);
        for parts in [vec![bytes.clone(), bytes.clone()], vec![Bytes::from(twice)]] {
            let window = Window::new(Lsn(4096), end, parts, 1);
            assert!(matches!(
                plan(&window, WHOLE, SEED),
                Err(ApplyError::Frame { error: FrameError::Lsn { .. }, .. })
            ));
        }
        let short = Window::new(Lsn(4096), Lsn(4104), vec![bytes], 1);
        assert!(plan(&short, WHOLE, SEED).is_err());
    }

    #[test]
    fn rows_no_honest_writer_writes_are_refused() {
        let mut log = LogWriter::new(Lsn(4096));
        log.put(1, &vec![7; KEY_BYTES_MAX + 1], b"", Existed::No);
        log.frame();
        let error = plan(&window(&log), WHOLE, SEED).unwrap_err();
        assert!(matches!(
            error,
            ApplyError::Row { lsn: Lsn(4216), reason: RowFault::KeyTooLong { .. } }
        ));
        let mut log = LogWriter::new(Lsn(4096));
        log.row_with_hash(TableId(1), b"a", b"x", 77);
        log.frame();
        let error = plan(&window(&log), WHOLE, SEED).unwrap_err();
        assert!(matches!(
            error,
            ApplyError::Row { reason: RowFault::KeyHash { found: 77, .. }, .. }
        ));
    }

    #[test]
    fn bytes_cut_anywhere_never_panic() {
        let mut log = LogWriter::new(Lsn(4096));
        log.put(1, b"a", b"one", Existed::No);
        log.frame();
        for end in 1..log.bytes.len() {
            let part = Bytes::copy_from_slice(&log.bytes[..end]);
            let window = Window::new(Lsn(4096), Lsn(1 << 20), vec![part], 1);
            assert!(plan(&window, WHOLE, SEED).is_err(), "cut at {end}");
        }
    }
}
