//! The node: takes its parts, which do not know one another, and ties them together.

use std::sync::{Arc, PoisonError, RwLock};

use skep_core::command::Command;
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::cluster::ClusterSpec;
use skep_core::model::node::NodeSpec;
use skep_raft::{FatalHook, Raft};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agent::program::Supervisor;
use crate::agent::{Agent, Context};
use crate::clock::now;
use crate::config::{self, NodeConfig};
use crate::engine::cgroup::Cgroups;
use crate::engine::images::{ImageError, ImageStore};
use crate::files::{DirLock, FileError, make_dir};
use crate::gate::{Done, Refusal, SwarmInit};
use crate::identity::store::{IdentityStore, LAYOUT, NodeFile, Standing, StoreError};
use crate::limits::SESSION_QUEUE;
use crate::manager::init::{Founder, found};
use crate::manager::reach::{Alone, Reach};
use crate::manager::session::{Ends, serve};
use crate::manager::{Manager, failed, leader, mint};
use crate::seal::SealError;

/// A node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another daemon uses the same directory.
    #[error("{what} {path} is in use by another skep daemon: stop it, or choose another {option}")]
    InUse {
        /// Which directory.
        what: &'static str,
        /// Where.
        path: std::path::PathBuf,
        /// The option that sets it.
        option: &'static str,
    },
    /// The identity files cannot be used.
    #[error(transparent)]
    Identity(#[from] StoreError),
    /// The images cannot be read.
    #[error("cannot open the image store")]
    Images(#[from] ImageError),
    /// This binary cannot be read.
    #[error("cannot read the supervisor out of this binary")]
    Supervisor(#[source] std::io::Error),
    /// The log cannot be opened.
    #[error("cannot open the swarm's log")]
    Raft(#[from] skep_raft::StartError),
    /// A first swarm could not be made.
    #[error("cannot make a swarm")]
    Init(#[source] Refusal),
    /// An id in `node.json` is none.
    #[error("node.json names {0:?}, which is no id: restore it from a backup")]
    BadId(String),
    /// A key could not be made.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// This node's part in a swarm.
#[derive(Debug)]
pub struct Swarm {
    /// Its manager half.
    pub manager: Arc<Manager>,
    /// Its agent half.
    pub agent: Arc<Agent>,
    /// The way to the agents of other nodes.
    pub reach: Arc<dyn Reach>,
    /// Its identity.
    pub file: NodeFile,
    stop: watch::Sender<bool>,
    workers: tokio::sync::Mutex<JoinSet<()>>,
}

/// The node.
#[derive(Debug)]
pub struct Node {
    /// How it is set up.
    pub config: NodeConfig,
    supervisor: Arc<Supervisor>,
    /// Its images.
    pub images: Arc<ImageStore>,
    /// What the runtime says of its version; empty if it says nothing.
    pub runtime_version: String,
    store: IdentityStore,
    swarm: RwLock<Option<Arc<Swarm>>>,
    /// One change of membership at a time.
    membership: tokio::sync::Mutex<()>,
    _locks: [DirLock; 2],
}

impl Node {
    /// Opens the data root and takes up whatever it says this node is.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, StartError> {
        make_dir(&config.data_root, 0o700)?;
        let store = IdentityStore::new(&config.data_root);
        store.check_own()?;
        make_dir(&config.run_root, 0o711)?;
        let locks = [
            lock("data root", &config.data_root, "--data-root")?,
            lock("run root", &config.run_root, "--run-root")?,
        ];
        let supervisor = Arc::new(Supervisor::load().map_err(StartError::Supervisor)?);
        store.clear_unfinished()?;
        let images = Arc::new(ImageStore::open(&config.data_root)?);
        let file = store.load()?;
        let runtime_version = config::runtime_version(&config.runtime).await;
        let node = Arc::new(Self {
            config,
            runtime_version,
            supervisor,
            images,
            store,
            swarm: RwLock::new(None),
            membership: tokio::sync::Mutex::new(()),
            _locks: locks,
        });
        match file {
            Some(file) if file.standing == Standing::Member => node.resume(file).await?,
            Some(_) => node.store.finish_wipe()?,
            None if node.config.init => {
                let init = SwarmInit {
                    availability: node.config.availability,
                    spec: ClusterSpec { autolock: node.config.autolock, ..Default::default() },
                    ..Default::default()
                };
                node.init(init).await.map_err(StartError::Init)?;
            }
            _ => {}
        }
        Ok(node)
    }

    /// This node's part in a swarm.
    #[must_use]
    pub fn swarm(&self) -> Option<Arc<Swarm>> {
        self.swarm.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_swarm(&self, swarm: Option<Arc<Swarm>>) {
        *self.swarm.write().unwrap_or_else(PoisonError::into_inner) = swarm;
    }

    async fn resume(&self, file: NodeFile) -> Result<(), StartError> {
        let id = |text: &str| StartError::BadId(text.to_owned());
        let cluster: ClusterId = file.cluster.parse().map_err(|_| id(&file.cluster))?;
        let node: NodeId = file.node.parse().map_err(|_| id(&file.node))?;
        // Whatever can be wrong with a file is found before anything runs.
        self.store.check_leaf()?;
        let seal = self.store.load_seal_key()?;
        let raft = self.open_raft(&file).await?;
        let manager = Manager::new(raft, cluster, node, seal, self.raft_dir());
        self.take_up(manager, file)?;
        Ok(())
    }

    fn raft_dir(&self) -> String {
        self.store.raft_dir().to_string_lossy().into_owned()
    }

    async fn open_raft(&self, file: &NodeFile) -> Result<Raft, StartError> {
        let config = skep_raft::Config {
            dir: self.store.raft_dir(),
            storage_key: self.store.load_storage_key()?,
            raft_id: file.raft_id,
            addr: file.advertise_addr.clone(),
            on_fatal: FatalHook::exit(),
        };
        Ok(Raft::start(config, Arc::new(now)).await?)
    }

    /// Makes a swarm with this node as its first manager.
    ///
    /// # Errors
    /// If there is one already, the address is wrong, or the disk refuses.
    pub async fn init(&self, init: SwarmInit) -> Result<Done, Refusal> {
        let _membership = self.membership.lock().await;
        if self.swarm().is_some() {
            return Err(Refusal::AlreadyInSwarm);
        }
        if init.force_new_cluster {
            return Err(Refusal::Unsupported(
                "--force-new-cluster needs a swarm of several managers, which this version does not make"
                    .into(),
            ));
        }
        if init.spec.autolock {
            return Err(Refusal::Unsupported("autolock is not supported by this version".into()));
        }
        let invalid = |e: config::ConfigError| Refusal::Invalid(e.to_string());
        let addr = config::advertise(&self.config, &init.advertise_addr).map_err(invalid)?;
        if !init.listen_addr.is_empty() {
            let port = self.config.listen_addr.port();
            config::parse_addr("--listen-addr", &init.listen_addr, port).map_err(invalid)?;
        }
        let minted = |e| failed("cannot make an id", e);
        let (cluster, node): (ClusterId, NodeId) =
            (mint().map_err(minted)?, mint().map_err(minted)?);
        let raft_id = u64::from_be_bytes(crate::seal::random().map_err(minted)?);
        let founding = found(Founder {
            cluster,
            node,
            spec: init.spec,
            node_spec: NodeSpec { availability: init.availability, ..Default::default() },
            description: config::describe(&self.config.node_name),
            raft_id,
            addr,
        })?;
        let file = NodeFile {
            layout: LAYOUT,
            standing: Standing::Member,
            node: node.to_string(),
            cluster: cluster.to_string(),
            raft_id,
            listen_addr: self.config.listen_addr.to_string(),
            advertise_addr: addr.to_string(),
        };
        let disk = |e: StoreError| failed("cannot write the node's identity", e);
        // What a crash in an earlier attempt left is nobody's swarm: node.json comes last.
        crate::files::remove_dir(&self.store.raft_dir())
            .map_err(|e| failed("cannot clear an unfinished swarm", e))?;
        self.store.make_storage_key().map_err(disk)?;
        self.store.save_leaf(&founding.leaf, &founding.seal).map_err(disk)?;
        let raft = self.open_raft(&file).await.map_err(|e| failed("cannot open the log", e))?;
        let manager = Manager::new(raft, cluster, node, founding.seal, self.raft_dir());
        let begin = async {
            let started = manager.raft.initialize().await;
            started.map_err(|e| failed("cannot start the log", e))?;
            manager.propose(Command::ClusterInit(Box::new(founding.command))).await?;
            self.store.save(&file).map_err(disk)
        };
        if let Err(refusal) = begin.await {
            // Else it would go on writing where the next attempt begins.
            manager.raft.shutdown().await;
            return Err(refusal);
        }
        self.take_up(manager, file).map_err(|e| failed("cannot start the agent", e))?;
        Ok(Done::Swarm(node))
    }

    /// Starts agent, session and control loop.
    fn take_up(&self, manager: Manager, file: NodeFile) -> Result<(), FileError> {
        let manager = Arc::new(manager);
        let (news_tx, news) = mpsc::channel(SESSION_QUEUE);
        let (orders, orders_rx) = mpsc::channel(SESSION_QUEUE);
        let (events, events_rx) = mpsc::channel(SESSION_QUEUE);
        let agent = Arc::new(Agent::new(Context {
            data_root: self.config.data_root.clone(),
            run_root: self.config.run_root.clone(),
            node_name: self.config.node_name.clone(),
            runtime: self.config.runtime.clone(),
            vault: self.config.vault.clone(),
            unified_cgroups: crate::engine::files::has_unified_cgroups(),
            cluster: manager.cluster,
            node: manager.node,
            supervisor: Arc::clone(&self.supervisor),
            images: Arc::clone(&self.images),
            image_source: None,
            execs: Default::default(),
            session: news_tx,
        })?);
        agent.reattach()?;
        let (stop, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        let obeying = Arc::clone(&agent);
        workers.spawn(async move { obeying.obey(orders_rx).await });
        let (leading, stop_leading) = (Arc::clone(&manager), stopped.clone());
        workers.spawn(async move { leader::lead(&leading, events_rx, stop_leading).await });
        let serving = Arc::clone(&manager);
        let description = config::describe(&self.config.node_name);
        let addr = file.advertise_addr.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
        workers.spawn(async move {
            let node = serving.node;
            serve(&serving, node, description, addr, Ends { orders, news, events }, stopped).await;
        });
        let workers = tokio::sync::Mutex::new(workers);
        self.set_swarm(Some(Arc::new(Swarm {
            manager,
            agent,
            reach: Arc::new(Alone),
            file,
            stop,
            workers,
        })));
        Ok(())
    }

    /// Stops taking part. Tasks go on: the next daemon finds them.
    pub async fn stop(&self) {
        let _membership = self.membership.lock().await;
        if let Some(swarm) = self.swarm() {
            self.set_swarm(None);
            swarm.halt().await;
        }
    }

    /// Leaves the swarm: stops every task, forgets every key.
    ///
    /// # Errors
    /// Without force, since this is the last manager; or if the disk refuses.
    pub async fn leave(&self, force: bool) -> Result<Done, Refusal> {
        let _membership = self.membership.lock().await;
        let swarm = self.swarm().ok_or(Refusal::NotInSwarm)?;
        if !force {
            return Err(Refusal::LastManager);
        }
        self.set_swarm(None);
        swarm.halt().await;
        swarm.agent.end_all().await;
        // Where cgroups cannot be found there is nothing to remove either.
        if let Ok(cgroups) = Cgroups::detect() {
            cgroups.remove(&format!("/skep/{}", swarm.manager.node));
        }
        self.store.wipe(&swarm.file).map_err(|e| failed("cannot forget the swarm", e))?;
        Ok(Done::Nothing)
    }
}

impl Swarm {
    async fn halt(&self) {
        self.stop.send_replace(true);
        self.manager.raft.shutdown().await;
        self.workers.lock().await.shutdown().await;
    }
}

fn lock(
    what: &'static str,
    path: &std::path::Path,
    option: &'static str,
) -> Result<DirLock, StartError> {
    DirLock::take(path).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::WouldBlock => StartError::InUse { what, path: path.to_owned(), option },
        _ => error.into(),
    })
}
