//! What a manager answers: Raft and questions of other managers, sessions of agents, and those who
//! ask to join.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, RecvStream, SendStream};
use skep_core::id::NodeId;
use skep_raft::limits::PART_BYTES;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::session::{Ends, serve};
use super::{Manager, stopped};
use crate::chain::chain;
use crate::limits::{
    IMAGE_PIECE_BYTES, JOINS, NET_ANONYMOUS_BYTES, NET_ANSWER, NET_MESSAGE_BYTES, SESSION_QUEUE,
    SESSION_SILENCE,
};
use crate::net::{BiStream, Closed, Guest, Protocol, Service, Visit};
use crate::wire::control::{ControlAnswer, ControlRequest, Greeting, SessionNews};
use crate::wire::join::{JoinAnswer, JoinRequest};
use crate::wire::session::{FromAgent, Hello, ToAgent};
use crate::wire::{
    WireError, receive, receive_bytes, receive_known, receive_next, send, send_bytes,
};

/// Both halves of a stream.
type Halves = (SendStream, RecvStream);

/// What an agent asks for on a stream of its own.
pub trait Requests: Send + Sync + 'static {
    /// Answers the agent of `node`.
    fn answer(&self, node: NodeId, stream: BiStream) -> Visit;

    /// Answers another manager in the place of this node's own agent.
    fn local(&self, stream: BiStream) -> Visit;
}

/// Connections of agents whose sessions are here.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<NodeId, Connection>>);

impl Sessions {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection of a node's agent.
    #[must_use]
    pub fn of(&self, node: &NodeId) -> Option<Connection> {
        self.table().get(node).cloned()
    }

    /// Takes a session, and ends the one that its node had before.
    fn open(&self, node: NodeId, connection: Connection) {
        if let Some(old) = self.table().insert(node, connection) {
            old.close(Closed::Stopping.code().into(), b"there is a newer session");
        }
    }

    fn close(&self, node: &NodeId, connection: &Connection) {
        let mut table = self.table();
        if table.get(node).is_some_and(|held| held.stable_id() == connection.stable_id()) {
            table.remove(node);
        }
    }
}

/// Answers for one manager.
pub struct Reception {
    /// The manager.
    pub manager: Arc<Manager>,
    /// Where news of sessions go.
    pub news: mpsc::Sender<SessionNews>,
    /// Answers agents' questions.
    pub requests: Arc<dyn Requests>,
    /// Turns true when the node stops.
    pub stop: watch::Receiver<bool>,
    /// Turns of those who join.
    joins: Arc<Semaphore>,
}

impl std::fmt::Debug for Reception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reception({:?})", self.manager)
    }
}

impl Service for Desk {
    fn visit(&self, guest: Guest, protocol: Protocol, connection: Connection) -> Visit {
        let desk = Arc::clone(&self.0);
        Box::pin(async move {
            let mut stop = desk.stop.clone();
            let ended = tokio::select! {
                () = stopped(&mut stop) => Err(Closed::Stopping),
                ended = desk.host(guest, protocol, &connection) => ended,
            };
            if let Err(why) = ended {
                connection.close(why.code().into(), why.word().as_bytes());
            }
        })
    }
}

/// A reception that is shared by its visits.
#[derive(Debug)]
pub struct Desk(Arc<Reception>);

impl Desk {
    /// Opens a reception.
    #[must_use]
    pub fn new(
        manager: Arc<Manager>,
        news: mpsc::Sender<SessionNews>,
        requests: Arc<dyn Requests>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let joins = Arc::new(Semaphore::new(JOINS));
        Self(Arc::new(Reception { manager, news, requests, stop, joins }))
    }
}

impl Reception {
    async fn host(
        self: &Arc<Self>,
        guest: Guest,
        protocol: Protocol,
        connection: &Connection,
    ) -> Result<(), Closed> {
        match (protocol, guest) {
            (Protocol::Join, _) => self.admit(connection).await,
            (Protocol::Agent, Guest::Member { node, .. }) => self.session(node, connection).await,
            (Protocol::Raft, Guest::Member { raft_id: Some(raft_id), .. }) => {
                self.greet(connection).await?;
                self.each_stream(connection, move |desk, stream| desk.raft(raft_id, stream)).await
            }
            (Protocol::Control, Guest::Member { raft_id: Some(_), .. }) => {
                self.greet(connection).await?;
                self.each_stream(connection, |desk, stream| desk.control(stream)).await
            }
            _ => Err(Closed::NotManager),
        }
    }

