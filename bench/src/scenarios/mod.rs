//! One file per scenario.

pub mod catchup;
pub mod fanout;
pub mod footprint;
pub mod frames;
pub mod growth;
pub mod ingest;
pub mod lag;
pub mod limits;
pub mod peers;
pub mod recovery;
pub mod ship;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::node::Layout;
use crate::rows::Keys;

/// What all scenarios over real nodes have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// Rounds; each measures everything once, so that a slow moment hits all of it.
    pub rounds: usize,
    /// Seconds of each measurement that counts time.
    pub measured: Duration,
    /// Different keys.
    pub keys: u64,
    /// Which of them are written how often.
    pub pick: Keys,
    /// Where nodes keep their directories.
    pub directory: PathBuf,
    /// Further flags of all nodes.
    pub flags: Vec<String>,
}

impl Common {
    /// Small enough for a test.
    #[must_use]
    pub fn tiny(directory: &Path) -> Common {
        let measured = Duration::from_millis(200);
        let directory = directory.to_path_buf();
        // Segments as small as they may be: nodes fill them with zeroes before they serve.
        let flags = vec!["--segment-bytes=64MiB".to_owned()];
        Common { rounds: 1, measured, keys: 500, pick: Keys::Uniform, directory, flags }
    }

    /// The layout with the flags that all nodes have.
    #[must_use]
    pub fn layout(&self, mut layout: Layout) -> Layout {
        layout.flags.extend_from_slice(&self.flags);
        layout
    }

    /// A fresh directory for one cluster, removed when dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        std::fs::create_dir_all(&self.directory)?;
        tempfile::Builder::new()
            .prefix("rowship-bench.")
            .tempdir_in(&self.directory)
            .with_context(|| format!("making a directory in {}", self.directory.display()))
    }
}

/// Brings the log of a data directory into the page cache: nodes write and read past it.
fn bring_into_page_cache(directory: &std::path::Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

/// A position of a node's own log out of its status.
///
/// # Errors
/// When status does not have it.
pub fn log_position(status: &Value, name: &str) -> Result<u64> {
    status["log"][name].as_u64().with_context(|| format!("no log.{name} in status: {status}"))
}

/// What a primary's status says of a replica.
#[must_use]
pub fn replica_row<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["replicas"].as_array()?.iter().find(|row| row["name"] == name)
}

/// A quantile of a histogram of nanoseconds, in milliseconds.
#[must_use]
pub fn quantile_ms(values: &Histogram<u64>, quantile: f64) -> f64 {
    values.value_at_quantile(quantile) as f64 / 1e6
}
