//! Plays the daemon to one shim: writes its launch, spawns it, seals payloads to its key, and
//! speaks its protocol over the socket.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde_json::json;
use skep::audit::{Next, Record, next, verify};
use skep::protected::Protected;
use skep::seal::{ShimSeal, random, seal_to_shim};
use skep::wire::launch::{AUDIT_FILE, EXIT_FILE, LAUNCH_FILE, Launch, LaunchFile, SHIM_SOCKET};
use skep::wire::shim::{
    DeliveredItem, Delivery, ExecStart, Exit, FromShim, Hello, ShimState, ShimStatus, ToShim,
};
use skep::wire::{frame, frame_len, parse, read_message, write_message};
use skep_core::id::{ClusterId, MaterialId, NodeId, TaskId, hex};
use skep_core::model::material::MaterialKind;
use skep_core::time::Stamp;
use tempfile::TempDir;

/// Bound of every wait for the shim.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
/// Grants that a task may have.
pub(crate) const GRANTS: usize = 64;
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 15] = [
    "sh", "sleep", "stty", "test", "cat", "id", "ls", "echo", "env", "true", "stat", "tail",
    "touch", "pwd", "kill",
];
const CAPABILITIES: [&str; 6] =
    ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_KILL"];

/// A task before its shim runs.
#[derive(Debug)]
pub(crate) struct Rig {
    dir: TempDir,
    pub(crate) launch: Launch,
    binary: PathBuf,
}

/// What an exec came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) error: Option<String>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Rig {
    /// A task that runs `args` in busybox.
    pub(crate) fn new(args: &[&str]) -> Result<Self> {
        let binary = skep_integration::binary()?;
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir_all(path("task"))?;
        let task = TaskId::from_entropy(random()?);
        let node = NodeId::from_entropy(random()?);
        let launch = Launch {
            task,
            cluster: ClusterId::from_entropy(random()?),
            node,
            container_id: task.container_id(),
            bundle: bundle(args, &format!("/skep/{node}/{task}")),
            layers: vec![layer(&dir.path().join("layer"))?],
            user: String::new(),
            groups: Vec::new(),
            files: Vec::new(),
            task_dir: path("task"),
            run_dir: path("run"),
            runc_root: path("runc"),
            runtime: String::new(),
            cgroup: format!("/skep/{node}/{task}"),
            shim_cgroup: format!("/skep/{node}/shim-{task}"),
            log_file_bytes: 0,
            log_files: 0,
            vault: "auto".into(),
            ulimits: Vec::new(),
            health: None,
            netns: String::new(),
            open_stdin: false,
        };
        Ok(Self { dir, launch, binary })
    }

    /// Grants a secret (or config) and returns its id.
    pub(crate) fn grant(
        &mut self,
        kind: MaterialKind,
        name: &str,
        target: &str,
    ) -> Result<MaterialId> {
        let material = MaterialId::from_entropy(random()?);
        self.grant_again(material, kind, name, target);
        Ok(material)
    }

    /// Shows a granted one at a further target.
    pub(crate) fn grant_again(
        &mut self,
        material: MaterialId,
        kind: MaterialKind,
        name: &str,
        target: &str,
    ) {
        let (name, target) = (name.into(), target.into());
        let file =
            LaunchFile { material, kind, name, target, uid: 0, gid: 0, mode: 0o444, signal: None };
        self.launch.files.push(file);
    }

    /// Changes the runtime config.
    pub(crate) fn edit_bundle(&mut self, edit: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
        let mut bundle = serde_json::from_str(&self.launch.bundle)?;
        edit(&mut bundle);
        self.launch.bundle = bundle.to_string();
        Ok(())
    }

    /// Spawns the shim and connects to it.
    pub(crate) fn spawn(self) -> Result<Shim> {
        let task_dir = Path::new(&self.launch.task_dir);
        let plan = frame(&self.launch);
        fs::write(task_dir.join(LAUNCH_FILE), plan.get(4..).unwrap_or_default())?;
        let mut child = Command::new(&self.binary)
            .args(["shim", "--task"])
            .arg(task_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let stdout = child.stdout.take().context("its output")?;
        BufReader::new(stdout).read_line(&mut said)?;
        ensure!(said == "ready\n", "said {said:?}");
        let (stream, hello) = connect(&self.launch)?;
        Ok(Shim { rig: self, child, stream, hello, sequence: 0 })
    }
}

