//! Tasks as shown.

use serde::Serialize;
use skep_core::model::Labels;

use super::Version;
use super::spec::{Empty, TaskSpec};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Task {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) version: Version,
    pub(in crate::api) created_at: String,
    pub(in crate::api) updated_at: String,
    pub(in crate::api) labels: Labels,
    pub(in crate::api) spec: TaskSpec,
    #[serde(rename = "ServiceID")]
    pub(in crate::api) service_id: String,
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) slot: u64,
    #[serde(rename = "NodeID", skip_serializing_if = "String::is_empty")]
    pub(in crate::api) node_id: String,
    pub(in crate::api) status: TaskStatus,
    pub(in crate::api) desired_state: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct TaskStatus {
    pub(in crate::api) timestamp: String,
    pub(in crate::api) state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) container_status: Option<ContainerStatus>,
    pub(in crate::api) port_status: Empty,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    pub(in crate::api) container_id: String,
    #[serde(rename = "PID")]
    pub(in crate::api) pid: u32,
    pub(in crate::api) exit_code: i32,
}
