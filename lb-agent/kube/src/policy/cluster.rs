//! ClusterNetworkPolicy → [`Policy`].
#![forbid(unsafe_code)]

use std::sync::Arc;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::flow::proto;
use serde::Deserialize;
use serde_json::Value;

use super::value::{At, InvalidValue};
use super::{Head, accept_nothing, deny_everything, selector};
use crate::field::Findings;
use crate::meta::{self, object};
use crate::watched::Watched;
use lb_core::cluster::{
    Action, Change, Event, Kind, Name, Namespaces, Peer, PodSelector, Policy, PortMatch, PortSpec,
    Rule, Selector, Tier,
};

/// The greatest priority.
const LAST: u16 = 1000;

/// A ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ClusterNetworkPolicy {
    #[serde(default, deserialize_with = "meta::read")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

object!(
    ClusterNetworkPolicy: "ClusterNetworkPolicy", "clusternetworkpolicies",
    "policy.networking.k8s.io/v1alpha2" = ("policy.networking.k8s.io", "v1alpha2"), ClusterResourceScope
);

impl Watched for ClusterNetworkPolicy {
    const KIND: Kind = Kind::ClusterNetworkPolicy;
    /// The kind is an extension (a CustomResourceDefinition) that may be installed at any time.
    ///
    /// A 403 does not mean that the kind is absent: its policies would silently not be enforced.
    const ABSENT: &'static [u16] = &[404];
    type Record = Policy;

    fn record(&self, findings: &mut Findings) -> Option<Policy> {
        Some(policy(&self.spec, super::head(&self.metadata, findings), findings))
    }

    fn event(change: Change<Policy>) -> Event {
        Event::ClusterNetworkPolicy(change)
    }

    /// Without a namespace, whatever a manifest says.
    fn name(&self) -> Name {
        Name::new("", self.metadata.name.as_deref().unwrap_or_default())
    }
}

/// Without a specification it has no rules, and does nothing.
fn policy(spec: &Value, head: Head, findings: &mut Findings) -> Policy {
    let spec = At::new(spec, "spec");
    match spec.fields() {
        Ok(fields) => {
            let known = ["tier", "priority", "subject", "ingress", "egress"];
            for (_, unknown) in fields.filter(|(key, _)| !known.contains(key)) {
                unknown.fault("is not a known field").tell("ignored", findings);
            }
        }
        Err(fault) => fault.tell("the policy has no rules", findings),
    }
    let place = place(&spec, findings);
    let subject = read_or_closed(spec.need("subject").and_then(|it| subject(&it)), findings);
    let readable = place.is_some() && subject.is_some();
    let (tier, priority) = place.unwrap_or((Tier::Admin, 0));
    let mut rules = |direction: RuleDirection| {
        let mut rules = rules(&spec, direction, findings)?;
        if !readable {
            rules.iter_mut().for_each(close);
        }
        Some(rules)
    };
    Policy {
        tier,
        priority,
        ingress: rules(RuleDirection::Ingress),
        egress: rules(RuleDirection::Egress),
        subject: subject.unwrap_or_else(all_pods),
        shadow: head.shadow,
        generation: head.generation,
        created: head.created,
    }
}

