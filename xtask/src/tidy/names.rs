//! Names of codes, metrics, alerts and settings: one that a document mentions is one that the code has, and a place in the book that
//! the code or a manifest names exists. Pictures are documents, too.
//!
//! What there is, the reference tables of the book say: each row has an anchor and the name. Tests of the crates compare these
//! tables with what the code declares, so they are complete and true.

use std::collections::{BTreeMap, BTreeSet};

use super::Source;
use super::links::anchors;

/// The chapters of the book.
const BOOK: &str = "docs/src/";
/// The mark of a table that a test compares with what the code declares.
const COMPARED: &str = "<!-- list: ";
/// Has a section for each alert.
const RUNBOOKS: &str = "docs/src/runbooks.md";
/// Says what names once were, and is not about what is there now.
const CHANGELOG: &str = "CHANGELOG.md";
/// Documents about the code, which name its constants.
const OF_THE_CODE: [&str; 2] = ["ARCHITECTURE.md", "CONTRIBUTING.md"];
/// Has the entry points, which pictures name.
const PROGRAMS: &str = "lb-ebpf/src/main.rs";
/// Beginnings of names in capitals that are of Linux.
const OF_LINUX: [&str; 5] = ["BPF_F_", "BPF_PROG_", "CAP_", "CONFIG_", "IFA_"];
/// Other names in capitals that are not codes: variables of the environment.
const VARIABLES: [&str; 4] = ["LB_AGENT_NAMESPACE", "NODE_NAME", "NO_COLOR", "RUST_LOG"];
/// Beginnings of the agent's metrics.
const METRICS: [&str; 4] = ["kubeproxy_", "lb_", "process_", "rest_client_"];
/// What Prometheus' histograms add to their name.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// Checks what documents mention.
pub(super) fn documents(documents: &[Source]) -> Vec<String> {
    let known: BTreeSet<&str> = documents.iter().flat_map(|page| rows(&page.text)).collect();
    let alerts: BTreeSet<&str> = known_alerts(documents).collect();
    let mut complaints = Vec::new();
    for page in documents.iter().filter(|page| page.path != CHANGELOG) {
        let of_the_code = OF_THE_CODE.contains(&page.path.as_str());
        for (n, line) in page.text.lines().enumerate() {
            for word in line.split('`').skip(1).step_by(2) {
                let kind = match word {
                    _ if is_unknown_code(word, &known) && !of_the_code => "code",
                    _ if is_unknown_metric(word, &known) => "metric",
                    _ if is_alert(word) && !alerts.contains(word) => "alert",
                    _ => continue,
                };
                complaints.push(format!("{}: line {}: no {kind} {word}", page.path, n + 1));
            }
        }
    }
    complaints
}

/// Checks the pictures that are text: what codes and programs they name, and that screen readers can say what is on them.
pub(super) fn pictures(
    pictures: &[Source],
    documents: &[Source],
    sources: &[Source],
) -> Vec<String> {
    let known: BTreeSet<&str> = documents.iter().flat_map(|page| rows(&page.text)).collect();
    let main = sources.iter().find(|source| source.path == PROGRAMS);
    let programs: BTreeSet<&str> = main.iter().flat_map(|main| functions(&main.text)).collect();
    let mut complaints = Vec::new();
    for Source { path, text } in pictures {
        if !text.contains("<title") {
            complaints.push(format!("{path}: no <title>: screen readers say nothing"));
        }
        for (n, line) in text.lines().enumerate() {
            // What is shown, between the tags.
            let shown = line.split('>').filter_map(|part| part.split('<').next());
            let words =
                shown.flat_map(|text| text.split(|c: char| c != '_' && !c.is_alphanumeric()));
            for word in words {
                let kind = match word {
                    _ if is_unknown_code(word, &known) => "code",
                    _ if word.starts_with("pod_") || word.starts_with("dev_") => {
                        if programs.contains(word) {
                            continue;
                        }
                        "program"
                    }
                    _ if is_alert(word) && !known_alerts(documents).any(|alert| alert == word) => {
                        "alert"
                    }
                    _ => continue,
                };
                complaints.push(format!("{path}: line {}: no {kind} {word}", n + 1));
            }
        }
    }
    complaints
}

/// Returns the names of a file's functions.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    let names = text.lines().filter_map(|line| line.strip_prefix("fn "));
    names.filter_map(|rest| Some(rest.split_once('(')?.0))
}

/// Returns the alerts that have a runbook.
fn known_alerts(documents: &[Source]) -> impl Iterator<Item = &str> {
    let runbooks = documents.iter().filter(|page| page.path == RUNBOOKS);
    runbooks.flat_map(|page| page.text.lines()).filter_map(|line| line.strip_prefix("## "))
}

/// Checks the places in the book that other files name: `docs/src/NAME.md#ANCHOR`.
pub(super) fn places(documents: &[Source], sources: &[Source]) -> Vec<String> {
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        documents.iter().map(|page| (page.path.as_str(), anchors(&page.text))).collect();
    let mut complaints = Vec::new();
    // The rules about the book have examples of what is wrong.
    for source in sources.iter().filter(|source| !source.path.starts_with("xtask/src/tidy/")) {
        for (n, line) in source.text.lines().enumerate() {
            for rest in line.split(BOOK).skip(1) {
                let Some((name, rest)) = rest.split_once(".md") else { continue };
                let path = format!("{BOOK}{name}.md");
                let anchor = rest.strip_prefix('#').unwrap_or_default();
                let end = anchor.find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
                let anchor = &anchor[..end.unwrap_or(anchor.len())];
                let found = anchors.get(path.as_str());
                let is_there = found.is_some_and(|a| anchor.is_empty() || a.contains(anchor));
                if !is_there {
                    let hash = if anchor.is_empty() { "" } else { "#" };
                    let (file, n) = (&source.path, n + 1);
                    complaints.push(format!("{file}: line {n}: no {path}{hash}{anchor}"));
                }
            }
        }
    }
    complaints
}

