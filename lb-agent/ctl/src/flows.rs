//! `lbctl flows`: recently denied flows, what policies in shadow mode would do, and, while flows are followed, allowed
//! ones. One flow, one line.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use jiff::Timestamp;
use lb_common::event::outcome;
use lb_common::policy::Judgement;
use lb_common::verdict::DropReason;
use serde::{Deserialize, Serialize};

use crate::attribution::{DecidedBy, PolicyId, RuleAt, RuleId};
use crate::columns::{Cell, Column, Row, RowTable, age};
use crate::explain::args;
use crate::network::protocol_name;
use lb_core::admin::context::Party;
use lb_core::admin::workload::{self, WorkloadKind};
use lb_core::admin::{Covers, FlowOwner, FlowRecord};
use lb_core::cluster::Name;

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FlowVerdict {
    /// Not delivered.
    Dropped,
    /// Allowed; reported only while a client follows allowed flows.
    Allowed,
    /// Allowed, but policies in shadow mode would deny it.
    WouldDeny,
    /// Denied, but with the policies in shadow mode it would not be.
    WouldAllow,
}

impl FlowVerdict {
    /// What happened to this flow.
    pub const fn of(record: &FlowRecord) -> Self {
        match record.outcome {
            outcome::WOULD_DENY => Self::WouldDeny,
            outcome::WOULD_ALLOW => Self::WouldAllow,
            outcome::ALLOWED => Self::Allowed,
            _ => Self::Dropped,
        }
    }

    /// Whether `self` is asked for and `other` is an answer: what would be judged otherwise was still judged.
    fn covers(self, other: Self) -> bool {
        self == other
            || matches!(
                (self, other),
                (Self::Dropped, Self::WouldAllow) | (Self::Allowed, Self::WouldDeny)
            )
    }

    /// The word in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Allowed => "allowed",
            Self::WouldDeny => "would-deny",
            Self::WouldAllow => "would-allow",
        }
    }
}

/// Flows of the past that `--follow` begins with.
pub const BEFORE: usize = 10;

/// Which flows.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FlowFilter {
    /// Only flows of this Pod (NAMESPACE/NAME) or workload (deploy/NAME), as source or destination
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,
    /// Only flows from this Pod (NAMESPACE/NAME), workload (deploy/NAME), node (node/NAME) or address
    #[arg(long, value_name = "PEER")]
    pub from: Option<String>,
    /// Only flows to this Pod (NAMESPACE/NAME), workload (deploy/NAME), Service (svc:NAMESPACE/NAME), node (node/NAME) or address
    #[arg(long, value_name = "PEER")]
    pub to: Option<String>,
    /// Only flows whose source or destination is a Pod of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only flows to this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only flows with these verdicts; `allowed` requires -f [default: all except allowed]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VERDICT")]
    pub verdict: Vec<FlowVerdict>,
    /// Only flows dropped for these reasons, named as in `lbctl drops`
    #[arg(long, value_delimiter = ',', value_name = "REASON")]
    pub reason: Vec<String>,
    /// Only flows that this policy decided (NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy)
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<String>,
}

impl FlowFilter {
    /// Whether the programs are to report allowed flows for it.
    pub fn allowed(&self) -> bool {
        self.verdict.contains(&FlowVerdict::Allowed)
    }

