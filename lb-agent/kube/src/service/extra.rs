//! The fields of a Service that few have: addresses outside the cluster, who may use them, affinity.
#![forbid(unsafe_code)]

use std::num::{NonZeroU16, NonZeroU32};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, ServiceSpec};
use lb_common::addr::Addr;

use super::{ServiceObject, annotation, policy};
use crate::field::{self, Findings};
use crate::notation;
use lb_core::cluster::{Extra, Prefix, ServiceType, TrafficPolicy};

/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` when it is absent, in seconds.
const AFFINITY_DEFAULT: NonZeroU32 = NonZeroU32::new(10_800).unwrap();
/// And at most.
const AFFINITY_MOST: u32 = 86_400;

/// What is not default of them; `None` when all of it is.
pub(super) fn extra(
    service: &ServiceObject,
    spec: &ServiceSpec,
    service_type: ServiceType,
    findings: &mut Findings,
) -> Option<Box<Extra>> {
    let balanced = service_type == ServiceType::LoadBalancer;
    // Of a Service that has turned into another type, what is left over of the former has no meaning.
    let outside = service_type != ServiceType::ClusterIp || spec.external_ips.is_some();
    let external_policy = if outside {
        let given = spec.external_traffic_policy.as_deref();
        policy("spec.externalTrafficPolicy", given, findings)
    } else {
        TrafficPolicy::Cluster
    };
    let checked = balanced && external_policy == TrafficPolicy::Local;
    let annotations = service.metadata.annotations.as_ref();
    let extra = Extra {
        external_policy,
        lb_ips: if balanced { lb_ips(service, findings) } else { Box::default() },
        proxied: balanced && ingress(service).any(is_proxied),
        external_ips: external_ips(spec, findings),
        source_ranges: balanced.then(|| source_ranges(spec, findings)).flatten(),
        affinity_secs: affinity(spec, findings),
        health_port: checked.then(|| health_port(spec, findings)).flatten(),
        algorithm: annotation::algorithm(annotations, findings),
        by_stack: field::by_stack(annotations, findings),
        weights: annotation::weights(annotations, findings),
    };
    (extra != Extra::default()).then(|| Box::new(extra))
}

const PROXY: &str = "Proxy";

fn ingress(service: &ServiceObject) -> impl Iterator<Item = &LoadBalancerIngress> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.into_iter().flat_map(|status| status.ingress.iter().flatten())
}

fn is_proxied(ingress: &LoadBalancerIngress) -> bool {
    ingress.ip_mode.as_deref() == Some(PROXY)
}

/// Only those whose packets arrive with the address itself as destination: with `ipMode: Proxy` the load balancer
/// wants to see them first, also those from inside (KEP-1860).
fn lb_ips(service: &ServiceObject, findings: &mut Findings) -> Box<[Addr]> {
    let mut ips = Vec::new();
    for (i, ingress) in ingress(service).enumerate() {
        let path = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        match ingress.ip_mode.as_deref().unwrap_or("VIP") {
            "VIP" | "" => {}
            PROXY => continue,
            other => {
                let message = format!("`{other}` is not an IP mode: the address is ignored");
                findings.add(path("ipMode"), message);
                continue;
            }
        }
        // One with a host name only is for DNS.
        let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        ips.extend(field::address(findings, &path("ip"), text));
    }
    sorted(ips)
}

fn external_ips(spec: &ServiceSpec, findings: &mut Findings) -> Box<[Addr]> {
    let mut ips = Vec::new();
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        ips.extend(field::address(findings, &format!("spec.externalIPs[{i}]"), text));
    }
    sorted(ips)
}

/// An invalid range must not open the Service to all clients: if no valid range is left, no client may pass.
fn source_ranges(spec: &ServiceSpec, findings: &mut Findings) -> Option<Box<[Prefix]>> {
    let given = spec.load_balancer_source_ranges.as_deref().filter(|list| !list.is_empty())?;
    let mut ranges = Vec::with_capacity(given.len());
    for (i, text) in given.iter().enumerate() {
        match notation::prefix(text) {
            Ok(range) => ranges.push(range),
            Err(err) => {
                let path = format!("spec.loadBalancerSourceRanges[{i}]");
                findings.add(path, format!("`{text}` is {err}: ignored"));
            }
        }
    }
    if ranges.is_empty() {
        findings.add("spec.loadBalancerSourceRanges", "none is valid: no client is allowed");
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges.into())
}

fn affinity(spec: &ServiceSpec, findings: &mut Findings) -> Option<NonZeroU32> {
    match spec.session_affinity.as_deref().unwrap_or("None") {
        "None" | "" => return None,
        "ClientIP" => {}
        other => {
            let message = format!("`{other}` is not a session affinity: using None");
            findings.add("spec.sessionAffinity", message);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let Some(given) = config.and_then(|config| config.timeout_seconds) else {
        return Some(AFFINITY_DEFAULT);
    };
    let seconds = u32::try_from(given).ok().filter(|seconds| *seconds <= AFFINITY_MOST);
    seconds.and_then(NonZeroU32::new).or_else(|| {
        let message = format!("{given} is not between 1 and {AFFINITY_MOST}: using 10800");
        findings.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message);
        Some(AFFINITY_DEFAULT)
    })
}

fn health_port(spec: &ServiceSpec, findings: &mut Findings) -> Option<NonZeroU16> {
    let given = spec.health_check_node_port.filter(|port| *port != 0)?;
    field::port(findings, "spec.healthCheckNodePort", given).and_then(NonZeroU16::new)
}

fn sorted(mut ips: Vec<Addr>) -> Box<[Addr]> {
    ips.sort_unstable();
    ips.dedup();
    ips.into()
}
