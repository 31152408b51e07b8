//! What managers say to one another about Raft.
//!
//! These are skep's own messages. openraft's structs are mapped to them and back, here and
//! nowhere else, so that its next version does not change what is on the wire.

use std::sync::Arc;

use minicbor::{Decode, Encode};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::check::{ENTRIES, bounded};
use crate::digest::StateDigest;
use crate::limits::PART_RECORDS;
use crate::types::{
    Covered, Entry, EntryPayload, LogId, Members, MembersError, Membership, Opaque, Payload,
    Position, TypeConfig, Vote, VoteRecord,
};

/// A request. All but the parts of a snapshot fit in one message and its reply.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Request {
    #[n(0)]
    Append(#[n(0)] Append),
    #[n(1)]
    Vote(#[n(0)] Campaign),
    #[n(2)]
    PreVote(#[n(0)] Campaign),
    #[n(3)]
    Transfer(#[n(0)] Transfer),
    #[n(4)]
    Snapshot(#[n(0)] SnapshotPart),
}

impl Request {
    /// The node in whose name this is said.
    pub(crate) fn speaker(&self) -> u64 {
        match self {
            Self::Append(append) => append.vote.node,
            Self::Vote(campaign) | Self::PreVote(campaign) => campaign.vote.node,
            Self::Transfer(transfer) => transfer.leader.node,
            Self::Snapshot(part) => part.vote.node,
        }
    }
}

/// A leader's entries, or its heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Append {
    #[n(0)]
    pub(crate) vote: VoteRecord,
    /// The entry before `entries`.
    #[n(1)]
    pub(crate) previous: Option<Position>,
    #[cbor(n(2), decode_with = "bounded::<_, _, ENTRIES>")]
    pub(crate) entries: Vec<Line>,
    #[n(3)]
    pub(crate) committed: Option<Position>,
    /// In heartbeats, the last digest of the leader's state.
    #[n(4)]
    pub(crate) digest: Option<StateDigest>,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Line {
    #[n(0)]
    pub(crate) at: Position,
    #[n(1)]
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Content {
    #[n(0)]
    Blank,
    #[n(1)]
    Normal(#[n(0)] Opaque),
    #[n(2)]
    Members(#[n(0)] Members),
}

/// A request for a vote.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Campaign {
    #[n(0)]
    pub(crate) vote: VoteRecord,
    #[n(1)]
    pub(crate) last: Option<Position>,
    /// The leader asked for this election.
    #[n(2)]
    pub(crate) transfer: bool,
}

/// A leader that hands over.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Transfer {
    #[n(0)]
    pub(crate) leader: VoteRecord,
    #[n(1)]
    pub(crate) to: u64,
    #[n(2)]
    pub(crate) last: Option<Position>,
}

/// Some records of a snapshot, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct SnapshotPart {
    #[n(0)]
    pub(crate) vote: VoteRecord,
    #[n(1)]
    pub(crate) covered: Covered,
    /// 0 for the first part; it ends whatever was sent before.
    #[n(2)]
    pub(crate) number: u64,
    #[cbor(n(3), decode_with = "bounded::<_, _, PART_RECORDS>")]
    pub(crate) records: Vec<Opaque>,
    #[n(4)]
    pub(crate) last: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Reply {
    #[n(0)]
    Appended,
    #[n(1)]
    AppendedUpTo(#[n(0)] Option<Position>),
    #[n(2)]
    Conflict,
    #[n(3)]
    HigherVote(#[n(0)] VoteRecord),
    #[n(4)]
    Vote {
        #[n(0)]
        vote: VoteRecord,
        #[n(1)]
        granted: bool,
        #[n(2)]
        last: Option<Position>,
    },
    #[n(5)]
    Transferred,
    #[n(6)]
    VoteChanged {
        #[n(0)]
        expected: VoteRecord,
        #[n(1)]
        actual: VoteRecord,
    },
    #[n(7)]
    NotFlushed {
        #[n(0)]
        expected: Option<Position>,
        #[n(1)]
        actual: Option<Position>,
    },
    /// Send the next part.
    #[n(8)]
    NextPart,
    /// The snapshot is installed, or refused by a higher vote.
    #[n(9)]
    Snapshot(#[n(0)] VoteRecord),
    /// Parts are missing, or another snapshot came in between: begin again.
    #[n(10)]
    Begin,
    /// The disk is nearly full: no entries are taken.
    #[n(11)]
    NoSpace,
}

fn position(id: Option<&LogId>) -> Option<Position> {
    id.map(Position::from)
}

impl From<&Entry> for Line {
    fn from(entry: &Entry) -> Self {
        let content = match &entry.payload {
            EntryPayload::Blank => Content::Blank,
            EntryPayload::Normal(payload) => Content::Normal(Opaque(payload.0.to_vec())),
            EntryPayload::Membership(membership) => Content::Members(Members::from(membership)),
        };
        Self { at: Position::from(&entry.log_id), content }
    }
}

impl Line {
    fn entry(self) -> Result<Entry, MembersError> {
        let payload = match self.content {
            Content::Blank => EntryPayload::Blank,
            Content::Normal(bytes) => EntryPayload::Normal(Payload(Arc::from(bytes.0))),
            Content::Members(members) => EntryPayload::Membership(Membership::try_from(members)?),
        };
        Ok(Entry { log_id: LogId::from(self.at), payload })
    }
}

impl From<&AppendEntriesRequest<TypeConfig>> for Append {
    fn from(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: (&request.vote).into(),
            previous: position(request.prev_log_id.as_ref()),
            entries: request.entries.iter().map(Line::from).collect(),
            committed: position(request.leader_commit.as_ref()),
            digest: None,
        }
    }
}

impl Append {
    pub(crate) fn request(self) -> Result<AppendEntriesRequest<TypeConfig>, MembersError> {
        Ok(AppendEntriesRequest {
            vote: self.vote.into(),
            prev_log_id: self.previous.map(LogId::from),
            entries: self.entries.into_iter().map(Line::entry).collect::<Result<_, _>>()?,
            leader_commit: self.committed.map(LogId::from),
        })
    }
}

impl From<AppendEntriesResponse<TypeConfig>> for Reply {
    fn from(response: AppendEntriesResponse<TypeConfig>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Appended,
            AppendEntriesResponse::PartialSuccess(at) => Self::AppendedUpTo(position(at.as_ref())),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote((&vote).into()),
        }
    }
}

impl Reply {
    /// As the answer to entries, if it is one.
    pub(crate) fn appended(self) -> Option<AppendEntriesResponse<TypeConfig>> {
        Some(match self {
            Self::Appended => AppendEntriesResponse::Success,
            Self::AppendedUpTo(at) => AppendEntriesResponse::PartialSuccess(at.map(LogId::from)),
            Self::Conflict => AppendEntriesResponse::Conflict,
            Self::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
            _ => return None,
        })
    }

    /// As the answer to a campaign, if it is one.
    pub(crate) fn voted(self) -> Option<VoteResponse<TypeConfig>> {
        let Self::Vote { vote, granted, last } = self else { return None };
        Some(VoteResponse {
            vote: vote.into(),
            vote_granted: granted,
            last_log_id: last.map(LogId::from),
        })
    }

    /// As the answer to a leader that hands over, if it is one.
    pub(crate) fn transferred(self) -> Option<TransferLeaderResponse<TypeConfig>> {
        Some(match self {
            Self::Transferred => Ok(()),
            Self::VoteChanged { expected, actual } => Err(TransferLeaderError::VoteChanged {
                expected: expected.into(),
                actual: actual.into(),
            }),
            Self::NotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(LogId::from),
                actual: actual.map(LogId::from),
            }),
            _ => return None,
        })
    }
}

impl From<&VoteRequest<TypeConfig>> for Campaign {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: (&request.vote).into(),
            last: position(request.last_log_id.as_ref()),
            transfer: request.leadership_transfer,
        }
    }
}

impl Campaign {
    pub(crate) fn request(self) -> VoteRequest<TypeConfig> {
        VoteRequest {
            vote: self.vote.into(),
            last_log_id: self.last.map(LogId::from),
            leadership_transfer: self.transfer,
        }
    }
}

impl From<VoteResponse<TypeConfig>> for Reply {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        Self::Vote {
            vote: (&response.vote).into(),
            granted: response.vote_granted,
            last: position(response.last_log_id.as_ref()),
        }
    }
}

impl From<&TransferLeaderRequest<TypeConfig>> for Transfer {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            leader: request.from_leader().into(),
            to: *request.to_node_id(),
            last: position(request.last_log_id()),
        }
    }
}

