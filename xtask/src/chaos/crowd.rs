//! A crowd: on each node Pods that open flows until the conntrack table has no room left. The requests of others go on.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use testbed::datagrams::Sent;

use crate::conformance::{
    bed::Bed,
    traffic::{PORT, PORTS, client, report, server, service, started},
};

/// The setting that makes the table as small as it can be.
pub(super) const ENTRIES: [&str; 2] = ["ct-entries", "131072"];
/// The Service that the crowd asks.
const SERVICE: &str = "chaos-crowd";
/// Of each node. One Pod may hold a quarter of the table.
const PODS: usize = 4;
/// New flows a second of each Pod, one datagram each: it lives for 30 seconds, and takes two entries or three.
const RATE: u32 = 1000;
/// How long one load is, in seconds. After it, the entries are counted.
const ROUND: u32 = 30;
/// Of the capacity, on each node at some time.
const FULL: f64 = 0.9;

/// The Pods.
pub(super) struct Crowd<'a> {
    bed: &'a Bed<'a>,
    pods: Vec<String>,
    /// What they ask.
    at: String,
}

/// What they did.
#[derive(Debug, Default)]
pub(super) struct Crowded {
    flows: u64,
    /// The highest share of the table that was in use, by node.
    most: BTreeMap<String, f64>,
    last_error: String,
}

impl<'a> Crowd<'a> {
    /// Makes the Pods and their Service.
    ///
    /// # Errors
    /// When the API refuses one, or a Pod does not start.
    pub(super) fn gather(bed: &'a Bed<'a>) -> Result<Self> {
        let mut objects = vec![service(SERVICE)];
        let mut pods = Vec::new();
        for node in &bed.cluster.nodes {
            objects.push(server(node, SERVICE));
            for nth in 0..PODS {
                let name = format!("crowd-{node}-{nth}");
                objects.push(client(&name, node));
                pods.push(name);
            }
        }
        bed.cluster.apply(&objects)?;
        started(bed.cluster)?;
        let address = bed.addresses(SERVICE)?.into_iter().next();
        let address = address.with_context(|| format!("Service {SERVICE} has no address"))?;
        let ip = address.parse().with_context(|| format!("address {address:?}"))?;
        Ok(Self { bed, pods, at: std::net::SocketAddr::new(ip, PORT).to_string() })
    }

    /// Opens flows until it is over.
    pub(super) fn go_on(&self, is_over: &AtomicBool) -> Crowded {
        let mut crowded = Crowded::default();
        while !is_over.load(Ordering::Relaxed) {
            thread::scope(|scope| {
                let threads: Vec<_> =
                    self.pods.iter().map(|pod| scope.spawn(move || self.open(pod))).collect();
                for outcome in threads.into_iter().filter_map(|thread| thread.join().ok()) {
                    match outcome {
                        Ok(sent) => crowded.flows += sent.sent,
                        // As it must while the API server is stopped.
                        Err(err) => crowded.last_error = format!("{err:#}"),
                    }
                }
            });
            for node in &self.bed.cluster.nodes {
                // There is no answer while the node's agent is replaced.
                let Some(share) = self.bed.metrics(node).ok().and_then(|text| in_use(&text)) else {
                    continue;
                };
                let most = crowded.most.entry(node.clone()).or_default();
                *most = most.max(share);
            }
        }
        crowded
    }

    fn open(&self, pod: &str) -> Result<Sent> {
        let [rate, seconds, ports] = [RATE, ROUND, PORTS.into()].map(|n| n.to_string());
        let args = ["datagrams", &self.at, &rate, &seconds, &ports];
        report(self.bed.cluster, pod, &args)
    }
}

impl Crowded {
    /// Says how full the tables were.
    ///
    /// # Errors
    /// When one was never full.
    pub(super) fn done(&self, nodes: &[String]) -> Result<String> {
        let mut said = format!("{} flows;", self.flows);
        for node in nodes {
            let most = self.most.get(node).copied().unwrap_or_default();
            if most < FULL {
                bail!(
                    "{node}: at most {:.0} % by {} flows; {}",
                    most * 100.0,
                    self.flows,
                    self.last_error
                );
            }
            said.push_str(&format!(" {node} {:.0} %", most * 100.0));
        }
        Ok(said)
    }
}

/// The share of the conntrack table that is in use, from an agent's metrics.
fn in_use(metrics: &str) -> Option<f64> {
    let value = |name: &str| -> Option<f64> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line?.trim().parse().ok()
    };
    let capacity = value("lb_map_capacity{map=\"ct\"}").filter(|capacity| *capacity > 0.0)?;
    Some(value("lb_map_entries{map=\"ct\"}")? / capacity)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Crowded, in_use};

    #[test]
    fn the_share_is_that_of_the_conntrack_table() {
        let metrics = "lb_map_capacity{map=\"ct\"} 200\nlb_map_capacity{map=\"ct6\"} 7\n\
            lb_map_entries{map=\"backends\"} 3\nlb_map_entries{map=\"ct\"} 150\n";
        assert_eq!(in_use(metrics), Some(0.75));
        assert_eq!(in_use("lb_map_entries{map=\"ct\"} 150\n"), None);
    }

    #[test]
    fn every_node_s_table_must_have_been_full() {
        let nodes = ["node1".to_owned(), "node2".to_owned()];
        let shares =
            |second| BTreeMap::from([("node1".to_owned(), 1.0), ("node2".to_owned(), second)]);
        let crowded = |second| Crowded { flows: 5, most: shares(second), ..Crowded::default() };
        assert_eq!(crowded(0.9).done(&nodes).unwrap(), "5 flows; node1 100 % node2 90 %");
        let err = crowded(0.5).done(&nodes).unwrap_err().to_string();
        assert_eq!(err, "node2: at most 50 % by 5 flows; ");
    }
}
