//! The agent's side of the kernel, in network namespaces of its own: attaching and its survival, discovery of Pods'
//! veths and of the other devices, the tables, conntrack expiry. Nothing leaves the namespaces, and they vanish with their test.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::tc::{NlOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttach, TcAttachType, tc};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::Config;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, partner, scope};
use lb_common::earlier::EarlierCtEntry;
use lb_common::endpoint::{Dev, Ident, PodEntry};
use lb_common::flow::{proto, tcp};
use lb_common::limits::{self, BACKENDS_MAX, MAP_ACCOUNTS, MAP_CT, MAP_LOADS, MAPS, MapSpec};
use lb_common::service::{Backend, Frontend, FrontendKey, state};
use lb_core::plan::{Actual, Flows, MapStore as _, Write};
use lb_kernel::bpf::attach::{self, Hooks, Mechanism, Role};
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::gc::Gc;
use lb_kernel::bpf::load::{self, LoadOptions};
use lb_kernel::bpf::maps::{self, Tables};
use lb_kernel::bpf::pins::{Hook, Pin};
use lb_kernel::bpf::resize::Resize;
use lb_kernel::bpf::sockets;
use lb_kernel::bpf::store::Maps;
use lb_kernel::devices::uplinks::Layer;
use lb_kernel::devices::{DeviceEvent, Devices, qdisc};

use crate::node::{Node, in_node};

