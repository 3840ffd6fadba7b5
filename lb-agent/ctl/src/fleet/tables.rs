//! Commands that print rows: the tables of all nodes, merged, once or with their changes.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::columns::{self, Format, Style};
use crate::fleet::ask::{FleetQuery, FromNode, NoAnswer, own_words, report};
use crate::fleet::merge::{items, merge};
use crate::fleet::remark::remark;
use crate::fleet::unready;
use crate::table::{RowTable, TableRow};
use lb_remote::{FollowEvent, FollowStep, RemoteCommand};

/// Changes of several nodes within this time are printed together: a change of the cluster arrives everywhere, and each
/// node looks once a second.
const TOGETHER: Duration = Duration::from_millis(1200);

/// What `-o json` and `-o yaml` print.
#[derive(Serialize)]
struct ClusterRows<'a> {
    nodes: Vec<&'a str>,
    items: Vec<Value>,
}

/// Prints the rows of the nodes, once.
///
/// # Errors
/// When no node answers, `--sort-by` names no column, or the output cannot be written.
pub fn once(
    asked: &FleetQuery,
    args: Vec<String>,
    style: &Style,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    checked(asked, args, style, out).map(drop)
}

/// Prints the rows of a check on each node; returns the greatest exit status of them.
///
/// # Errors
/// As for [`once`].
pub fn checked(
    asked: &FleetQuery,
    args: Vec<String>,
    style: &Style,
    out: &mut dyn Write,
) -> anyhow::Result<i32> {
    let answers: Vec<FromNode<RowTable>> = asked.json_or_remark(args, None)?;
    let code = answers.iter().map(|answer| answer.code).max().unwrap_or_default();
    let mut tables: Vec<RowTable> = answers.into_iter().map(named).collect();
    unready::complete_rows(asked, &mut tables);
    print(&tables, style, out)?;
    Ok(code)
}

/// The node's name is that of the object, also where its name table is missing.
fn named(answer: FromNode<RowTable>) -> RowTable {
    RowTable { node: answer.node, ..answer.answer }
}

/// Prints merged tables.
///
/// # Errors
/// When `--sort-by` names no column, these rows have no names, or the output cannot be written.
pub fn print(tables: &[RowTable], style: &Style, out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(mut merged) = merge(tables, style.output == Format::Wide) else { return Ok(()) };
    if merged.rows.is_empty() {
        remark(&format_args!("no {} found", merged.noun));
    }
    if let Some(wanted) = &style.sort_by {
        merged.sort_by(wanted)?;
    }
    match style.output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            let nodes = tables.iter().map(|table| table.node.as_str()).collect();
            columns::document(out, &ClusterRows { nodes, items: items(tables) }, style.output)
        }
        Format::Name => {
            columns::names(out, &merged.noun, merged.rows.iter().map(|row| row.name.clone()))
        }
        Format::Rows => columns::json_line(out, &merged),
        Format::Table | Format::Wide => columns::text(out, &merged, style),
    }
}

/// Prints the rows, and those that change, until all nodes are gone.
///
/// # Errors
/// When rows cannot be printed so as they come, or the output cannot be written.
pub fn watch(
    asked: &FleetQuery,
    args: Vec<String>,
    style: &Style,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    report(&asked.without_agent(), asked.agents.len());
    let mut follow =
        asked.fleet.follow(&RemoteCommand { args, ..RemoteCommand::default() }, &asked.agents);
    let mut style = style.clone();
    let mut tables: BTreeMap<String, RowTable> = BTreeMap::new();
    let mut seen: HashSet<Vec<String>> = HashSet::new();
    let mut changed = false;
    loop {
        match follow.next(TOGETHER) {
            FollowStep::Event(FollowEvent::Line { node, line }) => {
                match serde_json::from_str::<RowTable>(&line) {
                    Ok(table) => {
                        tables.insert(node.clone(), RowTable { node, ..table });
                        changed = true;
                    }
                    Err(error) => remark(&format_args!("{node}: unexpected output: {error}")),
                }
            }
            FollowStep::Event(FollowEvent::Remark { node, line }) => {
                remark(&format_args!("{node}: {}", own_words(&line)));
            }
            FollowStep::Event(FollowEvent::Closed { node, why }) => {
                tables.remove(&node);
                report(&[NoAnswer { node, error: why }], asked.agents.len());
            }
            FollowStep::Silence if changed => {
                changed = false;
                let mut tables: Vec<RowTable> = tables.values().cloned().collect();
                let is_wide = style.output == Format::Wide;
                let Some(merged) = merge(&tables, is_wide) else { continue };
                let lasting = |row: &TableRow| columns::lasting(&row.cells);
                let now_seen: Vec<Vec<String>> = merged.rows.iter().map(lasting).collect();
                let is_new = now_seen.iter().map(|row| !seen.contains(row)).collect::<Vec<_>>();
                if is_new.contains(&true) {
                    // The reason of a Pod that is not ready has its age, and would change with each look.
                    unready::complete_rows(asked, &mut tables);
                    let Some(mut news) = merge(&tables, is_wide) else { continue };
                    let mut is_new = is_new.into_iter();
                    news.rows.retain(|_| is_new.next().unwrap_or(true));
                    if let Some(wanted) = &style.sort_by {
                        news.sort_by(wanted)?;
                    }
                    changes(&tables, &news, &style, out)?;
                    out.flush()?;
                    style.no_headers = true;
                }
                seen = now_seen.into_iter().collect();
            }
            FollowStep::Silence => {}
            FollowStep::End => return Ok(()),
        }
    }
}

/// Prints what has changed; JSON and YAML are whole documents.
fn changes(
    tables: &[RowTable],
    news: &RowTable,
    style: &Style,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match style.output {
        Format::Table | Format::Wide => columns::text(out, news, style),
        Format::Name => columns::names(out, &news.noun, news.rows.iter().map(|r| r.name.clone())),
        Format::Json | Format::Yaml | Format::JsonPath(_) | Format::Rows => {
            print(tables, style, out)
        }
    }
}
