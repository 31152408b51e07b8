//! What the node says of itself.

use std::collections::BTreeMap;

use serde::Serialize;

use super::swarm::ClusterInfo;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Versions {
    pub(in crate::api) platform: PlatformName,
    pub(in crate::api) components: Vec<Component>,
    pub(in crate::api) version: &'static str,
    pub(in crate::api) api_version: &'static str,
    #[serde(rename = "MinAPIVersion")]
    pub(in crate::api) min_api_version: &'static str,
    pub(in crate::api) git_commit: &'static str,
    pub(in crate::api) go_version: &'static str,
    pub(in crate::api) os: &'static str,
    pub(in crate::api) arch: &'static str,
    pub(in crate::api) kernel_version: String,
    pub(in crate::api) build_time: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct PlatformName {
    pub(in crate::api) name: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Component {
    pub(in crate::api) name: String,
    pub(in crate::api) version: String,
    pub(in crate::api) details: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Info {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) containers: usize,
    pub(in crate::api) containers_running: usize,
    pub(in crate::api) containers_paused: usize,
    pub(in crate::api) containers_stopped: usize,
    pub(in crate::api) images: usize,
    pub(in crate::api) driver: &'static str,
    pub(in crate::api) driver_status: Vec<(String, String)>,
    pub(in crate::api) plugins: Plugins,
    pub(in crate::api) memory_limit: bool,
    pub(in crate::api) swap_limit: bool,
    pub(in crate::api) cpu_cfs_period: bool,
    pub(in crate::api) cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    pub(in crate::api) cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    pub(in crate::api) cpu_set: bool,
    pub(in crate::api) pids_limit: bool,
    #[serde(rename = "IPv4Forwarding")]
    pub(in crate::api) ipv4_forwarding: bool,
    pub(in crate::api) debug: bool,
    #[serde(rename = "NFd")]
    pub(in crate::api) n_fd: usize,
    pub(in crate::api) oom_kill_disable: bool,
    pub(in crate::api) n_goroutines: usize,
    pub(in crate::api) system_time: String,
    pub(in crate::api) logging_driver: &'static str,
    pub(in crate::api) cgroup_driver: &'static str,
    pub(in crate::api) cgroup_version: &'static str,
    pub(in crate::api) n_events_listener: usize,
    pub(in crate::api) kernel_version: String,
    pub(in crate::api) operating_system: String,
    #[serde(rename = "OSVersion")]
    pub(in crate::api) os_version: String,
    #[serde(rename = "OSType")]
    pub(in crate::api) os_type: &'static str,
    pub(in crate::api) architecture: String,
    pub(in crate::api) index_server_address: &'static str,
    pub(in crate::api) registry_config: RegistryConfig,
    #[serde(rename = "NCPU")]
    pub(in crate::api) n_cpu: usize,
    pub(in crate::api) mem_total: u64,
    pub(in crate::api) generic_resources: Option<Vec<String>>,
    pub(in crate::api) docker_root_dir: String,
    pub(in crate::api) http_proxy: &'static str,
    pub(in crate::api) https_proxy: &'static str,
    pub(in crate::api) no_proxy: &'static str,
    pub(in crate::api) name: String,
    pub(in crate::api) labels: Vec<String>,
    pub(in crate::api) experimental_build: bool,
    pub(in crate::api) server_version: &'static str,
    pub(in crate::api) runtimes: BTreeMap<String, Runtime>,
    pub(in crate::api) default_runtime: String,
    pub(in crate::api) swarm: SwarmInfo,
    pub(in crate::api) live_restore_enabled: bool,
    pub(in crate::api) isolation: &'static str,
    pub(in crate::api) init_binary: &'static str,
    pub(in crate::api) containerd_commit: Commit,
    pub(in crate::api) runc_commit: Commit,
    pub(in crate::api) init_commit: Commit,
    pub(in crate::api) security_options: Vec<&'static str>,
    pub(in crate::api) warnings: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Plugins {
    pub(in crate::api) volume: Vec<&'static str>,
    pub(in crate::api) network: Vec<&'static str>,
    pub(in crate::api) authorization: Option<Vec<&'static str>>,
    pub(in crate::api) log: Vec<&'static str>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct RegistryConfig {
    #[serde(rename = "InsecureRegistryCIDRs")]
    pub(in crate::api) insecure_registry_cidrs: Vec<String>,
    pub(in crate::api) index_configs: BTreeMap<String, String>,
    pub(in crate::api) mirrors: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(in crate::api) struct Runtime {
    pub(in crate::api) path: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Commit {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) expected: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct SwarmInfo {
    #[serde(rename = "NodeID")]
    pub(in crate::api) node_id: String,
    pub(in crate::api) node_addr: String,
    pub(in crate::api) local_node_state: &'static str,
    pub(in crate::api) control_available: bool,
    pub(in crate::api) error: String,
    pub(in crate::api) remote_managers: Option<Vec<RemoteManager>>,
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) nodes: usize,
    #[serde(skip_serializing_if = "super::is_zero")]
    pub(in crate::api) managers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) cluster: Option<ClusterInfo>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct RemoteManager {
    #[serde(rename = "NodeID")]
    pub(in crate::api) node_id: String,
    pub(in crate::api) addr: String,
}
