//! One version: what the manifests, the chart, krew's manifest, the documents and the changelog say is the version of the workspace.

use super::Source;

/// Has the version.
const WORKSPACE: &str = "Cargo.toml";
const CHANGELOG: &str = "CHANGELOG.md";
/// The first section of the changelog while a version is in the making.
const UNRELEASED: &str = "Unreleased";
/// The tag of images that are not released: `cargo xtask image` gives it.
const DEVELOPMENT: &str = "dev";

/// Where a version is: the file, and what is before it in its line.
const VERSIONS: [(&str, &str); 4] = [
    ("deploy/helm/Chart.yaml", "version: "),
    ("deploy/helm/Chart.yaml", "appVersion: "),
    ("deploy/krew/lb.yaml", "  version: v"),
    ("deploy/krew/lb.yaml", "uri: https://example.invalid/lb/v"),
];

/// Where the tag of the agent's image is.
const TAGS: [(&str, &str); 4] = [
    ("deploy/kustomization.yaml", "newTag: "),
    ("deploy/daemonset.yaml", "image: lb-agent:"),
    ("deploy/mount-bpffs/kustomization.yaml", "image: lb-agent:"),
    ("deploy/helm/values.yaml", "  tag: "),
];

/// What is before a released version in examples of documents.
const EXAMPLES: [&str; 3] = ["newTag: ", "lb-agent:", "image.tag="];

/// A version or a tag, and where it is.
struct Found<'a> {
    path: &'a str,
    line: usize,
    word: &'a str,
}

/// Checks all places. A file or a version that is missing is a complaint, too: it moved, and the rule must follow.
pub(super) fn check(files: &[&[Source]], documents: &[Source]) -> Vec<String> {
    let Some(workspace) = file(files, WORKSPACE).and_then(|text| {
        let start = text.split("[workspace.package]").next()?.lines().count();
        let after = |found: &Found<'_>| found.line > start;
        words(WORKSPACE, text, "version = ").into_iter().find(after)
    }) else {
        return vec![format!("{WORKSPACE}: no version in [workspace.package]")];
    };
    let version = workspace.word;
    let mut complaints = Vec::new();
    let mut complain = |found: &Found<'_>, wanted: &str| {
        let Found { path, line, word } = found;
        complaints.push(format!(
            "{path}: line {line}: the version is {word}, {WORKSPACE} (line {}) has {wanted}",
            workspace.line
        ));
    };
    let mut missing = Vec::new();
    let mut places = |list: &[(&'static str, &str)]| {
        let mut all = Vec::new();
        for (path, before) in list {
            let found = file(files, path).map(|text| words(path, text, before));
            let found = found.unwrap_or_default();
            if found.is_empty() {
                missing.push(format!("{path}: no line with `{before}`"));
            }
            all.extend(found);
        }
        all
    };
    for found in places(&VERSIONS).iter().filter(|found| found.word != version) {
        complain(found, version);
    }
    let tags = places(&TAGS);
    // A release has its version everywhere, and a build of the repository nowhere.
    let first = tags.first().map_or(version, |tag| tag.word);
    let tag = if first == DEVELOPMENT { DEVELOPMENT } else { version };
    for found in tags.iter().filter(|found| found.word != tag) {
        complain(found, &format!("{version}, and {} `{first}`", TAGS[0].0));
    }
    let pages = documents.iter().filter(|page| page.path.ends_with(".md"));
    for page in pages.filter(|page| page.path != CHANGELOG) {
        let examples = EXAMPLES.iter().flat_map(|before| words(&page.path, &page.text, before));
        let released = examples.filter(|found| numbers(found.word).is_some());
        for found in released.filter(|found| found.word != version) {
            complain(&found, version);
        }
    }
    let changelog = file(&[documents], CHANGELOG).unwrap_or_default();
    let mut sections = words(CHANGELOG, changelog, "## ").into_iter().peekable();
    if sections.next_if(|section| section.word == UNRELEASED).is_some() {
        // The version before this one, or this one until the next release.
        let earlier = sections.next();
        for found in earlier.iter().filter(|found| numbers(found.word) > numbers(version)) {
            complain(found, version);
        }
    } else if let Some(found) = sections.next().filter(|found| found.word != version) {
        complain(&found, version);
    }
    complaints.extend(missing);
    complaints
}

fn file<'a>(files: &[&'a [Source]], path: &str) -> Option<&'a str> {
    files.iter().copied().flatten().find(|file| file.path == path).map(|file| file.text.as_str())
}

/// The words after a text, each up to a blank, a quotation mark, a slash or another sign that no version has.
fn words<'a>(path: &'a str, text: &'a str, before: &str) -> Vec<Found<'a>> {
    let is_end = |c: char| !c.is_ascii_alphanumeric() && !".-+".contains(c);
    let at_start = before.starts_with(['v', 'a', '#', ' ']);
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if at_start && !line.starts_with(before) {
            continue;
        }
        for rest in line.split(before).skip(1) {
            let rest = rest.trim_start_matches('"');
            let word = &rest[..rest.find(is_end).unwrap_or(rest.len())];
            found.push(Found { path, line: n + 1, word });
        }
    }
    found
}

