//! The clock that host and containers share.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC; 0 if the kernel has none.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds since `began_ns`.
pub(crate) fn ms_since(began_ns: u64) -> f64 {
    ms_between(began_ns, now_ns())
}

/// Milliseconds from one reading to a later one.
pub(crate) fn ms_between(began_ns: u64, ended_ns: u64) -> f64 {
    Duration::from_nanos(ended_ns.saturating_sub(began_ns)).as_secs_f64() * 1e3
}
