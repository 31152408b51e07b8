//! How a manager that has lost the others for good makes the swarm its own.

use std::sync::Arc;

use skep_core::command::Command;

use super::{Node, StartError, Swarm};
use crate::config;
use crate::gate::{Done, Refusal, SwarmInit};
use crate::manager::failed;
use skep_raft::Raft;

impl Node {
    /// Takes this manager's log as all there is, and makes it the only manager. Join tokens and
    /// the ring are new, the incarnation is raised, and the other managers are no longer members.
    ///
    /// # Errors
    /// If this node is no manager, the swarm still has a quorum, or the disk refuses.
    pub(super) async fn force_new_cluster(
        self: &Arc<Self>,
        init: SwarmInit,
    ) -> Result<Done, Refusal> {
        let swarm = self.swarm().ok_or(Refusal::NotInSwarm)?;
        let half = swarm.half().ok_or(Refusal::NotManager)?;
        let others = half.manager.raft.members().voters.len().saturating_sub(1);
        if others > 0 && half.manager.confirm().await.is_ok() {
            return Err(Refusal::Invalid(format!(
                "the swarm has a quorum, so nothing needs to be forced: this would cut off the \
                 {others} other managers, which would go on without this one; demote or remove \
                 them instead"
            )));
        }
        let addr = self.forced_addr(&swarm, &init)?;
        swarm.set_half(None);
        half.halt().await;
        drop(half);
        let outcome = self.go_on_alone(&swarm, &addr).await;
        if swarm.half().is_none() {
            // Without a log of its own it can still be what it was.
            self.start_half(&swarm).await.map_err(|e: StartError| failed("cannot go on", e))?;
        }
        outcome.map(|()| Done::Swarm(swarm.node))
    }

    fn forced_addr(&self, swarm: &Swarm, init: &SwarmInit) -> Result<String, Refusal> {
        if init.advertise_addr.is_empty() {
            return Ok(swarm.advertise().to_owned());
        }
        let bound = swarm.net.local_addr().map_err(|e| failed("cannot use the UDP port", e))?;
        let addr = config::advertise(&self.config, &init.advertise_addr, bound);
        Ok(addr.map_err(|e| Refusal::Invalid(e.to_string()))?.to_string())
    }

    async fn go_on_alone(self: &Arc<Self>, swarm: &Arc<Swarm>, addr: &str) -> Result<(), Refusal> {
        let rekeyed = self.finish_rekey(&swarm.file()).await;
        rekeyed.map_err(|e| failed("cannot end the change of the log's key", e))?;
        let mut config =
            self.raft_config(&swarm.file()).map_err(|e| failed("cannot read the log's key", e))?;
        config.addr = addr.to_owned();
        let recovery = Raft::recover_alone(&config).await;
        let recovery = recovery.map_err(|e| failed("cannot make the log this node's own", e))?;
        self.start_half(swarm).await.map_err(|e: StartError| failed("cannot start the log", e))?;
        let manager = swarm.manager().ok_or(Refusal::NotManager)?;
        let (key, secrets) = manager.key_for_me()?;
        let incarnation_id = crate::seal::random().map_err(|e| failed("cannot make an id", e))?;
        let (node, addr) = (swarm.node, addr.to_owned());
        manager.propose(Command::ClusterForce { node, addr, incarnation_id, key, secrets }).await?;
        tracing::warn!(
            known_as_committed = recovery.committed_index,
            taken_as_committed = recovery.last_index,
            "this manager has made the swarm its own; what others acknowledged beyond its log is \
             lost, the other managers must be wiped to join again, and all join tokens are new"
        );
        Ok(())
    }
}
