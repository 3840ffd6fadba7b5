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
