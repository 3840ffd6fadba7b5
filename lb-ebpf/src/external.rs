//! Traffic from outside to Services: node ports, load balancer addresses, external addresses, at the devices by which
//! packets enter and leave the node.
//!
//! ```text
//! client -> frontend   dev_in   -> Pod of this node      client kept, on past the IP stack to the veth, or to its other end
//!                               -> process of this host  client kept, on into the IP stack
//!                               -> another node          from a port of this node, on past the IP stack
//! Pod -> client        pod_out  frontend as the source, on past the IP stack
//! host -> client       dev_out  frontend as the source
//! backend -> node      dev_in   frontend -> client, on past the IP stack
//! node -> any host     dev_out  from the port of a frontend: recorded, so that the answer is not taken for a client's
//! ```
//! Packets with an address of this node as their source never enter the stack, which drops them as forgeries; and what
//! goes past the stack in one direction goes past it in the other, or netfilter would see half a connection.
//!
//! The direction of an entry is the one that the backend sees: what the client sends goes *in* (`Direction::Ingress`).

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtFlags, CtKey, Direction, scope};
use lb_common::endpoint::IdentFlags;
use lb_common::flow::{Flow, proto, tcp};
use lb_common::fragment::hook;
use lb_common::hash;
use lb_common::service::{Frontend, FrontendFlags, FrontendKey};
use lb_common::verdict::{Counter, DropReason, drop_index};

use crate::conntrack::{self, Claim};
use crate::icmp::{self, Onward};
use crate::open::{self, Opener};
use crate::packet::{Packet, Tag};
use crate::parsed::{Kind, L3, Parsed};
use crate::refuse::{self, Obstacle};
use crate::route::{self, Way};
use crate::scratch::{self, Scratch};
use crate::service::{self, Client};
use crate::trace::Program;
use crate::tracked::Tracked;
use crate::verdict::{self, Verdict};
use crate::{
    arrive, closing, cut, fragment, hop, kernel, maps, masquerade, origin, parse, past, rewrite,
    trace,
};

/// Seed of the hash that Maglev tables are read with: one for all nodes.
const MAGLEV_SEED: u32 = 0x6d61_676c;

/// A packet enters the node.
#[inline(always)]
pub(crate) fn dev_in(packet: Packet) -> Verdict {
    match packet.tag() {
        Tag::None => {}
        // It belongs to the device of that VLAN, which has a program of its own.
        Tag::Vlan => return Verdict::Pass,
        Tag::Priority => packet.forget_tag(),
    }
    let Some(scratch) = packet.scratch() else { return Verdict::Pass };
    match enter(packet, scratch) {
        // Here, where no more than this is on the stack.
        Verdict::TooBig(mtu) => too_big_in(packet, scratch, mtu as u16),
        verdict => verdict,
    }
}

#[inline(always)]
fn enter(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let kind = parse::parse(packet, &mut scratch.parsed, L3);
    trace::parsed(Program::DevIn, kind);
    match kind {
        // The stack removes a remaining priority tag (VLAN ID 0). No program sees the packet in that frame.
        Kind::NOT_IP if packet.has_hidden_tag() => {
            return drop(DropReason::NotIp, 0);
        }
        Kind::NOT_IP | Kind::ARP => return Verdict::Pass,
        Kind::BAD_ADDRESS => return drop(DropReason::BadAddress, 0),
        _ if origin::is_forged_here(packet, scratch) => {
            return drop(DropReason::SpoofedSource, 0);
        }
        Kind::FLOW | Kind::FIRST_FRAGMENT => {}
        Kind::LATER_FRAGMENT => {
            if !fragment::recall(packet, scratch, hook::DEV_IN) {
                return Verdict::Pass;
            }
        }
        Kind::ICMP_ERROR => return icmp_error(packet, scratch),
        _ => return Verdict::Pass,
    }
    let port = scratch.parsed.flow.dport.get();
    let answer = kernel::is_answer_port(port);
    let request = maps::is_frontend_port(port);
    if !answer && !request {
        return straight(packet, scratch);
    }
    if kind == Kind::FIRST_FRAGMENT {
        fragment::remember(packet, scratch, hook::DEV_IN);
    }
    if answer {
        let Scratch { parsed, key, .. } = scratch;
        *key = reply_key(&parsed.flow);
        if let Some(entry) = conntrack::find(scratch)
            && !is_of_another(entry, &scratch.parsed)
        {
            return masqueraded_reply(packet, scratch, entry);
        }
    }
    if request { to_frontend(packet, scratch) } else { straight(packet, scratch) }
}

