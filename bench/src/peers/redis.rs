//! Redis: a primary with its append-only file, and a replica.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{POLL, Peer, Programs, START_TIMEOUT, free_port, listening, words};
use crate::client::Resp;
use crate::process::Server;
use crate::system::System;

/// What must be installed.
pub(crate) const PROGRAMS: &[&str] = &["redis-server"];

/// Nobody listens there: a replica that follows it is cut off, and keeps its place.
const DEAD_PORT: u16 = 1;

pub(crate) fn programs() -> Programs {
    Programs { directories: Vec::new(), user: None }
}

/// What a reply of the primary waits for. (The replica syncs its file every second in each.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The append-only file is synced.
    Always,
    /// Nothing: the file is synced every second.
    EverySecond,
    /// The file is synced, and the replica has received it.
    AlwaysAndWait,
}

/// A primary and its replica.
pub struct Redis {
    mode: Mode,
    primary: Server,
    replica: Server,
    primary_port: u16,
    replica_port: u16,
}

fn start_one(directory: &Path, name: &str, port: u16, more: &[String]) -> Result<Server> {
    let data = programs().directory(directory, name)?;
    let mut arguments = words(&["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
    arguments.extend(["--port".to_owned(), port.to_string()]);
    arguments.extend(["--dir".to_owned(), data.display().to_string()]);
    arguments.extend(words(&["--auto-aof-rewrite-percentage", "0"]));
    // A replica that was cut off goes on from where it was, whatever was written meanwhile.
    arguments.extend(words(&["--repl-backlog-size", "2gb", "--repl-backlog-ttl", "0"]));
    arguments.extend(words(&["--client-output-buffer-limit", "replica", "0", "0", "0"]));
    arguments.extend(words(&["--repl-diskless-sync-delay", "0"]));
    arguments.extend_from_slice(more);
    programs().serve("redis-server", &arguments, &directory.join(format!("{name}.log")))
}

/// A field of `INFO`.
async fn info(client: &mut Resp, section: &str, field: &str) -> Result<String> {
    let text = client.ask_text(&["INFO", section]).await?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map(str::to_owned).with_context(|| format!("INFO {section} has no {field}"))
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Redis {
    async fn follows(&self) -> Result<bool> {
        let mut primary = Resp::connect(&address(self.primary_port)).await?;
        let mut replica = Resp::connect(&address(self.replica_port)).await?;
        if info(&mut replica, "replication", "master_link_status").await? != "up" {
            return Ok(false);
        }
        // A replica writes its file anew after a full copy: that must not be measured.
        let rewrites = info(&mut replica, "persistence", "aof_rewrite_in_progress").await?;
        let scheduled = info(&mut replica, "persistence", "aof_rewrite_scheduled").await?;
        let seen = info(&mut replica, "replication", "slave_repl_offset").await?;
        let written = info(&mut primary, "replication", "master_repl_offset").await?;
        Ok(rewrites == "0" && scheduled == "0" && seen == written)
    }

    /// Only the first synchronisation may copy everything: what came later went on from where the
    /// replica was, or is no catching up.
    async fn check_partial(&self) -> Result<()> {
        let mut primary = Resp::connect(&address(self.primary_port)).await?;
        let full = info(&mut primary, "stats", "sync_full").await?;
        ensure!(full == "1", "redis made {full} full copies instead of 1: nothing was caught up");
        Ok(())
    }
}

impl Peer for Redis {
    type Mode = Mode;

    async fn start(directory: &Path, mode: Mode) -> Result<Redis> {
        let (primary_port, replica_port) = (free_port()?, free_port()?);
        let sync = if mode == Mode::EverySecond { "everysec" } else { "always" };
        let more = words(&["--appendfsync", sync]);
        let mut primary = start_one(directory, "primary", primary_port, &more)?;
        listening(&mut primary, primary_port).await?;
        let mut more = words(&["--appendfsync", "everysec", "--replicaof", "127.0.0.1"]);
        more.push(primary_port.to_string());
        let mut replica = start_one(directory, "replica", replica_port, &more)?;
        listening(&mut replica, replica_port).await?;
        let mut system = Redis { mode, primary, replica, primary_port, replica_port };
        let until = Instant::now() + START_TIMEOUT;
        while !system.follows().await? {
            system.replica.check()?;
            ensure!(Instant::now() < until, "{}: does not follow", system.replica.log.display());
            tokio::time::sleep(POLL).await;
        }
        Ok(system)
    }
}

impl System for Redis {
    type Client = Resp;

    fn name(&self) -> &str {
        match self.mode {
            Mode::Always => "redis AOF always",
            Mode::EverySecond => "redis AOF everysec",
            Mode::AlwaysAndWait => "redis AOF always, WAIT 1",
        }
    }

    fn durability(&self) -> &str {
        match self.mode {
            Mode::Always => "AOF fsynced on the primary; replica async, its AOF everysec",
            Mode::EverySecond => "memory of the primary; AOF everysec on primary and replica",
            Mode::AlwaysAndWait => {
                "AOF fsynced on the primary, memory only of the replica (its AOF everysec)"
            }
        }
    }

    async fn writer(&self) -> Result<Resp> {
        let client = Resp::connect(&address(self.primary_port)).await?;
        let waits = self.mode == Mode::AlwaysAndWait;
        Ok(if waits { client.waiting_for_a_replica() } else { client })
    }

    async fn backlog_writer(&self) -> Result<Resp> {
        Resp::connect(&address(self.primary_port)).await
    }

    async fn reader(&self, replica: usize) -> Result<Resp> {
        ensure!(replica == 0, "there is one replica");
        Resp::connect(&address(self.replica_port)).await
    }

    async fn detach(&mut self) -> Result<()> {
        self.check_partial().await?;
        let mut replica = Resp::connect(&address(self.replica_port)).await?;
        replica.ask(&["REPLICAOF", "127.0.0.1", &DEAD_PORT.to_string()]).await?;
        let mut primary = Resp::connect(&address(self.primary_port)).await?;
        let until = Instant::now() + START_TIMEOUT;
        while info(&mut primary, "replication", "connected_slaves").await? != "0" {
            ensure!(Instant::now() < until, "redis: the replica does not leave");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn attach(&mut self) -> Result<Instant> {
        let mut replica = Resp::connect(&address(self.replica_port)).await?;
        let began = Instant::now();
        replica.ask(&["REPLICAOF", "127.0.0.1", &self.primary_port.to_string()]).await?;
        Ok(began)
    }

    fn pids(&self) -> (u32, Vec<u32>) {
        (self.primary.pid(), vec![self.replica.pid()])
    }

    async fn stop(self) -> Result<()> {
        self.check_partial().await?;
        self.replica.stop()?;
        self.primary.stop()
    }
}
