//! The replicated half of skep's state: openraft over an encrypted log and encrypted snapshots.
//!
//! `log` is a synchronous machine over `disk`; `store` gives it one thread and openraft's face;
//! `machine` applies what is committed with the core's `apply`; `node` is what the daemon uses.
//! No other crate knows openraft.

mod answer;
mod api;
mod check;
#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod crash_tests;
mod digest;
#[cfg(test)]
mod digest_tests;
pub mod disk;
#[cfg(test)]
mod format_tests;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod index;
mod keeper;
mod key;
pub mod limits;
mod log;
#[cfg(test)]
mod log_tests;
mod machine;
mod members;
#[cfg(test)]
mod members_tests;
mod message;

pub mod network;
mod node;
#[cfg(test)]
mod node_crash_tests;
#[cfg(test)]
mod node_tests;
mod offline;
#[cfg(test)]
mod offline_tests;
#[cfg(test)]
mod peer_tests;
mod record;
mod recover;
mod remnants;
#[cfg(test)]
mod samples;
mod segment;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod testing;
mod types;
#[cfg(test)]
mod wire_tests;

pub use answer::AnswerError;
pub use api::{Clock, Config, FatalHook, Leadership, Metrics, ProposeError, ReadError, StartError};
pub use key::StorageKey;
pub use log::OpenError;
pub use machine::{Applied, Event, Subscription};
pub use members::MemberError;

pub use network::{Answer, Peer, Transport, TransportError};
pub use node::Raft;
pub use offline::{OfflineError, Recovery};
pub use snapshot::SnapshotError;

/// What several tests share.
#[cfg(test)]
mod tests {
    pub(crate) mod log_model;
}
