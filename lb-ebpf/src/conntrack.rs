//! The stages around the map `ct`: keys, new entries, and finding a free tuple for a translated flow.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{self, CtEntry, CtFlags, CtKey, Direction, scope};
use lb_common::flow::{Flow, proto, tcp};
use lb_common::hash;
use lb_common::past::PastWay;
use lb_common::verdict::Counter;

use crate::packet::Packet;
use crate::parsed::Parsed;
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Inserted, Tracked};
use crate::{closing, kernel, maps, trace};

/// The key of a packet that leaves the Pod.
#[inline(always)]
pub(crate) fn key_out(flow: &Flow, ifindex: u32) -> CtKey {
    CtKey {
        local: flow.src,
        remote: flow.dst,
        local_port: flow.sport,
        remote_port: flow.dport,
        proto: flow.proto,
        scope: scope::POD,
        veth: ifindex as u16,
    }
}

/// The key of a packet that enters the Pod.
#[inline(always)]
pub(crate) fn key_in(flow: &Flow, ifindex: u32) -> CtKey {
    CtKey {
        local: flow.dst,
        remote: flow.src,
        local_port: flow.dport,
        remote_port: flow.sport,
        proto: flow.proto,
        scope: scope::POD,
        veth: ifindex as u16,
    }
}

/// Whether this packet must start over although there is an entry.
#[inline(always)]
pub(crate) fn starts_over(entry: Tracked, parsed: &Parsed, direction: Direction, now: u32) -> bool {
    if parsed.flow.proto == proto::TCP && parsed.tcp_flags & tcp::SYN == 0 {
        return false;
    }
    conntrack::reopens(entry.flags(), direction, parsed.tcp_flags) || is_expired(entry, parsed, now)
}

/// Whether the packet, which starts over on an entry, does not go to a Service, and needs another port than the connection that
/// was there.
#[inline(always)]
pub(crate) fn needs_other_port(entry: Tracked, parsed: &Parsed, now: u32) -> bool {
    conntrack::needs_other_port(entry.flags()) && !is_expired(entry, parsed, now)
}

/// Whether the flow of an entry has neither ended nor expired.
#[inline(always)]
pub(crate) fn is_alive(parsed: &Parsed, entry: Tracked, now: u32) -> bool {
    ct_life(u32::from(parsed.flow.proto), entry.flags().bits(), entry.last_seen(), now) == ALIVE
}

#[inline(always)]
pub(crate) fn is_expired(entry: Tracked, parsed: &Parsed, now: u32) -> bool {
    let proto = u32::from(parsed.flow.proto);
    ct_life(proto, entry.flags().bits(), entry.last_seen(), now) == EXPIRED
}

const ALIVE: u32 = 0;
const CLOSED: u32 = 1;
const EXPIRED: u32 = 2;

/// Returns the state of a flow. Exported, with numbers as arguments, so that the verifier checks it once on its own and
/// not again in each iteration of a loop.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ct_life(protocol: u32, flags: u32, last_seen: u32, now: u32) -> u32 {
    let (protocol, flags) = (protocol as u8, CtFlags::from_bits(flags));
    if conntrack::is_expired(protocol, flags, last_seen, now, kernel::hz()) {
        EXPIRED
    } else if protocol == proto::TCP && conntrack::is_closed(flags) {
        CLOSED
    } else {
        ALIVE
    }
}

/// Notes the packet on its entry, whose key is in the scratch memory.
#[inline(always)]
pub(crate) fn note(
    packet: Packet,
    scratch: &mut Scratch,
    entry: Tracked,
    direction: Direction,
    now: u32,
) {
    let before = entry.flags();
    if conntrack::is_news(before, direction, scratch.parsed.tcp_flags) {
        learn(packet, scratch, entry, direction);
    }
    let last = entry.last_seen();
    // An unchanged cache line is not taken from other CPUs.
    if last != now {
        entry.stamp(now);
        if scratch.parsed.flow.proto != proto::TCP {
            come_again(scratch, entry, before, conntrack::age(last, now));
        }
    }
}

