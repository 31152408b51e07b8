//! The swarm's certificate authority: ECDSA P-256, a root for 20 years, leaves for as long as the
//! swarm says (90 days at first). A node makes its own key; the root signs what it asks for and
//! takes nothing from the request but the key.

use std::time::Duration as StdDuration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use skep_core::id::{ClusterId, NodeId};
use skep_core::model::node::Role;
use skep_core::time::Span;
use time::{Duration, OffsetDateTime};
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest, X509Name};
use zeroize::Zeroizing;

use crate::limits::{CSR_BYTES, LEAF_BACKDATE, LEAF_LIFE_MAX, LEAF_LIFE_MIN};
use crate::protected::Protected;

/// A key or a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Making a key or a certificate failed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A node's key cannot be read.
    #[error("a node key is no ECDSA P-256 key in PKCS #8")]
    BadKey(#[source] rcgen::Error),
    /// A root cannot be used.
    #[error("the root certificate cannot be used: {0}")]
    BadRoot(&'static str),
    /// A request cannot be signed.
    #[error("a request for a certificate is refused: {0}")]
    BadRequest(&'static str),
}

/// Life of the root.
const ROOT_LIFE: Duration = Duration::days(20 * 365);
/// A root certificate with its key.
pub struct Root {
    /// Certificate in PEM.
    pub pem: String,
    /// DER of its subject.
    pub subject: Vec<u8>,
    /// DER of its public key.
    pub public_key: Vec<u8>,
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Root(…)")
    }
}

/// The private key that is a node's identity for as long as it is in its swarm.
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

    /// Reads one; what stands after it in `pem` is not looked at.
    ///
    /// # Errors
    /// [`CaError::BadKey`].
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(CaError::BadKey)
    }

    /// The key in PEM, to be stored.
    #[must_use]
    pub fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// The key in PKCS #8 DER, for TLS.
    #[must_use]
    pub fn der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// DER of the public key: who this node is.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// A request to sign this key, PKCS #10 in DER. It says nothing but the key: who the node is
    /// and what it may do is for the signer to say.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn csr(&self) -> Result<Vec<u8>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

impl Root {
    /// Makes the root of a new swarm, or the one that takes over.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn generate() -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "swarm-ca");
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        (params.not_before, params.not_after) = (now - LEAF_BACKDATE, now + ROOT_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?;
        Self::of(cert.der().clone(), cert.pem(), key)
    }

    /// Takes a root back from its certificate and its key in PKCS #8 DER.
    ///
    /// # Errors
    /// [`CaError::BadRoot`] if it is no certificate authority, or the key is another's or no
    /// ECDSA P-256 key.
    pub fn from_parts(pem: &str, key: &Protected) -> Result<Self, CaError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| CaError::BadRoot("it is no certificate in PEM"))?;
        let key = PrivatePkcs8KeyDer::from(key.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| CaError::BadRoot("its key is no ECDSA P-256 key in PKCS #8"))?;
        let root = Self::of(der, pem.to_owned(), key)?;
        // Somebody else may have made it: its name must come out of the writer as it went in.
        root.cross_sign(&root)?;
        Ok(root)
    }

    fn of(der: CertificateDer<'static>, pem: String, key: KeyPair) -> Result<Self, CaError> {
        let (_, cert) = X509Certificate::from_der(&der)
            .map_err(|_| CaError::BadRoot("it is no certificate"))?;
        if !cert.is_ca() {
            return Err(CaError::BadRoot("it is not of a certificate authority"));
        }
        if cert.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::BadRoot("the key given with it is not its own"));
        }
        let subject = cert.subject().as_raw().to_vec();
        Ok(Self { pem, subject, public_key: key.subject_public_key_info(), der, key })
    }

    /// The private key in PKCS #8 DER, to be sealed.
    #[must_use]
    pub fn key_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.key.serialize_der())
    }

    /// Signs the key of a request, PKCS #10 in DER, for this node in this role, valid from an
    /// hour ago for `life` from now, which is brought within its bounds. Returns the certificate in
    /// PEM.
    ///
    /// # Errors
    /// [`CaError::BadRequest`] if the request is not signed by its own key or the key is not
    /// ECDSA P-256.
    pub fn sign(
        &self,
        csr: &[u8],
        cluster: ClusterId,
        node: NodeId,
        role: Role,
        life: Span,
    ) -> Result<String, CaError> {
        let key = requested_key(csr)?;
        let life = StdDuration::from_nanos(life.0).clamp(LEAF_LIFE_MIN, LEAF_LIFE_MAX);
        let mut params = CertificateParams::new(vec![node.to_string()])?;
        params.distinguished_name = leaf_name(cluster, node, role);
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - LEAF_BACKDATE, now + life);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Manager => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Worker => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        Ok(params.signed_by(&key, &self.issuer()?)?.pem())
    }

    /// Vouches for another root: its subject, its key and its validity, signed by this one. Sent
    /// along with a leaf of `other` it makes nodes accept that leaf which know only this root.
    /// The certificate, in PEM, signs nothing but leaves.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn cross_sign(&self, other: &Self) -> Result<String, CaError> {
        let (_, cert) = X509Certificate::from_der(&other.der)
            .map_err(|_| CaError::BadRoot("it is no certificate"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = same_name(cert.subject())?;
        // Not from now: leaves that `other` signed long ago are held against it too.
        params.not_before = cert.validity().not_before.to_datetime();
        params.not_after = cert.validity().not_after.to_datetime();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let made: Certificate = params.signed_by(&other.key, &self.issuer()?)?;
        let (_, cross) = X509Certificate::from_der(made.der())
            .map_err(|_| CaError::BadRoot("it cannot be vouched for"))?;
        if (cross.subject().as_raw(), cross.issuer().as_raw()) != (&other.subject, &self.subject) {
            return Err(UNWRITABLE_NAME);
        }
        Ok(made.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, CaError> {
        Ok(Issuer::from_ca_cert_der(&self.der, &self.key)?)
    }
}

const UNWRITABLE_NAME: CaError =
    CaError::BadRoot("its subject is more than a list of different attributes with UTF-8 text");

/// The same name, to be written again.
fn same_name(name: &X509Name<'_>) -> Result<DistinguishedName, CaError> {
    let mut same = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let kind: Vec<u64> = attribute.attr_type().iter().ok_or(UNWRITABLE_NAME)?.collect();
        let text = attribute.as_str().map_err(|_| UNWRITABLE_NAME)?;
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| UNWRITABLE_NAME)?)
            }
            _ => DnValue::Utf8String(text.to_owned()),
        };
        same.push(DnType::from_oid(&kind), value);
    }
    Ok(same)
}

