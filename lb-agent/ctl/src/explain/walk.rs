//! The way of a flow, from its source to a socket.

use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::{Pod, ident_flags};
use lb_common::flow::proto;
use lb_common::policy::{Judgement, Question, Tables, identify, judge};

use crate::attribution::{By, Policies};
use crate::explain::deny::Denied;
use crate::explain::route::{self, Chosen, Route};
use crate::explain::{Code, Explanation, Finding, Outcome, State, Step, host, socket};
use crate::snapshot::protocol_name;
use crate::view::View;
use lb_core::admin::context::{Context, End, Form, Kind, Leg, Party, Wanted};

/// What a Pod listens on.
#[derive(Clone, Debug)]
pub enum Listening {
    /// These.
    On(Vec<SocketAddr>),
    /// It could not be looked at, and why.
    Unknown(String),
}

/// Everything that the way is made from.
pub struct Facts<'a, T> {
    /// What is asked.
    pub wanted: &'a Wanted,
    /// What the agent's records say.
    pub context: &'a Context,
    /// The maps of Services and Pods, with names.
    pub view: &'a View<'a>,
    /// Which rule is whose.
    pub policies: &'a Policies,
    /// The maps of policies.
    pub tables: &'a T,
    /// Number of their state; 0 while there is no policy.
    pub epoch: u32,
    /// Flows whose backend has left: what was dialled, and that backend.
    pub gone: &'a [(String, String)],
    /// Whether the kernel forwards packets: IPv4, IPv6.
    pub forwards: [bool; 2],
    /// What a Pod listens on.
    pub listening: &'a dyn Fn(&Pod, u8) -> Listening,
}

impl<T> Facts<'_, T> {
    /// The addresses of this node that have NodePorts.
    pub fn node_ips(&self) -> Vec<IpAddr> {
        let frontends = self.view.snapshot.frontends.iter();
        let external =
            frontends.filter(|frontend| frontend.is_external() && !frontend.key.is_wildcard());
        let mut ips: Vec<IpAddr> = external.map(|frontend| frontend.key.addr.to_ip()).collect();
        ips.sort();
        ips.dedup();
        ips
    }
}

/// Where a flow may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address and port there.
    pub at: SocketAddr,
    /// `namespace/name` of the Pod, may be empty.
    pub pod: String,
    /// Where that runs, may be empty.
    pub node: String,
    /// The frontend by which the flow comes, if it does.
    pub through: Option<SocketAddr>,
    /// State of the backend, one word, or empty.
    pub state: String,
}

impl Target {
    fn name(&self) -> String {
        if self.pod.is_empty() { self.at.ip().to_string() } else { self.pod.clone() }
    }
}

/// What becomes of the flow.
pub fn explain<T: Tables>(facts: &Facts<'_, T>) -> Explanation {
    let mut walk = Walk {
        facts,
        steps: Vec::new(),
        stops: Vec::new(),
        hints: Vec::new(),
        assumed: Vec::new(),
        deciding: Vec::new(),
        tally: Tally::default(),
    };
    walk.go();
    walk.finish()
}

/// How many ways end how.
#[derive(Default)]
struct Tally {
    all: usize,
    stopped: usize,
    unknown: usize,
}

struct Walk<'a, T> {
    facts: &'a Facts<'a, T>,
    steps: Vec<Step>,
    stops: Vec<Finding>,
    hints: Vec<Finding>,
    assumed: Vec<String>,
    /// Nodes that have something to say.
    deciding: Vec<String>,
    tally: Tally,
}

/// One side of a flow whose policies are asked.
struct Side<'a> {
    ingress: bool,
    subject: &'a str,
    pod: &'a Pod,
    /// The other end: its address, and what it is called.
    peer: (IpAddr, String),
}

