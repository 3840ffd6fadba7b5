//! The context of the socket programs, and what a socket remembers.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr};
use aya_ebpf::btf_maps::{LruHashMap, SkStorage};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use lb_common::limits;
use lb_common::socket::{REMEMBERED, SkMoreKey, SkNat, SkNatRing};

use crate::kernel;

const RING_MASK: u32 = REMEMBERED as u32 - 1;

#[btf_map(name = "sk_nat")]
static SK_NAT: SkStorage<SkNatRing> = SkStorage::new();

/// Translations of sockets that have no room for them.
#[btf_map(name = "sk_more")]
static SK_MORE: LruHashMap<SkMoreKey, SkNat, { limits::SK_MORE as usize }> = LruHashMap::new();

/// Whether the socket belongs to the host network namespace.
#[inline(always)]
pub(crate) fn is_host_socket(ctx: &SockAddrContext) -> bool {
    // SAFETY: valid context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    cookie == kernel::netns_cookie()
}

/// What the socket of `ctx` remembers.
#[inline(always)]
pub(crate) fn remembered(ctx: &SockAddrContext) -> Option<NonNull<SkNatRing>> {
    NonNull::new(SK_NAT.get_ptr_mut(ctx))
}

/// The same, made when there is none; `None` when the kernel has no memory for it.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext) -> Option<NonNull<SkNatRing>> {
    NonNull::new(SK_NAT.get_or_insert_ptr_mut(ctx, None))
}

/// A number that no other socket ever has.
#[inline(always)]
pub(crate) fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: valid context.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// A translation that its socket had no room for.
#[inline(always)]
pub(crate) fn more(key: &SkMoreKey) -> Option<&'static SkNat> {
    // SAFETY: read at once; a slot recycled in between gives another socket's translation, which is no worse than none.
    unsafe { SK_MORE.get(key) }
}

/// Remembers a translation that its socket has no room for; whether there was room here. Without, its answers come from the
/// backend.
#[inline(always)]
pub(crate) fn put_more(key: &SkMoreKey, nat: &SkNat) -> bool {
    SK_MORE.insert(key, nat, u64::from(BPF_ANY)).is_ok()
}

/// The place that the next translation takes, not yet masked.
#[inline(always)]
pub(crate) fn ring_next(ring: NonNull<SkNatRing>) -> u32 {
    // SAFETY: points to the socket's storage, which lives as long as the program runs.
    unsafe { (&raw const (*ring.as_ptr()).next).read() }
}

/// Reads place `index`, which the caller has masked to the ring.
#[inline(always)]
pub(crate) fn ring_get(ring: NonNull<SkNatRing>, index: u32) -> SkNat {
    // SAFETY: as in `ring_next`; the mask keeps the index inside, which the verifier proves again.
    let entries = unsafe { (&raw const (*ring.as_ptr()).entries).cast::<SkNat>() };
    // SAFETY: as above.
    unsafe { entries.add((index & RING_MASK) as usize).read() }
}

/// Writes place `index` and the new `next`.
#[inline(always)]
pub(crate) fn ring_set(ring: NonNull<SkNatRing>, index: u32, next: u32, entry: &SkNat) {
    // SAFETY: as in `ring_get`.
    let entries = unsafe { (&raw mut (*ring.as_ptr()).entries).cast::<SkNat>() };
    // SAFETY: as in `ring_get`.
    unsafe { entries.add((index & RING_MASK) as usize).write(*entry) };
    // SAFETY: as in `ring_next`.
    unsafe { (&raw mut (*ring.as_ptr()).next).write(next) };
}

/// Makes the system call of a refused socket operation fail with `errno`.
#[inline(always)]
pub(crate) fn set_errno(errno: i32) {
    // A refusal by the helper leaves EPERM, the default.
    // SAFETY: a helper with a plain number.
    let _: i32 = unsafe { bpf_set_retval(-errno) };
}

/// The address fields of a socket program's context.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr(*mut bpf_sock_addr);

macro_rules! sock_field {
    ($name:ident, $set:ident, $($field:tt)+) => {
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: valid context. Volatile: the verifier wants each field read by itself, at its width.
            unsafe { (&raw const (*self.0).$($field)+).read_volatile() }
        }

        #[inline(always)]
        pub(crate) fn $set(self, value: u32) {
            // SAFETY: as above; these fields are writable in the programs that use this.
            unsafe { (&raw mut (*self.0).$($field)+).write_volatile(value) };
        }
    };
}

impl SockAddr {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    sock_field!(ip4, set_ip4, user_ip4);
    sock_field!(ip6_0, set_ip6_0, user_ip6[0]);
    sock_field!(ip6_1, set_ip6_1, user_ip6[1]);
    sock_field!(ip6_2, set_ip6_2, user_ip6[2]);
    sock_field!(ip6_3, set_ip6_3, user_ip6[3]);
    sock_field!(port, set_port, user_port);

    /// IP protocol number of the socket.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).protocol).read_volatile() }
    }
}
