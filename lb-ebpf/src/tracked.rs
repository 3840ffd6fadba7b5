//! The conntrack table, and the copies of entries that others may not evict.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::btf_map;
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey};
use lb_common::limits;

use crate::scratch::{self, Scratch};
use crate::{kernel, maps};

#[btf_map(name = "ct")]
static CT: LruHashMap<CtKey, CtEntry, { limits::CT as usize }> = LruHashMap::new();

/// Copies of the entries of living translated connections. All flows share `ct`, so a flood of new flows evicts entries from
/// it. Entries here are evicted only by others of the same kind. Read if `ct` has no entry.
#[btf_map(name = "kept")]
static KEPT: LruHashMap<CtKey, CtEntry, { limits::KEPT as usize }> = LruHashMap::new();

/// A conntrack entry in the map. Its fields are read and written one by one: other CPUs may do the same, and all
/// they can lose is a timestamp or a TCP flag that the next packet brings again.
#[derive(Clone, Copy)]
pub(crate) struct Tracked(NonNull<CtEntry>);

macro_rules! tracked_field {
    ($($field:ident: $type:ty),+) => {
        $(#[inline(always)]
        pub(crate) fn $field(self) -> $type {
            // SAFETY: points to a live map value for the run of the program.
            unsafe { (&raw const (*self.0.as_ptr()).$field).read() }
        })+
    };
}

impl Tracked {
    /// An entry that was just written to the map, as it is in the scratch memory: to be read.
    #[inline(always)]
    pub(crate) fn written(entry: &mut CtEntry) -> Self {
        Self(NonNull::from(entry))
    }

    tracked_field!(
        nat_addr: Addr,
        aux_addr: Addr,
        nat_port: Be16,
        aux_port: Be16,
        backend_id: u32,
        backend_gen: u32,
        last_seen: u32,
        epoch: u32,
        flags: CtFlags,
        way: Addr
    );

    /// Writes the number of the policies that allow the flow.
    #[inline(always)]
    pub(crate) fn set_epoch(self, epoch: u32) {
        // SAFETY: as in the readers; aligned 32-bit store.
        unsafe { (&raw mut (*self.0.as_ptr()).epoch).write(epoch) };
    }

    /// All of it.
    #[inline(always)]
    pub(crate) fn entry(self) -> CtEntry {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().read() }
    }

    /// Writes the flags.
    #[inline(always)]
    pub(crate) fn set_flags(self, flags: CtFlags) {
        // SAFETY: as in the readers; aligned 32-bit store.
        unsafe { (&raw mut (*self.0.as_ptr()).flags).write(flags) };
    }

    /// Writes the way past the IP stack.
    #[inline(always)]
    pub(crate) fn set_way(self, way: Addr) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).way).write(way) };
    }

    /// Writes the sequence number behind a FIN, in a reply entry.
    #[inline(always)]
    pub(crate) fn set_fin_end(self, end: u32) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0.as_ptr()).backend_id).write(0);
            (&raw mut (*self.0.as_ptr()).backend_gen).write(end);
        }
    }

    /// Notes when the last packet came.
    #[inline(always)]
    pub(crate) fn stamp(self, now: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).last_seen).write(now) };
    }
}

#[inline(always)]
pub(crate) fn get(key: &CtKey) -> Option<Tracked> {
    CT.get_ptr_mut(key).and_then(NonNull::new).map(Tracked)
}

/// The result of an insertion.
pub(crate) enum Inserted {
    Done,
    Taken,
    Failed,
}

/// Inserts only where nothing is.
#[inline(always)]
pub(crate) fn claim(key: &CtKey, entry: &CtEntry) -> Inserted {
    const EEXIST: i32 = -17;
    match CT.insert(key, entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => Inserted::Done,
        Err(EEXIST) => Inserted::Taken,
        Err(_) => Inserted::Failed,
    }
}

/// Inserts or replaces. The kernel answers EBUSY or ENOMEM under contention; one more try usually gets through.
#[inline(always)]
pub(crate) fn put(key: &CtKey, entry: &CtEntry) -> bool {
    CT.insert(key, entry, u64::from(BPF_ANY)).is_ok()
        || CT.insert(key, entry, u64::from(BPF_ANY)).is_ok()
}

/// Removes an entry; whether it was there. What was counted of its packets goes with it. A function of its own, since the stack of
/// the programs is short.
#[inline(never)]
pub(crate) fn delete(key: &CtKey) -> bool {
    if kernel::counts_flows() {
        forget_counts(key);
    }
    CT.remove(key).is_ok()
}

/// Forgets what was counted of both directions that the key names.
#[inline(always)]
fn forget_counts(key: &CtKey) {
    let Some(Scratch { account, .. }) = scratch::get() else { return };
    (account.src, account.dst) = (key.local, key.remote);
    (account.sport, account.dport) = (key.local_port, key.remote_port);
    (account.proto, account.pad) = (key.proto, [0; 3]);
    maps::forget_account(account);
    (account.src, account.dst) = (key.remote, key.local);
    (account.sport, account.dport) = (key.remote_port, key.local_port);
    maps::forget_account(account);
}

/// The copy of an entry.
#[inline(always)]
pub(crate) fn kept(key: &CtKey) -> Option<Tracked> {
    KEPT.get_ptr_mut(key).and_then(NonNull::new).map(Tracked)
}

/// Keeps a copy of an entry; without one it can be evicted like any other. Whether there was room.
#[inline(always)]
pub(crate) fn keep(key: &CtKey, entry: &CtEntry) -> bool {
    KEPT.insert(key, entry, u64::from(BPF_ANY)).is_ok()
}

/// Forgets the copy of an entry; whether there was one.
#[inline(always)]
pub(crate) fn unkeep(key: &CtKey) -> bool {
    KEPT.remove(key).is_ok()
}
