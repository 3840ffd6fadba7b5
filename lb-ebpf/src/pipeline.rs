//! The packet arrow, top to bottom: parse → conntrack lookup → service → policy → conntrack commit → rewrite →
//! verdict. A conntrack hit goes straight to rewrite, unless the policies have changed since it was judged. Policy
//! stands between service and commit, so that it judges the backend and not the ClusterIP.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtFlags, Direction, scope};
use lb_common::flow::{Flow, tcp};
use lb_common::fragment::hook;
use lb_common::service::{Frontend, FrontendFlags};
use lb_common::verdict::{Counter, DropReason, drop_index};

use crate::conntrack::{self, Claim, Committed};
use crate::open::{self, Opener};
use crate::origin::{self, Addressee};
use crate::packet::{Packet, Tag};
use crate::parsed::{self, Kind, Parsed};
use crate::policy::{self, Met};
use crate::scratch::{self, How, Nat, Scratch, Target};
use crate::service::{self, Client, Destination};
use crate::trace::Program;
use crate::tracked::{self, Tracked};
use crate::verdict::{self, Verdict};
use crate::{
    bridge, closing, external, fragment, hop, icmp, kernel, maps, parse, past, refuse, rewrite,
    trace,
};

/// A packet leaves the Pod.
#[inline(always)]
pub(crate) fn pod_out(packet: Packet) -> Verdict {
    to_peer(packet, leave(packet))
}

#[inline(always)]
fn leave(packet: Packet) -> Verdict {
    let Some(scratch) = packet.scratch() else { return Verdict::Pass };
    scratch.epoch = maps::epoch();
    // One for the priority alone changes nothing, and stays with the packet.
    let tag = packet.tag();
    let kind = parse::parse(packet, &mut scratch.parsed, parsed::L3);
    trace::parsed(Program::PodOut, kind);
    if let Err(reported) = origin::check_link(packet, scratch.ifindex) {
        return Verdict::Drop(reported);
    }
    match kind {
        _ if tag == Tag::Vlan => return not_understood(scratch, Kind::NOT_IP, Direction::Egress),
        Kind::FLOW => {}
        Kind::FIRST_FRAGMENT => fragment::remember(packet, scratch, hook::POD_OUT),
        Kind::LATER_FRAGMENT => {
            if !fragment::recall(packet, scratch, hook::POD_OUT) {
                return fragment_out(scratch);
            }
        }
        Kind::ICMP_ERROR => return icmp_error(packet, scratch, Direction::Egress),
        Kind::UNTRACKED => return untracked(scratch, How::SENT),
        Kind::ARP => return checked(origin::check_arp(packet, scratch)),
        Kind::NEIGHBOR => {
            return match origin::check_neighbor(packet, scratch) {
                Ok(true) => Verdict::Pass,
                Ok(false) => untracked(scratch, How::SENT),
                Err(reported) => Verdict::Drop(reported),
            };
        }
        // Unreadable, opaque, no IP, bad addresses.
        _ => return not_understood(scratch, kind, Direction::Egress),
    }
    let now = kernel::now();
    let Scratch { parsed, key, .. } = scratch;
    *key = conntrack::key_out(&parsed.flow, scratch.ifindex);
    let Some(entry) = conntrack::find(scratch) else { return open_out(packet, scratch, now) };
    let Scratch { parsed, .. } = scratch;
    if conntrack::starts_over(entry, parsed, Direction::Egress, now)
        && !conntrack::needs_other_port(entry, parsed, now)
    {
        return open_out(packet, scratch, now);
    }
    if policy::is_stale(scratch, entry)
        && let Err(reported) = policy::readmit(scratch, entry, Direction::Egress)
    {
        return Verdict::Drop(reported);
    }
    past::review(scratch, entry, now);
    let Scratch { parsed, .. } = scratch;
    let flags = entry.flags();
    if flags.contains(CtFlags::FORWARD) {
        return forward(packet, scratch, entry, now);
    }
    if flags.contains(CtFlags::EXTERNAL) {
        return match external::reply_out(packet, scratch, entry, now) {
            Verdict::TooBig(mtu) => external::too_big_out(packet, scratch, mtu as u16),
            verdict => verdict,
        };
    }
    if flags.contains(CtFlags::REPLY) {
        return reply_out(packet, scratch, entry, now);
    }
    // A flow without an answer may have begun before its destination became a Service.
    let flow = &parsed.flow;
    if !flags.intersects(CtFlags::SEEN_IN | CtFlags::PICKED_UP)
        && !matches!(service::lookup(flow.dst, flow.dport, flow.proto), Destination::Plain)
    {
        return open_out(packet, scratch, now);
    }
    let way = past::way_of(entry);
    conntrack::note_plain(packet, scratch, entry, Direction::Egress, now);
    match way {
        Some(way) => past::send(packet, scratch, entry, way),
        None => Verdict::Pass,
    }
}

