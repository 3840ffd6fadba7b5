//! Who satisfies which atoms: Pods and nodes by their labels, then each of their addresses.
//!
//! Pods are distinguished only by the labels that some selector uses, so that ten thousand Pods become a few hundred kinds.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::atom::{Atom, Atoms, NamedPortMeaning, NamespaceScope};
use super::blocks::Blocks;
use super::set::Pool;
use super::{AtomId, AtomSet};
use crate::cluster::{Labels, Name, NamedPort, NamespaceRecords as _, Pod, Selector, Snapshot};

/// The peers (`None` = any Pod) of which egress rules want to know what a port's name means, by name.
pub(super) type Demands = HashMap<Arc<str>, BTreeSet<Option<AtomId>>>;

/// What ports' names mean in egress rules: by atom (`None` = any Pod) and name the protocol, the number, and the atom
/// of those who mean that.
pub(super) type Meanings = HashMap<(Option<AtomId>, Arc<str>), BTreeSet<(u8, u16, AtomId)>>;

type PodAtom = (AtomId, Arc<Selector>);

/// Kinds of Pods and nodes, and identities of addresses.
pub(super) struct Members<'a> {
    cluster: &'a Snapshot,
    /// Pod selectors for one namespace.
    own: HashMap<Arc<str>, Vec<PodAtom>>,
    /// Pod selectors for the namespaces with such labels.
    selected: Vec<(Arc<Selector>, PodAtom)>,
    nodes: Vec<PodAtom>,
    /// The atom of addresses whose holders are not known.
    unknown: Option<AtomId>,
    demands: &'a Demands,
    pool: &'a mut Pool,
    spaces: HashMap<Arc<str>, Space>,
    classes: Vec<PodClass>,
    idents: HashMap<(u32, u32), u32>,
    numbers: HashMap<AtomSet, u32>,
    list: Vec<AtomSet>,
    meanings: Meanings,
}

/// A namespace: which selectors its Pods may satisfy.
struct Space {
    atoms: Vec<PodAtom>,
    /// The labels that those ask for.
    keys: HashSet<Arc<str>>,
    classes: HashMap<PodShape, u32>,
}

/// All that is asked of a Pod of a namespace.
type PodShape = (Vec<(Arc<str>, Arc<str>)>, Vec<NamedPort>);

struct PodClass {
    atoms: Vec<AtomId>,
    ports: Vec<NamedPort>,
}

