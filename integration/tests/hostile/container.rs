//! Root inside a container against its mounts, `/proc`, the sockets, the cgroup and the kernel.

use std::fs;

use anyhow::{Context, Result, ensure};
use skep_integration::{Bench, Program, shared};

use super::PROBE;

/// System calls with the errors they must end in: those of Docker's default container.
const CALLS: [(&str, &str); 39] = [
    ("mount", "EPERM"),
    ("remount", "EPERM"),
    ("umount", "EPERM"),
    ("detach", "EPERM"),
    ("mount_setattr", "EPERM"),
    ("open_tree", "EPERM"),
    ("move_mount", "EPERM"),
    ("fsopen", "EPERM"),
    ("pivot_root", "EPERM"),
    ("setns", "EPERM"),
    ("unshare_mounts", "EPERM"),
    ("unshare_users", "EPERM"),
    ("clone_users", "EPERM"),
    ("clone3", "ENOSYS"),
    ("kill_host", "ESRCH"),
    ("ptrace_host", "ESRCH"),
    ("pidfd_host", "ESRCH"),
    ("pidfd_getfd", "EPERM"),
    ("read_memory", "EPERM"),
    ("write_memory", "EPERM"),
    ("kcmp", "EPERM"),
    ("add_key", "EPERM"),
    ("request_key", "EPERM"),
    ("keyctl", "EPERM"),
    ("bpf", "EPERM"),
    ("perf_event_open", "EPERM"),
    ("userfaultfd", "EPERM"),
    ("init_module", "EPERM"),
    ("finit_module", "EPERM"),
    ("kexec_load", "EPERM"),
    ("reboot", "EPERM"),
    ("swapon", "EPERM"),
    ("clock_settime", "EPERM"),
    ("syslog", "EPERM"),
    ("acct", "EPERM"),
    ("quotactl", "EPERM"),
    ("sethostname", "EPERM"),
    ("open_by_handle", "EPERM"),
    ("name_to_handle", "EPERM"),
];

/// Files of the kernel that must not open to write, with the error.
const WRITES: [(&str, &str); 8] = [
    ("/proc/sys/kernel/core_pattern", "EROFS"),
    ("/proc/sys/kernel/modprobe", "EROFS"),
    ("/proc/sys/fs/protected_hardlinks", "EROFS"),
    ("/proc/sysrq-trigger", "EROFS"),
    ("/proc/irq/default_smp_affinity", "EROFS"),
    ("/sys/kernel/uevent_helper", "EROFS"),
    ("/sys/kernel/mm/ksm/run", "EROFS"),
    ("/dev/fuse", "ENOENT"),
];

/// Device nodes that root may make and not open: the FUSE device, memory, the first disks.
const DEVICES: [(&str, &str, &str); 6] = [
    ("c", "10", "229"),
    ("c", "1", "1"),
    ("c", "1", "4"),
    ("b", "254", "0"),
    ("b", "8", "0"),
    ("b", "7", "0"),
];

/// A victim and an attacker, each with a secret of its own; both sleep.
struct Pair<'a> {
    bench: Bench<'a>,
    victim: String,
    attacker: String,
    victim_pid: i64,
}

fn pair(tag: &str) -> Result<Pair<'static>> {
    let bench = Bench::new(shared()?, Program::Skep, tag.to_owned());
    let probe = format!("type=bind,src={PROBE},dst=/probe,readonly");
    let mut containers = Vec::new();
    for base in ["victim", "attacker"] {
        let secret = bench.secret(base, format!("of the {base}"))?;
        let grant = format!("source={secret},target=own");
        let flags = ["--secret", &grant, "--mount", &probe];
        containers.push(bench.container(&bench.sleeper(base, &flags)?)?);
    }
    let [victim, attacker] = <[String; 2]>::try_from(containers).ok().context("two containers")?;
    let shown = bench.node.get(&format!("/containers/{victim}/json"))?;
    let victim_pid = shown["State"]["Pid"].as_i64().context("no Pid")?;
    Ok(Pair { bench, victim, attacker, victim_pid })
}

impl Pair<'_> {
    /// What a shell of the attacker says of a script, and its exit code.
    fn attack(&self, script: &str) -> Result<(i32, String)> {
        let out = self.bench.cli.run(&["exec", &self.attacker, "sh", "-c", script])?;
        Ok((out.code, out.stdout + &out.stderr))
    }

    /// Nothing that was tried has changed anything.
    fn unharmed(&self) -> Result<()> {
        for (container, base) in [(&self.victim, "victim"), (&self.attacker, "attacker")] {
            let read = self.bench.exec(container, &["cat", "/run/secrets/own"])?;
            ensure!(read == format!("of the {base}"), "{base} reads {read:?}");
        }
        let shown = self.bench.node.get(&format!("/containers/{}/json", self.victim))?;
        ensure!(shown["State"]["Pid"] == self.victim_pid, "the victim was replaced: {shown}");
        Ok(())
    }
}

#[test]
fn system_calls_on_the_machine_are_refused() -> Result<()> {
    let pair = pair("calls")?;
    let host = pair.victim_pid.to_string();
    let told = pair.bench.exec(&pair.attacker, &["/probe", "calls", &host])?;
    let told: Vec<_> = told.lines().filter_map(|line| line.split_once(' ')).collect();
    let wrong: Vec<_> = CALLS.iter().filter(|expected| !told.contains(expected)).collect();
    ensure!(wrong.is_empty(), "expected {wrong:?}\ntold {told:?}");
    pair.unharmed()
}

