//! Frames byte by byte, as no honest stack would send them: tags, extension headers, fragments, forged neighbours, any
//! flags. Inside out: a segment, an IP packet around it, a link around that.
//!
//! ```
//! use testbed::frame::{Ip, Link, PRIORITY_TAG};
//! let question = Ip::udp("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:53".parse().unwrap(), b"?");
//! let frame = Link { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 2] }.tagged(&[PRIORITY_TAG; 2], &question);
//! assert_eq!(frame[12..20], [0x81, 0, 0, 0, 0x81, 0, 0, 0]);
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A link-layer address.
pub type Mac = [u8; 6];
/// All stations.
pub const BROADCAST: Mac = [0xff; 6];
/// An 802.1Q tag of VLAN 0: a priority, no VLAN.
pub const PRIORITY_TAG: Tag = Tag { ethertype: 0x8100, vlan: 0 };
/// An 802.1ad tag of VLAN 0.
pub const SERVICE_TAG: Tag = Tag { ethertype: 0x88a8, vlan: 0 };

const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
/// Destination options, with padding only.
const OPTIONS: u8 = 60;

/// TCP's flags.
pub mod flags {
    #![allow(missing_docs, reason = "RFC 9293 names them")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
    pub const NULL: u8 = 0;
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub ethertype: u16,
    /// Priority and VLAN.
    pub vlan: u16,
}

/// What of a TCP header is to be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// [`flags`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledged up to here.
    pub ack: u32,
}

impl Tcp {
    /// Only flags.
    pub const fn flags(flags: u8) -> Self {
        Self { flags, seq: 0, ack: 0 }
    }
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// Protocol of what follows the IP header.
    pub protocol: u8,
    /// All behind the IP header.
    pub body: Vec<u8>,
    /// Of IPv4: identification, flags and offset.
    fragment: (u16, u16),
}

