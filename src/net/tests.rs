//! Real endpoints on loopback: who gets in, who does not, and what either side is told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_core::id::{ClusterId, ENTROPY_LEN, NodeId};
use skep_core::model::node::Role;
use skep_core::time::Span;
use tokio::sync::watch;

use super::*;
use crate::identity::ca::{NodeKey, Root};
use crate::identity::token::{JoinSecret, Token};

fn id<K>(n: u8) -> skep_core::id::Id<K> {
    skep_core::id::Id::from_entropy([n; ENTROPY_LEN])
}

/// A node with a certificate of `root`.
struct Party {
    node: NodeId,
    key: NodeKey,
    net: Arc<Net>,
}

fn identity(root: &Root, node: NodeId, key: &NodeKey, role: Role, trusted: &Root) -> Arc<Identity> {
    let cluster: ClusterId = id(99);
    let life = Span::from_secs(24 * 3600);
    let chain = root.sign(&key.csr().unwrap(), cluster, node, role, life).unwrap();
    let roots = [trusted.pem.clone()];
    Arc::new(Identity::new(cluster, node, &chain, key, &roots).unwrap())
}

fn party(root: &Root, n: u8, role: Role) -> Party {
    party_speaking(root, n, role, Protocol::names)
}

fn party_speaking(root: &Root, n: u8, role: Role, names: fn(Protocol) -> Names) -> Party {
    let net = Net::speaking("127.0.0.1:0".parse().unwrap(), names).unwrap();
    let (node, key) = (id(n), NodeKey::generate().unwrap());
    net.set_identity(identity(root, node, &key, role, root)).unwrap();
    Party { node, key, net }
}

impl Party {
    fn expected(&self) -> Expected {
        Expected {
            node: self.node,
            public_key: self.key.public(),
            addr: self.net.local_addr().unwrap().to_string(),
        }
    }

    fn recorded(&self, raft_id: Option<u64>) -> (NodeId, Recorded) {
        (self.node, Recorded { public_key: self.key.public(), raft_id })
    }
}

/// Number of a manager that the swarm went on without.
const CUT_OFF: u8 = 99;

/// Who is on record.
#[derive(Default)]
struct Record(Mutex<Vec<(NodeId, Recorded)>>);

impl Admission for Record {
    fn recorded(&self, node: &NodeId) -> Option<Recorded> {
        let found = self.0.lock().unwrap();
        found.iter().find(|(id, _)| id == node).map(|(_, recorded)| recorded.clone())
    }

    fn farewell(&self, node: &NodeId) -> Closed {
        if *node == id(CUT_OFF) { Closed::OtherIncarnation } else { Closed::Removed }
    }

    fn confirm(&self, node: NodeId) -> Visit<bool> {
        let is_gone = self.recorded(&node).is_none();
        Box::pin(async move { is_gone })
    }
}

/// Tells each guest who it is taken for, and waits until it goes.
struct Mirror;

impl Service for Mirror {
    fn visit(&self, guest: Guest, protocol: Protocol, connection: quinn::Connection) -> Visit {
        Box::pin(async move {
            let Ok((mut tx, _)) = connection.accept_bi().await else { return };
            let text = format!("{protocol:?} {guest:?}");
            tx.write_all(text.as_bytes()).await.unwrap();
            tx.finish().unwrap();
            connection.closed().await;
        })
    }
}

async fn serve(host: &Party, record: &Arc<Record>) -> watch::Sender<bool> {
    let (stop, stopped) = watch::channel(false);
    let admission: Arc<dyn Admission> = Arc::clone(record) as _;
    let net = Arc::clone(&host.net);
    // Whoever dials before the task's first step is kept waiting.
    net.hold();
    tokio::spawn(async move { net.serve(admission, Arc::new(Mirror), stopped).await.unwrap() });
    stop
}

async fn ask(connection: &quinn::Connection) -> Result<String, Closed> {
    let said = async {
        let (mut tx, mut rx) = connection.open_bi().await.ok()?;
        tx.write_all(b"?").await.ok()?;
        String::from_utf8(rx.read_to_end(1000).await.ok()?).ok()
    };
    match tokio::time::timeout(Duration::from_secs(5), said).await.unwrap() {
        Some(text) => Ok(text),
        None => Err(closed(&connection.closed().await).unwrap()),
    }
}

