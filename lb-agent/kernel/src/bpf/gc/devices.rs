//! Whose entries they are: what belongs to devices that are gone, and what devices have beyond their share.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

/// What a Pod's entries may take of the table: a quarter, so that four floods do not meet in it.
const SHARE: u64 = 4;

/// Pods' devices by the low 16 bits of their number, as in [`lb_common::conntrack::CtKey::veth`]; 0 is none.
#[derive(Debug, Default)]
pub(super) struct DeviceNumbers {
    seen: HashMap<u16, SeenDevice>,
    /// Those with entries that were not there at the pass before.
    absent: HashSet<u16>,
}

/// A device in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SeenDevice {
    is_there: bool,
    /// Entries of live flows.
    entries: u64,
}

impl DeviceNumbers {
    /// A pass begins; these devices are there.
    pub(super) fn begin(&mut self, there: impl Iterator<Item = u32>) {
        let absent = self.seen.drain().filter(|(_, device)| !device.is_there);
        self.absent = absent.map(|(veth, _)| veth).collect();
        let there =
            there.map(|ifindex| (ifindex as u16, SeenDevice { is_there: true, entries: 0 }));
        self.seen.extend(there);
    }

    /// Whether the device of an entry is gone: neither now nor at the pass before was it there. The programs see a new
    /// device before the agent has written of it, so once is not enough.
    pub(super) fn is_gone(&mut self, veth: u16) -> bool {
        veth != 0 && !self.seen.entry(veth).or_default().is_there && self.absent.contains(&veth)
    }

    /// An entry of a live flow.
    pub(super) fn count(&mut self, veth: u16) {
        if veth != 0 {
            self.seen.entry(veth).or_default().entries += 1;
        }
    }

    /// How many entries each device has beyond its share of a table of this capacity; only those that have.
    pub(super) fn beyond_share(&self, capacity: u32) -> HashMap<u16, u64> {
        let share = u64::from(capacity) / SHARE;
        let all = self.seen.iter().map(|(veth, device)| (*veth, device.entries));
        all.filter(|(_, entries)| *entries > share).map(|(veth, n)| (veth, n - share)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceNumbers;

    #[test]
    fn a_device_is_gone_when_two_passes_in_a_row_do_not_find_it() {
        const HIGH: u32 = 0x1_0000;
        /// What is there at a pass, and whether the entries of device 7 are those of one that is gone.
        type At<'a> = (&'a [u32], bool);
        let cases: [(&str, &[At<'_>]); 7] = [
            ("there", &[(&[7], false), (&[7], false), (&[7], false)]),
            ("gone", &[(&[7], false), (&[], false), (&[], true), (&[], true)]),
            ("gone before the agent began", &[(&[], false), (&[], true)]),
            ("new, not written yet", &[(&[], false), (&[7], false), (&[7], false)]),
            ("written again at a start", &[(&[7], false), (&[], false), (&[7], false)]),
            ("twice, but not in a row", &[(&[], false), (&[7], false), (&[], false), (&[], true)]),
            ("by its low 16 bits", &[(&[HIGH + 7], false), (&[HIGH + 7, 9], false)]),
        ];
        for (name, passes) in cases {
            let mut devices = DeviceNumbers::default();
            for (i, (there, want)) in passes.iter().enumerate() {
                devices.begin(there.iter().copied());
                assert_eq!(devices.is_gone(7), *want, "{name}, pass {i}");
                assert_eq!(devices.is_gone(7), *want, "{name}, pass {i}, its second entry");
                assert!(!devices.is_gone(0), "{name}: flows from outside have no device");
            }
        }
        let mut devices = DeviceNumbers::default();
        devices.begin([].into_iter());
        devices.begin([].into_iter());
        assert!(!devices.is_gone(7), "without entries at the pass before it may be a new one");
    }

    #[test]
    fn a_device_has_a_quarter_of_the_table() {
        let beyond = |entries: &[(u16, u64)]| {
            let mut devices = DeviceNumbers::default();
            devices.begin([7, 8].into_iter());
            for (veth, n) in entries {
                (0..*n).for_each(|_| devices.count(*veth));
            }
            devices.beyond_share(1000)
        };
        assert_eq!(beyond(&[]), [].into());
        assert_eq!(beyond(&[(7, 250), (8, 250)]), [].into(), "its share");
        assert_eq!(beyond(&[(7, 251), (8, 10)]), [(7, 1)].into());
        assert_eq!(beyond(&[(7, 900), (8, 300), (9, 400)]), [(7, 650), (8, 50), (9, 150)].into());
        assert_eq!(beyond(&[(0, 1000)]), [].into(), "flows from outside");
    }
}
