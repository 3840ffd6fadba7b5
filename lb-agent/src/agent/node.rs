//! What happens on this node itself: devices come, go and change their role, addresses are added and removed.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_common::addr::Addr;
use lb_common::config;
use lb_common::endpoint::{Dev, DevFlags, IdentFlags, PodEntry};
use lb_common::past::StackReason;
use tracing::{debug, error, info, warn};

use crate::agent::Agent;
use crate::agent::attacher::Attached;
use crate::agent::attachments::Attachment;
use crate::agent::bindings::{BindingFacts, BindingTime, Bindings};
use crate::agent::host_rules;
use crate::agent::kernel::Kernel;
use crate::agent::pods;
use crate::agent::report::PastFacts;
use crate::observe::metrics::ChangeKind;
use lb_core::cluster::{self, Cluster, Name, Prefix};
use lb_core::host_rules::PodTraffic;
use lb_core::plan::policy::PodDevice as Known;
use lb_core::plan::{Actual, MapStore as _, Write};
use lb_kernel::bpf::attach::{AttachError, Role};
use lb_kernel::devices::bridge_netfilter::BridgeNetfilter;
use lb_kernel::devices::{self, Devices, Veth};

/// Time between two lists of all devices, in case a message was missed.
const RESYNC: Duration = Duration::from_secs(30);

/// `IdentFlags::*` of addresses that only their owner may send from.
const OTHERS: IdentFlags = IdentFlags::POD.with(IdentFlags::NODE).with(IdentFlags::LOCAL_NODE);

impl Agent {
    /// Attaches the programs for packets that leave the node, or removes them. Returns when they are in place, but waits half
    /// a second at most.
    pub(super) fn watch_departures(&mut self, departures: bool) {
        if self.departures == departures {
            return;
        }
        self.departures = departures;
        let since = Instant::now();
        let uplinks: Vec<_> = self.attachments.uplinks().collect();
        for (ifindex, layer) in uplinks {
            let role = Role::Uplink { layer, departures };
            self.attach(Attachment { ifindex, role, since });
        }
        if departures && !self.attacher.wait() {
            info!("not waiting any longer for the programs for packets that leave the node");
        }
    }

    /// Something happened to a device.
    pub(super) fn device(&mut self, event: devices::DeviceEvent) {
        self.housekeeping.touch();
        match event {
            devices::DeviceEvent::Appeared { ifindex, at } => {
                self.planner.appeared(ifindex);
                self.attach(Attachment { ifindex, role: Role::Pod, since: at });
                self.put_pod(ifindex);
                self.metrics.observe_programming(ChangeKind::Pod, at.elapsed());
            }
            devices::DeviceEvent::Changed(ifindex) => self.put_pod(ifindex),
            devices::DeviceEvent::Qdisc(ifindex) => {
                self.past.look(ifindex, self.mechanism);
                self.write_locals();
            }
            devices::DeviceEvent::Gone(ifindex) => {
                self.bindings.gone(ifindex);
                let plan = self.planner.plan_gone(ifindex);
                self.write(plan);
                self.detach(ifindex);
            }
            devices::DeviceEvent::Uplink { ifindex, layer: Some(layer), at } => {
                let role = Role::Uplink { layer, departures: self.departures };
                self.attach(Attachment { ifindex, role, since: at });
            }
            devices::DeviceEvent::Uplink { ifindex, layer: None, .. } => self.detach(ifindex),
            // The writes follow after all of them.
            devices::DeviceEvent::Host => {}
        }
    }

    /// The addresses of this host that others can dial, those that stand for the node first.
    fn host_addresses(&self) -> Vec<Addr> {
        let main = self.devices.node_addresses();
        let reachable = self.devices.host().reachable().filter(|ip| !is_link_local(ip));
        let mut seen = HashSet::new();
        let all = main.ip4.into_iter().chain(main.ip6).chain(reachable).map(Addr::from_ip);
        all.filter(|addr| seen.insert(*addr)).collect()
    }

    /// Takes note when Kubernetes calls other addresses this node's than at the last time.
    pub(super) fn follow_node(&mut self) {
        let node = self.cluster.this_node().map_or(&[][..], |node| &node.addresses);
        if self.addresses.is_news(node) {
            self.write_addresses();
        }
    }

    /// Brings the maps about this node's own addresses to what they should say.
    pub(super) fn write_addresses(&mut self) {
        // NodePorts, and whether a backend is a process of this host, depend on them.
        let event = cluster::Event::Host(self.host_addresses().into());
        self.dirty.merge(self.cluster.apply(event));
        let tunnels = self.devices.tunnel_ports().into_iter().collect();
        self.dirty.merge(self.cluster.apply(cluster::Event::Tunnels(tunnels)));
        self.write_devs();
        self.write_policies();
    }

