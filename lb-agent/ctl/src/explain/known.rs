//! Pods that the caller knows: an agent that does not watch all Pods knows those of other nodes only by the addresses of
//! their nodes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use lb_core::admin::context::{EndKind, FlowContext, FlowEnd, FlowQuery, Party};
use lb_core::cluster::Name;

/// A Pod as the API server has it: `NAMESPACE/NAME@NODE=IP,IP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its name.
    pub name: Name,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

impl fmt::Display for KnownPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ips: Vec<String> = self.ips.iter().map(IpAddr::to_string).collect();
        write!(f, "{}@{}={}", self.name, self.node, ips.join(","))
    }
}

impl FromStr for KnownPod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(pod, ips)| Some((pod.split_once('@')?, ips)));
        let ((name, node), ips) =
            parts.ok_or_else(|| format!("{text}: expected NAMESPACE/NAME@NODE=IP,IP"))?;
        let ips: Result<Vec<IpAddr>, _> = ips.split(',').map(IpAddr::from_str).collect();
        let ips = ips.map_err(|error| format!("{text}: {error}"))?;
        Ok(Self { name: Name::parse(name), node: node.to_owned(), ips })
    }
}

/// Completes what the agent's records do not have of the two ends.
pub fn complete(wanted: &FlowQuery, context: &mut FlowContext, known: &[KnownPod]) {
    let ends = [(&wanted.src, &mut context.src), (&wanted.dst, &mut context.dst)];
    for (party, end) in ends {
        let is_it = |pod: &&KnownPod| match party {
            Party::Pod(name) => pod.name == *name,
            Party::Ip(ip) => pod.ips.contains(ip),
            Party::Node(_) | Party::Service(_) | Party::Workload(..) | Party::World => false,
        };
        if !matches!(end.kind, EndKind::Missing | EndKind::Outside) {
            continue;
        }
        if let Some(pod) = known.iter().find(is_it) {
            *end = FlowEnd {
                kind: EndKind::Pod,
                name: Some(pod.name.clone()),
                node: Some(pod.node.as_str().into()),
                ips: pod.ips.clone(),
                ..FlowEnd::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KnownPod;

    #[test]
    fn a_pod_in_one_word() {
        let text = "shop/cart@n1=10.1.0.2,fd00::2";
        let pod: KnownPod = text.parse().unwrap();
        assert_eq!((pod.to_string().as_str(), pod.ips.len()), (text, 2));
        for wrong in ["shop/cart", "shop/cart@n1", "shop/cart@n1=", "shop/cart=10.1.0.2"] {
            assert!(wrong.parse::<KnownPod>().is_err(), "{wrong}");
        }
    }
}
