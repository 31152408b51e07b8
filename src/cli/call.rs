//! One call of one command: what it was given, and where its output goes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::client::{Client, Filters};
use super::error::CliError;
use super::flags::{Command, Matches};

/// Where the socket is unless somebody says otherwise.
pub(super) const DEFAULT_SOCKET: &str = "/run/skep/skep.sock";

/// A parsed call.
#[derive(Debug)]
pub struct Call {
    pub(super) path: String,
    pub(super) command: &'static Command,
    pub(super) matches: Matches,
    pub(super) socket: PathBuf,
}

impl Call {
    /// A client of the socket; nothing is opened yet.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        Client::new(&self.socket)
    }

    /// The last value of a flag.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.matches.get(name)
    }

    /// Whether a switch is on.
    pub(super) fn on(&self, name: &str) -> bool {
        self.matches.on(name)
    }

    /// The arguments.
    pub(super) fn args(&self) -> &[String] {
        &self.matches.args
    }

    /// The argument at `index`; an empty one where the arity allows its absence.
    pub(super) fn arg(&self, index: usize) -> &str {
        self.matches.arg(index).unwrap_or_default()
    }

    /// What `--filter` says.
    pub(super) fn filters(&self) -> Filters {
        self.matches.all("filter").iter().fold(Filters::default(), |filters, one| {
            let (name, value) = one.split_once('=').unwrap_or((one, ""));
            filters.and(name.trim().to_lowercase().as_str(), value.trim())
        })
    }
}

/// Writes to standard output.
pub(super) fn out(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Output)
}

/// Writes a line to standard output.
pub(super) fn outln(text: &str) -> Result<(), CliError> {
    out(&format!("{text}\n"))
}

/// Writes a line to standard error; there is nobody to tell if that fails.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The socket named by a host address.
///
/// # Errors
/// If it is not a unix socket.
pub(super) fn socket_of(host: &str) -> Result<PathBuf, String> {
    match host.strip_prefix("unix://") {
        Some(path) if Path::new(path).is_absolute() => Ok(PathBuf::from(path)),
        None if Path::new(host).is_absolute() => Ok(PathBuf::from(host)),
        _ => Err(format!("cannot use host {host:?}: skep talks to unix sockets, unix:///PATH")),
    }
}
