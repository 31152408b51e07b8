//! A service spec as sent becomes a service spec of the swarm. What skep does not carry out is
//! refused here, by its name: accepting a field means doing what it says.

use std::collections::BTreeMap;

use serde_json::Value;
use skep_core::model::container::{ContainerSpec, Dns, Mount, MountKind, Ulimit};
use skep_core::model::material::{Driver, MaterialKind};
use skep_core::model::service::{
    EndpointSpec, FailureAction, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
};
use skep_core::model::task::{
    NetworkAttachment, Placement, ResourceNeeds, Resources, RestartCondition, RestartPolicy,
    TaskSpec,
};
use skep_core::shared::Shared;
use skep_core::time::Span;

use super::grants::Around;
use super::span;
use crate::api::error::ApiError;
use crate::api::networks;
use crate::api::types::{self, spec as wire};

/// From this API version on there is `OomScoreAdj`; before, the field is no part of the API.
const OOM_SCORE_ADJ_SINCE: u32 = 46;
/// Memory a container needs at least, as Docker has it.
const MIN_MEMORY: i64 = 4 << 20;
/// CPU a container needs at least, in billionths.
const MIN_NANO_CPUS: i64 = 1_000_000;

/// Takes over what the user said; `minor` is the API version of the call, `before` the spec that an
/// update replaces.
pub(in crate::api) fn service_spec(
    spec: wire::ServiceSpec,
    minor: u32,
    before: Option<&ServiceSpec>,
) -> Result<ServiceSpec, ApiError> {
    let mode = mode(&spec.mode)?;
    let mut template = spec.task_template;
    if template.networks.is_empty() {
        template.networks = spec.networks;
    }
    let around = Around::new(&spec.labels, before);
    let task = Shared::new(task_spec(template, minor, around)?);
    Ok(ServiceSpec {
        name: spec.name,
        labels: spec.labels,
        task,
        mode,
        update: spec.update_config.as_ref().map(update_config).transpose()?,
        rollback: spec.rollback_config.as_ref().map(update_config).transpose()?,
        endpoint: spec.endpoint_spec.map(endpoint).transpose()?,
    })
}

fn mode(mode: &wire::ServiceMode) -> Result<ServiceMode, ApiError> {
    let all = [
        ("Mode.Global", mode.global.is_some()),
        ("Mode.ReplicatedJob", mode.replicated_job.is_some()),
        ("Mode.GlobalJob", mode.global_job.is_some()),
    ];
    let others: Vec<&str> = all.into_iter().filter(|(_, there)| *there).map(|(f, _)| f).collect();
    match (&mode.replicated, others.first()) {
        (Some(_), Some(_)) => Err(ApiError::bad("must specify only one service mode")),
        (None, Some(field)) => Err(ApiError::unsupported_field(field)),
        (replicated, None) => Ok(ServiceMode::Replicated {
            replicas: replicated.as_ref().and_then(|r| r.replicas).unwrap_or(1),
        }),
    }
}

fn update_config(config: &wire::UpdateConfig) -> Result<UpdateConfig, ApiError> {
    let failure_action = match config.failure_action.as_str() {
        "" | "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        "rollback" => FailureAction::Rollback,
        other => return Err(ApiError::bad(format!("unrecognized update failure action {other}"))),
    };
    let order = match config.order.as_str() {
        "" | "stop-first" => UpdateOrder::StopFirst,
        "start-first" => UpdateOrder::StartFirst,
        other => return Err(ApiError::bad(format!("unrecognized update order {other}"))),
    };
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(ApiError::invalid(
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ));
    }
    let monitor = span(config.monitor, "TaskSpec: update-monitor")?;
    Ok(UpdateConfig {
        parallelism: config.parallelism,
        delay: span(config.delay, "TaskSpec: update-delay")?,
        failure_action,
        monitor: (monitor != Span(0)).then_some(monitor),
        max_failure_ratio_ppm: (config.max_failure_ratio * 1e6).round() as u32,
        order,
    })
}

fn endpoint(spec: wire::EndpointSpec) -> Result<EndpointSpec, ApiError> {
    if !spec.ports.is_empty() {
        return Err(ApiError::unsupported_field("EndpointSpec.Ports (published ports)"));
    }
    if !matches!(spec.mode.as_str(), "" | "vip" | "dnsrr") {
        return Err(ApiError::invalid(&format!("invalid endpoint mode {:?}", spec.mode)));
    }
    Ok(EndpointSpec { mode: spec.mode, ports: Vec::new() })
}

