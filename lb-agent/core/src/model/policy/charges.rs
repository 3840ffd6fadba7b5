//! Which namespace is charged for which elements of the tables of rules.
//!
//! A group is charged to the namespace of its Pods, with the rules that cluster policies have for those Pods: only this
//! namespace can have written what distinguishes it from other groups. A group without a `NetworkPolicy` is the cluster's.
//!
//! An element of `peer_bits` belongs to a group and an identity that rules distinguish, possibly the rules of another
//! namespace. It is charged to the one that causes more of its kind: to the owner of the group, unless the other namespace
//! distinguishes more identities than the owner has groups. So what a namespace is charged is bounded by its own numbers,
//! however many groups or peers other namespaces have. An identity that several namespaces distinguish is charged to the one
//! that distinguishes most, and a peer that several have written (every Pod, for example) to the one with most peers. A peer
//! of cluster policies is charged to no namespace.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{AtomId, AtomSet, PolicyDirection, RuleSet};
use crate::cluster::{Name, Policy, Tier};

/// Elements of `groups`, of `port_bits` and of `peer_bits`.
pub(super) type Amounts = [u64; 3];
/// Index of `groups` there.
pub(super) const GROUPS: usize = 0;
/// Index of `peer_bits`.
pub(super) const PEERS: usize = 2;
/// What belongs to the cluster, among the tenants.
pub(super) const CLUSTER: usize = 0;

/// A direction of a policy, which is refused as a whole. The policy by its index.
pub(super) type PolicyHalf = (u32, PolicyDirection);

/// What policies come to.
pub(super) struct Asked<'a> {
    pub(super) policies: &'a [(&'a Name, &'a Arc<Policy>)],
    pub(super) groups: &'a [Arc<RuleSet>],
    /// The policies of each group, by their indices.
    pub(super) under: &'a [(PolicyDirection, Vec<u32>)],
    pub(super) idents: &'a [AtomSet],
}

impl Asked<'_> {
    /// What is wanted of each table at most, found out quickly.
    pub(super) fn at_most(&self) -> Amounts {
        let mut sum = [0; 3];
        for group in self.groups {
            let links = u64::from(group.n_links());
            let costs = [links, group.most_ports(), links * self.idents.len() as u64];
            sum.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
        }
        sum
    }
}

/// A tenant: 0, or the number of a namespace.
type Tenant = usize;
/// Sorted.
type Peers = Vec<(AtomId, ())>;

/// A group and what it costs its tenant.
struct Account {
    tenant: Tenant,
    /// The policies that can be refused, each with its weight in the group: its rules, and one for being there.
    units: Vec<(PolicyHalf, u64)>,
    /// The sum of those weights.
    weight: u64,
    own: Amounts,
}

/// A tenant's policies, and what they cost where others are.
#[derive(Default)]
struct TenantCharges {
    n_groups: u64,
    units: BTreeMap<PolicyHalf, Share>,
    /// The sum of [`Share::peers`].
    peers: u64,
    /// Elements of `peer_bits` in others' groups.
    abroad: u64,
}

/// A policy's part in that.
#[derive(Default)]
struct Share {
    /// Distinct peers of its rules.
    peers: u64,
    /// The groups that it is in.
    groups: Vec<usize>,
}

pub(super) struct Charges {
    accounts: Vec<Account>,
    /// By tenant.
    holders: Vec<TenantCharges>,
}

impl Charges {
    pub(super) fn of(asked: &Asked<'_>, uses: &BTreeSet<(PolicyHalf, AtomId)>) -> Self {
        let tenants = Tenants::of(asked.policies.iter().map(|(name, policy)| (*name, &***policy)));
        let mut holders: Vec<TenantCharges> =
            (0..tenants.n).map(|_| TenantCharges::default()).collect();
        let mut peers: Vec<BTreeSet<AtomId>> = vec![BTreeSet::new(); tenants.n];
        for (unit, atom) in uses {
            let tenant = tenants.of_policy(unit.0);
            if let (Some(holder), Some(peers)) = (holders.get_mut(tenant), peers.get_mut(tenant)) {
                holder.peers += 1;
                holder.units.entry(*unit).or_default().peers += 1;
                peers.insert(*atom);
            }
        }
        let mut known: HashSet<&RuleSet> = HashSet::new();
        let (mut groups, mut accounts) = (Vec::new(), Vec::new());
        for (group, (direction, policies)) in asked.groups.iter().zip(asked.under) {
            if !known.insert(group) {
                continue;
            }
            let units = policies.iter().map(|policy| (*policy, *direction));
            let account = Account::new(asked, group, units, &tenants);
            if let Some(holder) = holders.get_mut(account.tenant) {
                holder.n_groups += 1;
                for (unit, _) in &account.units {
                    holder.units.entry(*unit).or_default().groups.push(accounts.len());
                }
            }
            groups.push(&**group);
            accounts.push(account);
        }
        let mut charges = Self { accounts, holders };
        charges.meet(&groups, asked.idents, &payers(asked.idents, peers));
        charges
    }

