//! A disk that is full: writes are refused, everything that runs goes on, and once there is room
//! the node needs no hand.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use skep_integration::{Bench, Node, Options, Program, settle};

use crate::{BOUND, running};

/// A small filesystem of its own.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let made = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=224m,mode=0700", "skep-test"])
            .arg(at)
            .status()?;
        ensure!(made.success(), "mount at {}", at.display());
        Ok(Self(at.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes every byte that is left.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler())?;
        for size in [1 << 20, 4 << 10, 1] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// A write over the API: its status and what it says.
fn write(node: &Node, name: &str) -> Result<(u16, String)> {
    let body = json!({ "Name": name, "Labels": {}, "Data": "cGF5bG9hZA==" });
    let reply = node.http()?.json("POST", "/secrets/create", &body)?;
    let said = if reply.status == 201 { String::new() } else { reply.message()? };
    Ok((reply.status, said))
}

/// What is in the image store.
fn stored(node: &Node) -> Result<Vec<PathBuf>> {
    let dirs = ["images", "images/blobs/sha256", "layers"];
    let mut all = Vec::new();
    for dir in dirs {
        all.extend(crate::listed(&node.data_root().join(dir))?);
    }
    all.sort();
    Ok(all)
}

/// What must go on while the disk is full.
fn reads_go_on(bench: &Bench<'_>, container: &str, secret: &str) -> Result<()> {
    ensure!(bench.cli.ok(&["secret", "ls"])?.contains(secret), "secret ls");
    ensure!(bench.cli.ok(&["service", "ls"])?.contains("talks"), "service ls");
    bench.inspect("secret", secret)?;
    let path = format!("/run/secrets/{secret}");
    ensure!(bench.exec(container, &["cat", &path])? == "still readable", "exec");
    Ok(())
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() -> Result<()> {
    let node = Node::prepare(Options::default())?;
    let small = Small::mount(&node.data_root())?;
    node.launch()?;
    node.import_busybox()?;
    let bench = Bench::new(&node, Program::Skep, "full".to_owned());
    let secret = bench.secret("kept", "still readable")?;
    // It writes to its log all the time, far more than there is room for.
    let talk = "while :; do head -c 2000 /dev/zero | tr '\\0' x; echo; sleep 0.01; done";
    let talks = bench.service("talks", &["--secret", &secret], &["sh", "-c", talk])?;
    let end = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let flags = ["--restart-condition", "none"];
    let ends = bench.service("ends", &flags, &["sh", "-c", end])?;
    let (talker, ending) = (bench.container(&talks)?, bench.container(&ends)?);
    let before = running(&node, &talks)?;

    small.fill()?;
    let mut last = (0, String::new());
    settle("a refusal", BOUND, || {
        last = write(&node, "refused")?;
        Ok(last.0 == 503)
    })
    .with_context(|| format!("{last:?}"))?;
    let named = node.data_root().display().to_string();
    ensure!(last.1.contains(&named) && last.1.contains("free"), "{last:?}");
    let refused = bench.cli.fails_with(1, &["secret", "create", "refused-too", "-"], b"x")?;
    ensure!(refused.contains(&named), "{refused}");
    reads_go_on(&bench, &talker, &secret)?;
    // An image that does not fit is refused, and gives back what it took.
    let kept = stored(&node)?;
    let refused = node.import_busybox().unwrap_err().to_string();
    ensure!(refused.contains("No space left"), "{refused}");
    ensure!(stored(&node)? == kept, "{:?}, before {kept:?}", stored(&node)?);

    let pid = running(&node, &ends)?.pop_first().context("no task")?.1;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
    let ended = || -> Result<bool> {
        let state = node.get(&format!("/containers/{ending}/json"))?["State"].clone();
        Ok(state["Status"] == "exited" && state["ExitCode"] == 7)
    };
    settle("the exit", BOUND, ended)?;

    // The next daemon starts where there is no room at all.
    small.fill()?;
    node.kill_daemon()?;
    node.launch()?;
    ensure!(running(&node, &talks)? == before, "the task was replaced");
    settle("the exit after a restart", BOUND, ended)?;
    reads_go_on(&bench, &talker, &secret)?;
    let (status, said) = write(&node, "refused")?;
    ensure!(status == 503, "{status}: {said}");

    small.free()?;
    settle("a write", BOUND, || Ok(write(&node, "taken")?.0 == 201))?;
    ensure!(running(&node, &talks)? == before, "the task was replaced");
    let filters = skep_integration::encode_query(&format!("{{\"service\":[\"{ends}\"]}}"));
    settle("the exit in the swarm's state", BOUND, || {
        let status = node.get(&format!("/tasks?filters={filters}"))?[0]["Status"].clone();
        Ok(status["State"] == "failed" && status["ContainerStatus"]["ExitCode"] == 7)
    })?;
    let task = before.keys().next().context("no task")?;
    let log = node.data_root().join("tasks").join(task).join("logs/json.log");
    let size = fs::metadata(&log)?.len();
    settle("new lines in the log", BOUND, || Ok(fs::metadata(&log)?.len() != size))?;
    let names = crate::names(&node.get("/secrets")?);
    ensure!(names == ["kept-full", "taken"], "{names:?}");
    Ok(())
}
