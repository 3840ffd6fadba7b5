//! EndpointSlice → record.
#![forbid(unsafe_code)]

use k8s_openapi::api::discovery::v1;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher;

use super::field::{self, Findings};
use super::watched::Watched;
use lb_core::cluster::{
    Change, Conditions, Endpoint, EndpointSlice, Endpoints, Event, Family, Hints, Kind, SlicePort,
};

/// Label with the name of the Service that a slice belongs to.
pub(super) const LABEL_SERVICE: &str = "kubernetes.io/service-name";
/// Annotation with the time of the change that made the slice be written.
const ANNOTATION_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Watched for v1::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    type Record = EndpointSlice;

    /// `None` for one that no frontend uses: of no Service, headless, of host names, or another proxy's.
    fn record(&self, findings: &mut Findings) -> Option<EndpointSlice> {
        let labels = self.metadata.labels.as_ref();
        if field::has(labels, field::LABEL_PROXY_NAME) || field::has(labels, field::LABEL_HEADLESS)
        {
            return None;
        }
        let service = field::value(labels, LABEL_SERVICE).filter(|name| !name.is_empty())?.into();
        let family = match self.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return None,
            other => {
                let message = format!("`{other}` is not an address type: the slice is ignored");
                findings.add("addressType", message);
                return None;
            }
        };
        let annotations = self.metadata.annotations.as_ref();
        let trigger = field::value(annotations, ANNOTATION_TRIGGER);
        let trigger = trigger.and_then(|time| time.parse::<Timestamp>().ok());
        Some(EndpointSlice {
            service,
            family,
            ports: ports(self, findings),
            endpoints: endpoints(self, family, findings),
            trigger_ms: trigger.and_then(|time| u64::try_from(time.as_millisecond()).ok()),
        })
    }

    fn event(change: Change<EndpointSlice>) -> Event {
        Event::Slice(change)
    }

    fn narrow(all: watcher::Config) -> watcher::Config {
        all.labels(&field::ours())
    }
}

fn ports(slice: &v1::EndpointSlice, findings: &mut Findings) -> Box<[SlicePort]> {
    let read = |(i, given): (usize, &v1::EndpointPort)| {
        // "All ports" (no number) is for other consumers than proxies. What is wrong with a protocol is an issue
        // of the Service already, which the slice only repeats.
        let number = given.port?;
        let mut ignored = Findings::new(Kind::EndpointSlice, &slice.name());
        let protocol = field::protocol(&mut ignored, "", given.protocol.as_deref())?;
        let port = field::port(findings, &format!("ports[{i}].port"), number)?;
        Some(SlicePort { name: given.name.as_deref().unwrap_or_default().into(), protocol, port })
    };
    slice.ports.iter().flatten().enumerate().filter_map(read).collect()
}

fn endpoints(slice: &v1::EndpointSlice, family: Family, findings: &mut Findings) -> Endpoints {
    let read = |(i, given): (usize, &v1::Endpoint)| {
        let path = format!("endpoints[{i}].addresses[0]");
        let Some(text) = given.addresses.first() else {
            findings.add(path, "is missing: the endpoint is ignored");
            return None;
        };
        let addr = field::address(findings, &path, text)?;
        if Family::of(&addr) != family {
            let message = format!("{addr} is not of the slice's address type: ignored");
            findings.add(path, message);
            return None;
        }
        let target = given.target_ref.as_ref();
        let pod = target.filter(|target| target.kind.as_deref() == Some("Pod"));
        Some(Endpoint {
            addr,
            conditions: conditions(given.conditions.as_ref()),
            node: field::string(given.node_name.as_ref()),
            zone: field::string(given.zone.as_ref()),
            pod: pod
                .and_then(|target| target.name.as_deref())
                .filter(|name| !name.is_empty())
                .map(Box::from),
            hints: given.hints.as_ref().and_then(hints),
        })
    };
    slice.endpoints.iter().flatten().enumerate().filter_map(read).collect()
}

/// `None` when they name neither a zone nor a node, as for those that are absent.
fn hints(given: &v1::EndpointHints) -> Option<Box<Hints>> {
    let zones = given.for_zones.iter().flatten().map(|zone| zone.name.as_str());
    let nodes = given.for_nodes.iter().flatten().map(|node| node.name.as_str());
    let hints = Hints {
        zones: zones.filter(|name| !name.is_empty()).map(Into::into).collect(),
        nodes: nodes.filter(|name| !name.is_empty()).map(Into::into).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

/// Fills in what an absent condition means: `ready` true, `serving` true, `terminating` false, as kube-proxy has it.
fn conditions(given: Option<&v1::EndpointConditions>) -> Conditions {
    Conditions {
        ready: given.and_then(|given| given.ready).unwrap_or(true),
        serving: given.and_then(|given| given.serving).unwrap_or(true),
        terminating: given.and_then(|given| given.terminating).unwrap_or(false),
    }
}
