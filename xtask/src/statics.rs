//! Static release binaries for the architectures on which lb runs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    command::{self, target_dir},
    setup::{self, Need, cargo},
};

/// An architecture, as OCI names it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(alias = "x86_64")]
    Amd64,
    #[value(alias = "aarch64")]
    Arm64,
}

impl Arch {
    /// This machine's.
    ///
    /// # Errors
    /// When nothing is built for it.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let this = Self::value_variants().iter().find(|arch| arch.rust() == std::env::consts::ARCH);
        this.copied().context("this machine is neither amd64 nor arm64: set --arch")
    }

    /// Its name in images and in Go.
    pub(crate) const fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Its name in Rust.
    pub(crate) const fn rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    const fn gcc(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

/// Static release binaries of one architecture.
///
/// # Errors
/// When something is missing, does not build, or is not static.
pub(crate) fn build(
    arch: Arch,
    package: &str,
    names: &[&str],
    features: &[&str],
) -> Result<Vec<PathBuf>> {
    let native = arch.rust() == std::env::consts::ARCH;
    let gcc = if native { Need::MuslGcc } else { Need::CrossGcc(arch.gcc()) };
    setup::ensure(&[Need::Musl(arch.rust()), gcc])?;
    let target = format!("{}-unknown-linux-musl", arch.rust());
    let mut build = cargo();
    build.args(["build", "--release", "--package", package, "--target", &target]);
    build.args(names.iter().flat_map(|name| ["--bin", name])).args(features);
    if !native {
        // Debian has no cross musl-gcc. The C in ring calls nothing of a libc, and the linker is rustup's own.
        let upper = target.to_uppercase().replace('-', "_");
        build.env(format!("CC_{}", target.replace('-', "_")), arch.gcc());
        build.env(format!("CARGO_TARGET_{upper}_LINKER"), "rust-lld");
        build.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), "-Clink-self-contained=yes");
    }
    build.env("LB_COMMIT", command::commit());
    command::run(&mut build)?;
    let dir = target_dir().join(&target).join("release");
    let binaries: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
    for binary in &binaries {
        if has_interpreter(
            &std::fs::read(binary).with_context(|| format!("read {}", binary.display()))?,
        ) {
            bail!("{} is not static: it requires an interpreter", binary.display());
        }
    }
    Ok(binaries)
}

/// Whether a 64-bit little-endian ELF has a `PT_INTERP` program header, that is: wants a dynamic loader, which an
/// empty base does not have.
fn has_interpreter(elf: &[u8]) -> bool {
    let u16_at = |at: usize| elf.get(at..at + 2).map_or(0, le_usize);
    let (start, size, n) = (elf.get(32..40).map_or(0, le_usize), u16_at(54), u16_at(56));
    (0..n).any(|i| elf.get(start + i * size..start + i * size + 4) == Some(&[3, 0, 0, 0]))
}

fn le_usize(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}
