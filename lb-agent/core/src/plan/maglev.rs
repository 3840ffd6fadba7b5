//! Tables of consistent hashing (Eisenbud et al., Maglev, NSDI 2016, section 3.4): every node that knows the same
//! backends makes the same table, and few of its slots change when a backend comes or leaves.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::flow::Flow;
use lb_common::hash;
use lb_common::service::MAGLEV_SLOTS;

/// Seeds of the two hashes of a backend. To change them makes nodes of two versions disagree.
const SEEDS: [u32; 2] = [0x6c62_6d67, 0x6c76_7331];

/// A backend as every node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) addr: Addr,
    pub(super) port: u16,
    /// Its share; at least 1.
    pub(super) weight: u8,
    /// What stands for it in the table; of no influence.
    pub(super) index: usize,
}

/// The table: for each slot the `index` of a member. Empty without members, and with more than there are slots: then
/// some would get no traffic at all.
pub(super) fn table(mut members: Vec<Member>) -> Vec<usize> {
    let slots = MAGLEV_SLOTS as usize;
    if members.is_empty() || members.len() > slots {
        return Vec::new();
    }
    members.sort_unstable();
    let mut walks: Vec<Permutation> = members.iter().map(Permutation::new).collect();
    let mut table: Vec<Option<usize>> = vec![None; slots];
    let mut left = slots;
    while left > 0 {
        for (walk, member) in walks.iter_mut().zip(&members) {
            for _ in 0..member.weight.max(1) {
                if left > 0 {
                    walk.take(&mut table, member.index);
                    left -= 1;
                }
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// A backend's order of preference: since the number of slots is a prime, it visits all of them.
struct Permutation {
    next: usize,
    skip: usize,
}

impl Permutation {
    fn new(member: &Member) -> Self {
        let flow = Flow {
            src: Addr::NONE,
            dst: member.addr,
            sport: Be16::new(0),
            dport: Be16::new(member.port),
            proto: 0,
        };
        let [offset, skip] = SEEDS.map(|seed| hash::flow(&flow, seed));
        Self {
            next: (offset % MAGLEV_SLOTS) as usize,
            skip: (skip % (MAGLEV_SLOTS - 1)) as usize + 1,
        }
    }

    /// Takes the first free slot in its order. There must be one.
    fn take(&mut self, table: &mut [Option<usize>], index: usize) {
        for _ in 0..table.len() {
            let at = self.next;
            self.next = (self.next + self.skip) % table.len();
            if let Some(slot @ None) = table.get_mut(at) {
                *slot = Some(index);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAGLEV_SLOTS, Member, table};
    use lb_common::addr::Addr;
    use std::net::Ipv4Addr;

    fn members(n: u32) -> Vec<Member> {
        let member = |i: u32| Member {
            addr: Addr::from_ip(Ipv4Addr::from_bits(0x0af4_0101 + i * 7).into()),
            port: 8080,
            weight: 1,
            index: i as usize,
        };
        (0..n).map(member).collect()
    }

    fn counts(table: &[usize], n: usize) -> Vec<usize> {
        (0..n).map(|i| table.iter().filter(|index| **index == i).count()).collect()
    }

    #[test]
    fn slots_are_shared_evenly_or_by_weight() {
        for n in [1, 2, 3, 7, 100, 1000, MAGLEV_SLOTS] {
            let table = table(members(n));
            assert_eq!(table.len(), MAGLEV_SLOTS as usize);
            let counts = counts(&table, n as usize);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{n}: {least} to {most}");
        }
        let mut weighted = members(3);
        weighted[1].weight = 3;
        weighted[2].weight = 6;
        assert_eq!(counts(&table(weighted), 3), [103, 306, 612]);
        assert!(table(Vec::new()).is_empty());
        assert!(table(members(MAGLEV_SLOTS + 1)).is_empty(), "some would get nothing");
    }

    #[test]
    fn every_node_makes_the_same_table() {
        let mut shuffled = members(50);
        shuffled.reverse();
        shuffled.swap(3, 20);
        assert_eq!(table(shuffled), table(members(50)));
        // The first slots of a table of three, so that no version changes it unnoticed.
        assert_eq!(table(members(3))[..12], [1, 1, 2, 2, 2, 0, 0, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn few_slots_move_when_one_of_a_hundred_leaves() {
        let before = table(members(100));
        let mut worst = 0;
        for gone in 0..100 {
            let mut rest = members(100);
            rest.remove(gone);
            let after = table(rest);
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
            worst = worst.max(moved);
        }
        // Beside the hundredth that must move. The table has ten slots a backend here; a greater one would move less.
        assert!(worst <= MAGLEV_SLOTS as usize / 20, "{worst} of {MAGLEV_SLOTS} slots moved");
    }
}
