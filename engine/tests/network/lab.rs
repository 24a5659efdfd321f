//! A network of namespaces: one per machine, a router between them, and a desk for clients.
//!
//! ```text
//!   machine 1 (wire 10.77.0.1) ---- router ---- machine 2 (wire 10.77.0.2)   replication
//!   machine 1 (desk 10.77.1.1) ----- desk  ---- machine 2 (desk 10.77.1.2)   clients, tests
//! ```
//!
//! Faults happen on the router only, as on a real way between two machines: neither end is told
//! that a packet is lost. Clients reach every machine all the time, to see what it says meanwhile.
//! All addresses exist only inside. Names of namespaces carry this process's id; they are removed
//! when a lab is dropped, and the next lab removes what a killed process has left behind.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
const PREFIX: &str = "rowship-";
/// The router's and the desk's own number on their sides of all links.
const MIDDLE: u8 = 254;

/// The network. The thread that makes it, and those that it starts from then on, are at the desk.
pub struct Lab {
    name: String,
    machines: u8,
    home: File,
}

/// Packets from one machine to another are lost on the way.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub from: u8,
    pub to: u8,
    pub which: Which,
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    All,
    /// Those of more bytes than this.
    LongerThan(u32),
    /// TCP's resets, as firewalls do that know nothing of the connection.
    Resets,
}

impl Lab {
    /// Machines 1 to `machines`; `None` where there can be no lab, and one line that says why.
    pub fn new(machines: u8) -> Option<Lab> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static MISSING: OnceLock<Option<String>> = OnceLock::new();
        let missing = MISSING.get_or_init(|| {
            remove_leftovers();
            let missing = missing()?;
            // Past what cargo keeps of tests that end well.
            let line = format!("SKIPPED: all tests on a real network; they need {missing}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            Some(missing)
        });
        if missing.is_some() {
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        let lab = Lab { name, machines, home };
        lab.make();
        enter(&lab.namespace("desk"));
        Some(lab)
    }

    fn make(&self) {
        let (router, desk) = (self.namespace("router"), self.namespace("desk"));
        ip(&[], &format!("netns add {router}\nnetns add {desk}\n"));
        for middle in [&router, &desk] {
            ip(&["-n", middle], "link set lo up\n");
        }
        self.inside("router", || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        });
        nft(
            &router,
            "add table inet faults\n\
             add chain inet faults forward { type filter hook forward priority 0; }\n",
        );
        for machine in 1..=self.machines {
            self.make_machine(machine);
        }
    }

