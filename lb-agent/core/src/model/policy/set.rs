//! Sets of atoms that share what they have in common: of ten thousand sets that differ in one atom each, each costs a
//! few nodes.
//!
//! A set is a tree by the bits of the atoms' numbers, of one shape for one content (Okasaki and Gill, "Fast mergeable
//! integer maps"). A pool makes each node once, so that equal sets are one pointer, whatever they came from.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::AtomId;

/// A set of atoms: what an address satisfies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AtomSet(Option<Arc<Tree>>);

/// The nodes, each once.
#[derive(Debug, Default)]
pub(super) struct Pool(HashSet<Arc<Tree>>);

#[derive(Debug)]
pub(super) struct Tree {
    hash: u64,
    node: TreeNode,
}

#[derive(Debug)]
enum TreeNode {
    /// Those of 64 atoms that are in the set; `at` is their number without its last 6 bits.
    Leaf { at: u32, bits: u64 },
    /// All leaves below agree in the bits before `bit`, as `at` has them; those without `bit` are on the left.
    Fork { at: u32, bit: u32, left: Arc<Tree>, right: Arc<Tree> },
}

impl AtomSet {
    /// Whether it has no atom.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it has this one.
    pub fn contains(&self, atom: AtomId) -> bool {
        let (at, bit) = split(atom);
        let mut next = self.0.as_ref();
        while let Some(tree) = next {
            next = match &tree.node {
                TreeNode::Leaf { at: here, bits } => return *here == at && bits & bit != 0,
                TreeNode::Fork { bit, left, right, .. } => {
                    Some(if at & bit == 0 { left } else { right })
                }
            };
        }
        false
    }

    /// The atoms, ascending.
    pub fn iter(&self) -> impl Iterator<Item = AtomId> {
        self.leaves().flat_map(|(at, bits)| {
            (0..64).filter(move |i| bits >> i & 1 != 0).map(move |i| at << 6 | i)
        })
    }

    /// For each that is in the set, too: calls with what stands beside it in a list sorted by atoms.
    pub(super) fn join<T: Copy>(&self, list: &[(AtomId, T)], found: &mut impl FnMut(T)) {
        if let Some(tree) = &self.0 {
            join(tree, list, found);
        }
    }

    /// Whether some atom of a list that is sorted by atoms is in the set.
    pub(super) fn meets<T>(&self, list: &[(AtomId, T)]) -> bool {
        self.0.as_ref().is_some_and(|tree| meets(tree, list))
    }

    /// A number for those of a sorted list that are in the set; `None` if none is. `memo` is for one list.
    pub(super) fn digest(
        &self,
        list: &[(AtomId, ())],
        memo: &mut HashMap<*const Tree, u64>,
    ) -> Option<u64> {
        self.0.as_ref().map(|tree| digest(tree, list, memo)).filter(|digest| *digest != 0)
    }

    fn leaves(&self) -> impl Iterator<Item = (u32, u64)> {
        let mut stack: Vec<&Tree> = self.0.as_deref().into_iter().collect();
        std::iter::from_fn(move || {
            loop {
                match &stack.pop()?.node {
                    TreeNode::Leaf { at, bits } => return Some((*at, *bits)),
                    TreeNode::Fork { left, right, .. } => stack.extend([&**right, &**left]),
                }
            }
        })
    }
}

fn join<T: Copy>(tree: &Tree, list: &[(AtomId, T)], found: &mut impl FnMut(T)) {
    if list.is_empty() {
        return;
    }
    match &tree.node {
        TreeNode::Leaf { at, bits } => {
            let here = here(list, *at);
            here.filter(|(atom, _)| bits >> (atom & 63) & 1 != 0).for_each(|(_, of)| found(*of));
        }
        TreeNode::Fork { at, bit, left, right } => {
            let (before, after) = halves(list, at | bit);
            join(left, before, found);
            join(right, after, found);
        }
    }
}

fn meets<T>(tree: &Tree, list: &[(AtomId, T)]) -> bool {
    if list.is_empty() {
        return false;
    }
    match &tree.node {
        TreeNode::Leaf { at, bits } => {
            here(list, *at).any(|(atom, _)| bits >> (atom & 63) & 1 != 0)
        }
        TreeNode::Fork { at, bit, left, right } => {
            let (before, after) = halves(list, at | bit);
            meets(left, before) || meets(right, after)
        }
    }
}

