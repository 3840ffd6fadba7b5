//! Connection tracking: the entry, its key and the pure state step.
//!
//! Keys are scoped to the Pod whose veth the packet crosses and normalised to (local = the Pod, remote), so both
//! directions of a flow give the same key and one Pod cannot poison another's entries. A translated flow has two
//! entries: the *forward* one, keyed by the frontend the Pod dials, and the *reply* one, keyed by the backend that
//! answers. A flow without translation has one.
//!
//! A flow from outside to a Service has two entries as well, written as its first packet comes in at a device:
//!
//! | backend | forward entry, scope | reply entry, scope | source of the packets to the backend |
//! |---|---|---|---|
//! | Pod of this node | (frontend, client), `EXTERNAL` | (Pod, client), `POD` | the client |
//! | process of this host | (frontend, client), `EXTERNAL` | (backend, client), `EXTERNAL_REPLY` | the client |
//! | on another node | (frontend, client), `EXTERNAL` | (backend, node), `EXTERNAL_REPLY` | a port of this node |

use crate::addr::Addr;
use crate::be::Be16;
use crate::flow::{proto, tcp};
use crate::{flags, pod};

pod! {
    /// Key of the map `ct`.
    pub struct CtKey: 40 {
        /// The Pod's address (or, in a hairpin's reply entry, the same Pod as backend).
        pub local: Addr,
        /// The other side as the packet at this veth shows it.
        pub remote: Addr,
        /// The Pod's port.
        pub local_port: Be16,
        /// The other side's port.
        pub remote_port: Be16,
        /// IP protocol number.
        pub proto: u8,
        /// `scope::*`.
        pub scope: u8,
        /// Low 16 bits of the veth's ifindex. The kernel numbers devices upwards, so one value comes back only after
        /// 65,535 more devices, long after the entries of its earlier owner have expired. 0 in the scopes of external
        /// flows.
        pub veth: u16,
    }
}

/// Values of [`CtKey::scope`].
pub mod scope {
    /// A flow of a Pod, seen at its veth.
    pub const POD: u8 = 0;
    /// Forward entry of a flow that goes straight to a backend, from a port that the Pod also uses to that backend
    /// through a Service: under `POD` there is the reply entry of the other flow.
    pub const STRAIGHT: u8 = 1;
    /// A flow from outside to a frontend, as its client shows it: `local` is the frontend, `remote` the client.
    pub const EXTERNAL: u8 = 2;
    /// The same flow as its backend answers: `local` is the backend, `remote` the client or the masquerade. Flows to a
    /// Pod of this node have an entry under `POD` instead.
    pub const EXTERNAL_REPLY: u8 = 3;
}

pod! {
    /// Value of the map `ct`.
    pub struct CtEntry: 72 {
        /// Forward entry: the backend's address. Reply entry: the frontend's. Else `::`.
        pub nat_addr: Addr,
        /// Forward entry of a hairpin: the address that stands for the Pod as client; of a flow from
        /// outside: the client as the backend sees it. Reply entry: the client's address. Else `::`.
        pub aux_addr: Addr,
        /// Port belonging to `nat_addr`.
        pub nat_port: Be16,
        /// Forward entry: the source port used towards the backend (equal to the client's unless it was taken).
        /// Reply entry: the client's own port.
        pub aux_port: Be16,
        /// Backend id; 0 when the destination is not translated, and in the reply entry of a TCP connection that one side
        /// has left.
        pub backend_id: u32,
        /// Generation of the backend when it was chosen. Reply entry of a TCP connection that one side has left: the
        /// sequence number behind the last FIN.
        pub backend_gen: u32,
        /// Last packet, in units of 256 kernel ticks (jiffies / 256), truncated to 32 bits.
        pub last_seen: u32,
        /// Policy epoch at the last verdict; [`UNJUDGED`] before the first. Forward entry of an external flow to a Pod of this node, which is judged at
        /// its veth: the `veth` of the Pod's entry. Reply entry of a masqueraded flow: the low 32 bits of the kernel's
        /// ticks when it was opened.
        pub epoch: u32,
        /// What it is, and what was seen of the flow.
        pub flags: CtFlags,
        /// Where its packets go past the IP stack: a [`crate::past::PastWay`] or [`crate::hop::HopWay`], or of a flow from
        /// outside a [`crate::outside::OutsideWay`]; `::` = not known.
        pub way: Addr,
    }
}

flags! {
    /// Flags of a [`CtEntry`].
    ///
    /// Bits 0-7: TCP flags seen leaving the Pod; 8-15: entering it; the others are named. Bits 7 and 15, in masqueraded
    /// flows: packets that are neither of the handshake nor resets. Bits 3 and 11: this side's FIN was the first. Bits 5 and
    /// 13: and the other side's FIN acknowledged it.
    pub struct CtFlags: u32 {
        /// Forward entry: packets leaving the Pod get `nat_addr:nat_port` as destination.
        FORWARD = 1 << 16;
        /// Reply entry: packets entering the Pod get `nat_addr:nat_port` as source.
        REPLY = 1 << 17, "reply";
        /// Both ends of the flow are the same Pod: both rewrites happen as the packet leaves it.
        HAIRPIN = 1 << 18, "hairpin";
        /// The first packet entered the Pod.
        INBOUND = 1 << 19, "inbound";
        /// Taken over in mid-flow: the handshake was not seen.
        PICKED_UP = 1 << 20, "picked-up";
        /// The source port towards the backend differs from the Pod's.
        PORT_MAPPED = 1 << 21, "port-mapped";
        /// Packets that leave the Pod go past netfilter, in both directions of the flow: by the `way`; or, where that is `::`,
        /// over the bridge that the backend is behind, too, and which its replies come back over past netfilter. Otherwise netfilter sees half a connection and calls it
        /// invalid. Reply entry: only if the packets that enter the Pod come past netfilter by a [`crate::hop::HopWay`].
        PAST = 1 << 24;
        /// The client is outside the cluster. Under scope `POD` a reply entry whose rewrite happens as packets *leave* the
        /// Pod: they get `nat_addr:nat_port` as source, and go to the client past the IP stack, which would take the
        /// node's own address as a source for a forgery.
        EXTERNAL = 1 << 25;
        /// Forward entry of an external flow: the client is replaced by `aux_addr:aux_port`, an address of this node.
        MASQUERADED = 1 << 26, "masqueraded";
        /// Forward entry of an external flow: the backend is a process of this host.
        TO_HOST = 1 << 27, "to-host";
        /// Counted in the map `loads` under its backend.
        COUNTED = 1 << 28;
        /// Two bits, of other protocols than TCP: in how many stamps packets were seen after the first one, one more for a
        /// masqueraded client that spoke again when it had been answered. 3 for more, and for a packet that came two
        /// seconds after another one of an answered flow: this is a stream.
        TIMES = 3 << 29;
        /// Packets were seen in both directions (other protocols than TCP).
        SEEN_OUT = 1 << 22;
        /// See `SEEN_OUT`.
        SEEN_IN = 1 << 23;
        /// With `INBOUND`: the first packet was made by this host, whose traffic to its Pods no policy concerns.
        FROM_HOST = 1 << 31;
    }
}

