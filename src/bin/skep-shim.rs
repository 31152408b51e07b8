//! The supervisor of one task as a program of its own: `skep-shim shim --task DIR`, as the daemon
//! starts it. `scripts/build` puts it into skep.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    skep::process::begin();
    // Started from memory, it would be called by the number of a descriptor.
    let _ = nix::sys::prctl::set_name(c"skep-shim");
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next(), args.next()) {
        (Some(verb), Some(flag), Some(dir)) if verb == "shim" && flag == "--task" => {
            skep::shim::run(&PathBuf::from(dir))
        }
        _ => ExitCode::from(2),
    }
}
