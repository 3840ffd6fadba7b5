//! Rows → text: kubectl's table, JSON, YAML or names. It knows nothing of what the rows are about.
//!
//! The table is printed by hand: a table crate pads the last column, wraps at the width of the terminal and draws
//! borders, and all three break `grep`, `awk` and copying.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde::Serialize;

pub use crate::cell::{Cell, NONE, age, bytes};
pub use crate::format::Format;
use crate::format::FormatParser;
pub use crate::table::{Column, MergeRule, Row, RowScope, RowTable, TableRow};
use crate::table::{SortKey, position};
use lb_core::escape::Escaped;

/// How to print, as the flags say.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Style {
    /// Output format
    #[arg(short, long, value_parser = FormatParser, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
    /// Omit the header line
    #[arg(long)]
    pub no_headers: bool,
    /// Sort by this column (name in any case); numbers sort by value
    #[arg(long, value_name = "COLUMN")]
    pub sort_by: Option<String>,
}

/// What `-o json` and `-o yaml` print.
#[derive(Serialize)]
struct RowList<'a, R> {
    node: &'a str,
    items: &'a [R],
}

/// Prints rows in the format asked for.
///
/// # Errors
/// When `--sort-by` names no column, these rows have no names, or the output cannot be written.
pub fn print<R: Row>(
    out: &mut dyn Write,
    rows: &[R],
    node: &str,
    style: &Style,
) -> anyhow::Result<()> {
    let rows = sorted(rows, style)?;
    match style.output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            document(out, &RowList { node, items: &rows }, style.output)
        }
        Format::Name => names(out, R::NOUN, rows.iter().map(|row| row.name())),
        Format::Rows => json_line(out, &RowTable::with_items(node, &rows)?),
        Format::Table | Format::Wide => text(out, &RowTable::of(node, &rows), style),
    }
}

/// Prints the rows of a table as text.
///
/// # Errors
/// When the output cannot be written.
pub fn text(out: &mut dyn Write, table: &RowTable, style: &Style) -> anyhow::Result<()> {
    let headers = !style.no_headers && !table.rows.is_empty();
    Ok(align(out, &table.words(style.output == Format::Wide, headers), "")?)
}

/// Prints the names of rows, one a line, equal ones that follow each other once.
///
/// # Errors
/// When such rows have no names, or the output cannot be written.
pub fn names(
    out: &mut dyn Write,
    noun: &str,
    names: impl Iterator<Item = Option<String>>,
) -> anyhow::Result<()> {
    let mut last = None;
    for name in names {
        let name = name.with_context(|| format!("{noun} cannot be printed as names"))?;
        if last.as_ref() != Some(&name) {
            line(out, &name)?;
        }
        last = Some(name);
    }
    Ok(())
}

/// Prints a value as JSON in one line.
///
/// # Errors
/// When the output cannot be written.
pub fn json_line<T: Serialize>(out: &mut dyn Write, value: &T) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Rows in a stream that also has lines of other kinds.
#[derive(Serialize)]
struct RowsLine {
    rows: RowTable,
}

/// Rows as they come: a table whose columns only grow, or JSON with one object a line.
#[derive(Debug)]
pub struct RowStream {
    output: Format,
    headers: bool,
    widths: Vec<usize>,
}

impl RowStream {
    /// Rows are printed in this style.
    ///
    /// # Errors
    /// When rows cannot be printed so as they come.
    pub fn new(style: &Style) -> anyhow::Result<Self> {
        match style.output {
            Format::Table | Format::Wide | Format::Json | Format::JsonPath(_) | Format::Rows => {}
            Format::Yaml | Format::Name => {
                bail!("a stream of rows can only be printed as a table or as JSON")
            }
        }
        Ok(Self { output: style.output, headers: !style.no_headers, widths: Vec::new() })
    }

    /// Prints some rows, the column names before the first of all.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn print<R: Row>(&mut self, out: &mut dyn Write, rows: &[R]) -> anyhow::Result<()> {
        let all: Vec<&R> = rows.iter().collect();
        match self.output {
            Format::Json => rows.iter().try_for_each(|row| json_line(out, row))?,
            Format::JsonPath(_) => {
                rows.iter().try_for_each(|row| document(out, row, self.output))?;
            }
            Format::Rows if rows.is_empty() => {}
            Format::Rows => json_line(out, &RowsLine { rows: RowTable::with_items("", &all)? })?,
            Format::Table | Format::Wide | Format::Yaml | Format::Name => {
                return self.print_table(out, &RowTable::of("", &all));
            }
        }
        Ok(out.flush()?)
    }

    /// The same for rows that are data already.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn print_table(&mut self, out: &mut dyn Write, table: &RowTable) -> anyhow::Result<()> {
        if self.output == Format::Json {
            table.rows.iter().try_for_each(|row| json_line(out, &row.item))?;
        } else if let Format::JsonPath(template) = self.output {
            table.rows.iter().try_for_each(|row| template.print(out, &row.item))?;
        } else if !table.rows.is_empty() {
            let headers = std::mem::take(&mut self.headers);
            let lines = table.words(self.output == Format::Wide, headers);
            align_on(out, &lines, "", &mut self.widths)?;
        }
        Ok(out.flush()?)
    }
}

/// A row without what changes by itself: the ages. `--watch` compares these.
pub fn lasting(cells: &[Cell]) -> Vec<String> {
    cells.iter().filter(|cell| !matches!(cell, Cell::Age(_))).map(Cell::to_string).collect()
}