impl<'a, T: Tables> Walk<'a, T> {
    fn go(&mut self) {
        let facts = self.facts;
        match (facts.context.agent, facts.context.complete) {
            (true, true) => {}
            (true, false) => {
                self.assume("the agent has not read the whole cluster state yet".to_owned());
            }
            (false, _) => self.assume(
                "agent not reachable: using cached names; reasons may be missing".to_owned(),
            ),
        }
        self.source();
        self.hints.extend(host::full(facts.view));
        let outside = route::is_outside(facts);
        match route::route(facts, outside) {
            Route::None { service, finding } => {
                self.stop(
                    "service",
                    format!(
                        "{}: {}",
                        if service.is_empty() { "address" } else { &service },
                        finding.headline
                    ),
                    *finding,
                );
                self.tally = Tally { all: 1, stopped: 1, unknown: 0 };
            }
            Route::Service(chosen) => self.through(&chosen),
            Route::Plain => {
                let Some(at) = self.plain() else {
                    self.tally = Tally { all: 1, stopped: 0, unknown: 1 };
                    let dst = &facts.wanted.dst;
                    self.step(
                        State::Unknown,
                        "destination",
                        format!("{dst} has no address of a family that the source has"),
                    );
                    return;
                };
                let End { kind, name, node, .. } = &facts.context.dst;
                if facts.context.src.kind == Kind::Pod && facts.context.src.ips.contains(&at.ip()) {
                    let text = format!("traffic from {name} to itself never leaves the Pod");
                    self.step(State::Ok, "loopback", text);
                }
                let pod = if *kind == Kind::Pod { name.clone() } else { String::new() };
                self.target(&Target {
                    at,
                    pod,
                    node: node.clone(),
                    through: None,
                    state: String::new(),
                });
            }
        }
    }

    /// Where the flow comes from.
    fn source(&mut self) {
        let facts = self.facts;
        let src = &facts.context.src;
        let ips = src.ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        let text = match src.kind {
            Kind::Pod if self.local(src).is_some() => {
                format!("Pod {} {ips} on this node", src.name)
            }
            Kind::Pod => format!("Pod {} {ips} on {}", src.name, place(&src.node)),
            Kind::HostPod => {
                format!("Pod {} on the host network of {}", src.name, place(&src.node))
            }
            Kind::Node => format!("node {}", src.name),
            Kind::Outside | Kind::Service | Kind::Missing => match facts.wanted.src {
                Party::World => format!("an external client, evaluated as {ips}"),
                _ => format!("{ips}, outside the cluster"),
            },
        };
        self.step(State::Ok, "source", text);
        if matches!(src.kind, Kind::HostPod | Kind::Node) {
            self.hints.push(Finding {
                code: Some(Code::HostNotSelectable),
                object: format!("Node {}", src.node),
                headline: "the source is a node".to_owned(),
                because: vec!["NetworkPolicies never apply to traffic from a node or from a Pod on the host network".to_owned()],
                ..Finding::default()
            });
        }
    }

    /// Through a frontend.
    fn through(&mut self, chosen: &Chosen<'_>) {
        let Chosen { frontend, name, targets, rejected } = chosen;
        let at = frontend.socket();
        let protocol = protocol_name(self.facts.wanted.protocol);
        let n = targets.len();
        let backends = if n == 1 {
            "1 backend".to_owned()
        } else {
            format!("{n} backends, {}", frontend.algorithm())
        };
        let mut text = format!("{name} {at}/{protocol}: {backends}");
        if !rejected.is_empty() {
            text.push_str(&format!("; excluded: {}", rejected.join(", ")));
        }
        self.step(State::Ok, "service", text);
        let src = &self.facts.context.src;
        let is_elsewhere = !src.node.is_empty() && src.node != self.facts.context.node;
        if is_elsewhere {
            self.assume(format!(
                "the maps of {}, where the Service is translated, match those of this node",
                src.node
            ));
        }
        for (dialled, backend) in
            self.facts.gone.iter().filter(|(dialled, _)| *dialled == at.to_string())
        {
            self.hints.push(Finding {
                code: Some(Code::StaleFlow),
                object: format!("Service {name}"),
                headline: format!("a flow to {dialled} is pinned to {backend}, which was removed"),
                because: vec![format!("an open flow to {dialled} is pinned to {backend}, which was removed: its next packet resets a TCP connection; other protocols get a new backend")],
                to_fix: vec!["reconnect the client".to_owned()],
                ..Finding::default()
            });
        }
        for target in targets {
            let on =
                if target.node.is_empty() { String::new() } else { format!(" on {}", target.node) };
            let pod =
                if target.pod.is_empty() { String::new() } else { format!(" {}", target.pod) };
            self.step(State::Ok, "backend", format!("{}{pod}{on}, {}", target.at, target.state));
            self.target(target);
        }
        if self.tally.stopped == self.tally.all {
            return;
        }
        let first = targets.first().map(|target| target.at.to_string()).unwrap_or_default();
        let of = if n == 1 { first } else { "the backend".to_owned() };
        let text = match self.facts.context.src.kind {
            Kind::Node | Kind::HostPod => format!(
                "{of} replies directly to the process, whose socket shows {at}; policies do not evaluate replies"
            ),
            _ => format!(
                "the source of replies is translated from {of} back to {at}; policies do not evaluate replies"
            ),
        };
        self.step(State::Ok, "reply", text);
    }

