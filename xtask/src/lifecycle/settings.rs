//! A ConfigMap that is changed under running agents.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::conformance::{
    bed::Bed,
    deploy::{self, SYSTEM, pod_on},
    report::within,
};

/// The kubelet writes a changed ConfigMap to the mounted files within its period of synchronization and the time of its cache, a minute each
/// by default.
const WRITTEN: Duration = Duration::from_secs(150);

/// Every agent's status names the setting until it is taken back.
pub(super) fn check(bed: &Bed<'_>) -> Result<String> {
    let begun = Instant::now();
    deploy::configure(bed.cluster, "pod-new-flows", "12345")?;
    let noticed = everywhere(bed, |line| {
        line.contains("not in force") && line.contains("pod-new-flows is `12345`")
    });
    let took = begun.elapsed();
    deploy::configure(bed.cluster, "pod-new-flows", "")?;
    noticed?;
    everywhere(bed, |line| line.contains("as in the ConfigMap")).context("taken back")?;
    Ok(format!("after {:.0} s", took.as_secs_f64()))
}

fn everywhere(bed: &Bed<'_>, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for node in &bed.cluster.nodes {
        within(WRITTEN, || match line(bed, node)? {
            line if wanted(&line) => Ok(()),
            line => bail!("{node}: {line}"),
        })?;
    }
    Ok(())
}

/// The line of the settings in the agent's status.
fn line(bed: &Bed<'_>, node: &str) -> Result<String> {
    let pod = pod_on(bed.cluster, node)?;
    // Its exit status is 2 while something is degraded.
    let status = ["exec", "--namespace", SYSTEM, &pod, "--", "lbctl", "status"];
    let out = bed.cluster.kubectl(&status).output().context("start kubectl")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("settings"));
    Ok(line.with_context(|| format!("no line of the settings in {text:?}"))?.to_owned())
}
