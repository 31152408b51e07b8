//! New versions of secrets and configs: sent by a user, or an old one once more.

use std::sync::Arc;

use skep_core::command::{Append, Command, Outcome, Rejection};
use skep_core::id::MaterialId;
use skep_core::limits;
use skep_core::model::Kind;
use skep_core::model::material::{Author, MaterialKind, MaterialSpec};
use skep_core::sealed::Sealed;
use subtle::ConstantTimeEq;

use super::door::{RESEALS, sealing, size_rule};
use super::{Manager, mint};
use crate::gate::{Done, NewVersion, Refusal, Source};
use crate::protected::Protected;
use crate::seal::{PayloadName, RingSecret};

/// A version before it has its number for good.
struct Draft {
    id: MaterialId,
    kind: MaterialKind,
    number: u64,
    size: u64,
    of: Option<u64>,
    /// Under the number above.
    sealed: Sealed,
}

/// A secret or config as the next version finds it.
struct Found {
    kind: MaterialKind,
    name: String,
    latest: u64,
    next: u64,
    is_revoked: bool,
}

/// Commands that a swarm with all the versions it may have takes to be pruned.
const PRUNES: usize = limits::MATERIALS * limits::MATERIAL_VERSIONS / limits::PRUNE + 1;

fn missing(id: MaterialId) -> Refusal {
    Rejection::NotFound { kind: Kind::Secret, what: id.to_string() }.into()
}

impl Manager {
    /// Appends a version to each, all at once or none. One that has the latest bytes already keeps
    /// its version: nothing has changed for whoever reads it. Answers the versions in the order of
    /// `items`.
    ///
    /// # Errors
    /// Why none was appended.
    pub(super) async fn append_versions(
        &self,
        items: Vec<NewVersion>,
        keep: Option<u32>,
        uid: u32,
    ) -> Result<Done, Refusal> {
        self.confirm().await?;
        let mut key = self.current_key()?;
        let ids: Vec<MaterialId> = items.iter().map(|item| item.id).collect();
        let mut numbers = Vec::with_capacity(items.len());
        let mut drafts = Vec::with_capacity(items.len());
        for NewVersion { id, source } in items {
            let found = self.find(id)?;
            match self.draft(&key, id, &found, source)? {
                Some(draft) => {
                    numbers.push(Err(drafts.len()));
                    drafts.push(draft);
                }
                None => numbers.push(Ok(found.latest)),
            }
        }
        if !drafts.is_empty() {
            self.append(&mut key, &mut drafts, keep, Author { node: self.node, uid }).await?;
        }
        if let Some(keep) = keep {
            for (id, _) in ids.iter().zip(&numbers).filter(|(_, number)| number.is_ok()) {
                self.set_keep(*id, keep).await?;
            }
        }
        let number = |at: usize| drafts.get(at).map_or(0, |draft| draft.number);
        Ok(Done::Versions(numbers.into_iter().map(|n| n.unwrap_or_else(number)).collect()))
    }

