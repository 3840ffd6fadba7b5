//! Pod → record.
//!
//! The Pods of all nodes are watched, so what is read of each is a small part of it: the type here, not Kubernetes' own.
#![forbid(unsafe_code)]

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::addr::Addr;
use serde::Deserialize;

use super::field::{self, Findings};
use super::{Watched, meta};
use crate::cluster::{Change, Event, Kind, NamedPort, Pod};

/// A Pod, as far as it is of our concern.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct PodObject {
    #[serde(default, deserialize_with = "meta::read")]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: Option<Spec>,
    #[serde(default)]
    pub(super) status: Option<Status>,
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
pub(super) struct Status {
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

impl k8s_openapi::Resource for PodObject {
    const API_VERSION: &'static str = "v1";
    const GROUP: &'static str = "";
    const KIND: &'static str = "Pod";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "pods";
    type Scope = NamespaceResourceScope;
}

impl k8s_openapi::Metadata for PodObject {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

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
        Some(Pod {
            ips: ips(self, findings),
            host_network: spec.and_then(|spec| spec.host_network) == Some(true),
            node: spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().into(),
            labels: field::labels(self.metadata.labels.as_ref()),
            ports: ports(self, findings),
        })
    }

    fn event(change: Change<Pod>) -> Event {
        Event::Pod(change)
    }
}

/// Whether all containers have ended for good (`status.phase`).
pub(super) fn has_finished(pod: &PodObject) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
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