/// A packet enters the Pod.
#[inline(always)]
pub(crate) fn pod_in(packet: Packet) -> Verdict {
    let Some(scratch) = packet.scratch() else { return Verdict::Pass };
    scratch.epoch = maps::epoch();
    let kind = parse::parse(packet, &mut scratch.parsed, parsed::L3);
    trace::parsed(Program::PodIn, kind);
    match kind {
        _ if packet.tag() == Tag::Vlan => {
            return not_understood(scratch, Kind::NOT_IP, Direction::Ingress);
        }
        Kind::FLOW => {}
        Kind::FIRST_FRAGMENT => fragment::remember(packet, scratch, hook::POD_IN),
        Kind::LATER_FRAGMENT => {
            if !fragment::recall(packet, scratch, hook::POD_IN) {
                return untracked(scratch, How::INGRESS);
            }
        }
        Kind::ICMP_ERROR => return icmp_error(packet, scratch, Direction::Ingress),
        Kind::UNTRACKED => return untracked(scratch, How::INGRESS),
        Kind::ARP | Kind::NEIGHBOR => return Verdict::Pass,
        // Unreadable, opaque, no IP, bad addresses.
        _ => return not_understood(scratch, kind, Direction::Ingress),
    }
    receive(packet, scratch)
}

/// The verdict on a packet, after the one of the hook that it came to: if it goes past the hook of the Pod that receives it, what
/// [`pod_in`] would do is done here, where no more than this is on the stack. The scratch memory has the packet as it is now.
#[inline(always)]
pub(crate) fn to_peer(packet: Packet, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Peer(ifindex) => {
            Verdict::to_peer(ifindex, pipeline_receive(packet.as_ptr(), ifindex))
        }
        other => other,
    }
}

/// A packet goes to the Pod behind `ifindex` past the Pod's hook. Returns whether the Pod does not receive it. Exported, so that
/// the verifier checks it once by itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pipeline_receive(skb: *mut aya_ebpf::bindings::__sk_buff, ifindex: u32) -> u32 {
    let Some(scratch) = scratch::get() else { return 1 };
    trace::parsed(Program::PodIn, Kind::FLOW);
    scratch.cross(ifindex);
    receive(Packet::from_ptr(skb), scratch).is_drop()
}

/// A packet of a flow enters the Pod.
#[inline(always)]
fn receive(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let now = kernel::now();
    let Scratch { parsed, key, .. } = scratch;
    *key = conntrack::key_in(&parsed.flow, scratch.ifindex);
    let Some(entry) = conntrack::find(scratch) else { return open_in(packet, scratch, now) };
    let flags = entry.flags();
    // Nothing answers by the address that the Pod dialed: the programs put that on, and only what the Pod sent comes back
    // with it: to itself, or as a refusal.
    if flags.contains(CtFlags::FORWARD) && !is_back(scratch) {
        return Verdict::Drop(verdict::report(DropReason::SpoofedSource, true, 0));
    }
    // `dev_in` made the entry of a flow from outside before its first packet arrived here. A packet that opens a flow
    // belongs to another one, directly to the Pod, from a port that its client had used through a Service.
    let plain =
        !flags.intersects(CtFlags::FORWARD | CtFlags::REPLY) || flags.contains(CtFlags::EXTERNAL);
    if plain && conntrack::starts_over(entry, &scratch.parsed, Direction::Ingress, now) {
        return open_in(packet, scratch, now);
    }
    if policy::is_stale(scratch, entry)
        && let Err(reported) = policy::readmit(scratch, entry, Direction::Ingress)
    {
        return Verdict::Drop(reported);
    }
    if !flags.intersects(CtFlags::FORWARD | CtFlags::REPLY) {
        if flags.contains(CtFlags::PAST) {
            hop::arrived(entry);
        }
        conntrack::note_plain(packet, scratch, entry, Direction::Ingress, now);
        return Verdict::Pass;
    }
    conntrack::note(packet, scratch, entry, Direction::Ingress, now);
    if flags.only(CtFlags::REPLY | CtFlags::HAIRPIN | CtFlags::EXTERNAL) == CtFlags::REPLY {
        return reply_in(packet, scratch, entry);
    }
    if flags.contains(CtFlags::EXTERNAL) {
        closing::arrived(packet, scratch, entry, Direction::Ingress);
    }
    Verdict::Pass
}