fn leaf_name(cluster: ClusterId, node: NodeId, role: Role) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, cluster.to_string());
    // For people and for tools made for Docker; skep itself goes by the extended key usage.
    name.push(
        DnType::OrganizationalUnitName,
        match role {
            Role::Manager => "swarm-manager",
            Role::Worker => "swarm-worker",
        },
    );
    name.push(DnType::CommonName, node.to_string());
    name
}

/// The key that a request asks to be signed, once the request has shown that its maker has it.
///
/// # Errors
/// [`CaError::BadRequest`].
pub fn csr_public_key(csr: &[u8]) -> Result<Vec<u8>, CaError> {
    Ok(requested_key(csr)?.subject_public_key_info())
}

fn requested_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, CaError> {
    if csr.len() > CSR_BYTES {
        return Err(CaError::BadRequest("it is too long"));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr)
        .map_err(|_| CaError::BadRequest("it is no PKCS #10 request"))?;
    if !rest.is_empty() {
        return Err(CaError::BadRequest("something follows it"));
    }
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .ok()
        .filter(|key| key.algorithm() == &PKCS_ECDSA_P256_SHA256)
        .ok_or(CaError::BadRequest("its key is no ECDSA P-256 key"))?;
    // Not rcgen's own reader: it understands more of the request than anybody should.
    request
        .verify_signature()
        .map_err(|_| CaError::BadRequest("it is not signed by its own key"))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_core::id::ENTROPY_LEN;

    fn ids() -> (ClusterId, NodeId) {
        (ClusterId::from_entropy([2; ENTROPY_LEN]), NodeId::from_entropy([1; ENTROPY_LEN]))
    }

    const LEAF_LIFE: Span = Span::from_secs(90 * 24 * 3_600);

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_leaf_is_signed_by_its_root_and_says_who_it_is() {
        let root = Root::generate().unwrap();
        let (cluster, node) = ids();
        let key = NodeKey::generate().unwrap();
        let csr = key.csr().unwrap();
        let der = der(&root.sign(&csr, cluster, node, Role::Manager, LEAF_LIFE).unwrap());
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(cert.subject().to_string().contains(node.as_str()));
        assert_eq!(cert.issuer().as_raw(), root.subject);
        assert_eq!(cert.public_key().raw, key.public());
        let seconds =
            cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
        assert_eq!(seconds, 90 * 24 * 3_600 + 3_600);
        assert!(!cert.is_ca());
        assert!(root.pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }

    #[test]
    fn a_root_comes_back_from_its_parts_and_from_no_others() {
        let root = Root::generate().unwrap();
        let key = Protected::copy_of(&root.key_der()).unwrap();
        let again = Root::from_parts(&root.pem, &key).unwrap();
        assert_eq!((&again.subject, &again.public_key), (&root.subject, &root.public_key));
        let (cluster, node) = ids();
        let csr = NodeKey::generate().unwrap().csr().unwrap();
        let leaf = again.sign(&csr, cluster, node, Role::Worker, LEAF_LIFE).unwrap();
        let other = Root::generate().unwrap();
        for (pem, why) in [
            (other.pem.as_str(), "not its own"),
            (leaf.as_str(), "authority"),
            ("x", "no certificate in PEM"),
        ] {
            let error = Root::from_parts(pem, &key).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let none = Protected::copy_of(b"x").unwrap();
        let error = Root::from_parts(&root.pem, &none).unwrap_err().to_string();
        assert!(error.contains("P-256"), "{error}");
    }

    #[test]
    fn a_key_comes_back_from_its_pem() {
        let key = NodeKey::generate().unwrap();
        let mut pem = key.pem();
        pem.push_str("-----BEGIN OTHER-----\nAA==\n-----END OTHER-----\n");
        assert_eq!(NodeKey::from_pem(&pem).unwrap().public(), key.public());
        assert!(matches!(NodeKey::from_pem("x"), Err(CaError::BadKey(_))));
        assert_eq!(format!("{key:?}"), "NodeKey(…)");
    }

    #[test]
    fn nothing_of_a_request_but_its_key_gets_into_the_certificate() {
        let root = Root::generate().unwrap();
        let (cluster, node) = ids();
        let key = NodeKey::generate().unwrap();
        // A request that would like to be an authority, another node and a server.
        let mut greedy = CertificateParams::new(vec!["somebody".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = greedy.serialize_request(&key.0).unwrap().der().to_vec();
        let pem = root.sign(&csr, cluster, node, Role::Worker, LEAF_LIFE).unwrap();
        let der = der(&pem);
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!cert.is_ca());
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        assert_eq!(cert.public_key().raw, key.public());
        assert!(!String::from_utf8_lossy(&der).contains("somebody"));
        assert_eq!(csr_public_key(&csr).unwrap(), key.public());
    }

    #[test]
    fn a_request_must_be_signed_by_the_key_it_names() {
        let root = Root::generate().unwrap();
        let (cluster, node) = ids();
        let csr = NodeKey::generate().unwrap().csr().unwrap();
        let sign = |csr: &[u8]| root.sign(csr, cluster, node, Role::Worker, LEAF_LIFE);
        sign(&csr).unwrap();
        // The signature's last byte, and a byte of the key.
        let stranger = NodeKey::generate().unwrap();
        let at = csr.windows(64).position(|w| w == &key_bytes(&csr)[1..65]).unwrap();
        let mut moved = csr.clone();
        moved[at..at + 64].copy_from_slice(&stranger.0.public_key_raw()[1..65]);
        let mut torn = csr.clone();
        *torn.last_mut().unwrap() ^= 1;
        let mut long = csr.clone();
        long.push(0);
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
        for (bad, why) in [
            (moved, "own key"),
            (torn, "own key"),
            (long, "follows"),
            (p384, "P-256"),
            (vec![0; CSR_BYTES + 1], "too long"),
            (Vec::new(), "PKCS #10"),
        ] {
            let error = sign(&bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    fn key_bytes(csr: &[u8]) -> Vec<u8> {
        let (_, request) = X509CertificationRequest::from_der(csr).unwrap();
        request.certification_request_info.subject_pki.subject_public_key.data.to_vec()
    }

    #[test]
    fn a_life_out_of_bounds_is_brought_within() {
        let root = Root::generate().unwrap();
        let (cluster, node) = ids();
        let csr = NodeKey::generate().unwrap().csr().unwrap();
        let hour = 3_600;
        for (asked, given) in [
            (Span(0), hour),
            (Span::from_secs(hour - 1), hour),
            (Span::from_secs(hour + 1), hour + 1),
            (Span(u64::MAX), LEAF_LIFE_MAX.as_secs()),
        ] {
            let pem = root.sign(&csr, cluster, node, Role::Worker, asked).unwrap();
            let der = der(&pem);
            let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
            let validity = cert.validity();
            let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
            assert_eq!(u64::try_from(seconds).unwrap(), given + hour);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            at in 0usize..200,
        ) {
            let _ = csr_public_key(&bytes);
            let mut csr = NodeKey::generate().unwrap().csr().unwrap();
            for (to, from) in csr.iter_mut().skip(at).zip(&bytes) {
                *to = *from;
            }
            let _ = csr_public_key(&csr);
        }
    }
}
