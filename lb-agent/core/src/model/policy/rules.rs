//! Which policies select which Pods of this node, their rules with peers as atoms, and the groups made of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroI64;
use std::sync::Arc;

use lb_common::flow::proto;

use super::area::Area;
use super::atom::{Atom, Atoms};
use super::charges::PolicyHalf;
use super::lists::{Read, RuleLine};
use super::members::{Demands, Meanings};
use super::room::{self, RangeDemand};
use super::shares::Lost;
use super::{
    AtomId, BitRule, LocalPod, PolicyDirection, PolicyInfo, RuleSet, RuleSource, Span, doubt,
    object,
};
use crate::cluster::{
    Action, Labels, Name, NamedPort, NamespaceRecords as _, Namespaces, Peer, Pod, Policy,
    PortMatch, PortSpec, Rule, Snapshot, Tier,
};
use crate::issue::Issue;

/// The Pods of this node with the policies that select them.
pub(super) struct Subjects<'a> {
    pods: Vec<Subject<'a>>,
    /// By index of the policy.
    counts: Vec<u32>,
}

struct Subject<'a> {
    name: &'a Name,
    pod: &'a Pod,
    /// Indices of policies, ascending.
    policies: Vec<u32>,
}

impl<'a> Subjects<'a> {
    pub(super) fn select(cluster: &'a Snapshot, policies: &[(&Name, &Arc<Policy>)]) -> Self {
        let subject = |(name, pod)| Subject { name, pod, policies: Vec::new() };
        let pods = cluster.all_pods().filter(|(name, pod)| cluster.is_subject(name, pod));
        let mut pods: Vec<Subject<'a>> = pods.map(subject).collect();
        let mut spaces: BTreeMap<Arc<str>, (Labels, Vec<usize>)> = BTreeMap::new();
        for (i, subject) in pods.iter().enumerate() {
            let namespace = &subject.name.namespace;
            let space = spaces.entry(Arc::clone(namespace));
            space.or_insert_with(|| (cluster.namespace_labels(namespace), Vec::new())).1.push(i);
        }
        let mut counts = Vec::with_capacity(policies.len());
        for (index, (name, policy)) in (0u32..).zip(policies) {
            let subject = &policy.subject;
            let places: Vec<&(Labels, Vec<usize>)> = match &subject.namespaces {
                Namespaces::Own => spaces.get(&name.namespace).into_iter().collect(),
                Namespaces::Selected(selector) => {
                    spaces.values().filter(|(labels, _)| selector.matches(labels)).collect()
                }
            };
            let mut count = 0;
            for i in places.into_iter().flat_map(|(_, pods)| pods) {
                if let Some(found) = pods.get_mut(*i)
                    && subject.pods.matches(&found.pod.labels)
                {
                    found.policies.push(index);
                    count += 1;
                }
            }
            counts.push(count);
        }
        Self { pods, counts }
    }

    /// Whether any of the policies selects some Pod.
    pub(super) fn selects_any(&self) -> bool {
        self.counts.iter().any(|count| *count > 0)
    }

