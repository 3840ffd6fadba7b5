//! Files of a crate that use each other in a circle can only be understood together. A module and what is inside it
//! may know each other: a child is a part of its parent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Module;
use super::uses::Uses;

type Names<'a> = &'a [&'a str];

pub(super) fn check(modules: &[Module<'_>]) -> Vec<String> {
    let roots: BTreeSet<&str> = modules.iter().map(|module| module.root).collect();
    let mut complaints = Vec::new();
    for root in roots {
        let of_crate: Vec<_> = modules.iter().filter(|module| module.root == root).collect();
        let mut edges = edges(&of_crate);
        while let Some(circle) = shortest(&edges) {
            let names: Vec<_> = circle.iter().map(|names| names.join("::")).collect();
            complaints.push(format!(
                "{root}: files use each other in a circle: {} → {}",
                names.join(" → "),
                names.first().map_or("", String::as_str)
            ));
            // The next one must be another.
            for names in circle {
                edges.remove(names);
            }
        }
    }
    complaints
}

/// Returns which files each file uses, its parents and children left out.
fn edges<'a>(modules: &[&'a Module<'_>]) -> BTreeMap<Names<'a>, BTreeSet<Names<'a>>> {
    let by_name: BTreeMap<Vec<&str>, Names<'a>> =
        modules.iter().map(|module| (module.names.clone(), module.names.as_slice())).collect();
    let mut edges = BTreeMap::new();
    for module in modules {
        let uses = Uses::of(&module.names, &module.file.items);
        let targets = uses.paths.iter().filter_map(|path| {
            let mut path: Vec<&str> = path.iter().map(String::as_str).collect();
            while !by_name.contains_key(&path) {
                path.pop()?;
            }
            by_name.get(&path).copied()
        });
        let own = module.names.as_slice();
        let is_kin = |other: &Names<'_>| own.starts_with(other) || other.starts_with(own);
        edges.insert(own, targets.filter(|target| !is_kin(target)).collect());
    }
    edges
}

/// Returns a circle of the fewest files, beginning with its first in the order of names.
fn shortest<'a>(edges: &BTreeMap<Names<'a>, BTreeSet<Names<'a>>>) -> Option<Vec<Names<'a>>> {
    let circles = edges.keys().filter_map(|start| {
        let mut before: BTreeMap<Names<'a>, Names<'a>> = BTreeMap::new();
        let mut open = VecDeque::from([*start]);
        while let Some(at) = open.pop_front() {
            for next in edges.get(at).into_iter().flatten() {
                if next == start {
                    let mut circle = vec![at];
                    let mut at = at;
                    while let Some(previous) = before.get(at) {
                        circle.push(previous);
                        at = previous;
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if edges.contains_key(next) && !before.contains_key(next) {
                    before.insert(next, at);
                    open.push_back(next);
                }
            }
        }
        None
    });
    circles.min_by_key(Vec::len)
}
