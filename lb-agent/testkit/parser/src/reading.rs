//! Two readings of one frame, and whether they agree.

use std::net::IpAddr;

use etherparse::{LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice};
use lb_common::flow::{Flow, proto};

use crate::{
    packet::{self, Packet},
    parse,
    parsed::{Kind, L3, Parsed},
};

/// How the two readings agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadingOutcome {
    /// The same 5-tuple.
    Same,
    /// Both see a piece of the same datagram.
    Piece,
    /// The programs refuse it.
    Refused,
    /// The other reader refuses it, for its lengths: so does the receiver's stack.
    Broken,
}

/// Reads a frame in both ways; an error says how they differ.
pub fn compare(frame: &[u8]) -> Result<ReadingOutcome, String> {
    let (kind, parsed) = programs(frame);
    let theirs = match SlicedPacket::from_ethernet(frame) {
        Ok(sliced) => sliced,
        Err(_) if is_refusal(kind) => return Ok(ReadingOutcome::Refused),
        // The programs read headers only, whatever lengths say; a stack drops such a packet before it looks at ports.
        Err(_) => return broken(frame, kind, &parsed.flow),
    };
    let Some(them) = Tuple::of(&theirs) else {
        return if is_refusal(kind) || kind == Kind::ARP {
            Ok(ReadingOutcome::Refused)
        } else {
            Err("IP for the programs alone".into())
        };
    };
    if !theirs.link_exts.is_empty() {
        let refused = kind == Kind::NOT_IP;
        return if refused {
            Ok(ReadingOutcome::Refused)
        } else {
            Err("a tag was looked through".into())
        };
    }
    if is_refusal(kind) {
        return if must_understand(&theirs, &them) {
            Err("refused, though nothing is wrong with it".into())
        } else {
            Ok(ReadingOutcome::Refused)
        };
    }
    let us = Tuple::from(&parsed.flow);
    if (us.src, us.dst) != (them.src, them.dst) {
        return Err(format!("addresses: {us:?}, not {them:?}"));
    }
    match (kind, them.fragment) {
        (Kind::FIRST_FRAGMENT, Fragment::First) | (Kind::LATER_FRAGMENT, Fragment::Later) => {
            let same = us.protocol == them.protocol || is_extension(them.protocol);
            if same { Ok(ReadingOutcome::Piece) } else { Err(format!("{us:?}, not {them:?}")) }
        }
        // Packets to a group and ICMP messages are not tracked, fragmented or whole.
        (Kind::UNTRACKED | Kind::ICMP_ERROR, Fragment::First | Fragment::Later) => {
            Ok(ReadingOutcome::Piece)
        }
        (_, Fragment::First | Fragment::Later) => Err("a piece, taken for a whole".into()),
        (Kind::FIRST_FRAGMENT | Kind::LATER_FRAGMENT, Fragment::None) => {
            Err("a whole, taken for a piece".into())
        }
        (Kind::FLOW, Fragment::None) => {
            let same =
                us.protocol == them.protocol && (them.ports.is_none() || them.ports == us.ports);
            if same { Ok(ReadingOutcome::Same) } else { Err(format!("{us:?}, not {them:?}")) }
        }
        (Kind::ICMP_ERROR | Kind::NEIGHBOR, Fragment::None) => {
            let icmp = matches!(them.protocol, proto::ICMP | proto::ICMP6);
            if icmp { Ok(ReadingOutcome::Same) } else { Err(format!("no ICMP: {them:?}")) }
        }
        (_, Fragment::None) => Ok(ReadingOutcome::Same),
    }
}

/// Of a frame whose lengths contradict each other: what can be read of it is the same.
fn broken(frame: &[u8], kind: Kind, flow: &Flow) -> Result<ReadingOutcome, String> {
    let Ok(lax) = LaxSlicedPacket::from_ethernet(frame) else { return Ok(ReadingOutcome::Broken) };
    let (src, dst): (IpAddr, IpAddr) = match &lax.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        _ => return Ok(ReadingOutcome::Broken),
    };
    let us = Tuple::from(flow);
    if (us.src, us.dst) != (src, dst) {
        return Err(format!("addresses: {us:?}, not {src} and {dst}"));
    }
    let ports = match &lax.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    };
    match ports {
        Some(ports) if kind == Kind::FLOW && us.ports != Some(ports) => {
            Err(format!("{us:?}, not {ports:?}"))
        }
        _ => Ok(ReadingOutcome::Broken),
    }
}

