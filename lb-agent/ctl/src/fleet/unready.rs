//! Pods that are not ready, or have no address yet: why, as the API server has it. A few reads, no watch.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::cell::Cell;
use crate::explain::trace::{Hop, NoEndpoints, Trace, Why};
use crate::fleet::ask::FleetQuery;
use crate::fleet::remark::remark;
use crate::table::RowTable;
use crate::unready::UnreadyPod;
use lb_core::cluster::Name;
use lb_remote::RemotePod;

/// Pods that are read for one answer.
const MOST: usize = 8;
/// The column of what is wrong with a row.
const ISSUE: &str = "ISSUE";

/// Says of each Pod that the trace stops at why it is not ready, or has no address.
pub(super) fn complete(asked: &FleetQuery, trace: &mut Trace) {
    for hop in &mut trace.hops {
        let Hop::Unserved(unserved) = hop else { continue };
        let Why::NoEndpoints { cause, .. } = &mut unserved.why else { continue };
        match cause {
            NoEndpoints::NotReady { first, pods, .. } => {
                *pods = find(asked, first.iter().filter_map(|endpoint| endpoint.pod.clone()));
            }
            NoEndpoints::NoAddress { first, pods, .. } => {
                *pods = find(asked, first.iter().cloned())
            }
            NoEndpoints::Unknown
            | NoEndpoints::NoSelector
            | NoEndpoints::NoPod { .. }
            | NoEndpoints::NotEndpoints { .. } => {}
        }
    }
    if let Some(lookup) = &mut trace.lookup {
        complete(asked, &mut lookup.trace);
    }
}

/// Says in the rows of Services and Pods why Pods that they call not ready are not.
pub(super) fn complete_rows(asked: &FleetQuery, tables: &mut [RowTable]) {
    let rows = tables.iter().flat_map(|table| &table.rows);
    let named: Vec<Name> = rows.flat_map(|row| not_ready(&row.item)).collect();
    if named.is_empty() {
        return;
    }
    annotate(tables, &find(asked, named.into_iter()));
}

/// Adds to the issues of rows why their Pods are not ready.
fn annotate(tables: &mut [RowTable], known: &[UnreadyPod]) {
    for table in tables {
        let at = table.columns.iter().position(|column| column.name == ISSUE);
        for row in &mut table.rows {
            let own = not_ready(&row.item);
            let known = known.iter().filter(|pod| own.contains(&pod.pod));
            let texts: Vec<String> = known.map(|pod| format!("Pod {}: {pod}", pod.pod)).collect();
            if texts.is_empty() {
                continue;
            }
            if let Some(Cell::Note(note)) = at.and_then(|at| row.cells.get_mut(at)) {
                let all = std::iter::once(&*note).filter(|note| !note.is_empty()).chain(&texts);
                *note = all.cloned().collect::<Vec<_>>().join("; ");
            }
            if let Value::Object(item) = &mut row.item {
                item.insert("notReadyBecause".to_owned(), texts.into());
            }
        }
    }
}

/// The Pods that a row calls not ready: those of a Service without a ready endpoint, or the row's own.
fn not_ready(item: &Value) -> Vec<Name> {
    let list = |key: &str| item.get(key).and_then(Value::as_array).into_iter().flatten();
    let text = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
    let own = list("unreadyFor").next().map(|_| Name::new(text("namespace"), text("name")));
    list("notReady").filter_map(Value::as_str).map(Name::parse).chain(own).collect()
}

/// Returns which of the Pods are not ready, and why. Of many, only the first are read; where the user may not read Pods, it is none.
pub(super) fn find(asked: &FleetQuery, pods: impl Iterator<Item = Name>) -> Vec<UnreadyPod> {
    let mut names: Vec<Name> = Vec::new();
    for pod in pods {
        if names.len() < MOST && !names.contains(&pod) {
            names.push(pod);
        }
    }
    let keys: Vec<(&str, &str)> = names.iter().map(|pod| (&*pod.namespace, &*pod.name)).collect();
    match asked.fleet.pods_named(&keys) {
        Ok(found) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = i64::try_from(since.as_secs()).unwrap_or_default();
            found.into_iter().filter_map(|pod| unready(pod, now)).collect()
        }
        Err(error) => {
            remark(&format_args!("why Pods are not ready is not known: {error:#}"));
            Vec::new()
        }
    }
}

fn unready(pod: RemotePod, now: i64) -> Option<UnreadyPod> {
    let found = pod.unready?;
    Some(UnreadyPod {
        pod: Name::new(pod.namespace, pod.name),
        container: found.container,
        reason: found.reason,
        message: found.message,
        // The clocks of the laptop and the cluster may differ.
        seconds: found.since.map(|since| u64::try_from(now - since).unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use lb_core::cluster::Name;
    use serde_json::json;

    use super::annotate;
    use crate::cell::Cell;
    use crate::table::{Column, RowScope, RowTable, TableColumn, TableRow};
    use crate::unready::UnreadyPod;

    #[test]
    fn the_reason_is_added_to_the_rows_that_name_the_pod() {
        let row = |note: &str, item| TableRow {
            cells: vec![Cell::Text("shop".to_owned()), Cell::Note(note.to_owned())],
            name: None,
            item,
        };
        let columns = [Column::new("NAMESPACE"), Column::new("ISSUE")];
        let mut tables = [RowTable {
            node: "n1".to_owned(),
            noun: "services".into(),
            scope: RowScope::Cluster,
            columns: columns.iter().map(TableColumn::of).collect(),
            rows: vec![
                row("not ready: shop/web-1", json!({ "notReady": ["shop/web-1"] })),
                row(
                    "",
                    json!({ "namespace": "shop", "name": "web-1", "unreadyFor": ["shop/web:http"] }),
                ),
                row("", json!({ "namespace": "shop", "name": "web-1", "unreadyFor": [] })),
                row("not ready: shop/web-2", json!({ "notReady": ["shop/web-2"] })),
            ],
        }];
        let known = [UnreadyPod {
            pod: Name::parse("shop/web-1"),
            container: "web".to_owned(),
            reason: "ImagePullBackOff".to_owned(),
            message: String::new(),
            seconds: Some(60),
        }];
        annotate(&mut tables, &known);
        let text = "Pod shop/web-1: container web: ImagePullBackOff for 60s";
        let notes: Vec<String> =
            tables[0].rows.iter().map(|row| row.cells[1].to_string()).collect();
        let first = format!("not ready: shop/web-1; {text}");
        assert_eq!(notes, [&first, text, "", "not ready: shop/web-2"]);
        assert_eq!(tables[0].rows[0].item["notReadyBecause"], json!([text]));
        assert!(tables[0].rows[3].item.get("notReadyBecause").is_none());
    }
}
