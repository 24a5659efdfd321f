//! Short seeds, seeds that have failed once, and faults that must be found.

use std::sync::atomic::{AtomicUsize, Ordering};

use rowship_proto::sim::Bug;
use rowship_sim::run::{RunOptions, run};

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in [2, 4, 15] {
        let one = run(RunOptions::short(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        let two = run(RunOptions::short(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(one.trace, two.trace, "seed {seed} ran differently the second time");
        assert!(one.trace.events > 1000, "seed {seed} did next to nothing");
        assert_eq!((one.commits, one.faults), (two.commits, two.faults));
    }
    let other = run(RunOptions::short(5)).unwrap_or_else(|failure| panic!("{failure}"));
    let one = run(RunOptions::short(4)).unwrap_or_else(|failure| panic!("{failure}"));
    assert_ne!(one.trace, other.trace);
}

#[test]
fn short_seeds_keep_every_promise() {
    for seed in 1..=12 {
        let report = run(RunOptions::short(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.commits > 0 && report.checked.acked > 0, "seed {seed} committed nothing");
    }
}

#[test]
fn seeds_that_failed_once_hold_now() {
    for line in include_str!("../regressions.txt").lines() {
        let mut numbers = line.split('#').next().into_iter().flat_map(str::split_whitespace);
        let mut number = || numbers.next().map(|word| word.parse().expect("seeds are numbers"));
        let Some(seed) = number() else { continue };
        let short = RunOptions::short(seed);
        let options = RunOptions { chaos_ms: number().unwrap_or(short.chaos_ms), ..short };
        if let Err(failure) = run(options) {
            panic!("{line}: {failure}");
        }
    }
}

/// Each fault, and within how many seeds (from the first on) it must be caught.
const CAUGHT_WITHIN: &[(Bug, u64)] = &[
    (Bug::AckBeforeSync, 10),
    (Bug::ApplyBeyondCommitted, 10),
    (Bug::LoseLastImage, 10),
    (Bug::SegmentEndOffByOne, 300),
    (Bug::ResumeOneFrameLate, 20),
    (Bug::AcceptOldEpoch, 150),
    (Bug::PublishEarly, 10),
    (Bug::StateNotSynced, 20),
    (Bug::CutNotSynced, 300),
    (Bug::CommitInheritedTail, 30),
    (Bug::ReceivedCountsAsDurable, 400),
    (Bug::ScanForgetsPending, 10),
    (Bug::RefusedIsAppended, 100),
    (Bug::ReplyBeforeCommitted, 30),
    (Bug::WaitByLsnAlone, 100),
    (Bug::SkipBodyChecksum, 40),
    (Bug::TableRecordedAhead, 30),
    (Bug::FlushAheadOfLog, 100),
    (Bug::TornTailLeft, 80),
    (Bug::ShipOneFrameLate, 10),
];

#[test]
fn every_planted_fault_is_caught() {
    assert_eq!(CAUGHT_WITHIN.len(), Bug::ALL.len(), "every fault has its number of seeds");
    let next = AtomicUsize::new(0);
    let hunt = || {
        let mut missed = Vec::new();
        while let Some((bug, seeds)) = CAUGHT_WITHIN.get(next.fetch_add(1, Ordering::Relaxed)) {
            let fails = |seed: &u64| {
                run(RunOptions { bug: Some(*bug), ..RunOptions::short(*seed) }).is_err()
            };
            match (1..=*seeds).find(fails) {
                Some(seed) => println!("{}: caught by seed {seed} of {seeds}", bug.name()),
                None => missed.push(format!("{} in {seeds} seeds", bug.name())),
            }
        }
        missed
    };
    let missed: Vec<String> = std::thread::scope(|scope| {
        let hunters: Vec<_> = (0..2).map(|_| scope.spawn(hunt)).collect();
        hunters.into_iter().flat_map(|hunter| hunter.join().expect("failures are caught")).collect()
    });
    assert!(missed.is_empty(), "not caught: {}", missed.join(", "));
}
