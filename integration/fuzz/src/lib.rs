//! What arrives from clients, peers, disks and images, as arbitrary bytes.
//!
//! A target takes any bytes and returns; what it must not do is panic, take long, or take more
//! memory than [`MEMORY`]. `scripts/fuzz` runs the targets guided by coverage; the test `replay`
//! runs each over its corpus, its seeds and a fixed number of mutations of both.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "targets are tests")]

pub mod cursor;
mod disk;
mod exchange;
mod http;
mod images;
mod json;
mod log;
mod shim;
mod state;
mod text;

/// The node of memory that the tests of the API use; it names the parts of skep by these paths.
#[path = "../../../src/api/tests/fake.rs"]
#[expect(dead_code, reason = "the tests of the API use more of it")]
mod fake;
use skep::{audit, engine, gate, hidden, seal};

use std::path::Path;

use cursor::Cursor;

/// Bytes of memory that a target may have at once, whatever its input.
pub const MEMORY: u64 = 512 << 20;

/// Inputs in one pack at most.
const PACKED: usize = 4_096;

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its directory in `corpus`.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs made of real encodings.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations that the test `replay` tries.
    pub mutations: u32,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    http::TARGET,
    json::TARGET,
    shim::TARGET,
    log::TARGET,
    state::TARGET,
    images::TARGET,
    text::TARGET,
];

impl Target {
    /// Its seeds, the inputs that failed once, and what earlier runs found worth keeping: one
    /// file, `corpus/NAME.pack`, of pieces as [`cursor::Cursor`] takes them.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn corpus(&self) -> std::io::Result<Vec<Vec<u8>>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let pack = std::fs::read(dir.join(self.name).with_extension("pack"))?;
        let mut inputs: Vec<Vec<u8>> =
            Cursor::new(&pack).pieces(PACKED).into_iter().map(<[u8]>::to_vec).collect();
        if let Ok(failed) = std::fs::read_dir(dir.join(self.name)) {
            let mut files = failed.collect::<Result<Vec<_>, _>>()?;
            files.sort_by_key(std::fs::DirEntry::path);
            for file in files {
                inputs.push(std::fs::read(file.path())?);
            }
        }
        inputs.extend((self.seeds)());
        Ok(inputs)
    }
}

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Bounds the memory of this process: what asks for more is ended.
pub fn bound_memory() {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_DATA, MEMORY, MEMORY)
        .unwrap();
}
