//! Which plots a page has.

use anyhow::Result;

use super::document::{Block, Plot, Section};
use super::draw::{self, Axis, Bar, CURVES_MAX, Curve, Scale, Whose};
use super::names;
use crate::kept::{Directory, Kept};

/// Most bars in one plot.
const BARS_MAX: usize = 24;
/// Curves that are so many times above others need a logarithmic axis.
const CURVES_APART: f64 = 10.0;

/// Things of one name, in the order in which names were first seen.
struct Groups<T>(Vec<(String, Vec<T>)>);

impl<T> Groups<T> {
    fn new() -> Groups<T> {
        Groups(Vec::new())
    }

    fn add(&mut self, name: String, item: T) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, items)) => items.push(item),
            None => self.0.push((name, vec![item])),
        }
    }
}

/// All sections that hold plots; one that would be empty is left out.
///
/// # Errors
/// When something cannot be drawn.
pub fn sections(kept: &Directory) -> Result<Vec<Section>> {
    let figures = &kept.figures;
    let all = [
        ("Ours against peers", peers(figures)?),
        ("Ours against the limits of this machine", limits(figures)?),
        ("Throughput by rows in a transaction", by_batch(figures)?),
        ("By replicas", by_replicas(figures)?),
        ("Latency by percentile", percentiles(kept)?),
        ("Lag over time", over_time(kept)?),
    ];
    let sections = all.into_iter().filter(|(_, plots)| !plots.is_empty());
    let sections = sections.map(|(title, plots)| Section {
        title: title.to_owned(),
        blocks: vec![Block::Plots(plots)],
    });
    Ok(sections.collect())
}

/// Plots of at most so many curves or bars each.
fn in_pieces<T>(
    title: &str,
    items: &[T],
    most: usize,
    draw: impl Fn(&str, &[T]) -> Result<Plot>,
) -> Result<Vec<Plot>> {
    let pieces = items.len().div_ceil(most);
    let title_of = |at: usize| match pieces {
        1 => title.to_owned(),
        _ => format!("{title} ({} of {pieces})", at + 1),
    };
    items.chunks(most).enumerate().map(|(at, piece)| draw(&title_of(at), piece)).collect()
}

fn title(scenario: &str, rest: &str) -> String {
    if rest.is_empty() { scenario.to_owned() } else { format!("{scenario}: {rest}") }
}

fn bar(name: &str, figure: &Kept, whose: Whose) -> Bar {
    Bar { name: name.to_owned(), value: figure.value, min: figure.min, max: figure.max, whose }
}

/// One plot for each shape of work and metric; and one for each work's ratios.
fn peers(figures: &[Kept]) -> Result<Vec<Plot>> {
    let (mut ratios, mut works) = (Groups::new(), Groups::new());
    for figure in figures.iter().filter(|figure| figure.scenario == "peers") {
        let (work, metric) = figure.work_and_metric();
        if metric.ends_with("ratio") {
            let (work, rest) = work.split_once(", ").unwrap_or((work, work));
            ratios.add(format!("{work}: {metric}, ours by the peer's"), (rest, figure));
        } else {
            let parts = names::parts(work);
            let name = format!("{}: {metric}", parts.others.join(", "));
            works.add(name, (parts.system.unwrap_or_default(), figure));
        }
    }
    let mut plots = Vec::new();
    for (title, items) in &works.0 {
        let mut bars: Vec<Bar> = items
            .iter()
            .map(|(system, figure)| bar(system, figure, names::whose(system)))
            .collect();
        let limit = items.iter().find_map(|(_, f)| Some((f.limit?, f.limit_name.as_deref()?)));
        if let Some((value, name)) = limit {
            let name = format!("limit: {}", name.trim_start_matches("limit: "));
            let whose = Whose::Limit;
            bars.push(Bar { name, value, min: value, max: value, whose });
        }
        let unit = &items[0].1.unit;
        plots.extend(in_pieces(title, &bars, BARS_MAX, |title, b| draw::bars(title, unit, b))?);
    }
    for (title, items) in &ratios.0 {
        let bars: Vec<Bar> =
            items.iter().map(|(rest, figure)| bar(rest, figure, Whose::Ours)).collect();
        plots.extend(in_pieces(title, &bars, BARS_MAX, |title, b| draw::bars(title, "x", b))?);
    }
    Ok(plots)
}

/// Shares of limits, one plot for each scenario.
fn limits(figures: &[Kept]) -> Result<Vec<Plot>> {
    let mut scenarios = Groups::new();
    for figure in figures {
        let bound = figure.limit.filter(|limit| *limit > 0.0);
        let (Some(limit), Some(value)) = (bound, figure.ratio_to_limit) else { continue };
        let (min, max) = (figure.min / limit, figure.max / limit);
        let whose = names::whose(names::parts(&figure.figure).system.as_deref().unwrap_or(""));
        let bar = Bar { name: figure.figure.clone(), value, min, max, whose };
        scenarios.add(figure.scenario.clone(), bar);
    }
    let mut plots = Vec::new();
    for (scenario, bars) in &scenarios.0 {
        let draw = |title: &str, bars: &[Bar]| draw::bars(title, "x the limit", bars);
        plots.extend(in_pieces(&title(scenario, "figure by limit"), bars, BARS_MAX, draw)?);
    }
    Ok(plots)
}

