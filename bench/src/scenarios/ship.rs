//! Scenario `ship`: how fast a backlog of log reaches replicas, verified and durable there, without
//! apply.
//!
//! Nothing is applied because nothing is committed: the primary's policy waits for a replica that
//! never comes, so its log grows and is shipped, and rows below `committed` are all that replicas
//! apply. What is measured is the product's own path, with no switch for the bench.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::spawn_local;

use super::limits::Limit;
use super::{Common, bring_into_page_cache, log_position, replica_row};
use crate::figure::Figure;
use crate::load::{self, Input};
use crate::node::{Node, binary};
use crate::process::{cpu_seconds, read_bytes};
use crate::sink::{Sink, settings};
use crate::system::System;

const SCENARIO: &str = "ship";
/// Longest wait for replicas.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Between two looks at the primary's status: each costs it about a tenth of a millisecond.
const LOOK_PAUSE: Duration = Duration::from_millis(3);
/// The rows of a backlog are written in so many parts; after each its length is looked at.
const PART_BYTES: u64 = 32 << 20;

/// What is shipped.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Megabytes of log (at most 3500: all of it is uncommitted)
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=3500))]
    pub megabytes: u64,
    /// Numbers of replicas
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    pub replicas: Vec<usize>,
    /// Rows per transaction
    #[arg(long, value_delimiter = ',', default_value = "1,100")]
    pub transaction_rows: Vec<usize>,
}

impl Plan {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny() -> Plan {
        Plan { megabytes: 8, replicas: vec![1, 2], transaction_rows: vec![100] }
    }
}

/// A primary whose log nobody commits.
///
/// A restart would read all of it back into memory, since it is uncommitted, and map it, after
/// which the page cache cannot be told to drop it. So a cold file is one that no replica has been
/// sent yet: each cold round fills a primary of its own.
struct Primary<'a> {
    plan: &'a Common,
    directory: &'a Path,
    node: Node,
}

