//! Real nodes for tests: the real binary, in directories and on ports of their own.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod load;
pub mod peer;
pub mod proxy;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rowship::cli::client::Client;
use rowship::cli::reply::Reply;
use serde_json::Value;

/// Long enough for a slow machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_rowship")
}

/// A node: a directory that outlives its processes, and the process that runs now, if any.
pub struct Node {
    pub name: String,
    pub directory: PathBuf,
    pub flags: Vec<String>,
    /// Where standard error of all its processes goes.
    pub stderr: PathBuf,
    child: Option<Child>,
}

/// Runs `rowship` to its end: exit code, standard output, standard error.
pub fn rowship(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary()).args(arguments).output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

impl Node {
    /// A primary in `directory`/`name`, not started. `flags` come after the usual ones (tiny
    /// segments, ports chosen by the system) and win over them.
    pub fn primary(directory: &Path, name: &str, flags: &[&str]) -> Node {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let directory = directory.join(name);
        let stderr = directory.with_extension("stderr");
        Node { name: name.to_owned(), directory, flags, stderr, child: None }
    }

    /// A replica of `primary`, which must be running.
    pub fn replica(directory: &Path, name: &str, primary: &Node, flags: &[&str]) -> Node {
        let mut node = Node::primary(directory, name, flags);
        node.follow(&primary.replication_address());
        node
    }

    /// Points a replica at another address before its next start.
    pub fn follow(&mut self, address: &str) {
        let flag = "--replica-of";
        if let Some(at) = self.flags.iter().position(|known| known == flag) {
            self.flags[at + 1] = address.to_owned();
        } else {
            self.flags.extend([flag.to_owned(), address.to_owned()]);
        }
    }

    /// Forgets whom it followed: it starts as a primary next time.
    pub fn lead(&mut self) {
        if let Some(at) = self.flags.iter().position(|known| known == "--replica-of") {
            self.flags.drain(at..=at + 1);
        }
    }

    /// Starts the process and waits until it listens.
    pub fn start(&mut self) -> &mut Node {
        self.spawn();
        self.until_listening();
        self
    }

    /// Waits until the process listens.
    pub fn until_listening(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.addresses_path().exists() {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("{} ended with {status} while starting:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < until, "{} does not listen:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the process without waiting.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        std::fs::create_dir_all(self.directory.parent().unwrap()).unwrap();
        // A stale file would name ports of the process before.
        let _ = std::fs::remove_file(self.addresses_path());
        let log = File::options().create(true).append(true).open(&self.stderr).unwrap();
        let usual = ["--listen", "--replication-listen"].into_iter();
        let usual = usual.filter(|flag| !self.flags.iter().any(|given| given == flag));
        let usual = usual.flat_map(|flag| [flag, "127.0.0.1:0"]);
        let child = Command::new(binary())
            .args(["serve", "--preset", "tiny", "--name", &self.name])
            .args(usual)
            .arg("--data-dir")
            .arg(&self.directory)
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
    }

    /// Waits for the process to end by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        let mut child = self.child.take().expect("it runs");
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; panics unless the node ends with code 0.
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait_for_end();
        assert!(status.success(), "{} stopped with {status}:\n{}", self.name, self.log());
    }

    /// Sends a signal (STOP and CONT freeze and thaw a node).
    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        self.addresses()["listen"].as_str().unwrap().to_owned()
    }

    /// Where replicas connect.
    pub fn replication_address(&self) -> String {
        self.addresses()["replication_listen"].as_str().unwrap().to_owned()
    }

    /// Standard error of all processes so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// A new client.
    pub fn client(&self) -> Client {
        let mut client = Client::connect(&self.address()).unwrap();
        client.set_reply_timeout(PATIENCE).unwrap();
        client
    }

    /// One command on a connection of its own.
    pub fn call(&self, arguments: &[&str]) -> Reply {
        self.client().call(arguments).unwrap()
    }

    /// ROWSHIP.STATUS.
    pub fn status(&self) -> Value {
        self.client().status().unwrap()
    }

