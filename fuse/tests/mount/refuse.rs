//! Every way to change a secret, and what each of them gets: through the read-only bind that a
//! task has, and on the superblock itself, which only the shim and its sentinel can reach.

use std::ffi::{CStr, CString, c_char, c_ulong};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::thread;

use nix::errno::Errno::{
    self, EACCES, EBADF, EEXIST, EINVAL, EISDIR, ENODEV, ENOTDIR, ENOTTY, EOPNOTSUPP, EPERM, EROFS,
    EXDEV,
};
use nix::libc;
use skep_fuse::tree::Grant;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, bind, grant, private};

/// What root, the file's owner and somebody else get; `None` is success.
type Expected = [Option<Errno>; 3];
type Act = fn(&Path) -> io::Result<()>;
/// What is done in a directory, and what comes of it through the bind and on the superblock.
type Case = (&'static str, Act, Expected, Expected);

/// A call of the C library, none of which outlives its arguments.
macro_rules! call {
    ($name:ident($($argument:expr),*)) => {
        // SAFETY: the arguments are numbers, open descriptors, C strings and buffers that live
        // through the call.
        unsafe { libc::$name($($argument),*) }
    };
}

const OWNER: u32 = 2_000;
const CALLERS: [u32; 3] = [0, OWNER, 2_001];
const FINE: Expected = [None; 3];

const fn all(errno: Errno) -> Expected {
    [Some(errno); 3]
}

/// Root and the owner are refused because it is read-only, somebody else because he is.
const fn or(stranger: Errno) -> Expected {
    [Some(EROFS), Some(EROFS), Some(stranger)]
}

/// Root is refused because it is read-only, the rest because they are not root.
const fn root_or(rest: Errno) -> Expected {
    [Some(EROFS), Some(rest), Some(rest)]
}

/// There is no such thing here, and somebody else may not even ask.
const fn unknown_or(stranger: Errno) -> Expected {
    [Some(EOPNOTSUPP), Some(EOPNOTSUPP), Some(stranger)]
}

/// Root and the owner may, somebody else may not.
const fn fine_or(stranger: Errno) -> Expected {
    [None, None, Some(stranger)]
}

const APPEND: i32 = libc::O_WRONLY | libc::O_APPEND;
const TRUNCATE: i32 = libc::O_WRONLY | libc::O_TRUNC;
const CREATE: i32 = libc::O_CREAT | libc::O_WRONLY;
const INSIST: i32 = CREATE | libc::O_EXCL;
const NAMELESS: i32 = libc::O_TMPFILE | libc::O_RDWR;
const NO_NAMELESS: Expected = [Some(EOPNOTSUPP), Some(EACCES), Some(EACCES)];

const OPENS: [Case; 15] = [
    ("read", |d| open(d, "a", libc::O_RDONLY), FINE, FINE),
    ("read directly", |d| open(d, "a", libc::O_DIRECT), FINE, FINE),
    ("read, append", |d| open(d, "a", libc::O_APPEND), FINE, FINE),
    // On the superblock it is the sentinel's touch.
    ("write", |d| open(d, "a", libc::O_WRONLY), or(EACCES), fine_or(EACCES)),
    ("append", |d| open(d, "a", APPEND), or(EACCES), fine_or(EACCES)),
    ("read and write", |d| open(d, "a", libc::O_RDWR), or(EACCES), or(EACCES)),
    ("write anew", |d| open(d, "a", TRUNCATE), all(EROFS), or(EACCES)),
    ("read, truncate", |d| open(d, "a", libc::O_TRUNC), all(EROFS), or(EACCES)),
    ("create", |d| open(d, "new", CREATE), all(EROFS), root_or(EACCES)),
    ("create or read", |d| open(d, "a", libc::O_CREAT), FINE, FINE),
    ("insist on creating", |d| open(d, "a", INSIST), all(EEXIST), all(EEXIST)),
    ("create without name", |d| open(d, ".", NAMELESS), all(EROFS), NO_NAMELESS),
    ("file as directory", |d| open(d, "a", libc::O_DIRECTORY), all(ENOTDIR), all(ENOTDIR)),
    ("directory to write", |d| open(d, "dir", libc::O_WRONLY), all(EISDIR), all(EISDIR)),
    ("quietly", |d| open(d, "a", libc::O_NOATIME), fine_or(EPERM), fine_or(EPERM)),
];

const NAMES: [Case; 13] = [
    ("mkdir", |d| on(d, "new", |p| call!(mkdir(p, 0o700))), all(EROFS), root_or(EACCES)),
    ("mkfifo", |d| on(d, "new", |p| call!(mkfifo(p, 0o600))), all(EROFS), root_or(EACCES)),
    ("mknod", |d| on(d, "new", device), all(EROFS), root_or(EACCES)),
    ("symlink", |d| on(d, "new", symlink), all(EROFS), root_or(EACCES)),
    ("link", |d| link(&d.join("b"), &d.join("new")), all(EROFS), root_or(EACCES)),
    ("link out", |d| link(&d.join("a"), &outside(d, "new")), all(EXDEV), all(EXDEV)),
    ("rename", |d| rename(&d.join("a"), &d.join("new"), 0), all(EROFS), root_or(EACCES)),
    ("rename over", |d| rename(&d.join("a"), &d.join("b"), 0), all(EROFS), root_or(EACCES)),
    ("exchange", |d| rename(&d.join("a"), &d.join("b"), EXCHANGE), all(EROFS), root_or(EACCES)),
    ("move in", |d| rename(&outside(d, "file"), &d.join("a"), 0), all(EXDEV), all(EXDEV)),
    ("move out", |d| rename(&d.join("a"), &outside(d, "new"), 0), all(EXDEV), all(EXDEV)),
    ("unlink", |d| on(d, "a", |p| call!(unlink(p))), all(EROFS), root_or(EACCES)),
    ("rmdir", |d| on(d, "dir", |p| call!(rmdir(p))), all(EROFS), root_or(EACCES)),
];
const EXCHANGE: u32 = libc::RENAME_EXCHANGE;

const ATTRIBUTES: [Case; 14] = [
    ("chmod", |d| on(d, "a", |p| call!(chmod(p, 0o777))), all(EROFS), or(EPERM)),
    ("fchmod", |d| with(d, |fd| call!(fchmod(fd, 0o777))), all(EROFS), or(EPERM)),
    ("chown", |d| on(d, "a", |p| call!(chown(p, 7, 7))), all(EROFS), root_or(EPERM)),
    ("fchown", |d| with(d, |fd| call!(fchown(fd, 7, 7))), all(EROFS), root_or(EPERM)),
    ("set times", |d| on(d, "a", |p| times(p, 7)), all(EROFS), or(EPERM)),
    ("set times to now", |d| on(d, "a", |p| times(p, libc::UTIME_NOW)), all(EROFS), or(EACCES)),
    ("truncate", |d| on(d, "a", |p| call!(truncate(p, 1))), or(EACCES), or(EACCES)),
    ("ftruncate", |d| with(d, |fd| call!(ftruncate(fd, 1))), all(EINVAL), all(EINVAL)),
    ("may write", |d| on(d, "a", |p| call!(eaccess(p, libc::W_OK))), or(EACCES), fine_or(EACCES)),
    ("set xattr", |d| on(d, "a", |p| set_xattr(p, c"user.x")), all(EROFS), unknown_or(EACCES)),
    ("set acl", |d| on(d, "a", |p| set_xattr(p, ACL)), all(EROFS), unknown_or(EPERM)),
    ("get xattr", |d| on(d, "a", get_xattr), all(EOPNOTSUPP), all(EOPNOTSUPP)),
    ("list xattrs", |d| on(d, "a", list_xattrs), all(EOPNOTSUPP), all(EOPNOTSUPP)),
    ("remove xattr", |d| on(d, "a", |p| call!(removexattr(p, X))), all(EROFS), unknown_or(EACCES)),
];
const X: *const c_char = c"user.x".as_ptr();
const ACL: &CStr = c"system.posix_acl_access";

/// On a descriptor that was opened to read.
const DESCRIPTORS: [Case; 24] = [
    ("write", |d| with(d, write), all(EBADF), all(EBADF)),
    ("allocate", |d| with(d, |fd| call!(fallocate(fd, 0, 0, 9))), all(EBADF), all(EBADF)),
    ("punch a hole", |d| with(d, |fd| call!(fallocate(fd, 3, 0, 9))), all(EBADF), all(EBADF)),
    ("copy in", |d| between(d, |fd, file| copy(file, fd)), all(EBADF), all(EBADF)),
    ("copy out", |d| between(d, copy), all(EXDEV), all(EXDEV)),
    ("clone out", |d| between(d, clone), all(EXDEV), all(EXDEV)),
    ("send in", |d| between(d, |fd, file| send(file, fd)), all(EBADF), all(EBADF)),
    ("send out", |d| between(d, send), FINE, FINE),
    ("terminal?", |d| with(d, |fd| ioctl(fd, libc::TCGETS)), all(ENOTTY), all(ENOTTY)),
    ("flags", |d| with(d, |fd| ioctl(fd, libc::FS_IOC_GETFLAGS)), all(ENOTTY), all(ENOTTY)),
    ("set flags", |d| with(d, |fd| ioctl(fd, libc::FS_IOC_SETFLAGS)), all(EROFS), NO_FLAGS),
    ("bytes to read", |d| with(d, |fd| ioctl(fd, libc::FIONREAD)), FINE, FINE),
    ("shared lock", |d| with(d, |fd| call!(flock(fd, libc::LOCK_SH))), FINE, FINE),
    ("exclusive lock", |d| with(d, |fd| call!(flock(fd, libc::LOCK_EX))), FINE, FINE),
    ("read lock", |d| with(d, |fd| lock(fd, libc::F_SETLK, libc::F_RDLCK)), FINE, FINE),
    ("write lock", |d| with(d, |fd| lock(fd, libc::F_SETLK, libc::F_WRLCK)), NO_LOCK, NO_LOCK),
    ("lock of the open", |d| with(d, |fd| lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK)), FINE, FINE),
    ("fsync", |d| with(d, |fd| call!(fsync(fd))), FINE, FINE),
    ("fdatasync", |d| with(d, |fd| call!(fdatasync(fd))), FINE, FINE),
    ("syncfs", |d| with(d, |fd| call!(syncfs(fd))), FINE, FINE),
    ("map to share", |d| with(d, |fd| map(fd, libc::PROT_READ, SHARED)), all(ENODEV), all(ENODEV)),
    ("map to write", |d| with(d, |fd| map(fd, libc::PROT_WRITE, SHARED)), all(EACCES), all(EACCES)),
    ("map to run", |d| with(d, |fd| map(fd, libc::PROT_EXEC, PRIVATE)), all(EPERM), all(EPERM)),
    ("run", |d| on(d, "run", |p| call!(execv(p, [p, null()].as_ptr()))), all(EACCES), all(EACCES)),
];
const NO_FLAGS: Expected = [Some(ENOTTY), Some(ENOTTY), Some(EPERM)];
const NO_LOCK: Expected = all(EBADF);
const SHARED: i32 = libc::MAP_SHARED;
const PRIVATE: i32 = libc::MAP_PRIVATE;

