//! What a machine lacks: the pinned toolchain, bpf-linker with the same LLVM, a few packages. Only what is missing is
//! installed, each step is said before it is taken, and where this does not know how, it says what to do by hand.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::command::{self, as_root, command, found, output, say};

/// The toolchain of everything but xtask; the same constant as in `lb-agent/kernel/build.rs` (tidy compares them).
pub(crate) const TOOLCHAIN: &str = "1.98.0";
/// The major version of the toolchain's LLVM, which bpf-linker must share to read its bitcode.
const LLVM: &str = "22";
const BPF_LINKER: &str = "0.13.0";
const MDBOOK: &str = "0.5.4";
const CARGO_AUDITABLE: &str = "0.7.7";
/// The module version of Prometheus 3.16.
const PROMETHEUS: &str = "v0.316.0";
const HELM: &str = "v3.22.0";
const KREW: &str = "v0.4.4";

/// Something a task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The pinned toolchain with rust-src, clippy and rustfmt.
    Rust,
    /// bpf-linker, which links the kernel object.
    BpfLinker,
    /// The musl target of an architecture, as rustup names it.
    Musl(&'static str),
    /// A C compiler for static binaries of this machine's architecture.
    MuslGcc,
    /// A C compiler for the other architecture, as it is called in Debian.
    CrossGcc(&'static str),
    /// `ip`.
    Ip,
    /// `nsenter`, `unshare`.
    Nsenter,
    /// `iperf3`.
    Iperf3,
    /// `nft`.
    Nft,
    /// `iptables-legacy`.
    Iptables,
    /// `bpftool`.
    Bpftool,
    /// Chromium and a font, for the page of `lbctl ui`.
    Chromium,
    /// `kubectl`, which is never installed from here.
    Kubectl,
    /// cargo-deny.
    CargoDeny,
    /// cargo-auditable, in the build directory, since only releases are built with it.
    CargoAuditable,
    /// mdbook, which builds the book; in the build directory, since it is pinned and few machines want it.
    Mdbook,
    /// Prometheus and promtool, in the build directory for the same reason. They need Go.
    Prometheus,
    /// Helm, in the build directory for the same reason. It needs Go.
    Helm,
    /// krew and its validator of manifests, in the build directory for the same reason. They need Go.
    Krew,
}

/// All that the tasks need, except a cluster's tools, cargo-deny, cargo-auditable, mdbook, Prometheus, Helm and krew, which few
/// machines want.
pub(crate) const ALL: &[Need] = &[
    Need::Rust,
    Need::BpfLinker,
    Need::Musl(std::env::consts::ARCH),
    Need::MuslGcc,
    Need::Ip,
    Need::Nsenter,
    Need::Iperf3,
    Need::Nft,
    Need::Iptables,
    Need::Bpftool,
];

/// `cargo xtask setup`: `main` has installed everything already when this is reached.
pub(crate) fn report() {
    say(&format!(
        "everything is installed: rust {TOOLCHAIN}, bpf-linker with LLVM {LLVM}, packages"
    ));
}

/// Makes sure of every need, installing what is missing.
///
/// # Errors
/// When something is missing and cannot be installed; says what to install by hand.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut packages = Vec::new();
    for need in needs {
        packages.extend(missing_packages(*need));
    }
    install_packages(&packages)?;
    install_toolchain(needs)?;
    if needs.contains(&Need::BpfLinker) {
        install_bpf_linker()?;
    }
    if needs.contains(&Need::CargoDeny) && found("cargo-deny").is_none() {
        run_install("cargo-deny", &["--locked", "cargo-deny"], None)?;
    }
    if needs.contains(&Need::CargoAuditable) {
        install_cargo_auditable()?;
    }
    if needs.contains(&Need::Mdbook) {
        install_mdbook()?;
    }
    if needs.contains(&Need::Prometheus) {
        // Without the discovery of targets in clouds, which is most of Prometheus.
        let programs = ["promtool", "prometheus"];
        install_from_go(
            "github.com/prometheus/prometheus",
            PROMETHEUS,
            "remove_all_sd",
            &programs,
        )?;
    }
    if needs.contains(&Need::Helm) {
        install_from_go("helm.sh/helm/v3", HELM, "", &["helm"])?;
    }
    if needs.contains(&Need::Krew) {
        install_from_go("sigs.k8s.io/krew", KREW, "", &["krew", "validate-krew-manifest"])?;
    }
    if needs.contains(&Need::Kubectl) && found("kubectl").is_none() {
        bail!("kubectl is missing: install the cluster's version, or set --kubectl");
    }
    Ok(())
}

