//! The two ends and the port, from the command line.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use lb_common::flow::proto;

use crate::network::protocol_number;
use lb_core::admin::context::{FlowQuery, Party};
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
    let (port, protocol) = port.map_or(Ok((None, proto::TCP)), ports).context("--port")?;
    complete(FlowQuery { src, dst, protocol, port })
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
            (host, Some(number(port)?))
        }
        _ => (rest, None),
    };
    let (src, dst) = (party(src, namespace)?, party(dst, namespace)?);
    complete(FlowQuery { src, dst, protocol, port })
}

fn complete(wanted: FlowQuery) -> anyhow::Result<FlowQuery> {
    let has_ports = matches!(wanted.protocol, proto::TCP | proto::UDP | proto::SCTP);
    match (&wanted.dst, wanted.port) {
        (Party::Service(_), None) => {}
        (_, None) if has_ports => bail!("no port given: use DST:PORT/PROTO, or --port PORT/PROTO"),
        _ => {}
    }
    if wanted.src == Party::World && wanted.dst == Party::World {
        bail!("source and destination are both external; that traffic never passes this node");
    }
    if let Party::Service(_) = wanted.src {
        bail!("a Service cannot be the source of a flow: name a Pod behind it");
    }
    Ok(wanted)
}

/// `ns/pod`, `pod`, `pod/name`, an address, `node/name`, `svc:ns/name`, `svc/name`, `world`.
fn party(text: &str, namespace: Option<&str>) -> anyhow::Result<Party> {
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
            "{text}: expected NAMESPACE/POD, an address, node/NAME, svc:NAMESPACE/NAME or world"
        ),
    };
    for prefix in ["svc:", "svc/", "service/"] {
        if let Some(name) = text.strip_prefix(prefix) {
            return Ok(Party::Service(full(name)?));
        }
    }
    match text.split_once('/') {
        Some(("node", name)) if !name.is_empty() => Ok(Party::Node(name.into())),
        Some(("pod" | "po", name)) => Ok(Party::Pod(full(name)?)),
        _ => Ok(Party::Pod(full(text)?)),
    }
}

/// `5432`, `5432/tcp`, `icmp`.
fn ports(text: &str) -> anyhow::Result<(Option<u16>, u8)> {
    match text.split_once('/') {
        Some((port, word)) => Ok((Some(number(port)?), protocol(word)?)),
        None if is_protocol(text) && text.parse::<u16>().is_err() => Ok((None, protocol(text)?)),
        None => Ok((Some(number(text)?), proto::TCP)),
    }
}

fn number(text: &str) -> anyhow::Result<u16> {
    text.parse().with_context(|| format!("{text} is not a port"))
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
        ];
        for (src, dst, want) in cases {
            let found = words(src, dst, None).unwrap();
            let found = format!("{} {} {:?} {}", found.src, found.dst, found.port, found.protocol);
            assert_eq!(found, want);
        }
        for (src, dst) in [
            ("b", "fd00::2"),
            ("b", "d"),
            ("b", "d:http"),
            ("svc:web", "d:80"),
            ("", "d:1"),
            ("a/b/c", "d:1"),
        ] {
            assert!(words(src, dst, None).is_err(), "{src} {dst}");
        }
        let named = flags("b", "d", Some("80/udp"), Some("shop")).unwrap();
        assert_eq!(
            (named.src.to_string(), named.port, named.protocol),
            ("shop/b".into(), Some(80), 17)
        );
        assert_eq!(flags("b", "d", Some("icmp"), None).unwrap().port, None);
        assert!(flags("b", "d", None, None).is_err());
    }
}