    /// The rules of the policies that select some Pod.
    pub(super) fn read<'p>(&self, policies: &[(&'p Name, &'p Arc<Policy>)]) -> Reading<'p> {
        let selecting = |(policy, count): (&(_, &'p Arc<Policy>), &u32)| {
            let list = |rules: &'p Option<Box<[Rule]>>| rules.as_deref().filter(|_| *count > 0);
            let lists = [list(&policy.1.ingress), list(&policy.1.egress)];
            lists.map(|rules| rules.map(|rules| Read::of(rules, policy.1.tier)))
        };
        let lists = policies.iter().zip(&self.counts).map(selecting).collect();
        let mut reading = Reading { lists, ..Reading::default() };
        reading.make_room(policies);
        reading
    }

    /// Those rules, with their peers as atoms; nothing of those that are refused.
    pub(super) fn compile<'p>(
        atoms: &mut Atoms,
        policies: &[(&'p Name, &'p Arc<Policy>)],
        reading: &Reading<'p>,
        refused: &BTreeMap<PolicyHalf, Lost>,
    ) -> CompiledRules<'p> {
        let mut compiled = CompiledRules::default();
        for ((index, (name, policy)), lists) in (0..).zip(policies).zip(&reading.lists) {
            let [ingress, egress] = lists;
            let directions =
                [(PolicyDirection::Ingress, ingress), (PolicyDirection::Egress, egress)];
            let lists = directions.map(|(direction, read)| {
                let Read { lines, areas, beyond, .. } = read.as_ref()?;
                if let Some(rule) = beyond {
                    return Some(DirectionRules::Beyond(*rule));
                }
                let unit = (index, direction);
                match refused.get(&unit) {
                    Some(lost) if lost.is_of_groups() => return Some(DirectionRules::Groupless),
                    Some(_) => return Some(DirectionRules::Roomless),
                    None if reading.refused.contains(&unit) => {
                        return Some(DirectionRules::Roomless);
                    }
                    None => {}
                }
                let rules = lines.iter().zip(areas);
                let read = |(line, area): (&RuleLine<'_>, &Area)| {
                    let mut parts = RuleParts::read(atoms, name, line, area);
                    let unknown = reading.unknown.as_ref();
                    let unknown = unknown.filter(|_| doubt::is_in_doubt(&line.rule, direction));
                    parts.unknown = unknown.map(|area| atoms.intern(Atom::Unknown(area.clone())));
                    parts
                };
                let rules: Vec<RuleParts> = rules.map(read).collect();
                if direction == PolicyDirection::Egress {
                    rules.iter().for_each(|rule| rule.demand(&mut compiled.demands));
                }
                // Without rules, only a `NetworkPolicy` does something.
                let idle = rules.is_empty() && policy.tier != Tier::NetworkPolicy;
                (!idle).then_some(DirectionRules::Rules(rules))
            });
            compiled.policies.push(CompiledPolicy { name, policy, lists });
        }
        compiled
    }

    /// The policies for lists.
    pub(super) fn infos(&self, policies: &[(&Name, &Arc<Policy>)]) -> Vec<PolicyInfo> {
        let info = |((name, policy), subjects): (&(&Name, &Arc<Policy>), &u32)| {
            let lists = policy.ingress.iter().chain(&policy.egress);
            let rules: usize = lists.map(|rules| rules.len()).sum();
            PolicyInfo {
                name: (*name).clone(),
                tier: policy.tier,
                priority: policy.priority,
                generation: policy.generation,
                shadow: policy.shadow,
                subjects: *subjects,
                rules: u32::try_from(rules).unwrap_or(u32::MAX),
                created: policy.created,
            }
        };
        policies.iter().zip(&self.counts).map(info).collect()
    }
}

/// Of one bit.
type PeersAndPorts = (Option<Box<[AtomId]>>, Option<Box<[Span]>>);

/// A rule of a policy, or several that are one.
struct RuleParts {
    index: u32,
    others: Arc<[u32]>,
    action: Action,
    peers: Option<BTreeSet<AtomId>>,
    ports: Option<PortParts>,
    /// The atom of those that may be peers or not.
    unknown: Option<AtomId>,
}

/// Its ports: numbers, and names with the protocol they are wanted of.
#[derive(Default)]
struct PortParts {
    spans: BTreeSet<Span>,
    names: BTreeSet<(Arc<str>, Option<u8>)>,
}

impl RuleParts {
    fn read(atoms: &mut Atoms, policy: &Name, line: &RuleLine<'_>, area: &Area) -> Self {
        let rule = &*line.rule;
        Self {
            index: line.index,
            others: Arc::clone(&line.others),
            action: rule.action,
            peers: rule.peers.as_deref().map(|peers| atoms_of(atoms, policy, peers, area)),
            ports: rule.ports.as_deref().and_then(PortParts::read),
            unknown: None,
        }
    }

