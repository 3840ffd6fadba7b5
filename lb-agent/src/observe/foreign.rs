//! Is kube-proxy at work beside us? Its rules would translate before or after us, and `kubeadm upgrade` brings it
//! back (kubernetes#129415).
//!
//! Its nftables table and its iptables chain are asked for by name, one message each. Rules of the legacy iptables
//! cannot be listed that way; there the process tells, if its PID namespace is ours.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::devices::netlink::{Client, Request, Want};

/// `NFNL_SUBSYS_NFTABLES << 8`.
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_GETTABLE: u16 = NFTABLES | 1;
const NFT_MSG_GETCHAIN: u16 = NFTABLES | 4;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// A trace of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The table `kube-proxy` of its nftables mode.
    Nftables,
    /// The chain `KUBE-SERVICES` of its iptables mode.
    Iptables,
    /// A process of that name.
    Process,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "its nftables table kube-proxy is here",
            Self::Iptables => "its iptables chain KUBE-SERVICES is here",
            Self::Process => "a process kube-proxy is running",
        })
    }
}

/// Looks for traces. What cannot be asked counts as absent.
pub fn detect() -> Option<Foreign> {
    match in_nftables() {
        Ok(Some(found)) => return Some(found),
        Ok(None) => {}
        // A kernel without nf_tables, or no CAP_NET_ADMIN.
        Err(e) => tracing::debug!(err = %e, "nftables not readable"),
    }
    is_running().then_some(Foreign::Process)
}

fn in_nftables() -> io::Result<Option<Foreign>> {
    let mut client = Client::open(NETLINK_NETFILTER)?;
    for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
        let table = Request::new(NFT_MSG_GETTABLE, Want::Object, &header(family))
            .attr(NFTA_TABLE_NAME, b"kube-proxy\0");
        if exists(&mut client, &table)? {
            return Ok(Some(Foreign::Nftables));
        }
        let chain = Request::new(NFT_MSG_GETCHAIN, Want::Object, &header(family))
            .attr(NFTA_CHAIN_TABLE, b"nat\0")
            .attr(NFTA_CHAIN_NAME, b"KUBE-SERVICES\0");
        if exists(&mut client, &chain)? {
            return Ok(Some(Foreign::Iptables));
        }
    }
    Ok(None)
}

fn exists(client: &mut Client, request: &Request) -> io::Result<bool> {
    match client.call(request, |_, _| {}) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `struct nfgenmsg`: family, version 0, resource id 0.
fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// Whether a process of that name works on our network namespace: others are another node's.
pub fn is_running() -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let ours = fs::read_link("/proc/self/ns/net").ok();
    processes
        .flatten()
        .filter(|entry| {
            entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit())
        })
        .map(|entry| entry.path())
        .filter(|path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "kube-proxy")
        })
        // A process with more privileges than ours does not let us look: it is the node's, then.
        .any(|path| fs::read_link(path.join("ns/net")).map_or(true, |netns| Some(netns) == ours))
}
