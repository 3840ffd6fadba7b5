//! Links of Markdown documents: whether the file and the heading that a link names exist, and whether the book in `docs/`
//! can be published, which means that its chapters link to chapters only. Nothing is fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Source;

/// The chapters of the book.
const BOOK: &str = "docs/src/";
const SUMMARY: &str = "docs/src/SUMMARY.md";

/// Checks all documents. `exists` says whether a file that is not a document exists, by its path from the root.
pub(super) fn check(documents: &[Source], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let written: BTreeMap<&str, &str> =
        documents.iter().map(|document| (document.path.as_str(), document.text.as_str())).collect();
    let mut texts = BTreeMap::new();
    for (path, text) in &written {
        let (text, missing) = with_includes(path, text, &written);
        complaints.extend(
            missing.iter().map(|file| format!("{path}: includes {file}: no such document")),
        );
        texts.insert(*path, text);
    }
    for (path, text) in &texts {
        let twice = repeated(text);
        complaints
            .extend(twice.map(|anchor| format!("{path}: the anchor {anchor} is there twice")));
    }
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        texts.iter().map(|(path, text)| (*path, anchors(text))).collect();
    let mut listed = BTreeSet::new();
    for (path, text) in &texts {
        for link in links(text).iter().filter(|link| !is_remote(&link.target)) {
            let mut complain = |why: &str| {
                complaints.push(format!("{path}: line {}: {}: {why}", link.line, link.target));
            };
            let (file, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
            let file = if file.is_empty() { (*path).to_owned() } else { resolve(path, file) };
            if *path == SUMMARY {
                listed.insert(file.clone());
            }
            if path.starts_with(BOOK) && !file.starts_with(BOOK) {
                complain("a chapter of the book can only link to chapters");
            } else if let Some(anchors) = anchors.get(file.as_str()) {
                if !anchor.is_empty() && !anchors.contains(anchor) {
                    complain("no such heading");
                }
            } else if !exists(Path::new(&file)) {
                complain("no such file");
            }
        }
    }
    let chapters = texts.keys().filter(|path| path.starts_with(BOOK) && **path != SUMMARY);
    for chapter in chapters.filter(|path| !listed.contains(**path)) {
        complaints.push(format!("{chapter}: {SUMMARY} does not list it"));
    }
    complaints
}

/// Returns a chapter's text with its included documents, and the includes that do not exist.
fn with_includes(path: &str, text: &str, all: &BTreeMap<&str, &str>) -> (String, Vec<String>) {
    let mut missing = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let file = line.strip_prefix("{{#include ").and_then(|rest| rest.strip_suffix("}}"));
        match file.map(|file| all.get(resolve(path, file).as_str()).ok_or(file)) {
            Some(Ok(text)) => lines.push(*text),
            Some(Err(file)) => missing.push(file.to_owned()),
            None => lines.push(line),
        }
    }
    (lines.join("\n"), missing)
}

/// A link, and the line that it is in.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    target: String,
}

/// Returns the links of a text: `[text](target)` and definitions `[name]: target`, outside of code.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (n, line) in without_code(text).lines().enumerate() {
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let definition = line.strip_prefix('[').and_then(|rest| Some(rest.split_once("]: ")?.1));
        for target in inline.chain(definition) {
            links.push(Link { line: n + 1, target: target.trim().to_owned() });
        }
    }
    links
}

/// Blanks fenced blocks and code in a line, and keeps the number of every line.
fn without_code(text: &str) -> String {
    let mut kept = String::new();
    let mut fenced = false;
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        if !fence && !fenced {
            kept.extend(line.split('`').step_by(2));
        }
        fenced ^= fence;
        kept.push('\n');
    }
    kept
}

/// Returns the anchors that a text declares with `<a id="NAME"></a>`, in their order.
pub(super) fn declared(text: &str) -> impl Iterator<Item = &str> {
    let places = outside_fences(text).flat_map(|line| line.split("<a id=\"").skip(1));
    places.filter_map(|rest| Some(rest.split_once('"')?.0))
}

/// Returns declared anchors that something else of the text has, too.
fn repeated(text: &str) -> impl Iterator<Item = &str> {
    let mut seen = headings(text);
    declared(text).filter(move |anchor| !seen.insert((*anchor).to_owned()))
}

/// Returns the anchors of a text: those of its headings, and declared ones.
pub(super) fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = headings(text);
    anchors.extend(declared(text).map(str::to_owned));
    anchors
}

