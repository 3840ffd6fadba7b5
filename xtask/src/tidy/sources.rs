//! Rules on one file's text: its header, its name, where `unsafe` may stand, what the pure middle may not do.

use super::Source;

/// Names that say nothing about what is inside.
const BANNED_NAMES: [&str; 8] =
    ["utils", "util", "helpers", "helper", "common", "misc", "types", "manager"];

/// Files that may hold `unsafe`: packet and map access in the programs, the proof-carrying macro of the ABI, raw
/// system calls.
const UNSAFE: [&str; 13] = [
    "lb-common/src/pod.rs",
    "lb-ebpf/src/event.rs",
    "lb-ebpf/src/kernel.rs",
    "lb-ebpf/src/maps.rs",
    "lb-ebpf/src/packet.rs",
    "lb-ebpf/src/scratch.rs",
    "lb-ebpf/src/sock_addr.rs",
    "lb-ebpf/src/tracked.rs",
    "lb-agent/kernel/build.rs",
    "lb-agent/kernel/src/syscall.rs",
    "lb-agent/testkit/parser/src/packet.rs",
    "lb-agent/tests/nanos.rs",
    "xtask/testbed/src/tun.rs",
];

/// What the pure middle does not do, although the standard library has it.
const IMPURE: [&str; 6] =
    ["std::fs", "std::net::Tcp", "std::net::Udp", "Instant::now", "SystemTime::now", "std::env"];
/// The pure middle, and its one exception: the name table is a file.
const CORE: &str = "lb-agent/core/src/";
const NAME_TABLE: &str = "lb-agent/core/src/names.rs";

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
    if path.starts_with(CORE) && path != NAME_TABLE && !path.ends_with("tests.rs") {
        let impure = IMPURE.iter().find(|word| line.contains(*word));
        complaints.extend(impure.map(|word| format!("{word} in the pure middle")));
    }
    complaints
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
    use super::{line_complaints, todo};

    #[test]
    fn rules_hold_where_they_should() {
        let bad = |path, line| !line_complaints(path, line).is_empty();
        assert!(bad("lb-agent/core/src/plan/order.rs", "let now = Instant::now();"));
        assert!(!bad("lb-agent/src/agent.rs", "let now = Instant::now();"));
        assert!(bad("lb-agent/src/agent.rs", "unsafe { f() }"));
    }

    #[test]
    fn a_todo_names_its_issue() {
        let word = concat!("TO", "DO");
        assert!(todo(&format!("// {word}: later")).is_some());
        assert!(todo(&format!("// {word}(#): later")).is_some());
        assert!(todo(&format!("// {word}(#12): later")).is_none());
    }
}
