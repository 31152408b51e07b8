//! The server as a process of its own: killed, and searched for plaintext.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::errno::Errno;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, errno, grant, private};

const KIND: &str = "SKEP_FUSE_TEST_KIND";
const DIR: &str = "SKEP_FUSE_TEST_DIR";
const MARKER_BYTES: usize = 48;

/// One byte of the marker, computed so that it stands in no image of the program.
fn marker(index: usize) -> u8 {
    (black_box(index).wrapping_mul(73) ^ 0x5a) as u8 | 1
}

/// Not a test: the process that the tests below start.
#[test]
#[ignore = "started by other tests"]
fn serve_until_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let kind: VaultKind = std::env::var(KIND).unwrap().parse().unwrap();
    let world = World::new(kind, Path::new(&dir));
    let content = world.vault.store(MARKER_BYTES, |slot| {
        slot.iter_mut().enumerate().for_each(|(index, byte)| *byte = marker(index));
        Ok::<(), ()>(())
    });
    let member = skep_fuse::server::Member {
        grant: skep_fuse::tree::Grant { size: MARKER_BYTES as u64, ..grant("a", 1) },
        content: std::sync::Arc::new(content.unwrap()),
    };
    world.server.deliver(vec![member]).unwrap();
    let mut commands = std::io::stdin().lines();
    println!("\nserving");
    while let Some(Ok(_)) = commands.next() {
        world.server.refuse_all().unwrap();
        world.vault.wipe();
        println!("\nwiped");
    }
}

struct Served {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    file: PathBuf,
}

impl Served {
    fn start(kind: VaultKind, dir: &Path) -> Served {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "death::serve_until_killed", "--ignored", "--nocapture"])
            .env(KIND, kind.to_string())
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let file = dir.join("mnt/secrets/a");
        let mut served = Served { child, commands, answers, file };
        served.await_answer("serving");
        served
    }

    fn await_answer(&mut self, expected: &str) {
        let mut line = String::new();
        while line.trim() != expected {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the server has ended");
        }
    }

    /// How often the marker stands in the server's memory, and how many maps gave EIO.
    fn search(&self) -> (usize, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let memory = File::open(proc.join("mem")).unwrap();
        let marker: Vec<u8> = (0..MARKER_BYTES).map(marker).collect();
        let (mut found, mut closed) = (0, 0);
        for line in fs::read_to_string(proc.join("maps")).unwrap().lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            if !rest.starts_with('r') || rest.contains("[v") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let number = |hex| u64::from_str_radix(hex, 16).unwrap();
            let mut bytes = vec![0; (number(end) - number(start)) as usize];
            match memory.read_exact_at(&mut bytes, number(start)) {
                Ok(()) => {
                    found += occurrences(&bytes, &marker);
                }
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => closed += 1,
                Err(error) => panic!("{line}: {error}"),
            }
        }
        (found, closed)
    }
}

fn occurrences(mut bytes: &[u8], wanted: &[u8]) -> usize {
    let mut found = 0;
    loop {
        // SAFETY: both ranges are whole slices.
        let at = unsafe {
            nix::libc::memmem(
                bytes.as_ptr().cast(),
                bytes.len(),
                wanted.as_ptr().cast(),
                wanted.len(),
            )
        };
        if at.is_null() {
            return found;
        }
        found += 1;
        bytes = &bytes[at as usize - bytes.as_ptr() as usize + wanted.len()..];
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_server_fails_open_and_new_descriptors() {
    private(|dir| {
        let mut served = Served::start(VaultKind::Auto, dir);
        let handle = File::open(&served.file).unwrap();
        assert_eq!(handle.read_at(&mut [0; 64], 0).unwrap(), MARKER_BYTES);
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        assert_eq!(errno(handle.read_at(&mut [0; 64], 0)), Errno::ENOTCONN);
        assert_eq!(errno(File::open(&served.file)), Errno::ENOTCONN);
    });
}

#[test]
fn the_hosts_mount_table_shows_nothing() {
    private(|dir| {
        let _world = World::new(VaultKind::Auto, dir);
        let shows = |table: &str| {
            let table = fs::read_to_string(table).unwrap();
            table.lines().any(|line| line.contains("fuse.skep"))
        };
        assert!(shows("/proc/thread-self/mountinfo"));
        assert!(!shows("/proc/1/mountinfo"));
    });
}

#[test]
fn plaintext_stands_in_the_vault_alone_and_not_after_wipe() {
    for (kind, expected) in [(VaultKind::Mlock, (1, 0)), (VaultKind::SecretMem, (0, 1))] {
        private(move |dir| {
            let mut served = Served::start(kind, dir);
            let read = fs::read(&served.file).unwrap();
            assert!(read.iter().copied().eq((0..MARKER_BYTES).map(marker)));
            assert_eq!(served.search(), expected, "{kind}");
            writeln!(served.commands, "wipe").unwrap();
            served.await_answer("wiped");
            assert_eq!(served.search(), (0, expected.1), "{kind}");
        });
    }
}
