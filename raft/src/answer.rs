//! What a peer asks of this node.

use std::sync::{Arc, Mutex, PoisonError};

use openraft::errors::Fatal;
use skep_core::codec;
use skep_core::snapshot::Reader;

use crate::machine::{self, Shared};
use crate::message::{Reply, Request, SnapshotPart};
use crate::types::{OpenRaft, Snapshot, SnapshotMeta, TypeConfig, VoteRecord};

/// Why a request gets no answer. The transport breaks the stream.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The bytes are no request, or none that a peer may send; the text says why.
    #[error("a malformed request: {0}")]
    Malformed(String),
    /// The request speaks for another node than the one it comes from.
    #[error("manager {from:x} speaks for manager {claimed:x}")]
    Imposter {
        /// Raft id of the node it came from.
        from: u64,
        /// Raft id of the node it speaks for.
        claimed: u64,
    },
    /// A snapshot cannot be written here.
    #[error("the snapshot cannot be kept")]
    Disk(#[source] std::io::Error),
    /// This node is stopping.
    #[error("this node is stopping")]
    Stopped,
}

impl From<Fatal<TypeConfig>> for AnswerError {
    fn from(_: Fatal<TypeConfig>) -> Self {
        Self::Stopped
    }
}

impl<E: std::error::Error> From<openraft::errors::RaftError<TypeConfig, E>> for AnswerError {
    fn from(_: openraft::errors::RaftError<TypeConfig, E>) -> Self {
        Self::Stopped
    }
}

/// A snapshot on its way in. There is one at a time: there is one leader at a time.
#[derive(Debug, Default)]
pub(crate) struct Incoming(Mutex<Option<Partial>>);

#[derive(Debug)]
struct Partial {
    vote: VoteRecord,
    next: u64,
    reader: Reader,
}

/// Answers one request of the manager whose Raft id is `from`.
pub(crate) async fn answer(
    raft: &OpenRaft,
    shared: &Arc<Shared>,
    incoming: &Incoming,
    from: u64,
    request: &[u8],
) -> Result<Vec<u8>, AnswerError> {
    let malformed = |e: &dyn std::error::Error| AnswerError::Malformed(e.to_string());
    let request: Request = codec::decode(request).map_err(|e| malformed(&e))?;
    let claimed = request.speaker();
    if claimed != from {
        return Err(AnswerError::Imposter { from, claimed });
    }
    let reply = match request {
        Request::Append(append) => {
            let append = append.request().map_err(|e| malformed(&e))?;
            raft.append_entries(append).await?.into()
        }
        Request::Vote(campaign) => raft.vote(campaign.request()).await?.into(),
        Request::PreVote(campaign) => raft.pre_vote(campaign.request()).await?.into(),
        Request::Transfer(transfer) => {
            raft.handle_transfer_leader(transfer.request()).await?.into()
        }
        Request::Snapshot(part) => take(raft, shared, incoming, part).await?,
    };
    Ok(codec::encode(&reply))
}

async fn take(
    raft: &OpenRaft,
    shared: &Arc<Shared>,
    incoming: &Incoming,
    part: SnapshotPart,
) -> Result<Reply, AnswerError> {
    let meta = SnapshotMeta::try_from(part.covered.clone())
        .map_err(|e| AnswerError::Malformed(e.to_string()))?;
    let vote = part.vote;
    let reader = match incoming.push(part)? {
        Step::Whole(reader) => reader,
        Step::Answer(reply) => return Ok(reply),
    };
    let state = reader.finish().map_err(|e| AnswerError::Malformed(e.to_string()))?;
    let file = machine::keep(shared, state, meta).await.map_err(AnswerError::Disk)?;
    let snapshot = Snapshot { meta: file.meta.clone(), snapshot: file };
    let installed = raft.install_full_snapshot(vote.into(), snapshot).await?;
    Ok(Reply::Snapshot((&installed.vote).into()))
}

/// What a part leads to.
pub(crate) enum Step {
    Whole(Box<Reader>),
    Answer(Reply),
}

impl Incoming {
    /// Takes a part in its turn.
    pub(crate) fn push(&self, part: SnapshotPart) -> Result<Step, AnswerError> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut partial = match slot.take() {
            _ if part.number == 0 => {
                Partial { vote: part.vote, next: 0, reader: Reader::default() }
            }
            Some(partial) if partial.vote == part.vote && partial.next == part.number => partial,
            _ => return Ok(Step::Answer(Reply::Begin)),
        };
        for record in &part.records {
            partial.reader.push(&record.0).map_err(|e| AnswerError::Malformed(e.to_string()))?;
        }
        if part.last {
            return Ok(Step::Whole(Box::new(partial.reader)));
        }
        partial.next += 1;
        *slot = Some(partial);
        Ok(Step::Answer(Reply::NextPart))
    }
}
