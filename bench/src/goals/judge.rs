//! Which goals a run reached.

use serde_json::{Value, json};

use super::{Base, Bound, Goal, Name};
use crate::kept::Kept;
use crate::number;

/// How a goal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Reached.
    Met,
    /// Measured, and not reached.
    Missed,
    /// A figure is missing.
    NotMeasured,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Outcome::Met => "met",
            Outcome::Missed => "missed",
            Outcome::NotMeasured => "not measured",
        })
    }
}

/// A quotient of two figures, or a figure in the unit of its bound: its median and its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quotient {
    /// The median.
    pub value: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// What was found for a goal.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The goal.
    pub goal: &'static Goal,
    /// The figure, where there is one.
    pub figure: Option<Kept>,
    /// Figure by base.
    pub quotient: Option<Quotient>,
    /// What it was compared with, or what is missing.
    pub against: String,
    /// How it stands.
    pub outcome: Outcome,
}

impl Verdict {
    /// The figure with its unit.
    #[must_use]
    pub fn figure_text(&self) -> String {
        self.figure.as_ref().map_or_else(dash, |f| number::with_unit(f.value, &f.unit))
    }

    /// The quotient.
    #[must_use]
    pub fn ratio_text(&self) -> String {
        match (self.goal.base, self.quotient) {
            (_, None) | (Base::Fixed(_), _) => dash(),
            (_, Some(quotient)) => format!("{} x", number::shown(quotient.value)),
        }
    }

    /// Lowest and highest quotient.
    #[must_use]
    pub fn range_text(&self) -> String {
        self.quotient.map_or_else(dash, |quotient| number::range(quotient.min, quotient.max))
    }

    /// Two lines for a screen.
    #[must_use]
    pub fn lines(&self) -> String {
        let (outcome, Goal { work, goal, .. }) = (self.outcome, self.goal);
        let against = &self.against;
        let found = match self.quotient {
            None => against.clone(),
            Some(_) => {
                let (figure, range) = (self.figure_text(), self.range_text());
                match self.goal.base {
                    Base::Fixed(_) => format!("{figure} ({range})"),
                    _ => format!("{figure}, ratio {} ({range}) to {against}", self.ratio_text()),
                }
            }
        };
        format!("{outcome:<14}{work}\n{:<14}goal: {goal}; {found}", "")
    }

    /// One JSON line.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "work": self.goal.work,
            "goal": self.goal.goal,
            "figure": self.figure.as_ref().map(|figure| &figure.figure),
            "value": self.figure.as_ref().map(|figure| figure.value),
            "unit": self.figure.as_ref().map(|figure| &figure.unit),
            "ratio": self.quotient.map(|quotient| quotient.value),
            "min": self.quotient.map(|quotient| quotient.min),
            "max": self.quotient.map(|quotient| quotient.max),
            "against": self.against,
            "outcome": self.outcome.to_string(),
        })
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// Judges each goal by the newest figures.
#[must_use]
pub fn judge(goals: &'static [Goal], figures: &[Kept]) -> Vec<Verdict> {
    goals.iter().map(|goal| judge_one(goal, figures)).collect()
}

fn judge_one(goal: &'static Goal, figures: &[Kept]) -> Verdict {
    let ours = all(goal.figure, figures);
    if ours.is_empty() {
        return not_measured(goal, None, missing(goal.figure));
    }
    let verdicts = ours.into_iter().map(|ours| match divide(goal, ours, figures) {
        Ok((quotient, against)) => {
            let outcome = match goal.bound.admits(quotient.value) {
                true => Outcome::Met,
                false => Outcome::Missed,
            };
            let (figure, quotient) = (Some(ours.clone()), Some(quotient));
            Verdict { goal, figure, quotient, against, outcome }
        }
        Err(missing) => not_measured(goal, Some(ours.clone()), missing),
    });
    // One that cannot be judged is the worst of all.
    let badness = |verdict: &Verdict| match verdict.quotient {
        None => f64::INFINITY,
        Some(quotient) if goal.bound.is_from_below() => -quotient.value,
        Some(quotient) => quotient.value,
    };
    let worst = verdicts.max_by(|a, b| badness(a).total_cmp(&badness(b)));
    worst.unwrap_or_else(|| not_measured(goal, None, missing(goal.figure)))
}

