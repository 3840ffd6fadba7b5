//! Fields that objects of several kinds have: addresses, ports, protocols, labels. What is wrong with one becomes an
//! issue, and the field counts as absent.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use super::notation;
use lb_core::annotation::Annotation;
use lb_core::cluster::{Kind, Labels, Name};
use lb_core::issue::{Issue, ObjectRef};

/// More issues than this with one object are only counted.
const MOST: usize = 16;

/// Services and slices with this label belong to another proxy.
pub(super) const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Services and slices with this label are headless.
pub(super) const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// The label selector of Services and slices that may have frontends here.
pub(super) fn ours() -> String {
    format!("!{LABEL_PROXY_NAME},!{LABEL_HEADLESS}")
}

/// Labels or annotations of an object.
pub(super) type StringMap = BTreeMap<String, String>;

/// The labels of an object.
pub(super) fn labels(map: Option<&StringMap>) -> Labels {
    let pairs = map.into_iter().flatten();
    Labels::new(pairs.map(|(key, value)| (key.as_str().into(), value.as_str().into())))
}

/// Gathers the issues with one object.
#[derive(Debug)]
pub(super) struct Findings {
    kind: Kind,
    name: Name,
    issues: Vec<Issue>,
    more: usize,
}

impl Findings {
    pub(super) fn new(kind: Kind, name: &Name) -> Self {
        Self { kind, name: name.clone(), issues: Vec::new(), more: 0 }
    }

    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef::new(self.kind.name(), &self.name)
    }

    /// Something is wrong with this field.
    pub(super) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.issues.len() < MOST {
            self.issues.push(Issue::new(self.object(), field, message));
        } else {
            self.more += 1;
        }
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Vec<Issue> {
        if self.more > 0 {
            let message = format!("{} more of its fields are invalid", self.more);
            self.issues.push(Issue::new(self.object(), "", message));
        }
        self.issues
    }
}

/// Whether labels or annotations have this key.
pub(super) fn has(map: Option<&StringMap>, key: &str) -> bool {
    map.is_some_and(|map| map.contains_key(key))
}

/// The value of this key.
pub(super) fn value<'a>(map: Option<&'a StringMap>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}

/// Annotation `lb-agent.io/path`: whether flows must go through the IP stack.
pub(super) fn by_stack(annotations: Option<&StringMap>, findings: &mut Findings) -> bool {
    match value(annotations, Annotation::Path.key()).map(str::trim) {
        None => false,
        Some("stack") => true,
        Some(given) => {
            findings.add(Annotation::Path.field(), format!("`{given}` is not stack: ignored"));
            false
        }
    }
}

/// A string that may be absent or empty.
pub(super) fn string(value: Option<&String>) -> Option<Arc<str>> {
    value.filter(|value| !value.is_empty()).map(|value| value.as_str().into())
}

/// An address of a Service or an endpoint.
///
/// Those that mean this very host or no host at all are refused: an endpoint at a loopback or link-local address
/// would let a user who may write EndpointSlices reach what only the node itself should (CVE-2021-25737).
pub(super) fn address(findings: &mut Findings, field: &str, text: &str) -> Option<Addr> {
    let Some(ip) = notation::ip(text) else {
        findings.add(field, format!("`{text}` is not an IP address: ignored"));
        return None;
    };
    match reserved(ip) {
        Some(what) => {
            findings.add(field, format!("{ip} is {what} address: ignored"));
            None
        }
        None => Some(Addr::from_ip(ip)),
    }
}

fn reserved(ip: IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match ip {
        _ if ip.is_unspecified() => Some("an unspecified"),
        _ if ip.is_loopback() => Some("a loopback"),
        _ if link_local => Some("a link-local"),
        _ if ip.is_multicast() => Some("a multicast"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("a broadcast"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// A port number; `field` is its path.
pub(super) fn port(findings: &mut Findings, field: &str, number: i32) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        findings.add(field, format!("{number} is not a port: ignored"));
    }
    port
}

/// A protocol; TCP when absent.
pub(super) fn protocol(findings: &mut Findings, field: &str, name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" | "" => Some(proto::TCP),
        "UDP" => Some(proto::UDP),
        "SCTP" => Some(proto::SCTP),
        other => {
            findings.add(field, format!("`{other}` is not a protocol: ignored"));
            None
        }
    }
}