    fn demand(&self, demands: &mut Demands) {
        for (name, _) in self.ports.iter().flat_map(|ports| &ports.names) {
            let wanted = demands.entry(Arc::clone(name)).or_default();
            match &self.peers {
                Some(peers) => wanted.extend(peers.iter().copied().map(Some)),
                None => {
                    wanted.insert(None);
                }
            }
        }
    }

    /// What the names of its ports mean at its peers: protocol, number, and the atom of those who mean that.
    fn named(&self, meanings: &Meanings) -> Vec<(u8, u16, AtomId)> {
        let mut found = Vec::new();
        for (name, protocol) in self.ports.iter().flat_map(|ports| &ports.names) {
            let of: Vec<Option<AtomId>> = match &self.peers {
                Some(peers) => peers.iter().copied().map(Some).collect(),
                None => vec![None],
            };
            for of in of {
                let known = meanings.get(&(of, Arc::clone(name))).into_iter().flatten();
                let fits = |(known, ..): &&(u8, u16, AtomId)| protocol.is_none_or(|p| p == *known);
                found.extend(known.filter(fits).copied());
            }
        }
        found
    }

    /// What is denied because it is not known whether the rule matches: peers and ports. What the name of a port means is
    /// not known either.
    fn doubtful(&self) -> Option<PeersAndPorts> {
        let unknown = self.unknown.filter(|_| !self.peers.as_ref().is_some_and(BTreeSet::is_empty));
        let numbers = self.ports.as_ref().filter(|ports| ports.names.is_empty());
        let ports: Option<Box<[Span]>> = numbers.map(|ports| ports.spans.iter().copied().collect());
        let is_of_none = ports.as_ref().is_some_and(|spans| spans.is_empty());
        unknown.filter(|_| !is_of_none).map(|unknown| (Some([unknown].into()), ports))
    }

    /// The peers and ports of the bits that stand for the rule on Pods with these ports.
    fn bits(&self, resolve: &Resolve<'_>) -> Vec<PeersAndPorts> {
        let peers = || self.peers.as_ref().map(|peers| peers.iter().copied().collect());
        if self.peers.as_ref().is_some_and(BTreeSet::is_empty) {
            return Vec::new();
        }
        let Some(PortParts { spans, names }) = &self.ports else { return vec![(peers(), None)] };
        let mut spans = spans.clone();
        let mut split: BTreeMap<Span, BTreeSet<AtomId>> = BTreeMap::new();
        for (name, protocol) in names {
            let fits = |known: u8| protocol.is_none_or(|protocol| protocol == known);
            match resolve {
                Resolve::In(ports) => {
                    let same =
                        ports.iter().filter(|port| port.name == *name && fits(port.protocol));
                    spans.extend(same.map(|port| one(port.protocol, port.port)));
                }
                Resolve::AtPeers(_) => {}
            }
        }
        if let Resolve::AtPeers(meanings) = resolve {
            for (known, port, atom) in self.named(meanings) {
                split.entry(one(known, port)).or_default().insert(atom);
            }
        }
        let whole = (!spans.is_empty()).then(|| (peers(), Some(spans.into_iter().collect())));
        let split = split
            .into_iter()
            .map(|(span, atoms)| (Some(atoms.into_iter().collect()), Some(Box::from([span]))));
        whole.into_iter().chain(split).collect()
    }
}

/// The rules of all policies that select some Pod, as they are written.
#[derive(Default)]
pub(super) struct Reading<'p> {
    /// Where Pods may be that are not known.
    pub(super) unknown: Option<Area>,
    /// Ingress and egress of each policy.
    lists: Vec<[Option<Read<'p>>; 2]>,
    /// Those without room for their blocks.
    refused: BTreeSet<PolicyHalf>,
    /// That they have none.
    pub(super) issues: BTreeSet<Issue>,
    /// What takes much of it.
    pub(super) remarks: Vec<Issue>,
}

