//! Nodes on a real network that fails: partitions, packets lost one way, machines that vanish
//! without a word, new addresses, packets that are too large, slow links, restarts one by one,
//! many replicas.
//!
//! Each test has a network of its own (`network/lab.rs`) in namespaces of the kernel. That needs
//! root, iproute2 and nftables: without them there is one line that begins with SKIPPED.

mod support;

#[path = "network/cluster.rs"]
mod cluster;
#[path = "network/lab.rs"]
mod lab;

use std::time::{Duration, Instant};

use cluster::{Cluster, HEALED_MAX, NOTICED_MAX, PEER_TIMEOUT, Pace, flags, machine, row, within};
use lab::{Lab, Loss, Which, wire};
use rowship::cli::client::Client;
use rowship::cli::reply::Reply;
use serde_json::Value;
use support::Node;

/// A window to each replica that is larger than what the kernel's buffers take, as by default: a
/// sender whose packets vanish gets stuck in the middle of a send.
const WIDE: [&str; 2] = ["--send-window-bytes", "4194304"];

/// Under a policy that can do without it, nobody waits for a replica that is cut off: neither
/// clients nor the other replica. The primary says who is missing and how far it is behind.
fn partition(losses: &[Loss]) {
    let policy = [&WIDE[..], &["--ack", "semi-sync ANY 1"]].concat();
    let Some(cluster) = Cluster::start(2, &policy) else { return };
    let connects = |node: &Node| node.status()["upstream"]["connects"].as_u64().unwrap();
    let before = cluster.pace(Duration::from_secs(1));
    let others = connects(&cluster.nodes[2]);
    cluster.lab.lose(losses);
    // The link is silent for the first half of this, and closed for the second.
    let during = cluster.pace(2 * PEER_TIMEOUT);
    let noticed_max = NOTICED_MAX - 2 * PEER_TIMEOUT;
    within(cluster.primary(), "rid of r1", noticed_max, |status| {
        row(status, "r1")["state"] == "down"
    });
    within(&cluster.nodes[1], "rid of its link", noticed_max, |status| {
        status["upstream"]["state"] != "streaming"
    });
    let lag = |row: &Value| (row["lag_ms"].as_u64().unwrap(), row["lag_bytes"].as_u64().unwrap());
    let earlier = lag(&cluster.row(1));
    cluster.expect_progress(100);
    std::thread::sleep(Duration::from_millis(500));
    let later = lag(&cluster.row(1));
    eprintln!("before {before:?}; during {during:?}; lag {later:?}");
    assert!(earlier.0 >= 2000, "lag_ms tells since when: {earlier:?}");
    assert!(later.0 >= earlier.0 + 500, "lag_ms grows as time does: {earlier:?}, {later:?}");
    assert!(later.1 > earlier.1, "lag_bytes grows: {earlier:?}, {later:?}");
    let heard = cluster.nodes[1].status()["upstream"]["heard_ms_ago"].as_u64().unwrap();
    assert!(heard >= 1500, "the replica heard of its primary {heard} ms ago");
    assert_undisturbed(before, during);
    let other = cluster.row(2);
    assert!(other["state"] == "streaming" && lag(&other).0 < 1000, "{other:#}");
    assert_eq!(cluster.primary().status()["ack"]["waiting_for"].as_array().unwrap().len(), 0);
    cluster.heal();
    assert_eq!(connects(&cluster.nodes[2]), others, "the other replica's link is the same");
    cluster.finish();
}

/// Clients did not notice a fault of a replica that nobody needs: a wait would last as long as the
/// peer timeout.
fn assert_undisturbed(before: Pace, during: Pace) {
    assert!(
        during.per_second > before.per_second / 3,
        "clients are slowed: {before:?}, {during:?}"
    );
    assert!(during.stall < PEER_TIMEOUT / 2, "clients wait: {before:?}, {during:?}");
}

#[test]
fn a_replica_that_is_cut_off_slows_nobody_and_comes_back_by_itself() {
    partition(&Loss::both(1, 2));
}

#[test]
fn a_replica_that_hears_nothing_comes_back_by_itself() {
    partition(&[Loss::all(1, 2)]);
}

#[test]
fn a_replica_that_is_not_heard_comes_back_by_itself() {
    partition(&[Loss::all(2, 1)]);
}

/// Long enough for the kernel's own attempts to connect to be eight seconds apart.
const LONG: Duration = Duration::from_secs(9);

