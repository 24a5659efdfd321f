//! Where figures go: to the screen, and to a directory that `bench report` reads.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::figure::Figure;

/// Name of the file of figures in the directory.
pub const FIGURES_FILE: &str = "figures.jsonl";

/// Takes figures, histograms and curves of one run.
pub struct Sink {
    json: bool,
    directory: PathBuf,
    progress: ProgressBar,
}

impl Sink {
    /// Figures also go to `directory`, behind those of runs before.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(directory: &Path, json: bool) -> Result<Sink> {
        fs::create_dir_all(directory)
            .with_context(|| format!("making the directory {}", directory.display()))?;
        let progress = ProgressBar::new_spinner();
        progress.enable_steady_tick(std::time::Duration::from_millis(200));
        Ok(Sink { json, directory: directory.to_path_buf(), progress })
    }

    /// Says what is being done, where somebody looks on.
    pub fn progress(&self, text: impl Into<String>) {
        self.progress.set_message(text.into());
    }

    /// Shows and keeps a figure.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn figure(&self, figure: &Figure, settings: &Value) -> Result<()> {
        let line = figure.json(settings);
        self.show(&if self.json { line.to_string() } else { figure.line() });
        let path = self.directory.join(FIGURES_FILE);
        let mut file = File::options().create(true).append(true).open(&path)?;
        writeln!(file, "{line}").with_context(|| path.display().to_string())
    }

    /// A line for people only.
    pub fn say(&self, line: &str) {
        if !self.json {
            self.show(line);
        }
    }

    /// Where figures are kept.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether JSON lines are asked for.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A line for people and programs.
    pub fn show(&self, line: &str) {
        self.progress.suspend(|| println!("{line}"));
    }

    fn file(&self, scenario: &str, name: &str, suffix: &str) -> Result<BufWriter<File>> {
        let path = self.directory.join(format!("{scenario}.{}.{suffix}", file_name(name)));
        Ok(BufWriter::new(
            File::create(&path).with_context(|| format!("writing {}", path.display()))?,
        ))
    }

    /// Writes a distribution of nanoseconds as an `.hgrm` file, in milliseconds: the text that
    /// HdrHistogram's plotters read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn histogram(&self, scenario: &str, name: &str, values: &Histogram<u64>) -> Result<()> {
        let mut file = self.file(scenario, name, "hgrm")?;
        writeln!(file, "       Value     Percentile TotalCount 1/(1-Percentile)\n")?;
        for step in values.iter_quantiles(5) {
            let (value, quantile) =
                (step.value_iterated_to() as f64 / 1e6, step.quantile_iterated_to());
            let count = values.count_between(0, step.value_iterated_to());
            if quantile < 1.0 {
                let inverse = 1.0 / (1.0 - quantile);
                writeln!(file, "{value:12.6} {quantile:2.12} {count:10} {inverse:14.2}")?;
            } else {
                writeln!(file, "{value:12.6} {quantile:2.12} {count:10}")?;
            }
        }
        let (mean, deviation) = (values.mean() / 1e6, values.stdev() / 1e6);
        writeln!(file, "#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]")?;
        writeln!(
            file,
            "#[Max     = {:12.6}, Total count    = {:12}]",
            values.max() as f64 / 1e6,
            values.len()
        )?;
        let (buckets, digits) = (values.buckets(), values.sigfig());
        writeln!(file, "#[Buckets = {buckets:12}, SubBuckets     = {digits:12}]")?;
        Ok(file.flush()?)
    }

    /// Writes a curve as CSV with these columns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn curve(
        &self,
        scenario: &str,
        name: &str,
        columns: [&str; 2],
        points: &[(f64, f64)],
    ) -> Result<()> {
        let mut file = self.file(scenario, name, "csv")?;
        writeln!(file, "{},{}", columns[0], columns[1])?;
        for (x, y) in points {
            writeln!(file, "{x:.6},{y:.6}")?;
        }
        Ok(file.flush()?)
    }
}

/// What stands for a name in the names of files.
#[must_use]
pub fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// What every figure says about this machine and these settings, with `more` of the scenario.
#[must_use]
pub fn settings(durability: &str, more: Value) -> Value {
    let uname = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut all = json!({
        "durability": durability,
        "tls": "off",
        "io": "io_uring",
        "kernel": uname.release().to_string_lossy(),
        "cores": cores,
        "value_bytes": crate::rows::VALUE_BYTES,
    });
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    all
}
