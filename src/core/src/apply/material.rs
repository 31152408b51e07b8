//! Secrets and configs.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{Applied, Change, Writer, check_labels};
use crate::command::Rejection;
use crate::id::MaterialId;
use crate::limits;
use crate::model::material::{
    Author, Material, MaterialKind, MaterialSpec, MaterialVersion, check_keep,
};
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
        by: Author,
    ) -> Applied {
        check_spec(kind, spec)?;
        self.check_payload(kind, size, payload)?;
        self.check_room(payload.bytes.len() as u64, 0)?;
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
            versions: vec![MaterialVersion { number: 1, size, created: self.now, by, of: None }],
            last_version: 1,
            revoked: Vec::new(),
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
        let (labels, keep) = (spec.labels.clone(), spec.keep);
        if (MaterialSpec { labels, keep, ..material.spec.clone() }) != *spec {
            return Err(Rejection::Invalid(String::from("only updates to Labels are allowed")));
        }
        check_labels(&spec.labels)?;
        check_keep(keep)?;
        if version != material.meta.version {
            return Err(Rejection::OutOfSequence);
        }
        // Docker's clients know nothing of it and send none.
        let keep = keep.or(material.spec.keep);
        material.spec = MaterialSpec { keep, ..spec.clone() };
        Ok(self.write_material(material))
    }

    pub(super) fn material_remove(&mut self, id: &MaterialId) -> Applied {
        let material = self.material(id)?;
        let mut services: Vec<String> =
            self.state.users_of(id).map(|service| service.spec.name.clone()).collect();
        if !services.is_empty() {
            services.sort();
            return Err(Rejection::InUse {
                kind: material.kind.kind(),
                name: material.spec.name,
                services,
            });
        }
        // A task that cannot be reached may hold it yet, and is told to let go of it once it can be.
        if !material.revoked.is_empty() && self.state.services_holding(id).next().is_some() {
            return Err(Rejection::Precondition(format!(
                "{} {} is revoked from tasks that have not ended: remove it once they have, or \
                 remove their services first",
                material.kind.kind().word(),
                material.spec.name
            )));
        }
        self.state.remove_material(id);
        self.arm_purge();
        self.changes.push(Change::Material(*id));
        Ok(0)
    }

    /// The object to change, of whichever of both kinds.
    pub(super) fn material(&self, id: &MaterialId) -> Result<Material, Rejection> {
        let found = self.state.materials.get(id);
        found
            .map(|material| Material::clone(material))
            .ok_or_else(|| Rejection::NotFound { kind: Kind::Secret, what: format!("{id}") })
    }

    pub(super) fn check_payload(
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
        self.check_key(payload)
    }

    /// Refuses `more` bytes of payload if they do not fit, with `less` fewer there then.
    pub(super) fn check_room(&self, more: u64, less: u64) -> Result<(), Rejection> {
        if self.state.index.payload_bytes.saturating_sub(less) + more > limits::PAYLOAD_BYTES {
            return Err(Rejection::Full(format!(
                "secrets and configs take {} MiB, which is all they may; remove some first",
                limits::PAYLOAD_BYTES >> 20
            )));
        }
        Ok(())
    }

    pub(super) fn arm_purge(&mut self) {
        self.state.purge_due = Some(self.now + limits::PURGE_WITHIN);
    }

    pub(super) fn write_material(&mut self, mut material: Material) -> u64 {
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
    check_keep(spec.keep)?;
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
