//! The lines of `lbctl status` that only the agent knows.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use lb_common::config::SettingFlags;
use lb_common::flow::proto;
use lb_common::hop::HopReason;
use lb_common::past::StackReason;

use lb_core::cluster::{Cluster, Kind};
use lb_core::model::rules::ExternalIps;
use lb_core::names::{State, StatusPart, Subsystem};
use lb_kernel::bpf::attach::Mechanism;
use lb_kernel::bpf::gc::Pass;
use lb_kernel::foreign::{self, Sign};
use lb_kernel::host_ports::Ports;

/// What the lines are made from.
pub(super) struct ReportFacts<'a> {
    /// What we were told.
    pub cluster: &'a Cluster,
    /// `kubernetes` or `manifests`.
    pub source: &'a str,
    /// Kinds that the API server refuses, and what it says.
    pub refused: Vec<(Kind, String)>,
    /// How devices are attached to.
    pub mechanism: Option<Mechanism>,
    /// Whether packets of flows are to be counted.
    pub counts_flows: bool,
    /// Pods' devices: all, and those with both programs.
    pub pods: (usize, usize),
    /// The other devices: all that are attached to, and those with their programs.
    pub uplinks: (usize, usize),
    /// UDP ports of this node's tunnels.
    pub tunnel_ports: &'a [u16],
    /// Why a device has none.
    pub attach_error: Option<String>,
    /// Services: all, and those that are not programmed completely.
    pub services: (usize, usize),
    /// Policies: all, and those that are not enforced as they are written; `None` before the first compilation.
    pub policies: Option<(usize, usize)>,
    /// Groups of rules that deny everything for want of room.
    pub overflowing: usize,
    /// Whether policies are enforced without Pods that they need.
    pub lacks_pods: bool,
    /// Whether the first plan was applied.
    pub planned: bool,
    /// Which flows go past the IP stack.
    pub past: PastFacts<'a>,
    /// What is here of kube-proxy.
    pub kube_proxy: &'a [Sign],
    /// Why its rules could not be removed.
    pub not_taken_over: Option<&'a str>,
    /// Which externalIPs are served.
    pub external_ips: ExternalIps,
    /// `uname -r`.
    pub kernel: &'a str,
    /// What does not work under it.
    pub weakness: Option<&'a str>,
    /// Conntrack entries after the last pass.
    pub ct_entries: Option<u64>,
    /// Pods with more than their share of conntrack at it, and how many entries that took from them.
    pub greedy: (u64, u64),
    /// New flows beyond the budgets of Pods between the last two passes.
    pub over_budget: u64,
    /// `--masquerade-ports`.
    pub masquerade_ports: &'a Ports,
    /// The last expiry pass.
    pub pass: Option<&'a Pass>,
    /// Settings in the mounted ConfigMap that are not in force; `None` where none is mounted.
    pub settings: Option<String>,
    /// Elements of the maps that differ from what was written.
    pub drifted: u64,
    /// Copies of entries of translated connections after it, and how many there is room for.
    pub copies: (u64, u64),
}

/// What the line about flows past the IP stack is made from.
#[derive(Clone, Debug, Default)]
pub(super) struct PastFacts<'a> {
    /// What the settings say.
    pub settings: SettingFlags,
    /// The firewall rule that is the reason, if one is.
    pub host_rule: &'a str,
    /// The rule because of which flows to and from Pods of other nodes go through it, if one is.
    pub hop_rule: &'a str,
    /// Pods of this node.
    pub pods: usize,
    /// Pods by the first reason why their flows go through the IP stack.
    pub by_reason: BTreeMap<StackReason, usize>,
    /// Devices by which flows to and from Pods of other nodes may go past it.
    pub hops: Vec<&'a str>,
}

/// The lines, in the order to be shown.
pub(super) fn lines<'a>(facts: &ReportFacts<'_>) -> Vec<Subsystem<'a>> {
    let mut lines = vec![
        api(facts),
        programs(facts),
        tunnels(facts),
        services(facts),
        policies(facts),
        line(StatusPart::ExternalIps, State::Ok, facts.external_ips.to_string()),
        conntrack(facts),
        masquerade(facts),
        past_stack(facts),
        kube_proxy(facts),
        kernel(facts),
    ];
    // A change that waits for a restart is nothing that is wrong with the node.
    lines
        .extend(facts.settings.clone().map(|detail| line(StatusPart::Settings, State::Ok, detail)));
    lines.extend(audit(facts));
    lines
}

/// Only where something is wrong: what else changes maps is rare.
fn audit<'a>(facts: &ReportFacts<'_>) -> Option<Subsystem<'a>> {
    let n = facts.drifted;
    let detail = format!(
        "{n} elements of maps differ from what was written: see `lbctl diff`, and repair them by `lbctl diff --repair`"
    );
    (n > 0).then(|| line(StatusPart::Audit, State::Degraded, detail))
}

