//! A node's life as a client sees it: what was acknowledged, and what was not.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skep_integration::{Node, busybox_tar, wait_until};

use crate::tracer::{Point, Strike, Subject, Traced};
use crate::{BOUND, names, running, settled, supervisors};

const SERVICE: &str = "crashed";

/// What the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    Image,
    FirstSecret,
    Service,
    SecondSecret,
    ServiceGone,
    FirstSecretGone,
    Left,
}

/// A life that was cut short.
#[derive(Debug)]
pub(crate) struct Life {
    /// What got a 2xx.
    pub(crate) done: BTreeSet<Wish>,
    /// What got no answer.
    pub(crate) open: Option<Wish>,
    /// Changes to files until then.
    pub(crate) points: Vec<Point>,
}

/// Starts a daemon on the node's directory and lives until it dies, or stops it at the end.
pub(crate) fn live(node: &Node, strike: Strike) -> Result<Life> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(node.log_path())?;
    let mut command = Command::new(node.binary());
    command.args(node.daemon_args()).stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log);
    let traced = Traced::start(Subject::Start(command), &node.data_root(), strike)?;
    let mut client = Client { node, traced: &traced, done: BTreeSet::new(), open: None };
    let lived = client.live();
    let (done, open) = (client.done, client.open);
    if let (Err(error), false) = (&lived, traced.has_ended()) {
        // The daemon dies before its client can know.
        let dead = wait_until("its end", BOUND, || Ok(traced.has_ended().then_some(())));
        if dead.is_err() {
            kill(Pid::from_raw(traced.pid()), Signal::SIGKILL).ok();
            bail!("a failure without a crash: {error:#}\n{}", node.log_tail());
        }
    }
    Ok(Life { done, open, points: traced.end()? })
}

struct Client<'a> {
    node: &'a Node,
    traced: &'a Traced,
    done: BTreeSet<Wish>,
    open: Option<Wish>,
}

impl Client<'_> {
    fn live(&mut self) -> Result<()> {
        self.wait("the socket", |node| Ok(node.get("/info").is_ok()))?;
        let tar = std::fs::read(busybox_tar(self.node.root())?)?;
        let path = "/images/create?fromSrc=-&repo=busybox&tag=latest";
        self.ask(Wish::Image, "POST", path, "application/x-tar", &tar)?;
        self.create(Wish::FirstSecret, "/secrets/create", &secret("first"))?;
        self.create(Wish::Service, "/services/create", &service(self.node)?)?;
        self.wait("two tasks", |node| Ok(running(node, SERVICE)?.len() == 2))?;
        self.create(Wish::SecondSecret, "/secrets/create", &secret("second"))?;

        let before = running(self.node, SERVICE)?;
        let (ended, pid) = before.first_key_value().context("no task")?;
        kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL)?;
        self.wait("its replacement", |node| {
            let now = running(node, SERVICE)?;
            Ok(now.len() == 2 && !now.contains_key(ended))
        })?;

        let remove = format!("/services/{SERVICE}");
        self.ask(Wish::ServiceGone, "DELETE", &remove, "application/json", b"")?;
        self.wait("the end of the tasks", |node| Ok(supervisors(node)?.is_empty()))?;
        self.ask(Wish::FirstSecretGone, "DELETE", "/secrets/first", "application/json", b"")?;
        self.ask(Wish::Left, "POST", "/swarm/leave?force=true", "application/json", b"")?;
        kill(Pid::from_raw(self.traced.pid()), Signal::SIGTERM)?;
        self.wait("the end of the daemon", |_| Ok(self.traced.has_ended()))
    }

    /// Waits for something, unless the daemon dies.
    fn wait(&self, what: &str, mut ready: impl FnMut(&Node) -> Result<bool>) -> Result<()> {
        wait_until(what, BOUND, || match ready(self.node) {
            Ok(true) => Ok(Some(())),
            _ if self.traced.has_ended() => bail!("the daemon died"),
            _ => Ok(None),
        })
    }

    fn create(&mut self, wish: Wish, path: &str, body: &Value) -> Result<()> {
        self.ask(wish, "POST", path, "application/json", body.to_string().as_bytes())
    }

    fn ask(&mut self, wish: Wish, verb: &str, path: &str, kind: &str, body: &[u8]) -> Result<()> {
        self.open = Some(wish);
        let reply = self.node.http()?.request(verb, path, kind, body)?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let is_cut = wish == Wish::Image && !text.contains("sha256:");
        ensure!((200..300).contains(&reply.status) && !is_cut, "{wish:?}: {reply:?}");
        self.done.insert(wish);
        self.open = None;
        Ok(())
    }
}

