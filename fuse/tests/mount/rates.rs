//! Not a check: prints how long reads take, against a tmpfs beside the mount.
//! Most telling on one processor that nobody else uses: `chrt -f 20 taskset -c 1`.
//!
//! `cargo test --release -p skep-fuse --test mount rates -- --ignored --nocapture`

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use skep_fuse::vault::VaultKind;

use crate::harness::{binary, bind, private};
use crate::served::Served;

const ROUNDS: usize = 41;

#[test]
#[ignore = "prints figures"]
fn rates() {
    for kind in [VaultKind::SecretMem, VaultKind::Mlock] {
        private(move |dir| {
            let mut served = Served::start(kind, dir);
            let (secrets, plain) = (dir.join("secrets"), dir.join("plain"));
            fs::create_dir(&secrets).unwrap();
            bind(&served.secrets, &secrets);
            fs::create_dir(&plain).unwrap();
            for (what, size, buffer, count) in CYCLES {
                let name = size.to_string();
                served.deliver(&name, size);
                fs::write(plain.join(&name), binary(size)).unwrap();
                // In turn, so that both meet the same neighbours on the machine.
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                for _ in 0..ROUNDS {
                    theirs.push(cycle(&plain.join(&name), size, buffer, count));
                    ours.push(cycle(&secrets.join(&name), size, buffer, count));
                }
                let (ours, theirs) = (usual(ours), usual(theirs));
                let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
                println!("{kind}, {what}: {ours:?}, tmpfs {theirs:?}: {ratio:.1}x");
            }
        });
    }
}

/// Name, bytes of the secret, bytes of the reader's buffer, cycles in one round. A buffer of
/// one byte more than the secret stands for a program that asks for the size first and reads to
/// the end.
const CYCLES: [(&str, usize, usize, u32); 4] = [
    ("64 B, large buffer", 64, 1 << 20, 2_000),
    ("64 B, small buffer", 64, 4_096, 2_000),
    ("64 B by size", 64, 65, 2_000),
    ("500 KB", 500_000, 1 << 20, 200),
];

/// One open, one read, one close.
fn cycle(path: &Path, size: usize, length: usize, count: u32) -> Duration {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut buffer = vec![1u8; length];
    let by_size = length == size + 1;
    let mut once = || {
        // SAFETY: a path with its NUL, a buffer with its length, room for what is found.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if by_size {
                let mut found = std::mem::zeroed();
                assert_eq!(libc::fstat(fd, &mut found), 0);
            }
            let read = libc::read(fd, buffer.as_mut_ptr().cast(), length);
            assert_eq!(usize::try_from(read), Ok(size));
            if by_size {
                assert_eq!(libc::read(fd, buffer.as_mut_ptr().cast(), 1), 0);
            }
            libc::close(fd);
        }
    };
    (0..100).for_each(|_| once());
    let began = Instant::now();
    (0..count).for_each(|_| once());
    began.elapsed() / count
}

/// The lower quintile: what is above it tells of the neighbours.
fn usual(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 5]
}
