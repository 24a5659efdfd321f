//! Processes that a scenario starts, and what they cost.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest time that a server may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A server process; killed when dropped.
pub struct Server {
    child: Child,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Server {
    /// Starts `program`, its output in `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: impl AsRef<OsStr>,
        arguments: &[String],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Server> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = Command::new(&program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output))
            .spawn()
            .with_context(|| format!("starting {}", program.as_ref().to_string_lossy()))?;
        Ok(Server { child, log: log.to_path_buf() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// With the end of its output, when it does not.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(12).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{} ended ({status}):\n{}", self.log.display(), tail.join("\n"));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("a process id")?, signal)?)
    }

    /// Asks it to stop by SIGTERM and waits until it is gone.
    ///
    /// # Errors
    /// When it does not stop, or not cleanly.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let until = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("{}: ended with {status}", self.log.display());
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("{}: does not stop", self.log.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that is gone, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read_proc(pid: u32, name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok()
}

/// Parent and CPU ticks of a process.
fn stat_of(pid: u32) -> Option<(u32, u64)> {
    let stat = read_proc(pid, "stat")?;
    // The name in brackets may hold anything: fields count from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((fields.get(1)?.parse().ok()?, ticks(11)? + ticks(12)?))
}

/// CPU seconds that `root` and all its living descendants have taken so far.
#[must_use]
pub fn cpu_seconds(root: u32) -> f64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut all: Vec<(u32, u32, u64)> =
        pids.filter_map(|pid| stat_of(pid).map(|(parent, ticks)| (pid, parent, ticks))).collect();
    all.sort_unstable();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&member) = family.get(next) {
        family.extend(all.iter().filter(|process| process.1 == member).map(|process| process.0));
        next += 1;
    }
    let ticks: u64 =
        all.iter().filter(|process| family.contains(&process.0)).map(|process| process.2).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Bytes that a process had read from disks so far; what was in the page cache does not count.
///
/// # Errors
/// When the process is gone.
pub fn read_bytes(pid: u32) -> Result<u64> {
    let text = read_proc(pid, "io").with_context(|| format!("process {pid} is gone"))?;
    let found = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok());
    found.with_context(|| format!("/proc/{pid}/io: {text}"))
}

/// Memory of a process without what it shares with files, in MiB.
///
/// # Errors
/// When the process is gone.
pub fn private_mib(pid: u32) -> Result<f64> {
    let text = read_proc(pid, "statm").with_context(|| format!("process {pid} is gone"))?;
    let pages: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [_, resident, shared, ..] = pages[..] else { bail!("/proc/{pid}/statm: {text}") };
    Ok((resident - shared) * rustix::param::page_size() as f64 / f64::from(1 << 20))
}

/// Memory of a process with what it shares with files, in MiB.
///
/// # Errors
/// When the process is gone.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let text = read_proc(pid, "statm").with_context(|| format!("process {pid} is gone"))?;
    let resident = text.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    let pages = resident.with_context(|| format!("/proc/{pid}/statm: {text}"))?;
    Ok(pages * rustix::param::page_size() as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_costs_what_its_children_do() {
        let before = cpu_seconds(std::process::id());
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            std::hint::black_box(private_mib(std::process::id()).unwrap());
        }
        assert!(cpu_seconds(std::process::id()) > before);
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let arguments = ["-c", "echo gone; exit 3"].map(str::to_owned);
        let mut server = Server::start("sh", &arguments, &[], &log).unwrap();
        let ended = loop {
            if let Err(error) = server.check() {
                break error.to_string();
            }
        };
        assert!(ended.contains("gone"), "{ended}");
    }
}
