//! Nodes.

use serde::{Deserialize, Serialize};
use skep_core::model::Labels;

use super::Version;
use super::swarm::TlsInfo;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Node {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) version: Version,
    pub(in crate::api) created_at: String,
    pub(in crate::api) updated_at: String,
    pub(in crate::api) spec: NodeSpec,
    pub(in crate::api) description: Description,
    pub(in crate::api) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct NodeSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) name: String,
    pub(in crate::api) labels: Labels,
    pub(in crate::api) role: String,
    pub(in crate::api) availability: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Description {
    pub(in crate::api) hostname: String,
    pub(in crate::api) platform: Platform,
    pub(in crate::api) resources: Resources,
    pub(in crate::api) engine: Engine,
    #[serde(rename = "TLSInfo")]
    pub(in crate::api) tls_info: TlsInfo,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Platform {
    pub(in crate::api) architecture: String,
    #[serde(rename = "OS")]
    pub(in crate::api) os: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Resources {
    #[serde(rename = "NanoCPUs")]
    pub(in crate::api) nano_cpus: u64,
    pub(in crate::api) memory_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Engine {
    pub(in crate::api) engine_version: String,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub(in crate::api) labels: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) plugins: Vec<Plugin>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Plugin {
    #[serde(rename = "Type")]
    pub(in crate::api) kind: String,
    pub(in crate::api) name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Status {
    pub(in crate::api) state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) message: String,
    pub(in crate::api) addr: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ManagerStatus {
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) leader: bool,
    pub(in crate::api) reachability: &'static str,
    pub(in crate::api) addr: String,
}
