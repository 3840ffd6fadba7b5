//! Rows as data: a kind of row says what its columns are and how the rows of several nodes become one. A table of rows
//! is what `-o rows` prints, so that a laptop can merge what nodes answer without knowing what the rows are about.

use std::borrow::Cow;
use std::cmp::Ordering;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;

/// One column of a kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header, upper case, no spaces.
    pub name: &'static str,
    /// Only shown by `-o wide`.
    pub wide: bool,
    /// How the values of several nodes become one.
    pub merge: MergeRule,
}

/// How the values that several nodes have for one thing become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeRule {
    /// Rows are about the same thing only if they are equal here: what differs between nodes stays visible.
    #[default]
    Same,
    /// The sum: each node counts its own.
    Sum,
    /// The largest number.
    Largest,
    /// The smallest number: the age of what happened last.
    Smallest,
    /// All values, each once.
    Union,
    /// That of the row with the smallest number in the first column of that rule.
    Latest,
}

/// What rows with equal values on several nodes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowScope {
    /// Things of that node.
    #[default]
    Node,
    /// One thing of the cluster, which each node knows.
    Cluster,
}

impl Column {
    /// A column that is always shown.
    pub const fn new(name: &'static str) -> Self {
        Self { name, wide: false, merge: MergeRule::Same }
    }

    /// A column for `-o wide`.
    pub const fn wide(name: &'static str) -> Self {
        Self { name, wide: true, merge: MergeRule::Same }
    }

    /// The same column with this rule.
    #[must_use]
    pub const fn merged(self, merge: MergeRule) -> Self {
        Self { merge, ..self }
    }
}

/// A kind of row: its columns, and one row's values for them.
pub trait Row: Serialize {
    /// What several rows are called, for "no … found".
    const NOUN: &'static str;
    /// The columns, in order.
    const COLUMNS: &'static [Column];
    /// What equal rows of several nodes are.
    const SCOPE: RowScope = RowScope::Node;
    /// One cell per column.
    fn cells(&self) -> Vec<Cell>;
    /// What `-o name` prints; `None` when such rows have no names.
    fn name(&self) -> Option<String>;
}

/// Rows of one kind, of one node or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowTable {
    /// The node; empty = not known, or several.
    pub node: String,
    /// What the rows are called.
    pub noun: Cow<'static, str>,
    /// What equal rows of several nodes are.
    pub scope: RowScope,
    /// The columns, in order.
    pub columns: Vec<TableColumn>,
    /// The rows, in order.
    pub rows: Vec<TableRow>,
}

/// A [`Column`], maybe of another version of this program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableColumn {
    /// Header.
    pub name: Cow<'static, str>,
    /// Only shown by `-o wide`.
    pub wide: bool,
    /// How the values of several nodes become one.
    pub merge: MergeRule,
}

impl TableColumn {
    /// The column of a kind of row.
    pub const fn of(column: &Column) -> Self {
        let Column { name, wide, merge } = *column;
        Self { name: Cow::Borrowed(name), wide, merge }
    }
}

/// One row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRow {
    /// One cell per column.
    pub cells: Vec<Cell>,
    /// What `-o name` prints; `None` when such rows have no names.
    pub name: Option<String>,
    /// What `-o json` prints; null where only the cells are needed.
    #[serde(default)]
    pub item: serde_json::Value,
}

impl RowTable {
    /// Makes a table of rows; the items stay null.
    pub fn of<R: Row>(node: &str, rows: &[&R]) -> Self {
        debug_assert!(
            rows.iter().all(|row| row.cells().len() == R::COLUMNS.len()),
            "one cell a column"
        );
        let row = |row: &&R| TableRow {
            cells: row.cells(),
            name: row.name(),
            item: serde_json::Value::Null,
        };
        Self {
            node: node.to_owned(),
            noun: Cow::Borrowed(R::NOUN),
            scope: R::SCOPE,
            columns: R::COLUMNS.iter().map(TableColumn::of).collect(),
            rows: rows.iter().map(row).collect(),
        }
    }

    /// Makes a table of rows with their items.
    ///
    /// # Errors
    /// When a row cannot be written as JSON.
    pub fn with_items<R: Row>(node: &str, rows: &[&R]) -> anyhow::Result<Self> {
        let mut table = Self::of(node, rows);
        for (row, item) in table.rows.iter_mut().zip(rows) {
            row.item = serde_json::to_value(item).context("write a row as JSON")?;
        }
        Ok(table)
    }

    /// Sorts the rows by a column, whose name is given in any case; numbers by value.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn sort_by(&mut self, wanted: &str) -> anyhow::Result<()> {
        let position = position(self.columns.iter().map(|column| &*column.name), wanted)?;
        self.rows.sort_by_cached_key(|row| SortKey(row.cells.get(position).cloned()));
        Ok(())
    }

    /// The words of the columns that are shown, line by line.
    pub fn words(&self, wide: bool, headers: bool) -> Vec<Vec<String>> {
        let shown: Vec<bool> = self.columns.iter().map(|column| wide || !column.wide).collect();
        let headers = headers.then(|| {
            let shown = self.columns.iter().filter(|column| wide || !column.wide);
            shown.map(|column| column.name.clone().into_owned()).collect()
        });
        let line = |row: &TableRow| {
            let cells = row.cells.iter().zip(&shown).filter(|(_, shown)| **shown);
            cells.map(|(cell, _)| cell.to_string()).collect()
        };
        headers.into_iter().chain(self.rows.iter().map(line)).collect()
    }
}

/// Returns where the column is that has this name in any case.
///
/// # Errors
/// When there is no such column; the error lists those that there are.
pub fn position<'a>(
    columns: impl Iterator<Item = &'a str> + Clone,
    wanted: &str,
) -> anyhow::Result<usize> {
    if let Some(position) = columns.clone().position(|name| name.eq_ignore_ascii_case(wanted)) {
        return Ok(position);
    }
    let known: Vec<&str> = columns.collect();
    bail!("--sort-by {wanted}: no such column; the columns are {}", known.join(", "))
}

/// A cell to sort by; rows without it are last.
#[derive(Clone, Debug)]
pub struct SortKey(pub Option<Cell>);

impl Ord for SortKey {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => a.compare(b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }
}

impl PartialOrd for SortKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for SortKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for SortKey {}
