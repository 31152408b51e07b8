//! The swarm as Docker shows it, and its settings as a user sends them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use skep_core::id::NodeId;
use skep_core::model::cluster::{Cluster, ClusterSpec};
use skep_core::time::Span;

use super::version;
use crate::api::error::ApiError;
use crate::api::time::rfc3339;
use crate::api::types::swarm as wire;

/// Docker's ports for what skep does not have: shown, because clients expect numbers.
const SUBNET_SIZE: u32 = 24;
const DATA_PATH_PORT: u32 = 4789;

pub(in crate::api) fn info(cluster: &Cluster) -> wire::ClusterInfo {
    wire::ClusterInfo {
        id: cluster.id.to_string(),
        version: version(cluster.meta),
        created_at: rfc3339(cluster.meta.created),
        updated_at: rfc3339(cluster.meta.updated),
        spec: spec_out(&cluster.spec),
        tls_info: tls_info(cluster),
        root_rotation_in_progress: cluster.trust.next.is_some(),
        default_addr_pool: None,
        subnet_size: SUBNET_SIZE,
        data_path_port: DATA_PATH_PORT,
    }
}

/// What the swarm is to trust, and who is to issue: the root that takes over, while one does.
/// Clients see by it which nodes have still to move.
fn tls_info(cluster: &Cluster) -> wire::TlsInfo {
    issued_by(cluster, cluster.trust.next.is_some())
}

/// What a node trusts, and who issued its certificate.
pub(in crate::api) fn node_tls_info(cluster: &Cluster, node: &NodeId) -> wire::TlsInfo {
    issued_by(cluster, cluster.trust.next.as_ref().is_some_and(|next| next.moved.contains(node)))
}

fn issued_by(cluster: &Cluster, by_next: bool) -> wire::TlsInfo {
    let trust = &cluster.trust;
    let (subject, public_key) = match trust.next.as_ref().filter(|_| by_next) {
        Some(next) => (&next.subject, &next.public_key),
        None => (&trust.subject, &trust.public_key),
    };
    wire::TlsInfo {
        trust_root: trust.roots.concat(),
        cert_issuer_subject: STANDARD.encode(subject),
        cert_issuer_public_key: STANDARD.encode(public_key),
    }
}

fn spec_out(spec: &ClusterSpec) -> wire::SwarmSpec {
    wire::SwarmSpec {
        name: spec.name.clone(),
        labels: Some(spec.labels.clone()),
        orchestration: wire::Orchestration {
            task_history_retention_limit: Some(
                i64::try_from(spec.history_limit).unwrap_or(i64::MAX),
            ),
        },
        raft: wire::Raft {
            snapshot_interval: spec.snapshot_interval,
            keep_old_snapshots: Some(spec.keep_old_snapshots),
            log_entries_for_slow_followers: spec.slow_follower_entries,
            election_tick: spec.election_tick,
            heartbeat_tick: spec.heartbeat_tick,
        },
        dispatcher: wire::Dispatcher { heartbeat_period: spec.heartbeat_period.0 },
        ca_config: wire::CaConfig {
            node_cert_expiry: spec.node_cert_expiry.0,
            ..wire::CaConfig::default()
        },
        task_defaults: wire::TaskDefaults::default(),
        encryption_config: wire::EncryptionConfig { auto_lock_managers: Some(spec.autolock) },
    }
}

/// The settings `base` with what the user sent in place of what they were. What was not sent, or
/// is zero where zero means nothing, stays.
pub(in crate::api) fn spec_in(
    sent: wire::SwarmSpec,
    base: ClusterSpec,
) -> Result<ClusterSpec, ApiError> {
    let ca = &sent.ca_config;
    for (there, field) in [
        (!ca.external_cas.is_empty(), "Spec.CAConfig.ExternalCAs"),
        (!ca.signing_ca_cert.is_empty(), "Spec.CAConfig.SigningCACert"),
        (!ca.signing_ca_key.is_empty(), "Spec.CAConfig.SigningCAKey"),
        (sent.task_defaults.log_driver.is_some(), "Spec.TaskDefaults.LogDriver"),
    ] {
        if there {
            return Err(ApiError::unsupported_field(field));
        }
    }
    if !matches!(sent.name.as_str(), "" | "default") {
        return Err(ApiError::invalid("swarm spec must be named \"default\""));
    }
    let history = match sent.orchestration.task_history_retention_limit {
        None => base.history_limit,
        // Docker takes a negative limit for no limit.
        Some(limit) => u64::try_from(limit).unwrap_or(u64::MAX),
    };
    let or = |value: u64, base: u64| if value == 0 { base } else { value };
    let or_tick = |value: u32, base: u32| if value == 0 { base } else { value };
    Ok(ClusterSpec {
        name: base.name,
        labels: sent.labels.unwrap_or(base.labels),
        history_limit: history,
        snapshot_interval: or(sent.raft.snapshot_interval, base.snapshot_interval),
        heartbeat_tick: or_tick(sent.raft.heartbeat_tick, base.heartbeat_tick),
        election_tick: or_tick(sent.raft.election_tick, base.election_tick),
        heartbeat_period: Span(or(sent.dispatcher.heartbeat_period, base.heartbeat_period.0)),
        node_cert_expiry: Span(or(ca.node_cert_expiry, base.node_cert_expiry.0)),
        autolock: sent.encryption_config.auto_lock_managers.unwrap_or(base.autolock),
        keep_old_snapshots: sent.raft.keep_old_snapshots.unwrap_or(base.keep_old_snapshots),
        slow_follower_entries: or(
            sent.raft.log_entries_for_slow_followers,
            base.slow_follower_entries,
        ),
    })
}
