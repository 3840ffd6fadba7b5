//! Which devices of this node are Pods' veths, which addresses lie behind them, which other devices there are and
//! which addresses they have: from the host's network namespace alone, so it does not depend on the CNI's names, its
//! state or a container runtime.
//!
//! ```text
//! RTM_NEWLINK, kind veth, IFLA_LINK_NETNSID present   the other end is in another namespace: a Pod's veth
//! RTM_GETADDR with IFA_TARGET_NETNSID                 the addresses of the other end
//! RTM_NEWADDR                                         an address of this host
//! ```
//! A veth whose ends are both here (a bridge's uplink, a CNI's helper pair) does not belong to a Pod, nor does one with a
//! network of its own: on nodes that are containers themselves, the uplink is a veth, too. Addresses inside a Pod
//! are not announced to us, and the CNI sets them a little after the device: they are polled with backoff.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod bridge_netfilter;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod polls;
pub mod qdisc;
pub mod reverse_path;
pub mod uplinks;
mod veths;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use libc::{RTM_DELADDR, RTM_DELLINK, RTM_DELQDISC, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWQDISC};
use netlink_sys::protocols::NETLINK_ROUTE;

use self::addresses::{Address, AddressPair, HostAddresses};
use self::link::Link;
use self::netlink::{Monitor, NetlinkClient};
use self::polls::Polls;
use self::uplinks::{Layer, Uplink, Uplinks};
use self::veths::KnownVeths;
pub use self::veths::{BridgePort, FarDevice, Veth};

/// `RTNLGRP_LINK`, `RTNLGRP_TC`, `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`.
const GROUPS: [u32; 4] = [1, 4, 5, 9];

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A Pod's veth is new, or its other end moved to another namespace.
    Appeared {
        /// ifindex of the host's end.
        ifindex: u32,
        /// When the kernel's message was read.
        at: Instant,
    },
    /// Something else about a Pod's veth became known: addresses, the bridge.
    Changed(u32),
    /// A Pod's veth got or lost a qdisc.
    Qdisc(u32),
    /// A Pod's veth is gone, or no longer a Pod's.
    Gone(u32),
    /// A device that does not belong to a Pod must be attached to in another way.
    Uplink {
        /// Its ifindex.
        ifindex: u32,
        /// How; `None`: not at all any more, or it is gone.
        layer: Option<Layer>,
        /// When the kernel's message was read.
        at: Instant,
    },
    /// The addresses of this host or the ports of its tunnels changed, or name or MTU of a device that does not belong to a Pod.
    Host,
}

/// A message of the kernel, as far as it is of interest.
enum Message {
    Link(u16, Link),
    Address(u16, Address),
    Qdisc(u32),
}

/// Follows the devices of the network namespace it was opened in.
pub struct Devices {
    monitor: Monitor,
    client: NetlinkClient,
    known: KnownVeths,
    polls: Polls,
    uplinks: Uplinks,
    host: HostAddresses,
    /// UDP ports of tunnels by device.
    tunnels: BTreeMap<u32, u16>,
}

