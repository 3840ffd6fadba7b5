//! What else handles packets at the host's end of a Pod's veth: programs and filters behind ours, queues. What goes past the IP
//! stack does not get to those at its ingress; what goes past the device, to none.
#![forbid(unsafe_code)]

use std::io;

use crate::bpf::attach::Mechanism;
use crate::devices::qdisc::{self, Qdiscs};
use crate::syscall::{self, TcxHook};

/// What there is beside our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbors {
    /// Programs or filters that see what comes in by the device.
    pub ingress: bool,
    /// Programs or filters that see what leaves by it.
    pub egress: bool,
    /// A queue for what leaves by it.
    pub queue: bool,
}

impl Neighbors {
    /// What has to be assumed as long as nothing is known.
    pub const UNKNOWN: Self = Self { ingress: true, egress: true, queue: true };
}

/// What a device has beside our programs, of which there are `ours` at each hook. With clsact, whose filters are not distinguished, that is always others.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn look(ifindex: u32, mechanism: Mechanism, ours: u32) -> io::Result<Neighbors> {
    if mechanism != Mechanism::Tcx {
        return Ok(Neighbors::UNKNOWN);
    }
    let others = |hook| {
        let programs = syscall::count_tcx(ifindex, hook)?;
        io::Result::Ok(programs != ours)
    };
    let Qdiscs { ingress, queues: queue } = qdisc::of_device(ifindex)?;
    // A qdisc there has filters, or is about to get some.
    let filters = ingress.is_some();
    Ok(Neighbors {
        ingress: others(TcxHook::Ingress)? || filters,
        egress: others(TcxHook::Egress)? || filters,
        queue,
    })
}