#[test]
fn semi_sync_acknowledges_nothing_while_all_replicas_are_cut_off_and_says_for_whom_it_waits() {
    let policy = "semi-sync ANY 1 (r1, r2)";
    let Some(mut cluster) = Cluster::start(2, &["--ack", policy]) else { return };
    cluster.primary().client().ask(&["SET", "before", "the cut"]).unwrap();
    cluster.expect_progress(20);
    let began = Instant::now();
    cluster.cut(&[1, 2]);
    let names = serde_json::json!(["r1", "r2"]);
    let waits = |status: &Value| status["ack"]["waiting_for"] == names;
    within(cluster.primary(), "naming who is missing", NOTICED_MAX, waits);
    let acknowledged = cluster.load.acknowledged();
    let committed = cluster.primary().status()["log"]["committed"].clone();
    let got = cluster.primary().call(&["GET", "before"]);
    assert_eq!(got.text().as_deref(), Some("the cut"), "what is committed can be read");
    // A node in the middle of connecting to nowhere stops like any other.
    let stopping = Instant::now();
    cluster.end(1, true);
    eprintln!("a replica that cannot reach its primary stopped in {:?}", stopping.elapsed());
    assert!(stopping.elapsed() < HEALED_MAX, "{}", cluster.nodes[1].log());
    cluster.begin(1);
    std::thread::sleep(LONG.saturating_sub(began.elapsed()));
    assert_eq!(cluster.load.acknowledged(), acknowledged, "acknowledged without a replica");
    assert_eq!(cluster.primary().status()["log"]["committed"], committed);
    cluster.heal();
    cluster.expect_progress(50);
    cluster.finish();
}

/// The token in an INDETERMINATE reply.
fn token(reply: &Reply) -> Option<String> {
    let text = reply.error()?.strip_prefix("INDETERMINATE ")?.split_once("WAITPOS ")?.1.to_owned();
    text.split(' ').next().map(str::to_owned)
}

#[test]
fn refuse_refuses_while_the_replica_is_cut_off_and_tells_the_fate_of_what_was_in_flight() {
    let flags = ["--ack", "semi-sync 1", "--on-missing", "refuse"];
    let Some(cluster) = Cluster::start(1, &flags) else { return };
    cluster.load.pause();
    cluster.cut(&[1]);
    let mut client = cluster.primary().client();
    let began = Instant::now();
    let open = client.call(&["SET", "in", "flight"]).unwrap();
    let told = began.elapsed();
    let token = token(&open).unwrap_or_else(|| panic!("{open:?}"));
    assert!(told < NOTICED_MAX, "told after {told:?}");
    let refused = client.call(&["SET", "not", "written"]).unwrap();
    assert!(refused.error().unwrap().starts_with("NOREPLICAS "), "{refused:?}");
    cluster.heal();
    let fate = client.call(&["ROWSHIP.WAITPOS", &token, "5000"]).unwrap();
    let Reply::Array(parts) = &fate else { panic!("{fate:?}") };
    assert_eq!(parts[0].text().as_deref(), Some("reached"));
    let replica = &cluster.nodes[1];
    replica.catch_up_with(cluster.primary());
    assert_eq!(replica.call(&["GET", "in"]).text().as_deref(), Some("flight"));
    assert_eq!(replica.call(&["GET", "not"]).text(), None);
    for key in ["in", "not"] {
        client.ask(&["DEL", key]).unwrap();
    }
    cluster.load.resume();
    cluster.finish();
}

#[test]
fn a_replica_whose_machine_lost_power_replaces_its_own_half_open_link() {
    // Nobody but the replica itself ends the old link: a minute of silence is allowed.
    let quick = flags("60000");
    let policy = ["--ack", "semi-sync ANY 1"];
    let Some(mut cluster) = Cluster::start_with(2, &quick, &policy) else { return };
    cluster.expect_progress(50);
    let sockets = cluster.sockets(0);
    // Whoever hears of a connection that it does not know says so; here nobody gets to hear that.
    cluster.lab.lose(&[Loss { from: machine(1), to: 1, which: Which::Resets }]);
    for round in 0..2 {
        cluster.lab.unplug(machine(1));
        cluster.end(1, false);
        cluster.lab.power_off(machine(1));
        cluster.expect_progress(50);
        assert_eq!(cluster.row(1)["state"], "streaming", "half open: nobody knows yet");
        cluster.lab.power_on(machine(1));
        cluster.begin(1);
        let took = cluster.converge(HEALED_MAX);
        eprintln!("round {round}: streamed and had caught up {took:?} after its start");
    }
    assert!(cluster.lab.heal() > 0, "no reset was lost");
    let replaced = cluster.primary().log().matches("replaces its own half-open link").count();
    assert_eq!(replaced, 2, "{}", cluster.primary().log());
    let after = sockets_within(&cluster, sockets);
    assert!(after <= sockets, "{sockets} sockets before, {after} after");
    cluster.finish();
}

