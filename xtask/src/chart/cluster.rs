//! A release on a real cluster: installed, upgraded, a bad setting stopped at its first node, rolled back, uninstalled.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::say,
    kubectl::{Kubectl, items, text},
};

use super::{Helm, NAMESPACE, RELEASE, distribution_names, for_distribution, overlay_dir};

const DAEMON_SET: &str = "daemonset/lb-agent";
const SELECTOR: &str = "k8s-app=lb-agent";

/// Runs the whole life of a release. The cluster has no agent before, and none afterwards.
///
/// # Errors
/// When a step does not do what it should.
pub(super) fn check(kubectl: &Kubectl, helm: &Helm, chart: &str) -> Result<()> {
    let release = Release { kubectl, helm, chart };
    let outcome = release.live();
    if outcome.is_err() {
        // What it left would stop the next run; the error of the step is the one that counts.
        drop(release.helm(&["uninstall", RELEASE, "--ignore-not-found", "--wait"]));
    }
    outcome
}

struct Release<'a> {
    kubectl: &'a Kubectl,
    helm: &'a Helm,
    chart: &'a str,
}

impl Release<'_> {
    fn live(&self) -> Result<()> {
        self.distributions()?;
        let said = self.helm(&["install", RELEASE, self.chart, "--wait", "--timeout", "120s"])?;
        ensure!(said.contains("The agents run lb-agent:"), "the chart's notes: {said:?}");
        self.rolled_out()?;
        let first = self.pods()?;
        say(&format!("installed: {} agents are ready", first.len()));

        self.upgrade(&[])?;
        ensure!(self.pods()? == first, "an upgrade that changes nothing restarted agents");
        self.upgrade(&["--set", "settings.log-format=json"])?;
        let second = self.pods()?;
        ensure!(second.is_disjoint(&first), "not every agent restarted for a new setting");
        ensure!(
            self.first_line()?.starts_with('{'),
            "the log is not JSON: the setting had no effect"
        );
        say("upgraded: each agent restarted for the new setting, and none without one");

        let typo = self.helm(&["upgrade", RELEASE, self.chart, "--set", "settings.log-format=xml"]);
        ensure!(typo.is_err(), "a value that means nothing was accepted");
        ensure!(self.pods()? == second, "a value that was refused restarted agents");
        self.bad_setting(&second)?;

        self.helm(&["rollback", RELEASE, "1", "--wait", "--timeout", "120s"])?;
        self.rolled_out()?;
        ensure!(
            !self.first_line()?.starts_with('{'),
            "the log is JSON still: nothing was rolled back"
        );
        say("rolled back");

        self.upgrade(&["--set", "cleanup=true"])?;
        let said = self.kubectl.run(&["--namespace", NAMESPACE, "logs", DAEMON_SET])?;
        ensure!(said.contains("this node is clean"), "`cleanup` says {said:?}");
        say("cleaned up");

        self.helm(&["uninstall", RELEASE, "--wait", "--timeout", "120s"])?;
        let kinds = "daemonset,configmap,serviceaccount,clusterrole,clusterrolebinding";
        let label = ["--selector", "app.kubernetes.io/name=lb-agent", "--output", "name"];
        let left = [&["--namespace", NAMESPACE, "get", kinds][..], &label].concat();
        let left = self.kubectl.run(&left)?;
        ensure!(left.trim().is_empty(), "the release left {left}");
        say("uninstalled: no object is left");
        Ok(())
    }

    /// The API server takes what each distribution gets. Nothing is created.
    fn distributions(&self) -> Result<()> {
        for name in distribution_names()? {
            let overlay = overlay_dir(&for_distribution(&name))?;
            let applied =
                ["apply", "--dry-run=server", "--output", "name", "--kustomize", &overlay];
            let said = self.kubectl.run(&applied).with_context(|| name.clone())?;
            ensure!(said.contains("daemonset.apps/lb-agent"), "{name}: applied {said:?}");
        }
        say("the API server takes what each distribution gets");
        Ok(())
    }

    /// A setting that only the agent can refuse: one node waits, all others keep their agents.
    fn bad_setting(&self, before: &BTreeSet<String>) -> Result<()> {
        let value = ["--set", "settings.masquerade-ports=29999-10000"];
        self.helm(&[&["upgrade", RELEASE, self.chart][..], &value].concat())?;
        // It needs as long as an agent that starts well, and some time to be wrong in.
        let rollout = self.kubectl.rolled_out(NAMESPACE, DAEMON_SET, "20s");
        ensure!(rollout.is_err(), "the rollout of a bad setting succeeded");
        let now = self.pods()?;
        let kept = now.intersection(before).count();
        ensure!(kept + 1 >= before.len(), "a bad setting took {} agents", before.len() - kept);
        say(&format!("a bad setting stopped at its first node: {kept} agents were kept"));
        Ok(())
    }

    fn upgrade(&self, values: &[&str]) -> Result<()> {
        let upgrade = ["upgrade", RELEASE, self.chart, "--wait", "--timeout", "120s"];
        self.helm(&[&upgrade[..], values].concat())?;
        self.rolled_out()
    }

    fn helm(&self, args: &[&str]) -> Result<String> {
        self.helm.output(&[args, &["--namespace", NAMESPACE]].concat())
    }

    /// helm waits for all nodes but those that may be unavailable.
    fn rolled_out(&self) -> Result<()> {
        self.kubectl.rolled_out(NAMESPACE, DAEMON_SET, "120s")
    }

    /// The UIDs of the agents' Pods.
    fn pods(&self) -> Result<BTreeSet<String>> {
        let get = ["--namespace", NAMESPACE, "get", "pods", "--selector", SELECTOR];
        let list = self.kubectl.json(&get)?;
        let uid = |pod| text(pod, "/metadata/uid").map(str::to_owned);
        let uids: BTreeSet<_> = items(&list).filter_map(uid).collect();
        ensure!(!uids.is_empty(), "no agent runs");
        Ok(uids)
    }

    /// The first line that one of the agents logged.
    fn first_line(&self) -> Result<String> {
        let log = self.kubectl.run(&["--namespace", NAMESPACE, "logs", DAEMON_SET])?;
        log.lines().next().map(str::to_owned).context("an agent logged nothing")
    }
}
