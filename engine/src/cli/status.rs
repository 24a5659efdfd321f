//! `rowship status`: one screen about a node, from `ROWSHIP.STATUS`.
//!
//! The JSON may come from another version: what is missing is left out or shown as `-`, and what
//! is not known here is still in `--json`.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::CommandResult;
use super::client::Client;
use super::config::units::{human_bytes, human_count, human_micros};
use super::exit::{Exit, Failure};
use super::output;
use super::table::{align, row};

/// Stages of a frame's way to a replica, in their order.
pub const STAGES: [&str; 5] = ["sent", "received", "durable", "applied", "visible"];
/// Events and names listed on the screen; all are in `--json`.
const LIST_MAX: usize = 8;

/// Flags of `rowship status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Client address of the node
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
    at: String,
    /// Print the node's own JSON
    #[arg(long)]
    json: bool,
    /// Again every SECONDS, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// Asks and prints, once or for ever.
///
/// # Errors
/// When the node cannot be asked.
pub fn run(args: &StatusArgs) -> CommandResult {
    let mut client = Client::connect(&args.at)?;
    loop {
        let status = client.status()?;
        let text = match (args.json, args.watch) {
            (true, None) => format!("{}\n", pretty(&status)?),
            (true, Some(_)) => format!("{status}\n"),
            // Clear the screen, cursor to the upper left corner.
            (false, Some(_)) if output::is_terminal() => {
                format!("\x1b[2J\x1b[H{}", render(&status))
            }
            (false, _) => render(&status),
        };
        output::print(&text)?;
        match args.watch {
            None => return Ok(Exit::Ok),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
        }
    }
}

fn pretty(value: &Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Internal, format!("status: {error}")))
}

/// The screen.
#[must_use]
pub fn render(status: &Value) -> String {
    let mut text = String::new();
    render_node(status, &mut text);
    render_log(status, &mut text);
    render_ack(status, &mut text);
    let replicas = status["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    if !replicas.is_empty() {
        text.push('\n');
        text.push_str(&render_replicas(replicas));
        text.push('\n');
        text.push_str(&render_stages(replicas));
    }
    render_upstream(&status["upstream"], &mut text);
    render_rest(status, &mut text);
    text
}

fn render_node(status: &Value, text: &mut String) {
    let node = &status["node"];
    let uptime = number(&node["uptime_s"]).map_or("-".to_owned(), seconds);
    text.push_str(&format!(
        "{} {}  node {}  pid {}  up {uptime}  rowship {}\n",
        word(&node["role"]),
        word(&node["name"]),
        word(&node["node_id"]),
        word(&node["pid"]),
        word(&status["version"]),
    ));
    let kernel = &status["kernel"];
    text.push_str(&format!(
        "directory {}  kernel {}  io_uring {}\n",
        word(&node["data_dir"]),
        word(&kernel["release"]),
        words(&kernel["io_uring"], usize::MAX),
    ));
    if node["allow_unauthenticated"] == Value::Bool(true) {
        text.push_str("NOTE: listens without authentication (--allow-unauthenticated)\n");
    }
}

fn render_log(status: &Value, text: &mut String) {
    let log = &status["log"];
    text.push_str(&format!("\nlog {}  epoch {}\n", word(&log["log_id"]), word(&log["epoch"])));
    let names = ["oldest_lsn", "appended", "durable", "committed", "applied", "visible"];
    let mut head: Vec<String> = names.map(|name| name.replace("_lsn", "")).to_vec();
    let mut line: Vec<String> = names.map(|name| count(&log[name])).to_vec();
    head.push("segments".to_owned());
    line.push(format!("{} x {}", count(&log["segments"]), bytes(&log["segment_bytes"])));
    text.push_str(&align(&[head, line], 0));
    alarm("LOG CANNOT GROW", &log["full"], text);
}

/// A line in capitals when there is something to say.
fn alarm(what: &str, value: &Value, text: &mut String) {
    if value.as_str().is_some_and(|reason| !reason.is_empty()) {
        text.push_str(&format!("{what}: {}\n", word(value)));
    }
}

