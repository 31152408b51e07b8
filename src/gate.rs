//! What the local API asks of the node. The API knows nothing else of it.

mod container;
mod holdings;
mod refusal;
mod ring;

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::BoxStream;
use skep_core::id::{ClusterId, MaterialId, NodeId, ServiceId, TaskId};
use skep_core::model::cluster::ClusterSpec;
use skep_core::model::material::{MaterialKind, MaterialSpec};
use skep_core::model::node::{Availability, NodeSpec, Role};
use skep_core::model::service::ServiceSpec;
use skep_core::outcome::Dropped;
use skep_core::state::State;

pub use container::{
    ContainerState, ContainerView, ExecConfig, ExecStreams, ExecView, LogGap, LogLine, LogQuery,
    Logged,
};
pub use holdings::{Holder, Holdings};
pub use refusal::Refusal;
pub use ring::{KeyHolder, KeyProgress, KeyStage, Purged};

use crate::audit::{AuditAnswer, AuditGap, AuditQuery, AuditVerdict, Entry, LastRead};
use crate::hidden::Hidden;
use crate::protected::Protected;

/// A future that is sent between threads.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Everything that changes the swarm. One enum, so that there is one place to authorise, audit
/// and forward.
#[derive(Debug)]
pub enum Request {
    /// Makes a swarm with this node as its manager.
    SwarmInit(SwarmInit),
    /// Makes this node part of a swarm that exists.
    SwarmJoin(SwarmJoin),
    /// Gives a locked manager the key that opens its own keys.
    SwarmUnlock {
        /// `SWMKEY-1-…`, as the client sent it.
        key: Hidden,
    },
    /// Leaves the swarm; a manager only by force.
    SwarmLeave {
        /// Whether losing the swarm's data is accepted.
        force: bool,
    },
    /// Changes the swarm's settings.
    SwarmUpdate {
        /// Version the client read.
        version: u64,
        /// New settings.
        spec: ClusterSpec,
        /// Whether to make a new join secret for workers.
        rotate_worker: bool,
        /// Whether to make a new join secret for managers.
        rotate_manager: bool,
        /// Whether to make a new unlock key.
        rotate_unlock: bool,
        /// Whether a new root takes over from the swarm's own.
        rotate_ca: bool,
    },
    /// Turns the ring to a new key, under which the leader then seals every payload anew.
    RingTurn {
        /// Whether to turn it even if payloads wait for the key of the last turn.
        force: bool,
    },
    /// Changes what a user says of a node. Another role promotes or demotes it.
    NodeUpdate {
        /// Node.
        id: NodeId,
        /// Version the client read.
        version: u64,
        /// New spec.
        spec: NodeSpec,
    },
    /// Removes a node from the swarm for good.
    NodeRemove {
        /// Node.
        id: NodeId,
        /// Whether it may be up.
        force: bool,
    },
    /// Makes a secret or config.
    MaterialCreate {
        /// Secret or config.
        kind: MaterialKind,
        /// Name and labels.
        spec: MaterialSpec,
        /// Plaintext, sealed before it goes anywhere.
        payload: Protected,
        /// Who asks.
        uid: u32,
    },
    /// Appends versions to secrets and configs, to all or to none.
    MaterialAppend {
        /// At least one, each of another secret or config.
        items: Vec<NewVersion>,
        /// How many versions each keeps from now on; none leaves that as it is.
        keep: Option<u32>,
        /// Who asks.
        uid: u32,
    },
    /// Changes labels; a payload, if sent, must equal the stored one.
    MaterialUpdate {
        /// Which.
        id: MaterialId,
        /// Version the client read.
        version: u64,
        /// New spec.
        spec: MaterialSpec,
        /// Compared in constant time.
        payload: Option<Protected>,
    },
    /// Drops versions that nobody uses.
    MaterialPrune {
        /// Of secrets or of configs.
        kind: MaterialKind,
        /// Of which; empty for all of the kind.
        ids: Vec<MaterialId>,
        /// How many versions each keeps, the latest ones; none for what each says itself.
        keep: Option<u32>,
    },
    /// Removes a secret or config.
    MaterialRemove {
        /// Which.
        id: MaterialId,
    },
    /// Takes a secret or config back from tasks that are granted it.
    MaterialRevoke {
        /// Which.
        id: MaterialId,
        /// The only service; none for all that hold it.
        service: Option<ServiceId>,
        /// The only task; none for all of them.
        task: Option<TaskId>,
        /// Who asks.
        uid: u32,
    },
    /// Makes a service.
    ServiceCreate {
        /// What the user said.
        spec: Box<ServiceSpec>,
    },
    /// Changes a service.
    ServiceUpdate {
        /// Which.
        id: ServiceId,
        /// Version the client read.
        version: u64,
        /// The whole new spec.
        spec: Box<ServiceSpec>,
    },
    /// Takes a service back to its previous spec.
    ServiceRollback {
        /// Which.
        id: ServiceId,
        /// Version the client read.
        version: u64,
    },
    /// Removes a service.
    ServiceRemove {
        /// Which.
        id: ServiceId,
    },
}

