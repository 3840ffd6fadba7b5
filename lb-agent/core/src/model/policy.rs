//! Policies, Pods, namespaces and nodes → what the policy tables should say, by content: groups of rules, sets of
//! addresses. Numbers for both are given by the planner.
//!
//! ```text
//! policies × Pods of this node ──► rules in use ──► atoms: the distinct descriptions of peers
//! all Pods, nodes, blocks × atoms ──► identities: the sets of atoms that some address satisfies
//! rules in use, ports resolved ──► groups
//! ```
//!
//! Everything is computed again at each change. Policies that concern no Pod of this node cost next to nothing.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::endpoint::IdentFlags;

use self::atom::Atoms;
use self::charges::{Asked, PolicyHalf};
use self::members::Members;
use self::rules::{Reading, Subjects};
use self::set::Pool;
use self::shares::Lost;
use crate::cluster::{Cluster, Name, Owners, Policy, Prefix, Snapshot, Tier};
use crate::issue::{Issue, ObjectRef};

mod area;
mod atom;
mod blocks;
mod charges;
mod doubt;
mod group;
mod lists;
mod members;
mod need;
mod others;
mod ports;
mod range;
mod room;
mod rules;
mod set;
mod shares;

pub use self::atom::AtomId;
pub use self::blocks::Blocks;
pub use self::group::{BitRule, GroupLink, PolicyDirection, RuleSet, RuleSource, Span};
pub use self::need::needs_all_pods;
pub use self::ports::PortEntry;
pub use self::range::{CidrRange, number};
pub use self::set::AtomSet;
pub use self::shares::Room;

/// What the policy tables should say, by content.
#[derive(Clone, Debug, Default)]
pub struct DesiredPolicies {
    /// Whether there is any policy in the cluster.
    pub any: bool,
    /// The groups in use, each once.
    pub groups: Vec<Arc<RuleSet>>,
    /// The Pods of this node that have addresses of their own.
    pub pods: BTreeMap<Name, LocalPod>,
    /// The identities in use, each once; the first is that of no atom.
    pub idents: Vec<AtomSet>,
    /// Addresses of Pods and nodes, also while there is no policy.
    pub addrs: HashMap<Addr, AddressIdentity>,
    /// Where the Pods of other nodes are that `addrs` lacks, since only this node's are known.
    pub pod_ranges: BTreeSet<Prefix>,
    /// Which identity all other addresses have.
    pub ranges: Blocks,
    /// All policies, in the order of evaluation.
    pub policies: Vec<PolicyInfo>,
    /// What could not be compiled.
    pub issues: Vec<Issue>,
    /// Which policies take much of what there is for all.
    pub remarks: Vec<Issue>,
}

/// A Pod of this node: whose addresses, and under which groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// [`Pod::uid`].
    pub uid: u64,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 = not known.
    pub created: i64,
    /// Its addresses; empty before it has some.
    pub ips: Box<[Addr]>,
    /// Indices in [`DesiredPolicies::groups`]: ingress, egress, and the same two with shadow policies; `None` = none.
    pub groups: [Option<u32>; 4],
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressIdentity {
    /// Index in [`DesiredPolicies::idents`].
    pub ident: u32,
    /// What it is.
    pub flags: IdentFlags,
}

/// A policy, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// Its name.
    pub name: Name,
    /// Its tier.
    pub tier: Tier,
    /// Its priority within the tier.
    pub priority: u16,
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether it is only tried.
    pub shadow: bool,
    /// Pods of this node that it selects.
    pub subjects: u32,
    /// Rules of both directions.
    pub rules: u32,
    /// `metadata.creationTimestamp` in seconds since 1970, 0 = not known.
    pub created: i64,
}

impl DesiredPolicies {
    /// Index in [`DesiredPolicies::idents`] of an address, whoever has it.
    pub fn ident_of(&self, addr: &Addr) -> u32 {
        self.addrs.get(addr).map_or_else(|| self.ranges.find(addr), |known| known.ident)
    }
}

/// Compiles, and remembers the numbers of atoms, so that what has the same content compares equal the next time.
#[derive(Debug, Default)]
pub struct Compiler {
    atoms: Atoms,
    pool: Pool,
    room: Room,
}

impl Compiler {
    /// For tables with this room.
    pub fn new(room: Room) -> Self {
        Self { room, ..Self::default() }
    }