    /// What to say to a client that asks for allowed flows, and does not follow.
    pub fn needs_follow(&self, follows: bool) -> Option<&'static str> {
        (self.allowed() && !follows).then_some(
            "allowed flows are only recorded while a client follows them: add -f, or --by pair for those of now",
        )
    }

    /// Whether flows are left out.
    pub fn is_limited(&self) -> bool {
        let names = [&self.pod, &self.from, &self.to, &self.namespace, &self.policy];
        let has_words = !self.verdict.is_empty() || !self.reason.is_empty();
        names.iter().any(|name| name.is_some()) || self.port.is_some() || has_words
    }

    /// Names as they stand in rows, so that they compare equal: `web` is `default/web`.
    ///
    /// # Errors
    /// When an end or a drop reason is unreadable.
    pub fn complete(mut self) -> anyhow::Result<Self> {
        let namespace = self.namespace.clone();
        let end = |option: &str, text: &Option<String>| -> anyhow::Result<Option<String>> {
            let Some(text) = text else { return Ok(None) };
            let party = args::party(text, namespace.as_deref());
            match party.with_context(|| option.to_owned())? {
                Party::Service(name) if option != "--to" => {
                    anyhow::bail!(
                        "{option} {text}: flows have Pods at their ends: use --to for a Service, or name a Pod of {name}"
                    )
                }
                Party::World => anyhow::bail!("{option} {text}: name an address"),
                party => Ok(Some(party.to_string())),
            }
        };
        (self.pod, self.from, self.to) =
            (end("--pod", &self.pod)?, end("--from", &self.from)?, end("--to", &self.to)?);
        for reason in &mut self.reason {
            reason.make_ascii_uppercase();
            *reason = reason.replace('-', "_");
            if !DropReason::ALL.iter().any(|known| known.name() == reason) {
                anyhow::bail!("--reason {reason}: no such reason, see `lbctl drops --all`");
            }
        }
        Ok(self)
    }

    /// Whether flows between these ends, each an address and its owner, are wanted.
    pub fn takes_pair(
        &self,
        ends: [&(IpAddr, String); 2],
        (port, via): (u16, &str),
        verdict: FlowVerdict,
    ) -> bool {
        let is = |(ip, name): &(IpAddr, String), who: &Option<String>| {
            who.as_ref().is_none_or(|who| is_end(*ip, name, who))
        };
        let is_through = |who: &Option<String>| {
            let service = who.as_deref().and_then(|who| who.strip_prefix(SERVICE));
            service.is_some_and(|service| via.rsplit_once(':').is_some_and(|(of, _)| of == service))
        };
        let in_namespace = |(_, name): &(IpAddr, String)| {
            let namespace = self.namespace.as_deref();
            name.split_once('/').is_some_and(|(ns, _)| Some(ns) == namespace)
        };
        let [src, dst] = ends;
        is(src, &self.from)
            && (is(dst, &self.to) || is_through(&self.to))
            && ends.iter().any(|end| is(end, &self.pod))
            && (self.namespace.is_none() || ends.iter().any(|end| in_namespace(end)))
            && self.port.is_none_or(|wanted| wanted == port)
            && (self.verdict.is_empty() || self.verdict.iter().any(|it| it.covers(verdict)))
    }

    /// Whether the flow is wanted.
    pub fn takes(&self, row: &FlowRow) -> bool {
        let end = |end: &End| (end.address.ip(), end.name.clone());
        let ends = [&end(&row.src), &end(&row.dst)];
        self.takes_pair(ends, (row.dst.address.port(), &row.via), row.outcome)
            && (self.reason.is_empty() || self.reason.iter().any(|reason| reason == row.reason))
            && self.policy.as_ref().is_none_or(|policy| {
                row.by.policies.contains(&PolicyId::Named(Name::parse(policy)))
            })
    }
}

/// Before the name of a Service, as [`Party`] writes it.
const SERVICE: &str = "svc:";

/// Whether an end is the one that was named: a Pod by its name or that of its workload, a node, an address.
fn is_end(ip: IpAddr, name: &str, who: &str) -> bool {
    if name == who || ip.to_string() == who {
        return true;
    }
    let Some((namespace, pod)) = name.split_once('/') else { return false };
    match who.split('/').collect::<Vec<_>>().as_slice() {
        [kind, own, name] => {
            *own == namespace && WorkloadKind::parse(kind).is_some_and(|it| it.has_pod(name, pod))
        }
        // As `--by pair` names the ends.
        [own, name] => *own == namespace && workload::of_pod(pod) == *name,
        _ => false,
    }
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Address and port.
    pub address: SocketAddr,
    /// `namespace/name` of the Pod that had the address then, `node/name`, or empty.
    pub name: String,
    /// `metadata.uid` of the Pod, or empty.
    pub uid: String,
}

