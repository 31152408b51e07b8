//! Chooses the role of this process.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [noun, task, dir] if noun == "shim" && task == "--task" => skep::shim::run(Path::new(dir)),
        _ => ExitCode::from(125),
    }
}
