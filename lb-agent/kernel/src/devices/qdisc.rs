//! The clsact qdisc of a device, where programs attach before Linux 6.6.
#![forbid(unsafe_code)]

use std::io;

use libc::{RTM_DELQDISC, RTM_GETQDISC, RTM_GETTFILTER, TCA_KIND};
use netlink_packet_core::parse_u32;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, text, word32};

/// Length of `struct tcmsg`.
const TCMSG: usize = 20;
/// `TC_H_CLSACT`, also `TC_H_INGRESS`: parent of both qdiscs.
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// Handle of both qdiscs.
const HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of it.
const HOOKS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// The qdiscs of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qdiscs {
    /// Kind of the one at the ingress handle: `clsact`, `ingress`, or none.
    pub ingress: Option<String>,
    /// Whether packets that leave are queued, delayed or counted: any other than `noqueue`.
    pub queues: bool,
}

impl Qdiscs {
    /// One more, of this handle and kind.
    fn add(&mut self, handle: u32, kind: String) {
        if handle == HANDLE {
            self.ingress = Some(kind);
        } else {
            self.queues |= kind != "noqueue";
        }
    }
}

/// The qdiscs of a device.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn of_device(ifindex: u32) -> io::Result<Qdiscs> {
    let mut qdiscs = Qdiscs::default();
    let request = NetlinkRequest::new(RTM_GETQDISC, Want::Dump, &tcmsg(ifindex, 0, 0));
    NetlinkClient::open(NETLINK_ROUTE)?.call(&request, |_, payload| {
        let Some((header, rest)) = payload.split_at_checked(TCMSG) else { return };
        let kind = attributes(rest).find(|(kind, _)| *kind == TCA_KIND).map(|(_, v)| text(v));
        if device(header) == Some(ifindex)
            && let (Some(handle), Some(kind)) = (word(header, 8), kind)
        {
            qdiscs.add(handle, kind);
        }
    })?;
    Ok(qdiscs)
}

/// ifindex of the device that a message about a qdisc or filter is about.
pub fn device(payload: &[u8]) -> Option<u32> {
    word(payload, 4)
}

/// The word of a `struct tcmsg` at an offset.
fn word(header: &[u8], at: usize) -> Option<u32> {
    header.get(at..at + 4).and_then(|bytes| parse_u32(bytes).ok())
}

/// Whether any filter is left at the clsact qdisc of a device.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn has_filters(ifindex: u32) -> io::Result<bool> {
    let mut client = NetlinkClient::open(NETLINK_ROUTE)?;
    let mut any = false;
    for parent in HOOKS {
        let request = NetlinkRequest::new(RTM_GETTFILTER, Want::Dump, &tcmsg(ifindex, 0, parent));
        client.call(&request, |_, _| any = true)?;
    }
    Ok(any)
}

/// Removes the clsact qdisc of a device.
///
/// # Errors
/// When the kernel refuses; a device or qdisc that is already gone is fine.
pub fn delete_clsact(ifindex: u32) -> io::Result<()> {
    let request =
        NetlinkRequest::new(RTM_DELQDISC, Want::Done, &tcmsg(ifindex, HANDLE, TC_H_CLSACT));
    match NetlinkClient::open(NETLINK_ROUTE)?.call(&request, |_, _| {}) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other,
    }
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    header[4..8].copy_from_slice(&word32(ifindex));
    header[8..12].copy_from_slice(&word32(handle));
    header[12..16].copy_from_slice(&word32(parent));
    header
}

#[cfg(test)]
mod tests {
    use super::{HANDLE, Qdiscs};

    #[test]
    fn qdiscs_are_distinguished() {
        let of = |all: &[(u32, &str)]| {
            let mut qdiscs = Qdiscs::default();
            all.iter().for_each(|(handle, kind)| qdiscs.add(*handle, (*kind).to_owned()));
            (qdiscs.ingress, qdiscs.queues)
        };
        let ingress = |kind: &str| Some(kind.to_owned());
        assert_eq!(of(&[(0, "noqueue")]), (None, false));
        assert_eq!(of(&[(0, "noqueue"), (HANDLE, "clsact")]), (ingress("clsact"), false));
        assert_eq!(of(&[(0x1_0000, "tbf")]), (None, true));
        assert_eq!(of(&[(HANDLE, "ingress"), (0x1_0000, "tbf")]), (ingress("ingress"), true));
    }
}
