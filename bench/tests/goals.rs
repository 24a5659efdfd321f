//! Every goal finds its figures under the names that scenarios give them.

use bench::figure::Figure;
use bench::goals::GOALS;
use bench::goals::judge::{Outcome, judge};
use bench::kept::Kept;
use serde_json::json;

fn kept(scenario: &'static str, name: &str, unit: &'static str, value: f64, limited: bool) -> Kept {
    let figure = Figure::new(scenario, name, unit, vec![value]);
    let limit = Figure::new(scenario, "limit", unit, vec![1.0]);
    let figure = if limited { figure.with_limit(&limit) } else { figure };
    serde_json::from_value(figure.json(&json!({ "durability": "none" }))).unwrap()
}

/// One pair of the scenario `peers`, as it names things.
fn pair(ours: &str, theirs: &str, figures: &mut Vec<Kept>) {
    let mut put = |name: String, unit: &'static str, value: f64| {
        figures.push(kept("peers", &name, unit, value, false));
    };
    let mut works: Vec<(&str, String, &str)> = [(1, 1), (8, 1), (8, 100)]
        .map(|(clients, rows)| ("ingest", format!("{clients} clients x {rows} rows"), "rows/s"))
        .into();
    for depth in [16, 64] {
        let shape = format!("50 clients x {depth} pipelined x 1 rows");
        works.push(("pipelined", shape, "rows/s"));
    }
    for rows in [1, 100] {
        works.push(("catchup", format!("1000000 rows in transactions of {rows}"), "rows/s"));
    }
    for metric in ["visible p50", "visible p99", "visible p99.9"] {
        works.push(("lag", "8 clients at 5000 rows/s".to_owned(), metric));
    }
    for (work, shape, metric) in works {
        let (unit, ours_value, end) = match work {
            "lag" => ("ms", 0.5, format!("{metric} ratio")),
            _ => ("rows/s", 5.0, "ratio".to_owned()),
        };
        put(format!("{work}, {ours}, {shape}: {metric}"), unit, ours_value);
        put(format!("{work}, {theirs}, {shape}: {metric}"), unit, 1.0);
        put(format!("{work}, {ours} / {theirs}, {shape}: {end}"), "x", ours_value);
    }
}

/// All figures that goals need; each meets its goal.
fn all() -> Vec<Kept> {
    let mut figures = Vec::new();
    let asynchronous = ["redis AOF always", "postgresql physical async", "mariadb async"];
    asynchronous.iter().for_each(|peer| pair("rowship async", peer, &mut figures));
    for peer in ["redis AOF always, WAIT 1", "postgresql physical sync", "mariadb semi-sync"] {
        pair("rowship semi-sync", peer, &mut figures);
    }
    let mut put = |scenario, name: &str, unit, value, limited| {
        figures.push(kept(scenario, name, unit, value, limited));
    };
    put("ingest", "rowship async, 1 clients x 1 rows: p50", "ms", 1.2, true);
    for rows in [1, 100] {
        for (pick, rate) in [("uniform", 1.0), ("zipf 0.99", 1.1), ("hot key", 2.0)] {
            let name = format!("rowship async, {rows} rows/transaction, {pick}");
            put("catchup", &format!("{name}: written rows/s"), "rows/s", rate, false);
            // Must not be taken for the one without writes.
            put(
                "catchup",
                &format!("{name}, writes going on: written rows/s"),
                "rows/s",
                0.5,
                false,
            );
        }
        for from in ["page cache", "cold file"] {
            let name = format!("ship, {rows} rows/transaction, {from}");
            put("ship", &format!("{name}, 1 replicas: each"), "MB/s", 0.8, true);
            put("ship", &format!("{name}, 4 replicas: each"), "MB/s", 0.2, true);
        }
        for (replicas, p50) in [(1, 1.0), (4, 1.4), (8, 9.0)] {
            let name = format!("{replicas} replicas, 8 clients x {rows} rows: p50");
            put("fanout", &name, "ms", p50, false);
        }
        let each = "CPU of each replica from the second to number 4 against the first";
        put("fanout", &format!("{} rows/s, {each}", 5_000 * rows), "x", 0.5, false);
        let name =
            format!("primary, dead replica, backlog of {rows} rows/transaction, most: private");
        put("footprint", &name, "MiB", 100.0, false);
    }
    put("lag", "5000 rows/s: visible p99.9", "ms", 2.0, true);
    put("lag", "50000 rows/s: visible p99", "ms", 2.0, true);
    put("lag", "50000 rows/s: visible p99.9", "ms", 9.0, true);
    put("footprint", "primary, most during as many rows: private", "MiB", 99.0, false);
    put("footprint", "replica, most during as many rows: private", "MiB", 99.0, false);
    put("footprint", "replica, most during catching up: private", "MiB", 99.0, false);
    put("soak", "1800 s, primary: growth of memory", "x", 1.01, false);
    put("soak", "1800 s, replica 1: growth of memory", "x", 1.02, false);
    put("growth", "1 M rows of log: cost per row", "us", 1.0, false);
    put("growth", "30 M rows of log: cost per row", "us", 1.1, false);
    for (megabytes, seconds) in [(64, 0.1), (512, 0.2), (2048, 0.25)] {
        let name = format!("{megabytes} MB of log, 1000000 keys, kill -9");
        put("recovery", &format!("{name}: listens after"), "s", seconds, false);
        let name = format!("{name}, no checkpoint");
        put("recovery", &format!("{name}: listens after"), "s", 3.0, false);
        put("recovery", &format!("{name}: scan"), "MB/s", 1_100.0, true);
    }
    figures
}

#[test]
fn each_goal_is_met_by_figures_that_meet_it() {
    for verdict in judge(GOALS, &all()) {
        assert_eq!(verdict.outcome, Outcome::Met, "{}", verdict.lines());
    }
}

#[test]
fn no_goal_is_met_without_its_figures() {
    assert!(judge(GOALS, &[]).iter().all(|verdict| verdict.outcome == Outcome::NotMeasured));
    let without_peers: Vec<Kept> =
        all().into_iter().filter(|figure| figure.scenario != "peers").collect();
    for verdict in judge(GOALS, &without_peers) {
        let needs_peers = verdict.goal.figure.scenario == "peers";
        assert_eq!(verdict.outcome == Outcome::NotMeasured, needs_peers, "{}", verdict.lines());
    }
}
