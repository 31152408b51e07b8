//! What listings, `stat` and `statfs` say of many secrets.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::statfs::statfs;
use skep_fuse::limits;
use skep_fuse::server::{DeliverError, Member};
use skep_fuse::tree::{Grant, TreeError};
use skep_fuse::vault::VaultKind;

use crate::harness::{World, binary, bind, errno, grant, private};

/// Targets of as many grants as a task may have: some at the top, some in directories that
/// others share, some alone and deep, some with absolute paths.
fn targets() -> Vec<String> {
    let name = |index| match index % 4 {
        0 => format!("top-{index:02}"),
        1 => format!("shared/by/several/{index:02}.pem"),
        2 => format!("alone/{index:02}/a/b/c/key"),
        _ => format!("/etc/app-{index:02}/site.conf"),
    };
    (0..limits::GRANTS).map(name).collect()
}

fn all(world: &World) -> Vec<Member> {
    let member = |(index, target): (usize, String)| {
        let bytes = format!("content of {target}");
        world
            .member(Grant { mode: 0o400, uid: index as u32, ..grant(&target, 1) }, bytes.as_bytes())
    };
    targets().into_iter().enumerate().map(member).collect()
}

#[test]
fn as_many_grants_as_allowed_are_all_there() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.server.deliver(all(&world)).unwrap();
        let root = dir.join("root");
        let binds = world.server.binds();
        assert_eq!(binds.len(), 1 + limits::GRANTS / 4);
        for found in binds {
            let target = root.join(found.target.strip_prefix("/").unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            match found.directory {
                true => fs::create_dir(&target).unwrap(),
                false => fs::write(&target, "").unwrap(),
            }
            bind(&dir.join("mnt").join(&found.source), &target);
        }
        for (index, target) in targets().iter().enumerate() {
            let path = match target.strip_prefix('/') {
                Some(absolute) => root.join(absolute),
                None => root.join("run/secrets").join(target),
            };
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("content of {target}"));
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.mode()), (index as u32, 0o100_400), "{target}");
        }
        let rows = world.server.audit().snapshot();
        assert_eq!(rows.iter().map(|row| row.opened).sum::<u64>(), limits::GRANTS as u64);
    });
}

#[test]
fn more_grants_or_bytes_than_allowed_are_refused_in_words() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let refused = |set: Vec<Member>, words: &str| {
            let Err(DeliverError::Tree(error)) = world.server.deliver(set) else { panic!("taken") };
            assert!(matches!(error, TreeError::TooMuch { .. }));
            assert_eq!(error.to_string(), words);
        };
        let mut many = all(&world);
        many.push(world.member(grant("one-more", 1), b"x"));
        refused(many, "too much for one task: grants (at most 64)");
        assert_eq!(fs::read_dir(world.secret("")).unwrap().count(), 0, "nothing of it shows");
        assert_eq!(world.vault.used(), 0, "nothing of it stays");

        world.server.deliver(all(&world)).unwrap();
        let one_more = vec![world.member(grant("one-more", 1), b"x")];
        refused(one_more, "too much for one task: grants (at most 64)");
        world.server.revoke(&["top-00"]).unwrap();
        world.deliver("one-more", 1, b"x");
        assert_eq!(fs::read(world.secret("one-more")).unwrap(), b"x");
    });
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let large = |name: &str, size| world.member(grant(name, 1), &vec![7; size]);
        let half = limits::GRANTED_BYTES as usize / 2;
        refused_and_forgotten(&world, vec![large("a", half), large("b", half + 1)]);
        world.server.deliver(vec![large("a", half), large("b", half)]).unwrap();
        refused_and_forgotten(&world, vec![large("c", 1)]);
        assert_eq!(fs::read(world.secret("b")).unwrap().len(), half);
        assert_eq!(errno(fs::read(world.secret("c"))), Errno::ENOENT);
    });
}

