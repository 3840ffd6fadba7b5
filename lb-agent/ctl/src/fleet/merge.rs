//! The tables of several nodes → one. Pure: it knows columns and their rules, and not what the rows are about.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::cell::Cell;
use crate::table::{Column, MergeRule, RowScope, RowTable, TableColumn, TableRow};

/// Column of the nodes that have a row.
const NODE: &str = "NODE";
/// Its name where the rows have a column NODE of their own, and its key in JSON.
const SEEN_BY: (&str, &str) = ("SEEN-BY", "seenBy");
/// Nodes that are listed by name; more are counted.
const FEW: usize = 3;
/// Between items of one cell.
const COMMA: &str = ",";

/// Merges tables of the same kind. The first column names the nodes: of rows that are things of the cluster, those that
/// agree; `wide` lists all of them. The names of columns are those of the first table: a node with another version
/// may lack some.
pub fn merge(tables: &[RowTable], wide: bool) -> Option<RowTable> {
    let first = tables.first()?;
    let name = if has_node(&first.columns) { SEEN_BY.0 } else { NODE };
    let own = TableColumn::of(&Column::new(name));
    let columns = std::iter::once(own).chain(first.columns.iter().cloned());
    let rows = match first.scope {
        RowScope::Node => tables.iter().flat_map(|table| beside(&first.columns, table)).collect(),
        RowScope::Cluster => together(&first.columns, tables, wide),
    };
    Some(RowTable {
        node: String::new(),
        noun: first.noun.clone(),
        scope: first.scope,
        columns: columns.collect(),
        rows,
    })
}

/// Returns what `-o json` prints of them: each node's rows, with the name of the node.
pub fn items(tables: &[RowTable]) -> Vec<Value> {
    let rows = tables.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row)));
    rows.map(|(table, row)| with_node(&table.node, &row.item)).collect()
}

/// Returns a row's item with the name of its node.
pub fn with_node(node: &str, item: &Value) -> Value {
    let Value::Object(fields) = item else { return item.clone() };
    let key = if fields.contains_key("node") { SEEN_BY.1 } else { "node" };
    let mut map = Map::new();
    map.insert(key.to_owned(), Value::String(node.to_owned()));
    map.extend(fields.clone());
    Value::Object(map)
}

fn has_node(columns: &[TableColumn]) -> bool {
    columns.iter().any(|column| column.name == NODE)
}

/// The rows of one node.
fn beside(columns: &[TableColumn], table: &RowTable) -> Vec<TableRow> {
    let row = |row: &TableRow| TableRow {
        cells: std::iter::once(Cell::Text(table.node.clone()))
            .chain(aligned(columns, table, row))
            .collect(),
        name: row.name.clone(),
        item: with_node(&table.node, &row.item),
    };
    table.rows.iter().map(row).collect()
}

/// The cells of a row in the order of these columns.
fn aligned(columns: &[TableColumn], table: &RowTable, row: &TableRow) -> Vec<Cell> {
    let cell = |column: &TableColumn| {
        let at = table.columns.iter().position(|own| own.name == column.name);
        at.and_then(|at| row.cells.get(at)).cloned().unwrap_or(Cell::None)
    };
    columns.iter().map(cell).collect()
}

/// One thing of the cluster.
struct SharedRow<'a> {
    name: &'a Option<String>,
    rows: Vec<(&'a str, Vec<Cell>)>,
    /// The thing after it.
    next: Option<usize>,
}

/// The rows of all nodes, equal ones once, in the order in which the nodes have them.
fn together(columns: &[TableColumn], tables: &[RowTable], wide: bool) -> Vec<TableRow> {
    let mut groups: Vec<SharedRow<'_>> = Vec::new();
    let mut known: HashMap<(Vec<String>, usize), usize> = HashMap::new();
    let mut head: Option<usize> = None;
    for table in tables {
        let mut before: Option<usize> = None;
        let mut seen: HashMap<Vec<String>, usize> = HashMap::new();
        for row in &table.rows {
            let cells = aligned(columns, table, row);
            let identity = identity(columns, &cells);
            // Equal rows of one node are different things.
            let nth = seen.entry(identity.clone()).or_default();
            *nth += 1;
            let at = *known.entry((identity, *nth)).or_insert_with(|| {
                let at = groups.len();
                let place = match before.and_then(|before| groups.get_mut(before)) {
                    Some(before) => &mut before.next,
                    None => &mut head,
                };
                let next = place.replace(at);
                groups.push(SharedRow { name: &row.name, rows: Vec::new(), next });
                at
            });
            if let Some(group) = groups.get_mut(at) {
                group.rows.push((&table.node, cells));
            }
            before = Some(at);
        }
    }
    let in_order = std::iter::successors(head.and_then(|at| groups.get(at)), |group| {
        group.next.and_then(|at| groups.get(at))
    });
    in_order.map(|group| one(columns, group, tables.len(), wide)).collect()
}

