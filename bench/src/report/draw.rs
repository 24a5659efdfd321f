//! Draws curves and bars, by plotters.
//!
//! Ink is pure black and paper pure white: the page's style sheet turns them into the reader's
//! colours. Its backend does not know how wide a text is; labels get room by a careful guess.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::document::Plot;
use crate::number;

/// Width of all plots.
const WIDTH: u32 = 720;
/// Height of the axes' box of curves.
const CURVES_HEIGHT: u32 = 320;
/// Height of a bar with the space around it.
const BAR_HEIGHT: u32 = 24;
/// Height of a line of the legend.
const LEGEND_HEIGHT: u32 = 18;
/// Room for the labels of the x axis and its name.
const X_LABELS: u32 = 46;
/// Size of text; the backend makes it smaller by this factor.
const TEXT: f64 = 12.0 * 1.24;
/// Longest label of a bar: its end is cut.
const BAR_LABEL_CHARS: usize = 62;
const FONT: &str = "sans-serif";
/// Most curves in one plot: more cannot be told apart.
pub const CURVES_MAX: usize = COLOURS.len();

/// At least 3.4 to 1 against the page's papers, the white one and the dark one.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 119, 187),
    RGBColor(224, 100, 30),
    RGBColor(0, 153, 136),
    RGBColor(204, 51, 17),
    RGBColor(130, 100, 210),
    RGBColor(136, 136, 136),
    RGBColor(153, 119, 0),
    RGBColor(215, 80, 145),
];
const OURS: RGBColor = COLOURS[0];
const PEER: RGBColor = COLOURS[1];
const LIMIT: RGBColor = COLOURS[5];

/// A named curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What the legend says.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Evenly, from 0.
    Linear,
    /// By powers of ten.
    Logarithmic,
    /// By powers of ten of 1 / (1 - p), shown as p.
    Percentile,
}

/// An axis and its name.
#[derive(Clone, Debug)]
pub struct Scale {
    /// How it counts.
    pub axis: Axis,
    /// What it shows.
    pub name: String,
}

/// Whose a bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Ours.
    Ours,
    /// A peer's.
    Peer,
    /// A limit of the machine.
    Limit,
}

/// A bar with its range.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands before it.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// The lowest round.
    pub min: f64,
    /// The highest round.
    pub max: f64,
    /// Its colour.
    pub whose: Whose,
}

