//! Scenario `recovery`: how long a primary takes to start, by the length of its log, the size of
//! its table, and how it ended.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::Signal;
use serde_json::json;

use super::limits::Limit;
use super::{Common, bring_into_page_cache, log_position};
use crate::figure::Figure;
use crate::load::{self, Input};
use crate::node::{Cluster, Layout, Node, binary};
use crate::rows::Keys;
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "recovery";
const TIMEOUT: Duration = Duration::from_secs(600);
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// Rows in a transaction of the log that is recovered.
const TRANSACTION_ROWS: usize = 100;
/// Transactions between two looks at the log's length.
const PART: u64 = 640;

/// What is recovered.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Megabytes of log
    #[arg(long, value_delimiter = ',', default_value = "64,512,2048")]
    pub megabytes: Vec<u64>,
    /// Rows in the table, in multiples of --keys
    #[arg(long, value_delimiter = ',', default_value = "1,10")]
    pub times_keys: Vec<u64>,
}

impl Plan {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { megabytes: vec![4], times_keys: vec![1] }
    }
}

/// How the primary ended before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Cleanly,
    Killed,
    /// Killed, and no checkpoint since it began: all of the log is scanned.
    KilledWithoutCheckpoint,
    TableLost,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ended::Cleanly => "stopped cleanly",
            Ended::Killed => "kill -9",
            Ended::KilledWithoutCheckpoint => "kill -9, no checkpoint",
            Ended::TableLost => "table lost",
        })
    }
}

const ENDS: [Ended; 4] =
    [Ended::Cleanly, Ended::Killed, Ended::KilledWithoutCheckpoint, Ended::TableLost];

/// One start.
struct Start {
    /// Until clients can connect.
    listening: f64,
    /// Until the table shows the whole log.
    visible: f64,
    /// Bytes of log that the recovery says it has read.
    read: f64,
    /// Bytes of the whole log.
    log: f64,
}

/// Runs the scenario.
///
/// # Errors
/// When a node fails.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    for &megabytes in &options.megabytes {
        for &times in &options.times_keys {
            for ended in ENDS {
                let mut limit = Limit::hashing();
                let mut starts = Vec::new();
                for round in 0..plan.rounds {
                    let what = format!("{megabytes} MB of log, {times} x keys, {ended}");
                    sink.progress(format!("{what}, round {}", round + 1));
                    limit.measure()?;
                    starts.push(one_start(plan, megabytes, plan.keys * times, ended).await?);
                }
                put(plan, sink, (megabytes, plan.keys * times, ended), (&starts, &limit))?;
            }
        }
    }
    Ok(())
}

async fn one_start(plan: &Common, megabytes: u64, keys: u64, ended: Ended) -> Result<Start> {
    let scratch = plan.scratch()?;
    let mut layout = plan.layout(Layout { replicas: 0, ..Layout::asynchronous() });
    if ended == Ended::KilledWithoutCheckpoint {
        layout.flags.push("--checkpoint-ms=600000".to_owned());
    }
    let cluster = Cluster::start(scratch.path(), &layout).await?;
    load::preload(&cluster, keys).await?;
    let input = Input { keys, pick: Keys::Uniform, transaction_rows: TRANSACTION_ROWS };
    let mut number = 1;
    loop {
        let appended = log_position(&cluster.primary.status().await?, "appended")?;
        if appended >= megabytes * 1_000_000 {
            break;
        }
        load::backlog(&cluster, PART.min(megabytes * 20), input, number).await?;
        number += 1;
    }
    end(cluster, ended).await?;
    if ended == Ended::TableLost {
        std::fs::remove_dir_all(scratch.path().join("primary/table"))?;
    }
    bring_into_page_cache(&scratch.path().join("primary"))?;
    start(scratch.path(), &layout).await
}

async fn end(cluster: Cluster, ended: Ended) -> Result<()> {
    let until = Instant::now() + TIMEOUT;
    loop {
        let status = cluster.primary.status().await?;
        if log_position(&status, "visible")? == log_position(&status, "appended")? {
            break;
        }
        ensure!(Instant::now() < until, "the primary does not show its log: {status}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    match ended {
        Ended::Cleanly | Ended::TableLost => cluster.stop().await,
        // Dropped, it is waited for.
        Ended::Killed | Ended::KilledWithoutCheckpoint => {
            cluster.primary.server().signal(Signal::KILL)
        }
    }
}

async fn start(directory: &Path, layout: &Layout) -> Result<Start> {
    let log = directory.join("primary.log");
    let said_before = std::fs::read_to_string(&log)?.len();
    let mut flags = vec!["--ack".to_owned(), layout.ack.clone()];
    flags.extend_from_slice(&layout.flags);
    let binary = binary()?;
    let began = Instant::now();
    let node = Node::start(&binary, directory, "primary", &flags).await?;
    let listening = began.elapsed().as_secs_f64();
    let (visible, appended) = loop {
        let status = node.status().await?;
        let appended = log_position(&status, "appended")?;
        if log_position(&status, "visible")? == appended {
            break (began.elapsed().as_secs_f64(), appended);
        }
        ensure!(began.elapsed() < TIMEOUT, "the primary does not show its log: {status}");
        tokio::time::sleep(LOOK_PAUSE).await;
    };
    node.stop()?;
    let said = std::fs::read_to_string(&log)?;
    let read = bytes_read(&said[said_before..])
        .with_context(|| format!("no bytes_read= in {}", log.display()))?;
    Ok(Start { listening, visible, read, log: appended as f64 })
}

/// What the recovery says in the node's log.
fn bytes_read(said: &str) -> Option<f64> {
    let behind = said.split_once("bytes_read=")?.1;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn put(
    plan: &Common,
    sink: &Sink,
    (megabytes, keys, ended): (u64, u64, Ended),
    (starts, limit): (&[Start], &Limit),
) -> Result<()> {
    let settings = settings(
        "O_DSYNC",
        json!({
            "log_megabytes": megabytes, "keys": keys, "transaction_rows": TRANSACTION_ROWS,
            "ended": ended.to_string(), "from": "page cache", "flags": plan.flags,
        }),
    );
    let name = format!("{megabytes} MB of log, {keys} keys, {ended}");
    let figure = |what: &str, unit, value: fn(&Start) -> f64| {
        let values = starts.iter().map(value).collect();
        Figure::new(SCENARIO, &format!("{name}: {what}"), unit, values)
    };
    sink.figure(&figure("listens after", "s", |start| start.listening), &settings)?;
    sink.figure(&figure("shows all after", "s", |start| start.visible), &settings)?;
    sink.figure(&figure("scanned", "MB", |start| start.read / 1e6), &settings)?;
    // Rates of the whole start, process and all: the scan alone could only be faster.
    let rate = match ended {
        Ended::Killed => return Ok(()),
        Ended::Cleanly => figure("scan", "MB/s", |start| start.read / 1e6 / start.listening),
        Ended::KilledWithoutCheckpoint => {
            figure("scan and replay", "MB/s", |start| start.read / 1e6 / start.visible)
        }
        Ended::TableLost => figure("rebuild", "MB/s", |start| start.log / 1e6 / start.visible),
    };
    sink.figure(&rate.with_limit(&limit.figure(SCENARIO)), &settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recovery_says_what_it_read() {
        let said = "INFO log recovered end=4096 frames_read=3 bytes_read=12288 segments=1\n";
        assert_eq!(bytes_read(said), Some(12_288.0));
        assert_eq!(bytes_read("nothing"), None);
    }
}
