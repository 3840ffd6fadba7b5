//! The most expensive policies that API objects can hold: the agent's memory stays bounded, and others' changes go on.

use std::fmt::Write as _;
use std::fs;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::{Bed, SERVICE, end, get, is_ok};
use crate::node::in_node;

/// Resident memory of the agent at its most, in MiB, in which the limit in `deploy/daemonset.yaml` and the table in
/// `tests/control/memory.rs` believe.
const MOST: u64 = 256;

/// A Pod of this node and a policy for it.
fn tenant(namespace: &str, ip: &str, spec: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: {namespace}}}
spec: {{nodeName: n1, containers: [{{name: c, image: x}}]}}
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: worst, namespace: {namespace}}}
spec: {{podSelector: {{}}, {spec}}}
"#
    )
}

fn ip(a: u32, i: u32) -> String {
    format!("{a}.{}.{}.1/32", i / 256, i % 256)
}

fn list(n: u32, one: impl Fn(u32) -> String) -> String {
    let mut text = String::new();
    (0..n).for_each(|i| write!(text, "{}{}", if i == 0 { "" } else { ", " }, one(i)).unwrap());
    format!("[{text}]")
}

#[test]
fn the_worst_policies_stay_within_the_limit_and_cost_others_nothing() {
    in_node(|node| {
        let bed = Bed::new(node);
        bed.write("web.yaml", SERVICE);
        let block = |a, i| format!("{{ipBlock: {{cidr: 0.0.0.0/0, except: [{}]}}}}", ip(a, i));
        let peers = |n, a| list(n, |i| block(a, i));
        let excepts = |n, a| list(n, |i| ip(a, i));
        let rules = |n, a, key: &str| {
            list(n, |i| format!("{{{key}: [{}, {}]}}", block(a, i), block(a, i + n)))
        };
        let all = "0.0.0.0/0";
        for (namespace, address, spec) in [
            ("peers", "10.9.1.1", format!("ingress: [{{from: {}}}]", peers(22_000, 11))),
            (
                "excepts",
                "10.9.1.2",
                format!(
                    "ingress: [{{from: [{{ipBlock: {{cidr: {all}, except: {}}}}}]}}]",
                    excepts(22_000, 12)
                ),
            ),
            (
                "more",
                "10.9.1.3",
                format!(
                    "egress: [{{to: [{{ipBlock: {{cidr: {all}, except: {}}}}}]}}]",
                    excepts(22_000, 13)
                ),
            ),
            (
                "other",
                "10.9.1.4",
                format!(
                    "egress: [{{to: [{{ipBlock: {{cidr: {all}, except: {}}}}}]}}]",
                    excepts(20_000, 14)
                ),
            ),
            ("rules", "10.9.1.5", format!("ingress: {}", rules(2048, 15, "from"))),
            (
                "both",
                "10.9.1.6",
                format!("egress: {}, ingress: {}", rules(2048, 16, "to"), rules(2048, 17, "from")),
            ),
            (
                "long",
                "10.9.1.7",
                format!(
                    "ingress: {}",
                    // Of peers and ports of their own: rules that share one of them would be one.
                    list(20_000, |i| {
                        let ports = format!("ports: [{{port: {}}}]", i + 1);
                        format!("{{from: [{{ipBlock: {{cidr: {}}}}}], {ports}}}", ip(18, i))
                    })
                ),
            ),
        ] {
            bed.write(&format!("{namespace}.yaml"), &tenant(namespace, address, &spec));
        }
        let agent = bed.start();
        bed.names("all policies", |names| names.policies.len() == 7 && is_ok(names, "programs"));
        // Another tenant's policy comes, and a Service.
        let at = Instant::now();
        let victim = tenant("victim", "10.9.1.8", "ingress: []");
        bed.write("victim.yaml", &victim);
        bed.write(
            "second.yaml",
            &SERVICE.replace("web", "second").replace("10.96.0.1", "10.96.0.2"),
        );
        let names = bed.names("the others", |names| {
            names.policies.iter().any(|policy| policy.namespace == "victim")
                && names.services.iter().any(|service| service.name == "second")
        });
        println!("another tenant's policy after {:?}", at.elapsed());
        // Only the objects that need too much have issues.
        let of = |namespace: &str| {
            let issues = names
                .issues
                .iter()
                .filter(|issue| issue.object.contains(&format!(" {namespace}/")));
            issues.map(|issue| issue.message.to_string()).collect::<Vec<_>>().join("; ")
        };
        for (namespace, want) in
            [("more", "do not fit among"), ("long", "exceeds the limit of rules")]
        {
            assert!(of(namespace).contains(want), "{namespace}: {:#?}", names.issues);
        }
        for namespace in ["victim", "peers", "default"] {
            assert_eq!(of(namespace), "", "{namespace}");
        }
        let metrics = get(10249, "/metrics");
        let seconds =
            metrics.lines().find_map(|line| line.strip_prefix("lb_policy_last_compile_seconds "));
        println!("the last compilation took {} s", seconds.unwrap());
        let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
        let of = |field: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
        };
        println!("resident: {} MiB, at its most {} MiB", of("VmRSS:"), of("VmHWM:"));
        assert!(of("VmHWM:") < MOST, "{status}");
        end(agent, Signal::SIGTERM);
    });
}
