//! What commands say of secrets and configs, and of the record of who read them.

use minicbor::{Decode, Encode};

use crate::id::{MaterialId, NodeId, TaskId};
use crate::sealed::Sealed;

/// A version to be appended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Append {
    /// To what.
    #[n(0)]
    pub id: MaterialId,
    /// Number of the new version: the last one plus one, or it is refused.
    #[n(1)]
    pub number: u64,
    /// Plaintext bytes.
    #[n(2)]
    pub size: u64,
    /// The payload, sealed with the current ring key.
    #[n(3)]
    pub payload: Sealed,
    /// The version whose payload it repeats: a rollback.
    #[n(4)]
    pub of: Option<u64>,
}

/// A payload under another key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Reseal {
    /// Of what.
    #[n(0)]
    pub id: MaterialId,
    /// Which version.
    #[n(1)]
    pub version: u64,
    /// The same payload, sealed with the current ring key.
    #[n(2)]
    pub payload: Sealed,
}

/// How far a task's audit has come: each record is chained to the one before by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Anchor {
    /// Whose audit.
    #[n(0)]
    pub task: TaskId,
    /// Number of the last record.
    #[n(1)]
    pub sequence: u64,
    /// SHA-256 that the record after it is chained to.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// The node that sent it.
    #[n(3)]
    pub node: NodeId,
}
