//! EndpointSlices derived from selectors, for Services that have no slice of their own.
//!
//! The rules are those of Kubernetes' EndpointSlice controller (`staging/src/k8s.io/endpointslice/utils.go`):
//!
//! - One endpoint per matching Pod and family, unless the Pod has finished or has no address of the family.
//! - `serving` is the Pod's condition Ready; a Pod without that condition, as manifests written by hand have it, is
//!   ready when its phase is Running or absent.
//! - `terminating` is whether the Pod has a `deletionTimestamp`.
//! - `ready` is serving and not terminating, or true for a Service with `publishNotReadyAddresses`.
//! - A named target port is looked up in the Pod's containers; Pods that differ in it get different slices, and a Pod
//!   that lacks it does not serve that port.
#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lb_common::addr::Addr;

use crate::field::{self, Findings};
use crate::pod::PodObject;
use crate::service::ServiceObject;
use crate::watched::Watched;
use crate::{node, pod, slice};
use lb_core::cluster::{
    Change, Conditions, Endpoint, EndpointSlice, Event, Family, Kind, Name, NamedPort, SlicePort,
};

/// What the derivation depends on.
#[derive(Debug, Default)]
pub(super) struct Derive {
    services: BTreeMap<Name, ServiceSelector>,
    pods: BTreeMap<Name, PodEndpoint>,
    /// Zone by node.
    zones: BTreeMap<Arc<str>, Arc<str>>,
    /// Given slice → its Service.
    given: BTreeMap<Name, Name>,
    /// Number of given slices by Service.
    n_given: BTreeMap<Name, u32>,
    /// The slices told for each Service, with a hash of each.
    emitted: BTreeMap<Name, Vec<(Name, u64)>>,
    /// Services to derive again.
    dirty: BTreeSet<Name>,
    /// Namespace and labels of Pods that changed.
    touched: Vec<(Arc<str>, SortedLabels)>,
}

/// SortedLabels, sorted by key.
type SortedLabels = Box<[(Arc<str>, Arc<str>)]>;

/// What a Service wants of Pods.
#[derive(Debug)]
struct ServiceSelector {
    selector: SortedLabels,
    ports: Box<[TargetPort]>,
    publish_not_ready: bool,
}

#[derive(Debug)]
struct TargetPort {
    name: Arc<str>,
    protocol: u8,
    target: NumberOrName,
}

#[derive(Debug)]
enum NumberOrName {
    Number(u16),
    Named(Arc<str>),
}

/// What a Pod offers.
#[derive(Debug)]
struct PodEndpoint {
    labels: SortedLabels,
    ips: Box<[Addr]>,
    ports: Box<[NamedPort]>,
    node: Option<Arc<str>>,
    serving: bool,
    terminating: bool,
}

impl Derive {
    /// Takes note of an object, if slices are derived from its kind.
    pub(super) fn put(&mut self, object: &dyn Any, name: &Name) {
        if let Some(service) = object.downcast_ref() {
            self.put_service(service, name);
        } else if let Some(slice) = object.downcast_ref() {
            self.put_slice(slice, name);
        } else if let Some(pod) = object.downcast_ref() {
            self.put_pod(pod, name);
        } else if let Some(node) = object.downcast_ref() {
            self.put_node(node, name);
        }
    }

