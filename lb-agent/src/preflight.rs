//! What this machine lacks, said before the kernel says it in its own words: one sentence each.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// The oldest kernel: what the programs need of helpers and map types is complete there.
const OLDEST: (u32, u32) = (6, 1);
/// Capabilities by their bit (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What the machine says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// The process' effective capabilities, a bit each.
    pub capabilities: u64,
    /// Whether the kernel describes its own types.
    pub btf: bool,
}

impl Facts {
    /// Asks the machine.
    pub fn read() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            kernel: release.trim().to_owned(),
            capabilities: effective(&status).unwrap_or(u64::MAX),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }

    /// What makes a start pointless; `None` when it is worth a try.
    pub fn obstacle(&self) -> Option<String> {
        if let Some(version) = version(&self.kernel)
            && version < OLDEST
        {
            return Some(format!(
                "kernel {}: too old, Linux {}.{} or later is needed{}",
                self.kernel,
                OLDEST.0,
                OLDEST.1,
                lacks(version)
            ));
        }
        let missing = self.missing_capabilities();
        if missing.is_empty() {
            return None;
        }
        Some(format!(
            "missing {}: run as root or add it to the container's securityContext.capabilities",
            missing.join(" and ")
        ))
    }

    /// What may be behind a program or map that the kernel refused.
    pub fn suspicion(&self) -> Option<String> {
        if !self.has(CAP_PERFMON) {
            return Some(
                "missing CAP_PERFMON: add it to the container's securityContext.capabilities"
                    .to_owned(),
            );
        }
        if !self.btf {
            return Some(format!(
                "kernel {}: has no BTF (/sys/kernel/btf/vmlinux); it must be built with CONFIG_DEBUG_INFO_BTF=y",
                self.kernel
            ));
        }
        None
    }

    fn missing_capabilities(&self) -> Vec<&'static str> {
        let needed = [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")];
        needed.into_iter().filter(|(bit, _)| !self.has(*bit)).map(|(_, name)| name).collect()
    }

    fn has(&self, bit: u32) -> bool {
        let set = |bit: u32| self.capabilities & (1 << bit) != 0;
        // Before CAP_BPF and CAP_PERFMON existed, CAP_SYS_ADMIN meant them, and still does.
        set(bit) || (matches!(bit, CAP_BPF | CAP_PERFMON) && set(CAP_SYS_ADMIN))
    }
}

/// The first thing that kernels before this one lack.
fn lacks(version: (u32, u32)) -> &'static str {
    match version {
        (0..=4, _) | (5, 0..=13) => {
            ": it lacks SO_NETNS_COOKIE, by which host sockets are told from those of Pods"
        }
        (5, 14..=17) => {
            ": it lacks bpf_set_retval, by which a refused connection gets ECONNREFUSED"
        }
        _ => ": nothing older was ever tried",
    }
}

/// Major and minor number of a release like `6.1.0-56-cloud-amd64`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, Facts, effective, version};

    fn facts(kernel: &str, capabilities: &[u32]) -> Facts {
        Facts {
            kernel: kernel.to_owned(),
            capabilities: capabilities.iter().fold(0, |all, bit| all | 1 << bit),
            btf: true,
        }
    }

    #[test]
    fn obstacles_are_one_sentence() {
        let all = [CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON];
        let cases: [(&str, Facts, Option<&str>); 6] = [
            ("Debian 12", facts("6.1.0-56-cloud-amd64", &all), None),
            (
                "Debian 11",
                facts("5.10.0-46-cloud-amd64", &all),
                Some(
                    "kernel 5.10.0-46-cloud-amd64: too old, Linux 6.1 or later is needed: it lacks SO_NETNS_COOKIE",
                ),
            ),
            (
                "Ubuntu 22.04",
                facts("5.15.0-1", &all),
                Some(
                    "kernel 5.15.0-1: too old, Linux 6.1 or later is needed: it lacks bpf_set_retval",
                ),
            ),
            ("root of old", facts("6.12.1", &[CAP_SYS_ADMIN, CAP_NET_ADMIN]), None),
            (
                "a container without",
                facts("6.12.1", &[]),
                Some("missing CAP_BPF and CAP_NET_ADMIN: "),
            ),
            ("half of it", facts("6.12.1", &[CAP_BPF]), Some("missing CAP_NET_ADMIN: ")),
        ];
        for (name, facts, want) in cases {
            match (facts.obstacle(), want) {
                (None, None) => {}
                (Some(got), Some(want)) => assert!(got.starts_with(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn a_refusal_has_a_suspect() {
        let no_perfmon = facts("6.1.0", &[CAP_BPF, CAP_NET_ADMIN]).suspicion().unwrap();
        assert!(no_perfmon.starts_with("missing CAP_PERFMON"), "{no_perfmon}");
        let no_btf = Facts { btf: false, ..facts("6.1.0", &[CAP_SYS_ADMIN]) }.suspicion().unwrap();
        assert!(no_btf.contains("CONFIG_DEBUG_INFO_BTF"), "{no_btf}");
        assert_eq!(facts("6.1.0", &[CAP_SYS_ADMIN]).suspicion(), None);
    }

    #[test]
    fn what_the_machine_says_is_read() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("7.3.4+deb13"), Some((7, 3)));
        assert_eq!(version("?"), None);
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some(0x1ff_ffff_ffff));
    }
}