/// Of a rule's peers: all its blocks are one atom.
fn atoms_of(atoms: &mut Atoms, policy: &Name, peers: &[Peer], area: &Area) -> BTreeSet<AtomId> {
    let mut found = BTreeSet::new();
    for peer in peers {
        match peer {
            Peer::Pods(pods) => {
                found.insert(atoms.pods(policy, pods));
            }
            Peer::Nodes(nodes) => {
                found.insert(atoms.intern(Atom::Nodes(nodes.clone())));
            }
            Peer::Block { .. } => {}
        }
    }
    if !area.edges().is_empty() {
        found.insert(atoms.intern(Atom::Within(area.clone())));
    }
    found
}

impl PortParts {
    /// `None` = every protocol and port.
    fn read(ports: &[PortMatch]) -> Option<Self> {
        let mut parts = Self::default();
        for PortMatch { protocol, ports } in ports {
            match (ports, protocol) {
                (PortSpec::All, None) => return None,
                (PortSpec::All, Some(protocol)) => {
                    parts.spans.insert(Span::all(*protocol));
                }
                (PortSpec::Range(first, last), _) => {
                    let (first, last) = ((*first).max(1), *last);
                    let known =
                        protocol.map_or(vec![proto::TCP, proto::UDP, proto::SCTP], |p| vec![p]);
                    let spans = known.into_iter().map(|protocol| Span { protocol, first, last });
                    parts.spans.extend(spans.filter(|_| first <= last));
                }
                (PortSpec::Named(name), protocol) => {
                    parts.names.insert((Arc::clone(name), *protocol));
                }
            }
        }
        Some(parts)
    }
}

const fn one(protocol: u8, port: u16) -> Span {
    Span { protocol, first: port, last: port }
}

/// Where the name of a port gets its number.
enum Resolve<'a> {
    /// In the Pod itself.
    In(&'a [NamedPort]),
    /// In the Pods that are the peers.
    AtPeers(&'a Meanings),
}

/// The policies, their rules read.
#[derive(Default)]
pub(super) struct CompiledRules<'p> {
    policies: Vec<CompiledPolicy<'p>>,
    /// What egress rules want to know.
    pub(super) demands: Demands,
}

struct CompiledPolicy<'p> {
    name: &'p Name,
    policy: &'p Policy,
    /// Ingress and egress; `None` = the policy says nothing of that direction.
    lists: [Option<DirectionRules>; 2],
}

/// One direction of a policy.
enum DirectionRules {
    Rules(Vec<RuleParts>),
    /// Too long for any Pod from this rule on: those that it selects are cut off.
    Beyond(u32),
    /// There is no room for it: likewise.
    Roomless,
    /// Nor for groups of their own: they share one.
    Groupless,
}

impl CompiledPolicy<'_> {
    fn list(&self, direction: PolicyDirection) -> Option<&DirectionRules> {
        let [ingress, egress] = &self.lists;
        match direction {
            PolicyDirection::Ingress => ingress.as_ref(),
            PolicyDirection::Egress => egress.as_ref(),
        }
    }

    fn rules(&self, direction: PolicyDirection) -> &[RuleParts] {
        match self.list(direction) {
            Some(DirectionRules::Rules(rules)) => rules,
            Some(
                DirectionRules::Beyond(_) | DirectionRules::Roomless | DirectionRules::Groupless,
            )
            | None => &[],
        }
    }

    fn names_ports(&self, direction: PolicyDirection) -> bool {
        self.rules(direction)
            .iter()
            .any(|rule| rule.ports.as_ref().is_some_and(|ports| !ports.names.is_empty()))
    }
}

/// The groups, whose they are, and what has no place.
#[derive(Default)]
pub(super) struct Grouped {
    pub(super) groups: Vec<Arc<RuleSet>>,
    /// Of each group the direction, and the policies by their indices.
    pub(super) under: Vec<(PolicyDirection, Vec<u32>)>,
    pub(super) pods: BTreeMap<Name, LocalPod>,
    pub(super) issues: BTreeSet<Issue>,
    /// The policies of Pods that have more rules than there is room for in one.
    pub(super) crowded: BTreeSet<PolicyHalf>,
}

