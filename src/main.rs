//! Chooses what this process is: a node, a task's supervisor, or a client.

use std::process::ExitCode;

use skep::cli::{self, Cli};

fn main() -> ExitCode {
    // In every role secrets pass through. A limit of zero does not keep a core file from a
    // handler that the kernel pipes it to; this does. Where it is refused, the limits remain.
    let _ = nix::sys::prctl::set_dumpable(false);
    match cli::parse() {
        Cli::Node(args) => skep::daemon::run(*args),
        Cli::Shim(dir) => skep::shim::run(&dir),
        Cli::Client(call) => cli::run(&call),
        Cli::Done(code) => code,
    }
}
