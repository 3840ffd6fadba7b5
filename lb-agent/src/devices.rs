//! Which devices of this node are Pods' veths, and which addresses lie behind them: from the host's network
//! namespace alone, so it does not depend on the CNI's names, its state or a container runtime.
//!
//! ```text
//! RTM_NEWLINK, kind veth, IFLA_LINK_NETNSID present   the other end is in another namespace: a Pod's veth
//! RTM_GETADDR with IFA_TARGET_NETNSID                 the addresses of the other end
//! ```
//! A veth whose ends are both here (a bridge's uplink, a CNI's helper pair) is left alone, and so is one with a network
//! of its own: on nodes that are containers themselves, the uplink is a veth, too. Addresses inside a Pod
//! are not announced to us, and the CNI sets them a little after the device: they are polled with backoff.
#![forbid(unsafe_code)]

pub mod bridge_netfilter;
pub mod link;
pub mod netlink;
pub mod polls;
pub mod qdisc;

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use netlink_sys::protocols::NETLINK_ROUTE;

use self::link::{Addresses, Link, RTM_DELLINK, RTM_NEWLINK};
use self::netlink::{Client, Monitor};
use self::polls::Polls;

/// `RTNLGRP_LINK`.
const GROUP_LINK: u32 = 1;

/// A Pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// ifindex of the host's end.
    pub ifindex: u32,
    /// Name of the host's end.
    pub name: String,
    /// ifindex of the Pod's end, in its namespace.
    pub peer: u32,
    /// The Pod's namespace as ours numbers it.
    pub nsid: u32,
    /// ifindex of the bridge that the host's end is a port of, or 0.
    pub bridge: u32,
    /// MAC address of the Pod's end; zero until known.
    pub mac: [u8; 6],
    /// The Pod's addresses, as far as known.
    pub addresses: Addresses,
}

/// What happened to a Pod's veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new, or its other end moved to another namespace.
    Appeared {
        /// ifindex of the host's end.
        ifindex: u32,
        /// When the kernel's message was read.
        at: Instant,
    },
    /// Something else about it became known: addresses, the bridge.
    Changed(u32),
    /// It is gone, or no longer a Pod's.
    Gone(u32),
}

/// Veths as known so far. Pure: messages in, events out.
#[derive(Debug, Default)]
struct Known {
    veths: BTreeMap<u32, Veth>,
    /// Host's end → other end, of veths that have both ends here.
    inner: BTreeMap<u32, u32>,
}

impl Known {
    /// A device exists as described.
    fn link(&mut self, link: Link, at: Instant) -> Option<Event> {
        let ifindex = link.ifindex;
        if link.kind != "veth" {
            return None;
        }
        let Some(nsid) = link.nsid else {
            self.inner.insert(ifindex, link.peer);
            return self.veths.remove(&ifindex).map(|_| Event::Gone(ifindex));
        };
        self.inner.remove(&ifindex);
        let veth = Veth {
            ifindex,
            name: link.name,
            peer: link.peer,
            nsid,
            bridge: link.bridge,
            mac: [0; 6],
            addresses: Addresses::default(),
        };
        let Some(known) = self.veths.get_mut(&ifindex) else {
            self.veths.insert(ifindex, veth);
            return Some(Event::Appeared { ifindex, at });
        };
        if (known.nsid, known.peer) != (veth.nsid, veth.peer) {
            *known = veth;
            return Some(Event::Appeared { ifindex, at });
        }
        if (known.bridge, &known.name) == (veth.bridge, &veth.name) {
            return None;
        }
        (known.bridge, known.name) = (veth.bridge, veth.name);
        Some(Event::Changed(ifindex))
    }

    /// A device has left our namespace. Returns the veth whose other end it was, if that is still here: it is a
    /// Pod's now, and the kernel says nothing else about it.
    fn gone(&mut self, ifindex: u32) -> (Option<Event>, Option<u32>) {
        self.inner.remove(&ifindex);
        let other = self.inner.iter().find(|(_, peer)| **peer == ifindex).map(|(end, _)| *end);
        (self.veths.remove(&ifindex).map(|_| Event::Gone(ifindex)), other)
    }

    /// What the far end looks like. `true` when that is news.
    fn inside(&mut self, ifindex: u32, mac: [u8; 6], addresses: Addresses) -> bool {
        let Some(veth) = self.veths.get_mut(&ifindex) else { return false };
        let news = (veth.mac, veth.addresses) != (mac, addresses);
        (veth.mac, veth.addresses) = (mac, addresses);
        news
    }
}

/// Follows the Pods' veths of the network namespace it was opened in.
pub struct Devices {
    monitor: Monitor,
    client: Client,
    known: Known,
    polls: Polls,
}

impl Devices {
    /// Subscribes to the kernel's messages. Nothing is known before the first [`Self::resync`]. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the sockets.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            monitor: Monitor::open(NETLINK_ROUTE, &[GROUP_LINK])?,
            client: Client::open(NETLINK_ROUTE)?,
            known: Known::default(),
            polls: Polls::default(),
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

