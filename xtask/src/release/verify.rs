//! Whether the files of a release belong together: what one says of another is so.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;

use super::{CHECKSUMS, FACTS, Facts, IMAGE, INSTALL, KREW, files, object, read, sbom};
use crate::{
    chart::DIGEST,
    command::say,
    image::{digest, sha256},
};

/// The files of an archive by their names.
type Archive = BTreeMap<String, Vec<u8>>;

/// Checks the files in a directory. That they are those of their author is up to the signature of the list of checksums.
///
/// # Errors
/// When something is missing or not what another file says.
pub(super) fn directory(dir: &Path) -> Result<()> {
    checksums(dir).context(CHECKSUMS)?;
    let facts: Facts = serde_json::from_slice(&read(&dir.join(FACTS))?).context(FACTS)?;
    let image = unpacked(&read(&dir.join(IMAGE))?[..]).context(IMAGE)?;
    image_is(dir, &facts, &image).context(IMAGE)?;
    manifests(dir, &facts)?;
    archives(dir).context(KREW)?;
    let archs = facts.architectures.iter().map(|built| built.architecture.as_str());
    say(&format!(
        "verified: the files in {} belong together: lb {} of commit {}, image {} for {}",
        dir.display(),
        facts.version,
        facts.commit,
        facts.image,
        archs.collect::<Vec<_>>().join(", ")
    ));
    Ok(())
}

/// Each file has the sum in the list, and no file is not in it.
fn checksums(dir: &Path) -> Result<()> {
    let list = String::from_utf8(read(&dir.join(CHECKSUMS))?).context("it is not text")?;
    let mut listed = Vec::new();
    for line in list.lines() {
        let (sum, name) = line.split_once("  ").with_context(|| format!("the line {line:?}"))?;
        let have = sha256(&read(&dir.join(name))?);
        ensure!(have == sum, "{name} has the sum {have}, not {sum}");
        listed.push(name.to_owned());
    }
    for name in files(dir)? {
        ensure!(listed.contains(&name), "{name} is not in the list");
    }
    Ok(())
}

/// The image is the one that was announced, from that commit, and what is in it is what the other files say.
fn image_is(dir: &Path, facts: &Facts, image: &Archive) -> Result<()> {
    let announced = facts.image.split_once('@').map(|(_, digest)| digest);
    let have = digest_of(image)?;
    ensure!(announced == Some(&have), "its digest is {have}, and {FACTS} says {}", facts.image);
    let mut platforms = platforms(image)?;
    for built in &facts.architectures {
        let arch = &built.architecture;
        let manifest = platforms.remove(arch).with_context(|| format!("not for {arch}"))?;
        one_platform(dir, facts, image, &manifest, arch, &built.kernel_object)
            .with_context(|| arch.clone())?;
    }
    if let Some(arch) = platforms.keys().next() {
        bail!("it is also for {arch}, of which {FACTS} says nothing");
    }
    Ok(())
}

fn one_platform(
    dir: &Path,
    facts: &Facts,
    image: &Archive,
    manifest: &Value,
    arch: &str,
    kernel_object: &str,
) -> Result<()> {
    let config = json(blob(image, manifest.pointer("/config"))?)?;
    for (label, want) in [("version", &facts.version), ("revision", &facts.commit)] {
        let have = config.pointer(&format!("/config/Labels/org.opencontainers.image.{label}"));
        let have = have.and_then(Value::as_str);
        ensure!(have == Some(want), "the label {label} is {have:?}, not {want:?}");
    }
    let layer = blob(image, manifest.pointer("/layers/0"))?;
    let binaries = unpacked(GzDecoder::new(layer)).context("the layer")?;
    let binaries = binaries.into_iter().filter(|(_, content)| !content.is_empty());
    let mut agents = 0;
    for (path, binary) in binaries {
        let name = path.rsplit('/').next().unwrap_or_default();
        let file = sbom::file_name(name, arch);
        let want = sbom::of(&binary).context(path.clone())?;
        ensure!(read(&dir.join(&file))? == want.as_bytes(), "{file} is not the bill of {path}");
        if name == "lb-agent" {
            agents += 1;
            let have = sha256(object::of(&binary).with_context(|| format!("no object in {path}"))?);
            ensure!(have == kernel_object, "the kernel object in {path} has the sum {have}");
        }
    }
    ensure!(agents == 1, "{agents} files named lb-agent");
    Ok(())
}

