//! Nothing is left of a cluster, however its test ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_integration::{Cluster, ClusterOptions, cgroups_of, mounts_naming, settle};

const BOUND: Duration = Duration::from_secs(60);
/// Set in the process that is to be killed.
const VICTIM: &str = "SKEP_TEST_VICTIM";

/// What there is of a cluster: lines that name a namespace, directory or cgroup of it.
fn remains(names: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in names {
        if name.starts_with('/') {
            let path = Path::new(name);
            found.extend(path.exists().then(|| name.clone()));
        } else if let Some(id) = name.strip_prefix("id:") {
            found.extend(cgroups_of(id)?.into_iter().map(|path| path.display().to_string()));
        } else {
            found.extend(Path::new("/run/netns").join(name).exists().then(|| name.clone()));
        }
        found.extend(mounts_naming(name)?);
        for entry in fs::read_dir("/proc")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(name.as_str()) {
                found.push(line);
            }
        }
    }
    Ok(found)
}

/// All names by which a cluster could be known later.
fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let mut names = cluster.namespaces();
    names.push(cluster.root().display().to_string());
    names.push(format!("id:{}", cluster.node(0).id()?));
    names.extend(cluster.roots().iter().map(|root| root.display().to_string()));
    Ok(names)
}

/// One node with a task, a capture and a delay.
fn busy() -> Result<(Cluster, Vec<String>)> {
    let cluster =
        Cluster::start(ClusterOptions { managers: 1, spares: 1, ..ClusterOptions::default() })?;
    let service = ["service", "create", "-d", "--name", "s", "busybox:latest", "sleep", "1000"];
    cluster.node(0).skep().ok(&service)?;
    cluster.await_converged(0, "s")?;
    cluster.delay(0, 10)?;
    cluster.loss(1, 20)?;
    let names = names(&cluster)?;
    ensure!(remains(&names)?.len() > names.len(), "the check sees nothing of a live cluster");
    Ok((cluster, names))
}

#[test]
fn a_dropped_cluster_leaves_nothing() -> Result<()> {
    let (cluster, names) = busy()?;
    let capture = cluster.capture(0)?;
    drop((capture, cluster));
    let left = remains(&names)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_killed_test_leaves_nothing() -> Result<()> {
    if std::env::var_os(VICTIM).is_some() {
        return wait_to_be_killed();
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "remains::a_killed_test_leaves_nothing", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let said = BufReader::new(child.stdout.take().context("its output")?);
    let mut names = Vec::new();
    for line in said.lines() {
        let line = line?;
        match line.strip_prefix("part: ") {
            Some(name) => names.push(name.to_owned()),
            None if line == "ready" => break,
            None => {}
        }
    }
    ensure!(names.len() >= 5 && !remains(&names)?.is_empty(), "it never ran: {names:?}");
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
    child.wait()?;
    let mut left = Vec::new();
    settle("the end of what was left", BOUND, || {
        left = remains(&names)?;
        Ok(left.is_empty())
    })
    .with_context(|| format!("{left:?}"))
}

#[allow(clippy::print_stdout, reason = "the other process reads it")]
fn wait_to_be_killed() -> Result<()> {
    let (cluster, names) = busy()?;
    let capture = cluster.capture(0)?;
    for name in names {
        println!("part: {name}");
    }
    println!("ready");
    std::thread::sleep(BOUND);
    drop((capture, cluster));
    anyhow::bail!("nobody killed it")
}
