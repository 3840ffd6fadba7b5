//! The packet of a tc program: bounds-checked loads, stores through helpers, checksums, redirects.
//!
//! Loads read the packet directly; stores go through `bpf_skb_store_bytes`, since a single direct store would make
//! the kernel prepend an unclone prologue that runs for every packet of the program.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_IPV6, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_adj_room_mode::BPF_ADJ_ROOM_NET, bpf_fib_lookup, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_csum_diff, bpf_fib_lookup as bpf_fib_lookup_helper,
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_adjust_room, bpf_skb_change_head,
    bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_pull_data,
    bpf_skb_store_bytes, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use lb_common::config::Features;

use crate::kernel;
use crate::scratch::{self, ANSWER_WORDS, PIECE, Scratch, Tuple};

/// No header of ours starts beyond this offset: gives the verifier a bound for variable offsets.
const MAX_OFFSET: usize = 511;

/// Bits of a tag's control information that name the VLAN; 0 = none, the tag is for the priority alone.
const VLAN_ID: u32 = 0xfff;

/// The VLAN tag of a packet (IEEE 802.1Q).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// It has none.
    None,
    /// One for its priority: it belongs to no VLAN.
    Priority,
    /// It belongs to the device of a VLAN.
    Vlan,
}

/// A helper refused; the number is its errno, negative.
#[derive(Clone, Copy)]
pub(crate) struct HelperError;