    /// Hears which swarm the peer speaks of, and says the same.
    async fn greet(&self, connection: &Connection) -> Result<(), Closed> {
        let book = self.manager.peers.book();
        let greeted = async {
            let (mut tx, mut rx) = connection.accept_bi().await.map_err(io::Error::from)?;
            let theirs: Greeting = receive(&mut rx, NET_ANONYMOUS_BYTES).await?;
            let mine = book.greeting();
            send(&mut tx, &mine).await?;
            let _ = tx.finish();
            Ok::<_, WireError>(theirs)
        };
        match timeout(NET_ANSWER, greeted).await {
            Ok(Ok(theirs)) if theirs.incarnation == 0 || book.is_same(&theirs) => Ok(()),
            Ok(Ok(theirs)) if book.is_later(&theirs) => {
                // It is a manager: only managers greet.
                book.outlive();
                Err(Closed::Outlived)
            }
            Ok(Ok(_)) => Err(Closed::OtherIncarnation),
            _ => Err(Closed::Malformed),
        }
    }

    /// Answers each stream on a task of its own. QUIC bounds how many there are.
    async fn each_stream<F>(
        self: &Arc<Self>,
        connection: &Connection,
        answer: impl Fn(Arc<Self>, Halves) -> F,
    ) -> Result<(), Closed>
    where
        F: Future<Output = Result<(), WireError>> + Send + 'static,
    {
        let mut answers = JoinSet::new();
        while let Ok(stream) = connection.accept_bi().await {
            answers.spawn(answer(Arc::clone(self), stream));
            while let Some(ended) = answers.try_join_next() {
                if let Ok(Err(WireError::Decode(error))) = ended {
                    tracing::warn!(%error, addr = %connection.remote_address(), "a peer's message");
                    return Err(Closed::Malformed);
                }
            }
        }
        Ok(())
    }

    async fn raft(self: Arc<Self>, from: u64, stream: Halves) -> Result<(), WireError> {
        let (mut tx, mut rx) = stream;
        let request = receive_bytes(&mut rx, PART_BYTES).await?;
        match self.manager.raft.answer(from, &request).await {
            Ok(answer) => send_bytes(&mut tx, &answer).await,
            Err(error) => {
                tracing::warn!(%error, manager = format!("{from:x}"), "a message of Raft");
                let _ = tx.reset(Closed::Malformed.code().into());
                Ok(())
            }
        }
    }

    async fn control(self: Arc<Self>, stream: Halves) -> Result<(), WireError> {
        let (mut tx, mut rx) = stream;
        let Some(request) = receive_known(&mut rx, NET_MESSAGE_BYTES).await? else {
            return send(&mut tx, &ControlAnswer::NotUnderstood).await;
        };
        let manager = &self.manager;
        let answer = match request {
            ControlRequest::Propose { request, command } => {
                manager.propose_for(request, *command).await
            }
            ControlRequest::ReadIndex => manager.read_index_for().await,
            ControlRequest::Sessions(news) => {
                if manager.raft.is_leader() {
                    for news in news {
                        // It hears of the node again in a second.
                        let _ = self.news.try_send(news);
                    }
                    ControlAnswer::Done
                } else {
                    ControlAnswer::NotLeader(manager.raft.leadership().borrow().leader)
                }
            }
            ControlRequest::Directory => {
                ControlAnswer::Directory(manager.peers.book().directory().borrow().clone())
            }
            ControlRequest::AuditStore(portions) => manager.audit_store_for(portions).await,
            ControlRequest::AuditQuery { query, from } => manager.audit_page_for(query, from).await,
            ControlRequest::Holdings { materials, entry, within_ms } => {
                manager.holdings_for(&materials, entry, within_ms).await
            }
            ControlRequest::AuditHeads(from) => manager.audit_heads_for(from).await,
            ControlRequest::AuditLastRead(id) => manager.audit_last_read_for(id).await,
            ControlRequest::RingPurge(key) => match manager.purge_keys_before(key) {
                true => ControlAnswer::Done,
                false => ControlAnswer::NotYet,
            },
            ControlRequest::Reach { node } => return self.reach(&node, (tx, rx)).await,
        };
        send(&mut tx, &answer).await
    }

    /// Connects another manager's stream to an agent here.
    async fn reach(&self, node: &NodeId, stream: Halves) -> Result<(), WireError> {
        let mut stream = BiStream::new(stream);
        if *node == self.manager.node {
            send(&mut stream, &ControlAnswer::Done).await?;
            self.requests.local(stream).await;
            return Ok(());
        }
        let agent = match self.manager.sessions.of(node) {
            Some(connection) => BiStream::open(&connection).await.ok(),
            None => None,
        };
        let Some(mut agent) = agent else {
            send(&mut stream, &ControlAnswer::Absent).await?;
            return Ok(stream.shutdown().await?);
        };
        send(&mut stream, &ControlAnswer::Done).await?;
        // Dropping both streams tells both ends that the other is gone.
        copy_bidirectional_with_sizes(
            &mut stream,
            &mut agent,
            IMAGE_PIECE_BYTES,
            IMAGE_PIECE_BYTES,
        )
        .await?;
        Ok(())
    }

