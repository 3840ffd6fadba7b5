//! Connection tracking: the entry, its key and the pure state step.
//!
//! Keys are scoped to the Pod whose veth the packet crosses and normalised to (local = the Pod, remote), so both
//! directions of a flow give the same key and one Pod cannot poison another's entries. A translated flow has two
//! entries: the *forward* one, keyed by the frontend the Pod dials, and the *reply* one, keyed by the backend that
//! answers. A flow without translation has one.
//!
//! A flow from outside to a Service has two entries as well, written as its first packet comes in at a device:
//!
//! | backend | forward entry, scope | reply entry, scope | source of the packets to the backend |
//! |---|---|---|---|
//! | Pod of this node | (frontend, client), `EXTERNAL` | (Pod, client), `POD` | the client |
//! | process of this host | (frontend, client), `EXTERNAL` | (backend, client), `EXTERNAL_REPLY` | the client |
//! | on another node | (frontend, client), `EXTERNAL` | (backend, node), `EXTERNAL_REPLY` | a port of this node |

use crate::addr::Addr;
use crate::be::Be16;
use crate::flow::{proto, tcp};
use crate::pod;

pod! {
    /// Key of the map `ct`.
    pub struct CtKey: 40 {
        /// The Pod's address (or, in a hairpin's reply entry, the same Pod as backend).
        pub local: Addr,
        /// The other side as the packet at this veth shows it.
        pub remote: Addr,
        /// The Pod's port.
        pub local_port: Be16,
        /// The other side's port.
        pub remote_port: Be16,
        /// IP protocol number.
        pub proto: u8,
        /// `scope::*`.
        pub scope: u8,
        /// Low 16 bits of the veth's ifindex. The kernel numbers devices upwards, so one value comes back only after
        /// 65,535 more devices, long after the entries of its earlier owner have expired. 0 in the scopes of external
        /// flows.
        pub veth: u16,
    }
}

/// Values of [`CtKey::scope`].
pub mod scope {
    /// A flow of a Pod, seen at its veth.
    pub const POD: u8 = 0;
    /// Forward entry of a flow that goes straight to a backend, from a port that the Pod also uses to that backend
    /// through a Service: under `POD` there is the reply entry of the other flow.
    pub const STRAIGHT: u8 = 1;
    /// A flow from outside to a frontend, as its client shows it: `local` is the frontend, `remote` the client.
    pub const EXTERNAL: u8 = 2;
    /// The same flow as its backend answers: `local` is the backend, `remote` the client or the masquerade. Flows to a
    /// Pod of this node have an entry under `POD` instead.
    pub const EXTERNAL_REPLY: u8 = 3;
}

pod! {
    /// Value of the map `ct`.
    pub struct CtEntry: 56 {
        /// Forward entry: the backend's address. Reply entry: the frontend's. Else `::`.
        pub nat_addr: Addr,
        /// Forward entry of a hairpin: the address that stands for the Pod as client; of a flow from
        /// outside: the client as the backend sees it. Reply entry: the client's address. Else `::`.
        pub aux_addr: Addr,
        /// Port belonging to `nat_addr`.
        pub nat_port: Be16,
        /// Forward entry: the source port used towards the backend (equal to the client's unless it was taken).
        /// Reply entry: the client's own port.
        pub aux_port: Be16,
        /// Backend id; 0 when the destination is not translated.
        pub backend_id: u32,
        /// Generation of the backend when it was chosen.
        pub backend_gen: u32,
        /// Last packet, in units of 256 kernel ticks (jiffies / 256), truncated to 32 bits.
        pub last_seen: u32,
        /// Policy epoch at the last verdict. Forward entry of an external flow to a Pod of this node, which is judged at
        /// its veth: the `veth` of the Pod's entry.
        pub epoch: u32,
        /// Bits 0-7: TCP flags seen leaving the Pod; 8-15: entering it; 16 and up: `bits::*`.
        pub flags: u32,
    }
}

