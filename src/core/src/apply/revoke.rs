//! What is taken back of that which services were granted, and how it is given again.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Applied, Writer};
use crate::command::Rejection;
use crate::id::{MaterialId, ServiceId, TaskId};
use crate::limits;
use crate::model::Kind;
use crate::model::material::{Author, Grant, Material, MaterialKind, Revocation};
use crate::model::service::ServiceSpec;

impl Writer<'_> {
    pub(super) fn material_revoke(
        &mut self,
        id: &MaterialId,
        service: Option<&ServiceId>,
        task: Option<&TaskId>,
        by: Author,
    ) -> Applied {
        let mut material = self.material(id)?;
        let services = match task {
            Some(task) => BTreeSet::from([self.service_of(&material, service, task)?]),
            None => self.services_of(&material, service)?,
        };
        // What holds for the whole service takes the place of what held for tasks of it.
        let is_replaced = |entry: &Revocation| {
            services.contains(&entry.service) && (task.is_none() || entry.task.as_ref() == task)
        };
        material.revoked.retain(|entry| !is_replaced(entry));
        if material.revoked.len() + services.len() > limits::REVOCATIONS {
            return Err(Rejection::Full(format!(
                "{} {} would have more than {} revoked grants: revoke it from whole services, or \
                 from all",
                material.kind.kind().word(),
                material.spec.name,
                limits::REVOCATIONS
            )));
        }
        let (up_to, at, task) = (material.last_version, self.now, task.copied());
        let entries = services.into_iter();
        material.revoked.extend(entries.map(|service| Revocation {
            service,
            task,
            up_to,
            at,
            by,
            until: None,
        }));
        Ok(self.write_material(material))
    }

    /// The service of the task that `material` is to be revoked from.
    fn service_of(
        &self,
        material: &Material,
        service: Option<&ServiceId>,
        id: &TaskId,
    ) -> Result<ServiceId, Rejection> {
        let missing = || Rejection::NotFound { kind: Kind::Task, what: format!("{id}") };
        let task = self.state.tasks.get(id).ok_or_else(missing)?;
        if service.is_some_and(|service| *service != task.service) {
            return Err(Rejection::Invalid(format!(
                "task {id} is not of the service named with it, but of {}: name one of them",
                task.service_name
            )));
        }
        if task.status.state.is_terminal() {
            return Err(Rejection::Precondition(format!(
                "task {id} has ended and reads nothing any more"
            )));
        }
        if task.spec.container.grants().all(|grant| grant.id != material.id) {
            return Err(not_granted(material, &format!("task {id}")));
        }
        Ok(task.service)
    }

    /// The services that `material` is to be revoked from.
    fn services_of(
        &self,
        material: &Material,
        service: Option<&ServiceId>,
    ) -> Result<BTreeSet<ServiceId>, Rejection> {
        let holding: BTreeSet<ServiceId> = self.state.services_holding(&material.id).collect();
        match service {
            None if holding.is_empty() => Err(not_granted(material, "any service")),
            None => Ok(holding),
            Some(id) if holding.contains(id) => Ok(BTreeSet::from([*id])),
            Some(id) => match self.state.services.get(id) {
                Some(service) => {
                    Err(not_granted(material, &format!("service {}", service.spec.name)))
                }
                None => Err(Rejection::NotFound { kind: Kind::Service, what: format!("{id}") }),
            },
        }
    }

    /// An update of a service grants anew what it did not grant before, or grants otherwise: tasks
    /// of its new template may read it. `spec_version` is that of the old one.
    pub(super) fn grant_anew(
        &mut self,
        id: &ServiceId,
        old: &ServiceSpec,
        new: &ServiceSpec,
        spec_version: u64,
    ) {
        self.change_revocations(id, old, new, |entry, is_granted| {
            if is_granted && entry.until.is_none() {
                entry.until = Some(spec_version);
            }
        });
    }

    /// A service goes back to its spec before: what the update that led to template `spec_version`
    /// granted anew is as it was before that. Going back never gives anything again.
    pub(super) fn take_back(
        &mut self,
        id: &ServiceId,
        from: &ServiceSpec,
        to: &ServiceSpec,
        spec_version: u64,
    ) {
        self.change_revocations(id, from, to, |entry, _| {
            if entry.until.is_some_and(|until| until + 1 == spec_version) {
                entry.until = None;
            }
        });
    }

    /// Changes what is revoked from a service where two specs of it grant it differently. `change`
    /// is told whether the second one grants it at all.
    fn change_revocations(
        &mut self,
        service: &ServiceId,
        from: &ServiceSpec,
        to: &ServiceSpec,
        change: impl Fn(&mut Revocation, bool),
    ) {
        for id in self.state.index.revoked.get(service).cloned().unwrap_or_default() {
            let (before, after) = (grants_of(from, &id), grants_of(to, &id));
            let Ok(mut material) = self.material(&id) else { continue };
            if before == after {
                continue;
            }
            let own = material.revoked.iter_mut().filter(|entry| entry.service == *service);
            own.for_each(|entry| change(entry, !after.is_empty()));
            if self.state.materials.get(&id).is_some_and(|old| **old != material) {
                self.write_material(material);
            }
        }
    }

    /// Drops what was revoked from a task that is forgotten, and from its service if that is gone
    /// with its last task.
    pub(super) fn forget_revocations(&mut self, service: &ServiceId, task: Option<&TaskId>) {
        let is_gone = !self.state.services.contains_key(service)
            && !self.state.index.tasks_of_service.contains_key(service);
        for id in self.state.index.revoked.get(service).cloned().unwrap_or_default() {
            let Ok(mut material) = self.material(&id) else { continue };
            let before = material.revoked.len();
            let drops =
                |entry: &Revocation| is_gone || (task.is_some() && entry.task.as_ref() == task);
            material.revoked.retain(|entry| entry.service != *service || !drops(entry));
            if material.revoked.len() != before {
                self.write_material(material);
            }
        }
    }
}

/// How a spec grants a secret or config, whatever the order.
fn grants_of<'a>(spec: &'a ServiceSpec, id: &MaterialId) -> Vec<(MaterialKind, &'a Grant)> {
    let grants = spec.task.container.grants_by_kind();
    let mut found: Vec<_> = grants.filter(|(_, grant)| grant.id == *id).collect();
    found.sort_by_key(|(_, grant)| *grant);
    found
}

fn not_granted(material: &Material, whom: &str) -> Rejection {
    Rejection::Precondition(String::from_iter([
        material.kind.kind().word(),
        " ",
        &material.spec.name,
        " is not granted to ",
        whom,
        ": there is nothing to revoke",
    ]))
}
