//! Pod → record.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1;
use lb_common::addr::Addr;

use super::Watched;
use super::field::{self, Findings};
use crate::cluster::{Change, Event, Kind, Pod};

impl Watched for v1::Pod {
    const KIND: Kind = Kind::Pod;
    type Record = Pod;

    /// `None` for one that has finished: its address may be another's by now.
    fn record(&self, findings: &mut Findings) -> Option<Pod> {
        if has_finished(self) {
            return None;
        }
        let host_network = self.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        Some(Pod {
            ips: ips(self, findings),
            host_network,
            node: self
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.as_deref())
                .unwrap_or_default()
                .into(),
            labels: field::labels(self.metadata.labels.as_ref()),
            ports: Box::default(),
        })
    }

    fn event(change: Change<Pod>) -> Event {
        Event::Pod(change)
    }
}

/// Whether all containers have ended for good (`status.phase`).
pub(super) fn has_finished(pod: &v1::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// `status.podIPs`, or `status.podIP` where a manifest has only that.
pub(super) fn ips(pod: &v1::Pod, findings: &mut Findings) -> Box<[Addr]> {
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
