//! What the maps say that the agent owns, as plain tables that the evaluator of policies can read, too.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::addr::Addr;
use lb_common::config::Settings;
use lb_common::endpoint::{Dev, Ident, PodEntry};
use lb_common::flow::proto;
use lb_common::past::LocalEnd;
use lb_common::policy::{Bits, Group, PeerKey, PolicyLookup, PolicyState, PortKey};
use lb_common::service::{Backend, Frontend, FrontendFlags, FrontendKey};

use super::cidrs::Cidrs;
use super::policy::port_key::port_prefix;
use super::range_key::RangeKey;
use super::source_key::SourceKey;
use super::write::{MapError, MapStore, Write};
use crate::cluster::Prefix;

/// What the maps say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actual {
    /// The map `frontends`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// The array `slots`: backend ids. What is beyond its end is 0.
    pub slots: Vec<u32>,
    /// The array `backends`, by id. What is beyond its end is unused.
    pub backends: Vec<Backend>,
    /// The map `source_ranges`.
    pub source_ranges: BTreeSet<RangeKey>,
    /// The array `frontend_ports`. What is beyond its end is 0.
    pub frontend_ports: Vec<u64>,
    /// The array `host_ports`. What is beyond its end is 0.
    pub host_ports: Vec<u64>,
    /// The array `former_ports`. What is beyond its end is 0.
    pub former_ports: Vec<u64>,
    /// The only element of the array `settings`; `None` = all of it is zero.
    pub settings: Option<Box<Settings>>,
    /// The array `groups`, but for elements that are zero.
    pub groups: BTreeMap<u32, Group>,
    /// The map `peer_bits`.
    pub peer_bits: HashMap<PeerKey, Bits>,
    /// The map `port_bits`, with the lengths of its prefixes.
    pub port_bits: HashMap<(u32, PortKey), Bits>,
    /// The map `cidrs`.
    pub cidrs: Cidrs,
    /// The only element of the array `policy`.
    pub policy: PolicyState,
    /// The map `ident`.
    pub ident: HashMap<Addr, Ident>,
    /// The map `pods`, by ifindex.
    pub pods: BTreeMap<u32, PodEntry>,
    /// The array `locals`, but for elements that are zero.
    pub locals: BTreeMap<u32, LocalEnd>,
    /// The map `devs`, by ifindex.
    pub devs: BTreeMap<u32, Dev>,
    /// The map `macs`.
    pub macs: BTreeMap<u64, u32>,
    /// The array `links`, but for elements that are zero.
    pub links: BTreeMap<u32, u64>,
    /// The map `pod_ranges`.
    pub pod_ranges: BTreeSet<Prefix>,
    /// The map `pod_sources`.
    pub pod_sources: BTreeSet<SourceKey>,
}

impl Default for Actual {
    fn default() -> Self {
        Self {
            frontends: HashMap::new(),
            slots: Vec::new(),
            backends: Vec::new(),
            source_ranges: BTreeSet::new(),
            frontend_ports: Vec::new(),
            host_ports: Vec::new(),
            former_ports: Vec::new(),
            settings: None,
            groups: BTreeMap::new(),
            peer_bits: HashMap::new(),
            port_bits: HashMap::new(),
            cidrs: Cidrs::default(),
            policy: PolicyState::ZERO,
            ident: HashMap::new(),
            pods: BTreeMap::new(),
            locals: BTreeMap::new(),
            devs: BTreeMap::new(),
            macs: BTreeMap::new(),
            links: BTreeMap::new(),
            pod_ranges: BTreeSet::new(),
            pod_sources: BTreeSet::new(),
        }
    }
}

