//! The table of a run.

use super::record::{Record, Row, Way};

/// A Markdown table with what it was measured on.
pub(super) fn of(record: &Record) -> String {
    let mut text = format!("\n{}\n\n", circumstances(record));
    text += "Ratios: median latency straight ÷ this / rate of this ÷ straight; more is better.\n\n";
    text += "| from, to | what | straight | ClusterIP | NodePort | ClusterIP ÷ straight | NodePort ÷ straight |\n";
    text += "|---|---|--:|--:|--:|--:|--:|\n";
    for row in &record.rows {
        let levels = Way::ALL.map(|way| row.level(way).to_string()).join(" | ");
        let Row { cluster_ip_ratio, node_port_ratio, .. } = row;
        text += &format!(
            "| {} | {} | {levels} | {cluster_ip_ratio} | {node_port_ratio} |\n",
            row.ends(),
            row.what.name()
        );
    }
    let lost: u64 =
        record.rows.iter().flat_map(|row| Way::ALL.map(|way| row.level(way).lost)).sum();
    if lost > 0 {
        text += &format!("\n{lost} datagrams had no answer.\n");
    }
    text
}

/// What a run was measured on, in one sentence.
pub(super) fn circumstances(record: &Record) -> String {
    let Record { label, kubernetes, nodes, family, rounds, milliseconds, .. } = record;
    let nodes: Vec<String> =
        nodes.iter().map(|node| format!("{} (Linux {})", node.name, node.kernel)).collect();
    let rounds = match rounds {
        1 => "one round".to_owned(),
        rounds => format!("medians of {rounds} rounds"),
    };
    let pinned = if record.pinned { ", pinned to one CPU" } else { "" };
    format!(
        "{label}: Kubernetes {kubernetes}, {}, {family}, {rounds} of {milliseconds} ms each{pinned}.",
        nodes.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::record, of};

    #[test]
    fn a_table_shows_levels_and_ratios() {
        let table = of(&record("lb", 10_000.0, 9_500.0));
        for want in [
            "lb: Kubernetes v1.36.3, n1 (Linux 6.18), IPv4, one round of 200 ms each, pinned to one CPU.",
            "| Pod, same node | request/response | 100.0 µs, 10000/s | 105.3 µs, 9500/s | 200.0 µs, 5000/s | 0.950 / 0.950 | 0.500 / 0.500 |",
            "| Pod, same node | stream | 10.00 Gbit/s | 9.50 Gbit/s | 5.00 Gbit/s | 0.950 | 0.500 |",
        ] {
            assert!(table.contains(want), "no {want:?} in\n{table}");
        }
        assert!(!table.contains("datagrams had no answer"));
    }
}
