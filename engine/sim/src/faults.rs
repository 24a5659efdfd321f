//! What goes wrong: the weather (network, disks, clocks), and the fate of processes, with the
//! operator who deals with it in `operator`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rowship::edge::sim::network::LinkSpeed;
use rowship::edge::sim::random::Random;
use rowship::edge::sim::{Pace, World};
use rowship::node::settings::OnMissing;

use crate::cluster::Cluster;
use crate::workload::CLIENT_HOST;

/// What a lost primary is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// It is started again; no other takes its place.
    Never,
    /// The most advanced replica takes its place, whatever else has crashed with it: nothing that
    /// was committed may be lost.
    Safe,
    /// The same, but replicas that hold bytes in memory only are stopped in order.
    AfterCleanStop,
    /// Any replica takes its place: what it lacks is given up, as an asynchronous policy allows.
    Lossy,
}

/// What one seed does, drawn from it.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// How long things go wrong, in milliseconds.
    pub length_ms: u64,
    /// Replicas beside the primary.
    pub replicas: usize,
    /// Ack policy, with `$` where the names of the replicas come.
    pub ack: &'static str,
    /// What happens while replicas are missing.
    pub on_missing: OnMissing,
    /// What happens when the primary is lost.
    pub promotion: Promotion,
    /// Whether members lose their directories.
    pub wipes: bool,
    /// Whether old segments are retired: never where a member may have to begin anew, since it must
    /// find the whole log.
    pub retires: bool,
    /// Clients.
    pub clients: u64,
    /// Least and most milliseconds between two faults of the weather.
    pub weather_ms: (u64, u64),
    /// Least and most milliseconds between two blows to processes.
    pub blows_ms: (u64, u64),
}

/// Policies and how a lost primary is replaced under each.
const POLICIES: &[(&str, Promotion)] = &[
    ("async", Promotion::Never),
    ("async", Promotion::Lossy),
    ("semi-sync ANY 1 durable", Promotion::Safe),
    ("semi-sync ANY 1 durable", Promotion::Safe),
    ("semi-sync ANY 1 received", Promotion::AfterCleanStop),
    ("semi-sync ANY 2 durable", Promotion::Safe),
    ("semi-sync FIRST 1 durable ($)", Promotion::Safe),
    ("sync committed ($)", Promotion::Safe),
    ("sync visible ($)", Promotion::Safe),
];

impl Chaos {
    /// Draws a plan.
    #[must_use]
    pub fn draw(random: &mut Random, length_ms: u64) -> Chaos {
        let (ack, promotion) = *random.pick(POLICIES);
        let replicas = if ack.contains("ANY 2") || random.chance(800) { 2 } else { 1 };
        let on_missing = if random.chance(300) { OnMissing::Refuse } else { OnMissing::Wait };
        let busy = *random.pick(&[50, 200, 400, 800]);
        Chaos {
            length_ms,
            replicas,
            ack,
            on_missing,
            promotion,
            wipes: promotion != Promotion::Never && random.chance(600),
            retires: promotion == Promotion::Never,
            clients: random.between((3, 7)),
            weather_ms: (busy / 4, busy * 2),
            blows_ms: (busy, busy * 6),
        }
    }

    /// The policy when these are the replicas.
    #[must_use]
    pub fn ack_for(&self, replicas: &[String]) -> String {
        self.ack.replace('$', &replicas.join(", "))
    }
}

/// What faults have been injected into members, so that their ends can be judged.
#[derive(Default)]
pub struct Injected {
    /// A sync of these failed, or will.
    pub failing: RefCell<BTreeSet<String>>,
    /// Disks of these have been full in the life of the present process.
    pub full: RefCell<BTreeSet<String>>,
    /// No more faults.
    pub over: Cell<bool>,
}

/// Lets the weather change until it is over.
pub async fn weather(
    cluster: Rc<Cluster>,
    injected: Rc<Injected>,
    chaos: Chaos,
    mut random: Random,
) {
    let mut lasting: BTreeMap<u64, Vec<Effect>> = BTreeMap::new();
    let mut next_ms = 0;
    while !injected.over.get() {
        tokio::time::sleep(Duration::from_millis(random.between((1, 20)))).await;
        let now_ms = cluster.world.now_ms();
        let still = lasting.split_off(&(now_ms + 1));
        for effect in std::mem::replace(&mut lasting, still).into_values().flatten() {
            effect.end(&cluster);
        }
        if now_ms >= next_ms && !injected.over.get() {
            if let Some(effect) = strike(&cluster, &injected, &mut random) {
                let until_ms = now_ms + random.between((30, 1200));
                lasting.entry(until_ms).or_default().push(effect);
            }
            next_ms = now_ms + random.between(chaos.weather_ms);
        }
    }
}

