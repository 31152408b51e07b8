//! How the binaries are linked: they are near their budget of bytes.

use std::env;

fn main() {
    let script = "src/discard.ld";
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-check-cfg=cfg(walks_no_stacks)");
    // A position-independent binary moves nearly 40,000 pointers when it starts. In the packed form
    // they take a thirtieth of the place; glibc's start code reads it since 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // What is handed out has no symbols and ends at a panic: nothing in it walks a stack, and
    // `process::begin` sees to it that nobody asks for that.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-cfg=walks_no_stacks");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/{script}");
    }
}