impl Reading<'_> {
    /// Makes one rule of those that are alike, of these policies; whether that is another reading.
    pub(super) fn merge(&mut self, units: &BTreeSet<PolicyHalf>) -> bool {
        let mut changed = false;
        for (index, direction) in units {
            let lists = self.lists.get_mut(*index as usize);
            if let Some([ingress, egress]) = lists {
                let list = if *direction == PolicyDirection::Ingress { ingress } else { egress };
                changed |= list.as_mut().is_some_and(Read::merge);
            }
        }
        changed
    }

    /// Finds out which have no room for their blocks.
    fn make_room(&mut self, policies: &[(&Name, &Arc<Policy>)]) {
        let mut demands = Vec::new();
        for (policy, [ingress, egress]) in (0..).zip(&self.lists) {
            let directions =
                [(PolicyDirection::Ingress, ingress), (PolicyDirection::Egress, egress)];
            demands.extend(directions.into_iter().filter_map(|(direction, read)| {
                let ranges = read.as_ref()?.n_ranges();
                (ranges > 0).then_some(RangeDemand { policy, direction, ranges })
            }));
        }
        let at = |policy: u32| policies.get(policy as usize).copied();
        let namespace =
            |policy| at(policy).map_or_else(Arc::default, |(name, _)| Arc::clone(&name.namespace));
        self.refused = room::refused(&demands, namespace, room::MOST);
        for demand in demands {
            let Some((name, policy)) = at(demand.policy) else { continue };
            if self.refused.contains(&(demand.policy, demand.direction)) {
                self.issues.insert(room::issue(name, policy, demand));
            } else {
                self.remarks.extend(room::remark(name, policy, demand));
            }
        }
    }
}

