//! Why the node does not do what it was asked.

use skep_core::command::Rejection;
use skep_core::id::{ClusterId, NodeId};

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The swarm's state does not allow it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// This node is in no swarm.
    #[error("this node is not part of a swarm")]
    NotInSwarm,
    /// This node is in a swarm already.
    #[error("this node is already part of a swarm")]
    AlreadyInSwarm,
    /// This node is a worker.
    #[error("this node is not a swarm manager")]
    NotManager,
    /// This node is a manager that has not caught up with the others yet.
    #[error("this node is a manager that is not ready yet")]
    ManagerNotReady,
    /// This node is locked: its keys open only with the unlock key.
    #[error("the swarm is locked on this node until it is given the unlock key")]
    Locked,
    /// This node is not locked.
    #[error("the swarm is not locked on this node")]
    NotLocked,
    /// The unlock key opens nothing here.
    #[error("this is not the swarm's unlock key")]
    WrongUnlockKey,
    /// This node is a manager of a swarm that was made anew without it.
    #[error(
        "this node belongs to an older incarnation of swarm {0}: a manager that was out of its \
         reach has made the swarm its own, and what this node knows counts no more; run 'swarm leave \
         --force' here and join again with a token that 'swarm join-token' prints on a manager of \
         today"
    )]
    Outlived(ClusterId),
    /// Leaving would lose the swarm's data.
    #[error("this node is the last manager")]
    LastManager,
    /// A manager leaves only by force, even where the others still have a quorum.
    #[error("this node is a manager")]
    LeavesAsManager,
    /// The managers that stay would have no quorum.
    #[error("leaving would leave {left} of {of} managers reachable, which is no quorum")]
    LeavesNoQuorum {
        /// Managers that would still be reachable.
        left: usize,
        /// Managers there are, this one included.
        of: usize,
    },
    /// What was given as join token is none; the text says in what.
    #[error("invalid join token: {0}")]
    InvalidToken(String),
    /// A manager answered and did not admit this node, or was not one of the swarm that the
    /// token names; the text says which.
    #[error("{0}")]
    JoinRefused(String),
    /// No manager could be joined and the attempt is over; the text says why for each.
    #[error("{0}")]
    JoinFailed(String),
    /// The join took too long for the client to wait, and goes on.
    #[error("the node has not joined yet; it goes on trying")]
    JoinTimeout,
    /// No leader answered in time.
    #[error("the swarm has no leader at the moment; try again")]
    NoLeader,
    /// The write may or may not have happened.
    #[error("outcome unknown: the write was sent but not confirmed, id {0}")]
    Unknown(String),
    /// The disk is full: reads go on, writes do not.
    #[error("the disk that holds the swarm's log is full: free space under {0} and try again")]
    NoSpace(String),
    /// The input breaks a rule that only the node knows; the text names all.
    #[error("{0}")]
    Invalid(String),
    /// No such container, exec or task on this node.
    #[error("{0}")]
    NotFound(String),
    /// The container's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// Another node, which alone could answer, is out of reach.
    #[error("node {node} is not available: {why}")]
    Unreachable {
        /// Node.
        node: NodeId,
        /// What was seen of it.
        why: String,
    },
    /// skep does not do that (yet).
    #[error("{0}")]
    Unsupported(String),
    /// Something failed; the chain says what.
    #[error("{what}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
