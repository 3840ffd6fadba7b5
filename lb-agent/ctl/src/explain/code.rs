//! The stable codes of causes, with the rows of docs/src/explain.md. A code never changes its meaning.

use lb_common::listed;
use serde::{Serialize, Serializer};

listed! {
    /// A cause, or something worth knowing.
    pub enum Code {
        NoEndpointsSelector: "NO_ENDPOINTS_SELECTOR",
            "The Service's selector selects no Pod. Pods with similar labels are named.",
            "Make selector and labels agree.";
        NoEndpointsNotReady: "NO_ENDPOINTS_NOT_READY",
            "The Service has endpoints, but none is ready. `kubectl lb explain` says why: the container that waits, or the probe.",
            "Follow the advice about the Pod that is named.";
        NoEndpointsAddress: "NO_ENDPOINTS_ADDRESS",
            "The Service selects Pods, and none of them has an address yet. They are named; `kubectl lb explain` says why: `Unschedulable`, the container that waits.",
            "Check why the Pods do not start: scheduling, images, the CNI plugin.";
        NoEndpoints: "NO_ENDPOINTS",
            "The Service has no endpoints, for a reason that is unknown here.",
            "Check its selector. Without a selector, create an EndpointSlice.";
        NamedPortUnresolved: "NAMED_PORT_UNRESOLVED",
            "A container of the Pod must declare the port's name, and none does.",
            "Declare the name in a container, or use the number.";
        NoLocalEndpoint: "NO_LOCAL_ENDPOINT",
            "The traffic policy is Local, and all endpoints are on other nodes.",
            "Use one of those nodes, or set the policy to Cluster.";
        LbNoAddress: "LB_NO_ADDRESS",
            "The LoadBalancer has no address.",
            "Install a controller that assigns addresses, or use the NodePort.";
        UndefinedPort: "UNDEFINED_PORT",
            "The Service does not have this port.",
            "Use one of its ports.";
        UnallocatedIp: "UNALLOCATED_IP",
            "The address is in the range of ClusterIPs, and no Service has it.",
            "Use the name of the Service, or its present address.";
        AddressNotServed: "ADDRESS_NOT_SERVED",
            "The Service has this address, and it is not served. The setting or the object that prevents it is named.",
            "Change what is named.";
        NoFrontend: "NO_FRONTEND",
            "The Service does not accept external clients.",
            "Give it type NodePort or LoadBalancer.";
        SourceRange: "SOURCE_RANGE",
            "The client is not in `loadBalancerSourceRanges`.",
            "Add its range.";
        NotProgrammed: "NOT_PROGRAMMED",
            "The tables do not yet match the objects.",
            "Check `lbctl status`.";
        BackendRefuses: "BACKEND_REFUSES",
            "The backend refuses connections: no process listens on the port at its address.",
            "Correct targetPort, or make the process listen there.";
        ListensOnLoopback: "LISTENS_ON_LOOPBACK",
            "The process listens only on 127.0.0.1 or ::1.",
            "Make it listen on all addresses.";
        DenyEgressDns: "DENY_EGRESS_DNS",
            "Egress is isolated, and no rule allows name lookups.",
            "Allow UDP and TCP port 53 to kube-system.";
        DnsUnreachable: "DNS_UNREACHABLE",
            "The Service is dialed by its name, and lookups of the source fail. The cause is named.",
            "Correct what stops packets to the cluster's DNS.";
        DenyIngressPeer: "DENY_INGRESS_PEER",
            "No ingress rule has the client as a peer. The closest rule is named.",
            "Change the label that differs, or the rule.";
        DenyEgressPeer: "DENY_EGRESS_PEER",
            "No egress rule has the server as a peer. The closest rule is named.",
            "Change the label that differs, or the rule.";
        DenyNsLabel: "DENY_NS_LABEL",
            "The peer's namespace lacks a label that the rule requires.",
            "Label the namespace.";
        DenyPort: "DENY_PORT",
            "The closest rule is for other ports.",
            "Add the port.";
        DenyPortPreNat: "DENY_PORT_PRE_NAT",
            "The rule names the Service's port.",
            "Allow the Pod's port: policies see packets after translation.";
        DenyIpblockNat: "DENY_IPBLOCK_NAT",
            "The rule names the Service's address.",
            "Allow the Pods behind it by their labels.";
        DenyCnp: "DENY_CNP",
            "A rule of a ClusterNetworkPolicy denies the flow.",
            "Contact its owner: a NetworkPolicy cannot override it.";
        DefaultDeny: "DEFAULT_DENY",
            "Policies isolate the Pod, and none of their rules covers this flow. The policies are named.",
            "Add a rule.";
        PolicyPending: "POLICY_PENDING",
            "The Pod behind the device is not identified yet.",
            "Wait a moment; then check `lbctl pods`.";
        PolicyOverflow: "POLICY_OVERFLOW",
            "The policies of the Pod did not fit into the tables.",
            "Check `lbctl status`. Use fewer or wider rules.";
        HintPeerOr: "HINT_PEER_OR",
            "Allowed, perhaps by mistake: two entries of `from` or `to` are combined with OR.",
            "Put both selectors into one entry.";
        StaleFlow: "STALE_FLOW",
            "An open flow is bound to a backend that was removed.",
            "Make the client reconnect.";
        TableFull: "TABLE_FULL",
            "A table on this node had no room for new flows in the last minutes.",
            "Follow the advice of `lbctl drops`.";
        HostSetup: "HOST_SETUP",
            "A setting of the node prevents delivery. It is named with its value.",
            "Change the setting as shown.";
        HostNotSelectable: "HOST_NOT_SELECTABLE",
            "The source is a node. No NetworkPolicy selects a node's traffic.",
            "Nothing, or use a ClusterNetworkPolicy at the other end.";
        OtherNode: "OTHER_NODE",
            "Another node decides.",
            "Run `lbctl explain` there.";
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
