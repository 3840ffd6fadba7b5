//! Contiguous ranges of slots: each change of a service port takes a fresh one.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use lb_common::service::Frontend;

/// A range of slots; without length it has no base either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SlotRange {
    pub(super) base: u32,
    pub(super) len: u32,
}

impl SlotRange {
    /// The smallest range that has all slots of a frontend: those of its lists and of its table.
    pub(super) fn of(frontend: &Frontend) -> Self {
        let parts = [
            (frontend.base, frontend.n),
            (frontend.local_base, frontend.local_n),
            (frontend.maglev_base, frontend.maglev_n),
        ];
        let parts = parts.into_iter().map(|(base, len)| Self { base, len });
        parts.fold(Self::default(), Self::with)
    }

    /// The smallest range that has the slots of both.
    pub(super) fn with(self, other: Self) -> Self {
        match (self.len, other.len) {
            (_, 0) => self,
            (0, _) => other,
            (_, _) => {
                let base = self.base.min(other.base);
                Self { base, len: self.end().max(other.end()) - base }
            }
        }
    }

    /// The slot after the last.
    pub(super) fn end(self) -> u32 {
        self.base.saturating_add(self.len)
    }

    pub(super) fn slots(self) -> std::ops::Range<u32> {
        self.base..self.end()
    }

    /// Whether the two have a slot in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.len > 0 && other.len > 0 && self.base < other.end() && other.base < self.end()
    }
}

/// The free ranges. Neighbours are always merged.
#[derive(Debug)]
pub(super) struct FreeSlots {
    /// Base → length.
    free: BTreeMap<u32, u32>,
    /// (length, base) of the same.
    by_len: BTreeSet<(u32, u32)>,
}

impl FreeSlots {
    pub(super) fn new(capacity: u32) -> Self {
        let mut ranges = Self { free: BTreeMap::new(), by_len: BTreeSet::new() };
        ranges.insert(SlotRange { base: 0, len: capacity });
        ranges
    }

    /// Takes a range out of the smallest free one that is long enough.
    pub(super) fn allocate(&mut self, len: u32) -> Option<SlotRange> {
        if len == 0 {
            return Some(SlotRange::default());
        }
        let (found, base) = *self.by_len.range((len, 0)..).next()?;
        self.remove(SlotRange { base, len: found });
        self.insert(SlotRange { base: base + len, len: found - len });
        Some(SlotRange { base, len })
    }

    /// Takes this very range; false when a part of it is not free.
    pub(super) fn reserve(&mut self, range: SlotRange) -> bool {
        if range.len == 0 {
            return true;
        }
        let below = self.free.range(..=range.base).next_back();
        let Some((&base, &len)) = below else { return false };
        let free = SlotRange { base, len };
        if free.end() < range.end() {
            return false;
        }
        self.remove(free);
        self.insert(SlotRange { base, len: range.base - base });
        self.insert(SlotRange { base: range.end(), len: free.end() - range.end() });
        true
    }

    /// Gives a range back.
    pub(super) fn release(&mut self, range: SlotRange) {
        if range.len == 0 {
            return;
        }
        let mut merged = range;
        if let Some((&base, &len)) = self.free.range(..range.base).next_back()
            && base + len == range.base
        {
            self.remove(SlotRange { base, len });
            merged = SlotRange { base, len: len + merged.len };
        }
        if let Some(&len) = self.free.get(&range.end()) {
            self.remove(SlotRange { base: range.end(), len });
            merged.len += len;
        }
        self.insert(merged);
    }

    fn insert(&mut self, range: SlotRange) {
        if range.len > 0 {
            self.free.insert(range.base, range.len);
            self.by_len.insert((range.len, range.base));
        }
    }

    fn remove(&mut self, range: SlotRange) {
        self.free.remove(&range.base);
        self.by_len.remove(&(range.len, range.base));
    }
}

#[cfg(test)]
mod tests {
    use super::{FreeSlots, SlotRange};
    use proptest::prelude::*;

    #[test]
    fn neighbours_merge_and_the_best_fit_is_taken() {
        let mut ranges = FreeSlots::new(10);
        let [a, b, c] = [3, 2, 4].map(|len| ranges.allocate(len).unwrap());
        assert_eq!((a.base, b.base, c.base), (0, 3, 5));
        assert_eq!(ranges.allocate(2), None);
        ranges.release(a);
        ranges.release(c);
        assert_eq!(ranges.allocate(3), Some(a), "the smaller of two that fit");
        ranges.release(a);
        ranges.release(b);
        assert_eq!(ranges.allocate(10), Some(SlotRange { base: 0, len: 10 }));
        assert!(!ranges.reserve(SlotRange { base: 9, len: 1 }));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_none_is_lost(sizes in prop::collection::vec((1u32..20, any::<bool>()), 1..200)) {
            let mut ranges = FreeSlots::new(300);
            let mut held: Vec<SlotRange> = Vec::new();
            for (len, give_back) in sizes {
                if give_back && !held.is_empty() {
                    ranges.release(held.swap_remove(len as usize % held.len()));
                } else if let Some(range) = ranges.allocate(len) {
                    prop_assert!(range.end() <= 300);
                    prop_assert!(held.iter().all(|other| !other.overlaps(range)));
                    held.push(range);
                }
            }
            for range in held {
                ranges.release(range);
                prop_assert!(ranges.reserve(range));
                ranges.release(range);
            }
            prop_assert_eq!(ranges.allocate(300), Some(SlotRange { base: 0, len: 300 }));
        }
    }
}
