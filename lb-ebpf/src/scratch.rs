//! The scratch memory: what a program works on, and hands over from stage to stage. Plain data; nothing here decides.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use lb_common::account::AccountKey;
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey};
use lb_common::endpoint::PodEntry;
use lb_common::event::FlowEvent;
use lb_common::flags;
use lb_common::flow::Flow;
use lb_common::fragment::FragmentKey;
use lb_common::policy::HitKey;
use lb_common::service::AffinityKey;

use crate::maps;
use crate::parsed::Parsed;

/// Room for what a program works on: the stack of a program and its callees has 512 bytes in all, and the verifier
/// walks far fewer states when values are not on it. tc programs run with bottom halves off, so no other program of
/// this kind runs on the CPU in between.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Value of `scratch`, private to the programs.
#[repr(C)]
pub(crate) struct Scratch {
    /// The packet at hand.
    pub(crate) parsed: Parsed,
    /// Key of the entry being written.
    pub(crate) key: CtKey,
    /// The entry being written.
    pub(crate) entry: CtEntry,
    /// Key of the other entry of a translated flow.
    pub(crate) partner: CtKey,
    /// Key of the entry that the Pod at the other end has of the flow.
    pub(crate) across: CtKey,
    /// An entry that is in the map, for the time of a question about it.
    pub(crate) other: CtEntry,
    /// The translation of a new flow.
    pub(crate) nat: Nat,
    /// The ends that the packet is to have when it goes on.
    pub(crate) to: Flow,
    /// A way past the IP stack, as an entry has it.
    pub(crate) way: Addr,
    /// Whether its Service wants the flow to go through the IP stack; 0 = no.
    pub(crate) by_stack: u32,
    /// The client and service port whose affinity is at hand.
    pub(crate) affinity: AffinityKey,
    /// A question to the routing table, and its answer.
    pub(crate) fib: bpf_fib_lookup,
    /// The Pod whose device this is, for the functions that ask for it one after another.
    pub(crate) hand: AtHand,
    /// An address that a Pod speaks for.
    pub(crate) claimed: Addr,
    /// The ends of a connection that a Pod's kernel is asked about.
    pub(crate) tuple: Tuple,
    /// The packet that the one at hand quotes.
    pub(crate) quoted: Parsed,
    /// Key of a datagram in pieces.
    pub(crate) fragment: FragmentKey,
    /// The direction of a flow that is counted.
    pub(crate) account: AccountKey,
    /// Number of the policies in force when the Pod at hand was asked for first; 0 = there are none.
    pub(crate) epoch: u32,
    /// The device whose hook this is.
    pub(crate) ifindex: u32,
    /// The device by which the packet came in last; 0 when this host made it.
    pub(crate) ingress_ifindex: u32,
    /// The flow that policies judge.
    pub(crate) asked: Asked,
    /// The event being sent.
    pub(crate) event: FlowEvent,
    /// The packet of a refusal being built.
    pub(crate) answer: [u16; ANSWER_WORDS],
    /// The payload of a packet's first piece, while the rest of it is sent back; and what a checksum is made from, or written to
    /// a packet.
    pub(crate) piece: [u32; PIECE / 4],
}

impl Scratch {
    /// The packet goes on from the device whose hook this is, as if the hook were that of the device `ifindex`.
    #[inline(always)]
    pub(crate) fn cross(&mut self, ifindex: u32) {
        let from = self.ifindex;
        hand_over(&mut self.ingress_ifindex, from);
        hand_over(&mut self.ifindex, ifindex);
        hand_over(&mut self.hand.state, UNREAD);
    }
}

/// The Pod behind the device at hand, read from the map at most once a packet.
pub(crate) struct AtHand {
    /// What is known: [`UNREAD`] or others of them.
    state: u32,
    pod: PodEntry,
}

const UNREAD: u32 = 0;
const THERE: u32 = 1;
const UNKNOWN: u32 = 2;

impl AtHand {
    /// The Pod behind the device, which is the one at hand.
    #[inline(always)]
    pub(crate) fn get(&mut self, ifindex: u32) -> Option<&PodEntry> {
        if self.state == UNREAD {
            self.state = match maps::pod(ifindex) {
                Some(pod) => {
                    self.pod = *pod;
                    THERE
                }
                None => UNKNOWN,
            };
        }
        if self.state == THERE { Some(&self.pod) } else { None }
    }
}

/// Bytes that have room for the payload of a piece.
pub(crate) const PIECE: usize = 4096;
const _: () = assert!(lb_common::fragment::PIECE_MOST as usize <= PIECE);

/// 16-bit words of the longest refusal: Ethernet, IPv6, ICMPv6 and the quoted packet.
pub(crate) const ANSWER_WORDS: usize = 55;

/// Where a flow goes.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) addr: Addr,
    pub(crate) port: Be16,
    /// Backend id; 0 if no Service chose it.
    pub(crate) id: u32,
    pub(crate) generation: u32,
}

