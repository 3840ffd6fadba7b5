//! An OCI image layout in one tar (opencontainers image-spec, image-layout.md). Equal contents give an equal archive.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The archive being written: an OCI image layout (opencontainers image-spec, image-layout.md).
pub(super) struct Archive {
    path: PathBuf,
    tar: tar::Builder<std::fs::File>,
}

impl Archive {
    pub(super) fn create(path: &Path) -> Result<Self> {
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
    pub(super) fn blob(&mut self, media_type: &str, content: &[u8]) -> Result<Value> {
        let digest = digest(content);
        self.file(&format!("blobs/{}", digest.replace(':', "/")), content)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": content.len() }))
    }

    /// Writes the index; returns the archive's size and the image's digest. Several architectures are one image: an index in
    /// the index.
    pub(super) fn finish(mut self, mut manifests: Vec<Value>, tag: &str) -> Result<(u64, String)> {
        let index_type = "application/vnd.oci.image.index.v1+json";
        let image = match manifests.len() {
            1 => manifests.remove(0),
            _ => {
                let index =
                    json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": manifests });
                self.blob(index_type, &bytes(&index)?)?
            }
        };
        let digest =
            image.pointer("/digest").and_then(Value::as_str).unwrap_or_default().to_owned();
        let annotations = json!({
            "io.containerd.image.name": full_name(tag),
            "org.opencontainers.image.ref.name": tag.rsplit_once(':').map_or("latest", |(_, tag)| tag),
        });
        let image = with(image, "annotations", annotations);
        let index = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": [image] });
        self.file("index.json", &bytes(&index)?)?;
        self.tar.finish().context("finish the archive")?;
        let meta = std::fs::metadata(&self.path);
        let size = meta.with_context(|| format!("stat {}", self.path.display()))?.len();
        Ok((size, digest))
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
pub(crate) fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
    object
}

/// The digest of a blob: `sha256:` and 64 hexadecimal digits.
pub(crate) fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

/// The SHA-256 of a file's content, as `sha256sum` prints it.
pub(crate) fn sha256(content: &[u8]) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(content) {
        hex += &format!("{byte:02x}");
    }
    hex
}

pub(super) fn bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("serialize")
}

/// An entry that is the same on every machine: owned by root, without a time.
pub(crate) fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
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
