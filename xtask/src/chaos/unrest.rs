//! What changes all the time: Pods without a kubelet come and go, servers are replaced, a Service takes every type, and the policy of
//! a database takes every form that means the same.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::conformance::{
    bed::{Bed, service, with},
    cluster::{Cluster, NAMESPACE},
};

/// Servers that are replaced one after the other, and their Service.
pub(crate) const WEB: &str = "chaos-web";
/// A Service of the same servers that takes every type.
pub(super) const TYPED: &str = "chaos-typed";
/// Servers that only friends may ask.
pub(super) const VAULT: &str = "chaos-vault";
/// A Service of Pods without a kubelet.
const CHURN: &str = "chaos-churn";
/// A node without a kubelet. It has no labels, so no DaemonSet wants to run there.
const NOWHERE: &str = "chaos-nowhere";

/// Pods that come and go a second, and how many at once.
const PODS_PER_SECOND: u32 = 20;
const BATCH: u32 = 40;
/// Batches that are there at a time.
const BATCHES: u32 = 3;
/// How often servers are replaced.
const REPLACED: Duration = Duration::from_secs(45);
/// How long a server goes on after it was told to stop: longer than an agent that is killed and cut off needs to learn it.
const SERVES_ON: u32 = 60;

/// The Pod that may ask the database, on a node.
pub(super) fn friend(node: &str) -> String {
    format!("friend-{node}")
}

/// What was changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pods: usize,
    forms: usize,
    replaced: usize,
    /// The API server did not answer, as it must while it is stopped.
    refused: usize,
    last_error: String,
}

impl Changes {
    /// Says how much it was.
    ///
    /// # Errors
    /// When it was so little that it proves nothing.
    pub(super) fn done(&self, minutes: u64) -> Result<String> {
        let said = format!(
            "{} Pods came and went, {} forms of the Service and the policy, servers replaced {} times; {} changes refused",
            self.pods, self.forms, self.replaced, self.refused
        );
        let seconds = usize::try_from(60 * minutes).unwrap_or(usize::MAX);
        // A machine that does all of this itself is slow, and a stopped API server takes its time.
        if self.pods < seconds.saturating_mul(PODS_PER_SECOND as usize) / 10 {
            bail!("too few: {said} {}", self.last_error);
        }
        Ok(said)
    }

    fn note(&mut self, outcome: Result<()>) -> bool {
        let Err(err) = outcome else { return true };
        self.refused += 1;
        self.last_error = format!("{err:#}");
        false
    }
}

/// Makes the objects and waits for the Pods.
///
/// # Errors
/// When the API refuses one, or a Pod does not become ready.
pub(crate) fn prepare(bed: &Bed<'_>) -> Result<()> {
    let cluster = bed.cluster;
    let n = cluster.nodes.len();
    let mut objects = vec![
        graceful(bed.deployment(WEB, 2 * n)),
        graceful(bed.deployment(VAULT, n)),
        service(WEB, &json!({ "app": WEB }), None),
        service(VAULT, &json!({ "app": VAULT }), None),
        service(CHURN, &json!({ "app": CHURN }), None),
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NOWHERE } }),
    ];
    objects.extend(cluster.nodes.iter().map(|node| bed.tenant(NAMESPACE, &friend(node), node)));
    objects.extend(forms(cluster, 0));
    cluster.apply(&objects)?;
    for name in [WEB, VAULT] {
        let deployment = format!("deployment/{name}");
        cluster
            .rolled_out(NAMESPACE, &deployment)
            .with_context(|| format!("the servers of {name}"))?;
    }
    for node in &cluster.nodes {
        let pod = format!("pod/{}", friend(node));
        let wait = ["wait", "--namespace", NAMESPACE, "--for", "condition=Ready", &pod];
        cluster.run(&[&wait[..], &["--timeout", "90s"]].concat())?;
    }
    Ok(())
}

/// Removes what is not in the namespace, or would take its time there.
pub(crate) fn remove(cluster: &Cluster) {
    let deployments =
        ["delete", "--namespace", NAMESPACE, "--ignore-not-found", "deployment", WEB, VAULT];
    let pods = ["delete", "--namespace", NAMESPACE, "pods", "--selector", "bed=lb-conformance"];
    let node = ["delete", "--ignore-not-found", "node", NOWHERE];
    for delete in
        [&deployments[..], &[&pods[..], &["--grace-period", "1", "--wait=false"]].concat(), &node]
    {
        if let Err(err) = cluster.run(delete) {
            eprintln!("{err:#}");
        }
    }
}

/// A server that answers for a while after it was told to stop, as one behind a Service should.
fn graceful(mut deployment: Value) -> Value {
    if let Some(spec) = deployment.pointer_mut("/spec/template/spec") {
        spec["terminationGracePeriodSeconds"] = json!(SERVES_ON + 10);
        if let Some(args) = spec.pointer_mut("/containers/0/args").and_then(Value::as_array_mut) {
            args.push(json!(format!("--delay-shutdown={SERVES_ON}")));
        }
    }
    deployment
}