/// A version to come.
#[derive(Debug)]
pub struct NewVersion {
    /// Of what.
    pub id: MaterialId,
    /// Where its bytes are from.
    pub source: Source,
}

/// Where the bytes of a new version are from.
#[derive(Debug)]
pub enum Source {
    /// They were sent.
    Payload(Protected),
    /// An old version has them.
    Version(u64),
}

/// How to make a swarm.
#[derive(Debug, Default)]
pub struct SwarmInit {
    /// Address to listen on, `<ip|interface>[:port]`; empty for the node's option.
    pub listen_addr: String,
    /// Address others use, `<ip|interface>[:port]`; empty for the node's option.
    pub advertise_addr: String,
    /// Settings.
    pub spec: ClusterSpec,
    /// Availability of this node.
    pub availability: Availability,
    /// Whether a lone survivor makes the swarm its own.
    pub force_new_cluster: bool,
}

/// How to become part of a swarm.
#[derive(Debug)]
pub struct SwarmJoin {
    /// Address to listen on, `<ip|interface>[:port]`; empty for the node's option.
    pub listen_addr: String,
    /// Address others use, `<ip|interface>[:port]`; empty for the node's option.
    pub advertise_addr: String,
    /// Managers, `HOST:PORT` each, in the order to try; one at least.
    pub remote_addrs: Vec<String>,
    /// The join token, in whatever form the client sent it.
    pub token: Hidden,
    /// Availability of this node.
    pub availability: Availability,
}

/// What a request answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// A swarm was made; this is its first node.
    Swarm(NodeId),
    /// A secret or config was made.
    Material(MaterialId),
    /// Their latest versions now, in the order they were asked for.
    Versions(Vec<u64>),
    /// These versions were dropped.
    Pruned(Vec<Dropped>),
    /// A service was made.
    Service(ServiceId),
    /// The ring's current key.
    Key {
        /// Its version.
        version: u64,
        /// Whether the request made it; else the turn that made it goes on.
        turned: bool,
    },
    /// Nothing to say.
    Nothing,
}

/// Where this node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalState {
    /// In no swarm.
    Inactive,
    /// Joins.
    Pending,
    /// In a swarm.
    Active,
    /// Could not start its swarm half.
    Error,
    /// Waits for the unlock key.
    Locked,
}

impl LocalState {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

/// Whether a manager answers this one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Reachability {
    /// Nobody has tried, or this node has no way to know.
    #[default]
    Unknown,
    /// It does not.
    Unreachable,
    /// It does.
    Reachable,
}

impl Reachability {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
            Self::Reachable => "reachable",
        }
    }
}

/// A manager as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerView {
    /// Node.
    pub node: NodeId,
    /// Address with port.
    pub addr: String,
    /// Whether it answers.
    pub reachability: Reachability,
}

/// What this node says of itself.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Where it stands.
    pub state: LocalState,
    /// Its id, once it is in a swarm.
    pub node: Option<NodeId>,
    /// Its role, once it is in a swarm.
    pub role: Option<Role>,
    /// Whether it can show and change the swarm: it is a manager, ready and not locked.
    pub manager: bool,
    /// The node that leads, as far as this one knows. Only managers know.
    pub leader: Option<NodeId>,
    /// The managers this node knows of, itself included. A worker knows them from its session.
    pub managers: Vec<ManagerView>,
    /// Address others use, without port.
    pub addr: String,
    /// The same with port.
    pub addr_port: String,
    /// What went wrong, if its state is `Error`.
    pub error: String,
    /// Host name.
    pub hostname: String,
    /// Data root.
    pub data_root: String,
    /// Runtime as given, and what it says of its version.
    pub runtime: (String, String),
    /// Things missing on this host, for `info`.
    pub warnings: Vec<String>,
}