fn refused_and_forgotten(world: &World, set: Vec<Member>) {
    let used = world.vault.used();
    let sizes: usize = set.iter().map(|member| member.content.len().next_multiple_of(64)).sum();
    let error = world.server.deliver(set).unwrap_err();
    let DeliverError::Tree(cause) = &error else { panic!("{error}") };
    assert_eq!(cause.to_string(), "too much for one task: bytes (at most 16777216)");
    assert_eq!(world.vault.used(), used - sizes);
}

#[test]
fn listings_count_blocks_and_links() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let sizes = [0, 1, 4_096, 4_097, 500_000];
        let member = |size: usize| world.member(grant(&size.to_string(), 1), &binary(size));
        let below = world.member(grant("dir/inner/x", 1), b"x");
        let set = sizes.into_iter().map(member).chain([below]).collect();
        world.server.deliver(set).unwrap();
        let kib: usize = sizes.iter().map(|size| size.div_ceil(4_096) * 4).sum();
        let run = |program: &str, options: &str| {
            let mut command = Command::new(program);
            let out = command.args([options, "."]).current_dir(world.secret("")).output();
            String::from_utf8(out.unwrap().stdout).unwrap()
        };
        // The directory `dir` counts too; with `-a` also `.` and `..`.
        assert!(run("ls", "-l").starts_with(&format!("total {}\n", kib + 4)));
        assert!(run("ls", "-la").starts_with(&format!("total {}\n", kib + 12)));
        // Two directories, the file in them, and the top.
        assert_eq!(run("du", "-sk"), format!("{}\t.\n", kib + 16));
        assert_eq!(run("du", "-sb"), format!("{}\t.\n", 508_195 + 3 * 4_096));
        for size in sizes {
            let found = fs::metadata(world.secret(&size.to_string())).unwrap();
            let blocks = size.div_ceil(4_096) as u64 * 8;
            assert_eq!((found.len(), found.blocks()), (size as u64, blocks));
            assert_eq!((found.nlink(), found.blksize()), (1, 4_096));
            assert_eq!(found.mode(), 0o100_444);
            let times = [found.atime(), found.mtime(), found.ctime()];
            assert_eq!(times, [1_700_000_001; 3]);
        }
        for (name, nlink) in [("", 3), ("dir", 3), ("dir/inner", 2)] {
            let found = fs::metadata(world.secret(name)).unwrap();
            assert_eq!((found.len(), found.blocks(), found.nlink()), (4_096, 8, nlink));
            assert_eq!(found.permissions().mode(), 0o040_755);
        }
        let link = fs::symlink_metadata(world.secret("..current")).unwrap();
        assert_eq!((link.len(), link.blocks(), link.nlink()), (3, 0, 1));
    });
}

#[test]
fn the_filesystem_is_full_and_has_only_its_files() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let set = [("a", 1), ("b", 5_000), ("/etc/c", 4_096)];
        let set = set.map(|(name, size)| world.member(grant(name, 1), &binary(size)));
        world.server.deliver(set.to_vec()).unwrap();
        fs::create_dir(dir.join("secrets")).unwrap();
        bind(&dir.join("mnt/secrets"), &dir.join("secrets"));
        let found = statfs(&dir.join("secrets")).unwrap();
        assert_eq!((found.blocks(), found.blocks_free(), found.blocks_available()), (4, 0, 0));
        assert_eq!((found.files(), found.files_free()), (3, 0));
        assert_eq!((found.block_size(), found.maximum_name_length()), (4_096, 255));
        assert_eq!(found.filesystem_type().0, 0x6573_5546, "FUSE_SUPER_MAGIC");
        let done = Command::new("df").arg(dir.join("secrets")).output().unwrap();
        assert!(String::from_utf8_lossy(&done.stdout).contains("100%"), "{done:?}");
        let flags = nix::sys::statvfs::statvfs(&dir.join("secrets")).unwrap().flags();
        let shut = libc::ST_RDONLY | libc::ST_NOSUID | libc::ST_NODEV | libc::ST_NOEXEC;
        assert_eq!(flags.bits() & shut, shut);
    });
}