/// Bits 16 and up of [`CtEntry::flags`].
pub mod bits {
    /// Forward entry: packets leaving the Pod get `nat_addr:nat_port` as destination.
    pub const FORWARD: u32 = 1 << 16;
    /// Reply entry: packets entering the Pod get `nat_addr:nat_port` as source.
    pub const REPLY: u32 = 1 << 17;
    /// Both ends of the flow are the same Pod: both rewrites happen as the packet leaves it.
    pub const HAIRPIN: u32 = 1 << 18;
    /// The first packet entered the Pod.
    pub const INBOUND: u32 = 1 << 19;
    /// Taken over in mid-flow: the handshake was not seen.
    pub const PICKED_UP: u32 = 1 << 20;
    /// The source port towards the backend differs from the Pod's.
    pub const PORT_MAPPED: u32 = 1 << 21;
    /// Forward entry: the backend is behind the same bridge, and its replies come back over it past netfilter. The
    /// packets towards it must go past netfilter, too, or it sees half a connection and calls it invalid.
    pub const SAME_BRIDGE: u32 = 1 << 24;
    /// The client is outside the cluster. Under scope `POD` a reply entry whose rewrite happens as packets *leave* the
    /// Pod: they get `nat_addr:nat_port` as source, and go to the client past the IP stack, which would take the
    /// node's own address as a source for a forgery.
    pub const EXTERNAL: u32 = 1 << 25;
    /// Forward entry of an external flow: the client is replaced by `aux_addr:aux_port`, an address of this node.
    pub const MASQUERADED: u32 = 1 << 26;
    /// Forward entry of an external flow: the backend is a process of this host.
    pub const TO_HOST: u32 = 1 << 27;
    /// Counted in the map `loads` under its backend.
    pub const COUNTED: u32 = 1 << 28;
    /// Packets were seen in both directions (other protocols than TCP).
    pub const SEEN_OUT: u32 = 1 << 22;
    /// See `SEEN_OUT`.
    pub const SEEN_IN: u32 = 1 << 23;
}

/// Key of the other entry of a translated flow; `None` for a flow without translation.
pub fn partner(key: &CtKey, entry: &CtEntry) -> Option<CtKey> {
    let CtEntry { nat_addr, nat_port, aux_addr, aux_port, flags, .. } = *entry;
    if key.scope == scope::EXTERNAL {
        let kept = flags & (bits::MASQUERADED | bits::TO_HOST) == 0;
        return Some(CtKey {
            local: nat_addr,
            remote: aux_addr,
            local_port: nat_port,
            remote_port: aux_port,
            proto: key.proto,
            scope: if kept { scope::POD } else { scope::EXTERNAL_REPLY },
            veth: if kept { entry.epoch as u16 } else { 0 },
        });
    }
    if key.scope == scope::EXTERNAL_REPLY || flags & bits::EXTERNAL != 0 {
        return Some(CtKey {
            local: nat_addr,
            remote: aux_addr,
            local_port: nat_port,
            remote_port: aux_port,
            proto: key.proto,
            scope: scope::EXTERNAL,
            veth: 0,
        });
    }
    if flags & bits::FORWARD != 0 {
        let key = CtKey { scope: scope::POD, ..*key };
        if flags & bits::HAIRPIN == 0 {
            return Some(CtKey {
                remote: nat_addr,
                remote_port: nat_port,
                local_port: aux_port,
                ..key
            });
        }
        // The Pod answers itself: as backend it sees the address that stands for it as client.
        return Some(CtKey {
            local: nat_addr,
            local_port: nat_port,
            remote: aux_addr,
            remote_port: aux_port,
            ..key
        });
    }
    if flags & bits::REPLY != 0 {
        let straight = nat_addr == key.remote && nat_port == key.remote_port;
        return Some(CtKey {
            local: aux_addr,
            local_port: aux_port,
            remote: nat_addr,
            remote_port: nat_port,
            scope: if straight { scope::STRAIGHT } else { scope::POD },
            ..*key
        });
    }
    None
}

/// Direction of a packet, always the Pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Leaves the Pod (tc ingress of its host-side veth).
    Egress,
    /// Enters the Pod (tc egress of its host-side veth).
    Ingress,
}

/// `flags` after a packet with these TCP flags (0 for other protocols) in this direction.
pub const fn seen(flags: u32, direction: Direction, tcp_flags: u8) -> u32 {
    match direction {
        Direction::Egress => flags | tcp_flags as u32 | bits::SEEN_OUT,
        Direction::Ingress => flags | ((tcp_flags as u32) << 8) | bits::SEEN_IN,
    }
}

/// TCP flags seen in either direction.
const fn either(flags: u32) -> u8 {
    (flags | (flags >> 8)) as u8
}

/// Whether a FIN or RST was seen: the connection is closing or closed.
pub const fn is_closing(flags: u32) -> bool {
    either(flags) & (tcp::FIN | tcp::RST) != 0
}

/// Whether a TCP handshake got past its SYN, or was never seen.
pub const fn is_established(flags: u32) -> bool {
    either(flags) & tcp::ACK != 0 || flags & bits::PICKED_UP != 0
}

/// Whether a packet with these flags opens a new connection although an entry exists: a plain SYN on an entry that
/// is closing or that has left its handshake behind (the peer restarted with the same port, RFC 9293 §3.6.1;
/// TIME_WAIT reuse, RFC 6191). A repeated SYN of an unanswered handshake is not one: it keeps its backend.
pub const fn reopens(flags: u32, tcp_flags: u8) -> bool {
    tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
        && (is_closing(flags) || is_established(flags))
}

const BOTH_WAYS: u32 = bits::SEEN_OUT | bits::SEEN_IN;