impl Transfer {
    pub(crate) fn request(self) -> TransferLeaderRequest<TypeConfig> {
        let leader: Vote = self.leader.into();
        TransferLeaderRequest::new(leader, self.to, self.last.map(LogId::from))
    }
}

impl From<TransferLeaderResponse<TypeConfig>> for Reply {
    fn from(response: TransferLeaderResponse<TypeConfig>) -> Self {
        match response {
            Ok(()) => Self::Transferred,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Self::VoteChanged { expected: (&expected).into(), actual: (&actual).into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Self::NotFlushed {
                expected: position(expected.as_ref()),
                actual: position(actual.as_ref()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_core::codec;

    use super::*;
    use crate::record::Write;

    fn append() -> Append {
        let payload = Payload(Arc::from(&b"canary-payload"[..]));
        let nodes = [(1, openraft::BasicNode::new("a:1")), (2, openraft::BasicNode::new("b:2"))];
        let membership =
            Membership::new(vec![[1].into()], std::collections::BTreeMap::from(nodes)).unwrap();
        let contents = [
            EntryPayload::Blank,
            EntryPayload::Normal(payload),
            EntryPayload::Membership(membership),
        ];
        let entries = contents.into_iter().zip(5..);
        let entries = entries.map(|(payload, index)| {
            Line::from(&Entry { log_id: LogId::from(Position { term: 2, index }), payload })
        });
        Append {
            vote: VoteRecord { term: 2, node: 1, committed: true },
            previous: Some(Position { term: 1, index: 4 }),
            entries: entries.collect(),
            committed: None,
            digest: None,
        }
    }

    #[test]
    fn entries_come_through_unchanged() {
        let append = append();
        let bytes = codec::encode(&Request::Append(append.clone()));
        let Request::Append(read) = codec::decode(&bytes).unwrap() else { panic!() };
        assert_eq!(read, append);
        assert_eq!(Append::from(&read.request().unwrap()), append);
    }

    #[test]
    fn nothing_prints_a_payload() {
        let append = append();
        let mut printed = format!("{append:?}");
        let request = append.request().unwrap();
        printed += &format!("{request:?} {request}");
        for entry in request.entries {
            printed += &format!("{entry:?} {entry} {:?}", Write::Entry(entry.clone()));
        }
        assert!(!printed.contains("canary"), "{printed}");
        assert!(!printed.contains("99, 97, 110"), "{printed}");
    }
}
