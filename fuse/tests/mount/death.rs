//! What is left of a server that was killed, and where its plaintext stands.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};
use skep_fuse::vault::VaultKind;

use crate::harness::{Helper, World, answer, binary, errno, private};
use crate::served::{MARKER_BYTES, Served, marker};

#[test]
fn a_killed_server_fails_open_and_new_descriptors() {
    private(|dir| {
        let mut served = Served::start(VaultKind::Auto, dir);
        let handle = File::open(served.secrets.join("a")).unwrap();
        assert_eq!(handle.read_at(&mut [0; 64], 0).unwrap(), MARKER_BYTES);
        served.kill();
        assert_eq!(errno(handle.read_at(&mut [0; 64], 0)), Errno::ENOTCONN);
        assert_eq!(errno(File::open(served.secrets.join("a"))), Errno::ENOTCONN);
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
            let read = fs::read(served.secrets.join("a")).unwrap();
            assert!(read.iter().copied().eq((0..MARKER_BYTES).map(marker)));
            assert_eq!(served.search(), expected, "{kind}");
            served.wipe();
            assert_eq!(served.search(), (0, expected.1), "{kind}");
        });
    }
}

const FILE: &str = "SKEP_FUSE_TEST_FILE";
const SIZE: usize = 500_000;
const NEAR: usize = 7;
/// An offset that no readahead from the start reaches.
const FAR: usize = 400_000;

/// Not a test: a process that has mapped a secret and touched its first page.
#[test]
#[ignore = "started by other tests"]
fn map_until_killed() {
    let Ok(path) = std::env::var(FILE) else { return };
    let file = File::open(&path).unwrap();
    let length = NonZeroUsize::new(SIZE).unwrap();
    let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap(None, length, protection, flags, &file, 0) }.unwrap();
    // SAFETY: the mapping just made. No page comes but those that are touched.
    unsafe { madvise(start, SIZE, MmapAdvise::MADV_RANDOM) }.unwrap();
    // SAFETY: inside the mapping; where the file is gone, the process dies of it.
    let touch = |at| unsafe { std::ptr::read_volatile(start.cast::<u8>().as_ptr().add(at)) };
    answer(touch(NEAR));
    for command in std::io::stdin().lines() {
        match command.unwrap().as_str() {
            "near" => answer(touch(NEAR)),
            "far" => answer(touch(FAR)),
            "open" => answer(errno(File::open(&path))),
            "send" => {
                let (_end, pipe) = std::io::pipe().unwrap();
                let mut from = NEAR as i64;
                let sent = nix::sys::sendfile::sendfile(&pipe, &file, Some(&mut from), 1);
                answer(sent.map_or_else(|error| error.to_string(), |sent| sent.to_string()));
            }
            "read" => answer(errno(file.read_at(&mut [0], 0))),
            other => panic!("{other}"),
        }
    }
}

fn mapper(path: &Path) -> Helper {
    Helper::start("death::map_until_killed", &[(FILE, path.to_str().unwrap())])
}

fn died_of_the_page(mut helper: Helper) {
    assert_eq!(helper.child.wait().unwrap().signal(), Some(libc::SIGBUS));
}

/// What a process has mapped stays until somebody kills it, which is the sentinel's task. It
/// gets no further page, and no open in between is needed for that.
#[test]
fn a_killed_server_leaves_a_mapper_the_pages_it_touched_and_no_other() {
    for kind in [VaultKind::SecretMem, VaultKind::Mlock] {
        private(move |dir| {
            let mut served = Served::start(kind, dir);
            served.deliver("large", SIZE);
            let mut mapper = mapper(&served.secrets.join("large"));
            served.kill();
            assert_eq!(mapper.ask("near"), Some(binary(SIZE)[NEAR].to_string()));
            assert_eq!(mapper.ask("open"), Some(Errno::ENOTCONN.to_string()));
            assert_eq!(mapper.ask("read"), Some(Errno::ENOTCONN.to_string()));
            // The kernel's own copy is that same page.
            assert_eq!(mapper.ask("send"), Some("1".to_owned()));
            assert_eq!(mapper.ask("far"), None);
            died_of_the_page(mapper);
        });
    }
}

#[test]
fn the_end_and_a_revocation_take_mapped_pages_back() {
    for end in [Served::wipe, |served: &mut Served| served.revoke("large")] {
        private(move |dir| {
            let mut served = Served::start(VaultKind::Auto, dir);
            served.deliver("large", SIZE);
            let mut mapper = mapper(&served.secrets.join("large"));
            end(&mut served);
            assert_eq!(mapper.ask("open"), Some(Errno::ENOENT.to_string()));
            assert_eq!(mapper.ask("read"), Some(Errno::ENOENT.to_string()));
            assert_eq!(mapper.ask("send"), Some(Errno::ENOENT.to_string()));
            assert_eq!(mapper.ask("near"), None);
            died_of_the_page(mapper);
        });
    }
}
