//! What krew says of its manifest, and that it installs the plugin from the archive of this machine's architecture.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Facts, KREW};
use crate::{
    command::{self, command, output, remove_dir, say, target_dir},
    setup,
    statics::Arch,
};

/// Validates and installs.
///
/// # Errors
/// When krew refuses the manifest or the archive, or the installed plugin does not run.
pub(super) fn check(dir: &Path, facts: &Facts) -> Result<()> {
    let [krew, validator] = setup::krew();
    let manifest = dir.join(KREW);
    let mut validate = command(&validator.to_string_lossy());
    command::run(validate.args(["-skip-install", "-manifest"]).arg(&manifest))?;
    let this = Arch::of_this_machine()?;
    if facts.architectures.iter().all(|built| built.architecture != this.oci()) {
        say(
            "krew: the manifest is valid; the archives are for other machines, so none was installed",
        );
        return Ok(());
    }
    let root = target_dir().join("krew");
    remove_dir(&root)?;
    let mut install = command(&krew.to_string_lossy());
    install.env("KREW_ROOT", &root).arg("install").arg("--manifest").arg(&manifest);
    let archive = dir.join(format!("kubectl-lb_linux_{}.tar.gz", this.oci()));
    command::run(install.arg("--archive").arg(&archive))?;
    let plugin = root.join("bin/kubectl-lb");
    let help = output(command(&plugin.to_string_lossy()).arg("--help"));
    help.context("the plugin as krew installed it")?;
    say("krew: the manifest is valid, and the plugin installed");
    remove_dir(&root)
}
