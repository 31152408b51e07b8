//! Mounts that are refused.

use anyhow::{Result, ensure};
use skep_integration::Options;

use crate::{bench, ends, node, once};

const BEGIN: &str = "the secrets' filesystem cannot be mounted: ";
const OPEN: &str = "the secrets' filesystem cannot be mounted: cannot open /dev/fuse (is the fuse \
                    module there?)";

fn without_fuse(mounts: &'static str, err: &str) -> Result<()> {
    let node = node(Options { mounts: Some(mounts), ..Options::default() })?;
    let bench = bench(&node);
    let service = once(&bench, "unmounted", &[], &["sleep", "1000000"])?;
    let over = ends(&bench, &service, "failed", err)?;
    ensure!(over.code() == 128, "{over:?}");
    // A task without secrets needs no such device.
    bench.container(&bench.sleeper("plain", &[])?)?;
    Ok(())
}

#[test]
fn the_device_is_another() -> Result<()> {
    without_fuse(
        "mount --bind /dev/null /dev/fuse",
        &format!("{BEGIN}cannot mount on …: Invalid argument (os error 22)"),
    )
}

#[test]
fn the_device_cannot_be_opened() -> Result<()> {
    let mounts = "mount --bind /dev/fuse /dev/fuse; mount -o remount,bind,nodev /dev/fuse";
    without_fuse(mounts, &format!("{OPEN}: Permission denied (os error 13)"))
}

#[test]
fn the_device_is_missing() -> Result<()> {
    let mounts = "mkdir \"$1.dev\"; mount -t tmpfs none \"$1.dev\"; cp -a /dev/null /dev/zero \
                  /dev/random /dev/urandom /dev/tty \"$1.dev\"; mkdir \"$1.dev/pts\" \"$1.dev/shm\"; \
                  mount --move \"$1.dev\" /dev; rmdir \"$1.dev\"";
    without_fuse(mounts, &format!("{OPEN}: No such file or directory (os error 2)"))
}
