//! From a clone to a node: the scripts that install one, and the image of one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_integration::{Dockerd, binary, busybox_tar, repository, settle, wait_until};

const BOUND: Duration = Duration::from_secs(60);

/// What the unit must say, so that the end of a daemon is the end of nothing else.
const UNIT: [&str; 8] = [
    "Type=notify",
    "KillMode=process",
    "Delegate=yes",
    "OOMPolicy=continue",
    "RuntimeDirectory=skep",
    "RuntimeDirectoryPreserve=yes",
    "TasksMax=infinity",
    "ExecStart=/usr/local/bin/skep daemon $SKEP_OPTIONS",
];
/// Beginnings of options that supervisors would inherit, or that hide the host from the daemon.
const SANDBOX: [&str; 12] = [
    "Private",
    "Protect",
    "Restrict",
    "ReadOnly",
    "Inaccessible",
    "SystemCall",
    "Capability",
    "NoNewPrivileges",
    "MountFlags",
    "RootDirectory",
    "MemoryMax",
    "User",
];

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn script(name: &str, args: &[&str]) -> Result<Ran> {
    let out = Command::new(repository().join("scripts").join(name))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("scripts/{name}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = out.status.code().unwrap_or(-1);
    Ok(Ran { code, stdout: text(out.stdout), stderr: text(out.stderr) })
}

fn fine(name: &str, args: &[&str]) -> Result<String> {
    let ran = script(name, args)?;
    ensure!(ran.code == 0, "scripts/{name} {args:?}: {}{}", ran.stdout, ran.stderr);
    Ok(ran.stdout)
}

fn refused(name: &str, args: &[&str]) -> Result<String> {
    let ran = script(name, args)?;
    ensure!(ran.code == 1, "scripts/{name} {args:?} ended with {}: {}", ran.code, ran.stdout);
    Ok(ran.stderr)
}

/// A root that looks like a machine's.
struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("skep-test.").tempdir()?;
        fs::create_dir(directory.path().join("etc"))?;
        fs::write(directory.path().join("etc/group"), "root:x:0:\n")?;
        Ok(Self { directory })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn text(&self) -> Result<&str> {
        self.directory.path().to_str().context("a path that is not UTF-8")
    }

    fn install(&self, binary: &Path) -> Result<String> {
        let binary = binary.to_str().context("a path that is not UTF-8")?;
        fine("install", &["--root", self.text()?, "--binary", binary])
    }

    fn groups(&self) -> Result<String> {
        Ok(fs::read_to_string(self.at("etc/group"))?)
    }
}

#[test]
fn installs_once_and_uninstalls_what_it_installed() -> Result<()> {
    let root = Root::new()?;
    let program = root.at("usr/local/bin/skep");
    root.install(&binary()?)?;
    ensure!(fs::metadata(&program)?.permissions().mode() & 0o7777 == 0o755, "its mode");
    ensure!(fs::read(&program)? == fs::read(binary()?)?, "another binary");
    ensure!(root.groups()?.lines().filter(|line| line.starts_with("skep:")).count() == 1);
    let again = root.install(&binary()?)?;
    ensure!(again.matches("as it was").count() == 2, "{again}");
    ensure!(root.groups()?.matches("skep:").count() == 1, "a second group");

    let data = root.at("var/lib/skep");
    fs::create_dir_all(&data)?;
    fs::write(data.join("node.json"), "{\n  \"standing\": \"member\",\n  \"node\": \"n0\"\n}\n")?;
    let why = refused("uninstall", &["--root", root.text()?])?;
    ensure!(why.contains("skep swarm leave") && why.contains("--force"), "{why}");
    ensure!(program.exists(), "removed although it refused");
    let kept = fine("uninstall", &["--root", root.text()?, "--force"])?;
    ensure!(!program.exists() && data.join("node.json").exists(), "{kept}");
    ensure!(!root.at("etc/systemd/system/skep.service").exists(), "{kept}");
    root.install(&binary()?)?;
    fine("uninstall", &["--root", root.text()?, "--purge", "--force"])?;
    ensure!(!data.exists() && !program.exists(), "not purged");
    ensure!(!root.groups()?.contains("skep:"), "the group stayed");
    Ok(())
}

#[test]
fn bad_calls_are_refused_with_what_is_wrong() -> Result<()> {
    let root = Root::new()?;
    let other = refused("install", &["--root", root.text()?, "--binary", "/bin/true"])?;
    ensure!(other.contains("/bin/true is not skep") && other.lines().count() == 1, "{other}");
    let none = refused("install", &["--root", root.text()?, "--binary", "/nosuch/skep"])?;
    ensure!(none.contains("/nosuch/skep is not there"), "{none}");
    for name in ["install", "uninstall"] {
        let flag = refused(name, &["--nosuch"])?;
        ensure!(flag.contains("--nosuch") && flag.contains("--root"), "{flag}");
        ensure!(refused(name, &["--root", "/"])?.contains("leave --root out"), "{name} --root /");
    }
    ensure!(!root.at("usr").exists(), "something was installed");
    Ok(())
}

