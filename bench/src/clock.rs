//! Waiting for a moment to the microsecond: tokio's own timers tick in milliseconds.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_timerfd::Delay;

/// A timer of the kernel that tasks can wait for.
pub struct PreciseTimer {
    delay: Delay,
}

impl PreciseTimer {
    /// A timer.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> Result<PreciseTimer> {
        Ok(PreciseTimer { delay: Delay::new(Instant::now())? })
    }

    /// Returns at `moment`, at once when it has passed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn until(&mut self, moment: Instant) -> Result<()> {
        if moment > Instant::now() {
            self.delay.reset(moment);
            (&mut self.delay).await?;
        }
        Ok(())
    }

    /// Returns after `rest`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn sleep(&mut self, rest: Duration) -> Result<()> {
        self.until(Instant::now() + rest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_is_never_early() {
        let mut timer = PreciseTimer::new().unwrap();
        for micros in [0, 1, 300, 2_000] {
            let moment = Instant::now() + Duration::from_micros(micros);
            timer.until(moment).await.unwrap();
            assert!(Instant::now() >= moment);
        }
    }
}
