//! One engine under measurement: its daemon, started afresh in a directory of its own.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skep_integration::{Cluster, PORT, name_of, wait_until};

use crate::client::{Client, request};
use crate::clock::{ms_since, now_ns};
use crate::image;

/// Longest start or stop of a daemon.
const DAEMON: Duration = Duration::from_secs(90);
/// Gives the daemon a network and a mount table of its own, so that nothing of it stays.
const APART: &str = "busybox ip link set lo up && exec \"$@\"";

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Skep,
    Docker,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Skep => "skep",
            Self::Docker => "docker",
        }
    }

    /// Fewer rounds for the engine that takes longer.
    pub(crate) fn rounds(self, most: usize) -> usize {
        if self == Self::Skep { most } else { most.div_ceil(2) }
    }
}

/// Where in a network an engine is.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) network: Arc<Cluster>,
    /// Its number there.
    pub(crate) at: usize,
}

/// A running engine. Dropping it takes away what it started and its directory.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) kind: Kind,
    pub(crate) image: String,
    root: PathBuf,
    /// Where the engine keeps what does not last: in memory, as in real life.
    run: PathBuf,
    /// Where probes leave their stamps.
    stamps: PathBuf,
    program: PathBuf,
    /// Alone without one.
    site: Option<Site>,
    daemon: Option<Child>,
    began_ns: u64,
}

impl Engine {
    /// Starts a daemon of `program` in a new directory, makes a swarm, imports the probe.
    pub(crate) fn start(kind: Kind, program: &Path) -> Result<Self> {
        let mut engine = Self::prepare(kind, program)?;
        engine.launch()?;
        engine.await_ready("/info")?;
        engine.init_swarm()?;
        engine.image = engine.import()?;
        Ok(engine)
    }

