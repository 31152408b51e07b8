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
use skep_fuse::server::{DeliverError as TreeRefusal, Member, MountError, NotifyError, Server};
use skep_fuse::tree::Grant;
use skep_fuse::vault::{Slot, StoreError, UnknownKind, Vault, VaultError};

use super::audit::Audit;
use super::ledger::{Barred, Ledger};
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
    #[error("{0} is not granted to this task")]
    NotGranted(MaterialId),
    #[error("{0} is in the delivery twice")]
    Twice(MaterialId),
    #[error(transparent)]
    Barred(#[from] Barred),
    #[error("the payload of {0} is larger than this kind may be")]
    TooLarge(MaterialId),
    #[error("the payload of {material} cannot be taken")]
    Store { material: MaterialId, source: StoreError<SealError> },
    #[error(transparent)]
    Tree(#[from] TreeRefusal),
}

impl DeliveryError {
    /// Whether who sent it was behind: nothing is wrong with the task.
    pub(super) fn is_outdated(&self) -> bool {
        matches!(self, Self::Barred(_))
    }
}

/// A revocation that may not have reached every page that a process has mapped.
#[derive(Debug, thiserror::Error)]
#[error("what is revoked can be opened and read no more, but mapped pages of it may be left")]
pub(super) struct RevokeError(#[from] NotifyError);

/// What a delivery changed for those who watch.
#[derive(Debug, Default)]
pub(super) struct Switched {
    /// Files, below the mount, with other content than before.
    pub(super) replaced: Vec<PathBuf>,
    /// Signals that the container's first process is to get, and for what.
    pub(super) signals: Signals,
}

/// Signals, each with the secrets and configs whose new versions it tells of.
pub(super) type Signals = BTreeMap<i32, BTreeSet<MaterialId>>;

/// A version that was opened and is not in force yet.
#[derive(Debug)]
struct Fresh {
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
    ledger: Ledger,
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
        Ok(Self { pair, shown, ledger: Ledger::default() })
    }

    pub(super) fn key(&self) -> [u8; 32] {
        self.pair.public()
    }

    pub(super) fn held(&self) -> Vec<(MaterialId, u64)> {
        self.ledger.held().iter().map(|(id, version)| (*id, *version)).collect()
    }

    /// Sequence of the last order that was taken.
    pub(super) fn sequence(&self) -> u64 {
        self.ledger.sequence()
    }

    /// Why the container cannot start: the first file without payload, if there is one.
    pub(super) fn missing(&self, launch: &Launch) -> Option<String> {
        let is_missing = |file: &&LaunchFile| !self.ledger.held().contains_key(&file.material);
        let file = launch.files.iter().find(is_missing)?;
        Some(match self.ledger.is_revoked(&file.material) {
            true => format!("{:?} is revoked", file.name),
            false => format!("no payload for {:?} yet", file.name),
        })
    }

    /// Applies a delivery as one, unless it is late.
    pub(super) fn deliver(
        &mut self,
        launch: &Launch,
        delivery: &Delivery,
    ) -> Result<Switched, DeliveryError> {
        // A later order was taken, or this one was and its answer was lost.
        if self.ledger.is_late(delivery.sequence) {
            return Ok(Switched::default());
        }
        let applied = self.apply(launch, delivery);
        if let (Err(error), Some(shown)) = (&applied, &self.shown) {
            let materials = delivery.items.iter().map(|item| item.material).take(GRANTS);
            shown.audit.refused(materials.collect(), delivery.sequence, chain(error));
        }
        applied
    }

    fn apply(&mut self, launch: &Launch, delivery: &Delivery) -> Result<Switched, DeliveryError> {
        let sequence = delivery.sequence;
        let mut fresh = BTreeMap::new();
        for item in &delivery.items {
            if !self.admit(launch, item)? {
                continue;
            }
            let opened = self.open(launch, item, sequence)?;
            if fresh.insert(item.material, opened).is_some() {
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
                let from = self.ledger.held().get(id).copied();
                shown.audit.delivered(*id, from, new.version, sequence);
            }
        }
        let mut signals = Signals::new();
        let renewed = |file: &&LaunchFile| {
            fresh.contains_key(&file.material) && self.ledger.replaces(&file.material)
        };
        for file in launch.files.iter().filter(renewed) {
            if let Some(signal) = file.signal {
                signals.entry(signal).or_default().insert(file.material);
            }
        }
        self.ledger.took(sequence, fresh.iter().map(|(id, new)| (*id, new.version)));
        Ok(Switched { replaced, signals })
    }

    /// Whether an item is to be opened; one that is held is not.
    fn admit(&self, launch: &Launch, item: &DeliveredItem) -> Result<bool, DeliveryError> {
        let material = item.material;
        let granted = launch.files.iter().find(|file| file.material == material);
        let kind = granted.ok_or(DeliveryError::NotGranted(material))?.kind;
        let size = usize::try_from(item.size).unwrap_or(usize::MAX);
        if !kind.admits(size) {
            return Err(DeliveryError::TooLarge(material));
        }
        Ok(self.ledger.admit(material, item.version)?)
    }

    fn open(
        &self,
        launch: &Launch,
        item: &DeliveredItem,
        sequence: u64,
    ) -> Result<Fresh, DeliveryError> {
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
        Ok(Fresh { version: item.version, created: item.created, slot: Arc::new(slot) })
    }

    /// Takes versions away for good, up to the one named with each; what is not held is none the
    /// less revoked. Takes hold however late the order comes: what is revoked once is never given
    /// back. Returns when no read succeeds any more, those through open handles and mapped pages
    /// included.
    pub(super) fn revoke(
        &mut self,
        launch: &Launch,
        sequence: u64,
        revoked: &[(MaterialId, u64)],
    ) -> Result<(), RevokeError> {
        // What is not granted is not kept in mind either: that is the bound.
        let is_granted = |id: &MaterialId| launch.files.iter().any(|file| file.material == *id);
        let revoked = revoked.iter().filter(|(id, _)| is_granted(id));
        let (mut gone, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for (id, up_to) in revoked {
            let is_known = self.ledger.is_barred(id, *up_to);
            if self.ledger.bar(*id, *up_to) {
                gone.insert(*id);
            } else if !is_known {
                kept.insert(*id);
            }
        }
        if let Some(shown) = &self.shown {
            let targets = launch.files.iter().filter(|file| gone.contains(&file.material));
            shown.server.revoke(&targets.map(target).collect::<Vec<_>>())?;
            // Handles may still pin a revoked version of what is held in a later one.
            if kept.iter().any(|id| self.ledger.held().contains_key(id)) {
                shown.server.forget_old()?;
            }
            for id in gone.union(&kept) {
                let version = self.ledger.held().get(id).copied();
                let version = version.filter(|_| gone.contains(id));
                shown.audit.revoked(*id, version, sequence);
            }
        }
        self.ledger.let_go(sequence, &gone);
        Ok(())
    }

    /// Notes that the container's first process was sent a signal.
    pub(super) fn note_signal(&self, materials: Vec<MaterialId>, signal: i32, sequence: u64) {
        if let Some(shown) = &self.shown {
            shown.audit.signalled(materials, signal, sequence);
        }
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
            self.ledger.clear();
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

fn members(launch: &Launch, fresh: &BTreeMap<MaterialId, Fresh>) -> Vec<Member> {
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
