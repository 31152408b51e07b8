//! Rotation and revocation under open files, maps and watchers.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use skep_fuse::server::DeliverError;
use skep_fuse::tree::{Grant, TreeError};
use skep_fuse::vault::VaultKind;

use crate::harness::{World, bind, errno, eventually, grant, private};

fn text(file: &mut File) -> String {
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn rotation_shows_at_once_through_directory_and_file_binds() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let set = |version, bytes: &[u8]| {
            ["a", "/etc/a"].map(|target| world.member(grant(target, version), bytes)).to_vec()
        };
        world.server.deliver(set(1, b"short")).unwrap();
        let (secrets, single) = (dir.join("secrets"), dir.join("single"));
        fs::create_dir(&secrets).unwrap();
        File::create(&single).unwrap();
        bind(&dir.join("mnt/secrets"), &secrets);
        bind(&dir.join("mnt/abs/0"), &single);
        let paths = [secrets.join("a"), single];
        let mut old: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
        for path in &paths {
            assert_eq!(fs::metadata(path).unwrap().len(), 5);
        }
        let delivered = world.server.deliver(set(2, b"a longer one")).unwrap();
        assert_eq!(delivered.replaced, [Path::new("secrets/a"), Path::new("abs/0")]);
        assert_eq!((delivered.set, delivered.unsettled), (Some(2), None));
        for (path, old) in paths.iter().zip(&mut old) {
            assert_eq!(text(old), "short", "an open descriptor keeps its version");
            assert_eq!(fs::metadata(path).unwrap().len(), 12);
            assert_eq!(fs::read_to_string(path).unwrap(), "a longer one");
        }
        world.server.deliver(set(3, b"")).unwrap();
        for path in &paths {
            assert_eq!(fs::metadata(path).unwrap().len(), 0);
            assert_eq!(fs::read(path).unwrap(), b"");
        }
    });
}

#[test]
fn handles_of_versions_long_gone_are_stale() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let mut handles = Vec::new();
        for version in 1..=4 {
            world.deliver("a", version, format!("version {version}").as_bytes());
            handles.push(File::open(world.secret("a")).unwrap());
        }
        let mut byte = [0; 9];
        assert_eq!(errno(handles[0].read_at(&mut byte, 0)), Errno::ESTALE);
        for (version, handle) in (2..).zip(&mut handles[1..]) {
            assert_eq!(text(handle), format!("version {version}"));
        }
    });
}

#[test]
fn revocation_reaches_open_descriptors() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let set = ["a", "b", "/etc/a"].map(|target| world.member(grant(target, 1), b"one"));
        world.server.deliver(set.to_vec()).unwrap();
        let single = dir.join("single");
        File::create(&single).unwrap();
        bind(&dir.join("mnt/abs/0"), &single);
        let handles = [world.secret("a"), single.clone(), world.secret("..current/a")]
            .map(|path| File::open(path).unwrap());
        world.server.revoke(&["a", "/etc/a"]).unwrap();
        for handle in &handles {
            assert_eq!(errno(handle.read_at(&mut [0], 0)), Errno::ENOENT);
            assert_eq!(errno(handle.metadata()), Errno::ENOENT);
        }
        for path in [world.secret("a"), single.clone(), world.secret("..1/a")] {
            assert_eq!(errno(File::open(path)), Errno::ENOENT);
        }
        let left: Vec<_> =
            fs::read_dir(world.secret("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["b"]);
        assert_eq!(fs::read(world.secret("b")).unwrap(), b"one");
        let rows = world.server.audit().snapshot();
        let refused: u64 = rows.iter().map(|row| row.refused).sum();
        assert_eq!(refused, 6, "each open, and each look at what was open before: {rows:?}");
        let again = ["a", "/etc/a"].map(|target| world.member(grant(target, 2), b"again"));
        let delivered = world.server.deliver(again.to_vec()).unwrap();
        let back = [Path::new("secrets/a"), Path::new("abs/0")];
        assert_eq!(delivered.replaced, back, "watchers hear that they are back");
        assert_eq!(fs::read(world.secret("a")).unwrap(), b"again");
        assert_eq!(fs::read(&single).unwrap(), b"again", "the bind still holds");
    });
}

#[test]
fn revocation_reaches_mapped_pages() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let file = File::open(world.secret("a")).unwrap();
        let length = NonZeroUsize::new(4_096).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let map =
            unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0) };
        let start = map.unwrap();
        // A write to a pipe copies from the mapping, and fails where a load would be a signal.
        let (reading, writing) = nix::unistd::pipe().unwrap();
        let copy = || {
            // SAFETY: three bytes inside the mapping.
            let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>().as_ptr(), 3) };
            nix::unistd::write(&writing, bytes)
        };
        assert_eq!(copy(), Ok(3));
        let (mut reading, mut seen) = (File::from(reading), [0; 3]);
        reading.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"one");
        world.server.revoke(&["a"]).unwrap();
        assert_eq!(copy(), Err(Errno::EFAULT));
        // SAFETY: nobody uses the mapping any more.
        unsafe { munmap(start, length.get()) }.unwrap();
    });
}

