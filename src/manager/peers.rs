//! The other managers: who they are, and a connection to each that is there when it is needed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream};
use skep_core::id::{ClusterId, NodeId};
use skep_raft::{Answer, Peer, Transport, TransportError};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::timeout;

use crate::limits::{FORMER_MANAGERS, NET_ANSWER, NET_MESSAGE_BYTES};
use crate::net::{Closed, DialError, Expected, Net, Protocol, closed};
use crate::wire::control::{ControlAnswer, ControlRequest, Greeting};
use crate::wire::session::{Directory, ManagerEntry};
use crate::wire::{WireError, receive, receive_bytes, send, send_bytes};

/// How long a manager that could not be reached is not dialled again.
const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// Another manager gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody is known by that Raft id.
    #[error("no manager with Raft id {0:x} is known")]
    Unknown(u64),
    /// It cannot be reached.
    #[error(transparent)]
    Dial(#[from] Arc<DialError>),
    /// No manager that answers knows who leads.
    #[error("no manager that answers leads, or knows who does")]
    NoLeader,
    /// It belongs to another incarnation of the swarm.
    #[error("{}", Closed::OtherIncarnation.word())]
    OtherIncarnation,
    /// The stream failed.
    #[error("the connection failed")]
    Wire(#[from] WireError),
    /// It said nothing in time.
    #[error("no answer within {NET_ANSWER:?}")]
    Silent,
}

impl From<io::Error> for PeerError {
    fn from(error: io::Error) -> Self {
        Self::Wire(error.into())
    }
}

/// Who the managers are: the latest that is known, from the state or from a session.
#[derive(Debug)]
pub struct Book {
    cluster: ClusterId,
    latest: watch::Sender<Directory>,
    /// Who was one a short while ago: Raft counts it until it has let it go.
    former: Mutex<VecDeque<ManagerEntry>>,
    /// Whether the swarm goes on in a later incarnation, without this manager.
    outlived: watch::Sender<bool>,
}

impl Book {
    /// A book that starts with what was known before.
    #[must_use]
    pub fn new(cluster: ClusterId, directory: Directory) -> Self {
        let (latest, outlived) = (watch::Sender::new(directory), watch::Sender::new(false));
        Self { cluster, latest, former: Mutex::default(), outlived }
    }

    /// Takes a directory if it is later than what is known. Whether it was.
    pub fn update(&self, new: Directory) -> bool {
        self.latest.send_if_modified(|old| {
            let is_later = (new.incarnation, new.epoch) > (old.incarnation, old.epoch);
            if !is_later {
                return false;
            }
            let says_more = Directory { epoch: old.epoch, ..new.clone() } != *old;
            let is_gone =
                |old: &ManagerEntry| new.managers.iter().all(|m| m.raft_id != old.raft_id);
            let mut former = self.former();
            former.extend(old.managers.iter().filter(|manager| is_gone(manager)).cloned());
            let surplus = former.len().saturating_sub(FORMER_MANAGERS);
            former.drain(..surplus);
            *old = new;
            says_more
        })
    }

    /// What is known, and when it changes.
    #[must_use]
    pub fn directory(&self) -> watch::Receiver<Directory> {
        self.latest.subscribe()
    }

    fn former(&self) -> std::sync::MutexGuard<'_, VecDeque<ManagerEntry>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manager with this Raft id, or who was it a short while ago.
    #[must_use]
    pub fn manager(&self, raft_id: u64) -> Option<ManagerEntry> {
        let is_it = |manager: &&ManagerEntry| manager.raft_id == raft_id;
        let present = self.latest.borrow().managers.iter().find(is_it).cloned();
        present.or_else(|| self.former().iter().rev().find(is_it).cloned())
    }

    /// What a node was as a manager a short while ago.
    #[must_use]
    pub fn former_manager(&self, node: &NodeId) -> Option<ManagerEntry> {
        self.former().iter().rev().find(|manager| manager.node == *node).cloned()
    }

    /// Notes that a manager of a later incarnation of this swarm was met. It stays so until this
    /// node has left.
    pub fn outlive(&self) {
        self.outlived.send_replace(true);
    }

    /// Whether such a manager was met.
    #[must_use]
    pub fn is_outlived(&self) -> bool {
        *self.outlived.borrow()
    }

    /// The same, and when it changes.
    #[must_use]
    pub fn outlived(&self) -> watch::Receiver<bool> {
        self.outlived.subscribe()
    }

    /// Whether somebody who greets like this speaks of a later incarnation of the same swarm.
    #[must_use]
    pub fn is_later(&self, greeting: &Greeting) -> bool {
        let mine = self.greeting();
        greeting.cluster == mine.cluster && greeting.incarnation > mine.incarnation
    }

    /// Which swarm this node speaks of.
    #[must_use]
    pub fn greeting(&self) -> Greeting {
        let directory = self.latest.borrow();
        Greeting {
            cluster: self.cluster,
            incarnation: directory.incarnation,
            incarnation_id: directory.incarnation_id,
        }
    }

    /// Whether somebody who greets like this speaks of the same swarm.
    #[must_use]
    pub fn is_same(&self, greeting: &Greeting) -> bool {
        // A node that has heard of no swarm yet takes what comes: it was told whom to trust.
        self.latest.borrow().incarnation == 0 || *greeting == self.greeting()
    }
}

/// One connection, and when the last try failed.
#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    failed: Option<(Instant, Arc<DialError>)>,
}

