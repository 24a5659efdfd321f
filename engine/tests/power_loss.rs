//! Power loss on a real file system: the real binary runs on a disk of the test's own, which keeps
//! apart what was synced and what was not. At a random request the node is killed, and what was
//! not synced is kept, lost or torn at random. After the restart nothing is missing that was
//! acknowledged, the log is whole, no table is lost, and all nodes are identical.
//!
//! `ROWSHIP_POWER_ROUNDS` sets the rounds, `ROWSHIP_POWER_SEED` the seed. (A seed repeats what is
//! chosen and lost; real processes and threads still race each other.)

mod power;
mod support;

use power::cluster::Cluster;
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
