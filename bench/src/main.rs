//! `cargo run --release -p bench -- SCENARIO [options] [--json]`.

use bench::frames::{self, Plan};
use clap::{Args, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures rowship and what bounds it on this machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// One JSON line per figure instead of a table
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Encode, seal and verify frames, against memcpy and XXH3 of the same bytes
    Frames(FramesArgs),
}

#[derive(Debug, Args)]
struct FramesArgs {
    /// Rows in a round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Rows in a transaction
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    transaction_rows: u32,
    /// Rounds; the median and the range of all are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let Scenario::Frames(args) = &cli.scenario;
    let plan = Plan {
        rows: args.rows as usize,
        keys: 100_000,
        transaction_rows: args.transaction_rows as usize,
        body_bytes_max: 1 << 20,
        rounds: args.rounds as usize,
    };
    let outcome = frames::run(&plan)?;
    let settings = plan.settings();
    for figure in &outcome.figures {
        if cli.json {
            println!("{}", figure.json(&settings));
        } else {
            println!("{}", figure.line());
        }
    }
    if !cli.json {
        println!("settings {settings}\nresult hash {:016x}", outcome.result_hash);
    }
    Ok(())
}
