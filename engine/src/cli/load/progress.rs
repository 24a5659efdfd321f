//! How far a load is: a bar on a terminal, a plain line every two seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::super::config::units::human_count;
use super::sender::Shared;

const BAR_PERIOD: Duration = Duration::from_millis(100);
const LINE_PERIOD: Duration = Duration::from_secs(2);

/// What there is to show.
pub struct Progress {
    read: Arc<AtomicU64>,
    total: u64,
}

/// The display goes on as long as this lives.
pub struct Shown {
    _end: SyncSender<()>,
}

impl Progress {
    /// `read` of `total` bytes of the (compressed) file.
    #[must_use]
    pub fn new(read: Arc<AtomicU64>, total: u64) -> Progress {
        Progress { read, total }
    }

    /// Starts a thread that shows it on standard error.
    pub fn start<'scope, 'env>(
        self,
        scope: &'scope Scope<'scope, 'env>,
        shared: &'env Shared,
    ) -> Shown {
        let (end, ended) = sync_channel::<()>(0);
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}");
            // The template is a constant; the default style is only plainer.
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(self.total).with_style(style)
        });
        let period = if bar.is_some() { BAR_PERIOD } else { LINE_PERIOD };
        scope.spawn(move || {
            let start = Instant::now();
            while ended.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                let read = self.read.load(Ordering::Relaxed);
                let rows = shared.rows.load(Ordering::Relaxed);
                let line = line(rows, read, self.total, start.elapsed());
                match &bar {
                    Some(bar) => {
                        bar.set_position(read);
                        bar.set_message(line);
                    }
                    None => eprintln!("{line}"),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        });
        Shown { _end: end }
    }
}

fn line(rows: u64, read: u64, total: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate for people; never negative"
    )]
    let (rate, percent, left) = {
        let part = read as f64 / total.max(1) as f64;
        let left = if part > 0.0 { seconds / part - seconds } else { f64::INFINITY };
        ((rows as f64 / seconds) as u64, (part * 100.0) as u64, left)
    };
    let left = if left.is_finite() { format!("{left:.0} s left") } else { "waiting".to_owned() };
    let (rows, rate) = (human_count(rows), human_count(rate));
    format!("{rows} rows, {percent} % of the file, {rate} rows/s, {left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_shows_rate_and_time_left() {
        let text = line(5000, 250, 1000, Duration::from_secs(10));
        assert_eq!(text, "5,000 rows, 25 % of the file, 500 rows/s, 30 s left");
        assert!(line(0, 0, 1000, Duration::from_secs(1)).ends_with("waiting"));
    }
}