    /// A directory without a daemon.
    pub(crate) fn prepare(kind: Kind, program: &Path) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("skep-bench.").tempdir()?.keep();
        Self::lay_out(kind, program, &root, root.join("stamp"), None)
    }

    /// As [`Engine::prepare`] in a network, whose engines share the directory of their stamps.
    pub(crate) fn prepare_at(kind: Kind, program: &Path, site: Site) -> Result<Self> {
        // Below the network's directory: what it leaves goes with that.
        let top = site.network.root().to_owned();
        let root = top.join(format!("bench-{}", site.at));
        fs::create_dir(&root)?;
        Self::lay_out(kind, program, &root, top.join("stamp"), Some(site))
    }

    fn lay_out(
        kind: Kind,
        program: &Path,
        root: &Path,
        stamps: PathBuf,
        site: Option<Site>,
    ) -> Result<Self> {
        let run = tempfile::Builder::new().prefix("skep-bench.").tempdir_in("/run")?.keep();
        fs::create_dir_all(&stamps)?;
        fs::set_permissions(&stamps, Permissions::from_mode(0o777))?;
        let (root, program, image) = (root.to_owned(), program.to_owned(), String::new());
        Ok(Self { kind, image, root, run, stamps, program, site, daemon: None, began_ns: 0 })
    }

    /// Starts the daemon; it may not answer yet.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.root.join("log"))?;
        self.began_ns = now_ns();
        let mut command = Command::new("unshare");
        match &self.site {
            None => {
                command.args(["--net", "--mount", "/bin/sh", "-c", APART, "sh"]);
            }
            Some(site) => {
                command.arg("--mount");
                site.network.enter(site.at, &mut command)?;
            }
        }
        let child = command
            .arg(&self.program)
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.daemon = Some(child);
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let below = |name: &str| self.root.join(name).display().to_string();
        let socket = format!("unix://{}", self.socket().display());
        let words: Vec<String> = match self.kind {
            Kind::Skep => {
                let (name, listen) = match &self.site {
                    None => ("bench".to_owned(), "127.0.0.1:0"),
                    Some(site) => (name_of(site.at), "0.0.0.0:2377"),
                };
                vec![
                    "daemon".into(),
                    format!("--data-root={}", below("data")),
                    format!("--run-root={}", self.run.display()),
                    format!("--host={socket}"),
                    format!("--node-name={name}"),
                    format!("--listen-addr={listen}"),
                    format!("--advertise-addr={}", self.address()),
                    "--log-level=warn".into(),
                ]
            }
            Kind::Docker => vec![
                format!("--data-root={}", below("data")),
                format!("--exec-root={}", self.run.display()),
                format!("--pidfile={}", below("pid")),
                format!("--host={socket}"),
            ],
        };
        words
    }

    /// Waits until `path` answers 200; returns the milliseconds since the launch.
    pub(crate) fn await_ready(&mut self, path: &str) -> Result<f64> {
        let get = request("GET", path, "", None);
        let end = now_ns() + u64::try_from(DAEMON.as_nanos())?;
        while now_ns() < end {
            if let Some(status) = self.daemon()?.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.kind.name(), self.log_tail());
            }
            if self.client().send(&get).is_ok_and(|reply| reply.status == 200) {
                return Ok(ms_since(self.began_ns));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("{} does not answer {path}", self.kind.name())
    }

    /// Makes a swarm of one; returns the milliseconds until secrets may be asked for.
    pub(crate) fn init_swarm(&mut self) -> Result<f64> {
        let began = now_ns();
        let address = self.address();
        let body = json!({"ListenAddr": format!("{address}:{PORT}"), "AdvertiseAddr": address});
        let mut client = self.client();
        client.post("/swarm/init", &body)?;
        wait_until("the secrets of a new swarm", DAEMON, || Ok(client.get("/secrets").ok()))?;
        Ok(ms_since(began))
    }

    /// Makes it a member of the swarm of another; returns when the request was sent and the
    /// milliseconds until its answer.
    pub(crate) fn join(&self, other: &Self, token: &str) -> Result<(u64, f64)> {
        let address = self.address();
        let body = json!({
            "ListenAddr": format!("{address}:{PORT}"), "AdvertiseAddr": address,
            "RemoteAddrs": [format!("{}:{PORT}", other.address())], "JoinToken": token,
        });
        let mut client = self.client();
        client.get("/_ping").ok();
        let sent_ns = now_ns();
        client.post("/swarm/join", &body)?;
        Ok((sent_ns, ms_since(sent_ns)))
    }

    /// Where in a network it is.
    pub(crate) fn site(&self) -> Option<&Site> {
        self.site.as_ref()
    }

    /// What it advertises.
    pub(crate) fn address(&self) -> Ipv4Addr {
        let site = self.site.as_ref();
        site.map_or(Ipv4Addr::LOCALHOST, |site| site.network.address(site.at))
    }

    /// Copies the image of another: it has the same id here.
    pub(crate) fn copy_image(&mut self, other: &Self) -> Result<()> {
        let saved = request("GET", &format!("/images/{}/get", other.image), "", None);
        let tar = other.client().send(&saved)?;
        ensure!(tar.status == 200, "image save: {}", String::from_utf8_lossy(&tar.body));
        let load = request("POST", "/images/load", "application/x-tar", Some(&tar.body));
        let reply = self.client().send(&load)?;
        ensure!(reply.status == 200, "image load: {}", String::from_utf8_lossy(&reply.body));
        self.image.clone_from(&other.image);
        let path = format!("/images/{}/json", self.image);
        self.client().get(&path).map(drop)
    }

    /// Imports the probe's image; returns its id: an id is looked up in no registry.
    pub(crate) fn import(&self) -> Result<String> {
        let path = "/images/create?fromSrc=-&repo=bench&tag=latest";
        let mut client = self.client();
        let tar = image::probe()?;
        let reply = client.send(&request("POST", path, "application/x-tar", Some(&tar)))?;
        ensure!(reply.status == 200, "import: {}", String::from_utf8_lossy(&reply.body));
        let image = client.get("/images/bench:latest/json")?;
        Ok(image["Id"].as_str().context("an image without id")?.to_owned())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("engine.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// Where probes leave their stamps.
    pub(crate) fn stamps(&self) -> PathBuf {
        self.stamps.clone()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    pub(crate) fn pid(&self) -> Result<i32> {
        let child = self.daemon.as_ref().context("no daemon")?;
        Ok(i32::try_from(child.id())?)
    }

    /// The daemon's program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The last of what the daemon said.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.root.join("log")).unwrap_or_default();
        let start = log.len().saturating_sub(4096);
        String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
    }

    fn daemon(&mut self) -> Result<&mut Child> {
        self.daemon.as_mut().context("no daemon")
    }

    /// Sends the daemon a signal and waits for its end.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), signal)?;
        self.await_end()
    }

    /// Waits for the end of a daemon that was sent a signal.
    pub(crate) fn await_end(&mut self) -> Result<()> {
        wait_until("the end of a daemon", DAEMON, || Ok(self.has_ended().then_some(())))
    }

    /// Whether its daemon has ended, or there is none.
    pub(crate) fn has_ended(&mut self) -> bool {
        let Some(child) = self.daemon.as_mut() else { return true };
        let has_ended = !matches!(child.try_wait(), Ok(None));
        if has_ended {
            self.daemon = None;
        }
        has_ended
    }

    /// Kills all processes of the engine at once, its tasks too; returns when.
    pub(crate) fn kill_all(&mut self) -> Result<u64> {
        let pids = self.processes()?.all();
        let began_ns = now_ns();
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        // What was being started meanwhile.
        for pid in self.processes()?.all() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        if let Some(mut child) = self.daemon.take() {
            child.wait()?;
        }
        Ok(began_ns)
    }

    /// Processes of the engine by what they are for.
    pub(crate) fn processes(&self) -> Result<Processes> {
        let root = self.root.display().to_string() + "/";
        let run = self.run.display().to_string() + "/";
        let is_ours = |line: &str| line.contains(&root) || line.contains(&run);
        let mut parents = BTreeMap::new();
        let mut named = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(2));
            parents.insert(pid, parent.and_then(|text| text.parse().ok()).unwrap_or(0));
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_own = pid == i32::try_from(std::process::id())?;
            if !is_own && (is_ours(&line) || line.contains("/probe ")) {
                named.push((pid, line));
            }
        }
        let mut found = Processes::default();
        for (pid, line) in named {
            let is_supervisor = line.contains("containerd-shim") || line.contains(" shim ");
            if line.contains("/probe ") && !is_ours(&line) {
                found.probes.push(pid);
            } else if is_supervisor {
                found.supervisors.push(pid);
            } else {
                found.engine.push(pid);
            }
        }
        // Another engine's probes are not this one's.
        let supervisors = found.supervisors.clone();
        found.probes.retain(|pid| parents.get(pid).is_some_and(|it| supervisors.contains(it)));
        Ok(found)
    }
}