    /// Charges the elements of `peer_bits`.
    fn meet(&mut self, groups: &[&RuleSet], idents: &[AtomSet], payers: &[Option<(Tenant, u64)>]) {
        for (account, group) in self.accounts.iter_mut().zip(groups) {
            let n_groups = self.holders.get(account.tenant).map_or(0, |holder| holder.n_groups);
            let links = group.atoms();
            for (ident, payer) in idents.iter().zip(payers) {
                let n = links.iter().filter(|atoms| ident.meets(atoms)).count() as u64;
                let other = payer.filter(|(tenant, n)| *tenant != account.tenant && *n > n_groups);
                match other.and_then(|(tenant, _)| self.holders.get_mut(tenant)) {
                    Some(holder) => holder.abroad += n,
                    None => account.own[PEERS] += n,
                }
            }
        }
    }

    /// What each tenant wants of a table.
    pub(super) fn by_tenant(&self, table: usize) -> Vec<u64> {
        let abroad = |holder: &TenantCharges| if table == PEERS { holder.abroad } else { 0 };
        let mut sums: Vec<u64> = self.holders.iter().map(abroad).collect();
        for account in &self.accounts {
            if let Some(sum) = sums.get_mut(account.tenant) {
                *sum += at(&account.own, table);
            }
        }
        sums
    }

    /// The policies of a tenant, each with what it is to blame for.
    pub(super) fn units(&self, tenant: Tenant, table: usize) -> Vec<(u64, PolicyHalf)> {
        let Some(holder) = self.holders.get(tenant) else { return Vec::new() };
        let size = |(unit, share): (&PolicyHalf, &Share)| {
            let own = share.groups.iter().filter_map(|group| self.accounts.get(*group));
            let own: u64 = own.map(|account| account.part(unit, table)).sum();
            (own + if table == PEERS { holder.part(share) } else { 0 }, *unit)
        };
        holder.units.iter().map(size).collect()
    }

    /// Takes a tenant's policy away; returns how much less it wants of a table.
    pub(super) fn refuse(&mut self, tenant: Tenant, unit: &PolicyHalf, table: usize) -> u64 {
        let Some(holder) = self.holders.get_mut(tenant) else { return 0 };
        let Some(share) = holder.units.remove(unit) else { return 0 };
        let abroad = holder.part(&share);
        holder.abroad -= abroad;
        holder.peers -= share.peers;
        let mut gain = if table == PEERS { abroad } else { 0 };
        for group in share.groups {
            if let Some(account) = self.accounts.get_mut(group) {
                let before = at(&account.own, table);
                // What is left of it denies everything; without room for that, Pods share it.
                account.own =
                    [if table == GROUPS { 0 } else { at(&account.own, GROUPS).min(1) }, 0, 0];
                gain += before.saturating_sub(at(&account.own, table));
            }
        }
        gain
    }
}

impl TenantCharges {
    /// The part that a policy has in what its tenant's peers cost in others' groups.
    fn part(&self, share: &Share) -> u64 {
        let part = u128::from(self.abroad) * u128::from(share.peers);
        u64::try_from(part.div_ceil(u128::from(self.peers.max(1)))).unwrap_or(u64::MAX)
    }
}

