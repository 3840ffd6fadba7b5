//! Why policies deny a flow: from the judgement of the maps and the rules of the records to one cause.

use lb_common::addr::Addr;
use lb_common::policy::{Judgement, group_flags};

use crate::attribution::By;
use crate::explain::walk::Target;
use crate::explain::{Code, Finding, Nearest};
use crate::snapshot::protocol_name;
use lb_core::admin::context::{Form, Leg, Miss, Peer, PortMatch, Rule};
use lb_core::cluster::Prefix;

/// Port of name lookups.
const DNS: u16 = 53;

/// A flow that the maps deny.
pub struct Denied<'a> {
    /// Whether it enters the Pod.
    pub ingress: bool,
    /// `namespace/name` of the Pod.
    pub subject: &'a str,
    /// The other end, in words.
    pub peer: &'a str,
    /// IP protocol number.
    pub protocol: u8,
    /// Where it goes.
    pub target: &'a Target,
    /// The judgement.
    pub judgement: Judgement,
    /// Who decided.
    pub by: &'a By,
    /// Group that judged, and its flags.
    pub group: (u32, u32),
    /// What the records say of the policies about the Pod.
    pub leg: Option<&'a Leg>,
}

impl Denied<'_> {
    const fn direction(&self) -> &'static str {
        if self.ingress { "ingress" } else { "egress" }
    }

    fn port(&self) -> String {
        format!("{}/{}", self.target.at.port(), protocol_name(self.protocol))
    }

    /// The cause.
    pub fn finding(&self) -> Finding {
        let (group, flags) = self.group;
        let evidence = match self.judgement.rule() {
            Some(rule) => format!("group {group}: rule {rule} denies"),
            None => format!("group {group}: no rule applies"),
        };
        let finding = Finding { evidence: vec![evidence], ..Finding::default() };
        let subject = self.subject;
        let direction = self.direction();
        if self.judgement.rule().is_some() {
            let policies = self.by.policies.join(", ");
            return Finding {
                code: Some(Code::DenyCnp),
                object: format!("ClusterNetworkPolicy {policies}"),
                path: format!("spec.{}", self.by.rule),
                headline: format!("{} denies it", self.by),
                because: vec![format!(
                    "{} denies traffic between {} and {subject} on {}; a NetworkPolicy cannot override that",
                    self.by, self.peer, self.port()
                )],
                to_fix: vec!["ask the owner of the ClusterNetworkPolicy to add an Accept rule before it or to narrow it".to_owned()],
                ..finding
            };
        }
        if flags & group_flags::OVERFLOW != 0 {
            return Finding {
                code: Some(Code::PolicyOverflow),
                object: format!("Pod {subject}"),
                headline: format!("the policies of {subject} do not fit in the maps"),
                because: vec![format!(
                    "all {direction} traffic of {subject} is denied until they fit"
                )],
                to_fix: vec!["check `lbctl status`; use fewer or broader rules".to_owned()],
                ..finding
            };
        }
        if flags & group_flags::PENDING != 0 {
            return Finding {
                code: Some(Code::PolicyPending),
                object: format!("Pod {subject}"),
                headline: format!("{subject} is not identified yet"),
                because: vec!["a policy may select the Pod behind this device, so its traffic is denied until the Pod is identified".to_owned()],
                to_fix: vec!["none: this should end within moments; if it does not, check `lbctl pods`".to_owned()],
                ..finding
            };
        }
        self.isolated(finding)
    }

    /// No rule of those that isolate the Pod allows it.
    fn isolated(&self, finding: Finding) -> Finding {
        let Self { subject, peer, .. } = self;
        let direction = self.direction();
        let port = self.port();
        let names = if self.by.policies.is_empty() {
            "a NetworkPolicy".to_owned()
        } else {
            self.by.policies.join(", ")
        };
        let isolates = if self.by.policies.len() > 1 { "isolate" } else { "isolates" };
        let way = if self.ingress { format!("from {peer}") } else { format!("to {peer}") };
        let mut finding = Finding {
            code: Some(Code::DefaultDeny),
            object: format!("NetworkPolicy {names}"),
            path: format!("spec.{direction}"),
            headline: format!(
                "{names} {isolates} {subject} in {direction}, and no rule allows {port} {way}"
            ),
            to_fix: vec![format!(
                "add a rule that allows {port} {way} to a policy that selects {subject}"
            )],
            ..finding
        };
        let nearest = self.leg.and_then(|leg| self.nearest(leg));
        match &nearest {
            None if self.by.policies.len() > 1 => {
                finding.because.push(format!("none of them has a rule for {direction}"));
            }
            None => finding.because.push(format!("{names} has no rule for {direction}")),
            Some((_, Cause { code, nearest, fix, .. })) => {
                finding.code = Some(*code);
                finding.object = format!("NetworkPolicy {}", nearest.policy);
                finding.path = format!("spec.{}", nearest.path);
                finding.because.push(format!(
                    "{} {} wants {}, but {}",
                    nearest.policy, nearest.path, nearest.wants, nearest.has
                ));
                finding.to_fix = vec![fix.clone()];
            }
        }
        if self.leg.is_none() {
            finding.because = vec![
                "why no rule matches is only known to the agent, which does not answer".to_owned(),
            ];
        }
        if self.leg.is_some_and(allows) {
            finding.because =
                vec!["the policies now allow it, but the maps do not reflect that yet".to_owned()];
            finding.to_fix = vec![
                "check `lbctl status` for what prevents the maps from being written".to_owned(),
            ];
            finding.code = Some(Code::NotProgrammed);
            return finding;
        }
        finding.nearest = nearest.map(|(_, cause)| cause.nearest);
        if !self.ingress && self.target.at.port() == DNS {
            finding.code = Some(Code::DenyEgressDns);
            finding.because.push("every DNS lookup of the Pod will time out".to_owned());
            finding.to_fix = vec![format!(
                "add an egress rule for UDP and TCP port {DNS} to kube-system to a policy that selects {subject}"
            )];
        }
        finding
    }

    /// The rule that lacks least, and what it lacks.
    fn nearest(&self, leg: &Leg) -> Option<(usize, Cause)> {
        let policies = leg.policies.iter().filter(|policy| !policy.shadow && policy.isolates());
        let rules =
            policies.flat_map(|policy| policy.rules.iter().map(|rule| (&*policy.name, rule)));
        rules
            .filter_map(|(policy, rule)| self.cause(policy, rule))
            .min_by_key(|(misses, _)| *misses)
    }

    fn cause(&self, policy: &str, rule: &Rule) -> Option<(usize, Cause)> {
        let wrong_port = usize::from(!rule.takes_port());
        if rule.takes_peer() {
            let ports = rule.ports.as_deref()?;
            return Some((wrong_port, self.of_ports(policy, rule, ports)));
        }
        let peers = rule.peers.as_deref()?;
        let Some(peer) = peers.iter().min_by_key(|peer| peer.misses.len()) else {
            return Some((4, self.of_nobody(policy, rule)));
        };
        Some((peer.misses.len() + wrong_port, self.of_peer(policy, peer)))
    }

    fn of_ports(&self, policy: &str, rule: &Rule, ports: &[PortMatch]) -> Cause {
        let port = self.port();
        let wants: Vec<&str> = ports.iter().map(|port| port.wants.as_str()).collect();
        let one = match ports {
            [one] => one.path.clone(),
            _ => format!("{}.ports", rule.path),
        };
        let nearest = |path: String, wants: String, has: String| Nearest {
            policy: policy.to_owned(),
            path,
            wants,
            has,
        };
        if let Some(named) = ports.iter().find(|port| port.name.is_some() && port.means.is_none()) {
            let name = named.name.as_deref().unwrap_or_default();
            let owner = if self.ingress { self.subject } else { self.peer };
            return Cause {
                code: Code::NamedPortUnresolved,
                nearest: nearest(
                    named.path.clone(),
                    format!("port '{name}'"),
                    format!("{owner} declares no port with that name"),
                ),
                fix: format!(
                    "declare port '{name}' in a container of {owner}, or use the port number in the rule"
                ),
            };
        }
        if let Some(through) = self.target.through
            && through.port() != self.target.at.port()
            && let Some(pre_nat) = ports.iter().find(|port| {
                port.range.is_some_and(|(first, last)| (first..=last).contains(&through.port()))
            })
        {
            return Cause {
                code: Code::DenyPortPreNat,
                nearest: nearest(
                    pre_nat.path.clone(),
                    pre_nat.wants.clone(),
                    format!(
                        "policies see port {}, to which {through} is translated",
                        self.target.at.port()
                    ),
                ),
                fix: format!("allow the Pod's port {port}: policies never see the Service's port"),
            };
        }
        let wants = if wants.is_empty() { "no port".to_owned() } else { wants.join(", ") };
        Cause {
            code: Code::DenyPort,
            nearest: nearest(one, wants, format!("the flow is for {port}")),
            fix: format!("add {port} to {}.ports", rule.path),
        }
    }

    fn of_nobody(&self, policy: &str, rule: &Rule) -> Cause {
        Cause {
            code: self.wrong_peer(),
            nearest: Nearest {
                policy: policy.to_owned(),
                path: rule.path.clone(),
                wants: "a valid peer".to_owned(),
                has: "none of its peers is valid".to_owned(),
            },
            fix: "check `lbctl policy show` for what is wrong with its peers".to_owned(),
        }
    }

    const fn wrong_peer(&self) -> Code {
        if self.ingress { Code::DenyIngressPeer } else { Code::DenyEgressPeer }
    }

    fn of_peer(&self, policy: &str, peer: &Peer) -> Cause {
        let who = self.peer;
        let nearest = |wants: String, has: String| Nearest {
            policy: policy.to_owned(),
            path: peer.path.clone(),
            wants,
            has,
        };
        if peer.form == Form::Block
            && let Some(through) = self.target.through
            && block(peer).is_some_and(|block| block.contains(&Addr::from_ip(through.ip())))
            && !self.ingress
        {
            return Cause {
                code: Code::DenyIpblockNat,
                nearest: nearest(peer.wants.clone(), format!("policies see {}, not {}", self.target.at.ip(), through.ip())),
                fix: "allow the Pods behind the Service by their labels: policies never see the address of a Service".to_owned(),
            };
        }
        let label = |miss: &Miss| match miss {
            Miss::NamespaceLabel { wants, has } => {
                Some((Code::DenyNsLabel, wants.clone(), has.clone()))
            }
            Miss::Label { .. }
            | Miss::Namespace { .. }
            | Miss::NotPod
            | Miss::NotNode
            | Miss::Block
            | Miss::Except(_) => None,
        };
        let namespace = who.split_once('/').map_or("", |(namespace, _)| namespace);
        if let Some((code, wants, has)) = peer.misses.iter().find_map(label) {
            return Cause {
                code,
                nearest: nearest(
                    format!("a namespace with {wants}"),
                    format!("namespace {namespace} has {has}"),
                ),
                fix: format!("add the label {wants} to namespace {namespace}, or change the rule"),
            };
        }
        let code = self.wrong_peer();
        let Some(miss) = peer.misses.first() else {
            return Cause {
                code,
                nearest: nearest(peer.wants.clone(), String::new()),
                fix: String::new(),
            };
        };
        let (wants, has, fix) = match miss {
            Miss::Label { wants, has } => {
                let all = |pick: fn(&Miss) -> Option<String>| {
                    peer.misses.iter().filter_map(pick).collect::<Vec<_>>().join(",")
                };
                let many = peer.misses.len() > 1;
                let wanted = all(|miss| {
                    if let Miss::Label { wants, .. } = miss { Some(wants.clone()) } else { None }
                });
                let had =
                    all(
                        |miss| {
                            if let Miss::Label { has, .. } = miss {
                                Some(has.clone())
                            } else {
                                None
                            }
                        },
                    );
                let (wants, has) = if many { (wanted, had) } else { (wants.clone(), has.clone()) };
                let fix = format!("add the labels {wants} to {who}, or change the rule");
                (wants, format!("{who} has {has}"), fix)
            }
            Miss::Namespace { wants, has } => (
                format!("Pods of the policy's namespace {wants}"),
                format!("{who} is in {has}"),
                format!("add a namespaceSelector for {has} to the peer"),
            ),
            Miss::NotPod => (
                peer.wants.clone(),
                format!("{who} is not a Pod with its own address"),
                "allow its address with an ipBlock".to_owned(),
            ),
            Miss::NotNode => {
                (peer.wants.clone(), format!("{who} is not a node"), "add a peer for it".to_owned())
            }
            Miss::Block => {
                (peer.wants.clone(), format!("{who} is not in it"), format!("add a peer for {who}"))
            }
            Miss::Except(range) => (
                peer.wants.clone(),
                format!("{who} is in the excluded {range}"),
                "narrow the except field".to_owned(),
            ),
            Miss::NamespaceLabel { .. } => (peer.wants.clone(), String::new(), String::new()),
        };
        Cause { code, nearest: nearest(wants, has), fix }
    }
}

/// What a rule lacks.
struct Cause {
    code: Code,
    nearest: Nearest,
    fix: String,
}

fn block(peer: &Peer) -> Option<Prefix> {
    peer.wants.split(' ').next()?.parse().ok()
}

/// Whether a rule of the records allows the flow, whatever the maps say.
fn allows(leg: &Leg) -> bool {
    let policies = leg.policies.iter().filter(|policy| !policy.shadow && policy.isolates());
    policies.flat_map(|policy| &policy.rules).any(|rule| rule.takes_peer() && rule.takes_port())
}
