//! Secrets and configs.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use super::{Applied, Change, Writer, check_labels};
use crate::command::Rejection;
use crate::id::MaterialId;
use crate::limits;
use crate::model::material::{Material, MaterialKind, MaterialSpec, MaterialVersion};
use crate::model::{Kind, Meta, name};
use crate::sealed::Sealed;

/// Bytes a sealed payload is longer than its plaintext.
const TAG_BYTES: u64 = 16;

impl Writer<'_> {
    pub(super) fn material_create(
        &mut self,
        id: &MaterialId,
        kind: MaterialKind,
        spec: &MaterialSpec,
        size: u64,
        payload: &Sealed,
    ) -> Applied {
        check_spec(kind, spec)?;
        self.check_payload(kind, size, payload)?;
        let named = self.state.material_named(kind, &spec.name).is_some();
        if named || self.state.materials.contains_key(id) {
            return Err(Rejection::Exists { kind: kind.kind(), name: spec.name.clone() });
        }
        if self.state.materials.len() >= limits::MATERIALS {
            return Err(Rejection::Full(format!(
                "the swarm holds {} secrets and configs, which is all it may",
                limits::MATERIALS
            )));
        }
        self.state.put_payload((*id, 1), payload.clone());
        self.state.put_material(Material {
            id: *id,
            kind,
            meta: Meta::new(self.now),
            spec: spec.clone(),
            versions: vec![MaterialVersion { number: 1, size, created: self.now }],
            last_version: 1,
        });
        self.changes.push(Change::Material(*id));
        Ok(1)
    }

    pub(super) fn material_update(
        &mut self,
        id: &MaterialId,
        version: u64,
        spec: &MaterialSpec,
    ) -> Applied {
        let mut material = self.material(id)?;
        let only_labels =
            MaterialSpec { labels: spec.labels.clone(), ..material.spec.clone() } == *spec;
        if !only_labels {
            return Err(Rejection::Invalid(String::from("only updates to Labels are allowed")));
        }
        check_labels(&spec.labels)?;
        if version != material.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        material.spec = spec.clone();
        Ok(self.write_material(material))
    }

    pub(super) fn material_append(
        &mut self,
        id: &MaterialId,
        number: u64,
        size: u64,
        payload: &Sealed,
    ) -> Applied {
        let mut material = self.material(id)?;
        self.check_payload(material.kind, size, payload)?;
        if number != material.last_version + 1 {
            return Err(Rejection::OutOfSequence);
        }
        let dropped = if material.versions.len() < limits::MATERIAL_VERSIONS {
            None
        } else {
            Some(self.oldest_free_version(&material)?)
        };
        if let Some(position) = dropped {
            let old = material.versions.remove(position);
            self.state.remove_payload(&(*id, old.number));
            self.arm_purge();
        }
        material.versions.push(MaterialVersion { number, size, created: self.now });
        material.last_version = number;
        self.state.put_payload((*id, number), payload.clone());
        Ok(self.write_material(material))
    }

    pub(super) fn material_remove(&mut self, id: &MaterialId) -> Applied {
        let material = self.material(id)?;
        let mut services: vec::Vec<String> =
            self.state.users_of(id).map(|service| service.spec.name.clone()).collect();
        if !services.is_empty() {
            services.sort();
            return Err(Rejection::InUse {
                kind: material.kind.kind(),
                name: material.spec.name,
                services,
            });
        }
        self.state.remove_material(id);
        self.arm_purge();
        self.changes.push(Change::Material(*id));
        Ok(0)
    }

    /// The object to change, of whichever of both kinds.
    fn material(&self, id: &MaterialId) -> Result<Material, Rejection> {
        let found = self.state.materials.get(id);
        found
            .map(|material| Material::clone(material))
            .ok_or_else(|| Rejection::NotFound { kind: Kind::Secret, what: format!("{id}") })
    }

    fn check_payload(
        &self,
        kind: MaterialKind,
        size: u64,
        payload: &Sealed,
    ) -> Result<(), Rejection> {
        if !usize::try_from(size).is_ok_and(|size| kind.admits(size)) {
            return Err(Rejection::Invalid(match kind {
                MaterialKind::Secret => format!(
                    "secret data must be larger than 0 and less than {} bytes",
                    limits::SECRET_BYTES_END
                ),
                MaterialKind::Config => format!(
                    "config data must be larger than 0 and at most {} bytes",
                    limits::CONFIG_BYTES
                ),
            }));
        }
        if payload.bytes.len() as u64 != size + TAG_BYTES {
            return Err(Rejection::Invalid(String::from("the payload is not of the size it says")));
        }
        self.check_key(payload)?;
        if self.state.index.payload_bytes + payload.bytes.len() as u64 > limits::PAYLOAD_BYTES {
            return Err(Rejection::Full(format!(
                "secrets and configs take {} MiB, which is all they may; remove some first",
                limits::PAYLOAD_BYTES >> 20
            )));
        }
        Ok(())
    }

    /// Position of the oldest version that no service is pinned to.
    fn oldest_free_version(&self, material: &Material) -> Result<usize, Rejection> {
        let pinned = |number: u64| {
            self.state.users_of(&material.id).any(|service| {
                let mut grants = service.spec.task.container.grants();
                grants.any(|grant| grant.id == material.id && grant.pin == Some(number))
            })
        };
        material.versions.iter().position(|version| !pinned(version.number)).ok_or_else(|| {
            Rejection::Full(format!(
                "{} {} has {} versions and services are pinned to all of them",
                material.kind.kind().word(),
                material.spec.name,
                limits::MATERIAL_VERSIONS
            ))
        })
    }

    fn arm_purge(&mut self) {
        self.state.purge_due = Some(self.now + limits::PURGE_WITHIN);
    }

    fn write_material(&mut self, mut material: Material) -> u64 {
        material.meta.touch(self.now);
        let version = material.meta.version;
        self.changes.push(Change::Material(material.id));
        self.state.put_material(material);
        version
    }
}

fn check_spec(kind: MaterialKind, spec: &MaterialSpec) -> Result<(), Rejection> {
    if !name::is_material_name(&spec.name) {
        return Err(Rejection::Invalid(String::from(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end \
             character must be [a-zA-Z0-9]",
        )));
    }
    check_labels(&spec.labels)?;
    if let Some(driver) = &spec.driver {
        return Err(Rejection::Unsupported(format!(
            "{} driver '{}' is not supported",
            kind.kind().word(),
            driver.name
        )));
    }
    match &spec.templating {
        Some(driver) if driver.name != "golang" => Err(Rejection::Invalid(format!(
            "unsupported templating driver '{}'; the only one is 'golang'",
            driver.name
        ))),
        _ => Ok(()),
    }
}