/// The first packet of a flow that enters the Pod.
#[inline(never)]
fn open_in(packet: Packet, scratch: &mut Scratch, now: u32) -> Verdict {
    let flow = &scratch.parsed.flow;
    let peer = (flow.src, flow.dport);
    let addressee = origin::addressee();
    if addressee == Addressee::OTHER {
        return not_for_pod();
    }
    if conntrack::is_mid_flow(&scratch.parsed) {
        let refusal = scratch.parsed.tcp_flags & tcp::RST != 0 && is_back(scratch);
        return if refusal {
            Verdict::Pass
        } else {
            meet(packet, scratch, Direction::Ingress, now)
        };
    }
    if let Err(reported) = policy::admit(scratch, peer, How::INGRESS) {
        return Verdict::Drop(reported);
    }
    // A packet for an unknown host leaves no entry: it would let an answer pass from an address that is not the Pod's.
    if addressee == Addressee::POD
        && conntrack::commit_plain(scratch, Direction::Ingress, now) == Committed::OverBudget
    {
        return Verdict::Drop(verdict::report(DropReason::PodBudget, true, 0));
    }
    Verdict::Pass
}

/// Whether what enters the Pod is what it has sent: the programs sent it back.
#[inline(always)]
fn is_back(scratch: &Scratch) -> bool {
    scratch.ingress_ifindex == scratch.ifindex
}

/// Handles a TCP packet of a connection whose beginning was not seen and that does not go to a Service.
#[inline(always)]
fn meet(packet: Packet, scratch: &mut Scratch, direction: Direction, now: u32) -> Verdict {
    match policy::admit_met(packet, scratch, direction) {
        Ok(Met::From(from)) => {
            if scratch.parsed.tcp_flags & tcp::FIN == 0 {
                conntrack::commit_met(scratch, direction, from, now);
            }
            Verdict::Pass
        }
        Ok(Met::Once) => Verdict::Pass,
        Err(reported) => Verdict::Drop(reported),
    }
}

#[inline(always)]
fn not_for_pod() -> Verdict {
    Verdict::Drop(verdict::report(DropReason::NotForPod, true, 0))
}

#[inline(always)]
fn checked(result: Result<(), verdict::Reported>) -> Verdict {
    match result {
        Ok(()) => Verdict::Pass,
        Err(reported) => Verdict::Drop(reported),
    }
}

/// A packet that no rule can be asked about. Whatever the policies say it does not pass: receivers, and the node where it
/// puts fragments together, may understand it, and then it was for a neighbor, a tunnel or a port that were never asked
/// about. AH and ESP alone pass, as far as no policy concerns them.
#[inline(never)]
fn not_understood(scratch: &mut Scratch, kind: Kind, direction: Direction) -> Verdict {
    let ingress = direction == Direction::Ingress;
    let reason = match kind {
        Kind::NOT_IP => DropReason::NotIp,
        Kind::BAD_ADDRESS => DropReason::BadAddress,
        Kind::OPAQUE => return opaque(scratch, ingress),
        _ => DropReason::Unreadable,
    };
    Verdict::Drop(verdict::report(reason, ingress, 0))
}

