//! What a node leaves on its host: processes, cgroups, mounts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::node::Node;

/// A process that belongs to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Command line.
    pub args: Vec<String>,
}

impl Process {
    /// Whether this is a shim or a sentinel, which has its shim's command line.
    pub fn is_supervisor(&self) -> bool {
        self.args.get(1).is_some_and(|verb| verb == "shim")
    }
}

/// Processes of a node: those that name its directory, and those in its cgroups.
pub fn processes_of(node: &Node) -> Result<Vec<Process>> {
    let root = node.root().display().to_string() + "/";
    let group =
        fs::read_to_string(node.root().join("node-id")).ok().map(|id| format!("/skep/{id}/"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.path();
        let Some(pid) = entry.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // A process may end at any point of this.
        let Ok(line) = fs::read(entry.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        let member = fs::read_to_string(entry.join("cgroup")).unwrap_or_default();
        let named = line.contains(&root);
        if named || group.as_ref().is_some_and(|group| member.contains(group)) {
            let Some((parent, state)) = parent_and_state(&entry) else { continue };
            if state != 'Z' {
                let args = line.split_terminator('\0').map(str::to_owned).collect();
                found.push(Process { pid, parent, args });
            }
        }
    }
    Ok(found)
}

fn parent_and_state(entry: &Path) -> Option<(i32, char)> {
    let stat = fs::read_to_string(entry.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// Directories of a node's cgroups, in every hierarchy.
pub fn cgroups_of(node_id: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    for hierarchy in hierarchies.chain([top.to_owned()]) {
        let group = hierarchy.join("skep").join(node_id);
        if group.is_dir() {
            found.push(group);
        }
    }
    Ok(found)
}

/// Lines of the host's mount table that name `text`.
pub fn mounts_naming(text: &str) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter(|line| line.contains(text)).map(str::to_owned).collect())
}
