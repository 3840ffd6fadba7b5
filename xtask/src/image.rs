//! `cargo xtask image`: the two static binaries on an empty base, as an OCI image layout in one tar. Written here
//! rather than by a container tool, so that building needs none; equal binaries give an equal archive.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    binaries::TRACE,
    command::{self, say, target_dir},
    setup::{self, Need, cargo},
};

/// Options of the task.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Target architecture [default: this machine's]. Repeat it for a multi-architecture image
    #[arg(long, value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Name of the image [default: lb-agent:dev, with --trace lb-agent:trace]
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Build programs that log each stage of each packet, and write target/lb-agent-trace.tar
    #[arg(long)]
    trace: bool,
}

/// The archive, in the target directory.
pub(crate) const ARCHIVE: &str = "lb-agent.tar";
/// The same with programs that log each stage of each packet.
const TRACE_ARCHIVE: &str = "lb-agent-trace.tar";
/// The tag that `deploy/` refers to.
const TAG: &str = "lb-agent:dev";
const TRACE_TAG: &str = "lb-agent:trace";
const BINARIES: [&str; 2] = ["lb-agent", "lbctl"];
const BYTES_MAX: u64 = 20 << 20;

/// An architecture, as OCI names it.
#[derive(Clone, Copy, ValueEnum)]
enum Arch {
    #[value(alias = "x86_64")]
    Amd64,
    #[value(alias = "aarch64")]
    Arm64,
}

impl Arch {
    fn of_this_machine() -> Result<Self> {
        let this = Self::value_variants().iter().find(|arch| arch.rust() == std::env::consts::ARCH);
        this.copied().context("this machine is neither amd64 nor arm64: set --arch")
    }

    const fn oci(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    const fn rust(self) -> &'static str {
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

/// Builds the binaries and writes the archive.
///
/// # Errors
/// When something is missing, does not build, or the image is larger than it may be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (path, tag) = if options.trace { (TRACE_ARCHIVE, TRACE_TAG) } else { (ARCHIVE, TAG) };
    let path = target_dir().join(path);
    let tag = options.tag.as_deref().unwrap_or(tag);
    let archs = match &options.arch[..] {
        [] => vec![Arch::of_this_machine()?],
        archs => archs.to_vec(),
    };
    let mut archive = Archive::create(&path)?;
    let mut manifests = Vec::new();
    for arch in &archs {
        manifests.push(add_arch(&mut archive, *arch, options.trace)?);
    }
    let size = archive.finish(manifests, tag)?;
    say(&format!("wrote {} ({tag}, {:.1} MB)", path.display(), size as f64 / 1e6));
    if size > BYTES_MAX * archs.len() as u64 {
        bail!("the image has {size} bytes, more than {BYTES_MAX} per architecture");
    }
    Ok(())
}

/// Builds for one architecture and adds its layer, config and manifest; returns the manifest's descriptor.
fn add_arch(archive: &mut Archive, arch: Arch, trace: bool) -> Result<Value> {
    let binaries = build(arch, trace)?;
    let layer = layer(&binaries)?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&layer).context("compress the layer")?;
    let zipped = gzip.finish().context("compress the layer")?;
    let config = json!({
        "architecture": arch.oci(),
        "os": "linux",
        "config": { "Entrypoint": ["/bin/lb-agent"], "Cmd": ["run"], "Env": ["PATH=/bin"] },
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

/// Static release binaries of one architecture.
fn build(arch: Arch, trace: bool) -> Result<Vec<PathBuf>> {
    let native = arch.rust() == std::env::consts::ARCH;
    let gcc = if native { Need::MuslGcc } else { Need::CrossGcc(arch.gcc()) };
    setup::ensure(&[Need::Musl(arch.rust()), gcc])?;
    let target = format!("{}-unknown-linux-musl", arch.rust());
    let mut build = cargo();
    build.args(["build", "--release", "--package", "lb-agent", "--bins", "--target", &target]);
    if trace {
        build.args(TRACE);
    }
    if !native {
        // Debian has no cross musl-gcc. The C in ring calls nothing of a libc, and the linker is rustup's own.
        let upper = target.to_uppercase().replace('-', "_");
        build.env(format!("CC_{}", target.replace('-', "_")), arch.gcc());
        build.env(format!("CARGO_TARGET_{upper}_LINKER"), "rust-lld");
        build.env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), "-Clink-self-contained=yes");
    }
    command::run(&mut build)?;
    let dir = target_dir().join(&target).join("release");
    let binaries: Vec<_> = BINARIES.iter().map(|name| dir.join(name)).collect();
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

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The archive being written: an OCI image layout (opencontainers image-spec, image-layout.md).
struct Archive {
    path: PathBuf,
    tar: tar::Builder<std::fs::File>,
}

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let file =
            std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut archive = Self { path: path.to_owned(), tar: tar::Builder::new(file) };
        archive.file("oci-layout", &bytes(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
        Ok(archive)
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut header = header(content.len() as u64, 0o644);
        self.tar.append_data(&mut header, name, content).with_context(|| format!("write {name}"))
    }

    /// Adds a blob; returns its descriptor.
    fn blob(&mut self, media_type: &str, content: &[u8]) -> Result<Value> {
        let digest = digest(content);
        self.file(&format!("blobs/{}", digest.replace(':', "/")), content)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": content.len() }))
    }

    /// Writes the index; returns the archive's size. Several architectures are one image: an index in the index.
    fn finish(mut self, mut manifests: Vec<Value>, tag: &str) -> Result<u64> {
        let index_type = "application/vnd.oci.image.index.v1+json";
        let image = match manifests.len() {
            1 => manifests.remove(0),
            _ => {
                let index =
                    json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": manifests });
                self.blob(index_type, &bytes(&index)?)?
            }
        };
        let annotations = json!({
            "io.containerd.image.name": full_name(tag),
            "org.opencontainers.image.ref.name": tag.rsplit_once(':').map_or("latest", |(_, tag)| tag),
        });
        let image = with(image, "annotations", annotations);
        let index = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": [image] });
        self.file("index.json", &bytes(&index)?)?;
        self.tar.finish().context("finish the archive")?;
        let meta = std::fs::metadata(&self.path);
        Ok(meta.with_context(|| format!("stat {}", self.path.display()))?.len())
    }
}

/// The name a container runtime gives to an unqualified one, as the kubelet will ask for it.
fn full_name(tag: &str) -> String {
    match tag.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tag.to_owned(),
        Some(_) => format!("docker.io/{tag}"),
        None => format!("docker.io/library/{tag}"),
    }
}

/// An object with one member more.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
    object
}

fn digest(content: &[u8]) -> String {
    let mut hex = String::from("sha256:");
    for byte in Sha256::digest(content) {
        hex += &format!("{byte:02x}");
    }
    hex
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("serialize")
}

#[cfg(test)]
mod tests {
    use super::{digest, full_name};

    #[test]
    fn names_are_qualified_as_the_kubelet_does() {
        for (tag, want) in [
            ("lb-agent:dev", "docker.io/library/lb-agent:dev"),
            ("me/lb-agent:1", "docker.io/me/lb-agent:1"),
            ("localhost:5000/lb-agent:1", "localhost:5000/lb-agent:1"),
            ("registry.example.com/lb/agent:1", "registry.example.com/lb/agent:1"),
        ] {
            assert_eq!(full_name(tag), want);
        }
    }

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        let want = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(b""), want);
    }
}