/// A packet in another stamp than the one before, `silence` stamps later, of another protocol than TCP. It keeps both
/// entries of a translated flow, of which the other does not see this direction. A flow may turn out to be a stream, which
/// both are to know, and copies of them are kept. `before` are the flags that the packet found.
#[inline(never)]
fn come_again(scratch: &mut Scratch, entry: Tracked, before: CtFlags, silence: u32) {
    let flags = entry.flags();
    let after = conntrack::again_after(flags, before, silence, kernel::hz());
    if after != flags {
        entry.set_flags(after);
    }
    let Scratch { parsed, key, partner, other, .. } = scratch;
    *other = entry.entry();
    let Some(found) = conntrack::partner(key, other) else { return };
    *partner = found;
    let twin = tracked::get(partner);
    if let Some(twin) = twin {
        twin.stamp(other.last_seen);
    }
    if after == flags || !conntrack::is_worth_keeping(parsed.flow.proto, after) {
        return;
    }
    tracked::keep(key, other);
    if let Some(twin) = twin {
        twin.set_flags(twin.flags() | CtFlags::TIMES);
        *other = twin.entry();
        tracked::keep(partner, other);
    }
}

/// The entry under the key in the scratch memory.
#[inline(always)]
pub(crate) fn find(scratch: &mut Scratch) -> Option<Tracked> {
    let entry = match tracked::get(&scratch.key) {
        Some(entry) => Some(entry),
        None => restore(scratch),
    };
    trace::found(entry.as_ref());
    entry
}

/// The entry under the key in the scratch memory, which `ct` does not have, when it was evicted from there and is of a
/// flow that lives.
#[inline(never)]
fn restore(scratch: &mut Scratch) -> Option<Tracked> {
    let Scratch { key, other, .. } = scratch;
    let kept = tracked::kept(key)?;
    let (flags, last_seen) = (kept.flags(), kept.last_seen());
    if ct_life(u32::from(key.proto), flags.bits(), last_seen, kernel::now()) != ALIVE {
        return None;
    }
    *other = kept.entry();
    if !tracked::put(key, other) {
        return None;
    }
    maps::count(Counter::EntryRestored);
    tracked::get(key)
}

/// Whether the flow with the forward entry under the key in the scratch memory must choose again, since its reply entry is gone:
/// its answers would come untranslated. Asked where it may choose: for a packet that opens a connection, and of other protocols
/// for one in another stamp than the one before.
#[inline(always)]
pub(crate) fn is_half(scratch: &Scratch, entry: Tracked, now: u32) -> bool {
    let parsed = &scratch.parsed;
    let may_choose = match parsed.flow.proto {
        proto::TCP => !is_mid_flow(parsed),
        _ => entry.last_seen() != now,
    };
    may_choose && ct_is_half() != 0
}

/// Exported, so that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ct_is_half() -> u32 {
    let Some(Scratch { key, partner, other, .. }) = scratch::get() else { return 0 };
    let Some(entry) = tracked::get(key) else { return 0 };
    *other = entry.entry();
    let Some(found) = conntrack::partner(key, other) else { return 0 };
    *partner = found;
    u32::from(tracked::get(partner).is_none() && tracked::kept(partner).is_none())
}

