//! The shim's own mount namespace and what is mounted in it. Nothing of it shows in the host's
//! table, and all of it goes with the last process in the namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount, unmount,
};

/// Bytes the kernel takes as the options of the old mount call.
const OPTIONS_BYTES: usize = 4_095;

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("cannot get a mount namespace of its own")]
    Namespace(#[source] io::Error),
    #[error("cannot make the directory {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("cannot mount the container's root on {}: {step}", at.display())]
    Overlay { at: PathBuf, step: &'static str, source: io::Error },
    #[error("{0} layers are too many for this kernel's overlay (lowerdir+ needs Linux 6.5)")]
    TooManyLayers(usize),
}

/// Moves this process into a mount namespace of its own. What the host mounts and unmounts
/// later still arrives, so that no mount of the host lives on here; nothing leaves.
pub(super) fn enter_namespace() -> Result<(), MountError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| MountError::Namespace(e.into()))?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|e| MountError::Namespace(e.into()))
}

/// Where the container's root comes from.
#[derive(Debug)]
pub(super) struct Overlay<'a> {
    /// Directories of the layers, lowest first.
    pub(super) layers: &'a [String],
    /// What the container writes.
    pub(super) upper: &'a Path,
    /// The kernel's own directory beside it.
    pub(super) work: &'a Path,
    /// Mount point.
    pub(super) at: &'a Path,
    /// An empty directory, for an image without layers.
    pub(super) empty: &'a Path,
}

impl Overlay<'_> {
    pub(super) fn mount(&self) -> Result<(), MountError> {
        for dir in [self.upper, self.work, self.at, self.empty] {
            fs::create_dir_all(dir).map_err(|e| MountError::Directory(dir.into(), e))?;
        }
        match self.mount_by_parameters() {
            // The kernel does not know `lowerdir+`.
            Err(MountError::Overlay { source, .. })
                if source.raw_os_error() == Some(nix::libc::EINVAL)
                    || source.raw_os_error() == Some(nix::libc::ENOSYS) =>
            {
                self.mount_by_options()
            }
            other => other,
        }
    }

    fn lower(&self) -> impl Iterator<Item = &Path> {
        let empty = self.layers.is_empty().then_some(self.empty);
        self.layers.iter().rev().map(Path::new).chain(empty)
    }

    fn mount_by_parameters(&self) -> Result<(), MountError> {
        let fail = |step| move |e: rustix::io::Errno| self.failed(step, e);
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail("fsopen"))?;
        for layer in self.lower() {
            fsconfig_set_string(&fs, "lowerdir+", layer).map_err(fail("lowerdir"))?;
        }
        fsconfig_set_string(&fs, "upperdir", self.upper).map_err(fail("upperdir"))?;
        fsconfig_set_string(&fs, "workdir", self.work).map_err(fail("workdir"))?;
        // A task never meets its upper directory again under another root: no index is needed.
        fsconfig_set_string(&fs, "index", "off").map_err(fail("index"))?;
        fsconfig_create(&fs).map_err(fail("create"))?;
        let tree = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .map_err(fail("fsmount"))?;
        move_mount(&tree, "", CWD, self.at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(fail("move_mount"))
    }

    fn mount_by_options(&self) -> Result<(), MountError> {
        let escaped = |path: &Path| {
            path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
        };
        let lower: Vec<_> = self.lower().map(escaped).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off",
            lower.join(":"),
            escaped(self.upper),
            escaped(self.work)
        );
        if options.len() > OPTIONS_BYTES {
            return Err(MountError::TooManyLayers(self.layers.len()));
        }
        let options = std::ffi::CString::new(options)
            .map_err(|_| self.failed("options", rustix::io::Errno::INVAL))?;
        mount("overlay", self.at, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .map_err(|e| self.failed("mount", e))
    }

    fn failed(&self, step: &'static str, errno: rustix::io::Errno) -> MountError {
        MountError::Overlay { at: self.at.into(), step, source: errno.into() }
    }
}

/// Takes what was mounted on `at` off this namespace.
pub(super) fn detach(at: &Path) {
    // Not mounted is as good as taken off.
    let _ = unmount(at, UnmountFlags::DETACH);
}