    /// Waits until `look` is content with the status.
    pub fn until(&self, what: &str, mut look: impl FnMut(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut client = self.client();
        loop {
            let status = client.status().unwrap();
            if look(&status) {
                return status;
            }
            assert!(
                Instant::now() < until,
                "{}: not {what} after {PATIENCE:?}: {status:#}\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until this node shows everything that `primary` has appended by now.
    pub fn catch_up_with(&self, primary: &Node) {
        let goal = primary.status()["log"]["appended"].as_u64().unwrap();
        self.until("caught up", |status| status["log"]["visible"].as_u64().unwrap() >= goal);
    }

    /// `rowship log verify` on this node's directory.
    pub fn verify_log(&self) -> (i32, String, String) {
        rowship(&["log", "verify", self.directory.to_str().unwrap()])
    }

    fn addresses_path(&self) -> PathBuf {
        self.directory.join("addresses.json")
    }

    fn addresses(&self) -> Value {
        let text = std::fs::read_to_string(self.addresses_path()).expect("the node listens");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Panics unless both nodes hold the same rows at the same position.
pub fn assert_identical(a: &Node, b: &Node) {
    let (code, out, err) = rowship(&["diff", &a.address(), &b.address()]);
    assert_eq!(code, 0, "{} and {} differ:\n{out}{err}", a.name, b.name);
}

/// A small deterministic random number generator (xorshift64*): tests name their seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A loopback address that nobody listens on, outside the range from which the system takes ports
/// for outgoing connections (one of those could take it, or connect to itself, while its node is
/// down).
pub fn free_address() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let salt = std::process::id().wrapping_mul(131) + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 10_000 + salt % 20_000);
        if std::net::TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// The seed in this environment variable, or one from the clock; callers print it.
pub fn seed(variable: &str) -> u64 {
    let given = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    given.unwrap_or(now.as_nanos() as u64) | 1
}

/// Rounds from the environment, or the default.
pub fn rounds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A node that must not start, or must end by itself: exit code, and what it said this time.
pub fn start_and_end(node: &mut Node) -> (i32, String) {
    let before = node.log().len();
    node.spawn();
    let status = node.wait_for_end();
    (status.code().unwrap_or(-1), node.log().split_off(before))
}

/// SET `key` for all `rows`, pipelined; panics unless all are acknowledged.
pub fn set_rows(node: &Node, rows: std::ops::Range<u64>, value: impl Fn(u64) -> String) {
    let mut client = node.client();
    let rows: Vec<u64> = rows.collect();
    for chunk in rows.chunks(64) {
        for row in chunk {
            client.queue(&["SET", &format!("t:{row}"), &value(*row)]);
        }
        client.flush().unwrap();
        for _ in chunk {
            let reply = client.receive().unwrap();
            assert!(reply.error().is_none(), "{reply:?}");
        }
    }
}

/// Panics unless GET of all `rows` answers `value`.
pub fn assert_rows(node: &Node, rows: std::ops::Range<u64>, value: impl Fn(u64) -> String) {
    let mut client = node.client();
    for row in rows {
        let got = client.ask(&["GET", &format!("t:{row}")]).unwrap();
        assert_eq!(got.text(), Some(value(row)), "row {row} of {}", node.name);
    }
}

/// A frame of a log, as `rowship log dump` names it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub lsn: u64,
    pub bytes: u64,
    pub kind: String,
    /// Path of its segment file.
    pub segment: PathBuf,
    /// LSN of that file's first byte.
    pub base: u64,
}

impl Frame {
    /// Offset in its segment file.
    pub fn offset(&self) -> u64 {
        self.lsn - self.base
    }
}

/// Base and path of the segment files of a data directory, oldest first.
pub fn segments(directory: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let base = name.strip_prefix("segment-")?.strip_suffix(".log")?;
            Some((base.parse().ok()?, path.clone()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// All frames of the log in a data directory.
pub fn frames(directory: &Path) -> Vec<Frame> {
    let segments = segments(directory);
    let (code, out, err) = rowship(&["log", "dump", "--json", directory.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    let frame = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let lsn = record["lsn"].as_u64().unwrap();
        let bytes = record["frame_bytes"].as_u64().unwrap();
        let kind = record["kind"].as_str().unwrap().to_owned();
        let (base, segment) = segments.iter().rfind(|(base, _)| *base <= lsn).unwrap().clone();
        Frame { lsn, bytes, kind, segment, base }
    };
    out.lines().map(frame).collect()
}

/// Flips one bit of a file in place; doing it again takes it back.
pub fn flip(path: &Path, offset: u64, bit: u64) {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, offset).unwrap();
}

/// A connection of the crate `redis`.
pub fn connect(node: &Node) -> redis::Connection {
    connect_with(node, "")
}

/// The same with the query part of its URL (`?protocol=resp3`).
pub fn connect_with(node: &Node, query: &str) -> redis::Connection {
    let url = format!("redis://{}/{query}", node.address());
    let connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// A primary and a replica that streams.
pub fn pair(scratch: &tempfile::TempDir, flags: &[&str]) -> (Node, Node) {
    let mut primary = Node::primary(scratch.path(), "primary", flags);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, flags);
    replica.start();
    (primary, replica)
}

/// `len` bytes that do not compress.
pub fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.next().to_le_bytes()[3]).collect()
}