/// Returns the numbers of `1.2.3` or `1.2.3-rc.1`.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let (numbers, _) = version.split_once(['-', '+']).unwrap_or((version, ""));
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::{Source, check, numbers};

    /// The files of a release.
    fn released() -> Vec<(&'static str, String)> {
        vec![
            ("Cargo.toml", "# version = \"9\"\n[workspace.package]\nversion = \"1.2.3\"\n".into()),
            ("deploy/helm/Chart.yaml", "version: 1.2.3\nappVersion: 1.2.3\n".into()),
            (
                "deploy/krew/lb.yaml",
                "spec:\n  version: v1.2.3\n      uri: https://example.invalid/lb/v1.2.3/x\n".into(),
            ),
            ("deploy/kustomization.yaml", "    newTag: 1.2.3\n".into()),
            ("deploy/daemonset.yaml", "          image: lb-agent:1.2.3\n".into()),
            ("deploy/mount-bpffs/kustomization.yaml", "image: lb-agent:1.2.3\n".into()),
            ("deploy/helm/values.yaml", "image:\n  tag: 1.2.3\n".into()),
            (
                "docs/src/install.md",
                "newTag: \"1.2.3\", x/lb-agent:1.2.3, image.tag=1.2.3`\n".into(),
            ),
            ("CHANGELOG.md", "# Changelog\n\n## 1.2.3\n\n## 1.2.2\n".into()),
        ]
    }

    fn complaints(changes: &[(&str, &str, &str)]) -> Vec<String> {
        let mut files = released();
        for (path, from, to) in changes {
            let file = files.iter_mut().find(|(name, _)| name == path).unwrap();
            assert!(file.1.contains(from), "{path}: {from}");
            file.1 = file.1.replace(from, to);
        }
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        check(&[&Source::of(&files)], &Source::of(&files))
    }

    #[test]
    fn one_version_everywhere_passes() {
        assert_eq!(complaints(&[]), Vec::<String>::new());
        assert_eq!(complaints(&[("CHANGELOG.md", "## 1.2.3\n", "## Unreleased\n")]), [""; 0]);
        assert_eq!(
            complaints(&[("CHANGELOG.md", "## 1.2.3\n", "## 1.2.3 (2026-01-02)\n")]),
            [""; 0]
        );
        let development = [
            ("deploy/kustomization.yaml", "1.2.3", "dev"),
            ("deploy/daemonset.yaml", "1.2.3", "dev"),
            ("deploy/mount-bpffs/kustomization.yaml", "1.2.3", "dev"),
            ("deploy/helm/values.yaml", "1.2.3", "dev"),
        ];
        assert_eq!(complaints(&development), [""; 0]);
        let other = ("docs/src/install.md", "lb-agent:1.2.3", "lb-agent:1.2.2");
        assert_eq!(
            complaints(&[development[0], development[1], development[2], development[3], other])
                .len(),
            1
        );
    }

    #[test]
    fn each_place_that_differs_is_named() {
        for (path, from, to, line, wanted) in [
            ("deploy/helm/Chart.yaml", "version: 1.2.3\na", "version: 1.2.2\na", 1, "1.2.2"),
            ("deploy/helm/Chart.yaml", "appVersion: 1.2.3", "appVersion: 2.0.0", 2, "2.0.0"),
            ("deploy/krew/lb.yaml", "version: v1.2.3", "version: v1.2", 2, "1.2"),
            ("deploy/krew/lb.yaml", "v1.2.3/x", "v1.2.4/x", 3, "1.2.4"),
            ("deploy/daemonset.yaml", "1.2.3", "dev", 1, "dev"),
            ("deploy/mount-bpffs/kustomization.yaml", "1.2.3", "1.2.4", 1, "1.2.4"),
            ("deploy/helm/values.yaml", "1.2.3", "latest", 2, "latest"),
            ("docs/src/install.md", "image.tag=1.2.3", "image.tag=1.2.1", 1, "1.2.1"),
            ("CHANGELOG.md", "## 1.2.3", "## 1.3.0", 3, "1.3.0"),
            ("CHANGELOG.md", "## 1.2.3\n\n## 1.2.2", "## Unreleased\n\n## 1.10.0", 5, "1.10.0"),
        ] {
            let found = complaints(&[(path, from, to)]);
            let start = format!(
                "{path}: line {line}: the version is {wanted}, Cargo.toml (line 3) has 1.2.3"
            );
            assert!(found.len() == 1 && found[0].starts_with(&start), "{path}: {to}: {found:?}");
        }
        // Then all others differ from the first.
        assert_eq!(complaints(&[("deploy/kustomization.yaml", "1.2.3", "dev")]).len(), 3);
        let gone = complaints(&[("deploy/helm/Chart.yaml", "appVersion", "version_of_app")]);
        assert_eq!(gone, ["deploy/helm/Chart.yaml: no line with `appVersion: `"]);
        let gone = complaints(&[("Cargo.toml", "[workspace.package]", "[package]")]);
        assert_eq!(gone, ["Cargo.toml: no version in [workspace.package]"]);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("1.10.0") > numbers("1.9.9"));
        assert_eq!(numbers("1.2.3-rc.1"), Some([1, 2, 3]));
        assert_eq!((numbers("1.2"), numbers("dev"), numbers("1.2.3.4")), (None, None, None));
    }
}