/// What rows have to agree on.
fn identity(columns: &[TableColumn], cells: &[Cell]) -> Vec<String> {
    let same = columns.iter().zip(cells).filter(|(column, _)| column.merge == MergeRule::Same);
    same.map(|(_, cell)| cell.to_string()).collect()
}

fn one(columns: &[TableColumn], group: &SharedRow<'_>, total: usize, wide: bool) -> TableRow {
    let nodes: Vec<&str> = group.rows.iter().map(|(node, _)| *node).collect();
    let latest = latest(columns, group);
    let cell = |at: usize, column: &TableColumn| {
        let cells = || {
            let own = group.rows.iter().map(move |(node, cells)| (*node, cells.get(at)));
            own.filter_map(|(node, cell)| Some((node, cell?)))
        };
        match column.merge {
            MergeRule::Same => cells().next().map(|(_, cell)| cell.clone()),
            MergeRule::Latest => {
                group.rows.get(latest).and_then(|(_, cells)| cells.get(at)).cloned()
            }
            MergeRule::Sum => sum(cells().map(|(_, cell)| cell)),
            MergeRule::Largest => {
                cells().map(|(_, cell)| cell).max_by_key(|cell| cell.value()).cloned()
            }
            MergeRule::Smallest => {
                let known = cells().map(|(_, cell)| cell).filter(|cell| cell.value().is_some());
                known.min_by_key(|cell| cell.value()).cloned()
            }
            MergeRule::Union => Some(union(cells().collect(), nodes.len())),
        }
        .unwrap_or(Cell::None)
    };
    let merged = (0..).zip(columns).map(|(at, column)| cell(at, column));
    TableRow {
        cells: std::iter::once(Cell::Text(nodes_text(&nodes, total, wide))).chain(merged).collect(),
        name: group.name.clone(),
        item: Value::Null,
    }
}

/// The row about what happened last.
fn latest(columns: &[TableColumn], group: &SharedRow<'_>) -> usize {
    let Some(at) = columns.iter().position(|column| column.merge == MergeRule::Smallest) else {
        return 0;
    };
    let ages = group.rows.iter().enumerate();
    let known = ages.filter_map(|(row, (_, cells))| Some((cells.get(at)?.value()?, row)));
    known.min().map_or(0, |(_, row)| row)
}

fn sum<'a>(cells: impl Iterator<Item = &'a Cell>) -> Option<Cell> {
    cells.filter(|cell| cell.value().is_some()).cloned().reduce(|a, b| {
        let sum = a.value().unwrap_or_default().saturating_add(b.value().unwrap_or_default());
        match a {
            Cell::Bytes(_) => Cell::Bytes(sum),
            _ => Cell::Number(sum),
        }
    })
}

/// Items once each; free text with the node, unless all nodes say it.
fn union(cells: Vec<(&str, &Cell)>, total: usize) -> Cell {
    let mut texts: Vec<(String, Vec<&str>)> = Vec::new();
    let mut add = |node, text: &str| match texts.iter_mut().find(|(known, _)| known == text) {
        Some((_, nodes)) => nodes.push(node),
        None => texts.push((text.to_owned(), vec![node])),
    };
    let mut is_note = false;
    for (node, cell) in &cells {
        match cell {
            Cell::None => {}
            Cell::Note(text) => {
                is_note = true;
                if !text.is_empty() {
                    add(*node, text);
                }
            }
            Cell::Text(text) => {
                text.split(COMMA).filter(|item| !item.is_empty()).for_each(|item| add(*node, item));
            }
            number => add(*node, &number.to_string()),
        }
    }
    if is_note {
        let notes = texts.into_iter().map(|(text, nodes)| match nodes.len() {
            n if n == total => text,
            _ => format!("{}: {text}", nodes_text(&nodes, total, false)),
        });
        return Cell::Note(notes.collect::<Vec<_>>().join("; "));
    }
    match (texts.as_slice(), cells.as_slice()) {
        // One number stays a number, to sort by.
        ([_], [(_, cell), ..]) if cell.value().is_some() => (*cell).clone(),
        ([], _) => Cell::None,
        (texts, _) => {
            let texts: Vec<&str> = texts.iter().map(|(text, _)| text.as_str()).collect();
            Cell::Text(texts.join(COMMA))
        }
    }
}