fn line<'a>(part: StatusPart, state: State, detail: impl Into<Cow<'a, str>>) -> Subsystem<'a> {
    Subsystem { name: Cow::Borrowed(part.name()), state, detail: detail.into() }
}

fn api<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let missing: Vec<&str> = Kind::ALL
        .into_iter()
        .filter(|kind| !facts.cluster.is_synced(*kind))
        .map(Kind::name)
        .collect();
    if let Some((kind, why)) = facts.refused.first() {
        let others = match facts.refused.len() {
            1 => String::new(),
            n => format!(" and {} other kinds", n - 1),
        };
        let detail = format!(
            "{}: the API server refuses {}{others}: {why}: apply the ClusterRole of this version",
            facts.source,
            kind.name(),
        );
        return line(StatusPart::Api, State::Degraded, detail);
    }
    if missing.is_empty() {
        return line(StatusPart::Api, State::Ok, format!("{}: all lists complete", facts.source));
    }
    let detail = format!("{}: waiting for the lists of {}", facts.source, missing.join(", "));
    line(StatusPart::Api, State::Waiting, detail)
}

fn programs<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let (all, attached) = facts.pods;
    let how = facts.mechanism.map_or("", Mechanism::name);
    let by = if how.is_empty() { "" } else { " by " };
    let (n_uplinks, uplinks) = facts.uplinks;
    let detail = format!(
        "sockets by cgroup; {attached} of {all} Pods and {uplinks} of {n_uplinks} other devices{by}{how}"
    );
    if facts.counts_flows && facts.mechanism == Some(Mechanism::Clsact) {
        let why = "flow-accounting is on and requires TCX (Linux 6.6): packets are not counted";
        return line(StatusPart::Programs, State::Degraded, format!("{detail}; {why}"));
    }
    match &facts.attach_error {
        Some(error) => line(StatusPart::Programs, State::Degraded, format!("{detail}; {error}")),
        None if attached < all || uplinks < n_uplinks => {
            line(StatusPart::Programs, State::Waiting, detail)
        }
        None => line(StatusPart::Programs, State::Ok, detail),
    }
}

fn tunnels<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let ports: Vec<String> = facts.tunnel_ports.iter().map(u16::to_string).collect();
    let detail = match ports.len() {
        0 => "no UDP tunnel ports on this node".to_owned(),
        _ => format!(
            "UDP ports {}: packets from Pods to these ports of nodes are dropped",
            ports.join(", ")
        ),
    };
    line(StatusPart::Tunnels, State::Ok, detail)
}

fn services<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let (all, incomplete) = facts.services;
    if !facts.planned {
        return line(
            StatusPart::Services,
            State::Waiting,
            "using the maps as found until all lists are complete",
        );
    }
    let detail = format!("{} of {all} programmed", all.saturating_sub(incomplete));
    line(StatusPart::Services, if incomplete == 0 { State::Ok } else { State::Degraded }, detail)
}

fn policies<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let Some((all, incomplete)) = facts.policies else {
        return line(
            StatusPart::Policies,
            State::Waiting,
            "using the maps as found until they are compiled",
        );
    };
    let mut detail = format!("{} of {all} enforced", all.saturating_sub(incomplete));
    if facts.lacks_pods {
        detail += ", without the Pods of other nodes, which could not be listed: a peer that is not known is not allowed";
    }
    if facts.overflowing > 0 {
        detail += &format!(
            "; {} groups of rules have no room and deny everything: use fewer or broader rules",
            facts.overflowing
        );
    }
    // A mistake in a policy is an issue of that object, and the node does what it says.
    let is_ok = !facts.lacks_pods && facts.overflowing == 0;
    line(StatusPart::Policies, if is_ok { State::Ok } else { State::Degraded }, detail)
}

fn conntrack<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    match facts.ct_entries {
        // The kernel evicts some time before the last element is taken.
        Some(_) if facts.copies.0 * 20 >= facts.copies.1 * 19 => line(
            StatusPart::Conntrack,
            State::Degraded,
            format!(
                "{} of {} entries for translated connections are in use, new connections evict old ones: raise --ct-entries",
                facts.copies.0, facts.copies.1
            ),
        ),
        Some(n) if facts.greedy.0 > 0 => line(
            StatusPart::Conntrack,
            State::Degraded,
            format!(
                "{n} entries; {} Pods exceeded a quarter of the table, {} of their entries were removed: see \
                 `lbctl ct --pod` and lower --pod-new-flows",
                facts.greedy.0, facts.greedy.1
            ),
        ),
        Some(n) if facts.over_budget > 0 => line(
            StatusPart::Conntrack,
            State::Ok,
            format!(
                "{n} entries after the last expiry; {} recent new flows exceeded the budget of their Pod \
                 (--pod-new-flows)",
                facts.over_budget
            ),
        ),
        Some(n) => {
            line(StatusPart::Conntrack, State::Ok, format!("{n} entries after the last expiry"))
        }
        None => line(StatusPart::Conntrack, State::Waiting, "no expiry pass yet"),
    }
}

