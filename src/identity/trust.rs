//! Whom a node believes: chains of certificates up to the swarm's roots. What is decided here is
//! who a peer says it is and that the swarm has signed it; whether its key is the one recorded for
//! that node is decided where the record is.

use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::Role;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::token::Token;
use crate::limits::{CHAIN_CERTIFICATES, LEAF_BACKDATE, ROOTS};

/// A chain of certificates is not believed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The swarm's own roots cannot be used.
    #[error("root certificate {number} of {count} of this swarm cannot be used: {why}")]
    BadRoot {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// What is wrong.
        why: String,
    },
    /// There is no root to go by, or there are too many.
    #[error("{0} root certificates were given; a swarm has 1 to {ROOTS}")]
    RootCount(usize),
    /// The peer sent none.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// The peer sent too many.
    #[error("the peer sent {0} certificates; at most {CHAIN_CERTIFICATES} make sense")]
    TooMany(usize),
    /// The peer's certificate is not of a form that this swarm makes.
    #[error("the peer's certificate is not one that a swarm makes: {0}")]
    BadCertificate(&'static str),
    /// It names no node.
    #[error("the peer's certificate names no node: its one DNS name must be a node id")]
    NoNodeId,
    /// It names no swarm.
    #[error("the peer's certificate names no swarm: its organization must be a swarm id")]
    NoClusterId,
    /// No root that is known has signed it.
    #[error(
        "the certificate of node {node} of swarm {cluster} is not signed by a root of this swarm: it is of another swarm, or of one that has changed its root since; if so, leave and join again with a fresh token"
    )]
    UnknownRoot {
        /// Whom it names.
        node: NodeId,
        /// Its swarm.
        cluster: ClusterId,
        /// What the check said.
        #[source]
        source: Box<webpki::Error>,
    },
    /// Its time is over, or has not come.
    #[error(
        "the certificate of node {node} is valid from {not_before} to {not_after}, and the clock of this machine says {now}: check the clocks of both machines"
    )]
    Lapsed {
        /// Whose.
        node: NodeId,
        /// Begin of its validity.
        not_before: Moment,
        /// End of its validity.
        not_after: Moment,
        /// The clock here.
        now: Moment,
    },
    /// The key is not the one on record.
    #[error("the peer's key is not the one on record for node {node}")]
    WrongKey {
        /// Whom its certificate names.
        node: NodeId,
    },
    /// The swarm that answers is not the one that the token is of.
    #[error(
        "the machine that answers is not of the swarm that the join token is of: no root certificate that it sends has the token's digest; check the address, or get a fresh token with `skep swarm join-token` on a manager of the right swarm"
    )]
    WrongDigest,
    /// A worker answers where a manager should.
    #[error(
        "the peer's certificate is a worker's, and only managers serve others: give the address of a manager"
    )]
    NotAManager,
}

/// A time of day for people: RFC 3339, UTC, whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub SystemTime);

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match i64::try_from(since.as_secs()).ok().and_then(|s| jiff::Timestamp::from_second(s).ok())
        {
            Some(stamp) => write!(f, "{stamp}"),
            None => f.write_str("a time beyond the calendar"),
        }
    }
}

/// How a certificate's validity stands to a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Within.
    Valid,
    /// After.
    Expired,
    /// Before.
    NotYetValid,
}

/// What a believed certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Whose it is.
    pub node: NodeId,
    /// Its swarm.
    pub cluster: ClusterId,
    /// DER of its public key.
    pub public_key: Vec<u8>,
    /// What it may be: only a manager's certificate is good for a server.
    pub role: Role,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// How its validity stands to the clock that it was checked by.
    pub standing: Standing,
}

impl LeafFacts {
    /// For peers whose validity matters: between managers it only warns.
    ///
    /// # Errors
    /// [`TrustError::Lapsed`], with all times.
    pub fn require_valid(&self, now: SystemTime) -> Result<(), TrustError> {
        match standing(self.not_before, self.not_after, now) {
            Standing::Valid => Ok(()),
            Standing::Expired | Standing::NotYetValid => Err(self.lapsed(now)),
        }
    }

