//! Peers as openraft reaches them: openraft's calls become messages for a `Transport`.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use skep_core::codec;
use tokio::time::timeout;

use crate::check::Check;
use crate::digest::Digests;
use crate::limits::{APPEND_WAIT, SNAPSHOT_PART_BYTES, SNAPSHOT_PART_WAIT};
use crate::message::{Append, Campaign, Reply, Request, SnapshotPart, Transfer};
use crate::snapshot::{Image, Records, SnapshotError, SnapshotFile};
use crate::types::{Covered, LogId, Opaque, Snapshot, TypeConfig, Vote};

/// Another manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its Raft id.
    pub raft_id: u64,
    /// Its address with port: a hint, it is known by its key.
    pub addr: String,
}

/// What a call to a peer ends in when it does not end in an answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer cannot be reached; trying again at once is of no use.
    #[error("manager {:x} at {} is out of reach", peer.raft_id, peer.addr)]
    Unreachable {
        /// Which.
        peer: Peer,
        /// Why.
        source: io::Error,
    },
    /// The request or its answer was lost on the way.
    #[error("the connection to manager {:x} at {} broke", peer.raft_id, peer.addr)]
    Broken {
        /// Which.
        peer: Peer,
        /// Why.
        source: io::Error,
    },
}

/// A pending call.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, TransportError>> + Send + 'a>>;

/// Carries requests to peers and brings back what their `Raft::answer` returned. Callers bound
/// the time.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Sends one request.
    fn call(&self, peer: Peer, request: Vec<u8>) -> Answer<'_>;
}

/// No peer is reachable: all that a swarm of one manager needs.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Transport for Alone {
    fn call(&self, peer: Peer, _request: Vec<u8>) -> Answer<'_> {
        let source = io::ErrorKind::NotConnected.into();
        Box::pin(async { Err(TransportError::Unreachable { peer, source }) })
    }
}

/// Where the peers are by now. openraft keeps a client for as long as its peer takes part, also
/// when it moves.
pub(crate) type Addrs = Arc<Mutex<BTreeMap<u64, String>>>;

/// Makes a client for each peer.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) addrs: Addrs,
    pub(crate) digests: Arc<Digests>,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Client {
    transport: Arc<dyn Transport>,
    addrs: Addrs,
    digests: Arc<Digests>,
    first: Peer,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        let first = Peer { raft_id: target, addr: node.addr.clone() };
        let (transport, addrs) = (Arc::clone(&self.transport), Arc::clone(&self.addrs));
        Client { transport, addrs, digests: Arc::clone(&self.digests), first }
    }
}

/// Why there is no reply, as openraft tells it apart.
enum CallError {
    Unreachable(Unreachable<TypeConfig>),
    Network(NetworkError<TypeConfig>),
}

impl From<CallError> for RPCError<TypeConfig> {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Unreachable(e) => e.into(),
            CallError::Network(e) => e.into(),
        }
    }
}

impl From<CallError> for StreamingError<TypeConfig> {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Unreachable(e) => e.into(),
            CallError::Network(e) => e.into(),
        }
    }
}

impl Client {
    fn peer(&self) -> Peer {
        let addrs = self.addrs.lock().unwrap_or_else(PoisonError::into_inner);
        let addr = addrs.get(&self.first.raft_id).unwrap_or(&self.first.addr);
        Peer { raft_id: self.first.raft_id, addr: addr.clone() }
    }

