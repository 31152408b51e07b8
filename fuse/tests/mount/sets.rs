//! Delivered sets: pairs that match, files that outlive their set, and how many stay.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use skep_fuse::limits;
use skep_fuse::tree::Grant;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, bind, errno, eventually, grant, private};

fn open_at(dir: &File, name: &std::ffi::CStr) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: an open descriptor and a C string.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn text(file: &File) -> io::Result<String> {
    let mut buffer = [0; 64];
    let read = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// Opens both members in the set that is current when it begins; none if that went meanwhile.
fn pair(current: &Path) -> Option<[String; 2]> {
    let read = || -> io::Result<[String; 2]> {
        let set = File::open(current)?;
        let (a, b) = (open_at(&set, c"a")?, open_at(&set, c"dir/b")?);
        Ok([text(&a)?, text(&b)?])
    };
    match read() {
        Ok(pair) => Some(pair),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_pair_opened_through_current_always_matches() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let deliver = |version: u64| {
            let bytes = version.to_string();
            let members = ["a", "dir/b"].map(|n| world.member(grant(n, version), bytes.as_bytes()));
            assert_eq!(world.server.deliver(members.to_vec()).unwrap().unsettled, None);
        };
        deliver(1);
        fs::create_dir(dir.join("secrets")).unwrap();
        bind(&dir.join("mnt/secrets"), &dir.join("secrets"));
        let (rounds, over) = ([AtomicUsize::new(0), AtomicUsize::new(0)], AtomicBool::new(false));
        thread::scope(|scope| {
            for count in &rounds {
                let (current, over) = (dir.join("secrets/..current"), &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let Some([a, b]) = pair(&current) else { continue };
                        assert_eq!(a, b);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for version in 2..=100 {
                let before = rounds.each_ref().map(|count| count.load(Ordering::Relaxed));
                eventually("a round of both readers", || {
                    let mut pairs = rounds.iter().zip(before);
                    pairs.all(|(count, before)| count.load(Ordering::Relaxed) > before)
                });
                deliver(version);
            }
            over.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_file_opened_in_a_set_pins_its_version_as_any_other() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let set = ["a", "b"].map(|name| world.member(grant(name, 1), b"one"));
        world.server.deliver(set.to_vec()).unwrap();
        let names = ["a", "..current/a", "..1/a", "..current/b"];
        let files = names.map(|name| File::open(world.secret(name)).unwrap());
        let mut later = Vec::new();
        for version in 2..=3 {
            world.deliver("a", version, b"another");
            later.push(File::open(world.secret("..current/a")).unwrap());
            assert!(files.iter().all(|file| text(file).unwrap() == "one"), "{version}");
        }
        world.deliver("a", 4, b"another");
        assert!(later.iter().all(|file| text(file).unwrap() == "another"));
        for file in &files[..3] {
            assert_eq!(errno(text(file)), Errno::ESTALE);
        }
        assert_eq!(text(&files[3]).unwrap(), "one", "this one was not replaced");
        world.server.revoke(&["a", "b"]).unwrap();
        assert!(files.iter().all(|file| errno(text(file)) == Errno::ENOENT));
    });
}

#[test]
fn a_set_is_complete_and_stays_for_one_more() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let owned = |name, mode| Grant { uid: 7, gid: 8, mode, ..grant(name, 1) };
        let set = [owned("a", 0o400), owned("dir/in/b", 0o440), owned("/etc/c", 0o444)];
        let set = set.map(|grant| world.member(grant, b"one"));
        world.server.deliver(set.to_vec()).unwrap();
        let names = |path: &str| {
            let mut names: Vec<_> = fs::read_dir(world.secret(path))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names("..current"), ["a", "dir"], "absolute targets are in no set");
        assert_eq!(names("..1/dir/in"), ["b"]);
        for name in ["a", "dir/in/b"] {
            let whole = fs::metadata(world.secret(name)).unwrap();
            let copy = fs::metadata(world.secret("..current").join(name)).unwrap();
            let seen = |found: &fs::Metadata| (found.uid(), found.gid(), found.mode(), found.len());
            assert_eq!(seen(&whole), seen(&copy));
            assert_ne!(whole.ino(), copy.ino());
        }
        let first = File::open(world.secret("..current")).unwrap();
        world.deliver("a", 2, b"two");
        assert_eq!(text(&open_at(&first, c"a").unwrap()).unwrap(), "one");
        assert_eq!(fs::read(world.secret("..current/dir/in/b")).unwrap(), b"one");
        world.deliver("dir/in/b", 2, b"two");
        assert_eq!(errno(open_at(&first, c"a")), Errno::ENOENT);
        assert_eq!(errno(fs::read_dir(world.secret("..1"))), Errno::ENOENT);
        let mut buffer = [0u8; 512];
        let (fd, to) = (first.as_raw_fd(), buffer.as_mut_ptr());
        // SAFETY: an open descriptor, a buffer and its length.
        let listed = unsafe { libc::syscall(libc::SYS_getdents64, fd, to, buffer.len()) };
        assert_eq!((listed, Errno::last()), (-1, Errno::ENOENT));
        assert_eq!(fs::read(world.secret("..2/dir/in/b")).unwrap(), b"one");
        assert_eq!(fs::read(world.secret("..3/dir/in/b")).unwrap(), b"two");
        world.deliver("/etc/c", 2, b"two");
        assert_eq!(fs::read_link(world.secret("..current")).unwrap(), Path::new("..3"));
    });
}

#[test]
fn old_versions_go_when_room_is_needed() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let pinned = ["a", "..1/a"].map(|name| File::open(world.secret(name)).unwrap());
        world.deliver("a", 2, b"two");
        let current = File::open(world.secret("a")).unwrap();
        assert_eq!(world.vault.used(), 2 * 64);
        world.server.forget_old().unwrap();
        assert_eq!(world.vault.used(), 64);
        for file in &pinned {
            assert_eq!(errno(text(file)), Errno::ESTALE);
        }
        assert_eq!(text(&current).unwrap(), "two");
        assert_eq!(errno(File::open(world.secret("..1/a"))), Errno::ENOENT);
    });
}