fn digest(tree: &Arc<Tree>, list: &[(AtomId, ())], memo: &mut HashMap<*const Tree, u64>) -> u64 {
    if list.is_empty() {
        return 0;
    }
    if let Some(known) = memo.get(&Arc::as_ptr(tree)) {
        return *known;
    }
    let sum = match &tree.node {
        TreeNode::Leaf { at, bits } => {
            let found = here(list, *at).filter(|(atom, _)| bits >> (atom & 63) & 1 != 0);
            found.fold(0u64, |sum, (atom, ())| sum.wrapping_add(mix(u64::from(*atom) + 1)))
        }
        TreeNode::Fork { at, bit, left, right } => {
            let (before, after) = halves(list, at | bit);
            digest(left, before, memo).wrapping_add(digest(right, after, memo))
        }
    };
    memo.insert(Arc::as_ptr(tree), sum);
    sum
}

/// What of a sorted list is in the leaf `at`.
fn here<T>(list: &[(AtomId, T)], at: u32) -> impl Iterator<Item = &(AtomId, T)> {
    let from = list.partition_point(|(atom, _)| atom >> 6 < at);
    list.iter().skip(from).take_while(move |(atom, _)| atom >> 6 == at)
}

/// Sorted by atoms.
type ByAtom<'a, T> = &'a [(AtomId, T)];

/// A sorted list before and from the leaf `middle` on.
fn halves<T>(list: ByAtom<'_, T>, middle: u32) -> (ByAtom<'_, T>, ByAtom<'_, T>) {
    list.split_at(list.partition_point(|(atom, _)| atom >> 6 < middle))
}

impl Pool {
    /// The set with another atom.
    pub(super) fn with(&mut self, set: &AtomSet, atom: AtomId) -> AtomSet {
        let (at, bit) = split(atom);
        AtomSet(Some(match &set.0 {
            None => self.leaf(at, bit),
            Some(tree) => self.insert(tree, (at, bit)),
        }))
    }

    /// The set without an atom.
    pub(super) fn without(&mut self, set: &AtomSet, atom: AtomId) -> AtomSet {
        AtomSet(set.0.as_ref().and_then(|tree| self.remove(tree, split(atom))))
    }

    /// Forgets what no set has.
    pub(super) fn shrink(&mut self) {
        self.0.retain(|tree| Arc::strong_count(tree) > 1);
        if self.0.len() * 4 < self.0.capacity() {
            self.0.shrink_to_fit();
        }
    }

    fn insert(&mut self, tree: &Arc<Tree>, (at, bit): (u32, u64)) -> Arc<Tree> {
        match &tree.node {
            TreeNode::Leaf { at: here, bits } if *here == at => {
                if bits & bit != 0 {
                    return Arc::clone(tree);
                }
                self.leaf(at, bits | bit)
            }
            TreeNode::Leaf { at: here, .. } => {
                let leaf = self.leaf(at, bit);
                self.join((at, leaf), (*here, Arc::clone(tree)))
            }
            TreeNode::Fork { at: here, bit: fork, left, right } => {
                if at & above(*fork) != *here {
                    let leaf = self.leaf(at, bit);
                    self.join((at, leaf), (*here, Arc::clone(tree)))
                } else if at & fork == 0 {
                    let left = self.insert(left, (at, bit));
                    self.fork((*here, *fork), left, Arc::clone(right))
                } else {
                    let right = self.insert(right, (at, bit));
                    self.fork((*here, *fork), Arc::clone(left), right)
                }
            }
        }
    }

    fn remove(&mut self, tree: &Arc<Tree>, (at, bit): (u32, u64)) -> Option<Arc<Tree>> {
        match &tree.node {
            TreeNode::Leaf { at: here, bits } if *here == at && bits & bit != 0 => {
                let bits = bits & !bit;
                (bits != 0).then(|| self.leaf(at, bits))
            }
            TreeNode::Fork { at: here, bit: fork, left, right } if at & above(*fork) == *here => {
                let (mut left, mut right) = (Some(Arc::clone(left)), Some(Arc::clone(right)));
                let side = if at & fork == 0 { &mut left } else { &mut right };
                *side = side.take().and_then(|tree| self.remove(&tree, (at, bit)));
                match (left, right) {
                    (Some(left), Some(right)) => Some(self.fork((*here, *fork), left, right)),
                    (left, right) => left.or(right),
                }
            }
            TreeNode::Leaf { .. } | TreeNode::Fork { .. } => Some(Arc::clone(tree)),
        }
    }

    /// Merges two trees that differ in a bit before the bits that distinguish their leaves.
    fn join(&mut self, a: (u32, Arc<Tree>), b: (u32, Arc<Tree>)) -> Arc<Tree> {
        let bit = 1 << (a.0 ^ b.0).ilog2();
        let at = a.0 & above(bit);
        let (left, right) = if a.0 & bit == 0 { (a.1, b.1) } else { (b.1, a.1) };
        self.fork((at, bit), left, right)
    }

