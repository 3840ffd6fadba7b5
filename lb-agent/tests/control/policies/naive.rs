//! The meaning of policies, read off the objects one after the other: slow, and plain enough to be believed.

use lb_common::addr::Addr;
use lb_core::cluster::{
    Action, Labels, Namespaces, Peer, Pod, PodSelector, Policy, PortMatch, PortSpec, Rule,
    Selector, Tier,
};
use lb_core::model::policy::PolicyDirection;
use lb_testkit::world::{NODE, World, WorldFlow, ifindex};

type Key = (String, String);

/// Who a peer is.
struct Who<'a> {
    addr: &'a Addr,
    pod: Option<(&'a Key, &'a Pod)>,
    node: Option<&'a Labels>,
}

/// Whether the flow is denied.
pub(crate) fn denied(world: &World, flow: &WorldFlow) -> bool {
    let Some((key, subject)) = world
        .pods
        .iter()
        .find(|(key, pod)| ifindex(key) == flow.ifindex && &*pod.node == NODE && !pod.host_network)
    else {
        return false;
    };
    let node = world.nodes.iter().find(|(_, (addrs, _))| addrs.contains(&flow.peer));
    if node.is_some_and(|(name, _)| name == NODE) {
        return false;
    }
    let node = node.map(|(_, (_, labels))| labels);
    let pods =
        world.pods.iter().filter(|(_, pod)| !pod.host_network && pod.ips.contains(&flow.peer));
    // Of those with one address the newest has it that is not being deleted.
    let going = |pod: &Pod| if pod.deleting { 1 } else { 0 };
    let mut pods: Vec<_> = pods.collect();
    pods.sort_by_key(|(_, pod)| (going(pod), -pod.created.map_or(0, i64::from)));
    let peer =
        Who { addr: &flow.peer, pod: pods.first().copied().filter(|_| node.is_none()), node };

    let mut policies: Vec<(&Key, &Policy)> = world
        .policies
        .iter()
        .filter(|(_, policy)| flow.shadow || !policy.shadow)
        .filter(|(at, policy)| selects(world, &at.0, &policy.subject, (key, subject)))
        .collect();
    if flow.shadow && !policies.iter().any(|(_, p)| p.shadow && says(p, flow.direction)) {
        return false;
    }
    policies.sort_by_key(|(at, policy)| (policy.tier, policy.priority, *at));
    let decide = |tier: Tier| {
        let of_tier = policies.iter().filter(move |(_, policy)| policy.tier == tier);
        let rules = of_tier.flat_map(|(at, policy)| {
            list(policy, flow.direction).into_iter().flatten().map(move |rule| (*at, rule))
        });
        let mut rules = rules;
        let found = rules.find(|(at, rule)| applies(world, &at.0, rule, subject, &peer, flow));
        found.map(|(_, rule)| rule.action)
    };
    match decide(Tier::Admin) {
        Some(Action::Accept) => return false,
        Some(Action::Deny) => return true,
        Some(Action::Pass) | None => {}
    }
    let isolated =
        |(_, p): &(&Key, &Policy)| p.tier == Tier::NetworkPolicy && says(p, flow.direction);
    if policies.iter().any(isolated) {
        return decide(Tier::NetworkPolicy).is_none();
    }
    decide(Tier::Baseline) == Some(Action::Deny)
}

fn list(policy: &Policy, direction: PolicyDirection) -> Option<&[Rule]> {
    match direction {
        PolicyDirection::Ingress => policy.ingress.as_deref(),
        PolicyDirection::Egress => policy.egress.as_deref(),
    }
}

/// A `ClusterNetworkPolicy` without rules says nothing.
fn says(policy: &Policy, direction: PolicyDirection) -> bool {
    let list = list(policy, direction);
    list.is_some_and(|rules| policy.tier == Tier::NetworkPolicy || !rules.is_empty())
}

fn selects(world: &World, policy: &str, who: &PodSelector, (key, pod): (&Key, &Pod)) -> bool {
    let namespace = match &who.namespaces {
        Namespaces::Own => key.0 == policy,
        Namespaces::Selected(selector) => namespace_is(world, &key.0, selector),
    };
    namespace && who.pods.matches(&pod.labels)
}

fn namespace_is(world: &World, name: &str, selector: &Selector) -> bool {
    let labels = world.namespaces.get(name).cloned().unwrap_or_default();
    let own = ("kubernetes.io/metadata.name".into(), name.into());
    selector.matches(&Labels::new(labels.iter().cloned().chain([own])))
}

fn applies(
    world: &World,
    policy: &str,
    rule: &Rule,
    subject: &Pod,
    peer: &Who<'_>,
    flow: &WorldFlow,
) -> bool {
    let is_peer = |wanted: &Peer| match wanted {
        Peer::Pods(pods) => peer.pod.is_some_and(|pod| selects(world, policy, pods, pod)),
        Peer::Nodes(nodes) => peer.node.is_some_and(|labels| nodes.matches(labels)),
        Peer::Block { prefix, excepts } => {
            prefix.contains(peer.addr) && !excepts.iter().any(|except| except.contains(peer.addr))
        }
    };
    let target = match flow.direction {
        PolicyDirection::Ingress => Some(subject),
        PolicyDirection::Egress => peer.pod.map(|(_, pod)| pod),
    };
    let is_port = |PortMatch { protocol, ports }: &PortMatch| {
        let same = protocol.is_none_or(|protocol| protocol == flow.protocol);
        same && match ports {
            PortSpec::All => true,
            PortSpec::Range(first, last) => flow.port != 0 && (*first..=*last).contains(&flow.port),
            PortSpec::Named(name) => target.is_some_and(|pod| {
                pod.ports.iter().any(|known| {
                    (&known.name, known.protocol, known.port) == (name, flow.protocol, flow.port)
                })
            }),
        }
    };
    rule.peers.as_ref().is_none_or(|peers| peers.iter().any(is_peer))
        && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
}
