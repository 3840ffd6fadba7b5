//! Packets and bytes of flows, by the 5-tuple on the wire, while flows are counted (setting `flow-accounting`).
//!
//! A packet counts once on a node: where it comes in, at the host's end of the veth of the Pod that sends it or at the device by
//! which it enters the node. A packet that comes in with another 5-tuple (netfilter has masqueraded its flow), or that this host
//! makes, counts at the host's end of the veth of the Pod that receives it. Programs see it there before any translation of
//! theirs, and before any verdict.

use crate::addr::Addr;
use crate::be::Be16;
use crate::conntrack::{CtEntry, CtFlags, CtKey, scope};
use crate::flow::Flow;
use crate::pod;

pod! {
    /// Key of the map `accounts`: the 5-tuple of the packets of one direction.
    pub struct AccountKey: 40 {
        /// Source address.
        pub src: Addr,
        /// Destination address.
        pub dst: Addr,
        /// Source port; of an ICMP echo the identifier, as in [`Flow`].
        pub sport: Be16,
        /// Destination port.
        pub dport: Be16,
        /// IP protocol number.
        pub proto: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

pod! {
    /// Value of the map `accounts`.
    pub struct AccountEntry: 24 {
        /// Packets. What segmentation offload has not cut yet, or has joined, is one packet.
        pub packets: u64,
        /// Bytes of these packets, from the IP header on.
        pub bytes: u64,
        /// Where they are counted, `place::*`.
        pub place: u32,
        /// Zero.
        pub pad: u32,
    }
}

/// Values of [`AccountEntry::place`].
pub mod place {
    /// Where they come in.
    pub const INGRESS: u32 = 0;
    /// Where they enter their Pod, since none of them came in with this 5-tuple.
    pub const EGRESS: u32 = 1;
}

impl AccountKey {
    /// The packets of this 5-tuple.
    #[inline(always)]
    pub const fn of(flow: &Flow) -> Self {
        let Flow { src, dst, sport, dport, proto } = *flow;
        Self { src, dst, sport, dport, proto, pad: [0; 3] }
    }

    /// The packets of the reply to this 5-tuple.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        let Self { src, dst, sport, dport, proto, pad } = *self;
        Self { src: dst, dst: src, sport: dport, dport: sport, proto, pad }
    }

    /// The packets that leave the `local` end of a conntrack key. Reversed, those that come to it. A conntrack entry that is
    /// removed takes both with it: where the flow has another entry, that names the other direction.
    #[inline(always)]
    pub const fn from_local(key: &CtKey) -> Self {
        let CtKey { local, remote, local_port, remote_port, proto, .. } = *key;
        let (src, dst, sport, dport) = (local, remote, local_port, remote_port);
        Self { src, dst, sport, dport, proto, pad: [0; 3] }
    }
}

/// The two directions of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directions {
    /// Packets of the opener, before translation.
    pub original: AccountKey,
    /// Packets that answer it, before translation is reversed; `None` if they are counted nowhere: a process of this host
    /// answers a client outside.
    pub reply: Option<AccountKey>,
}

impl Directions {
    /// The directions of the flow that has this entry; `None` for a reply entry, whose flow has a forward entry, too.
    pub fn of(key: &CtKey, entry: &CtEntry) -> Option<Self> {
        let CtEntry { nat_addr, nat_port, aux_addr, aux_port, flags, .. } = *entry;
        if flags.contains(CtFlags::REPLY) {
            return None;
        }
        let leaving = AccountKey::from_local(key);
        let is_external = key.scope == scope::EXTERNAL;
        let original = if is_external || flags.contains(CtFlags::INBOUND) {
            leaving.reversed()
        } else {
            leaving
        };
        if !flags.contains(CtFlags::FORWARD) {
            return Some(Self { original, reply: Some(original.reversed()) });
        }
        // The backend answers the client that it sees.
        let stands_in = is_external || flags.contains(CtFlags::HAIRPIN);
        let dst = if stands_in { aux_addr } else { key.local };
        let from_backend = AccountKey {
            src: nat_addr,
            dst,
            sport: nat_port,
            dport: aux_port,
            proto: key.proto,
            pad: [0; 3],
        };
        let is_counted = !flags.contains(CtFlags::TO_HOST);
        Some(Self { original, reply: is_counted.then_some(from_backend) })
    }
}

#[cfg(test)]
mod tests {
    use super::{AccountKey, Directions};
    use crate::addr::Addr;
    use crate::be::Be16;
    use crate::conntrack::{CtEntry, CtFlags, CtKey, partner, scope};
    use crate::flow::{Flow, proto};
    use std::net::SocketAddr;

