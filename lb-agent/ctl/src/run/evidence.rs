//! What was seen of flows on this node: conntrack, which has every live flow, and the agent's sample of those that were denied.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_common::addr::Addr;
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::flow::proto;

use crate::FlowsArgs;
use crate::account::CountedFlows;
use crate::admin::{self, Client};
use crate::columns::{self, Format, Row as _};
use crate::network;
use crate::pairs::{self, LivePair, PairBy, PairFacts, PairRow};
use crate::pinned::Pinned;
use crate::run::{TablePaths, remark, unix_now};
use crate::snapshot::{CtFilter, Now, SnapshotExtent, TableSnapshot};
use crate::view::View;
use lb_core::admin::what_if::SeenFlow;
use lb_core::admin::{Covers, FlowRecord, FlowsWanted, Response};

/// Time between two looks at conntrack: short beside a request and its answer in a connection of their own.
const PAUSE: Duration = Duration::from_millis(5);
/// Addresses of one request.
const ADDRESSES: usize = 4096;

/// What was seen.
pub(super) struct FlowEvidence {
    /// Name of this node, empty when not known.
    pub(super) node: String,
    /// The live flows.
    pub(super) live: Vec<LivePair>,
    /// Addresses of this node's Pods.
    own: HashSet<IpAddr>,
    /// The sample, the oldest first.
    pub(super) sample: Vec<FlowRecord>,
    /// What the sample covers.
    pub(super) covers: Covers,
}

impl FlowEvidence {
    /// Reads conntrack, again and again for this time, and requests the sample of a running agent.
    pub(super) fn gather(place: TablePaths<'_>, span: Duration) -> anyhow::Result<Self> {
        let tables = Pinned::open(place.pin_dir)?;
        let snapshot = tables.snapshot(SnapshotExtent::Tables)?;
        let names = place.names_or_remark().names;
        let view = View::new(&snapshot, &names, unix_now());
        let (entries, now) = flows(&tables, span)?;
        let accounts = tables.accounts()?;
        let mut live = pairs::live(&view, &CountedFlows { entries, accounts }, now);
        let frontends = snapshot.frontends.iter().map(|frontend| frontend.socket()).collect();
        live.retain(|pair| !is_before_its_service(&frontends, &snapshot, &pair.flow));
        let (covers, sample) = sample(place)?;
        let pods = snapshot.pods.values().flat_map(|pod| [pod.ip4, pod.ip6]);
        let own = pods.filter_map(network::ip).collect();
        Ok(Self { node: names.node.to_string(), live, own, sample, covers })
    }

    /// Whether a Pod of this node opened these flows, or no Pod did. Those of other nodes' Pods are in the conntrack tables of
    /// those nodes, too.
    pub(super) fn is_opened_here(&self, pair: &LivePair, owner: &dyn Fn(IpAddr) -> String) -> bool {
        let src = owner(pair.flow.src);
        self.own.contains(&pair.flow.src) || src.is_empty() || src.starts_with("node/")
    }

    /// The owners of all ends of live flows, as the agent knows them now, and of the sample, as they were then.
    pub(super) fn owners(&self, place: TablePaths<'_>) -> anyhow::Result<HashMap<IpAddr, String>> {
        let ends = self.live.iter().flat_map(|pair| [pair.flow.src, pair.flow.dst]);
        let ends: HashSet<IpAddr> = ends.collect();
        let ends: Vec<IpAddr> = ends.into_iter().collect();
        let mut owners = HashMap::new();
        for some in ends.chunks(ADDRESSES) {
            let known = Client::new(place.state_dir).who(some.to_vec())?;
            owners.extend(known.into_iter().map(|owner| (owner.addr, owner.name)));
        }
        Ok(owners)
    }
}

/// Whether the flow went to a Service's address before the Service was there: no workload received it.
fn is_before_its_service(
    frontends: &HashSet<SocketAddr>,
    snapshot: &TableSnapshot,
    flow: &SeenFlow,
) -> bool {
    let mut cluster_ips = snapshot.service_cidrs.iter();
    frontends.contains(&SocketAddr::new(flow.dst, flow.port))
        || cluster_ips.any(|cidr| cidr.contains(&Addr::from(flow.dst)))
}

/// The entries that conntrack has in this time, each as it was seen last. One of a TCP connection that ended is gone at once.
fn flows(tables: &Pinned, span: Duration) -> anyhow::Result<(Vec<(CtKey, CtEntry)>, Now)> {
    let end = Instant::now() + span;
    let mut found = HashMap::new();
    loop {
        let (entries, now) = tables.flows(&CtFilter::default())?;
        if span.is_zero() {
            return Ok((entries, now));
        }
        found.extend(entries);
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok((found.into_iter().collect(), now));
        }
        std::thread::sleep(left.min(PAUSE));
    }
}

fn sample(place: TablePaths<'_>) -> anyhow::Result<(Covers, Vec<FlowRecord>)> {
    let (mut covers, mut sample) = (Covers::default(), Vec::new());
    let wanted = FlowsWanted { follow: false, allowed: false };
    for response in Client::new(place.state_dir).flows(wanted)? {
        match response? {
            Response::Covers(found) => covers = found,
            Response::Flow(record) => sample.push(*record),
            Response::Lost(n) => remark(&format!("{n} flows of the sample lost")),
            Response::Now => break,
            other => return Err(admin::unexpected(&other)),
        }
    }
    Ok((covers, sample))
}

/// The ends of a flow of the sample.
pub(super) fn seen(record: &FlowRecord) -> SeenFlow {
    let has_ports = matches!(record.protocol, proto::TCP | proto::UDP | proto::SCTP);
    SeenFlow {
        src: record.src.ip(),
        dst: record.dst.ip(),
        protocol: record.protocol,
        port: if has_ports { record.dst.port() } else { 0 },
        from_host: false,
    }
}

/// `lbctl flows --by`.
pub(super) fn pairs(
    place: TablePaths<'_>,
    (args, by): (&FlowsArgs, PairBy),
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let wanted = args.wanted.clone().complete()?;
    let mut seen = FlowEvidence::gather(place, Duration::ZERO)?;
    let owners = seen.owners(place)?;
    let owner = |ip| owners.get(&ip).cloned().unwrap_or_default();
    if args.style.output == Format::Rows {
        let mut live = std::mem::take(&mut seen.live);
        live.retain(|pair| seen.is_opened_here(pair, &owner));
        seen.live = live;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let facts = PairFacts {
        live: &seen.live,
        sample: &seen.sample,
        owner: &owner,
        now_ms: u64::try_from(since.as_millis()).unwrap_or_default(),
    };
    let mut rows = pairs::rows(&facts, &wanted, by);
    rows.truncate(args.last.unwrap_or(usize::MAX));
    if rows.is_empty() && args.style.output != Format::Rows {
        remark(&format!("no {} found", PairRow::NOUN));
    }
    columns::print(out, &rows, &seen.node, &args.style)
}
