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

/// Kind of the qdisc at the ingress handle of a device: `clsact`, `ingress`, or none.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn ingress_kind(ifindex: u32) -> io::Result<Option<String>> {
    let mut kind = None;
    let request = NetlinkRequest::new(RTM_GETQDISC, Want::Dump, &tcmsg(ifindex, 0, 0));
    NetlinkClient::open(NETLINK_ROUTE)?.call(&request, |_, payload| {
        let Some((header, rest)) = payload.split_at_checked(TCMSG) else { return };
        let field = |at: usize| header.get(at..at + 4).and_then(|bytes| parse_u32(bytes).ok());
        if field(4) == Some(ifindex) && field(8) == Some(HANDLE) {
            kind = attributes(rest).find(|(kind, _)| *kind == TCA_KIND).map(|(_, v)| text(v));
        }
    })?;
    Ok(kind)
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