    /// Brings the map about the devices that packets leave by to what it should say.
    pub(super) fn write_devs(&mut self) {
        let node = self.cluster.this_node().map_or(&[][..], |node| &node.addresses);
        let written = &self.planner.actual().devs;
        let had = |ifindex| {
            let dev = written.get(&ifindex);
            dev.is_some_and(|dev: &Dev| dev.flags.contains(DevFlags::HOP_OK))
        };
        let progress = self.attachments.uplink_progress();
        let past = |ifindex| self.past.may_hop(ifindex, &progress, had(ifindex));
        let devs = self.addresses.devs(&self.devices, node, past);
        let plan = self.planner.plan_devs(&devs);
        self.write(plan);
    }

    /// Finds out which Pod is behind which device, and writes the results except for groups.
    pub(super) fn bind(&mut self) {
        let Self { bindings, clock, devices, cluster, policies, addresses, planner, .. } = self;
        let veths: Vec<&Veth> = devices.veths().collect();
        let holder = |addr: &Addr| match policies.desired() {
            Some(desired) => desired.addrs.get(addr).map_or(IdentFlags::NONE, |known| known.flags),
            None => planner.actual().ident.get(addr).map_or(IdentFlags::NONE, |known| known.flags),
        };
        // The Pods of other nodes, where only their ranges are known.
        let ranges = policies.desired().map_or(&planner.actual().pod_ranges, |of| &of.pod_ranges);
        let in_ranges = |addr: &Addr| is_in(ranges, addr);
        let is_others = |addr: &Addr| {
            is_unowned(addr)
                || holder(addr).intersects(OTHERS)
                || in_ranges(addr)
                || cluster.pod_at(addr).is_some()
                || cluster.host_addrs().contains(addr)
                || cluster.is_of_service(addr)
        };
        let is_elsewhere = |addr: &Addr| {
            holder(addr).only(IdentFlags::POD | IdentFlags::HERE) == IdentFlags::POD
                || holder(addr) == IdentFlags::NONE && in_ranges(addr)
        };
        let view = BindingFacts {
            cluster,
            is_others: &is_others,
            is_elsewhere: &is_elsewhere,
            now: clock.now(),
        };
        let changed = bindings.update(&veths, &view);
        let behind: Vec<_> =
            veths.iter().map(|veth| (veth.ifindex, bindings.addresses(veth, &view))).collect();
        addresses.claim(devices, &behind);
        if !changed.is_empty() {
            // Before any map says so: a restart must not come to another result.
            if let Err(err) = bindings.save(&self.state_dir) {
                warn!(%err, dir = %self.state_dir.display(), "cannot save which Pod is behind which device; the agent has to identify Pods again after a restart");
            }
            self.housekeeping.touch();
        }
        self.follow_traffic();
        self.write_links();
        for ifindex in changed {
            self.put_pod(ifindex);
        }
    }

    /// Has the rules of the node judged for packets between Pods as they look now. Before any map says so.
    fn follow_traffic(&mut self) {
        let Self { devices, policies, addresses, planner, .. } = &*self;
        let is_pod =
            |flags: IdentFlags| flags.only(IdentFlags::POD | IdentFlags::HERE) == IdentFlags::POD;
        let written = planner.actual().ident.iter().filter(|(_, known)| is_pod(known.flags));
        let desired = policies.desired().into_iter().flat_map(|desired| &desired.addrs);
        let desired = desired.filter(|(_, known)| is_pod(known.flags)).map(|(addr, _)| addr);
        let known = written.map(|(addr, _)| addr).chain(desired).map(|addr| Prefix::host(*addr));
        let ranges = policies.desired().into_iter().flat_map(|desired| &desired.pod_ranges);
        let elsewhere = known.chain(ranges.chain(&planner.actual().pod_ranges).copied());
        let veths: Vec<&Veth> = devices.veths().collect();
        let own = addresses.idents();
        let written = planner.actual().ident.iter().map(|(addr, known)| (addr, known.flags));
        let desired = policies.desired().into_iter().flat_map(|desired| &desired.addrs);
        let known = written.chain(desired.map(|(addr, known)| (addr, known.flags)));
        let is_node = |(addr, flags): &(&Addr, IdentFlags)| {
            flags.contains(IdentFlags::NODE) && !own.contains_key(addr)
        };
        let traffic = PodTraffic {
            elsewhere: PodTraffic::ranges(elsewhere),
            nodes: known.filter(is_node).map(|(addr, _)| *addr).collect(),
            ..host_rules::traffic(&veths, own, devices)
        };
        self.host_rules.follow(&traffic);
        self.past.follow(traffic);
        self.write_past();
    }

