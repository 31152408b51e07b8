//! Why a request was not answered, on its way to another node.

use minicbor::{Decode, Encode};
use skep_core::command::Rejection;

use crate::chain::chain;
use crate::gate::Refusal;

/// A [`Refusal`] that can travel: causes have become text.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Refused {
    /// [`Refusal::Rejected`].
    #[n(0)]
    Rejected(#[n(0)] Rejection),
    /// [`Refusal::Invalid`].
    #[n(1)]
    Invalid(#[n(0)] String),
    /// [`Refusal::NotFound`].
    #[n(2)]
    NotFound(#[n(0)] String),
    /// [`Refusal::Conflict`].
    #[n(3)]
    Conflict(#[n(0)] String),
    /// [`Refusal::Unsupported`].
    #[n(4)]
    Unsupported(#[n(0)] String),
    /// [`Refusal::NoLeader`].
    #[n(5)]
    NoLeader,
    /// Anything else, with its causes.
    #[n(6)]
    Failed(#[n(0)] String),
}

/// What failed on another node, in that node's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Rejected(rejection) => Self::Rejected(rejection),
            Refusal::Invalid(text) => Self::Invalid(text),
            Refusal::NotFound(text) => Self::NotFound(text),
            Refusal::Conflict(text) => Self::Conflict(text),
            Refusal::Unsupported(text) => Self::Unsupported(text),
            Refusal::NoLeader => Self::NoLeader,
            other => Self::Failed(chain(&other)),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Rejected(rejection) => Self::Rejected(rejection),
            Refused::Invalid(text) => Self::Invalid(text),
            Refused::NotFound(text) => Self::NotFound(text),
            Refused::Conflict(text) => Self::Conflict(text),
            Refused::Unsupported(text) => Self::Unsupported(text),
            Refused::NoLeader => Self::NoLeader,
            Refused::Failed(text) => {
                Self::Failed { what: "another node failed".into(), source: Box::new(Told(text)) }
            }
        }
    }
}
