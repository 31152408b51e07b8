//! The agent's session: with the manager of this node while it is one, else with any manager that
//! answers. It moves when its manager is silent, and tells the next one all that it must know.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quinn::Connection;
use skep_core::assign::AssignmentDiff;
use skep_core::command::TaskReport;
use skep_core::id::{NodeId, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout_at};

use super::part::Half;
use super::reach::note;
use crate::agent::remote::Remote;
use crate::limits::{NET_MESSAGE_BYTES, SESSION_BEAT, SESSION_QUEUE, SESSION_SILENCE};
use crate::manager::peers::Book;
use crate::manager::session::{Ends, serve};
use crate::manager::stopped;
use crate::net::{BiStream, Closed, Expected, Net, Protocol, closed};
use crate::wire::session::{FromAgent, Hello, ToAgent};
use crate::wire::{receive_next, send};

/// Pauses between two rounds of trying all managers: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// What a new session must be told: the latest of each task.
#[derive(Debug, Default)]
struct Memory {
    shims: BTreeMap<TaskId, FromAgent>,
    reports: BTreeMap<TaskId, TaskReport>,
}

impl Memory {
    fn said(&mut self, news: &FromAgent) {
        match news {
            FromAgent::Reports(reports) => {
                self.reports.extend(reports.iter().map(|report| (report.id, report.clone())));
            }
            FromAgent::Shim { task, .. } => {
                self.shims.insert(*task, news.clone());
            }
            FromAgent::ShimGone { task } => {
                self.shims.remove(task);
            }
            FromAgent::Held { task, held, sequence, .. } => {
                if let Some(FromAgent::Shim { held: known, sequence: last, .. }) =
                    self.shims.get_mut(task)
                {
                    known.clone_from(held);
                    *last = *sequence;
                }
            }
            // Its sender sends it again by itself.
            FromAgent::Audit { .. } => {}
            FromAgent::Beat | FromAgent::Hello(_) | FromAgent::Leave => {}
        }
    }

    fn heard(&mut self, order: &ToAgent) {
        match order {
            ToAgent::Assign(diff) => {
                if diff.sequence == 1 {
                    let is_named = |id: &TaskId| diff.update.iter().any(|a| a.task.id == *id);
                    self.shims.retain(|id, _| is_named(id));
                    self.reports.retain(|id, _| is_named(id));
                }
                for id in &diff.remove {
                    self.shims.remove(id);
                    self.reports.remove(id);
                }
            }
            // What comes of orders is known from the shim's answer alone.
            ToAgent::Deliver { .. } | ToAgent::Revoke { .. } => {}
            ToAgent::Beat
            | ToAgent::Directory(_)
            | ToAgent::Role { .. }
            | ToAgent::AuditStored { .. } => {}
        }
    }

    fn all(&self) -> Vec<FromAgent> {
        let mut all: Vec<_> = self.shims.values().cloned().collect();
        if !self.reports.is_empty() {
            all.push(FromAgent::Reports(self.reports.values().cloned().collect()));
        }
        all
    }
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The node stops.
    Stop,
    /// The manager is gone, or silent, or does not want it.
    Lost(Option<Closed>),
    /// The node was told that it leaves: nothing follows.
    Left,
}

/// Where a node's session can be, and where it is.
#[derive(Debug, Default)]
pub struct Seat {
    /// The node's manager half, while it has one.
    half: RwLock<Option<Arc<Half>>>,
    /// The session's connection, while it is with another node.
    line: Mutex<Option<Connection>>,
}

impl Seat {
    pub(super) fn half(&self) -> Option<Arc<Half>> {
        self.half.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_half(&self, half: Option<Arc<Half>>) -> Option<Arc<Half>> {
        std::mem::replace(&mut *self.half.write().unwrap_or_else(PoisonError::into_inner), half)
    }

    pub(super) fn line(&self) -> Option<Connection> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The address of the manager that has the session, unless that is this node.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.line().map(|line| line.remote_address())
    }