    /// The address that is dialled where no Service is.
    fn plain(&self) -> Option<SocketAddr> {
        let Context { src, dst, .. } = self.facts.context;
        let reaches = |ip: &&IpAddr| {
            src.ips.is_empty() || src.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
        };
        let mut ips: Vec<&IpAddr> = dst.ips.iter().filter(reaches).collect();
        ips.sort_by_key(|ip| ip.is_ipv6());
        let ip = ips.first()?;
        Some(SocketAddr::new(**ip, self.facts.wanted.port.unwrap_or_default()))
    }

    /// From the source to one end of the way.
    fn target(&mut self, target: &Target) {
        let before = (self.stops.len(), self.unknown());
        self.forwarded(target);
        if !self.is_loopback(target) {
            self.egress(target);
            self.ingress(target);
        }
        self.socket(target, self.stops.len() > before.0);
        self.tally.all += 1;
        if self.stops.len() > before.0 {
            self.tally.stopped += 1;
        } else if self.unknown() > before.1 {
            self.tally.unknown += 1;
        }
    }

    /// Whether the kernel takes the packets on, where one end is a Pod of this node and the other is elsewhere.
    fn forwarded(&mut self, target: &Target) {
        let [v4, v6] = self.facts.forwards;
        let forwards = if target.at.is_ipv4() { v4 } else { v6 };
        let src = &self.facts.context.src;
        let here = self.facts.context.node.as_str();
        let leaves = self.local(src).is_some() && target.node != here;
        let enters = self.pod_at(target.at.ip()).is_some()
            && !matches!(src.kind, Kind::HostPod | Kind::Node)
            && src.node != here;
        if forwards || !(leaves || enters) {
            return;
        }
        let finding = host::unforwarded(target.at.is_ipv4(), here);
        self.step(State::Unknown, "route", finding.headline.clone());
        if !self.hints.contains(&finding) {
            self.hints.push(finding);
        }
    }

    /// A Pod that dials its own address: the packets stay inside.
    fn is_loopback(&self, target: &Target) -> bool {
        let src = &self.facts.context.src;
        src.kind == Kind::Pod && target.through.is_none() && src.ips.contains(&target.at.ip())
    }

    /// Steps of policy that are not known.
    fn unknown(&self) -> usize {
        let is = |step: &&Step| step.state == State::Unknown && step.what != SOCKET;
        self.steps.iter().filter(is).count()
    }

    fn egress(&mut self, target: &Target) {
        let src = &self.facts.context.src;
        match (src.kind, self.local(src)) {
            (Kind::Pod, Some(pod)) => {
                let peer = (target.at.ip(), target.name());
                self.judge(&Side { ingress: false, subject: &src.name, pod, peer }, target);
            }
            (Kind::Pod, None) => self.elsewhere(EGRESS, &src.name, &src.node),
            (Kind::HostPod | Kind::Node, _) => {
                self.step(
                    State::Ok,
                    EGRESS,
                    "NetworkPolicies never apply to traffic of the node itself".to_owned(),
                );
            }
            (Kind::Outside | Kind::Service | Kind::Missing, _) => {}
        }
    }

