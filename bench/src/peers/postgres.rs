//! PostgreSQL: a primary, and a standby (physical) or a subscriber (logical).

mod client;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use client::Connection;
use client::{connect, execute, text};

use super::{POLL, Peer, Programs, START_TIMEOUT, User, free_port, listening, words};
use crate::process::Server;
use crate::system::System;
use rustix::process::Signal;

/// What must be installed.
pub(crate) const PROGRAMS: &[&str] = &["postgres", "initdb", "pg_basebackup", "pg_receivewal"];

/// Of all processes: what peer figures of this kind of machine were taken with.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "shared_buffers=1GB",
    "wal_level=logical",
    "max_wal_size=16GB",
    "checkpoint_timeout=15min",
    "wal_retrieve_retry_interval=100ms",
    // Whatever it has not seen stays, however large.
    "max_slot_wal_keep_size=-1",
];

const TABLE: &str = "CREATE TABLE rows (id bigint PRIMARY KEY, value bytea NOT NULL)";
/// Bytes of a file of the log; fetching one begins at the beginning of a file.
const WAL_FILE_BYTES: u64 = 16 << 20;

/// The programs of the newest version that is installed.
pub(crate) fn programs() -> Programs {
    let version = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()).unwrap_or(0)
    };
    let entries = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = entries.map(|entry| entry.path()).max_by_key(version);
    let directories = newest.map(|path| path.join("bin")).into_iter().collect();
    // It refuses to run as root.
    Programs { directories, user: User::instead_of_root(&["postgres", "nobody"]) }
}

/// How it replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A standby that streams.
    PhysicalAsync,
    /// A standby that streams, on whose disk a commit is before the reply.
    PhysicalSync,
    /// A subscriber.
    LogicalAsync,
}

/// A primary and its replica.
pub struct Postgres {
    mode: Mode,
    primary: Server,
    replica: Server,
    primary_port: u16,
    replica_port: u16,
    /// Where [`Peer::ship`] begins and ends.
    ship: Option<(u64, u64)>,
}

