//! What the rounds of one task gave, as figures.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::Value;

use super::{Round, SCENARIO};
use crate::figure::Figure;
use crate::sink::Sink;

/// Metrics whose ratio says who is faster, and what its figure's name ends in.
const COMPARED: &[(&str, &str)] = &[
    ("rows/s", "ratio"),
    ("visible p50", "visible p50 ratio"),
    ("visible p99", "visible p99 ratio"),
    ("visible p99.9", "visible p99.9 ratio"),
    ("commit p50", "commit p50 ratio"),
    ("commit p99", "commit p99 ratio"),
];

/// A metric with its unit and a value for each round.
struct Series {
    metric: &'static str,
    unit: &'static str,
    rounds: Vec<f64>,
}

/// All rounds of one system.
#[derive(Default)]
pub(super) struct Shown {
    series: Vec<Series>,
    latencies: Vec<(&'static str, Histogram<u64>)>,
}

impl Shown {
    /// Adds a round.
    pub(super) fn add(&mut self, round: Round) -> Result<()> {
        for measured in round.values {
            match self.series.iter_mut().find(|series| series.metric == measured.metric) {
                Some(series) => series.rounds.push(measured.value),
                None => self.series.push(Series {
                    metric: measured.metric,
                    unit: measured.unit,
                    rounds: vec![measured.value],
                }),
            }
        }
        for (name, values) in round.latencies {
            match self.latencies.iter_mut().find(|(known, _)| *known == name) {
                Some((_, all)) => all.add(&values)?,
                None => self.latencies.push((name, values)),
            }
        }
        Ok(())
    }

    /// Puts out a figure for each metric, and the distributions.
    pub(super) fn put(&self, sink: &Sink, name: &str, settings: &Value) -> Result<()> {
        for Series { metric, unit, rounds } in &self.series {
            let figure = Figure::new(SCENARIO, &format!("{name}: {metric}"), unit, rounds.clone());
            sink.figure(&figure, settings)?;
        }
        for (what, values) in &self.latencies {
            sink.histogram(SCENARIO, &format!("{name}-{what}"), values)?;
        }
        Ok(())
    }

    /// Puts out how this one relates to the other, each round to the other's of the same moment.
    pub(super) fn put_ratios(
        &self,
        other: &Shown,
        sink: &Sink,
        name: &str,
        settings: &Value,
    ) -> Result<()> {
        for (series, theirs) in self.series.iter().zip(&other.series) {
            let Some((_, end)) = COMPARED.iter().find(|(metric, _)| *metric == series.metric)
            else {
                continue;
            };
            let rounds = series.rounds.iter().zip(&theirs.rounds).map(|(a, b)| a / b).collect();
            sink.figure(&Figure::new(SCENARIO, &format!("{name}: {end}"), "x", rounds), settings)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::value;
    use super::*;

    #[test]
    fn ratios_are_those_of_rounds_at_the_same_moment() {
        let directory = tempfile::tempdir().unwrap();
        let sink = Sink::new(directory.path(), true).unwrap();
        let (mut ours, mut theirs) = (Shown::default(), Shown::default());
        for (a, b) in [(6.0, 2.0), (8.0, 4.0), (5.0, 1.0)] {
            let round =
                |rows| Round { values: vec![value("rows/s", "rows/s", rows)], latencies: vec![] };
            ours.add(round(a)).unwrap();
            theirs.add(round(b)).unwrap();
        }
        ours.put_ratios(&theirs, &sink, "work, a / b, shape", &Value::Null).unwrap();
        let text = std::fs::read_to_string(directory.path().join("figures.jsonl")).unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["figure"], "work, a / b, shape: ratio");
        assert_eq!((&line["min"], &line["value"]), (&2.0.into(), &3.0.into()));
        assert_eq!((&line["max"], &line["unit"]), (&5.0.into(), &"x".into()));
    }
}
