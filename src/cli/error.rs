//! What can go wrong in a client command, and how it is told.

use std::io;
use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The daemon refused.
    #[error("Error response from daemon: {message}")]
    Daemon {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// Nobody answers at the socket.
    #[error(
        "Cannot connect to the skep daemon at unix://{}. Is the skep daemon running?{}\n\
         Start it with 'skep up' or 'skep daemon', or name its socket with -H or SKEP_HOST.",
        path.display(), reason(source)
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket is there but not for this user.
    #[error(
        "Permission denied while connecting to the skep daemon at unix://{}: only root and the \
         group 'skep' may use it.",
        path.display()
    )]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The talk with the daemon broke off.
    #[error("the connection to the daemon at unix://{} failed: {what}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The daemon sent what cannot be understood.
    #[error("cannot understand the daemon's answer to {request}: {what}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        what: String,
    },
    /// Output could not be written.
    #[error("cannot write output: {0}")]
    Output(#[source] io::Error),
    /// The command line makes no sense; the message is followed by the usage line.
    #[error("{0}")]
    Usage(String),
    /// Anything else, told in full.
    #[error("{0}")]
    Plain(String),
    /// Several of them, told one after the other.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<CliError>),
}

/// Why nobody answers, where it is not just that nobody listens.
fn reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => String::new(),
        _ => format!(" ({source})"),
    }
}

impl CliError {
    /// An error that is its text.
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::Plain(text.into())
    }

    /// Whether the daemon said that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Daemon { status: 404, .. })
    }

    /// `Ok` if there is none, else all of them in one.
    pub(super) fn all(mut errors: Vec<Self>) -> Result<u8, Self> {
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(0),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                errors.push(last);
                Err(Self::Several(errors))
            }
        }
    }
}