/// Makes the directory of an empty server.
fn initialise(directory: &Path, name: &str) -> Result<PathBuf> {
    let programs = programs();
    let data = programs.directory(directory, name)?;
    let mut arguments = words(&["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
    arguments.extend(words(&["--no-locale", "--no-sync"]));
    arguments.push(format!("--pgdata={}", data.display()));
    programs.run("initdb", &arguments)?;
    Ok(data)
}

async fn start_one(data: &Path, port: u16) -> Result<Server> {
    let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
    let port_setting = format!("port={port}");
    for setting in SETTINGS.iter().copied().chain([port_setting.as_str()]) {
        arguments.extend(["-c".to_owned(), setting.to_owned()]);
    }
    let mut server = programs().serve("postgres", &arguments, &data.with_extension("log"))?;
    listening(&mut server, port).await?;
    // It listens before it answers.
    let until = Instant::now() + START_TIMEOUT;
    while let Err(error) = connect(port).await {
        server.check()?;
        ensure!(Instant::now() < until, "{}: {error:#}", server.log.display());
        tokio::time::sleep(POLL).await;
    }
    Ok(server)
}

/// How a replica reaches the primary.
fn conninfo(port: u16) -> String {
    format!("host=127.0.0.1 port={port} user=postgres application_name=replica")
}

/// Sets a setting that is read again without a restart.
async fn set(port: u16, name: &str, value: &str) -> Result<()> {
    execute(port, &format!("ALTER SYSTEM SET {name} = '{value}'")).await?;
    execute(port, "SELECT pg_reload_conf()").await
}

/// Waits until the query gives the text.
async fn until_it_says(port: u16, query: &str, expected: &str) -> Result<()> {
    let until = Instant::now() + START_TIMEOUT;
    loop {
        let found = text(port, query).await?;
        if found.as_deref() == Some(expected) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{query}: {found:?}, not {expected}");
        tokio::time::sleep(POLL).await;
    }
}

const STATE: &str =
    "SELECT state::text FROM pg_stat_replication WHERE application_name = 'replica'";
const FOLLOWERS: &str =
    "SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'replica'";

/// A copy of the primary that streams from it.
async fn start_standby(directory: &Path, primary: u16, port: u16) -> Result<Server> {
    let programs = programs();
    let data = programs.directory(directory, "replica")?;
    let arguments = [
        format!("--dbname={}", conninfo(primary)),
        format!("--pgdata={}", data.display()),
        "--write-recovery-conf".to_owned(),
        "--create-slot".to_owned(),
        "--slot=replica".to_owned(),
        "--checkpoint=fast".to_owned(),
        "--no-sync".to_owned(),
    ];
    programs.run("pg_basebackup", &arguments)?;
    start_one(&data, port).await
}

/// A server of its own that subscribes to the primary's table.
async fn start_subscriber(directory: &Path, primary: u16, port: u16) -> Result<Server> {
    let server = start_one(&initialise(directory, "replica")?, port).await?;
    execute(port, TABLE).await?;
    execute(primary, "CREATE PUBLICATION rows FOR TABLE rows").await?;
    let subscribe = format!(
        "CREATE SUBSCRIPTION replica CONNECTION '{}' PUBLICATION rows WITH (copy_data = false)",
        conninfo(primary)
    );
    execute(port, &subscribe).await?;
    Ok(server)
}

/// A position of the log, as a number.
fn position(text: &str) -> Result<u64> {
    let (high, low) = text.split_once('/').with_context(|| format!("{text}: not a position"))?;
    Ok((u64::from_str_radix(high, 16)? << 32) | u64::from_str_radix(low, 16)?)
}

impl Peer for Postgres {
    type Mode = Mode;

    async fn start(directory: &Path, mode: Mode) -> Result<Postgres> {
        let (primary_port, replica_port) = (free_port()?, free_port()?);
        let primary = start_one(&initialise(directory, "primary")?, primary_port).await?;
        execute(primary_port, TABLE).await?;
        let replica = match mode {
            Mode::LogicalAsync => start_subscriber(directory, primary_port, replica_port).await?,
            _ => start_standby(directory, primary_port, replica_port).await?,
        };
        until_it_says(primary_port, STATE, "streaming").await?;
        if mode == Mode::PhysicalSync {
            set(primary_port, "synchronous_standby_names", "replica").await?;
            let query = "SELECT sync_state::text FROM pg_stat_replication";
            until_it_says(primary_port, query, "sync").await?;
        }
        Ok(Postgres { mode, primary, replica, primary_port, replica_port, ship: None })
    }

    async fn begin_ship(&mut self) -> Result<()> {
        // A slot begins at the last checkpoint.
        execute(self.primary_port, "CHECKPOINT").await?;
        let create = "SELECT pg_create_physical_replication_slot('backlog', true)";
        execute(self.primary_port, create).await?;
        let query = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name='backlog'";
        let from = text(self.primary_port, query).await?.context("the slot has no position")?;
        let from = position(&from)?;
        self.ship = Some((from - from % WAL_FILE_BYTES, 0));
        Ok(())
    }

    /// Each time from a copy of the slot, since fetching moves it.
    async fn ship(&mut self, directory: &Path) -> Result<(u64, Duration)> {
        let (from, mut to) = self.ship.context("begin_ship comes before ship")?;
        let port = self.primary_port;
        if to == 0 {
            let end = text(port, "SELECT pg_current_wal_lsn()::text").await?;
            to = position(&end.context("no position")?)?;
            self.ship = Some((from, to));
            // The tool ends when it is sent something behind its end.
            execute(port, "SELECT pg_switch_wal()").await?;
            execute(port, "CHECKPOINT").await?;
        }
        execute(port, "SELECT pg_copy_physical_replication_slot('backlog', 'fetch')").await?;
        let programs = programs();
        let data = programs.directory(directory, "fetched")?;
        let mut arguments = words(&["--slot=fetch", "--no-loop", "--no-password"]);
        arguments.push(format!("--dbname=host=127.0.0.1 port={port} user=postgres"));
        arguments.push(format!("--endpos={:X}/{:X}", to >> 32, to & 0xffff_ffff));
        arguments.push(format!("--directory={}", data.display()));
        let began = Instant::now();
        programs.run("pg_receivewal", &arguments)?;
        let taken = began.elapsed();
        // Files have their full length from the beginning.
        let files = std::fs::read_dir(&data)?.count() as u64;
        let needed = (to - from).div_ceil(WAL_FILE_BYTES);
        ensure!(files >= needed, "pg_receivewal: {files} files of {needed}");
        std::fs::remove_dir_all(&data)?;
        execute(port, "SELECT pg_drop_replication_slot('fetch')").await?;
        Ok((to - from, taken))
    }

    async fn end_ship(&mut self) -> Result<()> {
        self.ship = None;
        execute(self.primary_port, "SELECT pg_drop_replication_slot('backlog')").await
    }
}

impl System for Postgres {
    type Client = Connection;

    fn name(&self) -> &str {
        match self.mode {
            Mode::PhysicalAsync => "postgresql physical async",
            Mode::PhysicalSync => "postgresql physical sync",
            Mode::LogicalAsync => "postgresql logical async",
        }
    }

    fn durability(&self) -> &str {
        match self.mode {
            Mode::PhysicalAsync => {
                "WAL fsynced on the primary; standby async, shows what its WAL has fsynced"
            }
            Mode::PhysicalSync => "WAL fsynced on primary and standby (synchronous_commit=on)",
            Mode::LogicalAsync => {
                "WAL fsynced on the primary; subscriber async, its synchronous_commit=off"
            }
        }
    }

    async fn writer(&self) -> Result<Connection> {
        Connection::open(self.primary_port).await
    }

    /// The log holds the same, but a reply waits for no disk and no standby.
    async fn backlog_writer(&self) -> Result<Connection> {
        let connection = Connection::open(self.primary_port).await?;
        connection.set("synchronous_commit = off").await?;
        Ok(connection)
    }

    async fn reader(&self, replica: usize) -> Result<Connection> {
        ensure!(replica == 0, "there is one replica");
        Connection::open(self.replica_port).await
    }

    async fn detach(&mut self) -> Result<()> {
        match self.mode {
            Mode::LogicalAsync => {
                execute(self.replica_port, "ALTER SUBSCRIPTION replica DISABLE").await?;
            }
            _ => set(self.replica_port, "primary_conninfo", "").await?,
        }
        until_it_says(self.primary_port, FOLLOWERS, "0").await
    }

    async fn attach(&mut self) -> Result<Instant> {
        let began = Instant::now();
        match self.mode {
            Mode::LogicalAsync => {
                execute(self.replica_port, "ALTER SUBSCRIPTION replica ENABLE").await?;
            }
            _ => {
                let conninfo = conninfo(self.primary_port);
                set(self.replica_port, "primary_conninfo", &conninfo).await?;
            }
        }
        Ok(began)
    }

    fn pids(&self) -> (u32, Vec<u32>) {
        (self.primary.pid(), vec![self.replica.pid()])
    }

    async fn stop(self) -> Result<()> {
        // INT: without waiting for clients to leave, as its first TERM would.
        for server in [self.primary, self.replica] {
            server.signal(Signal::INT)?;
            server.stop()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::position;

    #[test]
    fn a_position_is_read_as_it_is_shown() {
        assert_eq!(position("2/10").unwrap(), (2 << 32) + 16);
        assert!(position("210").is_err());
    }
}
