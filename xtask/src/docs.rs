//! The book: `docs/` to HTML in `target/book`, after a check of all links.

use anyhow::Result;

use crate::{
    args::Args,
    command::{self, command, root, say, target_dir},
    setup, tidy,
};

pub(crate) const USAGE: &str = "docs [--open]";

/// Checks the links of all documents and builds the book.
///
/// # Errors
/// When a link is broken, or mdbook fails.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut args = Args::new(args);
    let open = args.flag("--open");
    args.finish(USAGE)?;
    tidy::documents()?;
    let book = target_dir().join("book");
    let mut mdbook = command(&setup::mdbook().to_string_lossy());
    mdbook.arg("build").arg(root().join("docs")).arg("--dest-dir").arg(&book);
    if open {
        mdbook.arg("--open");
    }
    command::run(&mut mdbook)?;
    say(&format!("the book is in {}", book.join("index.html").display()));
    Ok(())
}