fn task_spec(spec: wire::TaskSpec, minor: u32, around: Around<'_>) -> Result<TaskSpec, ApiError> {
    for (there, field) in [
        (spec.plugin_spec.is_some(), "TaskTemplate.PluginSpec"),
        (spec.network_attachment_spec.is_some(), "TaskTemplate.NetworkAttachmentSpec"),
        (spec.networks.len() > 1, "TaskTemplate.Networks with more than one network"),
    ] {
        if there {
            return Err(ApiError::unsupported_field(field));
        }
    }
    if !matches!(spec.runtime.as_str(), "" | "container") {
        return Err(ApiError::unsupported_field(&format!(
            "TaskTemplate.Runtime {:?}",
            spec.runtime
        )));
    }
    Ok(TaskSpec {
        container: container_spec(spec.container_spec, minor, around)?,
        resources: spec.resources.as_ref().map(resource_needs).transpose()?,
        restart: spec.restart_policy.as_ref().map(restart_policy).transpose()?,
        placement: spec.placement.map(placement),
        networks: spec.networks.into_iter().map(network).collect::<Result<_, _>>()?,
        log_driver: spec.log_driver.map(log_driver).transpose()?,
        force_update: spec.force_update,
        runtime: "container".to_owned(),
    })
}

fn network(network: wire::NetworkAttachment) -> Result<NetworkAttachment, ApiError> {
    let Some(name) = networks::predefined(&network.target) else {
        return Err(ApiError::unsupported_field(&format!(
            "TaskTemplate.Networks with a network other than bridge, host and none ({})",
            network.target
        )));
    };
    Ok(NetworkAttachment {
        target: name.to_owned(),
        aliases: network.aliases,
        options: network.driver_opts,
    })
}

fn log_driver(driver: types::Driver) -> Result<Driver, ApiError> {
    match driver.name.as_str() {
        "" | "json-file" => Ok(Driver { name: driver.name, options: driver.options }),
        other => Err(ApiError::unsupported_field(&format!(
            "TaskTemplate.LogDriver {other:?} (only json-file is)"
        ))),
    }
}

fn resource_needs(needs: &wire::ResourceNeeds) -> Result<ResourceNeeds, ApiError> {
    let reservations = needs.reservations.as_ref();
    if reservations.is_some_and(|r| !r.generic_resources.is_empty()) {
        return Err(ApiError::unsupported_field("Resources.Reservations.GenericResources"));
    }
    Ok(ResourceNeeds {
        limits: needs.limits.as_ref().map(resources).transpose()?,
        reservations: reservations.map(resources).transpose()?,
    })
}

fn resources(amounts: &wire::Resources) -> Result<Resources, ApiError> {
    if amounts.memory_bytes != 0 && amounts.memory_bytes < MIN_MEMORY {
        return Err(ApiError::invalid(&format!(
            "invalid memory value {}: Must be at least 4MiB",
            amounts.memory_bytes
        )));
    }
    if amounts.nano_cpus != 0 && amounts.nano_cpus < MIN_NANO_CPUS {
        return Err(ApiError::invalid(&format!(
            "invalid cpu value {}: Must be at least 0.001",
            amounts.nano_cpus as f64 / 1e9
        )));
    }
    Ok(Resources {
        nano_cpus: amounts.nano_cpus.unsigned_abs(),
        memory_bytes: amounts.memory_bytes.unsigned_abs(),
        // Below zero is Docker's word for no limit.
        pids: u64::try_from(amounts.pids).unwrap_or(0),
        generic: BTreeMap::new(),
    })
}

fn restart_policy(policy: &wire::RestartPolicy) -> Result<RestartPolicy, ApiError> {
    let condition = match policy.condition.as_str() {
        "" => None,
        "none" => Some(RestartCondition::None),
        "on-failure" => Some(RestartCondition::OnFailure),
        "any" => Some(RestartCondition::Any),
        other => return Err(ApiError::bad(format!("unrecognized restart condition {other}"))),
    };
    let delay = policy.delay.map(|d| span(d, "TaskSpec: restart-delay")).transpose()?;
    let window = policy.window.map(|w| span(w, "TaskSpec: restart-window")).transpose()?;
    Ok(RestartPolicy { condition, delay, max_attempts: policy.max_attempts, window })
}

fn placement(placement: wire::Placement) -> Placement {
    let spread = placement.preferences.into_iter().filter_map(|p| p.spread);
    Placement {
        constraints: placement.constraints,
        spread: spread.map(|s| s.spread_descriptor).collect(),
        max_replicas: placement.max_replicas,
        platforms: placement.platforms.into_iter().map(|p| (p.architecture, p.os)).collect(),
    }
}

/// Whether a part says something: the docker CLI sends some of them full of `null`.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Object(entries) => entries.values().any(says_something),
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(yes) => *yes,
        Value::Null => false,
    }
}

/// Whether Docker would fill something in on the node.
fn is_template(text: &str) -> bool {
    text.contains("{{")
}

