//! Group commit that knows who is about to come back.
//!
//! Clients that wait for each answer before they ask again fall into groups: while one group's
//! write is on the disk the other's requests come in, and each write carries only a part of them.
//! Writes are what the disk has fewest of. So, as long as most of those who were answered have
//! been asking again within the time of a write and a half, the next write waits for them, at most
//! that long. (One write is too short: of eight clients the last two came just after it, and waited
//! for the write without them and for their own.) Where they do not, nothing waits. (PostgreSQL's
//! `commit_delay` and `commit_siblings` and MariaDB's `binlog_commit_wait_usec` are the same idea
//! with numbers that somebody must choose.)
//!
//! A replica keeps the same kind of habit of its primary's frames: [`NextFrame`].

use std::cell::Cell;

use rowship_proto::Nanos;

use super::writer::mean;

/// Who was answered since the last write ended, who came back, and how often they do.
#[derive(Default)]
pub struct Returning {
    /// Counts write completions: an answer belongs to one.
    round: Cell<u64>,
    /// Connections answered in this round.
    answered: Cell<u32>,
    /// Of those, how many have written again.
    returned: Cell<u32>,
    /// When the last of them was answered.
    answered_at: Cell<Nanos>,
    /// Mean of what writes take.
    write_ns: Cell<Nanos>,
    /// Answers of late, and how many of them were followed by a write soon enough.
    habit: Cell<(u32, u32)>,
}

/// A connection's last answer to a write.
#[derive(Clone, Copy)]
pub struct Answered {
    round: u64,
    at: Nanos,
}

/// Answers over which the habit is counted, before older ones count half.
const HABIT_ANSWERS: u32 = 256;
/// So many that come back at once keep this node busy until the next write.
const CROWD: u64 = 3;
/// The longest that a write is ever held up.
const WAIT_NS_MAX: Nanos = 1_000_000;

impl Returning {
    /// A write has ended that took so long. Answers follow.
    pub fn written(&self, took_ns: Nanos) {
        self.write_ns.set(mean(self.write_ns.get(), took_ns));
        self.round.set(self.round.get() + 1);
        let (mut answers, mut fast) = self.habit.get();
        if answers >= HABIT_ANSWERS {
            (answers, fast) = (answers / 2, fast / 2);
        }
        self.habit.set((answers + self.answered.take(), fast));
        self.returned.set(0);
    }

    /// A connection is being answered that has written.
    pub fn answer(&self, now: Nanos) -> Answered {
        self.answered.set(self.answered.get() + 1);
        self.answered_at.set(now);
        Answered { round: self.round.get(), at: now }
    }

    /// It writes again.
    pub fn returned(&self, last: Answered, now: Nanos) {
        if last.round == self.round.get() {
            self.returned.set(self.returned.get() + 1);
        }
        if now.saturating_sub(last.at) <= self.patience() {
            let (answers, fast) = self.habit.get();
            self.habit.set((answers, fast + 1));
        }
    }

    /// How much longer the next write should wait for those who are about to come back.
    #[must_use]
    pub fn wait_ns(&self, now: Nanos) -> Option<Nanos> {
        if self.expected() <= u64::from(self.returned.get()) {
            return None;
        }
        let until = self.answered_at.get() + self.patience();
        (until > now).then(|| until - now)
    }

    /// The same, where several are about to come back: then there is more to do at once than there
    /// is time between two writes.
    #[must_use]
    pub fn crowd_wait_ns(&self, now: Nanos) -> Option<Nanos> {
        self.wait_ns(now).filter(|_| self.expected() >= CROWD)
    }

    /// How many of those who were answered in this round come back at once, by habit.
    fn expected(&self) -> u64 {
        let (answers, fast) = self.habit.get();
        // Of this round's answers, only the fast ones are known yet.
        let (answers, fast) = (u64::from(answers.max(1)), u64::from(fast.min(answers)));
        if fast * 2 < answers {
            return 0;
        }
        (u64::from(self.answered.get()) * fast + answers / 2) / answers
    }

    /// Who comes back within this time is waited for.
    fn patience(&self) -> Nanos {
        (self.write_ns.get() * 3 / 2).min(WAIT_NS_MAX)
    }
}

/// How soon frames come to a replica that has nothing left to do for those before.
#[derive(Default)]
pub struct NextFrame {
    /// Since when it has had nothing left to do.
    idle_since: Cell<Option<Nanos>>,
    /// Mean time from there to the next frame.
    wait_ns: Cell<Nanos>,
}

