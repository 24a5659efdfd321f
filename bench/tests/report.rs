//! A small directory of made-up figures, as page and as Markdown.

use std::fs;
use std::path::Path;

use bench::figure::Figure;
use bench::goals::judge::{Outcome, judge};
use bench::goals::{self, GOALS};
use bench::kept::{self, Directory};
use bench::report::{self, MARKDOWN_FILE, PAGE_FILE, document, plots};
use bench::sink::Sink;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::json;

const HOSTILE: &str =
    "rowship <b>x</b> & \"y\" 'z' | `c` *d* _e_ [f](g) ]]> </table><script>alert(1)</script> ü";

fn made_up(directory: &Path) -> Sink {
    let sink = Sink::new(directory, true).unwrap();
    let put = |figure: Figure, rows: u64, clients: u64| {
        let settings = json!({
            "durability": "O_DSYNC on the primary", "cores": 2, "clients": clients,
            "pipelined": 1, "transaction_rows": rows,
        });
        sink.figure(&figure, &settings).unwrap();
    };
    for rows in [1u64, 100] {
        for (system, factor) in [("rowship async", 3.0), ("rowship semi-sync", 1.4)] {
            let name = format!("{system}, 8 clients x {rows} rows: rows/s");
            let rates = [0.9, 1.0, 1.2].map(|round| round * factor * 10_000.0 * rows as f64);
            put(Figure::new("ingest", &name, "rows/s", rates.to_vec()), rows, 8);
        }
    }
    let all = [
        ("rowship async", [40.0, 25.0]),
        ("redis AOF always", [18.0, 20.0]),
        ("postgresql physical async", [9.0, 10.0]),
        ("mariadb async", [5.0, 9.0]),
    ];
    for (system, rates) in all {
        for (rate, rows) in rates.into_iter().zip([1u64, 100]) {
            let name = format!("ingest, {system}, 8 clients x {rows} rows: rows/s");
            let limit = Figure::new("peers", "limit: ping-pong", "rows/s", vec![60_000.0]);
            let figure = Figure::new("peers", &name, "rows/s", vec![rate * 1e3]);
            put(figure.with_limit(&limit), rows, 8);
        }
    }
    let name = "ingest, rowship async / mariadb async, 8 clients x 1 rows: ratio";
    put(Figure::new("peers", name, "x", vec![7.9, 8.0, 8.1]), 1, 8);
    for replicas in [1, 2, 4] {
        let name = format!("{replicas} replicas, 8 clients x 1 rows: p50");
        put(Figure::new("fanout", &name, "ms", vec![0.3 * f64::from(replicas)]), 1, 8);
    }
    put(Figure::new("other", HOSTILE, "ms", vec![1.0]), 1, 1);
    let mut latency = hdrhistogram::Histogram::<u64>::new(3).unwrap();
    (1..20_000u64).for_each(|n| latency.record(n * n).unwrap());
    for rows in [1, 100] {
        let name = format!("rowship async, 8 clients x {rows} rows");
        sink.histogram("ingest", &name, &latency).unwrap();
    }
    let curve: Vec<(f64, f64)> = (0..100).map(|n| (f64::from(n), f64::from(n % 10))).collect();
    sink.curve("lag", "5000 rows/s", ["seconds", "lag_ms"], &curve).unwrap();
    sink
}

/// Texts of the cells of all tables, row by row.
fn cells_of_page(page: &str) -> Vec<Vec<String>> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(page, options).unwrap();
    let text = |cell: Node<'_, '_>| cell.text().unwrap_or_default().to_owned();
    let rows = document.descendants().filter(|node| node.has_tag_name("tr"));
    rows.map(|row| row.children().filter(Node::is_element).map(text).collect()).collect()
}

fn cells_of_markdown(markdown: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), None);
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::TableCell) => cell = Some(String::new()),
            Event::Text(text) => cell.iter_mut().for_each(|cell: &mut String| *cell += &text),
            Event::End(TagEnd::TableCell) => row.extend(cell.take()),
            Event::End(TagEnd::TableHead | TagEnd::TableRow) => rows.push(std::mem::take(&mut row)),
            Event::Html(_) | Event::InlineHtml(_) | Event::Code(_) => panic!("{event:?}"),
            _ => {}
        }
    }
    rows
}

