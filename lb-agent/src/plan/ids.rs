//! Backend ids, and which service port each belongs to.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Hands out backend ids. An id belongs to one service port until it is freed, so that a flow which remembers
/// (id, generation) also knows that its backend is still one of that service port.
#[derive(Debug)]
pub(super) struct BackendIds {
    /// Service id by backend id; 0 = free.
    owners: Vec<u32>,
    /// Ids that were used and are free again, the one that has rested longest first.
    free: VecDeque<u32>,
    capacity: u32,
}

impl BackendIds {
    /// Ids 1 to `capacity` - 1.
    pub(super) fn new(capacity: u32) -> Self {
        Self { owners: vec![0], free: VecDeque::new(), capacity }
    }

    /// A free id for this service port.
    pub(super) fn allocate(&mut self, service_id: u32) -> Option<u32> {
        if let Some(id) = self.free.pop_front() {
            self.set_owner(id, service_id);
            return Some(id);
        }
        let id = u32::try_from(self.owners.len()).ok().filter(|id| *id < self.capacity)?;
        self.owners.push(service_id);
        Some(id)
    }

    /// Takes over an id found in the maps; false when it already belongs to a service port.
    pub(super) fn adopt(&mut self, id: u32, service_id: u32) -> bool {
        if id == 0 || self.owner(id) != 0 {
            return false;
        }
        self.set_owner(id, service_id);
        true
    }

    /// Makes an id free.
    pub(super) fn free(&mut self, id: u32) {
        if self.owner(id) != 0 {
            self.set_owner(id, 0);
            self.free.push_back(id);
        }
    }

    /// After the last [`BackendIds::adopt`]: ids below the greatest adopted one are free.
    pub(super) fn free_gaps(&mut self) {
        let ids = (1u32..).zip(self.owners.iter().skip(1));
        self.free = ids.filter(|(_, owner)| **owner == 0).map(|(id, _)| id).collect();
    }

    /// The service port that an id belongs to; 0 = none.
    pub(super) fn owner(&self, id: u32) -> u32 {
        self.owners.get(id as usize).copied().unwrap_or(0)
    }

    fn set_owner(&mut self, id: u32, service_id: u32) {
        let index = id as usize;
        if index >= self.owners.len() {
            self.owners.resize(index + 1, 0);
        }
        if let Some(owner) = self.owners.get_mut(index) {
            *owner = service_id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BackendIds;

    #[test]
    fn ids_start_at_one_and_rest_before_reuse() {
        let mut ids = BackendIds::new(4);
        assert_eq!([1, 1, 2].map(|owner| ids.allocate(owner)), [Some(1), Some(2), Some(3)]);
        assert_eq!(ids.allocate(2), None);
        ids.free(2);
        ids.free(1);
        ids.free(1);
        assert_eq!([9, 9, 9].map(|owner| ids.allocate(owner)), [Some(2), Some(1), None]);
        assert_eq!(ids.owner(2), 9);
    }

    #[test]
    fn adopted_ids_are_not_given_to_others() {
        let mut ids = BackendIds::new(8);
        assert!(ids.adopt(3, 7));
        assert!(!ids.adopt(3, 8));
        assert!(!ids.adopt(0, 8));
        ids.free_gaps();
        assert_eq!([1; 4].map(|owner| ids.allocate(owner)), [Some(1), Some(2), Some(4), Some(5)]);
    }
}