/// Names and where each listing went on, read `bytes` at a time.
fn listed(dir: &Path, bytes: usize) -> BTreeMap<String, u64> {
    let fd = open(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    let mut found = BTreeMap::new();
    for (name, cookie) in entries(&fd, bytes) {
        assert!(found.insert(name, cookie).is_none(), "listed twice");
    }
    // From every place once more: the same names follow.
    for &cookie in found.values() {
        let at = nix::unistd::lseek64(&fd, cookie as i64, nix::unistd::Whence::SeekSet);
        assert_eq!(at, Ok(cookie as i64));
        let after: BTreeMap<_, _> = entries(&fd, bytes).into_iter().collect();
        let expected = found.iter().filter(|&(_, &other)| other > cookie);
        assert!(after.iter().eq(expected), "after {cookie}");
    }
    found
}

fn entries(fd: &impl std::os::fd::AsRawFd, bytes: usize) -> Vec<(String, u64)> {
    let (mut found, mut buffer) = (Vec::new(), vec![0u8; bytes]);
    loop {
        let to = buffer.as_mut_ptr();
        // SAFETY: a buffer and its length.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), to, bytes) };
        let read = usize::try_from(read).unwrap();
        if read == 0 {
            return found;
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            // Inode, place, length, kind, name and a NUL.
            let cookie = u64::from_ne_bytes(rest[8..16].try_into().unwrap());
            let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[19..length].split(|&byte| byte == 0).next().unwrap();
            found.push((String::from_utf8(name.to_vec()).unwrap(), cookie));
            rest = &rest[length..];
        }
    }
}

#[test]
fn a_directory_is_read_in_pieces_of_any_size() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let names: Vec<String> =
            (0..limits::GRANTS).map(|i| format!("{i:02}{}", "x".repeat(i * 3))).collect();
        let set = names.iter().map(|name| world.member(grant(name, 1), b"x")).collect();
        world.server.deliver(set).unwrap();
        let mut expected = names;
        expected.extend([".".to_owned(), "..".to_owned()]);
        expected.sort();
        // Room for one of the longest names, for a few, for all.
        for bytes in [232, 500, 4_096, 1 << 20] {
            let found = listed(&world.secret(""), bytes);
            assert!(found.keys().eq(&expected), "{bytes} bytes at a time");
        }
        let fd = open(&world.secret(""), OFlag::O_RDONLY, Mode::empty()).unwrap();
        let mut tiny = [0u8; 20];
        let fd = std::os::fd::AsRawFd::as_raw_fd(&fd);
        // SAFETY: a buffer and its length.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, fd, tiny.as_mut_ptr(), 20) };
        assert_eq!((read, Errno::last()), (-1, Errno::EINVAL));
    });
}

#[test]
fn names_that_are_not_there_say_so() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("dir/a", 1, b"one");
        let not_utf8 = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff, 0xfe]);
        let not_utf8: std::ffi::OsString = not_utf8;
        assert_eq!(errno(fs::read(world.secret("").join(not_utf8))), Errno::ENOENT);
        for (name, expected) in [
            ("A", Errno::ENOENT),
            ("dir/a/b", Errno::ENOTDIR),
            ("dir/", Errno::EISDIR),
            ("..2", Errno::ENOENT),
            ("...", Errno::ENOENT),
            (&*"x".repeat(255), Errno::ENOENT),
            (&*"x".repeat(256), Errno::ENAMETOOLONG),
        ] {
            assert_eq!(errno(fs::read(world.secret(name))), expected, "{name}");
        }
        assert_eq!(fs::read(world.secret("../secrets/dir/../dir/./a")).unwrap(), b"one");
        // Nothing was there a moment ago; now it is.
        assert_eq!(errno(fs::read(world.secret("late"))), Errno::ENOENT);
        world.deliver("late", 1, b"now");
        assert_eq!(fs::read(world.secret("late")).unwrap(), b"now");
    });
}
