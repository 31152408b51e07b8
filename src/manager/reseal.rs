//! Turns of the ring: any manager makes a new key current when it is asked to, and whoever leads
//! then seals anew whatever an older key seals, after a demotion too. What is left to do follows
//! from the state alone, so a new leader goes on where the last one was. A key that seals nothing
//! more leaves the ring by itself; who watches the turn has every manager purge it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use skep_core::apply::Change;
use skep_core::command::{Command, Rejection, Reseal};
use skep_core::id::{MaterialId, NodeId};
use skep_core::limits::SET;
use skep_raft::{Event, Subscription};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::door::RESEALS;
use super::nodes::Secrets;
use super::{Manager, stopped};
use crate::gate::{Done, KeyHolder, KeyProgress, KeyStage, Purged, Refusal};
use crate::limits::{
    RESEAL_BYTES, RESEAL_LOOK, RESEAL_RETRY, RING_LOOK, RING_PURGE, RING_SILENCE, RING_STALL,
};
use crate::seal::{PayloadName, RingSecret};
use crate::wire::control::{ControlAnswer, ControlRequest};

/// A payload's name: of what, and which version.
type Name = (MaterialId, u64);

/// Payloads of one look that did not open: the others need not wait for them.
type Spoilt = BTreeSet<Name>;

