//! The node: takes its parts, which do not know one another, and ties them together.

#[cfg(test)]
mod audit_tests;
mod certificate;
mod force;
mod found;
mod join;
mod leave;
mod lock;
pub mod part;
mod reach;
mod roles;
pub mod session;
#[cfg(test)]
mod version_tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use skep_core::id::{ClusterId, NodeId};
use skep_core::model::cluster::ClusterSpec;
use skep_raft::{FatalHook, Raft};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agent::program::Supervisor;
use crate::agent::remote::Remote;
use crate::agent::{Agent, Context};
use crate::chain::chain;
use crate::clock::now;
use crate::config::{self, NodeConfig};
use crate::engine::images::exchange::ImageSource;
use crate::engine::images::{ImageError, ImageStore};
use crate::files::{DirLock, FileError, make_dir};
use crate::gate::{Refusal, SwarmInit, SwarmJoin};
use crate::hidden::Hidden;
use crate::identity::store::{IdentityStore, NodeFile, Standing, StoreError};
use crate::limits::SESSION_QUEUE;
use crate::manager::audit::{Audits, store};
use crate::manager::images::Images;
use crate::manager::peers::{Book, Peers};
use crate::manager::stopped;
use crate::manager::{Manager, failed};
use crate::net::{Identity, ListenError, Net};
use crate::seal::SealError;
use crate::wire::session::{Directory, Hello};
use part::Half;
pub use part::Swarm;
use reach::{ByTheSwarm, Counter, Own, Ways};
use session::Uplink;

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
    /// The swarm could not be joined.
    #[error("cannot join the swarm")]
    Join(#[source] Refusal),
    /// The token is of another swarm than the one that the node belongs to.
    #[error(
        "this node is in swarm {cluster}, and the join token is of another one: run 'skep swarm \
         leave' first, or start without --join"
    )]
    OtherSwarm {
        /// The node's swarm.
        cluster: String,
    },
    /// The UDP port cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A change of the log's key that was cut short cannot be ended.
    #[error("cannot end the change of the log's key")]
    Rekey(#[source] skep_raft::OfflineError),
    /// The node's certificate cannot be used.
    #[error("this node's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
    /// An id in `node.json` is none.
    #[error("node.json names {0:?}, which is no id: restore it from a backup")]
    BadId(String),
    /// A key could not be made.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// The node.
#[derive(Debug)]
pub struct Node {
    me: Weak<Self>,
    /// How it is set up.
    pub config: NodeConfig,
    supervisor: Arc<Supervisor>,
    /// Its images.
    pub images: Arc<ImageStore>,
    /// What the runtime says of its version; empty if it says nothing.
    pub runtime_version: String,
    store: IdentityStore,
    swarm: RwLock<Option<Arc<Swarm>>>,
    /// There while the node waits for its unlock key.
    parked: Mutex<Option<lock::Parked>>,
    /// One change of membership at a time.
    membership: tokio::sync::Mutex<()>,
    _locks: [DirLock; 2],
}

/// The agent of a member, and what ties it to the rest.
#[derive(Debug)]
struct Parts {
    cluster: ClusterId,
    node: NodeId,
    agent: Arc<Agent>,
    own: Arc<Own>,
    news: mpsc::Receiver<crate::wire::session::FromAgent>,
}

impl Node {
    /// Opens the data root and takes up whatever it says this node is.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(mut config: NodeConfig) -> Result<Arc<Self>, StartError> {
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
        let join = config.join.take();
        let node = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            config,
            runtime_version,
            supervisor,
            images,
            store,
            swarm: RwLock::new(None),
            parked: Mutex::new(None),
            membership: tokio::sync::Mutex::new(()),
            _locks: locks,
        });
        let is_member = file.as_ref().is_some_and(|file| file.standing == Standing::Member);
        match (file, join) {
            (Some(file), join) if is_member => {
                if let Some(join) = join {
                    node.check_token(&file, &join.token)?;
                }
                Box::pin(node.resume(file)).await?;
            }
            (file, join) => {
                if file.is_some() {
                    node.store.finish_wipe()?;
                }
                if let Some(join) = join {
                    Box::pin(node.join_at_start(join)).await?;
                } else if file.is_none() && node.config.init {
                    Box::pin(node.init_at_start()).await?;
                }
            }
        }
        Ok(node)
    }

    async fn init_at_start(self: &Arc<Self>) -> Result<(), StartError> {
        let init = SwarmInit {
            availability: self.config.availability,
            spec: ClusterSpec { autolock: self.config.autolock, ..Default::default() },
            ..Default::default()
        };
        self.init(init).await.map(|_| ()).map_err(StartError::Init)
    }

    async fn join_at_start(self: &Arc<Self>, join: config::JoinArgs) -> Result<(), StartError> {
        let join = SwarmJoin {
            listen_addr: String::new(),
            advertise_addr: String::new(),
            remote_addrs: join.managers,
            token: join.token,
            availability: self.config.availability,
        };
        match self.join(join).await {
            // It is a member, and goes on catching up.
            Ok(_) | Err(Refusal::JoinTimeout) => Ok(()),
            Err(refusal) => Err(StartError::Join(refusal)),
        }
    }

    /// This node, to be held by what it starts.
    ///
    /// # Errors
    /// If it is being dropped.
    pub fn this(&self) -> Result<Arc<Self>, Refusal> {
        self.me.upgrade().ok_or(Refusal::NotInSwarm)
    }

    /// This node's part in a swarm.
    #[must_use]
    pub fn swarm(&self) -> Option<Arc<Swarm>> {
        self.swarm.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses what only a node of the swarm's present incarnation may do.
    pub(crate) fn check_not_outlived(&self) -> Result<(), Refusal> {
        self.swarm().and_then(|swarm| swarm.outlived()).map_or(Ok(()), Err)
    }

    fn set_swarm(&self, swarm: Option<Arc<Swarm>>) {
        *self.swarm.write().unwrap_or_else(PoisonError::into_inner) = swarm;
    }

    async fn resume(self: &Arc<Self>, file: NodeFile) -> Result<(), StartError> {
        if self.store.is_locked()? {
            return self.park(file);
        }
        let parts = self.parts(&file)?;
        self.resume_with(file, parts).await
    }

    async fn resume_with(
        self: &Arc<Self>,
        mut file: NodeFile,
        parts: Parts,
    ) -> Result<(), StartError> {
        // Whatever can be wrong with a file is found before anything runs.
        self.store.check_leaf()?;
        let listen = file.listen_addr.parse::<SocketAddr>().unwrap_or(self.config.listen_addr);
        let net = Net::speaking(listen, self.config.build.names)?;
        file.advertise_addr = self.advertised(&net, &file);
        if file.raft_id != 0 {
            net.hold();
        }
        Box::pin(self.take_up_with(net, file, parts)).await?;
        Ok(())
    }

    /// Where others reach a node that was a member before: a port that was picked is another now.
    fn advertised(&self, net: &Net, file: &NodeFile) -> String {
        let told = self.config.advertise_addr.as_deref().unwrap_or(&file.advertise_addr);
        let told = config::parse_addr("--advertise-addr", told, 0).ok();
        let bound = net.local_addr().ok();
        let (Some(mut told), Some(bound)) = (told, bound) else {
            return file.advertise_addr.clone();
        };
        let picks = file.listen_addr.ends_with(":0");
        if picks || told.port() == 0 {
            told.set_port(bound.port());
        }
        told.to_string()
    }

    /// The listen address as it is kept: a port that is to be picked stays so.
    fn listened(listen: SocketAddr, net: &Net) -> String {
        match (listen.port(), net.local_addr()) {
            (0, _) | (_, Err(_)) => listen.to_string(),
            (_, Ok(bound)) => bound.to_string(),
        }
    }

    fn listen_addr(&self, given: &str) -> Result<SocketAddr, Refusal> {
        if given.is_empty() {
            return Ok(self.config.listen_addr);
        }
        let port = self.config.listen_addr.port();
        config::parse_addr("--listen-addr", given, port)
            .map_err(|e| Refusal::Invalid(e.to_string()))
    }

    fn raft_dir(&self) -> String {
        self.store.raft_dir().to_string_lossy().into_owned()
    }

    fn raft_config(&self, file: &NodeFile) -> Result<skep_raft::Config, StoreError> {
        Ok(skep_raft::Config {
            dir: self.store.raft_dir(),
            storage_key: self.store.load_storage_key()?,
            raft_id: file.raft_id,
            addr: file.advertise_addr.clone(),
            on_fatal: FatalHook::exit(),
            format: self.config.build.format,
        })
    }

    async fn open_raft(&self, file: &NodeFile, peers: &Arc<Peers>) -> Result<Raft, StartError> {
        let config = self.raft_config(file)?;
        Ok(Raft::start_among(config, Arc::new(now), Arc::clone(peers) as _).await?)
    }

    /// Takes the certificate and the roots that this node shows and trusts from now on.
    fn show(&self, swarm: &Swarm, chain: &str, roots: &[String]) -> Result<(), Refusal> {
        let what = "this node's certificate cannot be used";
        let key = self.store.load_node_key().map_err(disk)?;
        let identity = Identity::new(swarm.cluster, swarm.node, chain, &key, roots)
            .map_err(|e| failed(what, e))?;
        swarm.net.set_identity(Arc::new(identity)).map_err(|e| failed(what, e))
    }

    /// The agent of a member, which looks after its tasks already.
    fn parts(&self, file: &NodeFile) -> Result<Parts, StartError> {
        let id = |text: &str| StartError::BadId(text.to_owned());
        let cluster: ClusterId = file.cluster.parse().map_err(|_| id(&file.cluster))?;
        let node: NodeId = file.node.parse().map_err(|_| id(&file.node))?;
        let (news_tx, news) = mpsc::channel(SESSION_QUEUE);
        let own = Arc::new(Own::default());
        let source: Arc<dyn ImageSource> = Arc::new(ByTheSwarm(Arc::clone(&own)));
        let agent = Arc::new(Agent::new(self.agent_context(cluster, node, source, news_tx))?);
        agent.reattach()?;
        Ok(Parts { cluster, node, agent, own, news })
    }

    async fn take_up(
        self: &Arc<Self>,
        net: Arc<Net>,
        file: NodeFile,
    ) -> Result<Arc<Swarm>, StartError> {
        let parts = self.parts(&file)?;
        Box::pin(self.take_up_with(net, file, parts)).await
    }

    /// Starts what this node does in its swarm.
    async fn take_up_with(
        self: &Arc<Self>,
        net: Arc<Net>,
        file: NodeFile,
        parts: Parts,
    ) -> Result<Arc<Swarm>, StartError> {
        let Parts { cluster, node, agent, own, news } = parts;
        let directory = self.store.load_directory()?.unwrap_or_default();
        let book = Arc::new(Book::new(cluster, directory.clone()));
        let peers = Peers::new(Arc::clone(&net), book);
        let (orders, orders_rx) = mpsc::channel(SESSION_QUEUE);
        let (stop, stopped) = watch::channel(false);
        let swarm = Arc::new(Swarm {
            cluster,
            node,
            agent,
            net,
            reach: Arc::new(Ways(Arc::clone(&own))),
            seat: Arc::default(),
            peers,
            advertise: file.advertise_addr.clone(),
            file: std::sync::Mutex::new(file),
            stop,
            workers: tokio::sync::Mutex::new(JoinSet::new()),
        });
        own.set(&swarm);
        let chain = self.store.load_chain()?;
        self.show(&swarm, &chain, &directory.roots).map_err(StartError::Join)?;
        match swarm.file().raft_id {
            0 => swarm.net.release(),
            _ => self.start_half(&swarm).await?,
        }
        self.start_agent(&swarm, news, orders, orders_rx, stopped).await;
        self.set_swarm(Some(Arc::clone(&swarm)));
        Ok(swarm)
    }

    fn agent_context(
        &self,
        cluster: ClusterId,
        node: NodeId,
        source: Arc<dyn ImageSource>,
        session: mpsc::Sender<crate::wire::session::FromAgent>,
    ) -> Context {
        Context {
            data_root: self.config.data_root.clone(),
            run_root: self.config.run_root.clone(),
            node_name: self.config.node_name.clone(),
            runtime: self.config.runtime.clone(),
            vault: self.config.vault.clone(),
            unified_cgroups: crate::engine::files::has_unified_cgroups(),
            cluster,
            node,
            supervisor: Arc::clone(&self.supervisor),
            images: Arc::clone(&self.images),
            image_source: Some(source),
            execs: Default::default(),
            session,
        }
    }

    async fn start_agent(
        self: &Arc<Self>,
        swarm: &Arc<Swarm>,
        news: mpsc::Receiver<crate::wire::session::FromAgent>,
        orders: mpsc::Sender<crate::wire::session::ToAgent>,
        obeyed: mpsc::Receiver<crate::wire::session::ToAgent>,
        stop: watch::Receiver<bool>,
    ) {
        let (role, roles) = watch::channel(swarm.file().raft_id);
        let (removed, is_removed) = watch::channel(false);
        let uplink = Uplink {
            node: swarm.node,
            net: Arc::clone(&swarm.net),
            book: Arc::clone(swarm.book()),
            seat: Arc::clone(&swarm.seat),
            news,
            orders,
            hello: Hello {
                cluster: swarm.cluster,
                incarnation: 0,
                incarnation_id: [0; 16],
                description: self.config.describe(),
                advertise: swarm.advertise.clone(),
            },
            role,
            removed,
            asked: Some(Arc::new(Remote::new(Arc::clone(&swarm.agent)))),
            stop: stop.clone(),
            is_leaving: false,
        };
        let mut workers = swarm.workers.lock().await;
        let obeying = Arc::clone(&swarm.agent);
        workers.spawn(async move { obeying.obey(obeyed).await });
        let sending = Arc::clone(&swarm.agent);
        workers.spawn(async move { sending.send_audit().await });
        let minding = Arc::clone(&swarm.agent);
        workers.spawn(async move { minding.mind_isolation().await });
        workers.spawn(uplink.run());
        workers.spawn(Arc::clone(self).keep_role(Arc::clone(swarm), roles, stop.clone()));
        workers.spawn(Arc::clone(self).keep_certificate(Arc::clone(swarm), stop.clone()));
        workers.spawn(Arc::clone(self).keep_directory(Arc::clone(swarm), stop));
        // On a task of its own: it ends all the others.
        tokio::spawn(Arc::clone(self).forget_when_removed(Arc::clone(swarm), is_removed));
    }

    /// Starts the manager half on the log in the data root.
    async fn start_half(self: &Arc<Self>, swarm: &Arc<Swarm>) -> Result<(), StartError> {
        let seal = self.store.load_seal_key()?;
        self.finish_rekey(&swarm.file()).await?;
        let raft = self.open_raft(&swarm.file(), &swarm.peers).await?;
        let peers = Arc::clone(&swarm.peers);
        let (audits, key) = (store::dir_in(&self.config.data_root), store::key_from(&seal));
        let audits = Audits::new(store::Store::new(audits, key, store::Bounds::default()));
        let (cluster, node, raft_dir) = (swarm.cluster, swarm.node, self.raft_dir());
        let manager = Manager::new(raft, cluster, node, peers, seal, raft_dir, audits);
        let manager = Arc::new(manager);
        let images = Arc::clone(&self.images);
        let images = Images::new(Arc::clone(&manager), images, Arc::clone(&swarm.reach));
        let images = Arc::new(images);
        let remote = Arc::new(Remote::new(Arc::clone(&swarm.agent)));
        let counter = Arc::new(Counter { images: Arc::clone(&images), remote });
        let half = Half::start(Arc::clone(&manager), &swarm.net, images, counter);
        half.spawn(Arc::clone(self).keep_lock(manager, half.stop.subscribe())).await;
        swarm.set_half(Some(half));
        Ok(())
    }

    /// Keeps what is known of the managers on disk, and trusts the roots that it names.
    async fn keep_directory(self: Arc<Self>, swarm: Arc<Swarm>, mut stop: watch::Receiver<bool>) {
        let mut directory = swarm.book().directory();
        directory.mark_changed();
        let mut trusted = Vec::new();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = directory.changed() => if changed.is_err() { return },
            }
            let latest: Directory = directory.borrow_and_update().clone();
            if latest.incarnation == 0 {
                continue;
            }
            if let Err(error) = self.store.advance_directory(&latest) {
                tracing::warn!(error = chain(&error), "who the managers are cannot be kept");
            }
            if latest.roots != trusted {
                let shown = self.store.load_chain().map_err(disk);
                let shown = shown.and_then(|chain| self.show(&swarm, &chain, &latest.roots));
                match shown {
                    Ok(()) => trusted = latest.roots,
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "the swarm's roots cannot be used");
                    }
                }
            }
        }
    }

    /// Refuses a token of another swarm than the node's own.
    fn check_token(&self, file: &NodeFile, token: &Hidden) -> Result<(), StartError> {
        let roots = self.store.load_directory()?.unwrap_or_default().roots;
        let is_ours = crate::identity::token::Token::parse(token.reveal()).is_ok_and(|token| {
            token.digest == file.joined_by || roots.iter().any(|root| token.is_of(root))
        });
        if is_ours || roots.is_empty() {
            return Ok(());
        }
        Err(StartError::OtherSwarm { cluster: file.cluster.clone() })
    }

    /// Stops taking part. Tasks go on: the next daemon finds them.
    pub async fn stop(&self) {
        let _membership = self.membership.lock().await;
        if let Some(swarm) = self.swarm() {
            self.set_swarm(None);
            swarm.halt().await;
        }
    }
}

fn disk(error: StoreError) -> Refusal {
    failed("cannot write the node's identity", error)
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
