//! The image again, from a clone of the same commit in a directory with another name, with nothing that was built before.

use anyhow::{Context as _, Result, ensure};

use super::{Facts, read};
use crate::{
    command::{self, command, remove_dir, root, say, target_dir},
    image,
};

/// Builds it and compares the digests.
///
/// # Errors
/// When it does not build, or is another image.
pub(super) fn image(facts: &Facts) -> Result<()> {
    let dir = target_dir().join("reproduced");
    remove_dir(&dir)?;
    command::run(command("git").args(["clone", "--quiet", "--no-checkout"]).arg(root()).arg(&dir))?;
    let mut checkout = command("git");
    checkout.args(["checkout", "--quiet", "--detach", &facts.commit]).current_dir(&dir);
    command::run(&mut checkout)?;
    let (repository, digest) = facts.image.split_once('@').context("the image has no digest")?;
    let mut build = command("cargo");
    build.current_dir(&dir).env_remove("CARGO_TARGET_DIR");
    build.args(["xtask", "image", "--auditable", "--tag"]);
    build.arg(format!("{repository}:{}", facts.version));
    for built in &facts.architectures {
        build.args(["--arch", &built.architecture]);
    }
    command::run(&mut build)?;
    let path = dir.join("target").join(image::ARCHIVE);
    let again = super::verify::image_digest(&read(&path)?)?;
    ensure!(
        again == digest,
        "built again in {}, the image is {again}, not {digest}",
        dir.display()
    );
    remove_dir(&dir)?;
    say(&format!("built again in another directory: the same image, {digest}"));
    Ok(())
}