    fn ingress(&mut self, target: &Target) {
        let facts = self.facts;
        let src = &facts.context.src;
        let pod = self.pod_at(target.at.ip());
        let Some(from) = src.ips.iter().find(|ip| ip.is_ipv4() == target.at.is_ipv4()) else {
            if pod.is_some() || !target.pod.is_empty() {
                self.step(
                    State::Unknown,
                    INGRESS,
                    format!("{} has no address yet", facts.wanted.src),
                );
            }
            return;
        };
        let from = *from;
        if pod.is_some() && target.through.is_some() && from == target.at.ip() {
            let text = "traffic from a Pod to itself is checked on egress only";
            return self.step(State::Ok, INGRESS, text.to_owned());
        }
        match pod {
            Some(pod) => {
                let name = if src.name.is_empty() { from.to_string() } else { src.name.clone() };
                let subject = target.name();
                self.judge(
                    &Side { ingress: true, subject: &subject, pod, peer: (from, name) },
                    target,
                );
            }
            None if self.has_flags(target.at.ip(), ident_flags::NODE | ident_flags::LOCAL_NODE) => {
                let text = "NetworkPolicies never apply to a node or to a Pod on its host network";
                self.step(State::Ok, INGRESS, text.to_owned());
            }
            None if !target.pod.is_empty() || self.has_flags(target.at.ip(), ident_flags::POD) => {
                self.elsewhere(INGRESS, &target.name(), &target.node);
                if route::is_outside(facts) && target.through.is_some() {
                    self.assume(format!(
                        "{} sees an address of {} instead of the client's: ipBlock rules for the client do not match there (externalTrafficPolicy: Local preserves the client's address)",
                        place(&target.node), place(&facts.context.node)
                    ));
                }
            }
            None => {}
        }
    }

    /// Policies that another node enforces.
    fn elsewhere(&mut self, what: &'static str, subject: &str, node: &str) {
        if self.facts.epoch == 0 {
            return self.step(State::Ok, what, "the cluster has no policies".to_owned());
        }
        if !node.is_empty() && node == self.facts.context.node {
            let text = format!("{subject} runs on this node, but its device is not known yet");
            self.step(State::Unknown, what, text);
            self.assume(format!("{what} of {subject}: check `lbctl pods` and `lbctl status`"));
            return;
        }
        let ingress = what == INGRESS;
        let leg = self
            .facts
            .context
            .legs
            .iter()
            .find(|leg| leg.ingress == ingress && leg.subject == subject);
        let isolating = leg.map(|leg| leg.policies.iter().filter(|policy| !policy.shadow).count());
        let policies = match isolating {
            Some(0) => "; no policy selects it".to_owned(),
            Some(1) => "; 1 policy selects it".to_owned(),
            Some(n) => format!("; {n} policies select it"),
            None => String::new(),
        };
        self.step(
            State::Unknown,
            what,
            format!("evaluated on {}, where {subject} runs{policies}", place(node)),
        );
        self.assume(format!("{what} of {subject}: run `lbctl explain` on {}", place(node)));
        let node = place(node).to_owned();
        if !self.deciding.contains(&node) {
            self.deciding.push(node);
        }
    }

