//! How a node makes a swarm of its own.

use std::sync::Arc;

use skep_core::command::{Command, Rejection};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::NodeSpec;
use zeroize::Zeroizing;

use super::{Node, StartError, disk};
use crate::config;
use crate::gate::{Done, Refusal, SwarmInit};
use crate::identity::lock::UnlockKey;
use crate::identity::store::{LAYOUT, NodeFile, Standing};
use crate::manager::init::{Founder, Founding, found};
use crate::manager::{failed, mint};
use crate::net::Net;
use crate::wire::session::Directory;

impl Node {
    /// Makes a swarm with this node as its first manager.
    ///
    /// # Errors
    /// If there is one already, the address is wrong, or the disk refuses.
    pub async fn init(self: &Arc<Self>, init: SwarmInit) -> Result<Done, Refusal> {
        let _membership = self.membership.lock().await;
        self.check_not_outlived()?;
        if init.force_new_cluster {
            return Box::pin(self.force_new_cluster(init)).await;
        }
        if self.swarm().is_some() {
            return Err(Refusal::AlreadyInSwarm);
        }
        if let Some(rule) = init.spec.broken_rule() {
            return Err(Rejection::Invalid(rule).into());
        }
        let invalid = |e: config::ConfigError| Refusal::Invalid(e.to_string());
        let listen = self.listen_addr(&init.listen_addr)?;
        let net = Net::speaking(listen, self.config.build.names)
            .map_err(|e| Refusal::Invalid(e.to_string()))?;
        let bound = net.local_addr().map_err(|e| failed("cannot use the UDP port", e))?;
        let addr = config::advertise(&self.config, &init.advertise_addr, bound).map_err(invalid)?;
        let minted = |e| failed("cannot make an id", e);
        let (cluster, node): (ClusterId, NodeId) =
            (mint().map_err(minted)?, mint().map_err(minted)?);
        let raft_id = u64::from_be_bytes(crate::seal::random().map_err(minted)?);
        let unlock_key = self.lock_from_the_start(init.spec.autolock, node)?;
        let founding = found(Founder {
            unlock_key,
            cluster,
            node,
            spec: init.spec,
            node_spec: NodeSpec { availability: init.availability, ..Default::default() },
            description: self.config.describe(),
            raft_id,
            addr,
        })?;
        let file = NodeFile {
            layout: LAYOUT,
            standing: Standing::Member,
            node: node.to_string(),
            cluster: cluster.to_string(),
            raft_id,
            listen_addr: Self::listened(listen, &net),
            advertise_addr: addr.to_string(),
            joined_by: String::new(),
        };
        let begun = self.begin(&net, &file, founding).await;
        if begun.is_err() {
            net.close().await;
        }
        begun.map(|()| Done::Swarm(node))
    }

    /// With autolock no key ever stands in a file in the clear.
    fn lock_from_the_start(
        &self,
        autolock: bool,
        node: NodeId,
    ) -> Result<Option<Zeroizing<[u8; 32]>>, Refusal> {
        if !autolock {
            return Ok(None);
        }
        let key = UnlockKey::generate().map_err(|e| failed("cannot make an unlock key", e))?;
        let bytes = Zeroizing::new(*key.as_bytes());
        self.store.lock_with(key, node).map_err(disk)?;
        Ok(Some(bytes))
    }

    async fn begin(
        self: &Arc<Self>,
        net: &Arc<Net>,
        file: &NodeFile,
        founding: Founding,
    ) -> Result<(), Refusal> {
        // What a crash in an earlier attempt left is nobody's swarm: node.json comes last.
        crate::files::remove_dir(&self.store.raft_dir())
            .map_err(|e| failed("cannot clear an unfinished swarm", e))?;
        self.store.make_storage_key().map_err(disk)?;
        let Founding { command, chain, key, seal } = founding;
        self.store.save_leaf(&chain, &key, &seal).map_err(disk)?;
        let directory = Directory { roots: command.trust.roots.clone(), ..Directory::default() };
        self.store.save_directory(&directory).map_err(disk)?;
        let start = |e: StartError| failed("cannot start the log", e);
        let swarm = self.take_up(Arc::clone(net), file.clone()).await.map_err(start)?;
        let begin = async {
            let manager = swarm.manager().ok_or(Refusal::NotManager)?;
            let started = manager.raft.initialize().await;
            started.map_err(|e| failed("cannot start the log", e))?;
            manager.propose(Command::ClusterInit(Box::new(command))).await?;
            self.store.save(file).map_err(disk)
        };
        let begun = begin.await;
        if begun.is_err() {
            // Else it would go on writing where the next attempt begins.
            self.set_swarm(None);
            swarm.halt().await;
        }
        begun
    }
}