/// Ids of the programs at a hook, however they got there.
fn at_hook(node: &Node, ifindex: u32, hook: TcAttachType) -> Vec<u32> {
    if node.has_tcx() {
        let (_, programs) = SchedClassifier::query_tcx(ifindex, hook).unwrap();
        return programs.iter().map(|program| program.id()).collect();
    }
    let (device, word) = (node.device(ifindex), format!("{hook:?}").to_lowercase());
    let filters = node.run("tc", &format!("filter show dev {device} {word}"));
    let ids = filters.split(" id ").skip(1);
    ids.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

fn at_both(node: &Node, ifindex: u32) -> [Vec<u32>; 2] {
    [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| at_hook(node, ifindex, hook))
}

/// The kernel detaches a link whose last reference went a little later.
fn becomes_empty(node: &Node, ifindex: u32) {
    becomes(node, ifindex, [0, 0]);
}

/// The same until this number of programs is left at each hook.
fn becomes(node: &Node, ifindex: u32, wanted: [usize; 2]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let programs = at_both(node, ifindex);
        if programs.each_ref().map(Vec::len) == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "still attached: {programs:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn programs_survive_and_are_updated_in_place() {
    in_node(|node: &Node| {
        let pod = node.pod("p1");
        let ifindex = node.routed(&pod, "veth1", &[]);
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(ifindex, Role::Pod).unwrap();
        let wanted = if node.has_tcx() { Mechanism::Tcx } else { Mechanism::Clsact };
        assert_eq!(hooks.mechanism(), Some(wanted));
        let first = at_both(node, ifindex);
        assert!(first.iter().all(|programs| programs.len() == 1), "{first:?}");

        // The agent dies: nothing changes. Its next run exchanges the programs, one for one.
        drop(hooks);
        assert_eq!(at_both(node, ifindex), first);
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(ifindex, Role::Pod).unwrap();
        let second = at_both(node, ifindex);
        assert!(second.iter().all(|programs| programs.len() == 1), "{second:?}");
        assert!(first[0] != second[0] && first[1] != second[1], "{first:?} {second:?}");
        hooks.attach(ifindex, Role::Pod).unwrap();
        assert_eq!(at_both(node, ifindex), second, "once is enough");

        // The device goes and another one gets its number: the pinned links are dead and are replaced.
        node.ip("link del veth1");
        let again = node.routed_at(&pod, "veth1", &[], Some(ifindex));
        assert_eq!(again, ifindex);
        hooks.attach(ifindex, Role::Pod).unwrap();
        assert_eq!(at_both(node, ifindex).map(|programs| programs.len()), [1, 1]);

        // Pins and filters of devices that do not belong to Pods are removed.
        assert_eq!(hooks.remove_stale(|known| known == ifindex).unwrap(), 0);
        assert_eq!(hooks.remove_stale(|_| false).unwrap(), 1);
        becomes_empty(node, ifindex);
        hooks.attach(ifindex, Role::Pod).unwrap();
        hooks.forget(ifindex).unwrap();
        becomes_empty(node, ifindex);
    });
}

#[test]
fn programs_that_count_come_first_and_go_when_they_are_turned_off() {
    in_node(|node: &Node| {
        let pod = node.pod("p1");
        let ifindex = node.routed(&pod, "veth1", &[]);
        if !node.has_tcx() {
            // Filters have no place before ours.
            let mut counting = Hooks::new(node.load_counting(), node.pins(), None).counting_flows();
            counting.attach(ifindex, Role::Pod).unwrap();
            return assert_eq!(at_both(node, ifindex).map(|programs| programs.len()), [1, 1]);
        }
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(ifindex, Role::Pod).unwrap();
        let without = at_both(node, ifindex);

        let mut counting = Hooks::new(node.load_counting(), node.pins(), None).counting_flows();
        counting.attach(ifindex, Role::Pod).unwrap();
        let with = at_both(node, ifindex);
        assert_eq!(with.each_ref().map(Vec::len), [2, 2], "{with:?}");
        assert!(node.pins().map(&MAP_ACCOUNTS).exists());
        let names = |programs: &Vec<u32>| -> Vec<String> {
            programs.iter().map(|id| program_name(*id)).collect()
        };
        let mut names = with.each_ref().map(names).concat();
        assert_eq!(names.len(), 4);
        names.retain(|name| name.starts_with("account"));
        names.sort();
        assert_eq!(names, ["account_in", "account_out"]);
        for programs in &with {
            assert!(program_name(programs[0]).starts_with("account"), "{with:?}: not the first");
        }
        counting.attach(ifindex, Role::Pod).unwrap();
        assert_eq!(at_both(node, ifindex), with, "once is enough");

        // Another role of the device, then none.
        let uplink = Role::Uplink { layer: Layer::Ethernet, departures: false };
        counting.attach(ifindex, uplink).unwrap();
        // What leaves by it is not counted.
        becomes(node, ifindex, [2, 0]);
        counting.attach(ifindex, Role::Pod).unwrap();
        drop(counting);

        // A run without it.
        assert!(node.pins().remove_accounts().unwrap());
        assert!(!node.pins().remove_accounts().unwrap(), "nothing is left");
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(ifindex, Role::Pod).unwrap();
        becomes(node, ifindex, without.map(|programs| programs.len()));
        assert!(!node.pins().map(&MAP_ACCOUNTS).exists());
        let mut counting = Hooks::new(node.load_counting(), node.pins(), None).counting_flows();
        counting.attach(ifindex, Role::Pod).unwrap();
        counting.forget(ifindex).unwrap();
        becomes_empty(node, ifindex);
    });
}

fn program_name(id: u32) -> String {
    let all = aya::programs::loaded_programs().map(Result::unwrap);
    let program = all.into_iter().find(|program| program.id() == id).unwrap();
    program.name_as_str().unwrap().to_owned()
}

#[test]
fn clsact_filters_survive_are_replaced_and_go() {
    in_node(|node: &Node| {
        let pod = node.pod("p1");
        let ours = node.routed(&pod, "veth1", &[]);
        let shared = node.routed(&pod, "veth2", &[]);
        tc::qdisc_add_clsact(shared).unwrap();
        for _ in 0..2 {
            let mut hooks = Hooks::new(node.load(), node.pins(), Some(Mechanism::Clsact));
            hooks.attach(ours, Role::Pod).unwrap();
            hooks.attach(shared, Role::Pod).unwrap();
        }
        for dev in ["veth1", "veth2"] {
            for (hook, program) in [("ingress", "pod_out"), ("egress", "pod_in")] {
                let filters = node.run("tc", &format!("filter show dev {dev} {hook}"));
                let n = filters.matches(&format!(" {program} direct-action")).count();
                assert_eq!(n, 1, "{dev} {hook}: {filters}");
            }
        }
        attach::detach_filters(&node.pins(), ours).unwrap();
        attach::detach_filters(&node.pins(), shared).unwrap();
        assert_eq!(qdisc::of_device(ours).unwrap().ingress, None, "ours is gone");
        assert_eq!(qdisc::of_device(shared).unwrap().ingress.as_deref(), Some("clsact"));
        assert!(!qdisc::has_filters(shared).unwrap());

        // A filter of another program keeps a qdisc that we added.
        let mut hooks = Hooks::new(node.load(), node.pins(), Some(Mechanism::Clsact));
        hooks.attach(ours, Role::Pod).unwrap();
        let parent = TcHandle::from(TcAttachType::Ingress);
        let mut theirs = node.load();
        let program: &mut SchedClassifier =
            theirs.program_mut("pod_in").unwrap().try_into().unwrap();
        let options = NlOptions { priority: 9, ..NlOptions::default() };
        program.attach(ours, TcAttach::Netlink { parent, options }).unwrap();
        attach::detach_filters(&node.pins(), ours).unwrap();
        assert!(qdisc::has_filters(ours).unwrap());

        // An ingress qdisc leaves no room, and that is said.
        let limited = node.routed(&pod, "veth3", &[]);
        node.run("tc", "qdisc add dev veth3 ingress");
        let error = hooks.attach(limited, Role::Pod).unwrap_err().to_string();
        assert!(error.contains("has an ingress qdisc"), "{error}");
    });
}

#[test]
fn socket_programs_survive_and_are_updated_in_place() {
    in_node(|node: &Node| {
        let cgroup = node.cgroup();
        for round in 0..2 {
            let mut hooks = Hooks::new(node.load(), node.pins(), None);
            hooks.attach_sockets(&cgroup).unwrap();
            let links = node
                .pins()
                .list()
                .unwrap()
                .into_iter()
                .filter(|(_, pin)| matches!(pin, Pin::SocketLink(_)))
                .count();
            assert_eq!(links, 8, "round {round}");
        }
        // A pin whose cgroup is gone is replaced.
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        let other = node.cgroup();
        std::fs::remove_dir(&cgroup).unwrap();
        hooks.attach_sockets(&other).unwrap();
    });
}

#[test]
fn pods_are_found_however_they_are_connected() {
    in_node(|node: &Node| {
        let before = node.pod("before");
        let known = node.routed(&before, "veth0", &["10.9.0.1/32", "fd09::1/128"]);
        // A pair with both ends here is no Pod's.
        node.ip("link add inner0 type veth peer name inner1");
        let runtime = node.runtime();
        let mut devices = runtime.block_on(async { Devices::open() }).unwrap();
        let events = devices.resync().unwrap();
        assert!(
            events
                .iter()
                .any(|e| matches!(e, DeviceEvent::Appeared { ifindex, .. } if *ifindex == known))
        );
        let veth = devices.veth(known).unwrap();
        assert_eq!(veth.addresses.ip4.unwrap().to_string(), "10.9.0.1");
        assert_eq!(veth.addresses.ip6.unwrap().to_string(), "fd09::1");
        assert_ne!(veth.mac, [0; 6]);
        assert_eq!(devices.veths().count(), 1);

        // Routed, addresses later; and behind a bridge.
        let routed = node.pod("routed");
        let veth1 = node.routed(&routed, "veth1", &[]);
        node.ip("link add br0 type bridge");
        let bridged = node.pod("bridged");
        let veth2 = node.routed(&bridged, "veth2", &["10.9.0.3/24"]);
        node.ip("link set veth2 master br0");
        node.address(&routed, "10.9.0.2/32");
        node.address(&routed, "fd09::2/128");
        runtime.block_on(until(&mut devices, |devices| {
            let complete = |ifindex: u32, v6: bool, in_bridge: bool| {
                devices.veth(ifindex).is_some_and(|veth| {
                    veth.addresses.ip4.is_some()
                        && veth.addresses.ip6.is_some() == v6
                        && (veth.bridge != 0) == in_bridge
                })
            };
            complete(veth1, true, false) && complete(veth2, false, true)
        }));

        // One end of a pair moves into a Pod; the other one is announced although nothing else happens to it.
        let late = node.pod("late");
        let inner0 = node.ifindex("inner0");
        node.give("inner1", &late);
        runtime.block_on(until(&mut devices, |devices| devices.veth(inner0).is_some()));

        // Gone with the device, and with the Pod's namespace.
        node.ip("link del veth2");
        drop(routed);
        runtime.block_on(until(&mut devices, |devices| {
            devices.veth(veth1).is_none() && devices.veth(veth2).is_none()
        }));
        assert_eq!(devices.veths().count(), 2);
        let missed = devices.resync().unwrap();
        // What is inside may be news still; which devices there are may not.
        assert!(missed.iter().all(|event| matches!(event, DeviceEvent::Changed(_))), "{missed:?}");
    });
}

#[test]
fn other_devices_are_found_and_follow_their_masters() {
    in_node(|node: &Node| {
        let runtime = node.runtime();
        let mut devices = runtime.block_on(async { Devices::open() }).unwrap();
        node.ip("tuntap add dev eth0 mode tap");
        node.ip("addr add 192.0.2.1/24 dev eth0");
        let eth0 = node.ifindex("eth0");
        devices.resync().unwrap();
        assert_eq!(devices.uplink(eth0), Some(Layer::Ethernet));
        assert_eq!(devices.uplink(1), None, "lo");

        // Tunnels, and a bridge with a port.
        node.ip("tuntap add dev tun0 mode tun");
        node.ip("link add vxlan0 type vxlan id 5 dstport 4789");
        node.ip("link add master0 type bridge");
        node.ip("tuntap add dev port0 mode tap");
        let [tun0, vxlan0, master0, port0] =
            ["tun0", "vxlan0", "master0", "port0"].map(|name| node.ifindex(name));
        runtime.block_on(until(&mut devices, |devices| devices.uplink(port0).is_some()));
        for (ifindex, want) in
            [(tun0, Layer::Ip), (vxlan0, Layer::Ethernet), (master0, Layer::Ethernet)]
        {
            assert_eq!(devices.uplink(ifindex), Some(want), "{}", devices.name(ifindex));
        }
        node.ip("link set port0 master master0");
        runtime.block_on(until(&mut devices, |devices| devices.uplink(port0).is_none()));
        node.ip("link set port0 nomaster");
        node.ip("link set port0 name port1");
        runtime.block_on(until(&mut devices, |devices| {
            devices.uplink(port0).is_some() && devices.name(port0) == "port1"
        }));

        // Where tunnels end.
        assert_eq!(devices.tunnel_ports(), [4789].into());
        node.ip("link add vxlan1 type vxlan external dstport 8472");
        node.ip("link add vxlan2 type vxlan id 6 dstport 4789");
        runtime
            .block_on(until(&mut devices, |devices| devices.tunnel_ports() == [4789, 8472].into()));
        node.ip("link del vxlan1");
        runtime.block_on(until(&mut devices, |devices| devices.tunnel_ports() == [4789].into()));
        node.ip("link del vxlan2");

        // A bridge, until a Pod is behind it; then its other port.
        node.ip("link add br0 type bridge");
        node.ip("link set vxlan0 master br0");
        let br0 = node.ifindex("br0");
        runtime.block_on(until(&mut devices, |devices| {
            devices.uplink(br0).is_some() && devices.uplink(vxlan0).is_none()
        }));
        let pod = node.pod("p1");
        let veth1 = node.routed(&pod, "veth1", &["10.9.0.2/24"]);
        node.ip("link set veth1 master br0");
        runtime.block_on(until(&mut devices, |devices| {
            devices.uplink(br0).is_none() && devices.uplink(vxlan0).is_some()
        }));
        assert!(devices.routed().any(|(ifindex, _)| ifindex == br0), "routes may name it");

        // The Pod's veth becomes the node's uplink by its address, and back.
        node.ip("link set veth1 nomaster");
        node.ip("addr add 198.51.100.1/24 dev veth1");
        runtime.block_on(until(&mut devices, |devices| {
            devices.uplink(veth1).is_some() && devices.veth(veth1).is_none()
        }));
        node.ip("addr del 198.51.100.1/24 dev veth1");
        runtime.block_on(until(&mut devices, |devices| {
            devices.uplink(veth1).is_none() && devices.veth(veth1).is_some()
        }));
        node.ip("link del veth1");
        node.ip("link del tun0");
        runtime.block_on(until(&mut devices, |devices| {
            devices.uplink(tun0).is_none() && devices.uplink(br0).is_some()
        }));
        assert_eq!(devices.resync().unwrap(), [], "nothing was missed");
    });
}

#[test]
fn a_device_changes_its_role_without_a_gap() {
    in_node(|node: &Node| {
        let pod = node.pod("p1");
        let ifindex = node.routed(&pod, "veth1", &[]);
        let uplink = |departures| Role::Uplink { layer: Layer::Ethernet, departures };
        for mechanism in [None, Some(Mechanism::Clsact)] {
            let mut hooks = Hooks::new(node.load(), node.pins(), mechanism);
            let mut counts = Vec::new();
            for role in
                [uplink(false), uplink(true), Role::Pod, uplink(true), uplink(false), Role::Pod]
            {
                hooks.attach(ifindex, role).unwrap();
                let count = || at_each(node, ifindex, mechanism).map(|ids| ids.len());
                let wanted = [1, usize::from(role.program(Hook::Egress).is_some())];
                // A link that was let go is detached a little later.
                let deadline = Instant::now() + Duration::from_secs(5);
                while count() != wanted && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
                counts.push(count());
            }
            assert_eq!(counts, [[1, 0], [1, 1], [1, 1], [1, 1], [1, 0], [1, 1]], "{mechanism:?}");
            hooks.forget(ifindex).unwrap();
            becomes_empty(node, ifindex);
        }
        // A device without a link layer.
        node.ip("tuntap add dev tun0 mode tun");
        let tun0 = node.ifindex("tun0");
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(tun0, Role::Uplink { layer: Layer::Ip, departures: true }).unwrap();
        assert_eq!(at_both(node, tun0).map(|ids| ids.len()), [1, 1]);
    });
}

/// Ids of the programs at both hooks that this mechanism has put there.
fn at_each(node: &Node, ifindex: u32, mechanism: Option<Mechanism>) -> [Vec<u32>; 2] {
    match mechanism {
        Some(Mechanism::Clsact) => ["ingress", "egress"].map(|hook| {
            let device = node.device(ifindex);
            let filters = node.run("tc", &format!("filter show dev {device} {hook}"));
            filters.match_indices("direct-action").map(|(at, _)| at as u32).collect()
        }),
        _ => at_both(node, ifindex),
    }
}

#[test]
fn addresses_and_devices_are_written_and_read_back() {
    in_node(|node: &Node| {
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        let before = maps.load().unwrap();
        assert!(before.ident.is_empty() && before.devs.is_empty() && before.pods.is_empty());
        let pod = Ident { ifindex: 7, ..Ident::ZERO };
        let dev = Dev { masquerade4: addr("192.0.2.1"), mtu: 1450, ..Dev::ZERO };
        let element = PodEntry { id: 7, ip4: addr("10.9.0.2"), ..PodEntry::ZERO };
        let mut writes: Vec<Write> = ["10.9.0.2", "fd09::2", "10.9.0.3"]
            .map(|ip| Write::PutIdent { addr: addr(ip), ident: pod })
            .into();
        for ifindex in [2, 3] {
            writes.push(Write::PutDev { ifindex, dev });
            writes.push(Write::PutPod { ifindex, pod: Box::new(element) });
        }
        for _ in 0..2 {
            writes.push(Write::DeleteIdent { addr: addr("10.9.0.3") });
            writes.push(Write::DeleteDev { ifindex: 3 });
            writes.push(Write::DeletePod { ifindex: 3 });
        }
        writes.iter().for_each(|write| maps.apply(write).unwrap());
        drop((maps, ebpf));
        let contents = Maps::open(&node.pins()).unwrap().load().unwrap();
        let ident = [(addr("10.9.0.2"), pod), (addr("fd09::2"), pod)].into();
        let want = Actual { ident, devs: [(2, dev)].into(), pods: [(2, element)].into(), ..before };
        assert_eq!(contents, want);
    });
}

#[test]
fn connected_udp_sockets_to_a_backend_that_is_gone_are_closed() {
    in_node(|node: &Node| {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (frontend, gone, other) =
            (at("10.96.0.1:53"), at("10.9.0.2:5353"), at("10.9.0.3:5353"));
        node.ip("route add 10.0.0.0/8 dev lo");
        let mut ebpf = node.load();
        let mut tables = Tables::take(&mut ebpf, Some(&node.pins())).unwrap();
        serve(&mut tables, frontend, gone);
        let cgroup = node.cgroup();
        let mut hooks = Hooks::new(ebpf, node.pins(), None);
        hooks.attach_sockets(&cgroup).unwrap();
        let in_cgroup = InCgroup::enter(&cgroup);
        let connected = |local: &str, to: SocketAddr| {
            let socket = UdpSocket::bind(local).unwrap();
            socket.connect(to).unwrap();
            socket
        };
        let translated = connected("0.0.0.0:0", frontend);
        let mapped = connected("[::]:0", at("[::ffff:10.96.0.1]:53"));
        let port = connected("0.0.0.0:0", at("10.9.0.2:5354"));
        serve(&mut tables, frontend, other);
        let moved = connected("0.0.0.0:0", frontend);
        let unconnected = UdpSocket::bind("0.0.0.0:0").unwrap();
        drop(in_cgroup);
        drop(unconnected.send_to(b"?", gone));

        let backend = |to: SocketAddr| (Addr::from_ip(to.ip()), Be16::new(to.port()));
        assert_eq!(sockets::close(&[backend(at("10.9.0.2:5355"))].into()).unwrap(), 0);
        // Another namespace's sockets are not ours to see.
        let pod = node.pod("p1");
        assert_eq!(pod.enter(|| sockets::close(&[backend(gone)].into()).unwrap()), 0);
        assert_eq!(sockets::close(&[backend(gone)].into()).unwrap(), 2);
        for socket in [&translated, &mapped] {
            let error = socket.take_error().unwrap().unwrap();
            assert_eq!(error.raw_os_error(), Some(103), "ECONNABORTED: {error}");
            assert!(socket.send(b"?").is_err(), "no longer connected");
        }
        for socket in [&port, &moved] {
            assert!(socket.take_error().unwrap().is_none());
            assert!(socket.peer_addr().is_ok());
        }
        assert_eq!(sockets::close(&[backend(gone)].into()).unwrap(), 0, "once is enough");
    });
}

/// One UDP frontend with one backend.
fn serve(tables: &mut Tables, frontend: SocketAddr, backend: SocketAddr) {
    let key =
        FrontendKey::new(Addr::from_ip(frontend.ip()), Be16::new(frontend.port()), proto::UDP);
    let backend = Backend {
        addr: Addr::from_ip(backend.ip()),
        port: Be16::new(backend.port()),
        proto: proto::UDP,
        state: state::ACTIVE,
        generation: 1,
        ..Backend::ZERO
    };
    let frontend = Frontend { service_id: 1, base: 1, n: 1, ..Frontend::ZERO };
    tables.backends.set(1, &backend).unwrap();
    tables.slots.set(1, &1).unwrap();
    tables.frontends.put(&key, &frontend).unwrap();
}

/// This process in a cgroup; afterwards it is where it was.
struct InCgroup {
    former: PathBuf,
}

impl InCgroup {
    fn enter(cgroup: &Path) -> Self {
        let root = cgroup.parent().unwrap();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let former = root.join(own);
        std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Self { former }
    }
}

impl Drop for InCgroup {
    fn drop(&mut self) {
        let file = self.former.join("cgroup.procs");
        std::fs::write(file, std::process::id().to_string()).unwrap();
    }
}

/// Follows the devices until it is so.
async fn until(devices: &mut Devices, so: impl Fn(&Devices) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so(devices) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(events) = tokio::time::timeout(left, devices.next()).await else {
            panic!("still {:#?}", devices.veths().collect::<Vec<_>>());
        };
        events.unwrap();
    }
}

