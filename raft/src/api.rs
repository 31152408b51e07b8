//! What the daemon tells the node, and what it hears from it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_core::format::TooNew;
use skep_core::time::Stamp;

use crate::StorageKey;
use crate::limits::PROPOSAL_BYTES;
use crate::log::OpenError;
use crate::snapshot::SnapshotError;

/// Tells the time on the wall.
pub type Clock = Arc<dyn Fn() -> Stamp + Send + Sync>;

/// Called once when this node can no longer take part: the disk refused a write, or openraft
/// stopped. It gets the reason and must end the process; nothing else may be written.
#[derive(Clone)]
pub struct FatalHook(Arc<dyn Fn(&str) + Send + Sync>);

impl FatalHook {
    /// Calls `hook` with the reason.
    pub fn new(hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// Logs the reason and exits at once with status 1.
    #[must_use]
    pub fn exit() -> Self {
        Self::new(|reason| {
            tracing::error!("{reason}");
            std::process::exit(1);
        })
    }

    pub(crate) fn call(&self, reason: &str) {
        (self.0)(reason);
    }
}

impl fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FatalHook(..)")
    }
}

/// What `Raft::start` needs to know.
#[derive(Debug)]
pub struct Config {
    /// The directory with `log/` and `snapshots/`; made if it is not there.
    pub dir: PathBuf,
    /// Seals the log and the snapshots.
    pub storage_key: StorageKey,
    /// This node's Raft id: minted at each promotion, never reused.
    pub raft_id: u64,
    /// Where other managers reach this node, with port.
    pub addr: String,
    /// Ends the process.
    pub on_fatal: FatalHook,
    /// Newest format of log entries and snapshots that this node reads:
    /// `skep_core::format::FORMAT`, but for tests with a version to come.
    pub format: u32,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
    /// The snapshot cannot be read.
    #[error("the raft snapshot cannot be read")]
    Snapshot(#[from] SnapshotError),
    /// openraft refused to start; the text says why.
    #[error("raft does not start: {0}")]
    Raft(String),
    /// The sole voter does not lead after some seconds: its disk is too slow, or stuck.
    #[error("raft: this node, the only manager, does not become leader within {0:?}")]
    NoLeader(Duration),
    /// There is a swarm in this directory already.
    #[error("raft: this node has a swarm already")]
    Initialized,
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: another node leads, or none.
    #[error("this node does not lead the swarm")]
    NotLeader {
        /// Raft id of the leader, if it is known.
        leader: Option<u64>,
    },
    /// Proposed, but what became of it is not known. The same request may be proposed again.
    #[error("the outcome is not known")]
    Unknown,
    /// Not proposed: the disk is nearly full.
    #[error("no space left on the disk that holds the raft log")]
    NoSpace,
    /// Not proposed: too many bytes of proposals wait for their outcome.
    #[error("too many proposals wait for their outcome; try again")]
    Busy,
    /// Not proposed: the command is too large.
    #[error("the command takes {bytes} bytes; at most {limit} are allowed", limit = PROPOSAL_BYTES)]
    TooLarge {
        /// Its size when encoded.
        bytes: usize,
    },
    /// Not proposed: some manager could not read it.
    #[error(transparent)]
    TooNew(#[from] TooNew),
    /// Not proposed: this node is stopping.
    #[error("this node is stopping")]
    Shutdown,
}

/// Why a read cannot be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another node leads, or none.
    #[error("this node does not lead the swarm")]
    NotLeader {
        /// Raft id of the leader, if it is known.
        leader: Option<u64>,
    },
    /// No quorum confirmed in time that this node leads.
    #[error("no quorum of managers answers")]
    Timeout,
    /// This node is stopping.
    #[error("this node is stopping")]
    Shutdown,
}

/// Who leads, as this node knows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// Raft's term. A term has one leader at most.
    pub term: u64,
    /// Raft id of the leader, if there is one.
    pub leader: Option<u64>,
    /// Whether that is this node. What it applied may lag: read with `read_index` first.
    pub here: bool,
}

/// Figures of this node's log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Bytes in the log's segments.
    pub log_bytes: u64,
    /// The log's segments.
    pub log_segments: usize,
    /// Last entry in the log.
    pub last_index: Option<u64>,
    /// Last entry applied.
    pub applied_index: Option<u64>,
    /// Last entry in the snapshot.
    pub snapshot_index: Option<u64>,
    /// Last entry that the log holds no more.
    pub purged_index: Option<u64>,
}
