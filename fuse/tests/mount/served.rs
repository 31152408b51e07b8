//! The server as a process of its own, which a test can kill.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use skep_fuse::vault::VaultKind;

use crate::harness::{Helper, World, answer, binary, grant};

const KIND: &str = "SKEP_FUSE_TEST_KIND";
const DIR: &str = "SKEP_FUSE_TEST_DIR";
/// Bytes of the secret `a`, which every server has from the start.
pub(crate) const MARKER_BYTES: usize = 48;

/// One byte of the marker, computed so that it stands in no image of the program.
pub(crate) fn marker(index: usize) -> u8 {
    (black_box(index).wrapping_mul(73) ^ 0x5a) as u8 | 1
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
    answer("serving");
    for command in std::io::stdin().lines() {
        let command = command.unwrap();
        match *command.split(' ').collect::<Vec<_>>().as_slice() {
            ["wipe"] => {
                world.server.refuse_all().unwrap();
                world.vault.wipe();
            }
            ["revoke", name] => world.server.revoke(&[name]).unwrap(),
            ["deliver", name, size] => world.deliver(name, 1, &binary(size.parse().unwrap())),
            _ => panic!("{command}"),
        }
        answer("done");
    }
}

pub(crate) struct Served {
    helper: Helper,
    /// The directory of the secrets.
    pub(crate) secrets: PathBuf,
}

impl Served {
    pub(crate) fn start(kind: VaultKind, dir: &Path) -> Served {
        let variables = [(KIND, &*kind.to_string()), (DIR, dir.to_str().unwrap())];
        let helper = Helper::start("served::serve_until_killed", &variables);
        Served { helper, secrets: dir.join("mnt/secrets") }
    }

    /// Delivers [`binary`] content.
    pub(crate) fn deliver(&mut self, name: &str, size: usize) {
        self.helper.ask(&format!("deliver {name} {size}")).unwrap();
    }

    pub(crate) fn revoke(&mut self, name: &str) {
        self.helper.ask(&format!("revoke {name}")).unwrap();
    }

    /// Refuses all and wipes the vault.
    pub(crate) fn wipe(&mut self) {
        self.helper.ask("wipe").unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.helper.child.kill().unwrap();
        self.helper.child.wait().unwrap();
    }

    /// How often the marker stands in the server's memory, and how many maps gave EIO.
    pub(crate) fn search(&self) -> (usize, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.helper.child.id()));
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
