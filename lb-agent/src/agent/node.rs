//! What happens on this node itself: devices come, go and change their role, addresses are added and removed.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_common::addr::Addr;
use tracing::{debug, error, info, warn};

use crate::agent::Agent;
use crate::agent::attacher::Attached;
use crate::agent::attachments::Attachment;
use crate::agent::kernel::Kernel;
use crate::bpf::attach::{AttachError, Role};
use crate::cluster;
use crate::devices::bridge_netfilter::BridgeNetfilter;
use crate::devices::{self, Devices};
use crate::observe::metrics::Subject;

/// All devices are asked for again so often, in case a message was missed.
const RESYNC: Duration = Duration::from_secs(30);

impl Agent {
    /// Brings the programs to the answers of host processes, or takes them off.
    pub(super) fn set_host_backends(&mut self, host_backends: bool) {
        if self.host_backends == host_backends {
            return;
        }
        self.host_backends = host_backends;
        let since = Instant::now();
        let uplinks: Vec<_> = self.attachments.uplinks().collect();
        for (ifindex, layer) in uplinks {
            let role = Role::Uplink { layer, host_backends };
            self.attach(Attachment { ifindex, role, since });
        }
    }

    /// Something happened to a device.
    pub(super) fn device(&mut self, event: devices::Event) {
        self.housekeeping.touch();
        match event {
            devices::Event::Appeared { ifindex, at } => {
                self.pods.appeared(ifindex);
                self.attach(Attachment { ifindex, role: Role::Pod, since: at });
                self.put_pod(ifindex);
                self.metrics.observe_programming(Subject::Pod, at.elapsed());
            }
            devices::Event::Changed(ifindex) => self.put_pod(ifindex),
            devices::Event::Gone(ifindex) => {
                self.pods.gone(ifindex);
                self.policies.gone(ifindex);
                if let Err(err) = self.tables.delete_pod(ifindex) {
                    warn!(ifindex, %err, "entry of a device that is gone stays");
                }
                self.detach(ifindex);
            }
            devices::Event::Uplink { ifindex, layer: Some(layer), at } => {
                let role = Role::Uplink { layer, host_backends: self.host_backends };
                self.attach(Attachment { ifindex, role, since: at });
            }
            devices::Event::Uplink { ifindex, layer: None, .. } => self.detach(ifindex),
            // All of them together are followed by the writes that come of it.
            devices::Event::Host => {}
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
        let node = self.cluster.this_node().map_or(&[][..], |node| &node.addresses);
        self.addresses.update(&self.devices, node);
        self.write_policies();
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
        self.attacher.forget(ifindex);
        debug!(ifindex, "device gone");
    }

    /// Writes the entry of a device, if it is news.
    fn put_pod(&mut self, ifindex: u32) {
        let Some(veth) = self.devices.veth(ifindex) else { return };
        let groups = self.policies.groups_of(veth);
        let Some(pod) = self.pods.entry(veth, BridgeNetfilter::read(), groups) else { return };
        match self.tables.put_pod(ifindex, &pod) {
            Ok(()) => {
                debug!(ifindex, device = veth.name, ip4 = %pod.ip4, ip6 = %pod.ip6, "pod known");
                self.pods.wrote(ifindex, pod);
            }
            // The next resync tries again.
            Err(err) => warn!(ifindex, device = veth.name, %err, "pod not written"),
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
                info!(ifindex, device, ?role, took_ms = took.as_secs_f64() * 1e3, "attached");
                Ok(())
            }
            // Its end is announced, too, or it was already.
            Err(AttachError::Gone { .. }) => return,
            Err(err) => {
                error!(ifindex, device, ?role, %err, "not attached, trying again");
                Err(err.to_string())
            }
        };
        if let Some(gap) = self.attachments.attached((ifindex, role), result, Instant::now()) {
            self.metrics.ours.attach_gap.inc_by(gap.as_secs_f64());
        }
    }

    /// Asks for all devices; writes the entries that are missing.
    pub(super) fn resync_devices(&mut self) -> anyhow::Result<()> {
        self.next_resync = Instant::now() + RESYNC;
        for event in self.devices.resync().context("list network devices")? {
            self.device(event);
        }
        self.write_addresses();
        let known: Vec<u32> = self.devices.veths().map(|veth| veth.ifindex).collect();
        for ifindex in known {
            self.put_pod(ifindex);
        }
        Ok(())
    }
}

/// Removes what an earlier run left of devices that are gone meanwhile.
pub(super) fn clear_devices(kernel: &mut Kernel, devices: &Devices) -> anyhow::Result<()> {
    let is_pod = |ifindex: u32| devices.veth(ifindex).is_some();
    let has_role = |ifindex: u32| is_pod(ifindex) || devices.uplink(ifindex).is_some();
    let stale = kernel.hooks.remove_stale(has_role)?;
    let keys: Vec<u32> = kernel.tables.pods.keys().collect::<Result<_, _>>()?;
    for ifindex in keys.into_iter().filter(|ifindex| !is_pod(*ifindex)) {
        kernel.tables.delete_pod(ifindex)?;
    }
    if stale > 0 {
        info!(devices = stale, "removed pins of devices that are gone");
    }
    Ok(())
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
