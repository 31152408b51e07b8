//! A service spec of the swarm as Docker shows it.

use skep_core::limits;
use skep_core::model::Labels;
use skep_core::model::container::{ContainerSpec, Mount, MountKind};
use skep_core::model::service::{
    FailureAction, Service, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
};
use skep_core::model::task::{
    Placement, ResourceNeeds, Resources, RestartCondition, RestartPolicy, TaskSpec,
};

use super::{driver, grants, nanos, version};
use crate::api::networks;
use crate::api::time::rfc3339;
use crate::api::types::service as object;
use crate::api::types::spec as wire;

/// A service; with `defaults` its spec has in it what it leaves to the swarm.
pub(in crate::api) fn service(service: &Service, defaults: bool) -> object::Service {
    let mut spec = service_spec(&service.spec);
    if defaults {
        insert_defaults(&mut spec);
    }
    object::Service {
        id: service.id.to_string(),
        version: version(service.meta),
        created_at: rfc3339(service.meta.created),
        updated_at: rfc3339(service.meta.updated),
        spec,
        previous_spec: service.previous.as_ref().map(|spec| service_spec(spec)),
        endpoint: object::Endpoint::default(),
        update_status: service.update.as_ref().map(|update| object::UpdateStatus {
            state: update.state.word(),
            started_at: rfc3339(update.started),
            completed_at: update.completed.map(rfc3339),
            message: update.message.clone(),
        }),
        service_status: None,
    }
}

fn insert_defaults(spec: &mut wire::ServiceSpec) {
    let update = || update_config(&UpdateConfig::default());
    let task = &mut spec.task_template;
    let container = &mut task.container_spec;
    container.stop_grace_period.get_or_insert(nanos(limits::STOP_GRACE));
    container.dns_config.get_or_insert_default();
    task.resources.get_or_insert_default();
    task.restart_policy.get_or_insert_with(|| wire::RestartPolicy {
        condition: "any".to_owned(),
        delay: Some(nanos(limits::RESTART_DELAY)),
        max_attempts: Some(0),
        window: None,
    });
    task.placement.get_or_insert_default();
    spec.update_config.get_or_insert_with(update);
    spec.rollback_config.get_or_insert_with(update);
}

fn service_spec(spec: &ServiceSpec) -> wire::ServiceSpec {
    wire::ServiceSpec {
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        task_template: task_spec(&spec.task, &spec.labels),
        mode: mode(spec.mode),
        update_config: spec.update.as_ref().map(update_config),
        rollback_config: spec.rollback.as_ref().map(update_config),
        networks: Vec::new(),
        endpoint_spec: spec
            .endpoint
            .as_ref()
            .map(|e| wire::EndpointSpec { mode: e.mode.clone(), ports: Vec::new() }),
    }
}

fn mode(mode: ServiceMode) -> wire::ServiceMode {
    let mut shown = wire::ServiceMode::default();
    match mode {
        ServiceMode::Replicated { replicas } => {
            shown.replicated = Some(wire::Replicated { replicas: Some(replicas) });
        }
        ServiceMode::Global => shown.global = Some(wire::Empty {}),
        ServiceMode::ReplicatedJob { max_concurrent, total } => {
            shown.replicated_job = Some(wire::ReplicatedJob {
                max_concurrent: Some(max_concurrent),
                total_completions: Some(total),
            });
        }
        ServiceMode::GlobalJob => shown.global_job = Some(wire::Empty {}),
    }
    shown
}

fn update_config(config: &UpdateConfig) -> wire::UpdateConfig {
    wire::UpdateConfig {
        parallelism: config.parallelism,
        delay: nanos(config.delay),
        failure_action: match config.failure_action {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        }
        .to_owned(),
        monitor: config.monitor.map_or(0, nanos),
        max_failure_ratio: f64::from(config.max_failure_ratio_ppm) / 1e6,
        order: match config.order {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        }
        .to_owned(),
    }
}

