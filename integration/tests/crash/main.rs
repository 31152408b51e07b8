//! Crashes of real processes at chosen points, and disks that are full.
//!
//! `SKEP_CRASH_ALL=1` tries every point instead of some spread over the whole run.

mod daemon;
mod full;
mod life;
mod shim;
mod tracer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use skep_integration::{Node, Process, cgroups_of, mounts_naming, processes_of, settle};

/// Longest wait for anything.
const BOUND: Duration = Duration::from_secs(60);

/// Running containers of a service, by task: the process's number.
fn running(node: &Node, service: &str) -> Result<BTreeMap<String, i64>> {
    let mut found = BTreeMap::new();
    for container in node.get("/containers/json")?.as_array().into_iter().flatten() {
        let labels = &container["Labels"];
        if labels["com.docker.swarm.service.name"] == service && container["State"] == "running" {
            let id = container["Id"].as_str().context("Id")?;
            let task = labels["com.docker.swarm.task.id"].as_str().context("task")?;
            let shown = node.get(&format!("/containers/{id}/json"))?;
            found.insert(task.to_owned(), shown["State"]["Pid"].as_i64().context("Pid")?);
        }
    }
    Ok(found)
}

/// Tasks of a service that run and shall run, by slot.
fn slots(node: &Node, service: &str) -> Result<BTreeMap<i64, Vec<String>>> {
    let filters = skep_integration::encode_query(&format!("{{\"service\":[\"{service}\"]}}"));
    let mut slots = BTreeMap::<i64, Vec<String>>::new();
    for task in node.get(&format!("/tasks?filters={filters}"))?.as_array().into_iter().flatten() {
        if task["Status"]["State"] == "running" && task["DesiredState"] == "running" {
            let slot = task["Slot"].as_i64().unwrap_or_default();
            slots.entry(slot).or_default().push(task["ID"].as_str().context("ID")?.to_owned());
        }
    }
    Ok(slots)
}

fn supervisors(node: &Node) -> Result<Vec<Process>> {
    Ok(processes_of(node)?.into_iter().filter(Process::is_supervisor).collect())
}

/// Waits until a service has exactly `count` tasks, one per slot, in the state, in the list of
/// containers and among the processes; answers the tasks.
fn settled(node: &Node, service: &str, count: usize) -> Result<Vec<String>> {
    let mut last = String::new();
    let mut found = Vec::new();
    settle("one container per slot", BOUND, || {
        let (slots, running) = (slots(node, service)?, running(node, service)?);
        let processes = processes_of(node)?;
        let sleeping =
            processes.iter().filter(|one| one.args.first().is_some_and(|arg| arg == "sleep"));
        let sleeping = sleeping.count();
        let shims = processes.iter().filter(|one| one.is_supervisor()).count();
        last =
            format!("slots {slots:?}, containers {running:?}, {sleeping} processes, {shims} shims");
        found = slots.values().flatten().cloned().collect();
        found.sort();
        Ok(slots.len() == count
            && found.len() == count
            && running.keys().eq(&found)
            && sleeping == count
            && shims == 2 * count)
    })
    .with_context(|| last.clone())?;
    Ok(found)
}

/// Waits until nothing of any task is left on the host.
fn nothing_left(node: &Node) -> Result<()> {
    let id = node.get("/info")?["Swarm"]["NodeID"].as_str().context("NodeID")?.to_owned();
    let mut last = Vec::new();
    settle("an empty host", BOUND, || {
        last.clear();
        last.extend(supervisors(node)?.into_iter().map(|one| format!("{one:?}")));
        for tasks in [node.data_root().join("tasks"), node.run_root().join("tasks")] {
            last.extend(listed(&tasks)?.iter().map(|path| path.display().to_string()));
        }
        for group in cgroups_of(&id)? {
            let groups = listed(&group)?.into_iter().filter(|path| path.is_dir());
            last.extend(groups.map(|path| path.display().to_string()));
        }
        Ok(last.is_empty())
    })
    .with_context(|| format!("{last:?}"))?;
    let mounts = mounts_naming(&node.run_root().display().to_string())?;
    ensure!(mounts.is_empty(), "mounts: {mounts:?}");
    Ok(())
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    Ok(std::fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect())
}

/// No file under the data root is left half written; what is being written comes to an end.
fn nothing_unfinished(node: &Node) -> Result<()> {
    let ended = settle("the end of all writes", BOUND, || Ok(unfinished(node)?.is_empty()));
    ended.with_context(|| format!("unfinished files: {:?}", unfinished(node)))
}

/// Files under the data root that no finished write leaves.
fn unfinished(node: &Node) -> Result<Vec<PathBuf>> {
    let mut open = vec![node.data_root()];
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        for path in listed(&dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_spare = name == "spare.tmp";
            if !is_spare && (name.ends_with(".tmp") || name.ends_with(".new"))
                || name.starts_with(".tmp-")
                || name.ends_with(".draft")
            {
                found.push(path);
            } else if path.is_dir() && !path.is_symlink() && !dir.ends_with("layers") {
                open.push(path);
            }
        }
    }
    Ok(found)
}

/// The names in a list of the API.
fn names(list: &Value) -> Vec<String> {
    let names = list.as_array().into_iter().flatten();
    let mut names: Vec<_> =
        names.filter_map(|one| one["Spec"]["Name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}
