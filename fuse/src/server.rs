//! One task's mounted filesystem, and the only ways to change what it shows.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{Config, Notifier, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::audit::Audit;
use crate::limits;
use crate::notify::Notifications;
pub use crate::notify::NotifyError;
use crate::serve::{Fs, Shared};
use crate::tree::{Bind, Change, Grant, Placement, TreeError};
use crate::vault::{Bounce, Slot, VaultError};

/// A grant with its payload.
#[derive(Clone, Debug)]
pub struct Member {
    /// What the task sees.
    pub grant: Grant,
    /// Its bytes; `grant.size` is their number.
    pub content: Arc<Slot>,
}

/// What a delivery did. It is in force in any case.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Number `N` of the new set `/run/secrets/..N`, if anything below there changed.
    pub set: Option<u64>,
    /// Files with new content, below the mount's directory: what the sentinel writes to so
    /// that watchers hear of it. Those that come back after a revocation are among them, files that
    /// are new themselves are not.
    pub replaced: Vec<PathBuf>,
    /// Why the kernel may still show the old size or mode for a moment.
    pub unsettled: Option<NotifyError>,
}

/// Why a delivery changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The set does not make a tree.
    #[error("the delivered set is refused")]
    Tree(#[from] TreeError),
    /// A grant's size is not that of its payload.
    #[error("target {target:?} is said to have {stated} bytes and has {found}")]
    Size {
        /// As given.
        target: String,
        /// What the grant says.
        stated: u64,
        /// What the payload has.
        found: u64,
    },
    /// The task has ended.
    #[error("the task has ended")]
    Refusing,
}

