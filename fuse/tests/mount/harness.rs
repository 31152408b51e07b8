//! A filesystem in a mount namespace of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use skep_fuse::limits;
use skep_fuse::server::{Member, Server};
use skep_fuse::tree::Grant;
use skep_fuse::vault::{Vault, VaultKind};

/// A mounted filesystem with its vault, below a scratch directory.
pub(crate) struct World {
    pub(crate) vault: Vault,
    pub(crate) server: Server,
    /// Holds `mnt` (the mount) and whatever a test adds.
    pub(crate) dir: PathBuf,
}

impl World {
    /// Mounts in the calling thread's namespace.
    pub(crate) fn new(kind: VaultKind, dir: &Path) -> World {
        let mnt = dir.join("mnt");
        fs::create_dir(&mnt).unwrap();
        let vault = Vault::new(kind, limits::VAULT_BYTES).unwrap();
        let server = Server::mount(&mnt).unwrap();
        World { vault, server, dir: dir.to_owned() }
    }

    pub(crate) fn member(&self, grant: Grant, bytes: &[u8]) -> Member {
        let filled = self.vault.store(bytes.len(), |slot| {
            slot.copy_from_slice(bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        let grant = Grant { size: bytes.len() as u64, ..grant };
        Member { grant, content: Arc::new(filled.unwrap()) }
    }

    /// Delivers one version of one secret at a target of the same name.
    pub(crate) fn deliver(&self, name: &str, version: u64, bytes: &[u8]) {
        let member = self.member(grant(name, version), bytes);
        let delivered = self.server.deliver(vec![member]).unwrap();
        assert_eq!(delivered.unsettled, None);
    }

    /// A path below `/run/secrets` as the shim's mount has it.
    pub(crate) fn secret(&self, name: &str) -> PathBuf {
        self.dir.join("mnt/secrets").join(name)
    }
}

pub(crate) fn grant(name: &str, version: u64) -> Grant {
    Grant {
        target: name.to_owned(),
        secret: name.to_owned(),
        version,
        uid: 0,
        gid: 0,
        mode: 0o444,
        size: 0,
        mtime_ns: 1_700_000_000_000_000_000 + version as i64 * 1_000_000_000,
    }
}

/// Bytes in which every value occurs, NUL too, and no two pages are alike.
pub(crate) fn binary(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8).collect()
}

/// A process beside the test, made of an ignored test of this program. It does what it reads
/// line by line, and says a line when that is done.
pub(crate) struct Helper {
    pub(crate) child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What stands before a helper's answers: the test framework prints lines of its own.
const ANSWER: &str = "answer: ";

/// Says one line, from inside a helper.
pub(crate) fn answer(line: impl std::fmt::Display) {
    println!("\n{ANSWER}{line}");
}

impl Helper {
    /// Starts it and waits for its first line.
    pub(crate) fn start(test: &str, variables: &[(&str, &str)]) -> Helper {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut helper = Helper { child, commands, answers };
        helper.hear().unwrap();
        helper
    }

    /// Has it do something; `None` if it died of that.
    pub(crate) fn ask(&mut self, command: &str) -> Option<String> {
        writeln!(self.commands, "{command}").unwrap();
        self.hear()
    }

    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.answers.read_line(&mut line).unwrap() > 0 {
            if let Some(answer) = line.trim_end().strip_prefix(ANSWER) {
                return Some(answer.to_owned());
            }
            line.clear();
        }
        None
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a test in a mount namespace of its own, which ends with its thread and the server's.
pub(crate) fn private(test: impl FnOnce(&Path) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "these tests mount filesystems: run them as root");
    let (done, finished) = mpsc::sync_channel(1);
    let thread = thread::spawn(move || {
        let scratch = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("scratch"), scratch.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        test(scratch.path());
        nix::mount::umount2(scratch.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        done.send(()).unwrap();
    });
    match finished.recv_timeout(Duration::from_secs(60)) {
        Ok(()) => thread.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

/// Binds read-only, as a container gets it.
pub(crate) fn bind(source: &Path, target: &Path) {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).unwrap();
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(none, target, none, remount, none).unwrap();
}

/// Waits until `check` holds.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(std::time::Instant::now() < deadline, "never happened: {what}");
        thread::yield_now();
    }
}

/// The errno of a failed call.
pub(crate) fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}
