//! Tasks and containers as their host and the API see them.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::{Process, processes_of};
use crate::http::encode_query;
use crate::node::Node;

/// A container as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its task's.
    pub task: String,
    /// Pid of its first process.
    pub pid: i32,
}

impl Seen {
    /// A file in the container, by its host's path.
    pub fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{file}", self.pid))
    }

    /// Opens a file in the container.
    pub fn open(&self, file: &str) -> Result<File> {
        File::open(self.path(file)).with_context(|| format!("{file} in {}", self.id))
    }

    /// Whether its first process is dead: gone, or waiting to be reaped.
    pub fn is_dead(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
    }
}

/// A running container of a node.
pub fn look(node: &Node, container: &str) -> Result<Seen> {
    let shown = node.get(&format!("/containers/{container}/json"))?;
    let pid = shown["State"]["Pid"].as_i64().context("Pid")?;
    let task = shown["Config"]["Labels"]["com.docker.swarm.task.id"].as_str().context("task")?;
    Ok(Seen { id: container.to_owned(), task: task.to_owned(), pid: i32::try_from(pid)? })
}

/// All tasks of a service, as the API shows them.
pub fn tasks_of(node: &Node, service: &str) -> Result<Vec<Value>> {
    let filters = encode_query(&format!("{{\"service\":[\"{service}\"]}}"));
    let all = node.get(&format!("/tasks?filters={filters}"))?;
    Ok(all.as_array().context("no list")?.clone())
}

/// One of these tasks.
pub fn task<'a>(all: &'a [Value], id: &str) -> Result<&'a Value> {
    all.iter().find(|task| task["ID"] == *id).with_context(|| format!("no task {id}"))
}

/// The shim of a task: of the two processes with its command line the one that made the other.
pub fn shim_of(node: &Node, task: &str) -> Result<Process> {
    let all = processes_of(node)?;
    let own: Vec<_> = all
        .into_iter()
        .filter(|process| process.is_supervisor())
        .filter(|process| process.args.iter().any(|arg| arg.contains(task)))
        .collect();
    let first = own.iter().find(|process| own.iter().all(|other| other.pid != process.parent));
    first.cloned().with_context(|| format!("no shim of {task}: {own:?}"))
}
