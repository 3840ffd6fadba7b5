//! The tables of nf_tables with chains that forwarded packets pass.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use lb_core::host_rules::{BaseChain, ChainHook, HostChain, HostRule, HostTable, TableFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::elements::{self, SetElements};
use super::expression;
use super::nftables::{
    GETCHAIN, GETRULE, NF_DROP, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE,
    NFTA_RULE_TABLE, fields, generation, header, is_unsupported,
};
use super::{RULES, RulesError, is_of_kube_proxy};
use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, text};

const NFTA_HOOK_NUMBER: u16 = 1;
const NFTA_HOOK_DEVICE: u16 = 3;
const NFTA_HOOK_DEVICES: u16 = 4;
/// The table of kube-proxy's nftables mode.
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// Lists are read again if the rules change meanwhile.
const TRIES: usize = 5;

type TableKey = (u8, String);

/// Reads them; nothing if the kernel has no nf_tables.
pub(super) fn read() -> Result<Vec<HostTable>, RulesError> {
    for _ in 0..TRIES {
        let before = generation()?;
        if before.is_none() {
            return Ok(Vec::new());
        }
        let mut client = NetlinkClient::open(NETLINK_NETFILTER)?;
        let mut tables = chains(&mut client)?;
        tables.retain(|_, table| table.chains.values().any(|chain| chain.base.is_some()));
        rules(&mut client, &mut tables)?;
        if generation()? == before {
            return Ok(tables.into_values().collect());
        }
    }
    Err(RulesError::Io(std::io::ErrorKind::ResourceBusy.into()))
}

fn chains(client: &mut NetlinkClient) -> Result<BTreeMap<TableKey, HostTable>, RulesError> {
    let mut tables = BTreeMap::<TableKey, HostTable>::new();
    let request = NetlinkRequest::new(GETCHAIN, Want::Dump, &header(libc::NFPROTO_UNSPEC as u8));
    let result = client.call(&request, |_, payload| {
        let Some((family, word, number)) = payload.first().and_then(|number| family(*number))
        else {
            return;
        };
        let (mut table, mut name, mut hook, mut kind) = Default::default();
        let mut drops = false;
        for (attribute, value) in fields(payload) {
            match attribute {
                NFTA_CHAIN_TABLE => table = text(value),
                NFTA_CHAIN_NAME => name = text(value),
                NFTA_CHAIN_HOOK => hook = Some(value.to_vec()),
                NFTA_CHAIN_TYPE => kind = text(value),
                NFTA_CHAIN_POLICY => drops = value == NF_DROP,
                _ => {}
            }
        }
        if table == KUBE_PROXY_TABLE {
            return;
        }
        let base = hook.and_then(|hook| {
            let (hook, devices) = self::hook(family, &hook)?;
            Some(BaseChain { hook, first_only: kind == "nat", drops, devices })
        });
        let title = format!("{word} {table}");
        let contents = tables.entry((number, table.clone())).or_insert_with(|| HostTable {
            family,
            title,
            name: table,
            chains: BTreeMap::new(),
        });
        contents.chains.insert(name, HostChain { base, rules: Vec::new() });
    });
    match result {
        Err(err) if !is_unsupported(&err) => Err(err.into()),
        Err(_) | Ok(()) => Ok(tables),
    }
}

/// The family of a table: record, word, number.
fn family(number: u8) -> Option<(TableFamily, &'static str, u8)> {
    let (family, word) = match i32::from(number) {
        libc::NFPROTO_IPV4 => (TableFamily::V4, "ip"),
        libc::NFPROTO_IPV6 => (TableFamily::V6, "ip6"),
        libc::NFPROTO_INET => (TableFamily::Inet, "inet"),
        libc::NFPROTO_BRIDGE => (TableFamily::Bridge, "bridge"),
        libc::NFPROTO_NETDEV => (TableFamily::Netdev, "netdev"),
        // ARP has no flows.
        _ => return None,
    };
    Some((family, word, number))
}

/// Where a base chain is called, and for which devices; `None` = where packets between Pods do not get to, or where they get to
/// past the IP stack, too.
fn hook(family: TableFamily, bytes: &[u8]) -> Option<(ChainHook, Vec<String>)> {
    let (mut number, mut devices) = (None, Vec::new());
    for (kind, value) in attributes(bytes) {
        match kind {
            NFTA_HOOK_NUMBER => number = value.try_into().ok().map(u32::from_be_bytes),
            NFTA_HOOK_DEVICE => devices.push(text(value)),
            NFTA_HOOK_DEVICES => devices.extend(attributes(value).map(|(_, name)| text(name))),
            _ => {}
        }
    }
    let hook = match (family, number?) {
        (TableFamily::Netdev, 0) | (TableFamily::Inet, 5) => ChainHook::Ingress,
        (TableFamily::Netdev, _) => return None,
        (_, 0) => ChainHook::Prerouting,
        (TableFamily::Bridge, 1) => ChainHook::Input,
        (TableFamily::Bridge, 3) => ChainHook::Output,
        (_, 2) => ChainHook::Forward,
        (_, 4) => ChainHook::Postrouting,
        _ => return None,
    };
    Some((hook, devices))
}

fn rules(
    client: &mut NetlinkClient,
    tables: &mut BTreeMap<TableKey, HostTable>,
) -> Result<(), RulesError> {
    // Sets are asked for while the rules arrive.
    let mut beside = NetlinkClient::open(NETLINK_NETFILTER)?;
    let mut sets = HashMap::<(TableKey, String), Option<SetElements>>::new();
    let mut n = 0;
    let request = NetlinkRequest::new(GETRULE, Want::Dump, &header(libc::NFPROTO_UNSPEC as u8));
    client.call(&request, |_, payload| {
        let (mut table, mut name, mut handle, mut list) = (String::new(), String::new(), 0, None);
        for (attribute, value) in fields(payload) {
            match attribute {
                NFTA_RULE_TABLE => table = text(value),
                NFTA_RULE_CHAIN => name = text(value),
                NFTA_RULE_HANDLE => handle = value.try_into().map_or(0, u64::from_be_bytes),
                NFTA_RULE_EXPRESSIONS => list = Some(value),
                _ => {}
            }
        }
        let Some(family) = payload.first().copied() else { return };
        let key = (family, table);
        let Some(found) = tables.get_mut(&key) else { return };
        let Some(chain) = found.chains.get_mut(&name).filter(|_| !is_of_kube_proxy(&name)) else {
            return;
        };
        n += 1;
        if n > RULES {
            return;
        }
        let mut set = |name: &str| {
            let of = sets.entry((key.clone(), name.to_owned()));
            let read = || elements::read(&mut beside, family, &key.1, name).ok().flatten();
            of.or_insert_with(read).clone()
        };
        let steps = expression::steps(list.unwrap_or_default(), &mut set);
        chain.rules.push(HostRule { place: format!("handle {handle}"), steps });
    })?;
    if n > RULES { Err(RulesError::TooMany) } else { Ok(()) }
}