fn all_pods() -> PodSelector {
    PodSelector { namespaces: Namespaces::Selected(Selector::default()), pods: Selector::default() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RuleDirection {
    Ingress,
    Egress,
}

/// `None` when it is not readable: nothing may be accepted then.
fn read_or_closed<T>(read: Result<T, InvalidValue>, findings: &mut Findings) -> Option<T> {
    let closed = "it applies to all Pods, accepts nothing, and denies what it would pass";
    read.map_err(|fault| fault.tell(closed, findings)).ok()
}

/// Its tier and its priority in there.
fn place(spec: &At<'_>, findings: &mut Findings) -> Option<(Tier, u16)> {
    let tier = spec.need("tier").and_then(|tier| match tier.text()? {
        "Admin" => Ok(Tier::Admin),
        "Baseline" => Ok(Tier::Baseline),
        other => Err(tier.fault(format!("`{other}` is not a tier"))),
    });
    let tier = read_or_closed(tier, findings);
    let given = spec.need("priority").and_then(|at| Ok((at.number()?, at)));
    let (number, at) = read_or_closed(given, findings)?;
    let priority = u16::try_from(number.clamp(0, LAST.into())).unwrap_or(LAST);
    if i64::from(priority) != number {
        let fault = at.fault(format!("{number} is not between 0 and {LAST}"));
        fault.tell(&format!("{priority} is used"), findings);
    }
    Some((tier?, priority))
}

fn subject(given: &At<'_>) -> Result<PodSelector, InvalidValue> {
    match one_of(given, &["namespaces", "pods"])? {
        ("namespaces", namespaces) => all_pods_of(&namespaces),
        (_, pods) => namespaced_pods(&pods),
    }
}

/// The only field of an object, which must be one of these.
fn one_of<'a>(given: &At<'a>, known: &[&str]) -> Result<(&'a str, At<'a>), InvalidValue> {
    given.only(known)?;
    let mut fields = given.fields()?;
    let Some(first) = fields.next() else { return Err(given.fault("has no known field")) };
    match fields.next() {
        Some((other, _)) => Err(given.fault(format!("has both {} and {other}", first.0))),
        None => Ok(first),
    }
}

fn all_pods_of(namespaces: &At<'_>) -> Result<PodSelector, InvalidValue> {
    let namespaces = Namespaces::Selected(selector::selector(namespaces)?);
    Ok(PodSelector { namespaces, pods: Selector::default() })
}

fn namespaced_pods(given: &At<'_>) -> Result<PodSelector, InvalidValue> {
    given.only(&["namespaceSelector", "podSelector"])?;
    let namespaces = given.get("namespaceSelector");
    let namespaces = namespaces.map_or(Ok(Selector::default()), |it| selector::selector(&it))?;
    let pods = selector::selector(&given.need("podSelector")?)?;
    Ok(PodSelector { namespaces: Namespaces::Selected(namespaces), pods })
}

/// What happens to a rule whose subject or order is unknown.
fn close(rule: &mut Rule) {
    match rule.action {
        Action::Accept => *rule = accept_nothing(Arc::clone(&rule.name)),
        Action::Pass => rule.action = Action::Deny,
        Action::Deny => {}
    }
}

/// `None` when there are none: a direction without rules is left alone.
fn rules(spec: &At<'_>, direction: RuleDirection, findings: &mut Findings) -> Option<Box<[Rule]>> {
    let list = match direction {
        RuleDirection::Ingress => "ingress",
        RuleDirection::Egress => "egress",
    };
    let given = match spec.get(list)?.items() {
        Ok(given) => given,
        Err(fault) => {
            fault.tell("all traffic is denied", findings);
            return Some([deny_everything("".into())].into());
        }
    };
    let mut rules: Vec<Rule> = Vec::with_capacity(given.len());
    for at in &given {
        let rule = rule(at, direction, findings);
        let twin = rules.iter().position(|other| !rule.name.is_empty() && other.name == rule.name);
        if let Some(twin) = twin {
            let message = format!("`{}` is also the name of {}[{twin}]", rule.name, list);
            findings.add(format!("{}.name", at.path()), message);
        }
        rules.push(rule);
    }
    (!rules.is_empty()).then(|| rules.into())
}

fn rule(given: &At<'_>, direction: RuleDirection, findings: &mut Findings) -> Rule {
    let name = match given.get("name").map(|name| name.text()) {
        Some(Ok(name)) => name.into(),
        Some(Err(fault)) => {
            fault.tell("the rule has no name", findings);
            "".into()
        }
        None => "".into(),
    };
    let action = given.need("action").and_then(|action| match action.text()? {
        "Accept" => Ok(Action::Accept),
        "Deny" => Ok(Action::Deny),
        "Pass" => Ok(Action::Pass),
        other => Err(action.fault(format!("`{other}` is not an action"))),
    });
    match (action, content(given, direction)) {
        (Ok(action), Ok((peers, ports))) => Rule { name, action, peers: Some(peers), ports },
        (Ok(Action::Accept), Err(fault)) => {
            fault.tell("the rule accepts nothing", findings);
            accept_nothing(name)
        }
        (Ok(Action::Deny | Action::Pass), Err(fault)) | (Err(fault), _) => {
            fault.tell("the rule denies everything", findings);
            deny_everything(name)
        }
    }
}

/// Peers and ports of a rule.
type RuleContent = (Box<[Peer]>, Option<Box<[PortMatch]>>);

fn content(given: &At<'_>, direction: RuleDirection) -> Result<RuleContent, InvalidValue> {
    let (list, kinds): (_, &[&str]) = match direction {
        RuleDirection::Ingress => ("from", &["namespaces", "pods"]),
        RuleDirection::Egress => ("to", &["namespaces", "pods", "nodes", "networks"]),
    };
    given.only(&["name", "action", list, "protocols"])?;
    let mut peers = Vec::new();
    for entry in some(&given.need(list)?)? {
        if entry.get("domainNames").is_some() {
            return Err(entry.fault("domain names are not supported"));
        }
        match one_of(&entry, kinds)? {
            ("namespaces", namespaces) => peers.push(Peer::Pods(all_pods_of(&namespaces)?)),
            ("pods", pods) => peers.push(Peer::Pods(namespaced_pods(&pods)?)),
            ("nodes", nodes) => peers.push(Peer::Nodes(selector::selector(&nodes)?)),
            (_, networks) => {
                for network in some(&networks)? {
                    let prefix = network.prefix()?;
                    peers.push(Peer::Block { prefix, excepts: Box::default() });
                }
            }
        }
    }
    let Some(protocols) = given.get("protocols") else { return Ok((peers.into(), None)) };
    let mut ports = Vec::new();
    for entry in some(&protocols)? {
        let port = port(&entry)?;
        let named = matches!(port.ports, PortSpec::Named(_));
        if named && !peers.iter().all(|peer| matches!(peer, Peer::Pods(_))) {
            return Err(entry.fault("nodes and networks have no named ports"));
        }
        ports.push(port);
    }
    Ok((peers.into(), Some(ports.into())))
}

/// The entries of a list, which must have one.
fn some<'a>(list: &At<'a>) -> Result<Vec<At<'a>>, InvalidValue> {
    let items = list.items()?;
    if items.is_empty() { Err(list.fault("is empty")) } else { Ok(items) }
}

fn port(given: &At<'_>) -> Result<PortMatch, InvalidValue> {
    let (kind, at) = one_of(given, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    let protocol = match kind {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "sctp" => proto::SCTP,
        _ => {
            let ports = PortSpec::Named(at.port_name()?.into());
            return Ok(PortMatch { protocol: None, ports });
        }
    };
    at.only(&["destinationPort"])?;
    let ports = match one_of(&at.need("destinationPort")?, &["number", "range"])? {
        ("number", number) => {
            let number = number.port()?;
            PortSpec::Range(number, number)
        }
        (_, range) => {
            range.only(&["start", "end"])?;
            let (first, last) = (range.need("start")?.port()?, range.need("end")?.port()?);
            if last < first {
                return Err(range.fault(format!("{last} is less than {first}")));
            }
            PortSpec::Range(first, last)
        }
    };
    Ok(PortMatch { protocol: Some(protocol), ports })
}