/// Why a filesystem could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse (is the fuse module there?)")]
    Device(#[source] io::Error),
    /// mount(2) failed.
    #[error("cannot mount on {dir}", dir = dir.display())]
    Mount {
        /// Where.
        dir: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// No memory for answers.
    #[error("no protected memory for answers")]
    Memory(#[from] VaultError),
    /// No thread to serve with.
    #[error("cannot start a serving thread")]
    Thread(#[source] io::Error),
    /// The kernel and we did not come to terms.
    #[error("the kernel did not accept the filesystem")]
    Handshake(#[source] io::Error),
}

/// A mounted filesystem. Its threads end with the process: leave by `_exit`, and no buffer is
/// dropped, nothing waits. All methods but [`Server::mount`] may be called from any thread;
/// none of them makes a VFS call on the mount.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    notifications: Notifications,
    /// Held through a change, so that changes settle one after the other.
    changing: Mutex<()>,
}

impl Server {
    /// Mounts an empty tree on `dir` in the calling thread's mount namespace, which should be
    /// private, and starts to serve.
    ///
    /// # Errors
    /// No `/dev/fuse`, no right to mount, no memory, no threads.
    pub fn mount(dir: &Path) -> Result<Server, MountError> {
        let bounces =
            (0..limits::THREADS).map(|_| Bounce::new()).collect::<Result<Vec<Bounce>, _>>()?;
        let born = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let born_ns = i64::try_from(born.as_nanos()).unwrap_or(i64::MAX);
        let shared = Arc::new(Shared::new(born_ns, bounces));
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
            .map_err(|e| MountError::Device(e.into()))?;
        mount_device(&device, dir)?;
        let (notifier, notifiers) = mpsc::sync_channel(1);
        let (ready, started) = mpsc::sync_channel(1);
        let fs = Fs { shared: shared.clone(), ready: ready.clone() };
        thread::Builder::new()
            .name("fuse".into())
            .spawn(move || serve(fs, device, &notifier, &ready))
            .map_err(MountError::Thread)?;
        await_start(&started)?;
        let notifications = Notifications::start(notifiers).map_err(MountError::Thread)?;
        Ok(Server { shared, notifications, changing: Mutex::new(()) })
    }

    /// Switches to a set: its members replace or join what is there, all at once. After the
    /// first open that sees one of them, no open sees what it replaced. Returns when the
    /// kernel has dropped what it cached; opens that come meanwhile wait for that.
    ///
    /// # Errors
    /// The set is refused as a whole; nothing changed.
    pub fn deliver(&self, set: Vec<Member>) -> Result<Delivered, DeliverError> {
        for Member { grant, content } in &set {
            let found = content.len() as u64;
            if grant.size != found {
                let (target, stated) = (grant.target.clone(), grant.size);
                return Err(DeliverError::Size { target, stated, found });
            }
        }
        let _changing = self.changing();
        let mut state = self.shared.state();
        if state.files.refusing() {
            return Err(DeliverError::Refusing);
        }
        let set = set.into_iter().map(|member| (member.grant, member.content)).collect();
        let change = state.files.deliver(set)?;
        let is_replaced = |&&(_, placement): &&(u64, Placement)| {
            matches!(placement, Placement::Replaced | Placement::Returned)
        };
        let tree = state.files.tree();
        let replaced = change.placed.iter().filter(is_replaced);
        let replaced = replaced.filter_map(|&(ino, _)| tree.path(ino)).collect();
        drop(state);
        let unsettled = self.invalidate(&change).err();
        self.shared.state().files.settle();
        self.shared.unpark();
        Ok(Delivered { set: change.set, replaced, unsettled })
    }

    /// Takes these targets away: opens and reads, those of open descriptors too, fail with
    /// ENOENT from now on. Unknown targets are no error.
    ///
    /// # Errors
    /// The revocation is in force, but the kernel may still hold mapped pages or attributes.
    pub fn revoke<T: AsRef<str>>(&self, targets: &[T]) -> Result<(), NotifyError> {
        let _changing = self.changing();
        let change = self.shared.state().files.revoke(targets);
        self.invalidate(&change)
    }

    /// Gives up replaced versions and all sets but the current one, to make room in the vault.
    /// Handles of replaced versions get ESTALE.
    ///
    /// # Errors
    /// They are given up, but the kernel may still hold attributes of them.
    pub fn forget_old(&self) -> Result<(), NotifyError> {
        let _changing = self.changing();
        let change = self.shared.state().files.forget_old();
        self.invalidate(&change)
    }

    /// Refuses everything for good, open descriptors included, and lets go of all contents:
    /// the task has ended. Wipe the vault next.
    ///
    /// # Errors
    /// Everything is refused, but the kernel may still hold mapped pages.
    pub fn refuse_all(&self) -> Result<(), NotifyError> {
        let mut state = self.shared.state();
        state.files.refuse_all();
        let invalid = state.files.tree().inodes().collect();
        drop(state);
        self.shared.unpark();
        self.invalidate(&Change { invalid, ..Change::default() })
    }

    /// What to bind into the container, read-only: `source` is below the mount's directory.
    pub fn binds(&self) -> Vec<Bind> {
        self.shared.state().files.tree().binds()
    }

    /// What is granted now.
    pub fn held(&self) -> Vec<Grant> {
        let state = self.shared.state();
        let tree = state.files.tree();
        tree.granted().filter_map(|ino| tree.grant(ino)).map(|grant| (**grant).clone()).collect()
    }

    /// Who opened what so far.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.shared.audit
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn invalidate(&self, change: &Change) -> Result<(), NotifyError> {
        if self.shared.state().known {
            self.notifications.invalidate(change.invalid.iter().copied().collect())
        } else {
            Ok(())
        }
    }
}

fn mount_device(device: &OwnedFd, dir: &Path) -> Result<(), MountError> {
    let fd = device.as_raw_fd();
    let max_read = limits::READ_BYTES;
    let options = format!(
        "fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={max_read}"
    );
    let failed = |source| MountError::Mount { dir: dir.to_owned(), source };
    let options = CString::new(options).map_err(|e| failed(e.into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("skep", dir, "fuse.skep", flags, Some(options.as_c_str()))
        .map_err(|e| failed(e.into()))
}

/// The life of the thread that owns the session.
fn serve(
    fs: Fs,
    device: OwnedFd,
    notifier: &SyncSender<Notifier>,
    ready: &SyncSender<io::Result<()>>,
) {
    let mut config = Config::default();
    config.n_threads = Some(limits::THREADS);
    let session = match Session::from_fd(fs, device, SessionACL::All, config) {
        Ok(session) => session,
        Err(error) => {
            let _ = ready.try_send(Err(error));
            return;
        }
    };
    let _ = notifier.try_send(session.notifier());
    if let Err(error) = session.run()
        // A connection that the kernel has ended is like an unmount: every reader fails already.
        && error.raw_os_error() != Some(Errno::CONNABORTED.raw_os_error())
    {
        // The notifier holds the device open: readers would wait for ever. With the process
        // gone they fail at once, and the sentinel ends the task.
        tracing::error!(%error, "the filesystem cannot be served any more");
        std::process::abort();
    }
}

fn await_start(started: &Receiver<io::Result<()>>) -> Result<(), MountError> {
    match started.recv_timeout(limits::MOUNT_WAIT) {
        Ok(outcome) => outcome.map_err(MountError::Handshake),
        Err(_) => Err(MountError::Handshake(io::ErrorKind::TimedOut.into())),
    }
}
