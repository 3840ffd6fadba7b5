//! Rows → text: kubectl's table, JSON, YAML or names. It knows nothing of what the rows are about.
//!
//! The table is printed by hand: a table crate pads the last column, wraps at the width of the terminal and draws
//! borders, and all three break `grep`, `awk` and copying.

use std::cmp::Ordering;
use std::fmt;
use std::io::{self, Write};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::natural;
use lb_core::escape::Escaped;

/// What stands for a value that does not exist or is not known.
pub const NONE: &str = "<none>";

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One JSON object.
    Json,
    /// One YAML document.
    Yaml,
    /// Only the names, one a line.
    Name,
}

/// How to print, as the flags say.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Style {
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Omit the header line
    #[arg(long)]
    pub no_headers: bool,
    /// Sort by this column (name in any case); numbers sort by value
    #[arg(long, value_name = "COLUMN")]
    pub sort_by: Option<String>,
}

/// One column of a kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header, upper case, no spaces.
    pub name: &'static str,
    /// Only shown by `-o wide`.
    pub wide: bool,
}

impl Column {
    /// A column that is always shown.
    pub const fn new(name: &'static str) -> Self {
        Self { name, wide: false }
    }

    /// A column for `-o wide`.
    pub const fn wide(name: &'static str) -> Self {
        Self { name, wide: true }
    }
}

/// One value in a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text; sorts with its numbers by value. Empty text is shown as `<none>`.
    Text(String),
    /// Free text at the end of a row; shown as it is, even empty.
    Note(String),
    /// A count.
    Number(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A share, in thousandths.
    Permille(u64),
    /// Seconds, shown like kubectl's AGE.
    Age(u64),
    /// Not known.
    None,
}

impl Cell {
    /// A number, if it is known.
    pub fn number(value: Option<u64>) -> Self {
        value.map_or(Self::None, Self::Number)
    }

    /// An age in seconds, if it is known.
    pub fn age(seconds: Option<u64>) -> Self {
        seconds.map_or(Self::None, Self::Age)
    }

    /// Items separated by commas, without spaces, so that a column stays one word.
    pub fn list<T: fmt::Display>(items: &[T]) -> Self {
        Self::Text(items.iter().map(T::to_string).collect::<Vec<_>>().join(","))
    }

    /// Order of `--sort-by`: numbers by value, unknown values last.
    fn compare(&self, other: &Self) -> Ordering {
        match (self.value(), other.value()) {
            (Some(a), Some(b)) => a.cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => natural::compare(&self.to_string(), &other.to_string()),
        }
    }

    fn value(&self) -> Option<u64> {
        match self {
            Self::Number(n) | Self::Bytes(n) | Self::Permille(n) | Self::Age(n) => Some(*n),
            Self::Text(_) | Self::Note(_) | Self::None => None,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if text.is_empty() => f.write_str(NONE),
            Self::Text(text) | Self::Note(text) => f.write_str(text),
            Self::Number(n) => n.fmt(f),
            Self::Bytes(n) => f.write_str(&bytes(*n)),
            Self::Permille(n) => write!(f, "{}.{}", n / 10, n % 10),
            Self::Age(seconds) => f.write_str(&age(*seconds)),
            Self::None => f.write_str(NONE),
        }
    }
}

/// A kind of row: its columns, and one row's values for them.
pub trait Row: Serialize {
    /// What several rows are called, for "no … found".
    const NOUN: &'static str;
    /// The columns, in order.
    const COLUMNS: &'static [Column];
    /// One cell per column.
    fn cells(&self) -> Vec<Cell>;
    /// What `-o name` prints; `None` when such rows have no names.
    fn name(&self) -> Option<String>;
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
        Format::Json | Format::Yaml => {
            document(out, &RowList { node, items: &rows }, style.output)?
        }
        Format::Name => {
            let mut last = None;
            for row in rows {
                let name = row
                    .name()
                    .with_context(|| format!("{} cannot be printed as names", R::NOUN))?;
                if last.as_ref() != Some(&name) {
                    line(out, &name)?;
                }
                last = Some(name);
            }
        }
        Format::Table | Format::Wide => {
            let wide = style.output == Format::Wide;
            let headers = !style.no_headers && !rows.is_empty();
            align(out, &words::<R>(&rows, wide, headers), "")?;
        }
    }
    Ok(())
}

