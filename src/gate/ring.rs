//! How far the swarm has come to a new key of its ring.

use skep_core::id::NodeId;

/// How far the swarm has come to a key of its ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProgress {
    /// Version of the key.
    pub key: u64,
    /// Payloads that it, or a later one, seals.
    pub done: u64,
    /// Payloads there are.
    pub total: u64,
    /// What is under way.
    pub stage: KeyStage,
    /// Every manager, and whether it has still older keys on its disk.
    pub managers: Vec<KeyHolder>,
}

/// What a turn of the ring waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStage {
    /// The leader seals payloads anew.
    Sealing,
    /// Managers write snapshots and purge their logs.
    Purging,
    /// No manager has an older key any more.
    Done,
    /// Every payload is sealed anew, but some managers may have older keys: they are not reached,
    /// or take too long.
    Behind,
    /// Payloads are left, and for long none was sealed anew.
    Stalled,
}

impl KeyStage {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sealing => "sealing",
            Self::Purging => "purging",
            Self::Done => "done",
            Self::Behind => "behind",
            Self::Stalled => "stalled",
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Self::Done | Self::Behind | Self::Stalled)
    }
}

/// A manager, as one that may have old keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHolder {
    /// Node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Whether older keys are gone.
    pub purged: Purged,
}

/// Whether older keys are gone from a manager's log and snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purged {
    /// They are.
    Yes,
    /// Not yet.
    NotYet,
    /// It does not answer. It purges once it is back.
    Unreachable,
}

impl Purged {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Yes => "purged",
            Self::NotYet => "purging",
            Self::Unreachable => "unreachable",
        }
    }
}
