//! The report: what each client received, what the server used for all of them, and what a large cluster's hour comes to.

use std::fmt::Write as _;

use super::clients::Watcher;
use super::objects::CHURN;
use super::server::Usage;
use super::tally::{KINDS, Tally};

/// One step of a measurement.
pub(crate) struct Step {
    counts: [[u64; 3]; KINDS.len()],
    cpu_secs: f64,
    resident: [u64; 2],
}

/// One kind of client.
pub(crate) struct Measured {
    pub(crate) watcher: Watcher,
    pub(crate) lists: Step,
    pub(crate) changes: Step,
}

impl Step {
    pub(crate) fn new(tally: &Tally, before: &Usage, after: &Usage) -> Self {
        Self {
            counts: tally.counts(),
            cpu_secs: after.cpu_secs - before.cpu_secs,
            resident: [before.resident, after.resident],
        }
    }

    /// Bytes of a kind.
    fn bytes(&self, plural: &str) -> u64 {
        KINDS
            .iter()
            .zip(&self.counts)
            .find(|(kind, _)| **kind == plural)
            .map_or(0, |(_, [.., bytes])| *bytes)
    }
}

/// An hour of a large cluster.
struct Hour {
    nodes: u64,
    /// Of each node: what its kubelet writes when nothing changes.
    heartbeats: u64,
    /// Of each node: Pods that start, and as many that end.
    pods: u64,
}

const HOUR: Hour = Hour { nodes: 5000, heartbeats: 12, pods: 6 };

/// All of it in Markdown.
pub(crate) fn text(clients: usize, all: &[Measured]) -> String {
    let mut text = String::new();
    for (name, step) in [("Initial lists", 0), ("Changes", 1)] {
        writeln!(text, "\n{name}, {clients} clients: each receives\n\n| | kind | requests | events | KiB |\n|---|---|--:|--:|--:|").unwrap();
        for measured in all {
            let step = [&measured.lists, &measured.changes][step];
            for (kind, [requests, events, bytes]) in KINDS.iter().zip(step.counts) {
                if bytes > 0 {
                    let each = |n: u64| n as f64 / clients as f64;
                    writeln!(
                        text,
                        "| {} | {kind} | {:.1} | {:.1} | {:.1} |",
                        measured.watcher.name(),
                        each(requests),
                        each(events),
                        each(bytes) / 1024.0
                    )
                    .unwrap();
                }
            }
        }
    }
    writeln!(text, "\nAPI server\n\n| | step | MiB sent | CPU s | resident MiB before, after |\n|---|---|--:|--:|--:|").unwrap();
    for measured in all {
        for (name, step) in [("lists", &measured.lists), ("changes", &measured.changes)] {
            let sent: u64 = step.counts.iter().map(|[.., bytes]| bytes).sum();
            let [before, after] = step.resident.map(|bytes| bytes >> 20);
            writeln!(
                text,
                "| {} | {name} | {} | {:.1} | {before}, {after} |",
                measured.watcher.name(),
                sent >> 20,
                step.cpu_secs
            )
            .unwrap();
        }
    }
    text + &hour(clients, all)
}

/// What an hour of a large cluster comes to by what each change cost here.
fn hour(clients: usize, all: &[Measured]) -> String {
    let Hour { nodes, heartbeats, pods } = HOUR;
    let mut text = format!(
        "\nAn hour of {nodes} nodes with {heartbeats} writes of a Node's status and {pods} Pods that start and end on each: KiB to each client\n\n\
         | | nodes | pods | endpointslices | sum |\n|---|--:|--:|--:|--:|\n"
    );
    for Measured { watcher, changes, .. } in all {
        let each = |kind: &str, changed: usize| {
            changes.bytes(kind) as f64 / 1024.0 / clients as f64 / changed as f64
        };
        // What is told to one client of all is told to the one whose node it is.
        let share = clients as f64 / nodes as f64;
        let of_nodes = each("nodes", CHURN.nodes) * (nodes * heartbeats) as f64;
        let of_nodes = if *watcher == Watcher::KubeProxy { of_nodes * share } else { of_nodes };
        let of_pods = each("pods", CHURN.pods) * (nodes * pods) as f64;
        let of_pods = if *watcher == Watcher::Own { of_pods * share } else { of_pods };
        // Ready, and gone.
        let of_slices = each("endpointslices", CHURN.slices) * (2 * nodes * pods) as f64;
        writeln!(
            text,
            "| {} | {of_nodes:.0} | {of_pods:.0} | {of_slices:.0} | {:.0} |",
            watcher.name(),
            of_nodes + of_pods + of_slices
        )
        .unwrap();
    }
    text
}
