//! Service → record.
//!
//! The type here leaves out `status.conditions`: the API server accepts a condition without a time, the type of
//! k8s-openapi does not, and one object that cannot be read stops the watch of all.
#![forbid(unsafe_code)]

use std::num::{NonZeroI64, NonZeroU16};
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use lb_common::addr::Addr;
use serde::Deserialize;

use super::field::{self, Findings};
use super::meta::{self, object};
use super::watched::Watched;
use lb_core::cluster::{
    Change, Event, Family, Kind, Service, ServicePort, ServiceType, TrafficPolicy,
};

mod annotation;
mod extra;

/// A Service: the fields that are used.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ServiceObject {
    #[serde(default, deserialize_with = "meta::read")]
    metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: Option<ServiceSpec>,
    #[serde(default)]
    status: Option<ServiceStatusFields>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatusFields {
    load_balancer: Option<LoadBalancerStatus>,
}

object!(ServiceObject: "Service", "services", "v1" = ("", "v1"), NamespaceResourceScope);

impl Watched for ServiceObject {
    const KIND: Kind = Kind::Service;
    type Record = Service;

    /// `None` for one without frontends: ExternalName, headless, or another proxy's.
    fn record(&self, findings: &mut Findings) -> Option<Service> {
        let labels = self.metadata.labels.as_ref();
        if field::has(labels, field::LABEL_PROXY_NAME) || field::has(labels, field::LABEL_HEADLESS)
        {
            return None;
        }
        let Some(spec) = &self.spec else {
            findings.add("spec", "is missing: the Service is ignored");
            return None;
        };
        let service_type = match spec.type_.as_deref().unwrap_or("ClusterIP") {
            "ClusterIP" | "" => ServiceType::ClusterIp,
            "NodePort" => ServiceType::NodePort,
            "LoadBalancer" => ServiceType::LoadBalancer,
            "ExternalName" => return None,
            other => {
                findings.add(
                    "spec.type",
                    format!("`{other}` is not a Service type: the Service is ignored"),
                );
                return None;
            }
        };
        let created = self.metadata.creation_timestamp.as_ref();
        let internal_policy = spec.internal_traffic_policy.as_deref();
        Some(Service {
            service_type,
            cluster_ips: cluster_ips(spec, findings)?,
            ports: ports(spec, service_type, findings),
            internal_policy: policy("spec.internalTrafficPolicy", internal_policy, findings),
            created: created.and_then(|time| NonZeroI64::new(time.0.as_second())),
            selector: field::labels(spec.selector.as_ref()),
            extra: extra::extra(self, spec, service_type, findings),
        })
    }

    fn event(change: Change<Service>) -> Event {
        Event::Service(change)
    }

    fn narrow(all: watcher::Config) -> watcher::Config {
        all.labels(&field::ours())
    }
}

/// `None` for a headless Service.
fn cluster_ips(spec: &ServiceSpec, findings: &mut Findings) -> Option<Box<[Addr]>> {
    let (list, one) = (spec.cluster_ips.as_deref().unwrap_or_default(), &spec.cluster_ip);
    // Manifests written by hand often have the older field only.
    let (name, texts) = match one {
        Some(one) if list.is_empty() => ("spec.clusterIP", std::slice::from_ref(one)),
        _ => ("spec.clusterIPs", list),
    };
    if texts.iter().any(|text| text == "None") {
        return None;
    }
    let mut ips: Vec<Addr> = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let path = if name == "spec.clusterIP" { name.to_owned() } else { format!("{name}[{i}]") };
        let Some(ip) = field::address(findings, &path, text) else { continue };
        if ips.iter().any(|other| Family::of(other) == Family::of(&ip)) {
            findings.add(path, format!("{ip} is the second address of its family: ignored"));
        } else {
            ips.push(ip);
        }
    }
    if texts.iter().all(String::is_empty) {
        findings.add("spec.clusterIPs", "is empty: the Service has no frontend");
    }
    Some(ips.into())
}

fn ports(
    spec: &ServiceSpec,
    service_type: ServiceType,
    findings: &mut Findings,
) -> Box<[ServicePort]> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, given) in spec.ports.iter().flatten().enumerate() {
        let path = |field: &str| format!("spec.ports[{i}].{field}");
        let protocol = field::protocol(findings, &path("protocol"), given.protocol.as_deref());
        let number = field::port(findings, &path("port"), given.port);
        let Some((protocol, port)) = protocol.zip(number) else { continue };
        let name: Arc<str> = given.name.as_deref().unwrap_or_default().into();
        if ports.iter().any(|other| other.port == port && other.protocol == protocol) {
            findings
                .add(path("port"), format!("{port} appears twice with the same protocol: ignored"));
            continue;
        }
        if ports.iter().any(|other| other.name == name) {
            findings.add(path("name"), format!("`{name}` appears twice: ignored"));
            continue;
        }
        let node_port = given.node_port.filter(|port| *port != 0);
        let node_port = node_port.filter(|_| service_type != ServiceType::ClusterIp);
        let node_port = node_port.and_then(|port| {
            field::port(findings, &path("nodePort"), port).and_then(NonZeroU16::new)
        });
        let taken = |other: &ServicePort| {
            node_port.is_some() && other.node_port == node_port && other.protocol == protocol
        };
        let twice = ports.iter().any(taken);
        if let Some(port) = node_port.filter(|_| twice) {
            let message = format!("{port} appears twice with the same protocol: ignored");
            findings.add(path("nodePort"), message);
        }
        let node_port = node_port.filter(|_| !twice);
        ports.push(ServicePort { name, protocol, port, node_port });
    }
    ports.into()
}

/// A traffic policy; Cluster when absent. `field` is its path.
fn policy(field: &str, given: Option<&str>, findings: &mut Findings) -> TrafficPolicy {
    match given.unwrap_or("Cluster") {
        "Cluster" | "" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            let message = format!("`{other}` is not a traffic policy: using Cluster");
            findings.add(field, message);
            TrafficPolicy::Cluster
        }
    }
}