impl End {
    fn word(&self) -> String {
        match self.name.as_str() {
            "" => self.address.to_string(),
            name => format!("{name}:{}", self.address.port()),
        }
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// When, UTC.
    pub time: String,
    /// What happened to it.
    pub verdict: &'static str,
    #[serde(skip)]
    outcome: FlowVerdict,
    /// Direction, as the Pod sees it whose policies or programs decided: `egress` or `ingress`.
    pub direction: &'static str,
    /// Where it comes from.
    pub src: End,
    /// Where it goes.
    pub dst: End,
    /// `namespace/name:port` of the Service, or empty.
    pub via: String,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// Why it was dropped, or empty.
    pub reason: &'static str,
    /// Whose policies decided, and which rule.
    pub by: DecidedBy,
    /// Identity of the peer, as the policies see it.
    pub ident: u32,
    /// ifindex of the Pod's device.
    pub ifindex: u32,
    /// Packets of this reason that the sampling left out before it.
    pub suppressed: u32,
}

impl FlowRow {
    /// Names of the fields in JSON.
    pub const FIELDS: [&'static str; 12] = [
        "time",
        "verdict",
        "direction",
        "src",
        "dst",
        "via",
        "protocol",
        "reason",
        "by",
        "ident",
        "ifindex",
        "suppressed",
    ];
}

impl Row for FlowRow {
    const NOUN: &'static str = "flows";
    const COLUMNS: &'static [Column] = &[
        Column::new("TIME"),
        Column::new("VERDICT"),
        Column::wide("DIRECTION"),
        Column::new("SRC"),
        Column::new("DST"),
        Column::new("VIA"),
        Column::new("PROTO"),
        Column::new("REASON"),
        Column::new("BY"),
        Column::wide("SRC-ADDRESS"),
        Column::wide("DST-ADDRESS"),
        Column::wide("IFINDEX"),
        Column::wide("IDENTITY"),
        Column::wide("SRC-UID"),
        Column::wide("DST-UID"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let text = |text: &str| Cell::Text(text.to_owned());
        // The day is of no use among the last few thousand flows.
        let clock = self.time.split_once('T').map_or(&*self.time, |(_, clock)| clock);
        vec![
            text(clock.trim_end_matches('Z')),
            text(self.verdict),
            text(self.direction),
            Cell::Text(self.src.word()),
            Cell::Text(self.dst.word()),
            text(&self.via),
            text(&self.protocol),
            text(self.reason),
            Cell::Text(self.by.to_string()),
            Cell::Text(self.src.address.to_string()),
            Cell::Text(self.dst.address.to_string()),
            Cell::Number(self.ifindex.into()),
            Cell::Number(self.ident.into()),
            text(&self.src.uid),
            text(&self.dst.uid),
        ]
    }

    fn name(&self) -> Option<String> {
        None
    }
}

/// The row of a flow: what it was called then.
pub fn row(record: &FlowRecord) -> FlowRow {
    let end = |address: SocketAddr, owner: &FlowOwner| End {
        address,
        name: owner.to_string(),
        uid: owner.uid(),
    };
    let verdict = FlowVerdict::of(record);
    FlowRow {
        time: utc(record.at_ms),
        verdict: verdict.name(),
        outcome: verdict,
        direction: if record.ingress { "ingress" } else { "egress" },
        src: end(record.src, &record.src_owner),
        dst: end(record.dst, &record.dst_owner),
        via: record.via.to_string(),
        protocol: protocol_name(record.protocol),
        reason: DropReason::from_number(record.reason).map_or("", DropReason::name),
        by: by(record),
        ident: record.ident,
        ifindex: record.ifindex,
        suppressed: record.suppressed,
    }
}

/// Who decided; numbers where the agent did not know the names.
fn by(record: &FlowRecord) -> DecidedBy {
    let judgement = Judgement::from_number(record.judgement);
    match &record.decision {
        Some(decision) => DecidedBy {
            policies: decision.policies.iter().cloned().map(PolicyId::Named).collect(),
            rule: decision.rule.map(|(direction, index, others)| {
                RuleId::Written(RuleAt { direction, index, others })
            }),
        },
        None if record.group == 0 => DecidedBy::default(),
        None if judgement.rule().is_none() && !judgement.denied() => DecidedBy::default(),
        None => DecidedBy {
            policies: vec![PolicyId::InGroup(record.group)],
            rule: judgement.rule().map(RuleId::Number),
        },
    }
}

/// What the list covers, one line; `shown` is how many of the records are, if some are left out.
pub fn header(covers: &Covers, lost: Option<u64>, shown: Option<usize>) -> String {
    let Covers { since_ms, now_ms, flows, forgotten, suppressed } = covers;
    let time = age(now_ms.saturating_sub(*since_ms) / 1000);
    let of = shown.map(|shown| format!("{shown} of ")).unwrap_or_default();
    let noun = if *flows == 1 { "record" } else { "records" };
    let mut line = format!("{of}{flows} {noun} of the last {time}");
    if *forgotten > 0 {
        line.push_str(&format!(", {forgotten} older ones evicted"));
    }
    line.push_str(&format!("; {suppressed} packets suppressed by sampling"));
    match lost {
        Some(lost) => {
            line.push_str(&format!(", {lost} lost in the ring buffer since the maps were created"))
        }
        None => line.push_str(", lost count unavailable"),
    }
    line
}

/// A line of `flows -o rows`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowLine {
    /// What the flows that follow are taken from.
    Header(FlowsHeader),
    /// Flows.
    Rows(RowTable),
    /// What follows happens now.
    Now,
}

