//! What policies depend on, as it was at one time, for those who compute for a while: shared with the records, not copied.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::table::Objects;
use super::{Cluster, Labels, Name, Namespace, Namespaces, Node, Pod, PodSelector, Policy, Tier};

/// Policies, Pods, namespaces and nodes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    node: Arc<str>,
    /// The Pods that stand for those of this node, if it is about others.
    subjects: Option<BTreeSet<Name>>,
    /// Whether the Pods of all nodes are among them.
    knows_all_pods: bool,
    has_strays: bool,
    empty: Arc<str>,
    pods: Objects<Pod>,
    namespaces: Objects<Namespace>,
    nodes: Objects<Node>,
    /// ClusterNetworkPolicies, NetworkPolicies, and those of the latter that are gone and hold.
    policies: [Objects<Policy>; 3],
}

impl Cluster {
    /// What policies depend on, as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            node: Arc::clone(&self.node),
            subjects: None,
            knows_all_pods: self.knows_all_pods(),
            has_strays: self.has_strays,
            empty: Arc::clone(&self.empty),
            pods: self.pods.snapshot(),
            namespaces: self.namespaces.snapshot(),
            nodes: self.nodes.snapshot(),
            policies: [
                self.cluster_network_policies.snapshot(),
                self.network_policies.snapshot(),
                self.retained.snapshot(),
            ],
        }
    }
}

impl Snapshot {
    /// The same with these Pods, of any nodes, in the place of those of this node.
    pub fn about(self, subjects: BTreeSet<Name>) -> Self {
        Self { subjects: Some(subjects), ..self }
    }

    /// The same with these policies in addition, or in the place of those with the same name, and without others: those of the
    /// cluster have no namespace.
    pub fn with_policies(mut self, put: &[(Name, Policy)], delete: &[Name]) -> Self {
        for name in delete {
            for policies in &mut self.policies {
                Arc::make_mut(policies).remove(name);
            }
        }
        let [of_cluster, of_namespaces, gone] = &mut self.policies;
        for (name, policy) in put {
            let policies = match policy.tier {
                Tier::NetworkPolicy => &mut *of_namespaces,
                Tier::Admin | Tier::Baseline => &mut *of_cluster,
            };
            Arc::make_mut(policies).insert(name.clone(), Arc::new(policy.clone()));
            // One that is made again no longer holds in its former form.
            Arc::make_mut(gone).remove(name);
        }
        self
    }

    /// All policies in force, in no order, as [`Cluster::policies`] has them.
    pub fn policies(&self) -> impl Iterator<Item = (&Name, &Arc<Policy>)> {
        self.policies.iter().flat_map(|policies| policies.iter())
    }

    /// All Pods of all nodes, and those of none yet.
    pub fn all_pods(&self) -> impl Iterator<Item = (&Name, &Pod)> {
        self.pods.iter().map(|(name, pod)| (name, &**pod))
    }

    /// Whether a Pod is one of this node.
    pub fn is_own(&self, pod: &Pod) -> bool {
        *pod.node == *self.node
    }

    /// Whether a Pod has policies here: it runs on this node, or stands for one that does ([`Self::about`]), with addresses of its
    /// own.
    pub fn is_subject(&self, name: &Name, pod: &Pod) -> bool {
        let is_here = match &self.subjects {
            Some(subjects) => subjects.contains(name),
            None => self.is_own(pod),
        };
        is_here && !pod.host_network
    }

    /// Whether the Pods of all nodes are known.
    pub fn knows_all_pods(&self) -> bool {
        self.knows_all_pods
    }

    /// Whether a Pod behind an endpoint has an address outside of the ranges of its node.
    pub fn has_stray_endpoints(&self) -> bool {
        self.has_strays
    }

    /// Whether this is the record of this node.
    pub fn is_this_node(&self, name: &Name) -> bool {
        *name.name == *self.node
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (&Name, &Node)> {
        self.nodes.iter().map(|(name, node)| (name, &**node))
    }

    /// The namespace with this name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(&Name::new(Arc::clone(&self.empty), name)).map(|namespace| &**namespace)
    }
}

/// Records of namespaces, so that selectors can be asked about the Pods in them.
pub trait NamespaceRecords {
    /// The namespace with this name.
    fn namespace(&self, name: &str) -> Option<&Namespace>;

    /// The labels of a namespace. Each has its name as a label; of an unknown one this is the only label.
    fn namespace_labels(&self, name: &Arc<str>) -> Labels {
        const NAME: &str = "kubernetes.io/metadata.name";
        let labels = self.namespace(name).map(|namespace| &namespace.labels);
        if let Some(labels) = labels.filter(|labels| labels.get(NAME).is_some()) {
            return labels.clone();
        }
        let own = (Arc::from(NAME), Arc::clone(name));
        Labels::new(labels.into_iter().flat_map(Labels::iter).cloned().chain([own]))
    }

    /// Whether a selector in a policy with this name selects the Pod.
    fn selects(&self, policy: &Name, selector: &PodSelector, (name, pod): (&Name, &Pod)) -> bool {
        let here = match &selector.namespaces {
            Namespaces::Own => name.namespace == policy.namespace,
            Namespaces::Selected(namespaces) => {
                namespaces.matches(&self.namespace_labels(&name.namespace))
            }
        };
        here && selector.pods.matches(&pod.labels)
    }
}

impl NamespaceRecords for Cluster {
    fn namespace(&self, name: &str) -> Option<&Namespace> {
        Self::namespace(self, name)
    }
}

impl NamespaceRecords for Snapshot {
    fn namespace(&self, name: &str) -> Option<&Namespace> {
        Self::namespace(self, name)
    }
}
