//! Dialling: whoever answers must be the node that is meant, with the key that is on record.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Connection, ConnectionError, TransportErrorCode};
use rustls::AlertDescription;
use skep_core::id::NodeId;
use skep_core::model::node::Role;
use tokio::time::timeout;

use super::tls::{self, Dialling};
use super::{Closed, DialError, Names, Net, Protocol, resolve, server_name};
use crate::identity::token::Token;
use crate::identity::trust::{LeafFacts, Standing, TrustError};
use crate::limits::NET_DIAL;

/// Whom a dialler means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its id.
    pub node: NodeId,
    /// DER of its public key.
    pub public_key: Vec<u8>,
    /// Where it is said to be: a hint, as `HOST:PORT`.
    pub addr: String,
}

/// A connection with what the server's certificate says.
#[derive(Debug)]
pub struct Meeting {
    /// Connection.
    pub connection: Connection,
    /// Who answered.
    pub facts: LeafFacts,
}

impl Net {
    /// Connects to a manager.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(
        &self,
        expected: &Expected,
        protocol: Protocol,
    ) -> Result<Connection, DialError> {
        let identity = self.identity().ok_or(DialError::NoIdentity)?;
        let names = (self.names)(protocol);
        let addr = resolve(&expected.addr).await?;
        let dialling = tls::member_config(&identity, names).map_err(DialError::Own)?;
        let meeting = self.meet(addr, names, dialling, Some(&expected.node)).await?;
        let Meeting { connection, facts } = meeting;
        let verdict = judge(addr, expected, &facts);
        if let Err(error) = verdict {
            connection.close(Closed::Unknown.code().into(), b"not the node that was meant");
            return Err(error);
        }
        if facts.standing != Standing::Valid {
            // Between managers the recorded key decides.
            tracing::warn!(node = %facts.node, %addr, "{}", facts.lapse());
        }
        Ok(connection)
    }

    /// Connects to a manager of the swarm that a token names.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_to_join(&self, addr: &str, token: &Arc<Token>) -> Result<Meeting, DialError> {
        let names = (self.names)(Protocol::Join);
        let addr = resolve(addr).await?;
        let dialling = tls::joiner_config(Arc::clone(token), names).map_err(DialError::Own)?;
        self.meet(addr, names, dialling, None).await
    }

    /// Connects to a manager without showing a certificate, to get a new one.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_to_renew(&self, expected: &Expected) -> Result<Connection, DialError> {
        let identity = self.identity().ok_or(DialError::NoIdentity)?;
        let addr = resolve(&expected.addr).await?;
        let names = (self.names)(Protocol::Join);
        let dialling = tls::renewer_config(&identity, names).map_err(DialError::Own)?;
        let meeting = self.meet(addr, names, dialling, Some(&expected.node)).await?;
        let Meeting { connection, facts } = meeting;
        judge(addr, expected, &facts)?;
        Ok(connection)
    }

    async fn meet(
        &self,
        addr: SocketAddr,
        names: Names,
        dialling: Dialling,
        node: Option<&NodeId>,
    ) -> Result<Meeting, DialError> {
        let Dialling { config, verdict } = dialling;
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| DialError::Failed { addr, source };
        let connecting = self
            .endpoint
            .connect_with(config, addr, &server_name(node))
            .map_err(|e| failed(e.into()))?;
        let connected = timeout(NET_DIAL, connecting).await;
        // What was found of the certificate tells more than the alert that it led to.
        let facts = match verdict.take() {
            Some(Err(source)) => return Err(DialError::Untrusted { addr, source }),
            Some(Ok(facts)) => Some(facts),
            None => None,
        };
        match (connected, facts) {
            (Ok(Ok(connection)), Some(facts)) => Ok(Meeting { connection, facts }),
            (Ok(Ok(_)), None) => {
                Err(DialError::Untrusted { addr, source: TrustError::NoCertificate })
            }
            (Ok(Err(error)), _) => Err(dial_error(addr, names, error)),
            (Err(_), _) => Err(DialError::Silent { addr }),
        }
    }
}

fn judge(addr: SocketAddr, expected: &Expected, facts: &LeafFacts) -> Result<(), DialError> {
    if facts.node != expected.node {
        let (wanted, found) = (expected.node, facts.node);
        return Err(DialError::WrongPeer { addr, wanted, found });
    }
    let source = if facts.public_key != expected.public_key {
        TrustError::WrongKey { node: facts.node }
    } else if facts.role != Role::Manager {
        TrustError::NotAManager
    } else {
        return Ok(());
    };
    Err(DialError::Untrusted { addr, source })
}

/// What the end of a connection means to the one who dialled it.
fn dial_error(addr: SocketAddr, names: Names, error: ConnectionError) -> DialError {
    match error {
        ConnectionError::ConnectionClosed(close) if close.error_code == no_protocol() => {
            let names = names.iter().map(|name| String::from_utf8_lossy(name));
            DialError::NoVersion { addr, names: names.collect::<Vec<_>>().join(", ") }
        }
        ConnectionError::TimedOut => DialError::Silent { addr },
        error => match closed(&error) {
            Some(why) => DialError::Refused { addr, why },
            None => DialError::Failed { addr, source: error.into() },
        },
    }
}

/// The alert of a server that speaks none of the protocols that were offered.
fn no_protocol() -> TransportErrorCode {
    TransportErrorCode::crypto(AlertDescription::NoApplicationProtocol.into())
}

/// Why the peer closed a connection, if it did and said so.
#[must_use]
pub fn closed(error: &ConnectionError) -> Option<Closed> {
    match error {
        ConnectionError::ApplicationClosed(close) => Closed::of_code(close.error_code.into()),
        _ => None,
    }
}