/// Draws curves, with a point on each step where there are few.
///
/// # Errors
/// When the library refuses.
pub fn curves(title: &str, x: &Scale, y: &Scale, curves: &[Curve]) -> Result<Plot> {
    let legend = LEGEND_HEIGHT * u32::try_from(curves.len())?;
    let mut svg = String::new();
    {
        let backend = SVGBackend::with_string(&mut svg, (WIDTH, CURVES_HEIGHT + legend + 8));
        let root = backend.into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (above, below) = root.split_vertically(CURVES_HEIGHT);
        let (xs, ys) = (bounds(curves, x.axis, |p| p.0), bounds(curves, y.axis, |p| p.1));
        match (x.axis, y.axis) {
            (Axis::Linear, Axis::Linear) => axes(&above, x, y, xs, ys, curves),
            (Axis::Linear, _) => axes(&above, x, y, xs, ys.log_scale(), curves),
            (_, Axis::Linear) => axes(&above, x, y, xs.log_scale(), ys, curves),
            _ => axes(&above, x, y, xs.log_scale(), ys.log_scale(), curves),
        }?;
        for (at, curve) in curves.iter().enumerate() {
            let top = i32::try_from(LEGEND_HEIGHT)? * i32::try_from(at)?;
            let colour = COLOURS[at % COLOURS.len()].filled();
            below.draw(&Rectangle::new([(70, top + 6), (90, top + 10)], colour)).map_err(failed)?;
            let style = text_style(HPos::Left, VPos::Center);
            let text = Text::new(curve.name.clone(), (98, top + 8), style);
            below.draw(&text).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(Plot { title: title.to_owned(), svg })
}

/// Draws the axes' box and the curves in it.
fn axes<X, Y>(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    x: &Scale,
    y: &Scale,
    xs: X,
    ys: Y,
    curves: &[Curve],
) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area);
    chart
        .margin_top(10)
        .margin_left(14)
        .margin_right(40)
        .x_label_area_size(X_LABELS)
        .y_label_area_size(70);
    let mut chart = chart.build_cartesian_2d(xs, ys).map_err(failed)?;
    let (x_label, y_label) = (|value: &f64| label(x.axis, *value), |v: &f64| label(y.axis, *v));
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(&x.name).y_desc(&y.name).label_style((FONT, TEXT)).axis_desc_style((FONT, TEXT));
    mesh.x_labels(8).y_labels(6).x_label_formatter(&x_label).y_label_formatter(&y_label);
    mesh.bold_line_style(BLACK.mix(0.15)).light_line_style(TRANSPARENT).axis_style(BLACK.mix(0.6));
    mesh.draw().map_err(failed)?;
    for (at, curve) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let points = || curve.points.iter().map(|p| (positive(x.axis, p.0), positive(y.axis, p.1)));
        let line = PathElement::new(points().collect::<Vec<_>>(), colour.stroke_width(2));
        chart.plotting_area().draw(&line).map_err(failed)?;
        if curve.points.len() <= 12 {
            for point in points() {
                let dot = Circle::new(point, 3, colour.filled());
                chart.plotting_area().draw(&dot).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// Draws bars from left to right, each with its range and its value.
///
/// # Errors
/// When the library refuses.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> Result<Plot> {
    let count = i32::try_from(bars.len())?;
    let height = BAR_HEIGHT * u32::try_from(bars.len())?;
    let chars = bars.iter().map(|bar| shortened(&bar.name).chars().count()).max().unwrap_or(0);
    // A character of this size is seldom wider than 7 of these units.
    let left = 16 + 7 * u32::try_from(chars)?;
    let top = bars.iter().map(|bar| bar.max).fold(0.0, f64::max);
    // Behind the longest bar stands its value.
    let top = if top > 0.0 { top * 1.22 } else { 1.0 };
    let mut svg = String::new();
    {
        let backend = SVGBackend::with_string(&mut svg, (WIDTH, height + X_LABELS + 10));
        let root = backend.into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root);
        chart.margin_top(10).margin_right(24).x_label_area_size(X_LABELS).y_label_area_size(left);
        let mut chart =
            chart.build_cartesian_2d(0.0..top, f64::from(count)..0.0).map_err(failed)?;
        let x_label = |value: &f64| label(Axis::Linear, *value);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(unit).label_style((FONT, TEXT)).axis_desc_style((FONT, TEXT));
        mesh.disable_y_mesh().y_labels(0).x_labels(5).x_label_formatter(&x_label);
        mesh.bold_line_style(BLACK.mix(0.15)).light_line_style(TRANSPARENT);
        mesh.axis_style(BLACK.mix(0.6)).draw().map_err(failed)?;
        for (at, bar) in bars.iter().enumerate() {
            let middle = f64::from(i32::try_from(at)?) + 0.5;
            let (from, to) = ((0.0, middle - 0.36), (bar.value, middle + 0.36));
            let colour = match bar.whose {
                Whose::Ours => OURS,
                Whose::Peer => PEER,
                Whose::Limit => LIMIT,
            };
            let plane = chart.plotting_area();
            plane.draw(&Rectangle::new([from, to], colour.filled())).map_err(failed)?;
            let range = vec![(bar.min, middle), (bar.max, middle)];
            plane.draw(&PathElement::new(range, BLACK.stroke_width(2))).map_err(failed)?;
            let (_, y) = chart.backend_coord(&(0.0, middle));
            let (x, _) = chart.backend_coord(&(bar.max.max(bar.value), middle));
            let style = text_style(HPos::Right, VPos::Center);
            let name = Text::new(shortened(&bar.name), (i32::try_from(left)? - 8, y), style);
            root.draw(&name).map_err(failed)?;
            let style = text_style(HPos::Left, VPos::Center);
            let value = Text::new(number::shown(bar.value), (x + 6, y), style);
            root.draw(&value).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(Plot { title: title.to_owned(), svg })
}

fn text_style(horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    TextStyle::from((FONT, TEXT)).pos(Pos::new(horizontal, vertical))
}

/// Both ends of a long name: systems are told apart by the one, works by the other.
fn shortened(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= BAR_LABEL_CHARS {
        return name.to_owned();
    }
    let (front, back) = chars.split_at(BAR_LABEL_CHARS / 2);
    let back = &back[back.len() - BAR_LABEL_CHARS.div_ceil(2)..];
    front.iter().chain(&['…']).chain(back).collect()
}

/// The label of a value on an axis.
fn label(axis: Axis, value: f64) -> String {
    match axis {
        Axis::Percentile => {
            let percent = format!("{:.7}", 100.0 - 100.0 / value);
            format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
        }
        _ if value >= 1e6 => format!("{} M", number::shown(value / 1e6)),
        _ if value >= 1e4 => format!("{} k", number::shown(value / 1e3)),
        _ => number::shown(value),
    }
}

/// A value that a logarithmic axis can show.
fn positive(axis: Axis, value: f64) -> f64 {
    if axis == Axis::Linear { value } else { value.max(LEAST) }
}

/// Below this, a logarithmic axis shows nothing: a microsecond, in milliseconds.
const LEAST: f64 = 1e-3;

/// What an axis must reach from and to, so that it has labels and no point is outside.
fn bounds(curves: &[Curve], axis: Axis, of: fn(&(f64, f64)) -> f64) -> std::ops::Range<f64> {
    let all = curves.iter().flat_map(|curve| &curve.points).map(|point| positive(axis, of(point)));
    let (min, max) = all.fold((f64::INFINITY, 0.0f64), |(min, max), v| (min.min(v), max.max(v)));
    match axis {
        Axis::Linear => min.min(0.0)..if max > 0.0 { max * 1.05 } else { 1.0 },
        _ if !min.is_finite() => 1.0..10.0,
        _ => {
            let (min, max) = (10f64.powf(min.log10().floor()), 10f64.powf(max.log10().ceil()));
            min..if max > min { max } else { min * 10.0 }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}
