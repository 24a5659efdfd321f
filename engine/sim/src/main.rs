//! Runs many seeds and says what they did.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser;
use rowship_proto::sim::{Bug, Mark};
use rowship_sim::run::{Report, RunOptions, SHORT_MS, run};

/// Simulates clusters of rowship under faults, each from a seed.
#[derive(Parser)]
struct Args {
    /// How many seeds to run, from `--from` on
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this seed, once
    #[arg(long)]
    seed: Option<u64>,
    /// How long things go wrong in each seed, in virtual milliseconds
    #[arg(long, default_value_t = SHORT_MS)]
    chaos_ms: u64,
    /// Plant this fault in the code under test
    #[arg(long)]
    bug: Option<String>,
    /// Fail when a rare path was never reached
    #[arg(long)]
    all_marks: bool,
    /// Print the nodes' own log lines, from this level on (for one seed)
    #[arg(long)]
    log: Option<tracing_subscriber::filter::LevelFilter>,
    /// Threads, each with seeds of its own
    #[arg(long, default_value_t = 1)]
    threads: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(level) = args.log {
        tracing_subscriber::fmt().with_max_level(level).with_target(false).without_time().init();
    }
    let bug = match &args.bug {
        None => None,
        Some(name) => match Bug::ALL.iter().find(|bug| bug.name() == name) {
            Some(bug) => Some(*bug),
            None => {
                let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
                eprintln!("no such fault; there are: {}", names.join(", "));
                return ExitCode::from(2);
            }
        },
    };
    let (from, count) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let threads = args.threads.clamp(1, count.max(1));
    let worker = |first: u64| {
        let seeds = (from + first..from + count).step_by(threads as usize);
        let mut total = Total::default();
        for seed in seeds {
            let options = RunOptions { seed, chaos_ms: args.chaos_ms, bug };
            match run(options) {
                Ok(report) => total.add(&report),
                Err(failure) => {
                    println!("{failure}");
                    total.failures += 1;
                    if args.seed.is_none() && total.failures >= FAILURES_MAX {
                        break;
                    }
                }
            }
        }
        total
    };
    let total = std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || worker(first))).collect();
        let mut total = Total::default();
        for thread in running {
            total.merge(thread.join().expect("failures of a run are caught"));
        }
        total
    });
    total.print();
    let missing = total.missing();
    if args.all_marks && !missing.is_empty() {
        println!("never reached: {}", missing.join(", "));
        return ExitCode::from(1);
    }
    ExitCode::from(u8::from(total.failures > 0))
}

/// A run gives up after so many failures.
const FAILURES_MAX: u64 = 5;

/// Paths that only scenarios reach: random runs do not retire what a new member would need.
const IN_SCENARIOS: &[Mark] = &[Mark::RetiredRefused];

/// Paths that one short seed in some three hundred reaches, or fewer: not demanded of fewer than
/// [`RARE_SEEDS`] seeds.
const RARE: &[Mark] = &[Mark::OpeningRepeated, Mark::PromiseBroken];
/// Enough to reach every one of [`RARE`].
const RARE_SEEDS: u64 = 3000;

#[derive(Default)]
struct Total {
    runs: u64,
    failures: u64,
    virtual_ms: u64,
    commits: u64,
    looks: u64,
    checked: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    marks: BTreeMap<Mark, u64>,
    events: u64,
    hash: u64,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.virtual_ms += report.virtual_ms;
        self.commits += report.commits;
        self.looks += report.looks;
        let checked = &report.checked;
        let counts = [
            ("acknowledged writes", checked.acked),
            ("refused writes", checked.refused),
            ("open writes", checked.open),
            ("reads", checked.reads),
            ("answers of WAITPOS", checked.waits),
            ("censuses", checked.censuses),
        ];
        for (what, count) in counts {
            *self.checked.entry(what).or_default() += count;
        }
        for (kind, count) in &report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for mark in &report.marks {
            *self.marks.entry(*mark).or_default() += 1;
        }
        self.events += report.trace.events;
        self.hash = self.hash.wrapping_add(report.trace.hash);
    }

    fn merge(&mut self, other: Total) {
        self.runs += other.runs;
        self.failures += other.failures;
        self.virtual_ms += other.virtual_ms;
        self.commits += other.commits;
        self.looks += other.looks;
        for (what, count) in other.checked {
            *self.checked.entry(what).or_default() += count;
        }
        for (kind, count) in other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (mark, count) in other.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        self.events += other.events;
        self.hash = self.hash.wrapping_add(other.hash);
    }

    fn missing(&self) -> Vec<&'static str> {
        let few = self.runs < RARE_SEEDS;
        let excused = |mark: &Mark| IN_SCENARIOS.contains(mark) || (few && RARE.contains(mark));
        let absent = |mark: &&Mark| !self.marks.contains_key(*mark) && !excused(mark);
        Mark::ALL.iter().filter(absent).map(|mark| mark.name()).collect()
    }

    fn print(&self) {
        println!(
            "{} seeds, {} failed; {:.2} simulated hours, {} commits, {} looks at all nodes, {} \
             traced events, hash {:016x}",
            self.runs + self.failures,
            self.failures,
            self.virtual_ms as f64 / 3_600_000.0,
            self.commits,
            self.looks,
            self.events,
            self.hash
        );
        let lines = [("checked", &self.checked), ("faults", &self.faults)];
        for (title, counts) in lines {
            let all: Vec<_> =
                counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
            println!("{title}: {}", all.join(", "));
        }
        let marks: Vec<_> =
            self.marks.iter().map(|(mark, seeds)| format!("{} {seeds}", mark.name())).collect();
        println!("rare paths (seeds that reached them): {}", marks.join(", "));
    }
}
