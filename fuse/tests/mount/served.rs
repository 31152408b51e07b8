//! The server as a process of its own, which a test can kill.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::errno::Errno;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, grant};

const KIND: &str = "SKEP_FUSE_TEST_KIND";
const DIR: &str = "SKEP_FUSE_TEST_DIR";
/// Bytes of the secret `a`, which every server has from the start.
pub(crate) const MARKER_BYTES: usize = 48;

/// One byte of the marker, computed so that it stands in no image of the program.
pub(crate) fn marker(index: usize) -> u8 {
    (black_box(index).wrapping_mul(73) ^ 0x5a) as u8 | 1
}

/// Bytes in which every value occurs, NUL too, and no two pages are alike.
pub(crate) fn binary(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index ^ (index >> 8)) as u8).collect()
}

/// Not a test: the process that [`Served::start`] starts.
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
    println!("\nserving");
    for command in std::io::stdin().lines() {
        let command = command.unwrap();
        match *command.split(' ').collect::<Vec<_>>().as_slice() {
            ["wipe"] => {
                world.server.refuse_all().unwrap();
                world.vault.wipe();
            }
            ["deliver", name, size] => world.deliver(name, 1, &binary(size.parse().unwrap())),
            _ => panic!("{command}"),
        }
        println!("\ndone");
    }
}

pub(crate) struct Served {
    pub(crate) child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The directory of the secrets.
    pub(crate) secrets: PathBuf,
}

impl Served {
    pub(crate) fn start(kind: VaultKind, dir: &Path) -> Served {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "served::serve_until_killed", "--ignored", "--nocapture"])
            .env(KIND, kind.to_string())
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let secrets = dir.join("mnt/secrets");
        let mut served = Served { child, commands, answers, secrets };
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

    /// Delivers [`binary`] content.
    pub(crate) fn deliver(&mut self, name: &str, size: usize) {
        writeln!(self.commands, "deliver {name} {size}").unwrap();
        self.await_answer("done");
    }

    /// Refuses all and wipes the vault.
    pub(crate) fn wipe(&mut self) {
        writeln!(self.commands, "wipe").unwrap();
        self.await_answer("done");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How often the marker stands in the server's memory, and how many maps gave EIO.
    pub(crate) fn search(&self) -> (usize, usize) {
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
