//! The Pods of the policies' stories, and what may be asked of them.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::policy;
use crate::{
    command::output,
    conformance::{
        ask::url,
        bed::Bed,
        cluster::{Cluster, items, text},
        deploy,
        report::{SOON, within},
    },
};

/// Where all Pods answer, and where the database does as well.
pub(super) const HTTP: u16 = 8080;
pub(super) const DATABASE: u16 = 5432;
pub(super) const SHOP: &str = "lb-conformance-shop";
pub(super) const BANK: &str = "lb-conformance-bank";
pub(super) const PODS: [Pod; 4] = [(SHOP, "web"), (SHOP, "api"), (SHOP, "db"), (BANK, "web")];

/// A Pod by namespace and name.
pub(super) type Pod = (&'static str, &'static str);

/// The Pods, and where they are.
pub(super) struct Tenants<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) addresses: BTreeMap<Pod, Vec<String>>,
    pub(super) nodes: BTreeMap<Pod, String>,
}

impl<'a> Tenants<'a> {
    pub(super) fn make(bed: &Bed<'a>) -> Result<Self> {
        let cluster = bed.cluster;
        remove(cluster)?;
        let (Some(first), Some(last)) = (cluster.nodes.first(), cluster.nodes.last()) else {
            bail!("no node")
        };
        let second = cluster.nodes.get(1).unwrap_or(first);
        let nodes: BTreeMap<Pod, String> =
            PODS.into_iter().zip([first, second, first, last].map(String::clone)).collect();
        for namespace in [SHOP, BANK] {
            cluster.apply(&[json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
            })])?;
        }
        let pods: Vec<Value> = nodes
            .iter()
            .map(|((namespace, name), node)| bed.tenant(namespace, name, node))
            .collect();
        cluster.apply(&pods)?;
        let mut addresses = BTreeMap::new();
        for pod @ (namespace, name) in PODS {
            let wait = ["wait", "--namespace", namespace, "--for", "condition=Ready"];
            let of = format!("pod/{name}");
            cluster.run(&[&wait[..], &[&of, "--timeout", "90s"]].concat())?;
            let object = cluster.json(&["get", "--namespace", namespace, "pod", name])?;
            let ips = object.pointer("/status/podIPs").and_then(Value::as_array);
            let ips = ips.into_iter().flatten().filter_map(|ip| text(ip, "/ip"));
            addresses.insert(pod, ips.map(str::to_owned).collect());
        }
        Ok(Self { cluster, addresses, nodes })
    }

    /// Applies policies and waits until the expected Pods reach each other and no others.
    pub(super) fn with(
        &self,
        policies: &[Value],
        want: &dyn Fn(Pod, Pod) -> bool,
    ) -> Result<String> {
        self.cluster.apply(policies)?;
        self.expect(want)
    }

    /// Removes all policies.
    pub(super) fn clear(&self) -> Result<()> {
        for namespace in [SHOP, BANK] {
            self.cluster.run(&["delete", "networkpolicies", "--all", "--namespace", namespace])?;
        }
        Ok(())
    }

    /// Waits until every Pod reaches those it should, and no other.
    pub(super) fn expect(&self, want: &dyn Fn(Pod, Pod) -> bool) -> Result<String> {
        within(SOON, || self.look(want))
    }

    /// Whether every Pod reaches those it should, and no other.
    pub(super) fn look(&self, want: &dyn Fn(Pod, Pod) -> bool) -> Result<String> {
        let (mut allowed, mut denied, mut wrong) = (0, 0, String::new());
        for from in PODS {
            let others: Vec<(Pod, u16)> =
                PODS.into_iter().filter(|to| *to != from).map(|to| (to, port(to))).collect();
            for (what, reached) in self.reaches(from, &others)? {
                let want = want(from, what.0);
                if reached != want {
                    let verb = if reached { "reaches" } else { "does not reach" };
                    write!(wrong, "{}/{} {verb} {} ", from.0, from.1, what.1)?;
                }
                if want { allowed += 1 } else { denied += 1 }
            }
        }
        if wrong.is_empty() {
            return Ok(format!("{allowed} allowed, {denied} denied"));
        }
        bail!("{wrong}")
    }

    /// Whether a Pod reaches others: for each of their addresses.
    pub(super) fn reaches(
        &self,
        from: Pod,
        to: &[(Pod, u16)],
    ) -> Result<BTreeMap<(Pod, String), bool>> {
        let mut script = String::new();
        let mut asked = Vec::new();
        for (pod, port) in to {
            for address in self.addresses.get(pod).into_iter().flatten() {
                let url = url(address, *port);
                // A SYN that is dropped comes again after a second: it is seen, and a server that is slow is not taken for it.
                write!(
                    script,
                    "{{ curl -s -g -o /dev/null --connect-timeout 0.9 --max-time 3 {url}/hostname && echo {n} ok || echo {n} no; }} & ",
                    n = asked.len()
                )?;
                asked.push((*pod, url));
            }
        }
        let answers = self.in_pod(from, &format!("{script} wait"))?;
        let mut reached = BTreeMap::new();
        for line in answers.lines() {
            let (nth, how) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
            let what = nth.parse().ok().and_then(|nth: usize| asked.get(nth).cloned());
            reached.insert(what.with_context(|| format!("{line:?}"))?, how == "ok");
        }
        if reached.len() != asked.len() {
            bail!("{} answers to {} questions", reached.len(), asked.len());
        }
        Ok(reached)
    }

    /// Two connections are open as a policy comes that allows one of them.
    pub(super) fn established(&self, denied: Pod, server: Pod, allowed: Pod) -> Result<String> {
        let address = self.addresses.get(&server).and_then(|ips| ips.first()).context("address")?;
        // Ten requests over one connection, half a second apart; the policy comes after the first few.
        let script = format!(
            "curl -s --max-time 1 --rate 120/m --output /dev/null --write-out '%{{num_connects}}/%{{http_code}} ' '{}/hostname?[1-14]'; true",
            url(address, HTTP)
        );
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "api"}}}]}],
        });
        let (of_denied, of_allowed) = std::thread::scope(|scope| {
            let run = |pod: Pod| {
                let script = &script;
                scope.spawn(move || self.in_pod(pod, script))
            };
            let (one, other) = (run(denied), run(allowed));
            std::thread::sleep(Duration::from_millis(2500));
            let applied = self.cluster.apply(&[policy(SHOP, "only-api", &spec)]);
            let join = |task: std::thread::ScopedJoinHandle<'_, Result<String>>| {
                task.join().unwrap_or_else(|_| bail!("a request failed"))
            };
            applied.and_then(|()| Ok((join(one)?, join(other)?)))
        })?;
        self.clear()?;
        let answered =
            |text: &str| text.split_whitespace().filter(|how| how.ends_with("/200")).count();
        let connections =
            |text: &str| text.split_whitespace().filter(|how| !how.starts_with("0/")).count();
        if answered(&of_allowed) < 14 || connections(&of_allowed) != 1 {
            bail!("the allowed connection did not last: {of_allowed:?}");
        }
        let denied = 14 - answered(&of_denied);
        if denied == 0 || denied == 14 {
            bail!("the denied connection continued, or never existed: {of_denied:?}");
        }
        Ok(format!("{denied} of 14 requests denied, none of the allowed"))
    }

    /// How often a policy decided, according to the agent of the Pod's node.
    pub(super) fn hits(&self, pod: Pod, policy: &str) -> Result<u64> {
        let node = self.nodes.get(&pod).context("node")?;
        let agent = deploy::pod_on(self.cluster, node)?;
        let list = ["lbctl", "policy", "list", "--namespace", pod.0];
        let exec = ["exec", "--namespace", deploy::SYSTEM, &agent, "--"];
        let list = self.cluster.json(&[&exec[..], &list].concat())?;
        let row = items(&list).find(|row| text(row, "/name") == Some(policy));
        let hits = row.and_then(|row| row.get("hits")?.as_u64());
        hits.filter(|hits| *hits > 0).with_context(|| format!("no hits of {policy}: {list}"))
    }

    pub(super) fn explain(&self, from: Pod, to: Pod, port: u16, names: &str) -> Result<String> {
        self.explain_to(from, &format!("{}/{}", to.0, to.1), port, names)
    }

    /// What the agent of the source's node says, and of the target's where that is another; one of them must name what
    /// is wrong.
    pub(super) fn explain_to(&self, from: Pod, to: &str, port: u16, names: &str) -> Result<String> {
        let mut nodes: Vec<&String> = self.nodes.get(&from).into_iter().collect();
        let target = self.nodes.iter().find(|((ns, name), _)| format!("{ns}/{name}") == to);
        nodes.extend(target.map(|(_, node)| node));
        nodes.dedup();
        let mut said = String::new();
        for node in nodes {
            let agent = deploy::pod_on(self.cluster, node)?;
            let source = format!("{}/{}", from.0, from.1);
            let port = format!("{port}/tcp");
            let ask = ["policy", "explain", "--from", &source, "--to", to, "--port", &port];
            let exec = ["exec", "--namespace", deploy::SYSTEM, &agent, "--", "lbctl"];
            let mut command = self.cluster.kubectl(&[&exec[..], &ask].concat());
            let out = command.output().context("lbctl")?;
            let text = String::from_utf8_lossy(&out.stdout);
            let stopped = out.status.code() == Some(3);
            if stopped && text.contains(names) {
                let because = text.lines().find(|line| line.contains(names)).unwrap_or_default();
                return Ok(because.trim().to_owned());
            }
            write!(
                said,
                "{node}: {:?} {text} {}",
                out.status,
                String::from_utf8_lossy(&out.stderr)
            )?;
        }
        bail!("no output names {names:?} as the reason: {said}")
    }

    pub(super) fn in_pod(&self, (namespace, name): Pod, script: &str) -> Result<String> {
        let exec = ["exec", "--namespace", namespace, name, "--", "sh", "-c", script];
        output(&mut self.cluster.kubectl(&exec))
    }
}

/// The port at which a Pod is asked.
fn port((_, name): Pod) -> u16 {
    if name == "db" { DATABASE } else { HTTP }
}

/// Removes them and their namespaces.
pub(super) fn remove(cluster: &Cluster) -> Result<()> {
    let delete = ["delete", "namespace", SHOP, BANK, "--ignore-not-found", "--timeout", "90s"];
    cluster.run(&delete).map(|_| ())
}