/// Returns the names in the tables that tests compare with the code, and the variables that belong to them.
fn rows(page: &str) -> impl Iterator<Item = &str> {
    let mut is_compared = false;
    let rows = page.lines().filter(move |line| {
        is_compared = line.starts_with(COMPARED) || is_compared && is_of_table(line);
        line.starts_with("| <a id=\"") && is_compared
    });
    rows.flat_map(|row| {
        let words = row.split('`').skip(1).step_by(2).enumerate();
        words.filter(|(n, word)| *n == 0 || word.starts_with("LB_")).map(|(_, word)| word)
    })
}

/// Reports whether a line can follow the mark of a compared table.
fn is_of_table(line: &str) -> bool {
    line.is_empty() || line.starts_with('|')
}

/// Reports whether a word is written as codes are, capitals of two words or more, and is none.
fn is_unknown_code(word: &str, known: &BTreeSet<&str>) -> bool {
    let parts = || word.split('_');
    let is_part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    };
    let is_foreign = OF_LINUX.iter().any(|start| word.starts_with(start));
    let is_code = parts().count() > 1 && parts().all(is_part);
    is_code && !is_foreign && !VARIABLES.contains(&word) && !known.contains(word)
}

/// Reports whether a word, perhaps with labels, is written as a metric is, and none is called so.
fn is_unknown_metric(word: &str, known: &BTreeSet<&str>) -> bool {
    let name = word.split_once('{').map_or(word, |(name, _)| name);
    let is_metric = METRICS.iter().any(|start| name.starts_with(start) && name != *start)
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let base = OF_HISTOGRAMS.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    is_metric && !known.contains(name) && !known.contains(base)
}

/// Reports whether a word is written as an alert is: `LbAgentDown`.
fn is_alert(word: &str) -> bool {
    let rest = word.strip_prefix("Lb").unwrap_or_default();
    rest.starts_with(|c: char| c.is_ascii_uppercase())
        && rest.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::{Source, documents, pictures, places};

    const ROWS: &str = "| <a id=\"not-compared\"></a>`NOT_COMPARED` | x |\n\
                        <!-- list: names -->\n\n| name | |\n|---|---|\n\
                        | <a id=\"no-route\"></a>`NO_ROUTE` | `IN_PROSE` |\n\
                        | <a id=\"lb-drops-total\"></a>`lb_drops_total` | `reason` |\n\
                        | <a id=\"lb-gc-seconds\"></a>`lb_gc_seconds` | x |\n\
                        | <a id=\"pin-dir\"></a>`pin-dir` | `LB_PIN_DIR` |\n";

    #[test]
    fn a_name_that_the_tables_lack_is_reported() {
        let prose = "`NO_ROUTE` `NO_ROUTES` `NOT_COMPARED` `CAP_BPF` `LB_PIN_DIR` `OK`\n\
                     `lb_drops_total{reason=\"NO_ROUTE\"}` `lb_drops` `lb_gc_seconds_bucket`\n\
                     `LbAgentDown` `LbAgentUp`\n";
        let pages = Source::of(&[
            ("docs/src/drops.md", ROWS),
            ("docs/src/runbooks.md", "## LbAgentDown\n"),
            ("README.md", prose),
            ("CHANGELOG.md", "`OLD_NAME` `lb_old_total` `LbOld`\n"),
        ]);
        assert_eq!(
            documents(&pages),
            [
                "docs/src/drops.md: line 1: no code NOT_COMPARED",
                "docs/src/drops.md: line 6: no code IN_PROSE",
                "README.md: line 1: no code NO_ROUTES",
                "README.md: line 1: no code NOT_COMPARED",
                "README.md: line 2: no metric lb_drops",
                "README.md: line 3: no alert LbAgentUp",
            ]
        );
    }

    #[test]
    fn pictures_name_what_there_is() {
        let pages =
            Source::of(&[("docs/src/drops.md", ROWS), ("docs/src/runbooks.md", "## LbDown\n")]);
        let code = Source::of(&[("lb-ebpf/src/main.rs", "fn pod_out(ctx: TcContext) -> i32 {\n")]);
        let good = "<title>A</title>\n<text id=\"NOT_SHOWN\">pod_out: NO_ROUTE, LbDown</text>\n";
        let bad = "<text>pod_in <tspan>NO_ROUTES</tspan> LbUp</text>\n";
        let files = Source::of(&[("a.svg", good), ("b.svg", bad)]);
        assert_eq!(
            pictures(&files, &pages, &code),
            [
                "b.svg: no <title>: screen readers say nothing",
                "b.svg: line 1: no program pod_in",
                "b.svg: line 1: no code NO_ROUTES",
                "b.svg: line 1: no alert LbUp",
            ]
        );
    }

    #[test]
    fn a_place_that_the_book_lacks_is_reported() {
        let pages = Source::of(&[("docs/src/drops.md", ROWS)]);
        let sources = Source::of(&[
            (
                "a.rs",
                "//! See docs/src/drops.md.\nconst A: &str = \"docs/src/drops.md#no-route\";\n",
            ),
            ("b.yaml", "# docs/src/drops.md#no-rout: x\n# docs/src/drop.md\n"),
        ]);
        assert_eq!(
            places(&pages, &sources),
            ["b.yaml: line 1: no docs/src/drops.md#no-rout", "b.yaml: line 2: no docs/src/drop.md",]
        );
    }
}
