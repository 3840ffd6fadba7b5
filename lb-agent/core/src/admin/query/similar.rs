//! Names that somebody may have meant.
#![forbid(unsafe_code)]

/// Names that are named.
const MOST: usize = 3;

/// Those that are like `wanted`, the most similar first.
pub(super) fn names(wanted: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let own = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let short = own(wanted);
    let mut near: Vec<(usize, String)> = names
        .filter_map(|name| {
            let other = own(&name);
            let distance = if other == short {
                // In another namespace.
                0
            } else if other.starts_with(&short) {
                1
            } else {
                distance(&short, &other)
            };
            (distance <= 2).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.into_iter().take(MOST).map(|(_, name)| name).collect()
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
    use super::{distance, is_slip, names};

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
        let all = ["default/web-1", "shop/web", "default/wep", "default/db"];
        let near = names("default/web", all.iter().map(|name| (*name).to_owned()));
        assert_eq!(near, ["shop/web", "default/web-1", "default/wep"]);
    }
}
