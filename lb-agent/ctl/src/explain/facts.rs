//! Everything that a trace is made from.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Addr;
use lb_common::endpoint::{IdentFlags, PodEntry};
use lb_common::policy::PolicyLookup;

use crate::attribution::PolicyNames;
use crate::explain::trace::{Listener, Unseen};
use crate::view::View;
use lb_core::admin::context::{EndKind, FlowContext, FlowEnd, FlowQuery};

/// What a Pod listens on.
#[derive(Clone, Debug)]
pub enum Listening {
    /// These sockets.
    On(Vec<SocketAddr>),
    /// This is what the kernel says of the address.
    Asked(Listener),
    /// Its sockets cannot be listed.
    Unknown(Unseen),
}

/// A flow of the source whose backend was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stale {
    pub dialed: SocketAddr,
    pub backend: SocketAddr,
}

/// How an address answered the connections of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answered {
    /// The address and port, after translation.
    pub at: SocketAddr,
    /// Whether it accepted the last one; else it refused it.
    pub accepted: bool,
    /// Seconds since then.
    pub ago: u64,
}

/// Everything that a trace is made from.
pub struct Facts<'a, T> {
    pub wanted: &'a FlowQuery,
    /// What the agent's records say.
    pub context: &'a FlowContext,
    /// The maps of Services and Pods, with names.
    pub view: &'a View<'a>,
    /// Which rule belongs to which policy.
    pub policies: &'a PolicyNames,
    /// The maps of policies.
    pub tables: &'a T,
    /// Number of their state; 0 while there is no policy.
    pub epoch: u32,
    /// Open flows whose backend was removed.
    pub stale: &'a [Stale],
    /// How addresses answered the source's connections in the last minute.
    pub answers: &'a [Answered],
    /// Whether the kernel forwards packets: IPv4, IPv6.
    pub forwards: [bool; 2],
    /// Which sockets of a Pod tell whether it takes what is sent to this address, by protocol.
    pub listening: &'a dyn Fn(&PodEntry, u8, SocketAddr) -> Listening,
    /// The same of this node's own network namespace.
    pub host_listening: &'a dyn Fn(u8) -> Listening,
}

impl<'a, T: PolicyLookup> Facts<'a, T> {
    /// Whether the source is outside the cluster.
    pub(super) fn is_outside(&self) -> bool {
        self.context.src.kind == EndKind::Outside
    }

    /// Whether this is the name of this node.
    pub(super) fn is_here(&self, node: Option<&str>) -> bool {
        node == Some(&*self.context.node)
    }

    /// The entry of a Pod of this node.
    pub(super) fn local(&self, end: &FlowEnd) -> Option<&'a PodEntry> {
        end.ips.iter().find_map(|ip| self.pod_at(*ip))
    }

    /// The entry of the Pod of this node that has the address.
    pub(super) fn pod_at(&self, ip: IpAddr) -> Option<&'a PodEntry> {
        self.view.snapshot.pods.get(&self.view.directory.ifindex_of(&Addr::from_ip(ip)))
    }

    /// Whether the maps know the address as one of these: a Pod's, on any node, or a node's.
    pub(super) fn has_flags(&self, ip: IpAddr, flags: IdentFlags) -> bool {
        let known = self.tables.ident(&Addr::from_ip(ip));
        known.is_some_and(|known| known.flags.intersects(flags))
    }
}