/// A packet to no frontend: on to the Pod past the stack, if its flow goes so.
#[inline(always)]
fn straight(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let end = arrive::past_stack(packet);
    if end == 0 {
        return Verdict::Pass;
    }
    if scratch.parsed.kind == Kind::FIRST_FRAGMENT {
        fragment::remember(packet, scratch, hook::DEV_IN);
    }
    past::to_end(end)
}

/// Returns whether a packet on the tuple of a masqueraded flow answers another connection: the flow has ended, and a new
/// flow would have replaced its entry. A process of the host can use the port next.
#[inline(always)]
fn is_of_another(entry: Tracked, parsed: &Parsed) -> bool {
    let opens = parsed.flow.proto == proto::TCP && parsed.tcp_flags & tcp::SYN != 0;
    opens && lb_common::conntrack::is_closed(entry.flags())
}

/// A packet leaves the node; its network header is at `l3`.
#[inline(always)]
pub(crate) fn dev_out(packet: Packet, l3: usize) -> Verdict {
    let Some(scratch) = packet.scratch() else { return Verdict::Pass };
    let kind = parse::parse(packet, &mut scratch.parsed, l3);
    trace::parsed(Program::DevOut, kind);
    match kind {
        Kind::FLOW | Kind::FIRST_FRAGMENT => {}
        Kind::LATER_FRAGMENT => {
            if !fragment::recall(packet, scratch, hook::DEV_OUT) {
                return Verdict::Pass;
            }
        }
        Kind::ICMP_ERROR => {
            return match icmp::leaving(packet, scratch) {
                Ok(()) => Verdict::Pass,
                Err(_) => drop(DropReason::RewriteFailed, 0),
            };
        }
        _ => return Verdict::Pass,
    }
    let Flow { sport, proto, .. } = scratch.parsed.flow;
    // The flags of a TCP packet show which end answers.
    if proto != proto::TCP && maps::is_frontend_port(sport.get()) && !scratch.parsed.later {
        note_own(scratch);
    }
    if !maps::is_host_port(sport.get()) {
        return Verdict::Pass;
    }
    if kind == Kind::FIRST_FRAGMENT {
        fragment::remember(packet, scratch, hook::DEV_OUT);
    }
    let Scratch { parsed, key, .. } = scratch;
    *key = reply_key(&parsed.flow);
    let Some(entry) = conntrack::find(scratch) else { return Verdict::Pass };
    note_reply(packet, scratch, entry, kernel::now());
    if from_frontend(packet, &scratch.parsed, entry) {
        Verdict::Pass
    } else {
        drop(DropReason::RewriteFailed, 0)
    }
}

/// Records a datagram that leaves the node with a frontend as its source and does not answer a client. The node sent it from
/// that port: a process of the host, or netfilter for a Pod that it masquerades. The answer to it does not come from a
/// client. Otherwise it would go to the Service, and two servers that answer every datagram would never stop.
#[inline(never)]
fn note_own(scratch: &mut Scratch) {
    let Scratch { parsed, key, .. } = scratch;
    let Flow { src, sport, proto, .. } = parsed.flow;
    if maps::frontend(&FrontendKey::new(src, sport, proto)).is_none() {
        return;
    }
    let now = kernel::now();
    *key = CtKey { scope: scope::EXTERNAL, ..conntrack::key_out(&parsed.flow, 0) };
    let known = conntrack::find(scratch);
    let Scratch { parsed, key, .. } = scratch;
    let answers =
        known.is_some_and(|entry| !conntrack::starts_over(entry, parsed, Direction::Egress, now));
    if !answers && maps::own_flow(key) != Some(now) {
        maps::put_own_flow(key, now);
    }
}

