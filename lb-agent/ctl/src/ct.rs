//! `lbctl ct`: the flows of this node's Pods.
//!
//! A flow has up to four conntrack entries on a node: two at the client's veth (opening half and reply half, when it
//! is translated) and likewise at a server that runs here. A flow from outside to a Service has two: one by frontend
//! and client, one by who answers. They are shown as one line, from the client's side; `--all` shows every entry.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::SettingFlags;
use lb_common::conntrack::{self, CtEntry, CtFlags, CtKey, scope};
use lb_common::flow::{Flow, proto};
use lb_common::past::FlowPath;
use lb_common::service::{FrontendKey, state};
use serde::{Serialize, Serializer};

use crate::account::{CountedFlows, FlowTotals};
use crate::columns::{Cell, Column, MergeRule, Row, RowScope};
use crate::explain::facts::{Answered, Stale};
use crate::natural;
use crate::network::{protocol_name, socket};
use crate::past::PastTables;
use crate::snapshot::Now;
use crate::view::View;

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CtRow {
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// Who opened it: `pod:port` or `address:port`.
    pub src: String,
    /// What it dialled: `pod:port` or `address:port`.
    pub dst: String,
    /// Service port, `namespace/name:port` or `#id`; empty without translation.
    pub via: String,
    /// Where it went: `pod:port` or `address:port`; empty without translation.
    pub backend: String,
    /// `address:port` of this node that its backend sees instead of the client; empty when it sees the client.
    pub masquerade: String,
    /// Where its packets go: `stack`, or past it `peer`, `veth`, `bridge`, `back`, `hop`.
    pub path: &'static str,
    pub state: FlowState,
    /// Seconds since the last packet.
    pub idle: u64,
    /// Seconds until it is forgotten, if no packet comes.
    pub expires: u64,
    /// `address:port` of `src`.
    pub src_address: String,
    /// `address:port` of `dst`.
    pub dst_address: String,
    /// `address:port` of `backend`, empty without translation.
    pub backend_address: String,
    /// What is special about it: `external`, `hairpin`, `inbound`, `masqueraded`, `picked-up`, `port-mapped`, `reply`,
    /// `straight` (beside a flow through a Service on the same port), `to-host`.
    pub flags: Vec<&'static str>,
    /// What was counted of it; absent while flows are not counted.
    #[serde(flatten)]
    pub totals: Option<FlowTotals>,
}

impl Row for CtRow {
    const NOUN: &'static str = "flows";
    const COLUMNS: &'static [Column] = &[
        Column::new("PROTO"),
        Column::new("SRC"),
        Column::new("DST"),
        Column::new("VIA"),
        Column::new("BACKEND"),
        Column::new("MASQUERADE"),
        Column::new("PATH"),
        Column::new("STATE"),
        Column::new("IDLE"),
        Column::new("EXPIRES"),
        Column::wide("SRC-ADDRESS"),
        Column::wide("DST-ADDRESS"),
        Column::wide("BACKEND-ADDRESS"),
        Column::wide("FLAGS"),
        FlowTotals::PACKETS,
        FlowTotals::BYTES,
        FlowTotals::REPLY_PACKETS,
        FlowTotals::REPLY_BYTES,
    ];

    fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![
            Cell::Text(self.protocol.clone()),
            Cell::Text(self.src.clone()),
            Cell::Text(self.dst.clone()),
            Cell::Text(self.via.clone()),
            Cell::Text(self.backend.clone()),
            Cell::Text(self.masquerade.clone()),
            Cell::Text(self.path.to_owned()),
            Cell::Text(self.state.name().to_owned()),
            Cell::Age(self.idle),
            Cell::Age(self.expires),
            Cell::Text(self.src_address.clone()),
            Cell::Text(self.dst_address.clone()),
            Cell::Text(self.backend_address.clone()),
            Cell::list(&self.flags),
        ];
        cells.extend(FlowTotals::cells(self.totals.as_ref()));
        cells
    }

    fn name(&self) -> Option<String> {
        None
    }
}

/// State of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// No answer yet.
    New,
    /// Packets went both ways.
    Established,
    /// One end has closed it.
    Closing,
    /// Its backend was removed.
    Gone,
    /// It waits to be removed.
    Expired,
}

