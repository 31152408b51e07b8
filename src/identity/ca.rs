//! The swarm's certificate authority: ECDSA P-256, a root for 20 years, leaves for 90 days.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::Role;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate")]
pub struct CaError(#[from] rcgen::Error);

/// Life of the root.
const ROOT_LIFE: Duration = Duration::days(20 * 365);
/// Life of a leaf.
const LEAF_LIFE: Duration = Duration::days(90);
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

/// A node's certificate with its key.
pub struct Leaf {
    /// Certificate in PEM.
    pub cert_pem: String,
    /// Private key in PEM.
    pub key_pem: Zeroizing<String>,
    /// DER of its public key.
    pub public_key: Vec<u8>,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leaf(…)")
    }
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

    /// Makes a node's key and signs its certificate.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue(&self, cluster: ClusterId, node: NodeId, role: Role) -> Result<Leaf, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
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
        (params.not_before, params.not_after) = validity(LEAF_LIFE);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Manager => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Worker => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let issuer = Issuer::new(root_params(), &self.key);
        let cert = params.signed_by(&key, &issuer)?;
        Ok(Leaf {
            cert_pem: cert.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
            public_key: key.subject_public_key_info(),
        })
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
        let leaf = root.issue(cluster, node, Role::Manager).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.cert_pem.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        assert!(cert.subject().to_string().contains(node.as_str()));
        assert_eq!(cert.issuer().as_raw(), root.subject);
        assert_eq!(cert.public_key().raw, leaf.public_key);
        assert!(root.pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