    /// What to say of a certificate that is not valid now.
    #[must_use]
    pub fn lapse(&self) -> String {
        self.lapsed(SystemTime::now()).to_string()
    }

    fn lapsed(&self, now: SystemTime) -> TrustError {
        TrustError::Lapsed {
            node: self.node,
            not_before: Moment(self.not_before),
            not_after: Moment(self.not_after),
            now: Moment(now),
        }
    }

    /// How long until this certificate should be renewed, as [`renewal_due`].
    #[must_use]
    pub fn renewal_due(&self, now: SystemTime) -> Duration {
        renewal_due(self.not_before, self.not_after, self.node, now)
    }
}

/// The roots that a node believes.
#[derive(Clone)]
pub struct Trust {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust({} roots)", self.roots.len())
    }
}

impl Trust {
    /// Believes these roots, in PEM.
    ///
    /// # Errors
    /// [`TrustError::BadRoot`] or [`TrustError::RootCount`].
    pub fn new(roots_pem: &[String]) -> Result<Self, TrustError> {
        let count = roots_pem.len();
        let roots = (1..).zip(roots_pem).map(|(number, pem)| {
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| TrustError::BadRoot {
                number,
                count,
                why: e.to_string(),
            })
        });
        Self::of(roots.collect::<Result<_, _>>()?)
    }

    fn of(roots: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        let count = roots.len();
        if !(1..=ROOTS).contains(&count) {
            return Err(TrustError::RootCount(count));
        }
        let anchors = (1..).zip(&roots).map(|(number, root)| {
            anchor_from_trusted_cert(root)
                .map(|anchor| anchor.to_owned())
                .map_err(|e| TrustError::BadRoot { number, count, why: e.to_string() })
        });
        let anchors = anchors.collect::<Result<_, _>>()?;
        Ok(Self { roots, anchors })
    }

    /// The roots, in DER.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter()
    }

    /// Checks the chain that a peer sent, its own certificate first. Validity is told, not
    /// enforced: for some peers it decides, for others it is a warning.
    ///
    /// # Errors
    /// [`TrustError`] says what is wrong with it.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<LeafFacts, TrustError> {
        let (leaf, rest) = chain.split_first().ok_or(TrustError::NoCertificate)?;
        if chain.len() > CHAIN_CERTIFICATES {
            return Err(TrustError::TooMany(chain.len()));
        }
        let facts = read_leaf(leaf, now)?;
        let unknown = |e| TrustError::UnknownRoot {
            node: facts.node,
            cluster: facts.cluster,
            source: Box::new(e),
        };
        // At a time when it was valid: the chain must hold together whatever the clock says.
        let at = now.clamp(facts.not_before, facts.not_after);
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let certificate = EndEntityCert::try_from(leaf)
            .map_err(|_| TrustError::BadCertificate("it is damaged or of another version"))?;
        let path = certificate
            .verify_for_usage(
                &[webpki::aws_lc_rs::ECDSA_P256_SHA256],
                &self.anchors,
                rest,
                UnixTime::since_unix_epoch(at),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(unknown)?;
        if path.intermediate_certificates().count() > 1 {
            return Err(TrustError::BadCertificate("more than one other vouches for it"));
        }
        Ok(facts)
    }

    /// What a joiner does, who knows nothing but a token: believes the root among the certificates
    /// sent that has the token's digest, and by it only a manager whose certificate is valid now.
    ///
    /// # Errors
    /// [`TrustError::WrongDigest`] if no certificate sent has the digest;
    /// [`TrustError::NotAManager`]; [`TrustError::Lapsed`], where as a rule the joiner's own clock
    /// is off; others as [`Trust::verify`].
    pub fn verify_by_token(
        chain: &[CertificateDer<'_>],
        token: &Token,
        now: SystemTime,
    ) -> Result<LeafFacts, TrustError> {
        let (_, rest) = chain.split_first().ok_or(TrustError::NoCertificate)?;
        if chain.len() > CHAIN_CERTIFICATES {
            return Err(TrustError::TooMany(chain.len()));
        }
        let root = rest.iter().find(|root| token.is_of_der(root));
        let root = root.ok_or(TrustError::WrongDigest)?.clone().into_owned();
        let facts = Self::of(vec![root])?.verify(chain, now)?;
        if facts.role != Role::Manager {
            return Err(TrustError::NotAManager);
        }
        facts.require_valid(now)?;
        Ok(facts)
    }
}