/// What is installed is the image, by its digest.
fn manifests(dir: &Path, facts: &Facts) -> Result<()> {
    let (repository, digest) = facts.image.split_once('@').context("the image has no digest")?;
    let text = String::from_utf8(read(&dir.join(INSTALL))?).context(INSTALL)?;
    let images = text.lines().filter_map(|line| line.trim_start().strip_prefix("image: "));
    let images: Vec<&str> = images.map(|image| image.trim_matches('"')).collect();
    let pinned = !images.is_empty() && images.iter().all(|image| *image == facts.image);
    ensure!(pinned, "{INSTALL} installs {images:?}, not {}", facts.image);
    let name = format!("lb-agent-{}.tgz", facts.version);
    let chart = unpacked(GzDecoder::new(&read(&dir.join(&name))?[..])).context(name.clone())?;
    for (file, line) in [
        ("values.yaml", format!("  repository: {repository}\n")),
        ("values.yaml", "  tag: \"\"\n".to_owned()),
        ("values.yaml", "  digest: \"\"\n".to_owned()),
        ("Chart.yaml", format!("  {DIGEST}: {digest}\n")),
    ] {
        let text = chart.get(&format!("lb-agent/{file}"));
        let text = text.with_context(|| format!("{name}: no {file}"))?;
        let is_there = String::from_utf8_lossy(text).contains(&line);
        ensure!(is_there, "{name}: its {file} does not have {:?}", line.trim());
    }
    Ok(())
}

/// krew will find what is there, and is offered nothing else.
fn archives(dir: &Path) -> Result<()> {
    let manifest = String::from_utf8(read(&dir.join(KREW))?).context("it is not text")?;
    let mut found = 0;
    let places = manifest.lines().filter_map(|line| line.trim_start().strip_prefix("uri: "));
    for name in places.filter_map(|place| place.rsplit('/').next()) {
        ensure!(dir.join(name).exists(), "it offers {name}, which is not here");
    }
    for name in files(dir)?.iter().filter(|name| name.ends_with(".tar.gz")) {
        let sum = sha256(&read(&dir.join(name))?);
        ensure!(manifest.contains(&sum), "it does not have the sum of {name}, {sum}");
        found += 1;
    }
    ensure!(found > 0, "an archive is missing");
    Ok(())
}

/// The digest of the image in an archive.
///
/// # Errors
/// When it is not an image, or a blob is not what its name says.
pub(super) fn image_digest(archive: &[u8]) -> Result<String> {
    digest_of(&unpacked(archive)?)
}

fn digest_of(image: &Archive) -> Result<String> {
    for (path, content) in image {
        let Some(name) = path.strip_prefix("blobs/sha256/") else { continue };
        ensure!(digest(content) == format!("sha256:{name}"), "{path} has another digest");
    }
    let index = json(image.get("index.json").context("no index.json")?)?;
    let digest = index.pointer("/manifests/0/digest").and_then(Value::as_str);
    Ok(digest.context("index.json has no image")?.to_owned())
}

/// The manifests by architecture.
fn platforms(image: &Archive) -> Result<BTreeMap<String, Value>> {
    let index = json(image.get("index.json").context("no index.json")?)?;
    let first = index.pointer("/manifests/0").context("index.json has no image")?;
    let content = json(blob(image, Some(first))?)?;
    // Of several architectures, it is a list of images.
    let list = content.pointer("/manifests").and_then(Value::as_array).cloned();
    let mut found = BTreeMap::new();
    for descriptor in list.unwrap_or_else(|| vec![first.clone()]) {
        let arch = descriptor.pointer("/platform/architecture").and_then(Value::as_str);
        let arch = arch.context("an image has no architecture")?.to_owned();
        found.insert(arch, json(blob(image, Some(&descriptor))?)?);
    }
    Ok(found)
}

fn blob<'a>(image: &'a Archive, descriptor: Option<&Value>) -> Result<&'a [u8]> {
    let digest = descriptor.and_then(|of| of.pointer("/digest")).and_then(Value::as_str);
    let digest = digest.context("a descriptor has no digest")?;
    let path = format!("blobs/{}", digest.replace(':', "/"));
    Ok(image.get(&path).with_context(|| format!("no {path}"))?)
}

fn json(content: &[u8]) -> Result<Value> {
    serde_json::from_slice(content).context("not JSON")
}

fn unpacked(archive: impl std::io::Read) -> Result<Archive> {
    let mut archive = tar::Archive::new(archive);
    let mut files = Archive::new();
    for entry in archive.entries().context("not an archive")? {
        let mut entry = entry.context("not an archive")?;
        let path = entry.path().context("a name")?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).with_context(|| path.clone())?;
        files.insert(path, content);
    }
    Ok(files)
}