/// What is new in a packet: for its entry, and for the other entry of a translated flow, which does not see this
/// direction.
#[inline(never)]
fn learn(packet: Packet, scratch: &mut Scratch, entry: Tracked, direction: Direction) {
    let Scratch { parsed, key, partner, other, .. } = scratch;
    let before = entry.flags();
    let after = conntrack::seen(before, direction, parsed.tcp_flags);
    entry.set_flags(leave_load(entry, after));
    if !before.intersects(CtFlags::FORWARD | CtFlags::REPLY) {
        return;
    }
    *other = entry.entry();
    let Some(found) = conntrack::partner(key, other) else { return };
    *partner = found;
    if conntrack::is_first_answer(before) {
        ct_complete();
    }
    let twin = tracked::get(partner);
    if let Some(twin) = twin {
        let carried = conntrack::carried(before, after, twin.flags());
        if carried != twin.flags() {
            twin.set_flags(leave_load(twin, carried));
        }
    }
    // Both ends may leave at once: another processor tells this entry of it meanwhile.
    let after = entry.flags();
    if parsed.flow.proto != proto::TCP {
        return;
    }
    if parsed.tcp_flags & tcp::FIN != 0 {
        closing::fin(packet, before, direction);
    }
    match (
        conntrack::is_worth_keeping(proto::TCP, before),
        conntrack::is_worth_keeping(proto::TCP, after),
    ) {
        (false, true) => {
            tracked::keep(key, other);
            if let Some(twin) = twin {
                *other = twin.entry();
                tracked::keep(partner, other);
            }
        }
        (true, false) => {
            tracked::unkeep(key);
            tracked::unkeep(partner);
        }
        (true, true) | (false, false) => {}
    }
}

/// Writes the forward entry under the key in `scratch.partner` from the reply entry in `scratch.other`, if there is none. It could
/// not be written as the flow began: a kernel before 6.15 refuses an insertion by a program that interrupts another one of the
/// same processor, or a reader of the map. Exported, so that the verifier checks it once by itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ct_complete() -> u32 {
    let Some(Scratch { key, partner, across, other, entry, .. }) = scratch::get() else { return 0 };
    if tracked::get(partner).is_some() || tracked::kept(partner).is_some() {
        return 0;
    }
    conntrack::make_forward(entry, key, other);
    if !other.flags.intersects(CtFlags::HAIRPIN | CtFlags::EXTERNAL | CtFlags::PAST)
        && let Some(way) = way_to_backend(key, across)
    {
        entry.way = way;
        entry.flags |= CtFlags::PAST;
    }
    if matches!(tracked::claim(partner, entry), Inserted::Done) {
        maps::count(Counter::EntryRestored);
    }
    0
}

/// The way past the IP stack of the flow with the reply entry under `key`, whose client and backend are Pods of this node: the
/// backend's entry, whose key is put at `across`, has the way back, which its answer has come by.
#[inline(always)]
fn way_to_backend(key: &CtKey, across: &mut CtKey) -> Option<Addr> {
    let veth = maps::ident(&key.remote)?.ifindex;
    *across = *key;
    (across.local, across.local_port) = (key.remote, key.remote_port);
    (across.remote, across.remote_port) = (key.local, key.local_port);
    across.veth = veth as u16;
    let back = tracked::get(across).filter(|entry| entry.flags().contains(CtFlags::PAST))?;
    PastWay::of_addr(&back.way()).map(|way| way.back().to_addr())
}

/// A connection that begins to close leaves the load of its backend.
#[inline(always)]
fn leave_load(entry: Tracked, flags: CtFlags) -> CtFlags {
    if !flags.contains(CtFlags::COUNTED) || !conntrack::is_closing(flags) {
        return flags;
    }
    maps::change_load(entry.backend_id(), false);
    flags.without(CtFlags::COUNTED)
}

/// Notes the packet on the entry of a flow without translation. The last packet of a connection that both ends have
/// closed takes the entry with it: the table reuses its element at once, instead of looking for one to evict. What
/// comes late makes an entry of its own, and a short-lived one. The entry stays while the far end remembers the connection,
/// so that no Service gives another one the same ends.
#[inline(always)]
pub(crate) fn note_plain(
    packet: Packet,
    scratch: &mut Scratch,
    entry: Tracked,
    direction: Direction,
    now: u32,
) {
    let Scratch { parsed, key, .. } = scratch;
    let flags = entry.flags();
    if conntrack::has_both_fins(flags)
        && !conntrack::lingers(flags)
        && parsed.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
    {
        if tracked::delete(key) {
            maps::count(Counter::PlainClosed);
        }
    } else {
        note(packet, scratch, entry, direction, now);
    }
}

