//! The reference chapters of the book list what there is: drop reasons with their advice, commands.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use lb_common::verdict::DropReason;

use crate::Cli;

fn chapter(name: &str) -> PathBuf {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = crate_root.ancestors().find(|dir| dir.join("docs/book.toml").exists()).unwrap();
    root.join("docs/src").join(name)
}

/// One row for each reason, in the order of their numbers. `UPDATE_EXPECT=1` writes the advice.
#[test]
fn every_drop_reason_is_documented_with_its_advice() {
    let path = chapter("drops.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut reasons = DropReason::ALL.iter();
    let mut found = String::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", name, meaning, _, ""] if name.starts_with('`') => {
                let reason = reasons.next().unwrap_or_else(|| panic!("{name} is one too many"));
                assert_eq!(name, format!("`{}`", reason.name()), "the next reason");
                assert!(!meaning.is_empty(), "{name} has a meaning");
                found += &format!("| {name} | {meaning} | {} |\n", reason.what_to_do());
            }
            _ => found += &format!("{line}\n"),
        }
    }
    assert_eq!(reasons.next(), None, "a reason without a row");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &found).unwrap();
    } else {
        assert_eq!(text, found, "{}: set UPDATE_EXPECT=1 to write the advice", path.display());
    }
}

#[test]
fn every_command_is_documented() {
    let text = std::fs::read_to_string(chapter("lbctl.md")).unwrap();
    let mut missing = Vec::new();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let mut lines = vec![format!("`lbctl {name}")];
        if command.has_subcommands() {
            let subcommands = command.get_subcommands();
            lines = subcommands.map(|sub| format!("`lbctl {name} {}", sub.get_name())).collect();
        }
        missing.extend(lines.into_iter().filter(|line| !text.contains(line)));
    }
    assert!(missing.is_empty(), "lbctl.md does not mention {missing:?}");
}
