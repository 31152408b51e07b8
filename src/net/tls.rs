//! TLS as nodes use it: version 1.3, key exchange X25519MLKEM768 and nothing else, no tickets.
//! Chains are checked against the swarm's roots; whether the peer is who the state says is
//! checked after the handshake.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version,
};
use skep_core::id::{ClusterId, NodeId};

use super::{Names, Protocol};
use crate::identity::ca::NodeKey;
use crate::identity::token::Token;
use crate::identity::trust::{LeafFacts, Trust, TrustError};
use crate::limits::{NET_HELD, NET_IDLE, NET_KEEPALIVE, NET_RTT, NET_STREAM_BYTES, NET_STREAMS};

/// Who this node is towards others.
pub struct Identity {
    /// Its swarm.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Leaf, then what is between it and the root, then the root: a joiner knows only the root's
    /// digest.
    pub chain: Vec<CertificateDer<'static>>,
    /// The node's key.
    pub key: PrivateKeyDer<'static>,
    /// The roots it trusts.
    pub trust: Trust,
}

impl Identity {
    /// An identity out of a chain in PEM, the node's key and the roots it trusts.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn new(
        cluster: ClusterId,
        node: NodeId,
        chain: &str,
        key: &NodeKey,
        roots: &[String],
    ) -> Result<Self, TrustError> {
        let trust = Trust::new(roots)?;
        let certs = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let mut chain = certs.map_err(|_| TrustError::BadCertificate("it is no PEM"))?;
        chain.extend(trust.roots().cloned());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.der().to_vec()));
        Ok(Self { cluster, node, chain, key, trust })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.node)
    }
}

/// The provider with the one key exchange that is used.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    Arc::new(provider)
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(NET_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(NET_STREAM_BYTES))
        .initial_rtt(NET_RTT)
        .keep_alive_interval(Some(NET_KEEPALIVE))
        .max_idle_timeout(IdleTimeout::try_from(NET_IDLE).ok());
    Arc::new(transport)
}

/// What a server needs to speak all protocols as this node.
pub(super) fn server_config(
    identity: &Identity,
    names: fn(Protocol) -> Names,
) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(Guests { trust: identity.trust.clone(), provider: provider() });
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = Protocol::ALL.into_iter().flat_map(|of| owned(names(of))).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(config).map_err(|e| Error::General(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}

/// Shows nobody anything.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// What an endpoint needs to keep peers waiting that dial before it has a certificate to show.
pub(super) fn holding_config() -> Result<ServerConfig, Error> {
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nobody));
    let crypto = QuicServerConfig::try_from(config).map_err(|e| Error::General(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.max_incoming(NET_HELD);
    Ok(config)
}

/// A client's configuration, and where its verdict on the server is found after a handshake.
pub(super) struct Dialling {
    pub(super) config: ClientConfig,
    pub(super) verdict: Arc<Verdict>,
}

/// What was found of a server: rustls has room for much less.
#[derive(Debug, Default)]
pub(super) struct Verdict(Mutex<Option<Result<LeafFacts, TrustError>>>);

impl Verdict {
    pub(super) fn take(&self) -> Option<Result<LeafFacts, TrustError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, found: Result<LeafFacts, TrustError>) -> Result<ServerCertVerified, Error> {
        let verified = match &found {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(_) => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        verified
    }
}

/// A client that shows this node's certificate.
pub(super) fn member_config(identity: &Identity, names: Names) -> Result<Dialling, Error> {
    let (builder, verdict) = client(Trusted::Roots(identity.trust.clone()))?;
    let config = builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    dialling(config, verdict, names)
}

/// A client without a certificate that trusts the swarm which a token names.
pub(super) fn joiner_config(token: Arc<Token>, names: Names) -> Result<Dialling, Error> {
    let (builder, verdict) = client(Trusted::Token(token))?;
    dialling(builder.with_no_client_auth(), verdict, names)
}

/// A client without a certificate that trusts the roots it knows: it renews a lapsed one.
pub(super) fn renewer_config(identity: &Identity, names: Names) -> Result<Dialling, Error> {
    let (builder, verdict) = client(Trusted::Roots(identity.trust.clone()))?;
    dialling(builder.with_no_client_auth(), verdict, names)
}

fn owned(names: Names) -> impl Iterator<Item = Vec<u8>> {
    names.iter().map(|name| name.to_vec())
}

type WantsAuth = rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>;

fn client(trusted: Trusted) -> Result<(WantsAuth, Arc<Verdict>), Error> {
    let verdict = Arc::new(Verdict::default());
    let hosts = Hosts { trusted, provider: provider(), verdict: Arc::clone(&verdict) };
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(hosts));
    Ok((builder, verdict))
}

fn dialling(
    mut config: rustls::ClientConfig,
    verdict: Arc<Verdict>,
    names: Names,
) -> Result<Dialling, Error> {
    config.alpn_protocols = owned(names).collect();
    config.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config).map_err(|e| Error::General(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    Ok(Dialling { config, verdict })
}

/// What rustls asks of whoever checks servers and of whoever checks clients, in the same words:
/// signatures of TLS 1.3, by the provider's algorithms.
macro_rules! signatures_of_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, cert, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Whom a client trusts.
#[derive(Debug)]
enum Trusted {
    Roots(Trust),
    Token(Arc<Token>),
}

/// Checks servers.
#[derive(Debug)]
struct Hosts {
    trusted: Trusted,
    provider: Arc<CryptoProvider>,
    verdict: Arc<Verdict>,
}

fn chain_of(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
) -> Vec<CertificateDer<'static>> {
    std::iter::once(leaf).chain(rest).map(|cert| cert.clone().into_owned()).collect()
}

fn time(now: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs())
}

impl ServerCertVerifier for Hosts {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain_of(leaf, rest);
        self.verdict.put(match &self.trusted {
            Trusted::Roots(trust) => trust.verify(&chain, time(now)),
            Trusted::Token(token) => Trust::verify_by_token(&chain, token, time(now)),
        })
    }

    signatures_of_tls13!();
}

/// Checks clients, if they show a certificate: those that join have none.
#[derive(Debug)]
struct Guests {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Guests {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.trust.verify(&chain_of(leaf, rest), time(now)) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(_) => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    signatures_of_tls13!();
}
