//! Builds the kernel object from `lb-ebpf` and puts it into `OUT_DIR`, where `bpf/load.rs` embeds it.
//!
//! It is built with the one toolchain whose LLVM matches bpf-linker's (`cargo xtask setup` installs both), and
//! `-Z build-std=core`, since rustup ships no core library for `bpfel-unknown-none`. With `AYA_BUILD_SKIP=1` there
//! is no object: an empty stub takes its place, enough for clippy and rustdoc.

use anyhow::Context as _;
use aya_build::{Package, Toolchain, build_ebpf};

/// Toolchain of the kernel object; the same constant as in `xtask/src/setup.rs` (tidy compares them).
const TOOLCHAIN: &str = "1.98.0";

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=../../lb-common/src");
    let out = std::env::var("OUT_DIR").context("cargo sets OUT_DIR")?;
    if std::env::var_os("AYA_BUILD_SKIP").is_some() {
        let stub = std::path::Path::new(&out).join("lb-ebpf");
        if !stub.exists() {
            std::fs::write(&stub, []).context("write the stub object")?;
        }
    }
    // SAFETY: a build script's main has no other threads yet. aya-build reads the variable to decide on
    // `-Z build-std`, and the stable compiler needs it to accept the flag.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    // SAFETY: as above. aya-build turns each line of the inner cargo into a warning: only real ones are left.
    unsafe { std::env::set_var("CARGO_TERM_QUIET", "true") };
    // Debuginfo names no directory of this machine, so that the object is the same wherever it is built.
    for (name, value) in
        [("CARGO_UNSTABLE_TRIM_PATHS", "true"), ("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all")]
    {
        // SAFETY: as above.
        unsafe { std::env::set_var(name, value) };
    }
    let trace = std::env::var_os("CARGO_FEATURE_TRACE").is_some();
    let package = Package {
        name: "lb-ebpf",
        root_dir: "../../lb-ebpf",
        features: if trace { &["trace"] } else { &[] },
        ..Package::default()
    };
    build_ebpf([package], Toolchain::Custom(TOOLCHAIN))
}
