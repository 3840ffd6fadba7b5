//! What must be true in the end: the maps hold what the agents wrote, that is what agents without a past would write, and memory
//! is as it was.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    command::say,
    conformance::{
        bed::Bed,
        cluster::{items, text},
        deploy::{self, SYSTEM, pod_on},
        report::{Report, within},
    },
};

/// What `lbctl` lists of the tables.
const LISTS: [&[&str]; 4] = [&["services"], &["backends"], &["policy", "list"], &["pods"]];
/// What an agent counts, or numbers as it comes: no two have the same.
const OWN: [&str; 14] = [
    "id",
    "generation",
    "age",
    "flows",
    "active",
    "inactive",
    "load",
    "hits",
    "lastHit",
    "ifindex",
    "since",
    "uptime",
    "newFlows",
    "denied",
];
/// Servers that were told to stop have gone by then, and connections to them have ended.
const ENDED: Duration = Duration::from_secs(300);

/// Resident memory of the agents, in KiB.
pub(super) type Memory = BTreeMap<String, u64>;

/// Of each node's agent.
///
/// # Errors
/// When a node has none.
pub(super) fn memory(bed: &Bed<'_>) -> Result<Memory> {
    const SCRIPT: &str = "for p in /proc/[0-9]*; do \
        [ \"$(cat $p/comm 2>/dev/null)\" = lb-agent ] && sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' $p/status; done; true";
    let of = |node: &String| -> Result<(String, u64)> {
        let text = bed.on_node(node, SCRIPT)?;
        let size = text.trim().parse().with_context(|| format!("one agent on {node}: {text:?}"))?;
        Ok((node.clone(), size))
    };
    bed.cluster.nodes.iter().map(of).collect()
}

/// In words.
pub(super) fn shown(memory: &Memory) -> String {
    let each: Vec<String> =
        memory.values().map(|kib| format!("{:.1}", *kib as f64 / 1024.0)).collect();
    format!("{} MiB", each.join(", "))
}

/// Judges; removes the agents, with all that they remember, on the way.
pub(super) fn check(bed: &Bed<'_>, report: &mut Report, before: &Memory) {
    report.check("the agents' memory is as before", || is_back(before, &memory(bed)?));
    report.check("the maps say what the agents wrote", || {
        for node in &bed.cluster.nodes {
            let found = list(bed, node, &["diff"])?;
            if let Some(first) = found.first() {
                bail!("{node}: {} elements differ, such as {first}", found.len());
            }
        }
        Ok(String::new())
    });
    compare(bed, report);
    report.check("cleanup removes everything from all nodes", || deploy::remove(bed));
}

/// Compares the tables with those of agents that have no past, which are there afterwards.
pub(crate) fn compare(bed: &Bed<'_>, report: &mut Report) {
    report.check("the tables equal those of a fresh start", || {
        within(ENDED, || no_drains(bed))?;
        let old = tables(bed)?;
        deploy::remove(bed)?;
        say("agents without a past");
        deploy::apply(bed.cluster)?;
        deploy::ready(bed.cluster)?;
        within(Duration::from_secs(30), || same(&old, &tables(bed)?))?;
        let rows: usize = old.values().map(Vec::len).sum();
        Ok(format!("{rows} rows on {} nodes", bed.cluster.nodes.len()))
    });
}

fn is_back(before: &Memory, now: &Memory) -> Result<String> {
    for (node, size) in now {
        let former = before.get(node).copied().unwrap_or_default();
        // What the allocator keeps, and the names of this half hour.
        if *size > former + former / 4 + 2048 {
            bail!("{node}: {} before, {} now", shown(before), shown(now));
        }
    }
    Ok(format!("{} before, {} now", shown(before), shown(now)))
}

/// The rows of one of the lists on a node.
fn list(bed: &Bed<'_>, node: &str, which: &[&str]) -> Result<Vec<Value>> {
    let pod = pod_on(bed.cluster, node)?;
    let lbctl = ["exec", "--namespace", SYSTEM, &pod, "--", "lbctl"];
    let list = bed.cluster.json(&[&lbctl[..], which].concat())?;
    Ok(items(&list).cloned().collect())
}

/// Whether every backend takes new connections: a server that was replaced is listed until its last one has ended.
///
/// # Errors
/// When one does not.
fn no_drains(bed: &Bed<'_>) -> Result<()> {
    for node in &bed.cluster.nodes {
        for row in list(bed, node, &["backends"])? {
            if text(&row, "/state") != Some("ready") {
                bail!("{node} still has {row}");
            }
        }
    }
    Ok(())
}

/// All lists of all nodes, without what differs between any two agents.
fn tables(bed: &Bed<'_>) -> Result<BTreeMap<String, Vec<String>>> {
    let mut tables = BTreeMap::new();
    for node in &bed.cluster.nodes {
        for which in LISTS {
            let rows = list(bed, node, which)?.into_iter().map(plain);
            let mut rows: Vec<String> = rows.map(|row| row.to_string()).collect();
            rows.sort();
            tables.insert(format!("{} of {node}", which.join(" ")), rows);
        }
    }
    Ok(tables)
}

fn plain(mut row: Value) -> Value {
    if let Some(fields) = row.as_object_mut() {
        fields.retain(|name, _| !OWN.contains(&name.as_str()));
    }
    row
}

fn same(old: &BTreeMap<String, Vec<String>>, new: &BTreeMap<String, Vec<String>>) -> Result<()> {
    for (name, rows) in old {
        let fresh = new.get(name).map(Vec::as_slice).unwrap_or_default();
        if let Some(row) = rows.iter().find(|row| !fresh.contains(row)) {
            bail!("{name}: only before: {row}");
        }
        if let Some(row) = fresh.iter().find(|row| !rows.contains(row)) {
            bail!("{name}: only after a fresh start: {row}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::{is_back, plain, same};

    #[test]
    fn a_row_that_only_one_has_is_named() {
        let table = |rows: &[&str]| {
            BTreeMap::from([(
                "x".to_owned(),
                rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>(),
            )])
        };
        same(&table(&["a", "b"]), &table(&["b", "a"])).unwrap();
        assert_eq!(
            same(&table(&["a", "b"]), &table(&["a"])).unwrap_err().to_string(),
            "x: only before: b"
        );
        let more = same(&table(&["a"]), &table(&["a", "c"])).unwrap_err().to_string();
        assert_eq!(more, "x: only after a fresh start: c");
        assert_eq!(plain(json!({ "name": "x", "age": 7, "id": 1 })), json!({ "name": "x" }));
    }

    #[test]
    fn memory_may_grow_by_a_quarter_and_two_mebibytes() {
        let memory = |kib| BTreeMap::from([("node1".to_owned(), kib)]);
        is_back(&memory(8192), &memory(8192 + 2048 + 2048)).unwrap();
        assert!(is_back(&memory(8192), &memory(8192 + 2048 + 2049)).is_err());
    }
}
