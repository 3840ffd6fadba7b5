//! Network policies as the tutorials tell them, on Pods of two tenants. Each story is a table of which Pods reach which,
//! asked of every Pod at once, over IPv4 and IPv6: what is allowed must be, and so must be what is denied.
//!
//! | Pod | namespace | labels | node |
//! |---|---|---|---|
//! | web | shop | app=web | first |
//! | api | shop | app=api | second |
//! | db | shop | app=db | first |
//! | web | bank | app=web | last |

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    bed::Bed,
    cluster::{NAMESPACE, items, text},
    deploy,
    report::{Report, SOON, within},
};

mod tenants;
mod tiers;

use self::tenants::{BANK, DATABASE, HTTP, PODS, Pod, SHOP, Tenants, remove};

/// The agent looks at what policies decided every ten seconds.
const COUNTED: Duration = Duration::from_secs(30);
/// Ports of as many rules, more than the 2,048 that one Pod can have; the database's is among them.
const TOO_MANY: std::ops::RangeInclusive<u16> = 4000..=6200;
/// Runs them all; those that touch the agents only if they are `ours`.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report, ours: bool) {
    let mut tenants = None;
    report.check("policies: the Pods of two tenants", || {
        let made = Tenants::make(bed)?;
        let found = made.addresses.len().to_string();
        tenants = Some(made);
        Ok(format!("{found} Pods"))
    });
    if let Some(tenants) = &tenants {
        stories(tenants, report);
        found_by_explain(tenants, report);
        tiers::check(tenants, report);
        if ours {
            report.check(
                "policies: agents that start without the API server change no verdict",
                || without_server(tenants),
            );
        }
    }
    report.check("policies: the Pods are removed", || remove(bed.cluster).map(|()| String::new()));
}

fn stories(tenants: &Tenants<'_>, report: &mut Report) {
    let [shop_web, shop_api, shop_db, bank_web] = PODS;
    let all = |_: Pod, _: Pod| true;
    report.check("policies: without any, all Pods reach each other", || tenants.expect(&all));
    report.check("policies: default deny, then web is allowed", || {
        let deny = policy(SHOP, "default-deny", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
        let denied = tenants.with(&[deny], &|_, to| to.0 != SHOP)?;
        let allow = policy(
            SHOP,
            "allow-web",
            &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": HTTP}]}]}),
        );
        let allowed = tenants.with(&[allow], &|_, to| to.0 != SHOP || to == shop_web)?;
        tenants.clear()?;
        Ok(format!("{denied}; then {allowed}"))
    });
    report.check("policies: within the namespace only", || {
        let own = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
        let policy = policy(SHOP, "same-namespace", &own);
        let found = tenants.with(&[policy], &|from, to| to.0 != SHOP || from.0 == SHOP)?;
        tenants.clear()?;
        Ok(found)
    });
    report.check("policies: the database admits one app at port 5432 only", || {
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "api"}}}],
                "ports": [{"protocol": "TCP", "port": DATABASE}],
            }],
        });
        let only_api = |from: Pod, to: Pod| to != shop_db || from == shop_api;
        let mut found = tenants.with(&[policy(SHOP, "db-access", &spec)], &only_api)?;
        // Another port of the same Pod is denied to that app, too.
        let other = tenants.reaches(shop_api, &[(shop_db, HTTP)])?;
        if other.values().any(|reached| *reached) {
            bail!("api reaches db at {HTTP}");
        }
        let hits = within(COUNTED, || tenants.hits(shop_db, "db-access"))?;
        write!(found, "; {hits} hits")?;
        tenants.clear()?;
        Ok(found)
    });
    report.check("policies: namespaces isolated as tenants", || {
        let of = |namespace: &str| {
            let own = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}});
            policy(
                namespace,
                "tenant",
                &json!({
                    "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{"from": [own]}], "egress": [{"to": [own]}],
                }),
            )
        };
        let found = tenants.with(&[of(SHOP), of(BANK)], &|from, to| from.0 == to.0)?;
        tenants.clear()?;
        Ok(found)
    });
    report.check("policies: egress to DNS and one range with an exception", || {
        let dns = json!({
            "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
            "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
        });
        let ranges: Vec<Value> = [("0.0.0.0/0", "32", false), ("::/0", "128", true)]
            .into_iter()
            .filter_map(|(cidr, bits, v6)| {
                let addresses = tenants.addresses.get(&shop_db)?;
                let db = addresses.iter().find(|address| address.contains(':') == v6)?;
                Some(json!({"ipBlock": {"cidr": cidr, "except": [format!("{db}/{bits}")]}}))
            })
            .collect();
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
            "egress": [dns, {"to": ranges, "ports": [{"port": HTTP}, {"port": DATABASE}]}],
        });
        let found = tenants.with(&[policy(SHOP, "egress", &spec)], &|from, to| {
            from != shop_web || to != shop_db
        })?;
        let name = format!("http://web.{NAMESPACE}.svc/hostname");
        within(SOON, || tenants.in_pod(shop_web, &format!("curl -sS --max-time 3 {name}")))
            .context("a Service by its name")?;
        tenants.clear()?;
        Ok(format!("{found}; a Service by its name"))
    });
    report.check("policies: one that exceeds the rule limit denies and writes an Event", || {
        no_room(tenants, shop_db)
    });
    report.check("policies: denied established connections end, allowed ones continue", || {
        tenants.established(bank_web, shop_web, shop_api)
    });
}

