//! MariaDB: a primary with a binary log of rows, and a replica that applies it with four workers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Params, Row as SqlRow, Statement, Value};

use super::{POLL, Peer, Programs, START_TIMEOUT, free_port, listening, words};
use crate::client::Client;
use crate::process::Server;
use crate::rows::Row;
use crate::system::System;

/// What must be installed.
pub(crate) const PROGRAMS: &[&str] = &["mariadbd", "mariadb-install-db", "mariadb-binlog"];

const SETTINGS: &[&str] = &[
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    // Relative to the data directory: a longer path may be too long for a socket.
    "--socket=socket",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=1G",
    "--innodb-log-file-size=1G",
];

const PRIMARY_SETTINGS: &[&str] =
    &["--server-id=1", "--log-bin=binlog", "--binlog-format=ROW", "--sync-binlog=1"];

const REPLICA_SETTINGS: &[&str] = &[
    "--server-id=2",
    "--read-only",
    "--skip-slave-start",
    "--relay-log=relay",
    "--slave-parallel-threads=4",
    "--slave-parallel-mode=optimistic",
];

/// Everything durable before a reply, as the settings above say.
const DURABLE: &str = "SET GLOBAL sync_binlog = 1, GLOBAL innodb_flush_log_at_trx_commit = 1";
/// Nothing: what the log holds is the same.
const RELAXED: &str = "SET GLOBAL sync_binlog = 0, GLOBAL innodb_flush_log_at_trx_commit = 2";

pub(crate) fn programs() -> Programs {
    Programs { directories: Vec::new(), user: None }
}

/// What a reply waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The primary's disk.
    Async,
    /// The primary's disk, and that the replica has received it.
    SemiSync,
}

/// A primary and its replica.
pub struct Mariadb {
    mode: Mode,
    primary: Server,
    replica: Server,
    primary_port: u16,
    replica_port: u16,
    /// Commits that waited for no replica before it followed.
    unacknowledged: String,
    /// The file of the log at which [`Peer::ship`] begins.
    ship_from: Option<String>,
}

/// Makes the directory of an empty server.
fn initialise(directory: &Path) -> Result<PathBuf> {
    let programs = programs();
    let data = programs.directory(directory, "primary")?;
    let mut arguments = words(&["--no-defaults", "--auth-root-authentication-method=normal"]);
    arguments.extend(words(&["--skip-test-db", "--skip-name-resolve"]));
    arguments.extend(as_root());
    arguments.push(format!("--datadir={}", data.display()));
    programs.run("mariadb-install-db", &arguments)?;
    Ok(data)
}

/// It wants to be told when root starts it.
fn as_root() -> Option<String> {
    rustix::process::geteuid().is_root().then(|| "--user=root".to_owned())
}

async fn start_one(data: &Path, port: u16, more: &[&str]) -> Result<Server> {
    let mut arguments = words(&["--no-defaults"]);
    arguments.extend(as_root());
    arguments.push(format!("--datadir={}", data.display()));
    arguments.push(format!("--pid-file={}", data.with_extension("pid").display()));
    arguments.push(format!("--port={port}"));
    arguments.extend(words(SETTINGS));
    arguments.extend(words(more));
    let mut server = programs().serve("mariadbd", &arguments, &data.with_extension("log"))?;
    listening(&mut server, port).await?;
    Ok(server)
}

/// Connects over TCP.
async fn connect(port: u16, database: Option<&str>) -> Result<Conn> {
    let options = OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(port)
        .user(Some("root"))
        .db_name(database)
        // Else it would change to the server's Unix socket.
        .prefer_socket(false);
    Conn::new(options).await.with_context(|| format!("connecting to MariaDB on port {port}"))
}

/// Runs a statement on a connection of its own.
async fn execute(port: u16, statement: &str) -> Result<()> {
    let mut conn = connect(port, None).await?;
    conn.query_drop(statement).await.with_context(|| statement.to_owned())
}

/// A column of the only row.
async fn column(port: u16, query: &str, name: &str) -> Result<String> {
    let mut conn = connect(port, None).await?;
    let row: Option<SqlRow> = conn.query_first(query).await.with_context(|| query.to_owned())?;
    let row = row.with_context(|| format!("{query}: no row"))?;
    row.get(name).with_context(|| format!("{query}: no column {name}"))
}

