//! `lbctl policy suggest`: what was seen on this node, and who that was, as policies.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::net::IpAddr;

use lb_common::event::outcome;

use crate::PolicySuggestArgs;
use crate::admin::Client;
use crate::run::evidence::{FlowEvidence, seen};
use crate::run::{TablePaths, remark};
use crate::suggest::{self, NodeEvidence, SuggestOptions};
use lb_core::admin::peers::PeersWanted;
use lb_core::admin::what_if::SeenFlow;

/// Runs the command.
pub(super) fn suggest(
    place: TablePaths<'_>,
    args: &PolicySuggestArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let evidence = evidence(place, args)?;
    if args.evidence {
        return Ok(serde_json::to_writer(out, &evidence)?);
    }
    let options = SuggestOptions { namespace: &args.namespace, enforce: args.enforce };
    remark("flows of other nodes are not seen here: kubectl lb policy suggest asks all nodes");
    let suggestion = suggest::suggest(&options, &[evidence]);
    suggestion.remarks.iter().for_each(|text| remark(text));
    if suggestion.manifests.is_empty() {
        anyhow::bail!("{}: no flow of its Pods was seen", args.namespace);
    }
    Ok(write!(out, "{}", suggestion.manifests)?)
}

/// What this node has seen of the Pods of a namespace.
fn evidence(place: TablePaths<'_>, args: &PolicySuggestArgs) -> anyhow::Result<NodeEvidence> {
    let namespace = args.namespace.as_str();
    let FlowEvidence { node, live, sample, .. } = FlowEvidence::gather(place, args.span)?;
    // What a policy in shadow mode would deny was allowed.
    let allowed = sample.iter().filter(|record| record.outcome == outcome::WOULD_DENY);
    // What was denied at its other end is not to be allowed because it was tried.
    let live = live.iter().filter(|pair| pair.may_arrive()).map(|pair| pair.flow);
    let flows: BTreeSet<SeenFlow> = live.chain(allowed.map(seen)).collect();
    let addrs: HashSet<IpAddr> = flows.iter().flat_map(|flow| [flow.src, flow.dst]).collect();
    let wanted = PeersWanted { namespace: namespace.into(), addrs: addrs.into_iter().collect() };
    let peers = Client::new(place.state_dir).peers(wanted)?;
    if !peers.complete {
        remark("this agent does not know the Pods of all nodes: flows with them are left out");
    }
    let own: HashSet<IpAddr> = peers
        .pods
        .iter()
        .filter(|pod| *pod.name.namespace == *namespace)
        .flat_map(|pod| pod.ips.iter().copied())
        .collect();
    let is_own = |flow: &SeenFlow| own.contains(&flow.src) || own.contains(&flow.dst);
    let flows = flows.into_iter().filter(is_own).collect();
    Ok(NodeEvidence { node, flows, peers })
}
