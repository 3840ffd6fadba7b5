//! Parts of the documents that the code says as well: examples and lists. Tests compare them; `UPDATE_EXPECT=1` writes them.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// A row of a table of names: what the code calls something, and what there is to say about it. Links find the row by its anchor.
pub struct NamedRow<const N: usize> {
    anchor: String,
    name: String,
    cells: [String; N],
}

impl<const N: usize> NamedRow<N> {
    /// The row of a name.
    pub fn new<T: Into<String>>(name: impl Into<String>, cells: [T; N]) -> Self {
        let name = name.into();
        let anchor = name.to_lowercase().replace('_', "-");
        Self { anchor, name, cells: cells.map(Into::into) }
    }

    /// The row with the anchor `LIST-NAME`, for names that several tables of a document have.
    #[must_use]
    pub fn within(self, list: &str) -> Self {
        Self { anchor: format!("{list}-{}", self.anchor), ..self }
    }

    fn line(&self) -> String {
        let Self { anchor, name, cells } = self;
        format!("| <a id=\"{anchor}\"></a>`{name}` | {} |\n", cells.join(" | "))
    }
}

/// A document of the repository.
pub struct CheckedDocument {
    path: PathBuf,
    text: String,
    wrong: Vec<String>,
}

impl CheckedDocument {
    /// Reads the document at a path from the root of the repository.
    pub fn read(path: &str) -> Self {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = crate_root.ancestors().find(|dir| dir.join("docs/book.toml").exists()).unwrap();
        let path = root.join(path);
        let text = std::fs::read_to_string(&path).unwrap();
        Self { path, text, wrong: Vec::new() }
    }

    /// All of its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the block of code after `<!-- example: NAME -->`.
    pub fn example(&self, name: &str) -> &str {
        &self.text[self.example_at(name)]
    }

    /// Compares the block of code after `<!-- example: NAME -->`.
    pub fn compare_example(&mut self, name: &str, found: &str) {
        self.compare(self.example_at(name), name, found);
    }

    /// Reports whether a row of a table has this anchor.
    pub fn has_anchor(&self, anchor: &str) -> bool {
        self.text.contains(&format!("| <a id=\"{anchor}\"></a>`"))
    }

    /// Compares the rows of the table after `<!-- list: NAME -->`.
    pub fn compare_list<const N: usize>(
        &mut self,
        name: &str,
        rows: impl IntoIterator<Item = NamedRow<N>>,
    ) {
        let marker = format!("<!-- list: {name} -->\n\n");
        let start = self.after(&marker);
        // The heads of the columns and the line below them.
        let lines = self.text[start..].split_inclusive('\n');
        let lines: Vec<usize> =
            lines.take_while(|line| line.starts_with('|')).map(str::len).collect();
        let end = start + lines.iter().sum::<usize>();
        let start = start + lines.iter().take(2).sum::<usize>();
        let rows: String = rows.into_iter().map(|row| row.line()).collect();
        self.compare(start..end, name, &rows);
    }

    /// Fails if anything differs.
    pub fn finish(self) {
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&self.path, &self.text).unwrap();
        } else {
            let wrong = self.wrong.join("\n");
            assert!(wrong.is_empty(), "{}: UPDATE_EXPECT=1 writes {wrong}", self.path.display());
        }
    }

    fn example_at(&self, name: &str) -> Range<usize> {
        let start = self.after(&format!("<!-- example: {name} -->\n\n```"));
        let start = start + self.text[start..].find('\n').unwrap() + 1;
        start..start + self.text[start..].find("```\n").unwrap()
    }

    fn after(&self, marker: &str) -> usize {
        let found = self.text.find(marker);
        found.unwrap_or_else(|| panic!("{}: no {marker}", self.path.display())) + marker.len()
    }

    fn compare(&mut self, at: Range<usize>, name: &str, found: &str) {
        if self.text[at.clone()] != *found {
            self.wrong.push(format!("{name}:\n{found}"));
            self.text.replace_range(at, found);
        }
    }
}
