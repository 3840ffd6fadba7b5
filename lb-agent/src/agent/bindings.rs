//! Which Pod is behind which veth: Pods of the API server and the addresses in their network namespaces → one Pod for a
//! device, permanently.
//!
//! The first match holds until the device or the Pod is gone. A workload that changes addresses in its own network namespace
//! must not be able to select which Pod's policies apply to it. The matches are kept in a file of the state directory and
//! survive the agent. `revision` recognizes a match that was made with an outdated status, `alien` the devices that belong to
//! no Pod.
//!
//! Nothing here does I/O except for that file.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use lb_common::addr::Addr;
use tracing::info;

use crate::agent::links::FarEnd;
use lb_core::cluster::{Cluster, Kind, Name};
use lb_core::issue::{Issue, ObjectRef};
use lb_core::plan::policy::Behind;
use lb_kernel::devices::Veth;

pub(super) use self::clock::{BindingClock, BindingTime};
pub(crate) use self::file::FILE;

mod alien;
mod clock;
mod file;
mod revision;

/// Seconds that a device without a Pod waits for one. Then it is assumed to belong to no Pod.
const PATIENCE: i64 = 300;
/// One that was there before the agent: its Pod is known soon, if it has one.
const PATIENCE_AT_START: i64 = 60;
/// Seconds that a device may be older than its Pod: clocks differ.
const SKEW: i64 = 60;

/// All Pods' devices.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    devices: BTreeMap<u32, BoundDevice>,
    /// Pods whose device has gone, by their UIDs: one that is being deleted gets no other.
    left: BTreeMap<Name, u64>,
    issues: Vec<Issue>,
    begun: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct BoundDevice {
    /// MAC address of the host's end.
    own_mac: [u8; 6],
    /// When it appeared, in seconds since 1970.
    since: i64,
    /// Until when it may be that of a Pod that is awaited, in seconds of [`BindingTime::steady`].
    until: i64,
    bound: Option<Bound>,
    standing: Standing,
    /// Those addresses of its Pod that are not by now another's.
    own: Box<[Addr]>,
    /// Addresses configured in it beside those of its Pod that belong to no other Pod, node or Service.
    more: BTreeSet<Addr>,
    /// Whether its addresses show that no Pod is behind it.
    alien: bool,
}

/// The Pod that was found behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    pod: Name,
    uid: u64,
    ips: Box<[Addr]>,
    mac: [u8; 6],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Unknown,
    Pod,
    /// A second device of a Pod.
    Second,
    Impostor,
}

/// What the API server and the host say.
pub(super) struct BindingFacts<'a> {
    pub(super) cluster: &'a Cluster,
    /// Whether an address belongs to a Pod, node or Service, or must not be used as a source.
    pub(super) is_others: &'a dyn Fn(&Addr) -> bool,
    /// Whether an address in the status of a Pod of this node is rather that of a Pod of another one.
    pub(super) is_elsewhere: &'a dyn Fn(&Addr) -> bool,
    pub(super) now: BindingTime,
}

impl Bindings {
    /// Looks at all devices again. Returns those of which something is new.
    pub(super) fn update(&mut self, veths: &[&Veth], view: &BindingFacts<'_>) -> BTreeSet<u32> {
        let before = self.devices.clone();
        let patience = if self.begun { PATIENCE } else { PATIENCE_AT_START };
        self.begun = true;
        let is_there = |ifindex: &u32| veths.iter().any(|veth| veth.ifindex == *ifindex);
        let gone: Vec<u32> = before.keys().filter(|ifindex| !is_there(ifindex)).copied().collect();
        gone.into_iter().for_each(|ifindex| self.gone(ifindex));
        self.forget_left(view.cluster);
        for veth in veths {
            let device = self.devices.entry(veth.ifindex).or_insert_with(|| BoundDevice {
                own_mac: veth.own_mac,
                since: view.now.date,
                until: view.now.steady.saturating_add(patience),
                bound: None,
                standing: Standing::Unknown,
                own: Box::default(),
                more: BTreeSet::new(),
                alien: false,
            });
            device.own_mac = veth.own_mac;
            // An earlier agent may have started with another clock.
            device.until = device.until.min(view.now.steady.saturating_add(PATIENCE));
            device.follow(veth, view.cluster);
        }
        self.issues.clear();
        self.seconds(veths);
        self.revise(veths, view);
        self.bind(veths, view);
        self.seconds(veths);
        self.keep_own(view);
        self.share_out(veths, view);
        self.find_aliens(veths, view);
        let is_new = |(ifindex, device): (&u32, &BoundDevice)| {
            (before.get(ifindex) != Some(device)).then_some(*ifindex)
        };
        self.devices.iter().filter_map(is_new).collect()
    }