/// Commits a flow without translation whose first packet is this one, under the key in the scratch memory. Nothing depends on
/// its entry, so a full map only costs a counter. A reset opens nothing, and a SYN in the name of a connection that lives
/// does not change that connection: its endpoint decides. If the budget of the Pod is used up, no entry is made, and the
/// packet must be dropped, unless no policies concern the Pod.
#[must_use]
#[inline(always)]
pub(crate) fn commit_plain(scratch: &mut Scratch, direction: Direction, now: u32) -> Committed {
    let opened = match direction {
        Direction::Ingress if scratch.ingress_ifindex == 0 => CtFlags::INBOUND | CtFlags::FROM_HOST,
        Direction::Ingress => CtFlags::INBOUND,
        Direction::Egress => CtFlags::NONE,
    };
    // The node reaches its Pods, whoever else floods them.
    if !opened.contains(CtFlags::FROM_HOST)
        && ct_over_budget((direction == Direction::Ingress) as u32) != 0
    {
        return if crate::policy::concerns_somehow(scratch.ifindex) {
            Committed::OverBudget
        } else {
            Committed::Not
        };
    }
    if put_plain(scratch, direction, opened, now) { Committed::New } else { Committed::Not }
}

/// Outcome of [`commit_plain`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// A new entry stands.
    New,
    /// The packet goes on without one, or with one that stood before.
    Not,
    /// The packet must be dropped.
    OverBudget,
}

/// Whether the new flow in the scratch memory is more than its Pod's budget allows. Exported, so that the verifier checks it
/// once by itself.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn ct_over_budget(ingress: u32) -> u32 {
    let Some(scratch) = scratch::get() else { return 0 };
    let pod = scratch.hand.get(scratch.ifindex);
    !maps::is_within_budget(pod, ingress != 0) as u32
}

/// The same for a connection that was met in mid-flow, and was opened in the direction `from`.
#[inline(always)]
pub(crate) fn commit_met(scratch: &mut Scratch, direction: Direction, from: Direction, now: u32) {
    let host = match direction {
        Direction::Ingress => scratch.ingress_ifindex == 0,
        Direction::Egress => crate::origin::is_this_node(&scratch.parsed.flow.dst),
    };
    let opened = match from {
        Direction::Ingress if host => CtFlags::INBOUND | CtFlags::FROM_HOST,
        Direction::Ingress => CtFlags::INBOUND,
        Direction::Egress => CtFlags::NONE,
    };
    put_plain(scratch, direction, opened | CtFlags::PICKED_UP, now);
}

/// Whether a new entry stands.
#[inline(never)]
fn put_plain(scratch: &mut Scratch, direction: Direction, opened: CtFlags, now: u32) -> bool {
    let Scratch { parsed, key, entry, epoch, .. } = scratch;
    if parsed.tcp_flags & tcp::RST != 0 {
        return false;
    }
    let flags = conntrack::seen(opened, direction, parsed.tcp_flags);
    *entry = CtEntry { last_seen: now, epoch: *epoch, flags, ..CtEntry::ZERO };
    let written = match tracked::claim(key, entry) {
        Inserted::Done => true,
        Inserted::Taken => match tracked::get(key) {
            Some(old)
                if conntrack::survives(old.flags(), direction) && !is_expired(old, parsed, now) =>
            {
                old.set_epoch(*epoch);
                return false;
            }
            _ => tracked::put(key, entry),
        },
        Inserted::Failed => tracked::put(key, entry),
    };
    if !written {
        maps::count(Counter::Untracked);
    } else if flags.contains(CtFlags::PICKED_UP) {
        maps::count(Counter::FlowPickedUp);
    } else {
        maps::count(Counter::FlowPlain);
    }
    written
}

