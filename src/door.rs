//! The node as the local API sees it.

mod anywhere;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use skep_core::command::Rejection;
use skep_core::id::{ClusterId, MaterialId, NodeId, TaskId};
use skep_core::model::material::MaterialKind;
use skep_core::model::node::{NodeState, Role};
use skep_core::state::State;

use crate::agent::exec::no_such;
use crate::audit::{AuditAnswer, AuditGap, AuditQuery, AuditVerdict, Entry, LastRead};
use crate::engine::images::ImageStore;
use crate::gate::{
    ContainerView, Done, ExecConfig, ExecStreams, ExecView, Gate, Holdings, JoinTokens,
    KeyProgress, Later, LocalState, LogQuery, Logged, ManagerView, NodeView, Reachability, Refusal,
    Request,
};
use crate::hidden::Hidden;
use crate::manager::Manager;
use crate::manager::reseal::watch_key;
use crate::node::{Node, Swarm};
use crate::wire::session::ManagerEntry;

impl Node {
    fn member(&self) -> Result<Arc<Swarm>, Refusal> {
        let missing = || if self.is_locked() { Refusal::Locked } else { Refusal::NotInSwarm };
        self.swarm().ok_or_else(missing)
    }

    fn manager(&self) -> Result<Arc<Manager>, Refusal> {
        let swarm = self.member()?;
        self.check_not_outlived()?;
        match swarm.manager() {
            Some(manager) => Ok(manager),
            None if swarm.file().raft_id != 0 => Err(Refusal::ManagerNotReady),
            None => Err(Refusal::NotManager),
        }
    }

    /// The manager, once it has applied everything acknowledged before the call.
    async fn current_manager(&self) -> Result<Arc<Manager>, Refusal> {
        let manager = self.manager()?;
        manager.confirm().await?;
        Ok(manager)
    }
}

/// The managers, as far as they are known: also without a leader.
fn managers(swarm: &Swarm) -> Vec<ManagerView> {
    let manager = swarm.manager();
    let directory = swarm.book().directory();
    let directory = directory.borrow();
    let voters = manager.as_ref().map(|manager| manager.raft.members().voters);
    let view = |entry: &ManagerEntry| {
        let seen = manager.as_ref().and_then(|manager| {
            manager.raft.view(|state| state.node(&entry.node).map(|node| node.status.state))
        });
        let has_vote = voters.as_ref().is_none_or(|voters| voters.contains(&entry.raft_id));
        let reachability = match seen {
            // It is still catching up.
            _ if !has_vote => Reachability::Unknown,
            _ if entry.node == swarm.node => Reachability::Reachable,
            Some(NodeState::Ready) => Reachability::Reachable,
            Some(NodeState::Down | NodeState::Disconnected) => Reachability::Unreachable,
            Some(NodeState::Unknown) | None => Reachability::Unknown,
        };
        ManagerView { node: entry.node, addr: entry.addr.clone(), reachability }
    };
    directory.managers.iter().map(view).collect()
}

/// Who leads, as far as this manager knows.
fn leader(swarm: &Swarm) -> Option<NodeId> {
    let raft_id = swarm.manager()?.raft.leadership().borrow().leader?;
    Some(swarm.book().manager(raft_id)?.node)
}

impl Gate for Node {
    fn node(&self) -> NodeView {
        let swarm = self.swarm();
        let addr_port = swarm.as_ref().map(|s| s.advertise().to_owned()).unwrap_or_default();
        let role = |swarm: &Arc<Swarm>| match swarm.file().raft_id {
            0 => Role::Worker,
            _ => Role::Manager,
        };
        NodeView {
            state: match &swarm {
                Some(_) => LocalState::Active,
                None if self.is_locked() => LocalState::Locked,
                None => LocalState::Inactive,
            },
            node: swarm.as_ref().map(|s| s.node),
            role: swarm.as_ref().map(role),
            manager: swarm.as_ref().is_some_and(|swarm| swarm.manager().is_some()),
            leader: swarm.as_ref().and_then(|swarm| leader(swarm)),
            managers: swarm.as_ref().map(|s| managers(s)).unwrap_or_default(),
            addr: addr_port.rsplit_once(':').map_or("", |(host, _)| host).to_owned(),
            addr_port,
            error: swarm
                .as_ref()
                .and_then(|swarm| swarm.outlived())
                .map_or_else(String::new, |refusal| refusal.to_string()),
            hostname: self.config.node_name.clone(),
            data_root: self.config.data_root.to_string_lossy().into_owned(),
            runtime: (self.config.runtime.clone(), self.runtime_version.clone()),
            warnings: Vec::new(),
        }
    }

