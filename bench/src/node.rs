//! rowship as a [`System`]: real nodes, each a process with a directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::client::{Client, Resp};
use crate::process::Server;
use crate::scenarios::log_position;
use crate::system::System;

/// Longest wait for a node to listen, or to follow.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(1);
/// How long a replica may take for its disk.
const DURABLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The `rowship` binary that belongs to this one: `ROWSHIP`, or what cargo builds beside it.
///
/// # Errors
/// When it cannot be built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ROWSHIP") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    // A test's binary lies in `deps`.
    let directories = me.ancestors().skip(1);
    let directory = directories
        .filter(|path| !path.ends_with("deps"))
        .find(|path| path.ends_with("release") || path.ends_with("debug"))
        .context("this binary does not lie in cargo's target directory: set ROWSHIP")?;
    let path = directory.join("rowship");
    let release = directory.ends_with("release");
    if release || !path.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--locked", "--quiet", "--package", "rowship", "--bin", "rowship"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        if release {
            command.arg("--release");
        }
        let status = command.status().context("running cargo to build rowship")?;
        ensure!(status.success(), "building rowship failed ({status})");
    }
    Ok(path)
}

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Layout {
    /// What figures call it.
    pub name: String,
    /// Replicas.
    pub replicas: usize,
    /// The ack policy, as `--ack` takes it; replicas are called `replica-0` and so on.
    pub ack: String,
    /// A policy for the load's connections, as `ROWSHIP.ACK` takes it.
    pub client_ack: Option<&'static str>,
    /// Further flags of all nodes.
    pub flags: Vec<String>,
}

impl Layout {
    /// Standard settings: durable on the primary, one replica that follows.
    #[must_use]
    pub fn asynchronous() -> Layout {
        let (name, ack) = ("rowship async".to_owned(), "async".to_owned());
        Layout { name, replicas: 1, ack, client_ack: None, flags: Vec::new() }
    }

    /// Durable on the primary and on one replica before the reply.
    #[must_use]
    pub fn semi_sync() -> Layout {
        let (name, ack) = ("rowship semi-sync".to_owned(), "semi-sync 1 durable".to_owned());
        Layout { name, ack, ..Layout::asynchronous() }
    }

    /// Durable on both and visible on the replica before the reply.
    #[must_use]
    pub fn synchronous() -> Layout {
        let (name, ack) = ("rowship sync".to_owned(), "sync (replica-0)".to_owned());
        Layout { name, ack, ..Layout::asynchronous() }
    }

    /// Replies that wait for no disk.
    #[must_use]
    pub fn memory() -> Layout {
        let name = "rowship memory".to_owned();
        Layout { name, client_ack: Some("memory"), ..Layout::asynchronous() }
    }
}

/// A running node.
pub struct Node {
    server: Server,
    /// Its data directory.
    pub directory: PathBuf,
    /// Where clients connect.
    pub listen: String,
    /// Where replicas connect.
    pub replication_listen: String,
}

impl Node {
    /// Starts a node and waits until it listens.
    ///
    /// # Errors
    /// When it ends instead.
    pub async fn start(
        binary: &Path,
        directory: &Path,
        name: &str,
        flags: &[String],
    ) -> Result<Node> {
        let data_dir = directory.join(name);
        let addresses = data_dir.join("addresses.json");
        // A node writes it when it listens: the last one's must not be taken for this one's.
        if addresses.exists() {
            std::fs::remove_file(&addresses)?;
        }
        let mut arguments: Vec<String> =
            ["serve", "--stop-with-parent", "--listen", "127.0.0.1:0", "--name", name]
                .map(str::to_owned)
                .into();
        arguments.extend(["--replication-listen".to_owned(), "127.0.0.1:0".to_owned()]);
        arguments.extend(["--data-dir".to_owned(), data_dir.display().to_string()]);
        arguments.extend_from_slice(flags);
        let log = directory.join(format!("{name}.log"));
        let mut server = Server::start(binary, &arguments, &[], &log)?;
        let until = Instant::now() + START_TIMEOUT;
        loop {
            let bytes = std::fs::read(&addresses).unwrap_or_default();
            let parsed: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let text = |key: &str| Some(parsed[key].as_str()?.to_owned());
            if let Some((listen, replication_listen)) =
                text("listen").zip(text("replication_listen"))
            {
                return Ok(Node { server, directory: data_dir, listen, replication_listen });
            }
            server.check()?;
            ensure!(Instant::now() < until, "{name} does not listen");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Its process.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Stops it cleanly.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub fn stop(self) -> Result<()> {
        self.server.stop()
    }

    /// What `ROWSHIP.STATUS` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self) -> Result<Value> {
        let mut client = Resp::connect(&self.listen).await?;
        Ok(serde_json::from_str(&client.ask_text(&["ROWSHIP.STATUS"]).await?)?)
    }
}

/// A primary and its replicas.
pub struct Cluster {
    layout: Layout,
    binary: PathBuf,
    directory: PathBuf,
    /// The primary.
    pub primary: Node,
    /// The replicas; `None` for one that is stopped.
    pub replicas: Vec<Option<Node>>,
}

impl Cluster {
    /// Starts all nodes in `directory`, which must be empty, and waits until all replicas follow.
    ///
    /// # Errors
    /// When one does not.
    pub async fn start(directory: &Path, layout: &Layout) -> Result<Cluster> {
        let binary = binary()?;
        let mut flags = vec!["--ack".to_owned(), layout.ack.clone()];
        flags.extend_from_slice(&layout.flags);
        let primary = Node::start(&binary, directory, "primary", &flags).await?;
        let (layout, directory) = (layout.clone(), directory.to_path_buf());
        let replicas = Vec::new();
        let mut cluster = Cluster { layout, binary, directory, primary, replicas };
        for at in 0..cluster.layout.replicas {
            let node = cluster.start_replica(at).await?;
            cluster.replicas.push(Some(node));
        }
        cluster.wait_until_streaming().await?;
        Ok(cluster)
    }