/// Outcome of [`claim`], with numbers for functions that can return nothing else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The reply entry stands, and `scratch.nat.port` is the source port towards the target.
    Done = 0,
    /// The tuple belongs to another live flow.
    Taken = 1,
    /// The map could not take the entry.
    Full = 2,
}

impl Claim {
    /// The outcome of this number.
    #[inline(always)]
    pub(crate) const fn of(number: u32) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::Taken,
            _ => Self::Full,
        }
    }
}

/// Writes the reply entry of the flow in `scratch.nat` towards its target, from the client's own port or, when the flags
/// say `PORT_MAPPED`, another one.
///
/// Two frontends may share a backend, and a client may use one port towards both, or towards the backend itself: the
/// tuples behind the translation would be equal, so the second flow must differ in its port.
#[inline(always)]
pub(crate) fn claim(now: u32) -> Claim {
    Claim::of(ct_claim(now))
}

/// Exported, and with a number as the result, so that the verifier checks it once by itself and not for each backend that
/// is tried: what it needs is in the scratch memory, and so is what it leaves.
///
/// A Pod that has used a tenth of all ports towards a backend within the timeout of UDP, through several ports of its Services, meets a
/// taken one in every tenth try. So it tries several other ports.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ct_claim(now: u32) -> u32 {
    const OTHER_PORTS: u32 = 4;
    let mut attempt = 0;
    while attempt < OTHER_PORTS {
        attempt += 1;
        // Looked up for each try: LLVM keeps what does not change in a loop on the stack, and with 64 bytes more of it the calls exceed the
        // 512 bytes that 6.1 allows ("combined stack size of 5 calls is 544", each rounded up to 32).
        let Some(scratch) = scratch::get() else { return Claim::Full as u32 };
        let Scratch { parsed, nat, .. } = &mut *scratch;
        let mapped = nat.flags.contains(CtFlags::PORT_MAPPED);
        scratch::hand_over(&mut nat.port, if mapped { other_port() } else { parsed.flow.sport });
        fill_reply(scratch, now);
        let Scratch { parsed, nat, key, entry, .. } = &mut *scratch;
        let claim = claim_tuple(key, entry, &parsed.flow, now);
        if !nat.flags.contains(CtFlags::PORT_MAPPED) || !matches!(claim, Claim::Taken) {
            return claim as u32;
        }
    }
    Claim::Taken as u32
}

/// Makes the reply entry of the flow in `scratch.nat` from its port, and the key of that entry.
#[inline(always)]
pub(crate) fn fill_reply(scratch: &mut Scratch, now: u32) {
    let Scratch { parsed, key, entry, nat, epoch, ifindex, .. } = scratch;
    let flow = &parsed.flow;
    let external = nat.flags.contains(CtFlags::EXTERNAL);
    // A Pod's entry shows its flow as its own device does: from the client, unless it answers itself.
    if external || nat.flags.contains(CtFlags::HAIRPIN) {
        (key.local, key.local_port) = (nat.target.addr, nat.target.port);
        (key.remote, key.remote_port) = (nat.stand_in, nat.port);
    } else {
        (key.local, key.local_port) = (flow.src, nat.port);
        (key.remote, key.remote_port) = (nat.target.addr, nat.target.port);
    }
    let elsewhere = nat.flags.intersects(CtFlags::MASQUERADED | CtFlags::TO_HOST);
    key.proto = flow.proto;
    key.scope = if elsewhere { scope::EXTERNAL_REPLY } else { scope::POD };
    key.veth = if external { nat.veth } else { *ifindex as u16 };
    *entry = CtEntry {
        nat_addr: flow.dst,
        aux_addr: flow.src,
        nat_port: flow.dport,
        aux_port: flow.sport,
        backend_id: nat.target.id,
        backend_gen: nat.target.generation,
        last_seen: now,
        epoch: if external { 0 } else { *epoch },
        flags: CtFlags::REPLY | nat.flags.only(OF_BOTH),
        way: nat.way,
    };
}

