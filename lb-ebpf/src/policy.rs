//! The policy stage: whether a Pod may open a flow, or be sent one.
//!
//! Asked once a flow, and again when the policies have changed since ([`is_stale`]): packets of a known flow pay for one
//! comparison. The verdict itself is `lb_common::policy::judge` on the maps.
//!
//! What policies never touch: traffic of the node itself, replies, ICMP errors about known flows, neighbor discovery.
//! The device that a packet came from shows whether the node itself sent it, never its address.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtFlags, Direction};
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::event::outcome;
use lb_common::policy::{
    Bits, Group, GroupFlags, HitKey, Judgement, PeerKey, PolicyFlags, PolicyLookup, PortKey,
    Question, guess, judge_as,
};
use lb_common::verdict::{DropReason, Outcome, judged_index};

use crate::packet::Packet;
use crate::parsed::Parsed;
use crate::scratch::{self, Asked, How, Scratch};
use crate::tracked::Tracked;
use crate::verdict::{self, Reported};
use crate::{kernel, maps, origin, trace};

/// The maps, as the evaluator reads them.
struct Maps;

impl PolicyLookup for Maps {
    #[inline(always)]
    fn ident(&self, addr: &Addr) -> Option<&Ident> {
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

/// Whether an entry was judged under other policies than those in force.
#[inline(always)]
pub(crate) fn is_stale(scratch: &Scratch, entry: Tracked) -> bool {
    entry.epoch() != scratch.epoch
}

/// Whether the flow from or to this peer may begin. Of one that may not, the packet has been reported.
#[inline(always)]
pub(crate) fn admit(
    scratch: &mut Scratch,
    (peer, port): (Addr, Be16),
    how: How,
) -> Result<(), Reported> {
    if how.contains(How::SENT) {
        origin::check()?;
    }
    if scratch.epoch == 0 {
        return Ok(());
    }
    put(&mut scratch.asked, (peer, port, how));
    settle(policy_ask())
}

/// Puts a question for [`policy_ask`].
#[inline(always)]
fn put(asked: &mut Asked, (peer, port, how): (Addr, Be16, How)) {
    scratch::hand_over(&mut asked.peer, peer);
    scratch::hand_over(&mut asked.port, port);
    scratch::hand_over(&mut asked.how, how);
}

/// What happens to a connection whose beginning was not seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// The packet goes on and leaves nothing behind.
    Once,
    /// It is taken over as one that was opened in this direction.
    From(Direction),
}

/// Decides about a TCP packet of a connection whose beginning was not seen. `direction` is the direction of the packet.
///
/// Such a packet could belong to any connection, so by itself it allows nothing. Either the policies let both ends open the
/// connection, or the kernel in the Pod's network namespace has the connection, and its listener shows which end opened it.
/// A Pod can forge that (with raw sockets, or with `TCP_REPAIR` if it has `NET_ADMIN`). Therefore a packet that the Pod sends
/// gets no more than what the Pod may send anyway, except during the time in which older connections are taken over.
#[inline(never)]
pub(crate) fn admit_met(
    packet: Packet,
    scratch: &mut Scratch,
    direction: Direction,
) -> Result<Met, Reported> {
    if direction == Direction::Egress {
        origin::check()?;
    }
    let young = is_pick_up_time(scratch.ifindex);
    if scratch.epoch == 0 || !concerns_somehow(scratch.ifindex) {
        return Ok(if young { Met::From(direction) } else { Met::Once });
    }
    let from = match (origin::opener(packet, scratch, direction), direction) {
        (origin::Opener::Unknown, _) => None,
        (origin::Opener::Peer, Direction::Egress) if !young => None,
        (origin::Opener::Peer, _) => Some(Direction::Ingress),
        (origin::Opener::Pod, _) => Some(Direction::Egress),
    };
    if let Some(from) = from {
        ask_met(scratch, direction, from);
        if policy_ask() == ALLOWED {
            return Ok(Met::From(from));
        }
        return Err(not_opened(direction));
    }
    ask_met(scratch, direction, Direction::Egress);
    if policy_ask() == ALLOWED {
        ask_met(scratch, direction, Direction::Ingress);
        if policy_ask() == ALLOWED {
            return Ok(Met::Once);
        }
    }
    Err(not_opened(direction))
}

#[inline(always)]
fn not_opened(direction: Direction) -> Reported {
    verdict::report(DropReason::NotOpened, direction == Direction::Ingress, 0)
}

/// Puts the question for a packet of a connection as if it had been opened in the direction `from`.
#[inline(always)]
fn ask_met(scratch: &mut Scratch, direction: Direction, from: Direction) {
    let Scratch { parsed, asked, .. } = scratch;
    let flow = &parsed.flow;
    // The Pod's port and the peer's, as the packet shows them.
    let (peer, own, other) = match direction {
        Direction::Egress => (flow.dst, flow.sport, flow.dport),
        Direction::Ingress => (flow.src, flow.dport, flow.sport),
    };
    let question = match from {
        Direction::Egress => (peer, other, How::NONE),
        // Towards the node it is not known which end opened the connection. The node may always reach its Pods.
        Direction::Ingress if direction == Direction::Egress => {
            (peer, own, How::INGRESS | How::FROM_HOST)
        }
        Direction::Ingress => (peer, own, How::INGRESS),
    };
    put(asked, question);
}

/// Whether connections may be older than the table, or than the Pod's first policy.
#[inline(always)]
fn is_pick_up_time(ifindex: u32) -> bool {
    let now = kernel::now();
    let before = |until: u32| until != 0 && (until.wrapping_sub(now) as i32) > 0;
    maps::settings().is_some_and(|settings| before(settings.pickup_until))
        || maps::pod(ifindex).is_some_and(|pod| before(pod.pickup_until))
}

/// Whether policies concern the Pod, in whichever direction.
#[inline(always)]
pub(crate) fn concerns_somehow(ifindex: u32) -> bool {
    let pod = maps::pod(ifindex);
    groups(pod, true).0 != 0 || groups(pod, false).0 != 0
}

/// Whether policies are enforced on what enters the Pod, or leaves it.
#[inline(always)]
pub(crate) fn concerns(scratch: &Scratch, ingress: bool) -> bool {
    scratch.epoch != 0 && groups(maps::pod(scratch.ifindex), ingress).0 != 0
}

/// Judges a known flow again, in the direction in which it was opened. `direction` is the direction of the packet.
#[inline(never)]
pub(crate) fn readmit(
    scratch: &mut Scratch,
    entry: Tracked,
    direction: Direction,
) -> Result<(), Reported> {
    readmit_by(scratch, entry, direction)?;
    entry.set_epoch(scratch.epoch);
    Ok(())
}

#[inline(always)]
fn readmit_by(scratch: &mut Scratch, entry: Tracked, direction: Direction) -> Result<(), Reported> {
    let flags = entry.flags();
    let hairpin = flags.contains(CtFlags::HAIRPIN);
    let key = &scratch.key;
    if flags.intersects(CtFlags::FORWARD | CtFlags::REPLY) && !flags.contains(CtFlags::EXTERNAL) {
        let backend = if flags.contains(CtFlags::FORWARD) {
            (entry.nat_addr(), entry.nat_port())
        } else if hairpin {
            (key.local, key.local_port)
        } else {
            (key.remote, key.remote_port)
        };
        let own = How::OWN.when(hairpin);
        // A Pod that is its own backend also sends the answers.
        let opener = if hairpin && flags.contains(CtFlags::REPLY) {
            Direction::Ingress
        } else {
            Direction::Egress
        };
        return admit(scratch, backend, own | sent(direction) | back(direction, opener));
    }
    if flags.intersects(CtFlags::INBOUND | CtFlags::EXTERNAL) {
        let peer = (key.remote, key.local_port);
        let host = How::FROM_HOST.when(flags.contains(CtFlags::FROM_HOST));
        return admit(scratch, peer, How::INGRESS | host | back(direction, Direction::Ingress));
    }
    let peer = (key.remote, key.remote_port);
    admit(scratch, peer, sent(direction) | back(direction, Direction::Egress))
}

/// Whether a packet in this direction answers a flow whose opener sends in direction `opener`.
#[inline(always)]
fn back(direction: Direction, opener: Direction) -> How {
    How::BACK.when(direction as u8 != opener as u8)
}

/// A flow may have been opened from a forged source before there was a policy.
#[inline(always)]
fn sent(direction: Direction) -> How {
    How::SENT.when(direction == Direction::Egress)
}

/// Not a number of a [`DropReason`].
const ALLOWED: u32 = 0;

/// Judges what is in `scratch.asked`: number of the reason to drop it, or [`ALLOWED`]. Counts nothing.
/// The verifier checks this function once on its own (see [`policy_judge`]). Therefore it looks up the scratch memory itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn policy_ask() -> u32 {
    let Some(scratch) = scratch::get() else { return ALLOWED };
    let Scratch { parsed, asked, hand, ifindex, ingress_ifindex, .. } = scratch;
    let ingress = asked.how.contains(How::INGRESS);
    let (group, shadow) = groups(hand.get(*ifindex), ingress);
    (asked.group, asked.ident, asked.judgement, asked.shadow) = (group, 0, 0, 0);
    asked.hit = HitKey { group, ingress: ingress as u8, ..HitKey::ZERO };
    if group == 0 && shadow == 0 {
        return ALLOWED;
    }
    let known = maps::ident(&asked.peer);
    if known.is_some_and(|known| known.flags.contains(IdentFlags::LOCAL_NODE))
        && (!ingress || asked.how.contains(How::FROM_HOST) || *ingress_ifindex == 0)
    {
        return ALLOWED;
    }
    let ident = known.map_or_else(|| maps::cidr(&asked.peer), |known| known.ident);
    asked.ident = ident;
    let what = what(parsed, asked.port);
    let own = u32::from(asked.how.contains(How::OWN));
    let mut judgement = Judgement::from_number(policy_judge(group, ident, what, own));
    if parsed.port_unknown && !judgement.denied() {
        let passes = u32::from(guess::PASSES) << 24 | what & 0xff_ffff;
        judgement = Judgement::from_number(policy_judge(group, ident, passes, own));
    }
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
fn groups(pod: Option<&PodEntry>, ingress: bool) -> (u32, u32) {
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

/// What the flow is for, as [`policy_judge`] wants it.
#[inline(always)]
fn what(parsed: &Parsed, port: Be16) -> u32 {
    let guess = if parsed.port_unknown { guess::DENIES } else { guess::NONE };
    u32::from(guess) << 24 | u32::from(parsed.flow.proto) << 16 | u32::from(port.get())
}

/// The evaluator, as a function that the verifier checks once by itself: exported, and with numbers for arguments.
/// As one of the functions that it follows from each call, it alone took a program beyond a million instructions.
/// `what` is the protocol in bits 16-23, the port, host order, in bits 0-15, and the guess in bits 24-31.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn policy_judge(group: u32, ident: u32, what: u32, own: u32) -> u32 {
    if group == 0 {
        return Judgement::ALLOWED.number();
    }
    let (proto, port) = ((what >> 16) as u8, Be16::new(what as u16));
    let question = Question { group, ident, proto, port, own: own != 0, port_unknown: false };
    judge_as(&Maps, &question, (what >> 24) as u8).number()
}

/// Why a flow is denied.
#[inline(always)]
fn reason(group: u32, judgement: Judgement) -> u32 {
    let reason = if judgement.rule().is_some() {
        DropReason::PolicyDenied
    } else {
        match maps::group(group).map_or(GroupFlags::NONE, |group| group.flags) {
            flags if flags.contains(GroupFlags::OVERFLOW) => DropReason::PolicyOverflow,
            flags if flags.contains(GroupFlags::PENDING) => DropReason::PolicyPending,
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

/// Counts the verdict, and sends an event for drops, shadow verdicts and followers of allowed flows.
#[inline(always)]
fn settle(reason: u32) -> Result<(), Reported> {
    trace::judged(reason);
    let Some(scratch) = scratch::get() else { return Ok(()) };
    let asked = &scratch.asked;
    let ingress = asked.how.contains(How::INGRESS);
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
        return Err(verdict::report_judged(scratch, reason));
    }
    let asked = &scratch.asked;
    let follow =
        maps::policy_state().is_some_and(|state| state.flags.contains(PolicyFlags::REPORT_ALLOWED));
    if follow || asked.shadow != 0 {
        verdict::report_allowed();
    }
    Ok(())
}
