//! What the shim holds for its task: sealed payloads opened straight into the vault, and the
//! filesystem that shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_core::id::MaterialId;
use skep_core::limits::GRANTS;
use skep_core::model::material::MaterialKind;
use skep_core::time::Stamp;
use skep_fuse::limits::VAULT_BYTES;
use skep_fuse::server::{DeliverError as TreeRefusal, Member, MountError, Server};
use skep_fuse::tree::Grant;
use skep_fuse::vault::{Slot, StoreError, UnknownKind, Vault, VaultError};

use super::audit::Audit;
use crate::chain::chain;
use crate::seal::{SealError, SealKeyPair, ShimSeal, open_in_shim};
use crate::wire::launch::{Launch, LaunchFile};
use crate::wire::shim::{AuditRow, DeliveredItem, Delivery};

/// The shim cannot hold secrets.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    #[error("no memory for secrets")]
    Vault(#[from] VaultError),
    #[error("no key to seal to")]
    Key(#[from] SealError),
    #[error("the secrets' mount point cannot be made")]
    Directory(#[source] io::Error),
    #[error("the secrets' filesystem cannot be mounted")]
    Mount(#[from] MountError),
    #[error("the audit's thread cannot be started")]
    Audit(#[source] io::Error),
}

/// A delivery that changed nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error("sequence {0} comes after {1}")]
    Late(u64, u64),
    #[error("{0} is not granted to this task")]
    NotGranted(MaterialId),
    #[error("{0} is in the delivery twice")]
    Twice(MaterialId),
    #[error("version {offered} of {material} is older than version {held}, which is held")]
    Older { material: MaterialId, offered: u64, held: u64 },
    #[error("the payload of {0} is larger than this kind may be")]
    TooLarge(MaterialId),
    #[error("the payload of {material} cannot be taken")]
    Store { material: MaterialId, source: StoreError<SealError> },
    #[error(transparent)]
    Tree(#[from] TreeRefusal),
}

#[derive(Debug, Clone)]
struct Held {
    version: u64,
    created: Stamp,
    slot: Arc<Slot>,
}

/// Where plaintext is and how it is shown.
#[derive(Debug)]
struct Shown {
    vault: Vault,
    server: Server,
    audit: Audit,
}

/// Secrets and configs of one task.
#[derive(Debug)]
pub(super) struct Materials {
    pair: SealKeyPair,
    /// None for a task without grants: it needs no filesystem.
    shown: Option<Shown>,
    held: BTreeMap<MaterialId, Held>,
    sequence: u64,
}

impl Materials {
    /// Mounts an empty filesystem, if the task has grants.
    pub(super) fn mount(pair: SealKeyPair, launch: &Launch, at: &Path) -> Result<Self, SetupError> {
        let kind = if launch.vault.is_empty() { "auto" } else { &launch.vault };
        let shown = if launch.files.is_empty() {
            None
        } else {
            let vault = Vault::new(kind.parse()?, VAULT_BYTES)?;
            fs::create_dir_all(at).map_err(SetupError::Directory)?;
            let server = Server::mount(at)?;
            let counts = Arc::clone(server.audit());
            let audit = Audit::start(launch, &pair.public(), counts).map_err(SetupError::Audit)?;
            Some(Shown { vault, server, audit })
        };
        Ok(Self { pair, shown, held: BTreeMap::new(), sequence: 0 })
    }

    pub(super) fn key(&self) -> [u8; 32] {
        self.pair.public()
    }

    pub(super) fn held(&self) -> Vec<(MaterialId, u64)> {
        self.held.iter().map(|(id, held)| (*id, held.version)).collect()
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The first file without payload, if there is one.
    pub(super) fn missing<'a>(&self, launch: &'a Launch) -> Option<&'a LaunchFile> {
        launch.files.iter().find(|file| !self.held.contains_key(&file.material))
    }

    /// Applies a delivery as one. Returns the changed files, below the mount, that watchers
    /// must hear of.
    pub(super) fn deliver(
        &mut self,
        launch: &Launch,
        delivery: &Delivery,
    ) -> Result<Vec<PathBuf>, DeliveryError> {
        let applied = self.apply(launch, delivery);
        if let (Err(error), Some(shown)) = (&applied, &self.shown) {
            let materials = delivery.items.iter().map(|item| item.material).take(GRANTS);
            shown.audit.refused(materials.collect(), delivery.sequence, chain(error));
        }
        applied
    }

    fn apply(
        &mut self,
        launch: &Launch,
        delivery: &Delivery,
    ) -> Result<Vec<PathBuf>, DeliveryError> {
        if delivery.sequence <= self.sequence {
            // The same once more after a lost reply: done already.
            return if delivery.sequence == self.sequence {
                Ok(Vec::new())
            } else {
                Err(DeliveryError::Late(delivery.sequence, self.sequence))
            };
        }
        let mut fresh = BTreeMap::new();
        for item in &delivery.items {
            self.admit(launch, item)?;
            if self.held.get(&item.material).is_some_and(|held| held.version == item.version) {
                continue;
            }
            let held = self.open(launch, item, delivery.sequence)?;
            if fresh.insert(item.material, held).is_some() {
                return Err(DeliveryError::Twice(item.material));
            }
        }
        let members = members(launch, &fresh);
        let replaced = match &self.shown {
            // What could not be invalidated at once is in force all the same.
            Some(shown) if !members.is_empty() => shown.server.deliver(members)?.replaced,
            _ => Vec::new(),
        };
        for (id, new) in &fresh {
            if let Some(shown) = &self.shown {
                let from = self.held.get(id).map(|held| held.version);
                shown.audit.delivered(*id, from, new.version, delivery.sequence);
            }
        }
        self.held.append(&mut fresh);
        self.sequence = delivery.sequence;
        Ok(replaced)
    }

    fn admit(&self, launch: &Launch, item: &DeliveredItem) -> Result<(), DeliveryError> {
        let material = item.material;
        let granted = launch.files.iter().find(|file| file.material == material);
        let kind = granted.ok_or(DeliveryError::NotGranted(material))?.kind;
        let size = usize::try_from(item.size).unwrap_or(usize::MAX);
        if !kind.admits(size) {
            return Err(DeliveryError::TooLarge(material));
        }
        match self.held.get(&material) {
            Some(held) if item.version < held.version => {
                Err(DeliveryError::Older { material, offered: item.version, held: held.version })
            }
            _ => Ok(()),
        }
    }

    fn open(
        &self,
        launch: &Launch,
        item: &DeliveredItem,
        sequence: u64,
    ) -> Result<Held, DeliveryError> {
        let key = self.key();
        let seal = ShimSeal {
            cluster: launch.cluster,
            node: launch.node,
            task: launch.task,
            key: &key,
            material: item.material,
            version: item.version,
            sequence,
        };
        let shown = self.shown.as_ref().ok_or(DeliveryError::NotGranted(item.material))?;
        let size = usize::try_from(item.size).unwrap_or(usize::MAX);
        let store = || {
            shown.vault.store(size, |plain| open_in_shim(&seal, &self.pair, &item.sealed, plain))
        };
        let stored = match store() {
            Err(StoreError::Vault(VaultError::Full { .. })) => {
                // Readers of replaced versions lose them; those of the current ones do not.
                let _ = shown.server.forget_old();
                store()
            }
            other => other,
        };
        let slot =
            stored.map_err(|source| DeliveryError::Store { material: item.material, source })?;
        Ok(Held { version: item.version, created: item.created, slot: Arc::new(slot) })
    }

    /// Takes materials away. What is not held is none the less revoked.
    pub(super) fn revoke(&mut self, launch: &Launch, sequence: u64, materials: &[MaterialId]) {
        let gone: BTreeSet<_> = materials.iter().collect();
        let targets: Vec<_> =
            launch.files.iter().filter(|f| gone.contains(&f.material)).map(target).collect();
        if let Some(shown) = &self.shown {
            // In force even if the kernel still has mapped pages to drop.
            let _ = shown.server.revoke(&targets);
            for id in launch.files.iter().map(|file| file.material).collect::<BTreeSet<_>>() {
                if gone.contains(&id) {
                    let version = self.held.get(&id).map(|held| held.version);
                    shown.audit.revoked(id, version, sequence);
                }
            }
        }
        self.held.retain(|id, _| !gone.contains(id));
        self.sequence = self.sequence.max(sequence);
    }

    /// What to bind into the container: source on the host, target in the container.
    pub(super) fn binds(&self, mounted: &Path) -> Vec<(PathBuf, PathBuf)> {
        let binds = self.shown.as_ref().map(|shown| shown.server.binds());
        binds.into_iter().flatten().map(|bind| (mounted.join(bind.source), bind.target)).collect()
    }

    /// The task has ended: nothing can be read any more, and the memory is zeroed.
    pub(super) fn end(&mut self) {
        if let Some(shown) = &self.shown {
            let _ = shown.server.refuse_all();
            self.held.clear();
            shown.vault.wipe();
        }
    }

    /// The last record of the audit, and all of it on the disk.
    pub(super) fn end_audit(&self) -> io::Result<()> {
        self.shown.as_ref().map_or(Ok(()), |shown| shown.audit.end())
    }

    /// Who opened what so far. Of what a file is made is named as in `launch`.
    pub(super) fn audit(&self, launch: &Launch) -> Vec<AuditRow> {
        let stamp = |ns: i64| Stamp(u64::try_from(ns).unwrap_or(0));
        let name = |id: &str| {
            let mut files = launch.files.iter();
            files.find(|f| f.material.as_str() == id).map(|f| f.name.clone()).unwrap_or_default()
        };
        let row = |row: skep_fuse::audit::Row| {
            let reader = row.reader;
            let executable = reader.as_ref().and_then(|r| r.executable.as_deref());
            AuditRow {
                executable: executable.map(|p| p.to_string_lossy().into()).unwrap_or_default(),
                name: reader.as_ref().map(|r| name(&r.secret)).unwrap_or_default(),
                version: reader.as_ref().map_or(0, |r| r.version),
                uid: reader.as_ref().map_or(0, |r| r.uid),
                gid: reader.as_ref().map_or(0, |r| r.gid),
                count: row.opened,
                first: stamp(row.first_ns),
                last: stamp(row.last_ns),
                refused: row.refused,
            }
        };
        let rows = self.shown.as_ref().map(|shown| shown.server.audit().snapshot());
        rows.into_iter().flatten().map(row).collect()
    }
}

/// Where a file shows: a config's relative target is below `/`, a secret's below
/// `/run/secrets`.
fn target(file: &LaunchFile) -> String {
    match file.kind {
        MaterialKind::Config if !file.target.starts_with('/') => format!("/{}", file.target),
        _ => file.target.clone(),
    }
}

fn members(launch: &Launch, fresh: &BTreeMap<MaterialId, Held>) -> Vec<Member> {
    let member = |file: &LaunchFile| {
        let held = fresh.get(&file.material)?;
        let grant = Grant {
            target: target(file),
            // Of a secret and a config of one name the audit knows which is which.
            secret: file.material.to_string(),
            version: held.version,
            uid: file.uid,
            gid: file.gid,
            mode: file.mode,
            size: held.slot.len() as u64,
            mtime_ns: i64::try_from(held.created.0).unwrap_or(i64::MAX),
        };
        Some(Member { grant, content: Arc::clone(&held.slot) })
    };
    launch.files.iter().filter_map(member).collect()
}
