//! Closes UDP sockets of this network namespace that are connected to a backend which is gone.
//!
//! A connected socket keeps the backend that `connect(2)` was given, for ever: no packet of it is translated again.
//! It is found and closed by sock_diag (net/ipv4/udp_diag.c); the process sees `ECONNABORTED` and connects anew.
//! Only sockets that the programs have translated are touched: those have a storage in `sk_nat`, and the dump shows
//! which do. Who has connected to a Pod's own address is left alone.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::flow::proto;
use lb_common::limits::MAP_SK_NAT;
use netlink_packet_core::parse_u32;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::bpf::maps::MapsError;
use crate::bpf::pins::Pins;
use crate::devices::netlink::{Client, Request, Want, attributes, word16, word32};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (include/uapi/linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`: ports, addresses, device, cookie.
const SOCKID: usize = 48;
/// Where it lies in `struct inet_diag_req_v2`, and the length of that.
const SOCKID_AT: usize = 8;
const REQUEST: usize = SOCKID_AT + SOCKID;
/// Where it lies in `struct inet_diag_msg`, and the length of that.
const ANSWER_SOCKID_AT: usize = 4;
const ANSWER: usize = 72;
/// `INET_DIAG_REQ_SK_BPF_STORAGES`, and in it `SK_DIAG_BPF_STORAGE_REQ_MAP_FD`.
const REQ_SK_BPF_STORAGES: u16 = 2;
const STORAGE_REQ_MAP_FD: u16 = 1;
/// `INET_DIAG_SK_BPF_STORAGES`: there when the socket has an element in the map.
const SK_BPF_STORAGES: u16 = 20;
/// A bit for `TCP_ESTABLISHED`, which for UDP means connected.
const CONNECTED: u32 = 1 << 1;

/// Address and port of a backend.
pub type Destination = (Addr, Be16);

/// Finds and closes sockets.
pub struct Sockets {
    sk_nat: MapData,
}

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connected {
    family: u8,
    /// As the kernel identifies it, with its cookie.
    id: [u8; SOCKID],
}

impl Sockets {
    /// Opens the pinned map by which translated sockets are told from others.
    ///
    /// # Errors
    /// When the pin is missing or may not be opened.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        let unusable = |source| MapsError::Unusable { map: MAP_SK_NAT.name, source };
        Ok(Self { sk_nat: MapData::from_pin(pins.map(&MAP_SK_NAT)).map_err(unusable)? })
    }

    /// Closes the translated UDP sockets of this thread's network namespace that are connected to one of these
    /// backends. Returns how many that were.
    ///
    /// # Errors
    /// When the kernel cannot list or close sockets (it lacks `CONFIG_INET_UDP_DIAG` or
    /// `CONFIG_INET_DIAG_DESTROY`).
    pub fn close(&self, backends: &HashSet<Destination>) -> io::Result<usize> {
        let mut client = Client::open(NETLINK_SOCK_DIAG)?;
        let mut found = Vec::new();
        // An IPv6 socket may be connected to an IPv4-mapped address.
        for family in [libc::AF_INET, libc::AF_INET6] {
            client.call(&self.question(family as u8), |_, payload| {
                found.extend(parse(payload).filter(|(_, to)| backends.contains(to)));
            })?;
        }
        let mut closed = 0;
        for (socket, _) in found {
            match client.call(&socket.end(), |_, _| {}) {
                Ok(()) => closed += 1,
                // Closed meanwhile, or connected to somebody else.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(closed)
    }

    fn question(&self, family: u8) -> Request {
        let fd = self.sk_nat.fd().as_fd().as_raw_fd() as u32;
        let storages = [word16(8), word16(STORAGE_REQ_MAP_FD)].concat();
        let storages = [storages, word32(fd).to_vec()].concat();
        Request::new(SOCK_DIAG_BY_FAMILY, Want::Dump, &header(family, CONNECTED, &[0; SOCKID]))
            .attr(REQ_SK_BPF_STORAGES, &storages)
    }
}

impl Connected {
    fn end(&self) -> Request {
        Request::new(SOCK_DESTROY, Want::Done, &header(self.family, CONNECTED, &self.id))
    }
}

/// `struct inet_diag_req_v2`.
fn header(family: u8, states: u32, id: &[u8; SOCKID]) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0] = family;
    bytes[1] = proto::UDP;
    bytes[4..SOCKID_AT].copy_from_slice(&word32(states));
    bytes[SOCKID_AT..].copy_from_slice(id);
    bytes
}

/// Reads an answer of the dump: a socket with an element in the map, and its peer.
fn parse(payload: &[u8]) -> Option<(Connected, Destination)> {
    let (answer, rest) = payload.split_at_checked(ANSWER)?;
    if !attributes(rest).any(|(kind, _)| kind == SK_BPF_STORAGES) {
        return None;
    }
    let family = *answer.first()?;
    let id: [u8; SOCKID] =
        answer.get(ANSWER_SOCKID_AT..ANSWER_SOCKID_AT + SOCKID)?.try_into().ok()?;
    let [_, _, p0, p1, ..] = id;
    let port = Be16::new(u16::from_be_bytes([p0, p1]));
    let word = |n: usize| {
        let at = 20 + 4 * n;
        parse_u32(id.get(at..at + 4)?).ok().map(Be32::from_wire)
    };
    let addr = match i32::from(family) {
        libc::AF_INET => Addr::v4(word(0)?),
        libc::AF_INET6 => Addr::v6([word(0)?, word(1)?, word(2)?, word(3)?]),
        _ => return None,
    };
    Some((Connected { family, id }, (addr, port)))
}

#[cfg(test)]
mod tests {
    use super::{ANSWER, Addr, Be16, parse, word16};

    #[test]
    fn answers_of_the_dump() {
        let answer = |family: i32, dst: &[u8], storage: bool| {
            let mut bytes = vec![0; ANSWER];
            bytes[0] = family as u8;
            bytes[4..8].copy_from_slice(&[0x9c, 0x40, 0, 53]);
            bytes[24..24 + dst.len()].copy_from_slice(dst);
            if storage {
                bytes.extend([word16(4), word16(20)].concat());
            }
            bytes
        };
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 9];
        let v6 = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let cases = [
            ("IPv4", answer(libc::AF_INET, &[10, 1, 0, 9], true), Some("10.1.0.9")),
            ("IPv4-mapped", answer(libc::AF_INET6, &mapped, true), Some("10.1.0.9")),
            ("IPv6", answer(libc::AF_INET6, &v6, true), Some("fd01::9")),
            ("not translated", answer(libc::AF_INET, &[10, 1, 0, 9], false), None),
            ("too short", vec![0; 20], None),
        ];
        for (name, payload, want) in cases {
            let want = want.map(|ip| (Addr::from_ip(ip.parse().unwrap()), Be16::new(53)));
            assert_eq!(parse(&payload).map(|(_, to)| to), want, "{name}");
        }
    }
}