    fn leaf(&mut self, at: u32, bits: u64) -> Arc<Tree> {
        let hash = mix(u64::from(at) ^ mix(bits));
        self.intern(Tree { hash, node: TreeNode::Leaf { at, bits } })
    }

    fn fork(&mut self, (at, bit): (u32, u32), left: Arc<Tree>, right: Arc<Tree>) -> Arc<Tree> {
        let hash = mix(left.hash ^ mix(right.hash.wrapping_add(1)));
        self.intern(Tree { hash, node: TreeNode::Fork { at, bit, left, right } })
    }

    fn intern(&mut self, tree: Tree) -> Arc<Tree> {
        if let Some(known) = self.0.get(&tree) {
            return Arc::clone(known);
        }
        let tree = Arc::new(tree);
        self.0.insert(Arc::clone(&tree));
        tree
    }
}

/// The leaf that an atom is in, and its bit there.
const fn split(atom: AtomId) -> (u32, u64) {
    (atom >> 6, 1 << (atom & 63))
}

/// All bits before this one.
const fn above(bit: u32) -> u32 {
    !(bit | (bit - 1))
}

/// A permutation of the 64-bit numbers without pattern (the finaliser of MurmurHash3).
const fn mix(mut n: u64) -> u64 {
    n ^= n >> 33;
    n = n.wrapping_mul(0xff51_afd7_ed55_8ccd);
    n ^= n >> 33;
    n = n.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ n >> 33
}

impl PartialEq for Tree {
    /// What is of one pool is compared by its pointers, and the rest by content.
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Arc<Self>, b: &Arc<Self>| Arc::ptr_eq(a, b) || a == b;
        self.hash == other.hash
            && match (&self.node, &other.node) {
                (TreeNode::Leaf { at, bits }, TreeNode::Leaf { at: other, bits: others }) => {
                    (at, bits) == (other, others)
                }
                (
                    TreeNode::Fork { at, bit, left, right },
                    TreeNode::Fork { at: b_at, bit: b_bit, left: b_left, right: b_right },
                ) => (at, bit) == (b_at, b_bit) && same(left, b_left) && same(right, b_right),
                (TreeNode::Leaf { .. } | TreeNode::Fork { .. }, _) => false,
            }
    }
}

impl Eq for Tree {}

impl Hash for Tree {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::{AtomSet, Pool};

    fn make(pool: &mut Pool, atoms: &BTreeSet<u32>) -> AtomSet {
        atoms.iter().fold(AtomSet::default(), |set, atom| pool.with(&set, *atom))
    }

    proptest! {
        #[test]
        fn sets_are_what_was_put_in(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0..200u32, any::<u32>()]), 0..200),
        ) {
            let mut pool = Pool::default();
            let (mut set, mut want) = (AtomSet::default(), BTreeSet::new());
            for (put, atom) in steps {
                set = if put { pool.with(&set, atom) } else { pool.without(&set, atom) };
                if put { want.insert(atom); } else { want.remove(&atom); }
                prop_assert_eq!(set.contains(atom), put);
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), want.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.is_empty(), want.is_empty());
            // One content is one tree, in one pool and in two.
            prop_assert_eq!(&make(&mut pool, &want), &set);
            prop_assert_eq!(&make(&mut Pool::default(), &want), &set);
            let other = pool.with(&set, 7_777_777);
            prop_assert_eq!(other == set, want.contains(&7_777_777));
            // Lists are joined as one would read them.
            let list: Vec<(u32, u32)> = (0..300).map(|i| (i / 2, i)).collect();
            let mut joined = Vec::new();
            set.join(&list, &mut |of| joined.push(of));
            let pairs = list.iter().filter(|(atom, _)| want.contains(atom));
            prop_assert_eq!(set.meets(&list), !joined.is_empty());
            let (even, mut memo) = (|n: u32| (0..n).map(|i| (i * 2, ())).collect::<Vec<_>>(), HashMap::new());
            let few = make(&mut pool, &want.iter().copied().filter(|atom| *atom < 80 && atom % 2 == 0).collect());
            prop_assert_eq!(set.digest(&even(40), &mut memo), few.digest(&even(40), &mut memo));
            prop_assert_eq!(few.is_empty(), few.digest(&even(40), &mut memo).is_none());
            if !want.contains(&78) {
                let more = pool.with(&few, 78);
                prop_assert!(more.digest(&even(40), &mut memo) != few.digest(&even(40), &mut memo));
            }
            drop(few);
            prop_assert_eq!(joined, pairs.map(|(_, of)| *of).collect::<Vec<_>>());
            drop((set, other));
            // A parent is forgotten before what is below it.
            (0..40).for_each(|_| pool.shrink());
            prop_assert_eq!(pool.0.len(), 0);
        }
    }
}
