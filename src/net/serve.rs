//! Answering: a peer is admitted only as what the state says its key is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Incoming, ServerConfig};
use rustls::pki_types::CertificateDer;
use skep_core::id::NodeId;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::{Closed, Net, Protocol, tls};
use crate::identity::trust::{LeafFacts, Standing};
use crate::limits::{NET_CONNECTIONS, NET_DIAL, NET_HANDSHAKES, NET_HANDSHAKES_FREE};
use crate::manager::stopped;

/// What the state says of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// DER of its public key.
    pub public_key: Vec<u8>,
    /// Its Raft id, if it is a manager.
    pub raft_id: Option<u64>,
}

/// Knows who belongs to the swarm.
pub trait Admission: Send + Sync + 'static {
    /// What is on record of a node; none if it is no member.
    fn recorded(&self, node: &NodeId) -> Option<Recorded>;

    /// What a node is told that is not on record and shows a certificate of this swarm.
    fn farewell(&self, node: &NodeId) -> Closed;

    /// Makes sure of the latest state, and whether that says that there is no such node: one with
    /// a certificate of this swarm was removed.
    fn confirm(&self, node: NodeId) -> Visit<bool>;
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Nobody known: it may only ask to join.
    Anonymous,
    /// A member. Its Raft id is there if it is a manager.
    Member {
        /// Node.
        node: NodeId,
        /// Raft id.
        raft_id: Option<u64>,
    },
}

/// A connection's life, on a task of its own.
pub type Visit<T = ()> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What answers admitted peers.
pub trait Service: Send + Sync + 'static {
    /// Holds one connection until it ends.
    fn visit(&self, guest: Guest, protocol: Protocol, connection: Connection) -> Visit;
}

/// This node while it answers.
#[derive(Debug)]
pub(super) struct Live {
    /// What it shows to those who come.
    config: Arc<ServerConfig>,
    /// Connections that members hold, so that those who are no longer members lose them.
    members: HashMap<usize, (NodeId, Protocol, Connection)>,
}

impl Net {
    /// Shows this to those who come from now on, if this node answers.
    pub(super) fn show(&self, config: ServerConfig) {
        if let Some(live) = self.live().as_mut() {
            live.config = Arc::new(config.clone());
            self.endpoint.set_server_config(Some(config));
        }
    }