    async fn admit(&self, connection: &Connection) -> Result<(), Closed> {
        let Ok(_turn) = self.joins.acquire().await else { return Err(Closed::Stopping) };
        let asked = async {
            let (tx, mut rx) = connection.accept_bi().await.map_err(io::Error::from)?;
            Ok::<_, WireError>((tx, receive_known(&mut rx, NET_ANONYMOUS_BYTES).await?))
        };
        let Ok(Ok((mut tx, request))) = timeout(NET_ANSWER, asked).await else {
            return Err(Closed::Malformed);
        };
        let answer = match request {
            Some(JoinRequest::Join(joiner)) => self.manager.admit(connection, *joiner).await,
            Some(JoinRequest::Renew { csr }) => self.manager.renew(&csr).await,
            None => Ok(JoinAnswer::Refused(format!(
                "this manager's skep {} does not know the request: upgrade it, or ask another one",
                env!("CARGO_PKG_VERSION")
            ))),
        };
        let answer = answer.unwrap_or_else(|refusal| JoinAnswer::Refused(chain(&refusal)));
        let told = async {
            send(&mut tx, &answer).await?;
            let _ = tx.finish();
            // The joiner closes once it has read the answer.
            let _ = connection.closed().await;
            Ok::<_, WireError>(())
        };
        let _ = timeout(NET_ANSWER, told).await;
        Ok(())
    }

    async fn session(
        self: &Arc<Self>,
        node: NodeId,
        connection: &Connection,
    ) -> Result<(), Closed> {
        let hello = async {
            let (tx, mut rx) = connection.accept_bi().await.map_err(io::Error::from)?;
            let first = receive::<FromAgent>(&mut rx, NET_MESSAGE_BYTES).await?;
            Ok::<_, WireError>((tx, rx, first))
        };
        let Ok(Ok((tx, rx, FromAgent::Hello(hello)))) = timeout(NET_ANSWER, hello).await else {
            return Err(Closed::Malformed);
        };
        self.check(&hello)?;
        let sessions = &self.manager.sessions;
        sessions.open(node, connection.clone());
        let (orders, orders_rx) = mpsc::channel(SESSION_QUEUE);
        let (news_tx, news) = mpsc::channel(SESSION_QUEUE);
        let addr = connection.remote_address().ip().to_canonical().to_string();
        let ends = Ends { orders, news, events: self.news.clone() };
        let manager = &self.manager;
        let desk = Arc::clone(self);
        let ended = tokio::select! {
            () = serve(manager, node, *hello, addr, ends, self.stop.clone()) => Ok(()),
            ended = write(tx, orders_rx) => ended,
            ended = read(rx, news_tx) => ended,
            ended = desk.each_stream(connection, move |desk, stream| async move {
                desk.requests.answer(node, BiStream::new(stream)).await;
                Ok(())
            }) => ended.map_err(|_| WireError::Io(io::ErrorKind::InvalidData.into())),
            () = manager.out_of_touch() => Ok(()),
        };
        sessions.close(&node, connection);
        match ended {
            Ok(()) => Err(Closed::Stopping),
            Err(WireError::Io(_)) => Ok(()),
            Err(_) => Err(Closed::Malformed),
        }
    }

    fn check(&self, hello: &Hello) -> Result<(), Closed> {
        let greeting = Greeting {
            cluster: hello.cluster,
            incarnation: hello.incarnation,
            incarnation_id: hello.incarnation_id,
        };
        // An agent obeys a later incarnation of a manager it knows. What it says of one itself is
        // no proof: only managers are believed.
        let book = self.manager.peers.book();
        let mine = book.greeting();
        let is_behind = greeting.cluster == mine.cluster && greeting.incarnation < mine.incarnation;
        match is_behind || greeting == mine {
            true => Ok(()),
            false if book.is_later(&greeting) => Err(Closed::Outlived),
            false => Err(Closed::OtherIncarnation),
        }
    }
}

/// Sends an agent its orders.
async fn write(mut tx: SendStream, mut orders: mpsc::Receiver<ToAgent>) -> Result<(), WireError> {
    while let Some(order) = orders.recv().await {
        send(&mut tx, &order).await?;
    }
    Ok(())
}

/// Hears what an agent says. One that says nothing for long is gone.
async fn read(mut rx: RecvStream, news: mpsc::Sender<FromAgent>) -> Result<(), WireError> {
    loop {
        let next = receive_next(&mut rx, NET_MESSAGE_BYTES);
        let Ok(message) = timeout(SESSION_SILENCE, next).await else { return Ok(()) };
        if news.send(message?).await.is_err() {
            return Ok(());
        }
    }
}