/// The join tokens, for managers to see.
#[derive(Clone)]
pub struct JoinTokens {
    /// Admits workers.
    pub worker: String,
    /// Admits managers.
    pub manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens(…)")
    }
}

/// The node, as the local API sees it. `node.rs` implements it.
pub trait Gate: Send + Sync + 'static {
    /// Where this node stands.
    fn node(&self) -> NodeView;

    /// Shows the applied state, after every write acknowledged before the call.
    fn view<'a>(
        &'a self,
        look: Box<dyn FnOnce(&State) + Send + 'a>,
    ) -> Later<'a, Result<(), Refusal>>;

    /// Carries out a request and answers once it is durable.
    fn submit(&self, request: Request) -> Later<'_, Result<Done, Refusal>>;

    /// The join tokens.
    fn join_tokens(&self) -> Later<'_, Result<JoinTokens, Refusal>>;

    /// The key that unlocks managers; none while they lock nothing.
    fn unlock_key(&self) -> Later<'_, Result<Option<Hidden>, Refusal>>;

    /// How far the swarm has come to this key of the ring, whenever that changes, until it is done
    /// or nothing more is to be awaited.
    fn key_progress(&self, key: u64)
    -> Later<'_, Result<BoxStream<'static, KeyProgress>, Refusal>>;

    /// The payload of a config's latest version. Refused for secrets.
    fn config_payload(&self, id: MaterialId) -> Later<'_, Result<Vec<u8>, Refusal>>;

    /// What tasks hold of these secrets and configs. Answered once all that can be reached hold
    /// what they should, or after `within`.
    fn holdings(
        &self,
        materials: Vec<MaterialId>,
        within: Duration,
    ) -> Later<'_, Result<Holdings, Refusal>>;

    /// The images of this node.
    fn images(&self) -> &crate::engine::images::ImageStore;

    /// Containers of this node, those of ended tasks included.
    fn containers(&self) -> Vec<ContainerView>;

    /// The container of a task on any node; not found if it has none yet.
    fn container(&self, node: NodeId, task: TaskId) -> Later<'_, Result<ContainerView, Refusal>>;

    /// Makes an exec in a running container of any node; answers its id, which tells the node.
    fn exec_create(
        &self,
        node: NodeId,
        container: &str,
        config: ExecConfig,
    ) -> Later<'_, Result<String, Refusal>>;

    /// Starts an exec. Detached ones have no streams.
    fn exec_start(
        &self,
        id: &str,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Later<'_, Result<ExecStreams, Refusal>>;

    /// An exec that runs or ended a short while ago.
    fn exec_inspect(&self, id: &str) -> Later<'_, Result<ExecView, Refusal>>;

    /// Sets the size of an exec's terminal.
    fn exec_resize(&self, id: &str, rows: u16, cols: u16) -> Later<'_, Result<(), Refusal>>;

    /// Lines of the logs of these tasks, each with its node, in order of time as far as they are
    /// there. A node that cannot be reached is a gap in the stream.
    fn logs(
        &self,
        tasks: Vec<(NodeId, TaskId)>,
        query: LogQuery,
    ) -> Later<'_, Result<BoxStream<'static, Logged>, Refusal>>;

    /// When a secret or config was last read, as far as managers that answer at once keep it.
    fn last_read(&self, material: MaterialId) -> Later<'_, Result<Option<LastRead>, Refusal>>;

    /// What managers keep of the audit.
    fn audit(&self, query: AuditQuery) -> Later<'_, Result<AuditAnswer, Refusal>>;

    /// Whether the chains hold of all tasks of which anything is asked for.
    fn audit_verify(&self, query: AuditQuery) -> Later<'_, Result<AuditVerdict, Refusal>>;

    /// What is stored of the audit from the answer on, as long as the stream is read.
    fn audit_follow(
        &self,
        query: AuditQuery,
    ) -> Later<'_, Result<BoxStream<'static, Result<Entry, AuditGap>>, Refusal>>;

    /// The swarm's id, once there is one.
    fn cluster(&self) -> Option<ClusterId>;
}

/// Runs `look` on the state and returns what it returns.
///
/// # Errors
/// If this node cannot show the state: it is no manager, or has no leader.
pub async fn look<R: Send>(
    gate: &dyn Gate,
    look: impl FnOnce(&State) -> R + Send,
) -> Result<R, Refusal> {
    let mut result = None;
    gate.view(Box::new(|state| result = Some(look(state)))).await?;
    result.ok_or(Refusal::NoLeader)
}