#[test]
fn the_end_refuses_everything() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let handle = File::open(world.secret("a")).unwrap();
        world.server.refuse_all().unwrap();
        world.vault.wipe();
        assert_eq!(errno(handle.read_at(&mut [0], 0)), Errno::ENOENT);
        assert_eq!(errno(File::open(world.secret("a"))), Errno::ENOENT);
        assert_eq!(errno(fs::metadata(world.secret("a"))), Errno::ENOENT);
        assert_eq!(fs::read_dir(world.secret("")).unwrap().count(), 0);
        let late = world.server.deliver(Vec::new());
        assert!(matches!(late, Err(DeliverError::Refusing)));
    });
}

#[test]
fn a_refused_set_changes_nothing() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 2, b"two");
        let older = vec![world.member(grant("b", 1), b"b"), world.member(grant("a", 1), b"one")];
        let refused = world.server.deliver(older);
        assert!(matches!(refused, Err(DeliverError::Tree(TreeError::Older { held: 2, .. }))));
        let mut lying = world.member(grant("b", 1), b"b");
        lying.grant.size = 2;
        let refused = world.server.deliver(vec![lying]);
        assert!(matches!(refused, Err(DeliverError::Size { stated: 2, found: 1, .. })));
        assert_eq!(fs::read(world.secret("a")).unwrap(), b"two");
        assert_eq!(errno(fs::read(world.secret("b"))), Errno::ENOENT);
        assert_eq!(world.server.held(), [Grant { size: 3, ..grant("a", 2) }]);
    });
}

/// After an open that saw a new member, no open sees an old one, and no read gives more bytes
/// than the size said.
#[test]
fn sets_switch_at_once_under_readers() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        let deliver = |version: u64| {
            let bytes = vec![version as u8; 10 + version as usize];
            let set = ["a", "b"].map(|name| world.member(grant(name, version), &bytes));
            let delivered = world.server.deliver(set.to_vec()).unwrap();
            assert_eq!(delivered.unsettled, None);
        };
        deliver(1);
        let rounds = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for (count, (first, second)) in rounds.iter().zip([("a", "b"), ("b", "a")]) {
                let (first, second, over) = (world.secret(first), world.secret(second), &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let (one, two) = (version(&first), version(&second));
                        assert!(two >= one, "saw {one}, then {two}");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for version in 2..=100 {
                let before = rounds.each_ref().map(|count| count.load(Ordering::Relaxed));
                eventually("a round of both readers", || {
                    let went = |(count, &before): (&AtomicUsize, &usize)| {
                        count.load(Ordering::Relaxed) > before
                    };
                    rounds.iter().zip(&before).all(went)
                });
                deliver(version);
            }
            over.store(true, Ordering::Relaxed);
        });
    });
}

fn version(path: &Path) -> u8 {
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 10 + bytes[0] as usize);
    assert!(size >= bytes.len() as u64, "new bytes with the old size");
    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
    bytes[0]
}

#[test]
fn private_maps_see_rotations_and_shared_ones_are_refused() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let file = File::open(world.secret("a")).unwrap();
        file.read_at(&mut [0; 8], 0).unwrap();
        assert_eq!(world.server.audit().cached_reads(), 0);
        let length = NonZeroUsize::new(4_096).unwrap();
        let map = |flags| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { mmap(None, length, ProtFlags::PROT_READ, flags, &file, 0) }
        };
        assert_eq!(map(MapFlags::MAP_SHARED), Err(Errno::ENODEV));
        let start = map(MapFlags::MAP_PRIVATE).unwrap();
        let seen = || {
            // SAFETY: three bytes inside the mapping.
            unsafe { std::ptr::read_volatile(start.cast::<[u8; 3]>().as_ptr()) }
        };
        assert_eq!(&seen(), b"one");
        assert!(world.server.audit().cached_reads() > 0);
        world.deliver("a", 2, b"two");
        assert_eq!(&seen(), b"two");
        // SAFETY: nobody uses the mapping any more.
        unsafe { munmap(start, length.get()) }.unwrap();
    });
}

#[test]
fn watchers_of_the_bind_hear_of_a_touch() {
    private(|dir| {
        let world = World::new(VaultKind::Auto, dir);
        world.deliver("a", 1, b"one");
        let secrets = dir.join("secrets");
        fs::create_dir(&secrets).unwrap();
        bind(&dir.join("mnt/secrets"), &secrets);
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        inotify
            .add_watch(&secrets.join("a"), AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)
            .unwrap();
        let member = world.member(grant("a", 2), b"two");
        let delivered = world.server.deliver(vec![member]).unwrap();
        for path in delivered.replaced {
            let file = File::options().write(true).open(dir.join("mnt").join(path)).unwrap();
            file.write_at(b"\0", 0).unwrap();
        }
        let heard = inotify.read_events().unwrap();
        let heard: Vec<AddWatchFlags> = heard.iter().map(|event| event.mask).collect();
        assert_eq!(heard, [AddWatchFlags::IN_MODIFY, AddWatchFlags::IN_CLOSE_WRITE]);
        assert_eq!(fs::metadata(secrets.join("a")).unwrap().len(), 3);
        assert_eq!(fs::read(secrets.join("a")).unwrap(), b"two");
    });
}