/// AH or ESP: it has ends, and nothing else that a rule could be about.
#[inline(always)]
fn opaque(scratch: &mut Scratch, ingress: bool) -> Verdict {
    let node = if ingress {
        if origin::addressee() == Addressee::OTHER {
            return not_for_pod();
        }
        // A fragment that was put together and cut again has lost the device that it came in by.
        scratch.ingress_ifindex == 0 && origin::is_this_node(&scratch.parsed.flow.src)
    } else {
        if let Err(reported) = origin::check() {
            return Verdict::Drop(reported);
        }
        origin::is_this_node(&scratch.parsed.flow.dst)
    };
    if node || !policy::concerns(scratch, ingress) {
        return Verdict::Pass;
    }
    Verdict::Drop(verdict::report(DropReason::Unreadable, ingress, 0))
}

/// A packet of no flow. Policies judge each by itself.
#[inline(never)]
fn untracked(scratch: &mut Scratch, how: How) -> Verdict {
    if how.contains(How::INGRESS) && origin::addressee() == Addressee::OTHER {
        return not_for_pod();
    }
    let flow = &scratch.parsed.flow;
    let peer = if how.contains(How::INGRESS) { flow.src } else { flow.dst };
    match policy::admit(scratch, (peer, flow.dport), how) {
        Ok(()) => Verdict::Pass,
        Err(reported) => Verdict::Drop(reported),
    }
}

/// A packet of a known flow to a Service.
#[inline(always)]
fn forward(packet: Packet, scratch: &mut Scratch, entry: Tracked, now: u32) -> Verdict {
    let Scratch { parsed, .. } = scratch;
    let keeps = service::health(entry.backend_id(), entry.backend_gen()).keeps(parsed.flow.proto);
    if !keeps || conntrack::is_half(scratch, entry, now) {
        return moved(packet, scratch, now);
    }
    conntrack::note(packet, scratch, entry, Direction::Egress, now);
    closing::after(packet, scratch, entry, Direction::Egress, rewrite_forward)
}