    fn make_machine(&self, machine: u8) {
        let (router, desk) = (self.namespace("router"), self.namespace("desk"));
        let own = self.namespace(&machine.to_string());
        ip(
            &[],
            &format!(
                "netns add {own}\n\
                 link add h{machine} netns {router} type veth peer name wire netns {own}\n\
                 link add h{machine} netns {desk} type veth peer name desk netns {own}\n"
            ),
        );
        let mut lines = "link set lo up\n".to_owned();
        for (net, device) in [(0, "wire"), (1, "desk")] {
            lines += &format!(
                "address add 10.77.{net}.{machine}/32 dev {device}\n\
                 link set {device} up\n\
                 route add 10.77.{net}.{MIDDLE} dev {device}\n\
                 route add 10.77.{net}.0/24 via 10.77.{net}.{MIDDLE}\n"
            );
        }
        ip(&["-n", &own], &lines);
        for (net, middle) in [(0, &router), (1, &desk)] {
            ip(
                &["-n", middle],
                &format!(
                    "address add 10.77.{net}.{MIDDLE}/32 dev h{machine}\n\
                     link set h{machine} up\n\
                     route add 10.77.{net}.{machine} dev h{machine}\n"
                ),
            );
        }
        self.inside(&machine.to_string(), || {
            // As kernels before 6.5: the pauses between attempts to connect double from the first.
            let _ = std::fs::write("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "0");
            // What a sender can get rid of before anybody has acknowledged it: little, so that it
            // is stuck soon.
            std::fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 65536").unwrap();
        });
    }

    fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.name)
    }

    /// Runs something on a machine; what it starts stays there.
    pub fn on<T: Send>(&self, machine: u8, run: impl FnOnce() -> T + Send) -> T {
        self.inside(&machine.to_string(), run)
    }

    fn inside<T: Send>(&self, place: &str, run: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(place);
        let done = std::thread::scope(|scope| {
            let inside = move || {
                enter(&namespace);
                run()
            };
            scope.spawn(inside).join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Loses packets on the router from now on, until [`Lab::heal`].
    pub fn lose(&self, losses: &[Loss]) {
        let rules: String = losses.iter().map(Loss::rule).collect();
        nft(&self.namespace("router"), &rules);
    }

    /// Loses no more packets. Returns how many were lost.
    pub fn heal(&self) -> u64 {
        let router = self.namespace("router");
        let rules = nft(&router, "list chain inet faults forward\n");
        nft(&router, "flush chain inet faults forward\n");
        let mut words = rules.split_whitespace();
        let mut lost = 0;
        while let Some(word) = words.next() {
            if word == "packets" {
                lost += words.next().unwrap().parse::<u64>().unwrap();
            }
        }
        lost
    }

    /// The machine is off: its links are cut, and all its sockets go without a word. What ran on
    /// it must have ended. It is back, with nothing but its disk, after [`Lab::power_on`].
    pub fn power_off(&self, machine: u8) {
        for middle in ["router", "desk"] {
            ip(&["-n", &self.namespace(middle)], &format!("link del h{machine}\n"));
        }
        ip(&[], &format!("netns del {}\n", self.namespace(&machine.to_string())));
    }

    /// See [`Lab::power_off`].
    pub fn power_on(&self, machine: u8) {
        self.make_machine(machine);
    }

    /// Pulls the cable to the router, so that nothing in flight arrives, and no FIN.
    pub fn unplug(&self, machine: u8) {
        ip(&["-n", &self.namespace("router")], &format!("link set h{machine} down\n"));
    }

    /// Gives a machine that is unplugged another address on the wire, and plugs it in again. The
    /// old address is gone, with all connections from it.
    pub fn plug_in_as(&self, machine: u8, number: u8) {
        ip(
            &["-n", &self.namespace(&machine.to_string())],
            &format!(
                "address flush dev wire\n\
                 address add 10.77.0.{number}/32 dev wire\n\
                 route replace 10.77.0.{MIDDLE} dev wire\n\
                 route replace 10.77.0.0/24 via 10.77.0.{MIDDLE}\n"
            ),
        );
        ip(
            &["-n", &self.namespace("router")],
            &format!("link set h{machine} up\nroute replace 10.77.0.{number} dev h{machine}\n"),
        );
    }

    /// Packets to a machine leave the router at this rate at most, and queue before that for
    /// a fifth of a second at most.
    pub fn slow(&self, machine: u8, kbit: u32) {
        let rate = format!("{kbit}kbit");
        let device = format!("h{machine}");
        let words = ["qdisc", "add", "dev", &device, "root", "tbf", "rate", &rate];
        let limits = ["burst", "8kb", "latency", "200ms"];
        tc(&self.namespace("router"), &[&words[..], &limits].concat());
    }

    /// Full speed again.
    pub fn fast(&self, machine: u8) {
        let device = format!("h{machine}");
        tc(&self.namespace("router"), &["qdisc", "del", "dev", &device, "root"]);
    }

    /// The largest packet that the way to a machine takes. The router says so to who sends larger
    /// ones.
    pub fn largest_packet(&self, machine: u8, bytes: u32) {
        let line = format!("link set h{machine} mtu {bytes}\n");
        ip(&["-n", &self.namespace("router")], &line);
    }
}

impl Loss {
    /// Everything that goes from one machine to another.
    pub fn all(from: u8, to: u8) -> Loss {
        Loss { from, to, which: Which::All }
    }

    /// Everything between two machines.
    pub fn both(one: u8, other: u8) -> [Loss; 2] {
        [Loss::all(one, other), Loss::all(other, one)]
    }

    fn rule(&self) -> String {
        let Loss { from, to, which } = self;
        let which = match which {
            Which::All => String::new(),
            Which::LongerThan(bytes) => format!("meta length > {bytes}"),
            Which::Resets => "tcp flags & rst == rst".to_owned(),
        };
        format!(
            "add rule inet faults forward ip saddr 10.77.0.{from} ip daddr 10.77.0.{to} {which} \
             counter drop\n"
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The thread may go on with another test.
        let _ = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
        remove_where(|name| {
            name.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with('-'))
        });
    }
}

/// Address of a machine where replicas connect.
pub fn wire(machine: u8) -> String {
    format!("10.77.0.{machine}:7402")
}

/// Address of a machine where clients connect.
pub fn desk(machine: u8) -> String {
    format!("10.77.1.{machine}:7401")
}

/// What is missing for a lab.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    for (command, flag, package) in
        [("ip", "-V", "iproute2"), ("tc", "-V", "iproute2"), ("nft", "-v", "nftables")]
    {
        if try_run(command, &[flag], "").is_err() {
            return Some(format!("{command} (Debian: {package})"));
        }
    }
    // Root of a container may not do all of it, and not every kernel can.
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    let steps = [
        try_run("ip", &["netns", "add", &probe], ""),
        try_run(
            "ip",
            &["-n", &probe, "link", "add", "h0", "type", "veth", "peer", "name", "h1"],
            "",
        ),
        try_run("ip", &["netns", "exec", &probe, "nft", "-f", "-"], "add table inet faults\n"),
    ];
    remove_where(|name| name == probe);
    let failed = steps.into_iter().find_map(Result::err);
    failed.map(|why| format!("namespaces, veth and nf_tables of the kernel ({why})"))
}

fn enter(namespace: &str) {
    let file = File::open(format!("{NAMES}/{namespace}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Namespaces of processes that are no more.
fn remove_leftovers() {
    remove_where(|name| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| {
            pid.parse::<u32>().is_ok() && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        })
    });
}

fn remove_where(gone: impl Fn(&str) -> bool) {
    let names = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| gone(name)) {
        // Another process may be quicker.
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
}

fn ip(flags: &[&str], lines: &str) {
    run("ip", &[flags, &["-batch", "-"]].concat(), lines);
}

fn tc(namespace: &str, words: &[&str]) {
    run("tc", &[&["-n", namespace], words].concat(), "");
}

fn nft(namespace: &str, lines: &str) -> String {
    run("ip", &["netns", "exec", namespace, "nft", "-f", "-"], lines)
}

/// Runs a command to its end; its output.
fn run(command: &str, words: &[&str], input: &str) -> String {
    let output = try_run(command, words, input);
    output.unwrap_or_else(|why| panic!("{command} {words:?}: {why}\n{input}"))
}

/// The same, or what it complains about.
fn try_run(command: &str, words: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(command)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    // A command that takes no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    output.status.success().then(|| text(&output.stdout)).ok_or_else(|| text(&output.stderr))
}
