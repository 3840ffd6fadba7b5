//! ServiceCIDR → record.
#![forbid(unsafe_code)]

use k8s_openapi::api::networking::v1;

use super::field::Findings;
use super::{Watched, notation};
use lb_core::cluster::{Change, Event, Kind, ServiceCidr};

impl Watched for v1::ServiceCIDR {
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