/// The words of the columns that are shown, line by line.
fn words<R: Row>(rows: &[&R], wide: bool, headers: bool) -> Vec<Vec<String>> {
    debug_assert!(
        rows.iter().all(|row| row.cells().len() == R::COLUMNS.len()),
        "one cell a column"
    );
    let shown = |i: usize| R::COLUMNS.get(i).is_some_and(|column| wide || !column.wide);
    let mut lines = Vec::new();
    if headers {
        lines.push(R::COLUMNS.iter().map(|column| column.name.to_owned()).collect());
    }
    lines.extend(rows.iter().map(|row| row.cells().iter().map(Cell::to_string).collect()));
    let keep = |line: Vec<String>| {
        line.into_iter().enumerate().filter(|(i, _)| shown(*i)).map(|(_, text)| text)
    };
    lines.into_iter().map(|line| keep(line).collect()).collect()
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
            Format::Table | Format::Wide | Format::Json => {}
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
        if self.output == Format::Json {
            for row in rows {
                serde_json::to_writer(&mut *out, row).map_err(io::Error::from)?;
                writeln!(out)?;
            }
        } else if !rows.is_empty() {
            let rows: Vec<&R> = rows.iter().collect();
            let headers = std::mem::take(&mut self.headers);
            let lines = words::<R>(&rows, self.output == Format::Wide, headers);
            align_on(out, &lines, "", &mut self.widths)?;
        }
        Ok(out.flush()?)
    }
}

/// A row without what changes by itself: the ages. `--watch` compares these.
pub fn lasting<R: Row>(row: &R) -> Vec<String> {
    let cells = row.cells();
    cells.iter().filter(|cell| !matches!(cell, Cell::Age(_))).map(Cell::to_string).collect()
}

/// Prints one value as JSON or YAML; anything but YAML is JSON.
///
/// # Errors
/// When the output cannot be written.
pub fn document<T: Serialize>(
    out: &mut dyn Write,
    value: &T,
    format: Format,
) -> anyhow::Result<()> {
    if format == Format::Yaml {
        out.write_all(serde_saphyr::to_string(value).context("write YAML")?.as_bytes())?;
    } else {
        serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
        writeln!(out)?;
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
    let is_wanted = |column: &Column| column.name.eq_ignore_ascii_case(wanted);
    let Some(position) = R::COLUMNS.iter().position(is_wanted) else {
        let known: Vec<&str> = R::COLUMNS.iter().map(|column| column.name).collect();
        bail!("--sort-by {wanted}: no such column; the columns are {}", known.join(", "));
    };
    rows.sort_by_cached_key(|row| SortKey(row.cells().into_iter().nth(position)));
    Ok(rows)
}

struct SortKey(Option<Cell>);

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

/// Seconds as kubectl writes them (k8s.io/apimachinery `duration.HumanDuration`): `119s`, `4m30s`, `3h20m`, `4d3h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// Bytes with a binary unit, as Kubernetes writes quantities: `512`, `4.0Ki`, `12.5Mi`.
pub fn bytes(n: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let tenths = n.saturating_mul(10) / unit;
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    };
    match n {
        0..1024 => n.to_string(),
        1024..1_048_576 => scaled(1024, "Ki"),
        1_048_576..1_073_741_824 => scaled(1_048_576, "Mi"),
        _ => scaled(1_073_741_824, "Gi"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde::Serialize;

    use super::{Cell, Column, Format, Row, Style, age, bytes, print};

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

    #[test]
    fn ages_are_kubectls() {
        let minute = 60;
        let hour = 3600;
        let day = 24 * hour;
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (4 * minute + 30, "4m30s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 20 * minute, "3h20m"),
            (47 * hour, "47h"),
            (4 * day + 3 * hour, "4d3h"),
            (8 * day, "8d"),
            (729 * day, "729d"),
            (1000 * day, "2y270d"),
            (9 * 365 * day, "9y"),
        ] {
            assert_eq!(age(seconds), want, "{seconds} s");
        }
    }

    #[test]
    fn bytes_have_binary_units() {
        for (n, want) in [(0, "0"), (1023, "1023"), (1536, "1.5Ki"), (12_345_678, "11.7Mi")] {
            assert_eq!(bytes(n), want);
        }
    }
}
