//! What commands may answer.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use minicbor::{Decode, Encode};

use crate::id::MaterialId;
use crate::model::Kind;

/// What a proposal answered.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Done. The object's write counter afterwards, where there is one.
    #[n(0)]
    Done(#[n(0)] u64),
    /// Not done, and the state is as before.
    #[n(1)]
    Rejected(#[n(0)] Rejection),
    /// Done: these versions were dropped, at most [`crate::limits::PRUNE`] at once.
    #[n(2)]
    Pruned(#[n(0)] Vec<Dropped>),
}

/// A version that was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Dropped {
    /// Of what.
    #[n(0)]
    pub id: MaterialId,
    /// Its number.
    #[n(1)]
    pub version: u64,
    /// Plaintext bytes it had.
    #[n(2)]
    pub size: u64,
}

/// Why a command was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Rejection {
    /// There is one of that name.
    #[n(0)]
    Exists {
        /// Kind.
        #[n(0)]
        kind: Kind,
        /// Name.
        #[n(1)]
        name: String,
    },
    /// There is none.
    #[n(1)]
    NotFound {
        /// Kind.
        #[n(0)]
        kind: Kind,
        /// Id or name.
        #[n(1)]
        what: String,
    },
    /// The object was written since the caller read it.
    #[n(2)]
    OutOfSequence,
    /// Services refer to it.
    #[n(3)]
    InUse {
        /// Kind.
        #[n(0)]
        kind: Kind,
        /// Name.
        #[n(1)]
        name: String,
        /// Names of the services, sorted.
        #[n(2)]
        services: Vec<String>,
    },
    /// The input breaks a rule; the text names input, rule and remedy.
    #[n(4)]
    Invalid(#[n(0)] String),
    /// The state does not allow it now; the text says what would.
    #[n(5)]
    Precondition(#[n(0)] String),
    /// Nobody can do that.
    #[n(6)]
    Unsupported(#[n(0)] String),
    /// A bound of the swarm is reached; the text names it.
    #[n(7)]
    Full(#[n(0)] String),
    /// Something was sealed with a key that is not current, or for a ring that has changed since:
    /// read the ring and seal again, under the same request.
    #[n(8)]
    StaleKey {
        /// The key to use.
        #[n(0)]
        current: u64,
    },
    /// There is no swarm yet.
    #[n(9)]
    NoCluster,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists { kind, name } => write!(f, "{} {name} already exists", kind.word()),
            Self::NotFound { kind, what } => write!(f, "{} {what} not found", kind.word()),
            Self::OutOfSequence => f.write_str("update out of sequence"),
            Self::InUse { kind, name, services } => write!(
                f,
                "{} '{name}' is in use by the following service{}: {}",
                kind.word(),
                if services.len() == 1 { "" } else { "s" },
                services.join(", ")
            ),
            Self::Invalid(text)
            | Self::Precondition(text)
            | Self::Unsupported(text)
            | Self::Full(text) => f.write_str(text),
            Self::StaleKey { current } => {
                write!(f, "sealed with a key that is not current; the current one is {current}")
            }
            Self::NoCluster => f.write_str("there is no swarm yet"),
        }
    }
}

impl core::error::Error for Rejection {}