#[tokio::test]
async fn a_peer_is_admitted_as_what_is_on_record() {
    let root = Root::generate().unwrap();
    let (host, worker) = (party(&root, 1, Role::Manager), party(&root, 2, Role::Worker));
    let (manager, stranger) = (party(&root, 3, Role::Manager), party(&root, 4, Role::Manager));
    let cut_off = party(&root, CUT_OFF, Role::Manager);
    let record = Arc::new(Record::default());
    *record.0.lock().unwrap() = vec![worker.recorded(None), manager.recorded(Some(7))];
    let _stop = serve(&host, &record).await;
    let expected = host.expected();
    for (guest, protocol, answer) in [
        (&worker, Protocol::Agent, Ok("Agent")),
        (&worker, Protocol::Control, Err(Closed::NotManager)),
        (&worker, Protocol::Raft, Err(Closed::NotManager)),
        (&manager, Protocol::Raft, Ok("raft_id: Some(7)")),
        (&manager, Protocol::Control, Ok("Control")),
        // Its certificate says manager: the record does not know it.
        (&stranger, Protocol::Raft, Err(Closed::Removed)),
        (&stranger, Protocol::Agent, Err(Closed::Removed)),
        (&cut_off, Protocol::Raft, Err(Closed::OtherIncarnation)),
    ] {
        let connection = guest.net.dial(&expected, protocol).await.unwrap();
        match (ask(&connection).await, answer) {
            (Ok(text), Ok(part)) => assert!(text.contains(part), "{text}"),
            (found, answer) => assert_eq!(found.err(), answer.err(), "{protocol:?}"),
        }
    }
}