#[test]
fn a_pod_is_attached_within_milliseconds() {
    in_node(|node: &Node| {
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        let runtime = node.runtime();
        let mut devices = runtime.block_on(async { Devices::open() }).unwrap();
        devices.resync().unwrap();
        let mut times = Vec::new();
        for round in 0..11 {
            let pod = node.pod("p");
            node.routed(&pod, &format!("veth{round}"), &[]);
            while times.len() == round {
                for event in runtime.block_on(devices.next()).unwrap() {
                    if let DeviceEvent::Appeared { ifindex, at } = event {
                        hooks.attach(ifindex, Role::Pod).unwrap();
                        times.push(at.elapsed());
                    }
                }
            }
        }
        // The kernel waits for an RCU grace period after each of the two (tcx_entry_sync), though the program runs
        // before that: about 10 ms each at 250 Hz, more on a loaded machine.
        times.sort_unstable();
        assert!(times[5] < Duration::from_millis(100), "{times:?}");
    });
}

#[test]
fn tables_are_read_back_as_they_were_written() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        let key = FrontendKey::new(Addr::from_ip("10.96.0.1".parse().unwrap()), Be16::new(80), 6);
        let frontend = Frontend { service_id: 3, base: 70_000, n: 1, ..Frontend::ZERO };
        let backend = Backend { state: state::ACTIVE, generation: 4, proto: 6, ..Backend::ZERO };
        for op in [
            Write::PutBackend { id: 9, backend },
            Write::PutSlot { slot: 70_000, backend_id: 9 },
            Write::PutFrontend { key, frontend },
            Write::PutFrontend { key: FrontendKey::wildcard(key.addr), frontend: Frontend::ZERO },
            Write::DeleteFrontend { key: FrontendKey::wildcard(key.addr) },
            Write::DeleteFrontend { key: FrontendKey::wildcard(key.addr) },
        ] {
            maps.apply(&op).unwrap();
        }
        let beyond = maps.apply(&Write::PutBackend { id: BACKENDS_MAX, backend }).unwrap_err();
        assert!(beyond.full, "{beyond}");
        // Another process opens the pins.
        drop((maps, ebpf));
        let actual = Maps::open(&node.pins()).unwrap().load().unwrap();
        assert_eq!(actual.frontends, [(key, frontend)].into());
        assert_eq!((actual.slots.len(), actual.slots[70_000]), (70_001, 9));
        assert_eq!((actual.backends.len(), actual.backends[9]), (10, backend));
    });
}

