//! Containers as the list shows them. What inspect shows is built in `convert`.

use serde::Serialize;
use serde_json::Value;
use skep_core::model::Labels;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Summary {
    pub(in crate::api) id: String,
    pub(in crate::api) names: Vec<String>,
    pub(in crate::api) image: String,
    #[serde(rename = "ImageID")]
    pub(in crate::api) image_id: String,
    pub(in crate::api) command: String,
    pub(in crate::api) created: i64,
    pub(in crate::api) ports: Vec<Port>,
    pub(in crate::api) labels: Labels,
    pub(in crate::api) state: &'static str,
    pub(in crate::api) status: String,
    pub(in crate::api) host_config: HostConfig,
    pub(in crate::api) network_settings: NetworkSettings,
    pub(in crate::api) mounts: Vec<Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Port {
    pub(in crate::api) private_port: u16,
    #[serde(rename = "Type")]
    pub(in crate::api) kind: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct HostConfig {
    pub(in crate::api) network_mode: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct NetworkSettings {
    pub(in crate::api) networks: Value,
}