    /// Starts replica `at` in its directory.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn start_replica(&self, at: usize) -> Result<Node> {
        let name = format!("replica-{at}");
        let mut flags = vec!["--replica-of".to_owned(), self.primary.replication_listen.clone()];
        flags.extend_from_slice(&self.layout.flags);
        Node::start(&self.binary, &self.directory, &name, &flags).await
    }

    /// Waits until all running replicas have all that the primary has committed.
    ///
    /// # Errors
    /// When they take too long.
    pub async fn wait_until_streaming(&self) -> Result<()> {
        let until = Instant::now() + START_TIMEOUT;
        let running = self.replicas.iter().flatten().count();
        loop {
            let status = self.primary.status().await?;
            let committed = &status["log"]["committed"];
            let rows = status["replicas"].as_array().map_or(&[][..], Vec::as_slice);
            let current = rows
                .iter()
                .filter(|row| row["state"] == "streaming" && &row["visible"] == committed);
            if current.count() >= running {
                return Ok(());
            }
            ensure!(Instant::now() < until, "replicas do not catch up: {status}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The replica.
    ///
    /// # Errors
    /// When it is stopped, or there is none.
    pub fn replica(&self, at: usize) -> Result<&Node> {
        self.replicas.get(at).and_then(Option::as_ref).context("that replica is stopped")
    }
}

impl Cluster {
    /// Waits until replica 0's log is durable up to `lsn`.
    ///
    /// # Errors
    /// When its status cannot be read, or that takes longer than a minute.
    pub async fn await_durable(&self, lsn: u64) -> Result<()> {
        let until = Instant::now() + DURABLE_TIMEOUT;
        while log_position(&self.replica(0)?.status().await?, "durable")? < lsn {
            ensure!(Instant::now() < until, "LSN {lsn} is not durable after {DURABLE_TIMEOUT:?}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

impl System for Cluster {
    type Client = Resp;

    fn name(&self) -> &str {
        &self.layout.name
    }

    fn durability(&self) -> &str {
        match (self.layout.client_ack, self.layout.ack.split(' ').next()) {
            (Some(_), _) => "memory of the primary",
            (_, Some("async")) => "O_DSYNC on the primary; replica async, its log every 10 ms",
            (_, Some("sync")) => "O_DSYNC on primary and replica, visible on the replica",
            _ => "O_DSYNC on primary and replica",
        }
    }

    async fn writer(&self) -> Result<Resp> {
        let mut client = Resp::connect(&self.primary.listen).await?;
        if let Some(policy) = self.layout.client_ack {
            client.ask(&["ROWSHIP.ACK", policy]).await?;
        }
        Ok(client)
    }

    async fn backlog_writer(&self) -> Result<Resp> {
        let mut client = Resp::connect(&self.primary.listen).await?;
        client.ask(&["ROWSHIP.ACK", "memory"]).await?;
        Ok(client)
    }

    async fn reader(&self, replica: usize) -> Result<Resp> {
        Resp::connect(&self.replica(replica)?.listen).await
    }

    async fn detach(&mut self) -> Result<()> {
        match self.replicas.first_mut().and_then(Option::take) {
            Some(node) => node.stop(),
            None => bail!("replica 0 is stopped already"),
        }
    }

    /// Counts from before the process is started, so that its start is part of catching up.
    async fn attach(&mut self) -> Result<Instant> {
        let began = Instant::now();
        let node = self.start_replica(0).await?;
        self.replicas[0] = Some(node);
        Ok(began)
    }

    async fn await_replica_log(&self) -> Result<()> {
        let end = log_position(&self.primary.status().await?, "appended")?;
        self.await_durable(end).await
    }

    fn pids(&self) -> (u32, Vec<u32>) {
        (self.primary.pid(), self.replicas.iter().flatten().map(Node::pid).collect())
    }

    async fn stop(self) -> Result<()> {
        for replica in self.replicas.into_iter().flatten() {
            replica.stop()?;
        }
        self.primary.stop()
    }
}

/// Reads `key` until its number is at least `number`.
///
/// # Errors
/// When that takes longer than `timeout`, or the connection fails.
pub async fn await_number<C: Client>(
    client: &mut C,
    key: u64,
    number: u64,
    timeout: Duration,
) -> Result<()> {
    let until = Instant::now() + timeout;
    loop {
        let found = client.read(key).await?.map_or(0, |value| crate::rows::Row::number(&value));
        if found >= number {
            return Ok(());
        }
        ensure!(Instant::now() < until, "row {number} is not shown after {timeout:?}");
        tokio::time::sleep(POLL).await;
    }
}