#[test]
fn a_full_table_says_so() {
    in_node(|_| {
        let mut small: HashMap<MapData, u32, u32> = HashMap::create(1, 0).unwrap();
        small.insert(&1, &1, 0).unwrap();
        let error = small.insert(&2, &2, 0).unwrap_err();
        // What `apply` calls full: E2BIG of a hash table without a free element.
        assert!(format!("{error:?}").contains("code: 7"), "{error:?}");
    });
}

fn ct_key(local_port: u16, remote: &str, remote_port: u16, protocol: u8) -> CtKey {
    CtKey {
        local: Addr::from_ip("10.9.0.2".parse().unwrap()),
        remote: Addr::from_ip(remote.parse().unwrap()),
        local_port: Be16::new(local_port),
        remote_port: Be16::new(remote_port),
        proto: protocol,
        veth: 3,
        ..CtKey::ZERO
    }
}

#[test]
fn silent_flows_expire_and_pairs_together() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        let backend = Backend { state: state::DEAD, generation: 2, ..Backend::ZERO };
        maps.apply(&Write::PutBackend { id: 5, backend }).unwrap();
        maps.apply(&Write::PutPod { ifindex: 3, pod: Box::new(PodEntry::ZERO) }).unwrap();
        let clock = Clock::detect().unwrap();
        let now = clock.stamp().unwrap();
        let stamps = |secs: u32| secs * clock.hz / 256;
        let ack = CtFlags::tcp(tcp::ACK, 0);
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let frontend = "10.96.0.1";
        let mut put = |key: CtKey, age: u32, flags: CtFlags, backend_gen: u32| {
            let forward = flags.contains(CtFlags::FORWARD);
            let (nat, nat_port) = if forward { ("10.9.0.7", 8080) } else { (frontend, 80) };
            let translated = flags.intersects(CtFlags::FORWARD | CtFlags::REPLY);
            let entry = CtEntry {
                last_seen: now.wrapping_sub(stamps(age)),
                flags,
                backend_id: if backend_gen == 0 { 0 } else { 5 },
                backend_gen,
                nat_addr: if translated { Addr::from_ip(nat.parse().unwrap()) } else { Addr::NONE },
                nat_port: Be16::new(nat_port),
                aux_port: key.local_port,
                ..CtEntry::ZERO
            };
            ct.insert(&key, &entry, 0).unwrap();
        };
        // A plain flow each, live and dead.
        put(ct_key(1, "10.9.9.9", 53, proto::UDP), 100, CtFlags::NONE, 0);
        put(ct_key(2, "10.9.9.9", 53, proto::UDP), 5, CtFlags::NONE, 0);
        // A translated flow whose client is silent and whose backend still sends.
        put(ct_key(3, frontend, 80, proto::TCP), 90_000, CtFlags::FORWARD | ack, 2);
        put(
            ct_key(3, "10.9.0.7", 8080, proto::TCP),
            5,
            CtFlags::REPLY | CtFlags::tcp(0, tcp::ACK),
            2,
        );
        // One that both sides have left, to a backend that has died since.
        put(ct_key(4, frontend, 80, proto::TCP), 90_000, CtFlags::FORWARD | ack, 1);
        put(
            ct_key(4, "10.9.0.7", 8080, proto::TCP),
            90_100,
            CtFlags::REPLY | CtFlags::tcp(0, tcp::ACK),
            1,
        );
        // Reset by the client: only its side has seen that.
        let reset = CtFlags::FORWARD | CtFlags::tcp(tcp::ACK | tcp::RST, 0);
        put(ct_key(5, frontend, 80, proto::TCP), 90, reset, 2);
        put(
            ct_key(5, "10.9.0.7", 8080, proto::TCP),
            91,
            CtFlags::REPLY | CtFlags::tcp(0, tcp::ACK),
            2,
        );

        let mut gc = Gc::open(&node.pins(), clock).unwrap();
        let pass = gc.pass().unwrap();
        let counted =
            (pass.entries, pass.pod.tcp, pass.pod.udp, pass.expired, pass.kept, pass.stale);
        assert_eq!(counted, (8, 6, 2, 5, 1, 2), "{pass:?}");
        let left: Vec<u16> = {
            let mut ports: Vec<u16> = ct.keys().map(|key| key.unwrap().local_port.get()).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(left, [2, 3, 3]);
        assert_eq!(gc.pass().unwrap().entries, 3);
    });
}