impl Ip {
    /// A packet of any protocol.
    pub fn new(src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8]) -> Self {
        Self { src, dst, hops: 64, protocol, body: body.to_vec(), fragment: (0, 0) }
    }

    /// A UDP datagram.
    pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Self {
        let mut body = ports(src, dst);
        body.extend((8 + payload.len() as u16).to_be_bytes());
        body.extend([0, 0]);
        body.extend(payload);
        Self::new(src.ip(), dst.ip(), UDP, &body).summed(6)
    }

    /// A TCP segment.
    pub fn tcp(src: SocketAddr, dst: SocketAddr, tcp: Tcp, payload: &[u8]) -> Self {
        let mut body = ports(src, dst);
        body.extend(tcp.seq.to_be_bytes());
        body.extend(tcp.ack.to_be_bytes());
        body.extend([0x50, tcp.flags, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend(payload);
        Self::new(src.ip(), dst.ip(), TCP, &body).summed(16)
    }

    /// An ICMP or ICMPv6 message: type and code, the second word, what follows.
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: [u8; 2], word: [u8; 4], body: &[u8]) -> Self {
        let mut all = vec![kind[0], kind[1], 0, 0];
        all.extend(word);
        all.extend(body);
        let protocol = if src.is_ipv4() { 1 } else { 58 };
        Self::new(src, dst, protocol, &all).summed(2)
    }

    /// "Too big" (3/4, or 2) of `mtu` bytes, quoting as much as RFC 792 and RFC 4443 ask for at most.
    pub fn too_big(src: IpAddr, dst: IpAddr, mtu: u16, quoted: &[u8]) -> Self {
        let [high, low] = mtu.to_be_bytes();
        let kind = if src.is_ipv4() { [3, 4] } else { [2, 0] };
        Self::icmp(src, dst, kind, [0, 0, high, low], quoted)
    }

    /// Neighbour solicitation (135) or advertisement (136) about `target`, with `mac` as the link-layer address.
    pub fn neighbour(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, target: Ipv6Addr, mac: Mac) -> Self {
        let mut body = target.octets().to_vec();
        body.extend([if kind == 135 { 1 } else { 2 }, 1]);
        body.extend(mac);
        let flags = if kind == 136 { [0x20, 0, 0, 0] } else { [0; 4] };
        Self::icmp(src.into(), dst.into(), [kind, 0], flags, &body).hops(255)
    }

    /// A router advertisement of `prefix`/64, of high preference.
    pub fn router_advertisement(src: Ipv6Addr, prefix: Ipv6Addr, mac: Mac) -> Self {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let mut body = vec![0; 8];
        body.extend([1, 1]);
        body.extend(mac);
        body.extend([3, 4, 64, 0xc0]);
        body.extend([0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
        body.extend(prefix.octets());
        Self::icmp(src.into(), all_nodes.into(), [134, 0], [64, 0x08, 0x07, 0x08], &body).hops(255)
    }

    /// A redirect: `target` is the better way to `dst`.
    pub fn redirect(src: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, dst: Ipv6Addr) -> Self {
        let body: Vec<u8> = target.octets().into_iter().chain(dst.octets()).collect();
        Self::icmp(src.into(), to.into(), [137, 0], [0; 4], &body).hops(255)
    }

    /// The packet in VXLAN: `inner` is a frame.
    pub fn vxlan(src: SocketAddr, dst: SocketAddr, vni: u32, inner: &[u8]) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        let mut payload = vec![0x08, 0, 0, 0, a, b, c, 0];
        payload.extend(inner);
        Self::udp(src, dst, &payload)
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub const fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// Behind `n` headers of destination options (IPv6 only).
    #[must_use]
    pub fn options(self, n: usize) -> Self {
        (0..n).fold(self, |ip, _| ip.extension(OPTIONS, &[1, 4, 0, 0, 0, 0]))
    }

    /// Behind an extension header of this number (IPv6 only): all of it but its first two bytes.
    #[must_use]
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        let units = (rest.len() + 2) / 8;
        let length = if number == 51 { units * 2 - 2 } else { units - 1 };
        let header = [self.protocol, length as u8].into_iter().chain(rest.iter().copied());
        self.body.splice(0..0, header);
        self.protocol = number;
        self
    }

    /// The piece of the body in `range`, as a fragment that says where it belongs; multiples of 8 bytes begin it.
    #[must_use]
    pub fn piece(&self, range: std::ops::Range<usize>, more: bool, id: u16) -> Self {
        let at = range.start as u16;
        let body = self.body.get(range).unwrap_or_default();
        if self.src.is_ipv4() {
            let field = (at / 8) | if more { 0x2000 } else { 0 };
            return Self { body: body.to_vec(), fragment: (id, field), ..self.clone() };
        }
        let mut header = vec![self.protocol, 0];
        header.extend(((at & 0xfff8) | u16::from(more)).to_be_bytes());
        header.extend(u32::from(id).to_be_bytes());
        header.extend(body);
        Self { body: header, protocol: FRAGMENT, ..self.clone() }
    }

    /// In pieces of `size` bytes of the body, a multiple of 8.
    pub fn pieces(&self, size: usize, id: u16) -> Vec<Self> {
        let len = self.body.len();
        (0..len)
            .step_by(size)
            .map(|at| self.piece(at..(at + size).min(len), at + size < len, id))
            .collect()
    }

    /// The packet as it goes over the wire, without a link.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = match (self.src, self.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend((self.body.len() as u16).to_be_bytes());
                header.extend([self.protocol, self.hops]);
                header.extend(src.octets());
                header.extend(dst.octets());
                header
            }
            (src, dst) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + self.body.len() as u16).to_be_bytes());
                header.extend(self.fragment.0.to_be_bytes());
                header.extend(self.fragment.1.to_be_bytes());
                header.extend([self.hops, self.protocol, 0, 0]);
                header.extend(v4(src).octets());
                header.extend(v4(dst).octets());
                let sum = !fold(words(&header));
                header.splice(10..12, sum.to_be_bytes());
                header
            }
        };
        bytes.extend(&self.body);
        bytes
    }

    /// With the checksum at `field` of the body, over the pseudo header where the protocol has one.
    fn summed(mut self, field: usize) -> Self {
        let pseudo = match (self.src, self.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) if self.protocol == 1 => 0,
            (IpAddr::V4(src), IpAddr::V4(dst)) => words(&src.octets()) + words(&dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => words(&src.octets()) + words(&dst.octets()),
            _ => 0,
        };
        let own = if self.src.is_ipv4() && self.protocol == 1 {
            0
        } else {
            u32::from(self.protocol) + self.body.len() as u32
        };
        let sum = match !fold(pseudo + own + words(&self.body)) {
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        self.body.splice(field..field + 2, sum.to_be_bytes());
        self
    }
}

