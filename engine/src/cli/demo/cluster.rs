//! Real node processes in a temporary directory, gone when the demo is.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::super::exit::{Exit, Failure};
use super::super::interrupt;

/// A node writes its addresses here, in its data directory, once it listens.
const ADDRESSES_FILE: &str = "addresses.json";
/// Zeroing two segments on a slow disk is what takes longest.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// More than the node's own `stop_timeout_ms`.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_PERIOD: Duration = Duration::from_millis(10);
/// Lines of a node's log that are shown when something fails, and the bytes searched for them.
const LOG_LINES_SHOWN: usize = 12;
const LOG_BYTES_READ: usize = 64 << 10;

/// A directory that is removed with everything in it, unless it is kept.
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    keep: bool,
}

impl Directory {
    /// A new directory that only this user can enter.
    pub fn create(keep: bool) -> io::Result<Directory> {
        let unique = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        let name = format!("rowship-demo-{}-{unique}", std::process::id());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Directory { path, keep })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("rowship: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// One running node; killed when dropped.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where clients connect.
    pub listen: String,
    /// Where replicas connect.
    pub replication_listen: String,
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts `rowship serve` and waits until it listens.
    pub fn start(directory: &Path, name: &str, flags: &[String]) -> Result<Node, Failure> {
        let internal = |error: io::Error| Failure::new(Exit::Internal, format!("{name}: {error}"));
        let program = std::env::current_exe().map_err(internal)?;
        let data_dir = directory.join(name);
        let log = directory.join(format!("{name}.log"));
        let log_file = File::create(&log).map_err(internal)?;
        let child = Command::new(program)
            .args(["serve", "--stop-with-parent", "--name", name])
            .args(["--listen", "127.0.0.1:0", "--replication-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log_file))
            // Ctrl-C on the terminal is for the demo, which then stops its nodes.
            .process_group(0)
            .spawn()
            .map_err(internal)?;
        let (listen, replication_listen) = (String::new(), String::new());
        let name = name.to_owned();
        let mut node = Node { name, data_dir, listen, replication_listen, child, log };
        node.wait_until_it_listens()?;
        Ok(node)
    }

    fn wait_until_it_listens(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        let path = self.data_dir.join(ADDRESSES_FILE);
        loop {
            interrupt::check()?;
            let addresses = std::fs::read(&path).ok();
            let parsed: Option<serde_json::Value> =
                addresses.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let address = |name: &str| Some(parsed.as_ref()?[name].as_str()?.to_owned());
            if let Some((listen, replication)) =
                address("listen").zip(address("replication_listen"))
            {
                (self.listen, self.replication_listen) = (listen, replication);
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failure(&format!("ended while starting ({status})"), status));
            }
            if Instant::now() >= deadline {
                let text = format!(
                    "{} does not listen after {} s{}",
                    self.name,
                    START_TIMEOUT.as_secs(),
                    self.log_tail()
                );
                return Err(Failure::new(Exit::Failed, text));
            }
            std::thread::sleep(POLL_PERIOD);
        }
    }

    /// SIGTERM, and waits; anything but exit code 0 is a failure.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(Exit::Internal, format!("stop: {error}"));
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|error| failed(error.into()))?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            match self.child.try_wait().map_err(failed)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(&format!("ended with {status}"), status)),
                None if Instant::now() >= deadline => {
                    let seconds = STOP_TIMEOUT.as_secs();
                    let text =
                        format!("{} did not stop within {seconds} s{}", self.name, self.log_tail());
                    return Err(Failure::new(Exit::Failed, text));
                }
                None => std::thread::sleep(POLL_PERIOD),
            }
        }
    }

    fn failure(&self, what: &str, status: ExitStatus) -> Failure {
        // The node's own exit code says more than "the demo failed".
        let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code > 0);
        let message = format!("{} {what}{}", self.name, self.log_tail());
        Failure { code: code.unwrap_or(Exit::Failed as u8), message }
    }

    /// The last lines of its log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_BYTES_READ)..];
        let text = String::from_utf8_lossy(tail);
        let lines: Vec<_> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        let indented: Vec<_> = shown.iter().map(|line| format!("\n  {line}")).collect();
        format!("; end of its log:{}", indented.concat())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