/// Prints one value as YAML, by a template, or else as JSON.
///
/// # Errors
/// When the output cannot be written.
pub fn document<T: Serialize>(
    out: &mut dyn Write,
    value: &T,
    format: Format,
) -> anyhow::Result<()> {
    match format {
        Format::Yaml => {
            out.write_all(serde_saphyr::to_string(value).context("write YAML")?.as_bytes())?;
        }
        Format::JsonPath(template) => template.print(out, &serde_json::to_value(value)?)?,
        Format::Table | Format::Wide | Format::Json | Format::Name | Format::Rows => {
            serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// Prints one line of text, whatever others have written into it.
///
/// # Errors
/// When the output cannot be written.
pub fn line(out: &mut dyn Write, text: impl fmt::Display) -> io::Result<()> {
    writeln!(out, "{}", Escaped(text))
}

/// Prints lines of words in columns: as wide as their widest word, two spaces between, nothing after the last.
///
/// # Errors
/// When the output cannot be written.
pub fn align(out: &mut dyn Write, lines: &[Vec<String>], indent: &str) -> io::Result<()> {
    align_on(out, lines, indent, &mut Vec::new())
}

/// The same for lines that follow others: the columns are never narrower than they were.
fn align_on(
    out: &mut dyn Write,
    lines: &[Vec<String>],
    indent: &str,
    widths: &mut Vec<usize>,
) -> io::Result<()> {
    let escaped = |line: &Vec<String>| line.iter().map(|word| Escaped(word).to_string()).collect();
    let lines: Vec<Vec<String>> = lines.iter().map(escaped).collect();
    let lines = lines.as_slice();
    for line in lines {
        for (i, word) in line.iter().enumerate() {
            let width = word.chars().count();
            match widths.get_mut(i) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    for line in lines {
        let padded = line.iter().zip(&*widths).map(|(word, width)| format!("{word:width$}"));
        let text = padded.collect::<Vec<_>>().join("  ");
        writeln!(out, "{indent}{}", text.trim_end())?;
    }
    Ok(())
}

fn sorted<'a, R: Row>(rows: &'a [R], style: &Style) -> anyhow::Result<Vec<&'a R>> {
    let mut rows: Vec<&R> = rows.iter().collect();
    let Some(wanted) = &style.sort_by else { return Ok(rows) };
    let position = position(R::COLUMNS.iter().map(|column| column.name), wanted)?;
    rows.sort_by_cached_key(|row| SortKey(row.cells().into_iter().nth(position)));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde::Serialize;

    use super::{Cell, Column, Format, Row, Style, print};

    #[derive(Serialize)]
    struct Fruit {
        name: &'static str,
        price: Option<u64>,
        note: &'static str,
    }

    impl Row for Fruit {
        const NOUN: &'static str = "fruits";
        const COLUMNS: &'static [Column] =
            &[Column::new("NAME"), Column::wide("PRICE"), Column::new("NOTE")];

        fn cells(&self) -> Vec<Cell> {
            vec![
                Cell::Text(self.name.to_owned()),
                Cell::number(self.price),
                Cell::Note(self.note.to_owned()),
            ]
        }

        fn name(&self) -> Option<String> {
            Some(self.name.to_owned())
        }
    }

    fn check(style: &Style, want: Expect) {
        let rows = [
            Fruit { name: "pear-10", price: Some(9), note: "" },
            Fruit { name: "pear-9", price: None, note: "as it comes" },
            Fruit { name: "", price: Some(100), note: "" },
        ];
        let mut out = Vec::new();
        if let Err(error) = print(&mut out, &rows, "n1", style) {
            out.extend(format!("error: {error}\n").into_bytes());
        }
        want.assert_eq(std::str::from_utf8(&out).unwrap());
    }

    fn style(output: Format, sort_by: &str) -> Style {
        let sort_by = (!sort_by.is_empty()).then(|| sort_by.to_owned());
        Style { output, no_headers: false, sort_by }
    }

    #[test]
    fn table_without_padding_at_the_end() {
        check(
            &style(Format::Table, ""),
            expect![[r#"
                NAME     NOTE
                pear-10
                pear-9   as it comes
                <none>
            "#]],
        );
    }

    #[test]
    fn numbers_sort_by_value_and_unknown_ones_last() {
        check(
            &style(Format::Wide, "price"),
            expect![[r#"
                NAME     PRICE   NOTE
                pear-10  9
                <none>   100
                pear-9   <none>  as it comes
            "#]],
        );
        check(
            &Style { no_headers: true, ..style(Format::Table, "NAME") },
            expect![[r#"
                <none>
                pear-9   as it comes
                pear-10
            "#]],
        );
        check(
            &style(Format::Table, "colour"),
            expect![[r#"
                error: --sort-by colour: no such column; the columns are NAME, PRICE, NOTE
            "#]],
        );
    }

    #[test]
    fn documents_and_names() {
        check(
            &style(Format::Json, ""),
            expect![[r#"
                {
                  "node": "n1",
                  "items": [
                    {
                      "name": "pear-10",
                      "price": 9,
                      "note": ""
                    },
                    {
                      "name": "pear-9",
                      "price": null,
                      "note": "as it comes"
                    },
                    {
                      "name": "",
                      "price": 100,
                      "note": ""
                    }
                  ]
                }
            "#]],
        );
        check(
            &style(Format::Yaml, ""),
            expect![[r#"
            node: n1
            items:
            - name: pear-10
              price: 9
              note: ""
            - name: pear-9
              price: null
              note: as it comes
            - name: ""
              price: 100
              note: ""
        "#]],
        );
        check(
            &style(Format::Name, "NAME"),
            expect![[r#"

                pear-9
                pear-10
            "#]],
        );
    }
}
