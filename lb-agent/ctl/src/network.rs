//! Addresses, ports and protocols of the maps as users read and write them.

use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::flow::proto;

/// An address and a port for people.
pub fn socket(addr: Addr, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

/// `Some` for a real address, `None` for `::`.
pub fn ip(addr: Addr) -> Option<IpAddr> {
    (addr != Addr::NONE).then(|| addr.to_ip())
}

/// Name of an IP protocol.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        proto::SCTP => "SCTP".to_owned(),
        proto::ICMP => "ICMP".to_owned(),
        proto::ICMP6 => "ICMPv6".to_owned(),
        number => number.to_string(),
    }
}

/// Number of an IP protocol, from its name in any case or its number.
///
/// # Errors
/// When it is neither.
pub fn protocol_number(text: &str) -> Result<u8, String> {
    let known = [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, proto::ICMP6];
    known
        .into_iter()
        .find(|number| protocol_name(*number).eq_ignore_ascii_case(text))
        .or_else(|| text.parse().ok())
        .ok_or_else(|| format!("{text} is not tcp, udp, sctp, icmp, icmpv6 or a number"))
}
