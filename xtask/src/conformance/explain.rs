//! `lbctl explain` on a real cluster: what goes wrong most often, asked of the agent of every node. Each must give one code and one
//! exit status, the same on all nodes, but for what only the destination's node can see. `kubectl lb explain` must give exactly one.
//!
//! | Pod | namespace | node | what is wrong with it |
//! |---|---|---|---|
//! | client, narrow | explain | first | narrow may only reach web, and not the DNS |
//! | web | explain | last | |
//! | slow, crash, loopback | explain | last | never ready; exits; listens on 127.0.0.1 only |
//! | team, port, closed | explain-db | last | admit namespaces with another label; the Service's port; nothing |

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    ask::{authority, url},
    bed::Bed,
    cluster::{Cluster, text},
    deploy,
    report::{Report, within},
};
use crate::{command::output, kubectl};

const HOME: &str = "lb-conformance-explain";
const OTHER: &str = "lb-conformance-explain-db";
const CLIENT: &str = "lb-conformance-explain/client";
/// All agents have taken over a change, and written its names, by then.
const SETTLED: Duration = Duration::from_secs(20);

/// A question and what every agent must say.
struct Case {
    name: &'static str,
    from: &'static str,
    /// The destination in lbctl's words.
    to: String,
    exit: i32,
    /// The first is the right one, the others are what an agent says that sees less; none where the flow is delivered.
    codes: &'static [&'static str],
    /// Whether only the nodes of the two ends can know: the one by the sockets, the other by its last connection.
    by_sockets: bool,
}

impl Case {
    /// Asks all nodes together: one answer, without a dial before it that a node could remember.
    fn ask_laptop(&self, command: &str) -> Result<String> {
        let Self { from, to, exit, codes, .. } = self;
        let started = Instant::now();
        let out =
            kubectl::shell(command, &["explain", from, to.as_str(), "--output", "json"]).output();
        let out = out.context("start kubectl-lb")?;
        let took = started.elapsed();
        let said: Value = serde_json::from_slice(&out.stdout)
            .with_context(|| String::from_utf8_lossy(&out.stderr).into_owned())?;
        let code = text(&said, "/code");
        if out.status.code() != Some(*exit) || code != codes.first().copied() {
            let verdict = text(&said, "/verdict").unwrap_or_default();
            bail!("{}, {code:?}, not {exit} {:?}: {verdict}", out.status, codes.first());
        }
        Ok(format!("{}, {:.2} s", code.unwrap_or("delivered"), took.as_secs_f64()))
    }
}

/// Runs them all; with `laptop`, a command of `kubectl lb`, through that, too.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report, laptop: Option<&str>) {
    let mut cast = None;
    report.check("explain and kubectl lb explain: the Pods of the cases", || {
        cast = Some(ExplainCast::make(bed)?);
        Ok(String::new())
    });
    if let Some(cast) = &cast {
        for case in cast.cases() {
            report.check(&format!("explain: {}, asked of every agent", case.name), || {
                within(SETTLED, || cast.ask(&case))
            });
            if let Some(laptop) = laptop {
                report.check(&format!("kubectl lb explain: {}", case.name), || {
                    within(SETTLED, || case.ask_laptop(laptop))
                });
            }
        }
    }
    report.check("explain and kubectl lb explain: the Pods are removed", || {
        remove(bed.cluster).map(|()| String::new())
    });
}

/// The objects of the cases, and where they are.
struct ExplainCast<'a> {
    cluster: &'a Cluster,
    /// Nodes of the client and of the servers.
    ends: [String; 2],
    /// A ClusterIP that no Service has.
    free: String,
    /// An address that a Service names and that is a node's: not served.
    taken: String,
}