impl Account {
    fn new(
        asked: &Asked<'_>,
        group: &RuleSet,
        units: impl Iterator<Item = PolicyHalf>,
        tenants: &Tenants,
    ) -> Self {
        let mut rules: HashMap<&Name, u64> = HashMap::new();
        for (_, rule) in &group.rules {
            if rule.source.tier == Tier::NetworkPolicy {
                *rules.entry(&rule.source.policy).or_default() += 1;
            }
        }
        let of_namespace = units.filter(|(policy, _)| tenants.of_policy(*policy) != CLUSTER);
        let weight = |unit: PolicyHalf| {
            let name = asked.policies.get(unit.0 as usize).map(|(name, _)| *name);
            (unit, name.and_then(|name| rules.get(name)).copied().unwrap_or(0) + 1)
        };
        let units: Vec<(PolicyHalf, u64)> = of_namespace.map(weight).collect();
        let tenant = units.first().map_or(CLUSTER, |((policy, _), _)| tenants.of_policy(*policy));
        let weight = units.iter().map(|(_, weight)| weight).sum();
        Self { tenant, units, weight, own: [group.n_links().into(), group.n_ports(), 0] }
    }

    /// The part of its cost that a policy is to blame for.
    fn part(&self, unit: &PolicyHalf, table: usize) -> u64 {
        let found = self.units.binary_search_by_key(unit, |(unit, _)| *unit).ok();
        let weight = found.and_then(|at| self.units.get(at)).map_or(0, |(_, weight)| *weight);
        let part = u128::from(at(&self.own, table)) * u128::from(weight);
        u64::try_from(part.div_ceil(u128::from(self.weight.max(1)))).unwrap_or(u64::MAX)
    }
}

fn at(amounts: &Amounts, table: usize) -> u64 {
    amounts.get(table).copied().unwrap_or(0)
}

/// Numbers for namespaces.
struct Tenants {
    /// By the index of a policy.
    of: Vec<Tenant>,
    n: usize,
}

impl Tenants {
    fn of<'a>(policies: impl Iterator<Item = (&'a Name, &'a Policy)> + Clone) -> Self {
        let of_namespace = |(name, policy): (&'a Name, &'a Policy)| {
            (policy.tier == Tier::NetworkPolicy).then_some(&*name.namespace)
        };
        let namespaces: BTreeSet<&str> = policies.clone().filter_map(of_namespace).collect();
        let numbers: BTreeMap<&str, Tenant> = namespaces.into_iter().zip(CLUSTER + 1..).collect();
        let number = |policy| {
            of_namespace(policy).and_then(|name| numbers.get(name)).copied().unwrap_or(CLUSTER)
        };
        Self { of: policies.map(number).collect(), n: numbers.len() + 1 }
    }

    fn of_policy(&self, policy: u32) -> Tenant {
        self.of.get(policy as usize).copied().unwrap_or(CLUSTER)
    }
}

/// For each identity the tenant whose peers distinguish it, and the number of identities that the peers of this tenant
/// distinguish.
fn payers(idents: &[AtomSet], peers: Vec<BTreeSet<AtomId>>) -> Vec<Option<(Tenant, u64)>> {
    let mut tenants: Vec<(Tenant, BTreeSet<AtomId>)> = peers.into_iter().enumerate().collect();
    // Each peer belongs to one tenant; those of cluster policies belong to none.
    tenants.sort_by_key(|(tenant, peers)| (*tenant != CLUSTER, Reverse(peers.len()), *tenant));
    let mut taken: HashSet<AtomId> = HashSet::new();
    let mut owners: Vec<(u64, Tenant, Peers)> = Vec::new();
    for (tenant, peers) in tenants {
        let own = peers.into_iter().filter(|atom| taken.insert(*atom)).map(|atom| (atom, ()));
        let own: Peers = own.collect();
        if tenant != CLUSTER {
            let (mut memo, mut distinguished) = (HashMap::new(), HashSet::new());
            for ident in idents {
                distinguished.extend(ident.digest(&own, &mut memo));
            }
            owners.push((distinguished.len() as u64, tenant, own));
        }
    }
    owners.sort_by_key(|(n, tenant, _)| (Reverse(*n), *tenant));
    let payer = |ident: &AtomSet| {
        let (n, tenant, _) = owners.iter().find(|(.., own)| ident.meets(own))?;
        Some((*tenant, *n))
    };
    idents.iter().map(payer).collect()
}
