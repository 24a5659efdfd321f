//! The goals that this engine is to reach, as data: which figure, against what, and the bound.
//!
//! Names of figures are patterns: `*` stands for any text, `{system}` for each system of
//! [`Base::Best`]; capitals, plurals (`row` or `rows`), and `postgres` or `postgresql` make no
//! difference. Where several figures match, the one that is farthest from its bound counts.

pub mod judge;

use anyhow::{Result, ensure};

use crate::kept;
use crate::sink::Sink;
use judge::Outcome;

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// What is done.
    pub work: &'static str,
    /// What is to be reached, in words.
    pub goal: &'static str,
    /// The figure.
    pub figure: Name,
    /// What it is compared with.
    pub base: Base,
    /// What the figure, divided by its base, must be.
    pub bound: Bound,
}

/// Figures of a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// The scenario.
    pub scenario: &'static str,
    /// A pattern of names.
    pub pattern: &'static str,
}

/// What a figure is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// A number, in this unit.
    Fixed(&'static str),
    /// The best of some systems, in figures of the same scenario.
    Best {
        /// Its figures.
        pattern: &'static str,
        /// Our system.
        ours: &'static str,
        /// Quotients taken round by round, ours by theirs: used instead of the quotient of the
        /// two medians where the scenario has them, because it measures ours anew beside each
        /// peer, under one name. `{ours}` stands for our system, or for `rowship` alone.
        ratio: &'static str,
        /// Systems without which there is no best one.
        systems: &'static [&'static str],
        /// Systems that count as well where they were measured.
        also: &'static [&'static str],
    },
    /// The figure's own limit, or else the sum of these figures.
    Limit(&'static [Name]),
    /// Another figure.
    Figure(Name),
}

/// What a quotient must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// More than this.
    Above(f64),
    /// Less than this.
    Below(f64),
}

/// Ours, with the same promise as [`DURABLE`] ones.
const ASYNC: &str = "rowship async";
/// Ours, with the same promise as [`SEMI_SYNC`] ones, or a stronger one.
const OUR_SEMI_SYNC: &str = "rowship semi-sync";
/// Peers whose replies promise that the primary's disk has the row.
const DURABLE: &[&str] = &["redis AOF always", "postgres physical async", "mariadb async"];
/// Another one, which is not always measured.
const DURABLE_ALSO: &[&str] = &["postgres logical async"];
/// Peers whose replies promise that a replica has the row too.
const SEMI_SYNC: &[&str] = &["postgres physical sync", "mariadb semi-sync"];
/// Peers that catch up: what their replicas promise is stated beside the figures.
const FOLLOWERS: &[&str] = DURABLE;
const FOLLOWERS_ALSO: &[&str] = &["redis AOF everysec", "postgres logical async"];