#[test]
fn every_change_is_refused_with_the_right_error() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let owned = |name, mode| Grant { uid: OWNER, gid: OWNER, mode, ..grant(name, 1) };
        let set =
            [owned("a", 0o644), owned("b", 0o666), owned("dir/c", 0o644), owned("run", 0o755)];
        let set = set.map(|grant| world.member(grant, b"0123456789"));
        world.server.deliver(set.to_vec()).unwrap();
        fs::write(dir.join("file"), "outside").unwrap();
        for (path, mode) in [("", 0o777), ("file", 0o666)] {
            fs::set_permissions(dir.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(dir.join("secrets")).unwrap();
        bind(&dir.join("mnt/secrets"), &dir.join("secrets"));
        let mut wrong = Vec::new();
        for (number, caller) in CALLERS.into_iter().enumerate() {
            for (what, act, bound, mounted) in
                OPENS.into_iter().chain(NAMES).chain(ATTRIBUTES).chain(DESCRIPTORS)
            {
                for (at, expected) in [("secrets", bound), ("mnt/secrets", mounted)] {
                    let seen = as_user(caller, act, &dir.join(at));
                    if seen != expected[number] {
                        let expected = expected[number];
                        wrong.push(format!(
                            "{what} by {caller} at {at}: {seen:?}, not {expected:?}"
                        ));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        for name in ["a", "b", "dir/c", "run"] {
            assert_eq!(fs::read(dir.join("secrets").join(name)).unwrap(), b"0123456789");
        }
        let mode = fs::metadata(dir.join("secrets/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let names = fs::read_dir(dir.join("secrets")).unwrap().count();
        assert_eq!(names, 4);
    });
}

/// Only this thread changes its user: the kernel knows nothing of processes here.
fn as_user(uid: u32, act: Act, dir: &Path) -> Option<Errno> {
    let work = || {
        // SAFETY: plain system calls with numbers.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, null::<libc::gid_t>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, uid, uid, uid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
        act(dir)
    };
    let done = thread::scope(|scope| scope.spawn(work).join().unwrap());
    done.err().map(|error| Errno::from_raw(error.raw_os_error().unwrap()))
}

/// A path on the tmpfs that the mount is on.
fn outside(dir: &Path, name: &str) -> PathBuf {
    let top = dir.ancestors().find(|top| top.join("mnt").exists());
    top.unwrap().join(name)
}

fn returned(code: impl Into<i64>) -> io::Result<()> {
    if code.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn on<T: Into<i64>>(dir: &Path, name: &str, act: impl Fn(*const c_char) -> T) -> io::Result<()> {
    returned(act(c_path(&dir.join(name)).as_ptr()))
}

fn with<T: Into<i64>>(dir: &Path, act: impl Fn(i32) -> T) -> io::Result<()> {
    let file = File::open(dir.join("a"))?;
    returned(act(file.as_raw_fd()))
}

fn between<T: Into<i64>>(dir: &Path, act: impl Fn(i32, i32) -> T) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(outside(dir, "file"))?;
    with(dir, |fd| act(fd, file.as_raw_fd()))
}

fn open(dir: &Path, name: &str, flags: i32) -> io::Result<()> {
    on(dir, name, |path| {
        let fd = call!(open(path, flags | libc::O_CLOEXEC, 0o600));
        if fd >= 0 {
            call!(close(fd));
        }
        fd
    })
}

fn device(path: *const c_char) -> i32 {
    call!(mknod(path, libc::S_IFCHR | 0o600, libc::makedev(1, 3)))
}

fn symlink(path: *const c_char) -> i32 {
    call!(symlink(c"a".as_ptr(), path))
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    returned(call!(link(c_path(from).as_ptr(), c_path(to).as_ptr())))
}

fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to, here) = (c_path(from), c_path(to), libc::AT_FDCWD);
    returned(call!(renameat2(here, from.as_ptr(), here, to.as_ptr(), flags)))
}

fn times(path: *const c_char, nanoseconds: i64) -> i32 {
    let time = libc::timespec { tv_sec: 1, tv_nsec: nanoseconds };
    call!(utimensat(libc::AT_FDCWD, path, [time, time].as_ptr(), 0))
}

fn set_xattr(path: *const c_char, name: &CStr) -> i32 {
    // An access control list: its version, then owner, group and others with their rights.
    let entries = [1u8, 4, 0x20].map(|who| [who, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]);
    let value = [&[2u8, 0, 0, 0], entries.as_flattened()].concat();
    call!(setxattr(path, name.as_ptr(), value.as_ptr().cast(), value.len(), 0))
}

fn get_xattr(path: *const c_char) -> i64 {
    call!(getxattr(path, X, null_mut(), 0)) as i64
}

fn list_xattrs(path: *const c_char) -> i64 {
    call!(listxattr(path, null_mut(), 0)) as i64
}

fn write(fd: i32) -> i64 {
    call!(write(fd, b"x".as_ptr().cast(), 1)) as i64
}

fn copy(from: i32, to: i32) -> i64 {
    call!(copy_file_range(from, null_mut(), to, null_mut(), 4, 0)) as i64
}

fn clone(from: i32, to: i32) -> i32 {
    call!(ioctl(to, libc::FICLONE, from))
}

fn send(from: i32, to: i32) -> i64 {
    call!(sendfile(to, from, null_mut(), 4)) as i64
}

fn ioctl(fd: i32, request: c_ulong) -> i32 {
    let mut space = [0u8; 256];
    call!(ioctl(fd, request, space.as_mut_ptr()))
}

fn lock(fd: i32, command: i32, kind: i32) -> i32 {
    // SAFETY: numbers only, of which zero means the whole file and no owner.
    let mut lock: libc::flock = unsafe { zeroed() };
    lock.l_type = kind as i16;
    call!(fcntl(fd, command, &lock))
}

fn map(fd: i32, protection: i32, flags: i32) -> i32 {
    match call!(mmap(null_mut(), 4_096, protection, flags, fd, 0)) {
        libc::MAP_FAILED => -1,
        start => call!(munmap(start, 4_096)),
    }
}
