//! kill -9 under load, at random moments, many rounds: every acknowledged write is there after the
//! restart at its stated level, no transaction is seen by halves on any node, all nodes end up
//! identical, and writes go on.
//!
//! `ROWSHIP_CRASH_ROUNDS` sets the rounds of each policy, `ROWSHIP_CRASH_SEED` replays a seed.

mod support;

use std::time::{Duration, Instant};

use rowship::cli::reply::Reply;
use support::load::Load;
use support::{Node, Random, assert_identical, free_address, rounds, rowship, seed};

/// While all nodes are up, a write is acknowledged at least this often, on a busy machine too.
const STALL: Duration = Duration::from_secs(20);

/// A primary and replicas whose links survive restarts of either side, and a load.
struct Cluster {
    nodes: Vec<Node>,
    load: Load,
}

impl Cluster {
    fn start(scratch: &std::path::Path, replicas: usize, ack: &str, sync: bool) -> Cluster {
        let address = free_address();
        let flags = ["--reconnect-ms", "20", "--checkpoint-ms", "200"];
        let primary_flags =
            [&flags[..], &["--replication-listen", &address, "--ack", ack][..]].concat();
        let mut nodes = vec![Node::primary(scratch, "primary", &primary_flags)];
        nodes[0].start();
        for at in 1..=replicas {
            let mut node = Node::replica(scratch, &format!("r{at}"), &nodes[0], &flags);
            node.start();
            nodes.push(node);
        }
        let load = Load::new(nodes.len(), sync);
        for (at, node) in nodes.iter().enumerate() {
            load.node_is_up(at, &node.address());
        }
        Cluster { nodes, load }
    }

    fn kill(&mut self, at: usize) {
        self.load.node_goes_down(at);
        self.nodes[at].kill();
    }

    fn restart(&mut self, at: usize) {
        self.nodes[at].start();
        self.load.node_is_up(at, &self.nodes[at].address());
    }

    /// The stall watchdog: waits for `writes` more acknowledged transactions.
    fn expect_progress(&self, writes: u64) {
        let goal = self.load.acknowledged() + writes;
        let mut last = (self.load.acknowledged(), Instant::now());
        while last.0 < goal {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.load.acknowledged();
            if now != last.0 {
                last = (now, Instant::now());
            }
            self.load.check();
            if last.1.elapsed() > STALL {
                for node in &self.nodes {
                    eprintln!("{}: {:#}\n{}", node.name, node.status(), node.log());
                }
                panic!("no write was acknowledged for {STALL:?} with all nodes up");
            }
        }
    }

    /// With writes paused: everything acknowledged is everywhere, and all nodes are identical.
    fn check_at_rest(&self) {
        self.load.pause();
        for node in &self.nodes[1..] {
            node.catch_up_with(&self.nodes[0]);
        }
        for node in &self.nodes {
            let rows = self.load.tally().check(node);
            assert_eq!(node.call(&["DBSIZE"]), Reply::Integer(rows), "{}", node.name);
        }
        for node in &self.nodes[1..] {
            assert_identical(&self.nodes[0], node);
        }
        self.load.resume();
    }

    fn verify_logs(&self) {
        for node in &self.nodes {
            let (code, out, err) = node.verify_log();
            assert_eq!(code, 0, "{}: {out}{err}", node.name);
        }
    }
}

/// Rounds of kill -9 under a load, with everything checked after each.
fn crash_rounds(replicas: usize, ack: &str, sync: bool, rounds_default: u64) {
    let seed = seed("ROWSHIP_CRASH_SEED");
    eprintln!("{ack}: ROWSHIP_CRASH_SEED={seed}");
    let mut random = Random(seed);
    let mut scratch = tempfile::tempdir().unwrap();
    // Removed only when all is well: a failure can be looked into.
    scratch.disable_cleanup(true);
    eprintln!("{ack}: directories in {}", scratch.path().display());
    let mut cluster = Cluster::start(scratch.path(), replicas, ack, sync);
    for round in 0..rounds("ROWSHIP_CRASH_ROUNDS", rounds_default) {
        cluster.expect_progress(20 + random.below(100));
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        // Which nodes die: any set but the empty one.
        let victims = 1 + random.below((1 << cluster.nodes.len()) - 1);
        let dies = |at: usize| victims & (1 << at) != 0;
        eprintln!("{ack}: round {round}, victims {victims:b}");
        for at in (0..cluster.nodes.len()).filter(|at| dies(*at)) {
            cluster.kill(at);
            std::thread::sleep(Duration::from_micros(random.below(30_000)));
        }
        let acknowledged = cluster.load.tally();
        let mut order: Vec<usize> = (0..cluster.nodes.len()).filter(|at| dies(*at)).collect();
        if random.below(2) == 0 {
            order.reverse();
        }
        for at in order {
            std::thread::sleep(Duration::from_micros(random.below(50_000)));
            if random.below(3) == 0 {
                // A crash while the crash before is recovered from.
                cluster.nodes[at].spawn();
                std::thread::sleep(Duration::from_micros(random.below(100_000)));
                cluster.nodes[at].kill();
            }
            cluster.restart(at);
            if at == 0 && ack == "async" {
                acknowledged.check(&cluster.nodes[0]);
            }
        }
        // Other policies: reads of rows whose commit is not known wait for replicas.
        acknowledged.check(&cluster.nodes[0]);
        cluster.expect_progress(50);
        cluster.check_at_rest();
    }
    cluster.expect_progress(50);
    cluster.check_at_rest();
    cluster.load.stop();
    cluster.verify_logs();
    for node in &mut cluster.nodes {
        node.stop();
    }
    scratch.disable_cleanup(false);
}

#[test]
fn acknowledged_writes_survive_kill_9_under_async() {
    crash_rounds(1, "async", false, 4);
}

