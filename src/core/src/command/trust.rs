//! What commands change of the swarm's trust: what the ring seals beside payloads, join secrets, and
//! the root of its certificates.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::id::NodeId;
use crate::model::cluster::{FormerSecret, NextRoot};
use crate::sealed::Sealed;

/// What the ring seals beside payloads.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TrustSecrets {
    /// The root's private key.
    #[n(0)]
    pub root_key: Sealed,
    /// The join secret of workers.
    #[n(1)]
    pub worker_secret: Sealed,
    /// The join secret of managers.
    #[n(2)]
    pub manager_secret: Sealed,
    /// The unlock key, where managers lock their keys at rest.
    #[n(3)]
    pub unlock_key: Option<Sealed>,
    /// The private key of the root that takes over, while one does.
    #[n(4)]
    pub next_root_key: Option<Sealed>,
    /// Version of the swarm that all of them were read from. If it was written since, the answer
    /// is [`super::Rejection::StaleKey`]: what the door sealed anew may be what someone has just
    /// replaced.
    #[n(5)]
    pub cluster_version: u64,
    /// What is kept of the join secrets before, if these are others: one for each role, or none.
    #[n(6)]
    pub former: Vec<FormerSecret>,
}

/// Join secrets that take the place of others.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TokenRotation {
    /// New join secret of workers, sealed with the ring.
    #[n(0)]
    pub worker: Option<Sealed>,
    /// New join secret of managers, sealed with the ring.
    #[n(1)]
    pub manager: Option<Sealed>,
    /// What is kept of those they replace, one for each.
    #[n(2)]
    pub former: Vec<FormerSecret>,
}

/// A step of changing the root of the swarm's certificates.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum CaChange {
    /// Begins: the new root is trusted beside the old one.
    #[n(0)]
    Begin {
        /// Version of the cluster that the caller read.
        #[n(0)]
        version: u64,
        /// The new root.
        #[n(1)]
        root: NextRoot,
    },
    /// Nodes say which root's certificate they use now.
    #[n(1)]
    Moved(#[n(0)] Vec<NodeId>),
    /// Ends: every node has moved, or those that have not are left behind by force. Tokens name
    /// the root that is gone, so their secrets go with it.
    #[n(2)]
    Finish {
        /// Version of the cluster that the caller read.
        #[n(0)]
        version: u64,
        /// Whether nodes may be left behind.
        #[n(1)]
        force: bool,
        /// New join secrets of both roles.
        #[n(2)]
        tokens: TokenRotation,
    },
}
