//! How many objects have an address. There may be a million addresses, so those of IPv4 are kept in their own size.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use lb_common::addr::Addr;

/// Numbers of users by address; those without one are left out.
#[derive(Debug, Default)]
pub(super) struct AddrUses {
    v4: HashMap<u32, u32>,
    v6: HashMap<Addr, u32>,
}

impl AddrUses {
    /// One more has the address.
    pub(super) fn add(&mut self, addr: &Addr) {
        let uses = if addr.is_v4() {
            self.v4.entry(addr.word3().get()).or_default()
        } else {
            self.v6.entry(*addr).or_default()
        };
        *uses += 1;
    }

    /// One less has it.
    pub(super) fn remove(&mut self, addr: &Addr) {
        if addr.is_v4() {
            less(self.v4.entry(addr.word3().get()));
        } else {
            less(self.v6.entry(*addr));
        }
    }

    /// Whether any has it.
    pub(super) fn has(&self, addr: &Addr) -> bool {
        if addr.is_v4() {
            self.v4.contains_key(&addr.word3().get())
        } else {
            self.v6.contains_key(addr)
        }
    }
}

fn less<K: Eq + Hash>(entry: Entry<'_, K, u32>) {
    if let Entry::Occupied(mut uses) = entry {
        *uses.get_mut() -= 1;
        if *uses.get() == 0 {
            uses.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;

    use super::AddrUses;

    #[test]
    fn an_address_is_used_as_long_as_one_has_it() {
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let mut uses = AddrUses::default();
        for (one, other) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (one, other) = (addr(one), addr(other));
            uses.add(&one);
            uses.add(&one);
            uses.remove(&other);
            uses.remove(&one);
            assert!(uses.has(&one) && !uses.has(&other));
            uses.remove(&one);
            assert!(!uses.has(&one));
        }
    }
}