    fn end(text: &str) -> (Addr, Be16) {
        let at: SocketAddr = text.parse().unwrap();
        (Addr::from_ip(at.ip()), Be16::new(at.port()))
    }

    fn packets(src: &str, dst: &str) -> AccountKey {
        let ((src, sport), (dst, dport)) = (end(src), end(dst));
        AccountKey::of(&Flow { src, dst, sport, dport, proto: proto::TCP })
    }

    fn key(local: &str, remote: &str, scope: u8) -> CtKey {
        let ((local, local_port), (remote, remote_port)) = (end(local), end(remote));
        CtKey { local, remote, local_port, remote_port, proto: proto::TCP, scope, veth: 0 }
    }

    fn entry(nat: &str, aux: &str, flags: CtFlags) -> CtEntry {
        let ((nat_addr, nat_port), (aux_addr, aux_port)) = (end(nat), end(aux));
        CtEntry { nat_addr, nat_port, aux_addr, aux_port, flags, ..CtEntry::ZERO }
    }

    #[test]
    fn directions_are_those_on_the_wire() {
        const NONE: &str = "[::]:0";
        let (pod, backend, frontend) = ("10.1.0.2:4000", "10.1.1.3:8080", "10.96.0.1:80");
        let (client, node) = ("203.0.113.5:555", "192.0.2.1:12345");
        let forward = CtFlags::FORWARD;
        let outside = forward | CtFlags::EXTERNAL;
        let cases = [
            (
                "straight",
                key(pod, backend, scope::POD),
                entry(NONE, NONE, CtFlags::NONE),
                (pod, backend),
                Some((backend, pod)),
            ),
            (
                "into the Pod",
                key(pod, client, scope::POD),
                entry(NONE, NONE, CtFlags::INBOUND),
                (client, pod),
                Some((pod, client)),
            ),
            (
                "to a Service",
                key(pod, frontend, scope::POD),
                entry(backend, "[::]:4000", forward),
                (pod, frontend),
                Some((backend, pod)),
            ),
            (
                "to a Service in IPv6",
                key("[fd00::2]:4000", "[fd96::1]:80", scope::POD),
                entry("[fd00:1::3]:8080", "[::]:4000", forward),
                ("[fd00::2]:4000", "[fd96::1]:80"),
                Some(("[fd00:1::3]:8080", "[fd00::2]:4000")),
            ),
            (
                "from another port",
                key(pod, frontend, scope::POD),
                entry(backend, "[::]:4001", forward | CtFlags::PORT_MAPPED),
                (pod, frontend),
                Some((backend, "10.1.0.2:4001")),
            ),
            (
                "to the backend, beside a flow to its Service",
                key(pod, backend, scope::STRAIGHT),
                entry(backend, "[::]:4001", forward | CtFlags::PORT_MAPPED),
                (pod, backend),
                Some((backend, "10.1.0.2:4001")),
            ),
            (
                "to itself",
                key(pod, frontend, scope::POD),
                entry("10.1.0.2:8080", "169.254.42.1:4000", forward | CtFlags::HAIRPIN),
                (pod, frontend),
                Some(("10.1.0.2:8080", "169.254.42.1:4000")),
            ),
            (
                "from outside to a Pod here",
                key(frontend, client, scope::EXTERNAL),
                entry(pod, client, outside),
                (client, frontend),
                Some((pod, client)),
            ),
            (
                "from outside to another node",
                key(frontend, client, scope::EXTERNAL),
                entry(backend, node, outside | CtFlags::MASQUERADED),
                (client, frontend),
                Some((backend, node)),
            ),
            (
                "from outside to this host",
                key(frontend, client, scope::EXTERNAL),
                entry(backend, client, outside | CtFlags::TO_HOST),
                (client, frontend),
                None,
            ),
        ];
        for (name, key, entry, original, reply) in cases {
            let original = packets(original.0, original.1);
            let reply = reply.map(|(src, dst)| packets(src, dst));
            let directions = Directions::of(&key, &entry);
            assert_eq!(directions, Some(Directions { original, reply }), "{name}");
            // What goes with the entries of the flow are its two directions.
            let both = [Some(key), partner(&key, &entry)];
            let gone = both.into_iter().flatten().map(|key| AccountKey::from_local(&key));
            let gone: std::vec::Vec<_> = gone.flat_map(|key| [key, key.reversed()]).collect();
            assert!(gone.contains(&original), "{name}");
            assert!(reply.is_none_or(|reply| gone.contains(&reply)), "{name}");
        }
        let reply = entry(frontend, pod, CtFlags::REPLY);
        assert_eq!(Directions::of(&key(pod, backend, scope::POD), &reply), None);
    }
}
