//! One node: a daemon with data and run root of its own.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cli::{Cli, Output, Program, finish};
use crate::clock::Clock;
use crate::http::Http;
use crate::namespace;
use crate::wait::wait_until;

/// Longest start of a daemon until its socket answers.
const START: Duration = Duration::from_secs(20);
/// Longest clean stop.
const STOP: Duration = Duration::from_secs(20);

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `daemon` instead of `up`: waits for `swarm init`.
    pub inactive: bool,
    /// Further node options.
    pub args: Vec<String>,
    /// A shell script that runs before the daemon, in a mount namespace that it shares with it
    /// alone. `$1` is the data root.
    pub mounts: Option<&'static str>,
    /// Its place in a network; without one it is alone, on loopback and a port that it picks.
    pub place: Option<Place>,
    /// Lets [`Node::clock_jump`] move the daemon's wall clock.
    pub movable_clock: bool,
}

/// Where in a network a node is.
#[derive(Debug, Clone)]
pub struct Place {
    /// `--node-name`.
    pub name: String,
    /// Its network namespace, by path.
    pub namespace: PathBuf,
    /// Its address there; the port is skep's own.
    pub address: Ipv4Addr,
}

/// A running node. Dropping it takes away its processes, mounts, cgroups and files.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    binary: PathBuf,
    options: Options,
    daemon: Mutex<Option<Child>>,
    clock: Mutex<Option<Clock>>,
    /// What it advertises in a network.
    address: Mutex<Option<Ipv4Addr>>,
    guardian: Guardian,
}

impl Node {
    /// Starts a node and waits until its socket answers.
    pub fn start(options: Options) -> Result<Self> {
        let node = Self::prepare(options)?;
        node.launch()?;
        Ok(node)
    }

    /// Makes a node's directory and guardian without starting a daemon.
    pub fn prepare(options: Options) -> Result<Self> {
        let binary = binary()?;
        let root = tempfile::Builder::new().prefix("skep-test.").tempdir()?.keep();
        fs::create_dir(root.join("home"))?;
        let guardian = Guardian::of(&root, &[], Stdio::null())?;
        let address = Mutex::new(options.place.as_ref().map(|place| place.address));
        let (daemon, clock) = (Mutex::new(None), Mutex::new(None));
        Ok(Self { root, binary, options, daemon, clock, address, guardian })
    }

    /// Starts the daemon and waits until its socket answers.
    pub fn launch(&self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = match self.options.mounts {
            None => Command::new(&self.binary),
            Some(script) => {
                let mut shell = Command::new("unshare");
                let script = format!("set -e; {script}; shift; exec \"$@\"");
                shell.args(["--mount", "sh", "-c", &script, "sh"]).arg(self.data_root());
                shell.arg(&self.binary);
                shell
            }
        };
        command.args(self.daemon_args()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(place) = &self.options.place {
            namespace::enter(&mut command, &place.namespace)?;
        }
        if self.options.movable_clock {
            let (child, clock) = Clock::start(&mut command)?;
            *self.daemon() = Some(child);
            *lock(&self.clock) = Some(clock);
        } else {
            *self.daemon() = Some(command.spawn().context("start the daemon")?);
        }
        self.await_ready()
    }

    /// The daemon's command line after the program's name.
    pub fn daemon_args(&self) -> Vec<String> {
        let verb = if self.options.inactive { "daemon" } else { "up" };
        let data = self.data_root().display().to_string();
        let run = self.run_root().display().to_string();
        let name = self.options.place.as_ref().map_or("node-1", |place| &place.name);
        let advertised = lock(&self.address).unwrap_or(Ipv4Addr::LOCALHOST).to_string();
        let fixed = [verb, "--data-root", &data, "--run-root", &run];
        let named = ["--node-name", name, "--advertise-addr", &advertised];
        let listen: &[&str] = match self.options.place {
            None => &["--listen-addr", "127.0.0.1:0"],
            Some(_) => &[],
        };
        let words = fixed.iter().chain(&named).chain(listen).map(|word| (*word).to_owned());
        words.chain(self.options.args.clone()).collect()
    }

    /// Runs the binary to its end with these arguments.
    pub fn run_binary(&self, args: &[String], bound: Duration) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(place) = &self.options.place {
            namespace::enter(&mut command, &place.namespace)?;
        }
        let child = command.spawn()?;
        finish(child, b"", bound, args.join(" "))
    }

    fn await_ready(&self) -> Result<()> {
        let answers = wait_until("the node's socket", START, || {
            if let Some(status) = self.ended()? {
                bail!("the daemon ended with {status}");
            }
            Ok(self.get("/info").ok())
        });
        let info = answers.with_context(|| format!("log:\n{}", self.log_tail()))?;
        self.record_id(&info)
    }

    /// Tells the guardian which cgroups are this node's, once it is of a swarm.
    fn record_id(&self, info: &Value) -> Result<()> {
        match info["Swarm"]["NodeID"].as_str() {
            None | Some("") => Ok(()),
            Some(id) => Ok(fs::write(self.root.join("node-id"), id)?),
        }
    }

    /// Its node id; an error while it is of no swarm.
    pub fn id(&self) -> Result<String> {
        let info = self.get("/info")?;
        self.record_id(&info)?;
        fs::read_to_string(self.root.join("node-id")).context("the node is of no swarm")
    }