/// An epoch that is never in force: the entry is judged at its next packet.
pub const UNJUDGED: u32 = u32::MAX;

impl CtFlags {
    /// The TCP flags seen leaving the Pod, and entering it.
    pub const fn tcp(sent: u8, received: u8) -> Self {
        Self::from_bits(sent as u32 | (received as u32) << 8)
    }
}

/// Key of the other entry of a translated flow; `None` for a flow without translation.
pub fn partner(key: &CtKey, entry: &CtEntry) -> Option<CtKey> {
    let CtEntry { nat_addr, nat_port, aux_addr, aux_port, flags, .. } = *entry;
    if key.scope == scope::EXTERNAL {
        let kept = !flags.intersects(CtFlags::MASQUERADED.with(CtFlags::TO_HOST));
        return Some(CtKey {
            local: nat_addr,
            remote: aux_addr,
            local_port: nat_port,
            remote_port: aux_port,
            proto: key.proto,
            scope: if kept { scope::POD } else { scope::EXTERNAL_REPLY },
            veth: if kept { entry.epoch as u16 } else { 0 },
        });
    }
    if key.scope == scope::EXTERNAL_REPLY || flags.contains(CtFlags::EXTERNAL) {
        return Some(CtKey {
            local: nat_addr,
            remote: aux_addr,
            local_port: nat_port,
            remote_port: aux_port,
            proto: key.proto,
            scope: scope::EXTERNAL,
            veth: 0,
        });
    }
    if flags.contains(CtFlags::FORWARD) {
        let key = CtKey { scope: scope::POD, ..*key };
        if !flags.contains(CtFlags::HAIRPIN) {
            return Some(CtKey {
                remote: nat_addr,
                remote_port: nat_port,
                local_port: aux_port,
                ..key
            });
        }
        // The Pod answers itself: as backend it sees the address that stands for it as client.
        return Some(CtKey {
            local: nat_addr,
            local_port: nat_port,
            remote: aux_addr,
            remote_port: aux_port,
            ..key
        });
    }
    if flags.contains(CtFlags::REPLY) {
        let straight = nat_addr == key.remote && nat_port == key.remote_port;
        // The client is the Pod itself.
        return Some(CtKey {
            local_port: aux_port,
            remote: nat_addr,
            remote_port: nat_port,
            scope: if straight { scope::STRAIGHT } else { scope::POD },
            ..*key
        });
    }
    None
}

/// Makes `entry` the forward entry of the flow that has this reply entry, as its first answer finds it: for a flow whose own could
/// not be written. Written in place, since the stack of the programs is short.
#[inline(always)]
pub fn make_forward(entry: &mut CtEntry, key: &CtKey, reply: &CtEntry) {
    const OF_BOTH: CtFlags = CtFlags::HAIRPIN
        .with(CtFlags::EXTERNAL)
        .with(CtFlags::MASQUERADED)
        .with(CtFlags::PORT_MAPPED)
        .with(CtFlags::PAST)
        .with(BOTH_WAYS);
    let flags = reply.flags;
    let sides = if flags.contains(CtFlags::HAIRPIN) {
        CtFlags::tcp(received(flags), sent(flags))
    } else {
        flags.only(TCP)
    };
    let to_host = key.scope == scope::EXTERNAL_REPLY && !flags.contains(CtFlags::MASQUERADED);
    entry.flags =
        CtFlags::FORWARD.with(flags.only(OF_BOTH)).with(sides).with(CtFlags::TO_HOST.when(to_host));
    if key.proto == proto::TCP {
        entry.flags = entry.flags.with(of_side(opener(entry.flags), tcp::SYN));
    }
    // Of a Pod's flow to another end the key has the Pod first, else the backend.
    if flags.intersects(CtFlags::EXTERNAL.with(CtFlags::HAIRPIN)) {
        entry.nat_addr = key.local;
        entry.nat_port = key.local_port;
        entry.aux_addr = key.remote;
        entry.aux_port = key.remote_port;
    } else {
        entry.nat_addr = key.remote;
        entry.nat_port = key.remote_port;
        entry.aux_addr = Addr::NONE;
        entry.aux_port = key.local_port;
    }
    entry.way = if flags.contains(CtFlags::PAST) { reply.way } else { Addr::NONE };
    entry.backend_id = reply.backend_id;
    entry.backend_gen = reply.backend_gen;
    entry.last_seen = reply.last_seen;
    entry.epoch = if flags.contains(CtFlags::EXTERNAL) { key.veth as u32 } else { reply.epoch };
}

/// Whether the packet that found the reply entry with these flags is the first answer of its flow.
pub const fn is_first_answer(before: CtFlags) -> bool {
    before.contains(CtFlags::REPLY) && !before.contains(BOTH_WAYS)
}

/// Direction of a packet, always the Pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Leaves the Pod (tc ingress of its host-side veth).
    Egress,
    /// Enters the Pod (tc egress of its host-side veth).
    Ingress,
}

/// The TCP flags that are remembered.
const REMEMBERED: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK;
/// Either says that a side sends no more.
const LAST: u8 = tcp::FIN | tcp::RST;
/// Beside the TCP flags that are remembered of a side of a masqueraded flow: it has sent something other than a part of the
/// handshake or a reset. (The bit is that of CWR, which is not remembered.)
const SPOKE: u8 = 0x80;
/// Its FIN came before that of the other side. (The bit is that of PSH, which is not remembered.)
const FIRST: u8 = 0x08;
/// With `FIRST`: the other side's FIN acknowledged it. (The bit is that of URG.)
const ANSWERED: u8 = 0x20;
/// TCP flags of both sides.
const TCP: CtFlags = CtFlags::tcp(0xff, 0xff);
/// How a connection ends.
const END: u8 = LAST | FIRST | ANSWERED;
/// Either side sends no more.
const ENDS: CtFlags = CtFlags::tcp(END, END);
pub(crate) const BOTH_WAYS: CtFlags = CtFlags::SEEN_OUT.with(CtFlags::SEEN_IN);

