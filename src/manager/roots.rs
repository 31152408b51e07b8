//! A change of the swarm's root: the new one is vouched for by the old one, every node gets a
//! certificate of it, and then the old one goes.

use skep_core::command::{CaChange, Command, Rejection};
use skep_core::model::cluster::NextRoot;
use skep_core::model::node::Role;

use super::init::CA_KEY;
use super::{Manager, failed};
use crate::gate::{Done, Refusal};
use crate::identity::ca::{CaError, Root};
use crate::seal::SealError;

impl Manager {
    /// Begins a change of the root.
    ///
    /// # Errors
    /// If one is under way, or the CA's key does not open.
    pub(super) async fn change_root(&self, version: u64) -> Result<Done, Refusal> {
        let making = |e: CaError| failed("cannot make a root certificate", e);
        let sealing = |e: SealError| failed("cannot open the CA's key", e);
        self.confirm().await?;
        let trust = self.raft.view(|state| state.cluster().map(|c| c.trust.clone()));
        let trust = trust.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        let old_key = self.open_trust(trust.root_key.as_ref(), CA_KEY).map_err(sealing)?;
        let old_pem = trust.roots.last().map(String::as_str).unwrap_or_default();
        let old = Root::from_parts(old_pem, &old_key).map_err(making)?;
        let new = Root::generate().map_err(making)?;
        let mut key = new.key_der();
        let aad = self.cluster.as_str().as_bytes();
        let key = self.current_key()?.seal_purpose(CA_KEY, aad, &mut key).map_err(sealing)?;
        let root = NextRoot {
            cross_pem: old.cross_sign(&new).map_err(making)?,
            pem: new.pem.clone(),
            subject: new.subject.clone(),
            public_key: new.public_key.clone(),
            key,
            moved: Default::default(),
        };
        self.propose(Command::CaChange(Box::new(CaChange::Begin { version, root }))).await?;
        Ok(Done::Nothing)
    }

    /// Ends a change of the root once every node has a certificate of the new one. Whether there
    /// was something to do.
    pub(super) async fn finish_root(&self) -> bool {
        let is_due = self.raft.view(|state| {
            let next = state.cluster().and_then(|cluster| cluster.trust.next.as_ref());
            next.is_some_and(|next| state.nodes().all(|node| next.moved.contains(&node.id)))
        });
        if !is_due {
            return false;
        }
        match self.end_change_of_root().await {
            Ok(_) => {
                tracing::info!("the swarm's old root certificate is gone; join tokens are new");
            }
            Err(error) => tracing::warn!(%error, "the old root certificate stays for now"),
        }
        true
    }

    async fn end_change_of_root(&self) -> Result<u64, Refusal> {
        let version = self.raft.view(|state| state.cluster().map(|cluster| cluster.meta.version));
        let version = version.ok_or(Refusal::Rejected(Rejection::NoCluster))?;
        let tokens = self.new_tokens(&*self.current_key()?, &[Role::Worker, Role::Manager]);
        let tokens = tokens.map_err(|e| failed("cannot make new join tokens", e))?;
        let finish = CaChange::Finish { version, force: false, tokens };
        self.decide(Command::CaChange(Box::new(finish))).await
    }
}
