//! How a node ceases to be a member: it leaves, or it was removed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::{Node, Swarm};
use crate::chain::chain;
use crate::engine::cgroup::Cgroups;
use crate::gate::{Done, Refusal};
use crate::manager::failed;
use crate::wire::session::FromAgent;

/// How long the swarm is given to hear that a node leaves.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long the other managers are given to let one of them go.
const DISMISSAL: Duration = Duration::from_secs(5);

impl Node {
    /// Leaves the swarm: stops every task, forgets every key.
    ///
    /// # Errors
    /// Without force, if it is a manager; or if the disk refuses.
    pub async fn leave(&self, force: bool) -> Result<Done, Refusal> {
        let _membership = self.membership.lock().await;
        if self.is_locked() {
            return self.leave_locked(force).await;
        }
        let swarm = self.swarm().ok_or(Refusal::NotInSwarm)?;
        if let Some(manager) = swarm.manager() {
            if !force {
                self.check_not_outlived()?;
                return Err(manager.why_not_leave());
            }
            // A voter that just goes would count against every quorum from then on.
            match timeout(DISMISSAL, manager.resign()).await {
                // The swarm of today does not count it.
                Ok(Ok(()) | Err(Refusal::Outlived(_))) => {}
                Ok(Err(refusal)) => {
                    tracing::warn!(%refusal, "the other managers still count this one");
                }
                Err(_) => tracing::warn!("the other managers do not answer; leaving by force"),
            }
        }
        let goodbye = async {
            let said = swarm.agent.context().session.send(FromAgent::Leave).await;
            if said.is_ok() {
                swarm.agent.context().session.closed().await;
            }
        };
        // The swarm of today does not know this node.
        if swarm.outlived().is_none() && timeout(GOODBYE, goodbye).await.is_err() {
            tracing::warn!("no manager hears that this node leaves; it will be seen as down");
        }
        self.forget(&swarm).await?;
        Ok(Done::Nothing)
    }

    /// Leaves without a word: nothing can be said to the swarm without the node's key.
    async fn leave_locked(&self, force: bool) -> Result<Done, Refusal> {
        if !force {
            return Err(Refusal::Locked);
        }
        let Some(parked) = self.parked().take() else { return Err(Refusal::NotInSwarm) };
        parked.parts.agent.end_all().await;
        if let Ok(cgroups) = Cgroups::detect() {
            cgroups.remove(&format!("/skep/{}", parked.parts.node));
        }
        self.store.wipe(&parked.file).map_err(|e| failed("cannot forget the swarm", e))?;
        Ok(Done::Nothing)
    }

    /// Ends all tasks and removes all keys.
    async fn forget(&self, swarm: &Swarm) -> Result<(), Refusal> {
        self.set_swarm(None);
        swarm.halt().await;
        swarm.agent.end_all().await;
        // Where cgroups cannot be found there is nothing to remove either.
        if let Ok(cgroups) = Cgroups::detect() {
            cgroups.remove(&format!("/skep/{}", swarm.node));
        }
        self.store.wipe(&swarm.file()).map_err(|e| failed("cannot forget the swarm", e))
    }

    /// Forgets the swarm once a manager has said that this node was removed from it.
    pub(super) async fn forget_when_removed(
        self: Arc<Self>,
        swarm: Arc<Swarm>,
        mut removed: watch::Receiver<bool>,
    ) {
        if removed.wait_for(|removed| *removed).await.is_err() {
            return;
        }
        let _membership = self.membership.lock().await;
        let is_current = self.swarm().is_some_and(|current| Arc::ptr_eq(&current, &swarm));
        if !is_current {
            return;
        }
        tracing::warn!("this node was removed from its swarm: ending its tasks, removing its keys");
        if let Err(refusal) = self.forget(&swarm).await {
            tracing::error!(error = chain(&refusal), "the swarm cannot be forgotten");
        }
    }
}