impl FlowState {
    /// The word in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Established => "ESTABLISHED",
            Self::Closing => "CLOSING",
            Self::Gone => "GONE",
            Self::Expired => "EXPIRED",
        }
    }
}

impl Serialize for FlowState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What `--count` counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CountBy {
    /// Service port.
    Service,
    Backend,
    /// Who opened the flow.
    Src,
    State,
    Protocol,
}

/// How many flows have something in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CountRow {
    /// What they have in common; empty when they have nothing there (no Service).
    pub key: String,
    /// How many there are.
    pub count: u64,
}

impl Row for CountRow {
    const NOUN: &'static str = "flows";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] =
        &[Column::new("BY"), Column::new("COUNT").merged(MergeRule::Sum)];

    fn cells(&self) -> Vec<Cell> {
        vec![Cell::Text(self.key.clone()), Cell::Number(self.count)]
    }

    fn name(&self) -> Option<String> {
        Some(self.key.clone())
    }
}

/// Counts `rows`, the most frequent first.
pub fn count(rows: &[CtRow], by: CountBy) -> Vec<CountRow> {
    let mut counts: HashMap<&str, u64> = HashMap::new();
    for row in rows {
        let key = match by {
            CountBy::Service => row.via.as_str(),
            CountBy::Backend => row.backend.as_str(),
            // Without the port, which is another one for each flow.
            CountBy::Src => row.src.rsplit_once(':').map_or(row.src.as_str(), |(host, _)| host),
            CountBy::State => row.state.name(),
            CountBy::Protocol => row.protocol.as_str(),
        };
        *counts.entry(key).or_default() += 1;
    }
    let mut counts: Vec<CountRow> =
        counts.into_iter().map(|(key, count)| CountRow { key: key.to_owned(), count }).collect();
    counts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| natural::compare(&a.key, &b.key)));
    counts
}

/// One line a flow; with `all` one an entry, dead ones included.
pub fn rows(view: &View<'_>, counted: &CountedFlows, now: Now, all: bool) -> Vec<CtRow> {
    let row = |key: &CtKey, entry: &CtEntry| CtRow {
        totals: counted.totals(key, entry),
        ..row(view, key, entry, now)
    };
    let entries = &counted.entries;
    let mut rows: Vec<CtRow> = if all {
        entries.iter().map(|(key, entry)| row(key, entry)).collect()
    } else {
        let rows = flows(entries, now).into_iter().map(|(key, entry)| row(key, &entry));
        rows.filter(|row| row.state != FlowState::Expired).collect()
    };
    rows.sort_by(|a, b| {
        natural::compare(&a.src, &b.src).then_with(|| natural::compare(&a.dst, &b.dst))
    });
    rows
}

/// Returns the open flows whose backend was removed, each pair of addresses once.
pub fn stale(view: &View<'_>, entries: &[(CtKey, CtEntry)], now: Now) -> Vec<Stale> {
    let flows = flows(entries, now).into_iter().filter(|(key, entry)| {
        entry.flags.contains(CtFlags::FORWARD) && state_of(view, key, entry, now) == FlowState::Gone
    });
    let stale = flows.map(|(key, entry)| {
        let [_, (addr, port)] = ends(key, &entry);
        let backend = socket(entry.nat_addr, entry.nat_port);
        Stale { dialed: socket(addr, port), backend }
    });
    stale.collect::<BTreeSet<Stale>>().into_iter().collect()
}

/// Addresses of flows that have no name yet, each once.
pub fn strangers(view: &View<'_>, entries: &[(CtKey, CtEntry)]) -> Vec<IpAddr> {
    let ends = |(key, entry): &(CtKey, CtEntry)| [key.local, key.remote, entry.nat_addr];
    let addrs: BTreeSet<IpAddr> = (entries.iter().flat_map(ends))
        .filter(|addr| *addr != Addr::NONE)
        .map(|addr| addr.to_ip())
        .filter(|ip| view.directory.pod_at(*ip).is_none())
        .collect();
    addrs.into_iter().collect()
}

/// Seconds for which the answer to a connection says something about the next one.
const ANSWERS: u64 = 60;

