//! Pod → record.
//!
//! The Pods of all nodes are watched, so what is read of each is a small part of it: the type here, not Kubernetes' own.
#![forbid(unsafe_code)]

use std::num::NonZeroI64;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use lb_common::addr::Addr;
use serde::Deserialize;

use super::field::{self, Findings};
use super::meta::{self, object};
use super::watched::Watched;
use lb_core::annotation::Annotation;
use lb_core::cluster::{Change, Event, Kind, NamedPort, Pod, Prefix};
use lb_core::uid::Uid;

/// Ranges of `lb-agent.io/allowed-sources`.
const MOST_SOURCES: usize = 16;

/// A Pod, as far as it is of our concern.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct PodObject {
    #[serde(default, deserialize_with = "meta::read")]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: Option<Spec>,
    #[serde(default)]
    pub(super) status: Option<PodStatusFields>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    image: Option<String>,
    ports: Option<Vec<ContainerPort>>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    protocol: Option<String>,
    #[serde(default)]
    container_port: i32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatusFields {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    pub(super) conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PodIp {
    #[serde(default)]
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type", default)]
    pub(super) type_: String,
    #[serde(default)]
    pub(super) status: String,
}

object!(PodObject: "Pod", "pods", "v1" = ("", "v1"), NamespaceResourceScope);

impl Watched for PodObject {
    const KIND: Kind = Kind::Pod;
    type Record = Pod;

    /// `None` for one that has finished: its address may be another's by now. One without an address is kept, for its
    /// labels: what holds for it is known before its first packet.
    fn record(&self, findings: &mut Findings) -> Option<Pod> {
        if has_finished(self) {
            return None;
        }
        let spec = self.spec.as_ref();
        let created = self.metadata.creation_timestamp.as_ref();
        Some(Pod {
            uid: self.metadata.uid.as_deref().map_or(0, number),
            uuid: self.metadata.uid.as_deref().map(Uid::parse).unwrap_or_default(),
            created: created.and_then(|time| NonZeroI64::new(time.0.as_second().min(now()))),
            deleting: self.metadata.deletion_timestamp.is_some(),
            sources: sources(self, findings),
            by_stack: field::by_stack(self.metadata.annotations.as_ref(), findings),
            ips: ips(self, findings),
            host_network: is_on_host_network(self),
            kube_proxy: is_kube_proxy(self),
            node: spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().into(),
            labels: field::labels(self.metadata.labels.as_ref()),
            ports: ports(self, findings),
        })
    }

    fn event(change: Change<Pod>) -> Event {
        Event::Pod(change)
    }

    /// Pods whose containers have ended for good are not of our concern.
    fn narrow(all: watcher::Config) -> watcher::Config {
        all.fields("status.phase!=Succeeded,status.phase!=Failed")
    }

    /// A Pod without a node is one of this node: there is no scheduler that would give it to another.
    fn complete(pod: &mut Pod, node: &Arc<str>) {
        if pod.node.is_empty() {
            pod.node = Arc::clone(node);
        }
    }
}

/// Seconds since 1970 by this node's clock: nothing was made later than it was heard of, whatever another clock says.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A number for a UID, never 0 (FNV-1a): the API server makes them at random.
fn number(uid: &str) -> u64 {
    let add = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    uid.bytes().fold(0xcbf2_9ce4_8422_2325, add).max(1)
}

/// Annotation `lb-agent.io/allowed-sources`: `10.8.0.0/24, fd00:8::/64`. What is wrong in it admits nothing.
fn sources(pod: &PodObject, findings: &mut Findings) -> Option<Box<[Prefix]>> {
    let given = field::value(pod.metadata.annotations.as_ref(), Annotation::AllowedSources.key())?;
    let mut sources = Vec::new();
    for text in given.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let host = || Some(Prefix::host(Addr::from_ip(text.parse().ok()?)));
        match text.parse().ok().or_else(host) {
            Some(_) if sources.len() == MOST_SOURCES => {
                let path = Annotation::AllowedSources.field();
                findings.add(path, format!("more than {MOST_SOURCES} CIDRs: the rest is ignored"));
                break;
            }
            Some(prefix) => sources.push(prefix),
            None => {
                let message = format!("`{text}` is not a CIDR like 10.8.0.0/24: ignored");
                findings.add(Annotation::AllowedSources.field(), message);
            }
        }
    }
    sources.sort_unstable();
    sources.dedup();
    (!sources.is_empty()).then(|| sources.into())
}

/// Whether all containers have ended for good (`status.phase`).
pub(super) fn has_finished(pod: &PodObject) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_on_host_network(pod: &PodObject) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// Whether it is kube-proxy, by the label that kubeadm's has, or that of the static Pods of others, or by its image.
/// Only a Pod on the host's network can be: it writes the node's rules, and whoever may make such Pods may do more.
fn is_kube_proxy(pod: &PodObject) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let labelled = ["k8s-app", "component"].into_iter().any(|key| {
        labels.and_then(|labels| labels.get(key)).is_some_and(|value| value == "kube-proxy")
    });
    let containers = pod.spec.iter().flat_map(|spec| spec.containers.iter().flatten());
    let by_image = || {
        containers.filter_map(|container| container.image.as_deref()).any(|image| {
            let name = image.rsplit('/').next().unwrap_or_default();
            let rest = name.strip_prefix("kube-proxy");
            // A tag, a digest, or an architecture (`kube-proxy-amd64:v1.36.3`).
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@', '-']))
        })
    };
    is_on_host_network(pod) && (labelled || by_image())
}

/// `status.podIPs`, or `status.podIP` where a manifest has only that.
pub(super) fn ips(pod: &PodObject, findings: &mut Findings) -> Box<[Addr]> {
    let Some(status) = &pod.status else { return Box::default() };
    let list = status.pod_ips.as_deref().unwrap_or_default();
    let mut ips: Vec<Addr> = Vec::with_capacity(list.len());
    for (i, given) in list.iter().enumerate() {
        ips.extend(field::address(findings, &format!("status.podIPs[{i}].ip"), &given.ip));
    }
    if let Some(text) = status.pod_ip.as_ref().filter(|text| list.is_empty() && !text.is_empty()) {
        ips.extend(field::address(findings, "status.podIP", text));
    }
    ips.into()
}

/// The ports with a name: of the containers, then of init containers that go on running (KEP-753).
pub(super) fn ports(pod: &PodObject, findings: &mut Findings) -> Box<[NamedPort]> {
    let Some(spec) = &pod.spec else { return Box::default() };
    let main = spec.containers.iter().flatten().enumerate();
    let main = main.map(|(i, container)| ("containers", i, container));
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(i, container)| ("initContainers", i, container));
    let init = init.filter(|(.., init)| init.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for (list, i, container) in main.chain(init) {
        for (k, given) in container.ports.iter().flatten().enumerate() {
            let Some(name) = field::string(given.name.as_ref()) else { continue };
            let path = |field: &str| format!("spec.{list}[{i}].ports[{k}].{field}");
            let protocol = field::protocol(findings, &path("protocol"), given.protocol.as_deref());
            let port = field::port(findings, &path("containerPort"), given.container_port);
            let Some((protocol, port)) = protocol.zip(port) else { continue };
            ports.push(NamedPort { name, protocol, port });
        }
    }
    ports.into()
}