/// What flows are taken from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowsHeader {
    /// What the agent kept.
    pub covers: Covers,
    /// Events lost in the ring buffer; `None` = not known.
    pub lost: Option<u64>,
}

impl FlowsHeader {
    /// The same of two nodes: the time is that which both cover. A node that has evicted no record has all since its agent began.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (a, b) = (&self.covers, &other.covers);
        let [limit_a, limit_b] =
            [a, b].map(|covers| (covers.forgotten > 0).then_some(covers.since_ms));
        let since_ms = limit_a.max(limit_b).unwrap_or_else(|| a.since_ms.min(b.since_ms));
        Self {
            covers: Covers {
                since_ms,
                now_ms: a.now_ms.max(b.now_ms),
                flows: a.flows + b.flows,
                forgotten: a.forgotten + b.forgotten,
                suppressed: a.suppressed + b.suppressed,
            },
            lost: self.lost.zip(other.lost).map(|(a, b)| a + b),
        }
    }
}

/// `2026-11-21T20:48:15.123Z`.
pub fn utc(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", time.unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_core::admin::Covers;

    use super::{FlowFilter, FlowVerdict, FlowsHeader, utc};

    #[test]
    fn ends_are_pods_workloads_services_nodes_and_addresses() {
        let end = |ip: &str, name: &str| (ip.parse::<IpAddr>().unwrap(), name.to_owned());
        let cart = end("10.1.0.2", "shop/cart-7d4b9c6f5d-x2x7k");
        let ledger = end("10.1.0.3", "pay/ledger-0");
        let takes = |wanted: FlowFilter| {
            let wanted = wanted.complete().unwrap();
            wanted.takes_pair([&cart, &ledger], (8080, "pay/money:http"), FlowVerdict::Allowed)
        };
        let to = |text: &str| FlowFilter { to: Some(text.to_owned()), ..FlowFilter::default() };
        for text in ["pay/ledger-0", "sts/pay/ledger", "pay/ledger", "10.1.0.3", "svc:pay/money"] {
            assert!(takes(to(text)), "{text}");
        }
        for text in ["ledger-0", "deploy/pay/ledger", "pay/led", "10.1.0.2", "svc:pay/ledger"] {
            assert!(!takes(to(text)), "{text}");
        }
        let from = |text: &str| FlowFilter { from: Some(text.to_owned()), ..FlowFilter::default() };
        let in_shop = FlowFilter { namespace: Some("shop".to_owned()), ..from("deploy/cart") };
        assert!(takes(from("shop/cart")) && takes(in_shop) && !takes(from("deploy/cart")));
        for wrong in [from("svc:pay/money"), to("world"), to("a/b/c/d")] {
            let error = wrong.complete().unwrap_err();
            assert!(format!("{error:#}").starts_with("--"), "{error:#}");
        }
    }

    #[test]
    fn the_records_of_nodes_are_complete_since_the_last_one_that_evicted_some() {
        let header = |since_ms, forgotten| FlowsHeader {
            covers: Covers { since_ms, now_ms: 100_000, flows: 3, forgotten, suppressed: 0 },
            lost: Some(0),
        };
        let since = |headers: &[FlowsHeader]| {
            let whole = headers.iter().cloned().reduce(|a, b| a.and(&b)).unwrap();
            whole.covers.since_ms
        };
        // The second one has none at all.
        assert_eq!(since(&[header(40_000, 0), header(100_000, 0)]), 40_000);
        assert_eq!(since(&[header(40_000, 0), header(70_000, 5), header(60_000, 1)]), 70_000);
    }

    #[test]
    fn times_are_utc() {
        for (ms, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_294_095_123, "2026-11-21T20:48:15.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(ms), want);
        }
    }
}