impl Devices {
    /// Subscribes to the kernel's messages. Nothing is known before the first [`Self::resync`]. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the sockets.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            monitor: Monitor::open(NETLINK_ROUTE, &GROUPS)?,
            client: NetlinkClient::open(NETLINK_ROUTE)?,
            known: KnownVeths::default(),
            polls: Polls::default(),
            uplinks: Uplinks::default(),
            host: HostAddresses::default(),
            tunnels: BTreeMap::new(),
        })
    }

    /// One Pod's veth.
    pub fn veth(&self, ifindex: u32) -> Option<&Veth> {
        self.known.veths.get(&ifindex)
    }

    /// All Pods' veths.
    pub fn veths(&self) -> impl Iterator<Item = &Veth> {
        self.known.veths.values()
    }

    /// Returns how to attach to a device that does not belong to a Pod; `None` if it must not be attached to.
    pub fn uplink(&self, ifindex: u32) -> Option<Layer> {
        self.uplinks.layer(ifindex)
    }

    /// The devices by which packets leave for other machines: all that are neither Pods' nor ports of others.
    pub fn routed(&self) -> impl Iterator<Item = (u32, &Uplink)> {
        self.uplinks.routed()
    }

    /// Those of them that lead to other machines: no bridge of Pods, and none without any port, as container runtimes make them.
    pub fn outward(&self) -> impl Iterator<Item = (u32, &Uplink)> {
        let pod_bridges = self.pod_bridges();
        let is_outward = move |ifindex: &u32| !pod_bridges.contains(ifindex);
        self.uplinks.leading_out().filter(move |(ifindex, _)| is_outward(ifindex))
    }

    /// Bridges that have Pods' veths as ports.
    pub fn pod_bridges(&self) -> BTreeSet<u32> {
        self.known.bridges()
    }

    /// Name of a device, empty when it is not known.
    pub fn name(&self, ifindex: u32) -> &str {
        let veth = self.veth(ifindex).map(|veth| veth.name.as_str());
        veth.or_else(|| self.uplinks.get(ifindex).map(|uplink| uplink.name.as_str())).unwrap_or("")
    }

    /// The addresses of this host.
    pub fn host(&self) -> &HostAddresses {
        &self.host
    }

    /// UDP ports at which this host takes packets out of tunnels.
    pub fn tunnel_ports(&self) -> BTreeSet<u16> {
        self.tunnels.values().copied().collect()
    }

    /// The first address in each family that can stand for this node.
    pub fn node_addresses(&self) -> AddressPair {
        let devices = self.uplinks.standing_for_node();
        devices.fold(AddressPair::default(), |found, ifindex| found.or(self.host.main(ifindex)))
    }

    /// Asks for all devices, their addresses and those behind Pods', and tells what differs from what was known.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resync(&mut self) -> io::Result<Vec<DeviceEvent>> {
        let at = Instant::now();
        let links = link::all(&mut self.client)?;
        // Before the links: a veth's own addresses tell whether it is an uplink.
        let mut host_changed = !self.host.replace(addresses::all(&mut self.client)?).is_empty();
        let mut events = Vec::new();
        self.uplinks.retain(|ifindex| links.iter().any(|link| link.ifindex == ifindex));
        let known = self.tunnels.len();
        self.tunnels.retain(|ifindex, _| links.iter().any(|link| link.ifindex == *ifindex));
        host_changed |= self.tunnels.len() < known;
        let gone: Vec<u32> = self
            .known
            .veths
            .keys()
            .filter(|ifindex| !links.iter().any(|link| link.ifindex == **ifindex))
            .copied()
            .collect();
        for ifindex in gone {
            self.forget(ifindex, &mut events);
        }
        self.known.begin_again();
        for link in links {
            host_changed |= self.take(link, at, &mut events);
        }
        for ifindex in self.known.veths.keys().copied().collect::<Vec<_>>() {
            if self.look_inside(ifindex) {
                events.push(DeviceEvent::Changed(ifindex));
            }
        }
        self.settle(host_changed, at, &mut events);
        Ok(events)
    }

    /// Waits until something happens. Safe to cancel. When the kernel reports that messages were lost, everything is
    /// asked for again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn next(&mut self) -> io::Result<Vec<DeviceEvent>> {
        let mut news = Vec::new();
        let due = self.polls.next();
        let Self { monitor, .. } = self;
        let received = tokio::select! {
            received = monitor.receive(|message_type, payload| {
                news.extend(read(message_type, payload));
            }) => Some(received),
            () = sleep_until(due) => None,
        };
        let mut events = Vec::new();
        match received {
            None => {
                for ifindex in self.polls.take(Instant::now()) {
                    if self.look_inside(ifindex) {
                        events.push(DeviceEvent::Changed(ifindex));
                    }
                }
            }
            Some(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::warn!("the kernel dropped device messages, listing all devices again");
                return self.resync();
            }
            Some(Err(e)) => return Err(e),
            Some(Ok(())) => self.process(news, &mut events)?,
        }
        Ok(events)
    }

    fn process(&mut self, news: Vec<Message>, events: &mut Vec<DeviceEvent>) -> io::Result<()> {
        let at = Instant::now();
        let mut host_changed = false;
        // Devices whose addresses changed: that may make an uplink of what looked like a Pod's veth.
        let mut touched = BTreeSet::new();
        for message in news {
            match message {
                Message::Link(RTM_NEWLINK, link) => host_changed |= self.take(link, at, events),
                Message::Link(_, link) => {
                    host_changed |= self.uplinks.remove(link.ifindex);
                    host_changed |= self.tunnels.remove(&link.ifindex).is_some();
                    self.left(link.ifindex, at, events)?;
                }
                Message::Qdisc(ifindex) => {
                    let is_pod = self.veth(ifindex).is_some();
                    events.extend(is_pod.then_some(DeviceEvent::Qdisc(ifindex)));
                }
                Message::Address(message_type, address) => {
                    let news = match message_type {
                        RTM_NEWADDR => self.host.put(address),
                        _ => self.host.remove(&address),
                    };
                    if news {
                        host_changed = true;
                        touched.insert(address.ifindex);
                    }
                }
            }
        }
        for ifindex in touched {
            if self.veth(ifindex).is_some() != self.host.has_network(ifindex) {
                continue;
            }
            if let Some(link) = link::one(&mut self.client, ifindex)? {
                host_changed |= self.take(link, at, events);
            }
        }
        self.settle(host_changed, at, events);
        Ok(())
    }

    /// Returns the events of devices that do not belong to Pods, after all messages were read.
    fn settle(&mut self, host_changed: bool, at: Instant, events: &mut Vec<DeviceEvent>) {
        let pod_bridges = self.known.bridges();
        for (ifindex, layer) in self.uplinks.changes(&pod_bridges) {
            events.push(DeviceEvent::Uplink { ifindex, layer, at });
        }
        if host_changed {
            events.push(DeviceEvent::Host);
        }
    }

    /// Records a device. Returns `true` if it does not belong to a Pod and is new or has changed.
    fn take(&mut self, mut link: Link, at: Instant, events: &mut Vec<DeviceEvent>) -> bool {
        let before = match link.tunnel_port {
            0 => self.tunnels.remove(&link.ifindex),
            port => self.tunnels.insert(link.ifindex, port),
        };
        let other_tunnel = before.unwrap_or(0) != link.tunnel_port;
        let is_veth = link.kind == "veth";
        if is_veth && link.nsid.is_some() && self.host.has_network(link.ifindex) {
            // As good as a veth with both ends here: not a Pod's.
            link.nsid = None;
        }
        // Without a far end: its Pod goes, and it is next.
        let is_dying = is_veth && link.nsid.is_none() && link.peer == 0;
        let news = if is_dying || (is_veth && link.nsid.is_some()) {
            self.uplinks.remove(link.ifindex)
        } else {
            self.uplinks.put(&link)
        };
        match self.known.link(link, at) {
            Some(event @ DeviceEvent::Appeared { ifindex, .. }) => {
                self.polls.start(ifindex, at);
                events.push(event);
            }
            Some(event @ DeviceEvent::Gone(ifindex)) => {
                self.polls.stop(ifindex);
                events.push(event);
            }
            Some(event) => events.push(event),
            None => {}
        }
        news || other_tunnel
    }

    fn left(&mut self, ifindex: u32, at: Instant, events: &mut Vec<DeviceEvent>) -> io::Result<()> {
        if let Some(other) = self.forget(ifindex, events)
            && let Some(link) = link::one(&mut self.client, other)?
        {
            self.take(link, at, events);
        }
        Ok(())
    }

    fn forget(&mut self, ifindex: u32, events: &mut Vec<DeviceEvent>) -> Option<u32> {
        self.polls.stop(ifindex);
        let (event, other) = self.known.gone(ifindex);
        events.extend(event);
        other
    }

    /// Looks at the Pod's end of a veth. `true` when something is new.
    fn look_inside(&mut self, ifindex: u32) -> bool {
        let Some(Veth { nsid, peer, .. }) = self.known.veths.get(&ifindex) else { return false };
        let (nsid, peer) = (*nsid, *peer);
        let seen = link::one_in(&mut self.client, nsid, peer)
            .and_then(|link| Ok((link, addresses::inside(&mut self.client, nsid)?)));
        match seen {
            Ok((link, inside)) => {
                if !inside.is_empty() {
                    self.polls.found(ifindex, Instant::now());
                }
                self.known.inside(ifindex, &link.unwrap_or_default(), inside)
            }
            Err(e) => {
                // The Pod may just be going; its device will tell. Polls and the next resync ask again.
                tracing::debug!(ifindex, nsid, err = %e, "cannot read the addresses behind the device");
                false
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn read(message_type: u16, payload: &[u8]) -> Option<Message> {
    match message_type {
        RTM_NEWLINK | RTM_DELLINK => {
            link::parse_link(payload).map(|link| Message::Link(message_type, link))
        }
        RTM_NEWADDR | RTM_DELADDR => {
            Address::parse(payload).map(|address| Message::Address(message_type, address))
        }
        RTM_NEWQDISC | RTM_DELQDISC => qdisc::device(payload).map(Message::Qdisc),
        _ => None,
    }
}
