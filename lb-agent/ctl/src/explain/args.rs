//! The two ends and the port, from the command line.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use lb_common::flow::proto;

use crate::network::protocol_number;
use lb_core::admin::context::{FlowQuery, Party};
use lb_core::admin::workload::WorkloadKind;
use lb_core::cluster::Name;

/// Namespace of a name that has none, as for kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// The flow from `--from`, `--to` and `--port`.
///
/// # Errors
/// When one of them is unreadable.
pub fn flags(
    from: &str,
    to: &str,
    port: Option<&str>,
    namespace: Option<&str>,
) -> anyhow::Result<FlowQuery> {
    let src = party(from, namespace).context("--from")?;
    let dst = party(to, namespace).context("--to")?;
    let none = (PortWord::None, proto::TCP);
    let (port, protocol) = port.map_or(Ok(none), ports).context("--port")?;
    complete(src, dst, protocol, port, "use --port PORT/PROTO")
}

/// The flow from `SRC` and `DST[:PORT][/PROTO]`.
///
/// # Errors
/// When one of them is unreadable.
pub fn words(src: &str, dst: &str, namespace: Option<&str>) -> anyhow::Result<FlowQuery> {
    let (rest, protocol) = match dst.rsplit_once('/') {
        Some((rest, word)) if is_protocol(word) && rest.contains(':') => (rest, protocol(word)?),
        _ => (dst, proto::TCP),
    };
    let (dst, port) = match rest.rsplit_once(':') {
        // An IPv6 address has colons of its own, unless it is in brackets; `svc:` is not a port.
        Some((host, port))
            if rest.parse::<IpAddr>().is_err() && !port.contains('/') && host != "svc" =>
        {
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            (host, PortWord::of(port)?)
        }
        _ => (rest, PortWord::None),
    };
    let (src, dst) = (party(src, namespace)?, party(dst, namespace)?);
    complete(src, dst, protocol, port, "use DST:PORT or DST:PORT/PROTO")
}

/// A port as it is written.
#[derive(Clone, Debug)]
enum PortWord {
    None,
    Number(u16),
    /// Of a Service's port or a container's.
    Name(Arc<str>),
}

impl PortWord {
    fn of(text: &str) -> anyhow::Result<Self> {
        // The name of a port has a letter (IANA_SVC_NAME), so that it is not a number.
        let is_name = text.bytes().any(|byte| byte.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        match text.parse() {
            Ok(number) => Ok(Self::Number(number)),
            Err(_) if is_name => Ok(Self::Name(text.into())),
            Err(_) => bail!("{text} is not a port, nor the name of one"),
        }
    }
}

fn complete(
    src: Party,
    dst: Party,
    protocol: u8,
    port: PortWord,
    how: &str,
) -> anyhow::Result<FlowQuery> {
    let has_ports = matches!(protocol, proto::TCP | proto::UDP | proto::SCTP);
    let (port, port_name) = match port {
        PortWord::Number(port) => (Some(port), None),
        PortWord::Name(name) => (None, Some(name)),
        PortWord::None if has_ports && !matches!(dst, Party::Service(_)) => {
            bail!("no port given: {how}")
        }
        PortWord::None => (None, None),
    };
    let wanted = FlowQuery { src, dst, protocol, port, port_name };
    if wanted.src == Party::World && wanted.dst == Party::World {
        bail!("source and destination are both external; that traffic never passes this node");
    }
    if let Party::Service(_) = wanted.src {
        bail!("a Service cannot be the source of a flow: name a Pod behind it");
    }
    Ok(wanted)
}

/// `ns/pod`, `pod`, `pod/name`, `deploy/name`, an address, `node/name`, `svc:ns/name`, `svc/name`, `name.ns`, `name.ns.svc` with a
/// domain or without, `world`.
///
/// # Errors
/// When it is unreadable.
pub(crate) fn party(text: &str, namespace: Option<&str>) -> anyhow::Result<Party> {
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Party::Ip(ip));
    }
    if text == "world" {
        return Ok(Party::World);
    }
    let full = |name: &str| match name.split('/').collect::<Vec<_>>().as_slice() {
        [name] if !name.is_empty() => Ok(Name::new(namespace, *name)),
        [own, name] if !own.is_empty() && !name.is_empty() => Ok(Name::new(*own, *name)),
        _ => bail!(
            "{text}: expected NAMESPACE/POD, deploy/NAME, svc:NAMESPACE/NAME, SERVICE.NAMESPACE, an address, node/NAME or world"
        ),
    };
    for prefix in ["svc:", "svc/", "service/"] {
        if let Some(name) = text.strip_prefix(prefix) {
            return Ok(Party::Service(full(name)?));
        }
    }
    // As Pods of other namespaces write it. A Pod whose name has a full stop is written with its namespace.
    if let [name, own] | [name, own, "svc", ..] = text.split('.').collect::<Vec<_>>().as_slice()
        && !text.contains('/')
    {
        return Ok(Party::Service(full(&format!("{own}/{name}"))?));
    }
    if let [own, word, name] = text.split('/').collect::<Vec<_>>().as_slice()
        && let Some(kind) = WorkloadKind::parse(word)
    {
        return Ok(Party::Workload(kind, full(&format!("{own}/{name}"))?));
    }
    if let Some((word, name)) = text.split_once('/')
        && let Some(kind) = WorkloadKind::parse(word)
    {
        return Ok(Party::Workload(kind, full(name)?));
    }
    match text.split_once('/') {
        Some(("node", name)) if !name.is_empty() => Ok(Party::Node(name.into())),
        Some(("pod" | "po", name)) => Ok(Party::Pod(full(name)?)),
        _ => Ok(Party::Pod(full(text)?)),
    }
}