/// Whether a packet that would open a flow, under the key in the scratch memory, answers one of this node's own. Exported, so
/// that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn external_is_own(now: u32) -> u32 {
    let Some(Scratch { key, .. }) = scratch::get() else { return 0 };
    if key.proto == proto::TCP {
        return 0;
    }
    let Some(seen) = maps::own_flow(key) else { return 0 };
    if lb_common::conntrack::is_own_flow_over(key.proto, seen, now, kernel::hz()) {
        return 0;
    }
    if seen != now {
        maps::put_own_flow(key, now);
    }
    1
}

/// A Pod of this node answers a client outside. What cannot be sent on past the stack is left to it unmodified: it
/// tells the Pod what is wrong.
#[inline(never)]
pub(crate) fn reply_out(
    packet: Packet,
    scratch: &mut Scratch,
    entry: Tracked,
    now: u32,
) -> Verdict {
    show_frontend(scratch, entry);
    match route::remembered(packet, scratch, entry, now) {
        Way::Via(_) => {
            note_reply(packet, scratch, entry, now);
            onward(packet, scratch)
        }
        // The last piece of it that comes in again is noted on the entry, if there are any.
        Way::TooBig(mtu) => Verdict::TooBig(u32::from(mtu)),
        Way::Expired | Way::None => Verdict::Pass,
    }
}

/// Key of the reply entry of the flow that this packet answers.
#[inline(always)]
fn reply_key(flow: &Flow) -> CtKey {
    CtKey { scope: scope::EXTERNAL_REPLY, ..conntrack::key_out(flow, 0) }
}

#[inline(always)]
fn note_reply(packet: Packet, scratch: &mut Scratch, entry: Tracked, now: u32) {
    conntrack::note(packet, scratch, entry, Direction::Egress, now);
}

#[inline(always)]
fn note_client(packet: Packet, scratch: &mut Scratch, entry: Tracked, now: u32) {
    let flags = entry.flags();
    if scratch.parsed.flow.proto != proto::TCP && flags.contains(CtFlags::MASQUERADED) {
        let spoken = lb_common::conntrack::spoken(flags);
        if spoken != flags {
            entry.set_flags(spoken);
        }
    }
    conntrack::note(packet, scratch, entry, Direction::Ingress, now);
}

/// Makes the frontend the source of an answer, and restores the client's port where it was mapped.
#[inline(always)]
fn from_frontend(packet: Packet, parsed: &Parsed, entry: Tracked) -> bool {
    if rewrite::source(packet, parsed, &entry.nat_addr(), entry.nat_port()).is_err() {
        return false;
    }
    let flags = entry.flags();
    if !flags.intersects(CtFlags::MASQUERADED | CtFlags::PORT_MAPPED) {
        return true;
    }
    rewrite::destination(packet, parsed, &entry.aux_addr(), entry.aux_port()).is_ok()
}

/// The ends that an answer is to have.
#[inline(always)]
fn show_frontend(scratch: &mut Scratch, entry: Tracked) {
    let Scratch { parsed, to, .. } = scratch;
    *to = Flow { src: entry.nat_addr(), sport: entry.nat_port(), ..parsed.flow };
    if entry.flags().intersects(CtFlags::MASQUERADED | CtFlags::PORT_MAPPED) {
        to.dst = entry.aux_addr();
        to.dport = entry.aux_port();
    }
}

/// Sends the packet on past the IP stack, with the ends it is to have and by the way that was found.
#[inline(always)]
fn onward(packet: Packet, scratch: &mut Scratch) -> Verdict {
    if rewrite::forwarded(packet, scratch).is_err() {
        return drop(DropReason::RewriteFailed, 0);
    }
    Verdict::NextHop(packet.redirect_hop(&scratch.fib))
}

