//! What the text of the API says of a flow, read straight from the objects. It shares no code with the agent, knows
//! no tables, and is slow: that is what makes it worth asking.

use serde_json::Value;

use super::world::{Flow, World, in_range, list, node_ips, within};

impl World {
    /// Whether the flow may begin.
    pub(crate) fn allows(&self, node: &str, flow: &Flow<'_>) -> bool {
        // "Traffic to and from the node where a Pod is running is always allowed."
        if self
            .nodes
            .iter()
            .any(|n| n["metadata"]["name"] == node && node_ips(n).contains(&flow.peer))
        {
            return true;
        }
        if let Some(accepted) = self.tier("Admin", flow) {
            return accepted;
        }
        let direction = if flow.ingress { "Ingress" } else { "Egress" };
        let of_pod = |policy: &&Value| {
            policy["metadata"]["namespace"] == flow.pod["metadata"]["namespace"]
                && selects(&policy["spec"]["podSelector"], &flow.pod["metadata"]["labels"])
                && has_type(&policy["spec"], direction)
        };
        let mut isolating = self.policies.iter().filter(of_pod).peekable();
        if isolating.peek().is_some() {
            return isolating.any(|policy| self.network_policy_allows(policy, flow));
        }
        self.tier("Baseline", flow).unwrap_or(true)
    }

    fn network_policy_allows(&self, policy: &Value, flow: &Flow<'_>) -> bool {
        let (rules, peers) = if flow.ingress { ("ingress", "from") } else { ("egress", "to") };
        list(&policy["spec"][rules]).iter().any(|rule| {
            let (peers, ports) = (list(&rule[peers]), list(&rule["ports"]));
            (peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, policy, flow)))
                && (ports.is_empty() || ports.iter().any(|port| self.is_port(port, flow)))
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

    fn is_port(&self, port: &Value, flow: &Flow<'_>) -> bool {
        if port["protocol"].as_str().unwrap_or("TCP") != flow.protocol {
            return false;
        }
        match (&port["port"], port["endPort"].as_u64()) {
            (Value::Null, _) => true,
            (Value::String(name), _) => self.is_named(name, flow),
            (from, to) => in_range(from, to, flow.port),
        }
    }

    /// What a tier of ClusterNetworkPolicy decides.
    fn tier(&self, tier: &str, flow: &Flow<'_>) -> Option<bool> {
        let mut policies: Vec<&Value> =
            self.cluster_policies.iter().filter(|p| p["spec"]["tier"] == tier).collect();
        policies.sort_by_key(|policy| policy["spec"]["priority"].as_u64());
        let (rules, peers) = if flow.ingress { ("ingress", "from") } else { ("egress", "to") };
        for policy in policies {
            if !self.is_pods(&policy["spec"]["subject"], flow.pod) {
                continue;
            }
            for rule in list(&policy["spec"][rules]) {
                let ports = list(&rule["protocols"]);
                if list(&rule[peers]).iter().any(|peer| self.is_cluster_peer(peer, flow))
                    && (ports.is_empty() || ports.iter().any(|p| self.is_cluster_port(p, flow)))
                {
                    return match rule["action"].as_str() {
                        Some("Accept") => Some(true),
                        Some("Deny") => Some(false),
                        _ => None,
                    };
                }
            }
        }
        None
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

    fn is_cluster_port(&self, port: &Value, flow: &Flow<'_>) -> bool {
        if let Some(name) = port["destinationNamedPort"].as_str() {
            return self.is_named(name, flow);
        }
        port.get(flow.protocol.to_lowercase()).is_some_and(|of| match &of["destinationPort"] {
            Value::Null => true,
            port if port.get("range").is_some() => {
                in_range(&port["range"]["start"], port["range"]["end"].as_u64(), flow.port)
            }
            port => port["number"] == flow.port,
        })
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
