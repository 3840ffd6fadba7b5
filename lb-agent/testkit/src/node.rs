//! A node in a network namespace of its own, for programs that ask the routing table: one device to the world, one to
//! the Pods. Packets are run by `BPF_PROG_TEST_RUN`, so none is sent.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::{Cidr, Settings};
use lb_common::endpoint::{Dev, Ident, IdentFlags};
use lb_common::limits::port_bit;
use lb_common::service::{Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey};
use nix::sched::{CloneFlags, unshare};

use crate::bed::Bed;
use crate::objects::addr;

/// The device that test runs come in by: the loopback of the namespace. It stands for the uplink and for the veths.
const LOOPBACK: u32 = 1;
/// MTU of the way to the other nodes.
pub const FAR_MTU: u16 = 1400;

/// Addresses by role, of one family.
pub struct Addrs {
    /// This node.
    pub node: &'static str,
    /// A client outside.
    pub client: &'static str,
    /// A Pod of this node.
    pub pod: &'static str,
    /// Another Pod of this node.
    pub other_pod: &'static str,
    /// A Pod of another node.
    pub far_pod: &'static str,
    /// A load balancer.
    pub lb: &'static str,
    /// Within a ServiceCIDR, but of no Service.
    pub unallocated: &'static str,
}

/// IPv4, then IPv6.
pub const FAMILIES: [Addrs; 2] = [
    Addrs {
        node: "192.0.2.1",
        client: "203.0.113.5",
        pod: "10.1.0.2",
        other_pod: "10.1.0.3",
        far_pod: "10.2.0.9",
        lb: "198.51.100.7",
        unallocated: "10.96.3.3",
    },
    Addrs {
        node: "2001:db8::1",
        client: "2001:db8:5::5",
        pod: "fd00:1::2",
        other_pod: "fd00:1::3",
        far_pod: "fd00:2::9",
        lb: "2001:db8:7::7",
        unallocated: "fd00:96::33",
    },
];

impl Addrs {
    /// `role:port` as the packet language has it.
    pub fn at(&self, addr: &str, port: u16) -> String {
        SocketAddr::new(addr.parse().unwrap(), port).to_string()
    }

    /// Whether these are IPv4 addresses.
    pub fn v4(&self) -> bool {
        self.node.contains('.')
    }
}

/// The key of an address in `ident`.
fn words(text: &str) -> [u32; 4] {
    addr(text).words().map(lb_common::be::Be32::to_wire)
}

/// Runs a shell script, which must succeed.
pub fn sh(script: &str) {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// How a frontend for clients outside is to be.
#[derive(Default)]
pub struct Way {
    /// Flags besides `EXTERNAL`.
    pub flags: FrontendFlags,
    /// Ids of the backends on this node.
    pub local: Vec<u32>,
    /// Ids of backends, as the Maglev table has them.
    pub maglev: Vec<u32>,
    /// Timeout of the session affinity; 0 = none.
    pub affinity_secs: u32,
}

impl Bed {
    /// This thread moves into a namespace of its own, which is the node.
    pub fn node() -> Self {
        Self::node_of(Self::with_devices)
    }

    /// One whose conntrack table a flood fills quickly.
    pub fn small_node() -> Self {
        Self::node_of(Self::small_with_devices)
    }

    /// One with this many source ports of masqueraded flows.
    pub fn narrow_node<const N: u32>() -> Self {
        Self::node_of(Self::narrow_with_devices::<N>)
    }

    fn node_of(load: fn() -> Self) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh(&format!(
            "ip link set lo up
            ip link add out0 type veth peer name out1
            ip link add pod0 type veth peer name pod1
            ip link add far0 mtu {FAR_MTU} type veth peer name far1
            for d in out0 out1 pod0 pod1 far0 far1; do ip link set $d up; done
            ip addr add 192.0.2.1/24 dev out0
            ip -6 addr add 2001:db8::1/64 dev out0 nodad
            ip addr add 192.0.3.1/24 dev far0
            ip -6 addr add 2001:db8:3::1/64 dev far0 nodad
            ip route add default via 192.0.2.254
            ip -6 route add default via 2001:db8::fe
            ip route add 10.1.0.0/24 dev pod0
            ip -6 route add fd00:1::/64 dev pod0
            ip route add 10.2.0.0/24 via 192.0.3.2
            ip -6 route add fd00:2::/64 via 2001:db8:3::2
            neighbor() {{ ip neigh add $1 dev $2 lladdr 02:00:00:00:03:02; }}
            neighbor 192.0.2.254 out0; neighbor 2001:db8::fe out0
            neighbor 192.0.3.2 far0; neighbor 2001:db8:3::2 far0
            for host in 2 3; do neighbor 10.1.0.$host pod0; neighbor fd00:1::$host pod0; done"
        ));
        for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{file}"), "1").unwrap();
        }
        let mut bed = load();
        let mut settings = Settings {
            node4: addr("192.0.2.1"),
            node6: addr("2001:db8::1"),
            n_service_cidrs: 2,
            ..Settings::ZERO
        };
        settings.service_cidrs[0] = Cidr::new(addr("10.96.0.0"), 16).unwrap();
        settings.service_cidrs[1] = Cidr::new(addr("fd00:96::"), 112).unwrap();
        bed.set("settings", 0, settings);
        for (device, v4, v6) in
            [("out0", "192.0.2.1", "2001:db8::1"), ("far0", "192.0.3.1", "2001:db8:3::1")]
        {
            let ifindex = nix::net::if_::if_nametoindex(device).unwrap();
            let (masquerade4, masquerade6) = (addr(v4), addr(v6));
            bed.put("devs", ifindex, Dev { masquerade4, masquerade6, ..Dev::ZERO });
        }
        for family in &FAMILIES {
            let own = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
            bed.put("ident", words(family.node), own);
            for pod in [family.pod, family.other_pod] {
                bed.put("ident", words(pod), Ident { ifindex: LOOPBACK, ..Ident::ZERO });
            }
        }
        bed
    }

    /// A frontend for clients outside; gives its service id.
    pub fn outside(&mut self, at: &str, protocol: u8, ids: &[u32], way: &Way) -> u32 {
        let at: SocketAddr = at.parse().unwrap();
        let service_id = self.service_id();
        let frontend = Frontend {
            service_id,
            flags: FrontendFlags::EXTERNAL | way.flags,
            base: self.slots(ids),
            n: ids.len() as u32,
            local_base: self.slots(&way.local),
            local_n: way.local.len() as u32,
            maglev_base: self.slots(&way.maglev),
            maglev_n: way.maglev.len() as u32,
            affinity_secs: way.affinity_secs,
            ..Frontend::ZERO
        };
        let key = FrontendKey::new(Addr::from_ip(at.ip()), Be16::new(at.port()), protocol);
        self.put("frontends", key, frontend);
        for id in &way.local {
            let backend: Backend = self.at("backends", *id);
            let flags = backend.flags | BackendFlags::LOCAL;
            self.set("backends", *id, Backend { flags, ..backend });
        }
        self.add_port("frontend_ports", at.port());
        service_id
    }

    /// Adds a port to a set of ports.
    pub fn add_port(&mut self, map: &str, port: u16) {
        let (word, bit) = port_bit(port);
        let bits: u64 = self.at(map, word);
        self.set(map, word, bits | bit);
    }
}
