//! Verdict → return code of a tc program. The one place where a drop is counted and reported.

use lb_common::event::{FlowEvent, outcome};
use lb_common::verdict::{DropReason, drop_index};

use crate::packet::Packet;
use crate::scratch::{self, How, Scratch};
use crate::{event, maps, trace};

/// Go on to the next program (`TCX_NEXT`, for clsact `TC_ACT_UNSPEC`): others on the hook still run.
pub(crate) const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// What happens to a packet.
#[must_use]
pub(crate) enum Verdict {
    /// Deliver it, rewritten or not.
    Pass,
    /// Do not deliver it; made by [`report`] only.
    Drop(Reported),
    /// Send it back to the Pod it came from: a hairpin.
    Back,
    /// Send it out of this device, the host's end of another Pod's veth.
    Local(u32),
    /// Let it come in at the other end of this device, the host's end of another Pod's veth, past `pod_in`.
    Peer(u32),
    /// Hand it to a neighbour on this device, past the IP stack.
    Neighbour(u32),
    /// Hand it to the next hop that [`Packet::redirect_hop`] noted, whose return code this is.
    NextHop(i32),
    /// It does not fit its way past the IP stack, whose MTU this is: whoever decides makes another verdict of it.
    TooBig(u32),
    /// Not delivered; the packet was turned into the refusal that goes back to the sender.
    Refuse(Reported),
}

impl Verdict {
    /// Whether the packet does not go on: the verdict of a Pod that receives it, for a function that can return no other type.
    #[inline(always)]
    pub(crate) const fn is_drop(&self) -> u32 {
        !matches!(self, Self::Pass) as u32
    }

    /// The way to the Pod behind this device, unless it does not receive the packet ([`Self::is_drop`]), which was reported.
    #[inline(always)]
    pub(crate) const fn to_peer(ifindex: u32, dropped: u32) -> Self {
        if dropped == 0 { Self::Peer(ifindex) } else { Self::Drop(Reported(())) }
    }

    /// The number of the verdict in the log of a trace build.
    #[inline(always)]
    const fn number(&self) -> u32 {
        match self {
            Self::Pass => 0,
            Self::Drop(_) => 1,
            Self::Back => 2,
            Self::Neighbour(_) => 3,
            Self::NextHop(_) => 4,
            Self::TooBig(_) => 5,
            Self::Refuse(_) => 6,
            Self::Local(_) => 7,
            Self::Peer(_) => 8,
        }
    }
}

/// Proof that a drop was counted. Its field is private to this module.
pub(crate) struct Reported(());

/// Counts a drop of the packet in `scratch` and, for a sample, emits its event. `ingress` is the direction that
/// the Pod sees. `service_id` is 0 if the Service port is unknown.
#[inline(always)]
pub(crate) fn report(reason: DropReason, ingress: bool, service_id: u32) -> Reported {
    report_index(drop_index(reason, ingress), service_id)
}

/// The same, with reason and direction as [`drop_index`] joins them.
#[inline(always)]
pub(crate) fn report_index(index: u32, service_id: u32) -> Reported {
    trace::dropped(index);
    verdict_report(index, service_id);
    Reported(())
}

/// Counts a packet that policies refuse, as `scratch.asked` has it; `reason` is the number of a [`DropReason`].
#[inline(always)]
pub(crate) fn report_judged(scratch: &Scratch, reason: u32) -> Reported {
    let ingress = u32::from(scratch.asked.how.contains(How::INGRESS));
    trace::dropped(reason * 2 + ingress);
    maps::count_index(reason * 2 + ingress);
    verdict_tell(reason);
    Reported(())
}

/// Reports a flow that policies allow, to clients that follow flows and for policies in shadow mode.
#[inline(always)]
pub(crate) fn report_allowed() {
    verdict_tell(0);
}

/// Sends the event of a flow that was judged. As [`verdict_report`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn verdict_tell(reason: u32) -> u32 {
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { parsed, asked, nat, event, ifindex, .. } = scratch;
    let flow = &parsed.flow;
    let ingress = asked.how.contains(How::INGRESS);
    let back = asked.how.contains(How::BACK);
    // The source is what opened the flow, also where an answer is judged.
    let (src, sport) = if back { (&flow.dst, flow.dport) } else { (&flow.src, flow.sport) };
    // A Pod that is its own backend: the packets may show the address that stands for it as client.
    let src = if asked.how.contains(How::OWN) { &asked.peer } else { src };
    let (dst, dport) = match (ingress, back) {
        (true, false) => (&flow.dst, flow.dport),
        (true, true) => (&flow.src, flow.sport),
        // Behind a Service the backend, not what the packet still shows.
        (false, _) => (&asked.peer, asked.port),
    };
    let service_id = if asked.how.contains(How::SERVICE) { nat.service_id } else { 0 };
    let shown = match asked.shadow {
        0 if reason == 0 => outcome::ALLOWED,
        0 => outcome::DROPPED,
        shadow => shadow as u8,
    };
    *event = FlowEvent {
        src: *src,
        dst: *dst,
        sport,
        dport,
        proto: flow.proto,
        reason: reason as u8,
        ingress: u8::from(ingress),
        outcome: shown,
        ifindex: *ifindex,
        service_id,
        group: asked.group,
        judgement: asked.judgement,
        ident: asked.ident,
        ..FlowEvent::ZERO
    };
    event::emit(event);
    0
}

/// The return code for `verdict`.
#[inline(always)]
pub(crate) fn to_tc(packet: Packet, verdict: Verdict) -> i32 {
    trace::decided(verdict.number());
    match verdict {
        Verdict::Pass | Verdict::TooBig(_) => NEXT,
        Verdict::Drop(Reported(())) => SHOT,
        Verdict::Neighbour(ifindex) => packet.redirect_neigh(ifindex),
        Verdict::NextHop(code) => code,
        Verdict::Local(ifindex) => packet.redirect(ifindex),
        Verdict::Peer(ifindex) => packet.redirect_peer(ifindex),
        Verdict::Back | Verdict::Refuse(Reported(())) => packet.redirect(packet.ifindex()),
    }
}

/// Counts a drop of the packet in the scratch memory, and sends its event. The verifier checks this function once on its own.
/// Therefore it looks up the scratch memory itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn verdict_report(index: u32, service_id: u32) -> u32 {
    maps::count_index(index);
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { parsed, event, ifindex, .. } = scratch;
    let flow = &parsed.flow;
    *event = FlowEvent {
        src: flow.src,
        dst: flow.dst,
        sport: flow.sport,
        dport: flow.dport,
        proto: flow.proto,
        reason: (index / 2) as u8,
        ingress: (index % 2) as u8,
        ifindex: *ifindex,
        service_id,
        ..FlowEvent::ZERO
    };
    event::emit(event);
    0
}
