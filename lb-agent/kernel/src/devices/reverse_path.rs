//! Whether the kernel takes IPv4 packets only from the device that leads back to their source.
#![forbid(unsafe_code)]

use std::fs;

/// Whether a device of this network namespace is strict about that (`rp_filter` = 1; the larger of its own and of that of all
/// devices holds). One that cannot be read counts as strict.
pub fn is_strict(device: &str) -> bool {
    const STRICT: u8 = 1;
    let of = |name: &str| -> Option<u8> {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        value.ok()?.trim().parse().ok()
    };
    match (of("all"), of(device)) {
        (Some(all), Some(own)) => all.max(own) == STRICT,
        (None, _) | (_, None) => true,
    }
}
