//! Secrets and configs.

use serde::Serialize;
use skep_core::model::Labels;

use super::{Driver, Version};

/// A secret, or a config with its data.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Material {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) version: Version,
    pub(in crate::api) created_at: String,
    pub(in crate::api) updated_at: String,
    pub(in crate::api) spec: MaterialSpec,
}

/// What a user said of it. Never deserialized: the data in a request is not for a `String`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct MaterialSpec {
    pub(in crate::api) name: String,
    pub(in crate::api) labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) driver: Option<Driver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) templating: Option<Driver>,
    /// How many versions are kept, where somebody said so; skep's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) keep: Option<u32>,
}

/// A secret or config, and the versions there are of it.
#[derive(Debug, Serialize)]
pub(in crate::api) struct Versioned {
    #[serde(flatten)]
    pub(in crate::api) material: Material,
    /// The latest version.
    #[serde(rename = "Latest")]
    pub(in crate::api) latest: u64,
    /// How many versions there are.
    #[serde(rename = "Versions")]
    pub(in crate::api) versions: usize,
    /// How many are kept, beside those in use.
    #[serde(rename = "Keep")]
    pub(in crate::api) keep: usize,
}

/// One version of a secret or config, as its history shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct MaterialVersion {
    pub(in crate::api) version: u64,
    pub(in crate::api) created_at: String,
    pub(in crate::api) size: u64,
    /// At whose socket it was sent.
    #[serde(rename = "NodeID")]
    pub(in crate::api) node: String,
    pub(in crate::api) hostname: String,
    /// Who sent it; none if the socket did not tell.
    #[serde(rename = "UID")]
    pub(in crate::api) uid: Option<u32>,
    /// The version it repeats, after a rollback.
    pub(in crate::api) repeats: Option<u64>,
    /// Names of the services that use it, sorted.
    pub(in crate::api) services: Vec<String>,
    /// How each of them does.
    pub(in crate::api) in_use_by: Vec<Use>,
    /// From whom it is revoked.
    pub(in crate::api) revoked_from: Vec<RevokedFrom>,
}

/// How a service uses a version.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Use {
    #[serde(rename = "ServiceID")]
    pub(in crate::api) service_id: String,
    pub(in crate::api) service: String,
    /// Whether its spec, or the one before it to which it may go back, is pinned to the version.
    pub(in crate::api) pinned: bool,
    /// Whether its spec follows the latest version, and this is it.
    pub(in crate::api) follows: bool,
    /// Tasks that have not ended and are granted the version.
    pub(in crate::api) tasks: u64,
}

/// A service, or one task of it, that may not read a version.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct RevokedFrom {
    #[serde(rename = "ServiceID")]
    pub(in crate::api) service_id: String,
    pub(in crate::api) service: String,
    /// The only task it holds for; none for all of the service.
    #[serde(rename = "TaskID", skip_serializing_if = "Option::is_none")]
    pub(in crate::api) task_id: Option<String>,
    /// Every version up to this one is revoked.
    pub(in crate::api) up_to: u64,
    pub(in crate::api) at: String,
}

/// What a prune drops of one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct PrunedOne {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) name: String,
    /// Numbers, the oldest first.
    pub(in crate::api) versions: Vec<u64>,
    /// Bytes that these versions had.
    pub(in crate::api) bytes: u64,
}

/// What a prune drops.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Pruned {
    pub(in crate::api) items: Vec<PrunedOne>,
    /// Bytes in all.
    pub(in crate::api) space_reclaimed: u64,
    /// Whether nothing was dropped, but only looked for.
    pub(in crate::api) dry_run: bool,
}

/// What an update made of one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Updated {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) name: String,
    pub(in crate::api) version: u64,
}
