//! What the simulator needs to know of the code under it: marks that say "this rare path was
//! taken", and faults that are planted on purpose to see whether the checks find them.
//!
//! Without the feature `sim` both are nothing: [`mark`] is empty and [`planted`] is the constant
//! false, so that a production build holds neither. With it the state belongs to the thread, one
//! simulation each, so that simulations on several threads do not meet.

/// Names a fieldless enum's members with a text each.
macro_rules! named {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$member_doc:meta])* $member:ident = $text:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$member_doc])* $member,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$member,)*];

            /// Its name in reports and on command lines.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($name::$member => $text,)* }
            }
        }
    };
}

named! {
    /// A rare path that a run of many seeds must reach.
    Mark {
        /// A replica or primary refused a second epoch of one counter.
        ForkedEpochRefused = "forked-epoch-refused",
        /// A primary refused a replica that has seen a newer epoch.
        StalePrimaryNoticed = "stale-primary-noticed",
        /// A start believed the end that the stop before it had recorded.
        EndKnown = "end-known",
        /// A replica was refused since committed rows differ.
        DivergedRefused = "diverged-refused",
        /// A replica was refused: what it needs was retired.
        RetiredRefused = "retired-refused",
        /// A replica cut an uncommitted tail.
        TailCut = "tail-cut",
        /// A cut removed a whole later segment.
        SegmentCut = "segment-cut",
        /// A write waited for a replica that is missing.
        WaitedForReplica = "waited-for-replica",
        /// A write was refused for want of replicas.
        RefusedForReplica = "refused-for-replica",
        /// A write was left open with a token.
        Indeterminate = "indeterminate",
        /// WAITPOS answered lost.
        WaitLost = "wait-lost",
        /// The frame pool was empty.
        PoolExhausted = "pool-exhausted",
        /// Too many uncommitted or unapplied bytes: a write waited.
        UncommittedFull = "uncommitted-full",
        /// A segment ended and the next began.
        SegmentRolled = "segment-rolled",
        /// A retired segment became a new one.
        SegmentRecycled = "segment-recycled",
        /// A segment that will be filled from a backlog was only reserved.
        SegmentReserved = "segment-reserved",
        /// A reign began where a roll was unfinished.
        OpeningRepeated = "opening-repeated",
        /// A torn tail was cut at recovery.
        TornTailCut = "torn-tail-cut",
        /// A replica went on from the middle of the log.
        ResumedInside = "resumed-inside",
        /// Frames were shipped out of the maps, behind the tip.
        ShippedFromMaps = "shipped-from-maps",
        /// The send window of a slow replica was full.
        SendWindowFull = "send-window-full",
        /// A new link of the same replica replaced a half-open one.
        HalfOpenReplaced = "half-open-replaced",
        /// A silent link was closed.
        SilentLinkClosed = "silent-link-closed",
        /// No space for a segment.
        DiskFull = "disk-full",
        /// No space for the table's flush: apply paused.
        ApplyPaused = "apply-paused",
        /// Apply started from the table's durable position, not from the log's beginning.
        ReplayedFromMiddle = "replayed-from-middle",
        /// A window was put together out of the maps.
        FedFromMaps = "fed-from-maps",
        /// A replica that nobody waits for gathered before it wrote.
        WriteGathered = "write-gathered",
        /// A memtable waited with its flush until the log below was durable.
        FlushWaited = "flush-waited",
        /// A small window was applied on the ring thread.
        AppliedHere = "applied-here",
        /// A window ended inside a run.
        RunDivided = "run-divided",
        /// A window held more than one image of a key.
        ImageReplaced = "image-replaced",
        /// A replica resumed below what it had promised as durable.
        PromiseBroken = "promise-broken",
        /// A primary inherited a tail that was not known as committed.
        TailInherited = "tail-inherited",
        /// A write of the log failed: the node stopped.
        WriteFailed = "write-failed",
        /// Damage was found, and the node stopped or did not start.
        DamageFound = "damage-found",
        /// A peer's bytes did not hold.
        BadPeerBytes = "bad-peer-bytes",
    }
}

