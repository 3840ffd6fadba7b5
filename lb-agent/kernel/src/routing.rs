//! What the node does to forwarded packets beside its firewall rules: policies of IPsec, and rules that say which routing table is
//! asked.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;

use lb_common::addr::Addr;
use lb_core::cluster::Prefix;
use lb_core::host_rules::routing::{NodeRouting, RoutingRule};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};

use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, text};

/// Of include/uapi/linux/xfrm.h.
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// Length of `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;
/// Where `struct xfrm_userpolicy_info` has the direction: behind selector, lifetimes, priority and index.
const POLICY_DIRECTION: usize = 56 + 64 + 32 + 4 + 4;
/// `XFRM_POLICY_MAX`: those from here on are of single sockets.
const OF_SOCKETS: u8 = 3;
/// `XFRM_USERPOLICY_BLOCK`
const BLOCK: u8 = 1;

/// Length of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;
/// `FR_ACT_TO_TBL`
const TO_TABLE: u8 = 1;
/// `FIB_RULE_INVERT`
const INVERT: u32 = 2;
/// Of include/uapi/linux/fib_rules.h.
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_OIFNAME: u16 = 17;

/// Reads both.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn read() -> io::Result<NodeRouting> {
    let mut rules = Vec::new();
    let mut client = NetlinkClient::open(NETLINK_ROUTE)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; RULE_HEADER];
        header[0] = family as u8;
        let request = NetlinkRequest::new(libc::RTM_GETRULE, Want::Dump, &header);
        let result = client.call(&request, |kind, payload| {
            if kind == libc::RTM_NEWRULE {
                rules.push(rule(payload));
            }
        });
        match result {
            Err(err) if !is_absent(&err) => return Err(err),
            Err(_) | Ok(()) => {}
        }
    }
    Ok(NodeRouting { rules, has_policies: has_policies()? })
}

/// A rule as a message has it. What is not understood of it does not narrow it down.
fn rule(payload: &[u8]) -> RoutingRule {
    let header = payload.get(..RULE_HEADER).unwrap_or_default();
    let byte = |i: usize| header.get(i).copied().unwrap_or(0);
    let number = |value: &[u8]| value.try_into().map_or(0, u32::from_ne_bytes);
    let (bits_to, bits_from) = (byte(1), byte(2));
    let mut found = RoutingRule {
        v6: i32::from(byte(0)) == libc::AF_INET6,
        inverted: header.get(8..).is_some_and(|flags| number(flags) & INVERT != 0),
        table: u32::from(byte(4)),
        ..RoutingRule::default()
    };
    for (kind, value) in attributes(payload.get(RULE_HEADER..).unwrap_or_default()) {
        match kind {
            FRA_DST => found.destination = prefix(value, bits_to),
            FRA_SRC => found.source = prefix(value, bits_from),
            FRA_IIFNAME => found.in_by = text(value),
            FRA_OIFNAME => found.bound_to = text(value),
            FRA_PRIORITY => found.priority = number(value),
            FRA_TABLE => found.table = number(value),
            _ => {}
        }
    }
    if byte(7) != TO_TABLE {
        found.table = 0;
    }
    found
}

fn prefix(value: &[u8], bits: u8) -> Option<Prefix> {
    let v4 = || <[u8; 4]>::try_from(value).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(value).map(IpAddr::from);
    Prefix::new(Addr::from_ip(v4().or_else(|_| v6()).ok()?), bits)
}

/// Whether there are policies of IPsec that forwarded packets could meet.
fn has_policies() -> io::Result<bool> {
    let mut client = match NetlinkClient::open(NETLINK_XFRM) {
        Err(err) if is_absent(&err) => return Ok(false),
        opened => opened?,
    };
    let mut found = false;
    let request = NetlinkRequest::new(XFRM_MSG_GETPOLICY, Want::Dump, &[0; POLICY_ID]);
    client.call(&request, |_, payload| {
        found |= payload.get(POLICY_DIRECTION).is_none_or(|direction| *direction < OF_SOCKETS);
    })?;
    let request = NetlinkRequest::new(XFRM_MSG_GETDEFAULT, Want::Object, &[0; 4]);
    // `in`, `fwd`, `out`.
    let result = client.call(&request, |_, payload| {
        found |= payload.get(..3).is_none_or(|defaults| defaults.contains(&BLOCK));
    });
    match result {
        Err(err) if !is_absent(&err) => Err(err),
        Err(_) | Ok(()) => Ok(found),
    }
}

/// Whether an error says that the kernel has nothing of this kind: built without it, or older than it.
fn is_absent(error: &io::Error) -> bool {
    let absent = [libc::EOPNOTSUPP, libc::EINVAL, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT];
    error.raw_os_error().is_some_and(|code| absent.contains(&code))
}
