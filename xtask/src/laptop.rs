//! `cargo xtask laptop`: `kubectl lb` for laptops, as archives with man pages and the program for kubectl's completion, and
//! the manifest for krew with their checksums. For Linux from anywhere, static; for macOS on macOS, whose linker needs its SDK.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flate2::{Compression, write::GzEncoder};

use crate::{
    command::{self, command, output, root, say, target_dir},
    image::sha256,
    setup::{Need, cargo},
    statics::{self, Arch, Build},
};

/// The binary, its package, and what it is built without: everything that only a node has.
const NAME: &str = "kubectl-lb";
const PACKAGE: &str = "lb-ctl";
const FEATURES: [&str; 3] = ["--no-default-features", "--features", "cluster"];
/// The program that kubectl runs for completions.
const COMPLETE: &str = "kubectl_complete-lb";
/// The template of krew's manifest, and what is replaced in it.
const KREW: &str = "deploy/krew/lb.yaml";
/// The first line of each platform, the last part of the template.
const PLATFORM: &str = "    - selector:\n";
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const URL: &str = concat!("https://example.invalid/lb/v", env!("CARGO_PKG_VERSION"));

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Architecture of the binaries [default: this machine's]. Repeat it for more
    #[arg(long, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Version in krew's manifest [default: that of the workspace]
    #[arg(long, value_name = "VERSION", default_value = VERSION)]
    version: String,
    /// Where the archives of this version will be, for krew's manifest
    #[arg(long, value_name = "URL", default_value = URL)]
    url: String,
    /// Put the names of all crates into the binaries, where scanners find them (cargo-auditable)
    #[arg(long)]
    auditable: bool,
}

impl Options {
    /// The options for a release whose files will be at this place.
    pub(crate) fn of_release(arch: Vec<Arch>, version: String, url: String) -> Self {
        Self { arch, version, url, auditable: true }
    }
}

/// What was built.
pub(crate) struct Built {
    /// The archives and krew's manifest.
    pub(crate) files: Vec<PathBuf>,
    /// The binary of each architecture.
    pub(crate) binaries: Vec<(Arch, PathBuf)>,
}

/// What the machine must have before the build.
pub(crate) const NEEDS: &[Need] = &[Need::Rust];

/// Builds the binaries and writes the archives and krew's manifest into target/laptop.
///
/// # Errors
/// When something is missing, or does not build.
pub(crate) fn run(options: &Options) -> Result<()> {
    build(options).map(|_| ())
}

/// The same, and says what was built.
pub(crate) fn build(options: &Options) -> Result<Built> {
    let dir = target_dir().join("laptop");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let this = Arch::of_this_machine()?;
    // Its binary also writes the man pages.
    let mut archs = vec![this];
    archs.extend(options.arch.iter().filter(|arch| **arch != this));
    let mut built = Vec::new();
    for arch in archs {
        built.push((arch, binary(arch, options.auditable)?));
    }
    let (_, own) = built.first().context("no binary was built")?;
    let files = papers(own, &dir)?;
    let (mut checksums, mut written) = (Vec::new(), Vec::new());
    for (arch, binary) in &built {
        if !options.arch.is_empty() && !options.arch.contains(arch) {
            continue;
        }
        let name = format!("{NAME}_{}_{}.tar.gz", os(), arch.oci());
        let archive = archive(binary, &files)?;
        let sum = sha256(&archive);
        let path = dir.join(&name);
        std::fs::write(&path, &archive).with_context(|| format!("write {}", path.display()))?;
        say(&format!(
            "wrote {} ({:.1} MB, sha256 {sum})",
            path.display(),
            archive.len() as f64 / 1e6
        ));
        checksums.push((name, sum));
        written.push(path);
    }
    let template = root().join(KREW);
    let template =
        std::fs::read_to_string(&template).with_context(|| template.display().to_string())?;
    let path = dir.join("lb.yaml");
    let manifest = filled_in(&template, &checksums, options)?;
    std::fs::write(&path, manifest).with_context(|| format!("write {}", path.display()))?;
    say(&format!("wrote {}", path.display()));
    written.push(path);
    Ok(Built { files: written, binaries: built })
}

const fn os() -> &'static str {
    if cfg!(target_os = "macos") { "darwin" } else { "linux" }
}

