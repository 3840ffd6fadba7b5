//! The Namespace of the bench, which is removed however the bench ends.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::NAMESPACE;
use crate::{command::say, kubectl::Kubectl};

/// How long the removal of an earlier run's Namespace may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that removes the Namespace when this one ends, however it ends.
pub(super) struct Reaper {
    child: Child,
}

/// Waits for the end of its input; then removes the Namespace and waits until it is gone.
const SCRIPT: &str = "
trap '' INT TERM HUP
read -r word
[ \"$word\" = keep ] && exit 0
[ \"$word\" = remove ] || echo '→ removing the Namespace NAMESPACE' >&2
KUBECTL >/dev/null || exit 1
[ \"$word\" = remove ] || echo '→ removed' >&2
";

impl Reaper {
    /// Creates the Namespace, and with it the process that removes it.
    ///
    /// # Errors
    /// When the Namespace exists, or the API refuses it.
    pub(super) fn create_namespace(kubectl: &Kubectl) -> Result<Self> {
        let start = Instant::now();
        loop {
            let there = kubectl.run(&[
                "get",
                "namespace",
                NAMESPACE,
                "--ignore-not-found",
                "--output",
                "jsonpath={.status.phase}",
            ])?;
            match there.trim() {
                "" => break,
                "Terminating" if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_secs(1))
                }
                "Terminating" => bail!(
                    "the Namespace {NAMESPACE} of an earlier run is still being removed; try again later"
                ),
                _ => bail!(
                    "the Namespace {NAMESPACE} exists: another run uses it, or left it behind; to remove it: kubectl delete namespace {NAMESPACE}"
                ),
            }
        }
        // Pods on the host's network must be allowed where Pod security is enforced.
        let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE, "labels": labels },
        });
        // First the process that removes it: an interruption in between leaves nothing behind.
        let reaper = Self::start(kubectl)?;
        match kubectl.send(&["create"], &[namespace]) {
            Ok(()) => Ok(reaper),
            Err(err) => {
                // It may be that of another run.
                reaper.dismiss()?;
                Err(err)
            }
        }
    }

    /// Leaves the Namespace alone.
    fn dismiss(mut self) -> Result<()> {
        if let Some(mut stdin) = self.child.stdin.take() {
            writeln!(stdin, "keep").context("end the process for the removal")?;
        }
        self.child.wait().context("end the process for the removal").map(drop)
    }

    fn start(kubectl: &Kubectl) -> Result<Self> {
        let delete = format!("delete namespace {NAMESPACE} --ignore-not-found --timeout=120s");
        let script =
            SCRIPT.replace("KUBECTL", &kubectl.text(&delete)).replace("NAMESPACE", NAMESPACE);
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            // Ctrl-C is for the other processes.
            .process_group(0)
            .spawn()
            .context("start sh")?;
        Ok(Self { child })
    }

    /// Removes the Namespace and waits until it is gone.
    ///
    /// # Errors
    /// When it stays.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(mut stdin) = self.child.stdin.take() else { return Ok(()) };
        say(&format!("removing the Namespace {NAMESPACE}"));
        writeln!(stdin, "remove").context("ask for the removal")?;
        drop(stdin);
        let status = self.child.wait().context("wait for the removal")?;
        ensure!(
            status.success(),
            "the Namespace {NAMESPACE} is not removed; to remove it: kubectl delete namespace {NAMESPACE}"
        );
        Ok(())
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Err(err) = self.finish() {
            eprintln!("{err:#}");
        }
    }
}
