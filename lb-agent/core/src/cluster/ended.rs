//! Addresses of endpoints that were terminating when they left their slices: their Pods have ended. It is asked for Pods of
//! other nodes while those are not watched.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use lb_common::addr::Addr;

/// Passes over the connection table after which an address is forgotten: a backend that has left is looked at more often.
const PASSES: u8 = 10;

/// The addresses, each with the passes that are left to it.
#[derive(Debug, Default)]
pub(super) struct Ended(HashMap<Addr, u8>);

impl Ended {
    /// Its last endpoint was terminating and is gone.
    pub(super) fn note(&mut self, addr: Addr) {
        self.0.insert(addr, PASSES);
    }

    /// An endpoint has the address again.
    pub(super) fn begins(&mut self, addr: &Addr) {
        self.0.remove(addr);
    }

    pub(super) fn contains(&self, addr: &Addr) -> bool {
        self.0.contains_key(addr)
    }

    /// A pass has ended.
    pub(super) fn pass(&mut self) {
        self.0.retain(|_, left| {
            *left = left.saturating_sub(1);
            *left > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;

    use super::{Ended, PASSES};

    #[test]
    fn an_address_is_remembered_for_a_while_or_until_it_is_used_again() {
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let (a, b) = (addr("10.1.0.2"), addr("10.1.0.3"));
        let mut ended = Ended::default();
        ended.note(a);
        ended.note(b);
        ended.begins(&b);
        for _ in 1..PASSES {
            ended.pass();
            assert!(ended.contains(&a) && !ended.contains(&b));
        }
        ended.pass();
        assert!(!ended.contains(&a));
    }
}
