//! The writes to the maps `macs` and `links`: which device has which MAC address on this node's bridges.
//!
//! A device whose element of `links` names an address can send from it whatever `macs` says. So elements that change are
//! cleared before an address gets another holder, and are written after it: at no time can two devices send from it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use super::actual::Actual;
use super::retry::Backlog;
use super::write::{MapError, Write};

/// What the two maps should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacTables {
    /// Who has which address on a bridge: [`lb_common::endpoint::mac_number`] → ifindex, 0 = this node.
    pub macs: BTreeMap<u64, u32>,
    /// Index and element, both of [`lb_common::endpoint::link`].
    pub links: BTreeMap<u32, u64>,
}

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) backlog: Backlog,
}

impl Links {
    /// Returns the writes for what differs.
    pub(super) fn plan(&mut self, actual: &Actual, wanted: &MacTables) -> Vec<Write> {
        self.backlog.begin();
        let Actual { macs, links, .. } = actual;
        let mut writes = Vec::new();
        let stale =
            links.iter().filter(|(index, element)| wanted.links.get(index) != Some(element));
        writes.extend(stale.map(|(index, _)| Write::PutLink { index: *index, element: 0 }));
        // Removals make room.
        let gone = macs.keys().filter(|mac| !wanted.macs.contains_key(mac));
        writes.extend(gone.map(|mac| Write::DeleteMac { mac: *mac }));
        let put = wanted.macs.iter().filter(|(mac, holder)| macs.get(mac) != Some(holder));
        writes.extend(put.map(|(mac, holder)| Write::PutMac { mac: *mac, holder: *holder }));
        let put = wanted.links.iter().filter(|(index, element)| links.get(index) != Some(element));
        writes.extend(put.map(|(i, element)| Write::PutLink { index: *i, element: *element }));
        writes
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, node: &str, err: &MapError, now: Duration) {
        let effect = "Pods on the same bridge can send from some MAC addresses of others";
        self.backlog.failed_on(node, err, effect, now);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::endpoint::link;

    use super::{Actual, Links, MacTables, Write};

    #[test]
    fn an_address_leaves_one_device_before_another_gets_it() {
        let (index, old) = link(5, 0xa);
        let (next, new) = link(6, 0xa);
        let actual = Actual {
            macs: [(0xa, 5), (0xb, 7)].into(),
            links: [(index, old)].into(),
            ..Actual::default()
        };
        let wanted = MacTables { macs: [(0xa, 6)].into(), links: [(next, new)].into() };
        assert_eq!(
            Links::default().plan(&actual, &wanted),
            [
                Write::PutLink { index, element: 0 },
                Write::DeleteMac { mac: 0xb },
                Write::PutMac { mac: 0xa, holder: 6 },
                Write::PutLink { index: next, element: new },
            ]
        );
    }
}