    /// Answers peers until told to stop.
    ///
    /// # Errors
    /// If this node's certificate cannot be used, or it has none.
    pub async fn serve(
        self: Arc<Self>,
        admission: Arc<dyn Admission>,
        service: Arc<dyn Service>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), rustls::Error> {
        let identity = self
            .identity()
            .ok_or_else(|| rustls::Error::General("this node has no certificate".into()))?;
        let config = tls::server_config(&identity, self.names)?;
        let live = Live { config: Arc::new(config.clone()), members: HashMap::new() };
        *self.live() = Some(live);
        self.endpoint.set_server_config(Some(config));
        let handshakes = Arc::new(Semaphore::new(NET_HANDSHAKES));
        loop {
            let incoming = tokio::select! {
                () = stopped(&mut stop) => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let free = handshakes.available_permits();
            // An address that may be forged shows first that packets reach it.
            if free < NET_HANDSHAKES_FREE && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let Ok(turn) = Arc::clone(&handshakes).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            if self.endpoint.open_connections() > NET_CONNECTIONS {
                incoming.refuse();
                continue;
            }
            let (net, admission, service) =
                (Arc::clone(&self), Arc::clone(&admission), Arc::clone(&service));
            tokio::spawn(async move {
                let addr = incoming.remote_address();
                let admitted = net.admit(incoming, &*admission).await;
                drop(turn);
                if let Some((guest, protocol, connection)) = admitted {
                    net.host(guest, protocol, connection, addr, &*service).await;
                }
            });
        }
        self.endpoint.set_server_config(None);
        *self.live() = None;
        Ok(())
    }

    /// Ends connections of those who are no longer what they were admitted as.
    pub fn review(&self, admission: &dyn Admission) {
        let live = self.live();
        for (node, protocol, connection) in live.iter().flat_map(|live| live.members.values()) {
            if let Err(why) = may(*protocol, admission.recorded(node).as_ref()) {
                let is_gone = why == Closed::Unknown;
                let why = if is_gone { admission.farewell(node) } else { why };
                connection.close(why.code().into(), why.word().as_bytes());
            }
        }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn admit(
        &self,
        incoming: Incoming,
        admission: &dyn Admission,
    ) -> Option<(Guest, Protocol, Connection)> {
        let addr = incoming.remote_address();
        // One that was kept waiting came before there was anything to show.
        let config = self.live().as_ref().map(|live| Arc::clone(&live.config))?;
        let handshake = async { incoming.accept_with(config)?.await };
        let connection = match timeout(NET_DIAL, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(%addr, %error, "a peer did not get through the handshake");
                return None;
            }
            Err(_) => return None,
        };
        match self.identify(&connection, admission).await {
            Ok((guest, protocol)) => Some((guest, protocol, connection)),
            Err(why) => {
                tracing::info!(%addr, why = why.word(), "a peer was turned away");
                connection.close(why.code().into(), why.word().as_bytes());
                None
            }
        }
    }

    async fn identify(
        &self,
        connection: &Connection,
        admission: &dyn Admission,
    ) -> Result<(Guest, Protocol), Closed> {
        let data =
            connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
        let is_meant = |of: &Protocol| (self.names)(*of).contains(&alpn.as_slice());
        let protocol = Protocol::ALL.into_iter().find(is_meant).ok_or(Closed::Malformed)?;
        if protocol == Protocol::Join {
            return Ok((Guest::Anonymous, protocol));
        }
        let facts = self.facts(connection).ok_or(Closed::Unknown)?;
        let known = || {
            let recorded = admission.recorded(&facts.node);
            recorded.filter(|known| known.public_key == facts.public_key)
        };
        let mut recorded = known();
        if may(protocol, recorded.as_ref()).is_err() {
            // It may have joined, or been promoted, a moment ago.
            let confirmed = timeout(NET_DIAL, admission.confirm(facts.node)).await;
            recorded = known();
            if recorded.is_none() && confirmed == Ok(true) {
                return Err(admission.farewell(&facts.node));
            }
        }
        may(protocol, recorded.as_ref())?;
        let raft_id = recorded.and_then(|known| known.raft_id);
        if facts.standing != Standing::Valid {
            if raft_id.is_none() {
                return Err(Closed::Expired);
            }
            tracing::warn!(node = %facts.node, "{}", facts.lapse());
        }
        Ok((Guest::Member { node: facts.node, raft_id }, protocol))
    }

    fn facts(&self, connection: &Connection) -> Option<LeafFacts> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        self.identity()?.trust.verify(&chain, SystemTime::now()).ok()
    }

    async fn host(
        &self,
        guest: Guest,
        protocol: Protocol,
        connection: Connection,
        addr: SocketAddr,
        service: &dyn Service,
    ) {
        let key = connection.stable_id();
        if let Guest::Member { node, .. } = guest {
            match self.live().as_mut() {
                Some(live) => live.members.insert(key, (node, protocol, connection.clone())),
                None => return,
            };
        }
        tracing::debug!(?guest, ?protocol, %addr, "connected");
        service.visit(guest, protocol, connection).await;
        if let Some(live) = self.live().as_mut() {
            live.members.remove(&key);
        }
    }
}

/// Whether somebody with this record may speak this protocol.
fn may(protocol: Protocol, recorded: Option<&Recorded>) -> Result<(), Closed> {
    match (protocol, recorded) {
        (Protocol::Join, _) | (Protocol::Agent, Some(_)) => Ok(()),
        (_, None) => Err(Closed::Unknown),
        (Protocol::Raft | Protocol::Control, Some(recorded)) => {
            recorded.raft_id.map(|_| ()).ok_or(Closed::NotManager)
        }
    }
}
