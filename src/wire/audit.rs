//! Records of audits on their way from shims to managers, and from manager to manager.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use skep_core::id::{NodeId, TaskId};
use skep_core::time::Stamp;

/// Bytes of a [`Portion`] without its records, at most.
const PORTION_BYTES: usize = 128;
/// Bytes before a record in it, at most.
const BODY_BYTES: usize = 5;

/// Records of one task, byte for byte as its shim wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Portion {
    /// The node that they are from. A manager believes its session in this, not the message.
    #[n(0)]
    pub node: NodeId,
    /// The task.
    #[n(1)]
    pub task: TaskId,
    /// The records, in order.
    #[n(2)]
    pub bodies: Vec<ByteVec>,
}

impl Portion {
    /// Bytes of all its records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bodies.iter().map(|body| body.len()).sum()
    }

    /// Bytes that a message has for it on top of these, at most.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        PORTION_BYTES + self.bodies.len() * BODY_BYTES
    }
}

/// A place in what one manager keeps.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(map)]
pub struct Mark {
    /// Segment.
    #[n(0)]
    pub segment: u64,
    /// Bytes into it.
    #[n(1)]
    pub offset: u64,
}

impl Mark {
    /// Behind all that there is: the answer tells where that is.
    pub const MAX: Self = Self { segment: u64::MAX, offset: u64::MAX };
}

/// A part of what one manager keeps.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Page {
    /// What was asked for.
    #[n(0)]
    pub portions: Vec<Portion>,
    /// Where the next part begins.
    #[n(1)]
    pub next: Mark,
    /// Whether nothing was behind it when it was read.
    #[n(2)]
    pub is_last: bool,
    /// What was written before this has been dropped for its age or for lack of room; zero if
    /// nothing has.
    #[n(3)]
    pub horizon: Stamp,
    /// Pieces in this part that do not open: nobody knows what they were.
    #[n(4)]
    #[cbor(default)]
    pub damaged: u64,
}

/// Records that one manager keeps, without what they say.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Held {
    /// The node that they are from.
    #[n(0)]
    pub node: NodeId,
    /// The task.
    #[n(1)]
    pub task: TaskId,
    /// Their sequences, from and to, each run without a gap.
    #[n(2)]
    pub runs: Vec<(u64, u64)>,
    /// When the last of them was written.
    #[n(3)]
    pub at: Stamp,
}

/// A part of what one manager keeps, for another one to compare.
#[derive(Debug, Default, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Heads {
    /// What is in this part.
    #[n(0)]
    pub held: Vec<Held>,
    /// Where this part begins: not where it was asked for if that is gone.
    #[n(1)]
    pub from: Mark,
    /// Where the next part begins.
    #[n(2)]
    pub next: Mark,
    /// Whether nothing was behind it when it was read.
    #[n(3)]
    pub is_last: bool,
}
