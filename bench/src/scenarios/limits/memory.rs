//! What one core gives: copying, hashing, and upserts of the table library without anything
//! around them.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lsm_tree::{
    AbstractTree, AnyTree, Config, InternalValue, Memtable, SequenceNumberCounter, ValueType,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::rows::{Keys, Row, Rows};

/// Bytes at which a memtable is flushed: the engine's default.
const MEMTABLE_BYTES: u64 = 64 << 20;
/// Rows that are made before and outside of each timed batch.
const BATCH_ROWS: usize = 1_000;
/// As a frame's body at most.
const HASHED_AT_ONCE: usize = 1 << 20;

/// Gigabytes per second of copying so many bytes.
#[must_use]
pub fn memcpy(bytes: usize) -> f64 {
    let source = vec![3u8; bytes];
    // Touched before: the first touch of a page is not what is measured.
    let mut copy = vec![4u8; bytes];
    let start = Instant::now();
    copy.copy_from_slice(black_box(&source));
    black_box(&copy);
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}

/// Gigabytes per second of XXH3 over so many bytes, a mebibyte at a time.
#[must_use]
pub fn xxh3(bytes: usize) -> f64 {
    let source = vec![3u8; bytes];
    let start = Instant::now();
    for piece in black_box(&source).chunks(HASHED_AT_ONCE) {
        black_box(xxh3_64(piece));
    }
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}

/// Keys as the table has them: spread by a hash.
fn stored_key(row: &Row) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&xxh3_64(&row.key.to_be_bytes()).to_be_bytes());
    key[8..].copy_from_slice(&row.key.to_be_bytes());
    key
}

/// Times `insert` over `rows` uniform rows; rows per second. (Making the rows is not counted.)
fn batches(
    keys: u64,
    rows: u64,
    mut insert: impl FnMut(Vec<([u8; 16], Row)>, u64) -> Result<()>,
) -> Result<f64> {
    let mut source = Rows::new(5, keys, Keys::Uniform);
    let (mut seconds, mut done) = (0.0, 0);
    while done < rows {
        let some = BATCH_ROWS.min(usize::try_from(rows - done)?);
        let made = (0..some).map(|_| source.row()).map(|row| (stored_key(&row), row));
        let batch: Vec<_> = made.collect();
        let start = Instant::now();
        insert(batch, done + 1)?;
        seconds += start.elapsed().as_secs_f64();
        done += some as u64;
    }
    Ok(rows as f64 / seconds)
}

/// Upserts per second into the library's memtable, which is thrown away when it is full.
///
/// # Errors
/// Never; as its neighbours.
pub fn memtable_upserts(keys: u64, rows: u64) -> Result<f64> {
    let mut memtable = Memtable::new(0);
    batches(keys, rows, |batch, first| {
        for (at, (key, row)) in (first..).zip(batch) {
            memtable.insert(InternalValue::from_components(key, row.value, at, ValueType::Value));
        }
        if memtable.size() >= MEMTABLE_BYTES {
            memtable = Memtable::new(0);
        }
        Ok(())
    })
}

/// Upserts per second into the library's tree in `directory`, flushes included.
///
/// # Errors
/// When the tree fails.
pub fn tree_upserts(directory: &Path, keys: u64, rows: u64) -> Result<f64> {
    std::fs::create_dir_all(directory)?;
    let place = tempfile::Builder::new().prefix("rowship-limits.").tempdir_in(directory)?;
    let (numbers, shown) = (SequenceNumberCounter::default(), SequenceNumberCounter::default());
    let tree: AnyTree = Config::new(place.path().join("tree"), numbers, shown).open()?;
    batches(keys, rows, |batch, first| {
        for (at, (key, row)) in (first..).zip(batch) {
            tree.insert(key, row.value, at);
        }
        let last = first + BATCH_ROWS as u64 > rows;
        if last || tree.active_memtable().size() >= MEMTABLE_BYTES {
            tree.flush_active_memtable(first)?;
        }
        Ok(())
    })
}
