//! What sinks kept in a directory, read back: figures, distributions and curves.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::sink::FIGURES_FILE;

/// A figure of some run.
#[derive(Clone, Debug, Deserialize)]
pub struct Kept {
    /// The scenario it belongs to.
    pub scenario: String,
    /// Its name, such as `rowship async, 8 clients x 1 rows: p50`.
    pub figure: String,
    /// The median round.
    pub value: f64,
    /// Unit of all values.
    pub unit: String,
    /// Rounds.
    pub runs: u64,
    /// The lowest round.
    pub min: f64,
    /// The highest round.
    pub max: f64,
    /// What binds it, in the same unit.
    pub limit: Option<f64>,
    /// The limit's name.
    pub limit_name: Option<String>,
    /// Median by limit.
    pub ratio_to_limit: Option<f64>,
    /// How it was measured.
    pub settings: Map<String, Value>,
}

impl Kept {
    /// What the name says before its last `: `, and the metric behind it.
    #[must_use]
    pub fn work_and_metric(&self) -> (&str, &str) {
        self.figure.rsplit_once(": ").unwrap_or((&self.figure, &self.unit))
    }

    /// A setting that is a whole number.
    #[must_use]
    pub fn count(&self, setting: &str) -> Option<u64> {
        self.settings.get(setting)?.as_u64()
    }

    /// What one unit of this figure is in `unit`, where both are times, or the same.
    #[must_use]
    pub fn factor_to(&self, unit: &str) -> Option<f64> {
        if self.unit == unit {
            return Some(1.0);
        }
        unit_factor(&self.unit, unit)
    }
}

/// What `from` is in `to`, where both are times or both are rates of bytes.
fn unit_factor(from: &str, to: &str) -> Option<f64> {
    const FAMILIES: [&[(&str, f64)]; 3] = [
        &[("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)],
        &[("B/s", 1.0), ("KB/s", 1e3), ("MB/s", 1e6), ("GB/s", 1e9), ("GiB/s", 1_073_741_824.0)],
        &[("B", 1.0), ("KB", 1e3), ("MB", 1e6), ("MiB", 1_048_576.0), ("GB", 1e9)],
    ];
    FAMILIES.iter().find_map(|family| {
        let size = |unit: &str| family.iter().find(|(name, _)| *name == unit).map(|(_, size)| size);
        Some(size(from)? / size(to)?)
    })
}

/// A distribution: (1 / (1 - quantile), milliseconds), ascending; the largest value is not in it,
/// because its place would be infinite.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// The scenario it belongs to.
    pub scenario: String,
    /// Name of the file behind the scenario, where everything but letters and digits is `-`.
    pub name: String,
    /// Its steps.
    pub points: Vec<(f64, f64)>,
}

/// A curve with the names of its two columns.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The scenario it belongs to.
    pub scenario: String,
    /// Name of the file behind the scenario, where everything but letters and digits is `-`.
    pub name: String,
    /// What the two columns hold.
    pub columns: [String; 2],
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Everything in a directory.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Figures: the newest of each name, at the place of the first.
    pub figures: Vec<Kept>,
    /// Distributions, by file name.
    pub distributions: Vec<Distribution>,
    /// Curves, by file name.
    pub curves: Vec<Curve>,
}

