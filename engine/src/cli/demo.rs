//! `rowship demo`: a primary and its replicas as real processes, real rows, a write load, and a
//! check that all nodes hold the same.

mod cluster;
mod writes;

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::CommandResult;
use super::client::Client;
use super::config::units::{human_count, human_micros};
use super::diff::{self, Outcome};
use super::exit::{Exit, Failure};
use super::interrupt;
use super::load::rows::{CsvRows, KeyPlan};
use super::load::{LoadPlan, LoadSummary, OnError, load};
use super::output;
use super::status::render_stages;
use cluster::{Directory, Node};
use writes::{BATCH_ROWS, Written};

/// Bundled tables: name, key column, file. See `data/README.md` for their source.
const TABLES: [(&str, &str, &[u8]); 2] = [
    ("planes", "tailnum", include_bytes!("../../data/planes.csv")),
    ("airports", "faa", include_bytes!("../../data/airports.csv")),
];
/// A row that everybody can look at.
const EXAMPLE_KEY: &str = "planes:N14228";
/// Until all replicas have what the primary has.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Small segments: each node makes at least two, really written.
const SEGMENT_BYTES: &str = "64MiB";
/// How long the load may take when only a number of rows is given.
const ROWS_SECONDS_MAX: u64 = 600;

/// Flags of `rowship demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Rows to write (instead of as many as fit into --seconds)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rows: Option<u64>,
    /// Replicas to start
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=8))]
    replicas: u8,
    /// When a write counts: async, semi-sync, sync or a whole policy; replicas are replica-1 ...
    #[arg(long, value_name = "POLICY", default_value = "semi-sync")]
    ack: String,
    /// How long to write
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Keep the temporary directory with data and logs of all nodes
    #[arg(long)]
    keep: bool,
}

/// Text for a person, or nothing when a program reads.
struct Voice {
    json: bool,
}

impl Voice {
    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { output::print(&format!("{text}\n")) }
    }
}

/// Runs the whole demo; [`Exit::Failed`] when nodes differ.
///
/// # Errors
/// The first thing that went wrong, with the end of that node's log.
pub fn run(args: &DemoArgs) -> CommandResult {
    let internal = |error: std::io::Error| Failure::new(Exit::Internal, format!("demo: {error}"));
    interrupt::watch().map_err(internal)?;
    let directory = Directory::create(args.keep).map_err(internal)?;
    let voice = Voice { json: args.json };
    let result = run_in(args, &directory, &voice);
    if args.keep {
        eprintln!("kept: {}", directory.path.display());
    }
    result
}

fn run_in(args: &DemoArgs, directory: &Directory, voice: &Voice) -> CommandResult {
    let mut nodes = start(args, directory, voice)?;
    let loaded = load_tables(&nodes[0].listen, voice)?;
    let written = write_load(args, &nodes[0].listen, voice)?;
    catch_up(&nodes)?;
    let status = Client::connect(&nodes[0].listen)?.status()?;
    let replicas = status["replicas"].as_array().cloned().unwrap_or_default();
    if !replicas.is_empty() {
        voice.say("\nHow long each frame took to pass each stage on each replica:\n")?;
        voice.say(render_stages(&replicas).trim_end())?;
    }
    voice.say("")?;
    let outcomes = compare(&nodes, &written, voice)?;
    show_example(&nodes, voice)?;
    let verified = stop_and_verify(&mut nodes, voice)?;
    let identical = outcomes.iter().all(|(_, outcome)| outcome.differences.none());
    if voice.json {
        let report = report(&status, &loaded, &written, &outcomes, verified);
        output::print(&format!("{report}\n"))?;
    }
    Ok(if identical { Exit::Ok } else { Exit::Failed })
}

