//! `cargo xtask demo`: two nodes with three Pods each as network namespaces, an agent on each node, no Kubernetes.
//! It shows what the agent is for in about a minute, and checks what it shows: any surprise is a failure.

mod paper;
mod scene;
mod stages;
mod story;

use anyhow::Result;
use clap::Args;

use crate::binaries::{self, Binaries};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Keep the demo running and print commands to explore it. The next demo removes it
    #[arg(long)]
    keep: bool,
    /// Build programs that log each stage of each packet, and show two connections by these logs
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    stage: binaries::Stage,
}

/// Builds, sets the scene, tells the story, removes everything.
///
/// # Errors
/// When a step shows anything but what it says, or the scene cannot be set.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { keep, trace, ref stage } = *options;
    if !stage.built {
        binaries::build(false, trace)?;
    }
    if binaries::again_as_root(&[])?.is_some() {
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
