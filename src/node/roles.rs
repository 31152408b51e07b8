//! What a node does when the swarm makes it a manager or a worker: another certificate, another
//! identity file, and the manager half started or ended.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::part::Swarm;
use super::{Node, StartError, disk};
use crate::chain::chain;
use crate::gate::Refusal;
use crate::limits::{NET_ANSWER, NET_MESSAGE_BYTES};
use crate::manager::failed;
use crate::manager::stopped;
use crate::net::{Closed, Expected};
use crate::wire::join::{JoinAnswer, JoinRequest};
use crate::wire::{receive, send};

/// Pause before a change of role that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Node {
    /// Makes of the node what the swarm says it is, until it stops.
    pub(super) async fn keep_role(
        self: Arc<Self>,
        swarm: Arc<Swarm>,
        mut role: watch::Receiver<u64>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let wanted = *role.borrow_and_update();
            if wanted != swarm.file().raft_id
                && let Err(error) = self.turn(&swarm, wanted).await
            {
                tracing::warn!(error = chain(&error), "the change of role waits");
                tokio::select! {
                    () = stopped(&mut stop) => return,
                    () = sleep(RETRY) => continue,
                }
            }
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = role.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn turn(self: &Arc<Self>, swarm: &Arc<Swarm>, raft_id: u64) -> Result<(), Refusal> {
        let had = swarm.file().raft_id;
        if had != 0 {
            tracing::info!("this node is no longer a manager");
            if let Some(half) = swarm.half() {
                // Until the others have let it go they may need its vote for that.
                half.manager.await_dismissal().await;
                swarm.set_half(None);
                half.halt().await;
            }
            self.renew(swarm).await?;
            self.note(swarm, 0)?;
            self.store.unlock_for_good().map_err(disk)?;
            self.store.forget_log().map_err(disk)?;
        }
        if raft_id == 0 {
            return Ok(());
        }
        tracing::info!("this node becomes a manager");
        self.renew(swarm).await?;
        // Nothing of an earlier time as manager is of use to this one.
        self.store.forget_log().map_err(disk)?;
        self.store.make_storage_key().map_err(disk)?;
        self.note(swarm, raft_id)?;
        let start = |e: StartError| failed("cannot start as manager", e);
        self.start_half(swarm).await.map_err(start)
    }

    /// Writes down the node's Raft id; 0 for a worker.
    fn note(&self, swarm: &Swarm, raft_id: u64) -> Result<(), Refusal> {
        let mut file = swarm.file.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = crate::identity::store::NodeFile { raft_id, ..file.clone() };
        self.store.save(&changed).map_err(disk)?;
        *file = changed;
        Ok(())
    }

    /// Gets a certificate that says what this node is now, from any manager, itself included.
    ///
    /// # Errors
    /// If no manager gives one.
    pub(super) async fn renew(&self, swarm: &Swarm) -> Result<(), Refusal> {
        let key = self.store.load_node_key().map_err(disk)?;
        let csr = key.csr().map_err(|e| failed("cannot make a certificate request", e))?;
        let managers = swarm.book().directory().borrow().managers.clone();
        let mut last = Refusal::NoLeader;
        for manager in managers {
            let expected =
                Expected { node: manager.node, public_key: manager.public_key, addr: manager.addr };
            match self.ask_to_renew(swarm, &expected, csr.clone()).await {
                Ok((chain, roots)) => {
                    self.store.save_chain(&chain).map_err(disk)?;
                    return self.show(swarm, &chain, &roots);
                }
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    async fn ask_to_renew(
        &self,
        swarm: &Swarm,
        expected: &Expected,
        csr: Vec<u8>,
    ) -> Result<(String, Vec<String>), Refusal> {
        let what = "cannot get a certificate";
        let connection = swarm.net.dial_to_renew(expected).await.map_err(|e| failed(what, e))?;
        let asked = async {
            let (mut tx, mut rx) = connection.open_bi().await.map_err(std::io::Error::from)?;
            send(&mut tx, &JoinRequest::Renew { csr }).await?;
            let _ = tx.finish();
            receive(&mut rx, NET_MESSAGE_BYTES).await
        };
        let answer = timeout(NET_ANSWER, asked).await;
        connection.close(Closed::Stopping.code().into(), b"renewed");
        match answer {
            Ok(Ok(JoinAnswer::Renewed { chain, roots })) => Ok((chain, roots)),
            Ok(Ok(JoinAnswer::Refused(text))) => Err(Refusal::Invalid(text)),
            Ok(Ok(JoinAnswer::Welcome(_))) => Err(failed(what, "an answer to another question")),
            Ok(Err(error)) => Err(failed(what, error)),
            Err(_) => Err(failed(what, format!("no answer within {NET_ANSWER:?}"))),
        }
    }
}
