//! Which other programs see what a Pod sends: those that stand behind ours on its device. A packet that goes past the IP stack
//! does not get to them.
#![forbid(unsafe_code)]

use std::io;

use aya::programs::tc::TcAttachType;
use aya::programs::{NetworkInterface, SchedClassifier};

use crate::bpf::attach::Mechanism;
use crate::devices::qdisc;

/// Whether our program is the only one that sees what comes in by a device. With clsact, whose filters are not distinguished,
/// it never is.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn is_alone_at_ingress(ifindex: u32, mechanism: Mechanism) -> io::Result<bool> {
    if mechanism != Mechanism::Tcx {
        return Ok(false);
    }
    let device = NetworkInterface::Index(ifindex);
    let (_, programs) =
        SchedClassifier::query_tcx(device, TcAttachType::Ingress).map_err(io::Error::other)?;
    // A qdisc there has filters, or is about to get some.
    Ok(programs.len() == 1 && qdisc::ingress_kind(ifindex)?.is_none())
}
