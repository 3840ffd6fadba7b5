//! The addresses that a rule names, however many blocks and exceptions they are written as: ranges within ranges, in
//! turn in it and not.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::range::CidrRange;
use crate::cluster::{Family, Prefix};

/// A set of addresses. What covers IPv4 in IPv6 says nothing of it.
#[derive(Clone, Debug)]
pub(super) struct Area {
    /// Those that cover others before them. What covers an edge within the family, if anything does, says the opposite.
    edges: Arc<[Edge]>,
    /// Of the edges, so that many of them are read once.
    hash: u64,
}

/// A range whose addresses are in the area, or not, unless they are in a longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Edge {
    pub(super) range: CidrRange,
    pub(super) family: Family,
    pub(super) inside: bool,
}

impl Area {
    /// What is in one of these blocks, and in none of that one's exceptions.
    pub(super) fn of<'a>(blocks: impl Iterator<Item = (&'a Prefix, &'a [Prefix])>) -> Self {
        let mut changes: Vec<(CidrRange, Family, i32)> = Vec::new();
        for (prefix, excepts) in blocks {
            let (range, family) = (CidrRange::of(prefix), prefix.family());
            let within =
                excepts.iter().filter(|except| except.family() == family).map(CidrRange::of);
            let mut excepts: Vec<CidrRange> = within.collect();
            if excepts.iter().any(|except| except.covers(&range)) {
                continue;
            }
            // Each address is taken out of its block once.
            excepts.retain(|except| range.covers(except));
            excepts.sort_unstable();
            let mut last: Option<CidrRange> = None;
            excepts.retain(|except| {
                let is_new = last.is_none_or(|last| !last.covers(except));
                last = if is_new { Some(*except) } else { last };
                is_new
            });
            changes.push((range, family, 1));
            changes.extend(excepts.into_iter().map(|except| (except, family, -1)));
        }
        changes.sort_unstable_by_key(|(range, family, _)| (*range, *family));
        let mut edges = Vec::new();
        // Ranges with the number of blocks that their addresses are in.
        let mut around: Vec<(CidrRange, Family, i32)> = Vec::new();
        for same in changes.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some(&(range, family, _)) = same.first() else { continue };
            while around.last().is_some_and(|(outer, ..)| !outer.covers(&range)) {
                around.pop();
            }
            let before = match around.last() {
                Some((_, outer, n)) if *outer == family => *n,
                Some(_) | None => 0,
            };
            let after = before + same.iter().map(|(.., change)| change).sum::<i32>();
            if (before > 0) != (after > 0) {
                edges.push(Edge { range, family, inside: after > 0 });
            }
            around.push((range, family, after));
        }
        let mut hasher = DefaultHasher::new();
        edges.hash(&mut hasher);
        Self { edges: edges.into(), hash: hasher.finish() }
    }

    pub(super) fn edges(&self) -> &[Edge] {
        &self.edges
    }
}

impl PartialEq for Area {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && (Arc::ptr_eq(&self.edges, &other.edges) || self.edges == other.edges)
    }
}

impl Eq for Area {}

impl Hash for Area {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::Area;
    use crate::cluster::Prefix;

    /// Blocks, each with its exceptions.
    type Written<'a> = &'a [(&'a str, &'a [&'a str])];

    #[test]
    fn blocks_of_a_rule_are_one_area() {
        let text = |blocks: Written<'_>| {
            let read = |text: &&str| text.parse::<Prefix>().unwrap();
            let blocks: Vec<(Prefix, Vec<Prefix>)> =
                blocks.iter().map(|(p, e)| (read(p), e.iter().map(read).collect())).collect();
            let area = Area::of(blocks.iter().map(|(p, e)| (p, &**e)));
            let edge = |edge: &super::Edge| {
                let sign = if edge.inside { "+" } else { "-" };
                format!("{sign}{}/{}", edge.range.addr(), edge.range.len)
            };
            area.edges().iter().map(edge).collect::<Vec<_>>().join(" ")
        };
        let cases: [(Written<'_>, &str); 9] = [
            (&[("10.0.0.0/8", &["10.1.0.0/16"])], "+10.0.0.0/104 -10.1.0.0/112"),
            (
                &[("10.0.0.0/8", &["10.1.0.0/16"]), ("10.1.2.0/24", &[])],
                "+10.0.0.0/104 -10.1.0.0/112 +10.1.2.0/120",
            ),
            (&[("0.0.0.0/0", &["10.0.0.0/8"]), ("0.0.0.0/0", &["11.0.0.0/8"])], "+0.0.0.0/96"),
            (
                &[("0.0.0.0/0", &["10.0.0.0/8"]), ("0.0.0.0/0", &["10.0.0.0/9"])],
                "+0.0.0.0/96 -10.0.0.0/105",
            ),
            (
                &[
                    ("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24", "11.0.0.0/8"]),
                    ("11.0.0.0/9", &[]),
                ],
                "+10.0.0.0/104 -10.1.0.0/112 +11.0.0.0/105",
            ),
            (&[("10.0.0.0/8", &["10.0.0.0/8"]), ("10.0.0.0/8", &["8.0.0.0/5"])], ""),
            (&[("::/0", &[]), ("10.0.0.0/8", &[])], "+::/0 +10.0.0.0/104"),
            (&[("::/0", &["2001:db8::/32", "10.0.0.0/8"])], "+::/0 -2001:db8::/32"),
            (&[("10.0.0.0/8", &[]), ("10.0.0.0/9", &[]), ("10.0.0.0/8", &[])], "+10.0.0.0/104"),
        ];
        for (blocks, want) in cases {
            assert_eq!(text(blocks), want, "{blocks:?}");
        }
    }
}