impl<'a> Primary<'a> {
    async fn start(plan: &'a Common, directory: &'a Path) -> Result<Primary<'a>> {
        let mut flags = vec!["--ack=sync committed (nobody)".to_owned()];
        flags.push("--uncommitted-bytes-max=4GiB".to_owned());
        flags.extend_from_slice(&plan.flags);
        let node = Node::start(&binary()?, directory, "primary", &flags).await?;
        Ok(Primary { plan, directory, node })
    }

    /// Writes until the log has so many bytes more; returns how many there are.
    async fn fill(&self, bytes: u64, transaction_rows: usize) -> Result<u64> {
        let begin = log_position(&self.node.status().await?, "durable")?;
        let input = Input { keys: self.plan.keys, pick: self.plan.pick, transaction_rows };
        let system = Filled { node: &self.node };
        loop {
            let now = log_position(&self.node.status().await?, "appended")?;
            if now - begin >= bytes {
                break;
            }
            // A row has about 150 bytes of log, more when it is a transaction of its own.
            let part =
                PART_BYTES.min(bytes - (now - begin)).div_ceil(200 * transaction_rows as u64);
            load::backlog(&system, part, input, 1).await?;
        }
        let until = Instant::now() + TIMEOUT;
        loop {
            let status = self.node.status().await?;
            let (end, durable) =
                (log_position(&status, "appended")?, log_position(&status, "durable")?);
            if durable == end {
                return Ok(end - begin);
            }
            ensure!(Instant::now() < until, "the primary's log does not become durable: {status}");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Starts `names` as fresh replicas while the primary stands still, so that all of them have
    /// their files prepared and are told the log at the same moment.
    async fn start_replicas(&self, names: &[String]) -> Result<Vec<Node>> {
        let binary = binary()?;
        self.node.server().signal(Signal::STOP)?;
        let mut starting = Vec::new();
        for name in names {
            let mut flags = vec![format!("--replica-of={}", self.node.replication_listen)];
            flags.push("--peer-timeout-ms=120000".to_owned());
            flags.extend_from_slice(&self.plan.flags);
            let (binary, name) = (binary.clone(), name.clone());
            let directory = self.directory.to_path_buf();
            starting.push(spawn_local(async move {
                Node::start(&binary, &directory, &name, &flags).await
            }));
        }
        let mut nodes = Vec::new();
        for start in starting {
            nodes.push(start.await.context("a start panicked")??);
        }
        Ok(nodes)
    }

    /// Ships the whole log to `names`, fresh replicas.
    async fn ship(&self, names: &[String]) -> Result<Shipped> {
        let nodes = self.start_replicas(names).await?;
        let pid = self.node.pid();
        let before = (cpu_seconds(pid), read_bytes(pid)?);
        self.node.server().signal(Signal::CONT)?;
        let (mut began, until) = (None, Instant::now() + TIMEOUT);
        let seconds = loop {
            let status = self.node.status().await?;
            let end = log_position(&status, "appended")?;
            let rows: Vec<&Value> =
                names.iter().filter_map(|name| replica_row(&status, name)).collect();
            let at = |row: &Value, what: &str| row[what].as_u64().unwrap_or(0);
            if began.is_none() && rows.iter().any(|row| row["state"] == "streaming") {
                began = Some(Instant::now());
            }
            let done = rows.iter().filter(|row| at(row, "durable") == end).count();
            if let Some(began) = began.filter(|_| done == names.len()) {
                break began.elapsed().as_secs_f64();
            }
            ensure!(Instant::now() < until, "replicas do not get the log: {status}");
            tokio::time::sleep(LOOK_PAUSE).await;
        };
        let cpu = cpu_seconds(pid) - before.0;
        let read = read_bytes(pid)? - before.1;
        for node in &nodes {
            let status = node.status().await?;
            let visible = log_position(&status, "visible")?;
            let durable = log_position(&status, "durable")?;
            ensure!(visible < durable / 2, "rows were applied beside shipping: {status}");
        }
        drop(nodes);
        for name in names {
            std::fs::remove_dir_all(self.directory.join(name))?;
        }
        Ok(Shipped { seconds, cpu, read })
    }
}

/// What one shipment cost.
struct Shipped {
    /// From the first replica's streaming until the last has all of it durable.
    seconds: f64,
    /// CPU seconds of the primary.
    cpu: f64,
    /// Bytes that the primary read from the disk.
    read: u64,
}

/// Writes out the log's segments and drops them from the page cache. (What a process has mapped
/// and touched stays.)
fn drop_from_page_cache(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == "log") {
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// The primary as a target of [`load::backlog`].
struct Filled<'a> {
    node: &'a Node,
}

impl System for Filled<'_> {
    type Client = crate::client::Resp;

    fn name(&self) -> &'static str {
        "rowship"
    }

    fn durability(&self) -> &'static str {
        "memory of the primary"
    }

    async fn writer(&self) -> Result<Self::Client> {
        let mut client = Self::Client::connect(&self.node.listen).await?;
        client.ask(&["ROWSHIP.ACK", "memory"]).await?;
        Ok(client)
    }

    async fn reader(&self, replica: usize) -> Result<Self::Client> {
        anyhow::bail!("replica {replica}: this system has none")
    }

    async fn detach(&mut self) -> Result<()> {
        anyhow::bail!("this system has no replica")
    }

    async fn attach(&mut self) -> Result<Instant> {
        anyhow::bail!("this system has no replica")
    }

    fn pids(&self) -> (u32, Vec<u32>) {
        (self.node.pid(), Vec::new())
    }

    async fn stop(self) -> Result<()> {
        Ok(())
    }
}

/// Rounds of one number of replicas.
#[derive(Default)]
struct Rounds {
    each: Vec<f64>,
    cpu: Vec<f64>,
    read: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, bytes: u64, count: usize, shipped: &Shipped) {
        self.each.push(bytes as f64 / 1e6 / shipped.seconds);
        self.cpu.push(shipped.cpu / (bytes as f64 * count as f64 / 1e9));
        self.read.push(shipped.read as f64 / bytes as f64);
    }
}

