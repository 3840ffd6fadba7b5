//! The pinned policy tables as the evaluator reads them: `lb_common::policy::judge`, the programs' own, outside of the
//! kernel. It looks up what the evaluator asks for, one element at a time, as a packet does.
#![forbid(unsafe_code)]

use std::cell::{OnceCell, RefCell};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError as AyaError};
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::endpoint::Ident;
use lb_common::limits::{
    MAP_CIDRS, MAP_GROUPS, MAP_IDENT, MAP_PEER_BITS, MAP_POLICY, MAP_PORT_BITS, MapSpec,
};
use lb_common::policy::{Bits, Group, PeerKey, PolicyLookup, PolicyState, PortKey};

use crate::bpf::maps::{self, MapsError};
use crate::bpf::pins::Pins;
use crate::bpf::typed;

/// An address as a key: its words in network order.
type Words = [u32; 4];

/// The pinned tables.
pub struct PinnedPolicies {
    ident: HashMap<MapData, Words, Ident>,
    cidrs: LpmTrie<MapData, Words, u32>,
    groups: Array<MapData, Group>,
    peer_bits: HashMap<MapData, PeerKey, Bits>,
    port_bits: LpmTrie<MapData, PortKey, Bits>,
    state: Array<MapData, PolicyState>,
    idents_read: Shelf<Ident>,
    groups_read: Shelf<Group>,
    bits_read: Shelf<Bits>,
    error: RefCell<Option<String>>,
}

impl PinnedPolicies {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self {
            ident: typed::open(pins, &MAP_IDENT)?,
            cidrs: typed::open(pins, &MAP_CIDRS)?,
            groups: typed::open(pins, &MAP_GROUPS)?,
            peer_bits: typed::open(pins, &MAP_PEER_BITS)?,
            port_bits: typed::open(pins, &MAP_PORT_BITS)?,
            state: typed::open(pins, &MAP_POLICY)?,
            idents_read: Shelf::default(),
            groups_read: Shelf::default(),
            bits_read: Shelf::default(),
            error: RefCell::new(None),
        })
    }

    /// What changes as policies do.
    pub fn state(&self) -> PolicyState {
        self.found(&MAP_POLICY, self.state.get(&0, 0)).unwrap_or(PolicyState::ZERO)
    }

    /// The first element that could not be read. What was judged then may be wrong.
    pub fn take_error(&self) -> Option<String> {
        self.error.take()
    }

    fn found<T>(&self, spec: &MapSpec, result: Result<T, AyaError>) -> Option<T> {
        match result {
            Ok(found) => Some(found),
            Err(err) if maps::is_missing(&err) => None,
            Err(err) => {
                self.error.borrow_mut().get_or_insert_with(|| format!("map {}: {err}", spec.name));
                None
            }
        }
    }
}

impl PolicyLookup for PinnedPolicies {
    fn ident(&self, addr: &Addr) -> Option<&Ident> {
        let found = self.found(&MAP_IDENT, self.ident.get(&words(addr), 0))?;
        Some(self.idents_read.put(found))
    }

    fn cidr(&self, addr: &Addr) -> u32 {
        let key = Key::new(128, words(addr));
        self.found(&MAP_CIDRS, self.cidrs.get(&key, 0)).unwrap_or_default()
    }

    fn group(&self, index: u32) -> Option<&Group> {
        if index >= self.groups.len() {
            return None;
        }
        let found = self.found(&MAP_GROUPS, self.groups.get(&index, 0))?;
        Some(self.groups_read.put(found))
    }

    fn peer_bits(&self, key: &PeerKey) -> Option<&Bits> {
        let found = self.found(&MAP_PEER_BITS, self.peer_bits.get(key, 0))?;
        Some(self.bits_read.put(found))
    }

    fn port_bits(&self, key: &PortKey) -> Option<&Bits> {
        let key = Key::new(PortKey::ONE_PORT, *key);
        let found = self.found(&MAP_PORT_BITS, self.port_bits.get(&key, 0))?;
        Some(self.bits_read.put(found))
    }
}

/// What was read, kept where it is: the evaluator borrows it, as it borrows the maps' own elements in the kernel.
struct Shelf<T>(OnceCell<Box<(T, Shelf<T>)>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(OnceCell::new())
    }
}

impl<T> Shelf<T> {
    fn put(&self, value: T) -> &T {
        let mut end = self;
        while let Some(book) = end.0.get() {
            end = &book.1;
        }
        &end.0.get_or_init(|| Box::new((value, Self::default()))).0
    }
}

fn words(addr: &Addr) -> Words {
    addr.words().map(Be32::to_wire)
}

#[cfg(test)]
mod tests {
    use super::Shelf;

    #[test]
    fn what_is_on_the_shelf_stays() {
        let shelf = Shelf::default();
        let first = shelf.put(1);
        let others: Vec<&i32> = (2..5).map(|n| shelf.put(n)).collect();
        assert_eq!((*first, others), (1, vec![&2, &3, &4]));
    }
}
