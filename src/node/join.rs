//! How a node becomes part of a swarm that exists: it knows the swarm by its token, proves that it
//! has the secret without sending it, and gets its certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::Connection;
use skep_core::model::node::Availability;
use tokio::time::timeout;

use super::{Node, disk};
use crate::chain::chain;
use crate::clock::now;
use crate::config;
use crate::gate::{Done, Refusal, SwarmJoin};
use crate::identity::ca::NodeKey;
use crate::identity::store::{LAYOUT, NodeFile, Standing};
use crate::identity::token::Token;
use crate::limits::{JOIN_READY, NET_ANSWER, NET_MESSAGE_BYTES};
use crate::manager::failed;
use crate::net::{Closed, DialError, Meeting, Net, resolve};
use crate::seal::SealKeyPair;
use crate::wire::join::{EXPORTER_LABEL, JoinAnswer, JoinRequest, Joiner, Welcome};
use crate::wire::{WireError, receive, send};

/// One manager did not admit this node.
#[derive(Debug, thiserror::Error)]
enum TryError {
    /// It cannot be reached, or not be trusted.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It said no.
    #[error("{addr} refused: {text}")]
    Refused {
        /// Address.
        addr: String,
        /// Its words.
        text: String,
    },
    /// The connection broke, or the answer makes no sense.
    #[error("{addr} gave no answer")]
    Wire {
        /// Address.
        addr: String,
        /// Why.
        source: WireError,
    },
    /// It took too long.
    #[error("{addr} gave no answer within {NET_ANSWER:?}")]
    Silent {
        /// Address.
        addr: String,
    },
}

/// What a join brings with it.
struct Candidate<'a> {
    token: Arc<Token>,
    key: &'a NodeKey,
    csr: Vec<u8>,
    seal: &'a SealKeyPair,
    listen: SocketAddr,
    advertise: String,
    availability: Availability,
}

impl Node {
    /// Makes this node part of a swarm.
    ///
    /// # Errors
    /// What is wrong with the token, the addresses or the managers, each by name.
    pub async fn join(self: &Arc<Self>, join: SwarmJoin) -> Result<Done, Refusal> {
        let _membership = self.membership.lock().await;
        self.check_not_outlived()?;
        if self.swarm().is_some() {
            return Err(Refusal::AlreadyInSwarm);
        }
        let token = Token::parse(join.token.reveal())
            .map_err(|error| Refusal::InvalidToken(error.to_string()))?;
        let listen = self.listen_addr(&join.listen_addr)?;
        let net = Net::speaking(listen, self.config.build.names)
            .map_err(|e| Refusal::Invalid(e.to_string()))?;
        let joined = self.join_through(&net, Arc::new(token), &join).await;
        if joined.is_err() {
            net.close().await;
        }
        joined.map(|()| Done::Nothing)
    }

    async fn join_through(
        self: &Arc<Self>,
        net: &Arc<Net>,
        token: Arc<Token>,
        join: &SwarmJoin,
    ) -> Result<(), Refusal> {
        // A join that was cut short goes on with the key that the swarm may know already.
        let (key, seal) = self.store.unfinished_keys().map_err(disk)?;
        let csr = key.csr().map_err(|e| failed("cannot make a certificate request", e))?;
        let bound = net.local_addr().map_err(|e| failed("cannot use the UDP port", e))?;
        // As soon as the swarm knows a new manager, its leader dials it.
        net.hold();
        let mut errors = Vec::new();
        for remote in &join.remote_addrs {
            let candidate = Candidate {
                token: Arc::clone(&token),
                key: &key,
                csr: csr.clone(),
                seal: &seal,
                listen: self.listen_addr(&join.listen_addr)?,
                advertise: self.advertise_to(remote, &join.advertise_addr, bound).await?,
                availability: join.availability,
            };
            match self.ask_to_join(net, remote, &candidate).await {
                Ok(welcome) => return self.joined(net, &welcome, &candidate).await,
                Err(error) => errors.push(error),
            }
        }
        Err(refusal(&errors))
    }

    async fn ask_to_join(
        &self,
        net: &Net,
        remote: &str,
        candidate: &Candidate<'_>,
    ) -> Result<Welcome, TryError> {
        let Meeting { connection, .. } = net.dial_to_join(remote, &candidate.token).await?;
        let asked = timeout(NET_ANSWER + NET_ANSWER, self.exchange(&connection, candidate)).await;
        let addr = remote.to_owned();
        let answer = match asked {
            Err(_) => Err(TryError::Silent { addr }),
            Ok(Err(source)) => {
                Err(match connection.close_reason().and_then(|r| crate::net::closed(&r)) {
                    Some(why) => {
                        DialError::Refused { addr: connection.remote_address(), why }.into()
                    }
                    None => TryError::Wire { addr, source },
                })
            }
            Ok(Ok(JoinAnswer::Welcome(welcome))) => Ok(*welcome),
            Ok(Ok(JoinAnswer::Refused(text))) => Err(TryError::Refused { addr, text }),
            Ok(Ok(JoinAnswer::Renewed { .. })) => {
                let source = minicbor::decode::Error::message("an answer to another question");
                Err(TryError::Wire { addr, source: source.into() })
            }
        };
        connection.close(Closed::Stopping.code().into(), b"joined");
        answer
    }

