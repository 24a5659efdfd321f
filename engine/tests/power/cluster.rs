//! Nodes that each have a disk of their own, a load on them, and rounds of power loss.

use std::path::Path;
use std::time::Duration;

use rowship::cli::reply::Reply;

use super::PowerDisk;
use super::archive::Archive;
use super::model::Losses;
use super::state::{Operation, Trigger, Which};
use crate::support::load::Load;
use crate::support::{Node, Random, assert_identical, free_address};

/// A node and its disk.
pub struct Site {
    // Dropped first: the disk can be unmounted when its node is gone.
    pub node: Node,
    pub disk: PowerDisk,
}

impl Drop for Site {
    fn drop(&mut self) {
        // A node that waits for a frozen disk cannot end.
        self.disk.kill(&mut self.node);
    }
}

impl Site {
    /// A primary in a directory of its disk, not started. None where that cannot be mounted.
    pub fn primary(scratch: &Path, flags: &[&str]) -> Option<Site> {
        let disk = PowerDisk::mount(scratch.join("disk"))?;
        let mut node = Node::primary(disk.path(), "primary", flags);
        node.stderr = scratch.join("primary.stderr");
        Some(Site { node, disk })
    }
}

/// A primary and its replicas, whose links survive restarts of either side.
pub struct Cluster {
    pub sites: Vec<Site>,
    load: Load,
    archive: Archive,
    pub totals: Totals,
}

/// What all rounds together have done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub rounds: u64,
    /// Times that the power of one disk was cut.
    pub cuts: u64,
    /// Of these, at the very request that was chosen.
    pub cuts_at_request: u64,
    pub losses: Losses,
    pub segments_retired: i64,
}

/// Requests at which the power goes: everything that a log, its state and a table do to a disk.
const PLACES: &[(Operation, &str)] = &[
    (Operation::Write, "segment-"),
    (Operation::Sync, "segment-"),
    (Operation::Create, "segment"),
    (Operation::Rename, "segment"),
    (Operation::Remove, "segment"),
    (Operation::SyncDirectory, ""),
    (Operation::Write, "node.state"),
    (Operation::Sync, "node.state"),
    (Operation::Create, "table/tables/"),
    (Operation::Write, "table/tables/"),
    (Operation::Sync, "table/tables/"),
    (Operation::SyncDirectory, "table/tables"),
    (Operation::Create, "table/v"),
    (Operation::Write, "table/v"),
    (Operation::Sync, "table/v"),
    (Operation::Rename, "table/current"),
    (Operation::SyncDirectory, "table"),
    (Operation::Remove, "table/"),
];
/// Pipelines written at most before the power goes, whether or not the chosen request was met.
const PIPELINES_MAX: u64 = 40;
/// Requests of a start among which one is chosen: a restart on a used directory makes that many.
const START_REQUESTS: u64 = 40;
/// How long a start may take until its chosen request; most have less to do than that.
const START_PATIENCE: Duration = Duration::from_millis(300);

impl Cluster {
    /// None where file systems cannot be mounted.
    pub fn start(scratch: &Path, replicas: usize, ack: &str) -> Option<Cluster> {
        let address = free_address();
        let flags = ["--reconnect-ms", "20", "--checkpoint-ms", "100"];
        let mut sites: Vec<Site> = Vec::new();
        for at in 0..=replicas {
            let disk = PowerDisk::mount(scratch.join(format!("disk-{at}")))?;
            let mut node = match sites.first() {
                None => {
                    let more = ["--replication-listen", &address, "--ack", ack];
                    Node::primary(disk.path(), "primary", &[&flags[..], &more].concat())
                }
                Some(first) => Node::replica(disk.path(), &format!("r{at}"), &first.node, &flags),
            };
            node.stderr = scratch.join(format!("{}.stderr", node.name));
            node.start();
            sites.push(Site { node, disk });
        }
        let load = Load::new(sites.len(), false);
        for (at, site) in sites.iter().enumerate() {
            load.node_is_up(at, &site.node.address());
        }
        Some(Cluster { sites, load, archive: Archive::default(), totals: Totals::default() })
    }

