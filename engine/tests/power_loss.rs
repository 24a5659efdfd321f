//! Power loss on a real file system: the real binary runs on a disk of the test's own, which keeps
//! apart what was synced and what was not. At a random request the node is killed, and what was
//! not synced is kept, lost or torn at random. After the restart nothing is missing that was
//! acknowledged, the log is whole, no table is lost, and all nodes are identical.
//!
//! `ROWSHIP_POWER_ROUNDS` sets the rounds, `ROWSHIP_POWER_SEED` the seed. (A seed repeats what is
//! chosen and lost; real processes and threads still race each other.)

mod power;
mod support;

use std::time::Duration;

use power::archive::Archive;
use power::cluster::{Cluster, Site};
use power::state::{Trigger, Which};
use rowship::cli::reply::Reply;
use support::{Random, rounds, seed};

/// After so many rounds the nodes begin anew: their logs are small, and first starts count too.
const ROUNDS_OF_ONE_CLUSTER: u64 = 25;

fn power_loss_rounds(replicas: usize, ack: &str, rounds_default: u64) {
    let seed = seed("ROWSHIP_POWER_SEED");
    eprintln!("{ack}: ROWSHIP_POWER_SEED={seed}");
    let mut random = Random(seed);
    let mut left = rounds("ROWSHIP_POWER_ROUNDS", rounds_default);
    while left > 0 {
        let scratch = tempfile::tempdir().unwrap();
        let Some(mut cluster) = Cluster::start(scratch.path(), replicas, ack) else { return };
        for _ in 0..left.min(ROUNDS_OF_ONE_CLUSTER) {
            cluster.round(&mut random);
            left -= 1;
        }
        let (rows, transactions) = cluster.stop();
        let totals = cluster.totals;
        eprintln!("{ack}: {rows} rows, {transactions} transactions acknowledged; {totals:?}");
        let something = totals.losses.sectors_lost + totals.losses.entries_lost;
        assert!(totals.rounds < 5 || something > 0, "nothing was ever lost: {totals:?}");
    }
}

#[test]
fn acknowledged_writes_survive_power_loss_under_async() {
    power_loss_rounds(0, "async", 5);
}

#[test]
fn acknowledged_writes_survive_power_loss_under_semi_sync() {
    power_loss_rounds(1, "semi-sync ANY 1", 5);
}

/// Requests on the table's files among which one is chosen: more than a flush or compaction makes.
const TABLE_REQUESTS: u64 = 80;
/// Pipelines written at most until the chosen one was met: enough for several flushes.
const TABLE_PIPELINES_MAX: u64 = 600;

/// The table's library has a promise of its own to keep: at any request of a flush or a compaction
/// the power may go, and the table opens with all that its durable position says. The log below
/// that is retired after each round, so that nothing else can put it right.
#[test]
fn the_table_keeps_its_durable_rows_whenever_its_disk_loses_power() {
    let seed = seed("ROWSHIP_POWER_SEED");
    eprintln!("table: ROWSHIP_POWER_SEED={seed}");
    let mut random = Random(seed);
    let mut left = rounds("ROWSHIP_POWER_ROUNDS", 12);
    while left > 0 {
        let count = left.min(ROUNDS_OF_ONE_CLUSTER);
        table_rounds(count, &mut random);
        left -= count;
    }
}

fn table_rounds(rounds: u64, random: &mut Random) {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--checkpoint-ms", "20", "--memtable-bytes", "16KiB"];
    let Some(mut site) = Site::primary(scratch.path(), &flags) else { return };
    let Site { node, disk } = &mut site;
    node.start();
    let (mut archive, mut met, mut retired) = (Archive::default(), 0, 0);
    for round in 0..rounds {
        let address = node.address();
        let which = Which { operation: None, path: "/table", skip: random.below(TABLE_REQUESTS) };
        disk.arm(Trigger { which, after: random.below(2) == 0 });
        let mut pipelines = 0;
        while pipelines < TABLE_PIPELINES_MAX && !disk.wait_for_trigger(Duration::ZERO) {
            archive.write_some(&address, random);
            pipelines += 1;
        }
        met += u64::from(disk.wait_for_trigger(Duration::ZERO));
        archive.disconnect();
        disk.lose_power(node, random);
        node.start();
        assert!(!node.log().contains("rebuilt from the log"), "round {round}:\n{}", node.log());
        archive.check(node).unwrap_or_else(|lost| panic!("round {round}: {lost}"));
        let to = node.status()["log"]["appended"].as_u64().unwrap();
        let reply = node.call(&["ROWSHIP.RETIRE", &to.to_string()]);
        let Reply::Array(parts) = &reply else { panic!("{reply:?}") };
        let Reply::Integer(segments) = parts[0] else { panic!("{reply:?}") };
        retired += segments;
    }
    let rows = archive.acknowledged();
    eprintln!("table: {rows} rows, {met} of {rounds} rounds at the request, {retired} retired");
    let few = rounds < 5;
    assert!(few || met * 2 > rounds, "{met} of {rounds}");
    assert!(few || retired > 0, "the log could still heal it");
}
