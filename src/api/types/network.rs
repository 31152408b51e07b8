//! Networks.

use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Network {
    pub(in crate::api) name: String,
    pub(in crate::api) id: String,
    pub(in crate::api) created: &'static str,
    pub(in crate::api) scope: &'static str,
    pub(in crate::api) driver: String,
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    pub(in crate::api) enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    pub(in crate::api) enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub(in crate::api) ipam: Value,
    pub(in crate::api) internal: bool,
    pub(in crate::api) attachable: bool,
    pub(in crate::api) ingress: bool,
    pub(in crate::api) config_from: Value,
    pub(in crate::api) config_only: bool,
    pub(in crate::api) containers: Value,
    pub(in crate::api) options: Value,
    pub(in crate::api) labels: Value,
}