/// `cargo` of the pinned toolchain.
pub(crate) fn cargo() -> Command {
    let mut cargo = command("rustup");
    cargo.args(["run", TOOLCHAIN, "cargo"]);
    // `cargo xtask` sets these to what they are for xtask. ring's build script asks to run again when they change, so all that
    // depends on it would be built again after each command that is not a task, and after each task.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_package(&name.to_string_lossy()))
    {
        cargo.env_remove(name);
    }
    cargo
}

/// Whether cargo sets this variable for the package that it runs.
fn is_of_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

/// A package: what it is for, and its name in Debian and Ubuntu.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Package {
    name: &'static str,
    gives: &'static str,
}

fn missing_packages(need: Need) -> Vec<Package> {
    let program = |program, name, gives| match found(program) {
        Some(_) => Vec::new(),
        None => vec![Package { name, gives }],
    };
    match need {
        Need::BpfLinker if bpf_linker_fits().is_err() => {
            let mut list = Vec::new();
            if llvm_prefix().is_none() {
                list.push(Package {
                    name: "llvm-22-dev",
                    gives: "LLVM 22 with headers, to build bpf-linker",
                });
            }
            for (header, name) in [("zlib.h", "zlib1g-dev"), ("zstd.h", "libzstd-dev")] {
                if !PathBuf::from("/usr/include").join(header).exists() {
                    list.push(Package { name, gives: "a library of LLVM, to build bpf-linker" });
                }
            }
            list.extend(program("c++", "g++", "a C++ compiler, to link bpf-linker"));
            list
        }
        Need::MuslGcc => program("musl-gcc", "musl-tools", "a C compiler for static binaries"),
        Need::CrossGcc(gcc) => {
            let arm = gcc.starts_with("aarch64");
            let (compiler, libc) = match arm {
                true => ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
                false => ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
            };
            let mut list = program(gcc, compiler, "a C compiler for the other architecture");
            let headers = gcc.trim_end_matches("-gcc");
            if !PathBuf::from("/usr").join(headers).join("include/stdint.h").exists() {
                list.push(Package { name: libc, gives: "C headers for the other architecture" });
            }
            list
        }
        Need::Ip => program("ip", "iproute2", "`ip`, for the test namespaces"),
        Need::Nsenter => program("nsenter", "util-linux", "`nsenter`, for the test namespaces"),
        Need::Iperf3 => program("iperf3", "iperf3", "`iperf3`, the load of the demo"),
        Need::Chromium => {
            let mut list =
                program("chromium", "chromium", "Chromium, to test the page of lbctl ui");
            if !list.is_empty() {
                list.push(Package { name: "fonts-dejavu-core", gives: "a font for Chromium" });
            }
            list
        }
        Need::Nft => program("nft", "nftables", "`nft`, for the netfilter of the bench"),
        Need::Bpftool => {
            program("bpftool", "bpftool", "`bpftool`, with which tests inspect the kernel")
        }
        Need::Iptables => {
            program("iptables-legacy", "iptables", "`iptables-legacy`, for the takeover tests")
        }
        Need::Rust
        | Need::BpfLinker
        | Need::Musl(_)
        | Need::Kubectl
        | Need::CargoDeny
        | Need::CargoAuditable
        | Need::Mdbook
        | Need::Prometheus
        | Need::Helm
        | Need::Krew => Vec::new(),
    }
}

fn install_packages(missing: &[Package]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = |why: &str| {
        let mut text = format!("{why}; install these manually, then run this again:");
        for package in missing {
            text += &format!("\n  {} (Debian: {})", package.gives, package.name);
        }
        text
    };
    if found("apt-get").is_none() {
        bail!(by_hand("packages are missing, and this system has no apt-get"));
    }
    let sudo = as_root().with_context(|| by_hand("packages are missing"))?;
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    say(&format!("installing packages: {}", names.join(" ")));
    let candidate = |line: &str| line.contains("Candidate:") && !line.contains("(none)");
    let known = |name: &&str| {
        output(command("apt-cache").args(["policy", name]))
            .is_ok_and(|policy| policy.lines().any(candidate))
    };
    if !names.iter().all(known) {
        command::run(apt(sudo).arg("update"))?;
    }
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!(by_hand(&format!("apt has no package {name} on this release")));
    }
    command::run(apt(sudo).args(["install", "--yes", "--no-install-recommends"]).args(&names))
        .with_context(|| by_hand("apt-get failed to install them"))
}

