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
    /// Services that are granted it.
    pub(in crate::api) services: Vec<String>,
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
