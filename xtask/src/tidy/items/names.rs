//! One name, one type: in all crates that the agent consists of.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::Item;

use super::{Module, is_for_tests};

/// Where the agent's types are.
const AGENT: [&str; 2] = ["lb-agent/", "lb-common/"];

pub(super) fn check(modules: &[Module<'_>]) -> Vec<String> {
    let mut files: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for module in modules.iter().filter(|module| AGENT.iter().any(|a| module.path.starts_with(a))) {
        let mut names = Vec::new();
        collect(&module.file.items, &mut names);
        for name in names {
            files.entry(name).or_default().insert(module.path);
        }
    }
    let twice = files.iter().filter(|(_, paths)| paths.len() > 1);
    let complaint = |(name, paths): (&String, &BTreeSet<&str>)| {
        let paths = paths.iter().copied().collect::<Vec<_>>().join(", ");
        format!("`{name}` is defined more than once: {paths}")
    };
    twice.map(complaint).collect()
}

fn collect(items: &[Item], names: &mut Vec<String>) {
    for item in items {
        match item {
            Item::Struct(item) => names.push(item.ident.to_string()),
            Item::Enum(item) => names.push(item.ident.to_string()),
            Item::Union(item) => names.push(item.ident.to_string()),
            Item::Trait(item) => names.push(item.ident.to_string()),
            Item::Type(item) => names.push(item.ident.to_string()),
            Item::Macro(item) if item.ident.is_none() => in_tokens(&item.mac.tokens, names),
            Item::Mod(item) if !is_for_tests(&item.attrs) => {
                collect(item.content.as_ref().map_or(&[], |(_, items)| items), names);
            }
            _ => {}
        }
    }
}

/// Collects what a macro is given to define.
fn in_tokens(tokens: &TokenStream, names: &mut Vec<String>) {
    let mut is_next = false;
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(ident) if is_next => {
                names.push(ident.to_string());
                is_next = false;
            }
            TokenTree::Ident(ident) => {
                is_next = ident == "struct" || ident == "enum" || ident == "union";
            }
            _ => is_next = false,
        }
    }
}