fn apt(sudo: &[&str]) -> Command {
    let mut words =
        sudo.iter().copied().chain(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    let mut apt = command(words.next().unwrap_or("env"));
    apt.args(words).args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}

/// The toolchain's directory, when it is installed. With automatic installation off: this only asks.
fn sysroot() -> Option<PathBuf> {
    let mut which = command("rustup");
    which.env("RUSTUP_AUTO_INSTALL", "0").args(["which", "--toolchain", TOOLCHAIN, "rustc"]);
    let rustc = PathBuf::from(output(&mut which).ok()?.trim());
    Some(rustc.parent()?.parent()?.to_owned())
}

fn install_toolchain(needs: &[Need]) -> Result<()> {
    let mut targets = Vec::new();
    for need in needs {
        if let Need::Musl(arch) = need {
            targets.push(format!("{arch}-unknown-linux-musl"));
        }
    }
    if !needs.contains(&Need::Rust) && targets.is_empty() {
        return Ok(());
    }
    if found("rustup").is_none() {
        bail!(
            "rustup is missing; it is needed to install rust {TOOLCHAIN} beside this machine's own; install it from your \
             distribution (package rustup) or from rustup.rs, then run this again"
        );
    }
    if let Some(sysroot) = sysroot() {
        let lib = sysroot.join("lib/rustlib");
        let there = sysroot.join("bin/cargo-clippy").exists()
            && sysroot.join("bin/rustfmt").exists()
            && lib.join("src/rust/library/core").exists()
            && targets.iter().all(|target| lib.join(target).exists());
        if there {
            return Ok(());
        }
    }
    say(&format!(
        "installing rust {TOOLCHAIN} with rust-src, clippy, rustfmt {}",
        targets.join(" ")
    ));
    let mut rustup = command("rustup");
    rustup.args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal", "--no-self-update"]);
    for component in ["rust-src", "clippy", "rustfmt"] {
        rustup.args(["--component", component]);
    }
    for target in &targets {
        rustup.args(["--target", target]);
    }
    command::run(&mut rustup)
}

/// LLVM's prefix: `$LLVM_PREFIX`, or what `llvm-config` of the right version says.
fn llvm_prefix() -> Option<String> {
    if let Ok(prefix) = std::env::var("LLVM_PREFIX") {
        return Some(prefix);
    }
    for config in ["llvm-config-22", "/usr/lib/llvm-22/bin/llvm-config", "llvm-config"] {
        let ours = output(command(config).arg("--version"))
            .is_ok_and(|version| version.trim().split('.').next() == Some(LLVM));
        if ours {
            return Some(output(command(config).arg("--prefix")).ok()?.trim().to_owned());
        }
    }
    None
}

/// Whether the bpf-linker in `$PATH` is of a known version and of the toolchain's LLVM.
fn bpf_linker_fits() -> Result<()> {
    let path = found("bpf-linker").context("bpf-linker is missing")?;
    let version = output(command("bpf-linker").arg("--version"))?;
    let series = BPF_LINKER.rsplit_once('.').map_or(BPF_LINKER, |(series, _)| series);
    if !version.trim().starts_with(&format!("bpf-linker {series}.")) {
        bail!("{} is {}, not {series}", path.display(), version.trim());
    }
    // One with LLVM linked statically shows no libLLVM; there is nothing to compare then.
    if let Ok(libraries) = output(command("ldd").arg(&path)) {
        let llvm = libraries.lines().find(|line| line.contains("libLLVM"));
        if llvm.is_some_and(|line| {
            !line.contains(&format!("libLLVM.so.{LLVM}"))
                && !line.contains(&format!("libLLVM-{LLVM}"))
        }) {
            bail!("{} is built with an LLVM other than {LLVM}", path.display());
        }
    }
    Ok(())
}

fn install_bpf_linker() -> Result<()> {
    let Err(why) = bpf_linker_fits() else { return Ok(()) };
    let prefix = llvm_prefix().with_context(|| {
        format!("{why:#}, and no LLVM {LLVM} was found to build it with: set LLVM_PREFIX to one with headers")
    })?;
    say(&format!(
        "{why:#}: building bpf-linker {BPF_LINKER} with LLVM {LLVM}; this takes some minutes"
    ));
    let feature = format!("llvm-{LLVM}");
    let args = ["bpf-linker", "--no-default-features", "--features", &feature, "--locked"];
    run_install(
        "bpf-linker",
        &[&args[..], &["--version", BPF_LINKER, "--force"]].concat(),
        Some(&prefix),
    )?;
    bpf_linker_fits().context("after the installation (is cargo's bin directory in $PATH?)")
}

/// Returns the path of the pinned mdbook.
pub(crate) fn mdbook() -> PathBuf {
    tools().join("bin/mdbook")
}

/// Returns the directory of tools that only this repository uses.
fn tools() -> PathBuf {
    command::target_dir().join("tools")
}

/// `$PATH` with that directory before all others.
pub(crate) fn path_with_tools() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = [tools().join("bin")].into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("the build directory's path has a colon")
}

