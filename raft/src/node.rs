//! This node's part in Raft, as the daemon uses it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, LinearizableReadError, RaftError};
use openraft::{BasicNode, Instant as _, ReadPolicy, ServerState, SnapshotPolicy};
use skep_core::codec;
use skep_core::command::{Command, Outcome, Proposal};
use skep_core::format::admit;
use skep_core::id::RequestId;
use skep_core::state::State;
use skep_core::time::Stamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::StorageKey;
use crate::answer::{self, AnswerError, Incoming};
use crate::api::{
    Clock, Config, FatalHook, Leadership, Metrics, ProposeError, ReadError, StartError,
};
use crate::disk::{Disk, RealDisk};
use crate::keeper;
use crate::limits::{
    ELECT_WAIT, ELECTION_MAX, ELECTION_MIN, HEARTBEAT, KEPT_ENTRIES, PENDING_BYTES, PROPOSAL_BYTES,
    PROPOSE_WAIT, QUORUM_CHECK, QUORUM_LAPSE, READ_WAIT, RESERVED_BYTES, SHUTDOWN_WAIT,
    SPACE_CHECK,
};
use crate::log::{Log, LogSize, lock};
use crate::machine::{self, Machine, Shared, Subscription};
use crate::network::{Addrs, Alone, Network, Transport};
use crate::snapshot::Snapshots;
use crate::store::{self, LogStore};
use crate::types::{OpenRaft, Payload};

/// The running node. Clones are handles to the same node.
#[derive(Clone)]
pub struct Raft(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) raft: OpenRaft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: LogStore,
    pub(crate) size: Arc<LogSize>,
    pub(crate) clock: Clock,
    incoming: Incoming,
    on_fatal: FatalHook,
    pub(crate) raft_id: u64,
    addr: String,
    leadership: watch::Receiver<Leadership>,
    /// Held while this node changes the members.
    pub(crate) changing: Arc<tokio::sync::Mutex<()>>,
    /// Bytes of proposals that may still be taken.
    room: Semaphore,
    /// The latest stamp proposed here.
    last_stamp: AtomicU64,
    space: Space,
    stopping: Arc<AtomicBool>,
    /// Ends the keeper.
    stop: watch::Sender<bool>,
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raft({:x})", self.0.raft_id)
    }
}

