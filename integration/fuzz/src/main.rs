//! One target under libFuzzer: the one that `SKEP_FUZZ_TARGET` names; `list` lists all. With
//! `SKEP_FUZZ_UNPACK` its corpus is written to that directory, with `SKEP_FUZZ_PACK` that directory
//! is printed as a pack, the smallest inputs first, and nothing is run.
#![no_main]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use skep_hostile::cursor::piece;
use skep_hostile::{TARGETS, Target, bound_memory, target};

static TARGET: OnceLock<&Target> = OnceLock::new();

/// Bytes of one pack.
const PACK: usize = 40_000;

fn pack(dir: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut inputs: Vec<Vec<u8>> = files.map(|path| std::fs::read(path).unwrap()).collect();
    inputs.sort_by_key(|input| (input.len(), input.clone()));
    let mut pack = Vec::new();
    for piece in inputs.iter().map(|input| piece(input)) {
        if pack.len() + piece.len() > PACK {
            break;
        }
        pack.extend(piece);
    }
    pack
}

fn prepare() {
    let name = std::env::var("SKEP_FUZZ_TARGET").unwrap();
    if name == "list" {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    let target = target(&name).unwrap();
    if let Some(dir) = std::env::var_os("SKEP_FUZZ_UNPACK") {
        for (at, input) in target.corpus().unwrap().iter().enumerate() {
            std::fs::write(Path::new(&dir).join(format!("known-{at:04}")), input).unwrap();
        }
        std::process::exit(0);
    }
    if let Some(dir) = std::env::var_os("SKEP_FUZZ_PACK") {
        std::io::stdout().write_all(&pack(Path::new(&dir))).unwrap();
        std::process::exit(0);
    }
    bound_memory();
    TARGET.set(target).unwrap();
}

libfuzzer_sys::fuzz_target!(init: prepare(), |data: &[u8]| {
    (TARGET.get().unwrap().run)(data);
});