#[test]
fn handles_are_counted_over_all_files_and_come_back() {
    private(|dir| {
        let resource = nix::sys::resource::Resource::RLIMIT_NOFILE;
        let (_, hard) = nix::sys::resource::getrlimit(resource).unwrap();
        nix::sys::resource::setrlimit(resource, limits::HANDLES as u64 + 500, hard).unwrap();
        let world = World::new(VaultKind::Auto, dir);
        let set = ["a", "b", "/etc/c"].map(|name| world.member(grant(name, 1), b"one"));
        world.server.deliver(set.to_vec()).unwrap();
        let paths = ["a", "b", "../abs/0", "..current/a"].map(|name| world.secret(name));
        for _ in 0..2 {
            let mut files = Vec::new();
            for path in paths.iter().cycle().take(limits::HANDLES) {
                // Those of the round before come back one by one.
                eventually("a free handle", || File::open(path).map(|f| files.push(f)).is_ok());
            }
            for path in &paths {
                assert_eq!(errno(File::open(path)), Errno::ENFILE);
                assert_eq!(fs::metadata(path).unwrap().len(), 3, "only opens are refused");
            }
            let touch = OpenOptions::new().write(true).open(&paths[0]);
            assert_eq!(errno(touch), Errno::ENFILE);
            assert_eq!(fs::read_dir(world.secret("")).unwrap().count(), 2);
            let mut last = String::new();
            files.pop().unwrap().read_to_string(&mut last).unwrap();
            assert_eq!(last, "one", "those that are open go on");
        }
        let rows = world.server.audit().snapshot();
        let refused: u64 = rows.iter().map(|row| row.refused).sum();
        assert!(refused >= 2 * paths.len() as u64, "{refused}");
    });
}
