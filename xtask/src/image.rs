//! `cargo xtask image`: static binaries on an empty base, as an OCI image layout in one tar. Written here
//! rather than by a container tool, so that building needs none; equal binaries give an equal archive.

mod archive;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use self::archive::{Archive, bytes};
pub(crate) use self::archive::{digest, header, sha256, with};
use crate::{
    binaries::TRACE,
    command::{commit, say, target_dir},
    setup::Need,
    statics::{self, Arch, Build},
};

/// Options of the task.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Target architecture [default: this machine's]. Repeat it for a multi-architecture image
    #[arg(long, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Name of the image [default: lb-agent:dev, with --trace lb-agent:trace, with --bench lb-bench:dev]
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Build programs that log each stage of each packet, and write target/lb-agent-trace.tar
    #[arg(long, conflicts_with = "bench")]
    trace: bool,
    /// Build the image of `bench cluster` instead, and write target/lb-bench.tar
    #[arg(long)]
    bench: bool,
    /// Put the names of all crates into the binaries, where scanners find them (cargo-auditable)
    #[arg(long)]
    auditable: bool,
}

impl Options {
    /// The options for the image of a release.
    pub(crate) fn of_release(arch: Vec<Arch>, tag: String) -> Self {
        Self { arch, tag: Some(tag), auditable: true, ..Self::default() }
    }

    /// The options for the image of `bench cluster`.
    pub(crate) fn of_bench() -> Self {
        Self { bench: true, ..Self::default() }
    }

    /// What the machine must have before the build; the targets and compilers of the architectures come later.
    pub(crate) fn needs(&self) -> &'static [Need] {
        match self.bench {
            true => &[Need::Rust],
            false => &[Need::Rust, Need::BpfLinker],
        }
    }

    fn kind(&self) -> &'static Kind {
        match (self.bench, self.trace) {
            (true, _) => &BENCH,
            (false, true) => &TRACED,
            (false, false) => &AGENT,
        }
    }
}

/// An image: what is in it, and where it goes.
struct Kind {
    archive: &'static str,
    tag: &'static str,
    package: &'static str,
    /// More words for cargo.
    features: &'static [&'static str],
    /// The first one is the entry point.
    binaries: &'static [&'static str],
    /// Arguments of the entry point.
    arguments: &'static [&'static str],
}

/// Without the live views of lbctl, which are for a laptop.
const PLAIN: [&str; 1] = ["--no-default-features"];
const TRACED_PLAIN: [&str; 3] = [PLAIN[0], TRACE[0], TRACE[1]];

const AGENT: Kind = Kind {
    archive: ARCHIVE,
    // `deploy/` refers to it.
    tag: "lb-agent:dev",
    package: "lb-agent",
    features: &PLAIN,
    binaries: &["lb-agent", "lbctl"],
    arguments: &["run"],
};
const TRACED: Kind =
    Kind { archive: "lb-agent-trace.tar", tag: "lb-agent:trace", features: &TRACED_PLAIN, ..AGENT };
const BENCH: Kind = Kind {
    archive: BENCH_ARCHIVE,
    tag: BENCH_TAG,
    package: "testbed",
    features: &[],
    binaries: &["traffic"],
    arguments: &["idle"],
};

/// The archive, in the target directory.
pub(crate) const ARCHIVE: &str = "lb-agent.tar";
/// The archive with the traffic of `bench cluster`, and its tag.
pub(crate) const BENCH_ARCHIVE: &str = "lb-bench.tar";
pub(crate) const BENCH_TAG: &str = "lb-bench:dev";
const BYTES_MAX: u64 = 20 << 20;

/// An image that was built.
pub(crate) struct Built {
    /// The archive.
    pub(crate) path: PathBuf,
    /// By which the image is pinned: of its manifest, or of the list of manifests if it has more than one architecture.
    pub(crate) digest: String,
    /// The binaries in it, of each architecture.
    pub(crate) binaries: Vec<(Arch, Vec<PathBuf>)>,
}

/// Builds the binaries and writes the archive.
///
/// # Errors
/// When something is missing, does not build, or the image is larger than it may be.
pub(crate) fn run(options: &Options) -> Result<()> {
    build(options).map(|_| ())
}

/// The same, and says what was built.
pub(crate) fn build(options: &Options) -> Result<Built> {
    let kind = options.kind();
    let path = target_dir().join(kind.archive);
    let tag = options.tag.as_deref().unwrap_or(kind.tag);
    let archs = match &options.arch[..] {
        [] => vec![Arch::of_this_machine()?],
        archs => archs.to_vec(),
    };
    let mut archive = Archive::create(&path)?;
    let (mut manifests, mut built) = (Vec::new(), Vec::new());
    for arch in &archs {
        let binaries = statics::build(&Build {
            arch: *arch,
            package: kind.package,
            names: kind.binaries,
            features: kind.features,
            auditable: options.auditable,
        })?;
        manifests.push(add_arch(&mut archive, *arch, kind, &binaries)?);
        built.push((*arch, binaries));
    }
    let (size, digest) = archive.finish(manifests, tag)?;
    say(&format!("wrote {} ({tag}, {:.1} MB, {digest})", path.display(), size as f64 / 1e6));
    if size > BYTES_MAX * archs.len() as u64 {
        bail!("the image has {size} bytes, more than {BYTES_MAX} per architecture");
    }
    Ok(Built { path, digest, binaries: built })
}

/// Adds the layer, config and manifest of one architecture; returns the manifest's descriptor.
fn add_arch(archive: &mut Archive, arch: Arch, kind: &Kind, binaries: &[PathBuf]) -> Result<Value> {
    let layer = layer(binaries)?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&layer).context("compress the layer")?;
    let zipped = gzip.finish().context("compress the layer")?;
    let entry: Vec<String> =
        kind.binaries.iter().take(1).map(|name| format!("/bin/{name}")).collect();
    let config = json!({
        "architecture": arch.oci(),
        "os": "linux",
        "config": {
            "Entrypoint": entry, "Cmd": kind.arguments, "Env": ["PATH=/bin"], "Labels": labels(kind),
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let layer = archive.blob("application/vnd.oci.image.layer.v1.tar+gzip", &zipped)?;
    let config = archive.blob("application/vnd.oci.image.config.v1+json", &bytes(&config)?)?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer],
    });
    let manifest = archive.blob(manifest_type, &bytes(&manifest)?)?;
    let platform = json!({ "architecture": arch.oci(), "os": "linux" });
    Ok(with(manifest, "platform", platform))
}

/// Annotations of the OCI image specification, as labels, where scanners and registries look for them.
fn labels(kind: &Kind) -> Value {
    json!({
        "org.opencontainers.image.title": kind.tag.split(':').next(),
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.revision": commit(),
        "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
    })
}

/// The root file system: `/bin` with the binaries, owned by root, without times.
fn layer(binaries: &[PathBuf]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut dir = header(0, 0o755);
    dir.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut dir, "bin/", std::io::empty())?;
    for binary in binaries {
        let name = binary.file_name().unwrap_or_default();
        let content =
            std::fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
        let mut header = header(content.len() as u64, 0o755);
        tar.append_data(&mut header, Path::new("bin").join(name), &content[..])?;
    }
    tar.into_inner().context("write the layer")
}
