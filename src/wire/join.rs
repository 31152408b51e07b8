//! What somebody without a certificate, or with a lapsed one, and a manager say to each other:
//! one question and one answer on one stream.

use minicbor::{Decode, Encode};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::{Availability, NodeDescription};

use super::session::Directory;

/// Label of the bytes that both ends export from the TLS session: a proof made for one session is
/// worth nothing in another.
pub const EXPORTER_LABEL: &[u8] = b"skep-join/1 proof";

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum JoinRequest {
    /// A node asks to join.
    #[n(0)]
    Join(#[n(0)] Box<Joiner>),
    /// A member asks for a new certificate. The request is signed with the node's key, which is on
    /// record.
    #[n(1)]
    Renew {
        /// PKCS #10 in DER.
        #[cbor(n(0), with = "minicbor::bytes")]
        csr: Vec<u8>,
    },
}

/// Who asks to join.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Joiner {
    /// PKCS #10 in DER, signed with the node's key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub csr: Vec<u8>,
    /// X25519 public key that ring slots are sealed to if it is, or becomes, a manager.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub seal_key: [u8; 32],
    /// HMAC of this session and the request under the token's secret.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub proof: [u8; 32],
    /// What it says of itself.
    #[n(3)]
    pub description: NodeDescription,
    /// Address with port where other managers reach it.
    #[n(4)]
    pub advertise: String,
    /// Availability it asks for.
    #[n(5)]
    pub availability: Availability,
    /// Its clock, in nanoseconds since 1970.
    #[n(6)]
    pub now_ns: u64,
}

impl std::fmt::Debug for Joiner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Joiner({})", self.advertise)
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum JoinAnswer {
    /// It is a member now.
    #[n(0)]
    Welcome(#[n(0)] Box<Welcome>),
    /// A new certificate.
    #[n(1)]
    Renewed {
        /// Leaf and what is between it and the root, in PEM.
        #[n(0)]
        chain: String,
        /// Roots to trust from now on, in PEM.
        #[n(1)]
        roots: Vec<String>,
    },
    /// It is not; the text says why.
    #[n(2)]
    Refused(#[n(0)] String),
}

/// What a new member needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// Its id.
    #[n(0)]
    pub node: NodeId,
    /// Its swarm.
    #[n(1)]
    pub cluster: ClusterId,
    /// Its certificate: leaf and what is between it and the root, in PEM.
    #[n(2)]
    pub chain: String,
    /// Its Raft id; 0 for a worker.
    #[n(3)]
    pub raft_id: u64,
    /// The managers, and the roots to trust.
    #[n(4)]
    pub directory: Directory,
}
