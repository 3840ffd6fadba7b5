//! Addresses and ranges as Kubernetes reads them in its objects: in `010.000.000.001` the zeros say nothing.
//!
//! Objects of clusters that are older than Kubernetes 1.22 may have such addresses, and the API server goes on taking them
//! for decimal (`k8s.io/utils/net`, `ParseIPSloppy` and `ParseCIDRSloppy`). Flags and our own annotations are read
//! strictly: elsewhere such a number is octal.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use lb_core::cluster::{NotPrefix, Prefix};

/// An address; `None` when it is none.
pub(super) fn ip(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return ipv4(text).map(IpAddr::V4);
    }
    let group = |group: &str| {
        let ipv4 = group.contains('.').then(|| ipv4(group).map(|ip| ip.to_string()));
        ipv4.unwrap_or_else(|| Some(hex(group).to_owned()))
    };
    let groups: Vec<Cow<'_, str>> =
        text.split(':').map(|text| group(text).map(Cow::Owned)).collect::<Option<_>>()?;
    groups.join(":").parse().ok().map(IpAddr::V6)
}

/// A range.
pub(super) fn prefix(text: &str) -> Result<Prefix, NotPrefix> {
    Prefix::read(text, ip)
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut bytes = [0u8; 4];
    let mut parts = text.split('.');
    for byte in &mut bytes {
        let part = parts.next()?;
        let plain = part.bytes().all(|byte| byte.is_ascii_digit());
        *byte = part.parse().ok().filter(|_| plain)?;
    }
    parts.next().is_none().then(|| bytes.into())
}

/// A group of an IPv6 address without the zeros that are too many for [`str::parse`].
fn hex(group: &str) -> &str {
    let surplus = group.len().saturating_sub(4);
    let zeros = group.bytes().take_while(|byte| *byte == b'0').count();
    group.get(surplus.min(zeros)..).unwrap_or(group)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{ip, prefix};

    #[test]
    fn zeros_before_a_number_say_nothing() {
        for (text, want) in [
            ("10.96.0.10", Some("10.96.0.10")),
            ("10.96.000.010", Some("10.96.0.10")),
            ("010.008.009.0000255", Some("10.8.9.255")),
            ("00.00.00.00", Some("0.0.0.0")),
            ("fd00::010", Some("fd00::10")),
            ("0fd00:00000::00001", Some("fd00::1")),
            ("::ffff:010.0.0.09", Some("::ffff:10.0.0.9")),
            ("64:ff9b::010.0.0.9", Some("64:ff9b::a00:9")),
            ("10.0.0.256", None),
            ("10.0.0.0256", None),
            ("0x0a.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.1.", None),
            ("10.0.0.1.2", None),
            ("10..0.1", None),
            ("10.+1.0.1", None),
            (" 10.0.0.1", None),
            ("10.0.0.1/32", None),
            ("fe80::1%eth0", None),
            ("::10000", None),
            ("1:2:3:4:5:6:7:8:9", None),
            (":::", None),
            ("10.0.0.1:", None),
            ("", None),
        ] {
            assert_eq!(ip(text), want.map(|want| want.parse::<IpAddr>().unwrap()), "{text}");
        }
        for (text, want) in [
            ("010.244.001.003/32", Some("10.244.1.3/32")),
            ("010.244.001.003/024", Some("10.244.1.0/24")),
            ("10.244.1.3/16", Some("10.244.0.0/16")),
            ("fd00:0000:00000::/032", Some("fd00::/32")),
            ("010.0.0.0/33", None),
            ("010.0.0.0", None),
            ("010.0.0.0/-1", None),
            ("010.0.0.0/255.0.0.0", None),
        ] {
            assert_eq!(
                prefix(text).ok().map(|prefix| prefix.to_string()).as_deref(),
                want,
                "{text}"
            );
        }
    }
}
