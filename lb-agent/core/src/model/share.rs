//! Who may have how much of a table that is too small for all: each tenant as much as it wants, up to a level at which
//! all of it fits (max-min fairness). A tenant is a namespace, or what belongs to the cluster.
#![forbid(unsafe_code)]

/// This fraction of a table is reserved for changes: a change needs the new elements before the old ones are removed.
pub(crate) const RESERVE: u32 = 8;

/// How much of a table of this size may be wanted for good.
pub(crate) const fn limit(capacity: u32) -> u32 {
    capacity - capacity / RESERVE
}

/// Returns the limit for each tenant with which everything fits; `None` if no limit is needed.
pub(crate) fn level(wanted: impl Iterator<Item = u64>, limit: u64) -> Option<u64> {
    let mut wanted: Vec<u64> = wanted.collect();
    wanted.sort_unstable();
    let mut left = limit;
    let mut tenants = wanted.len() as u64;
    for amount in wanted {
        let share = left / tenants;
        if amount > share {
            return Some(share);
        }
        left -= amount;
        tenants -= 1;
    }
    None
}

/// A level for those above it: a little lower, and the same while what others want changes a little. Else each endpoint
/// that comes or goes anywhere would take a port from one that is above the level, or give it back.
pub(crate) const fn steady(level: u64) -> u64 {
    const KEPT: u32 = 4;
    let bits = u64::BITS - level.leading_zeros();
    let dropped = bits.saturating_sub(KEPT);
    level >> dropped << dropped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{level, limit, steady};

    #[test]
    fn the_greatest_give_way() {
        for (wanted, limit, want) in [
            (&[][..], 10, None),
            (&[3, 7], 10, None),
            (&[3, 8], 10, Some(7)),
            (&[8, 3], 10, Some(7)),
            (&[9, 9, 1], 10, Some(4)),
            (&[1, 1, 1], 2, Some(0)),
        ] {
            assert_eq!(level(wanted.iter().copied(), limit), want, "{wanted:?}");
        }
    }

    #[test]
    fn levels_change_in_steps() {
        assert_eq!([0, 7, 15, 16, 31, 1000].map(steady), [0, 7, 15, 16, 30, 960]);
    }

    proptest! {
        #[test]
        fn all_of_it_fits_and_no_tenant_below_the_level_loses(
            wanted in prop::collection::vec(0u64..2000, 0..20), capacity in 0u32..10_000,
        ) {
            let limit = u64::from(limit(capacity));
            match level(wanted.iter().copied(), limit) {
                None => prop_assert!(wanted.iter().sum::<u64>() <= limit),
                Some(level) => {
                    prop_assert!(steady(level) <= level);
                    let granted = wanted.iter().map(|wanted| (*wanted).min(level)).sum::<u64>();
                    prop_assert!(granted <= limit);
                    prop_assert!(granted + wanted.len() as u64 > limit, "no more than rounding is wasted");
                    // Whoever wants no more than an equal part is below the level.
                    prop_assert!(level >= limit / wanted.len() as u64);
                }
            }
        }
    }
}