/// How long until a certificate should be renewed: a point of 50 to 80 % of the life it had when
/// it was signed, another one for every node and every certificate. Zero once it is due.
#[must_use]
pub fn renewal_due(
    not_before: SystemTime,
    not_after: SystemTime,
    node: NodeId,
    now: SystemTime,
) -> Duration {
    let signed = not_before.checked_add(LEAF_BACKDATE).unwrap_or(not_after);
    let life = not_after.duration_since(signed).unwrap_or_default();
    let begin = not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let hash = Sha256::new().chain_update(node.as_str()).chain_update(begin.to_be_bytes());
    let spread = hash.finalize().first_chunk().map_or(0, |b| u16::from_be_bytes(*b));
    let part = 0.5 + 0.3 * f64::from(spread) / f64::from(u16::MAX);
    let due = signed + life.mul_f64(part);
    due.duration_since(now).unwrap_or_default()
}

fn standing(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> Standing {
    if now < not_before {
        Standing::NotYetValid
    } else if now > not_after {
        Standing::Expired
    } else {
        Standing::Valid
    }
}

/// What a certificate says, believed or not.
///
/// # Errors
/// [`TrustError`] if it is not of the form that a swarm makes.
pub fn read_leaf(leaf: &CertificateDer<'_>, now: SystemTime) -> Result<LeafFacts, TrustError> {
    let bad = TrustError::BadCertificate;
    let (_, cert) =
        X509Certificate::from_der(leaf).map_err(|_| bad("it is no X.509 certificate"))?;
    let usage = cert
        .extended_key_usage()
        .map_err(|_| bad("its extended key usage cannot be read"))?
        .ok_or(bad("it has no extended key usage"))?
        .value;
    if !usage.client_auth {
        return Err(bad("it is not good for a client"));
    }
    let validity = cert.validity();
    let (not_before, not_after) =
        (system_time(validity.not_before), system_time(validity.not_after));
    let (Some(not_before), Some(not_after)) = (not_before, not_after) else {
        return Err(bad("its validity is out of all bounds"));
    };
    if not_after < not_before {
        return Err(bad("its validity ends before it begins"));
    }
    Ok(LeafFacts {
        node: node_id(&cert).ok_or(TrustError::NoNodeId)?,
        cluster: cluster_id(&cert).ok_or(TrustError::NoClusterId)?,
        public_key: cert.public_key().raw.to_vec(),
        role: if usage.server_auth { Role::Manager } else { Role::Worker },
        not_before,
        not_after,
        standing: standing(not_before, not_after, now),
    })
}

fn node_id(cert: &X509Certificate<'_>) -> Option<NodeId> {
    let names = &cert.subject_alternative_name().ok()??.value.general_names;
    match names.as_slice() {
        [GeneralName::DNSName(name)] => name.parse().ok(),
        _ => None,
    }
}

fn cluster_id(cert: &X509Certificate<'_>) -> Option<ClusterId> {
    let mut names = cert.subject().iter_organization();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok()?.parse().ok(),
        _ => None,
    }
}

fn system_time(time: x509_parser::time::ASN1Time) -> Option<SystemTime> {
    let seconds = u64::try_from(time.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