/// Returns how addresses answered TCP connections in the last minute, each once. One whose last answers differ within the second that the
/// stamps are exact to is left out.
pub fn answers(entries: &[(CtKey, CtEntry)], now: Now) -> Vec<Answered> {
    let mut found: HashMap<SocketAddr, (u64, BTreeSet<bool>)> = HashMap::new();
    for (key, entry) in flows(entries, now) {
        let accepted = (key.proto == proto::TCP).then(|| conntrack::is_accepted(entry.flags));
        let (Some(accepted), ago) = (accepted.flatten(), now.idle_secs(&entry)) else { continue };
        let [_, (addr, port)] = ends(key, &entry);
        let at = match entry.flags.contains(CtFlags::FORWARD) {
            true => socket(entry.nat_addr, entry.nat_port),
            false => socket(addr, port),
        };
        let (last, how) = found.entry(at).or_insert((u64::MAX, BTreeSet::new()));
        if ago < *last {
            (*last, *how) = (ago, BTreeSet::new());
        }
        if ago == *last {
            how.insert(accepted);
        }
    }
    let mut answers: Vec<Answered> = (found.into_iter())
        .filter_map(|(at, (ago, how))| {
            let accepted = how.first().copied().filter(|_| how.len() == 1)?;
            (ago <= ANSWERS).then_some(Answered { at, accepted, ago })
        })
        .collect();
    answers.sort();
    answers
}

/// One entry a flow: of two twins the client's, and the opening half with what the reply half has seen.
pub(crate) fn flows(entries: &[(CtKey, CtEntry)], now: Now) -> Vec<(&CtKey, CtEntry)> {
    let by_key: HashMap<&CtKey, &CtEntry> =
        entries.iter().map(|(key, entry)| (key, entry)).collect();
    let opened: HashSet<Flow> =
        entries.iter().filter_map(|(key, entry)| on_wire(key, entry)).collect();
    let is_first = |key: &CtKey, entry: &CtEntry| {
        let is_reply = entry.flags.contains(CtFlags::REPLY);
        let is_twin = entry.flags.contains(CtFlags::INBOUND) && opened.contains(&inbound(key));
        !is_reply && !is_twin
    };
    let whole = |key: &CtKey, entry: &CtEntry| {
        let is_opening = entry.flags.contains(CtFlags::FORWARD);
        let reply = conntrack::partner(key, entry).filter(|_| is_opening);
        let reply = reply.and_then(|key| by_key.get(&key).copied());
        reply.map_or(*entry, |reply| together(entry, reply, now))
    };
    let first = entries.iter().filter(|(key, entry)| is_first(key, entry));
    first.map(|(key, entry)| (key, whole(key, entry))).collect()
}

/// Source and destination as the source sees them.
pub(crate) fn ends(key: &CtKey, entry: &CtEntry) -> [(Addr, Be16); 2] {
    let local = (key.local, key.local_port);
    let remote = (key.remote, key.remote_port);
    let comes_in = entry.flags.contains(CtFlags::INBOUND) || is_external(key, entry);
    if comes_in { [remote, local] } else { [local, remote] }
}

/// The packet of an opening half as it leaves its Pod for the other side.
fn on_wire(key: &CtKey, entry: &CtEntry) -> Option<Flow> {
    if entry.flags.intersects(CtFlags::REPLY | CtFlags::INBOUND) || is_external(key, entry) {
        return None;
    }
    let (src, sport) = (key.local, key.local_port);
    let flow = Flow { src, dst: key.remote, sport, dport: key.remote_port, proto: key.proto };
    if !entry.flags.contains(CtFlags::FORWARD) {
        return Some(flow);
    }
    Some(Flow { dst: entry.nat_addr, dport: entry.nat_port, sport: entry.aux_port, ..flow })
}

/// The packet that opened a flow into a Pod.
fn inbound(key: &CtKey) -> Flow {
    Flow {
        src: key.remote,
        dst: key.local,
        sport: key.remote_port,
        dport: key.local_port,
        proto: key.proto,
    }
}

/// Whether the client is outside the cluster and came to a frontend.
fn is_external(key: &CtKey, entry: &CtEntry) -> bool {
    matches!(key.scope, scope::EXTERNAL | scope::EXTERNAL_REPLY)
        || entry.flags.contains(CtFlags::EXTERNAL)
}