fn connect(launch: &Launch) -> Result<(UnixStream, Hello)> {
    let mut stream = UnixStream::connect(Path::new(&launch.run_dir).join(SHIM_SOCKET))?;
    stream.set_read_timeout(Some(BOUND))?;
    match read_message(&mut stream)? {
        FromShim::Hello(hello) => Ok((stream, hello)),
        other => bail!("no hello but {other:?}"),
    }
}

/// A running shim with its daemon's connection.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) rig: Rig,
    child: Child,
    pub(crate) stream: UnixStream,
    pub(crate) hello: Hello,
    sequence: u64,
}

impl Shim {
    pub(crate) fn say(&mut self, message: &ToShim) -> Result<()> {
        Ok(write_message(&mut self.stream, message)?)
    }

    pub(crate) fn hear(&mut self) -> Result<FromShim> {
        Ok(read_message(&mut self.stream)?)
    }

    /// Connects anew, as a daemon does after a restart.
    pub(crate) fn reconnect(&mut self) -> Result<()> {
        (self.stream, self.hello) = connect(&self.rig.launch)?;
        Ok(())
    }

    /// Seals and delivers; returns the answer.
    pub(crate) fn deliver(&mut self, items: &[(MaterialId, u64, &str)]) -> Result<FromShim> {
        self.sequence += 1;
        let delivery = self.sealed(self.sequence, items)?;
        self.say(&ToShim::Deliver(delivery))?;
        self.hear()
    }

    /// Revokes, each up to the version named with it; returns the answer.
    pub(crate) fn revoke(&mut self, materials: &[(MaterialId, u64)]) -> Result<FromShim> {
        self.sequence += 1;
        let (sequence, materials) = (self.sequence, materials.to_vec());
        self.say(&ToShim::Revoke { sequence, materials })?;
        self.hear()
    }

    /// A delivery sealed to this shim.
    pub(crate) fn sealed(
        &self,
        sequence: u64,
        items: &[(MaterialId, u64, &str)],
    ) -> Result<Delivery> {
        let launch = &self.rig.launch;
        let seal = |(material, version, text): &(MaterialId, u64, &str)| {
            let to = ShimSeal {
                cluster: launch.cluster,
                node: launch.node,
                task: launch.task,
                key: &self.hello.key,
                material: *material,
                version: *version,
                sequence,
            };
            let sealed = seal_to_shim(&to, Protected::copy_of(text.as_bytes())?)?;
            Ok(DeliveredItem {
                material: *material,
                version: *version,
                created: Stamp(1_600_000_000_000_000_000),
                size: text.len() as u64,
                sealed,
            })
        };
        Ok(Delivery { sequence, items: items.iter().map(seal).collect::<Result<_>>()? })
    }

    /// Starts the container and waits until it runs or has failed.
    pub(crate) fn start(&mut self) -> Result<ShimStatus> {
        self.say(&ToShim::Start)?;
        self.status(|state| matches!(state, ShimState::Running | ShimState::Failed))
    }

    /// Waits for a status.
    pub(crate) fn status(&mut self, wanted: impl Fn(ShimState) -> bool) -> Result<ShimStatus> {
        loop {
            match self.hear()? {
                FromShim::Status(status) if wanted(status.state) => return Ok(status),
                FromShim::Status(_) | FromShim::Audit(_) | FromShim::ExecExited { .. } => {}
                other => bail!("no status but {other:?}"),
            }
        }
    }