    fn set_line(&self, line: Option<Connection>) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

/// Holds the agent's session until the node stops.
#[derive(Debug)]
pub struct Uplink {
    /// The node.
    pub node: NodeId,
    /// Its end of the network.
    pub net: Arc<Net>,
    /// Who the managers are.
    pub book: Arc<Book>,
    /// Where the session is.
    pub seat: Arc<Seat>,
    /// From the agent.
    pub news: mpsc::Receiver<FromAgent>,
    /// To the agent.
    pub orders: mpsc::Sender<ToAgent>,
    /// What the node says of itself.
    pub hello: Hello,
    /// The Raft id that the swarm gives this node; 0 for a worker.
    pub role: watch::Sender<u64>,
    /// Turns true once a manager said that this node was removed.
    pub removed: watch::Sender<bool>,
    /// Answers what managers ask of this node; without it nothing is answered.
    pub asked: Option<Arc<Remote>>,
    /// Turns true when the node stops.
    pub stop: watch::Receiver<bool>,
    /// Whether it has said that the node leaves.
    pub is_leaving: bool,
}

/// The manager's end of a session, wherever it is.
struct Line {
    tx: mpsc::Sender<FromAgent>,
    rx: mpsc::Receiver<ToAgent>,
}

impl Uplink {
    /// Runs until the node stops, or is no longer a member.
    pub async fn run(mut self) {
        let mut memory = Memory::default();
        let mut round = 0u32;
        let mut lost = None;
        loop {
            let began = Instant::now();
            let ended = match self.seat.half() {
                Some(half) => self.local(&half, &mut memory).await,
                None => self.remote(&mut memory, round, &mut lost).await,
            };
            match ended {
                Ended::Stop | Ended::Left => return,
                Ended::Lost(_) if self.is_leaving => return,
                Ended::Lost(Some(Closed::Removed)) => {
                    self.removed.send_replace(true);
                    return;
                }
                Ended::Lost(_) => {}
            }
            if self.book.is_outlived() {
                self.end_tasks().await;
                return;
            }
            // One that ended in silence was none.
            round = if began.elapsed() > 2 * SESSION_SILENCE { 0 } else { round.saturating_add(1) };
            if round > 0 && !self.pause(round).await {
                return;
            }
        }
    }

    /// Ends every task here: the swarm that went on without this manager has put others in their
    /// places.
    async fn end_tasks(&self) {
        tracing::error!("the tasks on this node end: the swarm has replaced them");
        let nothing = AssignmentDiff { sequence: 1, update: Vec::new(), remove: Vec::new() };
        // It fails if the node stops.
        let _ = self.orders.send(ToAgent::Assign(nothing)).await;
    }

    /// Waits a while, longer each time. False if the node stops.
    async fn pause(&mut self, round: u32) -> bool {
        let longest = PAUSES[0].saturating_mul(1 << round.min(16)).min(PAUSES[1]);
        let share = crate::seal::random::<1>().map_or(255, |[byte]| u32::from(byte));
        let mut stop = self.stop.clone();
        tokio::select! {
            () = stopped(&mut stop) => false,
            () = sleep(longest * (128 + share / 2) / 256) => true,
        }
    }

    async fn local(&mut self, half: &Half, memory: &mut Memory) -> Ended {
        let (tx, news) = mpsc::channel(SESSION_QUEUE);
        let (orders, rx) = mpsc::channel(SESSION_QUEUE);
        let manager = Arc::clone(&half.manager);
        let ends = Ends { orders, news, events: half.news.clone() };
        let (node, hello, stop) = (self.node, self.hello(), half.stop.subscribe());
        let addr = host(&self.hello.advertise).to_owned();
        let serving = tokio::spawn(async move {
            tokio::select! {
                () = serve(&manager, node, hello, addr, ends, stop) => {}
                // A manager that is cut off is none to its own node either.
                () = manager.out_of_touch() => {}
            }
        });
        let ended = self.talk(Line { tx, rx }, memory).await;
        serving.abort();
        ended
    }

