//! What this machine lacks, said before the kernel says it in its own words: one sentence each.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// The oldest kernel: what the programs need of helpers and map types is complete there.
const OLDEST: (u32, u32) = (6, 1);
/// Releases from which on the kernel keeps the addresses of its own sockets although a program translates them, of
/// the lines that had more releases then; all of later lines do. (Linux commits 0bdf399342c5, 86a7e0b69bd5,
/// 01b2885d9415, and cedc019b9f26 for CIFS.)
const KEEPS_ADDRESSES: [Release; 2] = [(6, 1, 72), (6, 6, 11)];
const ALL_KEEP_ADDRESSES: (u32, u32) = (6, 7);
/// Capabilities by their bit (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
const PERFMON: &str = "CAP_PERFMON";

/// A release of the kernel: `(6, 1, 72)`.
pub type Release = (u32, u32, u32);

/// What the machine says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// The release that a distribution's kernel is made from, as far as the machine tells.
    pub release: Option<Release>,
    /// The process' effective capabilities, a bit each.
    pub capabilities: u64,
    /// Whether the kernel describes its own types.
    pub btf: bool,
}

impl Machine {
    /// Asks the machine.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease");
        let status = read("/proc/self/status");
        // `uname -v`, and what Ubuntu has for it.
        let more = [read("/proc/sys/kernel/version"), read("/proc/version_signature")];
        Self {
            release: release(&kernel, &more.join(" ")),
            kernel: kernel.trim().to_owned(),
            capabilities: effective(&status).unwrap_or(u64::MAX),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }

    /// What makes a start pointless; `None` when it is worth a try.
    pub fn obstacle(&self) -> Option<String> {
        if let Some(old) = self.too_old() {
            return Some(old);
        }
        // Without CAP_PERFMON some kernels go on.
        let mut missing = self.missing_capabilities();
        missing.retain(|name| *name != PERFMON);
        if missing.is_empty() {
            return None;
        }
        Some(format!(
            "missing {}: run as root or add it to the container's securityContext.capabilities",
            missing.join(" and ")
        ))
    }

    /// Why the kernel does not do; `None` when it is new enough.
    pub fn too_old(&self) -> Option<String> {
        let version = version(&self.kernel).filter(|version| *version < OLDEST)?;
        Some(format!(
            "kernel {}: too old, Linux {}.{} or later is required{}",
            self.kernel,
            OLDEST.0,
            OLDEST.1,
            lacks(version)
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

    /// What does not work under this kernel as it does under a later one.
    pub fn weakness(&self) -> Option<String> {
        let (major, minor, patch) = self.release?;
        let keeps = |line: &Release| (line.0, line.1) == (major, minor) && line.2 <= patch;
        if (major, minor) >= ALL_KEEP_ADDRESSES || KEEPS_ADDRESSES.iter().any(keeps) {
            return None;
        }
        let fixed = KEEPS_ADDRESSES.map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"));
        Some(format!(
            "this node's own mounts (NFS, CIFS, Ceph) of a Service address keep the backend of their first connection forever: update the kernel to {} or {}.{}, or mount an address that does not belong to a Service",
            fixed.join(", "),
            ALL_KEEP_ADDRESSES.0,
            ALL_KEEP_ADDRESSES.1
        ))
    }

    /// The capabilities that the DaemonSet gives and the process does not have.
    pub fn missing_capabilities(&self) -> Vec<&'static str> {
        let needed =
            [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_PERFMON, PERFMON)];
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
            ": it lacks SO_NETNS_COOKIE, which distinguishes host sockets from Pods' sockets"
        }
        (5, 14..=17) => ": it lacks bpf_set_retval, which gives a refused connection ECONNREFUSED",
        _ => ": older kernels are not tested",
    }
}

/// Major and minor number of a release like `6.1.0-56-cloud-amd64`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The release behind the release name `kernel`: its own number, or one of the same line in what else the kernel says
/// of itself. Debian's and Ubuntu's names keep 0 as the third number.
fn release(kernel: &str, more: &str) -> Option<Release> {
    let line = version(kernel)?;
    let number = |word: &str| {
        let mut parts = word.splitn(3, '.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let rest = parts.next().unwrap_or_default();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let patch = rest.get(..digits)?.parse().unwrap_or(0);
        ((major, minor) == line).then_some(patch)
    };
    let words = kernel.split_whitespace().chain(more.split_whitespace());
    Some((line.0, line.1, words.filter_map(number).max().unwrap_or(0)))
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::{
        CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, Machine, effective, release, version,
    };

    fn facts(kernel: &str, capabilities: &[u32]) -> Machine {
        Machine {
            kernel: kernel.to_owned(),
            release: release(kernel, ""),
            capabilities: capabilities.iter().fold(0, |all, bit| all | 1 << bit),
            btf: true,
        }
    }

    #[test]
    fn obstacles_are_one_sentence() {
        let all = [CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON];
        let cases: [(&str, Machine, Option<&str>); 6] = [
            ("Debian 12", facts("6.1.0-56-cloud-amd64", &all), None),
            (
                "Debian 11",
                facts("5.10.0-46-cloud-amd64", &all),
                Some(
                    "kernel 5.10.0-46-cloud-amd64: too old, Linux 6.1 or later is required: it lacks SO_NETNS_COOKIE",
                ),
            ),
            (
                "Ubuntu 22.04",
                facts("5.15.0-1", &all),
                Some(
                    "kernel 5.15.0-1: too old, Linux 6.1 or later is required: it lacks bpf_set_retval",
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
        let no_btf =
            Machine { btf: false, ..facts("6.1.0", &[CAP_SYS_ADMIN]) }.suspicion().unwrap();
        assert!(no_btf.contains("CONFIG_DEBUG_INFO_BTF"), "{no_btf}");
        assert_eq!(facts("6.1.0", &[CAP_SYS_ADMIN]).suspicion(), None);
    }

    #[test]
    fn s18_a_kernel_that_overwrites_its_own_sockets_addresses_is_told() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.69-1 (2023-12-30)";
        let newer = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.172-1 (2026-05-15)";
        let ubuntu = "#18-Ubuntu SMP Ubuntu 6.5.0-18.18-generic 6.5.8";
        for (kernel, more, want, fit) in [
            ("6.1.71", "", (6, 1, 71), false),
            ("6.1.72+", "", (6, 1, 72), true),
            ("6.1.0-17-cloud-amd64", debian, (6, 1, 69), false),
            ("6.1.0-56-cloud-amd64", newer, (6, 1, 172), true),
            ("6.5.0-18-generic", ubuntu, (6, 5, 8), false),
            ("6.6", "", (6, 6, 0), false),
            ("6.6.10-arch1", "#1 SMP 1.2.3", (6, 6, 10), false),
            ("6.6.11", "", (6, 6, 11), true),
            ("6.7.0-rc1", "", (6, 7, 0), true),
            ("6.12.9", "", (6, 12, 9), true),
            ("7.0.0-1-generic", "", (7, 0, 0), true),
        ] {
            let found = release(kernel, more);
            assert_eq!(found, Some(want), "{kernel}");
            let weakness = Machine { release: found, ..facts(kernel, &[]) }.weakness();
            assert_eq!(weakness.is_none(), fit, "{kernel}: {weakness:?}");
            let advice = "update the kernel to 6.1.72, 6.6.11 or 6.7";
            assert!(weakness.is_none_or(|weakness| weakness.contains(advice)), "{kernel}");
        }
        assert_eq!(Machine { release: release("?", ""), ..facts("?", &[]) }.weakness(), None);
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