/// Process ids of an engine.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    /// The daemon and what else runs once per node.
    pub(crate) engine: Vec<i32>,
    /// What runs once per task.
    pub(crate) supervisors: Vec<i32>,
    /// The tasks themselves.
    pub(crate) probes: Vec<i32>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.site.is_none() {
            self.clear();
        }
        self.kill_all().ok();
        fs::remove_dir_all(&self.root).ok();
        fs::remove_dir_all(&self.run).ok();
    }
}

impl Engine {
    /// Removes its services and stops the daemon.
    fn clear(&mut self) {
        let services = self.client().get("/services").unwrap_or(Value::Null);
        for service in services.as_array().into_iter().flatten() {
            let id = service["ID"].as_str().unwrap_or_default();
            self.client().call("DELETE", &format!("/services/{id}"), None).ok();
        }
        if self.daemon.is_some() {
            self.await_no_probe().ok();
            self.end(Signal::SIGTERM).ok();
        }
    }

    pub(crate) fn await_no_probe(&self) -> Result<()> {
        wait_until("the end of all tasks", DAEMON, || {
            Ok(self.processes()?.supervisors.is_empty().then_some(()))
        })
    }
}

impl Processes {
    pub(crate) fn all(self) -> Vec<i32> {
        [self.engine, self.supervisors, self.probes].concat()
    }
}