impl Raft {
    /// Reads log and snapshot and takes part. A sole voter leads, and has applied all it ever
    /// acknowledged, when this returns.
    ///
    /// # Errors
    /// If log or snapshot cannot be read, or the disk refuses.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_among(config, clock, Arc::new(Alone)).await
    }

    /// The same for one manager of many, which reaches the others through `transport`.
    ///
    /// # Errors
    /// If log or snapshot cannot be read, or the disk refuses.
    pub async fn start_among(
        config: Config,
        clock: Clock,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let open = |name: &str| {
            let dir = config.dir.join(name);
            match RealDisk::open(&dir) {
                Ok(disk) => Ok(Arc::new(disk) as Arc<dyn Disk>),
                Err(source) => Err(StartError::Dir { dir, source }),
            }
        };
        let disks = Disks { log: open("log")?, snapshots: open("snapshots")? };
        Self::start_on(disks, config, clock, transport).await
    }

    pub(crate) async fn start_on(
        disks: Disks,
        config: Config,
        clock: Clock,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let key = Arc::new(config.storage_key);
        let log_disk = Arc::clone(&disks.log);
        let log = Log::open(disks.log, Arc::clone(&key))?;
        let snapshots = Snapshots::new(disks.snapshots, key).reading(config.format);
        let shared = Arc::new(Shared::new(snapshots, config.on_fatal.clone())?);
        let (index, size) = (log.index(), log.size());
        let hook = config.on_fatal.clone();
        let store = store::start(log, move |e| hook.call(&e.to_io().to_string()))
            .map_err(|source| StartError::Dir { dir: config.dir, source })?;

        let space = Space::new(log_disk, Arc::clone(&shared));
        let machine = Machine(Arc::clone(&shared));
        let settings = settings().map_err(|e| StartError::Raft(e.to_string()))?;
        let addrs = Addrs::default();
        let network =
            Network { transport, addrs: Arc::clone(&addrs), digests: Arc::clone(shared.digests()) };
        let settings = Arc::new(settings);
        let raft = OpenRaft::new(config.raft_id, settings, network, store.clone(), machine)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        if lock(&index).purged() == shared.covered() {
            shared.purged();
        }
        let id = config.raft_id;
        let sole = raft
            .with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([id]))
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;

        let stopping = Arc::new(AtomicBool::new(false));
        let leadership =
            watch_leadership(&raft, addrs, Arc::clone(&stopping), config.on_fatal.clone());
        let node = Self(Arc::new(Inner {
            raft,
            shared,
            store,
            size,
            clock,
            incoming: Incoming::up_to(config.format),
            on_fatal: config.on_fatal,
            raft_id: config.raft_id,
            addr: config.addr,
            leadership,
            changing: Arc::default(),
            room: Semaphore::new(PENDING_BYTES),
            last_stamp: AtomicU64::new(0),
            space,
            stopping,
            stop: watch::Sender::new(false),
        }));
        if sole {
            let elected = node.0.raft.trigger().elect(false).await;
            elected.map_err(|e| StartError::Raft(e.to_string()))?;
            node.lead().await?;
        }
        keeper::start(&node.0, node.0.stop.subscribe());
        Ok(node)
    }

    /// Makes this node the sole voter of a new swarm. It leads when this returns.
    ///
    /// # Errors
    /// If the log is not empty, or the disk refuses.
    pub async fn initialize(&self) -> Result<(), StartError> {
        let me = BTreeMap::from([(self.0.raft_id, BasicNode { addr: self.0.addr.clone() })]);
        match self.0.raft.initialize(me).await {
            Ok(()) => self.lead().await,
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                Err(StartError::Initialized)
            }
            Err(e) => Err(StartError::Raft(e.to_string())),
        }
    }

    /// Waits until this node leads and has applied what was committed before.
    async fn lead(&self) -> Result<(), StartError> {
        let mut leadership = self.leadership();
        let wait = async {
            let leads = leadership.wait_for(|leadership| leadership.here).await.is_ok();
            leads && self.read_index().await.is_ok()
        };
        match timeout(ELECT_WAIT, wait).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StartError::Raft("raft stopped".into())),
            Err(_) => Err(StartError::NoLeader(ELECT_WAIT)),
        }
    }

    /// Proposes a command and waits until it is applied here. A request that was proposed
    /// before gets its first outcome.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(
        &self,
        request: RequestId,
        command: Command,
    ) -> Result<Outcome, ProposeError> {
        let inner = &*self.0;
        if inner.stopping.load(Ordering::Acquire) {
            return Err(ProposeError::Shutdown);
        }
        let leadership = *inner.leadership.borrow();
        if !leadership.here {
            return Err(ProposeError::NotLeader { leader: leadership.leader });
        }
        inner.shared.view(|state| admit(state, &command))?;
        if inner.space.is_short() {
            return Err(ProposeError::NoSpace);
        }
        let proposal = Proposal::new(request, inner.stamp(), command);
        let bytes = codec::encode(&proposal);
        drop(proposal);
        let size = bytes.len();
        if size > PROPOSAL_BYTES {
            return Err(ProposeError::TooLarge { bytes: size });
        }
        let permits = u32::try_from(size).unwrap_or(u32::MAX);
        let _room = match timeout(PROPOSE_WAIT, inner.room.acquire_many(permits)).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(ProposeError::Shutdown),
            Err(_) => return Err(ProposeError::Busy),
        };
        let write = inner.raft.client_write(Payload(bytes.into()));
        match timeout(PROPOSE_WAIT, write).await {
            Ok(Ok(written)) => written.data.ok_or(ProposeError::Unknown),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(ProposeError::NotLeader { leader: to.leader_id })
            }
            Ok(Err(RaftError::APIError(_) | RaftError::Fatal(_))) | Err(_) => {
                Err(ProposeError::Unknown)
            }
        }
    }

    /// Looks at the state as it is applied here. Applying waits while `look` runs: take out
    /// what you need and return.
    pub fn view<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        self.0.shared.view(look)
    }

    /// Waits until what is applied here includes everything acknowledged before the call, so
    /// that a `view` after it is linearizable. Returns the index. Only the leader can tell.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let inner = &*self.0;
        let read = async {
            let at =
                inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(
                    |e| match e {
                        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
                            ReadError::NotLeader { leader: to.leader_id }
                        }
                        RaftError::APIError(_) => ReadError::Timeout,
                        RaftError::Fatal(_) => ReadError::Shutdown,
                    },
                )?;
            Ok(at.index())
        };
        timeout(READ_WAIT, read).await.unwrap_or(Err(ReadError::Timeout))
    }

    /// Hears of every change from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.0.shared.subscribe()
    }

    /// The index of the last entry applied here, and when it moves.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.0.shared.applied()
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.0.leadership.borrow().here
    }

    /// Who leads, and when that changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// Whether this node ever was part of a swarm.
    ///
    /// # Errors
    /// If this node is stopping.
    pub async fn is_initialized(&self) -> Result<bool, ReadError> {
        self.0.raft.is_initialized().await.map_err(|_| ReadError::Shutdown)
    }

    /// Answers a request that the manager with Raft id `from` sent through its transport.
    ///
    /// # Errors
    /// See [`AnswerError`]; the transport then breaks the stream.
    pub async fn answer(&self, from: u64, request: &[u8]) -> Result<Vec<u8>, AnswerError> {
        let Inner { raft, shared, incoming, space, .. } = &*self.0;
        let answer = answer::answer(raft, shared, incoming, || space.is_short(), from, request);
        let answer = answer.await;
        if let Err(e @ AnswerError::Newer(_)) = &answer {
            self.0.on_fatal.call(&e.to_string());
        }
        answer
    }

    /// Figures of the log.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.0.metrics()
    }

    /// Writes a snapshot of what is applied now and purges the log up to it.
    ///
    /// # Errors
    /// If it cannot be written in time; the text says why.
    pub async fn snapshot_now(&self) -> Result<(), io::Error> {
        keeper::snapshot(&self.0, true).await
    }

    /// Has deleted payloads and retired ring keys purged at once instead of by their deadline.
    /// Returns before that is done: [`Raft::oldest_key`] tells.
    pub fn purge_soon(&self) {
        self.0.shared.purge_soon();
    }

    /// The oldest key of the swarm's ring that log and snapshot of this node may hold, sealed to
    /// some manager; none as long as nothing was purged since the start.
    #[must_use]
    pub fn oldest_key(&self) -> Option<u64> {
        self.0.shared.oldest_key()
    }

    /// Writes log and snapshot anew under another storage key; when this returns no file is sealed
    /// with the one before. Store the new key before: if this node stops meanwhile, files may be
    /// sealed with either until `rekey_offline` has ended it.
    ///
    /// # Errors
    /// If the disk refuses, or this node is stopping. Files may then be sealed with either key.
    pub async fn rekey(&self, new: StorageKey) -> Result<(), io::Error> {
        let new = Arc::new(new);
        machine::rekey(&self.0.shared, Arc::clone(&new)).await?;
        self.0.store.rekey(new).await
    }

    /// Stops taking part: what was acknowledged is on disk. Proposals fail from now on.
    pub async fn shutdown(&self) {
        let inner = &*self.0;
        if inner.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        inner.stop.send_replace(true);
        inner.room.close();
        if timeout(SHUTDOWN_WAIT, inner.raft.shutdown()).await.is_err() {
            tracing::warn!("raft does not stop within {SHUTDOWN_WAIT:?}");
        }
        match timeout(SHUTDOWN_WAIT, inner.store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("closing the raft log: {e}"),
            Err(_) => tracing::warn!("the raft log does not close within {SHUTDOWN_WAIT:?}"),
        }
    }
}

