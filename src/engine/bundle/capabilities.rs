//! Which capabilities a container has.

use crate::engine::plan::PlanError;

/// Every capability the kernel knows.
pub(super) const ALL: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// What a container has unless its spec says otherwise.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The default, less what is dropped, with what is added. `ALL` means every one.
pub(super) fn of(add: &[String], drop: &[String]) -> Result<Vec<&'static str>, PlanError> {
    let (add_all, add) = known(add)?;
    let (drop_all, drop) = known(drop)?;
    let base: &[&'static str] = match (add_all, drop_all) {
        (true, _) => &ALL,
        (false, true) => &[],
        (false, false) => &DEFAULT,
    };
    let kept = base.iter().filter(|name| !drop.contains(name)).copied();
    let mut capabilities: Vec<&'static str> = kept.collect();
    for name in add {
        if !capabilities.contains(&name) {
            capabilities.push(name);
        }
    }
    Ok(capabilities)
}

/// Whether `ALL` is among these names, and the rest of them in the kernel's spelling.
fn known(names: &[String]) -> Result<(bool, Vec<&'static str>), PlanError> {
    let mut known = Vec::new();
    let mut is_all = false;
    for name in names {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            is_all = true;
            continue;
        }
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = ALL.iter().find(|known| known.strip_prefix("CAP_") == Some(bare));
        known.push(*found.ok_or_else(|| PlanError::Capability(name.clone()))?);
    }
    Ok((is_all, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn additions_and_drops_change_the_default() {
        assert_eq!(of(&[], &[]).unwrap(), DEFAULT);
        let one = of(&names(&["net_admin", "CAP_CHOWN"]), &names(&["all"])).unwrap();
        assert_eq!(one, ["CAP_NET_ADMIN", "CAP_CHOWN"]);
        let most = of(&names(&["ALL"]), &names(&["CAP_SYS_ADMIN"])).unwrap();
        assert_eq!(most.len(), ALL.len() - 1);
        let fewer = of(&[], &names(&["MKNOD"])).unwrap();
        assert_eq!(fewer.len(), DEFAULT.len() - 1);
        assert!(of(&names(&["CAP_FLY"]), &[]).is_err());
    }
}
