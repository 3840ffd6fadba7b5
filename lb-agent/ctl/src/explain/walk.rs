//! Follows a flow from its source to a socket and notes what each hop does with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::endpoint::{IdentFlags, PodEntry};
use lb_common::flow::proto;
use lb_common::hop::HopObstacle;
use lb_common::past::StackReason;
use lb_common::policy::PolicyLookup;

use crate::explain::facts::{Facts, Listening};
use crate::explain::policy::{self, Side};
use crate::explain::service::{self, FrontendMatch, Route, Target};
use crate::explain::trace::{
    Handshake, Hop, HopState, Listener, PathHop, PodRoute, PolicyHop, PolicyVerdict, Records,
    Reply, Socket, SourceEnd, StaleFlow, Trace, Unchecked, Who,
};
use crate::explain::{host, socket};
use lb_core::admin::context::{EndKind, FlowContext, Party};
use lb_core::model::policy::PolicyDirection;

/// Returns the path of the flow.
pub fn trace<T: PolicyLookup>(facts: &Facts<'_, T>) -> Trace {
    let FlowContext { node, .. } = facts.context;
    let trace =
        Trace { wanted: facts.wanted.clone(), node: node.clone(), hops: Vec::new(), lookup: None };
    let mut walk = Walk { facts, trace };
    walk.go();
    walk.trace
}

struct Walk<'a, T> {
    facts: &'a Facts<'a, T>,
    trace: Trace,
}

