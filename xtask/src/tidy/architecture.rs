//! Every module at the top of a crate has its line in ARCHITECTURE.md's code map, in the section of its crate; the
//! headers of the files below it say the rest.

use super::Source;

/// The crates with a section `### CRATE`, and where their modules are.
const CRATES: [(&str, &str); 12] = [
    ("lb-common", "lb-common/src/"),
    ("lb-ebpf", "lb-ebpf/src/"),
    ("lb-core", "lb-agent/core/src/"),
    ("lb-kube", "lb-agent/kube/src/"),
    ("lb-kernel", "lb-agent/kernel/src/"),
    ("lb-agent", "lb-agent/src/"),
    ("lb-ctl", "lb-agent/ctl/src/"),
    ("lb-live", "lb-agent/live/src/"),
    ("lb-remote", "lb-agent/remote/src/"),
    ("lb-testkit", "lb-agent/testkit/src/"),
    ("xtask", "xtask/src/"),
    ("testbed", "xtask/testbed/src/"),
];

pub(super) fn check(sources: &[Source], architecture: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, dir) in CRATES {
        let Some(named) = section(architecture, name).map(files) else {
            complaints.push(format!("ARCHITECTURE.md: no section `### {name}`"));
            continue;
        };
        let there: Vec<&str> =
            sources.iter().filter_map(|source| source.path.strip_prefix(dir)).collect();
        let at_the_top = |file: &&&str| !file.contains('/') && **file != "tests.rs";
        for file in there.iter().filter(at_the_top) {
            if !named.iter().any(|entry| entry == file) {
                complaints.push(format!("ARCHITECTURE.md: `### {name}` does not name {file}"));
            }
        }
        for entry in named.iter().filter(|entry| !there.contains(&entry.as_str())) {
            complaints
                .push(format!("ARCHITECTURE.md: `### {name}` names {entry}, which does not exist"));
        }
    }
    complaints
}

fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\n### {name}\n"))?;
    Some(rest.split("\n### ").next().unwrap_or(rest).split("\n## ").next().unwrap_or(rest))
}

/// The files named in a section's code block or table: `a.rs`, `dir/a.rs`, `dir/{a,b}.rs`, or several in one line.
fn files(section: &str) -> Vec<String> {
    let mut files = Vec::new();
    let separators = |c: char| c.is_whitespace() || c == '`' || c == '|' || c == ';';
    for word in section.split(separators).filter(|word| word.ends_with(".rs")) {
        match word.split_once('{').and_then(|(dir, rest)| Some((dir, rest.split_once('}')?))) {
            Some((dir, (names, tail))) => {
                files.extend(names.split(',').map(|name| format!("{dir}{name}{tail}")));
            }
            None => files.push(word.to_owned()),
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::{files, section};

    #[test]
    fn braces_are_expanded_and_sections_end() {
        let text = "\n### lb-agent\n`plan.rs` `plan/{delta,ids}.rs` text\n### xtask\n`main.rs`\n";
        let section = section(text, "lb-agent").unwrap();
        assert_eq!(files(section), ["plan.rs", "plan/delta.rs", "plan/ids.rs"]);
    }
}
