//! Several runs beside each other: the first one is the base.

use super::{
    chart::{Chart, Group},
    record::{Record, Row, Way},
    table,
};
use crate::bench::statistics::Level;

/// A Markdown table: for each row and way the results of all runs, and the ratios to the first.
pub(super) fn table(records: &[Record]) -> String {
    let mut text = String::from("\n");
    for record in records {
        text += &format!("- {}\n", table::circumstances(record));
    }
    let differences = differences(records);
    if !differences.is_empty() {
        text += &format!("\nThese runs differ in {}: compare with care.\n", differences.join(", "));
    }
    let labels: Vec<&str> = records.iter().map(|record| record.label.as_str()).collect();
    let [first, others @ ..] = &labels[..] else { return text };
    text += &format!(
        "\nRatios: median latency of {first} ÷ this / rate of this ÷ {first}; more is better.\n\n"
    );
    let ratios: Vec<String> = others.iter().map(|label| format!("{label} ÷ {first}")).collect();
    text +=
        &format!("| from, to | what | way | {} | {} |\n", labels.join(" | "), ratios.join(" | "));
    text += &format!("|---|---|---|{}\n", "--:|".repeat(labels.len() + others.len()));
    for line in lines(records) {
        let levels: Vec<String> = line.levels.iter().map(|level| shown(*level)).collect();
        let base = line.levels.first().copied().flatten();
        let ratio = |level: &Option<Level>| match (level, base) {
            (Some(level), Some(base)) => level.against(&base).to_string(),
            _ => "—".to_owned(),
        };
        let ratios: Vec<String> = line.levels.iter().skip(1).map(ratio).collect();
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            line.row.ends(),
            line.row.what.name(),
            line.way.name(),
            levels.join(" | "),
            ratios.join(" | ")
        );
    }
    text + &against_straight(records, &labels)
}

/// A Markdown table of each run against its own straight way. It was measured in the same rounds, so what changed
/// on the machine between the runs is not in it.
fn against_straight(records: &[Record], labels: &[&str]) -> String {
    let mut text = String::from(
        "\nEach run against straight to the Pod in the same run: median latency straight ÷ this / rate ÷ straight.\n\n",
    );
    text += &format!("| from, to | what | way | {} |\n", labels.join(" | "));
    text += &format!("|---|---|---|{}\n", "--:|".repeat(labels.len()));
    for line in lines(records).iter().filter(|line| line.way != Way::Straight) {
        let ratio = |record: &Record| {
            let row = record.rows.iter().find(|row| row.is_like(line.row));
            let ratio = row.and_then(|row| row.ratio(line.way));
            ratio.map_or("—".to_owned(), |ratio| ratio.to_string())
        };
        let ratios: Vec<String> = records.iter().map(ratio).collect();
        let (ends, what, way) = (line.row.ends(), line.row.what.name(), line.way.name());
        text += &format!("| {ends} | {what} | {way} | {} |\n", ratios.join(" | "));
    }
    text
}

/// The chart of the same: the ratios of latencies, of streams those of rates.
pub(super) fn chart(records: &[Record]) -> String {
    let labels: Vec<String> = records.iter().map(|record| record.label.clone()).collect();
    let first = labels.first().cloned().unwrap_or_default();
    let mut groups: Vec<Group> = Vec::new();
    for line in lines(records) {
        let heading = format!("{}, {}", line.row.ends(), line.way.name());
        let base = line.levels.first().copied().flatten();
        let bar = |level: &Option<Level>| {
            let (level, base) = ((*level)?, base?);
            Some((level.against(&base).main(), level.to_string()))
        };
        let bars = line.levels.iter().map(bar).collect();
        groups.push(Group { heading, label: line.row.what.name().to_owned(), bars });
    }
    let chart = Chart {
        title: format!("Services: {}", labels.join(", ")),
        subtitle: format!(
            "median latency of {first} ÷ this, of streams rate ÷ that of {first}; more is better"
        ),
        legend: labels,
        groups,
    };
    chart.svg()
}

