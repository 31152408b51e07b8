//! The node as the local API sees it.

mod anywhere;

use futures_util::stream::BoxStream;
use skep_core::command::Rejection;
use skep_core::id::{ClusterId, MaterialId, NodeId, TaskId};
use skep_core::model::material::MaterialKind;
use skep_core::model::node::Role;
use skep_core::state::State;

use crate::engine::images::ImageStore;
use crate::gate::{
    ContainerView, Done, ExecConfig, ExecStreams, ExecView, Gate, JoinTokens, Later, LocalState,
    LogQuery, Logged, ManagerView, NodeView, Reachability, Refusal, Request,
};
use crate::hidden::Hidden;
use crate::node::{Node, Swarm};

impl Node {
    fn member(&self) -> Result<std::sync::Arc<Swarm>, Refusal> {
        self.swarm().ok_or(Refusal::NotInSwarm)
    }
}

/// The managers, from the applied state: also without a leader.
fn managers(swarm: &Swarm) -> Vec<ManagerView> {
    swarm.manager.raft.view(|state| {
        let managers = state.nodes().filter_map(|node| {
            let addr = node.manager.as_ref()?.addr.clone();
            let reachability = match node.id == swarm.manager.node {
                true => Reachability::Reachable,
                false => Reachability::Unknown,
            };
            Some(ManagerView { node: node.id, addr, reachability })
        });
        managers.collect()
    })
}

impl Gate for Node {
    fn node(&self) -> NodeView {
        let swarm = self.swarm();
        let addr_port = swarm.as_ref().map(|s| s.file.advertise_addr.clone()).unwrap_or_default();
        NodeView {
            state: if swarm.is_some() { LocalState::Active } else { LocalState::Inactive },
            node: swarm.as_ref().map(|s| s.manager.node),
            role: swarm.as_ref().map(|_| Role::Manager),
            manager: swarm.is_some(),
            leader: swarm.as_ref().filter(|s| s.manager.raft.is_leader()).map(|s| s.manager.node),
            managers: swarm.as_ref().map(|s| managers(s)).unwrap_or_default(),
            addr: addr_port.rsplit_once(':').map_or("", |(host, _)| host).to_owned(),
            addr_port,
            error: String::new(),
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
            let swarm = self.member()?;
            swarm.manager.raft.read_index().await.map_err(|_| Refusal::NoLeader)?;
            swarm.manager.raft.view(look);
            Ok(())
        })
    }

    fn submit(&self, request: Request) -> Later<'_, Result<Done, Refusal>> {
        Box::pin(async move {
            match request {
                Request::SwarmInit(init) => self.init(init).await,
                Request::SwarmLeave { force } => self.leave(force).await,
                Request::SwarmJoin(_) if self.swarm().is_none() => Err(Refusal::Unsupported(
                    "joining a swarm is not supported by this version of skep: it runs on one node"
                        .into(),
                )),
                request => self.member()?.manager.submit(request).await,
            }
        })
    }

    fn join_tokens(&self) -> Later<'_, Result<JoinTokens, Refusal>> {
        Box::pin(async move { self.member()?.manager.join_tokens() })
    }

    fn unlock_key(&self) -> Later<'_, Result<Option<Hidden>, Refusal>> {
        // A swarm without autolock has no unlock key.
        Box::pin(async move { self.member().map(|_| None) })
    }

    fn config_payload(&self, id: MaterialId) -> Later<'_, Result<Vec<u8>, Refusal>> {
        Box::pin(async move {
            let manager = &self.member()?.manager;
            let kind = manager.raft.view(|state| state.material(&id).map(|m| m.kind));
            if kind != Some(MaterialKind::Config) {
                let (kind, what) = (skep_core::model::Kind::Config, id.to_string());
                return Err(Rejection::NotFound { kind, what }.into());
            }
            Ok(manager.open_latest(id)?.as_slice().to_vec())
        })
    }

    fn images(&self) -> &ImageStore {
        &self.images
    }

    fn containers(&self) -> Vec<ContainerView> {
        self.swarm().map(|swarm| swarm.agent.containers()).unwrap_or_default()
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
        Box::pin(async move { self.member()?.exec_create(node, &container, config).await })
    }

    fn exec_start(
        &self,
        id: &str,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Later<'_, Result<ExecStreams, Refusal>> {
        let id = id.to_owned();
        Box::pin(async move { self.member()?.exec_start(&id, detach, size).await })
    }

    fn exec_inspect(&self, id: &str) -> Later<'_, Result<ExecView, Refusal>> {
        let id = id.to_owned();
        Box::pin(async move { self.member()?.exec_inspect(&id).await })
    }

    fn exec_resize(&self, id: &str, rows: u16, cols: u16) -> Later<'_, Result<(), Refusal>> {
        let id = id.to_owned();
        Box::pin(async move { self.member()?.exec_resize(&id, rows, cols).await })
    }

    fn logs(
        &self,
        tasks: Vec<(NodeId, TaskId)>,
        query: LogQuery,
    ) -> Later<'_, Result<BoxStream<'static, Logged>, Refusal>> {
        Box::pin(async move { Ok(self.member()?.logs(tasks, query).await) })
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.swarm().map(|swarm| swarm.manager.cluster)
    }
}
