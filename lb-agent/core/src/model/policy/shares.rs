//! Which policies are refused when the rules of all are more than a node's tables of rules take.
//!
//! The namespaces that want most give way: each may have what it wants up to a level at which all of it fits
//! (`charges.rs` says what is whose). Above the level a namespace loses its biggest policies. That is a function of what
//! is desired, not of who came first. What ClusterNetworkPolicies want goes before, and is never refused here.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use lb_common::limits;

use super::charges::{Amounts, Asked, CLUSTER, Charges, GROUPS, PolicyHalf};
use super::{AtomId, PolicyDirection, object};
use crate::cluster::{Name, Policy};
use crate::issue::Issue;
use crate::model::share;

/// The tables, in the order in which they are looked at.
const TABLES: [&str; 3] = ["groups", "port_bits", "peer_bits"];
/// How often what is left is looked at again, since what was refused may not have been what cost most.
pub(super) const ROUNDS: u32 = 5;
/// Each time those that give way do by this power of two more.
const HARDER: u32 = 2;

/// How much of each table may be wanted for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room(Amounts);

impl Room {
    /// Of tables of such sizes.
    pub fn of(groups: u32, port_bits: u32, peer_bits: u32) -> Self {
        Self([groups, port_bits, peer_bits].map(|capacity| share::limit(capacity).into()))
    }
}

impl Default for Room {
    fn default() -> Self {
        // The first two groups stand for no policy and for want of room.
        Self::of(limits::GROUPS - 2, limits::PORT_BITS, limits::PEER_BITS)
    }
}

/// Why a policy is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// Index in [`TABLES`].
    table: usize,
    /// How much of it the namespace wants.
    wanted: u64,
}

impl Lost {
    /// Whether there is no room for the groups of its Pods.
    pub(super) fn is_of_groups(&self) -> bool {
        self.table == GROUPS
    }
}

/// Those that have no room. `uses` says which atoms the rules have; it is asked only where that matters.
pub(super) fn refused(
    asked: &Asked<'_>,
    uses: impl FnOnce() -> BTreeSet<(PolicyHalf, AtomId)>,
    (room, round): (&Room, u32),
) -> BTreeMap<PolicyHalf, Lost> {
    let mut refused = BTreeMap::new();
    if asked.at_most().iter().zip(room.0).all(|(most, limit)| *most <= limit) {
        return refused;
    }
    let mut charges = Charges::of(asked, &uses());
    for (table, limit) in room.0.into_iter().enumerate() {
        let sums = charges.by_tenant(table);
        let limit = limit.saturating_sub(sums.get(CLUSTER).copied().unwrap_or(0));
        let tenants = || sums.iter().copied().enumerate().skip(CLUSTER + 1);
        let Some(level) = share::level(tenants().map(|(_, sum)| sum), limit) else { continue };
        let target = share::steady(level) >> (HARDER * round);
        for (tenant, wanted) in tenants().filter(|(_, sum)| *sum > level) {
            let lost = cut(&mut charges, (tenant, table), (wanted, target));
            refused.extend(lost.into_iter().map(|unit| (unit, Lost { table, wanted })));
        }
    }
    refused
}

/// Takes a tenant's biggest policies away until it is below a level.
fn cut(
    charges: &mut Charges,
    (tenant, table): (usize, usize),
    (mut left, target): (u64, u64),
) -> BTreeSet<PolicyHalf> {
    let mut units: Vec<(u64, PolicyHalf)> = charges.units(tenant, table);
    // Of two that want the same, the one that is evaluated first goes last.
    units.sort_unstable_by_key(|(size, (policy, direction))| {
        (Reverse(*size), Reverse(*policy), *direction)
    });
    let mut lost = BTreeSet::new();
    for (_, unit) in units {
        if left <= target {
            break;
        }
        let gain = charges.refuse(tenant, &unit, table);
        if gain > 0 {
            left = left.saturating_sub(gain);
            lost.insert(unit);
        }
    }
    lost
}

/// That a policy is refused.
pub(super) fn issue(name: &Name, policy: &Policy, direction: PolicyDirection, lost: Lost) -> Issue {
    let table = TABLES.get(lost.table).copied().unwrap_or_default();
    let capacity = [limits::GROUPS, limits::PORT_BITS, limits::PEER_BITS];
    let capacity = capacity.get(lost.table).copied().unwrap_or_default();
    // Figures that hardly change: each other text is another issue.
    let about = share::steady(lost.wanted);
    let more = if about < lost.wanted { "more than " } else { "" };
    Issue::new(
        object(name, policy.tier),
        format!("spec.{}", direction.name()),
        format!(
            "the policies of namespace {} need {more}{about} of {capacity} {table}, and all namespaces together need more than there are: all traffic in this direction of the Pods it selects is denied",
            name.namespace
        ),
    )
}
