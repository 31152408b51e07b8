//! Making the socket: the right group and mode before anybody can see it, and never a second one
//! over a living first.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The group whose members may use the API, if the machine has it.
const GROUP: &str = "skep";
/// Bytes of `/etc/group` that are read at most.
const GROUP_FILE_BYTES: u64 = 4 << 20;

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("another daemon serves {0}: stop it, or choose another socket with --host")]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("{0} exists and is no socket: move it away, or choose another socket with --host")]
    NotASocket(PathBuf),
    /// The path cannot name a socket.
    #[error("{0} cannot name a socket: give the path of a file in an existing directory")]
    BadPath(PathBuf),
    /// The kernel refused.
    #[error("cannot make the API socket {path}: {what}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Makes the API socket at `path`, mode 0660, owned by the group `skep` if there is one. A socket
/// that a dead daemon left is replaced. The path leads to a socket that listens, or to nothing.
///
/// # Errors
/// If another daemon listens there, the path is taken by something else, or the kernel refuses.
/// Must be called within a tokio runtime.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let fail = |what| move |source| BindError::Io { path: path.to_owned(), what, source };
    clear(path)?;
    let name = path.file_name().ok_or_else(|| BindError::BadPath(path.to_owned()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    let hidden = path.with_file_name(hidden);
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(fail("removing a half-made socket")(error));
        }
        _ => {}
    }
    let listener = StdListener::bind(&hidden).map_err(fail("binding"))?;
    let made = (|| {
        if let Some(gid) = group_id(GROUP) {
            std::os::unix::fs::chown(&hidden, None, Some(gid))
                .map_err(fail("setting its group"))?;
        }
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660))
            .map_err(fail("setting its mode"))?;
        listener.set_nonblocking(true).map_err(fail("making it non-blocking"))?;
        let listener = UnixListener::from_std(listener).map_err(fail("registering it"))?;
        fs::rename(&hidden, path).map_err(fail("moving it into place"))?;
        Ok(listener)
    })();
    if made.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    made
}

/// Makes way: a socket nobody listens on is left to be replaced, everything else is an error.
fn clear(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => Err(BindError::InUse(path.to_owned())),
            Err(_) => Ok(()),
        },
        Ok(_) => Err(BindError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => {
            Err(BindError::Io { path: path.to_owned(), what: "looking at its path", source })
        }
    }
}

/// The id of a group. A static binary cannot ask the C library, which would load its modules.
fn group_id(group: &str) -> Option<u32> {
    let file = File::open("/etc/group").ok()?;
    let lines = BufReader::new(file.take(GROUP_FILE_BYTES)).lines();
    lines.map_while(Result::ok).find_map(|line| id_in_line(&line, group))
}

fn id_in_line(line: &str, group: &str) -> Option<u32> {
    let mut fields = line.split(':');
    if fields.next()? != group {
        return None;
    }
    fields.nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_lines_are_read() {
        assert_eq!(id_in_line("skep:x:998:alice,bob", "skep"), Some(998));
        assert_eq!(id_in_line("skeptics:x:998:", "skep"), None);
        assert_eq!(id_in_line("skep:x", "skep"), None);
        assert_eq!(id_in_line("skep:x:many:", "skep"), None);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skep.sock");
        drop(StdListener::bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        drop(listener);
        assert!(bind(&path).is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "x").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
        assert!(bind(&dir.path().join("no/such/dir/skep.sock")).is_err());
    }
}
