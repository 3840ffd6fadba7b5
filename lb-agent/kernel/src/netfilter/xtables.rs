//! Matches and targets of iptables, in legacy tables and inside rules of iptables-nft (include/uapi/linux/netfilter/x_tables.h
//! and the header of each). What is not known of a match may hold or not.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use lb_core::host_rules::{PacketField, RuleCondition, RuleStep};

/// `XT_CONNTRACK_STATE`: the match compares the state.
const CONNTRACK_STATE: u16 = 1;
/// Flags of the match `addrtype`: of the source, of the destination; what is inverted.
const ADDRTYPE_INVERT: (u32, u32) = (1, 2);

/// The conditions of a match.
pub(super) fn conditions(name: &str, revision: u8, data: &[u8]) -> Vec<RuleCondition> {
    let known = match name {
        "comment" => Some(Vec::new()),
        "state" => states(u32_at(data, 0), false),
        "conntrack" => conntrack(data),
        "addrtype" => addrtype(revision, data),
        "mark" if revision == 1 => mark(data),
        _ => None,
    };
    known.unwrap_or_else(|| vec![RuleCondition::UNKNOWN])
}

/// What a target does that is not a verdict.
pub(super) fn effect(name: &str) -> RuleStep {
    RuleStep::Does(Cow::Owned(name.to_owned()))
}

/// Any of the bits of `mask` is set in a number of 4 bytes in host order.
pub(super) fn any_bit(field: PacketField, mask: u32, inverted: bool) -> RuleCondition {
    let zero = vec![0; 4];
    RuleCondition {
        field,
        mask: mask.to_ne_bytes().to_vec(),
        flipped: Vec::new(),
        ranges: vec![(zero.clone(), zero)],
        // None of the bits is set: a number that is 0 below the mask.
        inverted: !inverted,
    }
}

fn states(mask: Option<u32>, inverted: bool) -> Option<Vec<RuleCondition>> {
    Some(vec![any_bit(PacketField::State, mask?, inverted)])
}

/// `struct xt_conntrack_mtinfo1` to `3`: the same up to the flags.
fn conntrack(data: &[u8]) -> Option<Vec<RuleCondition>> {
    let (flags, inverted) = (u16_at(data, 146)?, u16_at(data, 148)?);
    let mut conditions = Vec::new();
    if flags & CONNTRACK_STATE != 0 {
        // Revision 1 has one byte, and status bits in the next.
        let mask = u32::from(u16_at(data, 150)?);
        conditions.extend(states(Some(mask), inverted & CONNTRACK_STATE != 0)?);
    }
    if flags & !CONNTRACK_STATE != 0 {
        conditions.push(RuleCondition::UNKNOWN);
    }
    Some(conditions)
}

/// `struct xt_addrtype_info_v1`, and `struct xt_addrtype_info` of revision 0. A type's bit is that of its `RTN_*`.
fn addrtype(revision: u8, data: &[u8]) -> Option<Vec<RuleCondition>> {
    let (source, destination) = (u16_at(data, 0)?, u16_at(data, 2)?);
    let (of_source, of_destination, limited) = match revision {
        0 => (u32_at(data, 4)? != 0, u32_at(data, 8)? != 0, false),
        _ => {
            let flags = u32_at(data, 4)?;
            let (invert_source, invert_destination) = ADDRTYPE_INVERT;
            let inverted = (flags & invert_source != 0, flags & invert_destination != 0);
            (inverted.0, inverted.1, flags & !(invert_source | invert_destination) != 0)
        }
    };
    let types = |field, bits: u16, inverted| {
        let ranges = (0..16_u32).filter(|kind| bits & (1 << kind) != 0);
        let value = |kind: u32| kind.to_ne_bytes().to_vec();
        let ranges = ranges.map(|kind| (value(kind), value(kind))).collect();
        (bits != 0).then_some(RuleCondition { field, ranges, inverted, ..RuleCondition::UNKNOWN })
    };
    let mut conditions: Vec<_> = types(PacketField::SourceType, source, of_source)
        .into_iter()
        .chain(types(PacketField::DestinationType, destination, of_destination))
        .collect();
    if limited {
        conditions.push(RuleCondition::UNKNOWN);
    }
    Some(conditions)
}

/// `struct xt_mark_mtinfo1`: mark, mask, whether it is inverted.
fn mark(data: &[u8]) -> Option<Vec<RuleCondition>> {
    let (mark, mask) = (data.get(..4)?.to_vec(), data.get(4..8)?.to_vec());
    let inverted = *data.get(8)? != 0;
    let equal = RuleCondition::equal(PacketField::Mark, mark);
    Some(vec![RuleCondition { mask, inverted, ..equal }])
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}