    async fn exchange(
        &self,
        connection: &Connection,
        candidate: &Candidate<'_>,
    ) -> Result<JoinAnswer, WireError> {
        let mut exported = [0; 32];
        connection
            .export_keying_material(&mut exported, EXPORTER_LABEL, b"")
            .map_err(|_| std::io::Error::other("the TLS session gives no key material"))?;
        let joiner = Joiner {
            csr: candidate.csr.clone(),
            seal_key: candidate.seal.public(),
            proof: candidate.token.secret.proof(&exported, &candidate.csr),
            description: self.config.describe(),
            advertise: candidate.advertise.clone(),
            availability: candidate.availability,
            now_ns: now().0,
        };
        let (mut tx, mut rx) = connection.open_bi().await.map_err(std::io::Error::from)?;
        send(&mut tx, &JoinRequest::Join(Box::new(joiner))).await?;
        let _ = tx.finish();
        receive(&mut rx, NET_MESSAGE_BYTES).await
    }

    /// Writes down what the node is now, and takes it up.
    async fn joined(
        self: &Arc<Self>,
        net: &Arc<Net>,
        welcome: &Welcome,
        candidate: &Candidate<'_>,
    ) -> Result<(), Refusal> {
        let file = NodeFile {
            layout: LAYOUT,
            standing: Standing::Member,
            node: welcome.node.to_string(),
            cluster: welcome.cluster.to_string(),
            raft_id: welcome.raft_id,
            listen_addr: Self::listened(candidate.listen, net),
            advertise_addr: candidate.advertise.clone(),
            joined_by: candidate.token.digest.clone(),
        };
        // What a crash in an earlier attempt left is nobody's log: node.json comes last.
        crate::files::remove_dir(&self.store.raft_dir())
            .map_err(|e| failed("cannot clear an unfinished swarm", e))?;
        if welcome.raft_id != 0 {
            self.store.make_storage_key().map_err(disk)?;
        }
        self.store.save_leaf(&welcome.chain, candidate.key, candidate.seal).map_err(disk)?;
        self.store.save_directory(&welcome.directory).map_err(disk)?;
        self.store.save(&file).map_err(disk)?;
        let start = |e: super::StartError| failed("cannot take up the node's part", e);
        let swarm = self.take_up(Arc::clone(net), file).await.map_err(start)?;
        let Some(manager) = swarm.manager() else { return Ok(()) };
        // The API answers from the state: a manager without it could only say that it waits.
        let mut applied = manager.raft.applied();
        let caught_up =
            applied.wait_for(|_| manager.raft.view(|state| state.node(&swarm.node).is_some()));
        let in_time = timeout(JOIN_READY, caught_up).await.is_ok();
        if in_time { Ok(()) } else { Err(Refusal::JoinTimeout) }
    }

    /// Where others reach this node: as given, or the address it reaches the manager from.
    async fn advertise_to(
        &self,
        remote: &str,
        given: &str,
        bound: SocketAddr,
    ) -> Result<String, Refusal> {
        let invalid = |e: config::ConfigError| Refusal::Invalid(e.to_string());
        let is_told = !given.is_empty()
            || self.config.advertise_addr.is_some()
            || !bound.ip().is_unspecified();
        if !is_told
            && let Ok(remote) = resolve(remote).await
            && let Some(ip) = source_towards(remote)
        {
            return Ok(SocketAddr::new(ip, bound.port()).to_string());
        }
        Ok(config::advertise(&self.config, given, bound).map_err(invalid)?.to_string())
    }
}

/// The address that packets to `remote` leave from. Connecting a UDP socket sends nothing.
fn source_towards(remote: SocketAddr) -> Option<std::net::IpAddr> {
    let any = match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

/// All that went wrong, manager by manager.
fn refusal(errors: &[TryError]) -> Refusal {
    let texts: Vec<String> = errors.iter().map(|e| chain(e)).collect();
    let is_verdict = |error: &TryError| {
        matches!(error, TryError::Refused { .. } | TryError::Dial(DialError::Untrusted { .. }))
    };
    let text = texts.join("; ");
    if errors.iter().any(is_verdict) {
        Refusal::JoinRefused(text)
    } else {
        Refusal::JoinFailed(text)
    }
}
