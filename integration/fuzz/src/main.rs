//! One target under libFuzzer: the one that `SKEP_FUZZ_TARGET` names. `list` lists all; with
//! `SKEP_FUZZ_SEEDS` the target's seeds are written to that directory and nothing is run.
#![no_main]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

use std::sync::OnceLock;

use skep_hostile::{TARGETS, Target, bound_memory, target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn prepare() {
    let name = std::env::var("SKEP_FUZZ_TARGET").unwrap();
    if name == "list" {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    let target = target(&name).unwrap();
    if let Some(dir) = std::env::var_os("SKEP_FUZZ_SEEDS") {
        for (at, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(std::path::Path::new(&dir).join(format!("seed-{at:03}")), seed).unwrap();
        }
        std::process::exit(0);
    }
    bound_memory();
    TARGET.set(target).unwrap();
}

libfuzzer_sys::fuzz_target!(init: prepare(), |data: &[u8]| {
    (TARGET.get().unwrap().run)(data);
});
