//! Everything a node holds on its host, counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::{Value, json};
use skep::limits;
use skep_integration::{Http, cgroups_of};

/// Directories below one another that are followed.
const DEPTH: usize = 64;

/// Where to look.
#[derive(Debug)]
pub(super) struct Place {
    daemon: i32,
    node: String,
    data_root: PathBuf,
    run_root: PathBuf,
}

impl Place {
    /// The node behind a socket.
    pub(super) fn find(socket: &Path) -> Result<Self> {
        let daemon = getsockopt(&UnixStream::connect(socket)?, PeerCredentials)?.pid();
        let info = Http::connect(socket)?.get("/info")?.json()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let data_root = text(&info["DockerRootDir"]).context("DockerRootDir")?.into();
        let node = text(&info["Swarm"]["NodeID"]).context("NodeID")?;
        let run_root = socket.canonicalize()?.parent().context("no directory")?.to_owned();
        Ok(Self { daemon, node, data_root, run_root })
    }

    fn roots(&self) -> [String; 2] {
        [&self.data_root, &self.run_root].map(|root| root.display().to_string())
    }

    fn names_a_root(&self, text: &str) -> bool {
        self.roots().iter().any(|root| text.contains(root))
    }
}

/// The daemon's memory, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) proportional: u64,
    /// Its own: neither its program nor other files.
    pub(super) anonymous: u64,
}

/// Files of a directory.
#[derive(Debug, Clone, Copy, Default)]
struct Files {
    count: u64,
    bytes: u64,
}

/// One count.
#[derive(Debug, Clone)]
pub(super) struct Census {
    processes: u64,
    zombies: u64,
    mounts_of_host: u64,
    mounts_of_daemon: u64,
    cgroups: u64,
    namespaces: u64,
    pub(super) descriptors: u64,
    kinds: BTreeMap<String, u64>,
    pub(super) threads: u64,
    pub(super) memory: Memory,
    files: BTreeMap<String, Files>,
    /// Files of the audit that what it keeps does not explain.
    stray_audits: u64,
}

impl Census {
    pub(super) fn take(place: &Place) -> Result<Self> {
        let (processes, zombies) = processes(place)?;
        let mounts = |pid: &str| -> Result<u64> {
            let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
            Ok(table.lines().filter(|line| place.names_a_root(line)).count() as u64)
        };
        let daemon = place.daemon.to_string();
        let kinds = descriptors(place.daemon)?;
        let mut files = BTreeMap::new();
        for (name, root) in [("data", &place.data_root), ("run", &place.run_root)] {
            count_files(root, name, &mut files)?;
        }
        Ok(Self {
            namespaces: namespaces(&processes)?,
            processes: processes.len() as u64,
            zombies,
            mounts_of_host: mounts("self")?,
            mounts_of_daemon: mounts(&daemon)?,
            cgroups: cgroups(&place.node)?,
            descriptors: kinds.values().sum(),
            kinds,
            threads: fs::read_dir(format!("/proc/{daemon}/task"))?.count() as u64,
            memory: memory(place.daemon)?,
            files,
            stray_audits: stray_audits(&place.data_root.join("audit")),
        })
    }

    /// What an idle node holds neither more nor less of. The log grows until its next snapshot; the
    /// audit outlives its tasks, up to its own bound.
    fn held(&self) -> BTreeMap<String, u64> {
        let fixed = [
            ("processes", self.processes),
            ("zombies", self.zombies),
            ("mounts of the host", self.mounts_of_host),
            ("mounts of the daemon", self.mounts_of_daemon),
            ("cgroups", self.cgroups),
            ("namespaces", self.namespaces),
            ("stray files of data/audit", self.stray_audits),
        ];
        let grows = ["data/raft", "data/audit"];
        let files = self.files.iter().filter(|(name, _)| !grows.contains(&name.as_str()));
        fixed
            .into_iter()
            .map(|(what, count)| (what.to_owned(), count))
            .chain(files.map(|(name, files)| (format!("files of {name}"), files.count)))
            .collect()
    }

