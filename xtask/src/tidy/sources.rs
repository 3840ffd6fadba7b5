//! Rules on one file's text: its header, its name, what it may import, where `unsafe` may stand.

use super::Source;

/// Names that say nothing about what is inside.
const BANNED_NAMES: [&str; 8] =
    ["utils", "util", "helpers", "helper", "common", "misc", "types", "manager"];

/// Files that may hold `unsafe`: packet and map access in the programs, the proof-carrying macro of the ABI, raw
/// system calls.
const UNSAFE: [&str; 8] = [
    "lb-common/src/pod.rs",
    "lb-ebpf/src/maps.rs",
    "lb-ebpf/src/packet.rs",
    "lb-agent/build.rs",
    "lb-agent/src/syscall.rs",
    "lb-agent/tests/nanos.rs",
    "lb-agent/tests/parser/packet.rs",
    "xtask/testbed/src/tun.rs",
];

/// Crates that only some files may name: the crate, who may, and why.
const IMPORTS: [(&str, &[&str], &str); 3] = [
    ("kube", &["lb-agent/src/watch.rs", "lb-agent/src/watch/"], "only watch/ knows Kubernetes"),
    (
        "k8s_openapi",
        &["lb-agent/src/watch.rs", "lb-agent/src/watch/"],
        "only watch/ knows Kubernetes",
    ),
    (
        "aya",
        &[
            "lb-agent/src/bpf.rs",
            "lb-agent/src/bpf/",
            "lb-agent/src/syscall.rs",
            "lb-agent/src/ctl/",
            // One reads the counters, the other tells aya's errors apart.
            "lb-agent/src/observe/scrape.rs",
            "lb-agent/src/agent/kernel.rs",
            "lb-agent/tests/",
            "lb-common/",
            "xtask/",
        ],
        "only bpf/ writes, and only ctl/ reads, the maps",
    ),
];

/// The pure middle: no IO, no clock, no waiting.
const PURE: [&str; 5] = [
    "lb-agent/src/cluster.rs",
    "lb-agent/src/model.rs",
    "lb-agent/src/model/",
    "lb-agent/src/plan.rs",
    "lb-agent/src/plan/",
];
const IMPURE: [&str; 7] = [
    "tokio",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "Instant::now",
    "SystemTime::now",
    "std::env",
];

pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let mut complain = |text: String| complaints.push(format!("{}: {text}", source.path));
        if !source.text.starts_with("//!") {
            complain("does not open with `//!`: what does it turn into what?".to_owned());
        }
        for part in source.path.split('/') {
            let stem = part.strip_suffix(".rs").unwrap_or(part);
            if stem == "mod" || BANNED_NAMES.contains(&stem) {
                complain(format!("{part} names no concept"));
            }
        }
        for (n, line) in product_lines(&source.text) {
            for text in line_complaints(&source.path, line) {
                complain(format!("line {n}: {text}"));
            }
        }
        for (n, line) in source.text.lines().enumerate() {
            if let Some(text) = todo(line) {
                complain(format!("line {}: {text}", n + 1));
            }
        }
    }
    complaints
}

/// Code lines with their numbers, without comments and the tests at a file's end.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or(line)))
}

fn allowed(path: &str, files: &[&str]) -> bool {
    files
        .iter()
        .any(|file| if file.ends_with('/') { path.starts_with(file) } else { path == *file })
}

fn line_complaints(path: &str, line: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"]
        .iter()
        .any(|word| line.contains(word))
        && !allowed(path, &UNSAFE)
        && !path.starts_with("xtask/src/tidy")
    {
        complaints.push("`unsafe` outside the files that may hold it".to_owned());
    }
    if path.starts_with("lb-agent/src/") {
        for (name, files, why) in IMPORTS {
            if !allowed(path, files) && names_crate(line, name) {
                complaints.push(format!("names {name}: {why}"));
            }
        }
    }
    if allowed(path, &PURE) && !path.ends_with("tests.rs") {
        let impure = IMPURE.iter().find(|word| line.contains(*word));
        complaints.extend(impure.map(|word| format!("{word} in the pure middle")));
    }
    complaints
}

/// Whether the line names the crate, and not a module or a field of the same name: `use kube::…`, `kube::Client`,
/// `::kube::…`, but not `watch::kube::run` or `kube::run` of an imported module.
fn names_crate(line: &str, name: &str) -> bool {
    let code = line.trim_start();
    let uses = code.strip_prefix("pub(crate) ").or(code.strip_prefix("pub ")).unwrap_or(code);
    for start in [format!("use {name}::"), format!("use {name};"), format!("use ::{name}::")] {
        if uses.starts_with(&start) {
            return true;
        }
    }
    let path = format!("{name}::");
    line.match_indices(&path).any(|(at, _)| {
        let before = line.get(..at).unwrap_or_default();
        let after = line.get(at + path.len()..).unwrap_or_default();
        let inner = before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
            || (before.ends_with("::")
                && before.trim_end_matches(':').ends_with(char::is_alphanumeric));
        // Functions of a crate in this code are reached through its modules and types.
        let external = after.starts_with(char::is_uppercase)
            || ["runtime::", "api::", "core::", "maps::", "programs::"]
                .iter()
                .any(|m| after.starts_with(m));
        !inner && (external || name == "k8s_openapi")
    })
}

fn todo(line: &str) -> Option<String> {
    // Spelled in two halves, or this line would be one.
    for word in [concat!("TO", "DO"), concat!("FIX", "ME")] {
        if let Some((_, rest)) = line.split_once(word) {
            let id = rest.strip_prefix("(#").and_then(|rest| rest.split_once(')'));
            if !id.is_some_and(|(id, _)| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit())) {
                return Some(format!("{word} without an issue: {word}(#12)"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{line_complaints, names_crate, todo};

    #[test]
    fn a_crate_is_told_from_a_module_of_its_name() {
        for (line, want) in [
            ("use kube::Client;", true),
            ("pub use kube::Client;", true),
            ("    let client: ::kube::Client = x;", true),
            ("    fn f(client: kube::Client) {}", true),
            ("    watch::kube::run(client).await", false),
            ("    kube::run(client).await", false),
            ("use crate::watch::kube;", false),
            ("    let x = my_kube::Client;", false),
        ] {
            assert_eq!(names_crate(line, "kube"), want, "{line}");
        }
    }

    #[test]
    fn rules_hold_where_they_should() {
        let bad = |path, line| !line_complaints(path, line).is_empty();
        assert!(bad("lb-agent/src/plan/order.rs", "let now = Instant::now();"));
        assert!(!bad("lb-agent/src/agent.rs", "let now = Instant::now();"));
        assert!(bad("lb-agent/src/agent.rs", "unsafe { f() }"));
        assert!(bad("lb-agent/src/agent.rs", "use aya::Ebpf;"));
        assert!(!bad("lb-agent/src/bpf/load.rs", "use aya::Ebpf;"));
    }

    #[test]
    fn a_todo_names_its_issue() {
        let word = concat!("TO", "DO");
        assert!(todo(&format!("// {word}: later")).is_some());
        assert!(todo(&format!("// {word}(#): later")).is_some());
        assert!(todo(&format!("// {word}(#12): later")).is_none());
    }
}