/// The sender and the receiver of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Source address.
    pub src: Mac,
    /// Destination address.
    pub dst: Mac,
}

impl Link {
    /// An IP packet as a frame.
    pub fn frame(self, ip: &Ip) -> Vec<u8> {
        self.tagged(&[], ip)
    }

    /// The same with tags, the outermost first.
    pub fn tagged(self, tags: &[Tag], ip: &Ip) -> Vec<u8> {
        let ethertype = if ip.src.is_ipv4() { 0x0800 } else { 0x86dd };
        self.raw(tags, ethertype, &ip.bytes())
    }

    /// A frame of any ethertype.
    pub fn raw(self, tags: &[Tag], ethertype: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = [self.dst, self.src].concat();
        for tag in tags {
            frame.extend(tag.ethertype.to_be_bytes());
            frame.extend(tag.vlan.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(body);
        frame
    }

    /// ARP: who has `target` (1), or `sender` is at `mac` (2).
    pub fn arp(self, operation: u8, (mac, sender): (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
        let mut body = vec![0, 1, 0x08, 0, 6, 4, 0, operation];
        body.extend(mac);
        body.extend(sender.octets());
        body.extend(if operation == 1 { [0; 6] } else { self.dst });
        body.extend(target.octets());
        self.raw(&[], 0x0806, &body)
    }
}

fn ports(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat()
}

const fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

fn words(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    };
    bytes.chunks(2).map(word).sum()
}

const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::{Ip, Tcp, flags, fold, words};

    #[test]
    fn checksums_hold() {
        let tcp = Ip::tcp(
            "10.0.0.1:1024".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
            Tcp { flags: flags::SYN, seq: 7, ack: 0 },
            b"odd",
        );
        let bytes = tcp.bytes();
        assert_eq!(fold(words(&bytes[..20])), 0xffff, "of the IPv4 header");
        let pseudo = words(&bytes[12..20]) + 6 + 23;
        assert_eq!(fold(pseudo + words(&bytes[20..])), 0xffff, "of TCP");
        let (src, dst) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let echo = Ip::icmp(src, dst, [128, 0], [0, 1, 0, 1], b"hello").bytes();
        let pseudo = words(&echo[8..40]) + 58 + 13;
        assert_eq!(fold(pseudo + words(&echo[40..])), 0xffff, "of ICMPv6");
    }

    #[test]
    fn pieces_make_the_whole() {
        for (src, dst) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let whole = Ip::udp(src.parse().unwrap(), dst.parse().unwrap(), &[7; 50]);
            let pieces = whole.pieces(16, 9);
            let header = if whole.src.is_ipv4() { 0 } else { 8 };
            let joined: Vec<u8> = pieces.iter().flat_map(|p| p.body[header..].to_vec()).collect();
            assert_eq!((pieces.len(), joined), (4, whole.body));
        }
    }

    #[test]
    fn extension_headers_name_what_follows() {
        let (src, dst) = ("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap());
        let ip = Ip::udp(src, dst, b"").options(2);
        assert_eq!((ip.protocol, ip.body[0], ip.body[8], ip.body.len()), (60, 60, 17, 24));
    }
}
