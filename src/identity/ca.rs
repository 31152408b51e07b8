//! The swarm's certificate authority: ECDSA P-256, a root for 20 years, leaves for 90 days.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::Role;
use skep_core::time::Span;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::protected::Protected;

/// A certificate, or a request for one, could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The library refused.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A request is none, or is not signed with its own key.
    #[error("the certificate request is malformed, or not signed with the key that it names")]
    Request,
    /// A request's key is of another kind.
    #[error("the certificate request has a key of another kind than ECDSA P-256")]
    KeyKind,
    /// The root's certificate cannot be read.
    #[error("the root's certificate cannot be read")]
    Root,
}

/// Life of the root.
const ROOT_LIFE: Duration = Duration::days(20 * 365);
/// Shortest and longest life of a leaf.
const LEAF_LIFE: [Duration; 2] = [Duration::hours(1), Duration::days(90)];
/// Clocks of nodes may differ by this much.
const BACKDATE: Duration = Duration::hours(1);

/// A root certificate with its key.
pub struct Root {
    /// Certificate in PEM.
    pub pem: String,
    /// DER of its subject.
    pub subject: Vec<u8>,
    /// DER of its public key.
    pub public_key: Vec<u8>,
    key: KeyPair,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Root(…)")
    }
}

/// A node's key. Certificates come and go; the key is who the node is.
pub struct NodeKey(KeyPair);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

impl NodeKey {
    /// Makes one.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn generate() -> Result<Self, CaError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads one out of a PEM text that may hold more.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn from_pem(text: &str) -> Result<Self, CaError> {
        Ok(Self(KeyPair::from_pem(text)?))
    }

    /// The private key in PEM.
    #[must_use]
    pub fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// The private key in PKCS #8 DER, for TLS.
    #[must_use]
    pub fn der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// DER of the public key.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// A request for a certificate, signed with this key: PKCS #10 in DER. It says nothing but the
    /// key; who the node is, is the manager's word.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn csr(&self) -> Result<Vec<u8>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

/// DER of the public key that a certificate request is for, once its signature is checked.
///
/// # Errors
/// [`CaError::Request`] or [`CaError::KeyKind`].
pub fn csr_public_key(csr: &[u8]) -> Result<Vec<u8>, CaError> {
    let parsed = read_csr(csr)?;
    Ok(parsed.public_key.subject_public_key_info())
}

fn read_csr(csr: &[u8]) -> Result<CertificateSigningRequestParams, CaError> {
    // The library looks no further than the end of the request.
    let (rest, _) = X509CertificationRequest::from_der(csr).map_err(|_| CaError::Request)?;
    if !rest.is_empty() {
        return Err(CaError::Request);
    }
    let der = CertificateSigningRequestDer::from(csr);
    let parsed =
        CertificateSigningRequestParams::from_der(&der).map_err(|_| CaError::Request)?;
    if parsed.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::KeyKind);
    }
    Ok(parsed)
}

impl Root {
    /// Makes the root of a new swarm.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn generate() -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = root_params();
        let cert = params.self_signed(&key)?;
        Ok(Self {
            subject: subject_der(cert.der()).unwrap_or_default(),
            pem: cert.pem(),
            public_key: key.subject_public_key_info(),
            key,
        })
    }

    /// The private key in PKCS #8 DER, to be sealed.
    #[must_use]
    pub fn key_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.key.serialize_der())
    }

    /// A root whose key was kept.
    ///
    /// # Errors
    /// If certificate or key cannot be read.
    pub fn from_parts(pem: &str, key: &Protected) -> Result<Self, CaError> {
        let der = PrivatePkcs8KeyDer::from(key.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        let cert = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CaError::Root)?;
        let public_key = key.subject_public_key_info();
        let subject = subject_der(&cert).ok_or(CaError::Root)?;
        Ok(Self { pem: pem.to_owned(), subject, public_key, key })
    }

    /// Signs a node's certificate; nothing but the key is taken from the request. Answers it in
    /// PEM.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn sign(
        &self,
        csr: &[u8],
        cluster: ClusterId,
        node: NodeId,
        role: Role,
        life: Span,
    ) -> Result<String, CaError> {
        let request = read_csr(csr)?;
        let mut params = CertificateParams::new(vec![node.to_string()])?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, cluster.to_string());
        name.push(
            DnType::OrganizationalUnitName,
            match role {
                Role::Manager => "swarm-manager",
                Role::Worker => "swarm-worker",
            },
        );
        name.push(DnType::CommonName, node.to_string());
        params.distinguished_name = name;
        let life = Duration::nanoseconds(i64::try_from(life.0).unwrap_or(i64::MAX));
        (params.not_before, params.not_after) = validity(life.clamp(LEAF_LIFE[0], LEAF_LIFE[1]));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Manager => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Worker => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let issuer = Issuer::new(root_params(), &self.key);
        Ok(params.signed_by(&request.public_key, &issuer)?.pem())
    }

    /// The certificate of another root, signed by this one: nodes that know only this root accept
    /// leaves of the other with it.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn cross_sign(&self, other: &Self) -> Result<String, CaError> {
        let issuer = Issuer::new(root_params(), &self.key);
        Ok(root_params().signed_by(&other.key, &issuer)?.pem())
    }
}

fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "swarm-ca");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(ROOT_LIFE);
    params
}

fn validity(life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + life)
}

/// The subject's DER, as a client of the API wants to see it.
fn subject_der(cert: &[u8]) -> Option<Vec<u8>> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    Some(cert.subject().as_raw().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_core::id::ENTROPY_LEN;

    #[test]
    fn a_leaf_is_signed_by_its_root_and_says_who_it_is() {
        let root = Root::generate().unwrap();
        let node = NodeId::from_entropy([1; ENTROPY_LEN]);
        let cluster = ClusterId::from_entropy([2; ENTROPY_LEN]);
        let key = NodeKey::generate().unwrap();
        let csr = key.csr().unwrap();
        assert_eq!(csr_public_key(&csr).unwrap(), key.public());
        let life = Span::from_secs(3600 * 24);
        let leaf = root.sign(&csr, cluster, node, Role::Manager, life).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        assert!(cert.subject().to_string().contains(node.as_str()));
        assert_eq!(cert.issuer().as_raw(), root.subject);
        assert_eq!(cert.public_key().raw, key.public());
        let again = Root::from_parts(&root.pem, &Protected::copy_of(&root.key_der()).unwrap());
        assert_eq!(again.unwrap().subject, root.subject);
        let mut forged = csr.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(csr_public_key(&forged).is_err());
        assert!(csr_public_key(&[csr, vec![0]].concat()).is_err());
        assert!(root.pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
