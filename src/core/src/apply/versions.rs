//! Versions of secrets and configs: how they come, how they go, and how they get to another key.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use super::{Applied, Writer};
use crate::command::{Append, Rejection, Reseal};
use crate::id::{MaterialId, ServiceId};
use crate::limits;
use crate::model::material::{Author, Material, MaterialKind, MaterialVersion, check_keep};
use crate::model::service::Service;
use crate::outcome::Dropped;

/// A secret or config as it will be, and the versions it loses.
struct Appended<'a> {
    item: &'a Append,
    material: Material,
    dropped: Vec<u64>,
}

impl Writer<'_> {
    pub(super) fn material_append(
        &mut self,
        items: &[Append],
        by: Author,
        keep: Option<u32>,
    ) -> Applied {
        check_set(items.iter().map(|item| item.payload.bytes.len() as u64))?;
        check_keep(keep)?;
        let mut ids = BTreeSet::new();
        let mut all = Vec::with_capacity(items.len());
        for item in items {
            let appended = self.appended(item, by, keep)?;
            if !ids.insert(item.id) {
                let material = &appended.material;
                return Err(Rejection::Invalid(format!(
                    "{} {} is in the set twice: give each one version at a time",
                    material.kind.kind().word(),
                    material.spec.name
                )));
            }
            all.push(appended);
        }
        let payload = |id: MaterialId, number| self.state.payloads.get(&(id, number));
        let bytes_of = |appended: &Appended<'_>| -> u64 {
            let gone = appended.dropped.iter().filter_map(|n| payload(appended.item.id, *n));
            gone.map(|sealed| sealed.bytes.len() as u64).sum()
        };
        let more = items.iter().map(|item| item.payload.bytes.len() as u64).sum();
        self.check_room(more, all.iter().map(bytes_of).sum())?;
        self.check_granted(items)?;
        let mut versions = Vec::with_capacity(all.len());
        for Appended { item, material, dropped } in all {
            self.drop_payloads(&item.id, &dropped);
            self.state.put_payload((item.id, item.number), item.payload.clone());
            versions.push(self.write_material(material));
        }
        Ok(versions.first().copied().unwrap_or_default())
    }

    /// Checks one item by itself.
    fn appended<'a>(
        &self,
        item: &'a Append,
        by: Author,
        keep: Option<u32>,
    ) -> Result<Appended<'a>, Rejection> {
        let mut material = self.material(&item.id)?;
        let (word, name) = (material.kind.kind().word(), material.spec.name.clone());
        if item.number != material.last_version + 1 {
            return Err(Rejection::OutOfSequence);
        }
        if let Some(of) = item.of {
            let old = material.version(of).ok_or_else(|| {
                Rejection::Precondition(format!(
                    "{word} {name} has no version {of} any more: choose one of its history"
                ))
            })?;
            if old.size != item.size {
                return Err(Rejection::Invalid(format!(
                    "the new version of {word} {name} says it repeats version {of}, which has {} \
                     bytes, and has {} itself: send the same payload",
                    old.size, item.size
                )));
            }
        }
        self.check_payload(material.kind, item.size, &item.payload)?;
        let Append { number, size, of, .. } = *item;
        material.versions.push(MaterialVersion { number, size, created: self.now, by, of });
        material.last_version = number;
        material.spec.keep = keep.or(material.spec.keep);
        let mut dropped = self.state.surplus(&material, material.keep());
        let left = material.versions.len() - dropped.len();
        for _ in limits::MATERIAL_VERSIONS..left {
            let is_free = |version: &&MaterialVersion| {
                !dropped.contains(&version.number)
                    && !self.state.is_version_in_use(&material, version.number)
                    && version.number != number
            };
            let Some(oldest) = material.versions.iter().find(is_free) else {
                return Err(Rejection::Full(format!(
                    "{word} {name} has {} versions and services or tasks are pinned to all of \
                     them: let some follow the latest",
                    limits::MATERIAL_VERSIONS
                )));
            };
            dropped.push(oldest.number);
        }
        material.versions.retain(|version| !dropped.contains(&version.number));
        Ok(Appended { item, material, dropped })
    }

    fn drop_payloads(&mut self, id: &MaterialId, numbers: &[u64]) {
        for number in numbers {
            self.state.remove_payload(&(*id, *number));
        }
        if !numbers.is_empty() {
            self.arm_purge();
        }
    }

    /// Refuses payloads that have grown so much that a service's tasks cannot hold them.
    fn check_granted(&self, items: &[Append]) -> Result<(), Rejection> {
        let sizes: BTreeMap<MaterialId, u64> =
            items.iter().map(|item| (item.id, item.size)).collect();
        let mut checked: BTreeSet<ServiceId> = BTreeSet::new();
        for item in items {
            let Some(material) = self.state.materials.get(&item.id) else { continue };
            if material.latest().is_some_and(|latest| item.size <= latest.size) {
                continue;
            }
            for service in self.state.users_of(&item.id) {
                if checked.insert(service.id)
                    && self.granted_bytes(service, &sizes) > limits::GRANTED_BYTES
                {
                    return Err(Rejection::Invalid(format!(
                        "{} {} with {} bytes makes it more than the {} MiB of secrets and configs \
                         that a task of service {} may be granted: send fewer bytes, or grant that \
                         service less",
                        material.kind.kind().word(),
                        material.spec.name,
                        item.size,
                        limits::GRANTED_BYTES >> 20,
                        service.spec.name
                    )));
                }
            }
        }
        Ok(())
    }

    fn granted_bytes(&self, service: &Service, sizes: &BTreeMap<MaterialId, u64>) -> u64 {
        let grants = service.spec.task.container.grants();
        let bytes = grants.filter_map(|grant| {
            let material = self.state.materials.get(&grant.id)?;
            match grant.pin {
                Some(pin) => material.version(pin).map(|version| version.size),
                None => sizes.get(&grant.id).copied().or(Some(material.latest()?.size)),
            }
        });
        bytes.sum()
    }

    pub(super) fn material_prune(
        &mut self,
        kind: MaterialKind,
        ids: &[MaterialId],
        keep: Option<u32>,
    ) -> Result<Vec<Dropped>, Rejection> {
        check_keep(keep)?;
        if ids.len() > limits::PRUNE {
            return Err(Rejection::Invalid(format!(
                "{} {}s to prune are more than the {} that one command may name: name fewer, or \
                 none for all",
                ids.len(),
                kind.kind().word(),
                limits::PRUNE
            )));
        }
        let mut dropped = Vec::new();
        for material in self.materials_to_prune(kind, ids)? {
            let keep = keep.map_or(material.keep(), |keep| keep as usize);
            let mut surplus = self.state.surplus(&material, keep);
            surplus.truncate(limits::PRUNE - dropped.len());
            if surplus.is_empty() {
                continue;
            }
            let mut material = material;
            let gone = surplus.iter().filter_map(|number| material.version(*number));
            dropped.extend(gone.map(|version| Dropped {
                id: material.id,
                version: version.number,
                size: version.size,
            }));
            material.versions.retain(|version| !surplus.contains(&version.number));
            self.drop_payloads(&material.id, &surplus);
            self.write_material(material);
        }
        Ok(dropped)
    }

    fn materials_to_prune(
        &self,
        kind: MaterialKind,
        ids: &[MaterialId],
    ) -> Result<Vec<Material>, Rejection> {
        if ids.is_empty() {
            let all = self.state.materials.values().filter(|material| material.kind == kind);
            let many = all.filter(|material| material.versions.len() > 1);
            return Ok(many.map(|material| Material::clone(material)).collect());
        }
        let find = |id: &MaterialId| match self.material(id) {
            Ok(material) if material.kind == kind => Ok(material),
            _ => Err(Rejection::NotFound { kind: kind.kind(), what: format!("{id}") }),
        };
        ids.iter().map(find).collect()
    }

    /// Puts the same payloads under the current key. What they say is not seen here: that they are
    /// the same follows from the version that is sealed in with them.
    pub(super) fn material_reseal(&mut self, items: &[Reseal]) -> Applied {
        check_set(items.iter().map(|item| item.payload.bytes.len() as u64))?;
        for Reseal { id, version, payload } in items {
            let Some(old) = self.state.payloads.get(&(*id, *version)) else { continue };
            if old.bytes.len() != payload.bytes.len() {
                let material = self.material(id)?;
                return Err(Rejection::Invalid(format!(
                    "version {version} of {} {} has {} sealed bytes, and {} came to take their \
                     place: seal the same payload",
                    material.kind.kind().word(),
                    material.spec.name,
                    old.bytes.len(),
                    payload.bytes.len()
                )));
            }
            self.check_key(payload)?;
        }
        for Reseal { id, version, payload } in items {
            if self.state.payloads.contains_key(&(*id, *version)) {
                self.state.put_payload((*id, *version), payload.clone());
                self.arm_purge();
            }
        }
        Ok(0)
    }
}

/// Refuses an empty set, and one that does not fit into an entry of the log.
fn check_set(bytes: impl ExactSizeIterator<Item = u64>) -> Result<(), Rejection> {
    let count = bytes.len();
    if !(1..=limits::SET).contains(&count) {
        return Err(Rejection::Invalid(format!(
            "a set has 1 to {} secrets and configs, and this one {count}: send several sets",
            limits::SET
        )));
    }
    let bytes: u64 = bytes.sum();
    if bytes > limits::SET_BYTES {
        return Err(Rejection::Invalid(format!(
            "a set has at most {} bytes, and this one {bytes}: send several sets",
            limits::SET_BYTES
        )));
    }
    Ok(())
}
