//! The writes to the map `locals`: how a packet reaches each Pod of this node past the IP stack, and whether it may.
//!
//! Why a Pod's flows go through the stack is a list of reasons, made from what is known of its device. It is empty if nothing
//! speaks against the other way. The element has the reasons, too, for those who read the maps.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::past::{LocalEnd, LocalFlags, StackReason, VethReason};

use super::actual::Actual;
use super::pods::Pods;
use super::retry::Backlog;
use super::write::{MapError, Write};

/// What is known of a Pod's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPath {
    /// MAC addresses of the Pod's end and of the host's end.
    pub link: [[u8; 6]; 2],
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Why its flows go through the stack; empty = they need not.
    pub reasons: BTreeSet<StackReason>,
    /// Why what goes past the IP stack to it goes by the host's end of its veth; empty = it needs not.
    pub by_veth: BTreeSet<VethReason>,
    /// The reasons are only that something was not looked at yet: what an earlier run has found is good until then.
    pub undecided: bool,
}

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Locals {
    pub(super) backlog: Backlog,
}

impl Locals {
    /// Returns the writes for what differs. `wanted` is by ifindex.
    pub(super) fn plan(
        &mut self,
        (actual, pods): (&Actual, &Pods),
        wanted: &BTreeMap<u32, PodPath>,
    ) -> Vec<Write> {
        self.backlog.begin();
        let mut elements: BTreeMap<u32, LocalEnd> = BTreeMap::new();
        for (ifindex, path) in wanted {
            let id = pods.id(*ifindex);
            if id != 0 {
                elements.insert(id, element(actual, id, *ifindex, path));
            }
        }
        let gone = actual.locals.keys().filter(|id| !elements.contains_key(id));
        let mut writes: Vec<Write> = gone.filter_map(|id| ended(actual, *id)).collect();
        let put = elements.into_iter().filter(|(id, local)| actual.locals.get(id) != Some(local));
        writes.extend(put.map(|(id, local)| Write::PutLocal { id, local }));
        writes
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, node: &str, err: &MapError, now: Duration) {
        let effect = "flows between Pods of this node may be lost, or go through the IP stack";
        self.backlog.failed_on(node, err, effect, now);
    }
}

/// The write after which a number means no Pod.
pub(super) fn ended(actual: &Actual, id: u32) -> Option<Write> {
    let before = actual.locals.get(&id).filter(|before| before.ifindex != 0)?;
    let generation = before.generation.wrapping_add(1);
    Some(Write::PutLocal { id, local: LocalEnd { generation, ..LocalEnd::ZERO } })
}