/// Something that lasts until it is ended.
enum Effect {
    Cut(String, String),
    Slow(String, String),
    Pace(String),
    Full(String),
}

impl Effect {
    fn end(self, cluster: &Cluster) {
        match self {
            Effect::Cut(from, to) => cluster.world.network.heal(&from, &to),
            Effect::Slow(from, to) => cluster.world.network.set_speed(&from, &to, None),
            Effect::Pace(name) => {
                if let Some(member) = cluster.member(&name) {
                    member.machine.pace.set(Pace::USUAL);
                }
            }
            Effect::Full(name) => {
                if let Some(member) = cluster.member(&name) {
                    member.machine.disk.lift_capacity();
                }
            }
        }
    }
}

fn strike(cluster: &Cluster, injected: &Injected, random: &mut Random) -> Option<Effect> {
    let world = &cluster.world;
    let member = random.pick(&cluster.members);
    let name = member.name().to_owned();
    match random.below(100) {
        0..22 => Some(cut(cluster, random)),
        22..37 => {
            let (one, other) = pair(cluster, random);
            let both = random.chance(500);
            if world.network.reset_one(&one, &other, both) {
                let kind = if both { "connection reset" } else { "connection reset at one end" };
                world.count_fault(kind);
            }
            None
        }
        37..50 => {
            let (from, to) = pair(cluster, random);
            let most = random.between((10, 150));
            let speed = LinkSpeed { delay_ms: (5, most), bytes_per_ms: random.between((20, 400)) };
            world.network.set_speed(&from, &to, Some(speed));
            world.count_fault("slow link");
            Some(Effect::Slow(from, to))
        }
        50..66 => {
            let most = *random.pick(&[10, 40, 40, 300]);
            member.machine.pace.set(match random.below(3) {
                0 => Pace { write_ms: (most / 4, most), ..Pace::USUAL },
                1 => Pace { lane_ms: (0, most), ..Pace::USUAL },
                _ => Pace { write_ms: (0, most), job_ms: (most / 4, most), lane_ms: (0, most / 4) },
            });
            world.count_fault("slow disk or threads");
            Some(Effect::Pace(name))
        }
        66..76 => {
            if world.network.flip_bit() {
                world.count_fault("bit flipped on the wire");
            }
            None
        }
        76..84 => {
            let jump_ms = random.between((0, 7_200_000)) as i64 - 3_600_000;
            member.machine.wall_offset_ms.set(jump_ms);
            world.count_fault("wall clock jump");
            None
        }
        84..94 => {
            let disk = &member.machine.disk;
            disk.set_capacity_bytes(disk.used_bytes() + random.below(200 << 10));
            injected.full.borrow_mut().insert(name.clone());
            world.count_fault("disk full");
            Some(Effect::Full(name))
        }
        _ => {
            if member.is_running() {
                member.machine.disk.fail_next_sync();
                injected.failing.borrow_mut().insert(name);
                world.count_fault("failed sync");
            }
            None
        }
    }
}

fn cut(cluster: &Cluster, random: &mut Random) -> Effect {
    let world = &cluster.world;
    let (from, to) = pair(cluster, random);
    world.network.cut(&from, &to);
    if random.chance(500) {
        world.count_fault("link cut one way");
    } else {
        world.count_fault("link cut both ways");
        world.network.cut(&to, &from);
        // The two directions heal at different times.
        heal_later(world, (to.clone(), from.clone()), random.between((30, 1200)));
    }
    Effect::Cut(from, to)
}

fn heal_later(world: &Rc<World>, (from, to): (String, String), after_ms: u64) {
    let world = world.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        world.network.heal(&from, &to);
    });
}

/// Two different hosts: mostly nodes, sometimes the clients'.
fn pair(cluster: &Cluster, random: &mut Random) -> (String, String) {
    let mut hosts: Vec<&str> = cluster.members.iter().map(|member| member.name()).collect();
    if random.chance(250) || hosts.len() < 2 {
        hosts.push(CLIENT_HOST);
    }
    let one = hosts.remove(random.below(hosts.len() as u64) as usize);
    let other = hosts[random.below(hosts.len() as u64) as usize];
    (one.to_owned(), other.to_owned())
}