/// What the programs read.
fn programs(frame: &[u8]) -> (Kind, Parsed) {
    let mut parsed = packet::zeroed::<Parsed>();
    let packet = Packet::new(frame);
    let kind = parse::parse(packet, &mut parsed, L3);
    if kind == Kind::ICMP_ERROR {
        quoted(frame, &parsed);
    }
    (kind, parsed)
}

/// The packet in an error: a mapped address must not come out of it.
fn quoted(frame: &[u8], outer: &Parsed) {
    let mut inner = packet::zeroed::<Parsed>();
    if parse::quoted(Packet::new(frame), outer, outer.l4 + 8, &mut inner).is_some() {
        for addr in [inner.flow.src, inner.flow.dst] {
            assert_eq!(addr.is_v4(), outer.v4, "an address of the other family is quoted");
        }
    }
}

fn is_refusal(kind: Kind) -> bool {
    matches!(kind, Kind::UNREADABLE | Kind::OPAQUE | Kind::BAD_ADDRESS | Kind::NOT_IP)
}

/// A packet with addresses as they are, and a chain that the programs promise to walk.
fn must_understand(sliced: &SlicedPacket<'_>, them: &Tuple) -> bool {
    let good = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => {
            !ip.is_loopback() && !ip.is_multicast() && ip.octets()[0] < 224 && ip.octets()[0] != 0
        }
        IpAddr::V6(ip) => ip.segments()[..5] != [0; 5] && !ip.is_multicast(),
    };
    let plain = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => ip.extensions().is_empty(),
        Some(NetSlice::Ipv6(ip)) => ip.extensions().slice().len() <= 24,
        _ => false,
    };
    let known = matches!(
        sliced.transport,
        Some(
            TransportSlice::Tcp(_)
                | TransportSlice::Udp(_)
                | TransportSlice::Icmpv4(_)
                | TransportSlice::Icmpv6(_)
        )
    );
    plain
        && known
        && good(them.src)
        && good(them.dst)
        && them.fragment == Fragment::None
        && !has_authentication(sliced)
}

fn has_authentication(sliced: &SlicedPacket<'_>) -> bool {
    match &sliced.net {
        Some(NetSlice::Ipv6(ip)) => {
            ip.header().next_header().0 == 51
                || ip.extensions().clone().into_iter().any(|header| {
                    matches!(header, etherparse::Ipv6ExtensionSlice::Authentication(_))
                })
        }
        Some(NetSlice::Ipv4(ip)) => ip.header().protocol().0 == 51,
        _ => false,
    }
}

fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fragment {
    None,
    First,
    Later,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Of TCP and UDP.
    ports: Option<(u16, u16)>,
    fragment: Fragment,
}

impl Tuple {
    /// Returns what etherparse reads; `None` if it is not IP.
    fn of(sliced: &SlicedPacket<'_>) -> Option<Self> {
        let (src, dst, payload, fragment): (IpAddr, IpAddr, _, _) = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let fragment = match (header.fragments_offset().value(), header.more_fragments()) {
                    (0, false) => Fragment::None,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                };
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    ip.payload(),
                    fragment,
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let mut fragment = Fragment::None;
                for extension in ip.extensions().clone() {
                    if let etherparse::Ipv6ExtensionSlice::Fragment(piece) = extension {
                        fragment = match (piece.fragment_offset().value(), piece.more_fragments()) {
                            (0, false) => fragment,
                            (0, true) => Fragment::First,
                            _ => Fragment::Later,
                        };
                    }
                }
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    ip.payload(),
                    fragment,
                )
            }
            NetSlice::Arp(_) => return None,
        };
        let ports = match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        Some(Self { src, dst, protocol: payload.ip_number.0, ports, fragment })
    }
}

impl From<&Flow> for Tuple {
    fn from(flow: &Flow) -> Self {
        let ports = matches!(flow.proto, proto::TCP | proto::UDP);
        Self {
            src: flow.src.to_ip(),
            dst: flow.dst.to_ip(),
            protocol: flow.proto,
            ports: ports.then(|| (flow.sport.get(), flow.dport.get())),
            fragment: Fragment::None,
        }
    }
}
