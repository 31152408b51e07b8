//! Control groups of this machine: version 1, version 2, or both side by side (hybrid). A group
//! is named by its path below every hierarchy's mount, as `/skep/<node>/<task>`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Groups below one another that are followed.
const DEPTH: usize = 16;
/// Pause between two looks at a group that should become empty.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Version 1 controllers that skep's own processes are accounted in. `systemd` is the named
/// hierarchy by which systemd tells what belongs to a unit.
const OWN_CONTROLLERS: [&str; 3] = ["memory", "pids", "name=systemd"];

/// A control group could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel's table of mounts cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The table.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted (is /sys/fs/cgroup missing?)")]
    None,
    /// A group's file or directory refused the change.
    #[error("cannot change the control group {}", path.display())]
    Change {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Processes outlived the wait.
    #[error("{count} processes in the control group {group} do not die")]
    Alive {
        /// The group.
        group: String,
        /// How many are left.
        count: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Version 1 controllers; none for version 2.
    controllers: Option<Vec<String>>,
}

impl Hierarchy {
    fn group(&self, group: &str) -> PathBuf {
        self.mount.join(group.trim_start_matches('/'))
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.as_ref().is_some_and(|own| own.iter().any(|c| c == controller))
    }
}

/// Every hierarchy of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Finds the hierarchies that are mounted here.
    ///
    /// # Errors
    /// [`CgroupError::Read`] or [`CgroupError::None`].
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let table = fs::read_to_string(path)
            .map_err(|source| CgroupError::Read { path: path.into(), source })?;
        let found = Self::parse(&table);
        if found.hierarchies.is_empty() { Err(CgroupError::None) } else { Ok(found) }
    }

    /// Reads a table in the form of `/proc/self/mountinfo`. A hierarchy mounted twice counts
    /// where it is mounted first.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some(hierarchy) = parse_line(line) else { continue };
            if !hierarchies.iter().any(|h| h.controllers == hierarchy.controllers) {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies }
    }

    /// Makes the group where processes of skep itself are kept, and moves `pids` there.
    ///
    /// # Errors
    /// [`CgroupError::Change`].
    pub fn adopt(&self, group: &str, pids: &[u32]) -> Result<(), CgroupError> {
        for hierarchy in self.own() {
            let dir = hierarchy.group(group);
            fs::create_dir_all(&dir).map_err(|source| change(&dir, source))?;
            let procs = dir.join("cgroup.procs");
            for pid in pids {
                fs::write(&procs, pid.to_string()).map_err(|source| change(&procs, source))?;
            }
        }
        Ok(())
    }

    /// Moves a process out of its group of [`Cgroups::adopt`], to the root, and removes the
    /// group.
    pub fn abandon(&self, group: &str, pid: u32) {
        for hierarchy in self.own() {
            // Whatever fails here leaves at worst an empty group behind.
            let _ = fs::write(hierarchy.mount.join("cgroup.procs"), pid.to_string());
        }
        self.remove(group);
    }

    /// Processes in the group and below it, in any hierarchy.
    #[must_use]
    pub fn pids(&self, group: &str) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            each_group(&hierarchy.group(group), DEPTH, &mut |dir| {
                let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                // Pid 0 is a process that this pid namespace does not show.
                let listed = listed.lines().filter_map(|line| line.parse::<i32>().ok());
                pids.extend(listed.filter(|pid| *pid > 0));
            });
        }
        pids
    }

    /// Sends SIGKILL to every process in the group and below it, but for `spare`. Returns how
    /// many there were.
    pub fn kill_once(&self, group: &str, spare: &[u32]) -> usize {
        if spare.is_empty() {
            for hierarchy in self.hierarchies.iter().filter(|h| h.controllers.is_none()) {
                // The one way that no fork can outrun. Old kernels lack it; the pids follow.
                let _ = fs::OpenOptions::new()
                    .write(true)
                    .open(hierarchy.group(group).join("cgroup.kill"))
                    .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
            }
        }
        let mut doomed = self.pids(group);
        doomed.retain(|pid| !spare.contains(&pid.unsigned_abs()));
        for pid in &doomed {
            // One that is gone already needs no signal.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        doomed.len()
    }

    /// Kills until the group is empty, but for `spare`.
    ///
    /// # Errors
    /// [`CgroupError::Alive`] after `wait`.
    pub fn kill_all(&self, group: &str, spare: &[u32], wait: Duration) -> Result<(), CgroupError> {
        let since = Instant::now();
        loop {
            let count = self.kill_once(group, spare);
            if count == 0 {
                return Ok(());
            }
            if since.elapsed() > wait {
                return Err(CgroupError::Alive { group: group.to_owned(), count });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// How many processes of the group the kernel killed for memory.
    #[must_use]
    pub fn oom_kills(&self, group: &str) -> u64 {
        let count = |hierarchy: &Hierarchy| {
            let file = match &hierarchy.controllers {
                None => "memory.events",
                Some(_) if hierarchy.has("memory") => "memory.oom_control",
                Some(_) => return None,
            };
            let text = fs::read_to_string(hierarchy.group(group).join(file)).ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix("oom_kill "))?;
            line.trim().parse::<u64>().ok()
        };
        self.hierarchies.iter().filter_map(count).max().unwrap_or(0)
    }

    /// Removes the group and those below it, as far as they are empty.
    pub fn remove(&self, group: &str) {
        for hierarchy in &self.hierarchies {
            let mut dirs = Vec::new();
            each_group(&hierarchy.group(group), DEPTH, &mut |dir| dirs.push(dir.to_owned()));
            for dir in dirs.iter().rev() {
                // A group in use stays; who empties it removes it.
                let _ = fs::remove_dir(dir);
            }
        }
    }

    /// Whether the group is there in any hierarchy.
    #[must_use]
    pub fn exists(&self, group: &str) -> bool {
        self.hierarchies.iter().any(|h| h.group(group).is_dir())
    }

    fn own(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies
            .iter()
            .filter(|h| h.controllers.is_none() || OWN_CONTROLLERS.iter().any(|c| h.has(c)))
    }
}

fn change(path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Change { path: path.to_owned(), source }
}

/// `31 23 0:28 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids`
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mount = PathBuf::from(unescape(left.split(' ').nth(4)?));
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    let controllers = match kind {
        "cgroup2" => None,
        "cgroup" => Some(
            options
                .split(',')
                .filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "noprefix" | "clone_children"))
                .filter(|o| !o.starts_with("release_agent="))
                .map(str::to_owned)
                .collect(),
        ),
        _ => return None,
    };
    Some(Hierarchy { mount, controllers })
}

