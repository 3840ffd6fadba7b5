//! The policy stage: whether a Pod may open a flow, or be sent one.
//!
//! Asked once a flow, and again when the policies have changed since ([`is_stale`]): packets of a known flow pay for one
//! comparison. The verdict itself is `lb_common::policy::judge` on the maps.
//!
//! What policies never touch: traffic of the node itself, replies, ICMP errors about known flows, neighbour discovery.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{Direction, bits};
use lb_common::endpoint::{Pod, flags, ident_flags};
use lb_common::event::outcome;
use lb_common::policy::{
    Bits, Group, HitKey, Judgement, PeerKey, PortKey, Question, Tables, group_flags, identify,
    judge, state_flags,
};
use lb_common::verdict::{DropReason, Outcome, judged_index};

use crate::maps::{self, Scratch, Tracked};
use crate::packet::Packet;
use crate::verdict::{self, Reported};

/// The maps, as the evaluator reads them.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn ident(&self, addr: &Addr) -> Option<&lb_common::endpoint::Ident> {
        maps::ident(addr)
    }

    #[inline(always)]
    fn cidr(&self, addr: &Addr) -> u32 {
        maps::cidr(addr)
    }

    #[inline(always)]
    fn group(&self, index: u32) -> Option<&Group> {
        maps::group(index)
    }

    #[inline(always)]
    fn peer_bits(&self, key: &PeerKey) -> Option<&Bits> {
        maps::peer_bits(key)
    }

    #[inline(always)]
    fn port_bits(&self, key: &PortKey) -> Option<&Bits> {
        maps::port_bits(key)
    }
}

/// A flow that is judged, and what came of it. Lives in the scratch room.
pub(crate) struct Asked {
    /// The other end, as the Pod's peer really is: behind a Service the backend.
    pub(crate) peer: Addr,
    /// Destination port.
    pub(crate) port: Be16,
    /// `how::*`.
    pub(crate) how: u32,
    /// Group that judged.
    pub(crate) group: u32,
    /// Identity of the peer.
    pub(crate) ident: u32,
    /// Number of the judgement; of the shadow's, where that differs.
    pub(crate) judgement: u32,
    /// `event::outcome::*`, when the shadow's differs; else 0.
    pub(crate) shadow: u32,
    /// What is enforced, to be counted; judgement 0 = no policy had anything to say.
    pub(crate) hit: HitKey,
}

/// Bits of [`Asked::how`].
pub(crate) mod how {
    /// The flow enters the Pod.
    pub(crate) const INGRESS: u32 = 1;
    /// The peer is the Pod itself, through a Service.
    pub(crate) const OWN: u32 = 2;
    /// The packet leaves the Pod and is the first of its flow: its source is to be checked.
    pub(crate) const SENT: u32 = 4;
}

/// Whether an entry was judged under other policies than those in force.
#[inline(always)]
pub(crate) fn is_stale(scratch: &Scratch, entry: Tracked) -> bool {
    entry.epoch() != scratch.epoch
}

/// Whether the flow from or to this peer may begin. Of one that may not, the packet has been reported.
#[inline(always)]
pub(crate) fn admit(
    packet: Packet,
    scratch: &mut Scratch,
    (peer, port): (Addr, Be16),
    how: u32,
) -> Result<(), Reported> {
    if scratch.epoch == 0 {
        return Ok(());
    }
    let asked = &mut scratch.asked;
    (asked.peer, asked.port, asked.how) = (peer, port, how);
    let reason = ask(packet, scratch);
    settle(packet, scratch, reason)
}

/// Whether a flow may go on that was met in mid-flow, so that nobody knows who opened it: it may if either end could
/// open it now. That grants nothing that a new connection would not get.
#[inline(always)]
pub(crate) fn admit_either(
    packet: Packet,
    scratch: &mut Scratch,
    direction: Direction,
) -> Result<(), Reported> {
    if scratch.epoch == 0 {
        return Ok(());
    }
    let flow = &scratch.parsed.flow;
    // The Pod's port and the peer's, as the packet shows them.
    let (peer, own, other) = match direction {
        Direction::Egress => (flow.dst, flow.sport, flow.dport),
        Direction::Ingress => (flow.src, flow.dport, flow.sport),
    };
    let asked = &mut scratch.asked;
    (asked.peer, asked.port, asked.how) = match direction {
        Direction::Egress => (peer, own, how::INGRESS | how::SENT),
        Direction::Ingress => (peer, other, 0),
    };
    if ask(packet, scratch) == ALLOWED {
        return Ok(());
    }
    let asked = &mut scratch.asked;
    (asked.port, asked.how) = match direction {
        Direction::Egress => (other, how::SENT),
        Direction::Ingress => (own, how::INGRESS),
    };
    let reason = ask(packet, scratch);
    settle(packet, scratch, reason)
}