    fn ended(&self) -> Result<Option<ExitStatus>> {
        match self.daemon().as_mut() {
            Some(child) => Ok(child.try_wait()?),
            None => bail!("no daemon was started"),
        }
    }

    /// Process id of the daemon.
    pub fn daemon_pid(&self) -> Result<i32> {
        let daemon = self.daemon();
        let child = daemon.as_ref().context("the daemon is not running")?;
        Ok(i32::try_from(child.id())?)
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.daemon_pid()?), signal).context("signal the daemon")
    }

    /// `kill -9` of the daemon alone.
    pub fn kill_daemon(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.await_end().map(drop)
    }

    /// SIGTERM, and the daemon's exit status.
    pub fn stop_daemon(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.await_end()
    }

    /// Sets the daemon's wall clock ahead by `by_s` seconds of the machine's, back if negative, until the
    /// daemon ends. Its other clocks and its shims go on as they are.
    pub fn clock_jump(&self, by_s: i64) -> Result<()> {
        let clock = lock(&self.clock);
        clock.as_ref().context("started without a movable clock")?.set_offset(by_s)
    }

    /// Whether a daemon was started and neither ended nor was ended.
    pub fn is_up(&self) -> bool {
        self.daemon().is_some() && self.ended().is_ok_and(|status| status.is_none())
    }

    /// What its next daemon advertises.
    pub fn set_address(&self, address: Ipv4Addr) {
        *lock(&self.address) = Some(address);
    }

    fn await_end(&self) -> Result<ExitStatus> {
        let status = wait_until("the end of the daemon", STOP, || self.ended())?;
        *self.daemon() = None;
        Ok(status)
    }

    /// Directory of everything that is this node's.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `--data-root`.
    pub fn data_root(&self) -> PathBuf {
        self.root.join("data")
    }

    /// `--run-root`.
    pub fn run_root(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The local API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_root().join("skep.sock")
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A client of this node.
    pub fn cli(&self, program: Program) -> Cli {
        let binary = match program {
            Program::Docker => PathBuf::from("docker"),
            Program::Skep => self.binary.clone(),
        };
        Cli::new(program, binary, &self.socket(), &self.root.join("home"))
    }

    /// skep's own client.
    pub fn skep(&self) -> Cli {
        self.cli(Program::Skep)
    }

    /// A fresh connection to the socket.
    pub fn http(&self) -> Result<Http> {
        Http::connect(&self.socket())
    }

    /// Fetches JSON; anything but 200 is an error.
    pub fn get(&self, path: &str) -> Result<Value> {
        let reply = self.http()?.get(path)?;
        ensure!(reply.status == 200, "GET {path}: {} {:?}", reply.status, reply.message());
        reply.json()
    }

    /// Makes the image `busybox:latest` of a locally built root filesystem.
    pub fn import_busybox(&self) -> Result<()> {
        let tar = fs::read(busybox_tar(&self.root)?)?;
        let path = "/images/create?fromSrc=-&repo=busybox&tag=latest";
        let reply = self.http()?.request("POST", path, "application/x-tar", &tar)?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == 200 && !text.contains("errorDetail"), "{}: {text}", reply.status);
        Ok(())
    }

    /// Where the daemon's output goes.
    pub fn log_path(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The last of the daemon's output.
    pub fn log_tail(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(self.log_path()) {
            log.read_to_end(&mut text).ok();
        }
        let start = text.len().saturating_sub(4096);
        String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned()
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        lock(&self.daemon)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.guardian.clear();
        if let Some(mut daemon) = self.daemon().take() {
            daemon.wait().ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that takes away a directory, with the processes, cgroups and namespaces that go with
/// it, when this process is done with it or ends, however that may be.
#[derive(Debug)]
pub(crate) struct Guardian(Child);

impl Guardian {
    /// `held` stays open until all is gone.
    pub(crate) fn of(root: &Path, namespaces: &[String], held: Stdio) -> Result<Self> {
        let child = Command::new("/bin/sh")
            .args(["-c", include_str!("guardian.sh")])
            .env("ROOT", root)
            .env("NAMESPACES", namespaces.join(" "))
            .stdin(Stdio::piped())
            .stdout(held)
            .spawn()
            .context("start the guardian")?;
        Ok(Self(child))
    }

    /// Has it do its work, and waits for that.
    pub(crate) fn clear(&mut self) {
        // It starts when its end of the pipe closes.
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// Path of the binary under test.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("SKEP_BIN") {
        Some(path) => PathBuf::from(path),
        None => repository().join("target/x86_64-unknown-linux-gnu/debug/skep"),
    };
    ensure!(path.is_file(), "{} is missing: run scripts/build, set SKEP_BIN", path.display());
    Ok(path.canonicalize()?)
}

/// The busybox root filesystem: named by `SKEP_BUSYBOX`, or built now.
pub fn busybox_tar(directory: &Path) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKEP_BUSYBOX") {
        return Ok(PathBuf::from(path));
    }
    let path = directory.join("busybox.tar");
    if !path.exists() {
        let made = Command::new(repository().join("scripts/images/busybox"))
            .arg(&path)
            .stdout(Stdio::null())
            .status()?;
        ensure!(made.success(), "scripts/images/busybox failed");
    }
    Ok(path)
}

/// Root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
