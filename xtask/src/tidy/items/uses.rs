//! The paths that a file names within its crate.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};
use syn::{Item, ItemMod, ItemUse, Macro, Path, UseTree};

use super::is_for_tests;

/// The paths of a module, each from the crate's root.
#[derive(Default)]
pub(super) struct Uses {
    module: Vec<String>,
    pub(super) paths: BTreeSet<Vec<String>>,
}

impl Uses {
    /// Collects the paths of a file that is the module of these names; those of tests are left out.
    pub(super) fn of(module: &[&str], items: &[Item]) -> Self {
        let module = module.iter().map(|name| (*name).to_owned()).collect();
        let mut uses = Self { module, paths: BTreeSet::new() };
        for item in items {
            uses.visit_item(item);
        }
        uses
    }

    /// Adds a path as the file writes it, if it stays in the crate for certain.
    fn add(&mut self, path: &[String]) {
        let Some((first, mut rest)) = path.split_first() else { return };
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => {
                let mut at = self.module.clone();
                at.pop();
                while let Some((name, after)) = rest.split_first() {
                    if name != "super" {
                        break;
                    }
                    at.pop();
                    rest = after;
                }
                at
            }
            _ => return,
        };
        at.extend_from_slice(rest);
        self.paths.insert(at);
    }

    fn add_tree(&mut self, before: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(before, &path.tree);
                before.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(before, tree);
                }
            }
            UseTree::Name(name) if name.ident == "self" => self.add(before),
            UseTree::Name(name) => self.add_leaf(before, name.ident.to_string()),
            UseTree::Rename(rename) => self.add_leaf(before, rename.ident.to_string()),
            UseTree::Glob(_) => self.add(before),
        }
    }

    fn add_leaf(&mut self, before: &mut Vec<String>, name: String) {
        before.push(name);
        self.add(before);
        before.pop();
    }
}

impl Visit<'_> for Uses {
    fn visit_item_use(&mut self, item: &ItemUse) {
        self.add_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        if is_for_tests(&item.attrs) {
            return;
        }
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &Path) {
        let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&names);
        visit::visit_path(self, path);
    }

    /// Arguments of macros are expressions for the most part.
    fn visit_macro(&mut self, mac: &Macro) {
        let parser = syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated;
        if let Ok(arguments) = mac.parse_body_with(parser) {
            for argument in &arguments {
                self.visit_expr(argument);
            }
        }
        visit::visit_macro(self, mac);
    }
}