    /// Brings the maps about what Pods can send from to what they should say.
    fn write_links(&mut self) {
        let Self { bindings, devices, cluster, links, sources, planner, .. } = self;
        let veths: Vec<&Veth> = devices.veths().collect();
        let far_ends: Vec<_> = veths.iter().map(|veth| bindings.far_end(veth)).collect();
        let node = devices.routed().map(|(_, uplink)| uplink.mac);
        let macs = links.want(&far_ends, node, &planner.actual().macs);
        let sources =
            cluster.synced().then(|| sources.want(&wanted_sources(&veths, bindings, cluster)));
        let plan = self.planner.plan_links(&macs);
        self.write(plan);
        if let Some(sources) = sources {
            let plan = self.planner.plan_pod_sources(sources);
            self.write(plan);
        }
        self.write_locals();
    }

    /// Brings the map that leads packets to Pods past the IP stack to what it should say.
    pub(super) fn write_locals(&mut self) {
        let veths: Vec<&Veth> = self.devices.veths().collect();
        let idents = self.addresses.idents();
        let is_annotated = |veth: &&&Veth| {
            let name = self.bindings.name(veth.ifindex);
            name.and_then(|name| self.cluster.pod(name)).is_some_and(|pod| pod.by_stack)
        };
        let annotated = veths.iter().filter(is_annotated).map(|veth| veth.ifindex).collect();
        let paths = self.past.paths(&veths, &self.attachments.progress(), idents, &annotated);
        let plan = self.planner.plan_locals(&paths);
        self.write(plan);
    }

    /// What `lbctl status` says about flows past the IP stack.
    pub(super) fn past_facts(&self) -> PastFacts<'_> {
        let actual = self.planner.actual();
        let ends = actual.locals.values().filter(|end| end.ifindex != 0);
        let mut by_reason = BTreeMap::new();
        for reason in ends.filter_map(|end| StackReason::among(end.flags.bits()).next()) {
            *by_reason.entry(reason).or_default() += 1;
        }
        let devs = actual.devs.iter().filter(|(_, dev)| dev.flags.contains(DevFlags::HOP_OK));
        PastFacts {
            settings: self.past.settings(),
            host_rule: self.past.host_rule(),
            hop_rule: self.past.hop_rule(),
            pods: actual.locals.values().filter(|end| end.ifindex != 0).count(),
            by_reason,
            hops: devs.map(|(ifindex, _)| self.devices.name(*ifindex)).collect(),
        }
    }

    fn attach(&mut self, attachment: Attachment) {
        self.attachments.begin(attachment);
        self.attacher.attach(attachment);
    }

    /// Forgets a device, unless it has another role now: then that one's programs take the place of the old ones.
    fn detach(&mut self, ifindex: u32) {
        if self.devices.veth(ifindex).is_some() || self.devices.uplink(ifindex).is_some() {
            return;
        }
        self.attachments.gone(ifindex);
        self.past.gone(ifindex);
        self.attacher.forget(ifindex);
        debug!(ifindex, "device removed");
    }

    /// Writes the element of a device, if it is news.
    fn put_pod(&mut self, ifindex: u32) {
        let Some(veth) = self.devices.veth(ifindex) else { return };
        let strict = self.policies.is_strict();
        let known = known(&self.bindings, veth, BridgeNetfilter::read(), self.clock.now(), strict);
        let desired = self.policies.desired();
        let plan = self.planner.plan_pod(desired, &known, self.pickup.until());
        if plan.writes.is_empty() {
            return;
        }
        let name = veth.name.clone();
        let applied = self.write(plan);
        match applied.failed.first() {
            None => debug!(ifindex, device = name, pod = ?known.device_part, "pod entry written"),
            Some((_, err)) => warn!(ifindex, device = name, %err, "cannot write the pod entry"),
        }
    }

    /// An attachment came to an end.
    pub(super) fn attached(&mut self, attached: Attached) {
        let Attached { ifindex, role, took, mechanism, result } = attached;
        self.housekeeping.touch();
        self.mechanism = mechanism.or(self.mechanism);
        let device = self.devices.name(ifindex);
        let result = match result {
            Ok(()) => {
                if role == Role::Pod {
                    self.metrics.ours.pod_ready.observe(took.as_secs_f64());
                }
                let pod = self.bindings.name(ifindex).map(tracing::field::display);
                let took_ms = took.as_secs_f64() * 1e3;
                info!(ifindex, device, role = role.name(), pod, took_ms, "attached");
                Ok(())
            }
            // Its end is announced, too, or it was already.
            Err(AttachError::Gone { .. }) => return,
            Err(err) => {
                error!(ifindex, device, role = role.name(), %err, "cannot attach programs, retrying");
                Err(err.to_string())
            }
        };
        if let Some(gap) = self.attachments.attached((ifindex, role), result, Instant::now()) {
            self.metrics.ours.attach_gap.inc_by(gap.as_secs_f64());
        }
        self.past.look(ifindex, self.mechanism);
        match role {
            Role::Pod => self.write_locals(),
            Role::Uplink { .. } => self.write_devs(),
        }
    }

    /// Asks for all devices; writes the entries that are missing.
    pub(super) fn resync_devices(&mut self) -> anyhow::Result<()> {
        self.next_resync = Instant::now() + RESYNC;
        for event in self.devices.resync().context("list network devices")? {
            self.device(event);
        }
        let known: Vec<u32> = self.devices.veths().map(|veth| veth.ifindex).collect();
        let uplinks = self.attachments.uplink_progress().attached;
        for ifindex in known.iter().chain(&uplinks) {
            self.past.look(*ifindex, self.mechanism);
        }
        self.write_addresses();
        for ifindex in known {
            self.put_pod(ifindex);
        }
        Ok(())
    }
}