    /// Devices in the namespace of one whose Pod is known are that Pod's, too.
    fn seconds(&mut self, veths: &[&Veth]) {
        let mut of: HashMap<u32, Standing> = HashMap::new();
        for veth in veths {
            let standing = self.devices.get(&veth.ifindex).map(|device| device.standing);
            match standing {
                Some(Standing::Pod) => drop(of.insert(veth.nsid, Standing::Second)),
                Some(Standing::Impostor) => drop(of.entry(veth.nsid).or_insert(Standing::Impostor)),
                Some(Standing::Unknown | Standing::Second) | None => {}
            }
        }
        for veth in veths {
            if let Some(device) = self.devices.get_mut(&veth.ifindex)
                && device.standing == Standing::Unknown
                && let Some(standing) = of.get(&veth.nsid)
            {
                device.standing = *standing;
            }
        }
    }

    /// Finds the Pods of devices that have none.
    fn bind(&mut self, veths: &[&Veth], view: &BindingFacts<'_>) {
        let mut held = self.held();
        let mut claimants = self.claimants(veths, view.cluster);
        loop {
            let rank = |(veth, pods): &(&Veth, Vec<Name>)| {
                let free = pods.iter().filter(|pod| !held.contains_key(pod)).count();
                let device = self.devices.get(&veth.ifindex)?;
                let pod = pods.iter().find(|pod| !held.contains_key(pod))?;
                let created = view.cluster.pod(pod).and_then(|pod| pod.created);
                let older = created.is_some_and(|at| device.since.saturating_add(SKEW) < at.get());
                // Who can be but one Pod; who is not older than that; of those there at the start the youngest.
                Some((free, older, device.since, Reverse(veth.ifindex)))
            };
            let ranked = claimants.iter().enumerate();
            let ranked = ranked.filter_map(|(at, claimant)| Some((rank(claimant)?, at)));
            let Some((_, at)) = ranked.min() else { break };
            let (veth, pods) = claimants.swap_remove(at);
            let Some(name) = pods.into_iter().find(|pod| !held.contains_key(pod)) else { break };
            held.insert(name.clone(), veth.ifindex);
            let (Some(device), Some(pod)) =
                (self.devices.get_mut(&veth.ifindex), view.cluster.pod(&name))
            else {
                continue;
            };
            info!(ifindex = veth.ifindex, device = veth.name, pod = %name, "pod identified");
            let ips = pod.ips.clone();
            device.bound = Some(Bound { pod: name, uid: pod.uid, ips, mac: veth.mac });
            device.standing = Standing::Pod;
        }
        for (veth, pods) in claimants {
            let Some(name) = pods.first() else { continue };
            if let Some(device) = self.devices.get_mut(&veth.ifindex) {
                device.standing = Standing::Impostor;
            }
            let first =
                held.get(name).and_then(|first| veths.iter().find(|of| of.ifindex == *first));
            let first = first.map_or("another device", |first| first.name.as_str());
            let message = format!(
                "the Pod is behind {first}, but one of its addresses is also bound behind {}: traffic of that device is denied while any policy exists",
                veth.name
            );
            self.issues.push(Issue::new(ObjectRef::new("Pod", name), "status.podIPs", message));
        }
    }

    /// Which device each Pod is behind.
    fn held(&self) -> HashMap<Name, u32> {
        let held = self.devices.iter().filter(|(_, device)| device.standing == Standing::Pod);
        let held =
            held.filter_map(|(ifindex, of)| Some((of.bound.as_ref()?.pod.clone(), *ifindex)));
        held.collect()
    }