/// Waits until the primary has no more sockets than `goal`, for a few seconds; how many it has.
fn sockets_within(cluster: &Cluster, goal: usize) -> usize {
    let until = Instant::now() + HEALED_MAX;
    while cluster.sockets(0) > goal && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.sockets(0)
}

#[test]
fn replicas_of_a_primary_whose_machine_lost_power_give_the_link_up_and_find_it_again() {
    let Some(mut cluster) = Cluster::start(2, &["--ack", "semi-sync ANY 1"]) else { return };
    cluster.expect_progress(50);
    cluster.lab.unplug(machine(0));
    cluster.end(0, false);
    let acknowledged = cluster.load.tally();
    cluster.lab.power_off(machine(0));
    for replica in &cluster.nodes[1..] {
        let down = |status: &Value| status["upstream"]["state"] == "connecting";
        let took = within(replica, "rid of the silent link", NOTICED_MAX, down);
        assert!(replica.log().contains("the primary is silent"), "{}", replica.log());
        eprintln!("{}: noticed after {took:?}", replica.name);
    }
    cluster.lab.power_on(machine(0));
    cluster.begin(0);
    cluster.converge(HEALED_MAX);
    acknowledged.check(cluster.primary());
    cluster.expect_progress(50);
    cluster.finish();
}

#[test]
fn a_replica_that_gets_a_new_address_goes_on() {
    let Some(cluster) = Cluster::start(2, &["--ack", "semi-sync ANY 1"]) else { return };
    cluster.expect_progress(50);
    for number in [102, 103] {
        cluster.lab.unplug(machine(1));
        cluster.expect_progress(20);
        cluster.lab.plug_in_as(machine(1), number);
        let took = cluster.converge(NOTICED_MAX + HEALED_MAX);
        let status = cluster.primary().status();
        let address = row(&status, "r1")["address"].as_str().unwrap().to_owned();
        assert!(address.starts_with(&format!("10.77.0.{number}:")), "{address}");
        assert_eq!(status["replicas"].as_array().unwrap().len(), 2, "one row for each replica");
        eprintln!("back from {address} after {took:?}");
    }
    cluster.finish();
}

#[test]
fn a_way_with_small_packets_works_and_one_that_swallows_large_packets_hurts_nobody_else() {
    let Some(cluster) = Cluster::start(2, &["--ack", "semi-sync ANY 1"]) else { return };
    let connects = || cluster.nodes[1].status()["upstream"]["connects"].as_u64().unwrap();
    let fat = |at: u64| format!("{at}").repeat(300);
    let first = connects();
    cluster.lab.largest_packet(machine(1), 576);
    support::set_rows(cluster.primary(), 0..200, fat);
    cluster.converge(HEALED_MAX);
    assert_eq!(connects(), first, "the sender has learnt what the way takes");
    cluster.lab.largest_packet(machine(1), 1500);
    cluster.load.pause();
    support::set_rows(cluster.primary(), 200..300, fat);
    let sockets = cluster.sockets(0);
    // The handshake passes, what follows does not, and nobody says so.
    cluster.lab.lose(&[Loss { from: 1, to: machine(1), which: Which::LongerThan(500) }]);
    let began = Instant::now();
    support::set_rows(cluster.primary(), 300..500, fat);
    eprintln!("200 rows acknowledged in {:?} meanwhile", began.elapsed());
    assert!(began.elapsed() < PEER_TIMEOUT, "the other replica is enough");
    let again = |status: &Value| status["upstream"]["connects"].as_u64().unwrap() >= first + 3;
    within(&cluster.nodes[1], "given up twice", 3 * NOTICED_MAX, again);
    let meanwhile = cluster.sockets(0);
    assert!(meanwhile <= sockets + 2, "{sockets} before, {meanwhile} meanwhile");
    cluster.heal();
    support::assert_rows(&cluster.nodes[1], 300..500, fat);
    cluster.load.resume();
    cluster.finish();
}