/// The template of a service's tasks; `labels` are those of the service. A task's own copy shows no
/// runtime.
pub(in crate::api) fn task_spec(spec: &TaskSpec, labels: &Labels) -> wire::TaskSpec {
    wire::TaskSpec {
        container_spec: container_spec(&spec.container, labels),
        resources: spec.resources.as_ref().map(resource_needs),
        restart_policy: spec.restart.as_ref().map(restart_policy),
        placement: spec.placement.as_ref().map(placement),
        networks: spec
            .networks
            .iter()
            .map(|n| wire::NetworkAttachment {
                target: networks::swarm_id_of(&n.target),
                aliases: n.aliases.clone(),
                driver_opts: n.options.clone(),
            })
            .collect(),
        log_driver: spec.log_driver.as_ref().map(driver),
        force_update: spec.force_update,
        runtime: spec.runtime.clone(),
        ..wire::TaskSpec::default()
    }
}

fn resource_needs(needs: &ResourceNeeds) -> wire::ResourceNeeds {
    wire::ResourceNeeds {
        limits: needs.limits.as_ref().map(resources),
        reservations: needs.reservations.as_ref().map(resources),
    }
}

fn resources(amounts: &Resources) -> wire::Resources {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    wire::Resources {
        nano_cpus: signed(amounts.nano_cpus),
        memory_bytes: signed(amounts.memory_bytes),
        pids: signed(amounts.pids),
        generic_resources: Vec::new(),
    }
}

fn restart_policy(policy: &RestartPolicy) -> wire::RestartPolicy {
    wire::RestartPolicy {
        condition: match policy.condition.unwrap_or_default() {
            RestartCondition::None => "none",
            RestartCondition::OnFailure => "on-failure",
            RestartCondition::Any => "any",
        }
        .to_owned(),
        delay: policy.delay.map(nanos),
        max_attempts: Some(policy.max_attempts.unwrap_or(0)),
        window: policy.window.map(nanos),
    }
}

fn placement(placement: &Placement) -> wire::Placement {
    let preference = |descriptor: &String| wire::Preference {
        spread: Some(wire::Spread { spread_descriptor: descriptor.clone() }),
    };
    wire::Placement {
        constraints: placement.constraints.clone(),
        preferences: placement.spread.iter().map(preference).collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .iter()
            .map(|(architecture, os)| wire::Platform {
                architecture: architecture.clone(),
                os: os.clone(),
            })
            .collect(),
    }
}

fn container_spec(spec: &ContainerSpec, labels: &Labels) -> wire::ContainerSpec {
    wire::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        privileges: None,
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(mount).collect(),
        stop_grace_period: spec.stop_grace.map(nanos),
        healthcheck: spec
            .health
            .as_ref()
            .map(|h| wire::Healthcheck { test: h.test.clone(), ..Default::default() }),
        hosts: spec.hosts.clone(),
        dns_config: spec.dns.as_ref().map(|dns| wire::DnsConfig {
            nameservers: dns.nameservers.clone(),
            search: dns.search.clone(),
            options: dns.options.clone(),
        }),
        secrets: spec.secrets.iter().map(|grant| grants::secret(grant, labels)).collect(),
        configs: spec.configs.iter().map(|grant| grants::config(grant, labels)).collect(),
        isolation: spec.isolation.clone(),
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.clone(),
        capability_drop: spec.cap_drop.clone(),
        ulimits: spec
            .ulimits
            .iter()
            .map(|u| wire::Ulimit { name: u.name.clone(), hard: u.hard, soft: u.soft })
            .collect(),
        oom_score_adj: spec.oom_score_adj,
    }
}

fn mount(mount: &Mount) -> wire::Mount {
    let bind = mount.kind == MountKind::Bind && mount.options_sent & 1 != 0;
    let tmpfs = mount.kind == MountKind::Tmpfs && mount.options_sent & 4 != 0;
    wire::Mount {
        kind: match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Volume => "volume",
            MountKind::Tmpfs => "tmpfs",
        }
        .to_owned(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        bind_options: bind.then(|| wire::BindOptions {
            propagation: mount.propagation.clone(),
            non_recursive: mount.non_recursive,
            create_mountpoint: mount.create_source,
            ..wire::BindOptions::default()
        }),
        tmpfs_options: tmpfs.then(|| wire::TmpfsOptions {
            size_bytes: i64::try_from(mount.tmpfs_size).unwrap_or(i64::MAX),
            mode: mount.tmpfs_mode,
            options: Vec::new(),
        }),
    }
}
