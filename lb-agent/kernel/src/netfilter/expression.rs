//! The expressions of a rule of nf_tables → its steps. Registers are followed: what was loaded is the field of a condition.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use lb_core::host_rules::{PacketField, RuleCondition, RuleStep, RuleVerdict};

use super::elements::SetElements;
use super::nftables::{
    NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_IMMEDIATE_DATA, expression, nested, number, verdict,
};
use super::xtables;
use crate::devices::netlink::{attributes, text};

/// The register that is written, in most expressions; the one that is read, in those that compare.
const FIRST: u16 = 1;
const NFTA_PAYLOAD: [u16; 4] = [2, 3, 4, 5];
const NFTA_META: [u16; 2] = [2, 3];
const NFTA_CT: [u16; 2] = [2, 4];
const NFTA_FIB: [u16; 2] = [2, 3];
const NFTA_BITWISE: [u16; 5] = [1, 2, 4, 5, 6];
const NFTA_CMP: [u16; 2] = [2, 3];
const NFTA_RANGE: [u16; 3] = [2, 3, 4];
const NFTA_LOOKUP: [u16; 4] = [1, 2, 3, 5];
const NFTA_XT: [u16; 3] = [1, 2, 3];
/// `NFT_FIB_RESULT_ADDRTYPE`, and flags of what is looked up.
const FIB_TYPE: u32 = 3;
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;

/// What a register has.
#[derive(Clone, Debug)]
struct Loaded {
    field: PacketField,
    mask: Vec<u8>,
    flipped: Vec<u8>,
}

/// Reads a rule.
pub(super) struct RuleReader<'a> {
    /// By the offset of their first byte.
    registers: BTreeMap<u32, Loaded>,
    steps: Vec<RuleStep>,
    /// The elements of a set of the rule's table, if they can be read.
    set: &'a mut dyn FnMut(&str) -> Option<SetElements>,
}

/// The steps of a rule, from its list of expressions.
pub(super) fn steps(
    list: &[u8],
    set: &mut dyn FnMut(&str) -> Option<SetElements>,
) -> Vec<RuleStep> {
    let mut reader = RuleReader { registers: BTreeMap::new(), steps: Vec::new(), set };
    for (_, element) in attributes(list) {
        match expression(element) {
            Some((name, parameters)) => reader.expression(&name, parameters),
            None => reader.steps.push(does("an unknown expression")),
        }
    }
    reader.steps
}

fn does(what: &str) -> RuleStep {
    RuleStep::Does(Cow::Owned(what.to_owned()))
}

