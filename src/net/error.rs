//! Why nodes do not reach one another, in words that say what to look at.

use std::io;
use std::net::SocketAddr;

use skep_core::id::NodeId;

use crate::identity::trust::TrustError;

/// The UDP port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on UDP {addr}: {}; choose another --listen-addr, or stop what uses it",
    reason(source)
)]
pub struct ListenError {
    /// Address.
    pub addr: SocketAddr,
    /// Why.
    pub source: io::Error,
}

fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use",
        io::ErrorKind::AddrNotAvailable => "no interface has this address",
        io::ErrorKind::PermissionDenied => "permission denied",
        _ => "the system refuses",
    }
}

/// Why a peer ended a connection: the code in QUIC's close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It stops, or speaks of something that is over.
    Stopping,
    /// It does not know this node.
    Unknown,
    /// This node was removed from the swarm.
    Removed,
    /// This node is no manager, or the peer is none.
    NotManager,
    /// This node belongs to a swarm that was made anew since.
    OtherIncarnation,
    /// This node's certificate has lapsed.
    Expired,
    /// The peer waits for its unlock key, or has not started its part yet.
    NotReady,
    /// A message that cannot be understood, or is over its bound.
    Malformed,
    /// The peer belongs to an older incarnation of the swarm than this node.
    Outlived,
}

impl Closed {
    const ALL: [Self; 9] = [
        Self::Stopping,
        Self::Unknown,
        Self::Removed,
        Self::NotManager,
        Self::OtherIncarnation,
        Self::Expired,
        Self::NotReady,
        Self::Malformed,
        Self::Outlived,
    ];

    /// Its number on the wire; never reused.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Stopping => 0,
            Self::Unknown => 1,
            Self::Removed => 2,
            Self::NotManager => 3,
            Self::OtherIncarnation => 4,
            Self::Expired => 5,
            Self::NotReady => 6,
            Self::Malformed => 7,
            Self::Outlived => 8,
        }
    }

    /// What a code means, if this version knows it.
    #[must_use]
    pub fn of_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|closed| u64::from(closed.code()) == code)
    }

    /// What the peer says with it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stopping => "it is stopping",
            Self::Unknown => "it does not know this node's key: the node is not part of its swarm",
            Self::Removed => "this node was removed from the swarm",
            Self::NotManager => "only managers may do that",
            Self::OtherIncarnation => {
                "the swarm was made anew from a surviving manager: wipe this node and join again"
            }
            Self::Expired => "this node's certificate has expired",
            Self::NotReady => "it is not ready: locked, or still starting",
            Self::Malformed => "it does not understand a message of this node",
            Self::Outlived => {
                "it belongs to an older incarnation of the swarm: wipe it and let it join again"
            }
        }
    }
}

/// A peer cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// This node has no certificate yet.
    #[error("this node is in no swarm")]
    NoIdentity,
    /// The address cannot be looked up.
    #[error("cannot look up {addr}")]
    Name {
        /// Address.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing answers.
    #[error(
        "no answer from {addr} over UDP: is the address right, does the manager run, and does no \
         firewall drop the port?"
    )]
    Silent {
        /// Address.
        addr: SocketAddr,
    },
    /// The peer's certificate is not what it must be.
    #[error("{addr} cannot be trusted")]
    Untrusted {
        /// Address.
        addr: SocketAddr,
        /// Why.
        source: TrustError,
    },
    /// Somebody else answers there.
    #[error("{addr} is node {found}, not {wanted}")]
    WrongPeer {
        /// Address.
        addr: SocketAddr,
        /// Who was meant.
        wanted: NodeId,
        /// Who answers.
        found: NodeId,
    },
    /// The peer ended the connection and said why.
    #[error("{addr} refused: {}", why.word())]
    Refused {
        /// Address.
        addr: SocketAddr,
        /// Why.
        why: Closed,
    },
    /// The peer is of another version, and no protocol version is spoken by both.
    #[error("{addr} speaks no version of {names}: upgrade skep on the older of the two nodes")]
    NoVersion {
        /// Address.
        addr: SocketAddr,
        /// What was offered.
        names: String,
    },
    /// The connection failed.
    #[error("the connection to {addr} failed")]
    Failed {
        /// Address.
        addr: SocketAddr,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS cannot be set up with this node's own certificate.
    #[error("this node's certificate cannot be used")]
    Own(#[source] rustls::Error),
}

impl DialError {
    /// Why the peer refused, if it did.
    #[must_use]
    pub fn refused(&self) -> Option<Closed> {
        match self {
            Self::Refused { why, .. } => Some(*why),
            _ => None,
        }
    }
}
