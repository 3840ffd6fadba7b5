//! The legacy tables of iptables (include/uapi/linux/netfilter_ipv4/ip_tables.h and its twin): one blob each, whose rules jump to
//! one another by their offsets.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;

use lb_core::cluster::Family;
use lb_core::host_rules::{
    BaseChain, ChainHook, HostChain, HostRule, HostTable, PacketField, RuleCondition, RuleStep,
    RuleVerdict, TableFamily,
};

use super::xtables::{self, u16_at, u32_at};
use super::{RULES, RulesError, is_of_kube_proxy};
use crate::devices::netlink::text;
use crate::syscall::{self, LegacyTable};

/// The kernel's lists of legacy tables in use.
pub const LISTS: [(Family, &str); 2] = [
    (Family::V4, "/proc/thread-self/net/ip_tables_names"),
    (Family::V6, "/proc/thread-self/net/ip6_tables_names"),
];
/// The hooks that the kernel numbers, with their names.
const HOOKS: [(usize, ChainHook, &str); 3] = [
    (0, ChainHook::Prerouting, "PREROUTING"),
    (2, ChainHook::Forward, "FORWARD"),
    (4, ChainHook::Postrouting, "POSTROUTING"),
];
/// Length of the header of a match or target: size, name, revision.
const XT_HEADER: usize = 32;
const XT_NAME: usize = 2;
const XT_REVISION: usize = 31;

/// Where the fields of a rule are.
struct RuleLayout {
    family: Family,
    /// Addresses, one behind the other: source, destination, their masks.
    address: usize,
    /// Offset of the protocol; before it come names and masks of devices, 16 bytes each.
    protocol: usize,
    /// Offsets of the flags, and of what is inverted.
    flags: usize,
    /// The flag of `goto`.
    goto: u8,
    /// Offset of `target_offset`, followed by `next_offset`.
    offsets: usize,
    /// Size of a rule without matches.
    size: usize,
    /// Offsets of source and destination in a packet's header.
    header: [u32; 2],
}

const LAYOUTS: [RuleLayout; 2] = [
    RuleLayout {
        family: Family::V4,
        address: 4,
        protocol: 80,
        flags: 82,
        goto: 2,
        offsets: 88,
        size: 112,
        header: [12, 16],
    },
    RuleLayout {
        family: Family::V6,
        address: 16,
        protocol: 128,
        flags: 131,
        goto: 4,
        offsets: 140,
        size: 168,
        header: [8, 24],
    },
];

/// Bits of what is inverted: devices, addresses, the protocol.
const INVERTED: [u8; 4] = [0x01, 0x02, 0x08, 0x10];
const INVERTED_PROTOCOL: u8 = 0x40;

/// Reads the tables in use.
pub(super) fn read() -> Result<Vec<HostTable>, RulesError> {
    let mut tables = Vec::new();
    for (family, names) in LISTS {
        for name in fs::read_to_string(names).unwrap_or_default().lines() {
            let table = syscall::legacy_table(family, name).map_err(|err: io::Error| err)?;
            let title = if family == Family::V4 { "iptables-legacy" } else { "ip6tables-legacy" };
            let malformed = || RulesError::Malformed(format!("{title} {name}"));
            let chains = parse(family, &table, name == "nat").ok_or_else(malformed)?;
            if chains.values().map(|chain| chain.rules.len()).sum::<usize>() > RULES {
                return Err(RulesError::TooMany);
            }
            tables.push(HostTable {
                family: if family == Family::V4 { TableFamily::V4 } else { TableFamily::V6 },
                title: format!("{title} {name}"),
                name: name.to_owned(),
                chains,
            });
        }
    }
    Ok(tables)
}

/// The chains of a table.
fn parse(family: Family, table: &LegacyTable, nat: bool) -> Option<BTreeMap<String, HostChain>> {
    let layout = LAYOUTS.iter().find(|layout| layout.family == family)?;
    let entries = offsets(layout, &table.entries)?;
    // Where chains begin, and what they are called.
    let mut begin: BTreeMap<usize, (String, Option<ChainHook>)> = BTreeMap::new();
    for (number, hook, name) in HOOKS {
        if table.hooks & (1 << number) != 0 {
            let at = *table.entry_points.get(number)? as usize;
            begin.insert(at, (name.to_owned(), Some(hook)));
        }
    }
    // The other hooks' chains end those before them.
    for number in [1, 3] {
        if table.hooks & (1 << number) != 0 {
            begin.insert(
                *table.entry_points.get(number)? as usize,
                (format!("hook {number}"), None),
            );
        }
    }
    for (at, next) in &entries {
        if let Some(name) = chain_head(layout, &table.entries, *at)? {
            begin.insert(*next, (name, None));
        }
    }
    let names: BTreeMap<usize, &str> =
        begin.iter().map(|(at, (name, _))| (*at, name.as_str())).collect();
    let mut chains = BTreeMap::new();
    let mut current: Option<(&str, HostChain)> = None;
    for (at, next) in &entries {
        if let Some((name, hook)) = begin.get(at) {
            chains.extend(current.take().map(|(name, chain)| (name.to_owned(), chain)));
            let base = hook.map(|hook| BaseChain {
                hook,
                first_only: nat,
                drops: false,
                devices: Vec::new(),
            });
            current = Some((name, HostChain { base, rules: Vec::new() }));
        }
        if chain_head(layout, &table.entries, *at)?.is_some() {
            chains.extend(current.take().map(|(name, chain)| (name.to_owned(), chain)));
            continue;
        }
        let Some((name, chain)) = &mut current else { continue };
        if !is_of_kube_proxy(name) {
            let number = chain.rules.len() + 1;
            let steps = steps(layout, &table.entries, (*at, *next), &names)?;
            chain.rules.push(HostRule { place: format!("rule {number}"), steps });
        }
    }
    chains.extend(current.map(|(name, chain)| (name.to_owned(), chain)));
    for chain in chains.values_mut() {
        // The last rule of such a chain is its policy.
        if let Some(base) = &mut chain.base
            && let Some(policy) = chain.rules.pop()
        {
            base.drops = policy.steps != [RuleStep::Verdict(RuleVerdict::Accept)];
        }
    }
    Some(chains)
}

