//! What the opener of a flow dialed, by conntrack: the frontend behind which the flow's destination is a backend.
#![forbid(unsafe_code)]

use aya::maps::{HashMap, MapData};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, scope};
use lb_common::flow::Flow;
use lb_common::service::FrontendKey;

/// The conntrack table, for questions about single flows.
pub struct DialedFrontends {
    ct: HashMap<MapData, CtKey, CtEntry>,
}

impl DialedFrontends {
    /// Looks into this table.
    pub fn new(ct: HashMap<MapData, CtKey, CtEntry>) -> Self {
        Self { ct }
    }

    /// The frontend of a flow from its opener to a backend, if one of the two Pods is on this node. The veths are those of
    /// the source and of the destination; 0 = not on this node. `None` also where the flow goes to no Service, or its
    /// client got another source port.
    pub fn frontend(&self, flow: &Flow, [src, dst]: [u32; 2]) -> Option<FrontendKey> {
        let Flow { src: client, dst: backend, sport, dport, proto } = *flow;
        let reply = |local, local_port, remote, remote_port, veth: u32| {
            let veth = u16::try_from(veth & 0xffff).ok()?;
            let scope = scope::POD;
            let key = CtKey { local, remote, local_port, remote_port, proto, scope, veth };
            let entry = self.ct.get(&key, 0).ok()?;
            let is_reply = entry.flags.contains(CtFlags::REPLY);
            is_reply.then(|| FrontendKey::new(entry.nat_addr, entry.nat_port, proto))
        };
        let of_client = || reply(client, sport, backend, dport, src);
        // A client outside dialed it, and the Pod is its backend.
        let of_backend = || reply(backend, dport, client, sport, dst);
        let at_client = (src != 0).then(of_client).flatten();
        at_client.or_else(|| (dst != 0).then(of_backend).flatten())
    }
}
