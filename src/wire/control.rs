//! What managers say to one another beside Raft: one question and one answer on one stream, but
//! for those that go on as a relay.

use minicbor::{Decode, Encode};
use skep_core::command::{Command, Outcome};
use skep_core::id::{ClusterId, MaterialId, NodeId, RequestId, TaskId};
use skep_core::model::node::NodeDescription;

use super::audit::{Heads, Mark, Page, Portion};
use super::session::Directory;
use crate::audit::{AuditQuery, LastRead};

/// The first message of either end: which swarm it speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Greeting {
    /// The swarm.
    #[n(0)]
    pub cluster: ClusterId,
    /// Raised by `--force-new-cluster` and restore.
    #[n(1)]
    pub incarnation: u64,
    /// Random half of the incarnation.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub incarnation_id: [u8; 16],
}

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ControlRequest {
    /// Propose this, if you lead.
    #[n(0)]
    Propose {
        /// A repeated id gets its first outcome.
        #[n(0)]
        request: RequestId,
        /// Command.
        #[n(1)]
        command: Box<Command>,
    },
    /// Up to which entry must one have applied to read what is acknowledged now?
    #[n(1)]
    ReadIndex,
    /// What happened to sessions on the asking manager.
    #[n(2)]
    Sessions(#[n(0)] Vec<SessionNews>),
    /// Who are the managers?
    #[n(3)]
    Directory,
    /// Connect this stream to the agent of a node, if its session is here. After an answer of
    /// `Done` the stream is the agent's.
    #[n(4)]
    Reach {
        /// Node.
        #[n(0)]
        node: NodeId,
    },
    /// Store these records of audits. Answered by `Done` once they are on the disk.
    #[n(11)]
    AuditStore(#[n(0)] Vec<Portion>),
    /// Which of the records that you keep match? From `from` on, in the order of your store.
    #[n(12)]
    AuditQuery {
        /// What is asked for.
        #[n(0)]
        query: AuditQuery,
        /// The beginning, or `next` of the page before.
        #[n(1)]
        from: Mark,
    },
    /// What do the tasks hold whose sessions you have? Answered once all of them hold what the
    /// state says, or when the time is up.
    #[n(13)]
    Holdings {
        /// The secrets and configs it is about.
        #[n(0)]
        materials: Vec<MaterialId>,
        /// The state of this entry of the log, or a later one.
        #[n(1)]
        entry: u64,
        /// How long to wait.
        #[n(2)]
        within_ms: u64,
    },
    /// Which records do you keep? From there on, in the order of your store.
    #[n(14)]
    AuditHeads(#[n(0)] Mark),
    /// When was this last read, as far as you keep it?
    #[n(15)]
    AuditLastRead(#[n(0)] MaterialId),
    /// Are the ring's keys before this one gone from your log and snapshots? If not, purge them
    /// now. Answered by `Done` or `NotYet`.
    #[n(20)]
    RingPurge(#[n(0)] u64),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ControlAnswer {
    /// Done, or go on.
    #[n(0)]
    Done,
    /// What became of a proposal.
    #[n(1)]
    Outcome(#[n(0)] Outcome),
    /// Not proposed: this manager does not lead. Who does, if that is known, by Raft id.
    #[n(2)]
    NotLeader(#[n(0)] Option<u64>),
    /// Proposed, but what became of it is not known: ask again with the same id.
    #[n(3)]
    Unknown,
    /// Not proposed; the text says why.
    #[n(4)]
    Refused(#[n(0)] Refused),
    /// The entry.
    #[n(5)]
    Index(#[n(0)] u64),
    /// The managers.
    #[n(6)]
    Directory(#[n(0)] Directory),
    /// What is asked for is not here.
    #[n(7)]
    Absent,
    /// Nothing was done: this manager's version does not know the question.
    #[n(8)]
    NotUnderstood,
    /// A part of what the manager keeps of audits.
    #[n(11)]
    AuditPage(#[n(0)] Box<Page>),
    /// It is not so yet, but will be.
    #[n(20)]
    NotYet,
    /// One for each task whose session is there, or was there last.
    #[n(13)]
    Holdings(#[n(0)] Vec<Holding>),
    /// Which records the manager keeps.
    #[n(12)]
    AuditHeads(#[n(0)] Box<Heads>),
    /// When something was last read.
    #[n(14)]
    AuditLastRead(#[n(0)] Option<LastRead>),
}

/// What a task holds of the secrets and configs that were asked for, as a manager knows it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Holding {
    /// Its node.
    #[n(0)]
    pub node: NodeId,
    /// Task.
    #[n(1)]
    pub task: TaskId,
    /// Versions that its shim said it holds. If the session is over, also those that were under way
    /// to it.
    #[n(2)]
    pub held: Vec<(MaterialId, u64)>,
    /// Whether that is what the state says.
    #[n(3)]
    pub complies: bool,
    /// Whether the session is there; if not, this was known last.
    #[n(4)]
    pub is_live: bool,
}

/// Why a write was not proposed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Refused {
    /// The leader's disk is full; where its log is.
    #[n(0)]
    NoSpace(#[n(0)] String),
    /// Another reason.
    #[n(1)]
    Other(#[n(0)] String),
}

/// Something that happened to a node's session: `skep_core::control::SessionEvent` on its way to
/// the leader.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum SessionNews {
    /// It opened a session.
    #[n(0)]
    Up {
        /// Node.
        #[n(0)]
        node: NodeId,
        /// Its address without port.
        #[n(1)]
        addr: String,
        /// What it says of itself.
        #[n(2)]
        description: Box<NodeDescription>,
        /// Where it says it is reached, with port.
        #[n(3)]
        advertise: String,
    },
    /// It was heard of.
    #[n(1)]
    Heard {
        /// Node.
        #[n(0)]
        node: NodeId,
        /// The manager that has its session.
        #[n(1)]
        by: NodeId,
    },
    /// It closed its session on purpose.
    #[n(2)]
    Closed(#[n(0)] NodeId),
}
