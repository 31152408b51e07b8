//! The state machine: applies what is committed, tells subscribers what changed, and snapshots.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use skep_core::apply::{Change, apply};
use skep_core::command::{Outcome, Proposal};
use skep_core::format::read_entry;
use skep_core::state::State;
use skep_core::time::Stamp;
use tokio::sync::{Notify, broadcast, watch};

use crate::digest::{Digests, is_due};
use crate::limits::{APPLY_BATCH, CHANGE_QUEUE};
use crate::snapshot::{Image, SnapshotError, SnapshotFile, Snapshots};
use crate::types::{
    EntryPayload, LogId, Position, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
};
use crate::{FatalHook, StorageKey};

/// Changes that were applied together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Index of the last entry among them.
    pub index: u64,
    /// What was written or removed, in order. What became of it is in the state.
    pub changes: Vec<Change>,
}

/// What a subscriber hears.
#[derive(Debug, Clone)]
pub enum Event {
    /// Objects changed.
    Applied(Arc<Applied>),
    /// More changed than the queue holds, or a snapshot replaced the state: look at all of it.
    Rescan,
}

/// A bounded queue of changes.
#[derive(Debug)]
pub struct Subscription {
    events: broadcast::Receiver<Event>,
}

impl Subscription {
    /// Waits for the next event; `None` once the node has shut down. May be cancelled without
    /// losing an event.
    pub async fn next(&mut self) -> Option<Event> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Rescan),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The state and how far it is.
#[derive(Debug, Default)]
struct Held {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
}

/// What the node shares with the state machine that openraft owns.
#[derive(Debug)]
pub(crate) struct Shared {
    held: RwLock<Held>,
    current: Mutex<Current>,
    events: broadcast::Sender<Event>,
    applied: watch::Sender<Option<u64>>,
    snapshots: Snapshots,
    /// Held while a snapshot is written: from here or from a peer, one at a time.
    writing: Mutex<()>,
    /// Told when a purge is asked for that no deadline asks for.
    asked: Arc<Notify>,
    digests: Arc<Digests>,
}

/// The current snapshot, and which deletions are not purged yet.
#[derive(Debug, Default)]
struct Current {
    file: Option<Arc<SnapshotFile>>,
    /// Whether openraft has not been told of `file` yet.
    is_fresh: bool,
    /// The state's purge deadline as of `file`.
    covers: Option<Stamp>,
    /// When the first deletion not purged yet must be.
    due: Option<Stamp>,
    /// The oldest ring key that any file holds, as far as a purge since the start has shown.
    oldest_key: Option<u64>,
}

impl Shared {
    pub(crate) fn new(snapshots: Snapshots, on_fatal: FatalHook) -> Result<Self, SnapshotError> {
        let file = snapshots.open()?;
        Ok(Self {
            held: RwLock::default(),
            current: Mutex::new(Current { file, ..Current::default() }),
            events: broadcast::Sender::new(CHANGE_QUEUE),
            applied: watch::Sender::new(None),
            snapshots,
            writing: Mutex::new(()),
            asked: Arc::default(),
            digests: Arc::new(Digests::new(on_fatal)),
        })
    }

