//! Other components that enforce policies or translate Services on this node, by the devices, pins and tables that they leave.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// A component: its name, the beginnings of names of its devices, its pins below the bpf file system, and what it does beside us.
struct Enforcer {
    name: &'static str,
    devices: &'static [&'static str],
    pins: &'static [&'static str],
    does: &'static str,
}

const KNOWN: [Enforcer; 4] = [
    Enforcer {
        name: "Cilium",
        devices: &["cilium_host", "cilium_net", "cilium_vxlan", "lxc_health"],
        pins: &["cilium", "tc/globals"],
        does: "enforces policies, and translates Services with kubeProxyReplacement",
    },
    Enforcer {
        name: "Calico",
        devices: &["vxlan.calico", "bpfin.cali", "bpfout.cali"],
        pins: &["calico"],
        does: "enforces policies unless only its CNI plugin is used",
    },
    Enforcer {
        name: "Antrea",
        devices: &["antrea-gw0"],
        pins: &[],
        does: "enforces policies, and translates Services with its proxy",
    },
    Enforcer {
        name: "kube-router",
        devices: &["kube-bridge", "kube-dummy-if"],
        pins: &[],
        does: "enforces policies, and translates Services unless it only routes",
    },
];
/// Where the bpf file system is; in a node debug Pod below `/host`.
const BPFFS: [&str; 2] = ["/sys/fs/bpf", "/host/sys/fs/bpf"];

/// Returns a sentence for each that is found.
pub fn find() -> Vec<String> {
    let devices: Vec<String> = fs::read_dir("/sys/class/net").map_or(Vec::new(), |entries| {
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    });
    let is_pinned = |pin: &str| BPFFS.iter().any(|root| Path::new(root).join(pin).exists());
    among(&devices, &is_pinned)
}

fn among(devices: &[String], is_pinned: &dyn Fn(&str) -> bool) -> Vec<String> {
    let found = KNOWN.iter().filter_map(|known| {
        let device =
            devices.iter().find(|name| known.devices.iter().any(|of| name.starts_with(of)));
        let sign = match device {
            Some(device) => format!("device {device}"),
            None => format!("pins {}", known.pins.iter().find(|pin| is_pinned(pin))?),
        };
        Some(format!("{} ({sign}) {}", known.name, known.does))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::among;

    #[test]
    fn enforcers_are_known_by_their_devices_and_pins() {
        let none = |_: &str| false;
        let devices =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        // Veths of Pods are also called `cali…` and `lxc…` where only the CNI plugin is of that maker.
        assert_eq!(among(&devices(&["lo", "eth0", "cali12", "lxc12"]), &none), [""; 0]);
        let found = among(&devices(&["cilium_net", "cilium_host"]), &none);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("Cilium (device cilium_net) enforces"), "{found:?}");
        let found = among(&devices(&["vxlan.calico", "antrea-gw0"]), &|pin| pin == "cilium");
        let names: Vec<_> = found.iter().filter_map(|it| it.split(' ').next()).collect();
        assert_eq!(names, ["Cilium", "Calico", "Antrea"]);
    }
}