#[tokio::test]
async fn one_that_dials_early_is_answered_once_there_is_something_to_show() {
    let root = Root::generate().unwrap();
    let (host, worker) = (party(&root, 1, Role::Manager), party(&root, 2, Role::Worker));
    let record = Arc::new(Record::default());
    record.0.lock().unwrap().push(worker.recorded(None));
    host.net.hold();
    let expected = host.expected();
    let dialled = worker.net.dial(&expected, Protocol::Agent);
    tokio::pin!(dialled);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut dialled).await;
    assert!(early.is_err(), "{early:?}");
    let _stop = serve(&host, &record).await;
    ask(&dialled.await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_member_that_is_removed_loses_its_connection() {
    let root = Root::generate().unwrap();
    let (host, worker) = (party(&root, 1, Role::Manager), party(&root, 2, Role::Worker));
    let record = Arc::new(Record::default());
    record.0.lock().unwrap().push(worker.recorded(None));
    let _stop = serve(&host, &record).await;
    let connection = worker.net.dial(&host.expected(), Protocol::Agent).await.unwrap();
    ask(&connection).await.unwrap();
    host.net.review(&*record);
    assert!(connection.close_reason().is_none());
    record.0.lock().unwrap().clear();
    host.net.review(&*record);
    assert_eq!(closed(&connection.closed().await), Some(Closed::Removed));
}

#[tokio::test]
async fn a_dialler_accepts_only_the_manager_it_means() {
    let root = Root::generate().unwrap();
    let (host, guest) = (party(&root, 1, Role::Manager), party(&root, 2, Role::Manager));
    let worker = party(&root, 3, Role::Worker);
    let foreign = party(&Root::generate().unwrap(), 4, Role::Manager);
    let record = Arc::new(Record::default());
    let _stops = [serve(&host, &record).await, serve(&worker, &record).await];
    let _stop = serve(&foreign, &record).await;
    let other = Expected { node: id(9), ..host.expected() };
    let error = guest.net.dial(&other, Protocol::Raft).await.unwrap_err();
    assert!(matches!(error, DialError::WrongPeer { .. }), "{error}");
    let other = Expected { public_key: guest.key.public(), ..host.expected() };
    let error = guest.net.dial(&other, Protocol::Raft).await.unwrap_err();
    assert!(error.to_string().contains("cannot be trusted"), "{error}");
    for (expected, wanted) in
        [(worker.expected(), "NotAManager"), (foreign.expected(), "UnknownRoot")]
    {
        match guest.net.dial(&expected, Protocol::Raft).await.unwrap_err() {
            DialError::Untrusted { source, .. } => {
                assert!(format!("{source:?}").contains(wanted), "{source:?}");
            }
            error => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_joiner_knows_the_swarm_by_its_token() {
    let root = Root::generate().unwrap();
    let (host, worker) = (party(&root, 1, Role::Manager), party(&root, 2, Role::Worker));
    let record = Arc::new(Record::default());
    let _stops = [serve(&host, &record).await, serve(&worker, &record).await];
    let joiner = Net::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let token = |root: &Root| {
        let text = JoinSecret::generate().unwrap().token(&root.pem).unwrap();
        Arc::new(Token::parse(&text).unwrap())
    };
    let addr = |party: &Party| party.net.local_addr().unwrap().to_string();
    let meeting = joiner.dial_to_join(&addr(&host), &token(&root)).await.unwrap();
    assert_eq!(meeting.facts.node, host.node);
    assert!(ask(&meeting.connection).await.unwrap().contains("Anonymous"));
    let other = token(&Root::generate().unwrap());
    for (error, wanted) in [
        (joiner.dial_to_join(&addr(&host), &other).await, "WrongDigest"),
        (joiner.dial_to_join(&addr(&worker), &token(&root)).await, "NotAManager"),
    ] {
        match error.unwrap_err() {
            DialError::Untrusted { source, .. } => {
                assert!(format!("{source:?}").contains(wanted), "{source:?}");
            }
            error => panic!("{error}"),
        }
    }
}

/// A client that offers only the classical exchange finds nobody.
#[tokio::test]
async fn the_key_exchange_is_post_quantum_or_there_is_none() {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    assert_eq!(tls::provider().kx_groups.len(), 1);
    assert_eq!(tls::provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    let root = Root::generate().unwrap();
    let host = party(&root, 1, Role::Manager);
    let _stop = serve(&host, &Arc::new(Record::default())).await;
    let mut certs = rustls::RootCertStore::empty();
    certs.add(host.net.identity().unwrap().trust.roots().next().unwrap().clone()).unwrap();
    for (group, works) in [(kx_group::X25519, false), (kx_group::X25519MLKEM768, true)] {
        let mut provider = default_provider();
        provider.kx_groups = vec![group];
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(certs.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![Protocol::Join.names()[0].to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let addr = host.net.local_addr().unwrap();
        let connecting = endpoint.connect_with(config, addr, host.node.as_str()).unwrap();
        assert_eq!(connecting.await.is_ok(), works, "{group:?}");
    }
}

/// What the version after this one speaks, and one that has dropped this one.
pub(crate) fn next_names(of: Protocol) -> Names {
    match of {
        Protocol::Join => &[b"skep-join/2", b"skep-join/1"],
        Protocol::Raft => &[b"skep-raft/2", b"skep-raft/1"],
        Protocol::Agent => &[b"skep-agent/2", b"skep-agent/1"],
        Protocol::Control => &[b"skep-control/2", b"skep-control/1"],
    }
}

fn later_names(of: Protocol) -> Names {
    &next_names(of)[..1]
}

#[tokio::test]
async fn nodes_of_two_versions_speak_the_newest_that_both_know() {
    let root = Root::generate().unwrap();
    let now = party(&root, 1, Role::Manager);
    let next = party_speaking(&root, 2, Role::Manager, next_names);
    let later = party_speaking(&root, 3, Role::Manager, later_names);
    let record = Arc::new(Record::default());
    *record.0.lock().unwrap() =
        vec![now.recorded(Some(1)), next.recorded(Some(2)), later.recorded(Some(3))];
    let _stops =
        [serve(&now, &record).await, serve(&next, &record).await, serve(&later, &record).await];
    for protocol in [Protocol::Raft, Protocol::Agent, Protocol::Control] {
        let [first, second] = next_names(protocol) else { panic!() };
        for (guest, host, picked) in
            [(&next, &now, second), (&now, &next, second), (&next, &later, first)]
        {
            let connection = guest.net.dial(&host.expected(), protocol).await.unwrap();
            let data = connection.handshake_data().unwrap();
            let data = data.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
            assert_eq!(data.protocol.as_deref(), Some(*picked));
            // The host takes it for the protocol that it is, whichever version's name it has.
            assert!(ask(&connection).await.unwrap().starts_with(&format!("{protocol:?}")));
        }
        for (guest, host) in [(&now, &later), (&later, &now)] {
            let error = guest.net.dial(&host.expected(), protocol).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, DialError::NoVersion { .. }), "{error:?}");
            assert!(text.contains("upgrade") && text.contains("skep-"), "{text}");
        }
    }
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let first = Net::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = Net::bind(first.local_addr().unwrap()).unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
}
