//! The elements of a set or map of nf_tables, as ranges of keys.
#![forbid(unsafe_code)]

use std::io;

use lb_core::host_rules::RuleVerdict;

use super::nftables::{
    GETSETELEM, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, fields, header, name, nested, number, verdict,
};
use crate::devices::netlink::{NetlinkClient, NetlinkRequest, Want, attributes};

const NFTA_LIST_TABLE: u16 = 1;
const NFTA_LIST_SET: u16 = 2;
const NFTA_LIST_ELEMENTS: u16 = 3;
const NFTA_ELEMENT_KEY: u16 = 1;
const NFTA_ELEMENT_DATA: u16 = 2;
const NFTA_ELEMENT_FLAGS: u16 = 3;
const NFTA_ELEMENT_KEY_END: u16 = 10;
/// Flags of an element: the key is behind the end of a range; it stands for all other keys.
const INTERVAL_END: u32 = 1;
const CATCHALL: u32 = 2;
/// Sets with more elements are not read.
const ELEMENTS: usize = 1024;

/// Keys of a set, and what a map of verdicts has for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetElement {
    /// First and last key; two empty ones stand for all others.
    pub range: (Vec<u8>, Vec<u8>),
    pub verdict: Option<RuleVerdict>,
}

/// Those of one set. What stands for all others is last.
pub(super) type SetElements = Vec<SetElement>;

/// Reads a set; `None` if it is too large, or its keys are pairs of bounds of several fields.
pub(super) fn read(
    client: &mut NetlinkClient,
    family: u8,
    table: &str,
    set: &str,
) -> io::Result<Option<SetElements>> {
    let request = NetlinkRequest::new(GETSETELEM, Want::Dump, &header(family))
        .attr(NFTA_LIST_TABLE, &name(table))
        .attr(NFTA_LIST_SET, &name(set));
    let mut raw = RawElements { is_readable: true, ..RawElements::default() };
    client.call(&request, |_, payload| {
        for (_, list) in fields(payload).filter(|(kind, _)| *kind == NFTA_LIST_ELEMENTS) {
            attributes(list).for_each(|(_, element)| raw.push(element));
        }
    })?;
    Ok(raw.resolve())
}

/// As the kernel lists them: beginnings and ends of ranges, in any order.
#[derive(Debug, Default)]
struct RawElements {
    starts: Vec<(Vec<u8>, Option<RuleVerdict>)>,
    ends: Vec<Vec<u8>>,
    others: Option<Option<RuleVerdict>>,
    is_readable: bool,
}

impl RawElements {
    fn push(&mut self, element: &[u8]) {
        let flags = number(element, NFTA_ELEMENT_FLAGS).unwrap_or(0);
        let data = nested(element, NFTA_ELEMENT_DATA);
        let decided = data.and_then(|data| nested(data, NFTA_DATA_VERDICT)).map(verdict);
        if flags & CATCHALL != 0 {
            self.others = Some(decided);
            return;
        }
        let key = nested(element, NFTA_ELEMENT_KEY).and_then(|key| nested(key, NFTA_DATA_VALUE));
        let (Some(key), None) = (key, nested(element, NFTA_ELEMENT_KEY_END)) else {
            self.is_readable = false;
            return;
        };
        if flags & INTERVAL_END != 0 {
            self.ends.push(key.to_vec());
        } else {
            self.starts.push((key.to_vec(), decided));
        }
        self.is_readable &= self.starts.len() <= ELEMENTS;
    }

    fn resolve(mut self) -> Option<SetElements> {
        if !self.is_readable {
            return None;
        }
        self.ends.sort();
        let is_exact = self.ends.is_empty();
        let last = |first: &Vec<u8>| {
            if is_exact {
                return first.clone();
            }
            match self.ends.iter().find(|end| *end > first) {
                Some(end) => before(end),
                None => vec![0xff; first.len()],
            }
        };
        let ranges = self.starts.iter().map(|(first, verdict)| SetElement {
            range: (first.clone(), last(first)),
            verdict: verdict.clone(),
        });
        let others = self.others.iter().map(|verdict| SetElement {
            range: (Vec::new(), Vec::new()),
            verdict: verdict.clone(),
        });
        Some(ranges.chain(others).collect())
    }
}

/// The number before this one, which is not 0.
fn before(end: &[u8]) -> Vec<u8> {
    let mut bytes = end.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (lower, borrows) = byte.overflowing_sub(1);
        *byte = lower;
        if !borrows {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{RawElements, RuleVerdict, SetElement};

    #[test]
    fn ends_close_the_range_before_them() {
        let key = |byte: u8| vec![10, byte, 0, 0];
        let raw = RawElements {
            starts: vec![(key(8), None), (key(1), Some(RuleVerdict::Accept))],
            ends: vec![key(0), key(3)],
            others: Some(Some(RuleVerdict::Return)),
            is_readable: true,
        };
        let element = |range, verdict| SetElement { range, verdict };
        let want = vec![
            element((key(8), vec![0xff; 4]), None),
            element((key(1), vec![10, 2, 0xff, 0xff]), Some(RuleVerdict::Accept)),
            element((vec![], vec![]), Some(RuleVerdict::Return)),
        ];
        assert_eq!(raw.resolve(), Some(want));
        let exact = RawElements {
            starts: vec![(key(8), None)],
            is_readable: true,
            ..RawElements::default()
        };
        assert_eq!(exact.resolve().unwrap()[0].range, (key(8), key(8)));
        assert_eq!(RawElements::default().resolve(), None);
    }
}
