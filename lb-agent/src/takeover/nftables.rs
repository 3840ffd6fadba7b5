//! kube-proxy's rules in nf_tables, its own (nftables mode) and those of iptables-nft: found and removed by netlink, so
//! that no binary of the host is needed (include/uapi/linux/netfilter/nf_tables.h).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::chains::{self, Jump};
use lb_kernel::devices::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, text};
use lb_kernel::netfilter::nftables::{
    GETCHAIN, GETRULE, NF_DROP, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE,
    NFTA_TABLE_NAME, NFTABLES, fields, header, is_unsupported, name, tables, target,
};

const DELTABLE: u16 = NFTABLES | libc::NFT_MSG_DELTABLE as u16;
const DELCHAIN: u16 = NFTABLES | libc::NFT_MSG_DELCHAIN as u16;
const DELRULE: u16 = NFTABLES | libc::NFT_MSG_DELRULE as u16;
const BATCH: (u16, u16) = (libc::NFNL_MSG_BATCH_BEGIN as u16, libc::NFNL_MSG_BATCH_END as u16);
/// Families, as `nft` calls them.
pub(super) const FAMILIES: [(u8, &str); 2] =
    [(libc::NFPROTO_IPV4 as u8, "ip"), (libc::NFPROTO_IPV6 as u8, "ip6")];
/// The table of kube-proxy's nftables mode.
const OWN_TABLE: &str = "kube-proxy";
/// Tables of iptables-nft.
const IPTABLES: [&str; 4] = ["nat", "filter", "mangle", "raw"];
/// Requests a transaction: well below the usual send buffer (208 KiB).
const CHUNK: usize = 1000;

/// A rule's chain and handle.
type RuleHandle = (String, [u8; 8]);

/// kube-proxy's rules in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NftablesRules {
    family: u8,
    /// `ip nat`, as `nft` shows it.
    pub name: String,
    table: String,
    /// kube-proxy's own table: it goes as a whole.
    pub is_own: bool,
    /// Rules in others' chains.
    pub jumps: Vec<RuleHandle>,
    pub chains: Vec<String>,
    /// Its chains that stay, since other rules use them.
    pub kept: Vec<String>,
    /// The policy of the chain `FORWARD` is to drop: what kube-proxy accepted there is dropped then.
    pub drops_forward: bool,
}

