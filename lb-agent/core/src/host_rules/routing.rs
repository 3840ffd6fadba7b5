//! What the node does to packets between Pods of different nodes beside its firewall rules: it may encrypt them, or route them by
//! more than their destination. Packets that go past the IP stack would be in the clear, or take another route.

use std::fmt;

use lb_common::addr::Addr;

use super::PodTraffic;
use crate::cluster::Prefix;

/// A rule that says which routing table is asked (`ip rule`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingRule {
    /// About IPv6, not IPv4.
    pub v6: bool,
    /// Its place among the others.
    pub priority: u32,
    /// Of these sources only.
    pub source: Option<Prefix>,
    /// For these destinations only.
    pub destination: Option<Prefix>,
    /// Only what comes in by this device.
    pub in_by: String,
    /// Only what is sent by a socket bound to this device.
    pub bound_to: String,
    /// Holds if one of its conditions does not.
    pub inverted: bool,
    /// The table that it asks; 0 = it does something else.
    pub table: u32,
}

/// What there is of both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRouting {
    /// The rules of both families.
    pub rules: Vec<RoutingRule>,
    /// Policies of IPsec, or a default other than to accept.
    pub has_policies: bool,
}

/// What speaks against flows past the IP stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutingDoubt {
    /// Packets may have to be encrypted.
    Ipsec,
    /// This rule may route them.
    Rule(String),
    /// It cannot be read.
    Unknown(String),
}

impl fmt::Display for RoutingDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipsec => f.write_str("a policy of IPsec"),
            Self::Rule(rule) => write!(f, "the rule {rule}"),
            Self::Unknown(err) => write!(f, "the rules cannot be read: {err}"),
        }
    }
}

/// `RT_TABLE_MAIN` and `RT_TABLE_LOCAL`: each packet is routed by them anyway.
const ORDINARY: [u32; 2] = [254, 255];
/// `RT_TABLE_DEFAULT`, which is asked last.
const DEFAULT: u32 = 253;

impl NodeRouting {
    /// What speaks against it for these packets.
    pub fn doubt(&self, traffic: &PodTraffic) -> Option<RoutingDoubt> {
        if self.has_policies {
            return Some(RoutingDoubt::Ipsec);
        }
        let rule = self.rules.iter().find(|rule| rule.may_route(traffic))?;
        let family = if rule.v6 { "ip -6 rule" } else { "ip rule" };
        Some(RoutingDoubt::Rule(format!("{family} {}", rule.priority)))
    }
}

impl RoutingRule {
    /// Whether packets of Pods could be routed by it otherwise than without it.
    fn may_route(&self, traffic: &PodTraffic) -> bool {
        let is_plain = self.source.is_none()
            && self.destination.is_none()
            && self.in_by.is_empty()
            && self.bound_to.is_empty()
            && !self.inverted;
        if ORDINARY.contains(&self.table) || is_plain && self.table == DEFAULT {
            return false;
        }
        let has = |addr: &Addr| addr.is_v4() != self.v6;
        if !traffic.addresses.iter().any(has) {
            return false;
        }
        if self.inverted {
            return true;
        }
        let devices = || traffic.routed.iter().chain(&traffic.outward);
        let is_device = |name: &str| name.is_empty() || devices().any(|(_, known)| known == name);
        let is_end = |wanted: &Option<Prefix>| {
            let Some(wanted) = wanted else { return true };
            let meets = |end: Prefix| wanted.covers(&end) || end.covers(wanted);
            let own = traffic.addresses.iter().map(|addr| Prefix::host(*addr));
            let nodes = traffic.nodes.iter().map(|addr| Prefix::host(*addr));
            own.chain(nodes).chain(traffic.elsewhere.iter().copied()).any(meets)
        };
        // Forwarded packets are of no socket.
        self.bound_to.is_empty()
            && is_device(&self.in_by)
            && is_end(&self.source)
            && is_end(&self.destination)
    }
}
