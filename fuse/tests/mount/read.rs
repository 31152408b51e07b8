//! Every way to read a large binary secret gives its bytes, and no byte past its end.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{SpliceFFlags, splice};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::sendfile::sendfile;
use nix::unistd::{Whence, lseek64};
use skep_fuse::limits;
use skep_fuse::vault::VaultKind;

use crate::harness::{World, binary, bind, errno, private};

const SIZE: usize = 500_000;

/// Runs a check on a bound file of [`binary`] content, from both kinds of vault.
fn on_large(check: fn(&Path, &[u8])) {
    for kind in [VaultKind::SecretMem, VaultKind::Mlock] {
        private(move |dir| {
            let world = World::new(kind, dir);
            world.deliver("large", 1, &binary(SIZE));
            fs::create_dir(dir.join("secrets")).unwrap();
            bind(&dir.join("mnt/secrets"), &dir.join("secrets"));
            check(&dir.join("secrets/large"), &binary(SIZE));
        });
    }
}

#[test]
fn pieces_of_any_length_join_up() {
    on_large(|path, bytes| {
        for piece in [997, 4_095, 4_096, 4_097, 65_537, limits::READ_BYTES + 1, SIZE, 2 * SIZE] {
            let mut file = File::open(path).unwrap();
            let (mut joined, mut buffer) = (Vec::new(), vec![0xee; piece]);
            loop {
                let read = file.read(&mut buffer).unwrap();
                // Only the end makes a read short.
                assert_eq!(read, piece.min(SIZE - joined.len()), "pieces of {piece}");
                assert!(buffer[read..].iter().all(|&byte| byte == 0xee) || !joined.is_empty());
                if read == 0 {
                    break;
                }
                joined.extend_from_slice(&buffer[..read]);
            }
            assert!(joined == bytes, "pieces of {piece}");
        }
    });
}

#[test]
fn reads_at_odd_places_and_across_the_end() {
    on_large(|path, bytes| {
        let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let file = File::open(path).unwrap();
        let edges = [0, 4_096, limits::READ_BYTES, 3 * limits::READ_BYTES, SIZE];
        for edge in edges {
            for (before, length) in [(0, 1), (1, 2), (3, 10), (0, 4_096), (7, 200_000)] {
                let Some(from) = edge.checked_sub(before) else { continue };
                let expected = &bytes[from..(from + length).min(SIZE)];
                for file in [&file, &direct] {
                    let mut buffer = vec![0xee; length];
                    let read = file.read_at(&mut buffer, from as u64).unwrap();
                    assert!(&buffer[..read] == expected, "{length} bytes from {from}");
                    assert!(buffer[read..].iter().all(|&byte| byte == 0xee));
                }
            }
        }
        for beyond in [SIZE as u64, SIZE as u64 + 1, 1 << 40, i64::MAX as u64 - 4_096] {
            assert_eq!(file.read_at(&mut [0; 64], beyond).unwrap(), 0, "{beyond}");
        }
        assert_eq!(errno(file.read_at(&mut [0], u64::MAX)), nix::errno::Errno::EINVAL);
    });
}

#[test]
fn vectors_fill_one_after_the_other() {
    on_large(|path, bytes| {
        let mut file = File::open(path).unwrap();
        let (mut one, mut two, mut three) = (vec![0; 3], vec![0; 200_001], vec![0; SIZE]);
        let mut vectors = [&mut one, &mut two, &mut three].map(|v| IoSliceMut::new(v));
        assert_eq!(file.read_vectored(&mut vectors).unwrap(), SIZE);
        assert!([one, two, three].concat()[..SIZE] == *bytes);
    });
}

#[test]
fn places_are_found_from_the_end_and_by_holes() {
    on_large(|path, bytes| {
        let mut file = File::open(path).unwrap();
        assert_eq!(file.seek(SeekFrom::End(-5)).unwrap(), SIZE as u64 - 5);
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, bytes[SIZE - 5..]);
        // It is all data.
        assert_eq!(lseek64(&file, 9, Whence::SeekData), Ok(9));
        assert_eq!(lseek64(&file, 9, Whence::SeekHole), Ok(SIZE as i64));
        let beyond = lseek64(&file, SIZE as i64, Whence::SeekData);
        assert_eq!(beyond, Err(nix::errno::Errno::ENXIO));
    });
}

#[test]
fn a_private_map_has_the_bytes_and_zeros_to_the_end_of_the_page() {
    on_large(|path, bytes| {
        let file = File::open(path).unwrap();
        let length = NonZeroUsize::new(SIZE.next_multiple_of(4_096)).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_PRIVATE, &file, 0) };
        let start = start.unwrap();
        // SAFETY: the mapping just made, which nobody else uses or changes.
        let mapped =
            unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), length.get()) };
        assert!(mapped[..SIZE] == *bytes);
        assert!(mapped[SIZE..].iter().all(|&byte| byte == 0));
        mapped[0] ^= 0xff;
        let mut first = [0];
        file.read_at(&mut first, 0).unwrap();
        assert_eq!(first[0], bytes[0], "a private change stays private");
        // SAFETY: nobody uses the mapping any more.
        unsafe { munmap(start, length.get()) }.unwrap();
    });
}

#[test]
fn the_kernel_passes_it_on_by_sendfile_and_splice() {
    on_large(|path, bytes| {
        let copy = path.parent().unwrap().with_file_name("copy");
        let (file, to) = (File::open(path).unwrap(), File::create(&copy).unwrap());
        let mut sent = 0;
        while sent < SIZE {
            sent += sendfile(&to, &file, None, SIZE).unwrap();
        }
        assert_eq!(sendfile(&to, &file, None, SIZE).unwrap(), 0);
        assert!(fs::read(&copy).unwrap() == bytes);

        let (mut read, write) = std::io::pipe().unwrap();
        let (mut from, mut spliced) = (0i64, Vec::new());
        while spliced.len() < SIZE {
            let (fd, flags) = (file.as_fd(), SpliceFFlags::empty());
            let moved = splice(fd, Some(&mut from), &write, None, 60_001, flags).unwrap();
            let mut piece = vec![0; moved];
            read.read_exact(&mut piece).unwrap();
            spliced.extend(piece);
        }
        assert!(spliced == bytes);
    });
}

#[test]
fn programs_read_it_whole() {
    on_large(|path, bytes| {
        let copy = path.parent().unwrap().with_file_name("copy");
        let (from, to) = (path.display(), copy.display());
        for line in [
            format!("cat {from} > {to}"),
            format!("cp {from} {to}"),
            format!("cp --sparse=always --preserve=timestamps {from} {to}"),
            format!("dd if={from} of={to} bs=1009 status=none"),
            format!("dd if={from} of={to} bs=64k iflag=direct,fullblock status=none"),
            format!("tail -c +1 {from} > {to}"),
        ] {
            let done = Command::new("sh").args(["-c", &line]).status().unwrap();
            assert!(done.success(), "{line}");
            assert!(fs::read(&copy).unwrap() == bytes, "{line}");
            fs::remove_file(&copy).unwrap();
        }
    });
}