impl<'a> ExplainCast<'a> {
    fn make(bed: &Bed<'a>) -> Result<Self> {
        let cluster = bed.cluster;
        remove(cluster)?;
        let (Some(first), Some(last)) = (cluster.nodes.first(), cluster.nodes.last()) else {
            bail!("no node")
        };
        let namespace = |name: &str, team: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}});
        cluster.apply(&[namespace(HOME, "a"), namespace(OTHER, "db")])?;
        let mut objects = vec![
            bed.tenant(HOME, "client", first),
            bed.tenant(HOME, "narrow", first),
            bed.tenant(HOME, "web", last),
            broken(bed.tenant(HOME, "slow", last), &["pause"], true),
            shell(bed.tenant(HOME, "crash", last), "exit 1"),
            shell(bed.tenant(HOME, "loopback", last), "exec nc -l -k 127.0.0.1 8080"),
        ];
        objects.extend(["team", "port", "closed"].map(|name| bed.tenant(OTHER, name, last)));
        let taken = cluster.addresses(last)?.first().context("address")?.clone();
        let at = json!({"externalIPs": [&taken]});
        let none = json!({});
        objects.extend([
            service(HOME, "web", ("web", json!(8080)), &none),
            service(HOME, "typo", ("webb", json!(8080)), &none),
            service(HOME, "slow", ("slow", json!(8080)), &none),
            service(HOME, "crash", ("crash", json!(8080)), &none),
            service(HOME, "named", ("web", json!("nobody-declares")), &none),
            service(HOME, "wrong-port", ("web", json!(9090)), &none),
            service(HOME, "loopback", ("loopback", json!(8080)), &none),
            service(HOME, "external", ("web", json!(8080)), &at),
        ]);
        let names = ["team", "port", "closed"];
        objects.extend(names.map(|name| service(OTHER, name, (name, json!(8080)), &none)));
        let app = |name: &str| json!({"matchLabels": {"app": name}});
        objects.extend([
            policy(OTHER, "team", &json!({"podSelector": app("team"), "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "A"}}}]}]})),
            policy(OTHER, "port", &json!({"podSelector": app("port"), "ingress": [{"ports": [{"port": 80}]}]})),
            policy(OTHER, "closed", &json!({"podSelector": app("closed"), "policyTypes": ["Ingress"]})),
            policy(HOME, "narrow", &json!({"podSelector": app("narrow"), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": app("web")}]}]})),
        ]);
        cluster.apply(&objects)?;
        for (namespace, pod) in
            [(HOME, "client"), (HOME, "web"), (HOME, "narrow"), (OTHER, "closed")]
        {
            let wait = ["wait", "--namespace", namespace, "--for", "condition=Ready"];
            cluster.run(&[&wait[..], &[&format!("pod/{pod}"), "--timeout", "90s"]].concat())?;
        }
        let ip = |name: &str| -> Result<String> {
            let found = cluster.json(&["get", "--namespace", HOME, "service", name])?;
            Ok(text(&found, "/spec/clusterIP").context("clusterIP")?.to_owned())
        };
        let free = ip("typo")?;
        cluster.run(&["delete", "--namespace", HOME, "service", "typo"])?;
        // The API server gives the address that was just freed to no Service for a while, if there are others.
        cluster.apply(&[service(HOME, "typo", ("webb", json!(8080)), &none)])?;
        let ends = [first.clone(), last.clone()];
        Ok(Self { cluster, ends, free, taken })
    }

    fn cases(&self) -> Vec<Case> {
        let case = |name, to: &str, codes| Case {
            name,
            from: CLIENT,
            to: to.to_owned(),
            exit: 3,
            codes,
            by_sockets: false,
        };
        let home = |name: &str| format!("svc:{HOME}/{name}");
        let other = |name: &str| format!("svc:{OTHER}/{name}");
        let sockets = |case: Case| Case { by_sockets: true, ..case };
        let refuses = &["BACKEND_REFUSES"];
        let loopback = &["LISTENS_ON_LOOPBACK", "BACKEND_REFUSES"];
        let narrow = |case: Case| Case { from: "lb-conformance-explain/narrow", ..case };
        let healthy = |case: Case| Case { exit: 0, ..case };
        let by_name = format!("web.{HOME}.svc.cluster.local:80");
        vec![
            case("a selector without Pods", &home("typo"), &["NO_ENDPOINTS_SELECTOR"]),
            case("Pods that are not ready", &home("slow"), &["NO_ENDPOINTS_NOT_READY"]),
            case("a Pod in a crash loop", &home("crash"), &["NO_ENDPOINTS_NOT_READY"]),
            case(
                "a targetPort that no container declares",
                &home("named"),
                &["NAMED_PORT_UNRESOLVED"],
            ),
            sockets(case("a targetPort without a listener", &home("wrong-port"), refuses)),
            sockets(case("a process on 127.0.0.1", &home("loopback"), loopback)),
            case("a policy without rules", &other("closed"), &["DEFAULT_DENY"]),
            case("a namespace with another label", &other("team"), &["DENY_NS_LABEL"]),
            case("a policy for the Service's port", &other("port"), &["DENY_PORT_PRE_NAT"]),
            narrow(case(
                "egress without DNS",
                "svc:kube-system/kube-dns:53/udp",
                &["DENY_EGRESS_DNS"],
            )),
            narrow(case("a name that cannot be looked up", &by_name, &["DENY_EGRESS_DNS"])),
            healthy(case("a healthy Service", &home("web"), &[])),
            healthy(case("a healthy Service by its DNS name", &by_name, &[])),
            case("a ClusterIP without a Service", &authority(&self.free, 80), &["UNALLOCATED_IP"]),
            case(
                "an external address that is not served",
                &authority(&self.taken, 80),
                &["ADDRESS_NOT_SERVED"],
            ),
        ]
    }

    /// Asks all agents.
    fn ask(&self, case: &Case) -> Result<String> {
        let Case { from, to, exit, codes, by_sockets, .. } = case;
        if *by_sockets {
            self.dial(to)?;
        }
        let mut found = Vec::new();
        for node in &self.cluster.nodes {
            let agent = deploy::pod_on(self.cluster, node)?;
            let exec = ["exec", "--namespace", deploy::SYSTEM, &agent, "--", "lbctl"];
            let ask = ["explain", from, to.as_str(), "--output", "json"];
            let out =
                self.cluster.kubectl(&[&exec[..], &ask].concat()).output().context("lbctl")?;
            let status = out.status.code();
            let said: Value = serde_json::from_slice(&out.stdout).with_context(|| {
                format!("{node}: {status:?} {}", String::from_utf8_lossy(&out.stderr))
            })?;
            let code = text(&said, "/code");
            let is_end = self.ends.contains(node);
            let is_right = status == Some(*exit)
                && match codes {
                    [] => code.is_none(),
                    codes => code.is_some_and(|code| codes.contains(&code)),
                };
            // A node where neither end is cannot know, and says what it assumes.
            let assumed = said.pointer("/assumed").map(Value::to_string).unwrap_or_default();
            let excused = *by_sockets && !is_end && assumed.contains("a process in");
            if !is_right && !excused {
                let verdict = text(&said, "/verdict").unwrap_or_default();
                bail!("{node}: exit status {status:?}, {code:?}, not {exit} {codes:?}: {verdict}");
            }
            found.push(format!("{node} {}", code.unwrap_or("delivered")));
        }
        Ok(found.join(", "))
    }

    /// Opens a connection from the client, which its node remembers.
    fn dial(&self, to: &str) -> Result<()> {
        let name = to.rsplit('/').next().unwrap_or_default();
        let found = self.cluster.json(&["get", "--namespace", HOME, "service", name])?;
        let ip = text(&found, "/spec/clusterIP").context("clusterIP")?;
        let curl = "curl --globoff --silent --output /dev/null --max-time 2";
        let script = format!("{curl} {}/ || true", url(ip, 80));
        let exec = ["exec", "--namespace", HOME, "client", "--container", "http", "--", "sh", "-c"];
        output(&mut self.cluster.kubectl(&[&exec[..], &[&script]].concat())).map(drop)
    }
}

/// A Pod whose only container does this instead.
fn broken(mut pod: Value, args: &[&str], probed: bool) -> Value {
    if let Some(container) = pod.pointer_mut("/spec/containers/0") {
        container["args"] = json!(args);
        if !probed && let Some(fields) = container.as_object_mut() {
            fields.remove("readinessProbe");
        }
    }
    pod
}

fn shell(pod: Value, script: &str) -> Value {
    let mut pod = broken(pod, &["-c", script], false);
    if let Some(container) = pod.pointer_mut("/spec/containers/0") {
        container["command"] = json!(["sh"]);
    }
    pod
}

/// A Service at port 80 that selects `app` and sends to this target port.
fn service(namespace: &str, name: &str, (app, target): (&str, Value), more: &Value) -> Value {
    let mut spec = json!({
        "selector": {"app": app},
        "ports": [{"name": "http", "port": 80, "targetPort": target}],
    });
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn remove(cluster: &Cluster) -> Result<()> {
    let delete = ["delete", "namespace", HOME, OTHER, "--ignore-not-found", "--timeout", "90s"];
    cluster.run(&delete).map(drop)
}
