//! The clocks of this process.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use skep_core::time::{Span, Stamp};

/// The time now, as stamps carry it.
#[must_use]
pub fn now() -> Stamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Time since the machine was started, sleep included: nobody sets it.
#[must_use]
pub fn uptime() -> Span {
    // This clock is always there.
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    Span(u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX))
}
