//! What the text of the API says of a flow, read straight from the objects. It shares no code with the agent, knows
//! no tables, and is slow: that is what makes it worth asking.
//!
//! Of a packet whose port is not known the text says nothing, so it is read to be safe: a Deny with ports matches, an
//! Accept with ports does not, and what a Pass with ports makes of it is tried both ways.

use serde_json::Value;

use super::objects::{Flow, Objects, in_range, list, node_ips, within};

/// Whether something applies to a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    /// At some ports, and the packet's is not known.
    Perhaps,
    Yes,
}

impl Match {
    /// Of a list of which one entry is enough; an empty list does not limit.
    fn of_any(entries: &[Value], one: impl FnMut(&Value) -> Self) -> Self {
        if entries.is_empty() { Self::Yes } else { entries.iter().map(one).max().unwrap() }
    }

    /// What `port` says where the port is known; else that of an entry with a port that the protocol could have.
    fn port(flow: &Flow<'_>, port: bool, perhaps: bool) -> Self {
        match flow.hidden {
            true if perhaps => Self::Perhaps,
            false if port => Self::Yes,
            _ => Self::No,
        }
    }
}

/// What a tier decides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Accept,
    Deny,
    /// On to the next tier.
    Pass,
    /// That, or allowed here, by the port.
    PassOrAccept,
}

impl Objects {
    /// Whether the flow may begin.
    pub(crate) fn allows(&self, node: &str, flow: &Flow<'_>) -> bool {
        // "Traffic to and from the node where a Pod is running is always allowed."
        if self.is_of_node(node, flow) {
            return true;
        }
        match self.tier("Admin", flow) {
            Decision::Accept => return true,
            Decision::Deny => return false,
            // Allowed here, or by what follows: denied where that denies.
            Decision::Pass | Decision::PassOrAccept => {}
        }
        let mut isolating = self.isolating(flow).peekable();
        if isolating.peek().is_some() {
            return isolating.any(|policy| self.network_policy_allows(policy, flow));
        }
        self.tier("Baseline", flow) != Decision::Deny
    }

