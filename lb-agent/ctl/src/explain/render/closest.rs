//! The rule that comes closest to a denied flow, in words: what it wants, what the flow has instead, and what to change.

use super::policy::Denied;
use crate::explain::explanation::Nearest;
use crate::explain::trace::{Closest, Lacks, PeerLack, PortLack};
use crate::words;
use lb_core::admin::context::Lacking;
use lb_core::cluster::{Operator, Peer};
use lb_core::model::policy::PolicyDirection;

impl Denied<'_> {
    /// The rule that comes closest, and what to change.
    pub(super) fn nearest(&self, closest: &Closest) -> (Nearest, String) {
        let Closest { policy, rule, lacks } = closest;
        let direction = self.hop.direction;
        let path = words::rule_path(direction, *rule);
        let (path, (wants, has, fix)) = match lacks {
            Lacks::Port(lack) => self.port_lack(path, lack),
            Lacks::ValidPeer => (
                path,
                (
                    "a valid peer".to_owned(),
                    "none of its peers is valid".to_owned(),
                    "check `lbctl policy show` for what is wrong with its peers".to_owned(),
                ),
            ),
            Lacks::Peer { at, wants, why } => {
                let path = words::peer_path(direction, *rule, *at);
                (path, self.peer_lack(&policy.namespace, wants, why))
            }
        };
        (Nearest { policy: policy.to_string(), path, wants, has }, fix)
    }

    /// The path of the port; what it wants, what the flow has, what to change.
    fn port_lack(&self, rule: String, lack: &PortLack) -> (String, Lacked) {
        let port = self.port();
        match lack {
            PortLack::Unnamed { at, name } => {
                let owner = match self.hop.direction {
                    PolicyDirection::Ingress => &self.hop.subject,
                    PolicyDirection::Egress => &self.denial.peer,
                };
                let lacked = (
                    format!("port '{name}'"),
                    format!("{owner} declares no port with that name"),
                    format!(
                        "declare port '{name}' in a container of {owner}, or use the port number in the rule"
                    ),
                );
                (format!("{rule}.ports[{at}]"), lacked)
            }
            PortLack::OfService { at, wants, through } => {
                let number = self.denial.at.port();
                let lacked = (
                    words::port(wants),
                    format!("policies see port {number}, to which {through} is translated"),
                    format!("allow the Pod's port {port}: policies never see the Service's port"),
                );
                (format!("{rule}.ports[{at}]"), lacked)
            }
            PortLack::Other(ports) => {
                let (path, wants) = match ports.as_slice() {
                    [] => (format!("{rule}.ports"), "no port".to_owned()),
                    [one] => (format!("{rule}.ports[0]"), words::port(one)),
                    ports => {
                        let ports: Vec<String> = ports.iter().map(words::port).collect();
                        (format!("{rule}.ports"), ports.join(", "))
                    }
                };
                let fix = format!("add {port} to {rule}.ports");
                (path, (wants, format!("the flow is for {port}"), fix))
            }
        }
    }

    /// What a peer of a policy in this namespace wants, what the other end has, what to change.
    fn peer_lack(&self, namespace: &str, wants: &Peer, why: &PeerLack) -> Lacked {
        let who = &self.denial.peer;
        let peer = words::peer(namespace, wants);
        match why {
            PeerLack::OfService(through) => (
                peer,
                format!("policies see {}, not {through}", self.denial.at.ip()),
                "allow the Pods behind the Service by their labels: policies never see the address of a Service".to_owned(),
            ),
            PeerLack::NamespaceLabel(lacking) => {
                let (own, label) = (who.namespace(), words::requirement(&lacking.wants));
                (
                    format!("a namespace with {label}"),
                    format!("namespace {own} has {}", has(lacking)),
                    fix(std::slice::from_ref(lacking), "label", &label, &format!("namespace {own}")),
                )
            }
            PeerLack::Labels(lacking) => {
                let wants: Vec<String> =
                    lacking.iter().map(|one| words::requirement(&one.wants)).collect();
                let has: Vec<String> = lacking.iter().map(has).collect();
                let wants = wants.join(",");
                let fix = fix(lacking, "labels", &wants, &who.to_string());
                (wants, format!("{who} has {}", has.join(",")), fix)
            }
            PeerLack::Namespace => {
                let own = who.namespace();
                (
                    format!("Pods of the policy's namespace {namespace}"),
                    format!("{who} is in {own}"),
                    format!("add a namespaceSelector for {own} to the peer"),
                )
            }
            PeerLack::NotPod => (
                peer,
                format!("{who} is not a Pod with its own address"),
                "allow its address with an ipBlock".to_owned(),
            ),
            PeerLack::NotNode => {
                (peer, format!("{who} is not a node"), "add a peer for it".to_owned())
            }
            PeerLack::Block => {
                (peer, format!("{who} is not in it"), format!("add a peer for {who}"))
            }
            PeerLack::Except(range) => (
                peer,
                format!("{who} is in the excluded {range}"),
                "narrow the except field".to_owned(),
            ),
        }
    }
}

/// What a rule wants, what the flow has instead, and what to change.
type Lacked = (String, String, String);

fn has(lacking: &Lacking) -> String {
    let key = &lacking.wants.key;
    match &lacking.has {
        Some(value) if is_other_case(lacking, value) => format!("{key}={value}, in another case"),
        Some(value) => format!("{key}={value}"),
        None => format!("no label {key}"),
    }
}

/// Whether the label would match if case did not matter.
fn is_other_case(lacking: &Lacking, value: &str) -> bool {
    match &lacking.wants.operator {
        Operator::In(values) => values.iter().any(|wanted| wanted.eq_ignore_ascii_case(value)),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => false,
    }
}

/// What to change. A label that has another value may be there for others.
fn fix(lacking: &[Lacking], noun: &str, wants: &str, who: &str) -> String {
    let label = |one: &Lacking| one.has.as_ref().map(|value| format!("{}={value}", one.wants.key));
    let others: Vec<String> = lacking.iter().filter_map(label).collect();
    if others.is_empty() {
        return format!("add the {noun} {wants} to {who}, or change the rule");
    }
    let others = others.join(",");
    format!("change the rule, or the {noun} of {who} to {wants} if nothing else needs {others}")
}
