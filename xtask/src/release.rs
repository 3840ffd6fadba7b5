//! `cargo xtask release`: all files of a release, from its tag, in target/release-files/vX.Y.Z. Nothing is fetched or sent but what
//! the builds need, so that it can be tried anywhere. `--verify` checks files that others made, and `--reproduce` that
//! another build, in another directory, makes the same image.

mod krew;
mod object;
mod reproduce;
mod sbom;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    chart::{self, Pinned},
    command::{command, commit, output, remove_dir, say, target_dir},
    image::{self, sha256},
    laptop,
    setup::{self, Need},
    statics::Arch,
};

/// What the machine must have to make a release.
const NEEDS: &[Need] = &[Need::Rust, Need::BpfLinker, Need::CargoAuditable, Need::Helm, Need::Krew];

/// The list of all other files, and what it is about.
const CHECKSUMS: &str = "SHA256SUMS";
const FACTS: &str = "release.json";
const IMAGE: &str = image::ARCHIVE;
const INSTALL: &str = "install.yaml";
const KREW: &str = "lb.yaml";

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Target architecture [default: amd64 and arm64]. Repeat it for more
    #[arg(long, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Make the files although the commit does not have the version's tag
    #[arg(long)]
    untagged: bool,
    /// Where the image will be, without a tag: in install.yaml and in the chart's values
    #[arg(long, value_name = "NAME", default_value = "lb-agent")]
    repository: String,
    /// Where the files will be, for krew's manifest
    #[arg(long, value_name = "URL", default_value = "https://example.invalid/lb")]
    url: String,
    /// Check the files in this directory, and make none
    #[arg(long, value_name = "DIR", conflicts_with_all = ["arch", "untagged", "repository", "url"])]
    verify: Option<PathBuf>,
    /// Also build the image of the same commit in another directory: it must have the same digest
    #[arg(long)]
    reproduce: bool,
}

/// What a release is: the file `release.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    version: String,
    /// The commit that it was built from.
    commit: String,
    /// The version of the Rust toolchain.
    rust: String,
    /// The image's name in a registry, with its digest.
    image: String,
    /// By architecture.
    architectures: Vec<Binaries>,
}

/// What was built for one architecture.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Binaries {
    architecture: String,
    /// SHA-256 of the kernel object in `lb-agent`.
    kernel_object: String,
}

/// Makes the files of a release and checks them, or checks those in a directory.
///
/// # Errors
/// When the commit is not the tagged one, something does not build, or a check fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(dir) = &options.verify {
        return verify::directory(dir);
    }
    setup::ensure(NEEDS)?;
    let version = env!("CARGO_PKG_VERSION");
    let commit = commit();
    is_releasable(version, &commit, options.untagged)?;
    let tag = format!("v{version}");
    let dir = target_dir().join("release-files").join(&tag);
    remove_dir(&dir)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let facts = make(options, version, commit, &dir)?;
    say(&format!("wrote {}: {}", dir.display(), facts.image));
    verify::directory(&dir)?;
    krew::check(&dir, &facts)?;
    if options.reproduce {
        reproduce::image(&facts)?;
    }
    Ok(())
}

/// Refuses to make a release of anything that others cannot get by the version's tag.
fn is_releasable(version: &str, commit: &str, untagged: bool) -> Result<()> {
    if commit.ends_with("-dirty") {
        bail!("files differ from the last commit: commit them first (`git status`)");
    }
    let tag = format!("v{version}");
    let mut describe = command("git");
    describe.args(["describe", "--tags", "--exact-match", "--match", &tag]);
    match output(&mut describe) {
        Err(err) if !untagged => {
            let way = format!("`git tag {tag}`, or --untagged to try it");
            Err(err.context(format!("this commit does not have the tag {tag}: {way}")))
        }
        _ => Ok(()),
    }
}

fn make(options: &Options, version: &str, commit: String, dir: &Path) -> Result<Facts> {
    let archs = match &options.arch[..] {
        [] => vec![Arch::Amd64, Arch::Arm64],
        archs => archs.to_vec(),
    };
    let tag = format!("{}:{version}", options.repository);
    let image = image::build(&image::Options::of_release(archs.clone(), tag))?;
    copy(&image.path, dir)?;
    let mut architectures = Vec::new();
    for (arch, binaries) in &image.binaries {
        for binary in binaries {
            write_sbom(binary, *arch, dir)?;
        }
        let agent = binaries.first().context("the image has no binary")?;
        let agent = read(agent)?;
        let object = object::of(&agent).context("lb-agent has no kernel object in it")?;
        architectures
            .push(Binaries { architecture: arch.oci().to_owned(), kernel_object: sha256(object) });
    }
    let url = format!("{}/v{version}", options.url);
    let plugin = laptop::Options::of_release(archs, format!("v{version}"), url);
    let plugin = laptop::build(&plugin)?;
    for file in &plugin.files {
        copy(file, dir)?;
    }
    for (arch, binary) in &plugin.binaries {
        if image.binaries.iter().any(|(of_image, _)| of_image == arch) {
            write_sbom(binary, *arch, dir)?;
        }
    }
    let pinned = Pinned { repository: &options.repository, digest: &image.digest };
    let install = chart::release(version, &pinned, dir)?;
    write(&dir.join(INSTALL), install.as_bytes())?;
    let facts = Facts {
        version: version.to_owned(),
        commit,
        rust: setup::TOOLCHAIN.to_owned(),
        image: format!("{}@{}", options.repository, image.digest),
        architectures,
    };
    let mut text = serde_json::to_string_pretty(&facts).context("serialize")?;
    text.push('\n');
    write(&dir.join(FACTS), text.as_bytes())?;
    let mut sums = String::new();
    for name in files(dir)? {
        sums += &format!("{}  {name}\n", sha256(&read(&dir.join(&name))?));
    }
    write(&dir.join(CHECKSUMS), sums.as_bytes())?;
    Ok(facts)
}

fn write_sbom(binary: &Path, arch: Arch, dir: &Path) -> Result<()> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let list = sbom::of(&read(binary)?).with_context(|| format!("the crates of {name}"))?;
    write(&dir.join(sbom::file_name(&name, arch.oci())), list.as_bytes())
}

/// The names of the files of a release, in order, but for the list of checksums.
fn files(dir: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut names = Vec::new();
    for file in list {
        let file = file.with_context(|| format!("read {}", dir.display()))?;
        names.push(file.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != CHECKSUMS);
    names.sort();
    ensure!(!names.is_empty(), "{} has no files", dir.display());
    Ok(names)
}

fn copy(file: &Path, dir: &Path) -> Result<()> {
    let to = dir.join(file.file_name().unwrap_or_default());
    std::fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
