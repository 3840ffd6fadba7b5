//! Static release binaries for the architectures on which lb runs.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    command::{self, command, output, root, target_dir},
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

/// What is built.
pub(crate) struct Build<'a> {
    pub(crate) arch: Arch,
    pub(crate) package: &'a str,
    /// The binaries.
    pub(crate) names: &'a [&'a str],
    /// More words for cargo.
    pub(crate) features: &'a [&'a str],
    /// Whether the binaries have the names of all crates that are in them.
    pub(crate) auditable: bool,
}

/// Static release binaries of one architecture. They do not depend on where they are built.
///
/// # Errors
/// When something is missing, does not build, or is not static.
pub(crate) fn build(wanted: &Build<'_>) -> Result<Vec<PathBuf>> {
    let &Build { arch, package, names, features, auditable } = wanted;
    let native = arch.rust() == std::env::consts::ARCH;
    let gcc = if native { Need::MuslGcc } else { Need::CrossGcc(arch.gcc()) };
    setup::ensure(&[Need::Musl(arch.rust()), gcc])?;
    let target = format!("{}-unknown-linux-musl", arch.rust());
    let mut build = cargo();
    if auditable {
        setup::ensure(&[Need::CargoAuditable])?;
        build.arg("auditable").env("PATH", setup::path_with_tools()?);
    }
    build.args(["build", "--release", "--package", package, "--target", &target]);
    build.args(names.iter().flat_map(|name| ["--bin", name])).args(features);
    let mut flags = without_places()?;
    if !native {
        // Debian has no cross musl-gcc. The C in ring calls nothing of a libc, and the linker is rustup's own.
        let upper = target.to_uppercase().replace('-', "_");
        build.env(format!("CC_{}", target.replace('-', "_")), arch.gcc());
        build.env(format!("CARGO_TARGET_{upper}_LINKER"), "rust-lld");
        flags.push("-Clink-self-contained=yes".into());
    }
    // Of what is built for the target, and not of build scripts. One that builds the kernel object replaces them.
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()));
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

/// The flags with which the names of directories of this machine do not get into a binary.
fn without_places() -> Result<Vec<OsString>> {
    let home = |variable: &str, name: &str| {
        let set = std::env::var_os(variable).map(PathBuf::from);
        set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(name)))
            .with_context(|| format!("neither {variable} nor HOME is set"))
    };
    let mut sysroot = command("rustup");
    sysroot.args(["run", setup::TOOLCHAIN, "rustc", "--print", "sysroot"]);
    let sources = PathBuf::from(output(&mut sysroot)?.trim()).join("lib/rustlib/src/rust");
    // The last one that fits counts.
    let places = [
        (root().to_owned(), "/lb"),
        (target_dir(), "/target"),
        (home("CARGO_HOME", ".cargo")?, "/cargo"),
        (sources, "/rustc"),
    ];
    let flag = |(place, name): (PathBuf, &str)| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.extend([place.as_os_str(), "=".as_ref(), name.as_ref()]);
        flag
    };
    Ok(places.into_iter().map(flag).collect())
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
