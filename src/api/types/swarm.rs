//! The swarm and its settings.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_core::model::Labels;

use super::Version;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ClusterInfo {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) version: Version,
    pub(in crate::api) created_at: String,
    pub(in crate::api) updated_at: String,
    pub(in crate::api) spec: SwarmSpec,
    #[serde(rename = "TLSInfo")]
    pub(in crate::api) tls_info: TlsInfo,
    pub(in crate::api) root_rotation_in_progress: bool,
    pub(in crate::api) default_addr_pool: Option<Vec<String>>,
    pub(in crate::api) subnet_size: u32,
    pub(in crate::api) data_path_port: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Swarm {
    #[serde(flatten)]
    pub(in crate::api) info: ClusterInfo,
    pub(in crate::api) join_tokens: JoinTokens,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct JoinTokens {
    pub(in crate::api) worker: String,
    pub(in crate::api) manager: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct TlsInfo {
    pub(in crate::api) trust_root: String,
    pub(in crate::api) cert_issuer_subject: String,
    pub(in crate::api) cert_issuer_public_key: String,
}

/// Settings. Absent parts of an update stay as they are.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct SwarmSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) name: String,
    pub(in crate::api) labels: Option<Labels>,
    pub(in crate::api) orchestration: Orchestration,
    pub(in crate::api) raft: Raft,
    pub(in crate::api) dispatcher: Dispatcher,
    #[serde(rename = "CAConfig")]
    pub(in crate::api) ca_config: CaConfig,
    pub(in crate::api) task_defaults: TaskDefaults,
    pub(in crate::api) encryption_config: EncryptionConfig,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Orchestration {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) task_history_retention_limit: Option<i64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Raft {
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) snapshot_interval: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) keep_old_snapshots: Option<u64>,
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) log_entries_for_slow_followers: u64,
    pub(in crate::api) election_tick: u32,
    pub(in crate::api) heartbeat_tick: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Dispatcher {
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) heartbeat_period: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct CaConfig {
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) node_cert_expiry: u64,
    #[serde(rename = "ExternalCAs", skip_serializing)]
    pub(in crate::api) external_cas: Vec<Value>,
    #[serde(rename = "SigningCACert", skip_serializing)]
    pub(in crate::api) signing_ca_cert: String,
    #[serde(rename = "SigningCAKey", skip_serializing)]
    pub(in crate::api) signing_ca_key: String,
    #[serde(skip_serializing)]
    pub(in crate::api) force_rotate: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct TaskDefaults {
    #[serde(skip_serializing)]
    pub(in crate::api) log_driver: Option<super::Driver>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct EncryptionConfig {
    pub(in crate::api) auto_lock_managers: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct InitRequest {
    pub(in crate::api) listen_addr: String,
    pub(in crate::api) advertise_addr: String,
    pub(in crate::api) data_path_addr: String,
    pub(in crate::api) data_path_port: u32,
    pub(in crate::api) force_new_cluster: bool,
    pub(in crate::api) spec: SwarmSpec,
    pub(in crate::api) auto_lock_managers: bool,
    pub(in crate::api) availability: String,
    pub(in crate::api) default_addr_pool: Vec<String>,
}

/// Holds a join token, hence no `Debug`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct JoinRequest {
    pub(in crate::api) listen_addr: String,
    pub(in crate::api) advertise_addr: String,
    pub(in crate::api) data_path_addr: String,
    pub(in crate::api) remote_addrs: Vec<String>,
    pub(in crate::api) join_token: String,
    pub(in crate::api) availability: String,
}

/// Sent in both directions; a key, hence no `Debug`.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct UnlockKey {
    pub(in crate::api) unlock_key: String,
}

/// How far the swarm has come to a key of its ring.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct KeyProgress {
    pub(in crate::api) key: u64,
    pub(in crate::api) turned: bool,
    pub(in crate::api) done: u64,
    pub(in crate::api) total: u64,
    pub(in crate::api) state: &'static str,
    pub(in crate::api) managers: Vec<KeyHolder>,
}

/// A manager that may still have older keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct KeyHolder {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) hostname: String,
    pub(in crate::api) state: &'static str,
}