impl<'a> Members<'a> {
    pub(super) fn new(
        cluster: &'a Snapshot,
        (atoms, pool): (&Atoms, &'a mut Pool),
        demands: &'a Demands,
    ) -> Self {
        let mut members = Self {
            cluster,
            own: HashMap::new(),
            selected: Vec::new(),
            nodes: Vec::new(),
            unknown: None,
            demands,
            pool,
            spaces: HashMap::new(),
            classes: Vec::new(),
            idents: HashMap::new(),
            numbers: HashMap::new(),
            list: Vec::new(),
            meanings: Meanings::new(),
        };
        members.intern(&AtomSet::default());
        for (atom, id) in atoms.iter() {
            match atom {
                Atom::Pods(NamespaceScope::One(namespace), pods) => {
                    let own = members.own.entry(Arc::clone(namespace)).or_default();
                    own.push((id, Arc::new(pods.clone())));
                }
                Atom::Pods(NamespaceScope::Selected(namespaces), pods) => {
                    let pods = (id, Arc::new(pods.clone()));
                    members.selected.push((Arc::new(namespaces.clone()), pods));
                }
                Atom::Nodes(nodes) => members.nodes.push((id, Arc::new(nodes.clone()))),
                Atom::Unknown(_) => members.unknown = Some(id),
                Atom::Within(_) | Atom::Named(_) => {}
            }
        }
        members
    }

    /// The kind of a Pod.
    pub(super) fn class_of(&mut self, name: &Name, pod: &Pod) -> u32 {
        if !self.spaces.contains_key(&name.namespace) {
            let space = self.space(&name.namespace);
            self.spaces.insert(Arc::clone(&name.namespace), space);
        }
        let Some(space) = self.spaces.get_mut(&name.namespace) else { return 0 };
        let asked = pod.labels.iter().filter(|(key, _)| space.keys.contains(key));
        let ports = pod.ports.iter().filter(|port| self.demands.contains_key(&port.name));
        let kind: PodShape = (asked.cloned().collect(), ports.cloned().collect());
        if let Some(class) = space.classes.get(&kind) {
            return *class;
        }
        let atoms = satisfied(&space.atoms, &pod.labels);
        let class = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        self.classes.push(PodClass { atoms, ports: kind.1.clone() });
        space.classes.insert(kind, class);
        class
    }

    /// The kind of a node.
    pub(super) fn class_of_node(&mut self, labels: &Labels) -> u32 {
        let class = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        self.classes.push(PodClass { atoms: satisfied(&self.nodes, labels), ports: Vec::new() });
        class
    }

    fn space(&self, namespace: &Arc<str>) -> Space {
        let labels = self.cluster.namespace_labels(namespace);
        let mut atoms = self.own.get(namespace).cloned().unwrap_or_default();
        let here = self.selected.iter().filter(|(namespaces, _)| namespaces.matches(&labels));
        atoms.extend(here.map(|(_, pods)| pods.clone()));
        let keys = atoms.iter().flat_map(|(_, pods)| pods.0.iter());
        let keys = keys.map(|requirement| Arc::clone(&requirement.key)).collect();
        Space { atoms, keys, classes: HashMap::new() }
    }

    /// The identity of an address whose holder is of this kind, and which is in this set of blocks.
    pub(super) fn ident(
        &mut self,
        (class, set): (u32, u32),
        blocks: &Blocks,
        atoms: &mut Atoms,
    ) -> u32 {
        if let Some(ident) = self.idents.get(&(class, set)) {
            return *ident;
        }
        let mut all = self.known(blocks.set(set));
        let Some(found) = self.classes.get(class as usize) else { return 0 };
        for atom in &found.atoms {
            all = self.pool.with(&all, *atom);
        }
        let mut named = Vec::new();
        for NamedPort { name, protocol, port } in &found.ports {
            let wanted = self.demands.get(name).into_iter().flatten();
            for of in wanted.filter(|of| of.is_none_or(|of| all.contains(of))) {
                let (name, protocol, port) = (Arc::clone(name), *protocol, *port);
                let key = (*of, Arc::clone(&name));
                let id =
                    atoms.intern(Atom::Named(NamedPortMeaning { of: *of, name, protocol, port }));
                self.meanings.entry(key).or_default().insert((protocol, port, id));
                named.push(id);
            }
        }
        for atom in named {
            all = self.pool.with(&all, atom);
        }
        let ident = self.intern(&all);
        self.idents.insert((class, set), ident);
        ident
    }

    /// The identity of an address in this set of blocks that a node has beside those by which it is known.
    pub(super) fn ident_of_node(&mut self, set: u32, blocks: &Blocks) -> u32 {
        let atoms = self.known(blocks.set(set));
        self.intern(&atoms)
    }

    fn known(&mut self, atoms: AtomSet) -> AtomSet {
        match self.unknown {
            Some(unknown) => self.pool.without(&atoms, unknown),
            None => atoms,
        }
    }

    /// The number of an identity.
    pub(super) fn intern(&mut self, atoms: &AtomSet) -> u32 {
        if let Some(number) = self.numbers.get(atoms) {
            return *number;
        }
        let number = u32::try_from(self.list.len()).unwrap_or(0);
        self.numbers.insert(atoms.clone(), number);
        self.list.push(atoms.clone());
        number
    }

    /// All identities, and what ports' names mean.
    pub(super) fn finish(self) -> (Vec<AtomSet>, Meanings) {
        (self.list, self.meanings)
    }
}

fn satisfied(atoms: &[PodAtom], labels: &Labels) -> Vec<AtomId> {
    atoms.iter().filter(|(_, selector)| selector.matches(labels)).map(|(id, _)| *id).collect()
}
