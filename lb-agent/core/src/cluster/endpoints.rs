//! The endpoints of a slice. There may be a million, so each takes as little memory as it can: what node and zone are called
//! is one reference to what many share, and the names of the Pods are one text.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lb_common::addr::Addr;

use super::{Conditions, Hints};

/// An endpoint as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the others are interchangeable with it and unused, as in kube-proxy.
    pub addr: Addr,
    /// `conditions`, with the defaults of absent ones filled in.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// Name of the Pod in `targetRef`, in the slice's namespace; not empty.
    pub pod: Option<Box<str>>,
    /// `hints`; `None` when there are none.
    pub hints: Option<Box<Hints>>,
}

/// The same as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointView<'a> {
    /// [`Endpoint::addr`].
    pub addr: Addr,
    /// [`Endpoint::conditions`].
    pub conditions: Conditions,
    /// [`Endpoint::node`].
    pub node: Option<&'a Arc<str>>,
    /// [`Endpoint::zone`].
    pub zone: Option<&'a Arc<str>>,
    /// [`Endpoint::pod`].
    pub pod: Option<&'a str>,
    /// [`Endpoint::hints`].
    pub hints: Option<&'a Hints>,
}

/// All endpoints of a slice, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoints {
    packed: Box<[PackedEndpoint]>,
    /// The names of the Pods, one after the other.
    pods: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PackedEndpoint {
    addr: Addr,
    at: Arc<EndpointPlace>,
    hints: Option<Box<Hints>>,
    /// Where the name of its Pod ends, and that of the next one begins. It has no Pod if its name is empty.
    pod_end: u32,
    conditions: Conditions,
}

/// Where an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct EndpointPlace {
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
}

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = EndpointView<'_>> {
        self.into_iter()
    }

    /// Where each is, to be replaced by what is shared.
    pub(super) fn places_mut(&mut self) -> impl Iterator<Item = &mut Arc<EndpointPlace>> {
        self.packed.iter_mut().map(|endpoint| &mut endpoint.at)
    }

    /// The hints that there are.
    pub(super) fn hints_mut(&mut self) -> impl Iterator<Item = &mut Hints> {
        self.packed.iter_mut().filter_map(|endpoint| endpoint.hints.as_deref_mut())
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut pods = String::new();
        let pack = |endpoint: Endpoint| {
            let Endpoint { addr, conditions, node, zone, pod, hints } = endpoint;
            pods.push_str(pod.as_deref().unwrap_or_default());
            // An object has 1.5 MB at most.
            let pod_end = u32::try_from(pods.len()).unwrap_or(u32::MAX);
            let at = Arc::new(EndpointPlace { node, zone });
            PackedEndpoint { addr, at, hints, pod_end, conditions }
        };
        let packed = endpoints.into_iter().map(pack).collect();
        Self { packed, pods: pods.into() }
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        endpoints.into_iter().collect()
    }
}

impl<const N: usize> From<[Endpoint; N]> for Endpoints {
    fn from(endpoints: [Endpoint; N]) -> Self {
        endpoints.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Endpoints {
    type Item = EndpointView<'a>;
    type IntoIter = EndpointsIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        EndpointsIter { rest: self.packed.iter(), pods: &self.pods, at: 0 }
    }
}

/// Goes through the endpoints of a slice.
#[derive(Clone, Debug)]
pub struct EndpointsIter<'a> {
    rest: std::slice::Iter<'a, PackedEndpoint>,
    pods: &'a str,
    /// Where the next name begins.
    at: usize,
}

impl<'a> Iterator for EndpointsIter<'a> {
    type Item = EndpointView<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let endpoint = self.rest.next()?;
        let end = endpoint.pod_end as usize;
        let pod = self.pods.get(self.at..end).filter(|name| !name.is_empty());
        self.at = end;
        Some(EndpointView {
            addr: endpoint.addr,
            conditions: endpoint.conditions,
            node: endpoint.at.node.as_ref(),
            zone: endpoint.at.zone.as_ref(),
            pod,
            hints: endpoint.hints.as_deref(),
        })
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;

    use super::{Endpoint, Endpoints, PackedEndpoint};
    use crate::cluster::{Conditions, Hints};

    #[test]
    fn endpoints_are_what_was_read() {
        assert_eq!(size_of::<PackedEndpoint>(), 40, "there may be a million");
        let endpoint =
            |i: u8, node: Option<&str>, zone: Option<&str>, pod: Option<&str>| Endpoint {
                addr: Addr::from_ip(std::net::Ipv4Addr::new(10, 0, 0, i).into()),
                conditions: Conditions { ready: i != 2, serving: true, terminating: i == 2 },
                node: node.map(Into::into),
                zone: zone.map(Into::into),
                pod: pod.map(Into::into),
                hints: (i == 1)
                    .then(|| Box::new(Hints { zones: ["a".into()].into(), ..Hints::default() })),
            };
        let read = [
            endpoint(1, Some("n1"), Some("a"), Some("web-1")),
            endpoint(2, Some("n2"), None, None),
            endpoint(3, None, None, Some("web-33")),
            endpoint(4, None, Some("b"), None),
        ];
        let kept = Endpoints::from(read.clone());
        let again = kept.iter().map(|kept| Endpoint {
            addr: kept.addr,
            conditions: kept.conditions,
            node: kept.node.cloned(),
            zone: kept.zone.cloned(),
            pod: kept.pod.map(Into::into),
            hints: kept.hints.cloned().map(Box::new),
        });
        assert_eq!(again.collect::<Vec<_>>(), read);
        assert_eq!((kept.len(), kept.is_empty()), (4, false));
        let [first, .., last] = read;
        assert_ne!(kept, Endpoints::from([first, last]));
        assert!(Endpoints::default().is_empty());
    }
}
