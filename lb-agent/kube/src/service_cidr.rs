//! ServiceCIDR → record. The type here leaves out `status.conditions`, as the one of a Service does.
#![forbid(unsafe_code)]

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::networking::v1::ServiceCIDRSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::field::Findings;
use super::meta::{self, object};
use super::notation;
use super::watched::Watched;
use lb_core::cluster::{Change, Event, Kind, ServiceCidr};

/// A ServiceCIDR: the fields that are used.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ServiceCidrObject {
    #[serde(default, deserialize_with = "meta::read")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<ServiceCIDRSpec>,
}

object!(
    ServiceCidrObject: "ServiceCIDR", "servicecidrs",
    "networking.k8s.io/v1" = ("networking.k8s.io", "v1"), ClusterResourceScope
);

impl Watched for ServiceCidrObject {
    const KIND: Kind = Kind::ServiceCidr;
    /// The kind is new in Kubernetes 1.33: before, no address is known to be unallocated. An older role does not let us
    /// read it (403).
    const ABSENT: &'static [u16] = &[403, 404];
    type Record = ServiceCidr;

    fn record(&self, findings: &mut Findings) -> Option<ServiceCidr> {
        let mut prefixes = Vec::new();
        let given = self.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        for (i, text) in given.enumerate() {
            match notation::prefix(text) {
                Ok(prefix) => prefixes.push(prefix),
                Err(err) => {
                    findings.add(format!("spec.cidrs[{i}]"), format!("`{text}` is {err}: ignored"))
                }
            }
        }
        Some(ServiceCidr { prefixes: prefixes.into() })
    }

    fn event(change: Change<ServiceCidr>) -> Event {
        Event::ServiceCidr(change)
    }
}