    /// The devices without a Pod, one of each namespace, and whose addresses are bound in them.
    fn claimants<'a>(&self, veths: &[&'a Veth], cluster: &Cluster) -> Vec<(&'a Veth, Vec<Name>)> {
        let is_unknown = |veth: &&&Veth| {
            let device = self.devices.get(&veth.ifindex);
            device.is_some_and(|device| device.standing == Standing::Unknown)
        };
        let mut chosen: BTreeMap<u32, (bool, u32, &'a Veth, Vec<Name>)> = BTreeMap::new();
        for veth in veths.iter().filter(is_unknown) {
            let mut names: Vec<Name> = Vec::new();
            let at = veth.inside.iter().filter(|address| address.device == veth.peer);
            let elsewhere = veth.inside.iter().filter(|address| address.device != veth.peer);
            for address in at.chain(elsewhere) {
                if let Some(name) = self.pod_at(&Addr::from_ip(address.ip), cluster)
                    && !names.contains(name)
                {
                    names.push(name.clone());
                }
            }
            let is_pods = |ip: &IpAddr| self.pod_at(&Addr::from_ip(*ip), cluster).is_some();
            let own = veth.inside.iter().any(|of| of.device == veth.peer && is_pods(&of.ip));
            // The device that has the address itself; else the first, as for an address on a bridge inside.
            let rank = (!own, veth.peer);
            if !names.is_empty()
                && chosen.get(&veth.nsid).is_none_or(|(not, peer, ..)| rank < (*not, *peer))
            {
                chosen.insert(veth.nsid, (!own, veth.peer, veth, names));
            }
        }
        chosen.into_values().map(|(_, _, veth, names)| (veth, names)).collect()
    }

    /// Whose the other addresses are that are bound in the namespaces. Who had one before keeps it.
    fn share_out(&mut self, veths: &[&Veth], view: &BindingFacts<'_>) {
        let pods_synced = view.cluster.is_synced(Kind::Pod);
        let ranges: Vec<_> = view.cluster.pod_ranges().copied().collect();
        let in_ranges = |addr: &Addr| ranges.is_empty() || ranges.iter().any(|r| r.contains(addr));
        let peers: HashSet<(u32, u32)> = veths.iter().map(|veth| (veth.nsid, veth.peer)).collect();
        let mut wanted: Vec<(bool, u32, Addr)> = Vec::new();
        for veth in veths {
            let Some(device) = self.devices.get(&veth.ifindex) else { continue };
            let own = device.bound.as_ref().map_or(&[][..], |bound| &bound.ips);
            let mut foreign = None;
            for inside in &veth.inside {
                let addr = Addr::from_ip(inside.ip);
                let is_its = inside.device == veth.peer
                    || (device.standing == Standing::Pod
                        && !peers.contains(&(veth.nsid, inside.device)));
                if !is_its || own.contains(&addr) {
                    continue;
                }
                let others = (view.is_others)(&addr) && !self.is_left(&addr, view.cluster);
                if others && !inside.ip.is_loopback() {
                    foreign = foreign.or(Some(inside.ip));
                }
                let takes = match device.standing {
                    Standing::Pod => pods_synced && in_ranges(&addr),
                    Standing::Unknown | Standing::Second => true,
                    Standing::Impostor => false,
                };
                if takes && !others {
                    wanted.push((!device.more.contains(&addr), veth.ifindex, addr));
                }
            }
            if let (Standing::Pod, Some(bound), Some(ip)) =
                (device.standing, &device.bound, foreign)
            {
                let message = format!(
                    "changed its addresses: {ip}, which is bound in its network namespace, belongs to another Pod or node; policies still evaluate it as this Pod, and it cannot send from that address"
                );
                let object = ObjectRef::new("Pod", &bound.pod);
                self.issues.push(Issue::new(object, "status.podIPs", message));
            }
        }
        wanted.sort_unstable();
        let mut taken: HashMap<Addr, u32> = HashMap::new();
        for (_, ifindex, addr) in wanted {
            taken.entry(addr).or_insert(ifindex);
        }
        self.devices.values_mut().for_each(|device| device.more.clear());
        for (addr, ifindex) in taken {
            if let Some(device) = self.devices.get_mut(&ifindex) {
                device.more.insert(addr);
            }
        }
    }

    /// Which addresses of its Pod each device still has: not those that another Pod has by now.
    fn keep_own(&mut self, view: &BindingFacts<'_>) {
        let pods_synced = view.cluster.is_synced(Kind::Pod);
        for device in self.devices.values_mut() {
            let Some(bound) = &device.bound else {
                device.own = Box::default();
                continue;
            };
            let is_its = |addr: &&Addr| {
                let owner = view.cluster.pod_at(addr).filter(|_| pods_synced);
                !(view.is_elsewhere)(addr) && owner.is_none_or(|owner| *owner == bound.pod)
            };
            device.own = bound.ips.iter().filter(is_its).copied().collect();
        }
    }

    /// The addresses that lie behind a device, and whether those that an earlier run found are still there: before the
    /// Pods have been told.
    pub(super) fn addresses(&self, veth: &Veth, view: &BindingFacts<'_>) -> (Vec<Addr>, bool) {
        let Some(device) = self.devices.get(&veth.ifindex) else { return (Vec::new(), true) };
        let pods_synced = view.cluster.is_synced(Kind::Pod);
        if device.standing == Standing::Impostor {
            return (Vec::new(), false);
        }
        (device.own.iter().chain(&device.more).copied().collect(), !pods_synced)
    }

    /// The first address in each family that the Pod behind a device is known by, and its MAC address.
    pub(super) fn device_part(&self, veth: &Veth) -> ([Addr; 2], [u8; 6]) {
        let device = self.devices.get(&veth.ifindex);
        let first = |list: &[Addr]| {
            let of = |v4: bool| list.iter().find(|addr| addr.is_v4() == v4).copied();
            [of(true), of(false)].map(|addr| addr.unwrap_or(Addr::NONE))
        };
        let known = device.filter(|device| device.standing == Standing::Pod);
        if let Some(bound) = known.and_then(|device| device.bound.as_ref()) {
            let mac = if bound.mac == [0; 6] { veth.mac } else { bound.mac };
            return (known.map_or([Addr::NONE; 2], |device| first(&device.own)), mac);
        }
        let main = [veth.addresses.ip4, veth.addresses.ip6].into_iter().flatten();
        let main = main.map(Addr::from_ip);
        let its = main.filter(|addr| device.is_some_and(|device| device.more.contains(addr)));
        (first(&Vec::from_iter(its)), veth.mac)
    }

    /// The far end of a device, with the link-layer address that its Pod is known by.
    pub(super) fn far_end<'a>(&'a self, veth: &Veth) -> FarEnd<'a> {
        let (_, mac) = self.device_part(veth);
        let since = self.devices.get(&veth.ifindex).map(|device| device.since);
        let pod = self.name(veth.ifindex).zip(since);
        FarEnd { ifindex: veth.ifindex, bridged: veth.bridge != 0, mac, pod }
    }

    /// Returns which Pod is behind a device. `strict`: a device waits for a Pod unless it is known to have none.
    pub(super) fn behind(&self, ifindex: u32, now: BindingTime, strict: bool) -> Behind {
        let Some(device) = self.devices.get(&ifindex) else { return Behind::Unknown(now.date) };
        match (device.standing, &device.bound) {
            (Standing::Impostor, _) => Behind::Impostor,
            (_, Some(bound)) => Behind::Pod(bound.pod.clone(), bound.uid),
            (Standing::Second, _) => Behind::NoPod,
            (Standing::Unknown | Standing::Pod, None)
                if strict || (now.steady < device.until && !device.alien) =>
            {
                Behind::Unknown(device.since)
            }
            (Standing::Unknown | Standing::Pod, None) => Behind::NoPod,
        }
    }

    /// The Pod behind a device.
    pub(super) fn name(&self, ifindex: u32) -> Option<&Name> {
        let device = self.devices.get(&ifindex)?;
        let bound = device.bound.as_ref()?;
        (device.standing == Standing::Pod).then_some(&bound.pod)
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        if let Some(device) = self.devices.remove(&ifindex)
            && let (Standing::Pod, Some(bound)) = (device.standing, device.bound)
        {
            self.left.insert(bound.pod, bound.uid);
        }
    }

    /// Whether this is the device that an earlier run knew; `None` when it knew none by that number.
    pub(super) fn is_same(&self, veth: &Veth) -> Option<bool> {
        self.devices.get(&veth.ifindex).map(|device| device.own_mac == veth.own_mac)
    }

    /// Who claims what he is not.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }
}

impl BoundDevice {
    /// What happened to the Pod behind it.
    fn follow(&mut self, veth: &Veth, cluster: &Cluster) {
        let Some(bound) = &mut self.bound else {
            self.standing = Standing::Unknown;
            return;
        };
        self.standing = Standing::Pod;
        if bound.mac == [0; 6] {
            bound.mac = veth.mac;
        }
        if !cluster.is_synced(Kind::Pod) {
            return;
        }
        let pod = cluster
            .pod(&bound.pod)
            .filter(|pod| pod.uid == bound.uid && cluster.is_own(pod) && !pod.host_network);
        match pod {
            Some(pod) if pod.ips.is_empty() || pod.ips == bound.ips => {}
            Some(pod) if pod.ips.iter().any(|ip| bound.ips.contains(ip)) => {
                bound.ips = pod.ips.clone();
            }
            // The Pod is gone, or has another device. No other Pod gets this device from now on.
            Some(_) => self.standing = Standing::Impostor,
            None if bound.uid != 0 => self.standing = Standing::Impostor,
            // From manifests, where a Pod may be called otherwise at any time.
            None => {
                self.bound = None;
                self.standing = Standing::Unknown;
            }
        }
    }
}

#[cfg(test)]
mod tests;
