//! Who may do what.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use skep_fuse::tree::Grant;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, bind, errno, grant, private};

const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;

enum Who {
    Root,
    RootWithoutOverride,
    User(u32, u32),
}

fn reads(who: &Who, path: &Path) -> bool {
    let mut cat = Command::new("cat");
    cat.arg(path).env_clear();
    match who {
        Who::Root => {}
        Who::RootWithoutOverride => {
            // SAFETY: prctl only, between fork and exec.
            unsafe {
                cat.pre_exec(|| {
                    for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
                        if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                            return Err(std::io::Error::last_os_error());
                        }
                    }
                    Ok(())
                });
            }
        }
        Who::User(uid, gid) => {
            cat.uid(*uid).gid(*gid);
        }
    }
    let output = cat.output().unwrap();
    match output.status.success() {
        true => assert_eq!(output.stdout, b"open sesame"),
        false => assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied")),
    }
    output.status.success()
}

#[test]
fn owners_and_modes_decide_through_directory_and_file_binds() {
    private(|dir| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        let world = World::new(VaultKind::Auto, dir);
        let owned = |target: &str, mode| Grant { uid: 2000, gid: 3000, mode, ..grant(target, 1) };
        let set = [owned("closed", 0o400), owned("group", 0o440), owned("world", 0o444)];
        let set = [set.to_vec(), vec![owned("/etc/closed", 0o400)]].concat();
        let set = set.into_iter().map(|grant| world.member(grant, b"open sesame")).collect();
        world.server.deliver(set).unwrap();
        let (secrets, single) = (dir.join("secrets"), dir.join("closed"));
        fs::create_dir(&secrets).unwrap();
        File::create(&single).unwrap();
        bind(&dir.join("mnt/secrets"), &secrets);
        bind(&dir.join("mnt/abs/0"), &single);
        let everybody = [
            (Who::Root, [true, true, true, true]),
            (Who::RootWithoutOverride, [false, false, true, false]),
            (Who::User(2000, 3000), [true, true, true, true]),
            (Who::User(2001, 3000), [false, true, true, false]),
            (Who::User(2001, 3001), [false, false, true, false]),
        ];
        let files = [secrets.join("closed"), secrets.join("group"), secrets.join("world"), single];
        for (number, (who, expected)) in everybody.iter().enumerate() {
            let seen: Vec<bool> = files.iter().map(|file| reads(who, file)).collect();
            assert_eq!(seen, expected, "process {number}");
        }
    });
}

#[test]
fn nothing_can_be_changed() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let secrets = dir.join("secrets");
        fs::create_dir(&secrets).unwrap();
        bind(&dir.join("mnt/secrets"), &secrets);
        // The read-only bind, and the superblock itself, which only the shim can reach.
        for root in [secrets, world.secret("")] {
            let (file, new) = (root.join("a"), root.join("b"));
            assert_eq!(errno(fs::write(&new, "x")), Errno::EROFS);
            assert_eq!(errno(fs::write(&file, "x")), Errno::EROFS, "truncation");
            assert_eq!(errno(fs::create_dir(&new)), Errno::EROFS);
            assert_eq!(errno(fs::remove_file(&file)), Errno::EROFS);
            assert_eq!(errno(fs::rename(&file, &new)), Errno::EROFS);
            assert_eq!(errno(fs::hard_link(&file, &new)), Errno::EROFS);
            assert_eq!(errno(symlink("a", &new)), Errno::EROFS);
            let mode = fs::Permissions::from_mode(0o777);
            assert_eq!(errno(fs::set_permissions(&file, mode)), Errno::EROFS);
            let read_write = OpenOptions::new().read(true).write(true).open(&file);
            assert_eq!(errno(read_write), Errno::EROFS);
            assert_eq!(fs::read(&file).unwrap(), b"one");
        }
    });
}

#[test]
fn the_touch_is_accepted_and_changes_nothing() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let mut touch = OpenOptions::new().write(true).open(world.secret("a")).unwrap();
        assert_eq!(touch.write(b"\0").unwrap(), 1);
        drop(touch);
        assert_eq!(fs::read(world.secret("a")).unwrap(), b"one");
        let rows = world.server.audit().snapshot();
        assert_eq!(rows.iter().map(|row| row.opened).sum::<u64>(), 1, "a touch is no read");
    });
}

#[test]
fn every_open_is_counted_with_its_executable() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"open sesame");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        for _ in 0..3 {
            assert!(reads(&Who::User(2000, 3000), &world.secret("a")));
        }
        world.deliver("a", 2, b"two");
        let mut own = File::open(world.secret("a")).unwrap();
        own.read_to_end(&mut Vec::new()).unwrap();
        world.server.revoke(&["a"]).unwrap();
        File::open(world.secret("a")).unwrap_err();
        let path = world.secret("a");
        let found = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
        assert_eq!(errno(found), Errno::ENOENT);

        let cat = fs::canonicalize("/usr/bin/cat").unwrap();
        let rows = world.server.audit().snapshot();
        let readers: Vec<_> = rows.iter().map(|row| row.reader.clone().unwrap()).collect();
        assert_eq!(readers.len(), 2, "{rows:?}");
        assert_eq!((readers[0].uid, readers[0].gid, readers[0].version), (2000, 3000, 1));
        assert_eq!((readers[0].executable.as_ref(), rows[0].opened), (Some(&cat), 3));
        assert_eq!((readers[1].uid, readers[1].version, rows[1].opened), (0, 2, 1));
        assert_eq!(readers[1].executable, std::env::current_exe().ok());
        assert!(rows.iter().all(|row| row.first_ns <= row.last_ns && row.first_ns > 0));
    });
}