/// Runs the scenario.
///
/// # Errors
/// When a node fails, or a file that should be cold was not.
pub async fn run(plan: &Common, options: &Plan, sink: &Sink) -> Result<()> {
    for &rows in &options.transaction_rows {
        warm(plan, options, rows, sink).await?;
        for &count in &options.replicas {
            cold(plan, options, (rows, count), sink).await?;
        }
    }
    Ok(())
}

fn names(count: usize, label: &str) -> Vec<String> {
    (0..count).map(|at| format!("{label}-{at}")).collect()
}

async fn warm(plan: &Common, options: &Plan, rows: usize, sink: &Sink) -> Result<()> {
    let scratch = plan.scratch()?;
    let primary = Primary::start(plan, scratch.path()).await?;
    sink.progress(format!("writing a backlog of {} MB", options.megabytes));
    let bytes = primary.fill(options.megabytes * 1_000_000, rows).await?;
    for &count in &options.replicas {
        let (mut limit, mut rounds) = (Limit::shipping(&plan.directory), Rounds::default());
        for round in 0..plan.rounds {
            sink.progress(format!("{count} replicas, page cache, round {}", round + 1));
            limit.measure()?;
            bring_into_page_cache(&scratch.path().join("primary"))?;
            let shipped = primary.ship(&names(count, &format!("r{round}-{count}"))).await?;
            let read = shipped.read;
            ensure!(read < bytes / 10, "the file was cold: {read} of {bytes} bytes were read");
            rounds.add(bytes, count, &shipped);
        }
        put(plan, sink, (bytes, rows, count, false), rounds, &limit)?;
    }
    Ok(())
}

/// What a primary may still have of its log in buffers of its own, beside the page cache.
const BUFFERED_BYTES: u64 = 64 << 20;

async fn cold(
    plan: &Common,
    options: &Plan,
    (rows, count): (usize, usize),
    sink: &Sink,
) -> Result<()> {
    let (mut limit, mut rounds) = (Limit::shipping(&plan.directory), Rounds::default());
    let mut bytes = 0;
    for round in 0..plan.rounds {
        sink.progress(format!("{count} replicas, cold file, round {}", round + 1));
        let scratch = plan.scratch()?;
        let primary = Primary::start(plan, scratch.path()).await?;
        bytes = primary.fill(options.megabytes * 1_000_000, rows).await?;
        limit.measure()?;
        drop_from_page_cache(&scratch.path().join("primary"))?;
        let shipped = primary.ship(&names(count, "replica")).await?;
        // Otherwise a figure of the page cache would be called one of a cold file.
        ensure!(
            shipped.read + BUFFERED_BYTES >= bytes / 10 * 9,
            "the file was not cold: of {bytes} bytes only {} were read from the disk",
            shipped.read
        );
        rounds.add(bytes, count, &shipped);
    }
    put(plan, sink, (bytes, rows, count, true), rounds, &limit)
}

fn put(
    plan: &Common,
    sink: &Sink,
    (bytes, rows, count, cold): (u64, usize, usize, bool),
    rounds: Rounds,
    limit: &Limit,
) -> Result<()> {
    let from = if cold { "cold file" } else { "page cache" };
    let name = format!("ship, {rows} rows/transaction, {from}, {count} replicas");
    let settings = settings(
        "O_DSYNC on the replica",
        json!({
            "log_bytes": bytes, "transaction_rows": rows, "from": from, "replicas": count,
            "keys": plan.keys, "pick": plan.pick.to_string(), "flags": plan.flags,
            "apply": "none: the primary's policy waits for a replica that never comes",
            "counted": "from the first replica's streaming until the last has all of it durable",
            "cold": "dropped from the guest's page cache; the host's is not known",
        }),
    );
    let figure =
        |what: &str, unit, values| Figure::new(SCENARIO, &format!("{name}: {what}"), unit, values);
    let limit = limit.figure(SCENARIO);
    sink.figure(&figure("each", "MB/s", rounds.each).with_limit(&limit), &settings)?;
    sink.figure(&figure("CPU of the primary per GB", "s/GB", rounds.cpu), &settings)?;
    sink.figure(&figure("read from the disk", "of log", rounds.read), &settings)
}