/// TCP flags seen leaving the Pod.
const fn sent(flags: CtFlags) -> u8 {
    flags.bits() as u8
}

/// TCP flags seen entering it.
const fn received(flags: CtFlags) -> u8 {
    (flags.bits() >> 8) as u8
}

/// What a packet leaves in the flags of its entry, which are `flags`.
const fn marks(flags: CtFlags, direction: Direction, tcp_flags: u8) -> CtFlags {
    const SPEAKS: u8 = tcp::SYN | tcp::RST | tcp::ACK;
    let mut tcp = tcp_flags & REMEMBERED;
    if flags.contains(CtFlags::MASQUERADED) && tcp_flags & SPEAKS == tcp::ACK {
        tcp |= SPOKE;
    }
    match direction {
        Direction::Egress => CtFlags::tcp(tcp, 0).with(CtFlags::SEEN_OUT),
        Direction::Ingress => CtFlags::tcp(0, tcp).with(CtFlags::SEEN_IN),
    }
}

/// Whether a packet may change the flags of its entry, which [`seen`] then says: what established flows pay for.
pub const fn is_news(flags: CtFlags, direction: Direction, tcp_flags: u8) -> bool {
    let marks = marks(flags, direction, tcp_flags);
    !flags.contains(marks) || tcp_flags & tcp::SYN != 0
}

/// The direction of what the side that opened the flow sends.
const fn opener(flags: CtFlags) -> Direction {
    const ITSELF: CtFlags = CtFlags::REPLY.with(CtFlags::HAIRPIN);
    if flags.intersects(CtFlags::INBOUND.with(CtFlags::EXTERNAL)) || flags.contains(ITSELF) {
        Direction::Ingress
    } else {
        Direction::Egress
    }
}

const fn is_opener(flags: CtFlags, direction: Direction) -> bool {
    direction as u8 == opener(flags) as u8
}

/// TCP flags of the side that opened the flow, then of the other.
const fn sides(flags: CtFlags) -> (u8, u8) {
    match opener(flags) {
        Direction::Egress => (sent(flags), received(flags)),
        Direction::Ingress => (received(flags), sent(flags)),
    }
}

/// Returns `flags` after a packet with these TCP flags (0 for other protocols) in this direction.
///
/// The opener's ACK counts only after a SYN of the other side: then it is the last packet of the handshake, and the
/// connection is established. A SYN-ACK on a connection that one side had closed starts it again: its endpoint accepted a
/// SYN that was forwarded to it.
pub const fn seen(flags: CtFlags, direction: Direction, tcp_flags: u8) -> CtFlags {
    const ANSWER: u8 = tcp::SYN | tcp::ACK;
    let mut flags = flags;
    let mut tcp_flags = tcp_flags;
    if is_opener(flags, direction) {
        let (_, other) = sides(flags);
        if !flags.contains(CtFlags::PICKED_UP) && other & tcp::SYN == 0 {
            tcp_flags &= !tcp::ACK;
        }
    } else {
        if tcp_flags & ANSWER == ANSWER && !is_over(flags) {
            flags = flags.without(ENDS);
        }
        if flags.contains(CtFlags::REPLY) {
            // The entry was made by a packet of the other direction.
            flags = flags.with(BOTH_WAYS);
        }
    }
    if tcp_flags & tcp::FIN != 0 && (sent(flags) | received(flags)) & tcp::FIN == 0 {
        flags = flags.with(of_side(direction, FIRST));
    }
    flags.with(marks(flags, direction, tcp_flags))
}

/// TCP flags of the side that sends in this direction.
const fn of_side(direction: Direction, tcp_flags: u8) -> CtFlags {
    match direction {
        Direction::Egress => CtFlags::tcp(tcp_flags, 0),
        Direction::Ingress => CtFlags::tcp(0, tcp_flags),
    }
}

/// Whether a FIN in this direction is the opener's, and the first of the connection; `flags` are those before it.
pub const fn leaves_first(flags: CtFlags, direction: Direction) -> bool {
    is_opener(flags, direction) && (sent(flags) | received(flags)) & tcp::FIN == 0
}

/// Whether a FIN in this direction answers that of the opener; `flags` are those before it.
pub const fn answers_fin(flags: CtFlags, direction: Direction) -> bool {
    let (opener, other) = sides(flags);
    !is_opener(flags, direction) && opener & FIRST != 0 && other & tcp::FIN == 0
}

/// `flags` after the other side's FIN, which acknowledged that of the opener: one acknowledgement is left.
pub const fn answered(flags: CtFlags) -> CtFlags {
    flags.with(of_side(opener(flags), ANSWERED))
}

/// Whether a packet with these TCP flags may be the last of a connection that the opener has left first: the acknowledgement
/// of the other side's FIN. Of other protocols none is.
pub const fn may_be_last(flags: CtFlags, direction: Direction, tcp_flags: u8) -> bool {
    flags.contains(of_side(opener(flags), ANSWERED))
        && is_opener(flags, direction)
        && tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
}

/// Whether the far end of a closed connection that the Pod opened may be in TIME_WAIT, since it was the first to leave: there
/// it refuses a connection from the same address and port, if the numbers of its SYN do not fit (RFC 9293 §3.6.1, RFC 6191).
/// They do not when the Pod dialed another destination, and the translation made the two one: its kernel chose them for that.
pub const fn lingers(flags: CtFlags) -> bool {
    let (opener, other) = sides(flags);
    has_both_fins(flags)
        && !flags.intersects(CtFlags::INBOUND.with(CtFlags::MASQUERADED))
        && (opener | other) & tcp::RST == 0
        && opener & FIRST == 0
}

/// Flags of a flow whose first packet this is: as [`seen`] makes them, without a branch.
pub const fn opened(flags: CtFlags, direction: Direction, tcp_flags: u8) -> CtFlags {
    flags.with(marks(flags, direction, tcp_flags & !tcp::ACK))
}

/// What the other entry of a translated flow is to know of `flags`, as [`seen`] made them of `before`: `other` are its
/// own. The entries of a hairpin see both directions themselves.
pub const fn carried(before: CtFlags, flags: CtFlags, other: CtFlags) -> CtFlags {
    if flags.contains(CtFlags::HAIRPIN) {
        return other;
    }
    let begun_again = before.only(ENDS).without(flags);
    let answered = BOTH_WAYS.when(flags.contains(BOTH_WAYS));
    other.without(begun_again).with(flags.only(TCP)).with(answered)
}