fn not_measured(goal: &'static Goal, figure: Option<Kept>, missing: String) -> Verdict {
    let outcome = Outcome::NotMeasured;
    Verdict { goal, figure, quotient: None, against: missing, outcome }
}

fn missing(name: Name) -> String {
    format!("no figure \"{}\" of {}", name.pattern, name.scenario)
}

impl Bound {
    fn admits(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
            Bound::Above(bound) => value > bound,
            Bound::Below(bound) => value < bound,
        }
    }

    /// More is better.
    fn is_from_below(self) -> bool {
        matches!(self, Bound::AtLeast(_) | Bound::Above(_))
    }
}

/// The quotient and what it was divided by, or what is missing.
fn divide(goal: &Goal, ours: &Kept, figures: &[Kept]) -> Result<(Quotient, String), String> {
    match goal.base {
        Base::Fixed(unit) => {
            let factor = ours.factor_to(unit).ok_or_else(|| units(&ours.unit, unit))?;
            let [value, min, max] = [ours.value, ours.min, ours.max].map(|value| value * factor);
            Ok((Quotient { value, min, max }, "the bound".to_owned()))
        }
        Base::Figure(name) => {
            let base = all(name, figures).pop().ok_or_else(|| missing(name))?;
            Ok((by_figure(ours, base)?, text_of(&base.figure, base.value, &base.unit)))
        }
        Base::Limit(parts) => by_limit(ours, parts, figures),
        Base::Best { ours: name, pattern, ratio, systems, also } => {
            let find = |pattern: &str, system: &str| {
                let pattern = pattern.replace("{system}", system);
                let found = find(goal.figure.scenario, &pattern, figures);
                found.ok_or_else(|| format!("no figure \"{pattern}\" of {}", goal.figure.scenario))
            };
            let needed = systems.iter().map(|system| (*system, find(pattern, system)));
            let extra = also.iter().map(|system| (*system, find(pattern, system)));
            let all = needed.chain(extra.filter(|(_, found)| found.is_ok()));
            let all = all.map(|(system, found)| Ok((system, found?)));
            let all = all.collect::<Result<Vec<_>, String>>()?.into_iter();
            let by_value = |a: &(&str, &Kept), b: &(&str, &Kept)| a.1.value.total_cmp(&b.1.value);
            let best = match goal.bound.is_from_below() {
                true => all.max_by(by_value),
                false => all.min_by(by_value),
            };
            let (system, base) = best.ok_or("no system to compare with")?;
            let paired = [name, "rowship"]
                .into_iter()
                .find_map(|ours| find(&ratio.replace("{ours}", ours), system).ok());
            let quotient = match paired {
                Some(Kept { value, min, max, .. }) => {
                    Quotient { value: *value, min: *min, max: *max }
                }
                None => by_figure(ours, base)?,
            };
            Ok((quotient, text_of(system, base.value, &base.unit)))
        }
    }
}

/// By the figure's own limit, or else by the sum of `parts`.
fn by_limit(ours: &Kept, parts: &[Name], figures: &[Kept]) -> Result<(Quotient, String), String> {
    let (limit, name) = match (ours.limit, parts) {
        (Some(limit), _) => (limit, ours.limit_name.clone().unwrap_or_default()),
        (None, []) => return Err(format!("no limit beside \"{}\"", ours.figure)),
        (None, parts) => {
            let (mut sum, mut names) = (0.0, Vec::new());
            for name in parts {
                let part = find(name.scenario, name.pattern, figures);
                let part = part.ok_or_else(|| missing(*name))?;
                let factor = part.factor_to(&ours.unit);
                sum += part.value * factor.ok_or_else(|| units(&part.unit, &ours.unit))?;
                names.push(part.figure.clone());
            }
            (sum, names.join(" + "))
        }
    };
    let [value, min, max] = [ours.value, ours.min, ours.max].map(|value| value / limit);
    let quotient = finite(Quotient { value, min, max })?;
    Ok((quotient, text_of(&name, limit, &ours.unit)))
}

