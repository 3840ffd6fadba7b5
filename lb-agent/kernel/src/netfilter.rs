//! The firewall rules of the node as records: those of nf_tables by netlink, those of the legacy tables of iptables by socket
//! options. No binary of the host is needed.
#![forbid(unsafe_code)]

mod elements;
mod expression;
pub mod legacy;
pub mod nftables;
mod rules;
mod xtables;

use std::io;

use lb_core::host_rules::HostRuleset;

/// Rules that are read at most: more than that, and the agent would need too much memory and time for each change.
pub const RULES: usize = 20_000;

/// Why there is no ruleset.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The kernel refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// More than [`RULES`].
    #[error("more than {RULES} rules")]
    TooMany,
    /// A legacy table is not as expected.
    #[error("table {0} cannot be parsed")]
    Malformed(String),
}

/// All rules that forwarded packets pass.
///
/// # Errors
/// When they cannot be read as a whole.
pub fn read() -> Result<HostRuleset, RulesError> {
    let mut ruleset = HostRuleset::default();
    ruleset.tables.extend(rules::read()?);
    ruleset.tables.extend(legacy::read()?);
    Ok(ruleset)
}

/// Whether connections that the kernel sees from the middle on are connections to it; without connection tracking, nothing is
/// refused.
pub fn is_loose() -> bool {
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";
    std::fs::read_to_string(path).map_or(true, |text| text.trim() != "0")
}

/// Whether a chain is kube-proxy's. Its chains decide on packets to Services, not on those between Pods, and there are many: they
/// are not read.
pub fn is_of_kube_proxy(chain: &str) -> bool {
    KUBE_PROXY.0.contains(&chain) || KUBE_PROXY.1.iter().any(|prefix| chain.starts_with(prefix))
}

/// Names, and beginnings of names (pkg/proxy/iptables and pkg/proxy/ipvs).
///
/// Others use the prefix `KUBE-`, too: the kubelet (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, `KUBE-MARK-DROP`), runtimes
/// (`KUBE-HOSTPORTS`), kube-router (`KUBE-ROUTER-…`, `KUBE-POD-FW-…`).
const KUBE_PROXY: ([&str; 13], [&str; 6]) = (
    [
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-FORWARD",
        "KUBE-PROXY-FIREWALL",
        "KUBE-PROXY-CANARY",
        "KUBE-LOAD-BALANCER",
        "KUBE-NODE-PORT",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
    ],
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"],
);
