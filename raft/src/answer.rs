//! What a peer asks of this node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use skep_core::codec;
use skep_core::snapshot::{ReadError, Reader};

use crate::check::Check;
use crate::limits::{PART_BYTES, REQUEST_BYTES, SNAPSHOT_BYTES, SNAPSHOT_PART_WAIT};
use crate::machine::{self, Shared};
use crate::message::{Reply, Request, SnapshotPart};
use crate::types::{Covered, OpenRaft, Snapshot, SnapshotMeta, TypeConfig, Vote, VoteRecord};

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
    /// The request is larger than any that a peer may send.
    #[error("a request of {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// The leader's state needs a newer version: this node must not go on.
    #[error("skep {version} cannot take the leader's state: {0}", version = env!("CARGO_PKG_VERSION"))]
    Newer(ReadError),
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

impl From<ReadError> for AnswerError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Newer { .. } => Self::Newer(e),
            ReadError::Malformed(_) => Self::Malformed(e.to_string()),
        }
    }
}

/// A snapshot on its way in. There is one at a time: there is one leader at a time.
#[derive(Debug)]
pub(crate) struct Incoming {
    partial: Mutex<Option<Partial>>,
    /// Newest format that is read.
    reads: u32,
}

#[derive(Debug)]
struct Partial {
    vote: VoteRecord,
    covered: Covered,
    next: u64,
    bytes: u64,
    /// When the last part came.
    at: Instant,
    reader: Reader,
}

/// Answers one request of the manager whose Raft id is `from`. Entries are refused if the disk
/// `is_short`.
pub(crate) async fn answer(
    raft: &OpenRaft,
    shared: &Arc<Shared>,
    incoming: &Incoming,
    is_short: impl FnOnce() -> bool,
    from: u64,
    request: &[u8],
) -> Result<Vec<u8>, AnswerError> {
    let malformed = |e: &dyn std::error::Error| AnswerError::Malformed(e.to_string());
    let (bytes, limit) = (request.len(), limit_of(request));
    if bytes > limit {
        return Err(AnswerError::TooLarge { bytes, limit });
    }
    let request: Request = codec::decode(request).map_err(|e| malformed(&e))?;
    request.check().map_err(|e| malformed(&e))?;
    let claimed = request.speaker();
    if claimed != from {
        return Err(AnswerError::Imposter { from, claimed });
    }
    let reply = match request {
        Request::Append(append) if !append.entries.is_empty() && is_short() => Reply::NoSpace,
        Request::Append(append) => {
            incoming.forget_stale();
            let digest = append.digest;
            let append = append.request().map_err(|e| malformed(&e))?;
            let reply = raft.append_entries(append).await?.into();
            if let (Some(digest), false) = (digest, matches!(reply, Reply::HigherVote(_))) {
                shared.digests().hear(digest);
            }
            reply
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

/// How large this request may be, by the kind that its first bytes say it is.
fn limit_of(request: &[u8]) -> usize {
    let mut decoder = minicbor::Decoder::new(request);
    let kind = decoder.array().and_then(|_| decoder.u32());
    if matches!(kind, Ok(4)) { PART_BYTES } else { REQUEST_BYTES }
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
    let own = raft.metrics().borrow_watched().vote;
    if Vote::from(vote) < own {
        // Nothing of a leader that is none any more reaches the disk.
        return Ok(Reply::Snapshot((&own).into()));
    }
    let reader = match incoming.push(part)? {
        Step::Whole(reader) => reader,
        Step::Answer(reply) => return Ok(reply),
    };
    let state = reader.finish()?;
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
    pub(crate) fn up_to(reads: u32) -> Self {
        Self { partial: Mutex::default(), reads }
    }

    /// Lets go of a snapshot of which no part came for long: its leader is gone.
    fn forget_stale(&self) {
        let mut slot = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|partial| partial.at.elapsed() > SNAPSHOT_PART_WAIT) {
            *slot = None;
        }
    }

    /// Takes a part in its turn.
    pub(crate) fn push(&self, part: SnapshotPart) -> Result<Step, AnswerError> {
        let mut slot = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut partial = match slot.take() {
            _ if part.number == 0 => Partial {
                vote: part.vote,
                covered: part.covered,
                next: 0,
                bytes: 0,
                at: Instant::now(),
                reader: Reader::up_to(self.reads),
            },
            Some(partial)
                if partial.vote == part.vote
                    && partial.next == part.number
                    && partial.covered == part.covered =>
            {
                partial
            }
            _ => return Ok(Step::Answer(Reply::Begin)),
        };
        if part.records.is_empty() && !part.last {
            return Err(AnswerError::Malformed("a part of a snapshot without records".into()));
        }
        let more = part.records.iter().map(|record| record.0.len() as u64 + 8).sum();
        partial.bytes = partial.bytes.saturating_add(more);
        if partial.bytes > SNAPSHOT_BYTES {
            let text = format!("a snapshot of more than {SNAPSHOT_BYTES} bytes");
            return Err(AnswerError::Malformed(text));
        }
        for record in &part.records {
            partial.reader.push(&record.0)?;
        }
        if part.last {
            return Ok(Step::Whole(Box::new(partial.reader)));
        }
        partial.next += 1;
        partial.at = Instant::now();
        *slot = Some(partial);
        Ok(Step::Answer(Reply::NextPart))
    }
}
