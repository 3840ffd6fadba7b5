//! `--takeover`: the agent takes the place of a kube-proxy that runs as a DaemonSet, and gives it back, by the commands
//! of docs/src/takeover.md, while connections are made and kept open from Pods, from hosts and from outside.

mod kube_proxy;
pub(crate) mod load;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::{
    Options,
    bed::Bed,
    deploy::{self, SYSTEM, pod_on},
    report::{Report, within},
};

use self::{
    kube_proxy::KubeProxy,
    load::{Load, Outcome, now, pause},
};

/// How long the clients go on before the first step and after the last.
const AROUND: u64 = 5;
/// The agent says and does what it should within this time after kube-proxy is gone.
const AT_ONCE: Duration = Duration::from_secs(15);
/// New connections that may fail when the agent's programs go: those that are open at that moment, in thousandths.
const LOST_BACK: usize = 10;

/// Who removes kube-proxy's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Run `lb-agent takeover` on each node
    Manual,
    /// The agents do it by themselves when kube-proxy has gone, by their setting
    WhenGone,
}

/// There and back. Whatever happens, kube-proxy is there in the end.
///
/// # Errors
/// When the cluster has no kube-proxy that could be replaced, or it does not come back.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report, options: &Options, way: Way) -> Result<()> {
    let cluster = bed.cluster;
    let kube_proxy = KubeProxy::read(cluster)?;
    report.check("kube-proxy is replaced under load", || there(bed, options, way));
    report.check("kube-proxy is restored under load", || back(bed, &kube_proxy));
    kube_proxy.restore(cluster).context("restore kube-proxy")
}

/// kube-proxy alone, both, the agent with kube-proxy's rules, the agent alone.
fn there(bed: &Bed<'_>, options: &Options, way: Way) -> Result<String> {
    let load = Load::start(bed)?;
    let n = load.len();
    pause(AROUND);
    let mut phases = vec![("before", now())];
    let outcome: Result<()> = (|| {
        deploy::agent(bed.cluster, &options.target)?;
        if way == Way::WhenGone {
            deploy::configure(bed.cluster, "takeover", "when-gone")?;
            deploy::restart(bed.cluster)?;
        }
        for node in &bed.cluster.nodes {
            refuses(bed, node)?;
        }
        phases.push(("beside it", now()));
        KubeProxy::delete(bed.cluster)?;
        phases.push(("without it", now()));
        for node in &bed.cluster.nodes {
            if way == Way::Manual {
                let pod = pod_on(bed.cluster, node)?;
                on(bed, &pod, &["lb-agent", "takeover", "--wait"])?;
            }
            within(AT_ONCE, || alone(bed, node)).with_context(|| node.clone())?;
        }
        pause(AROUND);
        phases.push(("alone", now()));
        Ok(())
    })();
    let counted = load.end(bed)?;
    outcome?;
    let said = counted.words(&phases);
    if !counted.errors.is_empty() || !counted.broken.is_empty() {
        bail!("{said}; {:?}; broken: {:?}", counted.errors, counted.broken);
    }
    Ok(format!("{n} clients; {said}"))
}

/// The agent beside kube-proxy again, then kube-proxy alone. The connections that the agent had translated end.
fn back(bed: &Bed<'_>, kube_proxy: &KubeProxy) -> Result<String> {
    let load = Load::start(bed)?;
    pause(AROUND);
    let mut phases = vec![("before", now())];
    let outcome: Result<()> = (|| {
        kube_proxy.restore(bed.cluster)?;
        for node in &bed.cluster.nodes {
            within(Duration::from_secs(60), || beside(bed, node)).with_context(|| node.clone())?;
        }
        phases.push(("beside it", now()));
        deploy::remove(bed)?;
        phases.push(("cleanup", now()));
        pause(AROUND);
        phases.push(("kube-proxy alone", now()));
        Ok(())
    })();
    let counted = load.end(bed)?;
    outcome?;
    let said = counted.words(&phases);
    if counted.errors.len() * 1000 > counted.new.len() * LOST_BACK {
        bail!("{said}; {:?}", counted.errors);
    }
    Ok(format!("{said}; {} lost, {} open ones broke", counted.errors.len(), counted.broken.len()))
}

/// While kube-proxy runs, its rules are left alone, and both the takeover and the status name its Pod.
fn refuses(bed: &Bed<'_>, node: &str) -> Result<()> {
    let pod = pod_on(bed.cluster, node)?;
    match on(bed, &pod, &["lb-agent", "takeover"]) {
        Ok(said) => bail!("{node}: rules were removed while kube-proxy was running: {said}"),
        Err(err) if format!("{err:#}").contains("kube-proxy still runs on this node") => {}
        Err(err) => return Err(err.context(format!("{node}: takeover failed for another reason"))),
    }
    let line = kube_proxy_line(bed, node)?;
    if !line.contains("DEGRADED") || !line.contains("its Pod kube-system/kube-proxy-") {
        bail!("{node}: the status does not name kube-proxy's Pod: {line}");
    }
    Ok(())
}

/// The status is that of a node with an agent alone, which answers at kube-proxy's ports.
fn alone(bed: &Bed<'_>, node: &str) -> Result<()> {
    let line = kube_proxy_line(bed, node)?;
    if !line.contains("OK") {
        bail!("{line}");
    }
    let mode =
        bed.in_host_pod(node, "curl --silent --max-time 2 http://127.0.0.1:10249/proxyMode")?;
    let code = "curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}'";
    let health = bed.in_host_pod(node, &format!("{code} http://127.0.0.1:10256/readyz"))?;
    match (mode.as_str(), health.as_str()) {
        ("ebpf", "200") => Ok(()),
        _ => bail!("mode {mode:?} at port 10249, {health} at port 10256"),
    }
}

/// kube-proxy has written its rules.
fn beside(bed: &Bed<'_>, node: &str) -> Result<()> {
    let line = kube_proxy_line(bed, node)?;
    match line.contains("its Pod ") && (line.contains(" chain ") || line.contains(" table ")) {
        true => Ok(()),
        false => bail!("{line}"),
    }
}

fn kube_proxy_line(bed: &Bed<'_>, node: &str) -> Result<String> {
    let pod = pod_on(bed.cluster, node)?;
    // Its exit status is 2 while something is degraded.
    let out = bed
        .cluster
        .kubectl(&["exec", "--namespace", SYSTEM, &pod, "--", "lbctl", "status"])
        .output()
        .context("start kubectl")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("kube-proxy"));
    Ok(line.with_context(|| format!("no line of kube-proxy in {text:?}"))?.to_owned())
}

fn on(bed: &Bed<'_>, pod: &str, command: &[&str]) -> Result<String> {
    bed.cluster.run(&[&["exec", "--namespace", SYSTEM, pod, "--"], command].concat())
}

impl Outcome {
    /// New connections of each phase, and those that stayed open.
    fn words(&self, phases: &[(&str, u64)]) -> String {
        let mut from = 0;
        let mut words = Vec::new();
        for (name, to) in phases {
            let of_phase = self.new.iter().filter(|(at, _)| (from..*to).contains(at));
            let bad = of_phase.clone().filter(|(_, good)| !good).count();
            words.push(format!("{name} {} ({bad} failed)", of_phase.count()));
            from = *to;
        }
        let (open, requests) = self.open;
        format!(
            "new: {}, slowest answer {:.1} s; {open} open, {requests} requests",
            words.join(", "),
            self.slowest
        )
    }
}