/// `5432`, `5432/tcp`, `http`, `icmp`.
fn ports(text: &str) -> anyhow::Result<(PortWord, u8)> {
    match text.split_once('/') {
        Some((port, word)) => Ok((PortWord::of(port)?, protocol(word)?)),
        None if is_protocol(text) && text.parse::<u16>().is_err() => {
            Ok((PortWord::None, protocol(text)?))
        }
        None => Ok((PortWord::of(text)?, proto::TCP)),
    }
}

fn is_protocol(text: &str) -> bool {
    protocol_number(text).is_ok()
}

fn protocol(text: &str) -> anyhow::Result<u8> {
    protocol_number(text).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use super::{flags, words};

    #[test]
    fn ends_and_ports() {
        let cases = [
            ("a/b", "c/d:80", "a/b c/d Some(80) 6"),
            ("b", "d:80/udp", "default/b default/d Some(80) 17"),
            ("pod/b", "c/d:53/UDP", "default/b c/d Some(53) 17"),
            ("world", "svc:shop/web", "world svc:shop/web None 6"),
            ("node/n1", "svc:shop/web:443", "node/n1 svc:shop/web Some(443) 6"),
            ("b", "svc/web:443/sctp", "default/b svc:default/web Some(443) 132"),
            ("10.1.0.2", "10.1.0.3:80", "10.1.0.2 10.1.0.3 Some(80) 6"),
            ("fd00::1", "[fd00::2]:80/tcp", "fd00::1 fd00::2 Some(80) 6"),
            ("b", "10.1.0.3:0/icmp", "default/b 10.1.0.3 Some(0) 1"),
            ("b", "web.shop.svc.cluster.local:80", "default/b svc:shop/web Some(80) 6"),
            ("b", "web.shop.svc", "default/b svc:shop/web None 6"),
            ("b", "web.shop:80", "default/b svc:shop/web Some(80) 6"),
            ("shop/deploy/b", "web.shop", "deploy/shop/b svc:shop/web None 6"),
            ("deploy/b", "sts/c/d:80", "deploy/default/b sts/c/d Some(80) 6"),
        ];
        for (src, dst, want) in cases {
            let found = words(src, dst, None).unwrap();
            let found = format!("{} {} {:?} {}", found.src, found.dst, found.port, found.protocol);
            assert_eq!(found, want);
        }
        for (src, dst) in [
            ("b", "fd00::2"),
            ("b", "d"),
            ("b", "d:HTTP"),
            ("b", "d:80a_"),
            ("svc:web", "d:80"),
            ("", "d:1"),
            ("a/b/c", "d:1"),
        ] {
            assert!(words(src, dst, None).is_err(), "{src} {dst}");
        }
        let by_name = words("b", "c/d:http/udp", None).unwrap();
        assert_eq!((by_name.port, by_name.port_name.as_deref()), (None, Some("http")));
        let named = flags("b", "d", Some("80/udp"), Some("shop")).unwrap();
        assert_eq!(
            (named.src.to_string(), named.port, named.protocol),
            ("shop/b".into(), Some(80), 17)
        );
        assert_eq!(flags("b", "d", Some("icmp"), None).unwrap().port, None);
        assert!(flags("b", "d", None, None).is_err());
    }
}