/// Judges a known flow anew, in the direction in which it was opened; `direction` is the packet's.
#[inline(never)]
pub(crate) fn readmit(
    packet: Packet,
    scratch: &mut Scratch,
    entry: Tracked,
    direction: Direction,
) -> Result<(), Reported> {
    readmit_by(packet, scratch, entry, direction)?;
    entry.set_epoch(scratch.epoch);
    Ok(())
}

#[inline(always)]
fn readmit_by(
    packet: Packet,
    scratch: &mut Scratch,
    entry: Tracked,
    direction: Direction,
) -> Result<(), Reported> {
    let flags = entry.flags();
    let hairpin = flags & bits::HAIRPIN != 0;
    let key = &scratch.key;
    if flags & (bits::FORWARD | bits::REPLY) != 0 && flags & bits::EXTERNAL == 0 {
        let backend = if flags & bits::FORWARD != 0 {
            (entry.nat_addr(), entry.nat_port())
        } else if hairpin {
            (key.local, key.local_port)
        } else {
            (key.remote, key.remote_port)
        };
        return admit(packet, scratch, backend, if hairpin { how::OWN } else { 0 });
    }
    if flags & bits::PICKED_UP != 0 {
        return admit_either(packet, scratch, direction);
    }
    if flags & (bits::INBOUND | bits::EXTERNAL) != 0 {
        let peer = (key.remote, key.local_port);
        return admit(packet, scratch, peer, how::INGRESS);
    }
    let peer = (key.remote, key.remote_port);
    admit(packet, scratch, peer, 0)
}

/// Not a number of a [`DropReason`].
const ALLOWED: u32 = 0;

/// Judges what is in `scratch.asked`: number of the reason to drop it, or [`ALLOWED`]. Counts nothing.
#[inline(never)]
fn ask(packet: Packet, scratch: &mut Scratch) -> u32 {
    let Scratch { parsed, asked, .. } = scratch;
    let ifindex = packet.ifindex();
    let ingress = asked.how & how::INGRESS != 0;
    let pod = maps::pod(ifindex);
    let (group, shadow) = groups(pod, ingress);
    (asked.group, asked.ident, asked.judgement, asked.shadow) = (group, 0, 0, 0);
    asked.hit = HitKey { group, ingress: ingress as u8, ..HitKey::ZERO };
    if asked.how & how::SENT != 0 && is_spoofed(&parsed.flow.src, ifindex, pod) {
        return DropReason::SpoofedSource as u32;
    }
    if group == 0 && shadow == 0 {
        return ALLOWED;
    }
    let Some(ident) = identify(&Maps, &asked.peer) else { return ALLOWED };
    asked.ident = ident;
    let what = u32::from(parsed.flow.proto) << 16 | u32::from(asked.port.get());
    let own = asked.how & how::OWN;
    let judgement = Judgement::from_number(policy_judge(group, ident, what, own));
    asked.judgement = judgement.number();
    asked.hit.judgement = judgement.number();
    asked.hit.outcome = outcome_of(judgement, Outcome::Deny, Outcome::Allow);
    if shadow != 0 {
        let other = Judgement::from_number(policy_judge(shadow, ident, what, own));
        if other.denied() != judgement.denied() {
            asked.judgement = other.number();
            asked.group = shadow;
            asked.shadow =
                u32::from(if other.denied() { outcome::WOULD_DENY } else { outcome::WOULD_ALLOW });
        }
    }
    if judgement.denied() { reason(group, judgement) } else { ALLOWED }
}

/// The groups of a Pod in a direction, or of one not known yet: what is enforced, and the shadow's.
#[inline(always)]
fn groups(pod: Option<&Pod>, ingress: bool) -> (u32, u32) {
    match pod {
        Some(pod) if ingress => (pod.ingress, pod.shadow_ingress),
        Some(pod) => (pod.egress, pod.shadow_egress),
        None => match maps::policy_state() {
            Some(state) if ingress => (state.pending_ingress, 0),
            Some(state) => (state.pending_egress, 0),
            None => (0, 0),
        },
    }
}