    /// Tries every manager once, in an order of its own. The one that was `lost` comes last: if it
    /// is dead, a dial to it takes as long as a dial may.
    async fn remote(
        &mut self,
        memory: &mut Memory,
        round: u32,
        lost: &mut Option<NodeId>,
    ) -> Ended {
        let mut managers = self.book.directory().borrow().managers.clone();
        managers.retain(|manager| manager.node != self.node);
        if managers.is_empty() {
            return Ended::Lost(None);
        }
        let first =
            crate::seal::random::<2>().map_or(0, |bytes| usize::from(u16::from_be_bytes(bytes)));
        let first = (first + round as usize) % managers.len();
        managers.rotate_left(first);
        managers.sort_by_key(|manager| Some(manager.node) == *lost);
        let mut why = None;
        for manager in managers {
            let expected =
                Expected { node: manager.node, public_key: manager.public_key, addr: manager.addr };
            *lost = Some(manager.node);
            let mut stop = self.stop.clone();
            let dialled = tokio::select! {
                () = stopped(&mut stop) => return Ended::Stop,
                dialled = self.net.dial(&expected, Protocol::Agent) => dialled,
            };
            let connection = match dialled {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, "no session");
                    why = error.refused();
                    continue;
                }
            };
            let began = Instant::now();
            let ended = self.over(&connection, memory).await;
            let ended = match (ended, connection.close_reason()) {
                (Ended::Lost(None), Some(reason)) => Ended::Lost(closed(&reason)),
                (ended, _) => ended,
            };
            connection.close(Closed::Stopping.code().into(), b"session over");
            match ended {
                Ended::Lost(reason) if reason != Some(Closed::Removed) && !self.is_leaving => {
                    tracing::info!(manager = %expected.node, ?reason, "the session ended");
                    why = reason;
                    // One that lasted does not count as a try.
                    if began.elapsed() > SESSION_SILENCE {
                        return Ended::Lost(why);
                    }
                }
                ended => return ended,
            }
        }
        Ended::Lost(why)
    }

    /// A session over one connection.
    async fn over(&mut self, connection: &quinn::Connection, memory: &mut Memory) -> Ended {
        self.seat.set_line(Some(connection.clone()));
        let ended = self.carry(connection, memory).await;
        self.seat.set_line(None);
        ended
    }

    async fn carry(&mut self, connection: &quinn::Connection, memory: &mut Memory) -> Ended {
        let Ok((mut tx, mut rx)) = connection.open_bi().await else { return Ended::Lost(None) };
        if send(&mut tx, &FromAgent::Hello(Box::new(self.hello()))).await.is_err() {
            return Ended::Lost(None);
        }
        let (news, mut news_rx) = mpsc::channel::<FromAgent>(SESSION_QUEUE);
        let (orders, orders_rx) = mpsc::channel(SESSION_QUEUE);
        let asked = self.asked.clone();
        let carry = async move {
            let write = async {
                while let Some(message) = news_rx.recv().await {
                    if send(&mut tx, &message).await.is_err() {
                        return;
                    }
                }
                let _ = tx.finish();
                // What was said last is still on its way.
                let _ = tx.stopped().await;
            };
            let read = async {
                while let Ok(order) = receive_next::<ToAgent>(&mut rx, NET_MESSAGE_BYTES).await {
                    if orders.send(order).await.is_err() {
                        return;
                    }
                }
            };
            let answer = async {
                let mut answers = JoinSet::new();
                while let Ok(stream) = connection.accept_bi().await {
                    let (Some(asked), stream) = (asked.clone(), BiStream::new(stream)) else {
                        continue;
                    };
                    answers.spawn(async move { note(asked.serve(stream).await) });
                    while answers.try_join_next().is_some() {}
                }
            };
            tokio::select! { () = write => {} () = read => {} () = answer => {} }
        };
        let talk = self.talk(Line { tx: news, rx: orders_rx }, memory);
        tokio::pin!(carry);
        tokio::pin!(talk);
        tokio::select! {
            ended = &mut talk => ended,
            () = &mut carry => Ended::Lost(None),
        }
    }

    /// Speaks with whoever is at the other end until either has enough.
    async fn talk(&mut self, line: Line, memory: &mut Memory) -> Ended {
        let Line { tx, mut rx } = line;
        for message in memory.all() {
            if tx.send(message).await.is_err() {
                return Ended::Lost(None);
            }
        }
        let mut stop = self.stop.clone();
        let mut beat = interval(SESSION_BEAT);
        let mut heard = Instant::now();
        // Whether this node has a manager half is part of where the session belongs.
        let is_manager = self.seat.half().is_some();
        loop {
            let message = tokio::select! {
                () = stopped(&mut stop) => return Ended::Stop,
                order = timeout_at(heard + SESSION_SILENCE, rx.recv()) => match order {
                    Ok(Some(order)) => {
                        heard = Instant::now();
                        memory.heard(&order);
                        if !self.obey(order).await {
                            return Ended::Stop;
                        }
                        continue;
                    }
                    Ok(None) | Err(_) => return Ended::Lost(None),
                },
                news = self.news.recv() => match news {
                    Some(news) => news,
                    None => return Ended::Stop,
                },
                _ = beat.tick() => {
                    if self.seat.half().is_some() != is_manager {
                        return Ended::Lost(None);
                    }
                    FromAgent::Beat
                }
            };
            memory.said(&message);
            let leaves = message == FromAgent::Leave;
            self.is_leaving |= leaves;
            if tx.send(message).await.is_err() {
                return Ended::Lost(None);
            }
            if leaves {
                // Told once the other end has read it and closed.
                let _ = timeout_at(Instant::now() + SESSION_BEAT, tx.closed()).await;
                return Ended::Left;
            }
        }
    }

    async fn obey(&self, order: ToAgent) -> bool {
        match order {
            ToAgent::Directory(directory) => {
                self.book.update(directory);
                true
            }
            ToAgent::Role { raft_id } => {
                self.role.send_if_modified(|role| std::mem::replace(role, raft_id) != raft_id);
                true
            }
            order @ (ToAgent::Beat
            | ToAgent::Assign(_)
            | ToAgent::Deliver { .. }
            | ToAgent::Revoke { .. }
            | ToAgent::AuditStored { .. }) => self.orders.send(order).await.is_ok(),
        }
    }

    fn hello(&self) -> Hello {
        let greeting = self.book.greeting();
        Hello {
            incarnation: greeting.incarnation,
            incarnation_id: greeting.incarnation_id,
            ..self.hello.clone()
        }
    }
}

/// The host of `HOST:PORT`.
pub(super) fn host(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host.trim_matches(['[', ']']))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
