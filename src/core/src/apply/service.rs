//! Services.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Applied, Change, Writer, spec};
use crate::command::Rejection;
use crate::control::is_dirty;
use crate::id::{ServiceId, TaskId};
use crate::limits;
use crate::model::container::ContainerSpec;
use crate::model::material::{Grant, Material, MaterialKind};
use crate::model::service::{Service, ServiceSpec, UpdateState, UpdateStatus};
use crate::model::task::{Task, TaskSpec, TaskState};
use crate::model::{Kind, Meta};
use crate::shared::Shared;

impl Writer<'_> {
    pub(super) fn service_create(&mut self, id: &ServiceId, spec: &ServiceSpec) -> Applied {
        spec::check(spec)?;
        self.check_materials(&spec.task.container)?;
        if self.state.service_named(&spec.name).is_some() || self.state.services.contains_key(id) {
            return Err(Rejection::Exists { kind: Kind::Service, name: spec.name.clone() });
        }
        if self.state.services.len() >= limits::SERVICES {
            return Err(Rejection::Full(format!(
                "the swarm has {} services, which is all it may",
                limits::SERVICES
            )));
        }
        self.state.put_service(Service {
            id: *id,
            meta: Meta::new(self.now),
            spec: Shared::new(spec.clone()),
            spec_version: 1,
            previous: None,
            update: None,
        });
        self.changes.push(Change::Service(*id));
        Ok(1)
    }

    pub(super) fn service_update(
        &mut self,
        id: &ServiceId,
        version: u64,
        spec: &ServiceSpec,
    ) -> Applied {
        let mut service = self.service(id)?;
        if core::mem::discriminant(&spec.mode) != core::mem::discriminant(&service.spec.mode) {
            return Err(Rejection::Unsupported(String::from("service mode change is not allowed")));
        }
        if spec.name != service.spec.name {
            return Err(Rejection::Unsupported(String::from("renaming services is not supported")));
        }
        spec::check(spec)?;
        self.check_materials(&spec.task.container)?;
        if version != service.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        let (old, old_version) = (service.spec.clone(), service.spec_version);
        service.previous = Some(old.clone());
        install(&mut service, Shared::new(spec.clone()));
        self.grant_anew(id, &old, &service.spec, old_version);
        let is_stale = |t: &Task| t.desired <= TaskState::Running && is_dirty(&service, t);
        let replaces = self.state.tasks_of_service(id).any(|task| is_stale(task));
        service.update = replaces.then(|| UpdateStatus {
            state: UpdateState::Updating,
            started: self.now,
            completed: None,
            message: String::from("update in progress"),
            restarts: false,
        });
        Ok(self.write_service(service))
    }

    pub(super) fn service_rollback(&mut self, id: &ServiceId, version: u64) -> Applied {
        let mut service = self.service(id)?;
        let Some(previous) = service.previous.clone() else {
            return Err(Rejection::Precondition(format!(
                "service {id} does not have a previous spec"
            )));
        };
        self.check_materials(&previous.task.container)?;
        if version != service.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        service.previous = Some(service.spec.clone());
        self.start_rollback(&mut service, previous, "manually requested rollback");
        Ok(self.write_service(service))
    }

    /// Rolls an update back that failed. There is no way forward again: the spec that failed
    /// is not kept.
    pub(super) fn roll_back_failed(&mut self, id: &ServiceId, spec_version: u64, message: &str) {
        let Ok(mut service) = self.service(id) else { return };
        let Some(previous) = service.previous.clone() else { return };
        if service.spec_version != spec_version
            || self.check_materials(&previous.task.container).is_err()
        {
            return;
        }
        service.previous = None;
        self.start_rollback(&mut service, previous, message);
        self.write_service(service);
    }

    fn start_rollback(&mut self, service: &mut Service, to: Shared<ServiceSpec>, message: &str) {
        self.take_back(&service.id, &service.spec, &to, service.spec_version);
        install(service, to);
        service.update = Some(UpdateStatus {
            state: UpdateState::RollbackStarted,
            started: self.now,
            completed: None,
            message: String::from(message),
            restarts: false,
        });
    }

    pub(super) fn service_remove(&mut self, id: &ServiceId) -> Applied {
        self.service(id)?;
        self.state.remove_service(id);
        self.changes.push(Change::Service(*id));
        let all = self.state.tasks_of_service(id);
        let tasks: Vec<TaskId> =
            all.filter(|t| t.desired < TaskState::Remove).map(|t| t.id).collect();
        for task in tasks {
            self.desire(&task, TaskState::Remove);
        }
        self.forget_revocations(id, None);
        Ok(0)
    }

    pub(super) fn set_update(&mut self, id: &ServiceId, spec_version: u64, update: &UpdateStatus) {
        let Ok(mut service) = self.service(id) else { return };
        if service.spec_version == spec_version && service.update.as_ref() != Some(update) {
            service.update = Some(update.clone());
            self.write_service(service);
        }
    }

    fn service(&self, id: &ServiceId) -> Result<Service, Rejection> {
        let found = self.state.services.get(id);
        found
            .map(|service| Service::clone(service))
            .ok_or_else(|| Rejection::NotFound { kind: Kind::Service, what: format!("{id}") })
    }

    /// Refuses grants of what does not exist under the id and name they give, or not in the version
    /// they are pinned to.
    fn check_materials(&self, container: &ContainerSpec) -> Result<(), Rejection> {
        let mut bytes = 0u64;
        let mut missing: [Vec<String>; 2] = Default::default();
        for (kind, grant) in container.grants_by_kind() {
            let found = self.state.materials.get(&grant.id);
            match found.filter(|m| m.kind == kind && m.spec.name == grant.name) {
                Some(material) => bytes += granted_bytes(material, grant)?,
                None => {
                    missing[usize::from(kind == MaterialKind::Config)].push(grant.reference());
                }
            }
        }
        for (word, names) in ["secret", "config"].into_iter().zip(&missing) {
            if !names.is_empty() {
                let plural = if names.len() == 1 { "" } else { "s" };
                return Err(Rejection::Invalid(format!(
                    "{word}{plural} not found: {}",
                    names.join(", ")
                )));
            }
        }
        if bytes > limits::GRANTED_BYTES {
            return Err(Rejection::Invalid(format!(
                "a task may be granted at most {} MiB of secrets and configs",
                limits::GRANTED_BYTES >> 20
            )));
        }
        Ok(())
    }

    fn write_service(&mut self, mut service: Service) -> u64 {
        service.meta.touch(self.now);
        let version = service.meta.version;
        self.changes.push(Change::Service(service.id));
        self.state.put_service(service);
        version
    }

    /// Writes a task that exists already.
    pub(super) fn write_task(&mut self, mut task: Task) {
        task.meta.touch(self.now);
        self.changes.push(Change::Task(task.id));
        self.state.put_task(task);
    }
}

/// Bytes of the version that a grant gives.
fn granted_bytes(material: &Material, grant: &Grant) -> Result<u64, Rejection> {
    match grant.pin {
        Some(pin) => material.pinned(pin).map(|version| version.size),
        None => Ok(material.latest().map_or(0, |latest| latest.size)),
    }
}

/// Makes `spec` current. The template's version rises only if tasks must be replaced for it.
fn install(service: &mut Service, spec: Shared<ServiceSpec>) {
    if !TaskSpec::is_same(&service.spec.task, &spec.task) {
        service.spec_version += 1;
    }
    service.spec = spec;
}
