//! The peers: other stores that replicate, each a [`System`] of real server processes with data
//! directories of their own, on free ports of the loopback.

pub mod mariadb;
pub mod postgres;
pub mod redis;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpStream;

use crate::client::Client;
use crate::process::Server;
use crate::rows::{MARKER_KEY, Row};
use crate::system::System;

/// Longest wait for a server to listen, to follow, or to stop following.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two looks at a server that starts.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// Seconds after which a tool that does not end is ended.
const TOOL_TIMEOUT_SECONDS: u32 = 900;

/// What can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Redis.
    Redis,
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    Mariadb,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Redis, Kind::Postgres, Kind::Mariadb];

    /// What is not installed of it; `None` when all is there.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let (programs, needed) = match self {
            Kind::Redis => (redis::programs(), redis::PROGRAMS),
            Kind::Postgres => (postgres::programs(), postgres::PROGRAMS),
            Kind::Mariadb => (mariadb::programs(), mariadb::PROGRAMS),
        };
        let missing: Vec<&str> =
            needed.iter().copied().filter(|name| programs.find(name).is_err()).collect();
        let text = missing.join(", ");
        (!missing.is_empty()).then(|| format!("{self:?}: skipped: not installed here: {text}"))
    }
}

/// A peer that a scenario can start.
#[expect(async_fn_in_trait, reason = "all of a load runs on one thread")]
pub trait Peer: System + Sized {
    /// In which of its ways it replicates.
    type Mode;

    /// Starts a primary and a replica in `directory`, which must be empty, and waits until the
    /// replica follows.
    ///
    /// # Errors
    /// When one of them does not start, or does not follow.
    async fn start(directory: &Path, mode: Self::Mode) -> Result<Self>;

    /// Remembers where the log ends: from here on [`Peer::ship`] fetches.
    ///
    /// # Errors
    /// When the primary refuses, or no tool ships this peer's log.
    async fn begin_ship(&mut self) -> Result<()> {
        bail!("{} has no tool that ships its log", self.name())
    }

    /// Fetches the log since [`Peer::begin_ship`] with the peer's own tool: bytes, and the time
    /// from starting the tool to its end.
    ///
    /// # Errors
    /// When the tool fails.
    async fn ship(&mut self, _directory: &Path) -> Result<(u64, Duration)> {
        bail!("{} has no tool that ships its log", self.name())
    }

    /// Forgets what [`Peer::begin_ship`] has kept.
    ///
    /// # Errors
    /// When the primary refuses.
    async fn end_ship(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Writes a marker row with `number` and waits until the replica shows just that: all that was
/// written before is there as well.
///
/// # Errors
/// When a write is refused, or it takes longer than `timeout`.
pub async fn settle<S: System>(system: &S, number: u64, timeout: Duration) -> Result<()> {
    system.writer().await?.write(&[Row::numbered(MARKER_KEY, number)]).await?;
    let mut reader = system.reader(0).await?;
    let until = Instant::now() + timeout;
    loop {
        let value = reader.read(MARKER_KEY).await?;
        if value.is_some_and(|value| Row::number(&value) == number) {
            return Ok(());
        }
        let name = system.name();
        ensure!(Instant::now() < until, "{name}: the replica is behind after {timeout:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// A user that servers run as, where root starts them and they refuse to run as root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    id: u32,
    group: u32,
}

impl User {
    /// The first of these that this machine knows; `None` when this process is not root's.
    pub(crate) fn instead_of_root(names: &[&str]) -> Option<User> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let all = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = |name: &str| {
            let line = all.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut numbers = line.split(':').skip(2).map(str::parse);
            Some(User { id: numbers.next()?.ok()?, group: numbers.next()?.ok()? })
        };
        names.iter().find_map(|name| user(name))
    }
}

/// Where a peer's programs lie, and who runs them.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// Looked through before `PATH`.
    pub(crate) directories: Vec<PathBuf>,
    /// Another user than this process's.
    pub(crate) user: Option<User>,
}

impl Programs {
    /// Where a program lies.
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let mut all = self.directories.iter().cloned().chain(usual).map(|path| path.join(name));
        all.find(|path| path.is_file()).with_context(|| format!("{name} is not installed"))
    }

    /// `setpriv` and its flags: the process ends with this one however that ends, and runs as the
    /// user that it should.
    fn privileges(&self) -> Vec<String> {
        let mut words = vec!["--pdeathsig=TERM".to_owned()];
        if let Some(User { id, group }) = self.user {
            words.extend([format!("--reuid={id}"), format!("--regid={group}")]);
            words.push("--clear-groups".to_owned());
        }
        words
    }

    /// Starts a server.
    pub(crate) fn serve(&self, name: &str, arguments: &[String], log: &Path) -> Result<Server> {
        let mut words = self.privileges();
        words.push(self.find(name)?.display().to_string());
        words.extend_from_slice(arguments);
        Server::start("setpriv", &words, &[], log)
    }

    /// Runs a tool to its end.
    pub(crate) fn run(&self, name: &str, arguments: &[String]) -> Result<()> {
        let output = Command::new("setpriv")
            .args(self.privileges())
            .args(["timeout".to_owned(), TOOL_TIMEOUT_SECONDS.to_string()])
            .arg(self.find(name)?)
            .args(arguments)
            // A directory that any user may enter.
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {name}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let said = [text(&output.stdout), text(&output.stderr)].join("\n");
        ensure!(output.status.success(), "{name} ended with {}:\n{said}", output.status);
        Ok(())
    }

    /// Makes a directory that the user owns, in one that the user may enter.
    pub(crate) fn directory(&self, parent: &Path, name: &str) -> Result<PathBuf> {
        let parent = parent.canonicalize().with_context(|| parent.display().to_string())?;
        let path = parent.join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        if let Some(User { id, group }) = self.user {
            std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o711))?;
            chown(&path, Some(id), Some(group))?;
            let shown = path.display().to_string();
            self.run("test", &["-x".to_owned(), shown.clone()]).with_context(|| {
                format!("user {id} cannot enter {shown}: choose another place with --directory")
            })?;
        }
        Ok(path)
    }
}

/// A port that nobody listens on now. (These servers cannot choose one themselves.)
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a port")?;
    Ok(listener.local_addr()?.port())
}

/// Waits until the server listens.
pub(crate) async fn listening(server: &mut Server, port: u16) -> Result<()> {
    let until = Instant::now() + START_TIMEOUT;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
        server.check()?;
        let log = server.log.display();
        ensure!(Instant::now() < until, "{log}: does not listen on port {port}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Words as a command takes them.
pub(crate) fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|&word| word.to_owned()).collect()
}