/// What two entries of one flow know together, as the first has it.
pub const fn together(flags: CtFlags, partner: CtFlags) -> CtFlags {
    if flags.contains(CtFlags::HAIRPIN) {
        return flags;
    }
    flags.with(partner.only(TCP.with(BOTH_WAYS)))
}

/// Whether both sides have sent a FIN.
pub const fn has_both_fins(flags: CtFlags) -> bool {
    sent(flags) & received(flags) & tcp::FIN != 0
}

/// Whether a FIN or RST was seen: the connection is closing or closed, unless it was forged.
pub const fn is_closing(flags: CtFlags) -> bool {
    (sent(flags) | received(flags)) & LAST != 0
}

/// Returns whether the connection has ended: both sides closed it, or one certainly reset it. A reset from the network may be
/// forged, and its receiver ignores it if its sequence number does not fit. A reset that leaves a Pod (or this host) through
/// its own device is authentic.
pub const fn is_closed(flags: CtFlags) -> bool {
    let own = if flags.contains(CtFlags::MASQUERADED) {
        // Both sides are elsewhere.
        0
    } else if flags.contains(CtFlags::HAIRPIN) {
        sent(flags) | received(flags)
    } else {
        sent(flags)
    };
    own & tcp::RST != 0 || sent(flags) & LAST != 0 && received(flags) & LAST != 0
}

/// Whether the backend of a masqueraded connection reset it before it sent anything else but its part of the handshake.
/// That is what a host does when the last packet of the handshake does not fit (RFC 9293 §3.10.7.4): the client never got
/// the one before, and sent its own blindly, in the name of another address. When the reset was forged instead, the
/// backend's next packet says so.
const fn is_refused(flags: CtFlags) -> bool {
    let (_, backend) = sides(flags);
    flags.contains(CtFlags::MASQUERADED) && backend & (tcp::RST | SPOKE) == tcp::RST
}

/// Whether nothing of the connection is left, as far as can be known.
pub const fn is_over(flags: CtFlags) -> bool {
    is_closed(flags) || is_refused(flags)
}

/// Whether the side that was dialed has accepted a TCP connection (SYN-ACK), or refused it (a reset instead); `None` if
/// neither was seen.
pub const fn is_accepted(flags: CtFlags) -> Option<bool> {
    let (_, other) = sides(flags);
    if flags.contains(CtFlags::PICKED_UP) || other & (tcp::SYN | tcp::RST) == 0 {
        return None;
    }
    Some(other & tcp::SYN != 0)
}

/// Whether a TCP handshake was completed, or never seen.
pub const fn is_established(flags: CtFlags) -> bool {
    let (opener, _) = sides(flags);
    opener & tcp::ACK != 0 || flags.contains(CtFlags::PICKED_UP)
}

/// Returns whether a packet in this direction with these flags opens a new connection although an entry exists.
///
/// A living translated connection keeps its backend when a SYN arrives. If the endpoint knows the connection, it answers with
/// a challenge (RFC 5961 §4), which a restarted client resets; if not, it accepts a new connection. Without a translation a
/// SYN never reuses an earlier verdict: it is judged again, unless it repeats the SYN of an unanswered handshake.
pub const fn reopens(flags: CtFlags, direction: Direction, tcp_flags: u8) -> bool {
    if tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
        return false;
    }
    let plain = !flags.intersects(CtFlags::FORWARD.with(CtFlags::REPLY));
    is_over(flags) || plain && (is_established(flags) || !is_opener(flags, direction))
}

/// Whether a packet that leaves the Pod on the tuple of a reply entry, and would open a connection, needs another port: the
/// connection that had the tuple is over, and its far end may remember it.
pub const fn needs_other_port(flags: CtFlags) -> bool {
    const OTHERS: CtFlags = CtFlags::HAIRPIN.with(CtFlags::EXTERNAL);
    flags.contains(CtFlags::REPLY) && !flags.intersects(OTHERS) && lingers(flags)
}

/// Returns whether an entry without translation stays when a SYN was judged again and allowed: a living connection does not
/// become half open because of a forged SYN.
pub const fn survives(flags: CtFlags, direction: Direction) -> bool {
    const NEVER: CtFlags = CtFlags::FORWARD.with(CtFlags::REPLY).with(CtFlags::PICKED_UP);
    !flags.intersects(NEVER)
        && is_opener(flags, direction)
        && is_established(flags)
        && !is_closed(flags)
}

/// `flags` after a packet in another stamp than the one before.
pub const fn again(flags: CtFlags) -> CtFlags {
    if flags.contains(CtFlags::TIMES) {
        flags
    } else {
        CtFlags::from_bits(flags.bits() + (1 << 29))
    }
}

/// The same of a packet that came `silence` stamps after the one before, when the flags were `before`.
pub const fn again_after(flags: CtFlags, before: CtFlags, silence: u32, hz: u32) -> CtFlags {
    if before.contains(BOTH_WAYS) && silence >= stamps(2, hz) {
        return flags.with(CtFlags::TIMES);
    }
    again(flags)
}

/// Returns `flags` of the forward entry of a masqueraded flow when its client sends. If the flow was answered before, it is
/// more than one question and answer.
pub const fn spoken(flags: CtFlags) -> CtFlags {
    if flags.contains(BOTH_WAYS) && !flags.intersects(CtFlags::TIMES) {
        again(flags)
    } else {
        flags
    }
}

/// Returns whether the entries of a translated flow are also kept in the map `kept`, where other flows cannot evict them:
/// both ends have sent packets, and the flow has lasted for some time. Clients outside can forge their addresses. Of their
/// flows only connections are kept, while neither side has ended them. A backend ends a connection whose client address was
/// forged, because the real host resets it.
pub const fn is_worth_keeping(protocol: u8, flags: CtFlags) -> bool {
    if !flags.intersects(CtFlags::FORWARD.with(CtFlags::REPLY)) {
        return false;
    }
    let outside = flags.contains(CtFlags::EXTERNAL);
    match protocol {
        proto::TCP if outside && is_closing(flags) => false,
        proto::TCP => is_established(flags) && !is_closed(flags),
        _ if outside => false,
        _ => flags.contains(CtFlags::TIMES.with(BOTH_WAYS)),
    }
}