/// Medians by medians; the range is what the worst rounds of both allow.
fn by_figure(ours: &Kept, base: &Kept) -> Result<Quotient, String> {
    let factor = ours.factor_to(&base.unit).ok_or_else(|| units(&ours.unit, &base.unit))?;
    finite(Quotient {
        value: ours.value * factor / base.value,
        min: ours.min * factor / base.max,
        max: ours.max * factor / base.min,
    })
}

fn finite(quotient: Quotient) -> Result<Quotient, String> {
    match quotient.value.is_finite() {
        true => Ok(quotient),
        false => Err("the base is 0".to_owned()),
    }
}

fn units(ours: &str, theirs: &str) -> String {
    format!("{ours} cannot be compared with {theirs}")
}

fn text_of(name: &str, value: f64, unit: &str) -> String {
    format!("{name}: {}", number::with_unit(value, unit))
}

fn all(name: Name, figures: &[Kept]) -> Vec<&Kept> {
    let matching = figures.iter().filter(|figure| {
        figure.scenario == name.scenario && is_match(name.pattern, &figure.figure)
    });
    matching.collect()
}

/// The last one that matches.
fn find<'a>(scenario: &str, pattern: &str, figures: &'a [Kept]) -> Option<&'a Kept> {
    figures.iter().rfind(|figure| figure.scenario == scenario && is_match(pattern, &figure.figure))
}