    /// Takes note that an object is gone.
    pub(super) fn remove(&mut self, kind: Kind, name: &Name) {
        if kind == Kind::Service {
            self.services.remove(name);
            self.dirty.insert(name.clone());
        } else if kind == Kind::EndpointSlice {
            self.forget_slice(name);
        } else if kind == Kind::Pod {
            self.forget_pod(name);
        } else if kind == Kind::Node && self.zones.remove(&name.name).is_some() {
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    fn put_service(&mut self, service: &ServiceObject, name: &Name) {
        let before = match wanted(service) {
            Some(wanted) => self.services.insert(name.clone(), wanted),
            None => self.services.remove(name),
        };
        if before.is_some() || self.services.contains_key(name) {
            self.dirty.insert(name.clone());
        }
    }

    fn put_slice(&mut self, slice: &v1::EndpointSlice, name: &Name) {
        self.forget_slice(name);
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = field::value(labels, slice::LABEL_SERVICE) else { return };
        let service = Name::new(Arc::clone(&name.namespace), service);
        *self.n_given.entry(service.clone()).or_default() += 1;
        self.dirty.insert(service.clone());
        self.given.insert(name.clone(), service);
    }

    fn put_pod(&mut self, pod: &PodObject, name: &Name) {
        self.forget_pod(name);
        if pod::has_finished(pod) {
            return;
        }
        let candidate = candidate(pod);
        self.touched.push((Arc::clone(&name.namespace), candidate.labels.clone()));
        self.pods.insert(name.clone(), candidate);
    }

    fn put_node(&mut self, node: &Node, name: &Name) {
        let before = match node::zone(node) {
            Some(zone) => self.zones.insert(Arc::clone(&name.name), zone.into()),
            None => self.zones.remove(&name.name),
        };
        if before.as_deref() != node::zone(node) {
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Derives what has to be derived again and tells what came out differently.
    pub(super) fn flush(&mut self, tell: &mut dyn FnMut(Event)) {
        self.touch();
        let dirty = std::mem::take(&mut self.dirty);
        let mut emitted = std::mem::take(&mut self.emitted);
        let members = self.members(&dirty);
        for name in &dirty {
            let pods = members.get(name).map(Vec::as_slice).unwrap_or_default();
            let slices = match self.services.get(name) {
                Some(wanted) if !self.n_given.contains_key(name) => self.slices(name, wanted, pods),
                Some(_) | None => Vec::new(),
            };
            let before = emitted.remove(name).unwrap_or_default();
            for (old, _) in &before {
                if !slices.iter().any(|(slice, _)| slice == old) {
                    tell(Event::Slice(Change::Deleted(old.clone())));
                }
            }
            let mut now = Vec::with_capacity(slices.len());
            for (slice, record) in slices {
                let entry = (slice.clone(), hash(&record));
                if !before.contains(&entry) {
                    tell(Event::Slice(Change::Applied(slice, record)));
                }
                now.push(entry);
            }
            if !now.is_empty() {
                emitted.insert(name.clone(), now);
            }
        }
        self.emitted = emitted;
    }

    fn forget_slice(&mut self, name: &Name) {
        let Some(service) = self.given.remove(name) else { return };
        if let Some(count) = self.n_given.get_mut(&service) {
            *count -= 1;
            if *count == 0 {
                self.n_given.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    fn forget_pod(&mut self, name: &Name) {
        if let Some(old) = self.pods.remove(name) {
            self.touched.push((Arc::clone(&name.namespace), old.labels));
        }
    }

    /// Makes the Services dirty whose selectors match a Pod that changed.
    fn touch(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return;
        }
        let index = Index::new(self.services.iter());
        for (namespace, labels) in &touched {
            let names = index.matching(namespace, labels).map(|(name, _)| name.clone());
            self.dirty.extend(names);
        }
    }

    /// The Pods of these Services, in the order of their names.
    fn members(&self, services: &BTreeSet<Name>) -> HashMap<Name, Vec<(&Name, &PodEndpoint)>> {
        let mut members: HashMap<Name, Vec<_>> = HashMap::new();
        let services = services.iter().filter_map(|name| Some((name, self.services.get(name)?)));
        let index = Index::new(services);
        for pod in &self.pods {
            for (service, _) in index.matching(&pod.0.namespace, &pod.1.labels) {
                members.entry(service.clone()).or_default().push(pod);
            }
        }
        members
    }

    fn slices(
        &self,
        service: &Name,
        wanted: &ServiceSelector,
        pods: &[(&Name, &PodEndpoint)],
    ) -> Vec<(Name, EndpointSlice)> {
        let mut slices = Vec::new();
        for (family, label) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            // Pods by what the target ports are in them.
            let mut groups: BTreeMap<Vec<(usize, u16)>, Vec<Endpoint>> = BTreeMap::new();
            for (name, pod) in pods {
                let Some(addr) = pod.ips.iter().find(|addr| Family::of(addr) == family) else {
                    continue;
                };
                let endpoint = self.endpoint(*addr, name, pod, wanted.publish_not_ready);
                groups.entry(targets(wanted, pod)).or_default().push(endpoint);
            }
            for (i, (targets, endpoints)) in groups.into_iter().enumerate() {
                let ports = targets.into_iter().filter_map(|(port, number)| {
                    let port = wanted.ports.get(port)?;
                    let name = Arc::clone(&port.name);
                    Some(SlicePort { name, protocol: port.protocol, port: number })
                });
                // A Service's name has no dot, so this cannot be the name of a given slice of another one.
                let name = format!("{}.derived-{label}-{i}", service.name);
                let slice = EndpointSlice {
                    service: Arc::clone(&service.name),
                    family,
                    ports: ports.collect(),
                    endpoints: endpoints.into(),
                    trigger_ms: None,
                };
                slices.push((Name::new(Arc::clone(&service.namespace), name), slice));
            }
        }
        slices
    }

    fn endpoint(&self, addr: Addr, name: &Name, pod: &PodEndpoint, publish_all: bool) -> Endpoint {
        let ready = publish_all || (pod.serving && !pod.terminating);
        Endpoint {
            addr,
            conditions: Conditions { ready, serving: pod.serving, terminating: pod.terminating },
            node: pod.node.clone(),
            zone: pod.node.as_ref().and_then(|node| self.zones.get(node)).cloned(),
            pod: Some((*name.name).into()),
            hints: None,
        }
    }
}

/// Services by namespace and the first pair of their selector.
struct Index<'a>(HashMap<Pair<'a>, Vec<(&'a Name, &'a ServiceSelector)>>);

/// Namespace, key and value.
type Pair<'a> = (&'a str, &'a str, &'a str);

impl<'a> Index<'a> {
    fn new(services: impl Iterator<Item = (&'a Name, &'a ServiceSelector)>) -> Self {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        for (name, wanted) in services {
            if let Some((key, value)) = wanted.selector.first() {
                let pair: Pair<'a> = (&name.namespace, key, value);
                index.entry(pair).or_default().push((name, wanted));
            }
        }
        Self(index)
    }

    /// The Services that select a Pod with these labels.
    fn matching<'b>(
        &'b self,
        namespace: &'b str,
        labels: &'b SortedLabels,
    ) -> impl Iterator<Item = (&'a Name, &'a ServiceSelector)> + 'b {
        let pairs = labels.iter().filter_map(move |(key, value)| {
            self.0.get(&(namespace, &**key, &**value)).map(Vec::as_slice)
        });
        pairs.flatten().copied().filter(|(_, wanted)| {
            wanted.selector.iter().all(|pair| labels.binary_search(pair).is_ok())
        })
    }
}

/// `None` for a Service that selects nothing or has no frontend.
fn wanted(service: &ServiceObject) -> Option<ServiceSelector> {
    let name = service.name();
    // What is wrong with it is told when it becomes a record.
    let record = service.record(&mut Findings::new(Kind::Service, &name))?;
    let spec = service.spec.as_ref()?;
    let selector = labels(spec.selector.as_ref());
    if selector.is_empty() {
        return None;
    }
    let given = |port: &lb_core::cluster::ServicePort| {
        let all = spec.ports.iter().flatten();
        let target = all
            .filter(|given| i32::from(port.port) == given.port)
            .find(|given| given.name.as_deref().unwrap_or_default() == &*port.name)
            .and_then(|given| given.target_port.clone());
        match target {
            Some(IntOrString::String(name)) => match name.parse() {
                Ok(number) => NumberOrName::Number(number),
                Err(_) => NumberOrName::Named(name.into()),
            },
            Some(IntOrString::Int(number)) if number != 0 => {
                NumberOrName::Number(u16::try_from(number).unwrap_or(0))
            }
            Some(IntOrString::Int(_)) | None => NumberOrName::Number(port.port),
        }
    };
    let ports = record.ports.iter().map(|port| TargetPort {
        name: Arc::clone(&port.name),
        protocol: port.protocol,
        target: given(port),
    });
    let publish_not_ready = spec.publish_not_ready_addresses == Some(true);
    Some(ServiceSelector { selector, ports: ports.collect(), publish_not_ready })
}

fn candidate(pod: &PodObject) -> PodEndpoint {
    let name = pod.name();
    let mut ignored = Findings::new(Kind::Pod, &name);
    let ips = pod::ips(pod, &mut ignored);
    PodEndpoint {
        labels: labels(pod.metadata.labels.as_ref()),
        ips,
        ports: pod::ports(pod, &mut ignored),
        node: pod.spec.as_ref().and_then(|spec| field::string(spec.node_name.as_ref())),
        serving: is_serving(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
    }
}

fn is_serving(pod: &PodObject) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    match conditions.find(|condition| condition.type_ == "Ready") {
        Some(ready) => ready.status == "True",
        None => matches!(status.and_then(|s| s.phase.as_deref()), None | Some("Running" | "")),
    }
}

/// For each port of the Service that this Pod serves: its index and the number in the Pod.
fn targets(wanted: &ServiceSelector, pod: &PodEndpoint) -> Vec<(usize, u16)> {
    let number = |port: &TargetPort| match &port.target {
        NumberOrName::Number(number) => Some(*number),
        NumberOrName::Named(name) => {
            let mut ports = pod.ports.iter();
            let is_it = |given: &&NamedPort| given.name == *name && given.protocol == port.protocol;
            ports.find(is_it).map(|given| given.port)
        }
    };
    let ports = wanted.ports.iter().enumerate();
    ports.filter_map(|(i, port)| Some((i, number(port).filter(|n| *n != 0)?))).collect()
}

fn hash(slice: &EndpointSlice) -> u64 {
    let mut hasher = DefaultHasher::new();
    slice.hash(&mut hasher);
    hasher.finish()
}

fn labels(labels: Option<&field::StringMap>) -> SortedLabels {
    labels.into_iter().flatten().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()
}
