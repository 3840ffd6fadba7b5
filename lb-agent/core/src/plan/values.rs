//! What the frontends of a service port say: their keys, their values, and the slots these refer to.
//!
//! ```text
//! range of slots: [ Cluster only | both | Local only | Maglev table ]
//!                   cluster list ───────┘
//!                                  local list ────────┘
//! ```
//! Each backend stands as often in its part as it has weight.
#![forbid(unsafe_code)]

use lb_common::be::Be16;
use lb_common::service::{BackendFlags, Frontend, FrontendFlags, FrontendKey};

use super::maglev::{self, Member};
use super::slots::SlotRange;
use crate::cluster::Algorithm;
use crate::model::{Class, DesiredBackend, DesiredPort, PortExtra, Scope};

/// Which backends stand in the slots of a service port, and where its lists are among them.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// For each slot the index of a desired backend.
    pub(super) content: Vec<usize>,
    cluster: SlotPart,
    local: SlotPart,
    maglev: SlotPart,
}

/// A part of a range of slots.
#[derive(Clone, Copy, Debug, Default)]
struct SlotPart {
    skip: u32,
    n: u32,
}

impl Layout {
    /// With `plain`, consistent hashing chooses in the list of backends itself, for want of room for a table: the same
    /// one on every node with the same list, but more change when one comes or leaves.
    pub(super) fn new(want: &DesiredPort, plain: bool) -> Self {
        let extra = want.extra.as_deref();
        let mut content = Vec::with_capacity(want.backends.len());
        let mut sizes = [0u32; 3];
        for (i, backend) in want.backends.iter().enumerate() {
            let n = weight(extra, i);
            content.extend(std::iter::repeat_n(i, usize::from(n)));
            let [cluster, both, local] = &mut sizes;
            let size = match backend.class {
                Class::Cluster => cluster,
                Class::Both => both,
                Class::Local => local,
            };
            *size += u32::from(n);
        }
        let [cluster, both, local] = sizes;
        let cluster_list = SlotPart { skip: 0, n: cluster + both };
        let local_list = SlotPart { skip: cluster, n: both + local };
        let maglev = if plain && want.maglev().is_some() {
            let external_local = extra.is_some_and(|extra| extra.external_local);
            if external_local { local_list } else { cluster_list }
        } else {
            let table = table(want);
            let part = SlotPart { skip: content.len() as u32, n: table.len() as u32 };
            content.extend(table);
            part
        };
        Self { content, cluster: cluster_list, local: local_list, maglev }
    }
}

/// The frontends of a desired port, each with its value once its slots are in `range`.
pub(super) fn frontends(
    service_id: u32,
    want: &DesiredPort,
    layout: &Layout,
    range: SlotRange,
) -> Vec<(FrontendKey, Frontend)> {
    let values = Values { service_id, want, layout, range };
    let inside = want.frontends.iter().map(|addr| {
        let key = FrontendKey::new(*addr, Be16::new(want.port), want.protocol);
        (key, values.internal())
    });
    let extra = want.extra.iter();
    let outside = extra.flat_map(|extra| {
        let keys = extra.externals.iter();
        keys.map(|external| {
            let port = Be16::new(external.port);
            let key = FrontendKey::new(external.addr, port, want.protocol);
            (key, values.external(extra, external.scope))
        })
    });
    inside.chain(outside).collect()
}

/// The keys of a desired port's frontends.
pub(super) fn keys(want: &DesiredPort) -> impl Iterator<Item = FrontendKey> {
    let inside = want.frontends.iter().map(|addr| (*addr, want.port));
    let extra = want.extra.iter().flat_map(|extra| &extra.externals);
    let all = inside.chain(extra.map(|external| (external.addr, external.port)));
    all.map(|(addr, port)| FrontendKey::new(addr, Be16::new(port), want.protocol))
}

/// Slots of a desired port's lists.
pub(super) fn n_slots(want: &DesiredPort) -> u32 {
    let extra = want.extra.as_deref();
    (0..want.backends.len()).map(|i| u32::from(weight(extra, i))).sum()
}