/// Nodes in one word or two.
pub fn nodes_text(nodes: &[&str], total: usize, wide: bool) -> String {
    match nodes.len() {
        n if n == total && n > 1 && !wide => "all".to_owned(),
        n if n <= FEW || wide => nodes.join(COMMA),
        n => format!("{n} nodes"),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::{items, merge};
    use crate::cell::Cell;
    use crate::columns::{Style, text};
    use crate::table::{Column, MergeRule, RowScope, RowTable, TableColumn, TableRow};

    type Line<'a> = (&'a str, &'a str, &'a str, u64, Option<u64>, &'a str, &'a str);

    fn table(node: &str, scope: RowScope, lines: &[Line<'_>]) -> RowTable {
        let row = |(name, ready, at, flows, last, example, issue): &Line<'_>| TableRow {
            cells: vec![
                Cell::Text((*name).to_owned()),
                Cell::Text((*ready).to_owned()),
                Cell::Text((*at).to_owned()),
                Cell::Number(*flows),
                Cell::age(*last),
                Cell::Text((*example).to_owned()),
                Cell::Note((*issue).to_owned()),
            ],
            name: Some((*name).to_owned()),
            item: json!({ "name": name, "flows": flows }),
        };
        RowTable {
            node: node.to_owned(),
            noun: Cow::Borrowed("services"),
            scope,
            columns: [
                Column::new("NAME"),
                Column::new("READY"),
                Column::new("AT").merged(MergeRule::Union),
                Column::new("FLOWS").merged(MergeRule::Sum),
                Column::new("LAST").merged(MergeRule::Smallest),
                Column::new("EXAMPLE").merged(MergeRule::Latest),
                Column::new("ISSUE").merged(MergeRule::Union),
            ]
            .iter()
            .map(TableColumn::of)
            .collect(),
            rows: lines.iter().map(row).collect(),
        }
    }

    fn check(tables: &[RowTable], want: Expect) {
        let merged = merge(tables, false).unwrap();
        let mut out = Vec::new();
        text(&mut out, &merged, &Style::default()).unwrap();
        want.assert_eq(std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn things_of_the_cluster_are_one_row_and_a_difference_is_another() {
        let cluster = RowScope::Cluster;
        check(
            &[
                table(
                    "n1",
                    cluster,
                    &[
                        ("api", "2/2", "10.0.0.1:80,172.18.0.1:30080", 3, Some(40), "old", ""),
                        ("web", "1/1", "10.0.0.2:80", 1, None, "", "typo"),
                    ],
                ),
                table(
                    "n2",
                    cluster,
                    &[
                        (
                            "api",
                            "2/2",
                            "10.0.0.1:80,172.18.0.2:30080",
                            4,
                            Some(2),
                            "new",
                            "missing",
                        ),
                        ("db", "1/1", "10.0.0.3:80", 0, None, "", ""),
                        ("web", "0/1", "10.0.0.2:80", 1, None, "", "typo"),
                    ],
                ),
            ],
            expect![[r#"
                NODE  NAME  READY  AT                                             FLOWS  LAST    EXAMPLE  ISSUE
                all   api   2/2    10.0.0.1:80,172.18.0.1:30080,172.18.0.2:30080  7      2s      new      n2: missing
                n2    db    1/1    10.0.0.3:80                                    0      <none>  <none>
                n2    web   0/1    10.0.0.2:80                                    1      <none>  <none>   typo
                n1    web   1/1    10.0.0.2:80                                    1      <none>  <none>   typo
            "#]],
        );
    }

    #[test]
    fn things_of_a_node_stay_apart() {
        let node = RowScope::Node;
        let tables = [
            table("n1", node, &[("a", "1/1", "", 3, None, "", "")]),
            table("n2", node, &[("a", "1/1", "", 4, None, "", "")]),
        ];
        check(
            &tables,
            expect![[r#"
            NODE  NAME  READY  AT      FLOWS  LAST    EXAMPLE  ISSUE
            n1    a     1/1    <none>  3      <none>  <none>
            n2    a     1/1    <none>  4      <none>  <none>
        "#]],
        );
        assert_eq!(
            items(&tables),
            [
                json!({"node": "n1", "name": "a", "flows": 3}),
                json!({"node": "n2", "name": "a", "flows": 4})
            ]
        );
    }

    #[test]
    fn a_node_of_another_version_lacks_a_column() {
        let mut other = table("n2", RowScope::Node, &[("a", "1/1", "", 4, None, "", "")]);
        other.columns = other.columns.iter().filter(|c| c.name != "READY").cloned().collect();
        other.rows.iter_mut().for_each(|row| drop(row.cells.remove(1)));
        check(
            &[table("n1", RowScope::Node, &[("a", "1/1", "", 3, None, "", "")]), other],
            expect![[r#"
                NODE  NAME  READY   AT      FLOWS  LAST    EXAMPLE  ISSUE
                n1    a     1/1     <none>  3      <none>  <none>
                n2    a     <none>  <none>  4      <none>  <none>
            "#]],
        );
    }
}
