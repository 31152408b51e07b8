//! The one UDP port: everything between nodes is QUIC with TLS 1.3 on it. The protocol a
//! connection speaks is named by its ALPN, and who may speak it is decided here, before a stream
//! is read.

mod connect;
mod error;
mod serve;
mod stream;
mod tls;

#[cfg(test)]
pub(crate) mod tests;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::sys::socket::{setsockopt, sockopt};
use quinn::{Endpoint, EndpointConfig, TokioRuntime, VarInt};
use skep_core::id::NodeId;

pub use connect::{Expected, Meeting, closed};
pub use error::{Closed, DialError, ListenError};
pub use serve::{Admission, Guest, Recorded, Service, Visit};
pub use stream::BiStream;
pub use tls::Identity;

/// A protocol between nodes with its major version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Anybody with a token asks to join; a member renews its certificate.
    Join,
    /// Raft between managers.
    Raft,
    /// A node's agent and the manager that holds its session.
    Agent,
    /// Managers among one another: forwarded writes, confirmed reads, session events.
    Control,
}

impl Protocol {
    /// How many there are.
    pub const COUNT: usize = 4;

    const ALL: [Self; Self::COUNT] = [Self::Join, Self::Raft, Self::Agent, Self::Control];

    /// Its names in the TLS handshake, one for each major version that this node speaks, the
    /// newest first. A dialler offers all of them and the other end picks the newest that both
    /// know, so a version that adds a name keeps the one before: nodes of two versions in
    /// succession always have one in common. What fits into a message without its reader's
    /// knowledge (see [`crate::wire`]) needs no new name.
    #[must_use]
    pub fn names(self) -> Names {
        match self {
            Self::Join => &[b"skep-join/1"],
            Self::Raft => &[b"skep-raft/1"],
            Self::Agent => &[b"skep-agent/1"],
            Self::Control => &[b"skep-control/1"],
        }
    }
}

/// Names of one protocol in the TLS handshake, the newest version's first.
pub type Names = &'static [&'static [u8]];

/// This node's end of the network.
#[derive(Debug)]
pub struct Net {
    endpoint: Endpoint,
    /// What it speaks.
    names: fn(Protocol) -> Names,
    identity: RwLock<Option<Arc<Identity>>>,
    /// There while this node answers.
    live: Mutex<Option<serve::Live>>,
}

impl Net {
    /// Binds the UDP port. It only dials until [`Net::serve`] is called.
    ///
    /// # Errors
    /// [`ListenError`] names the address.
    pub fn bind(addr: SocketAddr) -> Result<Arc<Self>, ListenError> {
        Self::speaking(addr, Protocol::names)
    }

    /// The same for a node that speaks these versions of the protocols.
    ///
    /// # Errors
    /// [`ListenError`] names the address.
    pub fn speaking(
        addr: SocketAddr,
        names: fn(Protocol) -> Names,
    ) -> Result<Arc<Self>, ListenError> {
        let failed = |source| ListenError { addr, source };
        let socket = UdpSocket::bind(addr).map_err(failed)?;
        widen(&socket);
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime);
        Ok(Arc::new(Self {
            endpoint: endpoint.map_err(failed)?,
            names,
            identity: RwLock::new(None),
            live: Mutex::new(None),
        }))
    }

    /// The address it is bound to, with the port that was picked if none was given.
    ///
    /// # Errors
    /// If the socket cannot tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Who this node is towards others, once it is in a swarm.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a new certificate or a new set of roots. Connections that are open stay.
    ///
    /// # Errors
    /// If certificate and key cannot be used.
    pub fn set_identity(&self, identity: Arc<Identity>) -> Result<(), rustls::Error> {
        self.show(tls::server_config(&identity, self.names)?);
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
        Ok(())
    }

    /// Keeps those who dial waiting until [`Net::serve`] answers them: what comes before that
    /// would be lost, and they would say it again only after a while.
    pub fn hold(&self) {
        match tls::holding_config() {
            Ok(config) => self.endpoint.set_server_config(Some(config)),
            Err(error) => tracing::debug!(%error, "those who dial early are not heard"),
        }
    }

    /// Ends what [`Net::hold`] began on a node that does not serve.
    pub fn release(&self) {
        self.endpoint.set_server_config(None);
    }

    /// Ends every connection and frees the port.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(Closed::Stopping.code()), b"stopping");
        // Peers are told; those that do not confirm find out by themselves.
        let _ = tokio::time::timeout(crate::limits::NET_CLOSE, self.endpoint.wait_idle()).await;
        // What still drains must not keep the port from the next one.
        // The endpoint holds on to the socket before the last, so it gets two others.
        for _ in 0..2 {
            let freed = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
                .and_then(|other| self.endpoint.rebind(other));
            if let Err(error) = freed {
                tracing::debug!(%error, "the UDP port is freed later");
            }
        }
    }
}

/// Gives a socket room for what comes at once. Without privileges it gets what the kernel grants.
fn widen(socket: &UdpSocket) {
    let bytes = crate::limits::NET_BUFFER_BYTES;
    let widened = setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))
        .and(setsockopt(socket, sockopt::SndBuf, &bytes));
    if let Err(error) = widened {
        tracing::debug!(%error, "the UDP port's buffers stay as they are");
    }
}

/// The address of a node as a host to dial and a port: a name is looked up anew each time.
///
/// # Errors
/// [`DialError::Name`].
pub async fn resolve(addr: &str) -> Result<SocketAddr, DialError> {
    let unknown = |source| DialError::Name { addr: addr.to_owned(), source };
    let mut found = tokio::net::lookup_host(addr).await.map_err(unknown)?;
    found.next().ok_or_else(|| unknown(std::io::ErrorKind::NotFound.into()))
}

/// The server name in a handshake: the id of the node that is meant, if one is.
fn server_name(node: Option<&NodeId>) -> String {
    node.map_or_else(|| "swarm".to_owned(), ToString::to_string)
}