/// A backend on another node answers: back to the client.
#[inline(never)]
fn masqueraded_reply(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Verdict {
    if !entry.flags().contains(CtFlags::MASQUERADED) {
        return Verdict::Pass;
    }
    let now = kernel::now();
    show_frontend(scratch, entry);
    match route::remembered(packet, scratch, entry, now) {
        Way::Via(_) => {
            note_reply(packet, scratch, entry, now);
            onward(packet, scratch)
        }
        Way::TooBig(mtu) => Verdict::TooBig(u32::from(mtu)),
        Way::Expired => tell(packet, scratch, Obstacle::Expired),
        Way::None => drop(DropReason::NoRoute, 0),
    }
}

/// A packet to a port that some frontend has or had. Frontends are for first packets: a flow goes on when the one it was
/// opened through has changed or gone. Inlined, as is `tell`: a call chain has eight frames at most.
#[inline(always)]
fn to_frontend(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let Scratch { parsed, key, .. } = scratch;
    let Flow { dst, dport, proto, .. } = parsed.flow;
    let frontend = maps::frontend(&FrontendKey::new(dst, dport, proto));
    match frontend {
        Some(frontend) if frontend.flags.contains(FrontendFlags::SOCKET_ONLY) => {
            return Verdict::Pass;
        }
        Some(_) => {}
        // Most of these do not belong to a Service. The conntrack table is looked up only for ports that can have an entry.
        None if !maps::is_former_port(dport.get()) => return no_frontend(packet, scratch),
        None => {}
    }
    let now = kernel::now();
    *key = CtKey { scope: scope::EXTERNAL, ..conntrack::key_in(&parsed.flow, 0) };
    let Some(entry) = conntrack::find(scratch) else {
        return first(packet, scratch, frontend, now);
    };
    let Scratch { parsed, .. } = scratch;
    if conntrack::starts_over(entry, parsed, Direction::Ingress, now) {
        return first(packet, scratch, frontend, now);
    }
    if !service::health(entry.backend_id(), entry.backend_gen()).keeps(parsed.flow.proto) {
        if conntrack::is_mid_flow(parsed) {
            let service_id = frontend.map_or(0, |frontend| frontend.service_id);
            return refuse(packet, scratch, DropReason::BackendGone, service_id);
        }
        if frontend.is_some() {
            maps::count(Counter::FlowMoved);
        }
        return first(packet, scratch, frontend, now);
    }
    if frontend.is_some() && conntrack::is_half(scratch, entry, now) {
        return first(packet, scratch, frontend, now);
    }
    note_client(packet, scratch, entry, now);
    // The hook of a Pod here finds the flow by the other entry, and takes both away.
    if entry.flags().intersects(CtFlags::MASQUERADED | CtFlags::TO_HOST) {
        return closing::after(packet, scratch, entry, Direction::Ingress, deliver);
    }
    deliver(packet, scratch, entry)
}

/// A packet of no flow that goes on.
#[inline(always)]
fn first(
    packet: Packet,
    scratch: &mut Scratch,
    frontend: Option<&'static Frontend>,
    now: u32,
) -> Verdict {
    match frontend {
        Some(_) if external_is_own(now) != 0 => Verdict::Pass,
        Some(frontend) => open(packet, scratch, frontend, now),
        None => no_frontend(packet, scratch),
    }
}

/// A packet that may be for a ClusterIP without this port, or for none at all: an address outside the
/// range of ClusterIPs belongs to another host.
#[inline(always)]
fn no_frontend(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let dst = scratch.parsed.flow.dst;
    if !service::is_cluster_ip(&dst) {
        return straight(packet, scratch);
    }
    match maps::frontend(&FrontendKey::wildcard(dst)) {
        Some(wildcard) if wildcard.flags.contains(FrontendFlags::ADDRESS_ONLY) => Verdict::Pass,
        Some(_) => refuse(packet, scratch, DropReason::UndefinedPort, 0),
        None => drop(DropReason::UnallocatedIp, 0),
    }
}

/// The first packet of a flow from outside.
#[inline(never)]
fn open(packet: Packet, scratch: &mut Scratch, frontend: &Frontend, now: u32) -> Verdict {
    let service_id = frontend.service_id;
    let parsed = &scratch.parsed;
    let outside = frontend.flags.contains(FrontendFlags::EXTERNAL);
    let src = &parsed.flow.src;
    if parsed.later || maps::ident(src).is_some_and(|own| is_here(own.flags, own.ifindex)) {
        // A fragment alone opens nothing. An address of this node or its Pods does not come from outside: forged, and
        // the stack knows.
        return Verdict::Pass;
    }
    if conntrack::is_mid_flow(parsed) {
        // At an address of the node it may be the answer to a process of the host whose own port is the frontend's, and
        // the stack knows; if it is not, the stack resets it.
        if maps::ident(&parsed.flow.dst).is_some_and(|own| is_here(own.flags, own.ifindex))
            || maps::is_beside_another_proxy()
        {
            return Verdict::Pass;
        }
        return refuse(packet, scratch, DropReason::UnknownFlow, service_id);
    }
    if parsed.tcp_flags & tcp::RST != 0 {
        return Verdict::Pass;
    }
    if !service::admits(frontend, src) {
        return drop(DropReason::SourceRange, service_id);
    }
    if service::is_local(frontend, outside) && frontend.local_n == 0
        || !service::is_local(frontend, outside) && frontend.n == 0
    {
        return no_backend(packet, scratch, frontend);
    }
    let hash =
        if frontend.maglev_n == 0 { 0 } else { maglev_hash(parsed, frontend.affinity_secs != 0) };
    let client = Client { addr: parsed.flow.src, outside, hash };
    let kind = CtFlags::FORWARD | CtFlags::EXTERNAL;
    match open::to_backend::<Outside>(packet, scratch, (frontend, &client), kind, now) {
        Ok(()) => commit(packet, scratch, now),
        Err(verdict) => verdict,
    }
}

/// A client outside opens a flow to a Service.
struct Outside;

impl Opener for Outside {
    #[inline(always)]
    fn place(packet: Packet, scratch: &mut Scratch) -> Result<(), Verdict> {
        if place(packet, scratch) {
            return Ok(());
        }
        Err(drop(DropReason::NoRoute, scratch.nat.service_id))
    }

    #[inline(always)]
    fn claim(scratch: &Scratch, now: u32) -> Claim {
        if scratch.nat.flags.contains(CtFlags::MASQUERADED) {
            masquerade::claim(now)
        } else {
            conntrack::claim(now)
        }
    }

    #[inline(always)]
    fn drop(reason: DropReason, service_id: u32) -> Verdict {
        drop(reason, service_id)
    }
}

/// Hash of the flow that Maglev tables are read with: of one with affinity the same for all flows of its client, whichever
/// node it comes to. By itself, for the sake of the stack.
#[inline(never)]
fn maglev_hash(parsed: &Parsed, affinity: bool) -> u32 {
    let sport = if affinity { Be16::new(0) } else { parsed.flow.sport };
    hash::flow(&Flow { sport, ..parsed.flow }, MAGLEV_SEED)
}

#[inline(always)]
fn is_here(flags: IdentFlags, ifindex: u32) -> bool {
    ifindex != 0 || flags.contains(IdentFlags::LOCAL_NODE)
}

/// A frontend without a backend for this client.
#[inline(always)]
fn no_backend(packet: Packet, scratch: &mut Scratch, frontend: &Frontend) -> Verdict {
    let elsewhere = frontend.n != 0 || frontend.flags.contains(FrontendFlags::ELSEWHERE);
    if elsewhere {
        return drop(DropReason::NoLocalEndpoints, frontend.service_id);
    }
    refuse(packet, scratch, DropReason::NoEndpoints, frontend.service_id)
}

/// Finds out where the target is, and how the client will look to it. False when there is no way, or no address to
/// masquerade with.
#[inline(never)]
fn place(packet: Packet, scratch: &mut Scratch) -> bool {
    let Scratch { parsed, nat, .. } = scratch;
    nat.stand_in = parsed.flow.src;
    nat.way = Addr::NONE;
    nat.port = parsed.flow.sport;
    nat.scope = scope::EXTERNAL;
    nat.veth = 0;
    let target = nat.target.addr;
    if let Some(ident) = maps::ident(&target) {
        if ident.ifindex != 0 {
            nat.veth = ident.ifindex as u16;
            return true;
        }
        if ident.flags.contains(IdentFlags::LOCAL_NODE) {
            nat.flags |= CtFlags::TO_HOST;
            return true;
        }
    }
    let (v4, src) = (parsed.v4, parsed.flow.src);
    // That it is too big or expired is told when it is to be delivered.
    let Some(ifindex) = route::device(packet, scratch, &src, &target) else { return false };
    let Some(dev) = maps::dev(ifindex) else { return false };
    let nat = &mut scratch.nat;
    nat.flags |= CtFlags::MASQUERADED;
    nat.stand_in = if v4 { dev.masquerade4 } else { dev.masquerade6 };
    nat.stand_in != Addr::NONE
}

/// Commits the flow and sends its first packet on.
#[inline(always)]
fn commit(packet: Packet, scratch: &mut Scratch, now: u32) -> Verdict {
    if !scratch.nat.flags.contains(CtFlags::TO_HOST) {
        route::foresee(packet, scratch, now);
    }
    let entry = conntrack::commit(scratch, Direction::Ingress, now);
    deliver(packet, scratch, entry)
}

/// Sends a packet of a flow from outside on to its backend.
#[inline(never)]
fn deliver(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Verdict {
    if entry.flags().contains(CtFlags::TO_HOST) {
        return into_the_stack(packet, scratch, entry);
    }
    let Scratch { parsed, to, .. } = scratch;
    *to = Flow {
        src: entry.aux_addr(),
        dst: entry.nat_addr(),
        sport: entry.aux_port(),
        dport: entry.nat_port(),
        proto: parsed.flow.proto,
    };
    let is_here = !entry.flags().contains(CtFlags::MASQUERADED);
    // The entry was seen just now.
    match route::remembered(packet, scratch, entry, entry.last_seen()) {
        Way::Via(device) if is_here => to_pod(packet, scratch, device),
        Way::Via(_) => onward(packet, scratch),
        Way::TooBig(mtu) => Verdict::TooBig(u32::from(mtu)),
        Way::Expired => tell(packet, scratch, Obstacle::Expired),
        Way::None => drop(DropReason::NoRoute, 0),
    }
}

/// Sends a packet on to a Pod of this node whose veth this may be: to the Pod's end, if nothing at the host's end needs to see it,
/// and else as its way says.
#[inline(always)]
fn to_pod(packet: Packet, scratch: &mut Scratch, device: u32) -> Verdict {
    let end = external_end(packet.as_ptr(), device);
    if end == 0 {
        return onward(packet, scratch);
    }
    if rewrite::forwarded(packet, scratch).is_err() {
        return drop(DropReason::RewriteFailed, 0);
    }
    // The Pod is asked next, at this hook.
    let Scratch { parsed, to, epoch, .. } = scratch;
    scratch::hand_over(&mut parsed.flow, *to);
    scratch::hand_over(epoch, maps::epoch());
    past::to_end(end)
}

/// Addresses the frame to the Pod behind this device, if its packets may go to the Pod's end of the veth. Returns that end
/// ([`past::end_of`]), or 0. Exported, as [`external_is_own`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn external_end(skb: *mut aya_ebpf::bindings::__sk_buff, device: u32) -> u32 {
    let Some(Scratch { parsed, to, .. }) = scratch::get() else { return 0 };
    if parsed.kind != Kind::FLOW || !hop::is_on() {
        return 0;
    }
    let Some(pod) = maps::pod(device) else { return 0 };
    let Some(end) = maps::local(pod.id) else { return 0 };
    let is_own = to.dst == pod.ip4 || to.dst == pod.ip6;
    if !is_own || end.ifindex != device || !lb_common::past::goes_to_peer(end) {
        return 0;
    }
    match Packet::from_ptr(skb).store(0, &end.link) {
        Ok(()) => past::end_of(end, parsed.kind),
        Err(_) => 0,
    }
}

/// A packet from outside, or an answer that comes in by such a device, is too big for its way, which `scratch` has: its
/// first piece goes on, or its sender is told.
#[inline(never)]
fn too_big_in(packet: Packet, scratch: &mut Scratch, mtu: u16) -> Verdict {
    match cut::shorten(packet, mtu, hook::DEV_IN) {
        Ok(true) => {}
        Ok(false) => return tell(packet, scratch, Obstacle::TooBig(mtu)),
        Err(_) => return drop(DropReason::RewriteFailed, 0),
    }
    match route::answer(packet, scratch) {
        Way::Via(_) => onward(packet, scratch),
        Way::TooBig(_) | Way::Expired | Way::None => drop(DropReason::NoRoute, 0),
    }
}

/// The same for the answer of a Pod, which the stack tells what is wrong.
#[inline(never)]
pub(crate) fn too_big_out(packet: Packet, scratch: &mut Scratch, mtu: u16) -> Verdict {
    let reason = match cut::shorten(packet, mtu, hook::POD_OUT) {
        Ok(true) => match route::answer(packet, scratch) {
            Way::Via(_) => return onward(packet, scratch),
            Way::TooBig(_) | Way::Expired | Way::None => DropReason::NoRoute,
        },
        Ok(false) => return Verdict::Pass,
        Err(_) => DropReason::RewriteFailed,
    };
    Verdict::Drop(verdict::report(reason, false, 0))
}

/// To a process of this host.
#[inline(always)]
fn into_the_stack(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Verdict {
    let parsed = &scratch.parsed;
    let mut done = rewrite::destination(packet, parsed, &entry.nat_addr(), entry.nat_port());
    if entry.flags().contains(CtFlags::PORT_MAPPED) {
        done = done
            .and_then(|()| rewrite::source(packet, parsed, &entry.aux_addr(), entry.aux_port()));
    }
    match done {
        Ok(()) => Verdict::Pass,
        Err(_) => drop(DropReason::RewriteFailed, 0),
    }
}

/// An ICMP error enters the node.
#[inline(always)]
fn icmp_error(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let onward = icmp::arriving(packet, scratch);
    if let Some(ifindex) = onward.device() {
        return Verdict::Neighbour(ifindex);
    }
    match onward {
        Onward::NOWHERE => drop(DropReason::NoRoute, 0),
        Onward::FAILED => drop(DropReason::RewriteFailed, 0),
        _ => match arrive::error_past_stack(packet) {
            0 => Verdict::Pass,
            end => past::to_end(end),
        },
    }
}

#[inline(always)]
fn drop(reason: DropReason, service_id: u32) -> Verdict {
    Verdict::Drop(verdict::report(reason, true, service_id))
}

#[inline(always)]
fn refuse(packet: Packet, scratch: &mut Scratch, reason: DropReason, service_id: u32) -> Verdict {
    refuse::refused(packet, scratch, drop_index(reason, true), service_id)
}

/// Tells the sender why its packet does not go on.
#[inline(always)]
fn tell(packet: Packet, scratch: &mut Scratch, why: Obstacle) -> Verdict {
    let reason = match why {
        Obstacle::TooBig(_) => DropReason::TooBig,
        Obstacle::Expired => DropReason::TtlExceeded,
    };
    let reported = verdict::report(reason, true, 0);
    match refuse::tell(packet, scratch, why) {
        Ok(()) => Verdict::Refuse(reported),
        Err(_) => Verdict::Drop(reported),
    }
}
