//! What only the shim knows of a bundle, put into it; and the description of a further process.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use skep_core::model::container::Ulimit;

use super::user::User;
use crate::wire::shim::ExecStart;

/// Options of every bind that shows secrets.
const BIND_OPTIONS: [&str; 6] = ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
/// Every capability, by the number of its bit.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A bundle that is no runtime config.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    #[error("the bundle is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("the bundle has no {0}")]
    Lacks(&'static str),
}

/// What is put into a bundle.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// The mounted root.
    pub(super) root: &'a Path,
    /// Whom the first process runs as.
    pub(super) user: &'a User,
    /// Source on the host and target in the container of each bind of secrets.
    pub(super) binds: &'a [(PathBuf, PathBuf)],
    /// Group below the hierarchies' mounts.
    pub(super) cgroup: &'a str,
    /// Path of a network namespace, or empty.
    pub(super) netns: &'a str,
}

/// A bundle that can be run.
#[derive(Debug)]
pub(super) struct Finished {
    /// Content of `config.json`.
    pub(super) config: Vec<u8>,
    /// Whether the first process has a terminal.
    pub(super) terminal: bool,
}

/// Puts what only the shim knows into a bundle.
pub(super) fn finish(bundle: &str, facts: &Facts<'_>) -> Result<Finished, BundleError> {
    let mut config: Value = serde_json::from_str(bundle)?;
    let config_map = config.as_object_mut().ok_or(BundleError::Lacks("object"))?;
    let root = member(config_map, "root")?;
    root.insert("path".into(), json!(facts.root));
    let process = config_map
        .get_mut("process")
        .and_then(Value::as_object_mut)
        .ok_or(BundleError::Lacks("process"))?;
    process.insert("user".into(), user(facts.user));
    let terminal = process.get("terminal") == Some(&json!(true));
    // Else the container would inherit how little the kernel's killer thinks of the shim.
    process.entry("oomScoreAdj").or_insert(json!(0));
    let mounts = config_map.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts.as_array_mut().ok_or(BundleError::Lacks("list of mounts"))?;
    mounts.extend(facts.binds.iter().map(|(source, target)| {
        json!({"destination": target, "type": "bind", "source": source, "options": BIND_OPTIONS})
    }));
    let linux = member(config_map, "linux")?;
    linux.entry("cgroupsPath").or_insert(json!(facts.cgroup));
    if !facts.netns.is_empty() {
        set_network(linux, facts.netns);
    }
    Ok(Finished { config: serde_json::to_vec(&config)?, terminal })
}

type Object = Map<String, Value>;

/// An object in an object, made if it is not there.
fn member<'a>(map: &'a mut Object, name: &'static str) -> Result<&'a mut Object, BundleError> {
    let value = map.entry(name).or_insert_with(|| json!({}));
    value.as_object_mut().ok_or(BundleError::Lacks(name))
}

fn set_network(linux: &mut Object, path: &str) {
    let list = linux.entry("namespaces").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    list.retain(|namespace| namespace.get("type") != Some(&json!("network")));
    list.push(json!({"type": "network", "path": path}));
}

fn user(user: &User) -> Value {
    json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups})
}

/// How an exec differs from the container.
#[derive(Debug)]
pub(super) struct ExecFacts<'a> {
    /// Whom it runs as, if somebody else.
    pub(super) user: Option<&'a User>,
    /// Resource limits, if others.
    pub(super) ulimits: &'a [Ulimit],
    /// Bits of the capabilities that can be given.
    pub(super) grantable: u64,
}

/// The description of a further process, after the container's own.
pub(super) fn exec_process(
    config: &[u8],
    exec: &ExecStart,
    facts: &ExecFacts<'_>,
) -> Result<Vec<u8>, BundleError> {
    let config: Value = serde_json::from_slice(config)?;
    let own = config.get("process").ok_or(BundleError::Lacks("process"))?;
    let mut process = Map::new();
    process.insert("terminal".into(), json!(exec.tty));
    process.insert("args".into(), json!(exec.args));
    process.insert("env".into(), json!(environment(own, exec)));
    let cwd = own.get("cwd").cloned().unwrap_or_else(|| json!("/"));
    process.insert("cwd".into(), if exec.cwd.is_empty() { cwd } else { json!(exec.cwd) });
    for kept in ["user", "noNewPrivileges", "apparmorProfile", "selinuxLabel", "rlimits"] {
        if let Some(value) = own.get(kept) {
            process.insert(kept.into(), value.clone());
        }
    }
    if let Some(as_user) = facts.user {
        process.insert("user".into(), user(as_user));
    }
    if !facts.ulimits.is_empty() {
        process.insert("rlimits".into(), facts.ulimits.iter().map(rlimit).collect());
    }
    let capabilities = if exec.privileged {
        let all = capabilities(facts.grantable);
        Some(json!({"bounding": all, "effective": all, "permitted": all}))
    } else {
        own.get("capabilities").cloned()
    };
    if let Some(capabilities) = capabilities {
        process.insert("capabilities".into(), capabilities);
    }
    if let Some((rows, cols)) = exec.size.filter(|_| exec.tty) {
        process.insert("consoleSize".into(), json!({"height": rows, "width": cols}));
    }
    Ok(serde_json::to_vec(&process)?)
}