fn start(args: &DemoArgs, directory: &Directory, voice: &Voice) -> Result<Vec<Node>, Failure> {
    let names: Vec<String> = (1..=args.replicas).map(|at| format!("replica-{at}")).collect();
    let ack = if names.is_empty() { "async" } else { args.ack.trim() };
    let cluster = |flags: &[&str]| -> Vec<String> {
        let all = [&["--segment-bytes", SEGMENT_BYTES, "--ack", ack], flags].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let list = names.join(",");
    let bare_sync = ack.starts_with("sync") && !ack.contains('(');
    let shared = if bare_sync { cluster(&["--replicas", &list]) } else { cluster(&[]) };
    let primary = Node::start(&directory.path, "primary", &shared)?;
    let replication = primary.replication_listen.clone();
    voice.say(&format!("primary    {}  (acks: {ack})", primary.listen))?;
    let mut nodes = vec![primary];
    for name in names {
        let mut flags = shared.clone();
        flags.extend(["--replica-of".to_owned(), replication.clone()]);
        let node = Node::start(&directory.path, &name, &flags)?;
        voice.say(&format!("{name}  {}", node.listen))?;
        nodes.push(node);
    }
    catch_up(&nodes)?;
    Ok(nodes)
}

fn load_tables(primary: &str, voice: &Voice) -> Result<Vec<(&'static str, LoadSummary)>, Failure> {
    voice.say("\nLoading real planes and airports:")?;
    let mut loaded = Vec::new();
    for (table, column, file) in TABLES {
        let plan = LoadPlan {
            to: primary.to_owned(),
            key: key_plan(table, column),
            on_error: OnError::Stop,
            batch: 100,
            connections: 2,
            transaction: false,
            ack_policy: None,
        };
        let (result, summary) = load(file, &plan, None);
        result?;
        voice.say(&format!("  {}", summary.line(table)))?;
        loaded.push((table, summary));
    }
    Ok(loaded)
}

fn key_plan(table: &str, column: &str) -> KeyPlan {
    let columns = vec![column.to_owned()];
    KeyPlan { table: table.to_owned(), columns, separator: ":".to_owned() }
}

fn write_load(args: &DemoArgs, primary: &str, voice: &Voice) -> Result<Written, Failure> {
    let (table, column, file) = TABLES[0];
    let bundled = |error| Failure::new(Exit::Internal, format!("bundled {table}: {error}"));
    let mut rows = CsvRows::new(file, key_plan(table, column)).map_err(bundled)?;
    let mut keys = Vec::new();
    while let Some(line) = rows.next_line().map_err(bundled)? {
        keys.push(String::from_utf8_lossy(&line.key).into_owned());
    }
    let (seconds, rows_max) = match args.rows {
        Some(rows) => (ROWS_SECONDS_MAX, rows),
        None => (args.seconds, u64::MAX),
    };
    match args.rows {
        Some(rows) => voice.say(&format!("\nWriting {} rows ...", human_count(rows)))?,
        None => voice.say(&format!("\nWriting to all planes for {seconds} s ..."))?,
    }
    let written = writes::write(primary, &keys, Duration::from_secs(seconds), rows_max)?;
    voice.say(&format!(
        "  {} rows acknowledged in {:.1} s, {} rows/s; {BATCH_ROWS} rows in {} (p50), {} (p99)",
        human_count(written.rows),
        written.seconds,
        human_count(rate(&written)),
        human_micros(written.batch_us.value_at_quantile(0.5)),
        human_micros(written.batch_us.value_at_quantile(0.99)),
    ))?;
    Ok(written)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people; never negative"
)]
fn rate(written: &Written) -> u64 {
    (written.rows as f64 / written.seconds.max(1e-6)) as u64
}

/// Waits until all nodes show the same position.
fn catch_up(nodes: &[Node]) -> Result<(), Failure> {
    let clients: Result<Vec<_>, _> =
        nodes.iter().map(|node| Client::connect(&node.listen)).collect();
    interrupt::check()?;
    diff::wait_for_same_position(&mut clients?, CATCH_UP_TIMEOUT).map_err(|failure| {
        let logs: String =
            nodes.iter().map(|node| format!("\n{}{}", node.name, node.log_tail())).collect();
        Failure { code: failure.code, message: format!("{failure}{logs}") }
    })?;
    Ok(())
}