named! {
    /// A fault that can be planted. Each is the kind of slip that its place invites.
    Bug {
        /// The writer reports bytes as durable before they are written.
        AckBeforeSync = "ack-before-sync",
        /// Apply takes what is durable here, committed or not.
        ApplyBeyondCommitted = "apply-beyond-committed",
        /// A window keeps the first image of a key instead of the last.
        LoseLastImage = "lose-last-image",
        /// The last bytes of a segment are given away: no room is kept for its end.
        SegmentEndOffByOne = "segment-end-off-by-one",
        /// After a restart, replay begins one frame late.
        ResumeOneFrameLate = "resume-one-frame-late",
        /// A replica follows a primary whose epoch is over.
        AcceptOldEpoch = "accept-old-epoch",
        /// The first lane that is done with a window publishes it.
        PublishEarly = "publish-early",
        /// `node.state` is changed in memory only.
        StateNotSynced = "state-not-synced",
        /// A cut changes node.state and leaves the frames where they are.
        CutNotSynced = "cut-not-synced",
        /// An inherited tail commits without this epoch's start record.
        CommitInheritedTail = "commit-inherited-tail",
        /// What a replica has received counts as durable there.
        ReceivedCountsAsDurable = "received-counts-as-durable",
        /// SCAN inside EXEC shows the table without what is newer than it.
        ScanForgetsPending = "scan-forgets-pending",
        /// A write that is refused for want of replicas is appended all the same.
        RefusedIsAppended = "refused-is-appended",
        /// Replies leave when their bytes are durable here, whatever the policy says.
        ReplyBeforeCommitted = "reply-before-committed",
        /// WAITPOS compares by LSN alone.
        WaitByLsnAlone = "wait-by-lsn-alone",
        /// The checksum of a frame's body is not looked at.
        SkipBodyChecksum = "skip-body-checksum",
        /// The table's durable position is recorded as what is visible after the flush.
        TableRecordedAhead = "table-recorded-ahead",
        /// The table is flushed with rows whose log is not durable here.
        FlushAheadOfLog = "flush-ahead-of-log",
        /// A torn tail is left in place at recovery.
        TornTailLeft = "torn-tail-left",
        /// A primary sends from one frame later than the resume point that was agreed.
        ShipOneFrameLate = "ship-one-frame-late",
    }
}

#[cfg(feature = "sim")]
mod present {
    use std::cell::Cell;

    use super::{Bug, Mark};

    thread_local! {
        static MARKS: Cell<u64> = const { Cell::new(0) };
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    const _: () = assert!(Mark::ALL.len() <= 64, "one bit each");

    /// This path was taken.
    pub fn mark(mark: Mark) {
        MARKS.set(MARKS.get() | 1 << mark as u32);
    }

    /// Whether this fault is planted in this thread's simulation.
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a fault, or takes it out again.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// The marks reached since the last call.
    #[must_use]
    pub fn take_marks() -> Vec<Mark> {
        let bits = MARKS.take();
        Mark::ALL.iter().copied().filter(|mark| bits & 1 << *mark as u32 != 0).collect()
    }
}

#[cfg(not(feature = "sim"))]
mod absent {
    use super::{Bug, Mark};

    /// Nothing: see the module's description.
    #[inline(always)]
    pub const fn mark(_mark: Mark) {}

    /// Never: see the module's description.
    #[inline(always)]
    #[must_use]
    pub const fn planted(_bug: Bug) -> bool {
        false
    }
}

#[cfg(not(feature = "sim"))]
pub use absent::{mark, planted};
#[cfg(feature = "sim")]
pub use present::{mark, plant, planted, take_marks};

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn marks_are_taken_once_and_one_fault_is_planted_at_a_time() {
        assert!(take_marks().is_empty());
        mark(Mark::TailCut);
        mark(Mark::TailCut);
        assert_eq!(take_marks(), [Mark::TailCut]);
        assert!(take_marks().is_empty());
        plant(Some(Bug::AckBeforeSync));
        assert!(planted(Bug::AckBeforeSync) && !planted(Bug::LoseLastImage));
        plant(None);
        assert!(!planted(Bug::AckBeforeSync));
    }
}
