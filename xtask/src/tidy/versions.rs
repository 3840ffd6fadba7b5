//! A map type whose layout changed needs a new version of its map, or an agent would read old pins with new eyes.
//! The golden layouts of `lb-common/tests/layout.txt` are compared with their previous committed form.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::command::{command, output, root, say};

const GOLDEN: &str = "lb-common/tests/layout.txt";

/// Which map a type is in. `Config` is the programs' read-only data, made at each load; events are never kept.
const MAPS: [(&str, Option<&str>); 32] = [
    ("service::FrontendKey", Some("frontends")),
    ("service::Frontend", Some("frontends")),
    ("service::Backend", Some("backends")),
    ("endpoint::PodEntry", Some("pods")),
    ("past::LocalEnd", Some("locals")),
    ("conntrack::CtKey", Some("ct")),
    ("conntrack::CtEntry", Some("ct")),
    ("fragment::FragmentKey", Some("fragments")),
    ("fragment::FragmentPorts", Some("fragments")),
    ("socket::SkNat", Some("sk_nat")),
    ("socket::SkNatRing", Some("sk_nat")),
    ("socket::SkMoreKey", Some("sk_more")),
    ("event::FlowEvent", Some("events")),
    ("event::Sample", Some("samples")),
    ("config::Config", None),
    ("service::AffinityKey", Some("affinity")),
    ("service::Affinity", Some("affinity")),
    ("service::SourceRange", Some("source_ranges")),
    ("endpoint::PodSource", Some("pod_sources")),
    ("endpoint::Ident", Some("ident")),
    ("endpoint::Dev", Some("devs")),
    ("config::Settings", Some("settings")),
    ("config::Cidr", Some("settings")),
    ("policy::Group", Some("groups")),
    ("policy::PeerKey", Some("peer_bits")),
    ("policy::PortKey", Some("port_bits")),
    ("policy::Bits", Some("peer_bits")),
    ("policy::HitKey", Some("hits")),
    ("policy::PolicyState", Some("policy")),
    ("budget::Budget", Some("budgets")),
    ("account::AccountKey", Some("accounts")),
    ("account::AccountEntry", Some("accounts")),
];

pub(super) fn check() -> Result<Vec<String>> {
    let now =
        std::fs::read_to_string(root().join(GOLDEN)).with_context(|| format!("read {GOLDEN}"))?;
    let Some(before) = previous(&now)? else { return Ok(Vec::new()) };
    Ok(compare(&Layouts::parse(&before), &Layouts::parse(&now)))
}

/// The golden file before its last change: HEAD's when the working tree differs from it, else the one before the
/// last commit that touched it. None when it never changed.
fn previous(now: &str) -> Result<Option<String>> {
    let git = |args: &[&str]| output(command("git").args(args));
    if git(&["rev-parse", "--git-dir"]).is_err() {
        say("not checked: layout changes since the last commit (this is not a git repository)");
        return Ok(None);
    }
    let Ok(head) = git(&["show", &format!("HEAD:{GOLDEN}")]) else { return Ok(None) };
    if head != now {
        return Ok(Some(head));
    }
    let commits = git(&["log", "-2", "--format=%H", "--", GOLDEN])?;
    match commits.lines().nth(1) {
        Some(commit) => Ok(Some(git(&["show", &format!("{commit}:{GOLDEN}")])?)),
        None => Ok(None),
    }
}

/// The golden file, parsed: versions by map, and each type's lines.
struct Layouts {
    versions: BTreeMap<String, u32>,
    types: BTreeMap<String, String>,
}

impl Layouts {
    fn parse(text: &str) -> Self {
        let (mut versions, mut types) = (BTreeMap::new(), BTreeMap::<String, String>::new());
        let mut name = String::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            match rest.parse() {
                Ok(version) if !line.starts_with(' ') && !first.contains("::") => {
                    versions.insert(first.to_owned(), version);
                    continue;
                }
                _ if !line.starts_with(' ') => name = first.to_owned(),
                _ => {}
            }
            *types.entry(name.clone()).or_default() += &format!("{line}\n");
        }
        Self { versions, types }
    }
}

fn compare(before: &Layouts, now: &Layouts) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, layout) in &now.types {
        let Some((_, map)) = MAPS.iter().find(|(known, _)| known == name) else {
            complaints.push(format!(
                "{GOLDEN}: which map is {name} in? say so in xtask/src/tidy/versions.rs"
            ));
            continue;
        };
        let Some(map) = map else { continue };
        let changed = before.types.get(name).is_some_and(|then| then != layout);
        if changed && now.versions.get(*map) <= before.versions.get(*map) {
            complaints
                .push(format!("{GOLDEN}: {name} changed: raise the version of {map} in limits.rs"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::{Layouts, compare};

    #[test]
    fn a_changed_layout_wants_a_new_version() {
        let golden = |version: u32, size: u32| {
            let text = format!(
                "# map\nct {version}\nslots 1\n# type\nconntrack::CtKey {size}\n  0 {size} a\n"
            );
            Layouts::parse(&text)
        };
        assert_eq!(compare(&golden(1, 40), &golden(1, 40)).len(), 0);
        assert_eq!(compare(&golden(1, 40), &golden(1, 44)).len(), 1);
        assert_eq!(compare(&golden(1, 40), &golden(2, 44)).len(), 0);
    }
}
