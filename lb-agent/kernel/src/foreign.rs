//! Is kube-proxy at work beside us, or another component that enforces policies or serves Services? Its rules would translate before or after us, and `kubeadm upgrade` brings it
//! back (kubernetes#129415).
//!
//! What it leaves in the kernel is asked for by name ([`rules`]). Whether it lives is harder to tell: a container
//! does not see the node's processes, so its ports are asked as well ([`ports`]), and the agent knows its Pods.
#![forbid(unsafe_code)]

pub mod enforcers;
pub mod ports;
pub mod rules;

use std::fmt;
use std::fs;
use std::net::SocketAddr;

/// What the agent says at `/proxyMode`, where kube-proxy says `iptables` or `nftables`.
pub const MODE: &str = "ebpf";

/// A sign of kube-proxy on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The table `kube-proxy` of its nftables mode.
    Nftables,
    /// The chain `KUBE-SERVICES` of its iptables mode, in nf_tables.
    Iptables,
    /// The same chain in the legacy tables of iptables.
    Legacy,
    /// The device of its IPVS mode.
    Ipvs,
    /// A process of that name.
    Process,
    /// It says at its metrics port in which mode it is.
    Mode(SocketAddr, String),
    /// It answers at its health port.
    Health(SocketAddr),
    /// A Pod on this node: `namespace/name`.
    Pod(String),
}

impl Sign {
    /// Whether it shows kube-proxy itself, which writes its rules again, and not only what it left behind.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Nftables | Self::Iptables | Self::Legacy | Self::Ipvs => false,
            Self::Process | Self::Mode(..) | Self::Health(_) | Self::Pod(_) => true,
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("its nftables table kube-proxy exists"),
            Self::Iptables => f.write_str("its iptables chain KUBE-SERVICES exists"),
            Self::Legacy => f.write_str("its legacy iptables chain KUBE-SERVICES exists"),
            Self::Ipvs => f.write_str("its device kube-ipvs0 exists"),
            Self::Process => f.write_str("a kube-proxy process is running"),
            Self::Mode(address, mode) => write!(f, "it answers at {address}, mode {mode}"),
            Self::Health(address) => write!(f, "it answers at {address}"),
            Self::Pod(name) => write!(f, "its Pod {name} is on this node"),
        }
    }
}

/// Signs in one line.
pub fn words(signs: &[Sign]) -> String {
    signs.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Looks for signs. What cannot be asked counts as absent.
pub fn detect() -> Vec<Sign> {
    let mut signs = alive();
    signs.extend(rules::find());
    signs
}

/// Looks for kube-proxy itself.
pub fn alive() -> Vec<Sign> {
    let mut signs = ports::find(ports::METRICS, ports::HEALTHZ);
    signs.extend(is_running().then_some(Sign::Process));
    signs
}

/// Whether a process of that name works on our network namespace: others are another node's.
fn is_running() -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let ours = fs::read_link("/proc/self/ns/net").ok();
    processes
        .flatten()
        .filter(|entry| {
            entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit())
        })
        .map(|entry| entry.path())
        .filter(|path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "kube-proxy")
        })
        // A process with more privileges than ours does not let us look: it is the node's, then.
        .any(|path| fs::read_link(path.join("ns/net")).map_or(true, |netns| Some(netns) == ours))
}
