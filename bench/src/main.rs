//! `cargo run --release -p bench -- SCENARIO [options] [--json]`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bench::peers::Kind;
use bench::rows::Keys;
use bench::scenarios::peers::{self, Work};
use bench::scenarios::{self, Common, frames};
use bench::sink::Sink;
use bench::{goals, report};
use clap::{Args, Parser, Subcommand};
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures rowship and what bounds it on this machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// One JSON line per figure instead of a table
    #[arg(long, global = true)]
    json: bool,
    /// Directory for figures, histograms and curves; figures are added to those already there
    #[arg(long, global = true, default_value = "target/bench")]
    out: PathBuf,
    /// Directory in which nodes keep their logs and tables
    #[arg(long, global = true, default_value = "target/bench-nodes")]
    directory: PathBuf,
    /// Rounds; the median and the range of all are shown
    #[arg(long, global = true, default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement that counts time
    #[arg(long, global = true, default_value_t = 4.0)]
    seconds: f64,
    /// Different keys
    #[arg(long, global = true, default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 31))]
    keys: u64,
    /// Keys by Zipf's law with this exponent instead of uniform
    #[arg(long, global = true, value_name = "EXPONENT", conflicts_with = "hot")]
    zipf: Option<f64>,
    /// Nine of ten rows go to one key
    #[arg(long, global = true)]
    hot: bool,
    /// A flag for all nodes, such as --node-flag=--lanes=2; may be given several times
    #[arg(long = "node-flag", global = true, value_name = "FLAG", allow_hyphen_values = true)]
    node_flags: Vec<String>,
}

impl Options {
    fn common(&self) -> Result<Common> {
        anyhow::ensure!(
            self.seconds > 0.0 && self.seconds <= 86_400.0,
            "--seconds must be above 0 and at most 86400"
        );
        let pick = match self.zipf {
            Some(exponent) => {
                anyhow::ensure!(exponent > 0.0 && exponent.is_finite(), "--zipf must be above 0");
                Keys::Zipf(exponent)
            }
            None if self.hot => Keys::Hot,
            None => Keys::Uniform,
        };
        Ok(Common {
            rounds: self.rounds as usize,
            measured: Duration::from_secs_f64(self.seconds),
            keys: self.keys,
            pick,
            directory: self.directory.clone(),
            flags: self.node_flags.clone(),
        })
    }
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Encode, seal and verify frames, against memcpy and XXH3 of the same bytes
    Frames(FramesArgs),
    /// Rows per second and latency, by clients, rows per transaction and ack policy
    Ingest(IngestArgs),
    /// What this machine allows: sockets, disk, memory, the table library
    Limits,
    /// A backlog of log to fresh replicas, verified and durable, without apply
    Ship(scenarios::ship::Plan),
    /// A replica that was away: until it shows what the primary has
    Catchup(scenarios::catchup::Plan),
    /// Rows at fixed rates: latency of commits, write-to-visible lag, a pause of the replica
    Lag(scenarios::lag::Plan),
    /// What each further replica costs
    Fanout(scenarios::fanout::Plan),
    /// What a row costs as the log gets longer, and how much memory nodes have then
    Growth(scenarios::growth::Plan),
    /// How long a primary takes to start
    Recovery(scenarios::recovery::Plan),
    /// Memory, and bytes per row
    Footprint(scenarios::footprint::Plan),
    /// The same work on rowship and on Redis, PostgreSQL and MariaDB, in turn, and the ratios
    Peers(PeersArgs),
    /// Which goals the newest figures of --out reach
    Goals(GoalsArgs),
    /// Makes a page with plots, and the same as Markdown, of everything in --out
    Report,
}

#[derive(Debug, Args)]
struct GoalsArgs {
    /// End with an error unless all are measured and met
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
struct IngestArgs {
    /// Only what has this in its name, such as "rowship async, 8 clients x 1 rows"
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Debug, Args)]
struct PeersArgs {
    /// Only these peers
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only these works
    #[arg(long, value_enum, value_delimiter = ',')]
    work: Vec<Work>,
    /// Rows of a backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    rows: u64,
    /// Rows per second of the work `lag`
    #[arg(long, default_value_t = 5000.0, value_parser = rate)]
    rate: f64,
}

fn rate(text: &str) -> Result<f64> {
    let rate: f64 = text.parse()?;
    anyhow::ensure!((1.0..=1e7).contains(&rate), "it must be from 1 to 10000000");
    Ok(rate)
}

impl PeersArgs {
    fn plan(&self, common: &Common) -> peers::Plan {
        let only = if self.only.is_empty() { Kind::ALL.to_vec() } else { self.only.clone() };
        let works = if self.work.is_empty() { Work::ALL.to_vec() } else { self.work.clone() };
        peers::Plan { common: common.clone(), only, works, rows: self.rows, rate: self.rate }
    }
}

#[derive(Debug, Args)]
struct FramesArgs {
    /// Rows in a round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Rows in a transaction
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    transaction_rows: u32,
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<()> {
    let common = cli.options.common()?;
    let sink = Sink::new(&cli.options.out, cli.options.json)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(&cli.scenario, &common, &sink))
}

async fn run(scenario: &Scenario, common: &Common, sink: &Sink) -> Result<()> {
    match scenario {
        Scenario::Frames(args) => {
            let plan = frames::Plan {
                rows: args.rows as usize,
                keys: common.keys as usize,
                transaction_rows: args.transaction_rows as usize,
                body_bytes_max: 1 << 20,
                rounds: common.rounds,
            };
            let outcome = frames::run(&plan)?;
            let settings = plan.settings();
            outcome.figures.iter().try_for_each(|figure| sink.figure(figure, &settings))?;
            sink.say(&format!("settings {settings}\nresult hash {:016x}", outcome.result_hash));
            Ok(())
        }
        Scenario::Ingest(args) => scenarios::ingest::run(common, &args.only, sink).await,
        Scenario::Limits => scenarios::limits::run(common, sink),
        Scenario::Ship(plan) => scenarios::ship::run(common, plan, sink).await,
        Scenario::Catchup(plan) => scenarios::catchup::run(common, plan, sink).await,
        Scenario::Lag(plan) => scenarios::lag::run(common, plan, sink).await,
        Scenario::Fanout(plan) => scenarios::fanout::run(common, plan, sink).await,
        Scenario::Growth(plan) => scenarios::growth::run(common, plan, sink).await,
        Scenario::Recovery(plan) => scenarios::recovery::run(common, plan, sink).await,
        Scenario::Footprint(plan) => scenarios::footprint::run(common, plan, sink).await,
        Scenario::Peers(args) => peers::run(&args.plan(common), sink).await,
        Scenario::Goals(args) => goals::show(sink, args.strict),
        Scenario::Report => report::write(sink.directory())
            .map(|paths| paths.iter().for_each(|path| sink.say(&path.display().to_string()))),
    }
}
