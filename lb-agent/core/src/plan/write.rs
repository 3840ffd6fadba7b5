//! One write to a map that the agent owns, and who does it.
#![forbid(unsafe_code)]

use std::error::Error;

use lb_common::addr::Addr;
use lb_common::config::Settings;
use lb_common::endpoint::{Dev, Ident, PodEntry};
use lb_common::limits::{
    MAP_AFFINITY, MAP_BACKENDS, MAP_CIDRS, MAP_DEVS, MAP_FORMER_PORTS, MAP_FRONTEND_PORTS,
    MAP_FRONTENDS, MAP_GROUPS, MAP_HOST_PORTS, MAP_IDENT, MAP_LINKS, MAP_LOCALS, MAP_MACS,
    MAP_PEER_BITS, MAP_POD_RANGES, MAP_POD_SOURCES, MAP_PODS, MAP_POLICY, MAP_PORT_BITS,
    MAP_SETTINGS, MAP_SLOTS, MAP_SOURCE_RANGES,
};
use lb_common::past::LocalEnd;
use lb_common::policy::{Bits, Group, PeerKey, PolicyState, PortKey};
use lb_common::service::{Backend, Frontend, FrontendKey};
use thiserror::Error as ThisError;

use super::range_key::RangeKey;
use super::source_key::SourceKey;
use crate::cluster::Prefix;
use crate::model::policy::CidrRange;

/// One write. Removing an element that is not there is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "lb-common describes the keys and values of each map")]
pub enum Write {
    /// Writes an element of `backends`.
    PutBackend { id: u32, backend: Backend },
    /// Writes an element of `slots`.
    PutSlot { slot: u32, backend_id: u32 },
    /// Adds or replaces an element of `frontends`.
    PutFrontend {
        /// What clients dial: address, port, protocol.
        key: FrontendKey,
        frontend: Frontend,
    },
    /// Removes an element of `frontends`.
    DeleteFrontend {
        /// What clients dial: address, port, protocol.
        key: FrontendKey,
    },
    /// Adds an element of `source_ranges`.
    PutSourceRange {
        /// Service port and range of its clients.
        key: RangeKey,
    },
    /// Removes an element of `source_ranges`.
    DeleteSourceRange {
        /// Service port and range of its clients.
        key: RangeKey,
    },
    /// Removes all elements of `affinity` of a service port: they must not come to life again with its affinity.
    ClearAffinity { service_id: u32 },
    /// Writes a word of `frontend_ports`.
    PutFrontendPorts { word: u32, bits: u64 },
    /// Writes a word of `host_ports`.
    PutHostPorts { word: u32, bits: u64 },
    /// Writes a word of `former_ports`.
    PutFormerPorts { word: u32, bits: u64 },
    /// Writes the element of `settings`. Boxed: it is rare, and many times as large as the others.
    PutSettings(Box<Settings>),
    /// Writes an element of `groups`. Boxed: it is large.
    PutGroup { id: u32, group: Box<Group> },
    /// Adds or replaces an element of `peer_bits`.
    PutPeerBits {
        /// Group of rules and identity of the peer.
        key: PeerKey,
        bits: Bits,
    },
    /// Removes an element of `peer_bits`.
    DeletePeerBits {
        /// Group of rules and identity of the peer.
        key: PeerKey,
    },
    /// Adds or replaces an element of `port_bits`.
    PutPortBits {
        /// Length of the prefix.
        len: u32,
        /// Group of rules, protocol and port, of which `len` bits count.
        key: PortKey,
        bits: Bits,
    },
    /// Removes an element of `port_bits`.
    DeletePortBits {
        /// Length of the prefix.
        len: u32,
        /// Group of rules, protocol and port, of which `len` bits count.
        key: PortKey,
    },
    /// Adds or replaces an element of `cidrs`.
    PutCidr { range: CidrRange, ident: u32 },
    /// Removes an element of `cidrs`.
    DeleteCidr { range: CidrRange },
    /// Writes the element of `policy`, but for its flags: they belong to the clients that follow flows.
    PutPolicyState(PolicyState),
    /// Adds or replaces an element of `ident`.
    PutIdent { addr: Addr, ident: Ident },
    /// Removes an element of `ident`.
    DeleteIdent { addr: Addr },
    /// Adds or replaces an element of `pods`. Boxed: it is large.
    PutPod { ifindex: u32, pod: Box<PodEntry> },
    /// Removes an element of `pods`.
    DeletePod { ifindex: u32 },
    /// Writes an element of `locals`; `id` is the number of the Pod.
    PutLocal { id: u32, local: LocalEnd },
    /// Adds or replaces an element of `devs`.
    PutDev { ifindex: u32, dev: Dev },
    /// Removes an element of `devs`.
    DeleteDev { ifindex: u32 },
    /// Adds or replaces an element of `macs`.
    PutMac {
        /// Key: [`lb_common::endpoint::mac_number`].
        mac: u64,
        /// Value: the ifindex of the Pod's device that has the address, 0 = this node.
        holder: u32,
    },
    /// Removes an element of `macs`.
    DeleteMac {
        /// Key: [`lb_common::endpoint::mac_number`].
        mac: u64,
    },
    /// Writes an element of `links`.
    PutLink {
        /// Index in [`lb_common::endpoint::link`].
        index: u32,
        /// The element in [`lb_common::endpoint::link`]; 0 = none.
        element: u64,
    },
    /// Adds an element of `pod_ranges`.
    PutPodRange { range: Prefix },
    /// Removes an element of `pod_ranges`.
    DeletePodRange { range: Prefix },
    /// Adds an element of `pod_sources`.
    PutPodSource {
        /// Device of the Pod, and range of addresses.
        key: SourceKey,
    },
    /// Removes an element of `pod_sources`.
    DeletePodSource {
        /// Device of the Pod, and range of addresses.
        key: SourceKey,
    },
}