/// Returns the anchors of a text's headings, as GitHub and mdBook make them.
fn headings(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let headings = outside_fences(text).filter(|line| line.starts_with('#'));
    for title in headings.map(|line| line.trim_start_matches('#').trim()) {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let anchor =
            title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|one| !anchors.contains(one));
        anchors.extend(free);
    }
    anchors
}

fn outside_fences(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    })
}

fn is_remote(target: &str) -> bool {
    ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme))
}

/// Resolves a relative target to a path from the root. A path that leaves the repository keeps its `..`.
fn resolve(document: &str, target: &str) -> String {
    let dir = document.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match parts.last() {
            Some(last) if part == ".." && *last != ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::{Source, anchors, check, resolve};

    fn complaints(documents: &[(&str, &str)]) -> Vec<String> {
        check(&Source::of(documents), |path| path == std::path::Path::new("LICENSE"))
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        let documents = [
            (
                "README.md",
                "[a](docs/src/a.md#two-words) [b](LICENSE) [c](#top)\n# Top\n[d](https://x.y)\n",
            ),
            ("docs/src/SUMMARY.md", "- [A](a.md)\n"),
            ("docs/src/a.md", "## Two `words`\n`[not](a-link.md)`\n```\n[nor](this.md)\n```\n"),
        ];
        assert_eq!(complaints(&documents), Vec::<String>::new());
    }

    #[test]
    fn a_missing_file_or_heading_is_named() {
        let documents = [
            ("README.md", "[a](gone.md)\n[b](b.md#gone)\n[c]: gone/\n"),
            ("b.md", "```\n# gone\n```\n"),
        ];
        assert_eq!(
            complaints(&documents),
            [
                "README.md: line 1: gone.md: no such file",
                "README.md: line 2: b.md#gone: no such heading",
                "README.md: line 3: gone/: no such file",
            ]
        );
    }

    #[test]
    fn chapters_link_to_chapters_and_are_listed() {
        let documents = [
            ("ARCHITECTURE.md", "# Map\n[c](CONTRIBUTING.md)\n"),
            ("CONTRIBUTING.md", ""),
            ("docs/src/SUMMARY.md", "[Map](ARCHITECTURE.md)\n"),
            ("docs/src/ARCHITECTURE.md", "{{#include ../../ARCHITECTURE.md}}\n"),
            ("docs/src/b.md", "[a](ARCHITECTURE.md#map)\n[b](../../CONTRIBUTING.md)\n"),
            ("docs/src/c.md", "{{#include d.md}}\n"),
        ];
        assert_eq!(
            complaints(&documents),
            [
                "docs/src/c.md: includes d.md: no such document",
                "docs/src/ARCHITECTURE.md: line 2: CONTRIBUTING.md: no such file",
                "docs/src/b.md: line 2: ../../CONTRIBUTING.md: a chapter of the book can only link to chapters",
                "docs/src/b.md: docs/src/SUMMARY.md does not list it",
                "docs/src/c.md: docs/src/SUMMARY.md does not list it",
            ]
        );
    }

    #[test]
    fn repeated_headings_are_numbered() {
        let anchors = anchors("# A b\n## A, b\n### What's `x_y`?\n");
        assert_eq!(anchors.into_iter().collect::<Vec<_>>(), ["a-b", "a-b-1", "whats-x_y"]);
    }

    #[test]
    fn declared_anchors_are_anchors_and_unique() {
        let rows = "| <a id=\"no-route\"></a>`NO_ROUTE` |\n| <a id=\"a-b\"></a>`A_B` |\n";
        let documents = [
            ("README.md", "[a](docs/src/a.md#no-route) [b](docs/src/a.md#no-rout)\n"),
            ("docs/src/SUMMARY.md", "- [A](a.md)\n"),
            ("docs/src/a.md", &format!("# A b\n{rows}")),
        ];
        assert_eq!(
            complaints(&documents),
            [
                "docs/src/a.md: the anchor a-b is there twice",
                "README.md: line 1: docs/src/a.md#no-rout: no such heading",
            ]
        );
    }

    #[test]
    fn paths_are_relative_to_the_document() {
        assert_eq!(resolve("deploy/README.md", "../docs/./src/a.md"), "docs/src/a.md");
        assert_eq!(resolve("README.md", "../x"), "../x");
    }
}