fn render_ack(status: &Value, text: &mut String) {
    let ack = &status["ack"];
    if ack["policy"].is_null() {
        // A replica: its primary decides.
        return;
    }
    text.push_str(&format!(
        "\nack {}; on missing {}; uncommitted {}; {} writes refused, {} indeterminate\n",
        word(&ack["policy"]),
        word(&ack["on_missing"]),
        bytes(&ack["uncommitted_bytes"]),
        count(&ack["refused_writes"]),
        count(&ack["indeterminate_writes"]),
    ));
    if ack["waiting_for"].as_array().is_some_and(|list| !list.is_empty()) {
        text.push_str(&format!("WAITS FOR {}\n", words(&ack["waiting_for"], LIST_MAX)));
    }
}

fn render_replicas(replicas: &[Value]) -> String {
    let head =
        ["replica", "state", "address", "lag", "lag bytes", "received", "durable", "visible"];
    let mut rows = vec![row(head)];
    for replica in replicas {
        let mut line: Vec<String> =
            ["name", "state", "address"].map(|name| word(&replica[name])).to_vec();
        let lag = replica["lag_ms"].as_f64().map_or("-".to_owned(), |lag| format!("{lag} ms"));
        line.push(lag);
        line.push(bytes(&replica["lag_bytes"]));
        line.extend(["received", "durable", "visible"].map(|name| count(&replica[name])));
        rows.push(line);
    }
    align(&rows, 3)
}

/// Time since a frame was sealed until it had passed each stage, per replica.
#[must_use]
pub fn render_stages(replicas: &[Value]) -> String {
    let mut rows = vec![row(["since sealed", "stage", "frames", "p50", "p99", "p99.9", "max"])];
    for replica in replicas {
        let mut name = word(&replica["name"]);
        for stage in STAGES {
            let figures = &replica["stages"][stage];
            if figures.is_null() {
                continue;
            }
            let mut line = vec![std::mem::take(&mut name), stage.to_owned()];
            line.push(count(&figures["count"]));
            for figure in ["p50_us", "p99_us", "p999_us", "max_us"] {
                line.push(number(&figures[figure]).map_or("-".to_owned(), human_micros));
            }
            rows.push(line);
        }
    }
    align(&rows, 2)
}

fn render_upstream(upstream: &Value, text: &mut String) {
    if !upstream.is_object() {
        return;
    }
    text.push_str(&format!(
        "\nupstream {}  {}  behind {}\n",
        word(&upstream["address"]),
        word(&upstream["state"]),
        bytes(&upstream["lag_bytes"]),
    ));
    if upstream["last_error"].as_str().is_some_and(|error| !error.is_empty()) {
        text.push_str(&format!("last error: {}\n", word(&upstream["last_error"])));
    }
}

fn render_rest(status: &Value, text: &mut String) {
    let table = &status["table"];
    text.push_str(&format!(
        "\ntable {} rows, {} on disk (to LSN {}), {} in memtables; {} clients; {} of memory\n",
        count(&table["rows"]),
        bytes(&table["disk_bytes"]),
        count(&table["durable_lsn"]),
        bytes(&table["memtable_bytes"]),
        count(&status["clients"]["connected"]),
        bytes(&status["memory"]["resident_bytes"]),
    ));
    alarm("TABLE PAUSED", &table["paused"], text);
    let counters = status["counters"].as_object().into_iter().flatten();
    // Only what has happened: most counters count faults, and stay zero.
    let counters = counters.filter(|(_, value)| number(value).is_some_and(|value| value > 0));
    let shown: Vec<_> =
        counters.map(|(name, value)| format!("{} {}", clean(name), count(value))).collect();
    if !shown.is_empty() {
        text.push_str(&format!("counters: {}\n", shown.join(", ")));
    }
    let events = status["events"].as_array().map_or(&[][..], Vec::as_slice);
    for event in &events[events.len().saturating_sub(LIST_MAX)..] {
        text.push_str(&format!("event: {}\n", word(event)));
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

fn count(value: &Value) -> String {
    number(value).map_or_else(|| word(value), human_count)
}

fn bytes(value: &Value) -> String {
    number(value).map_or_else(|| word(value), human_bytes)
}

/// A value as one word or sentence; `-` when it is missing.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => clean(text),
        other => clean(&other.to_string()),
    }
}

