//! The policies of a Pod in words.

use super::place;
use crate::explain::explanation::{Finding, Nearest};
use crate::explain::trace::{
    Allowed, Cause, Closest, Denial, PeerOr, PolicyHop, PolicyVerdict, Trace,
};
use crate::network::protocol_name;
use crate::words;
use lb_core::model::policy::PolicyDirection;

/// The name of the step.
pub(super) const fn name(direction: PolicyDirection) -> &'static str {
    match direction {
        PolicyDirection::Ingress => "ingress policy",
        PolicyDirection::Egress => "egress policy",
    }
}

pub(super) fn step(trace: &Trace, hop: &PolicyHop) -> String {
    let text = verdict(trace, hop);
    match &hop.by_record {
        Some(node) => format!("{text} (by record of {node})"),
        None => text,
    }
}

fn verdict(trace: &Trace, hop: &PolicyHop) -> String {
    let subject = &hop.subject;
    let direction = hop.direction.name();
    match &hop.verdict {
        PolicyVerdict::NoPolicies => "the cluster has no policies".to_owned(),
        PolicyVerdict::NotSelected => format!("no policy selects {subject} in {direction}"),
        PolicyVerdict::FromHost => {
            "NetworkPolicies never apply to traffic of the node itself".to_owned()
        }
        PolicyVerdict::ToHost => {
            "NetworkPolicies never apply to a node or to a Pod on its host network".to_owned()
        }
        PolicyVerdict::FromOwnNode => {
            "the peer is this node itself, which is always allowed".to_owned()
        }
        PolicyVerdict::FromItself => {
            "traffic from a Pod to itself is checked on egress only".to_owned()
        }
        PolicyVerdict::NoAddress => format!("{} has no address yet", trace.wanted.src),
        PolicyVerdict::NoDevice => {
            format!("{subject} runs on this node, but its device is not known yet")
        }
        PolicyVerdict::OtherNode { node, policies } => {
            let policies = match policies {
                Some(0) => "; no policy selects it".to_owned(),
                Some(1) => "; 1 policy selects it".to_owned(),
                Some(n) => format!("; {n} policies select it"),
                None => String::new(),
            };
            format!("evaluated on {}, where {subject} runs{policies}", place(node.as_ref()))
        }
        PolicyVerdict::Allowed(allowed) => match allowed {
            Allowed::Rule { by, .. } => format!("allowed by {by}"),
            Allowed::Itself => {
                format!("traffic from {subject} to itself is always allowed by NetworkPolicy")
            }
            Allowed::NotSelected => format!("no enforced policy selects {subject} in {direction}"),
            Allowed::NotIsolated => {
                format!("no {direction} rule matches and {subject} is not isolated")
            }
        },
        PolicyVerdict::Denied(denial) => Denied { trace, hop, denial }.headline(),
    }
}

pub(super) fn finding(trace: &Trace, hop: &PolicyHop) -> Finding {
    match &hop.verdict {
        PolicyVerdict::Denied(denial) => Denied { trace, hop, denial }.finding(),
        PolicyVerdict::Allowed(Allowed::Rule { mistake: Some(mistake), .. }) => {
            peer_or(hop.direction, mistake)
        }
        _ => Finding::default(),
    }
}

/// Two peers in a list mean either; one that has both selectors means both.
fn peer_or(direction: PolicyDirection, mistake: &PeerOr) -> Finding {
    let PeerOr { policy, rule, at, peer, matches, other } = mistake;
    let [matches, other] = [matches, other].map(|peer| words::peer(&policy.namespace, peer));
    let path = words::rule_path(direction, *rule);
    Finding {
        object: format!("NetworkPolicy {policy}"),
        path: format!("spec.{}", words::peer_path(direction, *rule, *at)),
        headline: "allowed, possibly by mistake".to_owned(),
        because: vec![format!(
            "{policy} {path} lists two peers, and matching either is enough: {peer} matches {matches}, but not {other}"
        )],
        to_fix: vec![
            "if both must match, put podSelector and namespaceSelector into one entry of the list"
                .to_owned(),
        ],
        ..Finding::default()
    }
}

/// A flow that policies deny.
pub(super) struct Denied<'a> {
    trace: &'a Trace,
    pub(super) hop: &'a PolicyHop,
    pub(super) denial: &'a Denial,
}