    /// The network policies that isolate the Pod in the flow's direction.
    fn isolating<'a>(&'a self, flow: &'a Flow<'_>) -> impl Iterator<Item = &'a Value> {
        let direction = if flow.ingress { "Ingress" } else { "Egress" };
        self.policies.iter().filter(move |policy| {
            policy["metadata"]["namespace"] == flow.pod["metadata"]["namespace"]
                && selects(&policy["spec"]["podSelector"], &flow.pod["metadata"]["labels"])
                && has_type(&policy["spec"], direction)
        })
    }

    /// Whether any policy is about the Pod in the flow's direction: then what cannot be read is denied.
    pub(crate) fn concerns(&self, flow: &Flow<'_>) -> bool {
        let rules = if flow.ingress { "ingress" } else { "egress" };
        self.isolating(flow).next().is_some()
            || self.cluster_policies.iter().any(|policy| {
                !list(&policy["spec"][rules]).is_empty()
                    && self.is_pods(&policy["spec"]["subject"], flow.pod)
            })
    }

    fn network_policy_allows(&self, policy: &Value, flow: &Flow<'_>) -> bool {
        let (rules, peers) = if flow.ingress { ("ingress", "from") } else { ("egress", "to") };
        list(&policy["spec"][rules]).iter().any(|rule| {
            let (peers, ports) = (list(&rule[peers]), list(&rule["ports"]));
            (peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, policy, flow)))
                && Match::of_any(ports, |port| self.is_port(port, flow)) == Match::Yes
        })
    }

    fn is_peer(&self, peer: &Value, policy: &Value, flow: &Flow<'_>) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            return within(&block["cidr"], flow.peer)
                && !list(&block["except"]).iter().any(|except| within(except, flow.peer));
        }
        let Some(pod) = self.pod_at(flow.peer) else { return false };
        let in_namespace = match peer.get("namespaceSelector") {
            Some(selector) => selects(selector, self.namespace_labels(pod)),
            None => policy["metadata"]["namespace"] == pod["metadata"]["namespace"],
        };
        in_namespace && selects(&peer["podSelector"], &pod["metadata"]["labels"])
    }

    fn is_port(&self, port: &Value, flow: &Flow<'_>) -> Match {
        if port["protocol"].as_str().unwrap_or("TCP") != flow.protocol {
            return Match::No;
        }
        match (&port["port"], port["endPort"].as_u64()) {
            (Value::Null, _) => Match::Yes,
            (Value::String(name), _) => self.is_named_port(name, flow),
            (from, to) => Match::port(flow, in_range(from, to, flow.port), true),
        }
    }

    fn is_named_port(&self, name: &str, flow: &Flow<'_>) -> Match {
        Match::port(flow, self.is_named(name, flow), self.has_named(name, flow))
    }

    /// What a tier of ClusterNetworkPolicy decides.
    fn tier(&self, tier: &str, flow: &Flow<'_>) -> Decision {
        let mut policies: Vec<&Value> =
            self.cluster_policies.iter().filter(|p| p["spec"]["tier"] == tier).collect();
        policies.sort_by_key(|policy| policy["spec"]["priority"].as_u64());
        let (rules, peers) = if flow.ingress { ("ingress", "from") } else { ("egress", "to") };
        let mut passed = false;
        for policy in policies {
            if !self.is_pods(&policy["spec"]["subject"], flow.pod) {
                continue;
            }
            for rule in list(&policy["spec"][rules]) {
                if !list(&rule[peers]).iter().any(|peer| self.is_cluster_peer(peer, flow)) {
                    continue;
                }
                let ports = list(&rule["protocols"]);
                let matches = Match::of_any(ports, |port| self.is_cluster_port(port, flow));
                match (rule["action"].as_str(), matches) {
                    (_, Match::No) | (Some("Accept"), Match::Perhaps) => {}
                    (Some("Accept"), Match::Yes) if passed => return Decision::PassOrAccept,
                    (Some("Accept"), Match::Yes) => return Decision::Accept,
                    (Some("Deny"), _) => return Decision::Deny,
                    (_, Match::Perhaps) => passed = true,
                    (_, Match::Yes) => return Decision::Pass,
                }
            }
        }
        Decision::Pass
    }

    fn is_cluster_peer(&self, peer: &Value, flow: &Flow<'_>) -> bool {
        let nodes = || self.nodes.iter().filter(|node| node_ips(node).contains(&flow.peer));
        list(&peer["networks"]).iter().any(|network| within(network, flow.peer))
            || peer
                .get("nodes")
                .is_some_and(|s| nodes().any(|n| selects(s, &n["metadata"]["labels"])))
            || self.pod_at(flow.peer).is_some_and(|pod| self.is_pods(peer, pod))
    }

    /// Whether `{namespaces}` or `{pods}` has this Pod.
    fn is_pods(&self, subject: &Value, pod: &Value) -> bool {
        if let Some(selector) = subject.get("namespaces") {
            return selects(selector, self.namespace_labels(pod));
        }
        subject.get("pods").is_some_and(|both| {
            selects(&both["namespaceSelector"], self.namespace_labels(pod))
                && selects(&both["podSelector"], &pod["metadata"]["labels"])
        })
    }

    fn is_cluster_port(&self, port: &Value, flow: &Flow<'_>) -> Match {
        if let Some(name) = port["destinationNamedPort"].as_str() {
            return self.is_named_port(name, flow);
        }
        let Some(of) = port.get(flow.protocol.to_lowercase()) else { return Match::No };
        let port = match &of["destinationPort"] {
            Value::Null => return Match::Yes,
            port if port.get("range").is_some() => {
                in_range(&port["range"]["start"], port["range"]["end"].as_u64(), flow.port)
            }
            port => port["number"] == flow.port,
        };
        Match::port(flow, port, true)
    }
}

/// `policyTypes`, and what they are when they are not given.
fn has_type(spec: &Value, direction: &str) -> bool {
    match spec["policyTypes"].as_array() {
        Some(types) if !types.is_empty() => types.iter().any(|t| t == direction),
        _ => direction == "Ingress" || !list(&spec["egress"]).is_empty(),
    }
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = |(key, value): (&String, &Value)| labels.get(key) == Some(value);
    selector["matchLabels"].as_object().is_none_or(|want| want.iter().all(equal))
        && list(&selector["matchExpressions"]).iter().all(|want| {
            let value = want["key"].as_str().and_then(|key| labels.get(key));
            let listed = value.is_some_and(|value| list(&want["values"]).contains(value));
            match want["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => value.is_some(),
                _ => value.is_none(),
            }
        })
}