/// Whether a name is one of a pattern: `*` is any text and `?` any character.
fn is_match(pattern: &str, name: &str) -> bool {
    let plain = |text: &str| {
        let text = text.to_lowercase().replace("rows", "row").replace("clients", "client");
        text.replace("replicas", "replica").replace("postgresql", "postgres")
    };
    wildmatch::WildMatch::new(&plain(pattern)).matches(&plain(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Figure;
    use crate::goals::GOALS;

    fn kept(scenario: &'static str, name: &str, unit: &'static str, values: &[f64]) -> Kept {
        let line = Figure::new(scenario, name, unit, values.to_vec()).json(&json!({}));
        serde_json::from_value(line).unwrap()
    }

    fn rates(all: &[(&str, f64)]) -> Vec<Kept> {
        let name = |system: &str| format!("ingest, {system}, 8 clients x 1 rows: rows/s");
        all.iter().map(|(system, rate)| kept("peers", &name(system), "rows/s", &[*rate])).collect()
    }

    const PEERS: [(&str, f64); 3] =
        [("mariadb async", 5.0), ("redis AOF always", 18.0), ("postgres physical async", 9.0)];

    fn first(figures: &[Kept]) -> Verdict {
        judge(GOALS, figures).swap_remove(0)
    }

    #[test]
    fn the_best_peer_counts_and_all_of_them_are_needed() {
        let ours = |rate| [&PEERS[..], &[("rowship async", rate)]].concat();
        let met = first(&rates(&ours(36.0)));
        assert_eq!(met.outcome, Outcome::Met);
        assert_eq!(met.against, "redis AOF always: 18 rows/s");
        assert_eq!(met.ratio_text(), "2 x");
        let missed = first(&rates(&ours(35.9)));
        assert_eq!(missed.outcome, Outcome::Missed);
        let without = first(&rates(&ours(36.0)[1..]));
        assert_eq!(without.outcome, Outcome::NotMeasured);
        assert!(without.against.contains("mariadb async"));
        assert_eq!(first(&rates(&PEERS)).outcome, Outcome::NotMeasured);
    }

    #[test]
    fn a_peer_that_is_not_always_measured_counts_where_it_was() {
        let more = [("rowship async", 36.0), ("postgres logical async", 20.0)];
        let verdict = first(&rates(&[&PEERS[..], &more].concat()));
        assert_eq!(verdict.outcome, Outcome::Missed);
        assert_eq!(verdict.against, "postgres logical async: 20 rows/s");
    }

    #[test]
    fn quotients_of_rounds_in_turn_are_used_where_they_exist() {
        let mut figures = rates(&[&PEERS[..], &[("rowship async", 36.0)]].concat());
        let name = "ingest, rowship / redis AOF always, 8 clients x 1 rows: ratio";
        figures.push(kept("peers", name, "x", &[1.7, 1.9, 2.1]));
        let verdict = first(&figures);
        assert_eq!(verdict.outcome, Outcome::Missed);
        assert_eq!(verdict.range_text(), "1.7 .. 2.1");
    }

    #[test]
    fn a_limit_is_the_figures_own_or_a_sum() {
        let of = |figures: &[Kept]| judge(GOALS, figures).swap_remove(1);
        let ours = kept("ingest", "rowship async, 1 clients x 1 rows: p50", "ms", &[0.25]);
        assert_eq!(of(std::slice::from_ref(&ours)).outcome, Outcome::NotMeasured);
        let parts = [
            kept("limits", "ping-pong, tokio-uring: p50", "us", &[100.0]),
            kept("limits", "O_DSYNC write, 4 KiB: p50", "us", &[110.0]),
        ];
        let verdict = of(&[std::slice::from_ref(&ours), &parts].concat());
        assert_eq!((verdict.outcome, verdict.ratio_text().as_str()), (Outcome::Met, "1.19 x"));
        let bound = Kept { limit: Some(0.1), limit_name: Some("both".to_owned()), ..ours };
        let verdict = of(&[bound]);
        assert_eq!(verdict.outcome, Outcome::Missed);
        assert_eq!(verdict.against, "both: 0.1 ms");
    }

    #[test]
    fn the_figure_farthest_from_its_bound_counts() {
        let of = |figures: &[Kept], work: &str| {
            let mut all = judge(GOALS, figures).into_iter();
            all.find(|verdict| verdict.goal.work.contains(work)).unwrap()
        };
        let further = |rows: u32, number: u32, value: f64| {
            let name = format!(
                "8 clients x {rows} rows, CPU of each replica from the second to number {number} \
                 against the first"
            );
            kept("fanout", &name, "x", &[value])
        };
        let figures = [further(1, 2, 0.5), further(1, 4, 0.7), further(100, 2, 0.4)];
        let verdict = of(&figures, "CPU of the second");
        assert_eq!((verdict.outcome, verdict.range_text()), (Outcome::Missed, "0.7 .. 0.7".into()));
        assert_eq!(of(&figures[..1], "CPU of the second").outcome, Outcome::Met);
        let lag = [
            kept("lag", "50000 rows/s: visible p99", "us", &[2999.0]),
            kept("lag", "50000 rows/s: visible p99.9", "us", &[9000.0]),
        ];
        let verdict = of(&lag, "50 k rows/s, p99");
        assert_eq!((verdict.outcome, verdict.figure_text()), (Outcome::Met, "2,999 us".into()));
    }

    #[test]
    fn patterns_forgive_plurals_and_capitals_and_nothing_else() {
        assert!(is_match("lag, *, 1 Row: ?B/s", "Lag, x, 1 rows: GB/s"));
        assert!(!is_match("catchup, x, 1 row: rows/s", "catchup, x, 100 rows: rows/s"));
        assert!(!is_match("*: p99", "a: p99.9"));
    }
}