    fn view<'a>(
        &'a self,
        look: Box<dyn FnOnce(&State) + Send + 'a>,
    ) -> Later<'a, Result<(), Refusal>> {
        Box::pin(async move {
            self.current_manager().await?.raft.view(look);
            Ok(())
        })
    }

    fn submit(&self, request: Request) -> Later<'_, Result<Done, Refusal>> {
        Box::pin(async move {
            match request {
                Request::SwarmInit(init) => self.this()?.init(init).await,
                Request::SwarmJoin(join) => self.this()?.join(join).await,
                Request::SwarmLeave { force } => self.leave(force).await,
                Request::SwarmUnlock { key } => self.this()?.unlock(&key).await,
                request => self.manager()?.submit(request).await,
            }
        })
    }

    fn join_tokens(&self) -> Later<'_, Result<JoinTokens, Refusal>> {
        Box::pin(async move { self.current_manager().await?.join_tokens() })
    }

    fn unlock_key(&self) -> Later<'_, Result<Option<Hidden>, Refusal>> {
        Box::pin(async move {
            let key = self.current_manager().await?.unlock_key()?;
            Ok(key.map(|key| Hidden::new(key.to_text().to_string())))
        })
    }

    fn key_progress(
        &self,
        key: u64,
    ) -> Later<'_, Result<BoxStream<'static, KeyProgress>, Refusal>> {
        Box::pin(async move { Ok(watch_key(self.current_manager().await?, key)) })
    }

    fn config_payload(&self, id: MaterialId) -> Later<'_, Result<Vec<u8>, Refusal>> {
        Box::pin(async move {
            let manager = self.current_manager().await?;
            let kind = manager.raft.view(|state| state.material(&id).map(|m| m.kind));
            if kind != Some(MaterialKind::Config) {
                let (kind, what) = (skep_core::model::Kind::Config, id.to_string());
                return Err(Rejection::NotFound { kind, what }.into());
            }
            Ok(manager.open_latest(id)?.as_slice().to_vec())
        })
    }

    fn holdings(
        &self,
        materials: Vec<MaterialId>,
        within: Duration,
    ) -> Later<'_, Result<Holdings, Refusal>> {
        Box::pin(async move { self.manager()?.holdings(materials, within).await })
    }

    fn last_read(&self, material: MaterialId) -> Later<'_, Result<Option<LastRead>, Refusal>> {
        Box::pin(async move { Ok(self.manager()?.last_read(material).await) })
    }

    fn audit(&self, query: AuditQuery) -> Later<'_, Result<AuditAnswer, Refusal>> {
        Box::pin(async move { self.manager()?.audit_query(&query).await })
    }

    fn audit_verify(&self, query: AuditQuery) -> Later<'_, Result<AuditVerdict, Refusal>> {
        Box::pin(async move { self.manager()?.audit_verify(&query).await })
    }

    fn audit_follow(
        &self,
        query: AuditQuery,
    ) -> Later<'_, Result<BoxStream<'static, Result<Entry, AuditGap>>, Refusal>> {
        Box::pin(async move { self.manager()?.audit_follow(query).await })
    }

    fn images(&self) -> &ImageStore {
        &self.images
    }

    fn containers(&self) -> Vec<ContainerView> {
        match self.swarm() {
            Some(swarm) => swarm.agent.containers(),
            None => self.locked_agent().map(|agent| agent.containers()).unwrap_or_default(),
        }
    }

    fn container(&self, node: NodeId, task: TaskId) -> Later<'_, Result<ContainerView, Refusal>> {
        Box::pin(async move { self.member()?.container(node, task).await })
    }

    fn exec_create(
        &self,
        node: NodeId,
        container: &str,
        config: ExecConfig,
    ) -> Later<'_, Result<String, Refusal>> {
        let container = container.to_owned();
        Box::pin(async move {
            match self.locked_agent() {
                Some(agent) => agent.exec_create(&container, config),
                None => self.member()?.exec_create(node, &container, config).await,
            }
        })
    }

    fn exec_start(
        &self,
        id: &str,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Later<'_, Result<ExecStreams, Refusal>> {
        let id = id.to_owned();
        Box::pin(async move {
            match self.locked_agent() {
                Some(agent) => agent.exec_start(&id, detach, size).await,
                None => self.member()?.exec_start(&id, detach, size).await,
            }
        })
    }

    fn exec_inspect(&self, id: &str) -> Later<'_, Result<ExecView, Refusal>> {
        let id = id.to_owned();
        Box::pin(async move {
            match self.locked_agent() {
                Some(agent) => agent.context().execs.view(&id).ok_or_else(|| no_such(&id)),
                None => self.member()?.exec_inspect(&id).await,
            }
        })
    }

    fn exec_resize(&self, id: &str, rows: u16, cols: u16) -> Later<'_, Result<(), Refusal>> {
        let id = id.to_owned();
        Box::pin(async move {
            match self.locked_agent() {
                Some(agent) => agent.exec_resize(&id, rows, cols),
                None => self.member()?.exec_resize(&id, rows, cols).await,
            }
        })
    }

    fn logs(
        &self,
        tasks: Vec<(NodeId, TaskId)>,
        query: LogQuery,
    ) -> Later<'_, Result<BoxStream<'static, Logged>, Refusal>> {
        Box::pin(async move { Ok(self.member()?.logs(tasks, query).await) })
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.swarm().map(|swarm| swarm.cluster)
    }
}