/// A row over one way, with the level of each run that has it.
struct Line<'a> {
    row: &'a Row,
    way: Way,
    levels: Vec<Option<Level>>,
}

/// Every row that any run has, in the order of the runs; the ways of what is measured one after the other.
fn lines(records: &[Record]) -> Vec<Line<'_>> {
    let mut rows: Vec<&Row> = Vec::new();
    for row in records.iter().flat_map(|record| &record.rows) {
        if !rows.iter().any(|known| known.is_like(row)) {
            rows.push(row);
        }
    }
    let mut lines = Vec::new();
    let mut ends: Vec<String> = Vec::new();
    for row in &rows {
        if !ends.contains(&row.ends()) {
            ends.push(row.ends());
        }
    }
    for ends in ends {
        for way in Way::ALL {
            for row in rows.iter().filter(|row| row.ends() == ends) {
                let level = |record: &Record| {
                    let same = record.rows.iter().find(|other| other.is_like(row));
                    same.map(|row| row.level(way))
                };
                lines.push(Line { row, way, levels: records.iter().map(level).collect() });
            }
        }
    }
    lines
}

fn shown(level: Option<Level>) -> String {
    level.map_or("—".to_owned(), |level| level.to_string())
}

/// In what the runs differ besides what serves Services.
fn differences(records: &[Record]) -> Vec<&'static str> {
    let Some(first) = records.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut compare = |name, differ: fn(&Record, &Record) -> bool| {
        if records.iter().any(|record| differ(record, first)) {
            found.push(name);
        }
    };
    compare("the nodes", |a, b| a.nodes != b.nodes);
    compare("the family of addresses", |a, b| a.family != b.family);
    compare("--pin", |a, b| a.pinned != b.pinned);
    compare("--time", |a, b| a.milliseconds != b.milliseconds);
    found
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::record, chart, table};

    #[test]
    fn runs_stand_beside_each_other_with_ratios_to_the_first() {
        let slow = record("kube-proxy", 10_000.0, 8_000.0);
        let fast = record("lb", 11_000.0, 10_000.0);
        let text = table(&[slow, fast]);
        assert!(!text.contains("differ"), "{text}");
        for want in [
            "| from, to | what | way | kube-proxy | lb | lb ÷ kube-proxy |",
            "| Pod, same node | request/response | ClusterIP | 125.0 µs, 8000/s | 100.0 µs, 10000/s | 1.250 / 1.250 |",
            "| Pod, same node | stream | straight | 10.00 Gbit/s | 11.00 Gbit/s | 1.100 |",
            "| Pod, same node | request/response | ClusterIP | 0.800 / 0.800 | 0.909 / 0.909 |",
        ] {
            assert!(text.contains(want), "no {want:?} in\n{text}");
        }
    }

    #[test]
    fn a_row_that_one_run_lacks_and_other_circumstances_are_shown() {
        let whole = record("a", 10_000.0, 8_000.0);
        let mut part = record("b", 10_000.0, 8_000.0);
        part.rows.truncate(1);
        part.pinned = false;
        part.family = "IPv6".to_owned();
        let text = table(&[part, whole]);
        assert!(text.contains("differ in the family of addresses, --pin: compare"), "{text}");
        assert!(text.contains("| — | 100.0 µs, 10000/s | — |"), "{text}");
    }

    #[test]
    fn the_chart_has_a_bar_for_each_run() {
        let svg = chart(&[record("a", 10_000.0, 8_000.0), record("b<c", 11_000.0, 10_000.0)]);
        assert_eq!(svg.matches("<rect class=\"bar\"").count(), 2 * 2 * 3);
        assert!(svg.contains("b&lt;c") && !svg.contains("b<c"), "{svg}");
        assert!(svg.contains("1.25"), "{svg}");
    }
}