/// Sorts each curve's points and draws all of them in plots that are not too full.
fn draw_curves(
    title: &str,
    x: (Axis, &str),
    y: (Axis, &str),
    curves: Groups<(f64, f64)>,
) -> Result<Vec<Plot>> {
    let scale = |(axis, name): (Axis, &str)| Scale { axis, name: name.to_owned() };
    let (x, y) = (scale(x), scale(y));
    let sorted = |(name, mut points): (String, Vec<(f64, f64)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name, points }
    };
    let curves: Vec<Curve> = curves.0.into_iter().map(sorted).collect();
    in_pieces(title, &curves, CURVES_MAX, |title, curves| draw::curves(title, &x, &y, curves))
}

fn by_batch(figures: &[Kept]) -> Result<Vec<Plot>> {
    let mut curves = Groups::new();
    for figure in figures.iter().filter(|f| f.scenario == "ingest" && f.unit == "rows/s") {
        let Some(rows) = figure.count("transaction_rows") else { continue };
        let parts = names::parts(figure.work_and_metric().0);
        let clients = figure.count("clients").unwrap_or(1);
        let depth = match figure.count("pipelined") {
            None | Some(1) => String::new(),
            Some(depth) => format!(" x {depth} pipelined"),
        };
        let system = parts.system.unwrap_or_default();
        let name = format!("{system}, {clients} clients{depth}");
        curves.add(name, (rows as f64, figure.value));
    }
    // One size of transactions alone is no curve.
    curves.0.retain(|(_, points)| points.len() > 1);
    let (x, y) = ((Axis::Logarithmic, "rows in a transaction"), (Axis::Logarithmic, "rows/s"));
    draw_curves("ingest", x, y, curves)
}

fn by_replicas(figures: &[Kept]) -> Result<Vec<Plot>> {
    let mut units = Groups::new();
    for figure in figures.iter().filter(|figure| figure.scenario == "fanout") {
        let Some((rest, replicas)) = names::replicas(figure) else { continue };
        let (_, metric) = figure.work_and_metric();
        let name = rest.iter().map(String::as_str).chain([metric]).collect::<Vec<_>>().join(", ");
        units.add(figure.unit.clone(), (name, (replicas as f64, figure.value)));
    }
    let mut plots = Vec::new();
    for (unit, points) in units.0 {
        let mut curves = Groups::new();
        points.into_iter().for_each(|(name, point)| curves.add(name, point));
        curves.0.retain(|(_, points)| points.len() > 1);
        let highest = |points: &Vec<(f64, f64)>| points.iter().map(|p| p.1).fold(0.0, f64::max);
        let highest: Vec<f64> = curves.0.iter().map(|(_, points)| highest(points)).collect();
        let (least, most) = (highest.iter().fold(f64::MAX, |a, b| a.min(*b)), highest.iter());
        // A curve far below another would lie on the axis.
        let apart = most.fold(0.0, |a: f64, b| a.max(*b)) > CURVES_APART * least;
        let axis = if apart { Axis::Logarithmic } else { Axis::Linear };
        let title = format!("fanout: {unit}");
        plots.extend(draw_curves(&title, (Axis::Linear, "replicas"), (axis, &unit), curves)?);
    }
    Ok(plots)
}

/// A curve out of a file, before it is known in which plot it stands.
struct FromFile<'a> {
    scenario: &'a str,
    parts: names::Parts,
    points: &'a [(f64, f64)],
}

/// One plot for each group of names of a scenario.
fn draw_files(files: &[FromFile<'_>], x: (Axis, &str), y: (Axis, &str)) -> Result<Vec<Plot>> {
    let mut groups: Groups<(String, &[(f64, f64)])> = Groups::new();
    for file in files {
        let beside = files.iter().filter(|other| other.scenario == file.scenario);
        let systems = names::systems(beside.map(|other| &other.parts));
        let (plot, curve) = names::plot_and_curve(&file.parts, systems);
        groups.add(title(file.scenario, &plot), (curve, file.points));
    }
    let mut plots = Vec::new();
    for (title, mut items) in groups.0 {
        items.sort_by_key(|(name, _)| names::leading_number(name));
        let mut curves = Groups::new();
        for (name, points) in items {
            points.iter().for_each(|point| curves.add(name.clone(), *point));
        }
        plots.extend(draw_curves(&title, x, y, curves)?);
    }
    Ok(plots)
}

fn percentiles(kept: &Directory) -> Result<Vec<Plot>> {
    let files: Vec<FromFile<'_>> = kept
        .distributions
        .iter()
        .map(|found| FromFile {
            scenario: &found.scenario,
            parts: names::parts(&names::of_file(&kept.figures, &found.scenario, &found.name)),
            points: &found.points,
        })
        .collect();
    draw_files(&files, (Axis::Percentile, "percentile"), (Axis::Logarithmic, "ms"))
}

fn over_time(kept: &Directory) -> Result<Vec<Plot>> {
    let mut columns = Groups::new();
    for curve in &kept.curves {
        let file = FromFile {
            scenario: &curve.scenario,
            parts: names::parts(&names::of_file(&kept.figures, &curve.scenario, &curve.name)),
            points: &curve.points,
        };
        columns.add(curve.columns.join("\n"), file);
    }
    let mut plots = Vec::new();
    for (names, files) in columns.0 {
        let (x, y) = names.split_once('\n').unwrap_or_default();
        let y = match y.rsplit_once('_') {
            Some((name, unit)) => format!("{name}, {unit}"),
            None => y.to_owned(),
        };
        // A replica that stands still for a second, and milliseconds else: both are to be seen.
        plots.extend(draw_files(&files, (Axis::Linear, x), (Axis::Logarithmic, &y))?);
    }
    Ok(plots)
}
