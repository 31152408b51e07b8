//! Ways in for the fuzz targets of `integration/fuzz`: what a daemon says to a shim, and what an
//! image says of its users.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::bundle::{self, ExecFacts, Facts};
use super::link::{Inbox, send};
use super::user::{Accounts, User};
use crate::wire::shim::{ExecStart, ToShim};

/// Sends these pieces to a shim, every second one with a descriptor, and returns what it
/// understood before it gave the connection up.
#[must_use]
pub fn inbox(pieces: &[&[u8]]) -> Vec<ToShim> {
    let mut understood = Vec::new();
    let Ok((mut daemon, shim)) = UnixStream::pair() else { return understood };
    let mut inbox = Inbox::new(shim);
    for (at, piece) in pieces.iter().enumerate() {
        // Never more than the socket holds: nobody reads meanwhile.
        let piece = piece.get(..piece.len().min(60_000)).unwrap_or_default();
        let fd = std::fs::File::open("/dev/null").ok().filter(|_| at % 2 == 1);
        let sent = match &fd {
            Some(fd) if !piece.is_empty() => {
                send(&mut daemon, piece, Some(std::os::fd::AsFd::as_fd(fd)))
            }
            _ => daemon.write_all(piece),
        };
        let received = sent.map_err(Into::into).and_then(|()| inbox.receive());
        let Ok(messages) = received else { break };
        understood.extend(messages.into_iter().map(|(message, _)| message));
    }
    understood
}

/// Resolves a user by these files of a container.
pub fn user(passwd: &str, group: &str, user: &str, further: &[String]) {
    let accounts = Accounts { passwd: passwd.to_owned(), group: group.to_owned() };
    if let Ok(user) = accounts.resolve(user, further) {
        assert!(i32::try_from(user.uid).is_ok() && i32::try_from(user.gid).is_ok());
    }
}

/// Completes a bundle, and describes a further process in it.
pub fn finish_bundle(text: &str, exec: &ExecStart) {
    let user = User { uid: 0, gid: 0, groups: vec![0] };
    let root = Path::new("/root");
    let facts = Facts { root, user: &user, binds: &[], cgroup: "/skep/n/t", netns: "" };
    if let Ok(finished) = bundle::finish(text, &facts) {
        let facts = ExecFacts { user: None, ulimits: &[], grantable: u64::MAX };
        let _ = bundle::exec_process(&finished.config, exec, &facts);
    }
}