/// Whether a Pod sends from an address that is another's. Addresses that nobody has may be those of what runs in it.
#[inline(always)]
fn is_spoofed(src: &Addr, ifindex: u32, pod: Option<&Pod>) -> bool {
    if pod.is_some_and(|pod| pod.ip4 == *src || pod.ip6 == *src) {
        return false;
    }
    if pod.is_some_and(|pod| pod.flags & flags::MORE_SOURCES != 0)
        && maps::is_admitted_source(ifindex, src)
    {
        return false;
    }
    match maps::ident(src) {
        Some(known) if known.ifindex != 0 => known.ifindex != ifindex,
        Some(known) => {
            const OTHERS: u32 = ident_flags::LOCAL_NODE | ident_flags::POD | ident_flags::NODE;
            known.flags & OTHERS != 0 && known.flags & ident_flags::HERE == 0
        }
        None => false,
    }
}

/// The evaluator, as a function that the verifier checks once by itself: exported, and with numbers for arguments.
/// As one of the functions that it follows from each call, it alone took a program beyond a million instructions.
/// `what` is the protocol in bits 16-23 and the port, host order, in bits 0-15.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn policy_judge(group: u32, ident: u32, what: u32, own: u32) -> u32 {
    if group == 0 {
        return Judgement::ALLOWED.number();
    }
    let (proto, port) = ((what >> 16) as u8, Be16::new(what as u16));
    let question = Question { group, ident, proto, port, own: own != 0 };
    judge(&Maps, &question).number()
}

/// Why a flow is denied.
#[inline(always)]
fn reason(group: u32, judgement: Judgement) -> u32 {
    let reason = if judgement.rule().is_some() {
        DropReason::PolicyDenied
    } else {
        match maps::group(group).map_or(0, |group| group.flags) {
            flags if flags & group_flags::OVERFLOW != 0 => DropReason::PolicyOverflow,
            flags if flags & group_flags::PENDING != 0 => DropReason::PolicyPending,
            _ => DropReason::PolicyIsolated,
        }
    };
    reason as u32
}

/// Number of the outcome.
#[inline(always)]
fn outcome_of(judgement: Judgement, denied: Outcome, allowed: Outcome) -> u8 {
    (if judgement.denied() { denied } else { allowed }) as u8
}

/// Counts for the policies what they decided, and what those in shadow mode would have decided otherwise.
#[inline(never)]
fn count_hits(asked: &mut Asked) {
    if asked.hit.judgement != 0 {
        maps::hit(&asked.hit);
    }
    if asked.shadow != 0 && asked.judgement != 0 {
        asked.hit.group = asked.group;
        asked.hit.judgement = asked.judgement;
        let judgement = Judgement::from_number(asked.judgement);
        asked.hit.outcome = outcome_of(judgement, Outcome::WouldDeny, Outcome::WouldAllow);
        maps::hit(&asked.hit);
    }
}

/// Counts the verdict, and reports it where somebody wants to know.
#[inline(always)]
fn settle(packet: Packet, scratch: &mut Scratch, reason: u32) -> Result<(), Reported> {
    let asked = &scratch.asked;
    let ingress = asked.how & how::INGRESS != 0;
    if reason == DropReason::SpoofedSource as u32 {
        return Err(verdict::report_judged(packet, scratch, reason));
    }
    let tier = Judgement::from_number(asked.judgement).tier();
    let what = match asked.shadow as u8 {
        outcome::WOULD_DENY => Outcome::WouldDeny,
        outcome::WOULD_ALLOW => Outcome::WouldAllow,
        _ if reason != ALLOWED => Outcome::Deny,
        _ => Outcome::Allow,
    };
    maps::count_index(judged_index(what, tier, ingress));
    count_hits(&mut scratch.asked);
    if reason != ALLOWED {
        return Err(verdict::report_judged(packet, scratch, reason));
    }
    let asked = &scratch.asked;
    let follow =
        maps::policy_state().is_some_and(|state| state.flags & state_flags::REPORT_ALLOWED != 0);
    if follow || asked.shadow != 0 {
        verdict::report_allowed(packet, scratch);
    }
    Ok(())
}
