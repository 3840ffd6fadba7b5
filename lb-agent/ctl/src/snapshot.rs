//! What was read from the pinned maps, as plain data: everything the rows are made of, besides the names.

use std::collections::{HashMap, HashSet};

use lb_common::addr::Addr;
use lb_common::config::Cidr;
use lb_common::conntrack::{self, CtEntry, CtFlags, CtKey, scope};
use lb_common::endpoint::PodEntry;
use lb_common::flow::proto;
use lb_common::service::{Affinity, Backend, state};

use crate::fields::{AffinityState, Fields};
use crate::frontend::FrontendSlots;
use crate::past::PastTables;

/// The load balancing tables, each entry as the kernel has it.
#[derive(Clone, Debug, Default)]
pub struct TableSnapshot {
    /// Frontends, wildcards included.
    pub frontends: Vec<FrontendSlots>,
    /// Backends in use, by id.
    pub backends: HashMap<u32, Backend>,
    /// Pods of this node, by ifindex.
    pub pods: HashMap<u32, PodEntry>,
    /// What carries our programs at each Pod's veth, as words.
    pub hooks: HashMap<u32, Vec<String>>,
    /// Names of this network namespace's devices, by ifindex.
    pub ifaces: HashMap<u32, String>,
    /// Live flows per backend id.
    pub flows: HashMap<u32, FlowCount>,
    /// Number of slots that frontends refer to.
    pub n_slots: usize,
    /// What few Services use.
    pub fields: Fields,
    /// Which flows go past the IP stack.
    pub past: PastTables,
    /// Where ClusterIPs come from.
    pub service_cidrs: Vec<Cidr>,
}

impl TableSnapshot {
    /// Returns where the next flow of a client with session affinity goes, with this timeout of its Service.
    pub fn affinity_state(&self, value: &Affinity, timeout_secs: u32) -> AffinityState {
        let takes_flows = self.backends.get(&value.backend_id).is_some_and(|backend| {
            backend.generation == value.backend_gen && backend.state == state::ACTIVE
        });
        // Without a timeout the Service no longer has affinity.
        if timeout_secs == 0 || self.fields.ticks.is_over(value.tick(), timeout_secs) {
            AffinityState::Expired
        } else if takes_flows {
            AffinityState::Valid
        } else {
            AffinityState::Gone
        }
    }
}

/// How much of the maps to read: the rest is large, and few commands show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotExtent {
    /// The load balancing tables and the Pods.
    Tables,
    /// [`Fields`], too.
    Fields,
    /// And the live flows counted, of which there may be millions.
    Flows,
}

/// Flows through one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Established TCP, and live flows of other protocols.
    pub active: u64,
    /// TCP in its handshake or closing.
    pub inactive: u64,
}

/// When the conntrack table was read, in the unit of its stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// A [`conntrack::stamp`].
    pub stamp: u32,
    /// Ticks a second.
    pub hz: u32,
}

impl Now {
    /// Seconds since an entry's last packet. A stamp is 256 ticks, so this is about a second coarse.
    pub fn idle_secs(self, entry: &CtEntry) -> u64 {
        let stamps = self.stamp.wrapping_sub(entry.last_seen);
        // The clock of user space may be a stamp behind the kernel's.
        if stamps >= 0x8000_0000 { 0 } else { u64::from(stamps) * 256 / u64::from(self.hz.max(1)) }
    }

    /// Whether the entry is dead and only waits to be removed.
    pub fn is_expired(self, key: &CtKey, entry: &CtEntry) -> bool {
        conntrack::is_expired(key.proto, entry.flags, entry.last_seen, self.stamp, self.hz)
    }
}

/// Counts a conntrack entry under its backend, if it is the opening half of a live translated flow.
///
/// Only opening halves count, so that a flow counts once.
pub fn count_flow(flows: &mut HashMap<u32, FlowCount>, key: &CtKey, entry: &CtEntry, now: Now) {
    if !entry.flags.contains(CtFlags::FORWARD) || now.is_expired(key, entry) {
        return;
    }
    let count = flows.entry(entry.backend_id).or_default();
    let is_active = key.proto != proto::TCP
        || conntrack::is_established(entry.flags) && !conntrack::is_closing(entry.flags);
    if is_active {
        count.active += 1;
    } else {
        count.inactive += 1;
    }
}

/// Which conntrack entries to keep from a dump; the others are never stored. Empty = all.
#[derive(Clone, Debug, Default)]
pub struct CtFilter {
    /// Flows with one of these addresses at either end, before or after translation or masquerading.
    pub addrs: Option<HashSet<Addr>>,
    /// Flows of these Pods of this node: from them, and to them from outside.
    pub locals: Option<HashSet<Addr>>,
    /// Flows to these backends.
    pub backend_ids: Option<HashSet<u32>>,
    /// This protocol only.
    pub protocol: Option<u8>,
}

impl CtFilter {
    /// Whether the entry is wanted.
    pub fn keeps(&self, key: &CtKey, entry: &CtEntry) -> bool {
        let any = |set: &Option<HashSet<Addr>>, addrs: &[&Addr]| {
            set.as_ref().is_none_or(|set| addrs.iter().any(|addr| set.contains(*addr)))
        };
        let own = if key.scope == scope::EXTERNAL { &entry.nat_addr } else { &key.local };
        any(&self.addrs, &[&key.local, &key.remote, &entry.nat_addr, &entry.aux_addr])
            && any(&self.locals, &[own])
            && self.backend_ids.as_ref().is_none_or(|ids| ids.contains(&entry.backend_id))
            && self.protocol.is_none_or(|protocol| protocol == key.proto)
    }
}

/// How full a pinned map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    /// Name in the kernel object.
    pub name: &'static str,
    /// Kernel's name of the type: `lru_hash`.
    pub kind: &'static str,
    /// Elements in use; `None` where the kernel does not tell.
    pub used: Option<u64>,
    /// Elements there is room for (bytes for a ring buffer); `None` where there is no such number.
    pub size: Option<u64>,
    /// The same at most: some maps grow.
    pub max: Option<u64>,
    /// Memory in bytes, as the kernel accounts it.
    pub bytes: Option<u64>,
    /// Where it is pinned.
    pub pin: String,
}
