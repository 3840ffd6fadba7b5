//! Every `.rs` is in a module tree: one that is not compiles never and rots unseen.

use std::collections::{BTreeMap, BTreeSet};

use super::Source;

pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let texts: BTreeMap<&str, &str> =
        sources.iter().map(|source| (source.path.as_str(), source.text.as_str())).collect();
    let mut seen = BTreeSet::new();
    let mut open: Vec<String> =
        texts.keys().filter(|path| is_root(path)).map(|path| (*path).to_owned()).collect();
    while let Some(path) = open.pop() {
        let Some(text) = texts.get(path.as_str()) else { continue };
        if seen.insert(path.clone()) {
            open.extend(declared(&path, text));
        }
    }
    let orphan = |path: &&&str| !seen.contains(**path);
    texts.keys().filter(orphan).map(|path| format!("{path}: no `mod` declares it")).collect()
}

/// Roots of crates, by cargo's layout.
fn is_root(path: &str) -> bool {
    let parts: Vec<_> = path.rsplit('/').collect();
    match parts[..] {
        ["build.rs", ..] | ["main.rs" | "lib.rs", "src", ..] | ["main.rs", _, "tests", ..] => true,
        [_, "fuzz_targets", "fuzz"] => true,
        [_, "tests" | "examples" | "benches", dir, ..] => dir != "src",
        [_, "bin", "src", ..] => true,
        _ => false,
    }
}

/// The candidate files of the modules that a file declares. Relies on rustfmt's shape: one item a line, and the
/// closing brace of an inline module at the indentation of its first line.
fn declared(path: &str, text: &str) -> Vec<String> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let own = if is_root(path) { dir.to_owned() } else { format!("{dir}/{}", stem(name)) };
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut files = Vec::new();
    let mut explicit: Option<String> = None;
    for line in text.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if code.starts_with('}') {
            inline.retain(|(at, _)| *at < indent);
        }
        if let Some(file) = code.strip_prefix("#[path = \"").and_then(|rest| rest.split_once('"')) {
            explicit = Some(file.0.to_owned());
            continue;
        }
        let code = code.strip_prefix("pub ").or_else(|| visibility(code)).unwrap_or(code);
        let Some(item) = code.strip_prefix("mod ") else { continue };
        if let Some(name) = item.strip_suffix(" {") {
            inline.push((indent, name.to_owned()));
        } else if let Some(name) = item.split(';').next().filter(|_| item.contains(';')) {
            let mut at = own.clone();
            for (_, part) in &inline {
                at += &format!("/{part}");
            }
            files.push(match explicit.take() {
                // Beside the file itself, unless inside an inline module.
                Some(file) if inline.is_empty() => format!("{dir}/{file}"),
                Some(file) => format!("{at}/{file}"),
                None => format!("{at}/{name}.rs"),
            });
        }
    }
    files
}

fn visibility(code: &str) -> Option<&str> {
    let (_, rest) = code.strip_prefix("pub(")?.split_once(") ")?;
    Some(rest)
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".rs").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::{Source, check};

    fn complaints(files: &[(&str, &str)]) -> Vec<String> {
        check(&Source::of(files))
    }

    #[test]
    fn every_way_to_declare_a_module_is_followed() {
        let files = [
            (
                "a/src/lib.rs",
                "pub mod one;\npub(crate) mod two;\n#[cfg(test)]\nmod tests {\n    mod deep;\n}\n",
            ),
            ("a/src/one.rs", "mod inner;\n"),
            ("a/src/one/inner.rs", ""),
            ("a/src/two.rs", ""),
            ("a/src/tests/deep.rs", ""),
            ("a/src/bin/tool.rs", ""),
            ("a/tests/e2e.rs", "#[path = \"e2e/bed.rs\"]\nmod bed;\n"),
            ("a/tests/e2e/bed.rs", ""),
            ("a/build.rs", ""),
        ];
        assert_eq!(complaints(&files), Vec::<String>::new());
    }

    #[test]
    fn an_orphan_is_named() {
        let files = [("a/src/lib.rs", "mod one;\n"), ("a/src/one.rs", ""), ("a/src/two.rs", "")];
        assert_eq!(complaints(&files), ["a/src/two.rs: no `mod` declares it"]);
    }
}