impl RuleReader<'_> {
    fn expression(&mut self, name: &str, of: &[u8]) {
        match name {
            "payload" => self.payload(of),
            "meta" => self.meta(of),
            "ct" => self.ct(of),
            "fib" => self.fib(of),
            "bitwise" => self.bitwise(of),
            "immediate" => self.immediate(of),
            "cmp" => self.cmp(of),
            "range" => self.range(of),
            "lookup" => self.lookup(of),
            "match" => self.xt_match(of),
            "target" => {
                let name = nested(of, FIRST).map(text).unwrap_or_default();
                self.steps.push(xtables::effect(&name));
            }
            // They count for whoever lists the rule, and decide nothing.
            "counter" | "last" => {}
            "limit" | "quota" | "connlimit" => self.when(RuleCondition::UNKNOWN),
            // They load something that is not known here, into whatever register.
            "byteorder" | "rt" | "socket" | "osf" | "numgen" | "hash" | "tunnel" | "xfrm"
            | "inner" => self.registers.clear(),
            "exthdr" if number(of, 7).is_none() => self.registers.clear(),
            "objref" => self.steps.push(does("counts or limits by name")),
            other => self.steps.push(does(other)),
        }
    }

    fn when(&mut self, condition: RuleCondition) {
        self.steps.push(RuleStep::When(condition));
    }

    fn load(&mut self, register: Option<u32>, field: PacketField) {
        match register.and_then(offset) {
            Some(at) => {
                let loaded = Loaded { field, mask: Vec::new(), flipped: Vec::new() };
                self.registers.insert(at, loaded);
            }
            None => self.registers.clear(),
        }
    }

    fn payload(&mut self, of: &[u8]) {
        let [base, offset, length, source] = NFTA_PAYLOAD.map(|kind| number(of, kind));
        if source.is_some() {
            return self.steps.push(does("changes packets"));
        }
        let field = match (base, offset, length) {
            (Some(base), Some(offset), Some(length))
                if base == libc::NFT_PAYLOAD_NETWORK_HEADER as u32 =>
            {
                PacketField::Network { offset, length }
            }
            _ => PacketField::Other,
        };
        self.load(number(of, FIRST), field);
    }

    fn meta(&mut self, of: &[u8]) {
        let [key, source] = NFTA_META.map(|kind| number(of, kind));
        let key = key.and_then(|key| i32::try_from(key).ok());
        if source.is_some() {
            let what = if key == Some(libc::NFT_META_MARK) { "sets the mark" } else { "meta set" };
            return self.steps.push(does(what));
        }
        let field = match key {
            Some(libc::NFT_META_PROTOCOL) => PacketField::EtherType,
            Some(libc::NFT_META_MARK) => PacketField::Mark,
            Some(libc::NFT_META_IIF) => PacketField::InIndex,
            Some(libc::NFT_META_OIF) => PacketField::OutIndex,
            Some(libc::NFT_META_IIFNAME) => PacketField::InName,
            Some(libc::NFT_META_OIFNAME) => PacketField::OutName,
            Some(libc::NFT_META_NFPROTO) => PacketField::Family,
            _ => PacketField::Other,
        };
        self.load(number(of, FIRST), field);
    }

    fn ct(&mut self, of: &[u8]) {
        let [key, source] = NFTA_CT.map(|kind| number(of, kind));
        if source.is_some() {
            return self.steps.push(does("changes the connection's entry"));
        }
        let is_state = key == Some(libc::NFT_CT_STATE as u32);
        let field = if is_state { PacketField::State } else { PacketField::Other };
        self.load(number(of, FIRST), field);
    }

    fn fib(&mut self, of: &[u8]) {
        let field = match NFTA_FIB.map(|kind| number(of, kind)) {
            [Some(FIB_TYPE), Some(FIB_SOURCE)] => PacketField::SourceType,
            [Some(FIB_TYPE), Some(FIB_DESTINATION)] => PacketField::DestinationType,
            _ => PacketField::Other,
        };
        self.load(number(of, FIRST), field);
    }

    fn bitwise(&mut self, of: &[u8]) {
        let [source, to, mask, flipped, operation] = NFTA_BITWISE;
        let value = |kind| nested(of, kind).and_then(|data| nested(data, NFTA_DATA_VALUE));
        let loaded = number(of, source).and_then(offset).and_then(|at| self.registers.get(&at));
        let plain = number(of, operation).unwrap_or(0) == 0;
        let result = match (loaded, value(mask), value(flipped)) {
            (Some(loaded), Some(mask), Some(flipped)) if plain && loaded.mask.is_empty() => {
                Loaded { field: loaded.field, mask: mask.to_vec(), flipped: flipped.to_vec() }
            }
            _ => Loaded { field: PacketField::Other, mask: Vec::new(), flipped: Vec::new() },
        };
        match number(of, to).and_then(offset) {
            Some(at) => drop(self.registers.insert(at, result)),
            None => self.registers.clear(),
        }
    }

    fn immediate(&mut self, of: &[u8]) {
        let data = nested(of, NFTA_IMMEDIATE_DATA).unwrap_or_default();
        match nested(data, NFTA_DATA_VERDICT) {
            Some(found) => self.steps.push(RuleStep::Verdict(verdict(found))),
            None => self.load(number(of, FIRST), PacketField::Other),
        }
    }

    /// The condition that a register's value is in none or one of these ranges.
    fn condition(
        &self,
        register: Option<u32>,
        ranges: Vec<(Vec<u8>, Vec<u8>)>,
        inverted: bool,
    ) -> RuleCondition {
        match register.and_then(offset).and_then(|at| self.registers.get(&at)).cloned() {
            Some(Loaded { field, mask, flipped }) => {
                RuleCondition { field, mask, flipped, ranges, inverted }
            }
            None => RuleCondition::UNKNOWN,
        }
    }

    fn cmp(&mut self, of: &[u8]) {
        let [operation, data] = NFTA_CMP;
        let value = nested(of, data).and_then(|data| nested(data, NFTA_DATA_VALUE));
        let operation = number(of, operation).and_then(|number| i32::try_from(number).ok());
        let (Some(operation), Some(value)) = (operation, value.map(<[u8]>::to_vec)) else {
            return self.when(RuleCondition::UNKNOWN);
        };
        // The kernel compares bytes, in their order.
        let (least, most) = (vec![0; value.len()], vec![0xff; value.len()]);
        let (range, inverted) = match operation {
            libc::NFT_CMP_EQ => ((value.clone(), value), false),
            libc::NFT_CMP_NEQ => ((value.clone(), value), true),
            libc::NFT_CMP_LTE => ((least, value), false),
            libc::NFT_CMP_GT => ((least, value), true),
            libc::NFT_CMP_GTE => ((value, most), false),
            libc::NFT_CMP_LT => ((value, most), true),
            _ => return self.when(RuleCondition::UNKNOWN),
        };
        let condition = self.condition(number(of, FIRST), vec![range], inverted);
        self.when(condition);
    }

    fn range(&mut self, of: &[u8]) {
        let [operation, first, last] = NFTA_RANGE;
        let value = |kind| nested(of, kind).and_then(|data| nested(data, NFTA_DATA_VALUE));
        let condition = match (value(first), value(last)) {
            (Some(first), Some(last)) => {
                let inverted = number(of, operation) == Some(1);
                self.condition(number(of, FIRST), vec![(first.to_vec(), last.to_vec())], inverted)
            }
            _ => RuleCondition::UNKNOWN,
        };
        self.when(condition);
    }

    fn lookup(&mut self, of: &[u8]) {
        let [set, source, to, flags] = NFTA_LOOKUP;
        let name = nested(of, set).map(text).unwrap_or_default();
        let register = number(of, source);
        let elements = (self.set)(&name);
        match (number(of, to), elements) {
            (None, Some(elements)) => {
                let inverted = number(of, flags).unwrap_or(0) & 1 != 0;
                let ranges = elements.into_iter().map(|element| element.range).collect();
                let condition = self.condition(register, ranges, inverted);
                self.when(condition);
            }
            (None, None) => self.when(RuleCondition::UNKNOWN),
            (Some(0), Some(elements)) => {
                let case = |range, verdict: Option<RuleVerdict>| {
                    let condition = self.condition(register, vec![range], false);
                    (condition, verdict.unwrap_or(RuleVerdict::Continue))
                };
                let cases =
                    elements.into_iter().map(|element| case(element.range, element.verdict));
                let cases = cases.collect();
                self.steps.push(RuleStep::Choice(cases));
            }
            (Some(0), None) => self.steps.push(does("decides by a map that is not read")),
            (Some(_), _) => {
                self.when(RuleCondition::UNKNOWN);
                self.load(number(of, to), PacketField::Other);
            }
        }
    }

    fn xt_match(&mut self, of: &[u8]) {
        let [name, revision, data] = NFTA_XT;
        let name = nested(of, name).map(text).unwrap_or_default();
        let revision = number(of, revision).and_then(|number| u8::try_from(number).ok());
        let data = nested(of, data).unwrap_or_default();
        for condition in xtables::conditions(&name, revision.unwrap_or(u8::MAX), data) {
            self.when(condition);
        }
    }
}

/// Where the bytes of a register begin: there are two ways to number them.
fn offset(register: u32) -> Option<u32> {
    match register {
        1..=4 => Some((register - 1) * 16),
        8..=23 => Some((register - 8) * 4),
        _ => None,
    }
}
