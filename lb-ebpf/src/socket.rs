//! Service translation at the sockets of the host namespace: at `connect` for connections, at each `sendmsg` for
//! datagrams; and its inverse, so that a process sees the address it dialled.
//!
//! Sockets of Pods are left alone: a translation before their packets leave would hide the ClusterIP from sidecars
//! and never reach guests of virtual machines, so Pods are served at their veths.
//!
//! Sockets of the kernel's own (NFS, CIFS, ceph) are served like those of processes. Left alone they would have no way
//! to a Service at all, since nothing of the host's is translated on its way; nor does a program learn whose a socket
//! is: the context does not show `sk_kern_sock`, and the task is the mounting process at first and a thread of the
//! kernel later. Old kernels write the backend's address over the one they were given; the agent tells (preflight).

use core::ptr::NonNull;

use aya_ebpf::programs::SockAddrContext;
use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::flow::proto;
use lb_common::service::FrontendFlags;
use lb_common::socket::{END_BACKEND, END_FRONTEND, SkMoreKey, SkNat, SkNatRing};
use lb_common::verdict::Counter;

use crate::maps;
use crate::scratch::Target;
use crate::service::{self, Client, Destination, Health};
use crate::sock_addr::{self, SockAddr};

/// Let the system call go on.
const PROCEED: i32 = 1;
/// Make it fail.
const FAIL: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// Where a packet would be dropped: a call that never returned would tell the process less.
const EHOSTUNREACH: i32 = 113;
const ENOMEM: i32 = 12;
/// Index mask of the ring: `REMEMBERED` is a power of two.
const MASK: u32 = lb_common::socket::REMEMBERED as u32 - 1;

/// Which address fields of the context count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Which system call dials.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dial {
    /// One peer for the life of the connection.
    Connect,
    /// One datagram.
    Send,
}

/// The process dials an address: replaces a frontend by a backend.
#[inline(always)]
pub(crate) fn dial(ctx: &SockAddrContext, family: Family, how: Dial) -> i32 {
    if !sock_addr::is_host_socket(ctx) {
        return PROCEED;
    }
    let sock = SockAddr::new(ctx);
    let proto = sock.protocol() as u8;
    if proto != proto::TCP && proto != proto::UDP {
        return PROCEED;
    }
    let (addr, port) = read(sock, family);
    let frontend = match service::lookup(addr, port, proto) {
        Destination::Plain => return PROCEED,
        Destination::Empty(frontend) if frontend.flags.contains(FrontendFlags::ELSEWHERE) => {
            return refuse(EHOSTUNREACH);
        }
        Destination::Unallocated => return refuse(EHOSTUNREACH),
        Destination::Empty(_) | Destination::UndefinedPort => return refuse(ECONNREFUSED),
        Destination::Frontend(frontend) => frontend,
    };
    let client = Client { addr: own_addr(&addr), outside: false, hash: 0 };
    if !service::admits(frontend, &client.addr) {
        return refuse(EHOSTUNREACH);
    }
    if how == Dial::Send
        && let Some((addr, port)) = earlier_choice(ctx, addr, port)
    {
        write(sock, family, addr, port);
        return PROCEED;
    }
    let mut choice = Target { addr: Addr::NONE, port, id: 0, generation: 0 };
    if !service::choose(frontend, &client, &mut choice)
        && !service::choose(frontend, &client, &mut choice)
    {
        return refuse(ECONNREFUSED);
    }
    let entry = SkNat {
        frontend: addr,
        backend: choice.addr,
        frontend_port: port,
        backend_port: choice.port,
        backend_id: choice.id,
        backend_gen: choice.generation,
        proto: u32::from(proto),
    };
    let Some(ring) = sock_addr::remember(ctx) else {
        // Without it the replies would come from an address the process never dialled.
        sock_addr::set_errno(ENOMEM);
        return FAIL;
    };
    push(ctx, ring, &entry, how);
    write(sock, family, choice.addr, choice.port);
    maps::count(Counter::SocketTranslated);
    PROCEED
}

/// The process asks who sent or who its peer is: replaces a backend by the frontend that it dialled.
#[inline(always)]
pub(crate) fn restore(ctx: &SockAddrContext, family: Family) -> i32 {
    if !sock_addr::is_host_socket(ctx) {
        return PROCEED;
    }
    let Some(ring) = sock_addr::remembered(ctx) else { return PROCEED };
    let sock = SockAddr::new(ctx);
    let (addr, port) = read(sock, family);
    let mut i = 0;
    while i <= MASK {
        // The newest first: an older translation may have had the same backend.
        let entry = entry_at(ring, newest(ring).wrapping_sub(i));
        if entry.frontend_port.get() != 0 && entry.backend_port == port && entry.backend == addr {
            write(sock, family, entry.frontend, entry.frontend_port);
            return PROCEED;
        }
        i += 1;
    }
    if let Some(entry) = more(ctx, ring, addr, port, END_BACKEND) {
        write(sock, family, entry.frontend, entry.frontend_port);
    }
    PROCEED
}