/// Builds the binary of one architecture.
fn binary(arch: Arch, auditable: bool) -> Result<PathBuf> {
    if os() == "linux" {
        let names = &[NAME];
        let built = statics::build(&Build {
            arch,
            package: PACKAGE,
            names,
            features: &FEATURES,
            auditable,
        })?;
        return built.into_iter().next().context("no binary was built");
    }
    let target = format!("{}-apple-darwin", arch.rust());
    command::run(command("rustup").args(["target", "add", &target]))?;
    let mut build = cargo();
    build.args(["build", "--release", "--package", PACKAGE, "--bin", NAME]).args(FEATURES);
    command::run(build.args(["--target", &target]))?;
    Ok(target_dir().join(target).join("release").join(NAME))
}

/// What is in each archive beside the binary: path there and content.
fn papers(binary: &Path, dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        files.push((name.to_owned(), read(&root().join(name))?));
    }
    let complete = output(command(&binary.to_string_lossy()).args(["completion", "kubectl"]))?;
    files.push((COMPLETE.to_owned(), complete.into_bytes()));
    let man = dir.join("man");
    command::run(command(&binary.to_string_lossy()).arg("man").arg(&man))?;
    let pages = std::fs::read_dir(&man).with_context(|| format!("read {}", man.display()))?;
    for page in pages {
        let page = page.context("read a man page's name")?;
        let name = page.file_name().to_string_lossy().into_owned();
        files.push((format!("man/man1/{name}"), read(&page.path())?));
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// A compressed archive, the same from the same files.
fn archive(binary: &Path, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let gzip = GzEncoder::new(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    let binary = read(binary)?;
    let programs = [(NAME.to_owned(), binary)];
    for (name, content) in programs.iter().chain(files) {
        let is_program = [NAME, COMPLETE].contains(&name.as_str());
        let mut header =
            crate::image::header(content.len() as u64, if is_program { 0o755 } else { 0o644 });
        tar.append_data(&mut header, name, &content[..]).context("write the archive")?;
    }
    let gzip = tar.into_inner().context("write the archive")?;
    gzip.finish().context("compress the archive")
}

/// The template with this version, these places and checksums, without the platforms that were not built: krew would offer them.
fn filled_in(template: &str, checksums: &[(String, String)], options: &Options) -> Result<String> {
    let zero = "0".repeat(64);
    let template = template.replace(URL, &options.url).replace(VERSION, &options.version);
    let mut parts = template.split(PLATFORM);
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut left: Vec<&(String, String)> = checksums.iter().collect();
    for part in parts {
        let uri = part.lines().find_map(|line| line.trim_start().strip_prefix("uri: "));
        let (_, name) = uri
            .and_then(|uri| uri.rsplit_once('/'))
            .with_context(|| format!("{KREW}: a platform without a place: {part:?}"))?;
        let Some(at) = left.iter().position(|(built, _)| built == name) else { continue };
        let (_, sum) = left.swap_remove(at);
        text.push_str(PLATFORM);
        text.push_str(&part.replace(&zero, sum));
    }
    match left.first() {
        Some((name, _)) => bail!("{KREW} has no platform with {name}"),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::{KREW, Options, filled_in};
    use crate::command::root;

    #[test]
    fn each_archive_gets_its_own_checksum() {
        let template = std::fs::read_to_string(root().join(KREW)).unwrap();
        let sum = |name: &str, digit: &str| (name.to_owned(), digit.repeat(64));
        let options = Options {
            arch: Vec::new(),
            version: "v1.2.3".to_owned(),
            url: "https://dl.test/v1.2.3".to_owned(),
            auditable: false,
        };
        let built =
            [sum("kubectl-lb_linux_amd64.tar.gz", "a"), sum("kubectl-lb_darwin_arm64.tar.gz", "b")];
        let text = filled_in(&template, &built, &options).unwrap();
        let at = |needle: &str| text.lines().position(|line| line.contains(needle)).unwrap();
        assert_eq!(at(&built[0].1), at("https://dl.test/v1.2.3/kubectl-lb_linux_amd64.tar.gz") + 1);
        assert_eq!(
            at(&built[1].1),
            at("https://dl.test/v1.2.3/kubectl-lb_darwin_arm64.tar.gz") + 1
        );
        assert_eq!(text.matches("selector:").count(), 2, "those that were built");
        assert!(!text.contains(&"0".repeat(64)), "{text}");
        assert_eq!(at("version: v1.2.3"), at("spec:") + 1);
        assert!(
            filled_in(&template, &[sum("kubectl-lb_plan9_mips.tar.gz", "c")], &options).is_err()
        );
    }
}