    /// Asks for all devices and the addresses behind them, and tells what differs from what was known.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resync(&mut self) -> io::Result<Vec<Event>> {
        let at = Instant::now();
        let links = link::all(&mut self.client)?;
        let mut events = Vec::new();
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
        self.known.inner.clear();
        for link in links {
            self.take(link, at, &mut events);
        }
        for ifindex in self.known.veths.keys().copied().collect::<Vec<_>>() {
            if self.look_inside(ifindex) {
                events.push(Event::Changed(ifindex));
            }
        }
        Ok(events)
    }

    /// Waits until something happens. Safe to cancel. When the kernel reports that messages were lost, everything is
    /// asked for again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let mut news = Vec::new();
        let due = self.polls.next();
        let Self { monitor, .. } = self;
        let received = tokio::select! {
            received = monitor.receive(|message_type, payload| {
                news.extend(link::parse_link(payload).map(|link| (message_type, link)));
            }) => Some(received),
            () = sleep_until(due) => None,
        };
        let mut events = Vec::new();
        match received {
            None => {
                for ifindex in self.polls.take(Instant::now()) {
                    if self.look_inside(ifindex) {
                        events.push(Event::Changed(ifindex));
                    }
                }
            }
            Some(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::warn!("the kernel dropped device messages, asking for all devices again");
                return self.resync();
            }
            Some(Err(e)) => return Err(e),
            Some(Ok(())) => {
                let at = Instant::now();
                for (message_type, link) in news {
                    match message_type {
                        RTM_NEWLINK => self.take(link, at, &mut events),
                        RTM_DELLINK => self.left(link.ifindex, at, &mut events)?,
                        _ => {}
                    }
                }
            }
        }
        Ok(events)
    }

    fn take(&mut self, mut link: Link, at: Instant, events: &mut Vec<Event>) {
        if link.nsid.is_some() && self.is_uplink(&link) {
            // As good as a veth with both ends here: not a Pod's.
            link.nsid = None;
        }
        match self.known.link(link, at) {
            Some(event @ Event::Appeared { ifindex, .. }) => {
                self.polls.start(ifindex, at);
                events.push(event);
            }
            Some(event @ Event::Gone(ifindex)) => {
                self.polls.stop(ifindex);
                events.push(event);
            }
            Some(event @ Event::Changed(_)) => events.push(event),
            None => {}
        }
    }

    fn is_uplink(&mut self, link: &Link) -> bool {
        link.kind == "veth"
            && link::has_network(&mut self.client, link.ifindex).unwrap_or_else(|err| {
                tracing::debug!(device = link.name, %err, "own addresses of the device not readable");
                false
            })
    }

    fn left(&mut self, ifindex: u32, at: Instant, events: &mut Vec<Event>) -> io::Result<()> {
        if let Some(other) = self.forget(ifindex, events)
            && let Some(link) = link::one(&mut self.client, other)?
        {
            self.take(link, at, events);
        }
        Ok(())
    }

    fn forget(&mut self, ifindex: u32, events: &mut Vec<Event>) -> Option<u32> {
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
            .and_then(|link| Ok((link, link::addresses_in(&mut self.client, nsid, peer)?)));
        match seen {
            Ok((link, addresses)) => {
                let mac = link.map(|link| link.mac).unwrap_or_default();
                if addresses.ip4.is_some() || addresses.ip6.is_some() {
                    self.polls.found(ifindex, Instant::now());
                }
                self.known.inside(ifindex, mac, addresses)
            }
            Err(e) => {
                // The Pod may just be going; its device will tell. Polls and the next resync ask again.
                tracing::debug!(ifindex, nsid, err = %e, "addresses behind the device not readable");
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Addresses, Event, Known, Link};

    fn veth(ifindex: u32, peer: u32, nsid: Option<u32>) -> Link {
        Link { ifindex, peer, nsid, kind: "veth".to_owned(), ..Link::default() }
    }

    #[test]
    fn a_pods_veth_is_one_whose_other_end_is_elsewhere() {
        let at = Instant::now();
        let mut known = Known::default();
        let appeared = |ifindex| Some(Event::Appeared { ifindex, at });
        let bridged = Link { bridge: 9, ..veth(5, 2, Some(0)) };
        let cases = [
            ("hardware", Link { ifindex: 2, ..Link::default() }, None),
            ("both ends here", veth(3, 4, None), None),
            ("a Pod's", veth(5, 2, Some(0)), appeared(5)),
            ("said again", veth(5, 2, Some(0)), None),
            ("put into a bridge", bridged.clone(), Some(Event::Changed(5))),
            ("said again", bridged, None),
            ("moved to another Pod", veth(5, 2, Some(1)), appeared(5)),
            ("its end came here", veth(5, 6, None), Some(Event::Gone(5))),
        ];
        for (name, link, want) in cases {
            assert_eq!(known.link(link, at), want, "{name}");
        }
    }

    #[test]
    fn a_pair_whose_other_end_leaves_is_asked_about() {
        let at = Instant::now();
        let mut known = Known::default();
        known.link(veth(3, 4, None), at);
        known.link(veth(4, 3, None), at);
        assert_eq!(known.gone(4), (None, Some(3)));
        assert_eq!(known.link(veth(3, 4, Some(0)), at), Some(Event::Appeared { ifindex: 3, at }));
        assert_eq!(known.gone(3), (Some(Event::Gone(3)), None));
    }

    #[test]
    fn only_news_from_inside_counts() {
        let mut known = Known::default();
        known.link(veth(5, 2, Some(0)), Instant::now());
        let addresses = Addresses { ip4: Some("10.1.0.2".parse().unwrap()), ip6: None };
        assert!(known.inside(5, [2; 6], addresses));
        assert!(!known.inside(5, [2; 6], addresses));
        assert!(known.inside(5, [2; 6], Addresses::default()));
        assert!(!known.inside(6, [2; 6], addresses), "not a Pod's");
    }
}
