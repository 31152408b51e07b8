//! Clients that make, change, see and remove secrets through the sockets of several nodes at once,
//! and record it. A secret's value is a label of it: that can be changed, and seen.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::{Action, History, Outcome};
use crate::http::{Http, Reply};
use crate::wait::wait_until;

/// Longest wait of a client for one answer; then it does not know.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names that clients fight over at a time.
const NAMES: u64 = 4;
/// Operations after which they turn to another name, so that no name has more than can be checked.
const TURN: u64 = 60;
/// The label that is the value.
const LABEL: &str = "value";

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Sockets; client number n calls the n-th, round and round.
    pub sockets: Vec<PathBuf>,
    /// Clients, a thread each.
    pub clients: usize,
    /// Starts every name, so that loads do not meet.
    pub prefix: String,
    /// What is drawn by chance follows from it.
    pub seed: u64,
    /// Pause of a client between two operations.
    pub pause: Duration,
}

/// A load that goes on until it is finished or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: LoadOptions,
    history: History,
    stopped: AtomicBool,
    /// Operations begun.
    begun: AtomicU64,
    /// The last value given.
    value: AtomicU64,
    /// Writes acknowledged.
    written: AtomicU64,
}

impl Load {
    /// Starts the clients.
    pub fn start(options: LoadOptions) -> Self {
        let clients = options.clients;
        let shared = Arc::new(Shared {
            options,
            history: History::default(),
            stopped: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            value: AtomicU64::new(0),
            written: AtomicU64::new(0),
        });
        let client = |number| {
            let shared = shared.clone();
            thread::spawn(move || shared.client(number))
        };
        let threads = (0..clients).map(client).collect();
        Self { shared, threads }
    }

    /// What was recorded so far.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Waits until so many more writes are acknowledged.
    pub fn await_writes(&self, count: u64, bound: Duration) -> Result<()> {
        let wanted = self.shared.written.load(Ordering::Relaxed) + count;
        wait_until("acknowledged writes", bound, || {
            Ok((self.shared.written.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
    }

    /// Stops the clients, then sees every name once more by each of `sockets`, which must answer.
    pub fn finish(mut self, sockets: &[PathBuf]) -> Result<Vec<super::Operation>> {
        self.stop()?;
        let shared = &self.shared;
        for (at, socket) in sockets.iter().enumerate() {
            let listed = || shared.list(shared.options.clients + at, socket, 0..shared.turns());
            // A node that is just back may still look for a leader.
            let answered = || Ok((listed()? == Outcome::Done).then_some(()));
            wait_until("a list of all names", PATIENCE, answered)
                .with_context(|| socket.display().to_string())?;
        }
        Ok(shared.history.operations())
    }

    fn stop(&mut self) -> Result<()> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client died"))?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop().ok();
    }
}

impl Shared {
    fn client(&self, number: usize) {
        let sockets = &self.options.sockets;
        let Some(socket) = sockets.get(number % sockets.len().max(1)) else { return };
        let apart = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Any state but 0 leads through all others.
        let mut chance = (self.options.seed ^ apart) | 1;
        while !self.stopped.load(Ordering::Relaxed) {
            let turn = self.begun.fetch_add(1, Ordering::Relaxed) / TURN;
            let key = turn + draw(&mut chance) % NAMES;
            let name = self.name(key);
            match draw(&mut chance) % 8 {
                0..3 => self.create(number, socket, &name),
                3..5 => self.swap(number, socket, &name),
                5 => self.remove(number, socket, &name),
                6 => drop(self.read(number, socket, &name)),
                _ => drop(self.list(number, socket, turn..turn + NAMES)),
            }
            thread::sleep(self.options.pause);
        }
    }

    /// Number of names begun so far.
    fn turns(&self) -> u64 {
        self.begun.load(Ordering::Relaxed) / TURN + NAMES
    }

    fn name(&self, key: u64) -> String {
        format!("{}-{key}", self.options.prefix)
    }

    fn next_value(&self) -> u64 {
        self.value.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn create(&self, client: usize, socket: &Path, name: &str) {
        let value = self.next_value();
        let body = json!({ "Name": name, "Labels": { LABEL: value.to_string() }, "Data": "eA==" });
        self.write(client, socket, name, Action::Create(value), "/secrets/create", Some(&body));
    }

    fn remove(&self, client: usize, socket: &Path, name: &str) {
        self.write(client, socket, name, Action::Remove, &format!("/secrets/{name}"), None);
    }

    /// Changes what it just saw, if nobody else did meanwhile.
    fn swap(&self, client: usize, socket: &Path, name: &str) {
        let Some(seen) = self.read(client, socket, name) else { return };
        let (Some(from), Some(id)) = (value_of(&seen), seen["ID"].as_str()) else { return };
        let to = self.next_value();
        let path = format!("/secrets/{id}/update?version={}", seen["Version"]["Index"]);
        let body = json!({ "Name": name, "Labels": { LABEL: to.to_string() } });
        self.write(client, socket, name, Action::Swap { from, to }, &path, Some(&body));
    }

    fn write(
        &self,
        client: usize,
        socket: &Path,
        name: &str,
        action: Action,
        path: &str,
        body: Option<&Value>,
    ) {
        let invoked = self.history.now();
        let outcome = match Http::connect_within(socket, PATIENCE) {
            Err(_) => Outcome::Failed,
            Ok(mut http) => {
                let reply = match body {
                    Some(body) => http.json("POST", path, body),
                    None => http.json("DELETE", path, &json!({})),
                };
                reply.map_or(Outcome::Unknown, |reply| outcome_of(&reply))
            }
        };
        if outcome == Outcome::Done {
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        self.history.record(client, name, action, outcome, invoked);
    }

    /// What is there, if it is and the node could say so.
    fn read(&self, client: usize, socket: &Path, name: &str) -> Option<Value> {
        let invoked = self.history.now();
        let reply = get(socket, &format!("/secrets/{name}")).ok()?;
        let shown = reply.json().ok()?;
        let found = match reply.status {
            200 => Some(value_of(&shown)?),
            404 => None,
            _ => return None,
        };
        self.history.record(client, name, Action::Read, Outcome::Found(found), invoked);
        found.map(|_| shown)
    }

    /// Sees many names at once; done, or unknown.
    fn list(&self, client: usize, socket: &Path, keys: std::ops::Range<u64>) -> Result<Outcome> {
        let invoked = self.history.now();
        let Ok(reply) = get(socket, "/secrets") else { return Ok(Outcome::Unknown) };
        if reply.status != 200 {
            return Ok(Outcome::Unknown);
        }
        let listed = reply.json()?;
        let listed = listed.as_array().context("no list")?;
        for name in keys.map(|key| self.name(key)) {
            let found = listed.iter().find(|one| one["Spec"]["Name"] == *name).and_then(value_of);
            self.history.record(client, &name, Action::Read, Outcome::Found(found), invoked);
        }
        Ok(Outcome::Done)
    }
}

fn get(socket: &Path, path: &str) -> Result<Reply> {
    Http::connect_within(socket, PATIENCE)?.get(path)
}

fn value_of(secret: &Value) -> Option<u64> {
    secret["Spec"]["Labels"][LABEL].as_str()?.parse().ok()
}

fn outcome_of(reply: &Reply) -> Outcome {
    let is_stale = || reply.message().is_ok_and(|text| text.contains("update out of sequence"));
    match reply.status {
        200..=299 => Outcome::Done,
        404 | 409 => Outcome::Refused,
        400..=499 => Outcome::Failed,
        500 if is_stale() => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

/// Numbers by chance (xorshift); good enough to choose among a few.
fn draw(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 8
}
