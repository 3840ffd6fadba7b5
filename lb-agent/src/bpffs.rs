//! `lb-agent mount-bpffs`: a bpf file system for nodes that come up without one, as kind's do. Needs `CAP_SYS_ADMIN`,
//! which the agent itself does not have: a container of its own runs it first.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::info;

/// Mounts one there, unless there is one. The options are those of systemd.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn run(dir: &Path) -> anyhow::Result<()> {
    let place = dir.display();
    let found = statfs(dir).with_context(|| format!("inspect {place}"))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        info!(dir = %place, "a bpf file system is already mounted");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), dir, Some("bpf"), flags, Some("mode=0700"))
        .with_context(|| format!("mount a bpf file system at {place}"))?;
    info!(dir = %place, "mounted a bpf file system");
    Ok(())
}
