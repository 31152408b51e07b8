//! Docker's JSON to the swarm's nouns and back.

pub(super) mod cluster;
pub(super) mod container;
mod grants;
pub(super) mod node;
pub(super) mod spec_in;
pub(super) mod spec_out;
pub(super) mod task;

use skep_core::model::Meta;
use skep_core::time::Span;

use super::error::ApiError;
use super::types::Version;

/// What an update must name to be in sequence.
pub(super) fn version(meta: Meta) -> Version {
    Version { index: meta.version }
}

/// A length of time as Docker sends it: nanoseconds, never below zero.
pub(super) fn span(nanos: i64, field: &str) -> Result<Span, ApiError> {
    u64::try_from(nanos)
        .map(Span)
        .map_err(|_| ApiError::invalid(&format!("{field} cannot be negative")))
}

/// A length of time as Docker shows it.
pub(super) fn nanos(span: Span) -> i64 {
    i64::try_from(span.0).unwrap_or(i64::MAX)
}

/// A driver as shown.
pub(super) fn driver(driver: &skep_core::model::material::Driver) -> super::types::Driver {
    super::types::Driver { name: driver.name.clone(), options: driver.options.clone() }
}