/// The packet at hand: one pointer, passed by value so that it stays in a register.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    skb: *mut __sk_buff,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { skb: aya_ebpf::EbpfContext::as_ptr(ctx).cast() }
    }

    /// The packet of a function that the verifier checks by itself: the kernel knows its argument by the type.
    #[inline(always)]
    pub(crate) fn from_ptr(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// For the call of such a function.
    #[inline(always)]
    pub(crate) fn as_ptr(self) -> *mut __sk_buff {
        self.skb
    }

    /// ifindex of the device whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: the kernel hands a valid context. Volatile: LLVM must not fold field addresses into a modified
        // context pointer, which the verifier refuses.
        unsafe { (&raw const (*self.skb).ifindex).read_volatile() }
    }

    /// Whole length in bytes, link layer included.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (&raw const (*self.skb).len).read_volatile() }
    }

    /// This CPU's scratch memory, for this packet.
    #[inline(always)]
    pub(crate) fn scratch(self) -> Option<&'static mut Scratch> {
        scratch::begin(self.ifindex(), self.ingress_ifindex())
    }

    /// EtherType in the memory order of the wire.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: as in `ifindex`.
        unsafe { (&raw const (*self.skb).protocol).read_volatile() as u16 }
    }

    /// Source of the link layer, as the key of the map `macs`.
    #[inline(always)]
    pub(crate) fn source_mac(self) -> Option<u64> {
        // With the last two bytes of the destination, which are before it.
        self.load::<u64>(4).map(|word| u64::from_le(word) >> 16)
    }

    /// ifindex of the device by which the packet came in last; 0 when this host made it.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (&raw const (*self.skb).ingress_ifindex).read_volatile() }
    }

    /// Whether the frame is addressed to this host itself: neither to a group nor to another host.
    #[inline(always)]
    pub(crate) fn is_for_this_host(self) -> bool {
        /// `PACKET_HOST` of include/uapi/linux/if_packet.h.
        const HOST: u32 = 0;
        // SAFETY: as in `ifindex`.
        unsafe { (&raw const (*self.skb).pkt_type).read_volatile() == HOST }
    }

    /// The VLAN tag that was taken off the packet.
    #[inline(always)]
    pub(crate) fn tag(self) -> Tag {
        // SAFETY: as in `ifindex`.
        if unsafe { (&raw const (*self.skb).vlan_present).read_volatile() } == 0 {
            return Tag::None;
        }
        // SAFETY: as in `ifindex`.
        let tci = unsafe { (&raw const (*self.skb).vlan_tci).read_volatile() };
        if tci & VLAN_ID == 0 { Tag::Priority } else { Tag::Vlan }
    }

    /// Forgets the tag that was taken off: the packet goes on as one that had none. Not where another one follows, which
    /// the helper would take off instead.
    #[inline(always)]
    pub(crate) fn forget_tag(self) {
        if self.is_tagged_again() {
            return;
        }
        // Where the tag is stored beside the packet, this needs no memory and does not fail.
        // SAFETY: valid context; each load reads the data pointers again.
        let _: i64 = unsafe { bpf_skb_vlan_pop(self.skb) };
    }

    /// Returns whether the frame still has a priority tag (VLAN ID 0) in its data. The stack removes it silently.
    #[inline(always)]
    pub(crate) fn has_hidden_tag(self) -> bool {
        if !self.is_tagged_again() {
            return false;
        }
        let tci = self.load::<u16>(crate::parsed::L3).map_or(0, u16::from_be);
        u32::from(tci) & VLAN_ID == 0
    }

    /// Whether there is a tag that was not taken off, behind one that was.
    #[inline(always)]
    fn is_tagged_again(self) -> bool {
        const DOT1Q: u16 = 0x8100u16.to_be();
        const DOT1AD: u16 = 0x88a8u16.to_be();
        let ethertype = self.ethertype();
        ethertype == DOT1Q || ethertype == DOT1AD
    }

    /// Payload bytes of each packet that this one will be cut into; 0 when it is one.
    #[inline(always)]
    pub(crate) fn segment(self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (&raw const (*self.skb).gso_size).read_volatile() }
    }

    #[inline(always)]
    fn data(self) -> (usize, usize) {
        // SAFETY: as in `ifindex`.
        let start = unsafe { (&raw const (*self.skb).data).read_volatile() };
        // SAFETY: as in `ifindex`.
        let end = unsafe { (&raw const (*self.skb).data_end).read_volatile() };
        (start as usize, end as usize)
    }

    /// Makes the first `want` bytes linear when they are not (or all, when there are fewer), so that [`Self::load`]
    /// reaches them. No more than is read: a TCP sender's payload begins right behind its headers in another page, and
    /// pulling one byte of it copies the head of every packet.
    #[inline(always)]
    pub(crate) fn pull(self, want: usize) {
        let (start, end) = self.data();
        let len = self.len() as usize;
        let want = if len < want { len } else { want };
        if end - start < want {
            // A failure shows as a failing load.
            // SAFETY: valid context; each load reads the data pointers again.
            let _: i64 = unsafe { bpf_skb_pull_data(self.skb, want as u32) };
        }
    }

    /// Reads a `T` at `offset` bytes from the start of the link layer; `None` beyond the linear part.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, offset: usize) -> Option<T> {
        let (start, end) = self.data();
        if offset > MAX_OFFSET || start + offset + size_of::<T>() > end {
            return None;
        }
        // SAFETY: inside the packet, as just checked (and as the verifier proves). IP headers are 4-byte aligned
        // behind the 14-byte Ethernet header (NET_IP_ALIGN), and where they are not the JITs' loads do not care.
        Some(unsafe { ((start + offset) as *const T).read() })
    }

    /// Writes `value` at `offset`; checksums are the caller's business.
    #[inline(always)]
    pub(crate) fn store<T: Copy>(self, offset: usize, value: &T) -> Result<(), HelperError> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: valid context; the helper checks the offset against the packet.
        check(unsafe {
            bpf_skb_store_bytes(self.skb, offset as u32, from, size_of::<T>() as u32, 0)
        })
    }

    /// Overwrites the packet's first `WORDS` 16-bit words with those of `buffer`.
    #[inline(always)]
    pub(crate) fn store_words<const WORDS: usize>(
        self,
        buffer: &[u16; ANSWER_WORDS],
    ) -> Result<(), HelperError> {
        const { assert!(WORDS <= ANSWER_WORDS, "the answer must fit its buffer") };
        let from = buffer.as_ptr().cast();
        // SAFETY: valid context; the length is within the buffer, as just asserted.
        check(unsafe { bpf_skb_store_bytes(self.skb, 0, from, WORDS as u32 * 2, 0) })
    }

    /// Adds `diff` (see `lb_common::csum`) to the IPv4 header checksum at `offset`.
    #[inline(always)]
    pub(crate) fn l3_csum(self, offset: usize, diff: u32) -> Result<(), HelperError> {
        // SAFETY: valid context; `from` 0 and size 0 mean that `to` is a difference.
        check(unsafe { bpf_l3_csum_replace(self.skb, offset as u32, 0, u64::from(diff), 0) })
    }

    /// Adds the `diff` of a pseudo-header (addresses) to the layer 4 checksum at `offset`.
    #[inline(always)]
    pub(crate) fn l4_csum_addr(
        &self,
        offset: usize,
        diff: u32,
        kind: ChecksumKind,
    ) -> Result<(), HelperError> {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | kind.flags();
        // SAFETY: as in `l3_csum`.
        check(unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, u64::from(diff), flags) })
    }

    /// Adds the `diff` of payload bytes to the layer 4 checksum at `offset`.
    #[inline(always)]
    pub(crate) fn l4_csum_payload(self, offset: usize, diff: u32) -> Result<(), HelperError> {
        // SAFETY: as in `l3_csum`.
        check(unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, u64::from(diff), 0) })
    }

    /// Replaces 16 bits of the layer 4 header (wire order) in the checksum at `offset`. Apart from the addresses:
    /// with `CHECKSUM_PARTIAL` the field holds the pseudo-header only, and the device sums the rest.
    #[inline(always)]
    pub(crate) fn l4_csum_port(
        &self,
        offset: usize,
        from: u16,
        to: u16,
        kind: ChecksumKind,
    ) -> Result<(), HelperError> {
        let flags = kind.mangled() | size_of::<u16>() as u64;
        // SAFETY: as in `l3_csum`, with a size of 2.
        check(unsafe {
            bpf_l4_csum_replace(self.skb, offset as u32, u64::from(from), u64::from(to), flags)
        })
    }

    /// Adds the `diff` of 16-bit words of the layer 4 header to its checksum; otherwise as [`Self::l4_csum_port`].
    #[inline(always)]
    pub(crate) fn l4_csum_ports(
        &self,
        offset: usize,
        diff: u32,
        kind: ChecksumKind,
    ) -> Result<(), HelperError> {
        let flags = kind.mangled();
        // SAFETY: as in `l3_csum`.
        check(unsafe { bpf_l4_csum_replace(self.skb, offset as u32, 0, u64::from(diff), flags) })
    }

    /// Cuts or grows the packet to `len` bytes; also drops its segmentation offload.
    #[inline(always)]
    pub(crate) fn change_tail(self, len: u32) -> Result<(), HelperError> {
        // SAFETY: valid context.
        check(unsafe { bpf_skb_change_tail(self.skb, len, 0) })
    }

    /// Copies `len` bytes at `offset` to the beginning of `buffer`. The caller has seen that `len` is not 0 and fits.
    #[inline(always)]
    pub(crate) fn copy_to(
        self,
        offset: usize,
        buffer: &mut [u32; PIECE / 4],
        len: u32,
    ) -> Result<(), HelperError> {
        let to = buffer.as_mut_ptr().cast();
        // SAFETY: valid context; the verifier proves that the buffer has room.
        check(unsafe { bpf_skb_load_bytes(self.skb.cast_const().cast(), offset as u32, to, len) })
    }

    /// Overwrites the packet at `offset` with the first `len` bytes of `buffer`. As [`Self::copy_to`].
    #[inline(always)]
    pub(crate) fn copy_from(
        self,
        offset: usize,
        buffer: &[u32; PIECE / 4],
        len: u32,
    ) -> Result<(), HelperError> {
        // SAFETY: valid context; the verifier proves that the buffer is as long.
        check(unsafe {
            bpf_skb_store_bytes(self.skb, offset as u32, buffer.as_ptr().cast(), len, 0)
        })
    }

    /// Takes off `len` bytes behind the first 20 (IPv4) or 40 bytes of the IP header.
    #[inline(always)]
    pub(crate) fn cut_front(self, len: u16) -> Result<(), HelperError> {
        let len = -i32::from(len);
        // SAFETY: valid context; the helper checks the length.
        check(unsafe { bpf_skb_adjust_room(self.skb, len, BPF_ADJ_ROOM_NET, 0) })
    }

    /// Lets a copy of the packet come in by this device, after those that wait.
    #[inline(always)]
    pub(crate) fn come_in_again(self) -> Result<(), HelperError> {
        // SAFETY: valid context.
        check(unsafe { bpf_clone_redirect(self.skb, self.ifindex(), u64::from(BPF_F_INGRESS)) })
    }

    /// Puts an empty Ethernet header before a packet of a device that has none. The stack does not look at it.
    #[inline(always)]
    pub(crate) fn push_ethernet(self) -> Result<(), HelperError> {
        // SAFETY: valid context.
        check(unsafe { bpf_skb_change_head(self.skb, crate::parsed::L3 as u32, 0) })
    }

    /// How the kernel routes the packet described in `fib`, of `tot_len` bytes, that came in at `fib.ifindex`.
    #[inline(always)]
    pub(crate) fn route(self, fib: &mut bpf_fib_lookup) -> Route {
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: valid context and a live, initialised parameter block.
        let ret = unsafe {
            bpf_fib_lookup_helper(self.skb.cast(), core::ptr::from_mut(fib).cast(), size, 0)
        };
        match ret as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                // SAFETY: the kernel has written the path's MTU there, if it was asked for the packet's length.
                Route::Via(fib.ifindex, unsafe { fib.__bindgen_anon_1.mtu_result })
            }
            // An unknown neighbor is resolved by the redirect.
            BPF_FIB_LKUP_RET_NO_NEIGH => Route::Via(fib.ifindex, 0),
            BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                // SAFETY: the kernel has written the path's MTU there.
                Route::TooBig(unsafe { fib.__bindgen_anon_1.mtu_result })
            }
            _ => Route::None,
        }
    }

    /// What the network namespace with this id (`IFLA_LINK_NETNSID`) has for the ends of a connection.
    #[inline(always)]
    pub(crate) fn socket(self, tuple: &mut Tuple, v4: bool, nsid: u32) -> Socket {
        // include/net/tcp_states.h.
        const ESTABLISHED: u32 = 1;
        const FIN_WAIT1: u32 = 4;
        const FIN_WAIT2: u32 = 5;
        const CLOSE_WAIT: u32 = 8;
        const LAST_ACK: u32 = 9;
        const LISTEN: u32 = 10;
        const CLOSING: u32 = 11;
        let size = if v4 { Tuple::SIZE4 } else { Tuple::SIZE6 };
        let tuple = core::ptr::from_mut(tuple).cast();
        // SAFETY: valid context; the tuple is live and as long as said.
        let sock = unsafe { bpf_sk_lookup_tcp(self.skb.cast(), tuple, size, u64::from(nsid), 0) };
        if sock.is_null() {
            return Socket::None;
        }
        // SAFETY: a socket that the helper holds for us.
        let state = unsafe { (&raw const (*sock).state).read_volatile() };
        // SAFETY: as above; it is not used again.
        let _: i64 = unsafe { bpf_sk_release(sock.cast()) };
        match state {
            LISTEN => Socket::Listening,
            ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING => {
                Socket::Connected
            }
            _ => Socket::None,
        }
    }

    /// Hands the packet to the neighbour that its destination has on the device `ifindex`, past the IP stack.
    #[inline(always)]
    pub(crate) fn redirect_neigh(self, ifindex: u32) -> i32 {
        // SAFETY: without parameters the kernel looks the next hop up itself.
        (unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }) as i32
    }

    /// Hands the packet to the next hop that is the answer in `fib`, past the IP stack: without it the kernel would
    /// ask its routing table once more.
    #[inline(always)]
    pub(crate) fn redirect_hop(self, fib: &bpf_fib_lookup) -> i32 {
        // SAFETY: a union of integers. The kernel has written the gateway there, or left the destination.
        let ipv6_nh = unsafe { fib.__bindgen_anon_4.ipv6_dst };
        let mut hop = bpf_redir_neigh {
            nh_family: u32::from(fib.family),
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh },
        };
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: a live, initialised parameter block, which the helper copies.
        (unsafe { bpf_redirect_neigh(fib.ifindex, &raw mut hop, size, 0) }) as i32
    }

    /// Hands the packet to the next hop with this IPv4 address on the device `ifindex`, past the IP stack; 0 = the kernel looks
    /// it up.
    #[inline(always)]
    pub(crate) fn redirect_next(self, ifindex: u32, next4: u32) -> i32 {
        const AF_INET: u32 = 2;
        if next4 == 0 {
            return self.redirect_neigh(ifindex);
        }
        let mut hop = bpf_redir_neigh {
            nh_family: AF_INET,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [next4, 0, 0, 0] },
        };
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: as in `redirect_hop`.
        (unsafe { bpf_redirect_neigh(ifindex, &raw mut hop, size, 0) }) as i32
    }

    /// Sends the packet out of the device `ifindex` when the program returns the result.
    #[inline(always)]
    pub(crate) fn redirect(self, ifindex: u32) -> i32 {
        // SAFETY: the helper only stores the target for the return.
        (unsafe { bpf_redirect(ifindex, 0) }) as i32
    }

    /// Lets the packet come in at the other end of the veth `ifindex` when the program returns the result. Without the mark that
    /// this host may have put on it, as when it goes through the veth.
    #[inline(always)]
    pub(crate) fn redirect_peer(self, ifindex: u32) -> i32 {
        /// include/uapi/linux/if_packet.h.
        const PACKET_HOST: u32 = 0;
        // A port of a bridge got a frame for another host. Kernels before 6.15 do not change that.
        // SAFETY: as in `ifindex`.
        if unsafe { (&raw const (*self.skb).pkt_type).read_volatile() } != PACKET_HOST {
            // SAFETY: valid context; both types are ones that the helper knows.
            let _: i64 = unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
        }
        // SAFETY: as in `ifindex`; the field is one that a program may write.
        unsafe { (&raw mut (*self.skb).mark).write_volatile(0) };
        // SAFETY: as in `redirect`.
        (unsafe { bpf_redirect_peer(ifindex, 0) }) as i32
    }
}

