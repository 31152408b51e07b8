//! What is done to a node's log and snapshot while it does not run: going on alone after the
//! other managers are lost, and ending a change of the storage key.
//!
//! Both may be cut short at any point and are then done again. What decides is the new
//! snapshot's name: until the disk has it, the old state counts; from then on the new one, with
//! whatever is still left in the log.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::BasicNode;
use skep_core::apply::apply;
use skep_core::format::FORMAT;
use skep_core::state::State;

use crate::disk::{Disk, RealDisk};
use crate::index::Found;
use crate::key::Keys;
use crate::limits::READ_ENTRIES;
use crate::log::{Log, OpenError, WriteError, lock};
use crate::machine::{self, Work};
use crate::node::{Disks, Raft};
use crate::record::Write;
use crate::snapshot::{SnapshotError, Snapshots};
use crate::types::{LogId, Membership, Position, SnapshotMeta, StoredMembership, VoteRecord};
use crate::{Config, StorageKey};

/// Why log and snapshot cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The directory cannot be used.
    #[error("raft: cannot use {dir}")]
    Dir {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be read.
    #[error("the raft log cannot be read")]
    Log(#[from] OpenError),
    /// The snapshot cannot be read or written.
    #[error("the raft snapshot cannot be read or written")]
    Snapshot(#[from] SnapshotError),
    /// An entry cannot be read or applied.
    #[error("the raft log cannot be applied")]
    Entry(#[source] io::Error),
    /// The log does not begin where the snapshot ends.
    #[error("raft: the entries from {index} on are missing")]
    Missing {
        /// The first of them.
        index: u64,
    },
    /// The disk refused a write to the log.
    #[error("the raft log cannot be written")]
    Disk(#[source] io::Error),
    /// There is no swarm in this directory.
    #[error("raft: this node has no swarm that it could go on with")]
    Empty,
}

impl From<WriteError> for OfflineError {
    fn from(e: WriteError) -> Self {
        Self::Disk(e.to_io())
    }
}

/// What a node that goes on alone found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// The last entry in its log. It counts now. What others acknowledged beyond it is lost.
    pub last_index: u64,
    /// The last entry that this node knew to be committed. Those between the two may never have
    /// been acknowledged, and count now.
    pub committed_index: u64,
}

impl Raft {
    /// Makes this node, which must not run, the sole voter under the id and address in `config`:
    /// its whole log counts as committed, and whoever else took part does no longer. It starts as
    /// leader then. Can be repeated if it was cut short.
    ///
    /// # Errors
    /// See [`OfflineError`]; the old state is then still there, or the new one complete.
    pub async fn recover_alone(config: &Config) -> Result<Recovery, OfflineError> {
        let disks = disks(config)?;
        let keys = Keys::one(Arc::new(config.storage_key.copy()));
        let (raft_id, addr) = (config.raft_id, config.addr.clone());
        blocking(move || recover_on(&disks, &keys, raft_id, &addr)).await
    }

    /// Ends a change from storage key `old` to the one in `config` on a node that does not run:
    /// reads what is sealed with either, writes all of it anew, and leaves nothing sealed with
    /// `old`. Can be repeated if it was cut short.
    ///
    /// # Errors
    /// See [`OfflineError`]; files may then be sealed with either key.
    pub async fn rekey_offline(config: &Config, old: StorageKey) -> Result<(), OfflineError> {
        let disks = disks(config)?;
        let new = Arc::new(config.storage_key.copy());
        let keys = Keys { new, old: Some(Arc::new(old)) };
        blocking(move || rekey_on(&disks, &keys)).await
    }
}

fn disks(config: &Config) -> Result<Disks, OfflineError> {
    let open = |name: &str| {
        let dir = config.dir.join(name);
        match RealDisk::open(&dir) {
            Ok(disk) => Ok(Arc::new(disk) as Arc<dyn Disk>),
            Err(source) => Err(OfflineError::Dir { dir, source }),
        }
    };
    Ok(Disks { log: open("log")?, snapshots: open("snapshots")? })
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, OfflineError> + Send + 'static,
) -> Result<T, OfflineError> {
    let done = tokio::task::spawn_blocking(act).await;
    done.map_err(|e| OfflineError::Disk(io::Error::other(e)))?
}

pub(crate) fn rekey_on(disks: &Disks, keys: &Keys) -> Result<(), OfflineError> {
    let snapshots = Snapshots::with(Arc::clone(&disks.snapshots), keys.clone());
    if let Some(file) = snapshots.open()? {
        snapshots.write(&file.state()?, &file.meta)?;
    }
    let mut log = Log::open_with(Arc::clone(&disks.log), keys)?;
    log.scrub()?;
    log.close()?;
    Ok(())
}

pub(crate) fn recover_on(
    disks: &Disks,
    keys: &Keys,
    raft_id: u64,
    addr: &str,
) -> Result<Recovery, OfflineError> {
    let mut log = Log::open_with(Arc::clone(&disks.log), keys)?;
    let snapshots = Snapshots::with(Arc::clone(&disks.snapshots), keys.clone());
    let (mut state, covered) = match snapshots.open()? {
        Some(file) => (file.state()?, file.meta.last_log_id.as_ref().map(Position::from)),
        None => (State::default(), None),
    };
    let logged = apply_rest(&log, covered, &mut state)?;
    let last = logged.or(covered).ok_or(OfflineError::Empty)?;
    let index = log.index();
    let (vote, committed) = {
        let index = lock(&index);
        (index.vote, index.committed)
    };

    let node = BasicNode { addr: addr.to_owned() };
    let nodes = BTreeMap::from([(raft_id, node)]);
    let membership = Membership::new(vec![[raft_id].into()], nodes);
    let membership = membership.map_err(|e| OfflineError::Entry(io::Error::other(e)))?;
    let at = Some(LogId::from(last));
    let last_membership = StoredMembership::new(at, membership);
    snapshots.write(&state, &SnapshotMeta { last_log_id: at, last_membership })?;

    // The new state counts from here on: nothing in the log is behind it.
    let term = vote.map_or(last.term, |vote| vote.term.max(last.term)).saturating_add(1);
    log.write(&[Write::Vote(VoteRecord { term, node: raft_id, committed: false })])?;
    log.purge(last)?;
    log.scrub()?;
    log.close()?;
    let known = committed.into_iter().chain(covered).map(|at| at.index).max().unwrap_or(0);
    Ok(Recovery { last_index: last.index, committed_index: known.min(last.index) })
}

/// Applies the entries behind `covered`; returns where the last one is, if there is one.
fn apply_rest(
    log: &Log,
    covered: Option<Position>,
    state: &mut State,
) -> Result<Option<Position>, OfflineError> {
    let index = log.index();
    let mut next = covered.map_or(0, |at| at.index + 1);
    let (end, mut last) = (lock(&index).end(), None);
    while next < end {
        let found = lock(&index).get(next, end.min(next.saturating_add(READ_ENTRIES)));
        if found.is_empty() {
            return Err(OfflineError::Missing { index: next });
        }
        for entry in found {
            let entry = Found::read(entry).map_err(OfflineError::Entry)?;
            let at = Position::from(&entry.log_id);
            if at.index != next {
                return Err(OfflineError::Missing { index: next });
            }
            if let (_, Work::Propose(proposal)) =
                machine::decode(entry, FORMAT).map_err(OfflineError::Entry)?
            {
                apply(state, &proposal, &mut Vec::new());
                machine::check_format(state.format(), FORMAT, next).map_err(OfflineError::Entry)?;
            }
            next += 1;
            last = Some(at);
        }
    }
    Ok(last)
}
