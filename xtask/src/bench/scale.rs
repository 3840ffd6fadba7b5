//! `cargo xtask bench scale`: time and memory by the number of Services and endpoints. The agent's test target `scale`
//! measures; it prints a line `SIZE WHAT VALUE` for each figure.

use std::process::Command;

use anyhow::{Result, bail};

use super::nanos;
use crate::command::{as_root, output, say};

/// Builds the target in release mode, measures, prints a table for docs/src/performance.md.
///
/// # Errors
/// When the target cannot be built or fails.
pub(super) fn run() -> Result<()> {
    let binary = nanos::built("scale", &["--release"])?;
    say("Services by their number: a minute");
    let mut run = match as_root()? {
        [] => Command::new(&binary),
        [sudo, ..] => {
            let mut run = Command::new(sudo);
            run.arg(&binary);
            run
        }
    };
    let text = output(&mut run)?;
    print!("{}", table(&text)?);
    Ok(())
}

/// A row for each figure, a column for each size.
fn table(text: &str) -> Result<String> {
    let (mut sizes, mut rows): (Vec<&str>, Vec<(&str, Vec<&str>)>) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [size, what, value] = words[..] else { bail!("{line:?} is not SIZE WHAT VALUE") };
        if !sizes.contains(&size) {
            sizes.push(size);
        }
        match rows.iter_mut().find(|(known, _)| *known == what) {
            Some((_, values)) => values.push(value),
            None => rows.push((what, vec![value])),
        }
    }
    let mut table = format!("| | {} |\n|---|{}\n", sizes.join(" | "), "--:|".repeat(sizes.len()));
    for (what, values) in rows {
        table.push_str(&format!("| {} | {} |\n", what.replace('_', " "), values.join(" | ")));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn figures_are_put_beside_each_other() {
        let text = "1x2 cpu_ms 3\n1x2 kib 4\n5x6 cpu_ms 7\n5x6 kib 8\n";
        let want = "| | 1x2 | 5x6 |\n|---|--:|--:|\n| cpu ms | 3 | 7 |\n| kib | 4 | 8 |\n";
        assert_eq!(table(text).unwrap(), want);
        assert!(table("what is this line").is_err());
    }
}