    /// What the tables should say.
    pub fn compile(&mut self, cluster: &Snapshot) -> DesiredPolicies {
        let mut policies: Vec<(&Name, &Arc<Policy>)> = cluster.policies().collect();
        if policies.is_empty() {
            *self = Self::new(self.room);
            let idents = vec![AtomSet::default()];
            // No Pod may send from the address of another, with or without policies.
            return DesiredPolicies {
                idents,
                addrs: others::holders(cluster),
                pod_ranges: others::pod_ranges(cluster),
                ..DesiredPolicies::default()
            };
        }
        policies.sort_by_key(|(name, policy)| (policy.tier, policy.priority, *name));
        let subjects = Subjects::select(cluster, &policies);
        let mut reading = subjects.read(&policies);
        reading.unknown = need::unknown(cluster);
        let mut refused: BTreeMap<PolicyHalf, Lost> = BTreeMap::new();
        let mut round = 0;
        self.atoms.begin();
        let mut desired = loop {
            let input =
                Input { cluster, policies: &policies, subjects: &subjects, reading: &reading };
            let Attempt { desired, crowded, more } = self.attempt(&input, &refused, round);
            if !reading.merge(&crowded) {
                if more.is_empty() || round == shares::ROUNDS {
                    break desired;
                }
                for (unit, lost) in more {
                    refused.entry(unit).or_insert(lost);
                }
                round += 1;
            }
            self.atoms.begin_again();
        };
        self.atoms.end();
        self.pool.shrink();
        let issues = refused.iter().filter_map(|((index, direction), lost)| {
            let (name, policy) = policies.get(*index as usize)?;
            Some(shares::issue(name, policy, *direction, *lost))
        });
        desired.issues.extend(issues);
        desired.issues.extend(reading.issues);
        desired.issues.sort_unstable();
        desired.policies = subjects.infos(&policies);
        desired.pod_ranges = others::pod_ranges(cluster);
        desired.remarks = reading.remarks;
        desired
    }

    /// What they should say without what is refused; and what is to be refused, too.
    fn attempt(
        &mut self,
        input: &Input<'_>,
        refused: &BTreeMap<PolicyHalf, Lost>,
        round: u32,
    ) -> Attempt {
        let &Input { cluster, policies, subjects, reading } = input;
        let compiled = Subjects::compile(&mut self.atoms, policies, reading, refused);
        let mut blocks = Blocks::flatten(self.atoms.areas(), &mut self.pool);
        let mut members = Members::new(cluster, (&self.atoms, &mut self.pool), &compiled.demands);
        let mut addrs = HashMap::new();
        let owners = Owners::of(cluster);
        for (name, pod) in cluster.all_pods().filter(|(_, pod)| !pod.host_network) {
            let class = members.class_of(name, pod);
            for addr in pod.ips.iter().filter(|addr| owners.is_pods(name, addr)) {
                let ident = members.ident((class, blocks.find(addr)), &blocks, &mut self.atoms);
                addrs.insert(*addr, AddressIdentity { ident, flags: others::flags(cluster, pod) });
            }
        }
        for (name, node) in cluster.nodes() {
            let class = members.class_of_node(&node.labels);
            for addr in node.addresses.iter().filter(|addr| owners.is_nodes(name, addr)) {
                let ident = members.ident((class, blocks.find(addr)), &blocks, &mut self.atoms);
                addrs.insert(*addr, AddressIdentity { ident, flags: IdentFlags::NODE });
            }
        }
        for addr in others::in_pod_network(cluster) {
            let ident = members.ident_of_node(blocks.find(&addr), &blocks);
            addrs.entry(addr).or_insert(AddressIdentity { ident, flags: IdentFlags::NODE });
        }
        blocks.name(|atoms| members.intern(atoms));
        let (idents, named) = members.finish();
        let grouped = compiled.group(subjects, &named);
        let asked =
            Asked { policies, groups: &grouped.groups, under: &grouped.under, idents: &idents };
        let more = shares::refused(&asked, || compiled.uses(&named), (&self.room, round));
        let desired = DesiredPolicies {
            any: true,
            groups: grouped.groups,
            pods: grouped.pods,
            idents,
            addrs,
            ranges: blocks,
            issues: grouped.issues.into_iter().collect(),
            ..DesiredPolicies::default()
        };
        Attempt { desired, crowded: grouped.crowded, more }
    }
}

/// What one compilation came to.
struct Attempt {
    desired: DesiredPolicies,
    /// The policies of Pods that have too many rules.
    crowded: BTreeSet<PolicyHalf>,
    /// What is to be refused, too.
    more: BTreeMap<PolicyHalf, Lost>,
}

/// What is compiled.
struct Input<'a> {
    cluster: &'a Snapshot,
    policies: &'a [(&'a Name, &'a Arc<Policy>)],
    subjects: &'a Subjects<'a>,
    reading: &'a Reading<'a>,
}

/// What the tables should say, from nothing.
pub fn compile(cluster: &Cluster) -> DesiredPolicies {
    Compiler::default().compile(&cluster.snapshot())
}

/// The kind of a policy's object.
pub fn object(name: &Name, tier: Tier) -> ObjectRef {
    let kind = match tier {
        Tier::NetworkPolicy => "NetworkPolicy",
        Tier::Admin | Tier::Baseline => "ClusterNetworkPolicy",
    };
    ObjectRef::new(kind, name)
}
