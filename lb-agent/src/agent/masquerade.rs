//! Whether the host's own sockets or NodePorts use the source ports of masqueraded flows.
//!
//! Only their tuple identifies the answers to a masqueraded flow. A connection of the host from the same port to the
//! same backend would lose its answers to the flow's client; and a backend that dials such a NodePort from its own
//! port would be taken to answer.
#![forbid(unsafe_code)]

use lb_core::cluster::Name;
use lb_core::issue::{Issue, ObjectRef};
use lb_kernel::host_ports::{HostPorts, Ports};

/// What is wrong with `--masquerade-ports` on this node.
pub(super) fn issues(
    node: &str,
    masquerade: &Ports,
    host: &HostPorts,
    node_ports: impl Iterator<Item = u16>,
) -> Vec<Issue> {
    let shown = |ports: &Ports| format!("{}-{}", ports.start(), ports.end());
    let mut found = Vec::new();
    if let Some(given) = host.given.as_ref().filter(|_| masquerade.clone().any(|p| host.has(p))) {
        found.push(format!(
            "{} overlaps net.ipv4.ip_local_port_range, {}: replies to the host's own connections may be sent to external clients; separate the ranges, or set net.ipv4.ip_local_reserved_ports to {0}",
            shown(masquerade),
            shown(given)
        ));
    }
    let (mut used, mut overlaps) = (None::<Ports>, false);
    for port in node_ports {
        overlaps |= masquerade.contains(&port);
        used = Some(match used {
            None => port..=port,
            Some(used) => port.min(*used.start())..=port.max(*used.end()),
        });
    }
    if let Some(used) = used.filter(|_| overlaps) {
        found.push(format!(
            "{} overlaps the NodePorts of Services, {}: packets from a backend to a NodePort may be mistaken for replies; separate the ranges",
            shown(masquerade),
            shown(&used)
        ));
    }
    let object = ObjectRef::new("Node", &Name::new("", node));
    let issue = |message| Issue::new(object.clone(), "--masquerade-ports", message);
    found.into_iter().map(issue).collect()
}

#[cfg(test)]
mod tests {
    use super::issues;
    use lb_kernel::host_ports::HostPorts;

    #[test]
    fn s23_ranges_that_overlap_are_told() {
        let host = "range, 1024-65535: ";
        let wide = "1024 65535";
        let cases = [
            ("as it comes", "32768\t60999\n", "\n", vec![30_000, 32_767], vec![]),
            ("a wide range of the host", wide, "", vec![], vec![host]),
            ("touched at its end", "29999 60999", "", vec![], vec!["range, 29999-60999: "]),
            ("reserved", wide, "8080,10000-29999", vec![], vec![]),
            ("reserved in pieces", wide, "10000-19999,20000-29999\n", vec![], vec![]),
            ("not all of it", wide, "10000-29998", vec![], vec![host]),
            ("a NodePort in it", "", "", vec![30_080, 29_999, 31_000], vec!["s, 29999-31000: "]),
            ("both", wide, "", vec![12_000], vec![host, "NodePorts of Services, 12000-12000: "]),
        ];
        for (name, given, reserved, node_ports, want) in cases {
            let host = HostPorts::parse(given, reserved);
            let found = issues("n1", &(10_000..=29_999), &host, node_ports.into_iter());
            assert_eq!(found.len(), want.len(), "{name}: {found:?}");
            for (issue, want) in found.iter().zip(want) {
                let text = issue.to_string();
                assert!(text.starts_with("Node n1: --masquerade-ports: 10000-29999 "), "{text}");
                assert!(text.contains(want), "{name}: {text}");
            }
        }
    }
}