/// Links by Raft id and protocol.
type Links = HashMap<(u64, Protocol), Arc<tokio::sync::Mutex<Link>>>;

/// Connections to the other managers.
#[derive(Debug)]
pub struct Peers {
    net: Arc<Net>,
    book: Arc<Book>,
    links: Mutex<Links>,
}

impl Peers {
    /// Connections that are made when they are needed.
    #[must_use]
    pub fn new(net: Arc<Net>, book: Arc<Book>) -> Arc<Self> {
        Arc::new(Self { net, book, links: Mutex::default() })
    }

    /// Who they are.
    #[must_use]
    pub fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// A new stream to a manager.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn open(
        &self,
        raft_id: u64,
        protocol: Protocol,
    ) -> Result<(SendStream, RecvStream), PeerError> {
        let connection = self.connect(raft_id, protocol).await?;
        connection.open_bi().await.map_err(|e| io::Error::from(e).into())
    }

    /// Asks a manager and waits for its answer. The stream can go on as a relay.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask_stream(
        &self,
        raft_id: u64,
        request: &ControlRequest,
    ) -> Result<(ControlAnswer, SendStream, RecvStream), PeerError> {
        let asked = async {
            let (mut tx, mut rx) = self.open(raft_id, Protocol::Control).await?;
            send(&mut tx, request).await?;
            let answer = receive(&mut rx, NET_MESSAGE_BYTES).await?;
            Ok((answer, tx, rx))
        };
        timeout(NET_ANSWER, asked).await.unwrap_or(Err(PeerError::Silent))
    }

    /// Asks a manager.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask(
        &self,
        raft_id: u64,
        request: &ControlRequest,
    ) -> Result<ControlAnswer, PeerError> {
        Ok(self.ask_stream(raft_id, request).await?.0)
    }

    /// The connection to a manager, made anew if the last one broke. A caller that gives up does
    /// not stop the dialling: the next one finds what it led to.
    async fn connect(&self, raft_id: u64, protocol: Protocol) -> Result<Connection, PeerError> {
        let entry = self.book.manager(raft_id).ok_or(PeerError::Unknown(raft_id))?;
        let slot = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            if links.len() > 2 * Protocol::COUNT * self.book.latest.borrow().managers.len().max(8) {
                links.retain(|(id, _), _| self.book.manager(*id).is_some());
            }
            Arc::clone(links.entry((raft_id, protocol)).or_default())
        };
        let link = Arc::clone(&slot).lock_owned().await;
        if let Some(connection) = link.open() {
            return Ok(connection);
        }
        if let Some((at, error)) = &link.failed
            && at.elapsed() < DIAL_PAUSE
        {
            return Err(PeerError::Dial(Arc::clone(error)));
        }
        let expected =
            Expected { node: entry.node, public_key: entry.public_key, addr: entry.addr };
        let (net, book) = (Arc::clone(&self.net), Arc::clone(&self.book));
        let dialling = dial(net, book, expected, protocol, link);
        tokio::spawn(dialling).await.unwrap_or(Err(PeerError::Silent))
    }
}

