//! The source ports of masqueraded flows beside those that the host's own sockets are given and those of NodePorts.
#![forbid(unsafe_code)]

use std::fs;
use std::ops::RangeInclusive;

use lb_common::config::MASQUERADE_PORTS;

/// A range of ports.
pub type Ports = RangeInclusive<u16>;

/// Where the API server takes NodePorts from, unless it is told otherwise (`--service-node-port-range`).
const NODE_PORTS: Ports = 30_000..=32_767;
/// Fewer ports are not worth reserving: then the default range is used, with an issue that names what it overlaps.
const FEW: u32 = 4_096;

/// The ports that the host's own sockets are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// `net.ipv4.ip_local_port_range`, of both families; `None` when it cannot be read.
    pub given: Option<Ports>,
    /// `net.ipv4.ip_local_reserved_ports`: none of them.
    reserved: Vec<Ports>,
}

impl HostPorts {
    /// As the network namespace has them now.
    pub fn read() -> Self {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
        };
        Self::parse(&read("ip_local_port_range"), &read("ip_local_reserved_ports"))
    }

    /// As the kernel writes them.
    pub fn parse(given: &str, reserved: &str) -> Self {
        let range = |bounds: (&str, &str)| {
            Some(bounds.0.trim().parse().ok()?..=bounds.1.trim().parse().ok()?)
        };
        let reserved = reserved.trim().split(',');
        Self {
            given: given.trim().split_once(char::is_whitespace).and_then(range),
            reserved: reserved
                .filter_map(|item| range(item.split_once('-').unwrap_or((item, item))))
                .collect(),
        }
    }

    /// Whether a socket may be given the port.
    pub fn has(&self, port: u16) -> bool {
        self.given.as_ref().is_some_and(|given| given.contains(&port))
            && !self.reserved.iter().any(|reserved| reserved.contains(&port))
    }

    /// Whether a socket may be given a port from which NodePorts are taken.
    pub fn has_node_ports(&self) -> bool {
        NODE_PORTS.into_iter().any(|port| self.has(port))
    }

    /// The widest range that is neither theirs nor of NodePorts. From 10000 on: below are the ports that Pods listen on,
    /// and each packet to one of the range costs a look into conntrack.
    pub fn widest_rest(&self) -> Ports {
        if self.given.is_none() {
            return MASQUERADE_PORTS;
        }
        let mut widest: Option<Ports> = None;
        let mut run: Option<Ports> = None;
        for port in *MASQUERADE_PORTS.start()..=u16::MAX {
            if self.has(port) || NODE_PORTS.contains(&port) {
                run = None;
                continue;
            }
            let longer = run.map_or(port, |run| *run.start())..=port;
            if widest.as_ref().is_none_or(|widest| widest.len() < longer.len()) {
                widest = Some(longer.clone());
            }
            run = Some(longer);
        }
        widest.filter(|widest| widest.len() >= FEW as usize).unwrap_or(MASQUERADE_PORTS)
    }
}

/// The narrowest range that both are in.
pub fn hull(one: &Ports, other: &Ports) -> Ports {
    *one.start().min(other.start())..=*one.end().max(other.end())
}

#[cfg(test)]
mod tests {
    use super::HostPorts;

    #[test]
    fn s23_the_default_is_what_the_host_leaves() {
        let cases = [
            ("as it comes", "32768\t60999\n", "\n", 10_000..=29_999),
            ("not to be read", "", "", 10_000..=29_999),
            ("a range that begins early", "15000 60999", "", 10_000..=14_999),
            ("one that ends early", "1024 20000", "", 32_768..=65_535),
            ("one that leaves only what is above it", "9000 61000", "", 61_001..=65_535),
            ("one that leaves too little", "1024 65000", "", 10_000..=29_999),
            ("all of it", "1024 65535", "", 10_000..=29_999),
            ("all but what is reserved", "1024 65535", "40000-49999", 40_000..=49_999),
        ];
        for (name, given, reserved, want) in cases {
            assert_eq!(HostPorts::parse(given, reserved).widest_rest(), want, "{name}");
        }
    }
}