/// Seals payloads anew while this manager leads, until told to stop.
pub async fn run(manager: Arc<Manager>, mut stop: watch::Receiver<bool>) {
    let mut changes = manager.raft.subscribe();
    let mut leadership = manager.raft.leadership();
    loop {
        manager.forget_old_keys();
        let leads = leadership.borrow_and_update().here;
        let worked = async { leads && !manager.reseal_all().await };
        let is_left = tokio::select! {
            is_left = worked => is_left,
            () = stopped(&mut stop) => return,
        };
        let retry = async {
            match is_left {
                true => sleep(RESEAL_RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stopped(&mut stop) => return,
            changed = leadership.changed() => if changed.is_err() { return },
            is_there = cluster_changed(&mut changes) => if !is_there { return },
            () = retry => {}
        }
    }
}

/// Waits until the swarm itself changed, its ring perhaps; `false` once the node has stopped.
async fn cluster_changed(changes: &mut Subscription) -> bool {
    loop {
        match changes.next().await {
            None => return false,
            Some(Event::Rescan) => return true,
            Some(Event::Applied(applied)) if applied.changes.contains(&Change::Cluster) => {
                return true;
            }
            Some(Event::Applied(_)) => {}
        }
    }
}

impl Manager {
    /// Makes a new ring key current. While payloads wait for the key of the last turn that one is
    /// answered instead, unless a new one is forced: each more would be kept until all have moved.
    ///
    /// # Errors
    /// Why the ring does not turn.
    pub(super) async fn turn_ring(&self, force: bool) -> Result<Done, Refusal> {
        for _ in 0..RESEALS {
            self.confirm().await?;
            if let (false, Some(version)) = (force, self.unfinished_turn()) {
                return Ok(Done::Key { version, turned: false });
            }
            let (key, secrets) = self.next_key(|_| true, Secrets::Keep)?;
            let version = key.version;
            match self.propose(Command::RingTurn { key, secrets }).await {
                // Another turn was faster, or the managers are others now.
                Err(Refusal::Rejected(Rejection::StaleKey { .. })) => {}
                done => return done.map(|_| Done::Key { version, turned: true }),
            }
        }
        Err(Refusal::NoLeader)
    }

    /// The current key, if payloads wait for it.
    fn unfinished_turn(&self) -> Option<u64> {
        self.raft.view(|state| {
            let current = state.cluster()?.ring.current;
            (state.payloads_before_key(current) > 0).then_some(current)
        })
    }

    /// Seals anew what other keys than the current one seal, a batch at a time. Whether nothing is
    /// left.
    async fn reseal_all(&self) -> bool {
        let mut spoilt = Spoilt::new();
        let mut count = 0_usize;
        loop {
            let left: Vec<Name> = self.raft.view(|state| {
                let left = state.payloads_to_reseal().filter(|name| !spoilt.contains(name));
                left.take(RESEAL_LOOK).collect()
            });
            if left.is_empty() {
                if count > 0 {
                    tracing::info!(count, "payloads are sealed with the ring's current key");
                }
                return spoilt.is_empty();
            }
            match self.reseal(&left, &mut spoilt).await {
                Ok(done) => count += done,
                // What is left is looked up anew with the key that is current now.
                Err(Refusal::Rejected(Rejection::StaleKey { .. })) => {}
                Err(error) => {
                    tracing::warn!(%error, "payloads wait for the ring's current key");
                    return false;
                }
            }
        }
    }

    /// Seals these payloads anew; those that are gone meanwhile are left out. How many were sealed.
    async fn reseal(&self, names: &[Name], spoilt: &mut Spoilt) -> Result<usize, Refusal> {
        let key = self.current_key()?;
        let mut batch: Vec<Reseal> = Vec::new();
        let mut bytes = 0;
        let mut count = 0;
        for name in names {
            if let Some(item) = self.sealed_with(&key, *name, spoilt) {
                bytes += item.payload.bytes.len() as u64;
                batch.push(item);
            }
            if batch.len() >= SET || bytes >= RESEAL_BYTES {
                count += self.replace_payloads(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            // Whoever writes or reads meanwhile comes first.
            yield_now().await;
        }
        Ok(count + self.replace_payloads(batch).await?)
    }

    async fn replace_payloads(&self, batch: Vec<Reseal>) -> Result<usize, Refusal> {
        let count = batch.len();
        if count > 0 {
            self.decide(Command::MaterialReseal(batch)).await?;
        }
        Ok(count)
    }

    /// A payload as `key` seals it; none if there is nothing to do, or it does not open.
    fn sealed_with(&self, key: &RingSecret, name: Name, spoilt: &mut Spoilt) -> Option<Reseal> {
        let (id, version) = name;
        let found = self.raft.view(|state| {
            let kind = state.material(&id)?.kind;
            Some((kind, state.payload(&id, version)?.clone()))
        });
        let (kind, sealed) = found.filter(|(_, sealed)| sealed.key != key.version)?;
        let payload_name = PayloadName { cluster: self.cluster, kind, id, version };
        let opened = self.open(kind, id, version, &sealed);
        match opened.and_then(|plain| key.seal(&payload_name, plain)) {
            Ok(payload) => Some(Reseal { id, version, payload }),
            Err(error) => {
                let (word, under) = (kind.kind().word(), sealed.key);
                tracing::error!(%error, %id, version, key = under, "a {word} is not sealed anew");
                spoilt.insert(name);
                None
            }
        }
    }

    /// Whether no file of this manager holds a ring key older than this one. If one does that the
    /// ring has let go, the purge begins.
    pub(super) fn purge_keys_before(&self, key: u64) -> bool {
        let oldest = self.raft.view(skep_core::state::State::oldest_key);
        if oldest.is_none_or(|oldest| oldest < key) {
            return false;
        }
        let is_purged = self.raft.oldest_key().is_some_and(|oldest| oldest >= key);
        if !is_purged {
            self.raft.purge_soon();
        }
        is_purged
    }

    /// Asks every manager whether it has purged the keys before this one.
    async fn ask_purged(&self, key: u64) -> Vec<KeyHolder> {
        let managers: Vec<(NodeId, u64, String)> = self.raft.view(|state| {
            let each = state.managers().map(|(node, manager)| {
                (node.id, manager.raft_id, node.description.hostname.clone())
            });
            each.collect()
        });
        let ask = |(node, raft_id, hostname): (NodeId, u64, String)| async move {
            let purged = if node == self.node {
                if self.purge_keys_before(key) { Purged::Yes } else { Purged::NotYet }
            } else {
                match self.peers.ask(raft_id, &ControlRequest::RingPurge(key)).await {
                    Ok(ControlAnswer::Done) => Purged::Yes,
                    Ok(_) => Purged::NotYet,
                    Err(_) => Purged::Unreachable,
                }
            };
            KeyHolder { node, hostname, purged }
        };
        join_all(managers.into_iter().map(ask)).await
    }
}

/// How far the swarm has come to `key`, whenever that changes, until it is done or waiting is of no
/// more use. Managers are asked to purge older keys once payloads need none.
pub fn watch_key(manager: Arc<Manager>, key: u64) -> BoxStream<'static, KeyProgress> {
    let watch = Watch { manager, patience: Patience::new(Instant::now()), key, shown: None };
    stream::unfold(watch, |mut watch| async {
        let next = watch.next().await?;
        Some((next, watch))
    })
    .boxed()
}

/// Somebody who watches a turn of the ring.
struct Watch {
    manager: Arc<Manager>,
    key: u64,
    patience: Patience,
    shown: Option<KeyProgress>,
}

impl Watch {
    async fn next(&mut self) -> Option<KeyProgress> {
        if self.shown.as_ref().is_some_and(|shown| shown.stage.is_last()) {
            return None;
        }
        loop {
            if self.shown.is_some() {
                sleep(RING_LOOK).await;
            }
            let seen = self.look().await;
            if self.shown.as_ref() != Some(&seen) {
                self.shown = Some(seen.clone());
                return Some(seen);
            }
        }
    }

    async fn look(&mut self) -> KeyProgress {
        let key = self.key;
        let (total, left, is_retired) = self.manager.raft.view(|state| {
            let is_retired = state.oldest_key().is_none_or(|oldest| oldest >= key);
            (state.payload_count(), state.payloads_before_key(key), is_retired)
        });
        let managers = match left == 0 && is_retired {
            true => self.manager.ask_purged(key).await,
            false => Vec::new(),
        };
        let stage = self.patience.stage(Instant::now(), left, &managers);
        KeyProgress { key, done: total - left.min(total), total, stage, managers }
    }
}

/// For how long which wait has brought nothing.
struct Patience {
    /// Payloads that were left at the last look, and since when.
    left: (u64, Instant),
    purging: Option<Instant>,
    silent: BTreeMap<NodeId, Instant>,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { left: (u64::MAX, now), purging: None, silent: BTreeMap::new() }
    }

    /// Where a turn is. No managers means that they cannot purge yet.
    fn stage(&mut self, now: Instant, left: u64, managers: &[KeyHolder]) -> KeyStage {
        if left != self.left.0 {
            self.left = (left, now);
        }
        let over = |since: Instant, bound: Duration| now.duration_since(since) >= bound;
        if managers.is_empty() {
            let is_stalled = over(self.left.1, RING_STALL);
            return if is_stalled { KeyStage::Stalled } else { KeyStage::Sealing };
        }
        let purging = *self.purging.get_or_insert(now);
        let is_silent = |holder: &KeyHolder| holder.purged == Purged::Unreachable;
        self.silent.retain(|node, _| managers.iter().any(|m| m.node == *node && is_silent(m)));
        for holder in managers.iter().filter(|holder| is_silent(holder)) {
            self.silent.entry(holder.node).or_insert(now);
        }
        let gone = |node: &NodeId| self.silent.get(node).is_some_and(|at| over(*at, RING_SILENCE));
        let left = || managers.iter().filter(|holder| holder.purged != Purged::Yes);
        match left().next() {
            None => KeyStage::Done,
            Some(_) if left().all(|holder| gone(&holder.node)) => KeyStage::Behind,
            Some(_) if over(purging, RING_PURGE) => KeyStage::Behind,
            Some(_) => KeyStage::Purging,
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::ENTROPY_LEN;

    use super::*;

    fn holder(n: u8, purged: Purged) -> KeyHolder {
        KeyHolder { node: NodeId::from_entropy([n; ENTROPY_LEN]), hostname: String::new(), purged }
    }

    #[test]
    fn a_turn_is_watched_until_all_have_purged_or_the_rest_is_silent() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut patience = Patience::new(begin);
        assert_eq!(patience.stage(at(0), 5, &[]), KeyStage::Sealing);
        assert_eq!(patience.stage(at(29), 4, &[]), KeyStage::Sealing);
        assert_eq!(patience.stage(at(58), 4, &[]), KeyStage::Sealing);
        let here = holder(1, Purged::Yes);
        let silent = [here.clone(), holder(2, Purged::Unreachable)];
        assert_eq!(patience.stage(at(59), 0, &silent), KeyStage::Purging);
        assert_eq!(patience.stage(at(63), 0, &silent), KeyStage::Purging);
        // It was there again for a moment.
        let slow = [here.clone(), holder(2, Purged::NotYet)];
        assert_eq!(patience.stage(at(64), 0, &slow), KeyStage::Purging);
        assert_eq!(patience.stage(at(65), 0, &silent), KeyStage::Purging);
        assert_eq!(patience.stage(at(69), 0, &silent), KeyStage::Purging);
        assert_eq!(patience.stage(at(70), 0, &silent), KeyStage::Behind);
        let three = [here.clone(), silent[1].clone(), holder(3, Purged::NotYet)];
        assert_eq!(patience.stage(at(71), 0, &three), KeyStage::Purging);
        assert_eq!(patience.stage(at(179), 0, &slow), KeyStage::Behind);
        assert_eq!(patience.stage(at(71), 0, &[here]), KeyStage::Done);
    }

    #[test]
    fn a_turn_that_does_not_move_is_given_up() {
        let begin = Instant::now();
        let mut patience = Patience::new(begin);
        assert_eq!(patience.stage(begin, 5, &[]), KeyStage::Sealing);
        assert_eq!(patience.stage(begin + RING_STALL, 5, &[]), KeyStage::Stalled);
    }
}
