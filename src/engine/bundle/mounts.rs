//! What is mounted in a container, beside its root and its secrets.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use skep_core::model::container::{Mount, MountKind};

use super::Inputs;
use crate::engine::files::{HOSTNAME_FILE, HOSTS_FILE, RESOLV_FILE};
use crate::engine::plan::PlanError;

/// Memory of `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;
/// These stay writable in a container whose root is read-only.
const WRITABLE: [&str; 5] = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"];

/// All mounts: the kernel's, the task's own files, then the user's, parents first.
pub(super) fn all(inputs: &Inputs<'_>) -> Result<Vec<Value>, PlanError> {
    let read_only = inputs.spec.read_only;
    let mut targets = BTreeSet::new();
    let mut wanted = Vec::new();
    for mount in &inputs.spec.mounts {
        let target = clean(&mount.target)?;
        if !targets.insert(target.clone()) {
            return Err(PlanError::DuplicateMount(target));
        }
        wanted.push((depth(&target), user(mount, &target)?));
    }
    wanted.sort_by_key(|(depth, _)| *depth);
    let files = [RESOLV_FILE, HOSTNAME_FILE, HOSTS_FILE];
    let own = kernel().into_iter().chain(files.iter().map(|file| etc(inputs.task_dir, file)));
    let mut mounts = Vec::new();
    for mut mount in own {
        let target = mount["destination"].as_str().unwrap_or_default().to_owned();
        let is_covered =
            |under: &String| *under == target || under == "/dev" && is_below_dev(&target);
        if targets.iter().any(is_covered) {
            continue;
        }
        let is_locked = read_only && !WRITABLE.contains(&&*target);
        if let Some(options) = mount["options"].as_array_mut().filter(|_| is_locked)
            && !options.contains(&json!("ro"))
        {
            options.push(json!("ro"));
        }
        mounts.push(mount);
    }
    mounts.extend(wanted.into_iter().map(|(_, mount)| mount));
    Ok(mounts)
}

/// How the root must propagate for the user's binds to do so.
pub(super) fn root_propagation(mounts: &[Mount]) -> Option<&'static str> {
    let has = |word: &str| mounts.iter().any(|m| m.propagation.ends_with(word));
    match (has("shared"), has("slave")) {
        (true, _) => Some("shared"),
        (false, true) => Some("slave"),
        (false, false) => None,
    }
}

fn is_below_dev(target: &str) -> bool {
    target.starts_with("/dev/")
}

fn depth(path: &str) -> usize {
    path.split('/').count()
}

/// A target without trailing and double slashes.
fn clean(target: &str) -> Result<String, PlanError> {
    let bad = |why| PlanError::MountTarget { target: target.to_owned(), why };
    if !target.starts_with('/') {
        return Err(bad("it must be an absolute path"));
    }
    let parts: Vec<_> = target.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(bad("it must not climb"));
    }
    if parts.is_empty() {
        return Err(bad("it can't be '/'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn kernel() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let strict = ["nosuid", "noexec", "nodev"];
    let shm_size = format!("size={SHM_BYTES}");
    vec![
        mount("/proc", "proc", "proc", &strict),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &strict),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size]),
    ]
}

fn etc(task_dir: &Path, file: &str) -> Value {
    json!({
        "destination": format!("/etc/{file}"),
        "type": "bind",
        "source": task_dir.join(file),
        "options": ["rbind", "rprivate"],
    })
}

fn user(mount: &Mount, target: &str) -> Result<Value, PlanError> {
    match mount.kind {
        MountKind::Bind => bind(mount, target),
        MountKind::Tmpfs => Ok(tmpfs(mount, target)),
        MountKind::Volume => Err(PlanError::Volume(match mount.source.as_str() {
            "" => format!("an unnamed one at {target}"),
            name => format!("{name:?} at {target}"),
        })),
    }
}

fn bind(mount: &Mount, target: &str) -> Result<Value, PlanError> {
    if !mount.source.starts_with('/') {
        return Err(PlanError::BindSource(mount.source.clone()));
    }
    let propagation = match mount.propagation.as_str() {
        "" => "rprivate",
        word @ ("private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave") => word,
        other => return Err(PlanError::Propagation(other.to_owned())),
    };
    let mut options = vec![if mount.non_recursive { "bind" } else { "rbind" }];
    if mount.read_only {
        options.push("ro");
    }
    options.push(propagation);
    Ok(json!({
        "destination": target,
        "type": "bind",
        "source": mount.source,
        "options": options,
    }))
}

fn tmpfs(mount: &Mount, target: &str) -> Value {
    let mut options: Vec<String> =
        ["noexec", "nosuid", "nodev", "rprivate"].map(str::to_owned).into();
    if mount.read_only {
        options.push("ro".into());
    }
    if mount.tmpfs_mode != 0 {
        options.push(format!("mode={:o}", mount.tmpfs_mode & 0o7777));
    }
    if mount.tmpfs_size != 0 {
        options.push(format!("size={}", mount.tmpfs_size));
    }
    json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
}