/// Seconds without a packet after which an entry is dead.
///
/// TCP: 30 s for an unanswered handshake, 6 h established, 70 s closing (TIME_WAIT and a last retransmission), 10 min
/// when it was met in mid-flow and one direction alone was seen since: a straggler of a connection that is over, or one
/// that will be met again.
/// UDP: 60 s one-way, 180 s both ways (nf_conntrack's own figures). ICMP 10 s, everything else 600 s.
pub const fn timeout_secs(protocol: u8, flags: u32) -> u32 {
    match protocol {
        proto::TCP if is_closing(flags) => 70,
        proto::TCP if flags & bits::PICKED_UP != 0 && flags & BOTH_WAYS != BOTH_WAYS => 600,
        proto::TCP if is_established(flags) => 6 * 3600,
        proto::TCP => 30,
        proto::UDP if flags & BOTH_WAYS == BOTH_WAYS => 180,
        proto::UDP => 60,
        proto::ICMP | proto::ICMP6 => 10,
        _ => 600,
    }
}

/// [`CtEntry::last_seen`] for a reading of the kernel's tick counter.
pub const fn stamp(jiffies: u64) -> u32 {
    (jiffies >> 8) as u32
}

/// Whether an entry last seen at `last_seen` is dead at `now`, both as of [`stamp`], with `hz` ticks a second.
/// The stamps count modulo 2^32; one stamp of tolerance is given, since they are coarse.
pub const fn is_expired(protocol: u8, flags: u32, last_seen: u32, now: u32, hz: u32) -> bool {
    let stamps = ((timeout_secs(protocol, flags) as u64 * hz as u64) >> 8) as u32 + 1;
    // A stamp from the future (another CPU's later tick) wraps to a huge age: treat it as just seen.
    let age = now.wrapping_sub(last_seen);
    age > stamps && age < 0x8000_0000
}

#[cfg(test)]
mod tests {
    use super::{
        CtEntry, CtKey, Direction, bits, is_closing, is_expired, partner, reopens, scope, seen,
        stamp, timeout_secs,
    };
    use crate::addr::Addr;
    use crate::be::Be16;
    use crate::flow::{proto, tcp};

    fn after(steps: &[(Direction, u8)]) -> u32 {
        steps.iter().fold(0, |flags, (direction, tcp_flags)| seen(flags, *direction, *tcp_flags))
    }

    #[test]
    fn syn_on_an_entry() {
        use Direction::{Egress, Ingress};
        let handshake = [(Egress, tcp::SYN), (Ingress, tcp::SYN | tcp::ACK), (Egress, tcp::ACK)];
        let closed = [(Egress, tcp::SYN), (Egress, tcp::ACK), (Egress, tcp::FIN | tcp::ACK)];
        let reset = [(Egress, tcp::SYN), (Ingress, tcp::RST | tcp::ACK)];
        let cases: [(&str, u32, u8, bool); 7] = [
            ("a repeated SYN keeps its backend", after(&[(Egress, tcp::SYN)]), tcp::SYN, false),
            ("a SYN after the handshake is a new flow", after(&handshake), tcp::SYN, true),
            ("a SYN after FIN is a new flow", after(&closed), tcp::SYN, true),
            ("a SYN after RST is a new flow", after(&reset), tcp::SYN, true),
            ("a SYN-ACK never opens", after(&handshake), tcp::SYN | tcp::ACK, false),
            ("data never opens", after(&handshake), tcp::ACK, false),
            ("a SYN on a picked-up flow is a new flow", bits::PICKED_UP, tcp::SYN, true),
        ];
        for (name, flags, packet, want) in cases {
            assert_eq!(reopens(flags, packet), want, "{name}");
        }
    }

    #[test]
    fn timeouts_by_state() {
        use Direction::{Egress, Ingress};
        let syn = after(&[(Egress, tcp::SYN)]);
        let open = after(&[(Egress, tcp::SYN), (Egress, tcp::ACK)]);
        let fin = after(&[(Ingress, tcp::FIN | tcp::ACK)]);
        assert_eq!(timeout_secs(proto::TCP, syn), 30);
        assert_eq!(timeout_secs(proto::TCP, open), 21600);
        assert_eq!(timeout_secs(proto::TCP, fin), 70);
        assert!(is_closing(fin));
        let met = after(&[(Egress, tcp::ACK)]) | bits::PICKED_UP;
        assert_eq!(timeout_secs(proto::TCP, met), 600);
        assert_eq!(timeout_secs(proto::TCP, seen(met, Ingress, tcp::ACK)), 21600);
        assert_eq!(timeout_secs(proto::UDP, after(&[(Egress, 0)])), 60);
        assert_eq!(timeout_secs(proto::UDP, after(&[(Egress, 0), (Ingress, 0)])), 180);
        assert_eq!(timeout_secs(proto::ICMP6, 0), 10);
        assert_eq!(timeout_secs(proto::SCTP, 0), 600);
    }