fn capabilities(bits: u64) -> Vec<&'static str> {
    let given = CAPABILITIES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
    given.map(|(_, name)| *name).collect()
}

/// The bits of this process's own capabilities: no more can be given.
pub(super) fn grantable(status: &str) -> u64 {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// The container's environment with the exec's in its place or behind it.
fn environment(own: &Value, exec: &ExecStart) -> Vec<String> {
    let own = own.get("env").and_then(Value::as_array);
    let mut env: Vec<String> =
        own.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    if exec.tty && !env.iter().any(|pair| name(pair) == "TERM") {
        env.push("TERM=xterm".into());
    }
    for pair in &exec.env {
        match env.iter_mut().find(|have| name(have) == name(pair)) {
            Some(have) => have.clone_from(pair),
            None => env.push(pair.clone()),
        }
    }
    env
}

fn rlimit(limit: &Ulimit) -> Value {
    let bound = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    json!({
        "type": format!("RLIMIT_{}", limit.name.to_uppercase()),
        "hard": bound(limit.hard),
        "soft": bound(limit.soft),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUNDLE: &str = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":9,"gid":9},
        "args":["sh"],"env":["PATH=/bin","A=1"],"cwd":"/w","noNewPrivileges":true,
        "capabilities":{"bounding":["CAP_CHOWN"]}},"root":{"path":"x","readonly":true},
        "mounts":[{"destination":"/proc"}],
        "linux":{"namespaces":[{"type":"pid"},{"type":"network"}]}}"#;

    fn alice() -> User {
        User { uid: 5, gid: 6, groups: vec![6, 7] }
    }

    fn exec() -> ExecStart {
        ExecStart {
            id: "e".into(),
            args: vec!["cat".into(), "/run/secrets/x".into()],
            env: vec!["A=2".into(), "B=3".into()],
            cwd: String::new(),
            user: String::new(),
            tty: false,
            privileged: false,
            size: None,
        }
    }

    #[test]
    fn a_bundle_gets_root_user_binds_and_groups() {
        let facts = Facts {
            root: Path::new("/r/rootfs"),
            user: &alice(),
            binds: &[("/r/secrets/secrets".into(), "/run/secrets".into())],
            cgroup: "/skep/n/t",
            netns: "/run/netns/t",
        };
        let done: Value = serde_json::from_slice(&finish(BUNDLE, &facts).unwrap().config).unwrap();
        assert_eq!(done["root"], json!({"path": "/r/rootfs", "readonly": true}));
        assert_eq!(done["process"]["user"], json!({"uid": 5, "gid": 6, "additionalGids": [6, 7]}));
        assert_eq!(done["process"]["oomScoreAdj"], 0);
        assert_eq!(done["mounts"][1]["destination"], "/run/secrets");
        assert_eq!(
            done["mounts"][1]["options"],
            json!(["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"])
        );
        assert_eq!(done["linux"]["cgroupsPath"], "/skep/n/t");
        assert_eq!(
            done["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/t"}])
        );
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let facts =
            Facts { root: Path::new("/r"), user: &alice(), binds: &[], cgroup: "/c", netns: "" };
        assert!(matches!(finish("[]", &facts), Err(BundleError::Lacks("object"))));
        assert!(matches!(finish("{}", &facts), Err(BundleError::Lacks("process"))));
        assert!(matches!(finish("{", &facts), Err(BundleError::Json(_))));
    }

    #[test]
    fn an_exec_is_made_after_the_container() {
        let status = "Name:\tskep\nCapPrm:\t0000000000000021\n";
        let same = ExecFacts { user: None, ulimits: &[], grantable: grantable(status) };
        let made = exec_process(BUNDLE.as_bytes(), &exec(), &same).unwrap();
        let made: Value = serde_json::from_slice(&made).unwrap();
        assert_eq!(made["env"], json!(["PATH=/bin", "A=2", "B=3"]));
        assert_eq!(made["cwd"], "/w");
        assert_eq!(made["user"]["uid"], 9);
        assert_eq!(made["noNewPrivileges"], true);
        assert_eq!(made["capabilities"]["bounding"], json!(["CAP_CHOWN"]));

        let limit = Ulimit { name: "nofile".into(), hard: -1, soft: 64 };
        let more = ExecStart { privileged: true, tty: true, cwd: "/x".into(), ..exec() };
        let facts = ExecFacts { user: Some(&alice()), ulimits: &[limit], ..same };
        let made = exec_process(BUNDLE.as_bytes(), &more, &facts).unwrap();
        let made: Value = serde_json::from_slice(&made).unwrap();
        assert_eq!(made["user"]["additionalGids"], json!([6, 7]));
        assert_eq!(made["capabilities"]["effective"], json!(["CAP_CHOWN", "CAP_KILL"]));
        assert_eq!(
            made["rlimits"],
            json!([{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 64}])
        );
        assert_eq!((&made["cwd"], &made["terminal"]), (&json!("/x"), &json!(true)));
        assert_eq!(made["env"][2], "TERM=xterm");
    }
}
