//! Where secrets and configs are held, which Docker has no words for.

use serde::{Deserialize, Serialize};

/// What a revocation is to take back, and from whom.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(in crate::api) struct Revoke {
    /// Name or id of a service; none for all.
    #[serde(default)]
    pub(in crate::api) service: Option<String>,
    /// Name or id of a task; none for all.
    #[serde(default)]
    pub(in crate::api) task: Option<String>,
}

/// A task that holds versions of a secret or config, or may hold them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Holder {
    pub(in crate::api) task: String,
    pub(in crate::api) service: String,
    #[serde(rename = "NodeID")]
    pub(in crate::api) node: String,
    pub(in crate::api) hostname: String,
    /// What managers say of the node: `ready`, `down`, …
    pub(in crate::api) status: &'static str,
    /// Whether a manager has the task in a session.
    pub(in crate::api) reachable: bool,
    /// Whether it holds what it should, and nothing that is revoked.
    pub(in crate::api) complies: bool,
    /// Whether it is revoked from the task.
    pub(in crate::api) revoked: bool,
    /// The versions it holds, or, if it is not reached, may hold.
    pub(in crate::api) versions: Vec<u64>,
}

/// What a revocation did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Revoked {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) name: String,
    /// The last version that it holds for.
    pub(in crate::api) version: u64,
    /// Services that it is revoked from, or the one whose task was named.
    pub(in crate::api) services: Vec<String>,
    /// The task that was named.
    pub(in crate::api) task: Option<String>,
    /// Tasks that let go of it.
    pub(in crate::api) tasks: Vec<Holder>,
    /// Tasks that are reached and have not said in time that they let go of it.
    pub(in crate::api) late: Vec<Holder>,
    /// Tasks that are not reached: it stays readable there until they are.
    pub(in crate::api) unreachable: Vec<Holder>,
    /// Managers that did not answer: what only they know counts as not reached.
    pub(in crate::api) absent_managers: Vec<String>,
}

/// A version of the swarm's secret key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Key {
    pub(in crate::api) version: u64,
    pub(in crate::api) created_at: String,
}

/// A version of a secret or config with who holds it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct HeldVersion {
    pub(in crate::api) version: u64,
    /// Version of the key that seals it; none if the version was dropped.
    pub(in crate::api) key: Option<u64>,
    /// Services whose tasks hold it.
    pub(in crate::api) services: Vec<String>,
    /// Host names of the nodes that hold it.
    pub(in crate::api) nodes: Vec<String>,
    /// How many tasks hold it.
    pub(in crate::api) tasks: usize,
}

/// When and where a secret or config was last read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct LastRead {
    pub(in crate::api) at: String,
    pub(in crate::api) version: u64,
    pub(in crate::api) task: String,
    #[serde(rename = "NodeID")]
    pub(in crate::api) node: String,
    pub(in crate::api) hostname: String,
}

/// Where a secret or config is readable now, and how it is kept.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Holders {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) name: String,
    pub(in crate::api) cipher: &'static str,
    /// The key that seals now.
    pub(in crate::api) key: Option<Key>,
    pub(in crate::api) autolock: bool,
    /// The latest first.
    pub(in crate::api) versions: Vec<HeldVersion>,
    pub(in crate::api) tasks: Vec<Holder>,
    /// As far as the audit is kept: it comes a second or two after a read.
    pub(in crate::api) last_read: Option<LastRead>,
    /// See [`Revoked::absent_managers`].
    pub(in crate::api) absent_managers: Vec<String>,
}

/// How secrets are kept, and how many there are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Kept {
    pub(in crate::api) cipher: &'static str,
    pub(in crate::api) key: Option<Key>,
    pub(in crate::api) autolock: bool,
    pub(in crate::api) secrets: usize,
    pub(in crate::api) versions: usize,
}

/// What `info` says of secrets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct SecretInfo {
    /// The swarm's; only managers know it.
    pub(in crate::api) swarm: Option<Kept>,
    /// Containers that run on this node and are granted secrets.
    pub(in crate::api) tasks_here: usize,
}

/// A secret or config that tasks of a node hold, or may hold.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct HeldThere {
    pub(in crate::api) kind: &'static str,
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) name: String,
    pub(in crate::api) versions: Vec<u64>,
}

/// What a node's tasks hold.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct NodeHoldings {
    #[serde(rename = "NodeID")]
    pub(in crate::api) node: String,
    pub(in crate::api) hostname: String,
    /// Held by tasks that are reached: it goes with them.
    pub(in crate::api) reached: Vec<HeldThere>,
    /// Held, as far as is known, by tasks that are not reached.
    pub(in crate::api) unreachable: Vec<HeldThere>,
}