async fn unacknowledged(port: u16) -> Result<String> {
    column(port, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_no_tx'", "Value").await
}

/// Waits until the replica receives and applies.
async fn wait_until_following(replica: &mut Server, port: u16) -> Result<()> {
    let until = Instant::now() + START_TIMEOUT;
    loop {
        let io = column(port, "SHOW SLAVE STATUS", "Slave_IO_Running").await?;
        let sql = column(port, "SHOW SLAVE STATUS", "Slave_SQL_Running").await?;
        if io == "Yes" && sql == "Yes" {
            return Ok(());
        }
        replica.check()?;
        ensure!(Instant::now() < until, "{}: it does not follow", replica.log.display());
        tokio::time::sleep(POLL).await;
    }
}

impl Mariadb {
    /// A replica that is lost makes semi-sync go on without: then it was not semi-sync.
    async fn check_semi_sync(&self) -> Result<()> {
        if self.mode == Mode::SemiSync {
            let now = unacknowledged(self.primary_port).await?;
            ensure!(now == self.unacknowledged, "{now} commits did not wait for the replica");
        }
        Ok(())
    }
}

impl Peer for Mariadb {
    type Mode = Mode;

    async fn start(directory: &Path, mode: Mode) -> Result<Mariadb> {
        let (primary_port, replica_port) = (free_port()?, free_port()?);
        let data = initialise(directory)?;
        // A copy of the empty server: making one takes seconds.
        let replica_data = data.with_file_name("replica");
        let copied = Command::new("cp").arg("-a").args([&data, &replica_data]).status()?;
        ensure!(copied.success(), "cp -a {} ended with {copied}", data.display());
        let primary = start_one(&data, primary_port, PRIMARY_SETTINGS).await?;
        let mut replica = start_one(&replica_data, replica_port, REPLICA_SETTINGS).await?;
        execute(primary_port, "CREATE DATABASE bench").await?;
        let table = "(id BIGINT PRIMARY KEY, value VARBINARY(255) NOT NULL) ENGINE=InnoDB";
        execute(primary_port, &format!("CREATE TABLE bench.items {table}")).await?;
        if mode == Mode::SemiSync {
            execute(replica_port, "SET GLOBAL rpl_semi_sync_slave_enabled = ON").await?;
        }
        let follow = format!(
            "CHANGE MASTER TO master_host='127.0.0.1', master_port={primary_port}, \
             master_user='root', master_connect_retry=1, master_use_gtid=slave_pos"
        );
        execute(replica_port, &follow).await?;
        execute(replica_port, "START SLAVE").await?;
        wait_until_following(&mut replica, replica_port).await?;
        // The table comes with it.
        let until = Instant::now() + START_TIMEOUT;
        while connect(replica_port, Some("bench")).await.is_err() {
            ensure!(Instant::now() < until, "{}: it applies nothing", replica.log.display());
            tokio::time::sleep(POLL).await;
        }
        if mode == Mode::SemiSync {
            // Long enough to never go on without the replica.
            let settings = "GLOBAL rpl_semi_sync_master_timeout = 600000, \
                            GLOBAL rpl_semi_sync_master_wait_point = AFTER_SYNC, \
                            GLOBAL rpl_semi_sync_master_enabled = ON";
            execute(primary_port, &format!("SET {settings}")).await?;
            let query = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_clients'";
            while column(primary_port, query, "Value").await? != "1" {
                ensure!(Instant::now() < until, "{}: not semi-sync", replica.log.display());
                tokio::time::sleep(POLL).await;
            }
        }
        let unacknowledged = unacknowledged(primary_port).await?;
        let ship_from = None;
        Ok(Mariadb {
            mode,
            primary,
            replica,
            primary_port,
            replica_port,
            unacknowledged,
            ship_from,
        })
    }

    async fn begin_ship(&mut self) -> Result<()> {
        execute(self.primary_port, "FLUSH BINARY LOGS").await?;
        self.ship_from = Some(column(self.primary_port, "SHOW MASTER STATUS", "File").await?);
        Ok(())
    }

    async fn ship(&mut self, directory: &Path) -> Result<(u64, Duration)> {
        let from = self.ship_from.clone().context("begin_ship comes before ship")?;
        let programs = programs();
        let data = programs.directory(directory, "fetched")?;
        let mut arguments = words(&["--no-defaults", "--read-from-remote-server", "--raw"]);
        arguments.extend(words(&["--host=127.0.0.1", "--protocol=tcp", "--user=root"]));
        arguments.push(format!("--port={}", self.primary_port));
        arguments.push("--to-last-log".to_owned());
        arguments.push(format!("--result-file={}/", data.display()));
        arguments.push(from);
        let began = Instant::now();
        programs.run("mariadb-binlog", &arguments)?;
        let taken = began.elapsed();
        let mut bytes = 0;
        for entry in std::fs::read_dir(&data)? {
            bytes += entry?.metadata()?.len();
        }
        let last = column(self.primary_port, "SHOW MASTER STATUS", "File").await?;
        let end = column(self.primary_port, "SHOW MASTER STATUS", "Position").await?;
        let fetched = std::fs::metadata(data.join(&last)).map_or(0, |file| file.len());
        ensure!(fetched.to_string() == end, "mariadb-binlog: {fetched} bytes of {last}, not {end}");
        std::fs::remove_dir_all(&data)?;
        Ok((bytes, taken))
    }
}

/// A connection with prepared statements.
pub struct Connection {
    conn: Conn,
    /// By the rows that one takes.
    upserts: HashMap<usize, Statement>,
    read: Statement,
}

impl Connection {
    async fn open(port: u16) -> Result<Connection> {
        let mut conn = connect(port, Some("bench")).await?;
        let read = conn.prep("SELECT value FROM items WHERE id = ?").await?;
        Ok(Connection { conn, upserts: HashMap::new(), read })
    }

    async fn upsert_of(&mut self, rows: usize) -> Result<Statement> {
        if let Some(statement) = self.upserts.get(&rows) {
            return Ok(statement.clone());
        }
        let places = vec!["(?,?)"; rows].join(",");
        let statement = format!(
            "INSERT INTO items VALUES {places} ON DUPLICATE KEY UPDATE value = VALUES(value)"
        );
        let statement = self.conn.prep(statement).await?;
        self.upserts.insert(rows, statement.clone());
        Ok(statement)
    }
}

impl Client for Connection {
    async fn write(&mut self, rows: &[Row]) -> Result<()> {
        let statement = self.upsert_of(rows.len()).await?;
        let values = rows
            .iter()
            .flat_map(|row| [Value::from(row.key), Value::Bytes(row.value.to_vec())])
            .collect();
        Ok(self.conn.exec_drop(&statement, Params::Positional(values)).await?)
    }

    async fn read(&mut self, key: u64) -> Result<Option<Bytes>> {
        let value: Option<Vec<u8>> = self.conn.exec_first(&self.read, (key,)).await?;
        Ok(value.map(Bytes::from))
    }
}

impl System for Mariadb {
    type Client = Connection;

    fn name(&self) -> &str {
        match self.mode {
            Mode::Async => "mariadb async",
            Mode::SemiSync => "mariadb semi-sync",
        }
    }

    fn durability(&self) -> &str {
        match self.mode {
            Mode::Async => {
                "binlog and redo fsynced on the primary (sync_binlog=1, \
                 flush_log_at_trx_commit=1); replica async, redo fsynced"
            }
            Mode::SemiSync => {
                "binlog and redo fsynced on the primary; relay log written, but not fsynced, on \
                 the replica (AFTER_SYNC)"
            }
        }
    }

    /// Durable again, for [`System::backlog_writer`] sets what holds for all connections.
    async fn writer(&self) -> Result<Connection> {
        execute(self.primary_port, DURABLE).await?;
        Connection::open(self.primary_port).await
    }

    async fn backlog_writer(&self) -> Result<Connection> {
        execute(self.primary_port, RELAXED).await?;
        Connection::open(self.primary_port).await
    }

    async fn reader(&self, replica: usize) -> Result<Connection> {
        ensure!(replica == 0, "there is one replica");
        Connection::open(self.replica_port).await
    }

    async fn detach(&mut self) -> Result<()> {
        execute(self.replica_port, "STOP SLAVE").await
    }

    async fn attach(&mut self) -> Result<Instant> {
        let began = Instant::now();
        execute(self.replica_port, "START SLAVE").await?;
        Ok(began)
    }

    fn pids(&self) -> (u32, Vec<u32>) {
        (self.primary.pid(), vec![self.replica.pid()])
    }

    async fn stop(self) -> Result<()> {
        self.check_semi_sync().await?;
        self.replica.stop()?;
        self.primary.stop()
    }
}
