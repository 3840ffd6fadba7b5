//! The source port of this node that a flow from outside gets towards its backend on another node. It must be unique for
//! that backend, since it identifies the answer.

use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, age, scope};
use lb_common::hash;
use lb_common::tenure::{self, Holder, OVER};
use lb_common::verdict::Counter;

use crate::conntrack::{self, Claim};
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Inserted, Tracked};
use crate::{kernel, maps};

/// The rank of a port that no flow has, beyond those of `lb_common::tenure`.
const FREE: u32 = OVER + 1;

/// Writes the reply entry of a masqueraded flow, from a free source port. When none of those that were tried is free, the
/// flow gets the port of the one that needs it least (`lb_common::tenure`): neither questions that were answered nor
/// connections that their clients never complete shut out those of others.
#[inline(always)]
pub(crate) fn claim(now: u32) -> Claim {
    Claim::of(masquerade_claim(now))
}

/// Exported, as [`conntrack::claim`] has it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn masquerade_claim(now: u32) -> u32 {
    let Some(scratch) = scratch::get() else { return Claim::Full as u32 };
    claim_port(scratch, now) as u32
}

#[inline(always)]
fn claim_port(scratch: &mut Scratch, now: u32) -> Claim {
    const PORT_TRIES: u32 = 16;
    conntrack::fill_reply(scratch, now);
    let Scratch { key, entry, nat, .. } = scratch;
    // For `masquerade_holder`, which looks it up.
    let claimed_key = *key;
    scratch::hand_over(key, claimed_key);
    entry.epoch = kernel::ticks() as u32;
    let mut tries = PORT_TRIES;
    // In the scratch memory, where the verifier does not distinguish the results of each iteration.
    nat.readiest = 0;
    while tries > 0 {
        tries -= 1;
        scratch::hand_over(&mut key.remote_port, own_port());
        let readiness = masquerade_holder(now);
        if readiness > nat.readiest {
            nat.readiest = readiness;
        }
        if rank(readiness) >= OVER {
            break;
        }
    }
    if nat.readiest == 0 {
        return Claim::Taken;
    }
    key.remote_port = Be16::new(nat.readiest as u16);
    nat.port = key.remote_port;
    if rank(nat.readiest) != FREE {
        return take_over(scratch);
    }
    claimed(tracked::claim(key, entry))
}

/// Of a result of [`masquerade_holder`].
#[inline(always)]
fn rank(readiness: u32) -> u32 {
    tenure::rank(readiness >> 16)
}

/// Another CPU may have been faster.
#[inline(always)]
fn claimed(inserted: Inserted) -> Claim {
    match inserted {
        Inserted::Done => Claim::Done,
        Inserted::Taken => Claim::Taken,
        Inserted::Failed => Claim::Full,
    }
}

/// How ready the flow that has the tuple in the scratch memory is to yield it ([`tenure::readiness`], or [`FREE`]), with
/// its port in the low half; 0 = not at all. Exported, so that the verifier checks it once by itself and not at each turn
/// of the loop.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn masquerade_holder(now: u32) -> u32 {
    let Some(Scratch { parsed, key, partner, other, .. }) = scratch::get() else { return 0 };
    let port = u32::from(key.remote_port.get());
    let Some(reply) = held(key) else { return FREE << (16 + tenure::TIME_BITS) | port };
    *other = reply.entry();
    let flow = &parsed.flow;
    if other.nat_addr == flow.dst
        && other.nat_port == flow.dport
        && other.aux_port == flow.sport
        && other.aux_addr == flow.src
    {
        // Left by an earlier flow between the same ends, which this one replaces.
        return OVER << (16 + tenure::TIME_BITS) | port;
    }
    let mut idle = age(other.last_seen, now);
    let mut forward = CtFlags::NONE;
    if let Some(entry) = forward_of(key, other, partner) {
        forward = entry.flags();
        let silent = age(entry.last_seen(), now);
        if silent < idle {
            idle = silent;
        }
    }
    let readiness = tenure::readiness(&Holder {
        protocol: key.proto,
        reply: other.flags,
        forward,
        idle,
        age: (kernel::ticks() as u32).wrapping_sub(other.epoch),
        hz: kernel::hz(),
    });
    if readiness == 0 { 0 } else { readiness << 16 | port }
}

/// The entry of a tuple, or its copy when others have evicted it.
#[inline(always)]
fn held(key: &CtKey) -> Option<Tracked> {
    match tracked::get(key) {
        Some(entry) => Some(entry),
        None => tracked::kept(key),
    }
}

/// The forward entry of a masqueraded flow, whose key is left in `partner`: if it has not become that of a later flow
/// between the same ends.
#[inline(always)]
fn forward_of(key: &CtKey, reply: &CtEntry, partner: &mut CtKey) -> Option<Tracked> {
    // `lb_common::conntrack::partner` of such an entry, which as a call would need more stack than 6.1 allows here.
    *partner = CtKey {
        local: reply.nat_addr,
        remote: reply.aux_addr,
        local_port: reply.nat_port,
        remote_port: reply.aux_port,
        proto: key.proto,
        scope: scope::EXTERNAL,
        veth: 0,
    };
    let forward = held(partner)?;
    let is_its_own = forward.aux_port() == key.remote_port
        && forward.nat_port() == key.local_port
        && forward.nat_addr() == key.local
        && forward.aux_addr() == key.remote;
    if is_its_own { Some(forward) } else { None }
}

/// Takes the tuple in the scratch memory from the flow that has it: that flow is forgotten.
#[inline(never)]
fn take_over(scratch: &mut Scratch) -> Claim {
    let Scratch { key, entry, partner, other, nat, .. } = scratch;
    if rank(nat.readiest) != OVER {
        maps::count(Counter::PortTakenOver);
    }
    let old = tracked::get(key);
    if let Some(reply) = held(key) {
        *other = reply.entry();
        if let Some(forward) = forward_of(key, other, partner) {
            if forward.flags().contains(CtFlags::COUNTED) {
                maps::change_load(forward.backend_id(), false);
            }
            tracked::delete(partner);
            tracked::unkeep(partner);
        }
        tracked::unkeep(key);
    }
    // Of two CPUs that want the tuple, one removes the entry.
    if old.is_some() && !tracked::delete(key) {
        return Claim::Taken;
    }
    claimed(tracked::claim(key, entry))
}

/// A source port of ours.
#[inline(always)]
fn own_port() -> Be16 {
    let (base, n) = kernel::masquerade_ports();
    Be16::new((base + hash::scale(kernel::random(), n)) as u16)
}
