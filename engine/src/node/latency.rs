//! Latency of each stage of a frame's way to each replica, on the primary's clock.
//!
//! The primary stamps frames when it seals them. A replica answers with positions and with how
//! long ago it reached them; arrival minus that age is when it happened, too late by at most the
//! way back of the ack, never too early.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use rowship_proto::message::Ack;
use rowship_proto::{Lsn, Nanos};
use serde_json::{Value, json};

/// The seal times of recent frames. When full, every second one is dropped, so it always reaches
/// back to the oldest frame that somebody may still ask for, at a coarser grain.
#[derive(Default)]
pub struct Stamps {
    sealed: VecDeque<(Lsn, Nanos)>,
}

/// Stamps kept: 16 bytes each.
const STAMPS_MAX: usize = 32_768;

impl Stamps {
    /// A frame that ends at `end` was sealed at `now`.
    pub fn sealed(&mut self, end: Lsn, now: Nanos) {
        if self.sealed.len() == STAMPS_MAX {
            let mut keep = false;
            self.sealed.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.sealed.push_back((end, now));
    }

    /// Forgets frames that end at or below `end`: all replicas show them, and have them on disk.
    pub fn forget(&mut self, end: Lsn) {
        while self.sealed.len() > 1 && self.sealed.front().is_some_and(|stamp| stamp.0 <= end) {
            self.sealed.pop_front();
        }
    }

    /// When the first frame above `position` was sealed, if there is one.
    #[must_use]
    pub fn oldest_above(&self, position: Lsn) -> Option<Nanos> {
        let at = self.sealed.partition_point(|stamp| stamp.0 <= position);
        self.sealed.get(at).map(|stamp| stamp.1)
    }

    fn between(&self, from: Lsn, to: Lsn) -> impl Iterator<Item = Nanos> + '_ {
        let start = self.sealed.partition_point(|stamp| stamp.0 <= from);
        self.sealed.range(start..).take_while(move |stamp| stamp.0 <= to).map(|stamp| stamp.1)
    }
}

/// Histograms of one replica: nanoseconds from sealing to each stage.
pub struct Stages {
    /// Frames sealed before this replica was first seen do not count: it could not have had them.
    since: Nanos,
    stages: [(&'static str, Histogram<u64>); 5],
}

/// Longest latency that is told apart, in nanoseconds: one hour. Longer ones count as this.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

impl Stages {
    /// Of a replica that is seen for the first time.
    #[must_use]
    pub fn new(since: Nanos) -> Stages {
        let histogram = || {
            Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 2).expect("constant, valid bounds")
        };
        let names = ["sent", "received", "durable", "applied", "visible"];
        Stages { since, stages: names.map(|name| (name, histogram())) }
    }

    /// Frames in `(from, to]` were handed to the link at `now`.
    pub fn sent(&mut self, stamps: &Stamps, from: Lsn, to: Lsn, now: Nanos) {
        self.record(0, stamps, from, to, now);
    }

    /// An ack arrived at `now`; `before` are the positions of the one before it.
    pub fn acked(&mut self, stamps: &Stamps, before: &Ack, ack: &Ack, now: Nanos) {
        let steps = [
            (before.received, ack.received, ack.received_age_ns),
            (before.durable, ack.durable, ack.durable_age_ns),
            (before.applied, ack.applied, ack.applied_age_ns),
            (before.visible, ack.visible, ack.visible_age_ns),
        ];
        for (at, (from, to, age)) in steps.into_iter().enumerate() {
            self.record(at + 1, stamps, from, to, now.saturating_sub(age));
        }
    }

    fn record(&mut self, stage: usize, stamps: &Stamps, from: Lsn, to: Lsn, at: Nanos) {
        let histogram = &mut self.stages[stage].1;
        let since = self.since;
        for sealed in stamps.between(from, to).filter(|sealed| *sealed >= since) {
            histogram.saturating_record(at.saturating_sub(sealed).max(1));
        }
    }

    /// `{stage: {count, p50_us, p99_us, p999_us, max_us}}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let micros = |ns: u64| ns / 1_000;
        let stage = |histogram: &Histogram<u64>| {
            json!({
                "count": histogram.len(),
                "p50_us": micros(histogram.value_at_quantile(0.5)),
                "p99_us": micros(histogram.value_at_quantile(0.99)),
                "p999_us": micros(histogram.value_at_quantile(0.999)),
                "max_us": micros(histogram.max()),
            })
        };
        let stages =
            self.stages.iter().map(|(name, histogram)| ((*name).to_owned(), stage(histogram)));
        Value::Object(stages.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_counts_every_frame_it_covers_from_its_own_seal() {
        let mut stamps = Stamps::default();
        stamps.sealed(Lsn(100), 1_000_000);
        stamps.sealed(Lsn(200), 2_000_000);
        let mut stages = Stages::new(0);
        let ack = Ack { received: Lsn(200), received_age_ns: 1_000_000, ..Ack::default() };
        stages.acked(&stamps, &Ack::default(), &ack, 5_000_000);
        let received = &stages.to_json()["received"];
        assert_eq!(received["count"], 2);
        assert!((2_950..3_100).contains(&received["max_us"].as_u64().unwrap()));
        assert_eq!(stages.to_json()["durable"]["count"], 0);
    }

    #[test]
    fn lag_counts_from_the_oldest_frame_not_shown() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.oldest_above(Lsn(0)), None);
        for frame in 1..=100_000 {
            stamps.sealed(Lsn(frame * 8), frame);
        }
        assert!(stamps.oldest_above(Lsn(0)).unwrap() < 10);
        assert_eq!(stamps.oldest_above(Lsn(800_000)), None);
        stamps.forget(Lsn(799_992));
        assert_eq!(stamps.oldest_above(Lsn(799_992)), Some(100_000));
    }
}
