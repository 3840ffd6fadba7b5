//! Destination → frontend → backend.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::flow::proto;
use lb_common::hash;
use lb_common::service::{
    Affinity, AffinityKey, Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey,
    affinity_is_over, state,
};
use lb_common::verdict::Counter;

use crate::scratch::Target;
use crate::{kernel, maps};

/// What a destination is.
pub(crate) enum Destination {
    /// No Service.
    Plain,
    /// This frontend, which has backends.
    Frontend(&'static Frontend),
    /// This frontend, which has none.
    Empty(&'static Frontend),
    /// A ClusterIP, but none of its ports.
    UndefinedPort,
    /// In the range of ClusterIPs, and no Service's.
    Unallocated,
}

/// Looks a destination up: exactly, then by the wildcard of its address.
#[inline(always)]
pub(crate) fn lookup(addr: Addr, port: Be16, proto: u8) -> Destination {
    if let Some(frontend) = maps::frontend(&FrontendKey::new(addr, port, proto)) {
        return if frontend.n == 0 {
            Destination::Empty(frontend)
        } else {
            Destination::Frontend(frontend)
        };
    }
    match maps::frontend(&FrontendKey::wildcard(addr)) {
        Some(wildcard) if wildcard.flags.contains(FrontendFlags::ADDRESS_ONLY) => {
            Destination::Plain
        }
        Some(_) => Destination::UndefinedPort,
        None if is_cluster_ip(&addr) => Destination::Unallocated,
        None => Destination::Plain,
    }
}

/// Whether the address is in the range of ClusterIPs.
#[inline(always)]
pub(crate) fn is_cluster_ip(addr: &Addr) -> bool {
    let Some(settings) = maps::settings() else { return false };
    let mut i = 0;
    while i < settings.service_cidrs.len() && i < settings.n_service_cidrs as usize {
        if settings.service_cidrs.get(i).is_some_and(|cidr| cidr.contains(addr)) {
            return true;
        }
        i += 1;
    }
    false
}

/// Who opens a flow.
pub(crate) struct Client {
    /// Its address.
    pub(crate) addr: Addr,
    /// Whether it is outside the cluster, so that the external traffic policy is for it.
    pub(crate) outside: bool,
    /// Hash of its flow, the same on every node.
    pub(crate) hash: u32,
}

/// Whether the client gets the backends of this node only.
#[inline(always)]
pub(crate) fn is_local(frontend: &Frontend, outside: bool) -> bool {
    outside && frontend.flags.contains(FrontendFlags::EXTERNAL_LOCAL)
}

/// Chooses a backend: the one the client had before, if it has affinity, else by the Service's algorithm. False only
/// when the tables are being changed under our feet.
#[inline(never)]
pub(crate) fn choose(frontend: &Frontend, client: &Client, target: &mut Target) -> bool {
    let local = is_local(frontend, client.outside);
    if frontend.affinity_secs == 0 {
        return usable(pick(frontend, client, local), target);
    }
    // With an internal policy of Local the lists of a ClusterIP are one: the other addresses' backends are not in it.
    let one_list = (frontend.base, frontend.n) == (frontend.local_base, frontend.local_n);
    let key = AffinityKey { client: client.addr, service_id: frontend.service_id };
    let now = kernel::ticks();
    if former(&key, frontend.affinity_secs, now, local || one_list, target) {
        maps::count(Counter::AffinityHit);
    } else if !usable(pick(frontend, client, local), target) {
        return false;
    }
    let Target { id: backend_id, generation: backend_gen, .. } = *target;
    maps::put_affinity(&key, &Affinity::new(backend_id, backend_gen, now));
    true
}

/// The backend that the client had before, if it may have it still: not too long ago, alive, and in the list that the
/// client gets its backends from.
#[inline(always)]
fn former(key: &AffinityKey, secs: u32, now: u64, local: bool, target: &mut Target) -> bool {
    let Some(affinity) = maps::affinity(key) else { return false };
    if affinity_is_over(affinity.tick(), now, secs, kernel::hz()) {
        return false;
    }
    let list = if local { BackendFlags::LOCAL } else { BackendFlags::CLUSTER };
    let Some(backend) = maps::backend(affinity.backend_id) else { return false };
    let same = backend.generation == affinity.backend_gen && backend.state == state::ACTIVE;
    same && backend.flags.contains(list) && usable(affinity.backend_id, target)
}

/// The id of a backend in the client's list, by the Service's algorithm; 0 for none.
#[inline(always)]
fn pick(frontend: &Frontend, client: &Client, local: bool) -> u32 {
    if client.outside && frontend.maglev_n != 0 {
        return slot(frontend.maglev_base, frontend.maglev_n, client.hash);
    }
    let (base, n) =
        if local { (frontend.local_base, frontend.local_n) } else { (frontend.base, frontend.n) };
    let first = slot(base, n, kernel::random());
    if !frontend.flags.contains(FrontendFlags::LEAST_CONNECTIONS) {
        return first;
    }
    // The power of two choices (Mitzenmacher 2001): nearly as even as the least loaded of all, for two looks.
    let second = slot(base, n, kernel::random());
    if maps::load(second) < maps::load(first) { second } else { first }
}

#[inline(always)]
fn slot(base: u32, n: u32, hash: u32) -> u32 {
    maps::slot(base.wrapping_add(hash::scale(hash, n))).unwrap_or(0)
}

/// Makes the backend the target if it takes packets.
#[inline(always)]
fn usable(id: u32, target: &mut Target) -> bool {
    let Some(backend) = maps::backend(id) else { return false };
    let Backend { addr, port, generation, .. } = *backend;
    *target = Target { addr, port, id, generation };
    matches!(backend.state, state::ACTIVE | state::DRAINING)
}

/// Whether the client may use the frontend (`spec.loadBalancerSourceRanges`).
#[inline(always)]
pub(crate) fn admits(frontend: &Frontend, client: &Addr) -> bool {
    !frontend.flags.contains(FrontendFlags::SOURCE_RANGES)
        || maps::is_in_source_range(frontend.service_id, client)
}

/// How a remembered backend is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Takes new flows.
    Active,
    /// Keeps its connections, takes no new flow.
    Draining,
    /// Gone, or its id means another endpoint now.
    Gone,
}

impl Health {
    /// Whether it keeps a flow that it has.
    #[inline(always)]
    pub(crate) fn keeps(self, protocol: u8) -> bool {
        match self {
            Self::Active => true,
            Self::Draining => protocol == proto::TCP,
            Self::Gone => false,
        }
    }
}

/// Returns whether `id` still stands for the backend that it had in this generation. Id 0 stands for no backend.
#[inline(always)]
pub(crate) fn health(id: u32, generation: u32) -> Health {
    if id == 0 {
        return Health::Active;
    }
    match maps::backend(id) {
        Some(backend) if backend.generation == generation => match backend.state {
            state::ACTIVE => Health::Active,
            state::DRAINING => Health::Draining,
            _ => Health::Gone,
        },
        _ => Health::Gone,
    }
}