/// Flags that both entries of a translated flow have. `PAST`: as far as it is known before the tuple is claimed.
const OF_BOTH: CtFlags = CtFlags::HAIRPIN
    .with(CtFlags::EXTERNAL)
    .with(CtFlags::MASQUERADED)
    .with(CtFlags::PORT_MAPPED)
    .with(CtFlags::PAST);

/// Writes a reply entry where nothing is, or only a remnant.
#[inline(never)]
fn claim_tuple(key: &CtKey, entry: &CtEntry, flow: &Flow, now: u32) -> Claim {
    // The tuple of a flow that lives, and whose entry was evicted.
    if let Some(kept) = tracked::kept(key)
        && !is_ours_or_dead(kept, flow, now)
    {
        return Claim::Taken;
    }
    match tracked::claim(key, entry) {
        Inserted::Done => Claim::Done,
        Inserted::Failed => Claim::Full,
        Inserted::Taken => match tracked::get(key) {
            Some(old) if is_ours_or_dead(old, flow, now) => {
                if tracked::put(key, entry) {
                    Claim::Done
                } else {
                    Claim::Full
                }
            }
            _ => Claim::Taken,
        },
    }
}

/// Another source port than the client's own: unprivileged, 1024..65535.
#[inline(always)]
pub(crate) fn other_port() -> Be16 {
    Be16::new((1024 + hash::scale(kernel::random(), 64512)) as u16)
}

/// Writes the forward entry of a flow whose tuple is claimed, as the packet that opens it in `direction` shows it, and
/// returns it as it was written. When that fails, the packet goes on nevertheless: the first answer makes the entry
/// ([`ct_complete`]), and before that a repeated packet finds the reply entry to be its own.
#[inline(never)]
pub(crate) fn commit(scratch: &mut Scratch, direction: Direction, now: u32) -> Tracked {
    let Scratch { parsed, key, entry, nat, epoch, ifindex, .. } = scratch;
    *key = match direction {
        Direction::Egress => key_out(&parsed.flow, *ifindex),
        Direction::Ingress => key_in(&parsed.flow, 0),
    };
    key.scope = nat.scope;
    *entry = CtEntry {
        nat_addr: nat.target.addr,
        aux_addr: nat.stand_in,
        nat_port: nat.target.port,
        aux_port: nat.port,
        backend_id: nat.target.id,
        backend_gen: nat.target.generation,
        last_seen: now,
        epoch: match direction {
            Direction::Egress => *epoch,
            Direction::Ingress => u32::from(nat.veth),
        },
        flags: conntrack::opened(nat.flags, direction, parsed.tcp_flags),
        way: nat.way,
    };
    if !tracked::put(key, entry) {
        maps::count(Counter::Untracked);
    } else if nat.flags.contains(CtFlags::COUNTED) {
        maps::change_load(nat.target.id, true);
    }
    maps::count(Counter::of_opened(nat.flags));
    if direction == Direction::Egress && nat.flags.contains(CtFlags::PORT_MAPPED) {
        maps::count(Counter::PortMapped);
    }
    Tracked::written(entry)
}

/// Whether an entry in our way is a remnant: of this very flow, or of one that is over, for its far end as well.
#[inline(always)]
fn is_ours_or_dead(old: Tracked, flow: &Flow, now: u32) -> bool {
    let flags = old.flags();
    let same = flags.contains(CtFlags::REPLY)
        && old.nat_addr() == flow.dst
        && old.nat_port() == flow.dport
        && old.aux_port() == flow.sport
        && old.aux_addr() == flow.src;
    same || match ct_life(u32::from(flow.proto), flags.bits(), old.last_seen(), now) {
        ALIVE => false,
        CLOSED => !conntrack::lingers(flags),
        _ => true,
    }
}

/// TCP, and not the SYN that opens a connection.
#[inline(always)]
pub(crate) fn is_mid_flow(parsed: &Parsed) -> bool {
    parsed.flow.proto == proto::TCP && parsed.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN
}
