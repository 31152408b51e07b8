//! The clocks of this process.

use std::time::{SystemTime, UNIX_EPOCH};

use skep_core::time::Stamp;

/// The time now, as stamps carry it.
#[must_use]
pub fn now() -> Stamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