impl Directory {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a file cannot be read, or a line of it is not what a sink writes: with file and line.
    pub fn read(directory: &Path) -> Result<Directory> {
        let mut found = Directory { figures: figures(directory)?, ..Directory::default() };
        let entries = std::fs::read_dir(directory).with_context(|| shown(directory))?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<PathBuf>>>()
            .with_context(|| shown(directory))?;
        paths.sort();
        for path in paths {
            let Some(stem) = path.file_stem().and_then(std::ffi::OsStr::to_str) else { continue };
            // Whatever else lies there has no scenario before a dot.
            let Some((scenario, name)) = stem.split_once('.') else { continue };
            let (scenario, name) = (scenario.to_owned(), name.to_owned());
            match path.extension().and_then(std::ffi::OsStr::to_str) {
                Some("hgrm") => {
                    let points = distribution(&path)?;
                    found.distributions.push(Distribution { scenario, name, points });
                }
                Some("csv") => found.curves.push(curve(&path, scenario, name)?),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// The figures of a directory alone: the newest of each name, at the place of the first.
///
/// # Errors
/// When the file cannot be read, or a line of it is no figure: with file and line.
pub fn figures(directory: &Path) -> Result<Vec<Kept>> {
    let path = directory.join(FIGURES_FILE);
    ensure!(path.exists(), "{} does not exist: run a scenario first", path.display());
    let mut newest: Vec<Kept> = Vec::new();
    for (number, line) in lines(&path)? {
        let figure = figure(&line).with_context(|| format!("{}:{number}", path.display()))?;
        let same =
            |kept: &&mut Kept| kept.scenario == figure.scenario && kept.figure == figure.figure;
        match newest.iter_mut().find(same) {
            Some(kept) => *kept = figure,
            None => newest.push(figure),
        }
    }
    Ok(newest)
}

fn figure(line: &str) -> Result<Kept> {
    let figure: Kept = serde_json::from_str(line).context("not a figure")?;
    // They cannot stand in XML, not even escaped.
    let texts = [&figure.scenario, &figure.figure, &figure.unit];
    let texts = texts.into_iter().chain(&figure.limit_name).map(String::as_str);
    for text in texts.chain(figure.settings.values().filter_map(Value::as_str)) {
        ensure!(!text.contains(char::is_control), "a control character in {text:?}");
    }
    Ok(figure)
}

/// Lines that are not empty, with their numbers from 1.
fn lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim().to_owned()));
    Ok(numbered.filter(|(_, line)| !line.is_empty()).collect())
}

fn distribution(path: &Path) -> Result<Vec<(f64, f64)>> {
    let mut points = Vec::new();
    // The first line names the columns; those with `#` are a summary.
    for (number, line) in lines(path)?.into_iter().skip(1) {
        if line.starts_with('#') {
            continue;
        }
        let numbers = line.split_whitespace().map(number_of).collect::<Result<Vec<f64>>>();
        let numbers = numbers.with_context(|| format!("{}:{number}", path.display()))?;
        match numbers[..] {
            [value, _, _, inverse] => points.push((inverse, value)),
            [_, quantile, _] if quantile >= 1.0 => {}
            _ => anyhow::bail!("{}:{number}: not a step of a distribution", path.display()),
        }
    }
    Ok(points)
}

fn curve(path: &Path, scenario: String, name: String) -> Result<Curve> {
    let mut reader = csv::Reader::from_path(path).with_context(|| shown(path))?;
    let heads = reader.headers().with_context(|| shown(path))?;
    ensure!(heads.len() == 2, "{}:1: two columns expected", path.display());
    let columns = [heads[0].to_owned(), heads[1].to_owned()];
    let mut points = Vec::new();
    for record in reader.records() {
        let record = record.with_context(|| shown(path))?;
        let line = record.position().map_or(0, csv::Position::line);
        let at = || format!("{}:{line}", path.display());
        points.push((
            number_of(&record[0]).with_context(at)?,
            number_of(&record[1]).with_context(at)?,
        ));
    }
    Ok(Curve { scenario, name, columns, points })
}

fn number_of(text: &str) -> Result<f64> {
    let number: f64 = text.trim().parse().with_context(|| format!("{text:?} is no number"))?;
    ensure!(number.is_finite(), "{text:?} is no finite number");
    Ok(number)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, value: f64) -> String {
        let settings = serde_json::json!({ "durability": "none" });
        crate::figure::Figure::new("s", name, "ms", vec![value]).json(&settings).to_string()
    }

    #[test]
    fn the_later_line_of_a_name_counts() {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("{}\n{}\n\n{}\n", line("a", 1.0), line("b", 2.0), line("a", 3.0));
        std::fs::write(directory.path().join(FIGURES_FILE), text).unwrap();
        let found = figures(directory.path()).unwrap();
        let found: Vec<_> = found.iter().map(|f| (f.figure.as_str(), f.value)).collect();
        assert_eq!(found, [("a", 3.0), ("b", 2.0)]);
    }

    #[test]
    fn what_a_sink_does_not_write_is_an_error_with_file_and_line() {
        let broken = |file: &str, text: &str| {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join(FIGURES_FILE), line("a", 1.0)).unwrap();
            std::fs::write(directory.path().join(file), text).unwrap();
            format!("{:#}", Directory::read(directory.path()).unwrap_err())
        };
        let half = format!("{}\n{{\"scenario\":\"s\"", line("a", 1.0));
        assert!(broken(FIGURES_FILE, &half).contains("figures.jsonl:2: not a figure"));
        let control = line("a\u{1}", 1.0);
        assert!(broken(FIGURES_FILE, &control).contains("figures.jsonl:1: a control character"));
        assert!(broken("s.a.hgrm", "Value\n\n1 0.5 x 2\n").contains("s.a.hgrm:3: "));
        assert!(broken("s.a.hgrm", "Value\n\n1 0.5\n").contains("s.a.hgrm:3: not a step"));
        assert!(broken("s.a.csv", "seconds,lag_ms\n1,2\n2,inf\n").contains("s.a.csv:3: "));
        assert!(broken("s.a.csv", "seconds\n1\n").contains("s.a.csv:1: two columns"));
    }

    #[test]
    fn units_of_a_family_convert() {
        let mut kept: Kept = serde_json::from_str(&line("a", 1.0)).unwrap();
        assert_eq!(kept.factor_to("us"), Some(1000.0));
        kept.unit = "GB/s".to_owned();
        assert_eq!(kept.factor_to("MB/s"), Some(1000.0));
        assert_eq!(kept.factor_to("ms"), None);
    }
}
