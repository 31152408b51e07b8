//! Images.

use std::collections::BTreeMap;

use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Summary {
    pub(in crate::api) containers: i64,
    pub(in crate::api) created: i64,
    pub(in crate::api) id: String,
    pub(in crate::api) labels: Option<BTreeMap<String, String>>,
    pub(in crate::api) parent_id: &'static str,
    pub(in crate::api) repo_digests: Vec<String>,
    pub(in crate::api) repo_tags: Vec<String>,
    pub(in crate::api) shared_size: i64,
    pub(in crate::api) size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) virtual_size: Option<u64>,
}

/// One step of a removal.
#[derive(Debug, Serialize)]
pub(in crate::api) enum Removed {
    Untagged(String),
    Deleted(String),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Distribution {
    pub(in crate::api) descriptor: Descriptor,
    pub(in crate::api) platforms: Vec<Platform>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct Descriptor {
    pub(in crate::api) media_type: String,
    pub(in crate::api) digest: String,
    pub(in crate::api) size: u64,
}

#[derive(Debug, Serialize)]
pub(in crate::api) struct Platform {
    pub(in crate::api) architecture: String,
    pub(in crate::api) os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) variant: String,
}

/// A line of progress.
#[derive(Debug, Serialize)]
pub(in crate::api) struct Progress {
    pub(in crate::api) status: String,
}