/// Seconds without a packet after which an entry is dead.
///
/// TCP as kube-proxy has it: 60 s for a handshake, 24 h established (`tcpEstablishedTimeout`), 1 h when one side alone
/// has sent its last (`tcpCloseWaitTimeout`), 70 s when it is over (TIME_WAIT and a last retransmission). 10 min when it
/// was met in mid-flow and one direction alone was seen since: a straggler of a connection that is over, or one that
/// will be met again.
/// UDP: 30 s unanswered, and after one question and answer; 120 s for a stream (nf_conntrack's own figures). ICMP 10 s,
/// everything else 600 s.
// A call less, since the stack of the programs is short.
#[inline(always)]
pub const fn timeout_secs(protocol: u8, flags: CtFlags) -> u32 {
    match protocol {
        proto::TCP if is_over(flags) => 70,
        proto::TCP if flags.contains(CtFlags::PICKED_UP) && !flags.contains(BOTH_WAYS) => {
            if is_closing(flags) {
                70
            } else {
                600
            }
        }
        proto::TCP if !is_established(flags) => 60,
        proto::TCP if is_closing(flags) => 3600,
        proto::TCP => 24 * 3600,
        proto::UDP if flags.contains(BOTH_WAYS.with(CtFlags::TIMES)) => 120,
        proto::UDP => 30,
        proto::ICMP | proto::ICMP6 => 10,
        _ => 600,
    }
}

/// Whether a flow of this node's own that was last seen then is over: nf_conntrack's figures, by which its answers would
/// find the way to who has sent it.
pub const fn is_own_flow_over(protocol: u8, last_seen: u32, now: u32, hz: u32) -> bool {
    is_expired(protocol, BOTH_WAYS.with(CtFlags::TIMES), last_seen, now, hz)
}

/// Stamps since an entry was last seen; 0 for one from the future (another CPU's later tick).
pub const fn age(last_seen: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(last_seen);
    if age < 0x8000_0000 { age } else { 0 }
}

/// Converts seconds to stamps, plus one, since stamps are coarse.
pub const fn stamps(secs: u32, hz: u32) -> u32 {
    ((secs as u64 * hz as u64) >> 8) as u32 + 1
}

/// [`CtEntry::last_seen`] for a reading of the kernel's tick counter.
pub const fn stamp(jiffies: u64) -> u32 {
    (jiffies >> 8) as u32
}

