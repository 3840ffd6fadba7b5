//! The book: `docs/` to HTML in `target/book`, after a check of all links.

use anyhow::Result;
use clap::Args;

use crate::{
    command::{self, command, root, say, target_dir},
    setup, tidy,
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Open the book in a browser
    #[arg(long)]
    open: bool,
}

/// Checks the links of all documents and builds the book.
///
/// # Errors
/// When a link is broken, or mdbook fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    tidy::documents()?;
    let book = target_dir().join("book");
    let mut mdbook = command(&setup::mdbook().to_string_lossy());
    mdbook.arg("build").arg(root().join("docs")).arg("--dest-dir").arg(&book);
    if options.open {
        mdbook.arg("--open");
    }
    command::run(&mut mdbook)?;
    say(&format!("the book is in {}", book.join("index.html").display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use crate::command::root;

    /// The tests that the table of version skew names.
    fn named(page: &str) -> Vec<&str> {
        let (_, table) = page.split_once("## Version skew").unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
        let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
        let words = cells.flat_map(|(_, cell)| cell.split('`').skip(1).step_by(2));
        words.filter(|word| !word.starts_with("cargo ")).collect()
    }

    /// Collects the text of all Rust files below a directory.
    fn sources(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *text += &fs::read_to_string(&path).unwrap();
            }
        }
    }

    #[test]
    fn the_tests_that_prove_version_skew_exist() {
        let page = fs::read_to_string(root().join("docs/src/releases.md")).unwrap();
        let mut text = String::new();
        for dir in ["lb-agent", "lb-common", "xtask/src"] {
            sources(&root().join(dir), &mut text);
        }
        let named = named(&page);
        assert!(named.len() >= 10, "{named:?}");
        for test in named {
            assert!(text.contains(&format!("fn {test}(")), "releases.md names {test}");
        }
    }
}