/// The opening half with what the reply half has seen: each half sees one direction only, and they live and die
/// together.
fn together(entry: &CtEntry, reply: &CtEntry, now: Now) -> CtEntry {
    let flags = conntrack::together(entry.flags, reply.flags);
    let last = if now.idle_secs(reply) < now.idle_secs(entry) { reply } else { entry };
    CtEntry { flags, last_seen: last.last_seen, ..*entry }
}

fn row(view: &View<'_>, key: &CtKey, entry: &CtEntry, now: Now) -> CtRow {
    let [src, dst] = ends(key, entry);
    let masquerade = (entry.flags.contains(CtFlags::MASQUERADED)
        && entry.flags.contains(CtFlags::FORWARD))
    .then_some((entry.aux_addr, entry.aux_port));
    let backend =
        (entry.flags.contains(CtFlags::FORWARD)).then_some((entry.nat_addr, entry.nat_port));
    let idle = now.idle_secs(entry);
    let timeout = u64::from(conntrack::timeout_secs(key.proto, entry.flags));
    let host = |(addr, port): (Addr, Be16)| view.directory.host(addr.to_ip(), port.get());
    let address = |(addr, port)| socket(addr, port).to_string();
    CtRow {
        protocol: protocol_name(key.proto),
        src: host(src),
        dst: host(dst),
        via: service_id(view, key, entry)
            .map(|id| view.directory.service_port(id))
            .unwrap_or_default(),
        backend: backend.map(host).unwrap_or_default(),
        masquerade: masquerade.map(address).unwrap_or_default(),
        path: path(view, entry).name(),
        state: state_of(view, key, entry, now),
        idle,
        expires: timeout.saturating_sub(idle),
        src_address: address(src),
        dst_address: address(dst),
        backend_address: backend.map(address).unwrap_or_default(),
        flags: words(key, entry),
        totals: None,
    }
}

/// Where the packets of the entry go.
fn path(view: &View<'_>, entry: &CtEntry) -> FlowPath {
    let PastTables { settings, ends } = &view.snapshot.past;
    let owner = |addr| {
        let mut pods = view.snapshot.pods.values();
        let pod = pods.find(|pod| pod.ip4 == addr || pod.ip6 == addr)?;
        ends.get(&pod.id).copied().filter(|_| settings.contains(SettingFlags::HOP_PAST))
    };
    FlowPath::of(entry, |id| ends.get(&id).copied(), owner)
}

/// The service port of a translated flow: the frontend's, or once that is gone the backend's.
pub(crate) fn service_id(view: &View<'_>, key: &CtKey, entry: &CtEntry) -> Option<u32> {
    if entry.backend_id == 0 {
        return None;
    }
    let (addr, port) = match (entry.flags.contains(CtFlags::REPLY), key.scope) {
        (true, _) => (entry.nat_addr, entry.nat_port),
        (false, scope::EXTERNAL) => (key.local, key.local_port),
        (false, _) => (key.remote, key.remote_port),
    };
    let frontend = FrontendKey::new(addr, port, key.proto);
    view.service_at(&frontend).or_else(|| view.service_of(entry.backend_id))
}

fn state_of(view: &View<'_>, key: &CtKey, entry: &CtEntry, now: Now) -> FlowState {
    let flags = entry.flags;
    let is_gone = || {
        let backend = view.snapshot.backends.get(&entry.backend_id);
        backend.is_none_or(|b| b.state == state::DEAD || b.generation != entry.backend_gen)
    };
    match key.proto {
        _ if now.is_expired(key, entry) => FlowState::Expired,
        _ if entry.backend_id != 0 && is_gone() => FlowState::Gone,
        proto::TCP if conntrack::is_closing(flags) => FlowState::Closing,
        proto if is_answered(proto, flags) => FlowState::Established,
        _ => FlowState::New,
    }
}

/// Whether the flow was answered, also by a refusal: nothing on its way drops its packets.
pub fn is_answered(proto: u8, flags: CtFlags) -> bool {
    match proto {
        proto::TCP => conntrack::is_closing(flags) || conntrack::is_established(flags),
        _ => flags.contains(CtFlags::SEEN_IN | CtFlags::SEEN_OUT),
    }
}

fn words(key: &CtKey, entry: &CtEntry) -> Vec<&'static str> {
    let external = is_external(key, entry).then_some("external");
    let straight = (key.scope == scope::STRAIGHT).then_some("straight");
    external.into_iter().chain(entry.flags.names()).chain(straight).collect()
}
