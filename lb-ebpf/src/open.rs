//! The first packet of a flow to a Service, wherever it comes from: chooses a backend, says how the flow gets there, asks
//! whether it may, and claims its tuple. What differs between Pods and clients outside is an [`Opener`].

use lb_common::conntrack::CtFlags;
use lb_common::service::{Frontend, FrontendFlags};
use lb_common::verdict::DropReason;

use crate::conntrack::Claim;
use crate::packet::Packet;
use crate::scratch::Scratch;
use crate::service::{self, Client};
use crate::trace;
use crate::verdict::Verdict;

/// Who opens a flow: a Pod, or a client outside.
pub(crate) trait Opener {
    /// Says in `scratch.nat` how the flow gets to its target, of which the flags are set, and asks whether it may.
    fn place(packet: Packet, scratch: &mut Scratch) -> Result<(), Verdict>;

    /// Writes the reply entry of the flow in `scratch.nat`.
    fn claim(scratch: &Scratch, now: u32) -> Claim;

    /// The packet is dropped: for this reason, at the Service port.
    fn drop(reason: DropReason, service_id: u32) -> Verdict;
}

/// Chooses a backend of the frontend and claims the tuple of the flow towards it. The reply entry stands then, and
/// `scratch.nat` has what the forward entry is made from. `kind` is what all such flows are.
#[inline(always)]
pub(crate) fn to_backend<O: Opener>(
    packet: Packet,
    scratch: &mut Scratch,
    (frontend, client): (&Frontend, &Client),
    kind: CtFlags,
    now: u32,
) -> Result<(), Verdict> {
    const TRIES: u32 = 6;
    const OWN_PORT_TRIES: u32 = 3;
    let service_id = frontend.service_id;
    scratch.nat.full = false;
    let mut attempt = 0;
    while attempt < TRIES {
        attempt += 1;
        let nat = &mut scratch.nat;
        if !service::choose(frontend, client, &mut nat.target) {
            continue;
        }
        trace::chosen();
        nat.service_id = service_id;
        nat.flags = kind;
        if attempt > OWN_PORT_TRIES {
            nat.flags |= CtFlags::PORT_MAPPED;
        }
        if frontend.flags.contains(FrontendFlags::LEAST_CONNECTIONS) {
            nat.flags |= CtFlags::COUNTED;
        }
        O::place(packet, scratch)?;
        match O::claim(scratch, now) {
            Claim::Taken => scratch.nat.full = false,
            // A kernel before 6.15 may refuse some insertions, by their hash. With another port it takes this one.
            Claim::Full => {
                scratch.nat.full = true;
                attempt = OWN_PORT_TRIES.max(attempt);
            }
            Claim::Done => return Ok(()),
        }
    }
    let reason = if scratch.nat.full {
        DropReason::ConntrackFull
    } else if scratch.nat.flags.contains(CtFlags::MASQUERADED) {
        DropReason::MasqueradeExhausted
    } else {
        DropReason::TupleExhausted
    };
    Err(O::drop(reason, service_id))
}