/// Looks for every acknowledged value on every node, and compares all rows with the primary's.
fn compare(
    nodes: &[Node],
    written: &Written,
    voice: &Voice,
) -> Result<Vec<(String, Outcome)>, Failure> {
    for node in nodes {
        interrupt::check()?;
        let rows = writes::check(&node.listen, &written.last)?;
        let rows = human_count(rows as u64);
        voice
            .say(&format!("{}: has the last acknowledged value of all {rows} planes", node.name))?;
    }
    let mut outcomes = Vec::new();
    for replica in &nodes[1..] {
        let outcome = diff::diff(&nodes[0].listen, &replica.listen, CATCH_UP_TIMEOUT)?;
        let text = outcome.text("primary", &replica.name);
        voice.say(&format!("primary and {}: {}", replica.name, text.trim_end()))?;
        outcomes.push((replica.name.clone(), outcome));
    }
    Ok(outcomes)
}

fn show_example(nodes: &[Node], voice: &Voice) -> Result<(), Failure> {
    let Some(node) = nodes.last() else { return Ok(()) };
    let reply = Client::connect(&node.listen)?.ask(&["HGETALL", EXAMPLE_KEY])?;
    let super::reply::Reply::Array(items) = reply else { return Ok(()) };
    let words: Vec<_> = items.iter().filter_map(super::reply::Reply::text).collect();
    let pairs: Vec<_> = words.chunks(2).map(|pair| pair.join("=")).collect();
    voice.say(&format!("\n{EXAMPLE_KEY}, read from {}:\n  {}", node.name, pairs.join("  ")))
}

/// Stops all nodes, replicas first, and verifies every log; how many were verified.
fn stop_and_verify(nodes: &mut Vec<Node>, voice: &Voice) -> Result<usize, Failure> {
    for node in nodes.iter_mut().rev() {
        node.stop()?;
    }
    for node in nodes.iter() {
        interrupt::check()?;
        verify_log(node)?;
    }
    let count = nodes.len();
    voice.say(&format!(
        "\nAll {count} nodes stopped cleanly; every frame of their logs verifies."
    ))?;
    nodes.clear();
    Ok(count)
}

fn verify_log(node: &Node) -> Result<(), Failure> {
    let internal = |error: std::io::Error| Failure::new(Exit::Internal, format!("verify: {error}"));
    let program = std::env::current_exe().map_err(internal)?;
    let output = std::process::Command::new(program)
        .args(["log", "verify"])
        .arg(&node.data_dir)
        .output()
        .map_err(internal)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let message = format!("log of {} does not verify: {said}{complained}", node.name);
    Err(Failure::new(Exit::Failed, message))
}

fn report(
    status: &Value,
    loaded: &[(&str, LoadSummary)],
    written: &Written,
    outcomes: &[(String, Outcome)],
    logs_verified: usize,
) -> Value {
    let tables: Vec<_> = loaded
        .iter()
        .map(|(table, summary)| json!({"table": table, "rows": summary.rows}))
        .collect();
    let stages = |name: &str| {
        let replicas = status["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        let replica = replicas.iter().find(|replica| replica["name"] == name);
        replica.map_or(Value::Null, |replica| replica["stages"].clone())
    };
    let replicas: Vec<_> = outcomes
        .iter()
        .map(|(name, outcome)| {
            json!({
                "name": name,
                "identical": outcome.differences.none(),
                "rows": outcome.rows[1],
                "position": outcome.position,
                "stages": stages(name),
            })
        })
        .collect();
    json!({
        "identical": outcomes.iter().all(|(_, outcome)| outcome.differences.none()),
        "ack": status["ack"]["policy"],
        "loaded": tables,
        "written": {
            "rows": written.rows,
            "seconds": written.seconds,
            "rows_per_second": rate(written),
            "batch_rows": BATCH_ROWS,
            "batch_p50_us": written.batch_us.value_at_quantile(0.5),
            "batch_p99_us": written.batch_us.value_at_quantile(0.99),
        },
        "replicas": replicas,
        "logs_verified": logs_verified,
    })
}
