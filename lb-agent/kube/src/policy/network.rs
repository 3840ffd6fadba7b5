//! NetworkPolicy → [`Policy`].
#![forbid(unsafe_code)]

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::flow::proto;
use serde::Deserialize;
use serde_json::Value;

use super::value::{At, InvalidValue};
use super::{Head, accept_nothing, selector};
use crate::field::Findings;
use crate::meta::{self, object};
use crate::watched::Watched;
use lb_core::cluster::{
    Action, Change, Event, Kind, Namespaces, Peer, PodSelector, Policy, PortMatch, PortSpec, Rule,
    Selector, Tier,
};

/// A NetworkPolicy of networking.k8s.io/v1.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NetworkPolicy {
    #[serde(default, deserialize_with = "meta::read")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

object!(
    NetworkPolicy: "NetworkPolicy", "networkpolicies",
    "networking.k8s.io/v1" = ("networking.k8s.io", "v1"), NamespaceResourceScope
);

impl Watched for NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;
    type Record = Policy;

    fn record(&self, findings: &mut Findings) -> Option<Policy> {
        Some(policy(&self.spec, super::head(&self.metadata, findings), findings))
    }

    fn event(change: Change<Policy>) -> Event {
        Event::NetworkPolicy(change)
    }
}

/// Without a specification it isolates all Pods of the namespace, as the API server would fill in.
fn policy(spec: &Value, head: Head, findings: &mut Findings) -> Policy {
    let fields = Value::Object(serde_json::Map::new());
    let spec = At::new(if spec.is_null() { &fields } else { spec }, "spec");
    let known = ["podSelector", "policyTypes", "ingress", "egress"];
    match spec.fields() {
        Ok(fields) => {
            for (_, unknown) in fields.filter(|(key, _)| !known.contains(key)) {
                unknown.fault("is not a known field").tell("ignored", findings);
            }
        }
        Err(fault) => fault.tell(CLOSED, findings),
    }
    let subject =
        spec.get("podSelector").map_or(Ok(Selector::default()), |it| selector::selector(&it));
    let (subject, readable) = match subject {
        Ok(subject) => (subject, true),
        Err(fault) => {
            fault.tell(CLOSED, findings);
            (Selector::default(), false)
        }
    };
    let (ingress, egress) = directions(&spec, findings);
    let mut rules = |list: &str, peers: &str| {
        let mut rules = rules(&spec, list, peers, findings);
        if !readable {
            rules.fill_with(|| accept_nothing("".into()));
        }
        rules
    };
    Policy {
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: PodSelector { namespaces: Namespaces::Own, pods: subject },
        ingress: ingress.then(|| rules("ingress", "from")),
        egress: egress.then(|| rules("egress", "to")),
        shadow: head.shadow,
        generation: head.generation,
        created: head.created,
    }
}

const CLOSED: &str = "all Pods of the namespace are isolated, and no traffic is allowed";

/// Whether it isolates in ingress and in egress (`policyTypes`).
fn directions(spec: &At<'_>, findings: &mut Findings) -> (bool, bool) {
    let given = match spec.get("policyTypes").map_or(Ok(Vec::new()), |types| types.items()) {
        Ok(given) => given,
        Err(fault) => {
            fault.tell("both directions are isolated", findings);
            return (true, true);
        }
    };
    if given.is_empty() {
        // The API server fills in: always Ingress, and Egress where there are rules for it.
        let rules = spec.get("egress").map(|rules| rules.items());
        return (
            true,
            spec.fields().is_err()
                || rules.is_some_and(|r| r.is_err() || r.is_ok_and(|r| !r.is_empty())),
        );
    }
    let (mut ingress, mut egress) = (false, false);
    for entry in given {
        match entry.text() {
            Ok("Ingress") => ingress = true,
            Ok("Egress") => egress = true,
            Ok(other) => {
                let fault = entry.fault(format!("`{other}` is not a policy type"));
                fault.tell("both directions are isolated", findings);
                (ingress, egress) = (true, true);
            }
            Err(fault) => {
                fault.tell("both directions are isolated", findings);
                (ingress, egress) = (true, true);
            }
        }
    }
    (ingress, egress)
}