/// The element of a Pod. Its generation is another one than that of an earlier owner of the number, and of the Pod itself
/// before its device was that of another namespace.
fn element(actual: &Actual, id: u32, ifindex: u32, path: &PodPath) -> LocalEnd {
    let before = actual.locals.get(&id).copied().unwrap_or(LocalEnd::ZERO);
    let same = (before.ifindex, before.link) == (ifindex, path.link);
    let reasons = path.reasons.iter().fold(0, |bits, reason| bits | reason.bit());
    let by_veth = path.by_veth.iter().fold(0, |bits, reason| bits | reason.bit());
    let flags = LocalFlags::PAST_OK.when(reasons == 0)
        | LocalFlags::PEER_OK.when(by_veth == 0)
        | LocalFlags::from_bits(reasons | by_veth);
    LocalEnd {
        ifindex,
        generation: if same { before.generation } else { before.generation.wrapping_add(1) },
        link: path.link,
        mtu: path.mtu,
        flags: if same && path.undecided { before.flags } else { flags },
        ..LocalEnd::ZERO
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use lb_common::config::SettingFlags;
    use lb_common::endpoint::PodEntry;
    use lb_common::past::{self, LocalEnd, LocalFlags, PastWay, StackReason, VethReason};

    use super::{Actual, Locals, PodPath, Pods, Write};

    fn path(mac: u8, reasons: &[StackReason]) -> PodPath {
        let reasons = reasons.iter().copied().collect();
        let by_veth = BTreeSet::new();
        PodPath { link: [[mac; 6], [9; 6]], mtu: 1500, reasons, by_veth, undecided: false }
    }

    /// Applies the plan and returns the elements that it wrote.
    fn apply(
        actual: &mut Actual,
        pods: &Pods,
        wanted: &[(u32, PodPath)],
    ) -> Vec<(u32, u32, u32, bool)> {
        let wanted: BTreeMap<u32, PodPath> = wanted.iter().cloned().collect();
        let writes = Locals::default().plan((actual, pods), &wanted);
        writes.iter().for_each(|write| actual.record(write));
        let told = |write: &Write| match write {
            Write::PutLocal { id, local: LocalEnd { ifindex, generation, flags, .. } } => {
                (*id, *ifindex, *generation, flags.contains(LocalFlags::PAST_OK))
            }
            other => panic!("{other:?}"),
        };
        writes.iter().map(told).collect()
    }

    #[test]
    fn a_number_that_gets_another_owner_has_another_generation() {
        let (mut actual, mut pods) = (Actual::default(), Pods::default());
        pods.appeared(5);
        pods.appeared(6);
        let (five, six) = (path(5, &[]), path(6, &[StackReason::UnknownMac]));
        let both = [(5, five.clone()), (6, six.clone())];
        assert_eq!(apply(&mut actual, &pods, &both), [(1, 5, 1, true), (2, 6, 1, false)]);
        assert_eq!(apply(&mut actual, &pods, &both), []);
        assert_eq!(
            apply(&mut actual, &pods, &[(5, five.clone()), (6, path(6, &[]))]),
            [(2, 6, 1, true)]
        );
        // Another namespace behind the same device.
        assert_eq!(
            apply(&mut actual, &pods, &[(5, path(7, &[])), (6, path(6, &[]))]),
            [(1, 5, 2, true)]
        );
        // The device goes, and another one gets its number.
        assert_eq!(apply(&mut actual, &pods, &[(6, path(6, &[]))]), [(1, 0, 3, false)]);
        assert_eq!(apply(&mut actual, &pods, &[(6, path(6, &[]))]), []);
        pods.gone(5);
        let mut restored = Pods::restore(&actual.pods);
        restored.appeared(8);
        assert_eq!(restored.id(8), 1, "in this test numbers are given away at once");
        let wanted = [(8, path(5, &[]))];
        assert_eq!(apply(&mut actual, &restored, &wanted), [(2, 0, 2, false), (1, 8, 4, true)]);
    }

    /// After a restart of the agent, flows keep their way.
    #[test]
    fn what_is_not_looked_at_again_yet_stays_as_it_was() {
        let (mut actual, mut pods) = (Actual::default(), Pods::default());
        pods.appeared(5);
        assert_eq!(apply(&mut actual, &pods, &[(5, path(5, &[]))]), [(1, 5, 1, true)]);
        let not_attached = path(5, &[StackReason::NotAttached]);
        let undecided = PodPath { undecided: true, ..not_attached.clone() };
        assert_eq!(apply(&mut actual, &pods, &[(5, undecided.clone())]), []);
        let moved = PodPath { link: [[7; 6], [9; 6]], ..undecided };
        assert_eq!(apply(&mut actual, &pods, &[(5, moved)]), [(1, 5, 2, false)]);
        assert_eq!(apply(&mut actual, &pods, &[(5, not_attached)]), [(1, 5, 3, false)]);
        let flags = actual.locals[&1].flags;
        assert_eq!(
            StackReason::among(flags.bits()).collect::<Vec<_>>(),
            [StackReason::NotAttached]
        );
    }

    #[test]
    fn what_speaks_against_the_pods_end_is_written() {
        let (mut actual, mut pods) = (Actual::default(), Pods::default());
        pods.appeared(5);
        apply(&mut actual, &pods, &[(5, path(5, &[]))]);
        assert_eq!(actual.locals[&1].flags, LocalFlags::PAST_OK | LocalFlags::PEER_OK);
        let limited = PodPath { by_veth: [VethReason::Qdisc].into(), ..path(5, &[]) };
        assert_eq!(apply(&mut actual, &pods, &[(5, limited)]), [(1, 5, 1, true)]);
        let flags = actual.locals[&1].flags;
        assert!(!flags.contains(LocalFlags::PEER_OK));
        assert_eq!(VethReason::among(flags.bits()).collect::<Vec<_>>(), [VethReason::Qdisc]);
    }

    /// Numbers, devices and addresses come back in every combination: a way is open exactly as long as both Pods are those that
    /// it was opened for.
    #[test]
    fn a_way_never_leads_to_another_pod() {
        const NUMBERS: u32 = 6;
        let mut state = 1_u64;
        let mut below = |n: u32| {
            // Knuth's generator (TAOCP 3.3.4), the upper half.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32 % n
        };
        let (mut actual, mut locals) = (Actual::default(), Locals::default());
        // Pods by their device and number, and by how many there were before.
        let (mut here, mut born) = (BTreeMap::<u32, (u32, u32)>::new(), 0);
        let mut ways: Vec<(PastWay, [u32; 2])> = Vec::new();
        let (mut reused, mut kept, mut ended) = (0, 0, 0);
        while reused < 10_000 {
            let id = 1 + below(NUMBERS);
            let ifindex = 100 + below(NUMBERS);
            here.retain(|device, (number, _)| *device != ifindex && *number != id);
            if below(4) != 0 {
                born += 1;
                reused += 1;
                here.insert(ifindex, (id, born));
            }
            let numbered = |(number, _): &(u32, u32)| PodEntry { id: *number, ..PodEntry::ZERO };
            let entries = here.iter().map(|(ifindex, pod)| (*ifindex, numbered(pod))).collect();
            // The same link-layer addresses come back, too, but not at the same device with the same number at once.
            let wanted =
                here.iter().map(|(ifindex, (_, born))| (*ifindex, path((born % 200) as u8, &[])));
            let wanted: BTreeMap<u32, PodPath> = wanted.collect();
            let writes = locals.plan((&actual, &Pods::restore(&entries)), &wanted);
            writes.iter().for_each(|write| actual.record(write));
            let of =
                |id: u32| here.values().find(|(number, _)| *number == id).map(|(_, born)| *born);
            let end = |id: u32| actual.locals.get(&id).copied().unwrap_or(LocalEnd::ZERO);
            for (way, pods) in &ways {
                let (to, from) = (end(way.to.0), end(way.from.0));
                let open = past::is_open(SettingFlags::LOCAL_PAST, way, &to, &from);
                let same = [of(way.to.0), of(way.from.0)] == pods.map(Some);
                assert_eq!(open, same, "{way:?} {to:?} {from:?}");
                *(if open { &mut kept } else { &mut ended }) += 1;
            }
            // Those that have ended are asked again for a while.
            ways.drain(..ways.len().saturating_sub(50));
            if let (Some(to), Some(from)) = (of(id), of(1 + id % NUMBERS)) {
                let way = PastWay {
                    to: (id, end(id).generation),
                    from: (1 + id % NUMBERS, end(1 + id % NUMBERS).generation),
                };
                ways.push((way, [to, from]));
            }
        }
        assert!(kept > 1_000 && ended > 1_000, "{kept} {ended}");
    }

    #[test]
    fn a_device_without_a_number_has_no_element() {
        let wanted = [(5, path(5, &[]))];
        assert_eq!(apply(&mut Actual::default(), &Pods::default(), &wanted), []);
    }
}