fn secret(name: &str) -> Value {
    json!({ "Name": name, "Labels": {}, "Data": "cGF5bG9hZA==" })
}

fn service(node: &Node) -> Result<Value> {
    let secret = node.get("/secrets/first")?["ID"].as_str().context("ID")?.to_owned();
    let file = json!({ "Name": "first", "UID": "0", "GID": "0", "Mode": 0o444 });
    let grant = json!({ "File": file, "SecretID": secret, "SecretName": "first" });
    Ok(json!({
        "Name": SERVICE,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "busybox:latest",
                "Command": ["sleep", "1000000"],
                "Secrets": [grant],
                "StopGracePeriod": 100_000_000,
            },
            "RestartPolicy": { "Condition": "any", "Delay": 100_000_000 },
        },
        "Mode": { "Replicated": { "Replicas": 2 } },
    }))
}

/// A node that has left its swarm keeps nothing that could read what it held.
fn has_forgotten(node: &Node) -> Result<()> {
    for name in ["storage.key", "key.pem", "cert.pem", "raft"] {
        ensure!(!node.data_root().join(name).exists(), "{name} is left");
    }
    ensure!(supervisors(node)?.is_empty(), "{:?}", supervisors(node)?);
    crate::nothing_unfinished(node)
}

/// Starts the node again; everything acknowledged must be there, and nothing else.
pub(crate) fn check(node: &Node, life: &Life) -> Result<()> {
    node.launch()?;
    let is = |wish| life.done.contains(&wish);
    let may = |wish| is(wish) || life.open == Some(wish);
    let is_member = node.get("/info")?["Swarm"]["LocalNodeState"] == "active";
    ensure!(if is_member { !is(Wish::Left) } else { may(Wish::Left) }, "a member: {is_member}");
    if !is_member {
        return has_forgotten(node);
    }
    let images = node.get("/images/json")?;
    let has_image = images.as_array().is_some_and(|list| !list.is_empty());
    ensure!((!is(Wish::Image) || has_image) && (may(Wish::Image) || !has_image), "{images}");

    let secrets = names(&node.get("/secrets")?);
    for (name, made, gone) in [
        ("first", Wish::FirstSecret, Some(Wish::FirstSecretGone)),
        ("second", Wish::SecondSecret, None),
    ] {
        let there = secrets.iter().any(|secret| secret == name);
        let must = is(made) && !gone.is_some_and(may);
        let can = may(made) && !gone.is_some_and(is);
        ensure!((there || !must) && (!there || can), "secret {name}: {secrets:?}");
    }
    ensure!(secrets.len() <= 2, "{secrets:?}");

    let services = names(&node.get("/services")?);
    let (must, can) = (
        is(Wish::Service) && !may(Wish::ServiceGone),
        may(Wish::Service) && !is(Wish::ServiceGone),
    );
    let is_right = if services.is_empty() { !must } else { can && services == [SERVICE] };
    ensure!(is_right, "{services:?}");
    if !services.is_empty() {
        let tasks = settled(node, SERVICE, 2)?;
        for task in &tasks {
            let pid = running(node, SERVICE)?.get(task).copied().context("it went")?;
            let read = std::fs::read(format!("/proc/{pid}/root/run/secrets/first"))?;
            ensure!(read == b"payload", "the secret in {task}");
        }
        let reply = node.http()?.request("DELETE", "/services/crashed", "application/json", b"")?;
        ensure!(reply.status == 200, "{reply:?}");
    }
    crate::nothing_left(node)?;
    crate::nothing_unfinished(node)
}