impl Actual {
    /// Takes note of a write that happened.
    pub fn record(&mut self, write: &Write) {
        match write {
            Write::PutBackend { id, backend } => {
                put(&mut self.backends, *id, *backend, Backend::ZERO);
            }
            Write::PutSlot { slot, backend_id } => put(&mut self.slots, *slot, *backend_id, 0),
            Write::PutFrontend { key, frontend } => drop(self.frontends.insert(*key, *frontend)),
            Write::DeleteFrontend { key } => drop(self.frontends.remove(key)),
            Write::PutSourceRange { key } => drop(self.source_ranges.insert(*key)),
            Write::DeleteSourceRange { key } => drop(self.source_ranges.remove(key)),
            // The programs write it, for clients.
            Write::ClearAffinity { .. } => {}
            Write::PutFrontendPorts { word, bits } => {
                put(&mut self.frontend_ports, *word, *bits, 0);
            }
            Write::PutHostPorts { word, bits } => put(&mut self.host_ports, *word, *bits, 0),
            Write::PutFormerPorts { word, bits } => put(&mut self.former_ports, *word, *bits, 0),
            Write::PutSettings(settings) => self.settings = Some(settings.clone()),
            Write::PutGroup { id, group } => drop(self.groups.insert(*id, **group)),
            Write::PutPeerBits { key, bits } => drop(self.peer_bits.insert(*key, *bits)),
            Write::DeletePeerBits { key } => drop(self.peer_bits.remove(key)),
            Write::PutPortBits { len, key, bits } => {
                self.port_bits.insert((*len, *key), *bits);
            }
            Write::DeletePortBits { len, key } => drop(self.port_bits.remove(&(*len, *key))),
            Write::PutCidr { range, ident } => self.cidrs.insert(*range, *ident),
            Write::DeleteCidr { range } => self.cidrs.remove(range),
            Write::PutPolicyState(state) => self.policy = *state,
            Write::PutIdent { addr, ident } => drop(self.ident.insert(*addr, *ident)),
            Write::DeleteIdent { addr } => drop(self.ident.remove(addr)),
            Write::PutPod { ifindex, pod } => drop(self.pods.insert(*ifindex, **pod)),
            Write::DeletePod { ifindex } => drop(self.pods.remove(ifindex)),
            Write::PutLocal { id, local } => drop(self.locals.insert(*id, *local)),
            Write::PutDev { ifindex, dev } => drop(self.devs.insert(*ifindex, *dev)),
            Write::DeleteDev { ifindex } => drop(self.devs.remove(ifindex)),
            Write::PutMac { mac, holder } => drop(self.macs.insert(*mac, *holder)),
            Write::DeleteMac { mac } => drop(self.macs.remove(mac)),
            Write::PutLink { index, element: 0 } => drop(self.links.remove(index)),
            Write::PutLink { index, element } => drop(self.links.insert(*index, *element)),
            Write::PutPodRange { range } => drop(self.pod_ranges.insert(*range)),
            Write::DeletePodRange { range } => drop(self.pod_ranges.remove(range)),
            Write::PutPodSource { key } => drop(self.pod_sources.insert(*key)),
            Write::DeletePodSource { key } => drop(self.pod_sources.remove(key)),
        }
    }

    /// Whether [`super::Planner::watches_departures`] may have been so when this was written: too often rather than too seldom,
    /// since the addresses of the host are not in it.
    pub fn may_watch_departures(&self) -> bool {
        let from_outside = |(key, value): (&FrontendKey, &Frontend)| {
            key.proto != proto::TCP && value.flags.contains(FrontendFlags::EXTERNAL)
        };
        self.host_ports.iter().any(|ports| *ports != 0) || self.frontends.iter().any(from_outside)
    }

    /// The identity of an address, whoever has it.
    pub(super) fn ident_of(&self, addr: &Addr) -> u32 {
        self.ident.get(addr).map_or_else(|| self.cidrs.find(addr), |known| known.ident)
    }

    /// Whether the group can be referred to; 0 stands for none.
    pub(super) fn has_group(&self, id: u32) -> bool {
        id == 0 || self.groups.contains_key(&id)
    }

    /// The elements of `groups` that are chained to this one, it first.
    pub(super) fn chain(&self, head: u32) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut next = head;
        while next != 0 && !ids.contains(&next) {
            ids.push(next);
            next = self.groups.get(&next).map_or(0, |group| group.next);
        }
        ids
    }
}

/// Maps that take every write.
impl MapStore for Actual {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        self.record(write);
        Ok(())
    }
}

impl PolicyLookup for Actual {
    fn ident(&self, addr: &Addr) -> Option<&Ident> {
        self.ident.get(addr)
    }

    fn cidr(&self, addr: &Addr) -> u32 {
        self.cidrs.find(addr)
    }

    fn group(&self, index: u32) -> Option<&Group> {
        self.groups.get(&index)
    }

    fn peer_bits(&self, key: &PeerKey) -> Option<&Bits> {
        self.peer_bits.get(key)
    }

    fn port_bits(&self, key: &PortKey) -> Option<&Bits> {
        let lengths = (PortKey::ANY_PORT..=PortKey::ONE_PORT).rev();
        lengths.chain([PortKey::ANY_PROTOCOL]).find_map(|len| {
            let prefix = port_prefix(key.group, len, key.proto, key.port.get());
            self.port_bits.get(&(len, PortKey { guess: key.guess, ..prefix }))
        })
    }
}

/// Writes an element of an array that is kept only up to its last used element.
fn put<T: Copy>(array: &mut Vec<T>, index: u32, element: T, empty: T) {
    let index = index as usize;
    if index >= array.len() {
        array.resize(index + 1, empty);
    }
    if let Some(place) = array.get_mut(index) {
        *place = element;
    }
}