/// Offsets of all rules and of those behind them.
fn offsets(layout: &RuleLayout, entries: &[u8]) -> Option<Vec<(usize, usize)>> {
    let (mut at, mut found) = (0, Vec::new());
    while at < entries.len() {
        let size = usize::from(u16_at(entries, at + layout.offsets + 2)?);
        if size < layout.size {
            return None;
        }
        found.push((at, at + size));
        at += size;
    }
    (at == entries.len()).then_some(found)
}

/// Name, revision and data of a match or target.
fn extension(bytes: &[u8], at: usize) -> Option<(String, u8, &[u8])> {
    let size = usize::from(u16_at(bytes, at)?);
    let name = text(bytes.get(at + XT_NAME..at + XT_REVISION)?);
    let data = bytes.get(at + XT_HEADER..at.checked_add(size)?)?;
    Some((name, *bytes.get(at + XT_REVISION)?, data))
}

/// The name of the chain that begins behind this rule, if one does.
fn chain_head(layout: &RuleLayout, entries: &[u8], at: usize) -> Option<Option<String>> {
    let target = at + usize::from(u16_at(entries, at + layout.offsets)?);
    let (name, _, data) = extension(entries, target)?;
    Some((name == "ERROR").then(|| text(data)))
}

fn steps(
    layout: &RuleLayout,
    entries: &[u8],
    (at, next): (usize, usize),
    names: &BTreeMap<usize, &str>,
) -> Option<Vec<RuleStep>> {
    let rule = entries.get(at..next)?;
    let mut steps: Vec<RuleStep> =
        conditions(layout, rule)?.into_iter().map(RuleStep::When).collect();
    let target = usize::from(u16_at(rule, layout.offsets)?);
    let mut place = layout.size;
    while place < target {
        let size = usize::from(u16_at(rule, place)?);
        let (name, revision, data) = extension(rule, place)?;
        steps.extend(xtables::conditions(&name, revision, data).into_iter().map(RuleStep::When));
        place += size;
    }
    let (name, _, data) = extension(rule, target)?;
    if !name.is_empty() {
        steps.push(xtables::effect(&name));
        return Some(steps);
    }
    let is_goto = rule.get(layout.flags)? & layout.goto != 0;
    let verdict = match u32_at(data, 0)?.cast_signed() {
        -1 => RuleVerdict::Stop(Cow::Borrowed("DROP")),
        -2 => RuleVerdict::Accept,
        -5 => RuleVerdict::Return,
        code if code < 0 => RuleVerdict::Stop(Cow::Borrowed("QUEUE")),
        code if usize::try_from(code).ok()? == next => RuleVerdict::Continue,
        code => {
            let to = (*names.get(&usize::try_from(code).ok()?)?).to_owned();
            if is_goto { RuleVerdict::Goto(to) } else { RuleVerdict::Jump(to) }
        }
    };
    steps.push(RuleStep::Verdict(verdict));
    Some(steps)
}

/// The conditions that each rule has: addresses, devices, protocol.
fn conditions(layout: &RuleLayout, rule: &[u8]) -> Option<Vec<RuleCondition>> {
    let RuleLayout { address: size, protocol, flags, header, .. } = *layout;
    let inverted = *rule.get(flags + 1)?;
    let bytes = |at: usize, size: usize| rule.get(at..at + size).map(<[u8]>::to_vec);
    let mut found = Vec::new();
    let mut push = |field, value: Vec<u8>, mask: Vec<u8>, inverted| {
        if mask.iter().any(|byte| *byte != 0) {
            let equal = RuleCondition::equal(field, value);
            found.push(RuleCondition { mask, inverted, ..equal });
        }
    };
    let [in_inverted, out_inverted, from_inverted, to_inverted] =
        INVERTED.map(|bit| inverted & bit != 0);
    let length = u32::try_from(size).ok()?;
    for (i, inverted) in [(0, from_inverted), (1, to_inverted)] {
        let field = PacketField::Network { offset: *header.get(i)?, length };
        push(field, bytes(i * size, size)?, bytes((i + 2) * size, size)?, inverted);
    }
    let devices = 4 * size;
    for (i, field, inverted) in
        [(0, PacketField::InName, in_inverted), (1, PacketField::OutName, out_inverted)]
    {
        let (name, mask) = (bytes(devices + i * 16, 16)?, bytes(devices + (i + 2) * 16, 16)?);
        push(field, name, mask, inverted);
    }
    if u16_at(rule, protocol)? != 0 || inverted & INVERTED_PROTOCOL != 0 {
        found.push(RuleCondition::UNKNOWN);
    }
    // Fragments, or a type of service.
    let others = inverted & !INVERTED_PROTOCOL & !INVERTED.iter().fold(0, |bits, bit| bits | bit);
    let plain = layout.goto | u8::from(layout.family == Family::V6);
    if rule.get(flags)? & !plain != 0 || others != 0 {
        found.push(RuleCondition::UNKNOWN);
    }
    Some(found)
}
