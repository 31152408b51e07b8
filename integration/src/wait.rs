//! Waiting for an event, with a bound.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `ready` until it answers `Some`, at most for `bound`; the error names `what`.
pub fn wait_until<T>(
    what: &str,
    bound: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = ready()? {
            return Ok(found);
        }
        if start.elapsed() >= bound {
            bail!("{what}: not within {} ms", bound.as_millis());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// As [`wait_until`] for a plain condition.
pub fn settle(what: &str, bound: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_until(what, bound, || Ok(ready()?.then_some(())))
}