impl Write {
    /// The name of the map that is written to.
    pub fn map(&self) -> &'static str {
        let spec = match self {
            Self::PutBackend { .. } => MAP_BACKENDS,
            Self::PutSlot { .. } => MAP_SLOTS,
            Self::PutFrontend { .. } | Self::DeleteFrontend { .. } => MAP_FRONTENDS,
            Self::PutSourceRange { .. } | Self::DeleteSourceRange { .. } => MAP_SOURCE_RANGES,
            Self::ClearAffinity { .. } => MAP_AFFINITY,
            Self::PutFrontendPorts { .. } => MAP_FRONTEND_PORTS,
            Self::PutFormerPorts { .. } => MAP_FORMER_PORTS,
            Self::PutHostPorts { .. } => MAP_HOST_PORTS,
            Self::PutSettings(_) => MAP_SETTINGS,
            Self::PutGroup { .. } => MAP_GROUPS,
            Self::PutPeerBits { .. } | Self::DeletePeerBits { .. } => MAP_PEER_BITS,
            Self::PutPortBits { .. } | Self::DeletePortBits { .. } => MAP_PORT_BITS,
            Self::PutCidr { .. } | Self::DeleteCidr { .. } => MAP_CIDRS,
            Self::PutPolicyState(_) => MAP_POLICY,
            Self::PutIdent { .. } | Self::DeleteIdent { .. } => MAP_IDENT,
            Self::PutPod { .. } | Self::DeletePod { .. } => MAP_PODS,
            Self::PutLocal { .. } => MAP_LOCALS,
            Self::PutDev { .. } | Self::DeleteDev { .. } => MAP_DEVS,
            Self::PutMac { .. } | Self::DeleteMac { .. } => MAP_MACS,
            Self::PutLink { .. } => MAP_LINKS,
            Self::PutPodRange { .. } | Self::DeletePodRange { .. } => MAP_POD_RANGES,
            Self::PutPodSource { .. } | Self::DeletePodSource { .. } => MAP_POD_SOURCES,
        };
        spec.name
    }
}

/// The maps: the kernel's, or tables in a test.
pub trait MapStore {
    /// Does one write.
    ///
    /// # Errors
    /// When the write did not happen; the map is as it was.
    fn apply(&mut self, write: &Write) -> Result<(), MapError>;
}

/// A failed access to a map.
#[derive(Debug, ThisError)]
#[error("map {map}: {}{source}", if *.full { "full: " } else { "" })]
pub struct MapError {
    /// Name of the map.
    pub map: &'static str,
    /// Whether it has no room for another element.
    pub full: bool,
    /// What the kernel said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl MapError {
    /// A write that another depends on has not happened.
    pub(super) fn lacking(map: &'static str) -> Self {
        Self { map, full: false, source: "an earlier write that this one depends on failed".into() }
    }
}