/// Towards the backend.
#[inline(always)]
fn rewrite_forward(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Verdict {
    let Scratch { parsed, .. } = scratch;
    let flags = entry.flags();
    let mut rewritten = rewrite::destination(packet, parsed, &entry.nat_addr(), entry.nat_port());
    if flags.intersects(CtFlags::HAIRPIN | CtFlags::PORT_MAPPED) {
        rewritten = rewritten.and_then(|()| rewrite_client(packet, parsed, entry));
    }
    if rewritten.is_ok() && flags.only(CtFlags::PAST | CtFlags::HAIRPIN) == CtFlags::PAST {
        return past_stack(packet, scratch, entry);
    }
    finish(packet, rewritten.is_ok(), flags.contains(CtFlags::HAIRPIN))
}

/// A translated packet of a flow that goes past netfilter.
#[inline(never)]
fn past_stack(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Verdict {
    if let Some(way) = past::way_of(entry) {
        // The receiver's half of the programs may follow.
        let flow = &mut scratch.parsed.flow;
        (flow.dst, flow.dport) = (entry.nat_addr(), entry.nat_port());
        flow.sport = entry.aux_port();
        return past::send(packet, scratch, entry, way);
    }
    // Netfilter may have been turned on for the bridge since.
    match bridge::of(packet, scratch.parsed.v4) {
        0 => Verdict::Pass,
        bridge => Verdict::Neighbour(bridge),
    }
}

/// The client's side of a flow towards its backend, where it changes: the stand-in of a hairpin, a mapped port.
#[inline(never)]
fn rewrite_client(
    packet: Packet,
    parsed: &Parsed,
    entry: Tracked,
) -> Result<(), crate::packet::HelperError> {
    let hairpin = entry.flags().contains(CtFlags::HAIRPIN);
    let src = if hairpin { entry.aux_addr() } else { parsed.flow.src };
    rewrite::source(packet, parsed, &src, entry.aux_port())
}

/// A packet of a known flow whose backend has left: a connection is reset, anything else chooses again.
#[inline(always)]
fn moved(packet: Packet, scratch: &mut Scratch, now: u32) -> Verdict {
    if conntrack::is_mid_flow(&scratch.parsed) {
        return refuse::refused(packet, scratch, drop_index(DropReason::BackendGone, false), 0);
    }
    maps::count(Counter::FlowMoved);
    open_out(packet, scratch, now)
}

/// A packet that leaves the Pod on the tuple of a reply entry.
#[inline(never)]
fn reply_out(packet: Packet, scratch: &mut Scratch, entry: Tracked, now: u32) -> Verdict {
    if entry.flags().contains(CtFlags::HAIRPIN) {
        // The Pod answers itself: both ends go back to what the Pod as client sees.
        conntrack::note(packet, scratch, entry, Direction::Egress, now);
        let Scratch { parsed, .. } = scratch;
        let rewritten = rewrite::source(packet, parsed, &entry.nat_addr(), entry.nat_port())
            .and_then(|()| {
                rewrite::destination(packet, parsed, &entry.aux_addr(), entry.aux_port())
            });
        return finish(packet, rewritten.is_ok(), true);
    }
    straight(packet, scratch, now)
}

/// The Pod dials a backend itself, from a port that it uses to the same backend through a Service: the flow gets
/// another port, or its replies would be taken for the Service's. Or from one that it used so until now.
#[inline(always)]
fn straight(packet: Packet, scratch: &mut Scratch, now: u32) -> Verdict {
    const TRIES: u32 = 3;
    scratch.key.scope = scope::STRAIGHT;
    let known = conntrack::find(scratch);
    let Scratch { parsed, .. } = scratch;
    if let Some(entry) = known
        && !conntrack::starts_over(entry, parsed, Direction::Egress, now)
    {
        if policy::is_stale(scratch, entry)
            && let Err(reported) = policy::readmit(scratch, entry, Direction::Egress)
        {
            return Verdict::Drop(reported);
        }
        // Not by `forward`: there is no backend that could leave, and without the way to `open_out` from here the stacks
        // of the calls stay within 512 bytes on kernels that round each up to 32.
        conntrack::note(packet, scratch, entry, Direction::Egress, now);
        return rewrite_forward(packet, scratch, entry);
    }
    if conntrack::is_mid_flow(parsed) {
        return match policy::admit_met(packet, scratch, Direction::Egress) {
            Ok(_) => Verdict::Pass,
            Err(reported) => Verdict::Drop(reported),
        };
    }
    let peer = (parsed.flow.dst, parsed.flow.dport);
    if let Err(reported) = policy::admit(scratch, peer, How::SENT) {
        return Verdict::Drop(reported);
    }
    if conntrack::ct_over_budget(0) != 0 {
        return drop_out(DropReason::PodBudget, 0);
    }
    let Scratch { parsed, .. } = scratch;
    let Flow { dst: addr, dport: port, .. } = parsed.flow;
    let target = Target { addr, port, id: 0, generation: 0 };
    let flags = CtFlags::FORWARD | CtFlags::PORT_MAPPED;
    let mut attempt = 0;
    while attempt < TRIES {
        attempt += 1;
        scratch.nat = Nat {
            target,
            stand_in: Addr::NONE,
            way: Addr::NONE,
            port,
            flags,
            scope: scope::STRAIGHT,
            veth: 0,
            service_id: 0,
            readiest: 0,
            full: false,
        };
        match conntrack::claim(now) {
            Claim::Taken => {}
            Claim::Full => scratch.nat.full = true,
            Claim::Done => return commit(packet, scratch, false, now),
        }
    }
    let reason =
        if scratch.nat.full { DropReason::ConntrackFull } else { DropReason::TupleExhausted };
    drop_out(reason, 0)
}

/// A reply of a backend: shows the frontend as its source.
#[inline(always)]
fn reply_in(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Verdict {
    let Scratch { parsed, .. } = scratch;
    let mut rewritten = rewrite::source(packet, parsed, &entry.nat_addr(), entry.nat_port());
    if entry.flags().contains(CtFlags::PORT_MAPPED) {
        rewritten = rewritten.and_then(|()| {
            rewrite::destination(packet, parsed, &parsed.flow.dst, entry.aux_port())
        });
    }
    match rewritten {
        Ok(()) => Verdict::Pass,
        Err(_) => Verdict::Drop(verdict::report(DropReason::RewriteFailed, true, 0)),
    }
}

/// The first packet of a flow that leaves the Pod.
#[inline(never)]
fn open_out(packet: Packet, scratch: &mut Scratch, now: u32) -> Verdict {
    let flow = &scratch.parsed.flow;
    match service::lookup(flow.dst, flow.dport, flow.proto) {
        Destination::Frontend(frontend) | Destination::Empty(frontend)
            if frontend.flags.contains(FrontendFlags::SOCKET_ONLY) =>
        {
            Verdict::Pass
        }
        Destination::Frontend(frontend) => translate(packet, scratch, frontend, now),
        Destination::Empty(frontend) if frontend.flags.contains(FrontendFlags::ELSEWHERE) => {
            drop_out(DropReason::NoLocalEndpoints, frontend.service_id)
        }
        Destination::Empty(frontend) => refuse::refused(
            packet,
            scratch,
            drop_index(DropReason::NoEndpoints, false),
            frontend.service_id,
        ),
        Destination::UndefinedPort => {
            refuse::refused(packet, scratch, drop_index(DropReason::UndefinedPort, false), 0)
        }
        Destination::Unallocated => drop_out(DropReason::UnallocatedIp, 0),
        Destination::Plain => plain_out(packet, scratch, now),
    }
}

/// The first packet of a flow that leaves the Pod for no Service.
#[inline(always)]
fn plain_out(packet: Packet, scratch: &mut Scratch, now: u32) -> Verdict {
    if conntrack::is_mid_flow(&scratch.parsed) {
        return meet(packet, scratch, Direction::Egress, now);
    }
    let flow = &scratch.parsed.flow;
    let peer = (flow.dst, flow.dport);
    if let Err(reported) = policy::admit(scratch, peer, How::SENT) {
        return Verdict::Drop(reported);
    }
    match conntrack::commit_plain(scratch, Direction::Egress, now) {
        Committed::OverBudget => drop_out(DropReason::PodBudget, 0),
        Committed::Not => Verdict::Pass,
        Committed::New => {
            let to = scratch.parsed.flow;
            if past::opens(scratch, to, false, now) || hop::opens(packet) {
                past::first(packet, scratch)
            } else {
                Verdict::Pass
            }
        }
    }
}

/// The first packet of a flow to a Service.
#[inline(always)]
fn translate(packet: Packet, scratch: &mut Scratch, frontend: &Frontend, now: u32) -> Verdict {
    let service_id = frontend.service_id;
    if conntrack::is_mid_flow(&scratch.parsed) {
        if maps::is_beside_another_proxy() {
            return plain_out(packet, scratch, now);
        }
        return refuse::refused(
            packet,
            scratch,
            drop_index(DropReason::UnknownFlow, false),
            service_id,
        );
    }
    if conntrack::ct_over_budget(0) != 0 {
        return drop_out(DropReason::PodBudget, service_id);
    }
    let client = Client { addr: scratch.parsed.flow.src, outside: false, hash: 0 };
    if !service::admits(frontend, &client.addr) {
        return drop_out(DropReason::SourceRange, service_id);
    }
    let by_stack = frontend.flags.contains(FrontendFlags::BY_STACK);
    scratch::hand_over(&mut scratch.by_stack, u32::from(by_stack));
    match open::to_backend::<Pod>(packet, scratch, (frontend, &client), CtFlags::FORWARD, now) {
        Ok(()) => commit(packet, scratch, by_stack, now),
        Err(verdict) => verdict,
    }
}

/// A Pod opens a flow to a Service.
struct Pod;

impl Opener for Pod {
    #[inline(always)]
    fn place(packet: Packet, scratch: &mut Scratch) -> Result<(), Verdict> {
        let Scratch { parsed, nat, .. } = scratch;
        scratch::hand_over(&mut nat.way, Addr::NONE);
        scratch::hand_over(&mut nat.stand_in, Addr::NONE);
        if nat.target.addr == parsed.flow.src {
            nat.flags |= CtFlags::HAIRPIN;
            nat.stand_in = kernel::hairpin_addr(parsed.v4);
        }
        nat.scope = scope::POD;
        nat.veth = 0;
        let own = How::OWN.when(nat.flags.contains(CtFlags::HAIRPIN));
        let backend = (nat.target.addr, nat.target.port);
        policy::admit(scratch, backend, own | How::SENT | How::SERVICE).map_err(Verdict::Drop)?;
        if own == How::NONE && hop::opens_to_target(packet) {
            scratch.nat.flags |= CtFlags::PAST;
        }
        Ok(())
    }

    #[inline(always)]
    fn claim(_: &Scratch, now: u32) -> Claim {
        conntrack::claim(now)
    }

    #[inline(always)]
    fn drop(reason: DropReason, service_id: u32) -> Verdict {
        drop_out(reason, service_id)
    }
}

/// Commits the flow and sends its first packet on.
#[inline(always)]
fn commit(packet: Packet, scratch: &mut Scratch, by_stack: bool, now: u32) -> Verdict {
    if !scratch.nat.flags.intersects(CtFlags::HAIRPIN | CtFlags::PAST) {
        let Scratch { parsed, nat, .. } = scratch;
        let Target { addr: dst, port: dport, .. } = nat.target;
        let to = Flow { dst, dport, sport: nat.port, ..parsed.flow };
        if past::opens(scratch, to, by_stack, now) {
            scratch.nat.flags |= CtFlags::PAST;
            scratch.nat.way = scratch.way;
        } else if bridge::leads_to_target(packet, scratch) {
            scratch.nat.flags |= CtFlags::PAST;
        }
    }
    let entry = conntrack::commit(scratch, Direction::Egress, now);
    rewrite_forward(packet, scratch, entry)
}

/// After a rewrite: on with the packet, or straight back to its Pod.
#[inline(always)]
fn finish(packet: Packet, rewritten: bool, back: bool) -> Verdict {
    if !rewritten {
        return drop_out(DropReason::RewriteFailed, 0);
    }
    if !back {
        return Verdict::Pass;
    }
    match rewrite::swap_macs(packet) {
        Ok(()) => Verdict::Back,
        Err(_) => drop_out(DropReason::RewriteFailed, 0),
    }
}

/// An ICMP error belongs to the flow of the packet that it quotes, and is translated with it.
#[inline(always)]
fn icmp_error(packet: Packet, scratch: &mut Scratch, direction: Direction) -> Verdict {
    if direction == Direction::Egress
        && let Err(reported) = origin::check()
    {
        return Verdict::Drop(reported);
    }
    if direction == Direction::Ingress && is_back(scratch) {
        return Verdict::Pass;
    }
    let onward = icmp::translate(packet, scratch, direction);
    if let Some(ifindex) = onward.device() {
        return Verdict::Neighbour(ifindex);
    }
    let ingress = direction == Direction::Ingress;
    if onward == icmp::Onward::FORGED {
        return Verdict::Drop(verdict::report(DropReason::ForgedError, ingress, 0));
    }
    if onward == icmp::Onward::UNKNOWN {
        scratch.parsed.flow.dport = Be16::new(0);
        return untracked(scratch, if ingress { How::INGRESS } else { How::SENT });
    }
    if onward != icmp::Onward::FAILED {
        return if ingress { Verdict::Pass } else { error_out(packet, scratch) };
    }
    Verdict::Drop(verdict::report(DropReason::RewriteFailed, ingress, 0))
}

/// An ICMP error of a Pod about a known flow, whose key is in the scratch memory, goes where that flow goes: netfilter has not
/// seen it.
#[inline(always)]
fn error_out(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let Some(entry) = tracked::get(&scratch.key) else { return Verdict::Pass };
    match past::way_of(entry) {
        Some(way) => past::send(packet, scratch, entry, way),
        None => Verdict::Pass,
    }
}

/// A later fragment that leaves the Pod, of a datagram whose first one was not seen: it cannot be translated.
#[inline(never)]
fn fragment_out(scratch: &mut Scratch) -> Verdict {
    let flow = &scratch.parsed.flow;
    match service::lookup(flow.dst, flow.dport, flow.proto) {
        Destination::Plain => untracked(scratch, How::SENT),
        Destination::UndefinedPort
        | Destination::Unallocated
        | Destination::Empty(_)
        | Destination::Frontend(_) => drop_out(DropReason::FragmentUnknown, 0),
    }
}

#[inline(always)]
fn drop_out(reason: DropReason, id: u32) -> Verdict {
    Verdict::Drop(verdict::report(reason, false, id))
}
