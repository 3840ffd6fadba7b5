//! Names that the user may have meant.
#![forbid(unsafe_code)]

use crate::cluster::Name;

/// Names that are named.
const MOST: usize = 3;

/// Returns those that are similar to `wanted`, in any namespace, the most similar first.
pub(super) fn names<'a>(wanted: &str, names: impl Iterator<Item = &'a Name>) -> Vec<Name> {
    let mut near: Vec<(usize, &Name)> = names
        .filter_map(|name| {
            let distance = if *name.name == *wanted {
                // In another namespace.
                0
            } else if name.name.starts_with(wanted) {
                1
            } else {
                distance(wanted, &name.name)
            };
            (distance <= 2).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.into_iter().take(MOST).map(|(_, name)| name.clone()).collect()
}

/// Whether a word may be a slip of another: other case, up to two letters more, less or different.
pub(super) fn is_slip(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || (a.len().min(b.len()) > 2 && distance(a, b) <= 2)
}

/// Letters to be added, removed or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (to, above) in b.chars().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(from != to)).min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Name, distance, is_slip, names};

    #[test]
    fn slips_are_seen() {
        for (a, b, want) in [
            ("", "", 0),
            ("web", "webb", 1),
            ("api", "API", 3),
            ("kitten", "sitting", 3),
            ("a", "", 1),
        ] {
            assert_eq!(distance(a, b), want, "{a} {b}");
            assert_eq!(distance(b, a), want, "{b} {a}");
        }
        assert!(is_slip("api", "API") && is_slip("web", "webb") && !is_slip("a", "b"));
        let all = ["default/web-1", "shop/web", "default/wep", "default/db"].map(Name::parse);
        let near = names("web", all.iter());
        assert_eq!(near, ["shop/web", "default/web-1", "default/wep"].map(Name::parse));
    }
}