/// Returns whether an entry last seen at `last_seen` has expired at `now`, both as returned by [`stamp`], with `hz` ticks a
/// second. Stamps count modulo 2^32. One stamp of tolerance is added, since they are coarse.
pub const fn is_expired(protocol: u8, flags: CtFlags, last_seen: u32, now: u32, hz: u32) -> bool {
    age(last_seen, now) > stamps(timeout_secs(protocol, flags), hz)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{
        CtEntry, CtFlags, CtKey, Direction, TCP, carried, is_closed, is_closing, is_established,
        is_expired, is_news, make_forward, partner, reopens, scope, seen, stamp, survives,
        timeout_secs,
    };
    use crate::addr::Addr;
    use crate::be::Be16;
    use crate::flow::{proto, tcp};

    use Direction::{Egress, Ingress};

    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    /// What the Pod opens.
    const OPEN: [(Direction, u8); 3] = [(Egress, tcp::SYN), (Ingress, SYN_ACK), (Egress, tcp::ACK)];

    fn of(kind: CtFlags, steps: Sent<'_>) -> CtFlags {
        steps.iter().fold(kind, |flags, (direction, tcp_flags)| seen(flags, *direction, *tcp_flags))
    }

    fn after(steps: Sent<'_>) -> CtFlags {
        of(CtFlags::NONE, steps)
    }

    fn then(steps: Sent<'_>) -> Vec<(Direction, u8)> {
        [&OPEN, steps].concat()
    }

    /// The same seen from the other end.
    fn turned(steps: Sent<'_>) -> Vec<(Direction, u8)> {
        let turn = |direction| if direction == Egress { Ingress } else { Egress };
        steps.iter().map(|(direction, flags)| (turn(*direction), *flags)).collect()
    }
    /// A packet: which way it goes, and its flags.
    type Packet = (Direction, u8);
    /// Packets before it.
    type Sent<'a> = &'a [Packet];

    #[test]
    fn a_connection_is_established_by_the_opener_s_ack_after_the_other_s_syn() {
        let rst = tcp::RST;
        let cases: [(&str, Sent<'_>, bool); 7] = [
            ("SYN", &OPEN[..1], false),
            ("SYN, SYN-ACK", &OPEN[..2], false),
            ("SYN, SYN-ACK, SYN again", &[OPEN[0], OPEN[1], OPEN[0]], false),
            ("SYN, SYN-ACK, ACK", &OPEN, true),
            ("an ACK without the SYN-ACK", &[OPEN[0], OPEN[2]], false),
            ("the same, and then the SYN-ACK", &[OPEN[0], OPEN[2], OPEN[1]], false),
            ("refused", &[OPEN[0], (Ingress, rst | tcp::ACK)], false),
        ];
        for (name, steps, want) in cases {
            assert_eq!(is_established(after(steps)), want, "{name}");
            let turned = turned(steps);
            for kind in [
                CtFlags::INBOUND,
                CtFlags::EXTERNAL | CtFlags::REPLY,
                CtFlags::EXTERNAL | CtFlags::FORWARD,
            ] {
                assert_eq!(is_established(of(kind, &turned)), want, "{name}: {kind:?}");
            }
        }
        // The backend of a hairpin is the client itself.
        assert!(is_established(of(CtFlags::REPLY | CtFlags::HAIRPIN, &turned(&OPEN))));
        assert!(!is_established(of(CtFlags::REPLY | CtFlags::HAIRPIN, &turned(&OPEN[..2]))));
    }

    #[test]
    fn one_forged_packet_closes_nothing() {
        let (fin, rst) = (FIN_ACK, tcp::RST);
        let masqueraded = CtFlags::EXTERNAL | CtFlags::MASQUERADED | CtFlags::FORWARD;
        let cases: [(&str, CtFlags, Sent<'_>, bool); 8] = [
            ("a FIN", CtFlags::NONE, &[(Ingress, fin)], false),
            ("both FINs", CtFlags::NONE, &[(Ingress, fin), (Egress, fin)], true),
            ("a reset from outside", CtFlags::NONE, &[(Ingress, rst)], false),
            ("the Pod's own", CtFlags::NONE, &[(Egress, rst)], true),
            (
                "a reset of a client outside",
                CtFlags::EXTERNAL | CtFlags::REPLY,
                &[(Ingress, rst)],
                false,
            ),
            (
                "of its backend, a Pod here",
                CtFlags::EXTERNAL | CtFlags::REPLY,
                &[(Egress, rst)],
                true,
            ),
            (
                "of a backend on another node",
                masqueraded,
                &[(Egress, tcp::ACK), (Egress, rst)],
                false,
            ),
            ("of both ends", masqueraded, &[(Egress, rst), (Ingress, fin)], true),
        ];
        for (name, kind, steps, want) in cases {
            let external = kind.contains(CtFlags::EXTERNAL);
            let open = if external { turned(&OPEN) } else { OPEN.to_vec() };
            let flags = of(kind, &[&open, steps].concat());
            assert_eq!(is_closed(flags), want, "{name}");
            assert!(is_closing(flags), "{name}");
            let secs = if want { 70 } else { 3600 };
            assert_eq!(timeout_secs(proto::TCP, flags), secs, "{name}");
        }
    }

    /// A backend elsewhere answers a SYN, and resets what does not fit its answer.
    #[test]
    fn a_connection_that_was_completed_blindly_is_over() {
        use super::is_over;
        let masqueraded = CtFlags::EXTERNAL | CtFlags::MASQUERADED;
        let (rst, data) = ((Egress, tcp::RST), (Egress, tcp::ACK | tcp::PSH));
        let (syn, again) = ((Ingress, tcp::SYN), (Egress, SYN_ACK));
        let cases: [(&str, Sent<'_>, bool); 7] = [
            ("a connection", &[], false),
            ("refused", &[rst], true),
            ("although the answer to the SYN is repeated", &[rst, again, again], true),
            ("and the client insists", &[rst, (Ingress, tcp::ACK)], true),
            ("the reset was forged", &[rst, data], false),
            ("it was, after the backend spoke", &[data, rst], false),
            ("left by its client before", &[(Ingress, FIN_ACK)], false),
        ];
        for (name, steps, want) in cases {
            let flags = of(masqueraded | CtFlags::REPLY, &[&turned(&OPEN), steps].concat());
            assert_eq!(is_over(flags), want, "{name}");
            assert_eq!(reopens(flags, syn.0, syn.1), want, "{name}");
            assert_eq!(timeout_secs(proto::TCP, flags) == 70, want, "{name}");
        }
        let here = of(
            CtFlags::EXTERNAL | CtFlags::REPLY,
            &[&turned(&OPEN), &[(Ingress, tcp::RST)][..]].concat(),
        );
        assert!(!is_over(here), "a reset from a client may be forged");
    }

    #[test]
    fn the_far_end_remembers_a_connection_that_it_left_first() {
        use super::lingers;
        let (own, far) = ((Egress, FIN_ACK), (Ingress, FIN_ACK));
        let rst = (Ingress, tcp::RST);
        let cases: [(&str, CtFlags, Sent<'_>, bool); 8] = [
            ("it lives", CtFlags::NONE, &[far], false),
            ("the far end first", CtFlags::NONE, &[far, own], true),
            ("the Pod first", CtFlags::NONE, &[own, far], false),
            ("again and again", CtFlags::NONE, &[far, far, own, far], true),
            ("then reset", CtFlags::NONE, &[far, own, rst], false),
            ("to a Service", CtFlags::FORWARD, &[far, own], true),
            ("its reply entry", CtFlags::REPLY, &[far, own], true),
            (
                "begun again, and the Pod first",
                CtFlags::NONE,
                &[far, OPEN[0], OPEN[1], own, far],
                false,
            ),
        ];
        for (name, kind, steps, want) in cases {
            assert_eq!(lingers(of(kind, &then(steps))), want, "{name}");
        }
        for kind in [CtFlags::INBOUND, CtFlags::EXTERNAL | CtFlags::MASQUERADED] {
            assert!(!lingers(of(kind, &[&turned(&OPEN)[..], &[own, far]].concat())), "{kind:?}");
        }
    }

    #[test]
    fn syn_on_an_entry() {
        let (fin, rst) = (FIN_ACK, tcp::RST);
        let reset = then(&[(Egress, rst)]);
        let over = then(&[(Egress, fin), (Ingress, fin)]);
        let half = then(&[(Egress, fin)]);
        let forged = then(&[(Ingress, rst)]);
        let plain = CtFlags::NONE;
        let to = CtFlags::FORWARD;
        let (syn, syn_fin) = (tcp::SYN, tcp::SYN | tcp::FIN);
        let cases: [(&str, CtFlags, Sent<'_>, Packet, bool); 15] = [
            ("a repeated SYN keeps its verdict", plain, &OPEN[..1], (Egress, syn), false),
            ("one from the other side", plain, &OPEN[..1], (Ingress, syn), true),
            ("after the handshake it is judged again", plain, &OPEN, (Egress, syn), true),
            ("with a FIN as well", plain, &OPEN, (Egress, syn_fin), true),
            ("with a reset as well", plain, &OPEN, (Ingress, tcp::SYN | rst), true),
            ("on a flow met in mid-flow", CtFlags::PICKED_UP, &[], (Egress, syn), true),
            ("a SYN-ACK never opens", plain, &OPEN, (Ingress, SYN_ACK), false),
            ("data never opens", plain, &OPEN, (Egress, tcp::ACK), false),
            ("a repeated SYN keeps its backend", to, &OPEN[..1], (Egress, syn), false),
            ("a living connection keeps it", to, &OPEN, (Egress, syn), false),
            ("one that one side has left", to, &half, (Egress, syn), false),
            ("one with a forged reset", to, &forged, (Egress, syn), false),
            ("one that is over does not", to, &over, (Egress, syn), true),
            ("nor one that its own side reset", to, &reset, (Egress, syn), true),
            ("a SYN-ACK never opens", to, &over, (Ingress, SYN_ACK), false),
        ];
        for (name, kind, steps, (direction, packet), want) in cases {
            assert_eq!(reopens(of(kind, steps), direction, packet), want, "{name}");
        }
    }

    #[test]
    fn a_syn_in_another_s_name_does_not_make_a_connection_half_open() {
        let cases = [
            ("a living one", after(&OPEN), Egress, true),
            ("half closed", after(&then(&[(Ingress, FIN_ACK)])), Egress, true),
            ("opened by the other side", after(&OPEN), Ingress, false),
            ("never answered", after(&OPEN[..2]), Egress, false),
            ("over", after(&then(&[(Egress, tcp::RST)])), Egress, false),
            ("met in mid-flow", CtFlags::PICKED_UP, Egress, false),
        ];
        for (name, flags, direction, want) in cases {
            assert_eq!(survives(flags, direction), want, "{name}");
        }
    }

    #[test]
    fn an_endpoint_that_takes_a_syn_begins_again() {
        let left = after(&then(&[(Ingress, FIN_ACK), (Egress, tcp::SYN)]));
        assert!(is_closing(left));
        let again = seen(left, Ingress, SYN_ACK);
        assert!(!is_closing(again) && is_established(again));
        let over = after(&then(&[(Egress, tcp::RST)]));
        assert!(is_closed(seen(over, Ingress, SYN_ACK)), "what is over stays so");
    }

    #[test]
    fn what_is_known_already_is_not_written_again() {
        let open = after(&OPEN);
        let psh = tcp::ACK | 0x08;
        for (direction, packet, want) in [
            (Egress, tcp::ACK, false),
            (Egress, psh, false),
            (Ingress, psh, false),
            (Egress, FIN_ACK, true),
            (Ingress, tcp::RST, true),
            (Egress, tcp::SYN, true),
            (Ingress, SYN_ACK, true),
        ] {
            assert_eq!(is_news(open, direction, packet), want, "{direction:?} {packet:x}");
        }
    }

    /// Each entry of a pair sees one direction; what it learns it tells the other.
    #[test]
    fn both_entries_of_a_flow_know_of_both_sides() {
        let steps = then(&[(Ingress, FIN_ACK), (Egress, tcp::SYN), (Ingress, SYN_ACK)]);
        let steps = [&steps[..], &[(Egress, FIN_ACK), (Ingress, FIN_ACK)]].concat();
        let (mut forward, mut reply, mut one) = (CtFlags::FORWARD, CtFlags::REPLY, CtFlags::NONE);
        for (direction, packet) in steps {
            one = seen(one, direction, packet);
            let (own, other) = match direction {
                Egress => (&mut forward, &mut reply),
                Ingress => (&mut reply, &mut forward),
            };
            let before = *own;
            *own = seen(before, direction, packet);
            *other = carried(before, *own, *other);
            assert_eq!(forward.only(TCP), one.only(TCP), "{direction:?} {packet:x}");
            assert_eq!(reply.only(TCP), one.only(TCP), "{direction:?} {packet:x}");
        }
        assert!(is_closed(forward) && is_closed(reply));
    }

    #[test]
    fn translated_flows_that_last_are_kept() {
        use super::{again, is_worth_keeping};
        let both = CtFlags::FORWARD | CtFlags::SEEN_OUT | CtFlags::SEEN_IN;
        let closed = then(&[(Egress, tcp::RST)]);
        const EXTERNAL: CtFlags =
            CtFlags::EXTERNAL.with(CtFlags::MASQUERADED).with(CtFlags::FORWARD);
        const RST: Sent<'_> = &[(Egress, tcp::RST)];
        let cases = [
            ("plain", proto::TCP, after(&OPEN), false),
            ("half open", proto::TCP, of(CtFlags::FORWARD, &OPEN[..2]), false),
            ("established", proto::TCP, of(CtFlags::FORWARD, &OPEN), true),
            ("over", proto::TCP, of(CtFlags::FORWARD, &closed), false),
            ("UDP, a question and its answer", proto::UDP, both, false),
            ("in three stamps", proto::UDP, again(again(both)), false),
            ("in four", proto::UDP, again(again(again(both))), true),
            ("in many", proto::UDP, again(again(again(again(again(both))))), true),
            (
                "unanswered",
                proto::UDP,
                CtFlags::FORWARD | CtFlags::TIMES | CtFlags::SEEN_OUT,
                false,
            ),
            ("from outside", proto::UDP, CtFlags::EXTERNAL | again(again(again(both))), false),
            ("a connection from outside", proto::TCP, of(EXTERNAL, &turned(&OPEN)), true),
            (
                "its backend resets it",
                proto::TCP,
                of(EXTERNAL, &[&turned(&OPEN), RST].concat()),
                false,
            ),
        ];
        for (name, protocol, flags, want) in cases {
            assert_eq!(is_worth_keeping(protocol, flags), want, "{name}");
        }
    }

    #[test]
    fn a_stream_is_one_that_lasts_for_more_than_two_seconds() {
        use super::{again_after, spoken};
        let hz = 256;
        let (asked, answered) = (after(&[(Egress, 0)]), after(&[(Egress, 0), (Ingress, 0)]));
        let times = |flags: CtFlags| flags.only(CtFlags::TIMES).bits() >> 29;
        let cases = [
            ("the first answer, late", answered, asked, 9, 1),
            ("an answer in the next stamp", answered, asked, 1, 1),
            ("the next packet, soon", answered, answered, 2, 1),
            ("the next packet, later", answered, answered, 3, 3),
            ("unanswered, again", asked, asked, 25, 1),
        ];
        for (name, flags, before, silence, want) in cases {
            assert_eq!(times(again_after(flags, before, silence, hz)), want, "{name}");
        }
        assert_eq!(times(spoken(asked)), 0, "a question repeated");
        assert_eq!(times(spoken(answered)), 1, "another one");
        assert_eq!(times(spoken(spoken(answered))), 1, "counted once");
    }

    #[test]
    fn timeouts_by_state() {
        use super::again;
        let fin = (Ingress, FIN_ACK);
        assert_eq!(timeout_secs(proto::TCP, after(&OPEN[..1])), 60);
        assert_eq!(timeout_secs(proto::TCP, after(&OPEN[..2])), 60);
        assert_eq!(timeout_secs(proto::TCP, after(&OPEN)), 86400);
        assert_eq!(timeout_secs(proto::TCP, after(&then(&[fin]))), 3600);
        assert_eq!(timeout_secs(proto::TCP, after(&then(&[fin, (Egress, FIN_ACK)]))), 70);
        assert_eq!(timeout_secs(proto::TCP, after(&[OPEN[0], fin])), 60, "never open");
        let met = of(CtFlags::PICKED_UP, &[(Egress, tcp::ACK)]);
        assert_eq!(timeout_secs(proto::TCP, met), 600);
        assert_eq!(timeout_secs(proto::TCP, seen(met, Egress, FIN_ACK)), 70);
        assert_eq!(timeout_secs(proto::TCP, seen(met, Ingress, tcp::ACK)), 86400);
        let answered = after(&[(Egress, 0), (Ingress, 0)]);
        assert_eq!(timeout_secs(proto::UDP, after(&[(Egress, 0)]) | CtFlags::TIMES), 30);
        assert_eq!(timeout_secs(proto::UDP, answered), 30);
        assert_eq!(timeout_secs(proto::UDP, again(again(answered))), 30);
        assert_eq!(timeout_secs(proto::UDP, answered | CtFlags::TIMES), 120);
        assert_eq!(timeout_secs(proto::ICMP6, CtFlags::NONE), 10);
        assert_eq!(timeout_secs(proto::SCTP, CtFlags::NONE), 600);
    }

    #[test]
    fn expiry_survives_the_wrap_of_the_stamp() {
        let hz = 250;
        let udp = |age: u32, now: u32| {
            is_expired(proto::UDP, CtFlags::NONE, now.wrapping_sub(age), now, hz)
        };
        for now in [1_000_000, 5, 0, u32::MAX] {
            assert!(!udp(0, now));
            assert!(!udp(30, now), "30 s are 29.3 stamps at 250 Hz");
            assert!(udp(31, now));
            assert!(!udp(u32::MAX, now), "a stamp one tick ahead is not old");
        }
        assert_eq!(stamp(0x1_0000_0100), 0x0100_0001);
    }

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    fn forward_of(key: &CtKey, reply: &CtEntry) -> CtEntry {
        let mut entry = CtEntry::ZERO;
        make_forward(&mut entry, key, reply);
        let syn = super::of_side(super::opener(entry.flags), tcp::SYN);
        assert!(entry.flags.contains(syn));
        entry.flags = entry.flags.without(syn);
        entry
    }

    fn key(local: (&str, u16), remote: (&str, u16)) -> CtKey {
        CtKey {
            local: addr(local.0),
            local_port: Be16::new(local.1),
            remote: addr(remote.0),
            remote_port: Be16::new(remote.1),
            proto: proto::TCP,
            veth: 7,
            ..CtKey::ZERO
        }
    }

    #[test]
    fn each_entry_finds_the_other() {
        let pod = "10.1.0.2";
        let stand_in = "169.254.42.1";
        let cases = [
            (
                "to a backend elsewhere, with another source port",
                key((pod, 4000), ("10.96.0.1", 80)),
                key((pod, 5000), ("10.1.0.9", 8080)),
                CtFlags::NONE,
                Addr::NONE,
            ),
            (
                "straight to a backend, on a port of its own",
                CtKey { scope: scope::STRAIGHT, ..key((pod, 4000), ("10.1.0.9", 8080)) },
                key((pod, 5000), ("10.1.0.9", 8080)),
                CtFlags::NONE,
                Addr::NONE,
            ),
            (
                "to itself",
                key((pod, 4000), ("10.96.0.1", 80)),
                key((pod, 8080), (stand_in, 5000)),
                CtFlags::HAIRPIN,
                addr(stand_in),
            ),
        ];
        for (name, forward_key, reply_key, hairpin, aux_addr) in cases {
            let (nat_addr, nat_port) = match hairpin {
                CtFlags::NONE => (reply_key.remote, reply_key.remote_port),
                _ => (addr(pod), reply_key.local_port),
            };
            let forward = CtEntry {
                nat_addr,
                nat_port,
                aux_addr,
                aux_port: Be16::new(5000),
                flags: CtFlags::FORWARD | hairpin,
                ..CtEntry::ZERO
            };
            let reply = CtEntry {
                nat_addr: forward_key.remote,
                nat_port: forward_key.remote_port,
                aux_addr: addr(pod),
                aux_port: Be16::new(4000),
                flags: CtFlags::REPLY | hairpin,
                ..CtEntry::ZERO
            };
            assert_eq!(partner(&forward_key, &forward), Some(reply_key), "{name}: forward");
            assert_eq!(partner(&reply_key, &reply), Some(forward_key), "{name}: reply");
            assert_eq!(forward_of(&reply_key, &reply), forward, "{name}");
            if hairpin == CtFlags::NONE {
                // Past the IP stack to another node, both have the way.
                let past = |entry: CtEntry| CtEntry {
                    way: addr("2001:db8::5"),
                    flags: entry.flags | CtFlags::PAST,
                    ..entry
                };
                assert_eq!(partner(&reply_key, &past(reply)), Some(forward_key), "{name}");
                assert_eq!(forward_of(&reply_key, &past(reply)), past(forward), "{name}");
            }
        }
        assert_eq!(partner(&key((pod, 1), (pod, 2)), &CtEntry::ZERO), None, "no translation");
    }

    #[test]
    fn partners_of_external_flows() {
        let (frontend, client) = (("198.51.100.1", 80), ("203.0.113.5", 4000));
        let (backend, node) = (("10.1.0.2", 8080), ("192.0.2.1", 12345));
        let cases = [
            ("a Pod of this node", CtFlags::NONE, client, scope::POD, 7),
            ("a process of this host", CtFlags::TO_HOST, client, scope::EXTERNAL_REPLY, 0),
            ("another node", CtFlags::MASQUERADED, node, scope::EXTERNAL_REPLY, 0),
        ];
        for (name, flag, seen_as, reply_scope, veth) in cases {
            let forward_key = CtKey { scope: scope::EXTERNAL, veth: 0, ..key(frontend, client) };
            let forward = CtEntry {
                nat_addr: addr(backend.0),
                nat_port: Be16::new(backend.1),
                aux_addr: addr(seen_as.0),
                aux_port: Be16::new(seen_as.1),
                epoch: u32::from(veth),
                flags: CtFlags::FORWARD | CtFlags::EXTERNAL | flag,
                ..CtEntry::ZERO
            };
            let reply_key = CtKey { scope: reply_scope, veth, ..key(backend, seen_as) };
            let reply = CtEntry {
                nat_addr: addr(frontend.0),
                nat_port: Be16::new(frontend.1),
                aux_addr: addr(client.0),
                aux_port: Be16::new(client.1),
                flags: CtFlags::REPLY | CtFlags::EXTERNAL | flag.only(CtFlags::MASQUERADED),
                ..CtEntry::ZERO
            };
            assert_eq!(partner(&forward_key, &forward), Some(reply_key), "{name}: forward");
            assert_eq!(partner(&reply_key, &reply), Some(forward_key), "{name}: reply");
            assert_eq!(forward_of(&reply_key, &reply), forward, "{name}");
        }
    }
}
