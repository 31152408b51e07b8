//! The one place that names openraft's generics, and the mapping of its values to what is
//! written to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use minicbor::{Decode, Encode};
use openraft::type_config::alias;
use openraft::vote::leader_id_std;
use skep_core::command::Outcome;

use crate::check::{bounded, bounded_map};
use crate::limits::MEMBERS;

/// An encoded proposal, shared by everything that holds the entry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Arc<[u8]>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Bytes in a message, of which no more is ever printed than their number.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub(crate) struct Opaque(#[cbor(n(0), with = "minicbor::bytes")] pub(crate) Vec<u8>);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opaque({} bytes)", self.0.len())
    }
}

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = Payload,
        R = Option<Outcome>,
        NodeId = u64,
        Node = openraft::BasicNode,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type EntryPayload = alias::EntryPayloadOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, openraft::BasicNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, crate::snapshot::Image>;
pub(crate) type OpenRaft = openraft::Raft<TypeConfig, crate::machine::Machine>;

/// A place in the log: which leader's term, which index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Position {
    #[n(0)]
    pub(crate) term: u64,
    #[n(1)]
    pub(crate) index: u64,
}

impl From<&LogId> for Position {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<Position> for LogId {
    fn from(at: Position) -> Self {
        Self::new(leader_id_std::CommittedLeaderId::new(at.term), at.index)
    }
}

/// A vote as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct VoteRecord {
    #[n(0)]
    pub(crate) term: u64,
    #[n(1)]
    pub(crate) node: u64,
    #[n(2)]
    pub(crate) committed: bool,
}

impl From<&Vote> for VoteRecord {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.voted_for,
            committed: vote.committed,
        }
    }
}

impl From<VoteRecord> for Vote {
    fn from(vote: VoteRecord) -> Self {
        let leader_id = leader_id_std::LeaderId { term: vote.term, voted_for: vote.node };
        Self { leader_id, committed: vote.committed }
    }
}

/// A membership as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Members {
    /// Voters, one set for each half of a joint configuration.
    #[cbor(n(0), decode_with = "bounded::<_, _, 2>")]
    pub(crate) voters: Vec<VoterSet>,
    /// Addresses of voters and learners by Raft id.
    #[cbor(n(1), decode_with = "bounded_map")]
    pub(crate) nodes: BTreeMap<u64, String>,
}

/// A set of Raft ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub(crate) struct VoterSet(
    #[cbor(n(0), decode_with = "bounded::<_, _, MEMBERS>")] pub(crate) Vec<u64>,
);

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Self {
        let sets = membership.get_joint_config().iter();
        Self {
            voters: sets.map(|set| VoterSet(set.iter().copied().collect())).collect(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

/// A written membership that names a voter without a node, or an empty set of voters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("membership names voters that it does not describe")]
pub(crate) struct MembersError;

impl TryFrom<Members> for Membership {
    type Error = MembersError;

    fn try_from(members: Members) -> Result<Self, MembersError> {
        let voters: Vec<BTreeSet<u64>> =
            members.voters.into_iter().map(|set| set.0.into_iter().collect()).collect();
        let nodes: BTreeMap<u64, openraft::BasicNode> = members
            .nodes
            .into_iter()
            .map(|(id, addr)| (id, openraft::BasicNode { addr }))
            .collect();
        Self::new(voters, nodes).map_err(|_| MembersError)
    }
}

/// What a snapshot covers, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Covered {
    /// Last entry in the snapshot.
    #[n(0)]
    pub(crate) last: Option<Position>,
    /// Entry that set the membership.
    #[n(1)]
    pub(crate) members_at: Option<Position>,
    /// The membership.
    #[n(2)]
    pub(crate) members: Members,
}

impl From<&SnapshotMeta> for Covered {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.as_ref().map(Position::from),
            members_at: meta.last_membership.log_id().as_ref().map(Position::from),
            members: Members::from(meta.last_membership.membership()),
        }
    }
}

impl TryFrom<Covered> for SnapshotMeta {
    type Error = MembersError;

    fn try_from(covered: Covered) -> Result<Self, MembersError> {
        let membership = Membership::try_from(covered.members)?;
        Ok(Self {
            last_log_id: covered.last.map(LogId::from),
            last_membership: StoredMembership::new(covered.members_at.map(LogId::from), membership),
        })
    }
}
