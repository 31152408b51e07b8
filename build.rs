//! How the binary is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A position-independent binary moves nearly 40,000 pointers when it starts. In the packed form
    // they take a thirtieth of the place; glibc's start code reads it since 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
