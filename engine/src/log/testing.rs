//! What tests of the log and the simulation share: a disk in memory, and a writer of logs.

mod writer;

pub use self::writer::{
    TEST_LOG, TINY_BODY_BYTES, TINY_SEGMENT_BYTES, TestLog, next_random, test_epoch,
};
pub use crate::edge::sim::disk::{MemoryDisk, SECTOR_BYTES};
