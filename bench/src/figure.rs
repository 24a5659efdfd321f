//! One figure: the median of several rounds, its range, and the limit that binds it.

use serde_json::{Value, json};

/// A measured figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The scenario it belongs to.
    pub scenario: &'static str,
    /// Its name.
    pub figure: String,
    /// Its unit.
    pub unit: &'static str,
    /// One value per round, in ascending order.
    values: Vec<f64>,
    /// What this machine allows at best, measured in the same run, and its name.
    limit: Option<(f64, String)>,
}

impl Figure {
    /// A figure with one value per round.
    ///
    /// # Panics
    /// When there is no value, or one that is not a number.
    #[must_use]
    pub fn new(
        scenario: &'static str,
        figure: &str,
        unit: &'static str,
        mut values: Vec<f64>,
    ) -> Figure {
        assert!(!values.is_empty(), "a figure has at least one round");
        assert!(values.iter().all(|value| value.is_finite()));
        values.sort_by(f64::total_cmp);
        Figure { scenario, figure: figure.to_owned(), unit, values, limit: None }
    }

    /// States the limit that binds this figure.
    #[must_use]
    pub fn with_limit(mut self, limit: &Figure) -> Figure {
        self.limit = Some((limit.median(), limit.figure.clone()));
        self
    }

    /// The median round; of an even number the lower of the two in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.values[(self.values.len() - 1) / 2]
    }

    /// The lowest and the highest round.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        (self.values[0], self.values[self.values.len() - 1])
    }

    /// The JSON line: `scenario, figure, value, unit, runs, min, max, limit, ratio_to_limit,
    /// settings`, and the limit's name.
    #[must_use]
    pub fn json(&self, settings: &Value) -> Value {
        let (min, max) = self.range();
        let limit = self.limit.as_ref();
        json!({
            "scenario": self.scenario,
            "figure": self.figure,
            "value": self.median(),
            "unit": self.unit,
            "runs": self.values.len(),
            "min": min,
            "max": max,
            "limit": limit.map(|(value, _)| value),
            "limit_name": limit.map(|(_, name)| name),
            "ratio_to_limit": limit.map(|(value, _)| self.median() / value),
            "settings": settings,
        })
    }

    /// A line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let (min, max) = self.range();
        let (figure, unit) = (&self.figure, self.unit);
        let value = self.median();
        let line = format!("{figure:<24} {value:>10.3} {unit:<8} ({min:.3} .. {max:.3})");
        match &self.limit {
            Some((limit, name)) => format!("{line}  {:.2} x {name}", value / limit),
            None => line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_range_and_ratio_are_those_of_the_rounds() {
        let limit = Figure::new("s", "memcpy", "GB/s", vec![8.0]);
        let figure = Figure::new("s", "seal", "GB/s", vec![4.0, 1.0, 2.0]).with_limit(&limit);
        let json = figure.json(&json!({ "rows": 1 }));
        assert_eq!(json["value"], 2.0);
        assert_eq!((&json["min"], &json["max"]), (&json!(1.0), &json!(4.0)));
        assert_eq!(json["ratio_to_limit"], 0.25);
        assert_eq!(json["runs"], 3);
        assert!(figure.line().ends_with("0.25 x memcpy"));
    }
}