/// An entry of a flow from outside, last seen `age` seconds ago: key and value.
fn from_outside(
    (scope, local, remote): (u8, &str, &str),
    (nat, aux): (&str, &str),
    (flags, age): (CtFlags, u32),
) -> (CtKey, CtEntry) {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (local, remote, nat, aux) = (at(local), at(remote), at(nat), at(aux));
    let addr = |at: SocketAddr| Addr::from_ip(at.ip());
    let port = |at: SocketAddr| Be16::new(at.port());
    let in_pod = scope == scope::POD;
    let key = CtKey {
        local: addr(local),
        remote: addr(remote),
        local_port: port(local),
        remote_port: port(remote),
        proto: proto::TCP,
        scope,
        veth: if in_pod { 3 } else { 0 },
    };
    let clock = Clock::detect().unwrap();
    let entry = CtEntry {
        nat_addr: addr(nat),
        aux_addr: addr(aux),
        nat_port: port(nat),
        aux_port: port(aux),
        backend_id: 5,
        backend_gen: 2,
        last_seen: clock.stamp().unwrap().wrapping_sub(age * clock.hz / 256),
        epoch: 3,
        flags: flags | CtFlags::EXTERNAL | CtFlags::tcp(tcp::ACK, 0),
        way: Addr::NONE,
    };
    (key, entry)
}

#[test]
fn flows_from_outside_expire_in_pairs_and_are_counted() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        for (id, generation) in [(5, 2), (6, 9)] {
            let backend = Backend { state: state::ACTIVE, generation, ..Backend::ZERO };
            maps.apply(&Write::PutBackend { id, backend }).unwrap();
        }
        maps.apply(&Write::PutPod { ifindex: 3, pod: Box::new(PodEntry::ZERO) }).unwrap();
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let (forward, reply) = (CtFlags::FORWARD | CtFlags::COUNTED, CtFlags::REPLY);
        let to_node = forward | CtFlags::MASQUERADED;
        let (vip, pod, far) = ("198.51.100.1:80", "10.9.0.2:8080", "10.9.1.2:8080");
        let (out, back) = (scope::EXTERNAL, scope::EXTERNAL_REPLY);
        let (long, short) = (22_000, 5);
        let client = |port: u16| format!("203.0.113.5:{port}");
        let ours = |port: u16| format!("192.0.2.1:{port}");
        let entries = [
            // To a Pod of this node: the client is silent, the Pod still sends.
            from_outside((out, vip, &client(1)), (pod, &client(1)), (forward, long)),
            from_outside((scope::POD, pod, &client(1)), (vip, &client(1)), (reply, short)),
            // The same, and both are silent.
            from_outside((out, vip, &client(2)), (pod, &client(2)), (forward, long)),
            from_outside((scope::POD, pod, &client(2)), (vip, &client(2)), (reply, long)),
            // To other nodes: two live, one over, one whose reply entry is all that lives.
            from_outside((out, vip, &client(3)), (far, &ours(10_003)), (to_node, short)),
            from_outside((back, far, &ours(10_003)), (vip, &client(3)), (reply, long)),
            from_outside((out, vip, &client(4)), (far, &ours(10_004)), (to_node, short)),
            from_outside((back, far, &ours(10_004)), (vip, &client(4)), (reply, short)),
            from_outside((out, vip, &client(5)), (far, &ours(10_005)), (to_node, long)),
            from_outside((back, far, &ours(10_005)), (vip, &client(5)), (reply, long)),
            from_outside((out, vip, &client(6)), ("10.9.1.3:8080", &ours(10_003)), (to_node, long)),
            from_outside((back, "10.9.1.3:8080", &ours(10_003)), (vip, &client(6)), (reply, short)),
            // To a process of this host; its connection closes, so it is not counted any more.
            from_outside(
                (out, vip, &client(7)),
                ("192.0.2.1:6443", &client(7)),
                (CtFlags::FORWARD | CtFlags::TO_HOST, short),
            ),
            from_outside((back, "192.0.2.1:6443", &client(7)), (vip, &client(7)), (reply, short)),
        ];
        for (key, entry) in entries {
            ct.insert(&key, &entry, 0).unwrap();
        }
        // What the programs have lost and gained; 6 has no flow at all.
        let mut loads: Array<MapData, u32> = MapData::from_pin(node.pins().map(&MAP_LOADS))
            .and_then(Map::from_map_data)
            .and_then(Array::try_from)
            .unwrap();
        loads.set(5, &99, 0).unwrap();
        loads.set(6, &1, 0).unwrap();

        let mut gc = Gc::open(&node.pins(), Clock::detect().unwrap()).unwrap();
        let pass = gc.pass().unwrap();
        assert_eq!((pass.entries, pass.expired, pass.kept, pass.stale), (14, 4, 3, 0), "{pass:?}");
        assert_eq!((pass.pod.tcp, pass.external.tcp), (2, 12), "{pass:?}");
        assert_eq!((pass.masqueraded, pass.masquerade_ports), (3, 2), "{pass:?}");
        assert_eq!(pass.corrected, 2);
        assert_eq!([5, 6].map(|id| loads.get(&id, 0).unwrap()), [4, 0]);
        let again = gc.pass().unwrap();
        assert_eq!((again.entries, again.expired, again.corrected), (10, 0, 0), "{again:?}");
    });
}

