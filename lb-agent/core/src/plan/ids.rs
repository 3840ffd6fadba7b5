//! Backend ids, and which service port each belongs to.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::share::Holdings;

/// Hands out backend ids. An id belongs to one service port until it is freed, so that a flow which remembers
/// (id, generation) also knows that its backend is still one of that service port.
#[derive(Debug)]
pub(super) struct BackendIds {
    /// By backend id.
    owners: Vec<IdOwner>,
    held: Holdings,
    /// Ids that were used and are free again, the one that has rested longest first.
    free: VecDeque<u32>,
    capacity: u32,
}

/// Whose an id is.
#[derive(Clone, Copy, Debug, Default)]
struct IdOwner {
    /// Service port; 0 = free.
    service_id: u32,
    /// Namespace.
    tenant: u32,
}

impl BackendIds {
    /// Ids 1 to `capacity` - 1.
    pub(super) fn new(capacity: u32) -> Self {
        let held = Holdings::new(capacity.saturating_sub(1));
        Self { owners: vec![IdOwner::default()], held, free: VecDeque::new(), capacity }
    }

    /// A free id for this service port, unless its namespace has to leave the last ones to others.
    pub(super) fn allocate(&mut self, service_id: u32, tenant: u32) -> Option<u32> {
        if !self.held.admits(tenant, 1) {
            return None;
        }
        let fresh = || u32::try_from(self.owners.len()).ok().filter(|id| *id < self.capacity);
        let id = self.free.pop_front().or_else(fresh)?;
        self.set_owner(id, IdOwner { service_id, tenant });
        Some(id)
    }

    /// Takes over an id found in the maps; false when it already belongs to a service port.
    pub(super) fn adopt(&mut self, id: u32, service_id: u32) -> bool {
        if id == 0 || self.owner(id) != 0 {
            return false;
        }
        self.set_owner(id, IdOwner { service_id, tenant: 0 });
        true
    }

    /// It is known whose these adopted ids are.
    pub(super) fn assign(&mut self, ids: impl Iterator<Item = u32>, tenant: u32) {
        for id in ids {
            let service_id = self.owner(id);
            if service_id != 0 {
                self.set_owner(id, IdOwner { service_id, tenant });
            }
        }
    }

    /// Makes an id free.
    pub(super) fn free(&mut self, id: u32) {
        if self.owner(id) != 0 {
            self.set_owner(id, IdOwner::default());
            self.free.push_back(id);
        }
    }

    /// After the last [`BackendIds::adopt`]: ids below the greatest adopted one are free.
    pub(super) fn free_gaps(&mut self) {
        let ids = (1u32..).zip(self.owners.iter().skip(1));
        self.free = ids.filter(|(_, owner)| owner.service_id == 0).map(|(id, _)| id).collect();
    }

    /// The service port that an id belongs to; 0 = none.
    pub(super) fn owner(&self, id: u32) -> u32 {
        self.owners.get(id as usize).map_or(0, |owner| owner.service_id)
    }

    /// The namespace that an id is held by.
    pub(super) fn tenant(&self, id: u32) -> u32 {
        self.owners.get(id as usize).map_or(0, |owner| owner.tenant)
    }

    /// How much of it each namespace holds.
    pub(super) fn held(&self) -> &Holdings {
        &self.held
    }

    fn set_owner(&mut self, id: u32, now: IdOwner) {
        let index = id as usize;
        if index >= self.owners.len() {
            self.owners.resize(index + 1, IdOwner::default());
        }
        let Some(owner) = self.owners.get_mut(index) else { return };
        let before = std::mem::replace(owner, now);
        if before.service_id != 0 {
            self.held.remove(before.tenant, 1);
        }
        if now.service_id != 0 {
            self.held.add(now.tenant, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BackendIds;

    #[test]
    fn ids_start_at_one_and_rest_before_reuse() {
        let mut ids = BackendIds::new(4);
        assert_eq!([1, 1, 2].map(|owner| ids.allocate(owner, 7)), [Some(1), Some(2), Some(3)]);
        assert_eq!(ids.allocate(2, 7), None);
        ids.free(2);
        ids.free(1);
        ids.free(1);
        assert_eq!([9, 9, 9].map(|owner| ids.allocate(owner, 8)), [Some(2), Some(1), None]);
        assert_eq!((ids.owner(2), ids.tenant(2), ids.tenant(3)), (9, 8, 7));
        assert_eq!(ids.held().free(), 0);
    }

    #[test]
    fn adopted_ids_are_not_given_to_others() {
        let mut ids = BackendIds::new(8);
        assert!(ids.adopt(3, 7));
        assert!(!ids.adopt(3, 8));
        assert!(!ids.adopt(0, 8));
        ids.free_gaps();
        let allocated = [1; 4].map(|owner| ids.allocate(owner, 1));
        assert_eq!(allocated, [Some(1), Some(2), Some(4), Some(5)]);
        ids.assign([3, 6].into_iter(), 2);
        assert_eq!((ids.tenant(3), ids.tenant(6), ids.held().free()), (2, 0, 2));
    }
}
