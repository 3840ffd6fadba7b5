//! Which policies' blocks are left out when all of them together are more than a node's table of address ranges takes.
//!
//! The namespace that wants most gives way, and of its policies the one that wants most: whoever wants little is not
//! concerned by what others want, whatever came first. Policies of the cluster go before those of namespaces.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::limits;

use super::{PolicyDirection, object};
use crate::cluster::{Name, Policy};
use crate::issue::Issue;

/// Ranges that policies may want altogether. A quarter is kept free: those of a policy that changes are there twice for
/// a moment, and IPv4 takes one of its own.
pub(super) const MOST: usize = limits::CIDRS as usize / 4 * 3;

/// One direction of a policy, and how many ranges its rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RangeDemand {
    /// Index of the policy.
    pub(super) policy: u32,
    pub(super) direction: PolicyDirection,
    pub(super) ranges: usize,
}

/// Those that have no room. `namespace` is that of a policy, and empty of those that belong to the cluster.
pub(super) fn refused(
    demands: &[RangeDemand],
    namespace: impl Fn(u32) -> Arc<str>,
    most: usize,
) -> BTreeSet<(u32, PolicyDirection)> {
    let mut total: usize = demands.iter().map(|demand| demand.ranges).sum();
    let mut refused = BTreeSet::new();
    if total <= most {
        return refused;
    }
    let mut tenants: BTreeMap<Arc<str>, (usize, Vec<RangeDemand>)> = BTreeMap::new();
    for demand in demands {
        let (sum, all) = tenants.entry(namespace(demand.policy)).or_default();
        *sum += demand.ranges;
        all.push(*demand);
    }
    for (_, all) in tenants.values_mut() {
        // The smallest at the end goes last, and of two that want the same the one that is evaluated first.
        all.sort_unstable_by_key(|demand| {
            (demand.ranges, Reverse(demand.policy), demand.direction)
        });
    }
    while total > most {
        // Cluster policies give way last.
        let order = |(name, (sum, _)): &(&Arc<str>, &mut (usize, Vec<RangeDemand>))| {
            (!name.is_empty() && *sum > 0, *sum)
        };
        let Some((_, (sum, all))) = tenants.iter_mut().max_by_key(order) else { break };
        let Some(demand) = all.pop() else { break };
        *sum -= demand.ranges;
        total -= demand.ranges;
        refused.insert((demand.policy, demand.direction));
    }
    refused
}

/// That a policy has no room.
pub(super) fn issue(name: &Name, policy: &Policy, demand: RangeDemand) -> Issue {
    let text = "address ranges that a node can distinguish: all traffic in this direction of the Pods it selects is denied";
    Issue::new(
        object(name, policy.tier),
        field(demand.direction),
        format!(
            "its ipBlocks need {} ranges, which do not fit among the {MOST} {text}",
            demand.ranges
        ),
    )
}

/// That a policy takes much of what there is for all.
pub(super) fn remark(name: &Name, policy: &Policy, demand: RangeDemand) -> Option<Issue> {
    (demand.ranges > MOST / 4).then(|| {
        let text = "address ranges that a node can distinguish for all policies together";
        Issue::new(
            object(name, policy.tier),
            field(demand.direction),
            format!("its ipBlocks use {} of the {MOST} {text}", demand.ranges),
        )
    })
}

fn field(direction: PolicyDirection) -> String {
    format!("spec.{}", direction.name())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{PolicyDirection, RangeDemand, refused};

    #[test]
    fn the_namespace_that_wants_most_gives_way() {
        let check = |wanted: &[(&str, usize)], most: usize, want: &[u32]| {
            let demand = |(i, (_, ranges)): (u32, &(&str, usize))| RangeDemand {
                policy: i,
                direction: PolicyDirection::Ingress,
                ranges: *ranges,
            };
            let demands: Vec<RangeDemand> = (0..).zip(wanted).map(demand).collect();
            let namespace = |i: u32| Arc::from(wanted[i as usize].0);
            let refused = refused(&demands, namespace, most);
            assert_eq!(refused.into_iter().map(|(i, _)| i).collect::<Vec<_>>(), want, "{wanted:?}");
        };
        check(&[], 10, &[]);
        check(&[("a", 5), ("b", 5)], 10, &[]);
        check(&[("a", 11)], 10, &[0]);
        check(&[("a", 3), ("b", 9), ("c", 1)], 10, &[1]);
        check(&[("a", 4), ("a", 5), ("b", 6)], 10, &[1]);
        check(&[("a", 4), ("a", 4), ("b", 6)], 10, &[0]);
        check(&[("a", 6), ("b", 6), ("c", 6)], 12, &[2]);
        check(&[("a", 6), ("b", 6), ("c", 6)], 10, &[1, 2]);
        check(&[("", 9), ("b", 4)], 10, &[1]);
        check(&[("", 12), ("b", 4)], 10, &[0, 1]);
        check(&[("a", 9), ("a", 1), ("a", 1), ("b", 2)], 10, &[0]);
    }
}
