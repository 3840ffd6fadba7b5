//! Every test that THREATMODEL.md names exists. Otherwise a renamed or deleted test would remain there as a claim.

use super::Source;

/// What follows the name of a test. A test that runs on both kinds of nodes is a pair of functions.
const ENDS: [&str; 3] = ["(", "<", "_on_a_routed_node("];

pub(super) fn check(sources: &[Source], threats: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (n, line) in threats.lines().enumerate() {
        // The last cell of a row.
        let cell = line.strip_suffix('|').and_then(|row| row.rsplit('|').next()).unwrap_or("");
        for test in cell.split('`').skip(1).step_by(2).filter(|word| is_test(word)) {
            let exists = |text: &str| match test.strip_suffix('…') {
                Some(start) => text.contains(&format!("fn {start}")),
                None => ENDS.iter().any(|end| text.contains(&format!("fn {test}{end}"))),
            };
            if !sources.iter().any(|source| exists(&source.text)) {
                complaints.push(format!("THREATMODEL.md: line {}: no test {test}", n + 1));
            }
        }
    }
    complaints
}

/// Reports whether a word is a test: unlike a ring or a file, it has several words.
fn is_test(word: &str) -> bool {
    let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '…';
    word.chars().all(name) && word.matches('_').count() > 1
}

#[cfg(test)]
mod tests {
    use super::{Source, check};

    #[test]
    fn a_test_that_is_gone_is_named() {
        let text = "fn pods_are_no_routers<A>() {}\nfn a_flood_of_flows_ends() {}\n".to_owned();
        let sources = [Source { path: "a.rs".to_owned(), text }];
        let rows = "| a | `not_a_test_at_all` | `pods_are_no_routers`; `a_flood_of_…` |\n\
                    | b | x | `control::scale::worst` |\n";
        assert_eq!(check(&sources, rows), Vec::<String>::new());
        let rows = "| a | x | `pods_are_no_router` |\n";
        assert_eq!(check(&sources, rows), ["THREATMODEL.md: line 1: no test pods_are_no_router"]);
    }
}