impl Denied<'_> {
    pub(super) fn port(&self) -> String {
        format!("{}/{}", self.denial.at.port(), protocol_name(self.trace.wanted.protocol))
    }

    /// `8080/TCP from default/client`.
    fn flow(&self) -> String {
        let way = match self.hop.direction {
            PolicyDirection::Ingress => "from",
            PolicyDirection::Egress => "to",
        };
        format!("{} {way} {}", self.port(), self.denial.peer)
    }

    /// The policies that isolate the Pod.
    fn isolating(&self) -> String {
        match self.denial.by.policies.as_slice() {
            [] => "a NetworkPolicy".to_owned(),
            _ => self.denial.by.list(", "),
        }
    }

    fn headline(&self) -> String {
        let subject = &self.hop.subject;
        let by = &self.denial.by;
        match self.denial.cause {
            Cause::ClusterPolicy => format!("{by} denies it"),
            Cause::NoRoom => format!("the policies of {subject} do not fit in the maps"),
            Cause::Pending => format!("{subject} is not identified yet"),
            Cause::NotProgrammed | Cause::Unexplained | Cause::NoRules | Cause::Closest(_) => {
                let isolates = if by.policies.len() > 1 { "isolate" } else { "isolates" };
                format!(
                    "{} {isolates} {subject} in {}, and no rule allows {}",
                    self.isolating(),
                    self.hop.direction.name(),
                    self.flow()
                )
            }
        }
    }

    fn finding(&self) -> Finding {
        let Denial { group, rule, .. } = self.denial;
        let evidence = match (group, rule) {
            (Some(group), Some(rule)) => format!("group {group}: rule {rule} denies"),
            (Some(group), None) => format!("group {group}: no rule applies"),
            (None, _) => format!("by record of {}", place(self.hop.by_record.as_ref())),
        };
        let finding = match &self.denial.cause {
            Cause::ClusterPolicy => self.cluster_policy(),
            Cause::NoRoom => self.of_pod(
                format!(
                    "all {} traffic of {} is denied until they fit",
                    self.hop.direction.name(),
                    self.hop.subject
                ),
                "check `lbctl status`; use fewer or broader rules",
            ),
            Cause::Pending => self.of_pod(
                "a policy may select the Pod behind this device, so its traffic is denied until the Pod is identified".to_owned(),
                "none: this should end within moments; if it does not, check `lbctl pods`",
            ),
            Cause::NotProgrammed => self.isolated(
                "the policies now allow it, but the maps do not reflect that yet".to_owned(),
                "check `lbctl status` for what prevents the maps from being written".to_owned(),
            ),
            Cause::Unexplained => self.isolated(
                "why no rule matches is only known to the agent, which does not answer".to_owned(),
                self.add_a_rule(),
            ),
            Cause::NoRules => self.no_rules(),
            Cause::Closest(closest) => self.closest(closest),
        };
        Finding { headline: self.headline(), evidence: vec![evidence], ..self.with_dns(finding) }
    }

    fn cluster_policy(&self) -> Finding {
        let Denial { by, peer, .. } = self.denial;
        Finding {
            object: format!("ClusterNetworkPolicy {}", by.list(", ")),
            path: format!("spec.{}", by.path()),
            because: vec![format!(
                "{by} denies traffic between {peer} and {} on {}; a NetworkPolicy cannot override that",
                self.hop.subject,
                self.port()
            )],
            to_fix: vec!["ask the owner of the ClusterNetworkPolicy to add an Accept rule before it or to narrow it".to_owned()],
            ..Finding::default()
        }
    }

    fn of_pod(&self, because: String, fix: &str) -> Finding {
        Finding {
            object: format!("Pod {}", self.hop.subject),
            because: vec![because],
            to_fix: vec![fix.to_owned()],
            ..Finding::default()
        }
    }

    fn isolated(&self, because: String, fix: String) -> Finding {
        Finding {
            object: format!("NetworkPolicy {}", self.isolating()),
            path: format!("spec.{}", self.hop.direction.name()),
            because: vec![because],
            to_fix: vec![fix],
            ..Finding::default()
        }
    }

    fn add_a_rule(&self) -> String {
        let flow = self.flow();
        format!("add a rule that allows {flow} to a policy that selects {}", self.hop.subject)
    }

    fn no_rules(&self) -> Finding {
        let direction = self.hop.direction.name();
        let because = match self.denial.by.policies.len() {
            0 | 1 => format!("{} has no rule for {direction}", self.isolating()),
            _ => format!("none of them has a rule for {direction}"),
        };
        self.isolated(because, self.add_a_rule())
    }

    fn closest(&self, closest: &Closest) -> Finding {
        let (nearest, fix) = self.nearest(closest);
        let Nearest { policy, path, wants, has } = &nearest;
        Finding {
            object: format!("NetworkPolicy {policy}"),
            path: format!("spec.{path}"),
            because: vec![format!("{policy} {path} wants {wants}, but {has}")],
            to_fix: vec![fix],
            nearest: Some(nearest),
            ..Finding::default()
        }
    }

    /// Without name lookups, everything else fails, too.
    fn with_dns(&self, mut finding: Finding) -> Finding {
        if self.denial.stops_dns(self.hop.direction) {
            finding.because.push("every DNS lookup of the Pod will time out".to_owned());
            finding.to_fix = vec![format!(
                "add an egress rule for UDP and TCP port {} to kube-system to a policy that selects {}",
                self.denial.at.port(),
                self.hop.subject
            )];
        }
        finding
    }
}