/// A policy that has no room denies everything, and an Event on it names the node.
fn no_room(tenants: &Tenants<'_>, selected: Pod) -> Result<String> {
    // Each with peers and a port of its own: rules that share one of them would be one.
    let rule = |port: u16| {
        let own = format!("198.18.{}.{}/32", port >> 8, port & 0xff);
        let peers = json!([{"namespaceSelector": {}}, {"ipBlock": {"cidr": own}}]);
        json!({"from": peers, "ports": [{"port": port}]})
    };
    let rules: Vec<Value> = TOO_MANY.map(rule).collect();
    let spec = json!({"podSelector": {"matchLabels": {"app": selected.1}}, "ingress": rules});
    let name = "too-many";
    let found = tenants.with(&[policy(selected.0, name, &spec)], &|_, to| to != selected)?;
    let node = tenants.nodes.get(&selected).context("node")?;
    let outcome = within(SOON, || {
        let field = format!("involvedObject.name={name},reason=NotProgrammed");
        let get = ["get", "events", "--namespace", selected.0, "--field-selector", &field];
        let events = tenants.cluster.json(&get)?;
        let mut notes = items(&events).filter_map(|event| text(event, "/message"));
        let note = notes.find(|note| note.starts_with(&format!("node {node}: spec.ingress[")));
        note.map(str::to_owned).with_context(|| format!("no Event names node {node}: {events}"))
    })?;
    tenants.clear()?;
    tenants.expect(&|_, _| true)?;
    Ok(format!("{found}; {outcome}"))
}

/// Agents that cannot reach the API server enforce what those before them did.
fn without_server(tenants: &Tenants<'_>) -> Result<String> {
    let own = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    let want = |from: Pod, to: Pod| to.0 != SHOP || from.0 == SHOP;
    tenants.with(&[policy(SHOP, "same-namespace", &own)], &want)?;
    // Port 9 of the node itself has no listener.
    deploy::configure(tenants.cluster, "api-server", "https://127.0.0.1:9")?;
    let found = deploy::replace(tenants.cluster).and_then(|()| {
        let mut found = String::new();
        // For as long as a start takes, and longer: no single look may differ.
        for _ in 0..5 {
            found = tenants.look(&want)?;
        }
        deploy::unready(tenants.cluster)?;
        Ok(found)
    });
    // Whatever was found, the agents find the server again.
    deploy::configure(tenants.cluster, "api-server", "")?;
    deploy::replace(tenants.cluster)?;
    deploy::ready(tenants.cluster)?;
    tenants.clear()?;
    found
}

/// What is wrong is told: which object, and what to change.
fn found_by_explain(tenants: &Tenants<'_>, report: &mut Report) {
    let [shop_web, shop_api, shop_db, _] = PODS;
    report.check("explain: a policy that blocks everything by mistake", || {
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        tenants.cluster.apply(&[policy(SHOP, "oops", &spec)])?;
        let outcome = within(SOON, || tenants.explain(shop_api, shop_web, HTTP, "oops"))?;
        tenants.clear()?;
        Ok(outcome)
    });
    report.check("explain: a Pod without the label", || {
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "backend"}}}],
                "ports": [{"port": DATABASE}],
            }],
        });
        tenants.cluster.apply(&[policy(SHOP, "db-access", &spec)])?;
        let outcome = within(SOON, || tenants.explain(shop_api, shop_db, DATABASE, "app=backend"))?;
        tenants.clear()?;
        Ok(outcome)
    });
    report.check("explain: a Service whose selector matches nothing", || {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "webb", "namespace": SHOP},
            "spec": {"selector": {"app": "webb"}, "ports": [{"port": 80, "targetPort": HTTP}]},
        });
        tenants.cluster.apply(&[service])?;
        let to = format!("svc:{SHOP}/webb");
        within(SOON, || tenants.explain_to(shop_api, &to, 80, "app=web"))
    });
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}