    /// An exec that goes on; its output is at the other ends.
    pub(crate) fn exec_start(&mut self, exec: &ExecStart) -> Result<(PipeReader, PipeReader)> {
        let (out, stdout) = std::io::pipe()?;
        let (err, stderr) = std::io::pipe()?;
        let null: OwnedFd = File::open("/dev/null")?.into();
        let fds = [null.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()];
        let bytes = frame(&ToShim::Exec(exec.clone()));
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )?;
        self.stream.write_all(bytes.get(sent..).unwrap_or_default())?;
        Ok((out, err))
    }

    /// An exec with a terminal; its controlling end comes with the answer.
    pub(crate) fn exec_terminal(&mut self, args: &[&str], size: (u16, u16)) -> Result<File> {
        let exec = ExecStart { tty: true, size: Some(size), ..exec(args)? };
        self.say(&ToShim::Exec(exec))?;
        let mut rights = nix::cmsg_space!([RawFd; 1]);
        let mut header = [0; 4];
        let mut into = [IoSliceMut::new(&mut header)];
        let fd = self.stream.as_raw_fd();
        let flags = MsgFlags::MSG_WAITALL;
        let message = recvmsg::<()>(fd, &mut into, Some(&mut rights), flags)?;
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs()?.next() else {
            bail!("no descriptor");
        };
        let mut body = vec![0; frame_len(header)?];
        self.stream.read_exact(&mut body)?;
        ensure!(matches!(parse(&body)?, FromShim::ExecStarted { .. }));
        // SAFETY: the kernel has just made it for this test.
        Ok(unsafe { File::from_raw_fd(*fds.first().context("empty")?) })
    }

    /// Runs an exec to its end.
    pub(crate) fn exec_as(&mut self, exec: &ExecStart) -> Result<Ran> {
        let (mut out, mut err) = self.exec_start(exec)?;
        let (code, error) = loop {
            match self.hear()? {
                FromShim::ExecStarted { id, pid } => ensure!(id == exec.id && pid > 0),
                FromShim::ExecExited { id, code, error } => {
                    ensure!(id == exec.id);
                    break (code, error);
                }
                other => bail!("no exec but {other:?}"),
            }
        };
        let (mut stdout, mut stderr) = (String::new(), String::new());
        out.read_to_string(&mut stdout)?;
        err.read_to_string(&mut stderr)?;
        Ok(Ran { code, error, stdout, stderr })
    }

    pub(crate) fn exec(&mut self, args: &[&str]) -> Result<Ran> {
        self.exec_as(&exec(args)?)
    }

    /// What a successful exec printed.
    pub(crate) fn output(&mut self, args: &[&str]) -> Result<String> {
        let ran = self.exec(args)?;
        ensure!(ran.code == 0 && ran.stderr.is_empty(), "{ran:?}");
        Ok(ran.stdout)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The sentinel: the shim's child that is a shim itself.
    pub(crate) fn sentinel(&self) -> Result<u32> {
        let list = format!("/proc/{0}/task/{0}/children", self.pid());
        for child in fs::read_to_string(list)?.split_whitespace() {
            let line = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if line.contains("--task") {
                return Ok(child.parse()?);
            }
        }
        bail!("no sentinel")
    }

    /// Proportional set size of a process in KiB.
    pub(crate) fn pss_kib(pid: u32) -> Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Waits until the shim has gone.
    pub(crate) fn gone(&mut self) -> Result<std::process::ExitStatus> {
        let child = &mut self.child;
        skep_integration::wait_until("the shim's end", BOUND, || Ok(child.try_wait()?))
    }

    pub(crate) fn exit_record(&self) -> Result<Exit> {
        let path = Path::new(&self.rig.launch.task_dir).join(EXIT_FILE);
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// The audit as it is on the disk, once its chain was checked. A torn end is left out.
    pub(crate) fn audit(&self) -> Result<Vec<Record>> {
        let path = Path::new(&self.rig.launch.task_dir).join(AUDIT_FILE);
        let bytes = fs::read(path).unwrap_or_default();
        let (mut rest, mut bodies) = (bytes.as_slice(), Vec::new());
        while let Next::Record { body, taken } = next(rest) {
            bodies.push(body.to_vec().into());
            rest = &rest[taken..];
        }
        let findings = verify(&self.rig.launch.task, &bodies, &[]);
        ensure!(findings.is_empty(), "{findings:?}");
        bodies.iter().map(|body| Ok(Record::parse(body)?)).collect()
    }

    /// What the container printed, without the framing.
    pub(crate) fn log(&self) -> Result<String> {
        let path = Path::new(&self.rig.launch.task_dir).join("logs/json.log");
        let mut text = String::new();
        for line in fs::read_to_string(path)?.lines() {
            let line: serde_json::Value = serde_json::from_str(line)?;
            text += line["log"].as_str().context("no text")?;
        }
        Ok(text)
    }

    /// Nothing of the task is left: directories, mounts, groups, runtime state.
    pub(crate) fn nothing_left(&self) -> Result<()> {
        let launch = &self.rig.launch;
        let root = self.rig.dir.path();
        skep_integration::settle("the clean-up", BOUND, || {
            let runtime = fs::read_dir(&launch.runc_root).map_or(0, Iterator::count);
            let groups = groups(&[&launch.cgroup, &launch.shim_cgroup]);
            Ok(!Path::new(&launch.run_dir).exists() && runtime == 0 && groups.is_empty())
        })
        .with_context(|| {
            let left: Vec<_> = fs::read_dir(&launch.run_dir).into_iter().flatten().collect();
            format!("{left:?} {:?}", groups(&[&launch.cgroup, &launch.shim_cgroup]))
        })?;
        self.nothing_mounted()?;
        for group in groups(&[&format!("/skep/{}", launch.node)]) {
            fs::remove_dir(group)?;
        }
        ensure!(root.join("layer/bin/busybox").exists(), "the layer was damaged");
        Ok(())
    }

    /// The host's table of mounts knows nothing of the task.
    pub(crate) fn nothing_mounted(&self) -> Result<()> {
        let root = self.rig.dir.path().display().to_string();
        let mounts = skep_integration::mounts_naming(&root)?;
        ensure!(mounts.is_empty(), "{mounts:?}");
        Ok(())
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // The sentinel clears up after it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sequence of an order that was taken as the last one; none if it was not.
pub(crate) fn taken(answer: &FromShim) -> Option<u64> {
    match answer {
        FromShim::Delivered { sequence, last, .. } => (sequence == last).then_some(*sequence),
        _ => None,
    }
}

/// An exec of `args`, with a fresh id.
pub(crate) fn exec(args: &[&str]) -> Result<ExecStart> {
    Ok(ExecStart {
        id: hex(&random::<32>()?),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        tty: false,
        privileged: false,
        size: None,
    })
}

/// Whether a process is gone or a zombie.
pub(crate) fn is_dead(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")),
        Err(_) => true,
    }
}

/// How long a condition takes to come true.
pub(crate) fn time_until(mut holds: impl FnMut() -> bool) -> Result<Duration> {
    let start = Instant::now();
    while !holds() {
        ensure!(start.elapsed() < BOUND, "not within {BOUND:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(start.elapsed())
}

/// Waits until the shell in a container has told the kernel what SIGTERM means to it. Before that
/// the runtime's own first process, or a shell that has not read its script, would take the signal.
pub(crate) fn heeds_term(pid: u32) -> Result<()> {
    let bit = 1_u64 << (Signal::SIGTERM as i32 - 1);
    time_until(|| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.map(str::trim).unwrap_or_default()
        };
        let has = |key| u64::from_str_radix(value(key), 16).is_ok_and(|mask| mask & bit != 0);
        value("Name:") == "sh" && (has("SigIgn:") || has("SigCgt:"))
    })
    .map(drop)
}

fn groups(names: &[&str]) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|e| e.path());
    let tops: Vec<_> = hierarchies.chain([top.to_owned()]).collect();
    let below =
        |name: &str| tops.iter().map(|t| t.join(name.trim_start_matches('/'))).collect::<Vec<_>>();
    names.iter().flat_map(|name| below(name)).filter(|path| path.is_dir()).collect()
}

/// A root of busybox, as a layer.
fn layer(at: &Path) -> Result<String> {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/app"] {
        fs::create_dir_all(at.join(dir))?;
    }
    fs::copy(BUSYBOX, at.join("bin/busybox")).context("install busybox-static")?;
    for applet in APPLETS {
        symlink("busybox", at.join("bin").join(applet))?;
    }
    fs::write(at.join("bin/plain"), "no program\n")?;
    fs::write(
        at.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
    )?;
    fs::write(
        at.join("etc/group"),
        "root:x:0:\nwheel:x:10:root\nappgroup:x:1001:\nlog:x:29:app\n",
    )?;
    Ok(at.display().to_string())
}

fn bundle(args: &[&str], cgroup: &str) -> String {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let namespaces: Vec<_> =
        ["mount", "network", "uts", "pid", "ipc"].iter().map(|n| json!({"type": n})).collect();
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"],
            "cwd": "/",
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES
            },
        },
        "root": {"path": "unknown"},
        "hostname": "box",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ],
        "linux": {"cgroupsPath": cgroup, "namespaces": namespaces, "resources": {}},
    })
    .to_string()
}