fn refuse_unsupported(spec: &wire::ContainerSpec) -> Result<(), ApiError> {
    let health = spec.healthcheck.as_ref();
    let told_off = |test: &[String]| test.first().is_some_and(|word| word == "NONE");
    let refused = [
        (spec.privileges.as_ref().is_some_and(says_something), "ContainerSpec.Privileges"),
        (spec.init == Some(true), "ContainerSpec.Init"),
        (!matches!(spec.isolation.as_str(), "" | "default"), "ContainerSpec.Isolation"),
        (
            health.is_some_and(|h| !h.test.is_empty() && !told_off(&h.test)),
            "ContainerSpec.Healthcheck",
        ),
        (spec.configs.iter().any(|c| c.runtime.is_some()), "ContainerSpec.Configs.Runtime"),
        (is_template(&spec.hostname), "ContainerSpec.Hostname with a template ({{…}})"),
        (spec.env.iter().any(|e| is_template(e)), "ContainerSpec.Env with a template ({{…}})"),
        (
            spec.mounts.iter().any(|m| is_template(&m.source) || is_template(&m.target)),
            "ContainerSpec.Mounts with a template ({{…}})",
        ),
    ];
    match refused.into_iter().find(|(there, _)| *there) {
        Some((_, field)) => Err(ApiError::unsupported_field(field)),
        None => Ok(()),
    }
}

fn container_spec(
    spec: wire::ContainerSpec,
    minor: u32,
    around: Around<'_>,
) -> Result<ContainerSpec, ApiError> {
    refuse_unsupported(&spec)?;
    if spec.image.is_empty() {
        return Err(ApiError::invalid("ContainerSpec: image reference must be provided"));
    }
    let stop_grace = spec.stop_grace_period.map(|g| span(g, "StopGracePeriod")).transpose()?;
    Ok(ContainerSpec {
        image: spec.image,
        labels: spec.labels,
        command: spec.command,
        args: spec.args,
        hostname: spec.hostname,
        env: spec.env,
        dir: spec.dir,
        user: spec.user,
        groups: spec.groups,
        init: spec.init,
        stop_signal: spec.stop_signal,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        stop_grace,
        health: spec
            .healthcheck
            .filter(|h| !h.test.is_empty())
            .map(|h| skep_core::model::container::Health { test: h.test, ..Default::default() }),
        hosts: spec.hosts,
        dns: spec.dns_config.map(|dns| Dns {
            nameservers: dns.nameservers,
            search: dns.search,
            options: dns.options,
        }),
        secrets: around.grants(MaterialKind::Secret, spec.secrets)?,
        configs: around.grants(MaterialKind::Config, spec.configs)?,
        isolation: "default".to_owned(),
        sysctls: spec.sysctls,
        cap_add: spec.capability_add,
        cap_drop: spec.capability_drop,
        ulimits: spec
            .ulimits
            .into_iter()
            .map(|u| Ulimit { name: u.name, hard: u.hard, soft: u.soft })
            .collect(),
        oom_score_adj: if minor < OOM_SCORE_ADJ_SINCE { 0 } else { spec.oom_score_adj },
    })
}

fn mount(mount: wire::Mount) -> Result<Mount, ApiError> {
    let (kind, bit) = match mount.kind.as_str() {
        "bind" => (MountKind::Bind, 1),
        "tmpfs" => (MountKind::Tmpfs, 4),
        other => {
            return Err(ApiError::unsupported_field(&format!(
                "ContainerSpec.Mounts of type {other:?} (bind and tmpfs are)"
            )));
        }
    };
    let bind = mount.bind_options.as_ref();
    let tmpfs = mount.tmpfs_options.as_ref();
    for (there, field) in [
        (bind.is_some_and(|b| b.read_only_non_recursive), "BindOptions.ReadOnlyNonRecursive"),
        (bind.is_some_and(|b| b.read_only_force_recursive), "BindOptions.ReadOnlyForceRecursive"),
        (tmpfs.is_some_and(|t| !t.options.is_empty()), "TmpfsOptions.Options"),
    ] {
        if there {
            return Err(ApiError::unsupported_field(field));
        }
    }
    let sent = mount.bind_options.is_some() || mount.tmpfs_options.is_some();
    Ok(Mount {
        kind,
        propagation: bind.map(|b| b.propagation.clone()).unwrap_or_default(),
        non_recursive: bind.is_some_and(|b| b.non_recursive),
        create_source: bind.is_some_and(|b| b.create_mountpoint),
        tmpfs_size: tmpfs.map_or(0, |t| u64::try_from(t.size_bytes).unwrap_or(0)),
        tmpfs_mode: tmpfs.map_or(0, |t| t.mode),
        source: mount.source,
        target: mount.target,
        read_only: mount.read_only,
        no_copy: false,
        volume_labels: BTreeMap::new(),
        options_sent: if sent { bit } else { 0 },
    })
}
