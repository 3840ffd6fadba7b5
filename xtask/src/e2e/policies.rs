//! Network policies as the tutorials tell them, on Pods of two tenants. Each story is a table of who may reach whom,
//! asked of every Pod at once, over IPv4 and IPv6: what is allowed must be, and so must be what is denied.
//!
//! | Pod | namespace | labels | node |
//! |---|---|---|---|
//! | web | shop | app=web | first |
//! | api | shop | app=api | second |
//! | db | shop | app=db | first |
//! | web | bank | app=web | last |

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::command::output;

use super::{
    ask::url,
    bed::Bed,
    cluster::{Cluster, NAMESPACE, items, text},
    deploy,
    report::{Report, SOON, within},
};

mod tiers;

const HTTP: u16 = 8080;
const DATABASE: u16 = 5432;
/// The agent looks at what policies decided every ten seconds.
const COUNTED: Duration = Duration::from_secs(30);
/// Ports of as many rules, more than the 2,048 that one Pod can have; the database's is among them.
const TOO_MANY: std::ops::RangeInclusive<u16> = 4000..=6200;
const SHOP: &str = "lb-e2e-shop";
const BANK: &str = "lb-e2e-bank";
const PODS: [(&str, &str); 4] = [(SHOP, "web"), (SHOP, "api"), (SHOP, "db"), (BANK, "web")];

/// A Pod by namespace and name.
type Pod = (&'static str, &'static str);

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
    report.check("policies: none, so everybody reaches everybody", || tenants.expect(&all));
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
    report.check("policies: the database from one app at 5432 only", || {
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
    report.check("policies: one with more rules than a Pod can have cuts off and says so", || {
        no_room(tenants, shop_db)
    });
    report.check("policies: established connections end, allowed ones go on", || {
        tenants.established(bank_web, shop_web, shop_api)
    });
}

/// A policy that has no room denies everything, and an Event on it names the node.
fn no_room(tenants: &Tenants<'_>, selected: Pod) -> Result<String> {
    let rules: Vec<Value> = TOO_MANY.map(|port| json!({"ports": [{"port": port}]})).collect();
    let spec = json!({"podSelector": {"matchLabels": {"app": selected.1}}, "ingress": rules});
    let name = "too-many";
    let found = tenants.with(&[policy(selected.0, name, &spec)], &|_, to| to != selected)?;
    let node = tenants.nodes.get(&selected).context("node")?;
    let told = within(SOON, || {
        let field = format!("involvedObject.name={name},reason=NotProgrammed");
        let get = ["get", "events", "--namespace", selected.0, "--field-selector", &field];
        let events = tenants.cluster.json(&get)?;
        let mut notes = items(&events).filter_map(|event| text(event, "/message"));
        let note = notes.find(|note| note.starts_with(&format!("node {node}: spec.ingress[")));
        note.map(str::to_owned).with_context(|| format!("no Event names {node}: {events}"))
    })?;
    tenants.clear()?;
    tenants.expect(&|_, _| true)?;
    Ok(format!("{found}; {told}"))
}

/// Agents that cannot reach the API server enforce what those before them did.
fn without_server(tenants: &Tenants<'_>) -> Result<String> {
    let own = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    let want = |from: Pod, to: Pod| to.0 != SHOP || from.0 == SHOP;
    tenants.with(&[policy(SHOP, "same-namespace", &own)], &want)?;
    // Port 9 of the node itself, where nobody listens.
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
        let told = within(SOON, || tenants.explain(shop_api, shop_web, HTTP, "oops"))?;
        tenants.clear()?;
        Ok(told)
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
        let told = within(SOON, || tenants.explain(shop_api, shop_db, DATABASE, "app=backend"))?;
        tenants.clear()?;
        Ok(told)
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

/// The Pods, and where they are.
struct Tenants<'a> {
    cluster: &'a Cluster,
    addresses: BTreeMap<Pod, Vec<String>>,
    nodes: BTreeMap<Pod, String>,
}

impl<'a> Tenants<'a> {
    fn make(bed: &Bed<'a>) -> Result<Self> {
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

    /// Applies policies and waits until who reaches whom is as it should be.
    fn with(&self, policies: &[Value], want: &dyn Fn(Pod, Pod) -> bool) -> Result<String> {
        self.cluster.apply(policies)?;
        self.expect(want)
    }

    /// Removes all policies.
    fn clear(&self) -> Result<()> {
        for namespace in [SHOP, BANK] {
            self.cluster.run(&["delete", "networkpolicies", "--all", "--namespace", namespace])?;
        }
        Ok(())
    }

    /// Waits until every Pod reaches those it should, and no other.
    fn expect(&self, want: &dyn Fn(Pod, Pod) -> bool) -> Result<String> {
        within(SOON, || self.look(want))
    }

    /// Whether every Pod reaches those it should, and no other.
    fn look(&self, want: &dyn Fn(Pod, Pod) -> bool) -> Result<String> {
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
    fn reaches(&self, from: Pod, to: &[(Pod, u16)]) -> Result<BTreeMap<(Pod, String), bool>> {
        let mut script = String::new();
        let mut asked = Vec::new();
        for (pod, port) in to {
            for address in self.addresses.get(pod).into_iter().flatten() {
                let url = url(address, *port);
                write!(
                    script,
                    "{{ curl -s -g -o /dev/null --max-time 1 {url}/hostname && echo {n} ok || echo {n} no; }} & ",
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
    fn established(&self, denied: Pod, server: Pod, allowed: Pod) -> Result<String> {
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
            bail!("the denied connection went on, or was never there: {of_denied:?}");
        }
        Ok(format!("{denied} of 14 requests denied, none of the allowed"))
    }

    /// How often a policy decided, according to the agent of the Pod's node.
    fn hits(&self, pod: Pod, policy: &str) -> Result<u64> {
        let node = self.nodes.get(&pod).context("node")?;
        let agent = deploy::pod_on(self.cluster, node)?;
        let list = ["lbctl", "policy", "list", "--namespace", pod.0];
        let exec = ["exec", "--namespace", deploy::SYSTEM, &agent, "--"];
        let list = self.cluster.json(&[&exec[..], &list].concat())?;
        let row = items(&list).find(|row| text(row, "/name") == Some(policy));
        let hits = row.and_then(|row| row.get("hits")?.as_u64());
        hits.filter(|hits| *hits > 0).with_context(|| format!("no hits of {policy}: {list}"))
    }

    fn explain(&self, from: Pod, to: Pod, port: u16, names: &str) -> Result<String> {
        self.explain_to(from, &format!("{}/{}", to.0, to.1), port, names)
    }

    /// What the agent of the source's node says, and of the target's where that is another; one of them must name what
    /// is wrong.
    fn explain_to(&self, from: Pod, to: &str, port: u16, names: &str) -> Result<String> {
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
        bail!("nobody says {names:?} is why: {said}")
    }

    fn in_pod(&self, (namespace, name): Pod, script: &str) -> Result<String> {
        let exec = ["exec", "--namespace", namespace, name, "--", "sh", "-c", script];
        output(&mut self.cluster.kubectl(&exec))
    }
}

/// The port at which a Pod is asked.
fn port((_, name): Pod) -> u16 {
    if name == "db" { DATABASE } else { HTTP }
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

fn remove(cluster: &Cluster) -> Result<()> {
    let delete = ["delete", "namespace", SHOP, BANK, "--ignore-not-found", "--timeout", "90s"];
    cluster.run(&delete).map(|_| ())
}