    /// Looks at the state. Applying waits meanwhile.
    pub(crate) fn view<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.read().state)
    }

    /// The oldest key of the ring, and the last entry applied: of one moment.
    pub(crate) fn oldest_key_then(&self) -> (Option<u64>, Option<u64>) {
        let held = self.read();
        (held.state.oldest_key(), held.last.as_ref().map(|id| id.index))
    }

    /// What this node's state was, and the leader's.
    pub(crate) fn digests(&self) -> &Arc<Digests> {
        &self.digests
    }

    /// Newest format of entries and snapshots that this node reads.
    pub(crate) fn reads(&self) -> u32 {
        self.snapshots.reads()
    }

    /// Changes the state behind the log's back.
    #[cfg(test)]
    pub(crate) fn spoil(&self, proposal: &Proposal) -> Outcome {
        apply(&mut self.write().state, proposal, &mut Vec::new())
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        Subscription { events: self.events.subscribe() }
    }

    /// Index of the last entry applied.
    pub(crate) fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.applied.subscribe()
    }

    /// When deleted payloads must be purged, if any are not.
    pub(crate) fn purge_due(&self) -> Option<Stamp> {
        self.current().due
    }

    /// Has deleted payloads and keys purged now, whenever they are due.
    pub(crate) fn purge_soon(&self) {
        self.current().due = Some(Stamp(0));
        self.asked.notify_one();
    }

    /// Tells when a purge is asked for.
    pub(crate) fn purge_asked(&self) -> Arc<Notify> {
        Arc::clone(&self.asked)
    }

    /// The oldest ring key that any file holds, as far as a purge since the start has shown.
    pub(crate) fn oldest_key(&self) -> Option<u64> {
        self.current().oldest_key
    }

    /// Says that neither log nor snapshot hold an older ring key than this.
    pub(crate) fn purged_keys(&self, oldest: Option<u64>) {
        let mut current = self.current();
        current.oldest_key = current.oldest_key.max(oldest);
    }

    /// The last entry in the current snapshot.
    pub(crate) fn covered(&self) -> Option<Position> {
        let current = self.current();
        current.file.as_ref().and_then(|file| file.meta.last_log_id.as_ref().map(Position::from))
    }

    /// Writes a snapshot and makes it the current one, unless that covers as much.
    fn keep(&self, state: &State, meta: &SnapshotMeta) -> Result<Arc<SnapshotFile>, SnapshotError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = |file: &&Arc<SnapshotFile>| file.meta.last_log_id >= meta.last_log_id;
        if let Some(file) = self.current().file.as_ref().filter(newer) {
            return Ok(Arc::clone(file));
        }
        let file = self.snapshots.write(state, meta)?;
        let mut current = self.current();
        current.file = Some(Arc::clone(&file));
        current.covers = state.purge_due();
        Ok(file)
    }

    /// Seals snapshots with another key from now on, the current one too.
    fn rekey(&self, key: Arc<StorageKey>) -> Result<(), SnapshotError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.snapshots.set_key(key);
        let Some(file) = self.current().file.clone() else { return Ok(()) };
        let again = self.snapshots.write(&file.state()?, &file.meta)?;
        self.current().file = Some(again);
        Ok(())
    }

    /// Writes a snapshot of what is applied now, for the builder to find.
    fn keep_now(&self) -> Result<(), SnapshotError> {
        let (state, meta) = self.snapshot_view();
        self.keep(&state, &meta)?;
        self.current().is_fresh = true;
        Ok(())
    }

    /// The state at this moment, and what a snapshot of it covers.
    fn snapshot_view(&self) -> (State, SnapshotMeta) {
        let held = self.read();
        let meta =
            SnapshotMeta { last_log_id: held.last, last_membership: held.membership.clone() };
        (held.state.clone(), meta)
    }

    /// The snapshot that openraft has not been told of, if there is one.
    fn take_fresh(&self) -> Option<Arc<SnapshotFile>> {
        let mut current = self.current();
        std::mem::take(&mut current.is_fresh).then(|| current.file.clone())?
    }

    /// Bytes that the current snapshot takes on disk.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.current().file.as_ref().map_or(0, |file| file.bytes)
    }

    /// Says that the log holds nothing any more that the current snapshot covers.
    pub(crate) fn purged(&self) {
        let now = self.read().state.purge_due();
        let mut current = self.current();
        current.due = if current.covers == now { None } else { now };
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies entries under one hold of the lock; returns their outcomes. Fails at an entry that
    /// makes the state one that this version cannot read.
    fn apply(&self, entries: &[(LogId, Work)]) -> io::Result<Vec<Option<Outcome>>> {
        let mut views = Vec::new();
        let mut changes = Vec::new();
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut held = self.write();
        let before = held.state.purge_due();
        for (id, work) in entries {
            outcomes.push(match work {
                Work::Nothing => None,
                Work::Propose(proposal) => Some(apply(&mut held.state, proposal, &mut changes)),
                Work::Members(membership) => {
                    held.membership = membership.clone();
                    None
                }
            });
            held.last = Some(*id);
            check_format(held.state.format(), self.reads(), id.index)?;
            if is_due(id.index) {
                views.push((id.index, held.state.clone()));
            }
        }
        let index = held.last.as_ref().map(|id| id.index);
        let after = held.state.purge_due();
        drop(held);
        if after != before {
            let mut current = self.current();
            current.due = [current.due, after].into_iter().flatten().min();
        }
        if let (Some(index), false) = (index, changes.is_empty()) {
            // Without subscribers nobody misses the event.
            let _ = self.events.send(Event::Applied(Arc::new(Applied { index, changes })));
        }
        self.applied.send_replace(index);
        for (index, view) in views {
            self.digests.make(index, view);
        }
        Ok(outcomes)
    }

    fn replace(&self, state: State, meta: &SnapshotMeta, file: Arc<SnapshotFile>) {
        let due = state.purge_due();
        let index = meta.last_log_id.as_ref().map(|id| id.index);
        {
            let mut held = self.write();
            held.state = state;
            held.last = meta.last_log_id;
            held.membership = meta.last_membership.clone();
        }
        let mut current = self.current();
        let oldest_key = current.oldest_key;
        *current = Current { file: Some(file), is_fresh: false, covers: due, due, oldest_key };
        drop(current);
        let _ = self.events.send(Event::Rescan);
        self.applied.send_replace(index);
    }
}

