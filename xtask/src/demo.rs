//! `cargo xtask demo`: two nodes with three Pods each as network namespaces, an agent on each node, no Kubernetes.
//! It shows what the agent is for in about a minute, and checks what it shows: any surprise is a failure.

mod paper;
mod scene;
mod stages;
mod story;

use anyhow::Result;

use crate::{
    args::Args,
    binaries::{self, Binaries},
};

pub(crate) const USAGE: &str = "demo [--keep] [--trace]
  --keep   keep the demo running and print commands to explore it; the next demo removes it
  --trace  build programs that log each stage of each packet, and show two connections by these logs";

/// Builds, sets the scene, tells the story, removes everything.
///
/// # Errors
/// When a step shows anything but what it says, or the scene cannot be set.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut words = Args::new(args);
    let keep = words.flag("--keep");
    let trace = words.flag("--trace");
    let built = words.flag(binaries::BUILT);
    words.finish(USAGE)?;
    if !built {
        binaries::build(false, trace)?;
    }
    if binaries::again_as_root("demo", args)?.is_some() {
        return Ok(());
    }
    let mut scene = scene::Scene::set(&Binaries::of(false))?;
    if trace {
        stages::tell(&mut scene)?
    } else {
        story::tell(&mut scene)?
    }
    if keep { scene.keep() } else { scene.remove() }
}
