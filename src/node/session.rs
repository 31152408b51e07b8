//! The agent's session: with the manager of this node while it is one, else with any manager that
//! answers. It moves when its manager is silent, and tells the next one all that it must know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_core::assign::AssignmentDiff;
use skep_core::command::TaskReport;
use skep_core::id::TaskId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout_at};

use super::part::{Half, Swarm};
use super::reach::note;
use crate::agent::remote::Remote;
use crate::limits::{NET_MESSAGE_BYTES, SESSION_BEAT, SESSION_QUEUE, SESSION_SILENCE};
use crate::manager::session::{Ends, serve};
use crate::manager::stopped;
use crate::net::{BiStream, Closed, Expected, Protocol, closed};
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
            ToAgent::Deliver { task, delivery } => {
                if let Some(FromAgent::Shim { held, sequence, .. }) = self.shims.get_mut(task) {
                    *sequence = delivery.sequence;
                    for item in &delivery.items {
                        held.retain(|(material, _)| *material != item.material);
                        held.push((item.material, item.version));
                    }
                }
            }
            ToAgent::Beat | ToAgent::Directory(_) | ToAgent::Role { .. } => {}
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

/// Holds the agent's session until the node stops.
pub(super) struct Uplink {
    /// The node's part.
    pub(super) swarm: Arc<Swarm>,
    /// From the agent.
    pub(super) news: mpsc::Receiver<FromAgent>,
    /// To the agent.
    pub(super) orders: mpsc::Sender<ToAgent>,
    /// What the node says of itself.
    pub(super) hello: Hello,
    /// The Raft id that the swarm gives this node; 0 for a worker.
    pub(super) role: watch::Sender<u64>,
    /// Turns true once a manager said that this node was removed.
    pub(super) removed: watch::Sender<bool>,
    /// Answers what managers ask of this node.
    pub(super) asked: Arc<Remote>,
    pub(super) stop: watch::Receiver<bool>,
    /// Whether it has said that the node leaves.
    pub(super) is_leaving: bool,
}

/// The manager's end of a session, wherever it is.
struct Line {
    tx: mpsc::Sender<FromAgent>,
    rx: mpsc::Receiver<ToAgent>,
}

impl Uplink {
    /// Runs until the node stops, or is no longer a member.
    pub(super) async fn run(mut self) {
        let mut memory = Memory::default();
        let mut round = 0u32;
        loop {
            let began = Instant::now();
            let ended = match self.swarm.half() {
                Some(half) => self.local(&half, &mut memory).await,
                None => self.remote(&mut memory, round).await,
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
            if self.swarm.outlived().is_some() {
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
        let (node, hello, stop) = (self.swarm.node, self.hello(), half.stop.subscribe());
        let addr = host(self.swarm.advertise()).to_owned();
        let serving =
            tokio::spawn(async move { serve(&manager, node, hello, addr, ends, stop).await });
        let ended = self.talk(Line { tx, rx }, memory).await;
        serving.abort();
        ended
    }

    /// Tries every manager once, in an order of its own.
    async fn remote(&mut self, memory: &mut Memory, round: u32) -> Ended {
        let mut managers = self.swarm.book().directory().borrow().managers.clone();
        managers.retain(|manager| manager.node != self.swarm.node);
        if managers.is_empty() {
            return Ended::Lost(None);
        }
        let first =
            crate::seal::random::<2>().map_or(0, |bytes| usize::from(u16::from_be_bytes(bytes)));
        let first = (first + round as usize) % managers.len();
        managers.rotate_left(first);
        let mut why = None;
        for manager in managers {
            let expected =
                Expected { node: manager.node, public_key: manager.public_key, addr: manager.addr };
            let mut stop = self.stop.clone();
            let dialled = tokio::select! {
                () = stopped(&mut stop) => return Ended::Stop,
                dialled = self.swarm.net.dial(&expected, Protocol::Agent) => dialled,
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
        self.swarm.set_line(Some(connection.clone()));
        let ended = self.carry(connection, memory).await;
        self.swarm.set_line(None);
        ended
    }

    async fn carry(&mut self, connection: &quinn::Connection, memory: &mut Memory) -> Ended {
        let Ok((mut tx, mut rx)) = connection.open_bi().await else { return Ended::Lost(None) };
        if send(&mut tx, &FromAgent::Hello(Box::new(self.hello()))).await.is_err() {
            return Ended::Lost(None);
        }
        let (news, mut news_rx) = mpsc::channel::<FromAgent>(SESSION_QUEUE);
        let (orders, orders_rx) = mpsc::channel(SESSION_QUEUE);
        let asked = Arc::clone(&self.asked);
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
                    let (asked, stream) = (Arc::clone(&asked), BiStream::new(stream));
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
        let is_manager = self.swarm.half().is_some();
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
                    if self.swarm.half().is_some() != is_manager {
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
            ToAgent::Beat => true,
            ToAgent::Directory(directory) => {
                self.swarm.book().update(directory);
                true
            }
            ToAgent::Role { raft_id } => {
                self.role.send_if_modified(|role| std::mem::replace(role, raft_id) != raft_id);
                true
            }
            order @ (ToAgent::Assign(_) | ToAgent::Deliver { .. }) => {
                self.orders.send(order).await.is_ok()
            }
        }
    }

    fn hello(&self) -> Hello {
        let greeting = self.swarm.book().greeting();
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