#[test]
fn acknowledged_writes_survive_kill_9_under_semi_sync() {
    crash_rounds(2, "semi-sync ANY 1", false, 4);
}

#[test]
fn acknowledged_writes_survive_kill_9_under_sync() {
    crash_rounds(2, "sync visible (r1,r2)", true, 4);
}

#[test]
fn sigterm_under_load_ends_cleanly_and_keeps_what_was_acknowledged() {
    let scratch = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(scratch.path(), 1, "semi-sync ANY 1", false);
    for round in 0..rounds("ROWSHIP_CRASH_ROUNDS", 3) {
        cluster.expect_progress(100);
        let at = usize::from(round % 3 == 2);
        cluster.load.node_goes_down(at);
        let began = Instant::now();
        // Panics unless the exit code is 0.
        cluster.nodes[at].stop();
        let stopped = began.elapsed();
        let acknowledged = cluster.load.tally();
        let began = Instant::now();
        cluster.restart(at);
        eprintln!("stopped in {stopped:?}, restarted in {:?}", began.elapsed());
        assert!(began.elapsed() < RESTART_MAX, "{}", cluster.nodes[at].log());
        acknowledged.check(&cluster.nodes[0]);
        cluster.expect_progress(50);
    }
    cluster.check_at_rest();
    cluster.load.stop();
    cluster.verify_logs();
}

/// With the tiny preset there is next to nothing to recover.
const RESTART_MAX: Duration = Duration::from_secs(10);

/// Where the log of a stopped node ends.
fn log_end(node: &Node) -> u64 {
    let (code, out, err) = rowship(&["log", "verify", "--json", node.directory.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    report["end_lsn"].as_u64().unwrap_or_else(|| panic!("no end in {report}"))
}

#[test]
fn a_promoted_replica_holds_every_write_that_semi_sync_acknowledged() {
    let seed = seed("ROWSHIP_CRASH_SEED");
    eprintln!("ROWSHIP_CRASH_SEED={seed}");
    let mut random = Random(seed);
    for _ in 0..rounds("ROWSHIP_CRASH_ROUNDS", 2) {
        let scratch = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start(scratch.path(), 2, "semi-sync ANY 1", false);
        cluster.expect_progress(50 + random.below(200));
        for at in 0..3 {
            cluster.kill(at);
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
        }
        cluster.load.pause();
        // The old primary is gone for good; the replica with the longest log inherits.
        cluster.nodes.remove(0);
        cluster.nodes.sort_by_key(|node| std::cmp::Reverse(log_end(node)));
        let (heir, rest) = cluster.nodes.split_first_mut().unwrap();
        let (code, out, err) = rowship(&["promote", heir.directory.to_str().unwrap()]);
        assert_eq!(code, 0, "{out}{err}");
        heir.lead();
        heir.flags.extend(["--ack".to_owned(), "semi-sync ANY 1".to_owned()]);
        heir.start();
        rest[0].follow(&heir.replication_address());
        rest[0].start();
        cluster.load.tally().check(heir);
        heir.client().ask(&["SET", "new", "epoch"]).unwrap();
        rest[0].catch_up_with(heir);
        cluster.load.tally().check(&rest[0]);
        assert_identical(heir, &rest[0]);
        cluster.verify_logs();
    }
}

/// Bounds a node's resident memory in tests: the tiny preset holds little, the rest is the binary,
/// its threads' stacks and the allocator's arenas.
const RESIDENT_BYTES_MAX: u64 = 192 << 20;

fn resident(node: &Node) -> u64 {
    node.status()["memory"]["resident_bytes"].as_u64().unwrap()
}

/// `count` writes, every other one to one hot row, the rest spread; all acknowledged.
fn write_many(node: &Node, from: u64, count: u64) {
    let mut client = node.client();
    let batch = 200;
    for start in (from..from + count).step_by(batch) {
        for number in start..start + batch as u64 {
            let spread = format!("rows:{}", number.wrapping_mul(0x9e37_79b9) % 5000);
            let key = if number % 2 == 0 { "hot" } else { spread.as_str() };
            client.queue(&["SET", key, &number.to_string()]);
        }
        client.flush().unwrap();
        for _ in 0..batch {
            let reply = client.receive().unwrap();
            assert!(reply.error().is_none(), "{reply:?}");
        }
    }
}

#[test]
fn a_stopped_replica_catches_up_while_writes_go_on_in_bounded_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let mut primary = Node::primary(scratch.path(), "primary", &[]);
    primary.start();
    let mut replica = Node::replica(scratch.path(), "r1", &primary, &["--reconnect-ms", "20"]);
    replica.start();
    write_many(&primary, 0, 2000);
    replica.catch_up_with(&primary);
    replica.stop();
    write_many(&primary, 2000, 20_000);
    let goal = primary.status()["log"]["appended"].as_u64().unwrap();
    replica.start();
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| write_many(&primary, 22_000, 10_000));
        replica.until("caught up", |status| status["log"]["visible"].as_u64().unwrap() >= goal);
        writes.join().unwrap();
    });
    replica.catch_up_with(&primary);
    let resident = (resident(&primary), resident(&replica));
    eprintln!("resident bytes: primary {}, replica {}", resident.0, resident.1);
    assert!(resident.0 < RESIDENT_BYTES_MAX, "primary: {}", resident.0);
    assert!(resident.1 < RESIDENT_BYTES_MAX, "replica: {}", resident.1);
    let lag = primary.until("no lag", |status| status["replicas"][0]["lag_bytes"] == 0);
    assert_eq!(lag["replicas"][0]["lag_ms"], 0);
    assert_eq!(replica.call(&["GET", "hot"]).text().as_deref(), Some("31998"));
    assert_identical(&primary, &replica);
}