/// Three quarters of the ports held mean that each try of a new flow finds one in use three times out of four.
fn masquerade<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let ports = facts.masquerade_ports;
    let Some(pass) = facts.pass else {
        return line(StatusPart::Masquerade, State::Waiting, "no expiry pass yet");
    };
    let range = format!("{} source ports ({}-{})", ports.len(), ports.start(), ports.end());
    let Some(fullest) = pass.fullest else {
        return line(StatusPart::Masquerade, State::Ok, format!("none of {range} in use"));
    };
    let protocol = match fullest.protocol {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "other",
    };
    let held = format!("{} of {range} in use with {}/{protocol}", fullest.held, fullest.backend);
    let cure = "widen --masquerade-ports, or spread the clients over more nodes";
    if pass.portless > 0 {
        let detail = format!(
            "{held}; {} recent packets of new flows found no free port: {cure}",
            pass.portless
        );
        return line(StatusPart::Masquerade, State::Degraded, detail);
    }
    if fullest.held * 4 > ports.len() as u64 * 3 {
        return line(StatusPart::Masquerade, State::Degraded, format!("{held}: {cure}"));
    }
    line(StatusPart::Masquerade, State::Ok, held)
}

/// Flows that go through the IP stack arrive, too, so this is never degraded.
fn past_stack<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let PastFacts { settings, host_rule, hop_rule: _, pods, by_reason, hops: _ } = &facts.past;
    let mut detail = if let Some(first) = StackReason::among(settings.bits()).next() {
        let why =
            because(first.name(), host_rule, settings.contains(SettingFlags::KNOWN_PAST_ONLY));
        format!("flows between Pods of this node go through its IP stack: {why}")
    } else {
        let through: usize = by_reason.values().sum();
        let past = pods.saturating_sub(through);
        let others = by_reason.iter().map(|(reason, n)| format!("{} {n}", reason.name()));
        let others = others.collect::<Vec<_>>().join(", ");
        let colon = if others.is_empty() { "" } else { "; others: " };
        format!(
            "flows between {past} of {pods} Pods of this node go past its IP stack and netfilter{colon}{others}"
        )
    };
    detail += &past_stack_across(&facts.past);
    line(StatusPart::PastStack, State::Ok, detail)
}

/// What it says about flows to and from Pods of other nodes.
fn past_stack_across(facts: &PastFacts<'_>) -> String {
    let PastFacts { settings, hop_rule, hops, .. } = facts;
    if let Some(first) = HopReason::among(settings.bits()).next() {
        let rule = if first == HopReason::RulesUnread { "" } else { *hop_rule };
        let is_kept =
            first != HopReason::RulesUnread && settings.contains(SettingFlags::KNOWN_HOP_ONLY);
        return format!(
            "; those to other nodes through it: {}",
            because(first.name(), rule, is_kept)
        );
    }
    match hops[..] {
        _ if !settings.contains(SettingFlags::HOP_PAST) => String::new(),
        [] => "; no device for flows to other nodes".to_owned(),
        _ => format!("; flows to other nodes by {}", hops.join(", ")),
    }
}

fn because(reason: &str, rule: &str, is_kept: bool) -> String {
    let colon = if rule.is_empty() { "" } else { ": " };
    let kept = match is_kept {
        true => "; older flows stay past it, since nf_conntrack_tcp_loose is 0",
        false => "",
    };
    format!("{reason}{colon}{rule}{kept}")
}

fn kube_proxy<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    let signs = facts.kube_proxy;
    if signs.is_empty() {
        return line(StatusPart::KubeProxy, State::Ok, "not detected");
    }
    let advice = match (signs.iter().any(Sign::is_alive), facts.not_taken_over) {
        (true, _) => {
            "delete its DaemonSet and ConfigMap, then its rules (`lb-agent takeover`)".to_owned()
        }
        (false, None) => "remove its rules (`lb-agent takeover`)".to_owned(),
        (false, Some(err)) => format!("its rules cannot be removed: {err}"),
    };
    line(StatusPart::KubeProxy, State::Degraded, format!("{}: {advice}", foreign::words(signs)))
}

fn kernel<'a>(facts: &ReportFacts<'_>) -> Subsystem<'a> {
    match facts.weakness {
        None => line(StatusPart::Kernel, State::Ok, facts.kernel.to_owned()),
        Some(weakness) => {
            line(StatusPart::Kernel, State::Degraded, format!("{}: {weakness}", facts.kernel))
        }
    }
}
