//! What Pods may send from beside their own addresses: annotations → the map `pod_sources`.
//!
//! Written before the mark of the Pod that says so, and removed after it is gone: at no time is less or more admitted
//! than one of the two annotations says. Another's address is never a source, whatever an annotation says: the programs
//! ask that first.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use tracing::debug;

use crate::bpf::maps::Tables;
use crate::cluster::{Cluster, Name, Pod, Prefix};
use crate::issue::{Issue, ObjectRef};
use crate::plan::MapError;

/// The map, and what it should say.
#[derive(Debug)]
pub(super) struct Sources {
    /// `--allowed-source-cidrs`.
    allowed: Option<Box<[Prefix]>>,
    written: BTreeSet<(u32, Prefix)>,
    wanted: BTreeSet<(u32, Prefix)>,
    issues: Vec<Issue>,
    begun: bool,
}

impl Sources {
    /// Takes over what an earlier run left.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn take_over(
        allowed: Option<Box<[Prefix]>>,
        tables: &Tables,
    ) -> Result<Self, MapError> {
        let (written, wanted) = (tables.load_sources()?, BTreeSet::new());
        Ok(Self { allowed, written, wanted, issues: Vec::new(), begun: false })
    }

    /// Writes what is missing of the annotations of these Pods, by their devices.
    pub(super) fn want(
        &mut self,
        pods: &[(u32, &Name, &Pod)],
        cluster: &Cluster,
        tables: &mut Tables,
    ) {
        self.begun = true;
        self.wanted.clear();
        self.issues.clear();
        for (ifindex, name, pod) in pods {
            for range in pod.sources.iter().flatten() {
                let refused = match refusal(self.allowed.as_deref(), cluster, range) {
                    None => self.write((*ifindex, *range), tables).err(),
                    refused => refused,
                };
                if let Some(why) = refused {
                    let message = format!("{range} {why}: nothing is admitted by it");
                    let field = format!("metadata.annotations[{}]", Pod::SOURCES);
                    self.issues.push(Issue::new(ObjectRef::new("Pod", name), field, message));
                }
            }
        }
    }

    fn write(&mut self, source: (u32, Prefix), tables: &mut Tables) -> Result<(), String> {
        if !self.written.contains(&source) {
            let (ifindex, range) = &source;
            tables.set_source(*ifindex, range, true).map_err(|err| {
                let what = if err.full { "has no room" } else { "was not written" };
                format!("{what} in the map pod_sources ({err})")
            })?;
            self.written.insert(source);
        }
        self.wanted.insert(source);
        Ok(())
    }

    /// The devices that have more sources.
    pub(super) fn devices(&self) -> BTreeSet<u32> {
        self.wanted.iter().map(|(ifindex, _)| *ifindex).collect()
    }

    /// Removes what no annotation says any more. What cannot be removed now is tried again.
    pub(super) fn clear(&mut self, tables: &mut Tables) {
        if !self.begun {
            return;
        }
        let wanted = &self.wanted;
        self.written.retain(|source| {
            if wanted.contains(source) {
                return true;
            }
            let (ifindex, range) = source;
            let removed = tables.set_source(*ifindex, range, false);
            if let Err(err) = &removed {
                debug!(ifindex, %range, %err, "source stays");
            }
            removed.is_err()
        });
    }

    /// What is wrong with annotations.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }
}

/// Why a range may not be admitted.
fn refusal(allowed: Option<&[Prefix]>, cluster: &Cluster, range: &Prefix) -> Option<String> {
    if let Some(allowed) = allowed {
        let within = allowed.iter().any(|allowed| allowed.covers(range));
        return (!within).then(|| "is not within --allowed-source-cidrs".to_owned());
    }
    if let Some(pods) = cluster.pod_ranges().find(|pods| pods.overlaps(range)) {
        return Some(format!("overlaps {pods}, a range of Pods"));
    }
    if let Some((_, services)) = cluster.service_cidrs().find(|(_, of)| of.overlaps(range)) {
        return Some(format!("overlaps {services}, a range of Services"));
    }
    let addrs = cluster.nodes().flat_map(|(_, node)| &node.addresses);
    if let Some(addr) = addrs.chain(cluster.host_addrs()).find(|addr| range.contains(addr)) {
        return Some(format!("has {addr}, which is a node's"));
    }
    let mut pods = cluster.all_pods().filter(|(_, pod)| !pod.host_network);
    let other = pods
        .find_map(|(name, pod)| pod.ips.iter().find(|ip| range.contains(ip)).map(|ip| (name, ip)));
    other.map(|(name, ip)| format!("has {ip}, which is that of Pod {name}"))
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;

    use super::refusal;
    use crate::cluster::{Change, Cluster, Event, Name, Node, Pod, Prefix, ServiceCidr};

    #[test]
    fn what_is_the_clusters_is_not_admitted_unless_the_operator_says_so() {
        let mut cluster = Cluster::new("n1");
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let range = |text: &str| text.parse::<Prefix>().unwrap();
        let node = Node {
            addresses: [addr("192.0.2.1")].into(),
            pod_cidrs: [range("10.244.1.0/24")].into(),
            ..Node::default()
        };
        cluster.apply(Event::Node(Change::Applied(Name::new("", "n1"), node)));
        let cidr = ServiceCidr { prefixes: [range("10.96.0.0/16")].into() };
        cluster.apply(Event::ServiceCidr(Change::Applied(Name::new("", "kubernetes"), cidr)));
        let pod = Pod { ips: [addr("172.20.0.7")].into(), ..Pod::default() };
        cluster.apply(Event::Pod(Change::Applied(Name::new("ns", "p"), pod)));
        let cases = [
            ("10.8.0.0/24", None),
            ("fd00:8::/64", None),
            ("10.244.1.7/32", Some("overlaps 10.244.1.0/24, a range of Pods")),
            ("10.0.0.0/8", Some("overlaps 10.244.1.0/24, a range of Pods")),
            ("10.96.0.0/24", Some("overlaps 10.96.0.0/16, a range of Services")),
            ("192.0.2.0/24", Some("has 192.0.2.1, which is a node's")),
            ("172.20.0.0/16", Some("has 172.20.0.7, which is that of Pod ns/p")),
        ];
        for (text, want) in cases {
            assert_eq!(refusal(None, &cluster, &range(text)).as_deref(), want, "{text}");
        }
        let allowed = [range("10.0.0.0/8")];
        let outside = Some("is not within --allowed-source-cidrs");
        for (text, want) in [("10.244.0.0/16", None), ("0.0.0.0/0", outside), ("::/0", outside)] {
            let got = refusal(Some(&allowed), &cluster, &range(text));
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }
}