/// What an entry asks of the state machine.
pub(crate) enum Work {
    Nothing,
    Propose(Box<Proposal>),
    Members(StoredMembership),
}

/// The state machine as openraft sees it.
#[derive(Debug, Clone)]
pub(crate) struct Machine(pub(crate) Arc<Shared>);

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let held = self.0.read();
        Ok((held.last, held.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut work = Vec::new();
        let mut responders = Vec::new();
        loop {
            let next = entries.next().await.transpose()?;
            let ended = next.is_none();
            if let Some((entry, responder)) = next {
                work.push(decode(entry, self.0.reads())?);
                responders.push(responder);
            }
            if ended || work.len() >= APPLY_BATCH {
                let outcomes = self.0.apply(&work)?;
                for (responder, outcome) in responders.drain(..).zip(outcomes) {
                    if let Some(responder) = responder {
                        responder.send(outcome);
                    }
                }
                work.clear();
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { shared: Arc::clone(&self.0), view: Arc::new(self.0.snapshot_view()) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Image,
    ) -> Result<(), io::Error> {
        let (shared, meta) = (Arc::clone(&self.0), meta.clone());
        blocking(move || {
            shared.replace(snapshot.state()?, &meta, snapshot);
            Ok(())
        })
        .await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let file = self.0.current().file.clone();
        Ok(file.map(|file| Snapshot { meta: file.meta.clone(), snapshot: file }))
    }
}

/// Refuses a state that a newer version is needed for.
pub(crate) fn check_format(format: u32, reads: u32, index: u64) -> io::Result<()> {
    if format <= reads {
        return Ok(());
    }
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "log entry {index} raises the swarm's state to format {format}; skep {version} reads up to \
         {reads}: run a newer version on this node"
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// What an entry asks, if its format is one up to `reads`.
pub(crate) fn decode(entry: crate::types::Entry, reads: u32) -> io::Result<(LogId, Work)> {
    let work = match entry.payload {
        EntryPayload::Blank => Work::Nothing,
        EntryPayload::Membership(membership) => {
            Work::Members(StoredMembership::new(Some(entry.log_id), membership))
        }
        EntryPayload::Normal(payload) => {
            let proposal = read_entry(&payload.0, reads).map_err(|e| {
                let version = env!("CARGO_PKG_VERSION");
                let text = format!(
                    "skep {version} cannot apply log entry {}: {e}; run a newer version on this node",
                    entry.log_id.index
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            Work::Propose(Box::new(proposal))
        }
    };
    Ok((entry.log_id, work))
}

/// A view of the state at one index, to be written as a snapshot.
#[derive(Debug)]
pub(crate) struct Builder {
    shared: Arc<Shared>,
    view: Arc<(State, SnapshotMeta)>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (shared, view) = (Arc::clone(&self.shared), Arc::clone(&self.view));
        let file = match shared.take_fresh() {
            Some(file) => file,
            None => blocking(move || shared.keep(&view.0, &view.1)).await?,
        };
        Ok(Snapshot { meta: file.meta.clone(), snapshot: file })
    }
}

/// Writes a snapshot of what is applied now; openraft's builder then has nothing left to do that
/// could fail. openraft stops with a builder that fails, and a disk that is full is no reason.
pub(crate) async fn keep_now(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    blocking(move || shared.keep_now()).await
}

/// Writes the current snapshot anew under another key.
pub(crate) async fn rekey(shared: &Arc<Shared>, key: Arc<StorageKey>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    blocking(move || shared.rekey(key)).await
}

/// Writes a state that came from a peer as the current snapshot.
pub(crate) async fn keep(
    shared: &Arc<Shared>,
    state: State,
    meta: SnapshotMeta,
) -> io::Result<Arc<SnapshotFile>> {
    let shared = Arc::clone(shared);
    blocking(move || shared.keep(&state, &meta)).await
}

/// Runs what waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(act).await.map_err(io::Error::other)?;
    done.map_err(|e| e.to_io())
}
