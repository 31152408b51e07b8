//! What most scenarios share: one daemon per test process, names that do not clash, and the few
//! steps that each of them takes.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;

use crate::cli::{Cli, Program};
use crate::node::{Node, Options};
use crate::wait::wait_until;

/// Longest wait for tasks to come or go.
const TASKS: Duration = Duration::from_secs(30);

/// The node that all scenarios of this test process share, with the busybox image.
pub fn shared() -> Result<&'static Node> {
    static SHARED: OnceLock<Result<Node, String>> = OnceLock::new();
    let started = SHARED.get_or_init(|| {
        let node = Node::start(Options::default()).map_err(|error| format!("{error:#}"))?;
        node.import_busybox().map_err(|error| format!("{error:#}"))?;
        Ok(node)
    });
    started.as_ref().map_err(|error| anyhow!("the shared node: {error}"))
}

/// Runs one scenario on the shared node by one client.
pub fn run_by(
    program: Program,
    name: &'static str,
    scenario: fn(&Bench) -> Result<()>,
) -> Result<()> {
    match tag_of(program, name)? {
        Some(tag) => scenario(&Bench::new(shared()?, program, tag)),
        None => Ok(()),
    }
}

/// What ends the names of a scenario's objects; nothing, and a message, if its client is missing.
pub fn tag_of(program: Program, name: &str) -> Result<Option<String>> {
    if program == Program::Docker && !has_docker() {
        writeln!(std::io::stderr(), "{name}: no docker CLI on the PATH: not run")?;
        return Ok(None);
    }
    let number = name.split('_').next().unwrap_or(name);
    let letter = if program == Program::Docker { 'd' } else { 's' };
    Ok(Some(format!("{number}{letter}")))
}

fn has_docker() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let mut command = Command::new("docker");
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// One scenario's place: a client of a node, and what it makes there.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The node.
    pub node: &'a Node,
    /// The client that drives it.
    pub cli: Cli,
    tag: String,
    services: Mutex<Vec<String>>,
}

impl<'a> Bench<'a> {
    /// `tag` ends every name, so that scenarios share a node.
    pub fn new(node: &'a Node, program: Program, tag: String) -> Self {
        Self { node, cli: node.cli(program), tag, services: Mutex::default() }
    }

    /// `base` as this scenario calls it.
    pub fn name(&self, base: &str) -> String {
        format!("{base}-{}", self.tag)
    }

    /// Makes a secret; answers its name.
    pub fn secret(&self, base: &str, payload: impl AsRef<[u8]>) -> Result<String> {
        let name = self.name(base);
        self.cli.ok_with(&["secret", "create", &name, "-"], payload.as_ref())?;
        Ok(name)
    }

    /// Makes a detached service of busybox that sleeps; answers its name. It goes with the bench.
    pub fn sleeper(&self, base: &str, flags: &[&str]) -> Result<String> {
        self.service(base, flags, &["sleep", "1000000"])
    }

    /// Makes a detached service of busybox; answers its name. It goes with the bench.
    ///
    /// Its tasks get little grace: the first process of a container ignores the stop signal.
    pub fn service(&self, base: &str, flags: &[&str], command: &[&str]) -> Result<String> {
        let name = self.name(base);
        self.adopt(&name);
        let fixed: &[&str] =
            &["service", "create", "--detach", "--stop-grace-period", "100ms", "--name", &name];
        let args = [fixed, flags, &["busybox:latest"], command].concat();
        self.cli.ok(&args)?;
        Ok(name)
    }

    /// Has a service removed with the bench.
    pub fn adopt(&self, service: &str) {
        self.services.lock().unwrap_or_else(PoisonError::into_inner).push(service.to_owned());
    }

    /// Running containers of a service: their ids, by slot.
    pub fn containers(&self, service: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for container in self.node.get("/containers/json")?.as_array().into_iter().flatten() {
            if container["Labels"]["com.docker.swarm.service.name"] == service
                && container["State"] == "running"
            {
                found.push((text(&container["Names"][0]), text(&container["Id"])));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, id)| id).collect())
    }

    /// Waits for exactly `count` running containers.
    pub fn running(&self, service: &str, count: usize) -> Result<Vec<String>> {
        self.replaced(service, &[], count)
    }

    /// Waits for exactly `count` running containers, none of which is one of `old`.
    pub fn replaced(&self, service: &str, old: &[String], count: usize) -> Result<Vec<String>> {
        let mut last = Vec::new();
        let found = wait_until("the containers", TASKS, || {
            last = self.containers(service)?;
            let done = last.len() == count && !last.iter().any(|id| old.contains(id));
            Ok(done.then(|| last.clone()))
        });
        found.map_err(|error| {
            let tasks = self.cli.run(&["service", "ps", "--no-trunc", service]);
            let tasks = tasks.map(|out| out.stdout + &out.stderr).unwrap_or_default();
            anyhow!("{error}; {service} has {last:?}\n{tasks}\n{}", self.node.log_tail())
        })
    }

    /// Waits for the one running container of a service.
    pub fn container(&self, service: &str) -> Result<String> {
        Ok(self.running(service, 1)?.remove(0))
    }

    /// Runs a command in a container; it must succeed.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        self.cli.ok(&[&["exec", container], command].concat())
    }

    /// Runs a command in a container as another user; answers exit code and both outputs.
    pub fn exec_as(&self, user: &str, container: &str, command: &[&str]) -> Result<(i32, String)> {
        let out = self.cli.run(&[&["exec", "--user", user, container], command].concat())?;
        Ok((out.code, out.stdout + &out.stderr))
    }

    /// First object of an `inspect`.
    pub fn inspect(&self, kind: &str, name: &str) -> Result<Value> {
        let all: Value = serde_json::from_str(&self.cli.ok(&[kind, "inspect", name])?)?;
        ensure!(all.as_array().is_some_and(|list| list.len() == 1), "{kind} inspect {name}: {all}");
        Ok(all[0].clone())
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        let services = self.services.get_mut().unwrap_or_else(PoisonError::into_inner);
        for service in services.drain(..) {
            // Gone already in most scenarios that remove it themselves.
            self.cli.run(&["service", "rm", &service]).ok();
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