impl CompiledRules<'_> {
    /// The atoms of each policy's rules.
    pub(super) fn uses(&self, meanings: &Meanings) -> BTreeSet<(PolicyHalf, AtomId)> {
        let mut uses = BTreeSet::new();
        for (index, policy) in (0u32..).zip(&self.policies) {
            for direction in [PolicyDirection::Ingress, PolicyDirection::Egress] {
                for rule in policy.rules(direction) {
                    let atoms = rule.peers.iter().flatten().copied();
                    uses.extend(atoms.map(|atom| ((index, direction), atom)));
                    if direction == PolicyDirection::Egress {
                        let named = rule.named(meanings).into_iter();
                        uses.extend(named.map(|(.., atom)| ((index, direction), atom)));
                    }
                }
            }
        }
        uses
    }

    /// The groups of all Pods.
    pub(super) fn group(&self, subjects: &Subjects<'_>, meanings: &Meanings) -> Grouped {
        let mut grouped = Grouped::default();
        let mut known: HashMap<Key, u32> = HashMap::new();
        let (mut issues, mut crowded) = (BTreeSet::new(), BTreeSet::new());
        for subject in &subjects.pods {
            let mut group = |direction: PolicyDirection, shadow: bool| {
                let key = self.key(subject, direction, shadow)?;
                let next = u32::try_from(grouped.groups.len()).ok()?;
                Some(*known.entry(key).or_insert_with_key(|key| {
                    grouped.under.push((key.direction, key.policies.clone()));
                    grouped.groups.push(Arc::new(self.build(
                        key,
                        meanings,
                        (&mut issues, &mut crowded),
                    )));
                    next
                }))
            };
            let groups = [
                group(PolicyDirection::Ingress, false),
                group(PolicyDirection::Egress, false),
                group(PolicyDirection::Ingress, true),
                group(PolicyDirection::Egress, true),
            ];
            let pod = LocalPod {
                uid: subject.pod.uid,
                created: subject.pod.created.map_or(0, NonZeroI64::get),
                ips: subject.pod.ips.clone(),
                groups,
            };
            grouped.pods.insert(subject.name.clone(), pod);
        }
        (grouped.issues, grouped.crowded) = (issues, crowded);
        grouped
    }

    fn key(&self, subject: &Subject<'_>, direction: PolicyDirection, shadow: bool) -> Option<Key> {
        let get = |index: &u32| self.policies.get(*index as usize);
        let says = |index: &&u32| get(index).is_some_and(|policy| policy.list(direction).is_some());
        let is_shadow = |index: &u32| get(index).is_some_and(|policy| policy.policy.shadow);
        let all: Vec<u32> = subject.policies.iter().filter(says).copied().collect();
        let policies: Vec<u32> = if shadow {
            if !all.iter().any(is_shadow) {
                return None;
            }
            all
        } else {
            all.into_iter().filter(|index| !is_shadow(index)).collect()
        };
        let names = |index: &u32| get(index).is_some_and(|policy| policy.names_ports(direction));
        let ports = if direction == PolicyDirection::Ingress && policies.iter().any(names) {
            let mut ports = subject.pod.ports.to_vec();
            ports.sort_unstable();
            ports
        } else {
            Vec::new()
        };
        (!policies.is_empty()).then_some(Key { direction, policies, ports })
    }

    fn build(
        &self,
        key: &Key,
        meanings: &Meanings,
        (issues, crowded): (&mut BTreeSet<Issue>, &mut BTreeSet<PolicyHalf>),
    ) -> RuleSet {
        let resolve = match key.direction {
            PolicyDirection::Ingress => Resolve::In(&key.ports),
            PolicyDirection::Egress => Resolve::AtPeers(meanings),
        };
        let mut rules = Vec::new();
        let mut isolating = Vec::new();
        let mut overflows = false;
        let mut seen = HashSet::new();
        for index in &key.policies {
            let Some(compiled) = self.policies.get(*index as usize) else { continue };
            let CompiledPolicy { name, policy, .. } = compiled;
            if policy.tier == Tier::NetworkPolicy && seen.insert(*name) {
                isolating.push((*name).clone());
            }
            let source = |index, others: &Arc<[u32]>| RuleSource {
                policy: (*name).clone(),
                tier: policy.tier,
                direction: key.direction,
                index,
                others: Arc::clone(others),
            };
            match compiled.list(key.direction) {
                Some(DirectionRules::Beyond(rule)) => {
                    issues.insert(too_many(&source(*rule, &Arc::default())));
                    overflows = true;
                }
                Some(DirectionRules::Roomless) => overflows = true,
                Some(DirectionRules::Groupless) => return RuleSet::overflow(Box::default()),
                Some(DirectionRules::Rules(_)) | None => {}
            }
            for rule in compiled.rules(key.direction) {
                let bits = rule.bits(&resolve).into_iter().map(|bits| (rule.action, bits));
                let doubtful = rule.doubtful().map(|bits| (Action::Deny, bits));
                for (action, (peers, ports)) in bits.chain(doubtful) {
                    let source = source(rule.index, &rule.others);
                    rules.push(Arc::new(BitRule { source, action, peers, ports }));
                }
            }
        }
        let isolating: Box<[Name]> = isolating.into();
        if overflows {
            return RuleSet::overflow(isolating);
        }
        RuleSet::new(&rules, isolating.clone()).unwrap_or_else(|at| {
            if let Some(rule) = rules.get(at) {
                issues.insert(too_many(&rule.source));
            }
            crowded.extend(key.policies.iter().map(|index| (*index, key.direction)));
            RuleSet::overflow(isolating)
        })
    }
}

/// What distinguishes a group.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    direction: PolicyDirection,
    policies: Vec<u32>,
    /// The Pod's, if a policy names some.
    ports: Vec<NamedPort>,
}

fn too_many(source: &RuleSource) -> Issue {
    Issue::new(
        object(&source.policy, source.tier),
        format!("spec.{}[{}]", source.direction.name(), source.index),
        "a Pod that it selects exceeds the limit of rules for one Pod: all traffic of that Pod in this direction is denied",
    )
}
