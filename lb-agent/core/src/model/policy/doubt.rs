//! Rules that match or not by what only the records of Pods tell.
#![forbid(unsafe_code)]

use super::PolicyDirection;
use crate::cluster::{Action, Peer, PortSpec, Rule};

/// Whether a rule may deny what it would not deny if all Pods were known, or the reverse. One that accepts does not: it does
/// not match Pods that are not known, and those are denied if nothing else accepts them.
pub(super) fn is_in_doubt(rule: &Rule, direction: PolicyDirection) -> bool {
    let depends = has_pods(rule) || direction == PolicyDirection::Egress && has_names(rule);
    rule.action != Action::Accept && depends
}

/// Whether a rule is about the labels of Pods.
pub(super) fn has_pods(rule: &Rule) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    peers.iter().any(|peer| matches!(peer, Peer::Pods(_)))
}

/// The name of a port means what the destination's containers call so.
pub(super) fn has_names(rule: &Rule) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    ports.iter().any(|port| matches!(port.ports, PortSpec::Named(_)))
}