#[test]
fn page_and_markdown_hold_each_figure_and_are_equal() {
    let directory = tempfile::tempdir().unwrap();
    made_up(directory.path());
    report::write(directory.path()).unwrap();
    let page = fs::read_to_string(directory.path().join(PAGE_FILE)).unwrap();
    let rows = cells_of_page(&page);
    for figure in kept::figures(directory.path()).unwrap() {
        assert!(rows.iter().any(|row| row[0] == figure.figure), "{}", figure.figure);
    }
    let plain = |rows: Vec<Vec<String>>| -> Vec<Vec<String>> {
        let trimmed = |row: Vec<String>| row.iter().map(|cell| cell.trim().to_owned()).collect();
        rows.into_iter().map(trimmed).collect()
    };
    let markdown = fs::read_to_string(directory.path().join(MARKDOWN_FILE)).unwrap();
    assert_eq!(plain(cells_of_markdown(&markdown)), plain(rows));
}

#[test]
fn a_hostile_name_stays_text() {
    let directory = tempfile::tempdir().unwrap();
    made_up(directory.path());
    report::write(directory.path()).unwrap();
    let page = fs::read_to_string(directory.path().join(PAGE_FILE)).unwrap();
    assert!(!page.contains("<script"));
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&page, options).unwrap();
    assert!(document.descendants().any(|node| node.text() == Some(HOSTILE)));
    // It needs nothing from elsewhere.
    let from_elsewhere = |node: &Node<'_, '_>| {
        let mut names = node.attributes().map(|a| (a.name(), a.value()));
        names.any(|(name, value)| ["src", "href"].contains(&name) && !value.starts_with('#'))
    };
    assert!(!document.descendants().any(|node| from_elsewhere(&node)));
}

#[test]
fn every_plot_is_an_image_with_something_in_it() {
    let directory = tempfile::tempdir().unwrap();
    made_up(directory.path());
    let kept = Directory::read(directory.path()).unwrap();
    let sections = plots::sections(&kept).unwrap();
    let titles: Vec<&str> = sections.iter().map(|section| section.title.as_str()).collect();
    assert_eq!(titles.len(), 6, "{titles:?}");
    for block in sections.iter().flat_map(|section| &section.blocks) {
        let document::Block::Plots(plots) = block else { panic!("{block:?}") };
        for plot in plots {
            let svg = Document::parse(&plot.svg).unwrap();
            let root = svg.root_element();
            assert!(root.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
            // Bars and curves have colours; ink and paper have none.
            let is_colour = |value: &str| !["#000000", "#FFFFFF", "none"].contains(&value);
            let colour = |node: &Node<'_, '_>| {
                ["fill", "stroke"].iter().any(|name| node.attribute(*name).is_some_and(is_colour))
            };
            assert!(svg.descendants().any(|node| colour(&node)), "{}", plot.title);
            let view: Vec<f64> = root
                .attribute("viewBox")
                .unwrap()
                .split(' ')
                .map(|number| number.parse().unwrap())
                .collect();
            for node in svg.descendants() {
                for (name, most) in [("x", view[2]), ("y", view[3]), ("width", view[2])] {
                    let Some(value) = node.attribute(name) else { continue };
                    let value: f64 = value.parse().unwrap();
                    assert!((0.0..=most).contains(&value), "{}: {name} {value}", plot.title);
                }
            }
        }
    }
}

#[test]
fn goals_are_met_missed_or_not_measured() {
    let directory = tempfile::tempdir().unwrap();
    let sink = made_up(directory.path());
    let verdicts = judge(GOALS, &kept::figures(directory.path()).unwrap());
    let of = |work: &str| verdicts.iter().find(|verdict| verdict.goal.work.contains(work)).unwrap();
    let met = of("durable commit, one async replica, 8 clients x 1 row");
    assert_eq!((met.outcome, met.ratio_text().as_str()), (Outcome::Met, "2.222 x"));
    let missed = of("durable commit, one async replica, 8 clients x 100 rows");
    assert_eq!((missed.outcome, missed.ratio_text().as_str()), (Outcome::Missed, "1.25 x"));
    assert_eq!(of("fan-out: client latency").outcome, Outcome::Missed);
    assert_eq!(of("semi-sync").outcome, Outcome::NotMeasured);
    goals::show(&sink, false).unwrap();
    assert!(goals::show(&sink, true).is_err());
}

#[test]
fn without_figures_the_report_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let error = report::write(directory.path()).unwrap_err().to_string();
    assert!(error.ends_with("figures.jsonl does not exist: run a scenario first"), "{error}");
}