    #[test]
    fn expiry_survives_the_wrap_of_the_stamp() {
        let hz = 250;
        let udp = |age: u32, now: u32| is_expired(proto::UDP, 0, now.wrapping_sub(age), now, hz);
        for now in [1_000_000, 5, 0, u32::MAX] {
            assert!(!udp(0, now));
            assert!(!udp(59, now), "60 s are 58.6 stamps at 250 Hz");
            assert!(udp(61, now));
            assert!(!udp(u32::MAX, now), "a stamp one tick ahead is not old");
        }
        assert_eq!(stamp(0x1_0000_0100), 0x0100_0001);
    }

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    fn key(local: (&str, u16), remote: (&str, u16)) -> CtKey {
        CtKey {
            local: addr(local.0),
            local_port: Be16::new(local.1),
            remote: addr(remote.0),
            remote_port: Be16::new(remote.1),
            proto: proto::TCP,
            veth: 7,
            ..CtKey::ZERO
        }
    }

    #[test]
    fn each_entry_finds_the_other() {
        let pod = "10.1.0.2";
        let stand_in = "169.254.42.1";
        let cases = [
            (
                "to a backend elsewhere, with another source port",
                key((pod, 4000), ("10.96.0.1", 80)),
                key((pod, 5000), ("10.1.0.9", 8080)),
                0,
                Addr::NONE,
            ),
            (
                "straight to a backend, on a port of its own",
                CtKey { scope: scope::STRAIGHT, ..key((pod, 4000), ("10.1.0.9", 8080)) },
                key((pod, 5000), ("10.1.0.9", 8080)),
                0,
                Addr::NONE,
            ),
            (
                "to itself",
                key((pod, 4000), ("10.96.0.1", 80)),
                key((pod, 8080), (stand_in, 5000)),
                bits::HAIRPIN,
                addr(stand_in),
            ),
        ];
        for (name, forward_key, reply_key, hairpin, aux_addr) in cases {
            let (nat_addr, nat_port) = match hairpin {
                0 => (reply_key.remote, reply_key.remote_port),
                _ => (addr(pod), reply_key.local_port),
            };
            let forward = CtEntry {
                nat_addr,
                nat_port,
                aux_addr,
                aux_port: Be16::new(5000),
                flags: bits::FORWARD | hairpin,
                ..CtEntry::ZERO
            };
            let reply = CtEntry {
                nat_addr: forward_key.remote,
                nat_port: forward_key.remote_port,
                aux_addr: addr(pod),
                aux_port: Be16::new(4000),
                flags: bits::REPLY | hairpin,
                ..CtEntry::ZERO
            };
            assert_eq!(partner(&forward_key, &forward), Some(reply_key), "{name}: forward");
            assert_eq!(partner(&reply_key, &reply), Some(forward_key), "{name}: reply");
        }
        assert_eq!(partner(&key((pod, 1), (pod, 2)), &CtEntry::ZERO), None, "no translation");
    }

    #[test]
    fn partners_of_external_flows() {
        let (frontend, client) = (("198.51.100.1", 80), ("203.0.113.5", 4000));
        let (backend, node) = (("10.1.0.2", 8080), ("192.0.2.1", 12345));
        let cases = [
            ("a Pod of this node", 0, client, scope::POD, 7),
            ("a process of this host", bits::TO_HOST, client, scope::EXTERNAL_REPLY, 0),
            ("another node", bits::MASQUERADED, node, scope::EXTERNAL_REPLY, 0),
        ];
        for (name, flag, seen_as, reply_scope, veth) in cases {
            let forward_key = CtKey { scope: scope::EXTERNAL, veth: 0, ..key(frontend, client) };
            let forward = CtEntry {
                nat_addr: addr(backend.0),
                nat_port: Be16::new(backend.1),
                aux_addr: addr(seen_as.0),
                aux_port: Be16::new(seen_as.1),
                epoch: u32::from(veth),
                flags: bits::FORWARD | bits::EXTERNAL | flag,
                ..CtEntry::ZERO
            };
            let reply_key = CtKey { scope: reply_scope, veth, ..key(backend, seen_as) };
            let reply = CtEntry {
                nat_addr: addr(frontend.0),
                nat_port: Be16::new(frontend.1),
                aux_addr: addr(client.0),
                aux_port: Be16::new(client.1),
                flags: bits::REPLY | bits::EXTERNAL,
                ..CtEntry::ZERO
            };
            assert_eq!(partner(&forward_key, &forward), Some(reply_key), "{name}: forward");
            assert_eq!(partner(&reply_key, &reply), Some(forward_key), "{name}: reply");
        }
    }
}
