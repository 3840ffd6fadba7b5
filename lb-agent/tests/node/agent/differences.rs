//! What `takeover --dry-run` says of the cluster's objects.

use nix::sys::signal::Signal;

use super::{Bed, end, is_ok};
use crate::node::in_node;

/// A node with two addresses, a Service that needs what is otherwise here, and one whose address is not served.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: ExternalIP, address: 198.51.100.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: signal, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.1
  ports: [{port: 80, protocol: SCTP, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  externalIPs: [203.0.113.5]
  ports: [{port: 80}]
"#;

#[test]
fn takeover_tells_before_the_change_what_is_otherwise() {
    in_node(|node| {
        let bed = Bed::new(node);
        let dry_run = || {
            let output = bed.command("takeover").arg("--dry-run").output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let shown = dry_run();
        assert!(
            shown.contains("cannot list differences from kube-proxy: no agent answers"),
            "{shown}"
        );

        let child = bed.start();
        let ready = |services: usize| {
            bed.names("ready", |names| {
                names.agent.synced != 0
                    && is_ok(names, "programs")
                    && names.services.len() == services
            })
        };
        ready(0);
        assert_eq!(dry_run(), "", "nothing, nothing to tell");
        bed.write("objects.yaml", OBJECTS);
        ready(2);
        let shown = dry_run();
        for line in [
            "will not work as configured (also in `lbctl status`):",
            "  Service shop/web: spec.externalIPs: 203.0.113.5 is not in --external-ip-cidrs: not served",
            "different from kube-proxy:",
            "  Service shop/signal: spec.ports[].protocol: port 80 is SCTP: it is served to Pods and external clients, but not to host processes and Pods on the host network",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        let of_node = "  Node n1: --node-port-addresses: 1 Services have NodePorts, which are served at 192.0.2.1 only; kube-proxy also serves them at ";
        assert!(shown.lines().any(|shown| shown.starts_with(of_node)), "{shown}");
        let (code, log) = end(child, Signal::SIGTERM);
        assert_eq!(code, Some(0), "{log}");
    });
}
