//! Who may have how much of a table that is too small for all: each tenant as much as it wants, up to a level at which
//! all of it fits (max-min fairness). A tenant is a namespace, or what belongs to the cluster.
#![forbid(unsafe_code)]

/// One part of so many of a table is kept free of what is wanted for good: a change needs the new before the old goes.
const RESERVE: u32 = 8;
/// Of an array a tenant may hold so many times what it leaves free, what it has left behind included. So however many
/// fill it, those who hold little still find room.
const HOLD: u64 = 15;

/// How much of a table of this size may be wanted for good.
pub(super) const fn limit(capacity: u32) -> u32 {
    capacity - capacity / RESERVE
}

/// What a tenant may have at most so that all fits; `None` when everybody may have what they want.
pub(super) fn level(wanted: impl Iterator<Item = u64>, limit: u64) -> Option<u64> {
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
pub(super) const fn steady(level: u64) -> u64 {
    const KEPT: u32 = 4;
    let bits = u64::BITS - level.leading_zeros();
    let dropped = bits.saturating_sub(KEPT);
    level >> dropped << dropped
}

/// How much of an array each tenant holds, whatever for.
#[derive(Debug)]
pub(super) struct Holdings {
    by_tenant: Vec<u32>,
    total: u32,
    capacity: u32,
}

impl Holdings {
    pub(super) fn new(capacity: u32) -> Self {
        Self { by_tenant: Vec::new(), total: 0, capacity }
    }

    pub(super) fn add(&mut self, tenant: u32, n: u32) {
        let tenant = tenant as usize;
        if tenant >= self.by_tenant.len() {
            self.by_tenant.resize(tenant + 1, 0);
        }
        if let Some(held) = self.by_tenant.get_mut(tenant) {
            *held += n;
            self.total += n;
        }
    }

    pub(super) fn remove(&mut self, tenant: u32, n: u32) {
        if let Some(held) = self.by_tenant.get_mut(tenant as usize) {
            *held = held.saturating_sub(n);
            self.total = self.total.saturating_sub(n);
        }
    }

    /// What was held in one name is held in another.
    pub(super) fn pass(&mut self, from: u32, to: u32, n: u32) {
        self.remove(from, n);
        self.add(to, n);
    }

    pub(super) fn free(&self) -> u32 {
        self.capacity.saturating_sub(self.total)
    }

    /// Whether little is left of what is kept free.
    pub(super) fn is_short(&self) -> bool {
        self.free() < self.capacity / (2 * RESERVE)
    }

    /// Whether a tenant may take so many more.
    pub(super) fn admits(&self, tenant: u32, n: u32) -> bool {
        let held = self.by_tenant.get(tenant as usize).copied().unwrap_or(0);
        let Some(left) = self.free().checked_sub(n) else { return false };
        u64::from(held) + u64::from(n) <= HOLD * (u64::from(left) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Holdings, level, limit, steady};
    use proptest::prelude::*;

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

    #[test]
    fn whoever_holds_little_finds_room() {
        let mut held = Holdings::new(1600);
        assert!(held.admits(1, 1500));
        assert!(!held.admits(1, 1501), "a sixteenth stays free");
        held.add(1, 1500);
        assert!(held.admits(2, 90));
        assert!(!held.is_short());
        held.add(2, 90);
        assert!(held.is_short());
        assert!(held.admits(3, 9) && !held.admits(3, 11) && !held.admits(1, 1));
        held.remove(1, 1000);
        held.pass(2, 3, 90);
        assert!(held.admits(3, 500));
        assert_eq!(held.free(), 1010);
    }

    proptest! {
        #[test]
        fn all_of_it_fits_and_nobody_below_the_level_loses(
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

        #[test]
        fn what_is_granted_can_be_taken(parts in prop::collection::vec(1u32..500, 1..8), capacity in 8u32..5000) {
            let mut held = Holdings::new(capacity);
            let mut left = limit(capacity);
            for (tenant, part) in (0u32..).zip(parts) {
                let part = part.min(left);
                prop_assert!(held.admits(tenant, part), "{held:?} {part}");
                held.add(tenant, part);
                left -= part;
            }
        }
    }
}
