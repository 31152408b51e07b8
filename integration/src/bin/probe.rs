//! A hostile program for the tests in `tests/hostile`: in a container it tries system calls that
//! must be refused, on the host it opens connections and keeps them.
#![allow(clippy::print_stdout, reason = "its output is what the tests read")]

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::{self, c_long};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["calls", pid] => calls(pid.parse()?),
        ["open", path, flags] => {
            told("open", open(path, if *flags == "w" { libc::O_WRONLY } else { libc::O_RDONLY }));
            Ok(())
        }
        ["hold", socket, count, kind] => hold(socket, count.parse()?, kind),
        other => bail!("no such probe: {other:?}"),
    }
}

/// Prints what a call came to: `NAME ok` or `NAME ERRNO`.
fn told(name: &str, result: c_long) {
    match Errno::result(result) {
        Ok(_) => println!("{name} ok"),
        Err(errno) => println!("{name} {errno:?}"),
    }
}

/// One raw system call.
fn call(number: c_long, arguments: [c_long; 5]) -> c_long {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every pointer passed is null or to memory that outlives the call; a call that the
    // kernel should carry out all the same changes this throw-away process and its container only.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

fn open(path: &str, flags: i32) -> c_long {
    let Ok(path) = CString::new(path) else { return -1 };
    call(libc::SYS_openat, [libc::AT_FDCWD.into(), path.as_ptr() as c_long, flags.into(), 0, 0])
}

/// Tries everything that is about the whole machine, or about the process `host` on it.
fn calls(host: c_long) -> Result<()> {
    let path = |text: &str| CString::new(text).context("a path");
    let (root, none, kind) = (path("/")?, path("none")?, path("tmpfs")?);
    let (root, none, kind) =
        (root.as_ptr() as c_long, none.as_ptr() as c_long, kind.as_ptr() as c_long);
    let secrets = path("/run/secrets")?;
    let secrets = secrets.as_ptr() as c_long;
    let namespace = open("/proc/1/ns/mnt", libc::O_RDONLY);
    let remount = (libc::MS_REMOUNT | libc::MS_BIND) as c_long;
    let new_mounts = c_long::from(libc::CLONE_NEWNS);
    let new_users = c_long::from(libc::CLONE_NEWUSER);
    let attempts: [(&str, c_long, [c_long; 5]); 39] = [
        ("mount", libc::SYS_mount, [none, root, kind, 0, 0]),
        ("remount", libc::SYS_mount, [none, secrets, kind, remount, 0]),
        ("umount", libc::SYS_umount2, [secrets, 0, 0, 0, 0]),
        ("detach", libc::SYS_umount2, [secrets, libc::MNT_DETACH.into(), 0, 0, 0]),
        ("mount_setattr", libc::SYS_mount_setattr, [libc::AT_FDCWD.into(), secrets, 0, 0, 0]),
        ("open_tree", libc::SYS_open_tree, [libc::AT_FDCWD.into(), secrets, 0, 0, 0]),
        ("move_mount", libc::SYS_move_mount, [libc::AT_FDCWD.into(), secrets, -100, root, 0]),
        ("fsopen", libc::SYS_fsopen, [kind, 0, 0, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [root, root, 0, 0, 0]),
        ("setns", libc::SYS_setns, [namespace, 0, 0, 0, 0]),
        ("unshare_mounts", libc::SYS_unshare, [new_mounts, 0, 0, 0, 0]),
        ("unshare_users", libc::SYS_unshare, [new_users, 0, 0, 0, 0]),
        ("clone_users", libc::SYS_clone, [new_users | 17, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0, 0, 0]),
        ("kill_host", libc::SYS_kill, [host, 0, 0, 0, 0]),
        ("ptrace_host", libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), host, 0, 0, 0]),
        ("pidfd_host", libc::SYS_pidfd_open, [host, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0]),
        ("read_memory", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0]),
        ("write_memory", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0]),
        ("kcmp", libc::SYS_kcmp, [1, 1, 0, 0, 0]),
        ("add_key", libc::SYS_add_key, [0, 0, 0, 0, 0]),
        ("request_key", libc::SYS_request_key, [0, 0, 0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, -3, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0, 0, 0]),
        ("finit_module", libc::SYS_finit_module, [0, 0, 0, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, 0, 0]),
        ("reboot", libc::SYS_reboot, [0, 0, 0, 0, 0]),
        ("swapon", libc::SYS_swapon, [root, 0, 0, 0, 0]),
        ("clock_settime", libc::SYS_clock_settime, [0, 0, 0, 0, 0]),
        ("syslog", libc::SYS_syslog, [3, 0, 0, 0, 0]),
        ("acct", libc::SYS_acct, [0, 0, 0, 0, 0]),
        ("quotactl", libc::SYS_quotactl, [0, 0, 0, 0, 0]),
        ("sethostname", libc::SYS_sethostname, [root, 1, 0, 0, 0]),
        ("open_by_handle", libc::SYS_open_by_handle_at, [0, 0, 0, 0, 0]),
        ("name_to_handle", libc::SYS_name_to_handle_at, [0, root, 0, 0, 0]),
    ];
    for (name, number, arguments) in attempts {
        told(name, call(number, arguments));
    }
    Ok(())
}

/// Opens connections and keeps them until standard input ends. One that the server closes is
/// opened anew.
fn hold(socket: &str, count: usize, kind: &str) -> Result<()> {
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&ended);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let mut held: Vec<Option<UnixStream>> = (0..count).map(|_| None).collect();
    let mut round = 0_usize;
    while !ended.load(std::sync::atomic::Ordering::SeqCst) {
        for slot in &mut held {
            if slot.as_mut().is_none_or(|stream| push(stream, kind, round).is_err()) {
                *slot = UnixStream::connect(socket).ok();
                if let Some(stream) = slot {
                    stream.set_nonblocking(true)?;
                    let _ = stream.write_all(opening(kind).as_bytes());
                }
            }
        }
        round += 1;
        if round == 1 {
            println!("ready");
        }
        std::thread::sleep(Duration::from_millis(if kind == "garbage" { 1 } else { 500 }));
    }
    Ok(())
}

/// What a connection begins with.
fn opening(kind: &str) -> String {
    let post = "POST /secrets/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    match kind {
        "body" => format!("{post}Content-Length: 4000000\r\n\r\n{{"),
        "chunks" => format!("{post}Transfer-Encoding: chunked\r\n\r\n"),
        "large" => format!("{post}Content-Length: 500000000\r\n\r\n{}", "x".repeat(1 << 16)),
        "headers" => "GET /_ping HTTP/1.1\r\nHost: x\r\n".to_owned(),
        "unread" => "GET /info HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200),
        "garbage" => "\x16\x03\x01GET / HTTP/9.9\r\n\r\n".repeat(20),
        _ => String::new(),
    }
}

/// What it goes on with: a byte now and then, or as much as the server takes.
fn push(stream: &mut UnixStream, kind: &str, round: usize) -> std::io::Result<()> {
    let more = match kind {
        "body" => "x".to_owned(),
        "chunks" => format!("1000\r\n{}\r\n", "y".repeat(0x1000)),
        "headers" if round % 40 == 39 => "a: b\r\n".to_owned(),
        "headers" => "X".to_owned(),
        "unread" => "GET /info HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "garbage" => "\0\r\n".repeat(10),
        _ => return alive(stream),
    };
    match stream.write(more.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        other => other.map(drop),
    }
}

/// Whether the server has kept the connection.
fn alive(stream: &mut UnixStream) -> std::io::Result<()> {
    match stream.read(&mut [0; 512]) {
        Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}
