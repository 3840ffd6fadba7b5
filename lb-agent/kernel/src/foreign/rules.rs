//! What kube-proxy leaves in the kernel, by one or two names for each of its modes.
//!
//! Its nftables table and its iptables chain are asked for by name, one message each. A legacy table of iptables
//! can only be read as a whole. It is read if the kernel says that one is in use.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Sign;
use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want};
use crate::netfilter::legacy::LISTS;
use crate::netfilter::nftables::{
    GETCHAIN, GETTABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_TABLE_NAME, exists, header,
};
use crate::syscall;
use lb_core::cluster::Family;

const NFPROTO_IPV4: u8 = libc::NFPROTO_IPV4 as u8;
const NFPROTO_IPV6: u8 = libc::NFPROTO_IPV6 as u8;
/// The device of its IPVS mode.
pub const IPVS_DEVICE: &str = "/sys/class/net/kube-ipvs0";
/// In each of its legacy tables; a chain's name ends with a zero.
const CHAIN: &[u8] = b"KUBE-SERVICES\0";

/// Looks for them. What cannot be asked counts as absent.
pub fn find() -> Vec<Sign> {
    let mut signs = Vec::new();
    match in_nftables() {
        Ok(found) => signs.extend(found),
        // A kernel without nf_tables, or no CAP_NET_ADMIN.
        Err(e) => tracing::debug!(err = %e, "cannot read nftables"),
    }
    let legacy = LISTS.into_iter().any(|(family, names)| in_legacy(family, names) == Some(true));
    signs.extend(legacy.then_some(Sign::Legacy));
    signs.extend(Path::new(IPVS_DEVICE).exists().then_some(Sign::Ipvs));
    signs
}

/// Whether kube-proxy's chain is in a legacy table of a family, whose list of tables is the file `names`; `None` when
/// the tables cannot be read.
pub fn in_legacy(family: Family, names: &str) -> Option<bool> {
    let names = fs::read_to_string(names).unwrap_or_default();
    let mut found = false;
    for table in names.lines().filter(|name| matches!(*name, "nat" | "filter")) {
        match syscall::legacy_table(family, table) {
            Ok(contents) => {
                found |= contents.entries.windows(CHAIN.len()).any(|bytes| bytes == CHAIN)
            }
            Err(err) => {
                tracing::debug!(table, %err, "cannot read a legacy iptables table");
                return None;
            }
        }
    }
    Some(found)
}

fn in_nftables() -> io::Result<Option<Sign>> {
    let mut client = NetlinkClient::open(NETLINK_NETFILTER)?;
    for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
        let table = NetlinkRequest::new(GETTABLE, Want::Object, &header(family))
            .attr(NFTA_TABLE_NAME, b"kube-proxy\0");
        if exists(&mut client, &table)? {
            return Ok(Some(Sign::Nftables));
        }
        let chain = NetlinkRequest::new(GETCHAIN, Want::Object, &header(family))
            .attr(NFTA_CHAIN_TABLE, b"nat\0")
            .attr(NFTA_CHAIN_NAME, b"KUBE-SERVICES\0");
        if exists(&mut client, &chain)? {
            return Ok(Some(Sign::Iptables));
        }
    }
    Ok(None)
}