fn install_cargo_auditable() -> Result<()> {
    // It does not say its version; cargo does.
    let installed = std::fs::read_to_string(tools().join(".crates.toml")).unwrap_or_default();
    if installed.contains(&format!("\"cargo-auditable {CARGO_AUDITABLE} (")) {
        return Ok(());
    }
    let dir = tools().to_string_lossy().into_owned();
    say(&format!("building cargo-auditable {CARGO_AUDITABLE} in {dir}; this takes a minute"));
    let args = ["cargo-auditable", "--locked", "--version", CARGO_AUDITABLE, "--force"];
    run_install("cargo-auditable", &[&args[..], &["--root", &dir]].concat(), None)
}

fn install_mdbook() -> Result<()> {
    let version = output(command(&mdbook().to_string_lossy()).arg("--version"));
    if version.is_ok_and(|version| version.trim() == format!("mdbook v{MDBOOK}")) {
        return Ok(());
    }
    say(&format!("building mdbook {MDBOOK} in {}; this takes a minute", tools().display()));
    let root = tools().to_string_lossy().into_owned();
    let version = ["mdbook", "--locked", "--version", MDBOOK, "--force", "--root", &root];
    let features = ["--no-default-features", "--features", "search"];
    run_install("mdbook", &[&version[..], &features].concat(), None)
}

/// Returns the path of a program of the pinned Prometheus: `prometheus` or `promtool`.
pub(crate) fn of_prometheus(program: &str) -> PathBuf {
    tools().join("bin").join(program)
}

/// Returns the path of the pinned helm.
pub(crate) fn helm() -> PathBuf {
    tools().join("bin/helm")
}

/// krew and its validator.
pub(crate) fn krew() -> [PathBuf; 2] {
    ["krew", "validate-krew-manifest"].map(|name| tools().join("bin").join(name))
}

/// Builds programs of a Go module in the build directory, unless that version of them is there.
fn install_from_go(module: &str, version: &str, tags: &str, programs: &[&str]) -> Result<()> {
    let bin = tools().join("bin");
    let is_there = |program: &str| {
        let mut asked = command("go");
        asked.args(["version", "-m"]).arg(bin.join(program));
        output(&mut asked).is_ok_and(|text| text.contains(&format!("{module}\t{version}\t")))
    };
    let missing: Vec<_> = programs.iter().copied().filter(|program| !is_there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let words = missing.join(" and ");
    if found("go").is_none() {
        bail!("go is missing: install Go 1.21 or newer, which builds {words}");
    }
    say(&format!("building {words} {version} in {}; this takes four minutes", bin.display()));
    let mut go = command("go");
    go.args(["install", "-tags", tags]);
    go.args(missing.iter().map(|program| format!("{module}/cmd/{program}@{version}")));
    command::run(go.env("GOBIN", &bin)).with_context(|| format!("install {words}"))
}

fn run_install(what: &str, args: &[&str], llvm: Option<&str>) -> Result<()> {
    let mut cargo = cargo();
    cargo.arg("install").args(args);
    if let Some(prefix) = llvm {
        cargo.env("LLVM_PREFIX", prefix);
    }
    command::run(&mut cargo).with_context(|| format!("install {what}"))
}

#[cfg(test)]
mod tests {
    use super::cargo;

    #[test]
    fn cargo_does_not_inherit_the_package_of_xtask() {
        let cargo = cargo();
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR"] {
            // This test has them from the cargo that runs it.
            assert!(std::env::var_os(name).is_some(), "{name}");
            assert!(cargo.get_envs().any(|env| env == (name.as_ref(), None)), "{name}");
        }
    }
}
