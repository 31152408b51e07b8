//! The nouns of the swarm, one file per kind. A *spec* is what a user asked for, an *object*
//! is a spec with its id and history, a *status* is what was observed.

pub mod cluster;
pub mod container;
pub mod material;
pub mod name;
pub mod node;
pub mod service;
pub mod task;

use alloc::collections::BTreeMap;
use alloc::string::String;

use minicbor::{Decode, Encode};

use crate::time::Stamp;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What every object carries beside its spec.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Meta {
    /// Counts the writes to this object. An update names the one it read.
    #[n(0)]
    pub version: u64,
    /// When the object was made.
    #[n(1)]
    pub created: Stamp,
    /// When it was last written.
    #[n(2)]
    pub updated: Stamp,
}

impl Meta {
    /// The meta of an object made at `now`.
    #[must_use]
    pub fn new(now: Stamp) -> Self {
        Self { version: 1, created: now, updated: now }
    }

    /// Counts one more write, at `now`.
    pub fn touch(&mut self, now: Stamp) {
        self.version += 1;
        self.updated = now;
    }
}

/// The kinds of object a user can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Kind {
    /// A secret.
    #[n(0)]
    Secret,
    /// A config.
    #[n(1)]
    Config,
    /// A service.
    #[n(2)]
    Service,
    /// A task.
    #[n(3)]
    Task,
    /// A node.
    #[n(4)]
    Node,
    /// The swarm.
    #[n(5)]
    Cluster,
}

impl Kind {
    /// The word for this kind, in lower case.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Service => "service",
            Self::Task => "task",
            Self::Node => "node",
            Self::Cluster => "cluster",
        }
    }
}
