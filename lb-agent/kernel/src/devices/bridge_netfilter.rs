//! Whether bridges show netfilter the frames between their ports.
#![forbid(unsafe_code)]

use std::fs;

/// Settings of this network namespace. Without the module br_netfilter there are none, which means no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeNetfilter {
    /// IPv4 (`net.bridge.bridge-nf-call-iptables`).
    pub v4: bool,
    /// IPv6 (`net.bridge.bridge-nf-call-ip6tables`).
    pub v6: bool,
}

impl BridgeNetfilter {
    /// Reads the settings.
    pub fn read() -> Self {
        let is_on = |name: &str| {
            fs::read_to_string(format!("/proc/sys/net/bridge/{name}"))
                .is_ok_and(|value| value.trim() != "0")
        };
        Self { v4: is_on("bridge-nf-call-iptables"), v6: is_on("bridge-nf-call-ip6tables") }
    }
}
