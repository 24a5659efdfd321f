//! What a simulation did, as one number: two runs of a seed must come to the same.
//!
//! Everything that one part of the world does to another is folded in: deliveries of the network,
//! changing calls of disks, deaths of processes, replies to clients. The state belongs to the
//! thread, like the simulation.

use std::cell::Cell;

thread_local! {
    static TRACE: Cell<Trace> = const { Cell::new(Trace { events: 0, hash: 0 }) };
}

/// How much has happened, and what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Events folded in.
    pub events: u64,
    /// All of them, in their order.
    pub hash: u64,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Bytes arrived: connection, side, time, content.
    Delivery = 1,
    /// A changing call of a disk: number, place, content.
    Disk = 2,
    /// A process began or ended.
    Process = 3,
    /// A client was answered.
    Reply = 4,
}

/// Forgets everything: a new simulation begins on this thread.
pub fn reset() {
    TRACE.set(Trace::default());
}

/// What happened since.
#[must_use]
pub fn present() -> Trace {
    TRACE.get()
}

/// Folds an event in.
pub fn note(kind: Kind, numbers: &[u64]) {
    let mut trace = TRACE.get();
    trace.events += 1;
    for number in [kind as u64].iter().chain(numbers) {
        let mixed = (trace.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        trace.hash = mixed ^ (mixed >> 29);
    }
    TRACE.set(trace);
}

/// Bytes as one of the numbers of an event (FNV-1a over words: quick, and no library's).
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    for word in bytes.chunks(8) {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(padded)).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 31;
    }
    hash
}