    /// Asks the maps.
    fn judge(&mut self, side: &Side<'_>, target: &Target) {
        let facts = self.facts;
        let (what, direction) =
            if side.ingress { (INGRESS, "ingress") } else { (EGRESS, "egress") };
        let Side { subject, pod, .. } = side;
        let (group, shadow) = match side.ingress {
            true => (pod.ingress, pod.shadow_ingress),
            false => (pod.egress, pod.shadow_egress),
        };
        if facts.epoch == 0 || (group, shadow) == (0, 0) {
            return self.step(
                State::Ok,
                what,
                format!("no policy selects {subject} in {direction}"),
            );
        }
        let Some(ident) = identify(facts.tables, &Addr::from_ip(side.peer.0)) else {
            return self.step(
                State::Ok,
                what,
                "the peer is this node itself, which is always allowed".to_owned(),
            );
        };
        let own = target.through.is_some() && facts.context.src.ips.contains(&target.at.ip());
        let question = |group| Question {
            group,
            ident,
            proto: facts.wanted.protocol,
            port: Be16::new(target.at.port()),
            own,
            port_unknown: false,
        };
        let ask = |group| match group {
            0 => Judgement::ALLOWED,
            group => judge(facts.tables, &question(group)),
        };
        let (judgement, other) = (ask(group), ask(shadow));
        let by = facts.policies.by(group, judgement);
        let leg = self.leg(side, target);
        if judgement.denied() {
            let flags = facts.tables.group(group).map_or(0, |group| group.flags);
            let denied = Denied {
                ingress: side.ingress,
                subject,
                peer: &side.peer.1,
                protocol: facts.wanted.protocol,
                target,
                judgement,
                by: &by,
                group: (group, flags),
                leg,
            };
            let finding = denied.finding();
            self.stop(what, finding.headline.clone(), finding);
        } else {
            let text = match (by.policies.is_empty(), own) {
                (false, _) => format!("allowed by {by}"),
                (true, true) => {
                    format!("traffic from {subject} to itself is always allowed by NetworkPolicy")
                }
                (true, false) if group == 0 => {
                    format!("no enforced policy selects {subject} in {direction}")
                }
                (true, false) => {
                    format!("no {direction} rule matches and {subject} is not isolated")
                }
            };
            self.step(State::Ok, what, text);
            if let Some(finding) = leg.and_then(|leg| either(leg, &by, &side.peer.1)) {
                self.hints.push(finding);
            }
        }
        if shadow != 0 && other.denied() != judgement.denied() {
            let by = facts.policies.by(shadow, other);
            let would = if other.denied() { "deny" } else { "allow" };
            self.assume(format!(
                "shadow policies are not enforced; if they were, {by} would {would} it"
            ));
        }
    }

    /// What the records say of the policies of that side.
    fn leg(&self, side: &Side<'_>, target: &Target) -> Option<&'a Leg> {
        let legs = &self.facts.context.legs;
        legs.iter().find(|leg| {
            leg.ingress == side.ingress
                && leg.subject == side.subject
                && leg.port == target.at.port()
                && leg.peer == Some(side.peer.0)
        })
    }

    /// Whether somebody listens.
    fn socket(&mut self, target: &Target, stopped: bool) {
        let protocol = self.facts.wanted.protocol;
        if !matches!(protocol, proto::TCP | proto::UDP) {
            return;
        }
        let Some(pod) = self.pod_at(target.at.ip()) else {
            if stopped {
                return;
            }
            match (target.pod.is_empty(), self.facts.context.dst.kind) {
                (false, _) => self.assume(format!(
                    "a process in {} listens on port {}",
                    target.pod,
                    target.at.port()
                )),
                (true, Kind::Node | Kind::HostPod) => self.assume(format!(
                    "a process of node {} listens on port {}",
                    self.facts.context.dst.node,
                    target.at.port()
                )),
                (true, Kind::Outside) if target.through.is_none() => {
                    self.assume(format!(
                        "the network routes packets to {} and back",
                        target.at.ip()
                    ));
                }
                _ => {}
            }
            return;
        };
        match (self.facts.listening)(pod, protocol) {
            Listening::On(sockets) => match socket::heard(&sockets, target.at, &target.name()) {
                Ok(text) => self.step(State::Ok, SOCKET, text),
                Err(finding) => self.stop(SOCKET, finding.headline.clone(), *finding),
            },
            Listening::Unknown(why) => {
                self.step(State::Unknown, SOCKET, why);
                self.assume(format!(
                    "a process in {} listens on port {}",
                    target.name(),
                    target.at.port()
                ));
            }
        }
    }

    /// Whether the tables know the address as one of these: a Pod's, on whatever node, or a node's.
    fn has_flags(&self, ip: IpAddr, flags: u32) -> bool {
        let known = self.facts.tables.ident(&Addr::from_ip(ip));
        known.is_some_and(|known| known.flags & flags != 0)
    }

    /// The entry of a Pod of this node.
    fn local(&self, end: &End) -> Option<&'a Pod> {
        end.ips.iter().find_map(|ip| self.pod_at(*ip))
    }