/// All goals, in the order in which they are shown.
pub const GOALS: &[Goal] = &[
    Goal {
        work: "durable commit, one async replica, 8 clients x 1 row",
        goal: "2 x the best durable peer",
        figure: peers("ingest, rowship async, 8 clients x 1 row: rows/s"),
        base: best(
            ASYNC,
            "ingest, {system}, 8 clients x 1 row: rows/s",
            "ingest, {ours} / {system}, 8 clients x 1 row: ratio",
            DURABLE,
            DURABLE_ALSO,
        ),
        bound: Bound::AtLeast(2.0),
    },
    Goal {
        work: "durable commit, one async replica, 1 client x 1 row: median latency",
        goal: "within 25 % of ping-pong + one 4 KiB O_DSYNC write",
        figure: Name { scenario: "ingest", pattern: "rowship async, 1 client x 1 row: p50" },
        base: Base::Limit(&[
            Name { scenario: "limits", pattern: "ping-pong, *: p50" },
            Name { scenario: "limits", pattern: "O_DSYNC write, 4 KiB: p50" },
        ]),
        bound: Bound::AtMost(1.25),
    },
    Goal {
        work: "durable commit, one async replica, 8 clients x 100 rows",
        goal: "2 x the best durable peer",
        figure: peers("ingest, rowship async, 8 clients x 100 rows: rows/s"),
        base: best(
            ASYNC,
            "ingest, {system}, 8 clients x 100 rows: rows/s",
            "ingest, {ours} / {system}, 8 clients x 100 rows: ratio",
            DURABLE,
            DURABLE_ALSO,
        ),
        bound: Bound::AtLeast(2.0),
    },
    Goal {
        work: "semi-sync, durable on the replica before the reply, 1 client x 1 row",
        goal: "2.5 x the best peer",
        figure: peers("ingest, rowship semi-sync, 1 client x 1 row: rows/s"),
        base: best(
            OUR_SEMI_SYNC,
            "ingest, {system}, 1 client x 1 row: rows/s",
            "ingest, {ours} / {system}, 1 client x 1 row: ratio",
            SEMI_SYNC,
            &[],
        ),
        bound: Bound::AtLeast(2.5),
    },
    Goal {
        work: "semi-sync, durable on the replica before the reply, 8 clients x 1 row",
        goal: "3 x the best peer",
        figure: peers("ingest, rowship semi-sync, 8 clients x 1 row: rows/s"),
        base: best(
            OUR_SEMI_SYNC,
            "ingest, {system}, 8 clients x 1 row: rows/s",
            "ingest, {ours} / {system}, 8 clients x 1 row: ratio",
            SEMI_SYNC,
            &[],
        ),
        bound: Bound::AtLeast(3.0),
    },
    Goal {
        work: "semi-sync, durable on the replica before the reply, 8 clients x 100 rows",
        goal: "4 x the best peer",
        figure: peers("ingest, rowship semi-sync, 8 clients x 100 rows: rows/s"),
        base: best(
            OUR_SEMI_SYNC,
            "ingest, {system}, 8 clients x 100 rows: rows/s",
            "ingest, {ours} / {system}, 8 clients x 100 rows: ratio",
            SEMI_SYNC,
            &[],
        ),
        bound: Bound::AtLeast(4.0),
    },
    Goal {
        work: "pipelined SET, durable, 50 clients x 16",
        goal: "1.5 x Redis AOF always",
        figure: peers("pipelined, rowship async, 50 clients x 16*: rows/s"),
        base: best(
            ASYNC,
            "pipelined, {system}, 50 clients x 16*: rows/s",
            "pipelined, {ours} / {system}, 50 clients x 16*: ratio",
            &["redis AOF always"],
            &[],
        ),
        bound: Bound::AtLeast(1.5),
    },
    Goal {
        work: "catch-up, transactions of 1 row, the replica's log durable",
        goal: "2 x the best peer",
        figure: peers("catchup, rowship async, *transactions of 1: rows/s"),
        base: best(
            ASYNC,
            "catchup, {system}, *transactions of 1: rows/s",
            "catchup, {ours} / {system}, *transactions of 1: ratio",
            FOLLOWERS,
            FOLLOWERS_ALSO,
        ),
        bound: Bound::AtLeast(2.0),
    },
    Goal {
        work: "catch-up, transactions of 100 rows, the replica's log durable",
        goal: "2 x the best peer",
        figure: peers("catchup, rowship async, *transactions of 100: rows/s"),
        base: best(
            ASYNC,
            "catchup, {system}, *transactions of 100: rows/s",
            "catchup, {ours} / {system}, *transactions of 100: ratio",
            FOLLOWERS,
            FOLLOWERS_ALSO,
        ),
        bound: Bound::AtLeast(2.0),
    },
    Goal {
        work: "catch-up by Zipf's law, transactions of 1 row",
        goal: "as many written rows faster than with uniform keys",
        figure: Name {
            scenario: "catchup",
            pattern: "*, 1 row/transaction, zipf 0.99: written rows/s",
        },
        base: Base::Figure(Name {
            scenario: "catchup",
            pattern: "*, 1 row/transaction, uniform: written rows/s",
        }),
        bound: Bound::Above(1.0),
    },
    Goal {
        work: "catch-up of a hot key, transactions of 1 row",
        goal: "as many written rows faster than with uniform keys",
        figure: Name {
            scenario: "catchup",
            pattern: "*, 1 row/transaction, hot key: written rows/s",
        },
        base: Base::Figure(Name {
            scenario: "catchup",
            pattern: "*, 1 row/transaction, uniform: written rows/s",
        }),
        bound: Bound::Above(1.0),
    },
    Goal {
        work: "catch-up by Zipf's law, transactions of 100 rows",
        goal: "as many written rows faster than with uniform keys",
        figure: Name {
            scenario: "catchup",
            pattern: "*, 100 row/transaction, zipf 0.99: written rows/s",
        },
        base: Base::Figure(Name {
            scenario: "catchup",
            pattern: "*, 100 row/transaction, uniform: written rows/s",
        }),
        bound: Bound::Above(1.0),
    },
    Goal {
        work: "catch-up of a hot key, transactions of 100 rows",
        goal: "as many written rows faster than with uniform keys",
        figure: Name {
            scenario: "catchup",
            pattern: "*, 100 row/transaction, hot key: written rows/s",
        },
        base: Base::Figure(Name {
            scenario: "catchup",
            pattern: "*, 100 row/transaction, uniform: written rows/s",
        }),
        bound: Bound::Above(1.0),
    },
    Goal {
        work: "shipping a backlog, verified and durable, from page cache",
        goal: "70 % of the smaller of loopback stream and 1 MiB O_DSYNC writes",
        figure: Name { scenario: "ship", pattern: "ship, *, page cache, 1 replica: each" },
        base: Base::Limit(&[]),
        bound: Bound::AtLeast(0.7),
    },
    Goal {
        work: "shipping a backlog, verified and durable, from a cold file",
        goal: "70 % of the smaller of loopback stream and 1 MiB O_DSYNC writes",
        figure: Name { scenario: "ship", pattern: "ship, *, cold file, 1 replica: each" },
        base: Base::Limit(&[]),
        bound: Bound::AtLeast(0.7),
    },
    Goal {
        work: "write-to-visible at 5 k rows/s, p50",
        goal: "at most 0.7 x of the best durable peer",
        figure: peers("lag, rowship async, 8 clients at 5000 rows/s: visible p50"),
        base: best(
            ASYNC,
            "lag, {system}, 8 clients at 5000 rows/s: visible p50",
            "lag, {ours} / {system}, 8 clients at 5000 rows/s: visible p50 ratio",
            DURABLE,
            DURABLE_ALSO,
        ),
        bound: Bound::AtMost(0.7),
    },
    Goal {
        work: "write-to-visible at 5 k rows/s, p99",
        goal: "at most 0.8 x of the best durable peer",
        figure: peers("lag, rowship async, 8 clients at 5000 rows/s: visible p99"),
        base: best(
            ASYNC,
            "lag, {system}, 8 clients at 5000 rows/s: visible p99",
            "lag, {ours} / {system}, 8 clients at 5000 rows/s: visible p99 ratio",
            DURABLE,
            DURABLE_ALSO,
        ),
        bound: Bound::AtMost(0.8),
    },
    Goal {
        work: "write-to-visible at 5 k rows/s, p99.9",
        goal: "under 3 ms",
        figure: Name { scenario: "lag", pattern: "5000 rows/s: visible p99.9" },
        base: Base::Fixed("ms"),
        bound: Bound::Below(3.0),
    },
    Goal {
        work: "write-to-visible at 50 k rows/s, p99",
        goal: "under 3 ms",
        figure: Name { scenario: "lag", pattern: "50000 rows/s: visible p99" },
        base: Base::Fixed("ms"),
        bound: Bound::Below(3.0),
    },
    Goal {
        work: "fan-out: CPU of the second and each further replica",
        goal: "under 60 % of the first's",
        figure: Name {
            scenario: "fanout",
            pattern: "*CPU of each replica from the second*against the first",
        },
        base: Base::Fixed("x"),
        bound: Bound::Below(0.6),
    },
    Goal {
        work: "fan-out: client latency at 4 replicas, 8 clients x 1 row, p50",
        goal: "within 1.5 x of that at 1 replica",
        figure: Name { scenario: "fanout", pattern: "4 replicas, 8 clients x 1 row: p50" },
        base: Base::Figure(Name {
            scenario: "fanout",
            pattern: "1 replica, 8 clients x 1 row: p50",
        }),
        bound: Bound::AtMost(1.5),
    },
    Goal {
        work: "fan-out: client latency at 4 replicas, 8 clients x 100 rows, p50",
        goal: "within 1.5 x of that at 1 replica",
        figure: Name { scenario: "fanout", pattern: "4 replicas, 8 clients x 100 rows: p50" },
        base: Base::Figure(Name {
            scenario: "fanout",
            pattern: "1 replica, 8 clients x 100 rows: p50",
        }),
        bound: Bound::AtMost(1.5),
    },
    Goal {
        work: "most memory of the primary during a dead replica's backlog",
        goal: "flat: at most 1.1 x of that during as many rows without a backlog",
        figure: Name { scenario: "footprint", pattern: "primary, dead replica, *, most: private" },
        base: Base::Figure(Name {
            scenario: "footprint",
            pattern: "primary, most during as many rows: private",
        }),
        bound: Bound::AtMost(1.1),
    },
    Goal {
        work: "most memory of a replica that catches up",
        goal: "flat: at most 1.1 x of that during as many rows without a backlog",
        figure: Name {
            scenario: "footprint",
            pattern: "replica, most during catching up: private",
        },
        base: Base::Figure(Name {
            scenario: "footprint",
            pattern: "replica, most during as many rows: private",
        }),
        bound: Bound::AtMost(1.1),
    },
    Goal {
        work: "memory over a run of 30 minutes",
        goal: "no growth: last third at most 1.1 x of the second third",
        figure: Name { scenario: "soak", pattern: "1800 s, *: growth of memory" },
        base: Base::Fixed("x"),
        bound: Bound::AtMost(1.1),
    },
    Goal {
        work: "cost per row at 30 M rows of log",
        goal: "within 15 % of that at 1 M",
        figure: Name { scenario: "growth", pattern: "30 M rows*: cost per row" },
        base: Base::Figure(Name { scenario: "growth", pattern: "1 M rows*: cost per row" }),
        bound: Bound::AtMost(1.15),
    },
    Goal {
        work: "start after kill -9 with 2 GB of log",
        goal: "bounded by settings, not by the log: at most 1.5 x of that with 512 MB",
        figure: Name {
            scenario: "recovery",
            pattern: "2048 MB of log, 1000000 keys, kill -9: listens after",
        },
        base: Base::Figure(Name {
            scenario: "recovery",
            pattern: "512 MB of log, 1000000 keys, kill -9: listens after",
        }),
        bound: Bound::AtMost(1.5),
    },
    Goal {
        work: "recovery scan from page cache, 2 GB of log",
        goal: "1 GB/s or better",
        figure: Name { scenario: "recovery", pattern: "2048 MB of log, *: scan" },
        base: Base::Fixed("GB/s"),
        bound: Bound::AtLeast(1.0),
    },
];

const fn peers(pattern: &'static str) -> Name {
    Name { scenario: "peers", pattern }
}

const fn best(
    ours: &'static str,
    pattern: &'static str,
    ratio: &'static str,
    systems: &'static [&'static str],
    also: &'static [&'static str],
) -> Base {
    Base::Best { ours, pattern, ratio, systems, also }
}

/// Shows how all goals stand by the newest figures of a sink's directory.
///
/// # Errors
/// When a figure is malformed; and with `strict` when a goal is missed or not measured.
pub fn show(sink: &Sink, strict: bool) -> Result<()> {
    let verdicts = judge::judge(GOALS, &kept::figures(sink.directory())?);
    for verdict in &verdicts {
        sink.show(&if sink.is_json() { verdict.json().to_string() } else { verdict.lines() });
    }
    let met = verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Met).count();
    sink.say(&format!("{met} of {} goals are met", verdicts.len()));
    ensure!(!strict || met == verdicts.len(), "not all goals are met");
    Ok(())
}
