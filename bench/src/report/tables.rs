//! Which tables a page has.

use serde_json::{Map, Value};

use super::document::{Block, Cell, Kind, Section, Table};
use crate::goals::judge::{Outcome, Verdict};
use crate::kept::Kept;
use crate::number;

/// The table of goals.
#[must_use]
pub fn goals(verdicts: &[Verdict]) -> Section {
    let count = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let summary = format!(
        "{} met, {} missed, {} not measured, of {}.",
        count(Outcome::Met),
        count(Outcome::Missed),
        count(Outcome::NotMeasured),
        verdicts.len()
    );
    let rows = verdicts.iter().map(|verdict| {
        let kind = match verdict.outcome {
            Outcome::Met => Kind::Good,
            Outcome::Missed => Kind::Bad,
            Outcome::NotMeasured => Kind::Open,
        };
        vec![
            Cell::text(verdict.goal.work),
            Cell::text(verdict.goal.goal),
            Cell::number(verdict.figure_text()),
            Cell::number(verdict.ratio_text()),
            Cell::number(verdict.range_text()),
            Cell::text(verdict.against.clone()),
            Cell::new(verdict.outcome.to_string(), kind),
        ]
    });
    let heads = vec!["Work", "Goal", "Figure", "Ratio", "Range", "Against", "Result"];
    let table = Block::Table(Table { heads, rows: rows.collect() });
    Section { title: "Goals".to_owned(), blocks: vec![Block::Text(summary), table] }
}

/// A section for each scenario, with all its figures.
#[must_use]
pub fn figures(all: &[Kept]) -> Vec<Section> {
    let mut scenarios: Vec<&str> = Vec::new();
    for figure in all {
        if !scenarios.contains(&figure.scenario.as_str()) {
            scenarios.push(&figure.scenario);
        }
    }
    scenarios.into_iter().map(|scenario| of_scenario(scenario, all)).collect()
}

fn of_scenario(scenario: &str, all: &[Kept]) -> Section {
    let figures: Vec<&Kept> = all.iter().filter(|figure| figure.scenario == scenario).collect();
    let common = common_settings(&figures);
    let rows = figures.iter().map(|figure| {
        let dash = || "-".to_owned();
        let own = figure.settings.iter().filter(|(key, _)| !common.contains_key(*key));
        let limit = match (figure.limit, &figure.limit_name) {
            (None, _) => dash(),
            (Some(limit), None) => number::with_unit(limit, &figure.unit),
            (Some(limit), Some(name)) => {
                format!("{name}: {}", number::with_unit(limit, &figure.unit))
            }
        };
        vec![
            Cell::text(figure.figure.clone()),
            Cell::number(number::with_unit(figure.value, &figure.unit)),
            Cell::number(number::range(figure.min, figure.max)),
            Cell::number(figure.runs.to_string()),
            Cell::text(limit),
            Cell::number(figure.ratio_to_limit.map_or_else(dash, number::shown)),
            Cell::text(settings_text(own)),
        ]
    });
    let heads = vec!["Figure", "Median", "Range", "Rounds", "Limit", "Of limit", "Settings"];
    let table = Block::Table(Table { heads, rows: rows.collect() });
    let common = format!("All with {}.", settings_text(common.iter()));
    Section { title: format!("Figures of {scenario}"), blocks: vec![Block::Text(common), table] }
}

/// Settings that are the same beside all figures.
fn common_settings(figures: &[&Kept]) -> Map<String, Value> {
    let Some(first) = figures.first() else { return Map::new() };
    let same = |key: &String, value: &Value| {
        figures.iter().all(|figure| figure.settings.get(key) == Some(value))
    };
    let common = first.settings.iter().filter(|(key, value)| same(key, value));
    common.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn settings_text<'a>(settings: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let texts = settings.map(|(key, value)| match value {
        Value::String(text) => format!("{key}: {text}"),
        other => format!("{key}: {other}"),
    });
    texts.collect::<Vec<_>>().join("; ")
}
