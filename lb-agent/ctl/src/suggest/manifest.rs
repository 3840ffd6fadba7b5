//! A suggested policy as YAML.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::workloads::Workload;
use crate::network::protocol_name;
use lb_core::annotation::Annotation;
use lb_core::cluster::{Family, Labels, Prefix};
use lb_core::model::policy::PolicyDirection;

/// The label that each namespace has (KEP-2161).
const NAMESPACE: &str = "kubernetes.io/metadata.name";
/// Outside addresses that a comment names.
const NAMED: usize = 8;

/// A policy.
pub(super) struct PolicySpec {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) selector: Labels,
    pub(super) ingress: Vec<RuleSpec>,
    pub(super) egress: Vec<RuleSpec>,
    /// What was seen outside the cluster.
    pub(super) outside: BTreeSet<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyManifest<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: SuggestedMeta<'a>,
    spec: SuggestedSpec<'a>,
}

#[derive(Debug, Serialize)]
struct SuggestedMeta<'a> {
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, &'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SuggestedSpec<'a> {
    pod_selector: LabelSelector,
    policy_types: [&'static str; 2],
    ingress: &'a [RuleSpec],
    egress: &'a [RuleSpec],
}

/// A rule.
#[derive(Debug, Serialize)]
pub(super) struct RuleSpec {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from: Vec<PeerSpec>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to: Vec<PeerSpec>,
    ports: PortList,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct LabelSelector {
    match_labels: BTreeMap<Arc<str>, Arc<str>>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PeerSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct IpBlock {
    cidr: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<String>,
}

/// Ports of a rule.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct PortList(Vec<PortLine>);

#[derive(Debug, PartialEq, Eq, Serialize)]
struct PortLine {
    port: u16,
    protocol: String,
}

impl From<&Labels> for LabelSelector {
    fn from(labels: &Labels) -> Self {
        Self { match_labels: labels.iter().cloned().collect() }
    }
}

impl PeerSpec {
    /// The Pods of a workload, as a policy of another one selects them.
    pub(super) fn workload(peer: &Workload, of: &Workload) -> Self {
        let is_elsewhere = peer.namespace != of.namespace;
        Self {
            namespace_selector: is_elsewhere.then(|| namespace(&peer.namespace)),
            // Without labels all Pods of the namespace: nothing less can be said of it.
            pod_selector: Some((&peer.selector).into()),
            ip_block: None,
        }
    }

    /// All of a family that is not in the Pods' network.
    pub(super) fn world(family: Family, pods: &BTreeSet<Prefix>) -> Self {
        let is_of = |range: &&Prefix| range.family() == family;
        let except = pods.iter().filter(is_of).map(ToString::to_string).collect();
        let cidr = match family {
            Family::V4 => "0.0.0.0/0",
            Family::V6 => "::/0",
        };
        let ip_block = Some(IpBlock { cidr, except });
        Self { namespace_selector: None, pod_selector: None, ip_block }
    }

    /// The cluster's DNS server.
    pub(super) fn dns(known: Option<&(Arc<str>, Labels)>) -> Self {
        let usual = || {
            let labels = Labels::new([("k8s-app".into(), "kube-dns".into())]);
            (Arc::from("kube-system"), labels)
        };
        let (of, labels) = known.cloned().unwrap_or_else(usual);
        Self {
            namespace_selector: Some(namespace(&of)),
            pod_selector: Some((&labels).into()),
            ip_block: None,
        }
    }
}

fn namespace(name: &Arc<str>) -> LabelSelector {
    LabelSelector { match_labels: BTreeMap::from([(NAMESPACE.into(), Arc::clone(name))]) }
}

impl PortList {
    pub(super) fn of(ports: impl IntoIterator<Item = (u8, u16)>) -> Self {
        let ports = ports
            .into_iter()
            .map(|(protocol, port)| PortLine { port, protocol: protocol_name(protocol) });
        Self(ports.collect())
    }
}

impl RuleSpec {
    pub(super) fn new(mut peers: Vec<PeerSpec>, ports: PortList, way: PolicyDirection) -> Self {
        peers.sort();
        let (from, to) = match way {
            PolicyDirection::Ingress => (peers, Vec::new()),
            PolicyDirection::Egress => (Vec::new(), peers),
        };
        Self { from, to, ports }
    }

    /// Whether the other rule has the same peers, and no port that this one lacks.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let PortList(known) = &self.ports;
        let PortList(asked) = &other.ports;
        (&self.from, &self.to) == (&other.from, &other.to)
            && asked.iter().all(|port| known.contains(port))
    }
}

/// The YAML document of a policy.
pub(super) fn document(policy: &PolicySpec, enforce: bool) -> String {
    let shadow = (!enforce).then_some((Annotation::Mode.key(), "shadow"));
    let manifest = PolicyManifest {
        api_version: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        metadata: SuggestedMeta {
            name: &policy.name,
            namespace: &policy.namespace,
            annotations: shadow.into_iter().collect(),
        },
        spec: SuggestedSpec {
            pod_selector: (&policy.selector).into(),
            policy_types: ["Ingress", "Egress"],
            ingress: &policy.ingress,
            egress: &policy.egress,
        },
    };
    let mut text = "---\n".to_owned();
    if !policy.outside.is_empty() {
        let named: Vec<&str> = policy.outside.iter().take(NAMED).map(String::as_str).collect();
        let more = match policy.outside.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text.push_str(&format!("# Seen outside the Pods' network: {}{more}\n", named.join(", ")));
    }
    // The types above can always be written.
    text.push_str(&serde_saphyr::to_string(&manifest).unwrap_or_default());
    text
}