    /// Sets how many versions one keeps that gets no new one.
    async fn set_keep(&self, id: MaterialId, keep: u32) -> Result<(), Refusal> {
        for _ in 0..RESEALS {
            let found = self.raft.view(|state| {
                let material = state.material(&id)?;
                Some((material.meta.version, material.spec.clone()))
            });
            let (version, spec) = found.ok_or_else(|| missing(id))?;
            let spec = MaterialSpec { keep: Some(keep), ..spec };
            match self.propose(Command::MaterialUpdate { id, version, spec }).await {
                Ok(_) => return Ok(()),
                // Somebody else was faster.
                Err(Refusal::Rejected(Rejection::OutOfSequence)) => self.confirm().await?,
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Rejection::OutOfSequence.into())
    }

    /// Drops versions that nobody uses, as many as there are. Answers them. If it fails midway,
    /// some may be gone: the same request drops the rest.
    ///
    /// # Errors
    /// Why they were not all dropped.
    pub(super) async fn prune_versions(
        &self,
        kind: MaterialKind,
        ids: Vec<MaterialId>,
        keep: Option<u32>,
    ) -> Result<Done, Refusal> {
        let mut all = Vec::new();
        for _ in 0..PRUNES {
            let request = mint().map_err(sealing)?;
            let command = Command::MaterialPrune { kind, ids: ids.clone(), keep };
            match self.outcome(request, command).await? {
                Outcome::Pruned(dropped) => {
                    let is_last = dropped.len() < limits::PRUNE;
                    all.extend(dropped);
                    if is_last {
                        break;
                    }
                }
                Outcome::Rejected(rejection) => return Err(rejection.into()),
                Outcome::Done(_) => break,
            }
        }
        Ok(Done::Pruned(all))
    }

    async fn append(
        &self,
        key: &mut Arc<RingSecret>,
        drafts: &mut [Draft],
        keep: Option<u32>,
        by: Author,
    ) -> Result<(), Refusal> {
        for _ in 0..RESEALS {
            let items = drafts.iter().map(Draft::item).collect();
            match self.propose(Command::MaterialAppend { items, by, keep }).await {
                Ok(_) => return Ok(()),
                // Somebody else was faster, or the ring turned.
                Err(Refusal::Rejected(Rejection::StaleKey { .. } | Rejection::OutOfSequence)) => {
                    self.confirm().await?;
                    let next = self.current_key()?;
                    for draft in &mut *drafts {
                        self.renumber(key, &next, draft)?;
                    }
                    *key = next;
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::NoLeader)
    }

    fn find(&self, id: MaterialId) -> Result<Found, Refusal> {
        let found = self.raft.view(|state| {
            let material = state.material(&id)?;
            Some(Found {
                kind: material.kind,
                name: material.spec.name.clone(),
                latest: material.latest()?.number,
                next: material.last_version + 1,
                is_revoked: !material.revoked.is_empty(),
            })
        });
        found.ok_or_else(|| missing(id))
    }

    /// Seals what is to be the next version; none if it is the latest already.
    fn draft(
        &self,
        key: &RingSecret,
        id: MaterialId,
        found: &Found,
        source: Source,
    ) -> Result<Option<Draft>, Refusal> {
        let Found { kind, latest, next, .. } = *found;
        let (plain, of) = match source {
            Source::Payload(payload) => (payload, None),
            Source::Version(number) => (self.open_version(id, found, number)?, Some(number)),
        };
        if !kind.admits(plain.len()) {
            return Err(Rejection::Invalid(size_rule(kind)).into());
        }
        // Whoever gives back what was revoked means it.
        if !found.is_revoked {
            let old = self.open_version(id, found, latest)?;
            if bool::from(old.as_slice().ct_eq(plain.as_slice())) {
                return Ok(None);
            }
        }
        let name = PayloadName { cluster: self.cluster, kind, id, version: next };
        let size = plain.len() as u64;
        let sealed = key.seal(&name, plain).map_err(sealing)?;
        Ok(Some(Draft { id, kind, number: next, size, of, sealed }))
    }

    fn open_version(
        &self,
        id: MaterialId,
        found: &Found,
        number: u64,
    ) -> Result<Protected, Refusal> {
        let sealed = self.raft.view(|state| state.payload(&id, number).cloned());
        let sealed = sealed.ok_or_else(|| {
            Rejection::Precondition(format!(
                "{} {} has no version {number}, or not any more: choose one of its history",
                found.kind.kind().word(),
                found.name
            ))
        })?;
        self.open(found.kind, id, number, &sealed).map_err(sealing)
    }

    /// Seals a draft anew, by the number and the key that are due now.
    fn renumber(
        &self,
        old: &RingSecret,
        new: &RingSecret,
        draft: &mut Draft,
    ) -> Result<(), Refusal> {
        let next = self.find(draft.id)?.next;
        let named = |version| PayloadName {
            cluster: self.cluster,
            kind: draft.kind,
            id: draft.id,
            version,
        };
        let plain = old.open(&named(draft.number), &draft.sealed).map_err(sealing)?;
        draft.sealed = new.seal(&named(next), plain).map_err(sealing)?;
        draft.number = next;
        Ok(())
    }
}

impl Draft {
    fn item(&self) -> Append {
        Append {
            id: self.id,
            number: self.number,
            size: self.size,
            payload: self.sealed.clone(),
            of: self.of,
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_core::outcome::Dropped;

    use super::super::testing::{manager, secret};
    use super::*;
    use crate::gate::Request;

    fn update(ids: &[MaterialId], payload: &[u8], keep: Option<u32>) -> Request {
        let item = |id: &MaterialId| NewVersion {
            id: *id,
            source: Source::Payload(Protected::copy_of(payload).unwrap()),
        };
        Request::MaterialAppend { items: ids.iter().map(item).collect(), keep, uid: 0 }
    }

    #[tokio::test]
    async fn how_many_are_kept_is_taken_over_with_the_same_bytes_too() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path()).await;
        let mut ids = Vec::new();
        for name in ["a", "b"] {
            let done = manager.submit(secret(name, b"first")).await.unwrap();
            let Done::Material(id) = done else { panic!("{done:?}") };
            ids.push(id);
        }
        let keep = |id: &MaterialId| manager.raft.view(|state| state.material(id).unwrap().keep());
        let versions = |numbers: [u64; 2]| Done::Versions(numbers.to_vec());
        let done = manager.submit(update(&ids[..1], b"second", None)).await.unwrap();
        assert_eq!(done, Done::Versions(vec![2]));
        // One has these bytes, and the other has not.
        let done = manager.submit(update(&ids, b"second", Some(3))).await.unwrap();
        assert_eq!(done, versions([2, 2]));
        assert_eq!((keep(&ids[0]), keep(&ids[1])), (3, 3));
        for bad in [0, 65] {
            let error = manager.submit(update(&ids, b"second", Some(bad))).await.unwrap_err();
            assert!(error.to_string().contains(&format!("cannot keep {bad} versions")), "{error}");
        }
        let prune = |ids: Vec<MaterialId>, keep| Request::MaterialPrune {
            kind: MaterialKind::Secret,
            ids,
            keep,
        };
        let dropped = |id, version| Dropped { id, version, size: 5 };
        let done = manager.submit(prune(ids[..1].to_vec(), Some(1))).await.unwrap();
        assert_eq!(done, Done::Pruned(vec![dropped(ids[0], 1)]));
        let done = manager.submit(prune(vec![], Some(1))).await.unwrap();
        assert_eq!(done, Done::Pruned(vec![dropped(ids[1], 1)]));
        let error = manager.submit(prune(vec![], Some(0))).await.unwrap_err();
        assert!(error.to_string().contains("cannot keep 0 versions"), "{error}");
        assert!(manager.open_latest(ids[1]).is_ok());
        manager.raft.shutdown().await;
    }
}