#[test]
fn a_pass_tells_which_backends_and_former_frontends_have_flows() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        let backend = Backend { state: state::DRAINING, generation: 2, ..Backend::ZERO };
        maps.apply(&Write::PutBackend { id: 5, backend }).unwrap();
        let vip = |text: &str| {
            let at: SocketAddr = text.parse().unwrap();
            FrontendKey::new(Addr::from_ip(at.ip()), Be16::new(at.port()), proto::TCP)
        };
        let there = vip("198.51.100.1:80");
        maps.apply(&Write::PutFrontend { key: there, frontend: Frontend::ZERO }).unwrap();
        let mut words = std::collections::BTreeMap::<u32, u64>::new();
        for port in [80, 81, 82, 83, 84] {
            let (word, bit) = limits::port_bit(port);
            *words.entry(word).or_default() |= bit;
        }
        for (word, bits) in words {
            maps.apply(&Write::PutFormerPorts { word, bits }).unwrap();
        }
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let mut kept = maps::open_kept(&node.pins()).unwrap();
        let flow = |frontend: &str, age: u32| {
            let to = ("10.9.0.2:8080", "203.0.113.5:1");
            from_outside((scope::EXTERNAL, frontend, "203.0.113.5:1"), to, (CtFlags::FORWARD, age))
        };
        let in_table = [
            ("the frontend is there", flow("198.51.100.1:80", 5)),
            ("it is gone", flow("[2001:db8::1]:81", 5)),
            ("and so is the flow", flow("198.51.100.1:82", 100_000)),
            ("no rule asked for the port", flow("198.51.100.1:443", 5)),
        ];
        for (_, (key, entry)) in in_table {
            ct.insert(&key, &entry, 0).unwrap();
        }
        // Evicted, but alive: both entries.
        let (key, entry) = flow("198.51.100.1:83", 5);
        kept.insert(&key, &entry, 0).unwrap();
        kept.insert(&partner(&key, &entry).unwrap(), &reply_of(&key, &entry), 0).unwrap();
        // The backend has another meaning now.
        let (key, entry) = flow("198.51.100.1:84", 5);
        ct.insert(&key, &CtEntry { backend_id: 6, ..entry }, 0).unwrap();
        let mut gc = Gc::open(&node.pins(), Clock::detect().unwrap()).unwrap();
        gc.pass().unwrap();
        let flows = gc.flows();
        assert_eq!(flows.former_ports, [81, 83].into());
        assert_eq!(flows.backends, [5].into());
        assert_eq!(gc.flows(), Flows::default(), "it is told once");
    });
}

/// The reply entry of the flow with this forward entry, which has the same packets behind it.
fn reply_of(key: &CtKey, forward: &CtEntry) -> CtEntry {
    let (frontend, client) = match key.scope {
        scope::EXTERNAL => ((key.local, key.local_port), (key.remote, key.remote_port)),
        _ => ((key.remote, key.remote_port), (key.local, key.local_port)),
    };
    CtEntry {
        nat_addr: frontend.0,
        nat_port: frontend.1,
        aux_addr: client.0,
        aux_port: client.1,
        flags: forward.flags.without(CtFlags::FORWARD) | CtFlags::REPLY,
        ..*forward
    }
}

/// Both ends left at once: each entry knows of one end alone, which its processor saw. Together they say that nothing is to
/// be kept, and half a flow is nothing either.
#[test]
fn copies_of_a_flow_are_judged_together_and_half_of_one_goes() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        maps.apply(&Write::PutPod { ifindex: 3, pod: Box::new(PodEntry::ZERO) }).unwrap();
        let clock = Clock::detect().unwrap();
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let mut kept = maps::open_kept(&node.pins()).unwrap();
        const OPEN: u8 = tcp::SYN | tcp::ACK;
        const LEFT: u8 = OPEN | tcp::FIN;
        // What the entries say that the two ends have sent: the client, the server.
        let forward = |port: u16, [client, server]: [u8; 2]| CtEntry {
            nat_addr: Addr::from_ip("10.9.1.2".parse().unwrap()),
            nat_port: Be16::new(8080),
            aux_port: Be16::new(port),
            last_seen: clock.stamp().unwrap(),
            flags: CtFlags::FORWARD | CtFlags::tcp(client, server),
            ..CtEntry::ZERO
        };
        let cases = [
            ("lives", 1, [OPEN, OPEN], [OPEN, OPEN], 2),
            ("one end has left", 2, [LEFT, OPEN], [LEFT, OPEN], 2),
            ("both have, at once", 3, [LEFT, OPEN], [OPEN, LEFT], 0),
            ("both have", 4, [LEFT, LEFT], [LEFT, LEFT], 0),
        ];
        let mut left = Vec::new();
        for (name, port, of_forward, of_reply, want) in cases {
            let key = ct_key(port, "10.96.0.1", 80, proto::TCP);
            let entry = forward(port, of_forward);
            let other = partner(&key, &entry).unwrap();
            let reply = CtEntry {
                flags: CtFlags::REPLY | CtFlags::tcp(of_reply[0], of_reply[1]),
                ..reply_of(&key, &entry)
            };
            for (key, entry) in [(key, entry), (other, reply)] {
                ct.insert(&key, &entry, 0).unwrap();
                // As the handshake left it.
                let open =
                    entry.flags.only(CtFlags::FORWARD | CtFlags::REPLY) | CtFlags::tcp(OPEN, OPEN);
                kept.insert(&key, &CtEntry { flags: open, ..entry }, 0).unwrap();
            }
            left.push((name, [key, other], want));
        }
        // Copies whose entries are gone: of both halves, of one half, and of the other.
        for (name, port, halves, want) in [
            ("evicted", 5, [true, true], 2),
            ("one half", 6, [true, false], 0),
            ("other half", 7, [false, true], 0),
        ] {
            let key = ct_key(port, "10.96.0.1", 80, proto::TCP);
            let entry = forward(port, [OPEN, OPEN]);
            let other = partner(&key, &entry).unwrap();
            let both = [(key, entry), (other, reply_of(&key, &entry))];
            for ((key, entry), _) in both.iter().zip(halves).filter(|(_, is_there)| *is_there) {
                kept.insert(key, entry, 0).unwrap();
            }
            left.push((name, [key, other], want));
        }
        let mut gc = Gc::open(&node.pins(), clock).unwrap();
        gc.pass().unwrap();
        for (name, keys, want) in left {
            let n = keys.iter().filter(|key| kept.get(key, 0).is_ok()).count();
            assert_eq!(n, want, "{name}");
        }
    });
}

#[test]
fn entries_of_devices_that_are_gone_go_and_those_of_others_stay() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        maps.apply(&Write::PutPod { ifindex: 0x1_0004, pod: Box::new(PodEntry::ZERO) }).unwrap();
        let clock = Clock::detect().unwrap();
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let mut kept = maps::open_kept(&node.pins()).unwrap();
        let entry = |flags| CtEntry {
            last_seen: clock.stamp().unwrap(),
            flags: flags | CtFlags::tcp(tcp::ACK, tcp::ACK),
            ..CtEntry::ZERO
        };
        let key = |port, veth| CtKey { veth, ..ct_key(port, "10.9.9.9", 80, proto::TCP) };
        for veth in [3, 4] {
            ct.insert(&key(1, veth), &entry(CtFlags::NONE), 0).unwrap();
            ct.insert(&key(2, veth), &entry(CtFlags::FORWARD), 0).unwrap();
            kept.insert(&key(2, veth), &entry(CtFlags::FORWARD), 0).unwrap();
            // Others have evicted its entries.
            let forward = CtEntry {
                nat_addr: Addr::from_ip("10.9.1.2".parse().unwrap()),
                nat_port: Be16::new(8080),
                aux_port: Be16::new(3),
                ..entry(CtFlags::FORWARD)
            };
            let reply = reply_of(&key(3, veth), &forward);
            kept.insert(&key(3, veth), &forward, 0).unwrap();
            kept.insert(&partner(&key(3, veth), &forward).unwrap(), &reply, 0).unwrap();
        }
        let mut gc = Gc::open(&node.pins(), clock).unwrap();
        let found = [(); 3].map(|()| gc.pass().unwrap());
        let found = found.map(|p| (p.entries, p.orphaned, p.left(), p.copies, p.expired));
        assert_eq!(found, [(4, 0, 4, 6, 0), (4, 2, 2, 3, 0), (2, 0, 2, 3, 0)]);
        assert!(ct.keys().chain(kept.keys()).all(|key| key.unwrap().veth == 4));
    });
}