#[test]
fn mounts_of_secrets_stay_as_they_are() -> Result<()> {
    let pair = pair("mounts")?;
    for attempt in [
        "umount /run/secrets",
        "umount -l /run/secrets",
        "mount -o remount,rw /run/secrets",
        "mount -o remount,rw,bind /run/secrets",
        "mount -t tmpfs none /run/secrets",
        "mount --bind /etc /run/secrets",
        "mount -t fuse none /mnt -o fd=3,rootmode=40000,user_id=0,group_id=0 3</dev/null",
        "mount -t cgroup none /mnt",
        "mount -t proc none /mnt",
        "unshare -m umount /run/secrets",
        "unshare -r true",
        "nsenter -t 1 -m true",
        "pivot_root / /mnt",
        "rmmod fuse",
    ] {
        let (code, text) = pair.attack(attempt)?;
        let refused = ["not permitted", "denied", "Operation not"];
        ensure!(
            code != 0 && refused.iter().any(|why| text.contains(why)),
            "{attempt}: {code} {text}"
        );
    }
    for attempt in [
        "echo x >/run/secrets/own",
        "rm /run/secrets/own",
        "mv /run/secrets /run/other",
        "mknod /run/secrets/node c 1 3",
        "ln /run/secrets/own /run/secrets/link",
        "chmod 0 /run/secrets/own",
        "chown 1 /run/secrets/own",
        "truncate -s 0 /run/secrets/own",
    ] {
        let (code, text) = pair.attack(attempt)?;
        let refused = ["Read-only file system", "busy"];
        ensure!(
            code != 0 && refused.iter().any(|why| text.contains(why)),
            "{attempt}: {code} {text}"
        );
    }
    pair.unharmed()
}

#[test]
fn the_kernels_files_are_closed() -> Result<()> {
    let pair = pair("kernel")?;
    let pattern = fs::read("/proc/sys/kernel/core_pattern")?;
    for (path, expected) in WRITES {
        if path != "/dev/fuse" && !fs::exists(path)? {
            continue;
        }
        let told = pair.bench.exec(&pair.attacker, &["/probe", "open", path, "w"])?;
        ensure!(told == format!("open {expected}"), "{path}: {told}");
    }
    // Every file of every cgroup hierarchy it sees.
    let script = "find /sys/fs/cgroup -type f -exec sh -c \
        'for f; do if (echo 1 >\"$f\") 2>/dev/null; then echo wrote $f; fi; done' sh {} +; echo end";
    let (_, text) = pair.attack(script)?;
    ensure!(text.trim() == "end", "cgroup files: {text}");
    // Keys of the kernel, its memory: there, and empty.
    for empty in ["/proc/keys", "/proc/kcore", "/proc/timer_list"] {
        let (_, text) = pair.attack(&format!("head -c 16 {empty} 2>/dev/null | wc -c"))?;
        ensure!(text.trim() == "0", "{empty}: {text}");
    }
    ensure!(fs::read("/proc/sys/kernel/core_pattern")? == pattern, "core_pattern was changed");
    pair.unharmed()
}

#[test]
fn device_nodes_open_nothing() -> Result<()> {
    let pair = pair("devices")?;
    for (kind, major, minor) in DEVICES {
        let (code, text) = pair.attack(&format!("rm -f /n; mknod /n {kind} {major} {minor}"))?;
        ensure!(code == 0, "mknod {kind} {major} {minor}: {text}");
        for flags in ["r", "w"] {
            let told = pair.bench.exec(&pair.attacker, &["/probe", "open", "/n", flags])?;
            ensure!(told == "open EPERM", "{kind} {major} {minor} for {flags}: {told}");
        }
    }
    pair.unharmed()
}

#[test]
fn nothing_of_the_host_is_in_sight() -> Result<()> {
    let pair = pair("sight")?;
    // Its own processes alone, and their roots and descriptors lead nowhere else.
    let (_, pids) =
        pair.attack("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done")?;
    ensure!(!pids.contains("skep") && !pids.contains("shim"), "{pids}");
    let (_, roots) =
        pair.attack("ls /proc/*/root/ 2>/dev/null | grep -c probe; ls -l /proc/*/fd 2>&1")?;
    ensure!(!roots.contains("fuse") && !roots.contains("shim.sock"), "{roots}");
    let host = pair.victim_pid;
    for path in ["root/run/secrets/own", "mem", "environ", "fd/0", "ns/mnt"] {
        let told = pair
            .bench
            .exec(&pair.attacker, &["/probe", "open", &format!("/proc/{host}/{path}"), "r"])?;
        // The number may be that of a process of its own only by chance: it is far above those.
        ensure!(told == "open ENOENT", "/proc/{host}/{path}: {told}");
    }
    let (_, sockets) = pair.attack("find / -xdev -type s 2>/dev/null; cat /proc/net/unix")?;
    ensure!(!sockets.contains("skep.sock") && !sockets.contains("shim.sock"), "{sockets}");
    let root = pair.bench.node.run_root().display().to_string();
    let (code, text) = pair.attack(&format!("ls {root}"))?;
    ensure!(code != 0, "the run root is there: {text}");
    pair.unharmed()
}
