//! Whether a chain of certificates is of this swarm, and what it says of its node. Time is
//! reported, not enforced: between managers the recorded key decides.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::Role;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;

use super::token::Token;

/// Certificates that may stand between a leaf and its root, and the root itself.
const CHAIN: usize = 4;
/// Share of a certificate's life after which it is renewed: somewhere between these, in 1/100.
const RENEWAL: [u64; 2] = [50, 80];

/// A chain is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The peer shows none.
    #[error("it shows no certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("its certificate cannot be read: {0}")]
    Bad(&'static str),
    /// No root of this swarm signed it.
    #[error("its certificate was signed by no root of this swarm: it belongs to another swarm")]
    UnknownRoot,
    /// The token names another swarm.
    #[error(
        "the join token's digest does not match the root certificate of the swarm that answers: \
         the token is of another swarm, or an impostor answers"
    )]
    WrongDigest,
    /// A worker answers where only managers do.
    #[error("its certificate is a worker's, not a manager's")]
    NotAManager,
    /// The key is not the one on record.
    #[error("its key is not the one on record for node {node}")]
    WrongKey {
        /// Node.
        node: NodeId,
    },
    /// Its time is over, or has not come.
    #[error("{0}")]
    Lapsed(String),
}

/// How a certificate stands in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is valid.
    Valid,
    /// Its time is over.
    Expired,
    /// Its time has not come: somebody's clock is wrong.
    NotYetValid,
}

/// What a leaf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Node.
    pub node: NodeId,
    /// Swarm.
    pub cluster: ClusterId,
    /// DER of its public key.
    pub public_key: Vec<u8>,
    /// What it may be: only managers have serverAuth.
    pub role: Role,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
    /// How that stands by this node's clock.
    pub standing: Standing,
}

impl LeafFacts {
    /// What is wrong with its time, with what this node's clock says.
    #[must_use]
    pub fn lapse(&self) -> String {
        let at = |time: SystemTime| {
            jiff::Timestamp::try_from(time).map_or_else(|_| "?".to_owned(), |at| at.to_string())
        };
        format!(
            "its certificate is valid from {} to {}, and the clock of this node says {}: check the \
             clocks of both nodes",
            at(self.not_before),
            at(self.not_after),
            at(SystemTime::now())
        )
    }

    /// When it is to be renewed: at 50 to 80 % of its life, each node at another moment.
    #[must_use]
    pub fn renewal_due(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let spread = self.node.as_str().bytes().fold(0u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let share = RENEWAL[0] * 100 + spread % ((RENEWAL[1] - RENEWAL[0]) * 100);
        self.not_before + life.mul_f64(share as f64 / 10_000.0)
    }
}

/// The roots of a swarm.
#[derive(Clone)]
pub struct Trust {
    roots: Arc<[(CertificateDer<'static>, TrustAnchor<'static>)]>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({} roots)", self.roots.len())
    }
}

impl Trust {
    /// Trusts these roots, in PEM.
    ///
    /// # Errors
    /// If one is none.
    pub fn new(roots: &[String]) -> Result<Self, TrustError> {
        let roots = roots.iter().map(|pem| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|_| TrustError::Bad("a root is no PEM"))?;
            Self::anchor(der)
        });
        Ok(Self { roots: roots.collect::<Result<_, _>>()? })
    }

    fn anchor(
        der: CertificateDer<'static>,
    ) -> Result<(CertificateDer<'static>, TrustAnchor<'static>), TrustError> {
        let anchor = anchor_from_trusted_cert(&der)
            .map_err(|_| TrustError::Bad("a root is no certificate"))?
            .to_owned();
        Ok((der, anchor))
    }

    /// The roots in DER.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|(der, _)| der)
    }

    /// Checks a chain, leaf first, against the roots.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<LeafFacts, TrustError> {
        let (leaf, rest) = chain.split_first().ok_or(TrustError::NoCertificate)?;
        if rest.len() > CHAIN {
            return Err(TrustError::Bad("too many certificates"));
        }
        let facts = read(leaf, now)?;
        let parsed = EndEntityCert::try_from(leaf)
            .map_err(|_| TrustError::Bad("it is no certificate of version 3"))?;
        let anchors: Vec<_> = self.roots.iter().map(|(_, anchor)| anchor.clone()).collect();
        // Every leaf has clientAuth. A moment within its life: how that stands is told apart.
        let moment = facts.not_before + Duration::from_secs(3600 + 60);
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        parsed
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                rest,
                UnixTime::since_unix_epoch(since),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(|_| TrustError::UnknownRoot)?;
        Ok(facts)
    }

    /// Checks the chain of a manager of the swarm that a token names. It ends with the root, which
    /// the token's digest must match.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn verify_by_token(
        chain: &[CertificateDer<'_>],
        token: &Token,
        now: SystemTime,
    ) -> Result<LeafFacts, TrustError> {
        let named = chain.iter().skip(1).find(|cert| token.is_of_der(cert));
        let root = named.ok_or(TrustError::WrongDigest)?.clone().into_owned();
        let trust = Self { roots: Arc::new([Self::anchor(root)?]) };
        let facts = trust.verify(chain, now)?;
        if facts.role != Role::Manager {
            return Err(TrustError::NotAManager);
        }
        if facts.standing != Standing::Valid {
            return Err(TrustError::Lapsed(facts.lapse()));
        }
        Ok(facts)
    }
}

/// What a leaf says, whoever signed it.
///
/// # Errors
/// [`TrustError::Bad`].
pub fn read(leaf: &CertificateDer<'_>, now: SystemTime) -> Result<LeafFacts, TrustError> {
    let (rest, cert) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|_| TrustError::Bad("it is no certificate"))?;
    if !rest.is_empty() {
        return Err(TrustError::Bad("bytes follow it"));
    }
    let name = |what: &mut dyn Iterator<Item = &str>| what.next().map(str::to_owned);
    let node = name(&mut cert.subject().iter_common_name().filter_map(|n| n.as_str().ok()));
    let cluster = name(&mut cert.subject().iter_organization().filter_map(|n| n.as_str().ok()));
    let node = node.and_then(|text| text.parse().ok());
    let cluster = cluster.and_then(|text| text.parse().ok());
    let (not_before, not_after) = validity(&cert)?;
    Ok(LeafFacts {
        node: node.ok_or(TrustError::Bad("it names no node"))?,
        cluster: cluster.ok_or(TrustError::Bad("it names no swarm"))?,
        public_key: cert.public_key().raw.to_vec(),
        role: match cert.extended_key_usage() {
            Ok(Some(usage)) if usage.value.server_auth => Role::Manager,
            _ => Role::Worker,
        },
        not_before,
        not_after,
        standing: if now < not_before {
            Standing::NotYetValid
        } else if now > not_after {
            Standing::Expired
        } else {
            Standing::Valid
        },
    })
}

fn validity(cert: &X509Certificate<'_>) -> Result<(SystemTime, SystemTime), TrustError> {
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).ok().filter(|s| *s < 1 << 40);
        let seconds = seconds.ok_or(TrustError::Bad("its time is out of range"))?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let validity = cert.validity();
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}