/// The Service and the policy in one of their forms.
fn forms(cluster: &Cluster, nth: usize) -> [Value; 2] {
    let types = [
        json!({ "type": "ClusterIP" }),
        json!({ "type": "NodePort" }),
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" }),
        json!({ "type": "ClusterIP", "sessionAffinity": "ClientIP" }),
        json!({ "type": "NodePort", "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local" }),
    ];
    let friends: Vec<String> = cluster.nodes.iter().map(|node| friend(node)).collect();
    let pods =
        json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": friends }] });
    let each: Vec<Value> = friends
        .iter()
        .map(|name| json!({ "podSelector": { "matchLabels": { "app": name } } }))
        .collect();
    let here = json!({ "matchLabels": { "kubernetes.io/metadata.name": NAMESPACE } });
    let rules = [
        json!([{ "from": [{ "podSelector": pods }] }]),
        json!([{ "from": [{ "namespaceSelector": here, "podSelector": pods }] }]),
        json!([{ "from": each }]),
        json!([{ "from": [{ "podSelector": pods }], "ports": [{ "port": 8080 }, { "port": 8081, "protocol": "UDP" }] }]),
        json!([{ "from": [{ "podSelector": pods }], "ports": [{ "port": 8000, "endPort": 8100 }] },
               { "from": [{ "ipBlock": { "cidr": "192.0.2.0/24" } }] }]),
    ];
    let pick = |all: &[Value], nth: usize| all.iter().cycle().nth(nth).cloned().unwrap_or_default();
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": VAULT, "namespace": NAMESPACE },
        "spec": {
            "podSelector": { "matchLabels": { "app": VAULT } },
            "policyTypes": ["Ingress"], "ingress": pick(&rules, nth % rules.len()),
        },
    });
    let typed = service(TYPED, &json!({ "app": WEB }), None);
    [with(typed, &pick(&types, nth % types.len())), policy]
}

/// Changes objects until it is over.
pub(super) fn go_on(bed: &Bed<'_>, is_over: &AtomicBool) -> Changes {
    let cluster = bed.cluster;
    let mut changes = Changes::default();
    let mut replaced = Instant::now();
    let mut batch = 0;
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        batch += 1;
        if changes.note(come(cluster, batch)) {
            changes.pods += BATCH as usize;
        }
        let former = batch.saturating_sub(BATCHES);
        changes.note(go(cluster, &format!("batch={former}")));
        if changes.note(cluster.apply(&forms(cluster, batch as usize))) {
            changes.forms += 1;
        }
        // Not those of the database: one that starts while its node's agent is away has no policies until an agent is back
        // (docs/src/limits.md).
        if replaced.elapsed() >= REPLACED {
            replaced = Instant::now();
            let restart = ["rollout", "restart", "--namespace", NAMESPACE, "deployment", WEB];
            if changes.note(cluster.run(&restart).map(|_| ())) {
                changes.replaced += 1;
            }
        }
        let pace = Duration::from_secs(u64::from(BATCH / PODS_PER_SECOND));
        thread::sleep(pace.saturating_sub(begun.elapsed()));
    }
    changes.note(go(cluster, "batch"));
    changes
}

/// Pods that are said to run, and are ready.
fn come(cluster: &Cluster, batch: u32) -> Result<()> {
    let name = |nth: u32| format!("churn-{batch}-{nth}");
    let pod = |nth: u32| {
        // Every second one is a friend by its labels.
        let app = cluster.nodes.first().filter(|_| nth % 2 == 0).map(|node| friend(node));
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name(nth), "namespace": NAMESPACE,
                "labels": { "batch": batch.to_string(), "app": app.unwrap_or_else(|| CHURN.to_owned()) },
            },
            "spec": {
                "nodeName": NOWHERE, "terminationGracePeriodSeconds": 0,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "none", "image": "none" }],
            },
        })
    };
    let status = |nth: u32| {
        // Addresses for benchmarks (RFC 2544): no host has them.
        let ip = format!("198.18.{}.{}", batch % 250, nth + 1);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name(nth), "namespace": NAMESPACE },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    };
    cluster.send(&["create"], &(0..BATCH).map(pod).collect::<Vec<_>>())?;
    let apply = ["apply", "--server-side", "--force-conflicts", "--subresource", "status"];
    cluster.send(&apply, &(0..BATCH).map(status).collect::<Vec<_>>())
}

fn go(cluster: &Cluster, selector: &str) -> Result<()> {
    let delete = ["delete", "pods", "--namespace", NAMESPACE, "--selector", selector, "--force"];
    let at_once = ["--grace-period", "0", "--wait=false", "--ignore-not-found"];
    cluster.run(&[&delete[..], &at_once].concat()).map(|_| ())
}
