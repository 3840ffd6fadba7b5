//! The order people expect of names and addresses: `web-9` before `web-10`, 10.1.0.2 before 10.1.0.10.

use std::cmp::Ordering;

/// Compares runs of digits as numbers and everything else as text.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut rest_a, mut rest_b) = (a, b);
    while let (Some((part_a, next_a)), Some((part_b, next_b))) = (split(rest_a), split(rest_b)) {
        let order = match (part_a.parse::<u64>(), part_b.parse::<u64>()) {
            (Ok(number_a), Ok(number_b)) => number_a.cmp(&number_b),
            _ => part_a.cmp(part_b),
        };
        if order.is_ne() {
            return order;
        }
        (rest_a, rest_b) = (next_a, next_b);
    }
    // One is the beginning of the other, or they differ in leading zeros only.
    rest_a.len().cmp(&rest_b.len()).then_with(|| a.cmp(b))
}

/// The leading run of digits or of other characters, and what follows.
fn split(text: &str) -> Option<(&str, &str)> {
    let first = text.chars().next()?;
    let end =
        text.find(|c: char| c.is_ascii_digit() != first.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end)
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn numbers_within_text_count() {
        let want = ["10.1.0.2:80", "10.1.0.10:80", "10.1.0.10:8080", "a", "a01", "a1", "a2", "b"];
        let mut sorted = want;
        sorted.reverse();
        sorted.sort_by(|a, b| compare(a, b));
        assert_eq!(sorted, want);
    }
}
