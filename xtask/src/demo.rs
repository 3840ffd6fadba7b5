//! `cargo xtask demo`: two nodes with three Pods each as network namespaces, an agent on each node, no Kubernetes.
//! It shows what the agent is for in about a minute, and checks what it shows: any surprise is a failure.

mod paper;
mod scene;
mod story;

use anyhow::Result;

use crate::{
    args::Args,
    binaries::{self, Binaries},
};

pub(crate) const USAGE: &str = "demo [--keep]
  --keep   keep the demo running and print commands to explore it; the next demo removes it";

/// Builds, sets the scene, tells the story, removes everything.
///
/// # Errors
/// When a step shows anything but what it says, or the scene cannot be set.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut words = Args::new(args);
    let keep = words.flag("--keep");
    let built = words.flag(binaries::BUILT);
    words.finish(USAGE)?;
    if !built {
        binaries::build(false)?;
    }
    if binaries::again_as_root("demo", args)?.is_some() {
        return Ok(());
    }
    let mut scene = scene::Scene::set(&Binaries::of(false))?;
    story::tell(&mut scene)?;
    if keep { scene.keep() } else { scene.remove() }
}