#[test]
fn a_pod_with_more_than_a_quarter_of_conntrack_loses_its_oldest_plain_and_half_open_flows() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        for ifindex in [3, 4] {
            maps.apply(&Write::PutPod { ifindex, pod: Box::new(PodEntry::ZERO) }).unwrap();
        }
        let clock = Clock::detect().unwrap();
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let share = maps::pinned_capacity(&node.pins().map(&MAP_CT)).unwrap() / 4;
        let now = clock.stamp().unwrap();
        let syn = CtFlags::tcp(tcp::SYN, 0);
        let ack = CtFlags::tcp(tcp::ACK, 0);
        let entry = |age: u32, flags| CtEntry {
            last_seen: now.wrapping_sub(age * clock.hz / 256),
            flags,
            ..CtEntry::ZERO
        };
        let key = |i: u32, remote: &str, veth| CtKey {
            veth,
            ..ct_key(i as u16, remote, 1 + (i >> 16) as u16, proto::TCP)
        };
        // The Pod has its share of flows that are new; what is beyond that has to go, the oldest first.
        for i in 0..share - 20 {
            ct.insert(&key(i, "10.9.9.9", 3), &entry(2, ack), 0).unwrap();
        }
        for i in 0..20 {
            let live = entry(50, CtFlags::FORWARD | CtFlags::tcp(tcp::ACK, tcp::ACK));
            ct.insert(&key(i, "10.96.0.1", 3), &live, 0).unwrap();
            ct.insert(&key(i, "10.96.0.2", 3), &entry(40, CtFlags::FORWARD | syn), 0).unwrap();
            ct.insert(&key(i, "10.9.9.8", 3), &entry(40, ack), 0).unwrap();
            ct.insert(&key(i, "10.9.9.8", 4), &entry(40, ack), 0).unwrap();
        }
        let mut gc = Gc::open(&node.pins(), clock).unwrap();
        let pass = gc.pass().unwrap();
        let all = u64::from(share) + 60;
        assert_eq!((pass.entries, pass.greedy, pass.over_share), (all, 1, 40), "{pass:?}");
        assert_eq!((pass.left(), pass.expired, pass.orphaned), (all - 40, 0, 0), "{pass:?}");
        let left = |remote: &str, veth| {
            (0..20).filter(|i| ct.get(&key(*i, remote, veth), 0).is_ok()).count()
        };
        assert_eq!(
            [left("10.96.0.1", 3), left("10.96.0.2", 3), left("10.9.9.8", 3)],
            [20, 0, 0],
            "the connection that lives is the oldest and stays"
        );
        assert_eq!((left("10.9.9.9", 3), left("10.9.9.8", 4)), (20, 20));
        let again = gc.pass().unwrap();
        assert_eq!((again.greedy, again.over_share), (0, 0), "{again:?}");
    });
}

#[test]
fn a_large_table_is_walked_completely() {
    in_node(|node: &Node| {
        drop(node.load());
        let clock = Clock::detect().unwrap();
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        let entry = CtEntry { last_seen: clock.stamp().unwrap(), ..CtEntry::ZERO };
        for i in 0..20_000_u16 {
            ct.insert(&ct_key(i, "10.9.9.9", i, proto::TCP), &entry, 0).unwrap();
        }
        let pass = Gc::open(&node.pins(), clock).unwrap().pass().unwrap();
        assert_eq!((pass.entries, pass.expired), (20_000, 0));
        assert!(pass.duration < Duration::from_millis(500), "{pass:?}");
    });
}

#[test]
fn the_programs_and_the_agent_have_the_same_clock() {
    in_node(|node: &Node| {
        let pod = node.pod("p1");
        let ifindex = node.routed(&pod, "veth1", &["10.9.0.2/32"]);
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(ifindex, Role::Pod).unwrap();
        node.send_udp(&pod, "10.9.9.9:53");
        let clock = Clock::detect().unwrap();
        let now = clock.stamp().unwrap();
        let ct = maps::open_ct(&node.pins()).unwrap();
        let seen: Vec<CtEntry> = ct
            .iter()
            .map(Result::unwrap)
            .filter(|(key, _)| key.remote_port == Be16::new(53))
            .map(|(_, entry)| entry)
            .collect();
        assert_eq!(seen.len(), 1, "the packet was tracked");
        let age = now.wrapping_sub(seen[0].last_seen);
        assert!(age <= 2 || age == u32::MAX, "{age} stamps apart");
    });
}

#[test]
fn cleanup_leaves_nothing() {
    in_node(|node: &Node| {
        let pod = node.pod("p1");
        let ifindex = node.routed(&pod, "veth1", &[]);
        let mut hooks = Hooks::new(node.load(), node.pins(), None);
        hooks.attach(ifindex, Role::Pod).unwrap();
        hooks.attach_sockets(&node.cgroup()).unwrap();
        drop(hooks);
        let old = node.pins().dir().join("ct_v0");
        std::fs::rename(node.pins().map(&MAP_CT), &old).unwrap();
        drop(node.load());
        assert_eq!(node.pins().remove_other_versions(&[]).unwrap(), [old]);
        let maps = node.pins().list().unwrap();
        let n = maps.iter().filter(|(_, pin)| matches!(pin, Pin::Map(..))).count();
        assert_eq!(n, MAPS.len() - 1, "all but the counts of flows, which are off");
        attach::detach_filters(&node.pins(), ifindex).unwrap();
        node.pins().remove_all().unwrap();
        assert!(!node.pin_dir().exists());
        becomes_empty(node, ifindex);
    });
}

#[test]
fn a_smaller_conntrack_table_keeps_the_newest_entries() {
    in_node(|node: &Node| {
        const OLD: u32 = limits::CT + 20_000;
        let clock = Clock::detect().unwrap();
        let load = |ct_entries| {
            let pins = node.pins();
            let resize = Resize::set_aside(&pins, clock, ct_entries).unwrap();
            let options =
                LoadOptions { pin_dir: Some(pins.dir()), config: Config::ZERO, ct_entries };
            drop(load::open(&options).unwrap());
            resize
        };
        assert!(load(2 * limits::CT).is_empty());
        let now = clock.stamp().unwrap();
        let key = |n: u32| CtKey {
            local: Addr::from_ip(std::net::Ipv4Addr::from_bits(n).into()),
            proto: proto::TCP,
            ..CtKey::ZERO
        };
        let mut ct = maps::open_ct(&node.pins()).unwrap();
        for n in 0..OLD {
            // The first ones are the newest.
            let entry = CtEntry { last_seen: now.wrapping_sub(n), ..CtEntry::ZERO };
            ct.insert(&key(n), &entry, 0).unwrap();
        }
        let mut resize = load(limits::CT);
        assert!(!resize.is_empty());
        let copied = resize.copy().unwrap();
        let room = u64::from(limits::CT) / 16 * 15;
        assert_eq!(copied, room);
        // A packet through the old programs: copied later, as the only one.
        let late = CtEntry { last_seen: clock.stamp().unwrap(), ..CtEntry::ZERO };
        ct.insert(&key(OLD), &late, 0).unwrap();
        assert_eq!(resize.copy().unwrap(), 1);
        resize.finish().unwrap();
        assert_eq!(maps::pinned_capacity(&node.pins().map(&MAP_CT)), Some(limits::CT));
        assert!(!node.pins().aside(&MAP_CT).exists());
        let ct = maps::open_ct(&node.pins()).unwrap();
        let left: HashSet<CtKey> = ct.keys().map(Result::unwrap).collect();
        let want: HashSet<CtKey> =
            (0..u32::try_from(room).unwrap()).chain([OLD]).map(key).collect();
        assert!(left == want, "{} entries, wanted {}", left.len(), want.len());
    });
}