    fn pod_at(&self, ip: IpAddr) -> Option<&'a Pod> {
        let view = self.facts.view;
        view.snapshot.pods.get(&view.directory.ifindex_of(&Addr::from_ip(ip)))
    }

    fn step(&mut self, state: State, what: &'static str, text: String) {
        self.steps.push(Step { state, what, text });
    }

    fn stop(&mut self, what: &'static str, text: String, finding: Finding) {
        self.step(State::Stop, what, text);
        self.stops.push(finding);
    }

    fn assume(&mut self, text: String) {
        if !self.assumed.contains(&text) {
            self.assumed.push(text);
        }
    }

    fn finish(self) -> Explanation {
        let Self { facts, steps, stops, hints, assumed, deciding, tally } = self;
        let outcome = match tally {
            Tally { stopped: 1.., .. } => Outcome::Stopped,
            Tally { unknown: 1.., .. } => Outcome::CannotTell,
            Tally { .. } => Outcome::Delivered,
        };
        let port = facts.wanted.port.map(|port| format!(":{port}")).unwrap_or_default();
        let flow = format!(
            "{} to {}{port}/{}",
            facts.wanted.src,
            facts.wanted.dst,
            protocol_name(facts.wanted.protocol)
        );
        let some = |n: usize| {
            if n < tally.all {
                format!(" (for {n} of {} backends)", tally.all)
            } else {
                String::new()
            }
        };
        let mut findings = stops.into_iter().chain(hints);
        let mut finding = findings.next().unwrap_or_default();
        let verdict = match outcome {
            Outcome::Stopped => format!("{flow}{}: {}", some(tally.stopped), finding.headline),
            Outcome::CannotTell => {
                let decides = if deciding.len() == 1 { "decides" } else { "decide" };
                match deciding.as_slice() {
                    [] => format!("{flow}{}", some(tally.unknown)),
                    nodes => {
                        format!("{flow}{}: {} {decides}", some(tally.unknown), nodes.join(", "))
                    }
                }
            }
            Outcome::Delivered => flow,
        };
        if outcome == Outcome::CannotTell && finding.code.is_none() {
            finding.code = Some(Code::OtherNode);
        }
        let mut also: Vec<Finding> = Vec::new();
        for other in findings {
            if other != finding && !also.contains(&other) {
                also.push(other);
            }
        }
        Explanation { outcome, verdict, steps, finding, also, assumed }
    }
}

const EGRESS: &str = "egress policy";
const INGRESS: &str = "ingress policy";
const SOCKET: &str = "socket";

fn place(node: &str) -> &str {
    if node.is_empty() { "another node" } else { node }
}

/// Two peers in a list mean either; one that has both selectors means both. The first is often written for the second.
fn either(leg: &Leg, by: &By, who: &str) -> Option<Finding> {
    let policy = leg.policies.iter().find(|policy| by.policies.contains(&policy.name))?;
    let rule = policy.rules.iter().find(|rule| rule.path == by.rule)?;
    let peers = rule.peers.as_ref()?;
    let taken =
        peers.iter().find(|peer| peer.form == Form::Namespaces && peer.misses.is_empty())?;
    let beside = peers.iter().find(|peer| peer.form == Form::Pods && !peer.misses.is_empty())?;
    let only_by_that = peers.iter().filter(|peer| peer.misses.is_empty()).count() == 1;
    only_by_that.then(|| Finding {
        code: Some(Code::HintPeerOr),
        object: format!("NetworkPolicy {}", policy.name),
        path: format!("spec.{}", taken.path),
        headline: "allowed, possibly by mistake".to_owned(),
        because: vec![format!(
            "{} {} lists two peers, and matching either is enough: {who} matches {}, but not {}",
            policy.name, rule.path, taken.wants, beside.wants
        )],
        to_fix: vec![
            "if both must match, put podSelector and namespaceSelector into one entry of the list"
                .to_owned(),
        ],
        ..Finding::default()
    })
}
