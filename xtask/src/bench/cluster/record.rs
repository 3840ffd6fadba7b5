//! One run of the bench: what was measured where. Written as JSON, and read again to compare runs.

use std::fmt::{Display, Formatter};

use serde::{Deserialize, Serialize};
use testbed::{
    measure::{Rate, What},
    series::Entry,
};

use crate::bench::statistics::{Level, Ratio};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) label: String,
    /// Version of the API server.
    pub(super) kubernetes: String,
    /// The client's node first.
    pub(super) nodes: Vec<NodeFacts>,
    pub(super) family: String,
    /// Whether clients and servers ran on the last CPU only.
    pub(super) pinned: bool,
    pub(super) rounds: u32,
    /// Time of one measurement.
    pub(super) milliseconds: u64,
    pub(super) rows: Vec<Row>,
}

/// A node as its kubelet describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) kubelet: String,
    pub(super) architecture: String,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Client {
    Pod,
    /// A Pod on the host's network.
    Host,
}

/// Where the server is, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    SameNode,
    OtherNode,
}

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Straight,
    ClusterIp,
    NodePort,
}

/// Medians of one measurement over the three ways.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) client: Client,
    pub(super) place: Place,
    pub(super) what: What,
    pub(super) straight: Level,
    pub(super) cluster_ip: Level,
    pub(super) node_port: Level,
    /// The ClusterIP against straight, round by round.
    pub(super) cluster_ip_ratio: Ratio,
    pub(super) node_port_ratio: Ratio,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Straight, Self::ClusterIp, Self::NodePort];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
        }
    }
}

impl Display for Client {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pod => "Pod",
            Self::Host => "host process",
        })
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SameNode => "same node",
            Self::OtherNode => "other node",
        })
    }
}

impl Row {
    /// From where to where.
    pub(super) fn ends(&self) -> String {
        format!("{}, {}", self.client, self.place)
    }

    /// Whether another row measures the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.client, self.place, self.what) == (other.client, other.place, other.what)
    }

    pub(super) const fn level(&self, way: Way) -> Level {
        match way {
            Way::Straight => self.straight,
            Way::ClusterIp => self.cluster_ip,
            Way::NodePort => self.node_port,
        }
    }

    /// This way against straight, round by round.
    pub(super) const fn ratio(&self, way: Way) -> Option<Ratio> {
        match way {
            Way::Straight => None,
            Way::ClusterIp => Some(self.cluster_ip_ratio),
            Way::NodePort => Some(self.node_port_ratio),
        }
    }

    /// The rows of a series: one for everything that was measured over all three ways.
    pub(super) fn all(client: Client, place: Place, entries: &[Entry]) -> Vec<Self> {
        let row = |what: What| {
            let [straight, cluster_ip, node_port] = Way::ALL.map(|way| {
                let of = entries.iter().filter(|e| e.what == what && e.target == way.name());
                let mut of: Vec<&Entry> = of.collect();
                of.sort_by_key(|entry| entry.round);
                of.into_iter().map(|entry| entry.rate).collect::<Vec<Rate>>()
            });
            let complete = !straight.is_empty()
                && straight.len() == cluster_ip.len()
                && straight.len() == node_port.len();
            complete.then(|| Self {
                client,
                place,
                what,
                straight: Level::of(&straight),
                cluster_ip: Level::of(&cluster_ip),
                node_port: Level::of(&node_port),
                cluster_ip_ratio: Ratio::of(&cluster_ip, &straight),
                node_port_ratio: Ratio::of(&node_port, &straight),
            })
        };
        What::ALL.into_iter().filter_map(row).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use testbed::{
        measure::{Rate, What},
        series::Entry,
    };

    use super::{Client, NodeFacts, Place, Record, Row, Way};

    /// A run with these rates straight and through the ClusterIP; the NodePort is half as fast as straight.
    pub(in super::super) fn record(label: &str, straight: f64, cluster_ip: f64) -> Record {
        let mut entries = Vec::new();
        for what in [What::RoundTrips, What::Stream] {
            for (way, rate) in Way::ALL.into_iter().zip([straight, cluster_ip, straight / 2.0]) {
                let factor = if what == What::Stream { 1e6 } else { 1.0 };
                let p50_ns = if what == What::Stream { 0 } else { (1e9 / rate) as u64 };
                let rate = Rate { per_second: rate * factor, p50_ns, p99_ns: 2 * p50_ns, lost: 0 };
                entries.push(Entry { round: 0, what, target: way.name().to_owned(), rate });
            }
        }
        let node = NodeFacts {
            name: "n1".to_owned(),
            kernel: "6.18".to_owned(),
            kubelet: "v1.36.3".to_owned(),
            architecture: "amd64".to_owned(),
        };
        Record {
            label: label.to_owned(),
            kubernetes: "v1.36.3".to_owned(),
            nodes: vec![node],
            family: "IPv4".to_owned(),
            pinned: true,
            rounds: 1,
            milliseconds: 200,
            rows: Row::all(Client::Pod, Place::SameNode, &entries),
        }
    }

    #[test]
    fn rows_pair_the_ways_of_a_round_in_any_order() {
        let rate = |per_second| Rate { per_second, p50_ns: 1000, p99_ns: 1000, lost: 0 };
        let entry = |round, way: Way, per_second| Entry {
            round,
            what: What::Connects,
            target: way.name().to_owned(),
            rate: rate(per_second),
        };
        let mut entries = vec![
            entry(1, Way::ClusterIp, 45.0),
            entry(1, Way::NodePort, 25.0),
            entry(1, Way::Straight, 50.0),
            entry(0, Way::Straight, 100.0),
            entry(0, Way::ClusterIp, 90.0),
        ];
        assert_eq!(Row::all(Client::Host, Place::OtherNode, &entries), [], "a way lacks a round");
        entries.push(entry(0, Way::NodePort, 50.0));
        let rows = Row::all(Client::Host, Place::OtherNode, &entries);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].cluster_ip_ratio.rate, [0.9; 3]);
        assert_eq!(rows[0].node_port_ratio.rate, [0.5; 3]);
        assert_eq!(rows[0].ends(), "host process, other node");
    }

    #[test]
    fn a_run_is_read_as_it_was_written() {
        // Fractions that JSON keeps to the last bit.
        let record = record("lb", 100.0, 50.0);
        let text = serde_json::to_string_pretty(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
