//! The plugins of k9s are what k9s reads, and call commands that exist.

use std::collections::BTreeMap;

use clap::Parser as _;
use serde::Deserialize;

use crate::Cli;

/// The file, with the fields of k9s v0.50 (`internal/config/plugin.go` and its JSON schema); it refuses others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginFile {
    plugins: BTreeMap<String, Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Plugin {
    short_cut: String,
    description: String,
    scopes: Vec<String>,
    command: String,
    background: bool,
    args: Vec<String>,
}

/// Keys that k9s has actions for in the views of Pods, Services and other objects.
const TAKEN: &str = "ACFIMNOPRSTXZ";

fn plugins() -> BTreeMap<String, Plugin> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/k9s/plugins.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str::<PluginFile>(&text).unwrap().plugins
}

#[test]
fn keys_are_free_and_differ_in_each_view() {
    let mut seen = Vec::new();
    for (name, plugin) in plugins() {
        let letter = plugin.short_cut.strip_prefix("Shift-").unwrap_or_else(|| panic!("{name}"));
        assert_eq!(letter.len(), 1, "{name}");
        assert!(!TAKEN.contains(letter), "{name}: {letter} is k9s's own");
        for scope in plugin.scopes {
            assert!(["pods", "services", "networkpolicies"].contains(&&*scope), "{name}: {scope}");
            let key = (scope, letter.to_owned());
            assert!(!seen.contains(&key), "{name}: {key:?} twice");
            seen.push(key);
        }
    }
    assert_eq!(seen.len(), 5);
}

#[test]
fn commands_are_those_of_lbctl_and_names_are_arguments() {
    for (name, plugin) in plugins() {
        assert!(!plugin.description.is_empty() && !plugin.background, "{name}");
        assert_eq!((plugin.command.as_str(), plugin.args[0].as_str()), ("sh", "-c"), "{name}");
        let script = &plugin.args[1];
        for variable in ["$NAME", "$NAMESPACE", "$CONTEXT", "$COL"] {
            assert!(!script.contains(variable), "{name}: {variable} would be read as shell");
        }
        let (_, rest) = script.split_once("kubectl lb ").unwrap_or_else(|| panic!("{name}"));
        let command = rest.split([';', '|']).next().unwrap().replace(" 2>&1 ", " ");
        // What comes before the command says which cluster and node.
        let words = command.split_whitespace().map(|word| match word.trim_matches('"') {
            word if word.starts_with('$') => "shop/web",
            word => word,
        });
        let mut words = words.peekable();
        while words.next_if(|word| word.starts_with("--") || *word == "shop/web").is_some() {}
        let parsed = Cli::try_parse_from(std::iter::once("lbctl").chain(words));
        assert!(parsed.is_ok(), "{name}: {}", parsed.unwrap_err());
    }
}