/// `Backend::flags` of one. A port that has no cluster list counts its only one as that, too: every client gets it.
pub(super) fn backend_flags(want: &DesiredPort, backend: &DesiredBackend) -> BackendFlags {
    let kind = BackendFlags::NO_POD.when(!backend.is_pod);
    let own = kind
        | match backend.class {
            Class::Cluster => BackendFlags::CLUSTER,
            Class::Both => BackendFlags::CLUSTER | BackendFlags::LOCAL,
            Class::Local => BackendFlags::LOCAL,
        };
    if want.lists().cluster { own } else { own | BackendFlags::CLUSTER }
}

/// What all frontends of a port depend on.
struct Values<'a> {
    service_id: u32,
    want: &'a DesiredPort,
    layout: &'a Layout,
    range: SlotRange,
}

impl Values<'_> {
    /// At a ClusterIP. With `internalTrafficPolicy: Local` both lists are the local one.
    fn internal(&self) -> Frontend {
        let (cluster, local) = match self.want.local_only {
            true => (self.layout.local, self.layout.local),
            false => (self.layout.cluster, SlotPart::default()),
        };
        self.value(cluster, local, FrontendFlags::NONE)
    }

    fn external(&self, extra: &PortExtra, scope: Scope) -> Frontend {
        let mut flags = match scope {
            Scope::Localhost => FrontendFlags::SOCKET_ONLY,
            Scope::LoadBalancer | Scope::ExternalIp | Scope::NodePort => FrontendFlags::EXTERNAL,
        };
        let mut local = SlotPart::default();
        if extra.external_local {
            flags |= FrontendFlags::EXTERNAL_LOCAL;
            local = self.layout.local;
            if local.n == 0 && self.want.anywhere {
                flags |= FrontendFlags::ELSEWHERE;
            }
        }
        if scope.is_gated() && extra.source_ranges.is_some() {
            flags |= FrontendFlags::SOURCE_RANGES;
        }
        let (maglev_base, maglev_n) = self.place(self.layout.maglev);
        Frontend { maglev_base, maglev_n, ..self.value(self.layout.cluster, local, flags) }
    }

    fn value(&self, cluster: SlotPart, local: SlotPart, mut flags: FrontendFlags) -> Frontend {
        let extra = self.want.extra.as_deref();
        let algorithm = extra.map_or(Algorithm::Random, |extra| extra.algorithm);
        if algorithm == Algorithm::LeastConnections {
            flags |= FrontendFlags::LEAST_CONNECTIONS;
        }
        if extra.is_some_and(|extra| extra.by_stack) {
            flags |= FrontendFlags::BY_STACK;
        }
        if cluster.n == 0 && self.want.anywhere {
            flags |= FrontendFlags::ELSEWHERE;
        }
        let (base, n) = self.place(cluster);
        let (local_base, local_n) = self.place(local);
        Frontend {
            service_id: self.service_id,
            flags,
            base,
            n,
            local_base,
            local_n,
            affinity_secs: extra.map_or(0, |extra| extra.affinity_secs),
            ..Frontend::ZERO
        }
    }

    /// Base and number of the slots of a part.
    fn place(&self, part: SlotPart) -> (u32, u32) {
        if part.n == 0 { (0, 0) } else { (self.range.base + part.skip, part.n) }
    }
}

/// The Maglev table; empty when there is none to be made.
fn table(want: &DesiredPort) -> Vec<usize> {
    let member = |(index, backend): (usize, &DesiredBackend)| {
        let weight = weight(want.extra.as_deref(), index);
        Member { addr: backend.addr, port: backend.port, weight, index }
    };
    want.maglev().map_or_else(Vec::new, |members| maglev::table(members.map(member).collect()))
}

fn weight(extra: Option<&PortExtra>, index: usize) -> u8 {
    extra.and_then(|extra| extra.weights.get(index)).copied().unwrap_or(1)
}