impl Inner {
    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Metrics {
            log_bytes: self.size.bytes.load(Ordering::Relaxed),
            log_segments: self.size.segments.load(Ordering::Relaxed),
            last_index: metrics.last_log_index,
            applied_index: metrics.last_applied.as_ref().map(|id| id.index),
            snapshot_index: metrics.snapshot.as_ref().map(|id| id.index),
            purged_index: metrics.purged.as_ref().map(|id| id.index),
        }
    }

    /// Whether this node alone is the quorum.
    pub(crate) fn is_sole_voter(&self) -> bool {
        self.raft.voter_ids().eq([self.raft_id])
    }

    /// The clock, but never behind what was applied or proposed.
    fn stamp(&self) -> Stamp {
        let applied = self.shared.view(State::last_stamp);
        let now = (self.clock)().max(applied).0;
        Stamp(self.last_stamp.fetch_max(now, Ordering::AcqRel).max(now))
    }
}

/// Where the log and the snapshots are kept.
#[derive(Debug, Clone)]
pub(crate) struct Disks {
    pub(crate) log: Arc<dyn Disk>,
    pub(crate) snapshots: Arc<dyn Disk>,
}

/// Knows whether the disk is nearly full, and asks it only now and then.
#[derive(Debug)]
struct Space {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Space {
    fn new(disk: Arc<dyn Disk>, shared: Arc<Shared>) -> Self {
        Self { disk, shared, last: Mutex::new(None) }
    }

