//! Not a check: prints how long reads take, against a tmpfs beside the mount.
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
            for (size, count) in [(64, 2_000), (500_000, 200)] {
                let name = size.to_string();
                served.deliver(&name, size);
                fs::write(plain.join(&name), binary(size)).unwrap();
                // In turn, so that both meet the same neighbours on the machine.
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                for _ in 0..ROUNDS {
                    theirs.push(cycle(&plain.join(&name), size, count));
                    ours.push(cycle(&secrets.join(&name), size, count));
                }
                let (ours, theirs) = (median(ours), median(theirs));
                let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
                println!("{kind}, {size} B: {ours:?}, tmpfs {theirs:?}: {ratio:.1}x");
            }
        });
    }
}

/// One open, one read, one close.
fn cycle(path: &Path, size: usize, count: u32) -> Duration {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut buffer = vec![1u8; 1 << 20];
    let mut once = || {
        // SAFETY: a path with its NUL, a buffer with its length.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let read = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len());
            assert_eq!(usize::try_from(read), Ok(size));
            libc::close(fd);
        }
    };
    (0..100).for_each(|_| once());
    let began = Instant::now();
    (0..count).for_each(|_| once());
    began.elapsed() / count
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 5]
}