/// A translation that the socket had no room for; most sockets have none.
#[inline(always)]
fn more(
    ctx: &SockAddrContext,
    ring: NonNull<SkNatRing>,
    addr: Addr,
    port: Be16,
    end: u16,
) -> Option<&'static SkNat> {
    if sock_addr::ring_next(ring) <= MASK + 1 {
        return None;
    }
    sock_addr::more(&SkMoreKey::new(sock_addr::socket_cookie(ctx), addr, port, end))
}

#[inline(always)]
fn refuse(errno: i32) -> i32 {
    maps::count(Counter::SocketRefused);
    sock_addr::set_errno(errno);
    FAIL
}

/// The node's address, which the process will have as a client of `addr`.
#[inline(always)]
fn own_addr(addr: &Addr) -> Addr {
    match maps::settings() {
        Some(settings) if addr.is_v4() => settings.node4,
        Some(settings) => settings.node6,
        None => Addr::NONE,
    }
}

/// The backend that this socket's datagrams to the frontend went to, while it still takes new flows.
#[inline(always)]
fn earlier_choice(ctx: &SockAddrContext, addr: Addr, port: Be16) -> Option<(Addr, Be16)> {
    let ring = sock_addr::remembered(ctx)?;
    let mut i = 0;
    while i <= MASK {
        let entry = entry_at(ring, newest(ring).wrapping_sub(i));
        if entry.frontend_port == port && entry.frontend == addr {
            let health = service::health(entry.backend_id, entry.backend_gen);
            return (health == Health::Active).then_some((entry.backend, entry.backend_port));
        }
        i += 1;
    }
    let entry = more(ctx, ring, addr, port, END_FRONTEND)?;
    let health = service::health(entry.backend_id, entry.backend_gen);
    (health == Health::Active).then_some((entry.backend, entry.backend_port))
}

/// Stores a translation: the only one of a connection, the next place of a datagram socket's ring. What was there moves to
/// where there is more room.
#[inline(always)]
fn push(ctx: &SockAddrContext, ring: NonNull<SkNatRing>, entry: &SkNat, how: Dial) {
    match how {
        Dial::Connect => sock_addr::ring_set(ring, 0, 1, entry),
        Dial::Send => {
            let next = sock_addr::ring_next(ring);
            let oldest = sock_addr::ring_get(ring, next & MASK);
            if next > MASK && oldest.frontend_port.get() != 0 {
                let cookie = sock_addr::socket_cookie(ctx);
                let SkNat { frontend, frontend_port, backend, backend_port, .. } = oldest;
                let dialed = SkMoreKey::new(cookie, frontend, frontend_port, END_FRONTEND);
                sock_addr::put_more(&dialed, &oldest);
                let answers = SkMoreKey::new(cookie, backend, backend_port, END_BACKEND);
                sock_addr::put_more(&answers, &oldest);
            }
            sock_addr::ring_set(ring, next & MASK, next.wrapping_add(1), entry);
        }
    }
}

#[inline(always)]
fn newest(ring: NonNull<SkNatRing>) -> u32 {
    sock_addr::ring_next(ring).wrapping_sub(1)
}

#[inline(always)]
fn entry_at(ring: NonNull<SkNatRing>, index: u32) -> SkNat {
    sock_addr::ring_get(ring, index & MASK)
}

#[inline(always)]
fn read(sock: SockAddr, family: Family) -> (Addr, Be16) {
    let addr = match family {
        Family::V4 => Addr::v4(Be32::from_wire(sock.ip4())),
        Family::V6 => Addr::v6([
            Be32::from_wire(sock.ip6_0()),
            Be32::from_wire(sock.ip6_1()),
            Be32::from_wire(sock.ip6_2()),
            Be32::from_wire(sock.ip6_3()),
        ]),
    };
    (addr, Be16::from_wire(sock.port() as u16))
}

#[inline(always)]
fn write(sock: SockAddr, family: Family, addr: Addr, port: Be16) {
    match family {
        Family::V4 => sock.set_ip4(addr.word3().to_wire()),
        Family::V6 => {
            let [w0, w1, w2, w3] = addr.words();
            sock.set_ip6_0(w0.to_wire());
            sock.set_ip6_1(w1.to_wire());
            sock.set_ip6_2(w2.to_wire());
            sock.set_ip6_3(w3.to_wire());
        }
    }
    sock.set_port(u32::from(port.to_wire()));
}
