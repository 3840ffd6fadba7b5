//! ClusterNetworkPolicies around the NetworkPolicies, on an API server that gets to know and forgets the kind while
//! the agents run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::policy;
use super::tenants::{BANK, DATABASE, HTTP, PODS, Pod, SHOP, Tenants};
use crate::conformance::report::{Report, within};

const KIND: &str = "clusternetworkpolicies.policy.networking.k8s.io";
/// The agent asks a server that lacks the kind again after 30 s.
const KNOWN: Duration = Duration::from_secs(45);

/// Installs the kind where the cluster lacks it, and removes it again.
pub(super) fn check(tenants: &Tenants<'_>, report: &mut Report) {
    report.check("policies: tiers of ClusterNetworkPolicy, installed under running agents", || {
        let cluster = tenants.cluster;
        let installed = cluster.run(&["get", "customresourcedefinition", KIND]).is_ok();
        if !installed {
            cluster.apply(&[definition()])?;
            let wait = ["wait", "--for", "condition=Established", "--timeout", "30s"];
            let kind = format!("customresourcedefinition/{KIND}");
            cluster.run(&[&wait[..], &[&kind]].concat())?;
        }
        let found = tiers(tenants);
        cluster.run(&[
            "delete",
            KIND,
            "lb-conformance-admin",
            "lb-conformance-baseline",
            "--ignore-not-found",
        ])?;
        tenants.clear()?;
        if !installed {
            // With another policy in it: what the kind's end takes along no longer holds.
            cluster.apply(&[baseline()])?;
            cluster.run(&["delete", "customresourcedefinition", KIND, "--timeout", "60s"])?;
        }
        let found = found?;
        within(KNOWN, || tenants.look(&|_, _| true)).context("without the kind")?;
        Ok(found)
    });
}

/// From the outside in: the baseline, a NetworkPolicy before it, the administrator before both.
fn tiers(tenants: &Tenants<'_>) -> Result<String> {
    let [shop_web, shop_api, shop_db, _] = PODS;
    let cluster = tenants.cluster;
    let foreign = |from: Pod, to: Pod| from.0 == BANK && to.0 == SHOP;
    cluster.apply(&[baseline()])?;
    within(KNOWN, || tenants.look(&|from, to| !foreign(from, to))).context("the baseline")?;
    let open = policy(
        SHOP,
        "open-web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]}),
    );
    tenants.with(&[open], &|from, to| !foreign(from, to) || to == shop_web).context("open-web")?;
    cluster.apply(&[admin()])?;
    // Passed on: the bank's to what the lower tiers say. Denied: api to web, whatever these say.
    let want = |from: Pod, to: Pod| {
        let denied = from == shop_api && to == shop_web;
        let accepted = foreign(from, to) && to == shop_db;
        !denied && (accepted || !foreign(from, to) || to == shop_web)
    };
    tenants.expect(&want).context("the administrator")
}

fn of(namespace: &str) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}})
}

fn pods(namespace: &str, app: &str) -> Value {
    let labels = json!({"matchLabels": {"app": app}});
    json!({"pods": {"namespaceSelector": of(namespace), "podSelector": labels}})
}

fn baseline() -> Value {
    tiered(
        "lb-conformance-baseline",
        "Baseline",
        &json!([
            {"name": "bank", "action": "Deny", "from": [{"namespaces": of(BANK)}]},
        ]),
    )
}

fn admin() -> Value {
    tiered(
        "lb-conformance-admin",
        "Admin",
        &json!([
            {"name": "to-sql", "action": "Accept", "from": [{"namespaces": of(BANK)}],
             "protocols": [{"tcp": {"destinationPort": {"number": DATABASE}}}]},
            {"name": "bank", "action": "Pass", "from": [{"namespaces": of(BANK)}]},
            {"name": "api-to-http", "action": "Deny", "from": [pods(SHOP, "api")],
             "protocols": [{"tcp": {"destinationPort": {"number": HTTP}}}]},
        ]),
    )
}

/// A policy about the shop.
fn tiered(name: &str, tier: &str, ingress: &Value) -> Value {
    let subject = json!({"namespaces": of(SHOP)});
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": 10, "subject": subject, "ingress": ingress},
    })
}

/// The kind without its schema, which is the project's own (`sigs.k8s.io/network-policy-api`).
fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": KIND,
            // The API server wants it for groups below k8s.io.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {
                "kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList",
                "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy",
            },
            "versions": [{
                "name": "v1alpha2", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": {
                        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    }},
                }},
            }],
        },
    })
}
