//! What is left of a server that was killed, and where its plaintext stands.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, errno, private};
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