    /// What this holds more of than `first`.
    pub(super) fn beyond(&self, first: &Self) -> BTreeMap<String, u64> {
        let before = first.held();
        let more = self.held().into_iter().map(|(what, count)| {
            let had = before.get(&what).copied().unwrap_or(0);
            (what, count.saturating_sub(had))
        });
        more.filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn json(&self) -> Value {
        let files = self.files.iter();
        let files: BTreeMap<_, _> = files.map(|(name, f)| (name, [f.count, f.bytes])).collect();
        json!({
            "processes": self.processes,
            "zombies": self.zombies,
            "mounts": [self.mounts_of_host, self.mounts_of_daemon],
            "cgroups": self.cgroups,
            "namespaces": self.namespaces,
            "descriptors": self.descriptors,
            "descriptors_by_kind": self.kinds,
            "threads": self.threads,
            "rss_kib": self.memory.resident,
            "pss_kib": self.memory.proportional,
            "anonymous_kib": self.memory.anonymous,
            "files_and_bytes": files,
            "stray_audits": self.stray_audits,
        })
    }
}

/// Living processes of the node, and how many dead ones it has not reaped.
fn processes(place: &Place) -> Result<(BTreeSet<i32>, u64)> {
    let group = format!("/skep/{}/", place.node);
    let (mut living, mut zombies) = (BTreeSet::new(), 0);
    for entry in fs::read_dir("/proc")? {
        let entry = entry?.path();
        let Some(pid) = entry.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // A process may end at any point of this.
        let read = |name: &str| fs::read(entry.join(name)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|ppid| ppid.parse().ok()));
        if state == Some("Z") {
            zombies += u64::from(parent == Some(place.daemon));
            continue;
        }
        let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let is_shim = line.split('\0').nth(1) == Some("shim") && place.names_a_root(&line);
        let is_member = String::from_utf8_lossy(&read("cgroup")).contains(&group);
        if pid == place.daemon || is_shim || is_member {
            living.insert(pid);
        }
    }
    Ok((living, zombies))
}

/// Distinct namespaces, whoever else is in them.
fn namespaces(processes: &BTreeSet<i32>) -> Result<u64> {
    let mut seen = BTreeSet::new();
    for pid in processes {
        let Ok(links) = fs::read_dir(format!("/proc/{pid}/ns")) else { continue };
        seen.extend(links.flatten().filter_map(|link| fs::read_link(link.path()).ok()));
    }
    Ok(seen.len() as u64)
}

/// Descriptors by what they are: `socket`, `pipe`, `anon_inode:[eventpoll]`, `file`, …
fn descriptors(pid: i32) -> Result<BTreeMap<String, u64>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.display().to_string();
        let kind = match target.split_once(':') {
            _ if target.starts_with('/') => "file",
            Some(("anon_inode", _)) => target.as_str(),
            Some((kind, _)) => kind,
            None => target.as_str(),
        };
        *kinds.entry(kind.to_owned()).or_insert(0) += 1;
    }
    Ok(kinds)
}

/// Groups below the node's own, in every hierarchy.
fn cgroups(node: &str) -> Result<u64> {
    let mut count = 0;
    for top in cgroups_of(node)? {
        let below = fs::read_dir(top).into_iter().flatten().flatten();
        count += below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count();
    }
    Ok(count as u64)
}

fn memory(pid: i32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let value = |key: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
        Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Memory {
        resident: value("Rss")?,
        proportional: value("Pss")?,
        anonymous: value("Anonymous")?,
    })
}

/// Counts by the first directory below `root`; what lies in `root` itself counts under `name`.
fn count_files(root: &Path, name: &str, into: &mut BTreeMap<String, Files>) -> Result<()> {
    let mut top = Files::default();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let mut files = Files::default();
        walk(&path, DEPTH, &mut files);
        if path.is_dir() {
            let own = path.file_name().unwrap_or_default().to_string_lossy();
            // The directory itself is there or not from the first day on.
            files.count -= 1;
            into.insert(format!("{name}/{own}"), files);
        } else {
            top.count += files.count;
            top.bytes += files.bytes;
        }
    }
    into.insert(name.to_owned(), top);
    Ok(())
}

/// What a node's audits hold beyond what they are for: everything but the store's segments, of
/// which all but the last are full and all together no more than is kept, the place that tells what
/// was dropped, and the two directories themselves.
fn stray_audits(audits: &Path) -> u64 {
    let count = |path: &Path| {
        let mut files = Files::default();
        walk(path, DEPTH, &mut files);
        files.count
    };
    let mut stray = 0;
    for entry in fs::read_dir(audits).into_iter().flatten().flatten() {
        stray += match entry.file_name().to_str() {
            Some("log") => stray_segments(&entry.path()),
            // What waits to be sent is sent, and goes.
            Some("unsent") => count(&entry.path()).saturating_sub(1),
            _ => count(&entry.path()),
        };
    }
    stray
}

fn stray_segments(store: &Path) -> u64 {
    let (mut segments, mut bytes, mut others) = (0, 0, 0);
    for entry in fs::read_dir(store).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.parse::<u64>().is_ok()) {
            segments += 1;
            bytes += entry.metadata().map_or(0, |meta| meta.len());
        } else {
            others += u64::from(name != "horizon");
        }
    }
    let explained = bytes / limits::AUDIT_SEGMENT_BYTES + 1;
    let too_much = bytes > limits::AUDIT_STORE_BYTES + 2 * limits::AUDIT_SEGMENT_BYTES;
    others + u64::saturating_sub(segments, explained) + u64::from(too_much)
}

fn walk(path: &Path, depth: usize, files: &mut Files) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    files.count += 1;
    files.bytes += if meta.is_file() { meta.blocks() * 512 } else { 0 };
    if !meta.is_dir() || depth == 0 {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        walk(&entry.path(), depth - 1, files);
    }
}
