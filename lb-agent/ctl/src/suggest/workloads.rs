//! Pods → workloads: Pods of a namespace whose owner gives them the same labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use lb_core::admin::peers::LabeledPod;
use lb_core::admin::workload;
use lb_core::cluster::Labels;

/// Labels that controllers add for single Pods, revisions and runs, and those that the API server copies from the node (KEP-4742).
const OF_ONE: [&str; 12] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Labels that name a workload, as few of them as possible first.
const NAMES: [&[&str]; 5] = [
    &["app.kubernetes.io/name"],
    &["app.kubernetes.io/name", "app.kubernetes.io/component"],
    &["app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"],
    &["app"],
    &["k8s-app"],
];

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Workload {
    pub(super) namespace: Arc<str>,
    /// Of the Deployment or the like, as the names of its Pods show it.
    pub(super) name: String,
    /// Labels that all its Pods have and no other Pod of the namespace does.
    pub(super) selector: Labels,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All of them.
pub(super) struct Workloads {
    all: BTreeSet<Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
}

impl Workloads {
    pub(super) fn of<'a>(pods: impl Iterator<Item = &'a LabeledPod>) -> Self {
        let mut groups: BTreeMap<(&Arc<str>, Labels), Vec<&LabeledPod>> = BTreeMap::new();
        for pod in pods {
            let lasting = pod.labels.iter().filter(|(key, _)| !OF_ONE.contains(&&**key));
            let labels = Labels::new(lasting.cloned());
            groups.entry((&pod.name.namespace, labels)).or_default().push(pod);
        }
        let mut workloads = Self { all: BTreeSet::new(), by_ip: HashMap::new() };
        let mut names = BTreeSet::new();
        for ((namespace, labels), pods) in &groups {
            let others = groups.keys().filter(|(of, other)| of == namespace && other != labels);
            let others: Vec<&Labels> = others.map(|(_, labels)| labels).collect();
            let of_first = pods.iter().map(|pod| &pod.name).min();
            let mut name = of_first.map_or("", |name| workload::of_pod(&name.name)).to_owned();
            // Two with other labels under one name: a Deployment that was changed, or Pods made by hand.
            while !names.insert((*namespace, name.clone())) {
                name.push_str("-2");
            }
            let namespace = Arc::clone(namespace);
            let selector = selector(labels, &others);
            let workload = Arc::new(Workload { namespace, name, selector });
            for ip in pods.iter().flat_map(|pod| &pod.ips) {
                workloads.by_ip.insert(*ip, Arc::clone(&workload));
            }
            workloads.all.insert(workload);
        }
        workloads
    }

    pub(super) fn at(&self, ip: IpAddr) -> Option<&Workload> {
        self.by_ip.get(&ip).map(|workload| &**workload)
    }

    pub(super) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Workload> {
        self.all.iter().map(|workload| &**workload).filter(move |it| *it.namespace == *namespace)
    }
}

/// The labels that name the workload, if they select no other one; else all.
fn selector(labels: &Labels, others: &[&Labels]) -> Labels {
    let named = NAMES.into_iter().filter_map(|keys| {
        let pairs = keys.iter().map(|key| Some((Arc::from(*key), Arc::clone(labels.get(key)?))));
        pairs.collect::<Option<Vec<_>>>().map(Labels::new)
    });
    let selects = |selector: &Labels, other: &Labels| {
        selector.iter().all(|(key, value)| other.get(key) == Some(value))
    };
    let mut fitting = named.filter(|named| !others.iter().any(|other| selects(named, other)));
    fitting.next().unwrap_or_else(|| labels.clone())
}