    /// The power goes under load, somewhere; everything comes back; everything is checked.
    pub fn round(&mut self, random: &mut Random) {
        let victims: Vec<usize> = {
            let set = 1 + random.below((1 << self.sites.len()) - 1);
            (0..self.sites.len()).filter(|at| set & (1 << at) != 0).collect()
        };
        let chosen = victims[random.below(victims.len() as u64) as usize];
        let (operation, path) = PLACES[random.below(PLACES.len() as u64) as usize];
        let which = Which::new(operation, path, random.below(6));
        let trigger = Trigger { which, after: random.below(2) == 0 };
        eprintln!("round {}: {victims:?} lose power, {chosen} at {trigger:?}", self.totals.rounds);
        self.write_until_power_is_lost(chosen, trigger, random);
        for at in &victims {
            self.load.node_goes_down(*at);
            self.sites[*at].disk.freeze();
        }
        for at in &victims {
            self.lose_power(*at, random);
        }
        let mut order = victims;
        if random.below(2) == 0 {
            order.reverse();
        }
        for at in order {
            self.restart(at, random);
        }
        self.check();
        self.totals.rounds += 1;
        if random.below(2) == 0 {
            self.retire();
        }
    }

    fn write_until_power_is_lost(&mut self, at: usize, trigger: Trigger, random: &mut Random) {
        // Read from the primary's disk, so before that may stop answering.
        let address = self.sites[0].node.address();
        let disk = &self.sites[at].disk;
        disk.arm(trigger);
        let mut pipelines = 0;
        let mut met = disk.wait_for_trigger(Duration::ZERO);
        while !met && pipelines < PIPELINES_MAX {
            self.archive.write_some(&address, random);
            self.load.check();
            pipelines += 1;
            met = disk.wait_for_trigger(Duration::ZERO);
        }
        self.archive.disconnect();
        self.totals.cuts_at_request += u64::from(met);
    }

    fn lose_power(&mut self, at: usize, random: &mut Random) {
        let site = &mut self.sites[at];
        self.totals.losses.add(site.disk.lose_power(&mut site.node, random));
        self.totals.cuts += 1;
        // A torn last write is no damage.
        let (code, out, err) = site.node.verify_log();
        assert_eq!(code, 0, "{}: {out}{err}\n{}", site.node.name, site.node.log());
    }

    /// Starts a node; sometimes the power goes again before it is up.
    fn restart(&mut self, at: usize, random: &mut Random) {
        while random.below(4) == 0 {
            let site = &mut self.sites[at];
            // Not the test's own request to remove it: this thread is the one that goes on.
            let _ = std::fs::remove_file(site.node.directory.join("addresses.json"));
            let which = Which::any(random.below(START_REQUESTS));
            site.disk.arm(Trigger { which, after: random.below(2) == 0 });
            site.node.spawn();
            let met = site.disk.wait_for_trigger(START_PATIENCE);
            self.totals.cuts_at_request += u64::from(met);
            self.lose_power(at, random);
        }
        let site = &mut self.sites[at];
        // Panics unless it comes up.
        site.node.start();
        let log = site.node.log();
        assert!(!log.contains("rebuilt from the log"), "{} lost its table:\n{log}", site.node.name);
        self.load.node_is_up(at, &site.node.address());
    }

    /// Everything acknowledged is everywhere, all nodes are identical, and writes go on.
    fn check(&mut self) {
        self.load.tally().check(&self.sites[0].node);
        self.archive.check(&self.sites[0].node).unwrap();
        self.load.pause();
        for site in &self.sites[1..] {
            site.node.catch_up_with(&self.sites[0].node);
        }
        for site in &self.sites {
            let rows = self.load.tally().check(&site.node);
            let cold = self.archive.check(&site.node).unwrap();
            let expected = Reply::Integer(rows + cold);
            assert_eq!(site.node.call(&["DBSIZE"]), expected, "{}", site.node.name);
            let (code, out, err) = site.node.verify_log();
            assert_eq!(code, 0, "{}: {out}{err}", site.node.name);
        }
        for site in &self.sites[1..] {
            assert_identical(&self.sites[0].node, &site.node);
        }
        self.load.resume();
    }

    /// Lets go of the log below what the tables hold: from now on they are alone with their rows.
    fn retire(&mut self) {
        for site in &self.sites {
            let to = site.node.status()["log"]["appended"].as_u64().unwrap();
            let reply = site.node.call(&["ROWSHIP.RETIRE", &to.to_string()]);
            let Reply::Array(parts) = &reply else { panic!("{reply:?}") };
            let Reply::Integer(retired) = parts[0] else { panic!("{reply:?}") };
            self.totals.segments_retired += retired;
        }
    }

    /// Ends the load and stops all nodes cleanly; how many rows and transactions were acknowledged.
    pub fn stop(&mut self) -> (usize, u64) {
        self.load.stop();
        for site in &mut self.sites {
            site.node.stop();
            let (code, out, err) = site.node.verify_log();
            assert_eq!(code, 0, "{}: {out}{err}", site.node.name);
        }
        (self.archive.acknowledged(), self.load.acknowledged())
    }
}