#[test]
fn a_slow_link_slows_nobody_but_who_counts_it() {
    let Some(cluster) = Cluster::start(2, &WIDE) else { return };
    let before = cluster.pace(Duration::from_secs(1));
    cluster.lab.slow(machine(2), 500);
    let during = cluster.pace(Duration::from_secs(4));
    let (quick, slow) = (cluster.row(1), cluster.row(2));
    let lag = |row: &Value| row["lag_ms"].as_u64().unwrap();
    eprintln!("before {before:?}; during {during:?}; lag {} and {} ms", lag(&quick), lag(&slow));
    assert_undisturbed(before, during);
    assert!(lag(&quick) < 1000, "a slow link slows another: {quick:#}");
    assert!(lag(&slow) > 2000, "the link was not slow: {slow:#}");
    assert_eq!(slow["state"], "streaming", "slow is not silent: {slow:#}");
    // Who counts the slow one waits for it.
    let mut client = cluster.primary().client();
    client.ask(&["ROWSHIP.ACK", "sync (r2)"]).unwrap();
    client.set_reply_timeout(Duration::from_secs(1)).unwrap();
    let waited = client.call(&["SET", "counted", "slowly"]);
    assert!(waited.is_err(), "acknowledged before the slow replica had it: {waited:?}");
    cluster.lab.fast(machine(2));
    let took = cluster.converge(NOTICED_MAX + HEALED_MAX);
    eprintln!("had caught up {took:?} after the link was fast again");
    assert_eq!(cluster.nodes[2].call(&["GET", "counted"]).text().as_deref(), Some("slowly"));
    cluster.finish();
}

#[test]
fn nodes_restart_one_by_one_under_load() {
    let Some(mut cluster) = Cluster::start(2, &["--ack", "semi-sync ANY 1"]) else { return };
    for at in [1, 2, 0, 2, 1, 0] {
        cluster.expect_progress(100);
        let acknowledged = cluster.load.tally();
        cluster.end(at, true);
        cluster.begin(at);
        cluster.converge(HEALED_MAX);
        acknowledged.check(&cluster.nodes[at]);
    }
    cluster.expect_progress(100);
    cluster.finish();
}

#[test]
fn twenty_replicas_follow_one_primary() {
    let policy = [&WIDE[..], &["--ack", "semi-sync ANY 10"]].concat();
    let Some(mut cluster) = Cluster::start(20, &policy) else { return };
    let before = cluster.pace(Duration::from_secs(1));
    cluster.converge(HEALED_MAX);
    let sockets = cluster.sockets(0);
    let missing = [3, 4, 7, 8, 11, 12, 15, 16, 19];
    // One after the other, so that each sender is stuck with other frames.
    for at in missing {
        cluster.cut(&[at]);
        cluster.expect_progress(20);
    }
    cluster.end(5, false);
    let during = cluster.pace(2 * PEER_TIMEOUT);
    eprintln!("before {before:?}; during {during:?}");
    assert_undisturbed(before, during);
    within(cluster.primary(), "rid of the ten", NOTICED_MAX, |status| {
        let rows = status["replicas"].as_array().unwrap();
        rows.len() == 20 && rows.iter().filter(|row| row["state"] == "down").count() == 10
    });
    cluster.expect_progress(100);
    for at in 1..=20 {
        let down = missing.contains(&at) || at == 5;
        let state = cluster.row(at)["state"].clone();
        assert_eq!(state, if down { "down" } else { "streaming" }, "r{at}");
    }
    cluster.begin(5);
    cluster.heal();
    let after = sockets_within(&cluster, sockets);
    assert!(after <= sockets, "{sockets} sockets before, {after} after");
    cluster.finish();
}

#[test]
fn a_client_whose_machine_vanished_is_let_go() {
    let Some(lab) = Lab::new(2) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::primary(scratch.path(), "primary", &["--client-keepalive-ms", "1000"]);
    node.flags.extend(flags("1500"));
    let address = wire(1).replace("7402", "7401");
    node.flags.extend(["--listen".to_owned(), address.clone()]);
    let clients = |node: &Node| node.status()["clients"]["connected"].as_u64().unwrap();
    lab.on(1, || {
        node.start();
    });
    let mut client = lab.on(2, || Client::connect(&address).unwrap());
    client.ask(&["PING"]).unwrap();
    // Whoever asks is a client as well.
    lab.on(1, || assert_eq!(clients(&node), 2));
    lab.lose(&Loss::both(1, 2));
    // Idle for a second, then three probes a second apart; the rest for a busy machine.
    let let_go_max = Duration::from_secs(10);
    let took = lab.on(1, || {
        within(&node, "rid of the client", let_go_max, |s| s["clients"]["connected"] == 1)
    });
    eprintln!("the client was let go after {took:?}");
    assert!(lab.heal() > 0, "no packet was lost");
    node.stop();
}