/// The translation that a new flow gets. Lives in the scratch memory.
pub(crate) struct Nat {
    pub(crate) target: Target,
    /// Stands for the Pod as client when the target is the Pod itself; of a flow from outside the client as the target
    /// sees it; else `::`.
    pub(crate) stand_in: Addr,
    /// Past the IP stack; `::` = none.
    pub(crate) way: Addr,
    /// Source port towards the target.
    pub(crate) port: Be16,
    /// Of the forward entry.
    pub(crate) flags: CtFlags,
    /// Of the forward entry's key.
    pub(crate) scope: u8,
    /// Low 16 bits of the ifindex of the target's veth, of a flow from outside to a Pod of this node; else 0.
    pub(crate) veth: u16,
    /// For counters and events; 0 when no service port is known.
    pub(crate) service_id: u32,
    /// The flow met that needs its tuple least: how ready it is to yield it, then its port; 0 = none.
    pub(crate) readiest: u32,
    /// The map did not take the last entry that was tried.
    pub(crate) full: bool,
}

/// A flow that policies judge, and the result. Lives in the scratch memory.
pub(crate) struct Asked {
    /// The other end, as the Pod's peer really is: behind a Service the backend.
    pub(crate) peer: Addr,
    /// Destination port.
    pub(crate) port: Be16,
    /// How the packet relates to the Pod.
    pub(crate) how: How,
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

flags! {
    /// How a packet that policies judge relates to the Pod.
    pub(crate) struct How: u32 {
        /// The flow enters the Pod.
        INGRESS = 1 << 0;
        /// The peer is the Pod itself, through a Service.
        OWN = 1 << 1;
        /// The packet leaves the Pod and is the first of its flow: its source is to be checked.
        SENT = 1 << 2;
        /// The flow was opened by this host.
        FROM_HOST = 1 << 3;
        /// The packet answers the flow, which is judged again: its source is the flow's destination.
        BACK = 1 << 4;
        /// The flow is being opened to the Service of [`Nat::service_id`].
        SERVICE = 1 << 5;
    }
}

/// The ends of a TCP connection: the source is elsewhere, the destination is a Pod's. IPv4: two addresses and the ports
/// in the first three words; IPv6: eight words and the ports (`struct bpf_sock_tuple`, whose union it is).
#[repr(C)]
pub(crate) struct Tuple {
    pub(crate) words: [u32; 9],
}

impl Tuple {
    pub(crate) const SIZE4: u32 = 12;
    pub(crate) const SIZE6: u32 = 36;

    /// Makes it the ends of this flow.
    #[inline(always)]
    pub(crate) fn fill(&mut self, flow: &Flow, v4: bool) {
        let ports = u32::from(flow.sport.to_wire()) | u32::from(flow.dport.to_wire()) << 16;
        if v4 {
            let [a, b, c, ..] = &mut self.words;
            (*a, *b, *c) = (flow.src.word3().to_wire(), flow.dst.word3().to_wire(), ports);
            return;
        }
        let [s0, s1, s2, s3] = flow.src.words().map(|word| word.to_wire());
        let [d0, d1, d2, d3] = flow.dst.words().map(|word| word.to_wire());
        self.words = [s0, s1, s2, s3, d0, d1, d2, d3, ports];
    }

    /// Leaves the end that is elsewhere open: only a listener has such a connection.
    #[inline(always)]
    pub(crate) fn forget_source(&mut self, v4: bool) {
        // The source port is the first half of its word in memory, whatever the byte order.
        let port = |ports: u32| {
            let [_, _, c, d] = ports.to_ne_bytes();
            u32::from_ne_bytes([0, 0, c, d])
        };
        if v4 {
            let [a, _, c, ..] = &mut self.words;
            (*a, *c) = (0, port(*c));
            return;
        }
        let [s0, s1, s2, s3, .., ports] = &mut self.words;
        (*s0, *s1, *s2, *s3, *ports) = (0, 0, 0, 0, port(*ports));
    }
}

/// This CPU's scratch memory, for a packet.
#[inline(always)]
pub(crate) fn begin(ifindex: u32, ingress_ifindex: u32) -> Option<&'static mut Scratch> {
    let scratch = get()?;
    scratch.ifindex = ifindex;
    scratch.ingress_ifindex = ingress_ifindex;
    hand_over(&mut scratch.hand.state, UNREAD);
    Some(scratch)
}

/// Writes to the scratch memory what a function reads that looks up the scratch memory itself. Volatile: the compiler assumes
/// that the memory behind a mutable reference is read only through it, and would omit the store.
#[inline(always)]
pub(crate) fn hand_over<T>(place: &mut T, value: T) {
    // SAFETY: a live place.
    unsafe { core::ptr::from_mut(place).write_volatile(value) };
}

/// This CPU's scratch memory, as it is: for functions that the verifier checks once by themselves, and for what they left
/// there.
#[inline(always)]
pub(crate) fn get() -> Option<&'static mut Scratch> {
    // SAFETY: index 0 exists; exclusive as said at the map.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}