/// What a kernel has for the ends of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// Nothing, or a connection that is not open yet or no more.
    None,
    /// A listener.
    Listening,
    /// An open connection, or one that is being closed.
    Connected,
}

/// An answer of the routing table.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    /// By the device with this ifindex, with this MTU in bytes on the way (0 = not told, as long as the neighbor is not known).
    Via(u32, u16),
    /// The packet is bigger than this MTU in bytes.
    TooBig(u16),
    /// Nowhere.
    None,
}

/// IPv4 address of the next hop in an answer of the routing table.
#[inline(always)]
pub(crate) fn next4(fib: &bpf_fib_lookup) -> u32 {
    // SAFETY: a union of integers, which the question has set.
    unsafe { fib.__bindgen_anon_4.ipv4_dst }
}

/// How the checksum of a protocol behaves.
#[derive(Clone, Copy)]
pub(crate) struct ChecksumKind {
    /// UDP: 0 stands for "no checksum" and must neither be changed nor produced (RFC 768).
    pub(crate) udp: bool,
    /// The packet is IPv6.
    pub(crate) v6: bool,
}

impl ChecksumKind {
    #[inline(always)]
    fn mangled(self) -> u64 {
        if self.udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 }
    }

    /// IPv6 has no header checksum to compensate a changed address, so with `CHECKSUM_COMPLETE` the sum of the
    /// whole packet changes; the helper knows since 6.16 (commit ead7f9b8de65).
    #[inline(always)]
    fn flags(self) -> u64 {
        let v6 = self.v6 && kernel::features().contains(Features::CSUM_IPV6);
        self.mangled() | if v6 { u64::from(BPF_F_IPV6) } else { 0 }
    }
}

/// Adds the first `len` bytes of `words`, a multiple of 4 and no more than 512, to a one's complement sum.
#[inline(always)]
pub(crate) fn add_words(sum: u32, words: &mut [u32; PIECE / 4], len: u32) -> u32 {
    let words = words.as_mut_ptr();
    // SAFETY: the verifier proves that there are as many bytes.
    (unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words, len, sum) }) as u32
}

/// Reads what is in memory, whatever the compiler knows of it: so the verifier knows nothing of it, and does not follow
/// each way on that stored something else.
#[inline(always)]
pub(crate) fn reread<T: Copy>(place: &T) -> T {
    // SAFETY: a live place.
    unsafe { core::ptr::from_ref(place).read_volatile() }
}

#[inline(always)]
fn check(ret: i64) -> Result<(), HelperError> {
    if ret == 0 { Ok(()) } else { Err(HelperError) }
}
