//! Sockets of this network namespace: closes UDP sockets that are connected to a backend which is gone, and lists those
//! that listen.
//!
//! A connected socket keeps the backend that `connect(2)` was given: no packet of it is translated again. It is found and
//! closed through sock_diag (net/ipv4/udp_diag.c). The process sees `ECONNABORTED` and connects again.
//! Whether the programs had translated the socket or the process had dialled the backend's own address cannot be told:
//! sock_diag shows a socket's storages (here `sk_nat`) for TCP only (net/ipv4/inet_diag.c, `inet_sk_diag_fill`).
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;

use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::flow::proto;
use netlink_packet_core::parse_u32;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want, word32};

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
/// A bit for `TCP_ESTABLISHED`, which for UDP means connected.
const CONNECTED: u32 = 1 << 1;
/// Bits for `TCP_CLOSE` and `TCP_LISTEN`.
const UNCONNECTED: u32 = 1 << 7;
const LISTENING: u32 = 1 << 10;

/// Address and port of a backend.
pub type Destination = (Addr, Be16);

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connected {
    family: u8,
    /// As the kernel identifies it, with its cookie.
    id: [u8; SOCKID],
}

/// Closes the UDP sockets of this thread's network namespace that are connected to one of these backends. Returns how
/// many that were.
///
/// # Errors
/// When the kernel cannot list or close sockets (it lacks `CONFIG_INET_UDP_DIAG` or `CONFIG_INET_DIAG_DESTROY`).
pub fn close(backends: &HashSet<Destination>) -> io::Result<usize> {
    let mut client = NetlinkClient::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    // An IPv6 socket may be connected to an IPv4-mapped address.
    for family in [libc::AF_INET, libc::AF_INET6] {
        let header = header((family as u8, proto::UDP), CONNECTED, &[0; SOCKID]);
        let question = NetlinkRequest::new(SOCK_DIAG_BY_FAMILY, Want::Dump, &header);
        client.call(&question, |_, payload| {
            found.extend(parse(payload).filter(|(_, to)| backends.contains(to)));
        })?;
    }
    let mut closed = 0;
    for (socket, _) in found {
        match client.call(&socket.end(), |_, _| {}) {
            Ok(()) => closed += 1,
            // Closed meanwhile, or connected to another server.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(closed)
}

impl Connected {
    fn end(&self) -> NetlinkRequest {
        NetlinkRequest::new(
            SOCK_DESTROY,
            Want::Done,
            &header((self.family, proto::UDP), CONNECTED, &self.id),
        )
    }
}

/// Addresses and ports at which sockets of this thread's network namespace take new flows of TCP or UDP.
///
/// # Errors
/// When the kernel cannot list sockets.
pub fn listening(protocol: u8) -> io::Result<Vec<Destination>> {
    let mut client = NetlinkClient::open(NETLINK_SOCK_DIAG)?;
    // A UDP socket is "closed" until it is connected.
    let states = if protocol == proto::TCP { LISTENING } else { UNCONNECTED };
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let header = header((family as u8, protocol), states, &[0; SOCKID]);
        let question = NetlinkRequest::new(SOCK_DIAG_BY_FAMILY, Want::Dump, &header);
        client.call(&question, |_, payload| {
            let own = parse_end(payload, SocketEnd::Own).map(|(_, own)| own);
            found.extend(own.filter(|(_, port)| port.get() != 0));
        })?;
    }
    Ok(found)
}

/// `struct inet_diag_req_v2`.
fn header((family, protocol): (u8, u8), states: u32, id: &[u8; SOCKID]) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0] = family;
    bytes[1] = protocol;
    bytes[4..SOCKID_AT].copy_from_slice(&word32(states));
    bytes[SOCKID_AT..].copy_from_slice(id);
    bytes
}

/// Reads an answer of the dump: a socket and its peer.
fn parse(payload: &[u8]) -> Option<(Connected, Destination)> {
    parse_end(payload, SocketEnd::Peer)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SocketEnd {
    Own,
    Peer,
}

fn parse_end(payload: &[u8], end: SocketEnd) -> Option<(Connected, Destination)> {
    let answer = payload.get(..ANSWER)?;
    let family = *answer.first()?;
    let id: [u8; SOCKID] =
        answer.get(ANSWER_SOCKID_AT..ANSWER_SOCKID_AT + SOCKID)?.try_into().ok()?;
    let [o0, o1, p0, p1, ..] = id;
    let (port, first) = match end {
        SocketEnd::Own => ([o0, o1], 4),
        SocketEnd::Peer => ([p0, p1], 20),
    };
    let port = Be16::new(u16::from_be_bytes(port));
    let word = |n: usize| {
        let at = first + 4 * n;
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
    use super::{ANSWER, Addr, Be16, parse};

    #[test]
    fn answers_of_the_dump() {
        let answer = |family: i32, dst: &[u8]| {
            let mut bytes = vec![0; ANSWER];
            bytes[0] = family as u8;
            bytes[4..8].copy_from_slice(&[0x9c, 0x40, 0, 53]);
            bytes[24..24 + dst.len()].copy_from_slice(dst);
            bytes
        };
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 9];
        let v6 = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let cases = [
            ("IPv4", answer(libc::AF_INET, &[10, 1, 0, 9]), Some("10.1.0.9")),
            ("IPv4-mapped", answer(libc::AF_INET6, &mapped), Some("10.1.0.9")),
            ("IPv6", answer(libc::AF_INET6, &v6), Some("fd01::9")),
            ("another family", answer(libc::AF_UNIX, &v6), None),
            ("too short", vec![0; 20], None),
        ];
        for (name, payload, want) in cases {
            let want = want.map(|ip| (Addr::from_ip(ip.parse().unwrap()), Be16::new(53)));
            assert_eq!(parse(&payload).map(|(_, to)| to), want, "{name}");
        }
    }
}