/// The two entries of a flow through the old programs reach the new table together, whatever the new programs have made of its
/// packets. Half a flow does not.
#[test]
fn the_entries_of_a_flow_are_copied_together() {
    in_node(|node: &Node| {
        let (pins, clock) = (node.pins(), Clock::detect().unwrap());
        let load = |ct_entries| {
            let resize = Resize::set_aside(&pins, clock, ct_entries).unwrap();
            let options =
                LoadOptions { pin_dir: Some(pins.dir()), config: Config::ZERO, ct_entries };
            drop(load::open(&options).unwrap());
            resize
        };
        assert!(load(2 * limits::CT).is_empty());
        let mut old = maps::open_ct(&pins).unwrap();
        let entry = |flags: CtFlags, last_seen: u32| CtEntry { flags, last_seen, ..CtEntry::ZERO };
        let flow = |port: u16, last_seen: u32| {
            let key = ct_key(port, "10.96.0.1", 80, proto::TCP);
            let forward = CtEntry {
                nat_addr: Addr::from_ip("10.9.1.2".parse().unwrap()),
                nat_port: Be16::new(8080),
                aux_port: Be16::new(port),
                ..entry(CtFlags::FORWARD, last_seen)
            };
            [(key, forward), (partner(&key, &forward).unwrap(), reply_of(&key, &forward))]
        };
        let now = clock.stamp().unwrap();
        let mut resize = load(limits::CT);
        assert_eq!(resize.copy().unwrap(), 0);
        let mut new = maps::open_ct(&pins).unwrap();
        // Both; both, after the new programs have met an answer; the forward entry alone, and the reply entry alone.
        let (both, met, alone, reply) = (flow(1, now), flow(2, now), flow(3, now), flow(4, now));
        for (key, entry) in both.iter().chain(&met).chain(&alone[..1]).chain(&reply[1..]) {
            old.insert(key, entry, 0).unwrap();
        }
        new.insert(&met[1].0, &entry(CtFlags::PICKED_UP, now), 0).unwrap();
        // Another flow has the place meanwhile: it stays.
        let taken = flow(5, now);
        old.insert(&taken[1].0, &taken[1].1, 0).unwrap();
        new.insert(&taken[1].0, &entry(CtFlags::NONE, now), 0).unwrap();
        // An entry of which the last packet is long ago, and whose flow goes on in the other direction.
        let slow = flow(6, now);
        old.insert(&slow[0].0, &slow[0].1, 0).unwrap();
        let silent = CtEntry { last_seen: now.wrapping_sub(1000), ..slow[1].1 };
        old.insert(&slow[1].0, &silent, 0).unwrap();

        assert_eq!(resize.copy().unwrap(), 7);
        for (key, entry) in both.iter().chain(&met).chain(&reply[1..]).chain(&slow[..1]) {
            assert_eq!(new.get(key, 0).unwrap(), *entry);
        }
        assert_eq!(new.get(&slow[1].0, 0).unwrap(), silent);
        assert!(new.get(&alone[0].0, 0).is_err(), "half a flow");
        assert_eq!(new.get(&taken[1].0, 0).unwrap(), entry(CtFlags::NONE, now));
    });
}

/// The agent before this one had another layout of conntrack entries, and its programs still write them for a while.
#[test]
fn entries_with_the_layout_of_an_earlier_version_are_copied() {
    in_node(|node: &Node| {
        let (pins, clock) = (node.pins(), Clock::detect().unwrap());
        let earlier = MapSpec { version: EarlierCtEntry::VERSION, ..MAP_CT };
        let pin = pins.map(&earlier);
        let (key_size, value_size) = (size_of::<CtKey>(), size_of::<EarlierCtEntry>());
        let made = std::process::Command::new("bpftool")
            .args(["map", "create", pin.to_str().unwrap(), "type", "lru_hash", "name", "ct"])
            .args(["key", &key_size.to_string(), "value", &value_size.to_string()])
            .args(["entries", &limits::CT.to_string()])
            .status()
            .expect("bpftool is needed");
        assert!(made.success());
        let mut old: HashMap<MapData, CtKey, EarlierCtEntry> =
            Map::from_map_data(MapData::from_pin(&pin).unwrap()).unwrap().try_into().unwrap();
        let addr = |ip: &str| Addr::from_ip(ip.parse().unwrap());
        let key = |port: u16, scope: u8| CtKey {
            local: addr("10.1.0.2"),
            local_port: Be16::new(port),
            proto: proto::TCP,
            scope,
            ..CtKey::ZERO
        };
        let stamp = || clock.stamp().unwrap();
        let entry = |flags| EarlierCtEntry {
            aux_addr: addr("192.0.2.1"),
            last_seen: stamp(),
            flags,
            ..EarlierCtEntry::ZERO
        };
        let masqueraded =
            CtKey { remote_port: Be16::new(50_000), ..key(8080, scope::EXTERNAL_REPLY) };
        let forward = (key(80, scope::POD), entry(CtFlags::FORWARD | CtFlags::PAST));
        let reply = partner(&forward.0, &forward.1.today(&forward.0)).unwrap();
        let cases = [
            forward,
            (reply, entry(CtFlags::REPLY)),
            (masqueraded, entry(CtFlags::REPLY | CtFlags::MASQUERADED)),
        ];
        for (key, entry) in cases {
            old.insert(&key, &entry, 0).unwrap();
        }
        let in_use = lb_kernel::bpf::ports::of_masqueraded_flows(&pins).unwrap();
        assert_eq!(in_use, Some(50_000..=50_000));

        let mut resize = Resize::set_aside(&pins, clock, limits::CT).unwrap();
        let options =
            LoadOptions { pin_dir: Some(pins.dir()), config: Config::ZERO, ct_entries: limits::CT };
        drop(load::open(&options).unwrap());
        assert_eq!(resize.copy().unwrap(), 3);
        let copied = |key: &CtKey| maps::open_ct(&pins).unwrap().get(key, 0).unwrap();
        for (key, entry) in &cases {
            assert_eq!(copied(key), entry.today(key));
        }
        assert_eq!(copied(&cases[0].0).way, addr("192.0.2.1"));

        // Through the old programs.
        let late = (key(81, scope::POD), entry(CtFlags::NONE));
        old.insert(&late.0, &late.1, 0).unwrap();
        assert_eq!(pins.remove_other_versions(&resize.needed()).unwrap(), [] as [PathBuf; 0]);
        assert_eq!(resize.copy().unwrap(), 1);
        assert_eq!(copied(&late.0), late.1.today(&late.0));
        resize.finish().unwrap();
        assert!(!pin.exists() && pins.map(&MAP_CT).exists());
    });
}