impl NextFrame {
    /// Everything received is committed.
    pub fn wait_from(&self, now: Nanos) {
        self.idle_since.set(self.idle_since.get().or(Some(now)));
    }

    /// A frame has come. One that took very long is not the end of a habit: it counts as twice
    /// `longest_ns`.
    pub fn came(&self, now: Nanos, longest_ns: Nanos) {
        if let Some(since) = self.idle_since.take() {
            let wait_ns = now.saturating_sub(since).min(2 * longest_ns);
            self.wait_ns.set(mean(self.wait_ns.get(), wait_ns));
        }
    }

    /// Whether frames have been coming within `longest_ns`.
    #[must_use]
    pub fn is_soon(&self, longest_ns: Nanos) -> bool {
        self.wait_ns.get() < longest_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE_NS: Nanos = 100_000;
    const PATIENCE_NS: Nanos = 150_000;

    /// Rounds of four connections, each of which writes again `after_ns` behind its answer.
    fn rounds(after_ns: Nanos) -> (Returning, Nanos) {
        let (returning, mut now) = (Returning::default(), 0);
        for _ in 0..20 {
            returning.written(WRITE_NS);
            let answers: Vec<Answered> = (0..4).map(|_| returning.answer(now)).collect();
            now += after_ns;
            answers.into_iter().for_each(|last| returning.returned(last, now));
        }
        (returning, now)
    }

    #[test]
    fn a_write_waits_for_those_who_come_back_and_no_longer_than_one_and_a_half_writes_take() {
        let (returning, now) = rounds(PATIENCE_NS);
        returning.written(WRITE_NS);
        assert_eq!(returning.wait_ns(now), None, "nobody was answered");
        let answers: Vec<Answered> = (0..4).map(|_| returning.answer(now)).collect();
        assert_eq!(returning.wait_ns(now + 10), Some(PATIENCE_NS - 10));
        assert_eq!(returning.crowd_wait_ns(now + 10), Some(PATIENCE_NS - 10));
        assert_eq!(returning.wait_ns(now + PATIENCE_NS), None, "its time is over");
        answers[1..].iter().for_each(|last| returning.returned(*last, now + 10));
        assert!(returning.wait_ns(now + 10).is_some());
        returning.returned(answers[0], now + 10);
        assert_eq!(returning.wait_ns(now + 10), None, "all are back");
    }

    #[test]
    fn the_next_frame_is_expected_where_frames_have_come_soon() {
        const LONGEST_NS: Nanos = 200_000;
        let next = NextFrame::default();
        let frames = |count: u64, wait_ns: Nanos, mut now: Nanos| {
            for _ in 0..count {
                next.wait_from(now);
                // What comes in between, such as a notice that says nothing new, changes nothing.
                next.wait_from(now + wait_ns / 2);
                now += wait_ns;
                next.came(now, LONGEST_NS);
            }
            now
        };
        let now = frames(20, LONGEST_NS / 2, 0);
        assert!(next.is_soon(LONGEST_NS));
        let now = frames(1, 1_000 * LONGEST_NS, now);
        assert!(next.is_soon(LONGEST_NS), "one long pause");
        let now = frames(20, 3 * LONGEST_NS / 2, now);
        assert!(!next.is_soon(LONGEST_NS));
        frames(20, LONGEST_NS / 2, now);
        assert!(next.is_soon(LONGEST_NS));
        assert!(!next.is_soon(0), "who may not stay awake expects nothing");
    }

    #[test]
    fn two_are_no_crowd() {
        let (returning, now) = rounds(WRITE_NS / 2);
        returning.written(WRITE_NS);
        for _ in 0..2 {
            returning.answer(now);
        }
        assert_eq!(
            (returning.wait_ns(now), returning.crowd_wait_ns(now)),
            (Some(PATIENCE_NS), None)
        );
    }

    #[test]
    fn nothing_waits_where_clients_take_their_time() {
        let (returning, now) = rounds(WRITE_NS * 3);
        returning.written(WRITE_NS);
        returning.answer(now);
        assert_eq!(returning.wait_ns(now), None);
    }

    #[test]
    fn a_slow_disk_does_not_make_it_wait_for_longer_than_the_limit() {
        let returning = Returning::default();
        returning.written(1_000 * WAIT_NS_MAX);
        let last = returning.answer(0);
        returning.returned(last, 1);
        returning.written(1_000 * WAIT_NS_MAX);
        returning.answer(0);
        assert_eq!(returning.wait_ns(0), Some(WAIT_NS_MAX));
    }
}
