//! Services as shown.

use serde::Serialize;

use super::Version;
use super::spec::{EndpointSpec, ServiceSpec};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Service {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) version: Version,
    pub(in crate::api) created_at: String,
    pub(in crate::api) updated_at: String,
    pub(in crate::api) spec: ServiceSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) previous_spec: Option<ServiceSpec>,
    pub(in crate::api) endpoint: Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) update_status: Option<UpdateStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) service_status: Option<ServiceStatus>,
}

/// How the service is reached at the moment.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Endpoint {
    pub(in crate::api) spec: EndpointSpec,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct UpdateStatus {
    pub(in crate::api) state: &'static str,
    pub(in crate::api) started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) completed_at: Option<String>,
    pub(in crate::api) message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ServiceStatus {
    pub(in crate::api) running_tasks: u64,
    pub(in crate::api) desired_tasks: u64,
    pub(in crate::api) completed_tasks: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ServiceCreated {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) warnings: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ServiceUpdated {
    pub(in crate::api) warnings: Option<Vec<String>>,
}