    fn is_short(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, short)) if at.elapsed() < SPACE_CHECK => short,
            _ => {
                let reserved = RESERVED_BYTES + self.shared.snapshot_bytes();
                let short = self.disk.space_left().is_ok_and(|left| left < reserved);
                *last = Some((Instant::now(), short));
                short
            }
        }
    }
}

fn settings() -> Result<openraft::Config, openraft::ConfigError> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "skep".into(),
        heartbeat_interval: ms(HEARTBEAT),
        election_timeout_min: ms(ELECTION_MIN),
        election_timeout_max: ms(ELECTION_MAX),
        enable_pre_vote: Some(true),
        // A peer that lost what it had is sent all of it again: no peer shall end this node.
        allow_log_reversion: Some(true),
        reset_backoff_on_transfer_leader: Some(true),
        // The log knows what is committed only as of the batch before; a new term's first
        // entry commits the rest, before anything is read.
        enable_leader_restore: Some(false),
        // The keeper decides when: it also knows bytes and deadlines.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        ..openraft::Config::default()
    }
    .validate()
}

/// Follows openraft's own view of who leads, and calls the hook if openraft stops by itself.
fn watch_leadership(
    raft: &OpenRaft,
    addrs: Addrs,
    stopping: Arc<AtomicBool>,
    on_fatal: FatalHook,
) -> watch::Receiver<Leadership> {
    let raft = raft.clone();
    let (known, leadership) = watch::channel(Leadership::default());
    tokio::spawn(async move {
        let mut metrics = raft.server_metrics();
        loop {
            let (now, members, voters) = {
                let metrics = metrics.borrow_and_update();
                let here = metrics.state == ServerState::Leader;
                let (term, leader) = (metrics.vote.leader_id.term, metrics.current_leader);
                let membership = metrics.membership_config.membership();
                let nodes = membership.nodes().map(|(id, node)| (*id, node.addr.clone()));
                *addrs.lock().unwrap_or_else(PoisonError::into_inner) = nodes.collect();
                let voters = membership.voter_ids().count();
                (Leadership { term, leader, here }, membership.nodes().count(), voters)
            };
            // A leader without followers has nobody to beat its heart for.
            raft.runtime_config().tick(!now.here || members > 1);
            // One cut off from the others may be replaced already and would not know.
            let among = now.here && voters > 1;
            let now = match among && is_forgotten(&raft) {
                true => Leadership { leader: None, here: false, ..now },
                false => now,
            };
            known.send_if_modified(|was| std::mem::replace(was, now) != now);
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(QUORUM_CHECK), if among => {}
            }
        }
        known.send_modify(|last| *last = Leadership { leader: None, here: false, ..*last });
        let stopped = raft.metrics().borrow_watched().running_state.clone();
        if let (Err(e), false) = (stopped, stopping.load(Ordering::Acquire)) {
            on_fatal.call(&format!("raft stopped: {e}"));
        }
    });
    leadership
}

/// Whether this leader has not heard of a quorum for long.
fn is_forgotten(raft: &OpenRaft) -> bool {
    let heard = raft.metrics().borrow_watched().last_quorum_acked;
    heard.is_some_and(|at| at.elapsed() > QUORUM_LAPSE)
}