/// Looks for kube-proxy's rules. A kernel without nf_tables has none.
///
/// # Errors
/// When the kernel refuses; needs `CAP_NET_ADMIN`.
pub(super) fn find() -> io::Result<Vec<NftablesRules>> {
    let mut client = NetlinkClient::open(NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    for (family, word) in FAMILIES {
        let tables = match tables(&mut client, family) {
            Err(e) if is_unsupported(&e) => continue,
            other => other?,
        };
        let mut contents = contents(&mut client, family)?;
        for table in tables {
            let TableContents { chains, jumps, drops_forward } =
                contents.remove(&table).unwrap_or_default();
            let is_own = table == OWN_TABLE;
            let mut part = NftablesRules {
                family,
                name: format!("{word} {table}"),
                is_own,
                jumps: Vec::new(),
                chains: Vec::new(),
                kept: Vec::new(),
                drops_forward: false,
                table,
            };
            if is_own {
                part.chains = chains.into_iter().map(|(name, _)| name).collect();
            } else if IPTABLES.contains(&part.table.as_str()) {
                let doomed = chains::doomed(chains.into_iter().map(|(name, _)| name), jumps);
                (part.jumps, part.chains, part.kept) = (doomed.jumps, doomed.chains, doomed.kept);
                part.drops_forward = drops_forward;
                if part.chains.is_empty() && part.kept.is_empty() {
                    continue;
                }
            } else {
                continue;
            }
            found.push(part);
        }
    }
    Ok(found)
}

/// Removes what was found: first, in one transaction, all that takes effect; then what is left over of it.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn remove(found: &[NftablesRules]) -> io::Result<()> {
    let mut first = Vec::new();
    let (mut flushes, mut deletions) = (Vec::new(), Vec::new());
    for part in found {
        let request = |message: u16| NetlinkRequest::new(message, Want::Done, &header(part.family));
        let table = name(&part.table);
        if part.is_own {
            first.push(request(DELTABLE).attr(NFTA_TABLE_NAME, &table));
            continue;
        }
        for (chain, handle) in &part.jumps {
            first.push(
                request(DELRULE)
                    .attr(NFTA_RULE_TABLE, &table)
                    .attr(NFTA_RULE_CHAIN, &name(chain))
                    .attr(NFTA_RULE_HANDLE, handle),
            );
        }
        for chain in &part.chains {
            // Without a handle: all rules of the chain. They lead to other chains, which cannot go before.
            flushes.push(
                request(DELRULE).attr(NFTA_RULE_TABLE, &table).attr(NFTA_RULE_CHAIN, &name(chain)),
            );
            deletions.push(
                request(DELCHAIN)
                    .attr(NFTA_CHAIN_TABLE, &table)
                    .attr(NFTA_CHAIN_NAME, &name(chain)),
            );
        }
    }
    let mut client = NetlinkClient::open(NETLINK_NETFILTER)?;
    let rest = flushes.chunks(CHUNK).chain(deletions.chunks(CHUNK));
    for requests in std::iter::once(first.as_slice()).chain(rest).filter(|part| !part.is_empty()) {
        let frame = |message: u16| {
            // The resource id is that of the subsystem, in network order.
            NetlinkRequest::new(message, Want::Nothing, &[0, 0, 0, (NFTABLES >> 8) as u8])
        };
        client.transaction(&frame(BATCH.0), requests, &frame(BATCH.1))?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct TableContents {
    /// Name, and whether the kernel itself calls it.
    chains: Vec<(String, bool)>,
    jumps: Vec<Jump<RuleHandle>>,
    drops_forward: bool,
}

fn contents(client: &mut NetlinkClient, family: u8) -> io::Result<BTreeMap<String, TableContents>> {
    let mut contents = BTreeMap::<String, TableContents>::new();
    client.call(&NetlinkRequest::new(GETCHAIN, Want::Dump, &header(family)), |_, payload| {
        let (mut table, mut chain, mut hook, mut drops) = Default::default();
        for (kind, value) in fields(payload) {
            match kind {
                NFTA_CHAIN_TABLE => table = text(value),
                NFTA_CHAIN_NAME => chain = text(value),
                NFTA_CHAIN_HOOK => hook = true,
                NFTA_CHAIN_POLICY => drops = value == NF_DROP,
                _ => {}
            }
        }
        let contents = contents.entry(table).or_default();
        contents.drops_forward |= hook && drops && chain == "FORWARD";
        contents.chains.push((chain, hook));
    })?;
    let hooks: BTreeSet<(String, String)> = contents
        .iter()
        .flat_map(|(table, contents)| {
            let hooks = contents.chains.iter().filter(|(_, hook)| *hook);
            hooks.map(|(chain, _)| (table.clone(), chain.clone()))
        })
        .collect();
    client.call(&NetlinkRequest::new(GETRULE, Want::Dump, &header(family)), |_, payload| {
        if let Some((table, mut jump)) = jump(payload) {
            jump.from_hook = hooks.contains(&(table.clone(), jump.from.clone()));
            contents.entry(table).or_default().jumps.push(jump);
        }
    })?;
    Ok(contents)
}

/// The table and the jump of a rule, if its verdict names a chain.
fn jump(payload: &[u8]) -> Option<(String, Jump<RuleHandle>)> {
    let (mut table, mut from, mut handle, mut to) = (None, None, None, None);
    for (kind, value) in fields(payload) {
        match kind {
            NFTA_RULE_TABLE => table = Some(text(value)),
            NFTA_RULE_CHAIN => from = Some(text(value)),
            NFTA_RULE_HANDLE => handle = value.try_into().ok(),
            NFTA_RULE_EXPRESSIONS => to = attributes(value).find_map(|(_, value)| target(value)),
            _ => {}
        }
    }
    let from = from?;
    Some((table?, Jump { rule: (from.clone(), handle?), from, from_hook: false, to: to? }))
}