    async fn call<T>(
        &self,
        request: &Request,
        wait: Duration,
        read: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, CallError> {
        self.send(codec::encode(request), wait, read).await
    }

    /// Sends a request that is encoded already.
    async fn send<T>(
        &self,
        request: Vec<u8>,
        wait: Duration,
        read: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, CallError> {
        let peer = self.peer();
        let name = format!("manager {:x} at {}", peer.raft_id, peer.addr);
        let call = self.transport.call(peer, request);
        let broken =
            |what: &str| CallError::Network(NetworkError::from_string(format!("{name}: {what}")));
        let answer = match timeout(wait, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e @ TransportError::Unreachable { .. })) => {
                return Err(CallError::Unreachable(Unreachable::new(&e)));
            }
            Ok(Err(e)) => return Err(CallError::Network(NetworkError::new(&e))),
            Err(_) => return Err(broken(&format!("no answer within {wait:?}"))),
        };
        let reply: Reply = codec::decode(&answer).map_err(|e| broken(&e.to_string()))?;
        reply.check().map_err(|e| broken(&e.to_string()))?;
        if reply == Reply::NoSpace {
            // As if it were not there: openraft then waits before it tries again.
            let full =
                io::Error::other(format!("{name} takes no entries: its disk is nearly full"));
            return Err(CallError::Unreachable(Unreachable::new(&full)));
        }
        read(reply).ok_or_else(|| broken("an answer to another question"))
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Image;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut append = Append::from(&rpc);
        append.digest = if append.entries.is_empty() { self.digests.latest() } else { None };
        let request = codec::encode(&Request::Append(append));
        // Longer than openraft's own bound, a heartbeat: a peer may have to write much. To
        // heartbeats openraft holds by itself.
        let mib = u32::try_from(request.len() >> 20).unwrap_or(u32::MAX);
        let wait = APPEND_WAIT.saturating_mul(mib.saturating_add(1));
        let prev = rpc.prev_log_id;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(prev);
        let appended = |reply: Reply| {
            // What openraft takes for granted of an answer.
            let possible = match &reply {
                Reply::Conflict => prev.is_some(),
                Reply::AppendedUpTo(at) => {
                    let at = at.map(LogId::from);
                    prev <= at && at <= last
                }
                _ => true,
            };
            if possible { reply.appended() } else { None }
        };
        Ok(self.send(request, wait, appended).await?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = Request::Vote(Campaign::from(&rpc));
        Ok(self.call(&request, option.soft_ttl(), Reply::voted).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = Request::PreVote(Campaign::from(&rpc));
        Ok(self.call(&request, option.soft_ttl(), Reply::voted).await?)
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = Request::Transfer(Transfer::from(&req));
        Ok(self.call(&request, option.soft_ttl(), Reply::transferred).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }
}

impl Client {
    /// Sends the records part by part, each after the answer to the one before.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let covered = Covered::from(&snapshot.meta);
        let failed = |text: String| CallError::Network(NetworkError::from_string(text));
        let mut reader = Reader::Closed(snapshot.snapshot);
        for number in 0.. {
            let read = tokio::task::spawn_blocking(move || reader.part());
            let read = read.await.map_err(|e| failed(e.to_string()))?;
            let (records, part, last) = read.map_err(|e| failed(e.to_io().to_string()))?;
            reader = Reader::Open(records);
            let request = Request::Snapshot(SnapshotPart {
                vote: (&vote).into(),
                covered: covered.clone(),
                number,
                records: part,
                last,
            });
            match self.call(&request, SNAPSHOT_PART_WAIT, Some).await? {
                Reply::NextPart if !last => {}
                Reply::Snapshot(vote) => return Ok(SnapshotResponse::new(vote.into())),
                _ => break,
            }
        }
        Err(failed("the snapshot was not taken to its end".into()).into())
    }
}

/// A snapshot being read for a peer.
enum Reader {
    Closed(Image),
    Open(Records<Arc<SnapshotFile>>),
}

/// The reader again, some records, and whether they are the last.
type Part = (Records<Arc<SnapshotFile>>, Vec<Opaque>, bool);

impl Reader {
    fn part(self) -> Result<Part, SnapshotError> {
        let mut records = match self {
            Self::Closed(file) => Records::of(file)?,
            Self::Open(records) => records,
        };
        let mut part = Vec::new();
        let mut bytes = 0;
        while bytes < SNAPSHOT_PART_BYTES {
            let Some(record) = records.next()? else { return Ok((records, part, true)) };
            bytes += record.len();
            part.push(Opaque(record));
        }
        Ok((records, part, false))
    }
}