impl Link {
    fn open(&self) -> Option<Connection> {
        self.connection.clone().filter(|connection| connection.close_reason().is_none())
    }
}

/// Fills a link.
async fn dial(
    net: Arc<Net>,
    book: Arc<Book>,
    expected: Expected,
    protocol: Protocol,
    mut link: OwnedMutexGuard<Link>,
) -> Result<Connection, PeerError> {
    let connection = match net.dial(&expected, protocol).await {
        Ok(connection) => connection,
        Err(error) => {
            if error.refused() == Some(Closed::OtherIncarnation) {
                book.outlive();
            }
            let error = Arc::new(error);
            link.failed = Some((Instant::now(), Arc::clone(&error)));
            return Err(error.into());
        }
    };
    let greeted = timeout(NET_ANSWER, greet(&connection, &book)).await;
    match greeted.unwrap_or(Err(PeerError::Silent)) {
        Ok(()) => {
            link.failed = None;
            link.connection = Some(connection.clone());
            Ok(connection)
        }
        Err(error) => {
            let addr = connection.remote_address();
            let why = connection.close_reason().and_then(|reason| closed(&reason));
            connection.close(Closed::Stopping.code().into(), b"no greeting");
            let Some(why) = why else { return Err(error) };
            if why == Closed::OtherIncarnation {
                book.outlive();
            }
            let error = Arc::new(DialError::Refused { addr, why });
            link.failed = Some((Instant::now(), Arc::clone(&error)));
            Err(error.into())
        }
    }
}

/// Says which swarm this is, and hears the same.
async fn greet(connection: &Connection, book: &Book) -> Result<(), PeerError> {
    let mine = book.greeting();
    let (mut tx, mut rx) = connection.open_bi().await.map_err(io::Error::from)?;
    send(&mut tx, &mine).await?;
    let _ = tx.finish();
    let theirs: Greeting = receive(&mut rx, NET_MESSAGE_BYTES).await?;
    if mine.incarnation == 0 || mine == theirs {
        return Ok(());
    }
    if book.is_later(&theirs) {
        book.outlive();
    }
    Err(PeerError::OtherIncarnation)
}

impl Transport for Peers {
    fn call(&self, peer: Peer, request: Vec<u8>) -> Answer<'_> {
        Box::pin(async move {
            let (mut tx, mut rx) = match self.open(peer.raft_id, Protocol::Raft).await {
                Ok(stream) => stream,
                Err(error) => {
                    let source = io::Error::new(io::ErrorKind::NotConnected, error);
                    return Err(TransportError::Unreachable { peer, source });
                }
            };
            let asked = async {
                send_bytes(&mut tx, &request).await?;
                let _ = tx.finish();
                receive_bytes(&mut rx, NET_MESSAGE_BYTES).await
            };
            asked.await.map_err(|error| {
                let source = io::Error::new(io::ErrorKind::ConnectionReset, error);
                TransportError::Broken { peer, source }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::ENTROPY_LEN;

    use super::*;

    #[test]
    fn a_manager_is_outlived_by_a_later_incarnation_of_its_own_swarm_only() {
        let cluster = |n: u8| ClusterId::from_entropy([n; ENTROPY_LEN]);
        let directory = Directory { incarnation: 2, incarnation_id: [2; 16], ..Default::default() };
        let book = Book::new(cluster(1), directory);
        let mine = book.greeting();
        let greeting = |n, incarnation, id| Greeting {
            cluster: cluster(n),
            incarnation,
            incarnation_id: [id; 16],
        };
        assert!(book.is_same(&mine) && !book.is_later(&mine));
        assert!(book.is_later(&greeting(1, 3, 3)));
        // Two that were made of the same one: neither outlives the other.
        assert!(!book.is_later(&greeting(1, 2, 9)) && !book.is_same(&greeting(1, 2, 9)));
        assert!(!book.is_later(&greeting(1, 1, 1)) && !book.is_later(&greeting(7, 3, 3)));
        assert!(!book.is_outlived());
        let outlived = book.outlived();
        book.outlive();
        assert!(book.is_outlived() && *outlived.borrow());
        // Whatever it hears now: only leaving ends it.
        book.update(Directory { incarnation: 3, ..Default::default() });
        assert!(book.is_outlived());
    }
}
