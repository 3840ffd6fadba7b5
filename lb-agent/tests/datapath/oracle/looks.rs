//! What a packet looks like: honest, or such that its port, or what it is, cannot be told.

use std::net::{IpAddr, SocketAddr};

use testbed::frame::{Ip, Link, PRIORITY_TAG, SERVICE_TAG, Tag, Tcp, flags};

use lb_testkit::packet::{GATEWAY_MAC, POD_MAC};
use lb_testkit::random::Random;

/// A look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Whole,
    /// A later fragment whose first one was not seen.
    Hidden,
    /// A first fragment with 8 bytes of its transport header; of others than TCP with none.
    Tiny,
    /// A fragment that writes over the flags of a TCP header.
    Overlapping,
    /// More extension headers than are walked.
    LongChain,
    /// A chain that goes on beyond the packet's end.
    BrokenChain,
    /// Signed, or hidden altogether.
    Ipsec(u8),
    Tagged(&'static [Tag]),
    /// IPv4-mapped source.
    Mapped,
}

const TAGS: [&[Tag]; 4] = [
    &[PRIORITY_TAG],
    &[PRIORITY_TAG, PRIORITY_TAG],
    &[SERVICE_TAG],
    &[Tag { ethertype: 0x8100, vlan: 5 }],
];

const TCP: u8 = 6;

impl Look {
    /// Whole for the most part.
    pub(crate) fn choose(random: &mut Random, v4: bool) -> Self {
        if random.below(3) > 0 {
            return Self::Whole;
        }
        match random.below(12) {
            0..=5 => Self::Hidden,
            6 => Self::Tiny,
            7 => Self::Overlapping,
            8 => Self::Ipsec(*random.choose(&[50, 51])),
            9 => Self::Tagged(random.choose(&TAGS)),
            10 if !v4 => *random.choose(&[Self::LongChain, Self::BrokenChain]),
            11 if !v4 => Self::Mapped,
            _ => Self::Hidden,
        }
    }

    /// For a table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Hidden => "hidden port",
            Self::Tiny => "tiny",
            Self::Overlapping => "overlapping",
            Self::LongChain => "long chain",
            Self::BrokenChain => "broken chain",
            Self::Ipsec(_) => "IPsec",
            Self::Tagged(_) => "tagged",
            Self::Mapped => "mapped",
        }
    }

    /// The first packet of a flow that looks so.
    pub(crate) fn build(
        self,
        (src, dst): (IpAddr, IpAddr),
        protocol: &str,
        (sport, dport): (u16, u16),
    ) -> Vec<u8> {
        let link = Link { src: POD_MAC, dst: GATEWAY_MAC };
        let ip = packet((src, sport), (dst, dport), protocol);
        let tcp = ip.protocol == TCP;
        // Each datagram with an identification of its own.
        let id = sport;
        let ip = match self {
            Self::Whole => ip,
            Self::Hidden => {
                let at = 64;
                let long = Ip::new(src, dst, ip.protocol, &vec![0; at + 32]);
                long.piece(at..at + 32, false, id)
            }
            Self::Tiny if tcp => ip.piece(0..8, true, id),
            Self::Tiny => ip.piece(0..0, true, id),
            Self::Overlapping => Ip::new(src, dst, TCP, &[0; 40]).piece(8..40, false, id),
            Self::LongChain => ip.options(7),
            Self::BrokenChain => {
                let mut ip = ip.options(1);
                if let Some(length) = ip.body.get_mut(1) {
                    *length = 200;
                }
                ip
            }
            Self::Ipsec(number) => Ip::new(src, dst, number, &[0; 32]),
            Self::Tagged(tags) => return link.tagged(tags, &ip),
            Self::Mapped => {
                let mapped = std::net::Ipv4Addr::new(10, 1, 0, 1).to_ipv6_mapped();
                packet((mapped.into(), sport), (dst, dport), protocol)
            }
        };
        link.frame(&ip)
    }
}

fn packet(src: (IpAddr, u16), dst: (IpAddr, u16), protocol: &str) -> Ip {
    let [from, to] = [src, dst].map(|(ip, port)| SocketAddr::new(ip, port));
    match protocol {
        "TCP" => Ip::tcp(from, to, Tcp { flags: flags::SYN, seq: 1, ack: 0 }, &[]),
        "UDP" => Ip::udp(from, to, &[0; 4]),
        "SCTP" => {
            let mut body = vec![0; 16];
            body.splice(0..4, [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat());
            Ip::new(src.0, dst.0, 132, &body)
        }
        "ICMP" => {
            let [high, low] = src.1.to_be_bytes();
            let kind = if src.0.is_ipv4() { [8, 0] } else { [128, 0] };
            Ip::icmp(src.0, dst.0, kind, [high, low, 0, 1], &[0; 8])
        }
        _ => Ip::new(src.0, dst.0, 47, &[0; 16]),
    }
}