/// Whether what an earlier run has written of a Pod's device is about this device.
pub(super) fn is_same(
    devices: &Devices,
    bindings: &Bindings,
    ifindex: u32,
    pod: &PodEntry,
) -> bool {
    // What is said by the inside is only good where nothing better is known.
    let inside = |veth: &Veth| veth.mac == [0; 6] || veth.mac == pod.mac;
    let veth = devices.veth(ifindex);
    veth.is_some_and(|veth| bindings.is_same(veth).unwrap_or_else(|| inside(veth)))
}

/// The Pods with an annotation that admits more sources, by their devices.
fn wanted_sources<'a>(
    veths: &[&Veth],
    bindings: &'a Bindings,
    cluster: &'a Cluster,
) -> Vec<(u32, &'a Name, &'a cluster::Pod)> {
    let of = |veth: &&Veth| {
        let name = bindings.name(veth.ifindex)?;
        Some((veth.ifindex, name, cluster.pod(name)?))
    };
    veths.iter().filter_map(of).filter(|(.., pod)| pod.sources.is_some()).collect()
}

/// A device as the planner sees it.
pub(super) fn known(
    bindings: &Bindings,
    veth: &Veth,
    netfilter: BridgeNetfilter,
    now: BindingTime,
    strict: bool,
) -> Known {
    let ifindex = veth.ifindex;
    let device_part = pods::device_part(veth, bindings.device_part(veth), netfilter);
    Known { ifindex, behind: bindings.behind(ifindex, now, strict), device_part }
}

/// Whether an address is in one of the ranges. Those of nodes do not overlap, so it is the last that begins before it.
fn is_in(ranges: &BTreeSet<Prefix>, addr: &Addr) -> bool {
    ranges.range(..=Prefix::host(*addr)).next_back().is_some_and(|range| range.contains(addr))
}

/// An address that no Pod is known by, whoever has bound it.
fn is_unowned(addr: &Addr) -> bool {
    let ip = addr.to_ip();
    let of_programs = [IpAddr::from(config::HAIRPIN4), IpAddr::from(config::HAIRPIN6)];
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || is_link_local(&ip)
        || of_programs.contains(&ip)
}

/// Removes what an earlier run left of devices that are gone meanwhile.
pub(super) fn clear_devices(
    kernel: &mut Kernel,
    devices: &Devices,
    actual: &mut Actual,
) -> anyhow::Result<()> {
    let is_pod = |ifindex: u32| devices.veth(ifindex).is_some();
    let has_role = |ifindex: u32| is_pod(ifindex) || devices.uplink(ifindex).is_some();
    let stale = kernel.hooks.remove_stale(has_role)?;
    let gone: Vec<u32> = actual.pods.keys().copied().filter(|ifindex| !is_pod(*ifindex)).collect();
    for write in gone.into_iter().map(|ifindex| Write::DeletePod { ifindex }) {
        kernel.maps.apply(&write)?;
        actual.record(&write);
    }
    if stale > 0 {
        info!(devices = stale, "removed the pins of removed devices");
    }
    Ok(())
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
