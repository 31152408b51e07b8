//! The audit of a task: what its shim writes down of who read which secret, and how that is
//! checked. Nothing here touches a disk or a network.
//!
//! A shim writes one [`Record`] after the other. Each names the hash of the one before, so that
//! none can be changed, left out or put in without a trace; the first begins from the task and the
//! shim's own key. What was written is passed on and kept byte for byte: a later version may write
//! more than this one reads, and the hash is over all of it.

mod answer;
mod chain;
mod copies;
mod frame;
mod query;
mod record;
#[cfg(test)]
pub(crate) mod testing;

pub use answer::{AuditAnswer, AuditGap, AuditVerdict, Coverage, LastRead, TaskVerdict};
pub use chain::{Anchor, Dropped, Finding, hash, origin, verify};
pub use copies::Copies;
pub use frame::{Next, next, put};
pub use query::{AuditQuery, Entry, Merge};
pub use record::{Event, Head, Lost, Reader, Record, Row, What};