fn rules(spec: &At<'_>, list: &str, peers: &str, findings: &mut Findings) -> Box<[Rule]> {
    let given = match spec.get(list).map_or(Ok(Vec::new()), |rules| rules.items()) {
        Ok(given) => given,
        Err(fault) => {
            fault.tell("no traffic is allowed", findings);
            return Box::default();
        }
    };
    let read = |given: &At<'_>, findings: &mut Findings| {
        rule(given, peers, findings).unwrap_or_else(|fault| {
            fault.tell("the rule allows nothing", findings);
            accept_nothing("".into())
        })
    };
    given.iter().map(|rule| read(rule, findings)).collect()
}

fn rule(given: &At<'_>, peers: &str, findings: &mut Findings) -> Result<Rule, InvalidValue> {
    given.only(&[peers, "ports"])?;
    let name: Arc<str> = "".into();
    Ok(Rule {
        name,
        action: Action::Accept,
        peers: some(given.get(peers), peer, "the peer matches nothing", findings)?,
        ports: some(given.get("ports"), port, "the port matches nothing", findings)?,
    })
}

/// Returns the valid entries of a list; `None` if the list is empty, which means all peers or all ports.
fn some<T>(
    list: Option<At<'_>>,
    read: fn(&At<'_>) -> Result<T, InvalidValue>,
    reading: &str,
    findings: &mut Findings,
) -> Result<Option<Box<[T]>>, InvalidValue> {
    let given = list.map_or(Ok(Vec::new()), |list| list.items())?;
    let mut all = Vec::with_capacity(given.len());
    for given in &given {
        match read(given) {
            Ok(one) => all.push(one),
            Err(fault) => fault.tell(reading, findings),
        }
    }
    Ok((!given.is_empty()).then(|| all.into()))
}

fn peer(given: &At<'_>) -> Result<Peer, InvalidValue> {
    given.only(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let [pods, namespaces, block] =
        ["podSelector", "namespaceSelector", "ipBlock"].map(|kind| given.get(kind));
    match (pods, namespaces, block) {
        (None, None, None) => Err(given.fault("has no known field")),
        (None, None, Some(block)) => ip_block(&block),
        (pods, namespaces, None) => {
            let pods = pods.map(|pods| selector::selector(&pods)).transpose()?;
            let namespaces = namespaces.map(|it| selector::selector(&it)).transpose()?;
            Ok(Peer::Pods(PodSelector {
                namespaces: namespaces.map_or(Namespaces::Own, Namespaces::Selected),
                pods: pods.unwrap_or_default(),
            }))
        }
        (_, _, Some(block)) => Err(block.fault("cannot be combined with a selector")),
    }
}

fn ip_block(given: &At<'_>) -> Result<Peer, InvalidValue> {
    given.only(&["cidr", "except"])?;
    let prefix = given.need("cidr")?.prefix()?;
    let mut excepts = Vec::new();
    for entry in given.get("except").map_or(Ok(Vec::new()), |list| list.items())? {
        let except = entry.prefix()?;
        if !prefix.contains(&except.addr()) || except.wide_bits() <= prefix.wide_bits() {
            return Err(entry.fault(format!("{except} is not within {prefix}")));
        }
        excepts.push(except);
    }
    excepts.sort_unstable();
    excepts.dedup();
    Ok(Peer::Block { prefix, excepts: excepts.into() })
}

fn port(given: &At<'_>) -> Result<PortMatch, InvalidValue> {
    given.only(&["protocol", "port", "endPort"])?;
    let protocol = match given.get("protocol") {
        Some(name) => protocol(&name)?,
        None => proto::TCP,
    };
    let ports = match (given.get("port"), given.get("endPort")) {
        (None, None) => PortSpec::All,
        (None, Some(end)) => return Err(end.fault("requires port")),
        (Some(name), None) if name.is_text() => PortSpec::Named(name.port_name()?.into()),
        (Some(name), Some(end)) if name.is_text() => {
            return Err(end.fault("cannot be combined with a named port"));
        }
        (Some(port), None) => {
            let port = port.port()?;
            PortSpec::Range(port, port)
        }
        (Some(port), Some(end)) => {
            let (first, last) = (port.port()?, end.port()?);
            if last < first {
                return Err(end.fault(format!("{last} is less than {first}")));
            }
            PortSpec::Range(first, last)
        }
    };
    Ok(PortMatch { protocol: Some(protocol), ports })
}

fn protocol(given: &At<'_>) -> Result<u8, InvalidValue> {
    match given.text()? {
        "TCP" => Ok(proto::TCP),
        "UDP" => Ok(proto::UDP),
        "SCTP" => Ok(proto::SCTP),
        other => Err(given.fault(format!("`{other}` is not a protocol"))),
    }
}
