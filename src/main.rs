//! Chooses what this process is: a node, a task's supervisor, or a client.

use std::process::ExitCode;

use skep::cli::{self, Cli};

fn main() -> ExitCode {
    skep::process::begin();
    match cli::parse() {
        Cli::Node(args) => skep::daemon::run(*args),
        Cli::Shim(dir) => skep::shim::run(&dir),
        Cli::Client(call) => cli::run(&call),
        Cli::Done(code) => code,
    }
}
