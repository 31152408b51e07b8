//! What a user says of a service, as sent and as shown.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_core::model::Labels;

use super::{Driver, is_zero};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ServiceSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) name: String,
    pub(in crate::api) labels: Labels,
    pub(in crate::api) task_template: TaskSpec,
    pub(in crate::api) mode: ServiceMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) update_config: Option<UpdateConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) rollback_config: Option<UpdateConfig>,
    /// Where API versions before 1.25 had the networks.
    #[serde(skip_serializing)]
    pub(in crate::api) networks: Vec<NetworkAttachment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) endpoint_spec: Option<EndpointSpec>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct TaskSpec {
    pub(in crate::api) container_spec: ContainerSpec,
    #[serde(skip_serializing)]
    pub(in crate::api) plugin_spec: Option<Value>,
    #[serde(skip_serializing)]
    pub(in crate::api) network_attachment_spec: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) resources: Option<ResourceNeeds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) restart_policy: Option<RestartPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) placement: Option<Placement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) networks: Vec<NetworkAttachment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) log_driver: Option<Driver>,
    pub(in crate::api) force_update: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) runtime: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ContainerSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) image: String,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub(in crate::api) labels: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) command: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) args: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) hostname: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) dir: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) groups: Vec<String>,
    #[serde(skip_serializing)]
    pub(in crate::api) privileges: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) init: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) stop_signal: String,
    #[serde(rename = "TTY", skip_serializing_if = "is_zero")]
    pub(in crate::api) tty: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) open_stdin: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) read_only: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) stop_grace_period: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) hosts: Vec<String>,
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub(in crate::api) dns_config: Option<DnsConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) secrets: Vec<SecretReference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) configs: Vec<ConfigReference>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) isolation: String,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub(in crate::api) sysctls: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) capability_add: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) capability_drop: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) ulimits: Vec<Ulimit>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) oom_score_adj: i64,
}

/// A secret's reference and the file it becomes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct SecretReference {
    pub(in crate::api) file: Option<FileTarget>,
    #[serde(rename = "SecretID")]
    pub(in crate::api) secret_id: String,
    pub(in crate::api) secret_name: String,
    /// What becomes of running tasks when a new version comes; skep's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) on_change: String,
}

/// A config's reference and the file it becomes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ConfigReference {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) file: Option<FileTarget>,
    #[serde(skip_serializing)]
    pub(in crate::api) runtime: Option<Value>,
    #[serde(rename = "ConfigID")]
    pub(in crate::api) config_id: String,
    pub(in crate::api) config_name: String,
    /// As with secrets.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) on_change: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct FileTarget {
    pub(in crate::api) name: String,
    #[serde(rename = "UID")]
    pub(in crate::api) uid: String,
    #[serde(rename = "GID")]
    pub(in crate::api) gid: String,
    pub(in crate::api) mode: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Mount {
    #[serde(rename = "Type", skip_serializing_if = "String::is_empty")]
    pub(in crate::api) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) target: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) tmpfs_options: Option<TmpfsOptions>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct BindOptions {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) propagation: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) non_recursive: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) create_mountpoint: bool,
    #[serde(skip_serializing)]
    pub(in crate::api) read_only_non_recursive: bool,
    #[serde(skip_serializing)]
    pub(in crate::api) read_only_force_recursive: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct TmpfsOptions {
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) size_bytes: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) mode: u32,
    #[serde(skip_serializing)]
    pub(in crate::api) options: Vec<Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Healthcheck {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) retries: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct DnsConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) options: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Ulimit {
    pub(in crate::api) name: String,
    pub(in crate::api) hard: i64,
    pub(in crate::api) soft: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ResourceNeeds {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) limits: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) reservations: Option<Resources>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Resources {
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
    pub(in crate::api) nano_cpus: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) memory_bytes: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) pids: i64,
    #[serde(skip_serializing)]
    pub(in crate::api) generic_resources: Vec<Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct RestartPolicy {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) condition: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) delay: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) max_attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) window: Option<i64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Placement {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) constraints: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) preferences: Vec<Preference>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) max_replicas: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) platforms: Vec<Platform>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Preference {
    pub(in crate::api) spread: Option<Spread>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Spread {
    pub(in crate::api) spread_descriptor: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Platform {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) architecture: String,
    #[serde(rename = "OS", skip_serializing_if = "String::is_empty")]
    pub(in crate::api) os: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct NetworkAttachment {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) target: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::api) aliases: Vec<String>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub(in crate::api) driver_opts: Labels,
}

/// Exactly one is there; none stands for one replica.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ServiceMode {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) replicated: Option<Replicated>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) global: Option<Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) replicated_job: Option<ReplicatedJob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) global_job: Option<Empty>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct Replicated {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) replicas: Option<u64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ReplicatedJob {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) max_concurrent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) total_completions: Option<u64>,
}

/// An object without fields.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Empty {}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct UpdateConfig {
    pub(in crate::api) parallelism: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) delay: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) failure_action: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(in crate::api) monitor: i64,
    #[serde(serialize_with = "super::ratio")]
    pub(in crate::api) max_failure_ratio: f64,
    pub(in crate::api) order: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct EndpointSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) mode: String,
    #[serde(skip_serializing)]
    pub(in crate::api) ports: Vec<Value>,
}