/// The table writes blanks and the like as three octal digits behind a backslash.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Calls `each` for a group and every one below it, parents first.
fn each_group(dir: &Path, depth: usize, each: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    each(dir);
    if depth == 0 {
        return;
    }
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            each_group(&entry.path(), depth - 1, each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    fn v1_tree(root: &Path) -> Cgroups {
        let at = root.display();
        Cgroups::parse(&format!(
            "30 23 0:1 / / rw - ext4 /dev/vda rw\n\
             32 31 0:29 / {at}/pids rw,relatime - cgroup cgroup rw,pids\n\
             35 31 0:32 / {at}/memory rw,relatime - cgroup cgroup rw,memory\n\
             36 31 0:33 / {at}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / {at}/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
             41 31 0:37 / {at}/again rw - cgroup cgroup rw,xattr,name=systemd\n"
        ))
    }

    fn v2_tree(root: &Path) -> Cgroups {
        Cgroups::parse(&format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n", root.display()))
    }

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(path)).unwrap();
        for (name, text) in files {
            fs::write(root.join(path).join(name), text).unwrap();
        }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("100").spawn().unwrap()
    }

    fn killed(mut child: Child) -> bool {
        child.wait().unwrap().signal() == Some(9)
    }

    #[test]
    fn the_table_of_mounts_is_understood() {
        let found = v1_tree(Path::new("/cg"));
        let names: Vec<_> = found.hierarchies.iter().map(|h| h.mount.to_str().unwrap()).collect();
        assert_eq!(names, ["/cg/pids", "/cg/memory", "/cg/cpu,cpuacct", "/cg/systemd"]);
        assert!(found.hierarchies[2].has("cpuacct") && found.hierarchies[3].has("name=systemd"));
        assert_eq!(found.own().count(), 3);
        assert_eq!(v2_tree(Path::new("/cg")).own().count(), 1);
        assert_eq!(unescape("/a\\040b\\134c\\9"), "/a b\\c\\9");
    }

    #[test]
    fn version_1_kills_pid_by_pid_in_every_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        let groups = v1_tree(root.path());
        let (a, b, spared) = (sleeper(), sleeper(), sleeper());
        group(root.path(), "pids/skep/t", &[("cgroup.procs", &format!("{}\n0\n", a.id()))]);
        group(
            root.path(),
            "memory/skep/t/below",
            &[("cgroup.procs", &format!("{}\n{}\n", b.id(), spared.id()))],
        );
        group(root.path(), "memory/skep/t", &[("memory.oom_control", "under_oom 0\noom_kill 2\n")]);
        assert_eq!(groups.pids("/skep/t").len(), 3);
        assert_eq!(groups.kill_once("/skep/t", &[spared.id()]), 2);
        assert!(killed(a) && killed(b));
        assert_eq!(groups.oom_kills("/skep/t"), 2);
        groups.kill_once("/skep/t", &[]);
        assert!(killed(spared));
        assert_eq!(groups.kill_once("/skep/none", &[]), 0);
    }

    #[test]
    fn version_2_kills_by_the_groups_own_switch() {
        let root = tempfile::tempdir().unwrap();
        let groups = v2_tree(root.path());
        let child = sleeper();
        group(
            root.path(),
            "skep/t",
            &[
                ("cgroup.procs", &child.id().to_string()),
                ("cgroup.kill", ""),
                ("memory.events", "low 0\noom 1\noom_kill 1\n"),
            ],
        );
        assert_eq!(groups.kill_once("/skep/t", &[]), 1);
        assert_eq!(fs::read_to_string(root.path().join("skep/t/cgroup.kill")).unwrap(), "1");
        assert!(killed(child));
        assert_eq!(groups.oom_kills("/skep/t"), 1);
        let stuck = groups.kill_all("/skep/t", &[], Duration::ZERO);
        assert!(matches!(stuck, Err(CgroupError::Alive { count: 1, .. })));
    }

    #[test]
    fn adoption_makes_the_group_where_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let groups = v1_tree(root.path());
        groups.adopt("/skep/shim", &[7]).unwrap();
        let procs =
            |h: &str| fs::read_to_string(root.path().join(h).join("skep/shim/cgroup.procs"));
        assert_eq!(procs("memory").unwrap(), "7");
        assert_eq!(procs("systemd").unwrap(), "7");
        assert!(procs("cpu,cpuacct").is_err());
        assert!(groups.exists("/skep/shim"));
        for h in ["memory", "pids", "systemd"] {
            fs::remove_file(root.path().join(h).join("skep/shim/cgroup.procs")).unwrap();
        }
        groups.abandon("/skep/shim", 7);
        assert!(!groups.exists("/skep/shim"));
    }
}