/// Ends a process however the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn an_upgrade_leaves_what_runs_alone() -> Result<()> {
    let root = Root::new()?;
    let program = root.at("usr/local/bin/skep");
    root.install(&binary()?)?;
    let at = |name: &str| root.at(name).display().to_string();
    let daemon = Command::new(&program)
        .args(["daemon", "--data-root", &at("data"), "--run-root", &at("run")])
        .stderr(Stdio::null())
        .spawn()?;
    let mut daemon = Running(daemon);
    let socket = root.at("run/skep.sock");
    settle("the daemon's socket", BOUND, || Ok(socket.exists()))?;
    // A byte behind the end is another file and the same program.
    let newer = root.at("newer");
    let mut bytes = fs::read(binary()?)?;
    bytes.push(0);
    fs::write(&newer, &bytes)?;
    fs::set_permissions(&newer, fs::Permissions::from_mode(0o755))?;
    root.install(&newer)?;
    ensure!(fs::metadata(&program)?.len() == bytes.len() as u64, "not the new one");
    ensure!(daemon.0.try_wait()?.is_none(), "the daemon ended");
    let runs = fs::read_link(format!("/proc/{}/exe", daemon.0.id()))?;
    ensure!(runs.to_string_lossy().ends_with("(deleted)"), "it runs {}", runs.display());
    Ok(())
}

#[test]
fn the_unit_lets_tasks_outlive_the_daemon() -> Result<()> {
    let unit = fs::read_to_string(repository().join("scripts/skep.service"))?;
    let lines: Vec<&str> = unit.lines().map(str::trim).collect();
    for line in UNIT {
        ensure!(lines.contains(&line), "the unit lacks {line}");
    }
    for option in SANDBOX {
        ensure!(!lines.iter().any(|line| line.starts_with(option)), "the unit has {option}…");
    }
    let here = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status();
    if !here.is_ok_and(|status| status.success()) {
        return say("systemd-analyze is not installed: the unit was not verified by systemd");
    }
    // systemd looks whether the program is there: for it, it is where the build left it.
    let directory = tempfile::Builder::new().prefix("skep-test.").tempdir()?;
    let copy = directory.path().join("skep.service");
    fs::write(&copy, unit.replace("/usr/local/bin/skep", &binary()?.display().to_string()))?;
    let out = Command::new("systemd-analyze").arg("verify").arg(&copy).output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success() && !said.contains("skep.service"), "{said}");
    Ok(())
}

#[test]
fn an_image_of_a_node_runs_a_service_with_a_secret() -> Result<()> {
    let Some(engine) = Dockerd::start()? else {
        return say("dockerd is not installed: the image was neither built nor run");
    };
    let directory = tempfile::Builder::new().prefix("skep-test.").tempdir()?;
    let context = directory.path().join("image").display().to_string();
    fine("images/node", &[&context, &binary()?.display().to_string()])?;
    let dockerfile = repository().join("Dockerfile").display().to_string();
    engine.run(&["build", "--quiet", "-f", &dockerfile, "-t", "skep", &context])?;
    let tar = busybox_tar(directory.path())?.canonicalize()?;
    let tar = format!("{}:/busybox.tar:ro", tar.display());
    // As the Dockerfile says, but for the network: this engine has none.
    let start = "run --detach --name node --network none --cgroupns host \
        --volume /sys/fs/cgroup:/sys/fs/cgroup --device /dev/fuse --cap-add SYS_ADMIN \
        --cap-add NET_ADMIN --cap-add IPC_LOCK --security-opt seccomp=unconfined \
        --security-opt apparmor=unconfined --volume";
    let start: Vec<&str> = start.split_whitespace().chain([tar.as_str(), "skep"]).collect();
    engine.run(&start)?;
    let node = |line: &str| {
        let words: Vec<&str> = "exec node skep".split(' ').chain(line.split(' ')).collect();
        engine.run(&words)
    };
    let lived = live(&node);
    // The node's cgroups are the host's, and outlive the container unless it leaves.
    let left = node("swarm leave --force");
    let log = engine.run(&["logs", "node"]).unwrap_or_default();
    lived.and(left).with_context(|| log)?;
    engine.run(&["stop", "node"])?;
    let code = engine.run(&["inspect", "--format", "{{.State.ExitCode}}", "node"])?;
    ensure!(code == "0", "the node ended with {code}");
    Ok(())
}

/// A node in a container does what nodes do.
fn live(node: &dyn Fn(&str) -> Result<String>) -> Result<String> {
    wait_until("the node in the container", BOUND, || Ok(node("info").ok()))?;
    node("swarm init --advertise-addr 127.0.0.1")?;
    node("import /busybox.tar busybox:latest")?;
    node("secret create accounts /etc/passwd")?;
    node("service create --detach --name app --secret accounts busybox:latest sleep 1000000")?;
    let container = wait_until("the task", BOUND, || {
        Ok(node("ps -q --filter name=app").ok().filter(|id| !id.is_empty()))
    })?;
    let read = node(&format!("exec {container} cat /run/secrets/accounts"))?;
    ensure!(read == "root:x:0:0:root:/root:/sbin/nologin", "{read}");
    Ok(read)
}

fn say(text: &str) -> Result<()> {
    std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes())?;
    Ok(())
}