fn words(value: &Value, max: usize) -> String {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let mut shown: Vec<_> = list.iter().take(max).map(word).collect();
    if list.len() > max {
        shown.push(format!("and {} more", list.len() - max));
    }
    if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
}

/// What a node says may not move the cursor of whoever looks at it.
fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

fn seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn full() -> Value {
        json!({
            "version": "0.1.0",
            "node": {"name": "a", "node_id": "00ff", "role": "primary", "pid": 7,
                "data_dir": "/srv/a", "uptime_s": 90, "allow_unauthenticated": true},
            "kernel": {"release": "6.1", "io_uring": ["nodrop", "ext_arg"]},
            "log": {"log_id": "abcd", "epoch": "3-1-2", "oldest_lsn": 4096, "appended": 1_234_567,
                "durable": 1_234_560, "committed": 9, "applied": 8, "visible": 7, "segments": 2,
                "segment_bytes": 268_435_456_u64},
            "ack": {"policy": "semi-sync ANY 2 durable", "on_missing": "wait",
                "waiting_for": ["any 1 more replica(s)"], "uncommitted_bytes": 2048,
                "refused_writes": 0, "indeterminate_writes": 0},
            "replicas": [{"name": "b", "state": "streaming", "address": "127.0.0.1:9",
                "received": 5, "durable": 4, "visible": 3, "lag_ms": 0, "lag_bytes": 1536,
                "stages": {"received": {"count": 10, "p50_us": 120, "p99_us": 12_345,
                    "p999_us": 20_000, "max_us": 20_000_000}}}],
            "upstream": null,
            "table": {"rows": 3322, "durable_lsn": 4096, "disk_bytes": 2048, "memtable_bytes": 10,
                "paused": "no space"},
            "clients": {"connected": 2}, "memory": {"resident_bytes": 10_485_760},
            "counters": {"bad_frames": 0, "reconnects": 3},
            "events": ["start\u{1b}[2J"]
        })
    }

    #[test]
    fn screen_shows_what_an_operator_asks_for() {
        let text = render(&full());
        for expected in [
            "primary a  node 00ff  pid 7  up 90 s  rowship 0.1.0",
            "io_uring nodrop, ext_arg",
            "without authentication",
            "1,234,567",
            "2 x 256.0 MiB",
            "WAITS FOR any 1 more replica(s)",
            "b        streaming  127.0.0.1:9  0 ms    1.5 KiB",
            "b             received      10  120 us  12.3 ms  20.0 ms  20.0 s",
            "table 3,322 rows, 2.0 KiB on disk (to LSN 4,096), 10 B in memtables; 2 clients; \
             10.0 MiB of memory\nTABLE PAUSED: no space",
            "counters: reconnects 3",
        ] {
            assert!(text.contains(expected), "no '{expected}' in\n{text}");
        }
        assert!(
            !text.contains("LOG CANNOT")
                && !text.contains("upstream")
                && !text.contains("bad_frames")
        );
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn missing_fields_are_shown_as_missing() {
        for status in [json!({}), json!(null), json!({"replicas": [{}], "node": 3, "log": []})] {
            let text = render(&status);
            assert!(text.contains("table - rows") && text.contains("log -"), "{text}");
        }
    }

    #[test]
    fn replica_shows_its_upstream() {
        let status = json!({"upstream": {"address": "h:1", "state": "connecting",
            "last_error": "refused", "lag_bytes": 10}});
        let text = render(&status);
        assert!(text.contains("upstream h:1  connecting  behind 10 B\nlast error: refused"));
    }
}
