//! The swarm itself: its settings, its trust and its ring of secret keys.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use minicbor::{Decode, Encode};

use super::node::Role;
use super::{Labels, Meta};
use crate::id::{ClusterId, NodeId};
use crate::limits;
use crate::time::{Span, Stamp};

/// What a user says of the swarm.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ClusterSpec {
    /// `default`.
    #[n(0)]
    pub name: String,
    /// Labels.
    #[n(1)]
    pub labels: Labels,
    /// Ended tasks kept per slot.
    #[n(2)]
    pub history_limit: u64,
    /// Entries between snapshots; stored for Docker, not obeyed.
    #[n(3)]
    pub snapshot_interval: u64,
    /// Docker's heartbeat tick; stored, not obeyed.
    #[n(4)]
    pub heartbeat_tick: u32,
    /// Docker's election tick; stored, not obeyed.
    #[n(5)]
    pub election_tick: u32,
    /// Docker's dispatcher heartbeat; stored, not obeyed.
    #[n(6)]
    pub heartbeat_period: Span,
    /// Life of a node certificate.
    #[n(7)]
    pub node_cert_expiry: Span,
    /// Whether managers lock their keys at rest.
    #[n(8)]
    pub autolock: bool,
    /// Old snapshots kept; stored for Docker, not obeyed.
    #[n(9)]
    pub keep_old_snapshots: u64,
    /// Entries kept for slow followers; stored for Docker, not obeyed.
    #[n(10)]
    pub slow_follower_entries: u64,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: String::from("default"),
            labels: Labels::new(),
            history_limit: limits::HISTORY_PER_SLOT,
            snapshot_interval: 10_000,
            heartbeat_tick: 1,
            election_tick: 10,
            heartbeat_period: Span::from_secs(5),
            node_cert_expiry: Span::from_secs(90 * 24 * 3600),
            autolock: false,
            keep_old_snapshots: 0,
            slow_follower_entries: 500,
        }
    }
}

impl ClusterSpec {
    /// The rule that these settings break, if they break one: value, rule and remedy.
    #[must_use]
    pub fn broken_rule(&self) -> Option<String> {
        let (given, least) = (self.node_cert_expiry, limits::CERT_EXPIRY_MIN);
        (given < least).then(|| {
            format!(
                "minimum certificate expiry time is: {}, and the one given is {}; give a longer one",
                go_words(least),
                go_words(given)
            )
        })
    }
}

/// A span as Go writes it, to the second.
fn go_words(span: Span) -> String {
    let secs = span.0 / 1_000_000_000;
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, 0) => format!("{}ns", span.0),
        (0, 0, secs) => format!("{secs}s"),
        (0, minutes, secs) => format!("{minutes}m{secs}s"),
        (hours, minutes, secs) => format!("{hours}h{minutes}m{secs}s"),
    }
}

/// A secret key sealed to one manager.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Slot {
    /// HPKE encapsulated key followed by the ciphertext.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} bytes)", self.sealed.len())
    }
}

/// One version of the swarm's secret key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RingKey {
    /// 1 for the first; never reused.
    #[n(0)]
    pub version: u64,
    /// When it was made.
    #[n(1)]
    pub created: Stamp,
    /// One slot for every manager.
    #[n(2)]
    pub slots: BTreeMap<NodeId, Slot>,
}

/// The ring of secret keys: the current one seals, older ones only open.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ring {
    /// Version of the key that seals.
    #[n(0)]
    pub current: u64,
    /// All keys that some payload still needs.
    #[n(1)]
    pub keys: Vec<RingKey>,
}

/// What joins the swarm and what it trusts. Sealed parts open only with the ring.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Trust {
    /// Root certificates in PEM, at most two.
    #[n(0)]
    pub roots: Vec<String>,
    /// DER of the root's subject.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub subject: Vec<u8>,
    /// DER of the root's public key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// The root's private key, sealed with the ring.
    #[n(3)]
    pub root_key: Option<crate::sealed::Sealed>,
    /// The join secret of workers, sealed with the ring.
    #[n(4)]
    pub worker_secret: Option<crate::sealed::Sealed>,
    /// The join secret of managers, sealed with the ring.
    #[n(5)]
    pub manager_secret: Option<crate::sealed::Sealed>,
    /// The unlock key of managers, sealed with the ring; none while they lock nothing.
    #[n(6)]
    pub unlock_key: Option<crate::sealed::Sealed>,
    /// The root that takes over, while one does.
    #[n(7)]
    pub next: Option<NextRoot>,
    /// Join secrets of the past, the latest last; at most [`limits::FORMER_SECRETS`].
    #[n(8)]
    pub former: Vec<FormerSecret>,
}

impl Trust {
    /// Keeps in mind what has just ceased to admit, and forgets the oldest beyond the limit.
    pub fn retire(&mut self, former: &[FormerSecret]) {
        self.former.extend_from_slice(former);
        let surplus = self.former.len().saturating_sub(limits::FORMER_SECRETS);
        self.former.drain(..surplus);
    }

    /// Everything of it that the ring seals.
    pub fn sealed(&self) -> impl Iterator<Item = &crate::sealed::Sealed> {
        let own = [&self.root_key, &self.worker_secret, &self.manager_secret, &self.unlock_key];
        own.into_iter().flatten().chain(self.next.as_ref().map(|next| &next.key))
    }
}

/// What is kept of a join secret once it admits nobody: enough to recognise a proof made with it,
/// so that whoever brings an old token is told that it is old. The secret does not follow from it.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FormerSecret {
    /// What it made of those who joined with it.
    #[n(0)]
    pub role: Role,
    /// Checks proofs made with the secret.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub verifier: [u8; 32],
}

impl fmt::Debug for FormerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FormerSecret({:?})", self.role)
    }
}

/// A root that takes over from the one before.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NextRoot {
    /// Its certificate in PEM, signed by itself.
    #[n(0)]
    pub pem: String,
    /// The same key and subject signed by the old root, in PEM: sent along with leaves of the new
    /// root, so that nodes which know only the old one accept them.
    #[n(1)]
    pub cross_pem: String,
    /// DER of its subject.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub subject: Vec<u8>,
    /// DER of its public key.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub public_key: Vec<u8>,
    /// Its private key, sealed with the ring.
    #[n(4)]
    pub key: crate::sealed::Sealed,
    /// Nodes that use certificates of it already.
    #[n(5)]
    pub moved: BTreeSet<NodeId>,
}

/// The swarm.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Cluster {
    /// Id.
    #[n(0)]
    pub id: ClusterId,
    /// Version counter and stamps.
    #[n(1)]
    pub meta: Meta,
    /// What the user said.
    #[n(2)]
    pub spec: ClusterSpec,
    /// Ring of secret keys.
    #[n(3)]
    pub ring: Ring,
    /// Certificates and join secrets.
    #[n(4)]
    pub trust: Trust,
    /// Raised by `--force-new-cluster` and restore; peers of another one are refused.
    #[n(5)]
    pub incarnation: u64,
    /// Random half of the incarnation.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub incarnation_id: [u8; 16],
    /// Every Raft id there ever was: none is used again.
    #[n(7)]
    pub raft_ids: BTreeSet<u64>,
    /// Managers of earlier incarnations that this one went on without, the latest last; at most
    /// [`limits::CUT_OFF`].
    #[n(8)]
    pub cut_off: Vec<NodeId>,
}
