//! What each tenant holds of an array while changes are under way, so that one who changes much leaves room for others.
//! A tenant is a namespace, or what belongs to the cluster.
#![forbid(unsafe_code)]

use crate::model::share::RESERVE;

/// A tenant may hold at most this multiple of the free elements of an array, its former elements included. So tenants that
/// hold little find room however full the array is.
const HOLD: u64 = 15;

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

    /// Returns whether a tenant may take `n` more.
    pub(super) fn admits(&self, tenant: u32, n: u32) -> bool {
        let held = self.by_tenant.get(tenant as usize).copied().unwrap_or(0);
        let Some(left) = self.free().checked_sub(n) else { return false };
        u64::from(held) + u64::from(n) <= HOLD * (u64::from(left) + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Holdings;
    use crate::model::share::limit;

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
