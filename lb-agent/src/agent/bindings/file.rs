//! The file of bindings: which Pod was behind which device outlives the agent, by the device's number and the MAC address of
//! the host's end, which the Pod cannot change. A reboot makes it void.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::{fs, io};

use lb_common::addr::Addr;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Bindings, Bound, BoundDevice, Standing};
use lb_core::cluster::Name;
use lb_kernel::devices::Veth;

/// Name of the file.
pub(crate) const FILE: &str = "bindings.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file: what of a device outlives the agent.
#[derive(Serialize, Deserialize)]
struct File {
    boot_id: String,
    devices: Vec<Saved>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    ifindex: u32,
    own_mac: [u8; 6],
    since: i64,
    until: i64,
    pod: Option<SavedPod>,
}

#[derive(Serialize, Deserialize)]
struct SavedPod {
    namespace: String,
    name: String,
    uid: u64,
    ips: Vec<IpAddr>,
    mac: [u8; 6],
}

impl Bindings {
    /// What an earlier run found out of the devices that are there still.
    pub(in crate::agent) fn take_over<'a>(
        dir: &Path,
        veths: impl Iterator<Item = &'a Veth>,
    ) -> Self {
        let mut found = match Self::read(dir) {
            Ok(found) => found,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(err) => {
                warn!(%err, "cannot read which Pod is behind which device; identifying Pods again");
                Self::default()
            }
        };
        let macs: BTreeMap<u32, [u8; 6]> = veths.map(|veth| (veth.ifindex, veth.own_mac)).collect();
        let gone =
            |(ifindex, device): &(&u32, &BoundDevice)| macs.get(ifindex) != Some(&device.own_mac);
        let gone: Vec<u32> =
            found.devices.iter().filter(gone).map(|(ifindex, _)| *ifindex).collect();
        gone.into_iter().for_each(|ifindex| found.gone(ifindex));
        found
    }

    fn read(dir: &Path) -> io::Result<Self> {
        let File { boot_id, devices } = serde_json::from_slice(&fs::read(dir.join(FILE))?)?;
        if boot_id != fs::read_to_string(BOOT_ID)?.trim() {
            return Ok(Self::default());
        }
        let device = |saved: Saved| {
            let Saved { ifindex, own_mac, since, until, pod } = saved;
            let bound = pod.map(|pod| Bound {
                pod: Name::new(pod.namespace, pod.name),
                uid: pod.uid,
                ips: pod.ips.into_iter().map(Addr::from_ip).collect(),
                mac: pod.mac,
            });
            let standing = if bound.is_some() { Standing::Pod } else { Standing::Unknown };
            let own = bound.as_ref().map_or_else(Box::default, |bound| bound.ips.clone());
            let (more, alien) = (BTreeSet::new(), false);
            (ifindex, BoundDevice { own_mac, since, until, bound, standing, own, more, alien })
        };
        let devices: BTreeMap<u32, BoundDevice> = devices.into_iter().map(device).collect();
        Ok(Self { begun: !devices.is_empty(), devices, ..Self::default() })
    }

    /// Writes the file; as a whole, so that a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(in crate::agent) fn save(&self, dir: &Path) -> io::Result<()> {
        let saved = |(ifindex, device): (&u32, &BoundDevice)| Saved {
            ifindex: *ifindex,
            own_mac: device.own_mac,
            since: device.since,
            until: device.until,
            pod: device.bound.as_ref().map(|bound| SavedPod {
                namespace: bound.pod.namespace.to_string(),
                name: bound.pod.name.to_string(),
                uid: bound.uid,
                ips: bound.ips.iter().map(Addr::to_ip).collect(),
                mac: bound.mac,
            }),
        };
        let boot_id = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let file = File { boot_id, devices: self.devices.iter().map(saved).collect() };
        let part = dir.join(format!("{FILE}.part"));
        fs::write(&part, serde_json::to_vec(&file)?)?;
        fs::rename(part, dir.join(FILE))
    }
}