impl<T: PolicyLookup> Walk<'_, T> {
    fn push(&mut self, hop: Hop) {
        self.trace.hops.push(hop);
    }

    fn go(&mut self) {
        let facts = self.facts;
        match (facts.context.agent, facts.context.complete) {
            (true, true) => {}
            (true, false) => self.push(Hop::Records(Records::Incomplete)),
            (false, _) => self.push(Hop::Records(Records::Unavailable)),
        }
        let end = facts.context.src.clone();
        let here = facts.local(&end).is_some();
        self.push(Hop::Source(SourceEnd { end, here }));
        self.trace.hops.extend(host::full(facts.view).map(Hop::TableFull));
        match service::route(facts) {
            Route::Unserved(unserved) => self.push(Hop::Unserved(unserved)),
            Route::Service(chosen) => self.through(*chosen),
            Route::Plain => self.plain(),
        }
    }

    /// Through a frontend to its backends.
    fn through(&mut self, chosen: FrontendMatch) {
        let FrontendMatch { hop, targets } = chosen;
        let (at, service) = (hop.at, hop.port.clone());
        let from = match targets.as_slice() {
            [one] => Some(one.backend.at),
            _ => None,
        };
        self.push(Hop::Service(hop));
        for stale in self.facts.stale.iter().filter(|stale| stale.dialed == at) {
            let (service, backend) = (service.clone(), stale.backend);
            self.push(Hop::StaleFlow(StaleFlow { service, dialed: at, backend }));
        }
        for target in &targets {
            self.push(Hop::Backend(target.backend.clone()));
            self.target(target);
        }
        let tally = self.trace.tally();
        if tally.stopped < tally.all {
            let to_process =
                matches!(self.facts.context.src.kind, EndKind::Node | EndKind::HostPod);
            self.push(Hop::Reply(Reply { from, at, to_process }));
        }
    }

    /// To an address that is not a Service's.
    fn plain(&mut self) {
        let Some(at) = self.dialed() else { return self.push(Hop::NoAddress) };
        let FlowContext { src, dst, .. } = self.facts.context;
        if src.kind == EndKind::Pod && src.ips.contains(&at.ip()) {
            self.push(Hop::Loopback(Who::of(dst.name.as_ref(), at.ip())));
        }
        self.target(&Target::plain(at, dst));
    }

    /// Returns the address to dial: the one that was asked for; of an object IPv4, if the source has it.
    fn dialed(&self) -> Option<SocketAddr> {
        let FlowContext { src, dst, .. } = self.facts.context;
        if let Party::Ip(ip) = self.facts.wanted.dst {
            return Some(SocketAddr::new(ip, self.facts.wanted.port.unwrap_or_default()));
        }
        let reaches = |ip: &&IpAddr| {
            src.ips.is_empty() || src.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
        };
        let ip = dst.ips.iter().filter(reaches).min_by_key(|ip| ip.is_ipv6())?;
        Some(SocketAddr::new(*ip, self.facts.wanted.port.unwrap_or_default()))
    }

    /// From the source to one end of the path.
    fn target(&mut self, target: &Target) {
        let first = self.trace.hops.len();
        self.forwarding(target);
        if !self.is_loopback(target) {
            self.egress(target);
            self.ingress(target);
        }
        let new = self.trace.hops.get(first..).unwrap_or_default();
        let stopped = new.iter().any(|hop| hop.state() == Some(HopState::Stop));
        if !stopped {
            self.trace.hops.extend(self.path(target).map(Hop::Path));
        }
        self.socket(target, stopped);
    }

    /// Whether the kernel forwards the packets where one end is a Pod of this node and the other is elsewhere.
    fn forwarding(&mut self, target: &Target) {
        let facts = self.facts;
        let v4 = target.backend.at.is_ipv4();
        let [forwards_v4, forwards_v6] = facts.forwards;
        let src = &facts.context.src;
        let leaves = facts.local(src).is_some() && !facts.is_here(target.backend.node.as_deref());
        let enters = facts.pod_at(target.backend.at.ip()).is_some()
            && !matches!(src.kind, EndKind::HostPod | EndKind::Node)
            && !facts.is_here(src.node.as_deref());
        if (leaves || enters) && !(if v4 { forwards_v4 } else { forwards_v6 }) {
            self.push(Hop::Unforwarded { v4 });
        }
    }

    /// Whether a Pod dials its own address.
    fn is_loopback(&self, target: &Target) -> bool {
        let src = &self.facts.context.src;
        let own = src.ips.contains(&target.backend.at.ip());
        src.kind == EndKind::Pod && target.through.is_none() && own
    }

    fn verdict(&mut self, direction: PolicyDirection, subject: Who, verdict: PolicyVerdict) {
        self.push(Hop::Policy(PolicyHop {
            direction,
            subject,
            verdict,
            shadow: None,
            by_record: None,
        }));
    }

    fn egress(&mut self, target: &Target) {
        let facts = self.facts;
        let src = &facts.context.src;
        let first = src.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let subject = Who::of(src.name.as_ref(), first);
        match (src.kind, facts.local(src)) {
            (EndKind::Pod, here) => {
                let peer = (target.backend.at.ip(), target.who());
                let side = Side { direction: PolicyDirection::Egress, subject, peer };
                self.push(Hop::Policy(match here {
                    Some(pod) => policy::judge(facts, side, pod, target),
                    None => policy::elsewhere(facts, side, src.node.as_ref(), target),
                }));
            }
            (EndKind::HostPod | EndKind::Node, _) => {
                self.verdict(PolicyDirection::Egress, subject, PolicyVerdict::FromHost);
            }
            (EndKind::Outside | EndKind::Service | EndKind::Missing, _) => {}
        }
    }

    fn ingress(&mut self, target: &Target) {
        let facts = self.facts;
        let src = &facts.context.src;
        let at = target.backend.at.ip();
        let (direction, subject) = (PolicyDirection::Ingress, target.who());
        let pod = facts.pod_at(at);
        let Some(from) = src.ips.iter().find(|ip| ip.is_ipv4() == at.is_ipv4()).copied() else {
            if pod.is_some() || target.backend.pod.is_some() {
                self.verdict(direction, subject, PolicyVerdict::NoAddress);
            }
            return;
        };
        if target.through.is_some() && from == at && src.kind == EndKind::Pod {
            return self.verdict(direction, subject, PolicyVerdict::FromItself);
        }
        let peer = (from, Who::of(src.name.as_ref(), from));
        if let Some(pod) = pod {
            let side = Side { direction, subject, peer };
            return self.push(Hop::Policy(policy::judge(facts, side, pod, target)));
        }
        if facts.has_flags(at, IdentFlags::NODE | IdentFlags::LOCAL_NODE) {
            return self.verdict(direction, subject, PolicyVerdict::ToHost);
        }
        if target.backend.pod.is_some() || facts.has_flags(at, IdentFlags::POD) {
            let node = target.backend.node.as_ref();
            let side = Side { direction, subject, peer };
            self.push(Hop::Policy(policy::elsewhere(facts, side, node, target)));
            if facts.is_outside() && target.through.is_some() {
                self.push(Hop::ClientHidden { node: node.cloned() });
            }
        }
    }

    /// Where packets go on this node, between two Pods.
    fn path(&self, target: &Target) -> Option<PathHop> {
        let facts = self.facts;
        let at = target.backend.at.ip();
        let (from, to) = match (facts.local(&facts.context.src), facts.pod_at(at)) {
            (Some(from), Some(to)) if std::ptr::eq(from, to) => return None,
            (Some(from), Some(to)) => (from, to),
            (None, None) => return None,
            (Some(pod), None) | (None, Some(pod)) => return self.path_between(pod, target),
        };
        let bridge = |pod: &PodEntry| if at.is_ipv4() { pod.bridge4 } else { pod.bridge6 };
        let of_service = target.by_stack.then_some(StackReason::Annotation);
        let route = match facts.view.snapshot.past.obstacle(to, from).or(of_service) {
            None => PodRoute::Past,
            Some(_) if bridge(from) != 0 && bridge(from) == bridge(to) => PodRoute::Bridge,
            Some(reason) => {
                let rule = facts.view.names.host_rule.to_string();
                PodRoute::Stack { reason, rule }
            }
        };
        Some(PathHop { to: target.who(), route })
    }

    /// The same between a Pod of this node and one of another.
    fn path_between(&self, pod: &PodEntry, target: &Target) -> Option<PathHop> {
        let facts = self.facts;
        let src = &facts.context.src;
        let (is_pod, node) = match facts.local(src) {
            Some(_) => {
                let is_host = facts.has_flags(target.backend.at.ip(), IdentFlags::NODE);
                (target.backend.pod.is_some() && !is_host, target.backend.node.as_ref())
            }
            None => (src.kind == EndKind::Pod, src.node.as_ref()),
        };
        if !is_pod || facts.is_here(node.map(|node| &**node)) {
            return None;
        }
        let of_service = target.by_stack.then_some(StackReason::Annotation.name());
        let obstacle = facts.view.snapshot.past.obstacle_across(pod).map(HopObstacle::name);
        let route = match obstacle.or(of_service) {
            None => PodRoute::Hop { node: node.cloned() },
            Some(why) => PodRoute::StackBetween { why: why.into() },
        };
        Some(PathHop { to: target.who(), route })
    }

    /// Whether a process listens.
    fn socket(&mut self, target: &Target, stopped: bool) {
        let facts = self.facts;
        let protocol = facts.wanted.protocol;
        if !matches!(protocol, proto::TCP | proto::UDP) {
            return;
        }
        let at = target.backend.at;
        let listening = match facts.pod_at(at.ip()) {
            Some(pod) => (facts.listening)(pod, protocol, at),
            None if facts.has_flags(at.ip(), IdentFlags::LOCAL_NODE) => {
                (facts.host_listening)(protocol)
            }
            None if stopped => return,
            None => {
                let seen = self.handshake(target).map(Hop::Handshake);
                let hop = seen.or_else(|| self.unchecked(target).map(Hop::Unchecked));
                self.trace.hops.extend(hop);
                return;
            }
        };
        let found = match listening {
            Listening::On(sockets) => socket::accepting(&sockets, at),
            Listening::Asked(found) => found,
            Listening::Unknown(why) => Listener::Unknown(why),
        };
        self.push(Hop::Socket(Socket { pod: target.who(), at, found }));
    }

    /// How a target whose sockets cannot be asked here answered the source before.
    fn handshake(&self, target: &Target) -> Option<Handshake> {
        let at = target.backend.at;
        let is_tcp = self.facts.wanted.protocol == proto::TCP;
        let seen = self.facts.answers.iter().find(|seen| is_tcp && seen.at == at)?;
        Some(Handshake {
            who: target.who(),
            at,
            accepted: seen.accepted,
            ago: seen.ago,
            node: target.backend.node.clone(),
        })
    }

    /// What cannot be checked of a target that is not a Pod of this node.
    fn unchecked(&self, target: &Target) -> Option<Unchecked> {
        let dst = &self.facts.context.dst;
        let at = target.backend.at;
        match (target.backend.pod.is_some(), dst.kind) {
            (true, _) => Some(Unchecked::Pod(target.who(), at.port())),
            (false, EndKind::Node | EndKind::HostPod) => {
                Some(Unchecked::Node(dst.node.clone(), at.port()))
            }
            (false, EndKind::Outside) if target.through.is_none() => {
                Some(Unchecked::Network(at.ip()))
            }
            (false, _) => None,
        }
    }
}
