//! The rules a service spec obeys before any look at the state.

use alloc::collections::BTreeMap;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;

use super::check_labels;
use crate::command::Rejection;
use crate::control::constraint;
use crate::id::MaterialId;
use crate::isolation::{self, OnIsolation};
use crate::limits;
use crate::model::container::ContainerSpec;
use crate::model::material::{Grant, MaterialKind, OnChange};
use crate::model::name;
use crate::model::service::{ServiceMode, ServiceSpec};
use crate::model::task::{Resources, TaskSpec};
use crate::signal;

/// Bytes in a grant's target path, at most.
const TARGET_BYTES: usize = 4_096;
/// The smallest CPU share and memory a limit or reservation may name.
const MIN_NANO_CPUS: u64 = 1_000_000;
const MIN_MEMORY_BYTES: u64 = 4 << 20;

fn invalid<T>(text: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection::Invalid(text.into()))
}

/// Refuses a spec that breaks a rule, or asks for what nobody can do.
pub(super) fn check(spec: &ServiceSpec) -> Result<(), Rejection> {
    if spec.name.is_empty() {
        return invalid("meta: name must be provided");
    }
    if spec.name.len() >= limits::NAME_CHARS {
        return invalid("name must be 63 characters or fewer");
    }
    if !name::is_service_name(&spec.name) {
        return invalid("name must be valid as a DNS name component");
    }
    check_labels(&spec.labels)?;
    if spec.labels.contains_key(isolation::LABEL) {
        return invalid(format!(
            "{} is a label of the container, not of the service: use --container-label",
            isolation::LABEL
        ));
    }
    check_task(&spec.task)?;
    match spec.mode {
        ServiceMode::Replicated { replicas } if replicas > limits::REPLICAS => invalid(format!(
            "{replicas} replicas are more than the {} a service may have",
            limits::REPLICAS
        )),
        ServiceMode::Replicated { .. } => Ok(()),
        ServiceMode::Global => unsupported_mode("global"),
        ServiceMode::ReplicatedJob { .. } => unsupported_mode("replicated-job"),
        ServiceMode::GlobalJob => unsupported_mode("global-job"),
    }
}

fn unsupported_mode(mode: &str) -> Result<(), Rejection> {
    Err(Rejection::Unsupported(format!(
        "service mode '{mode}' is not supported; the only one is 'replicated'"
    )))
}

fn check_task(task: &TaskSpec) -> Result<(), Rejection> {
    if task.container.image.is_empty() {
        return invalid("ContainerSpec: image reference must be provided");
    }
    if let Some(needs) = &task.resources {
        for resources in [&needs.limits, &needs.reservations].into_iter().flatten() {
            check_resources(resources)?;
        }
    }
    if let Some(placement) = &task.placement {
        if placement.spread.len() > limits::PREFERENCES {
            return invalid(format!(
                "too many placement preferences: at most {}",
                limits::PREFERENCES
            ));
        }
        for expression in &placement.constraints {
            constraint::parse(expression).map_err(|e| Rejection::Invalid(format!("{e}")))?;
        }
    }
    if let Some(said) = task.container.labels.get(isolation::LABEL) {
        OnIsolation::parse(said)
            .map_err(|e| Rejection::Invalid(format!("label {}: {e}", isolation::LABEL)))?;
    }
    let mut targets = BTreeSet::new();
    for mount in &task.container.mounts {
        if !targets.insert(&mount.target) {
            return invalid(format!("ContainerSpec: duplicate mount point: {}", mount.target));
        }
    }
    check_grants(&task.container)
}

fn check_resources(resources: &Resources) -> Result<(), Rejection> {
    if resources.nano_cpus != 0 && resources.nano_cpus < MIN_NANO_CPUS {
        return invalid(format!(
            "invalid cpu value {}: Must be at least {}",
            resources.nano_cpus as f64 / 1e9,
            MIN_NANO_CPUS as f64 / 1e9
        ));
    }
    if resources.memory_bytes != 0 && resources.memory_bytes < MIN_MEMORY_BYTES {
        return invalid(format!(
            "invalid memory value {}: Must be at least 4MiB",
            resources.memory_bytes
        ));
    }
    Ok(())
}

fn check_grants(container: &ContainerSpec) -> Result<(), Rejection> {
    if container.grants().count() > limits::GRANTS {
        return invalid(format!(
            "a task may be granted at most {} secrets and configs",
            limits::GRANTS
        ));
    }
    let mut pins: BTreeMap<MaterialId, Option<u64>> = BTreeMap::new();
    let mut taken: BTreeMap<String, (MaterialKind, &str)> = BTreeMap::new();
    for (kind, grant) in container.grants_by_kind() {
        let word = kind.kind().word();
        if grant.name.is_empty() {
            return invalid(format!("malformed {word} reference"));
        }
        if !is_target(&grant.target) {
            return invalid(format!(
                "malformed file {word} reference, invalid target file name provided"
            ));
        }
        check_on_change(word, grant)?;
        if pins.insert(grant.id, grant.pin).is_some_and(|other| other != grant.pin) {
            return invalid(format!(
                "{word} '{}' is granted in two versions, and a task holds one of each {word}: \
                 grant the same one at both targets",
                grant.name
            ));
        }
        let Some((other_kind, other)) = taken.insert(grant.path(kind), (kind, &grant.name)) else {
            continue;
        };
        return invalid(if other_kind == kind {
            format!(
                "{word} references '{other}' and '{}' have a conflicting target: '{}'",
                grant.name, grant.target
            )
        } else {
            format!(
                "{} '{other}' and {word} '{}' have a conflicting target: '{}'",
                other_kind.kind().word(),
                grant.name,
                grant.target
            )
        });
    }
    Ok(())
}

/// Refuses signals that no process can take as news.
fn check_on_change(word: &str, grant: &Grant) -> Result<(), Rejection> {
    match grant.on_change {
        OnChange::Signal(number) if !signal::is_news(number) => invalid(format!(
            "signal {number} on a change of {word} '{}' is none that a process can take: name one \
             from 1 to 64, but not SIGKILL or SIGSTOP; on-change=restart replaces the task",
            grant.name,
        )),
        _ => Ok(()),
    }
}

/// Whether a target names a file without leaving its directory.
fn is_target(target: &str) -> bool {
    let relative = target.strip_prefix('/').unwrap_or(target);
    target.len() <= TARGET_BYTES
        && !target.contains('\0')
        && !relative.is_empty()
        && relative.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
