//! Who is behind which device, by cases.

use std::num::NonZeroI64;

use lb_common::addr::Addr;

use super::{Behind, BindingFacts, BindingTime, Bindings};
use lb_core::cluster::{Change, Cluster, Event, Kind, Name, Node, Pod};
use lb_kernel::devices::addresses::{AddressPair, PodAddress};
use lb_kernel::devices::{BridgePort, FarDevice, Veth};

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

/// A veth with these addresses inside, `DEVICE/ADDRESS`; the Pod's end is device 2.
fn veth(ifindex: u32, inside: &[&str]) -> Veth {
    let read = |text: &&str| {
        let (device, ip) = text.split_once('/').unwrap();
        PodAddress { device: device.parse().unwrap(), ip: ip.parse().unwrap(), main: true }
    };
    let inside: Vec<PodAddress> = inside.iter().map(read).collect();
    Veth {
        ifindex,
        name: format!("veth{ifindex}"),
        peer: 2,
        nsid: ifindex,
        bridge: 0,
        own_mac: [2, 0, 0, 0, 1, ifindex as u8],
        mtu: 1500,
        mac: [2, 0, 0, 0, 0, ifindex as u8],
        port: BridgePort::default(),
        far: FarDevice::default(),
        addresses: AddressPair::of(2, &inside),
        inside,
    }
}

fn pod(ip: &str, uid: u64) -> Pod {
    let created = NonZeroI64::new(1_000);
    Pod { ips: [addr(ip)].into(), uid, created, node: "n1".into(), ..Pod::default() }
}

struct World {
    cluster: Cluster,
    bindings: Bindings,
    now: i64,
    /// What the wall clock says beside that.
    set: i64,
}

impl World {
    fn new(pods: &[(&str, Pod)]) -> Self {
        let mut cluster = Cluster::new("n1");
        for kind in Kind::ALL {
            cluster.apply(Event::Synced(kind));
        }
        let mut world = Self { cluster, bindings: Bindings::default(), now: 2_000, set: 0 };
        for (name, pod) in pods {
            world.put(name, pod.clone());
        }
        world
    }

    fn put(&mut self, name: &str, pod: Pod) {
        self.cluster.apply(Event::Pod(Change::Applied(Name::new("ns", name), pod)));
    }

    fn remove(&mut self, name: &str) {
        self.cluster.apply(Event::Pod(Change::Deleted(Name::new("ns", name))));
    }

    fn ranges(&mut self, text: &str) {
        let node = Node { pod_cidrs: [text.parse().unwrap()].into(), ..Node::default() };
        self.cluster.apply(Event::Node(Change::Applied(Name::new("", "n2"), node)));
    }

    fn time(&self) -> BindingTime {
        BindingTime { date: self.now + self.set, steady: self.now }
    }

    /// Looks at the devices, and shows who is behind each and which addresses are there.
    fn look(&mut self, veths: &[Veth]) -> Vec<String> {
        let cluster = &self.cluster;
        let remote = [addr("10.1.0.99"), addr("10.96.0.1")];
        let is_others = |addr: &Addr| remote.contains(addr) || cluster.pod_at(addr).is_some();
        let is_elsewhere = |addr: &Addr| remote.contains(addr);
        let view = BindingFacts {
            cluster,
            is_others: &is_others,
            is_elsewhere: &is_elsewhere,
            now: self.time(),
        };
        let all: Vec<&Veth> = veths.iter().collect();
        self.bindings.update(&all, &view);
        let show = |veth: &Veth| {
            let who = match self.bindings.behind(veth.ifindex, self.time(), false) {
                Behind::Pod(name, uid) => format!("{}:{uid}", name.name),
                other => format!("{other:?}"),
            };
            let (at, stay) = self.bindings.addresses(veth, &view);
            let at = at.iter().map(Addr::to_string).collect::<Vec<_>>().join(",");
            format!("{}={who}@{at}{}", veth.ifindex, if stay { "?" } else { "" })
        };
        veths.iter().map(show).collect()
    }

    fn issues(&self) -> Vec<String> {
        self.bindings.issues().map(ToString::to_string).collect()
    }
}

#[test]
fn changed_addresses_change_no_identity() {
    let mut world = World::new(&[("eve", pod("10.1.0.2", 7)), ("vic", pod("10.1.0.3", 8))]);
    let vic = || veth(6, &["2/10.1.0.3"]);
    assert_eq!(
        world.look(&[veth(5, &["2/10.1.0.2"]), vic()]),
        ["5=eve:7@10.1.0.2", "6=vic:8@10.1.0.3"]
    );
    assert!(world.issues().is_empty());
    let device_part = world.bindings.device_part(&veth(5, &["2/10.1.0.2"]));
    for inside in [
        &["2/10.1.0.3", "2/10.1.0.2"][..],
        &["2/10.1.0.3"],
        &["2/10.1.0.99", "2/10.96.0.1"],
        &["3/10.1.0.3"],
        &[],
    ] {
        let mut changed = veth(5, inside);
        // The MAC address as well; and it lies in another namespace, which a Pod may make within its own.
        (changed.mac, changed.nsid, changed.peer) =
            ([9; 6], 77, if inside.len() == 1 { 9 } else { 2 });
        let got = world.look(&[changed.clone(), vic()]);
        assert_eq!(got, ["5=eve:7@10.1.0.2", "6=vic:8@10.1.0.3"], "{inside:?}");
        assert_eq!(world.bindings.device_part(&changed), device_part);
        let is_said = world
            .issues()
            .iter()
            .any(|issue| issue.starts_with("Pod ns/eve: status.podIPs: changed its addresses: "));
        assert_eq!(is_said, !inside.is_empty(), "{:?}", world.issues());
    }
}

#[test]
fn a_restart_comes_to_the_same_result() {
    let dir = std::env::temp_dir().join(format!("lb-bindings-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut world = World::new(&[("eve", pod("10.1.0.2", 7)), ("vic", pod("10.1.0.3", 8))]);
    world.look(&[veth(5, &["2/10.1.0.2"]), veth(6, &[]), veth(7, &["2/10.1.0.3"])]);
    world.bindings.save(&dir).unwrap();
    let device_part = world.bindings.device_part(&veth(5, &[]));

    // While no agent runs: all of the addresses change, the victim's device goes, another gets a known number.
    let mut other = veth(6, &[]);
    other.own_mac = [9; 6];
    let now = [veth(5, &["2/10.1.0.3"]), other.clone()];
    let mut again = World::new(&[]);
    again.cluster = Cluster::new("n1");
    again.bindings = Bindings::take_over(&dir, now.iter());
    assert_eq!(again.bindings.is_same(&now[0]), Some(true));
    assert_eq!(again.bindings.is_same(&now[1]), None, "not the device of that time");
    assert_eq!(again.look(&now), ["5=eve:7@10.1.0.2?", "6=Unknown(2000)@?"], "nothing is told yet");
    for (name, of) in [("eve", pod("10.1.0.2", 7)), ("vic", pod("10.1.0.3", 8))] {
        again.put(name, of);
    }
    again.cluster.apply(Event::Synced(Kind::Pod));
    assert_eq!(again.look(&now), ["5=eve:7@10.1.0.2", "6=Unknown(2000)@"]);
    assert_eq!(again.bindings.device_part(&now[0]), device_part);

    // After a reboot, and of a file that is damaged, nothing is believed.
    let text = std::fs::read_to_string(dir.join(super::file::FILE)).unwrap();
    std::fs::write(dir.join(super::file::FILE), text.replace("boot_id\":\"", "boot_id\":\"x"))
        .unwrap();
    assert_eq!(Bindings::take_over(&dir, now.iter()).is_same(&now[0]), None);
    std::fs::write(dir.join(super::file::FILE), "{").unwrap();
    assert_eq!(Bindings::take_over(&dir, now.iter()).is_same(&now[0]), None);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn of_two_devices_with_one_address_the_first_is_the_pods() {
    let mut world = World::new(&[("web", pod("10.1.0.2", 7))]);
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=web:7@10.1.0.2"]);
    world.now += 1;
    let both = [veth(5, &["2/10.1.0.2"]), veth(6, &["2/10.1.0.2"])];
    assert_eq!(world.look(&both), ["5=Impostor@", "6=web:7@10.1.0.2"]);
    assert_eq!(
        world.issues(),
        [
            "Pod ns/web: status.podIPs: the Pod is behind veth6, but one of its addresses is also bound behind veth5: traffic of that device is denied while any policy exists"
        ]
    );
    // It takes it back: no Pod.
    let both = [veth(5, &[]), veth(6, &["2/10.1.0.2"])];
    assert_eq!(world.look(&both), ["5=Unknown(2001)@", "6=web:7@10.1.0.2"]);

    // At the first start no match is known. A device that fits one Pod gets it; else the youngest Pod, as for an old Pod.
    let eve = || pod("10.1.0.3", 8);
    let mut world = World::new(&[("web", pod("10.1.0.2", 7)), ("eve", eve())]);
    let all = [
        veth(4, &["2/10.1.0.2"]),
        veth(5, &["2/10.1.0.2"]),
        veth(6, &["2/10.1.0.2", "2/10.1.0.3"]),
    ];
    assert_eq!(world.look(&all), ["4=Impostor@", "5=web:7@10.1.0.2", "6=eve:8@10.1.0.3"]);
}

#[test]
fn a_pods_address_is_its_own_wherever_it_is_bound() {
    let mut world = World::new(&[("vm", pod("10.1.0.2", 7))]);
    world.ranges("10.1.0.0/16");
    let inside = ["2/192.0.2.1", "5/10.1.0.2", "2/10.1.0.7", "2/10.1.0.99", "2/10.1.0.2"];
    // On a bridge inside; a second address within the range of the Pods; one of another Pod; one outside.
    let got = world.look(&[veth(5, &inside[..4])]);
    assert_eq!(got, ["5=vm:7@10.1.0.2,10.1.0.7"]);

    // A second device in the same namespace is the Pod's, too, and no Pod that is awaited.
    let second = |peer: u32, inside: &[&str]| Veth { peer, nsid: 5, ..veth(7, inside) };
    let both = [veth(5, &inside), second(3, &inside)];
    assert_eq!(world.look(&both), ["5=vm:7@10.1.0.2,10.1.0.7", "7=NoPod@"]);
    // Nothing is known yet, and the address is on the second device.
    let mut world = World::new(&[("vm", pod("10.1.0.2", 7))]);
    let inside = ["2/192.0.2.1", "3/10.1.0.2"];
    let both = [veth(5, &inside), second(3, &inside)];
    assert_eq!(world.look(&both), ["5=NoPod@192.0.2.1", "7=vm:7@10.1.0.2"]);
}

#[test]
fn of_two_pods_with_one_address_the_living_one_has_it() {
    let going = Pod { deleting: true, created: NonZeroI64::new(3_000), ..pod("10.1.0.2", 7) };
    let older = Pod { created: NonZeroI64::new(900), ..pod("10.1.0.2", 6) };
    let mut world =
        World::new(&[("z-going", going), ("y-older", older), ("a", pod("10.1.0.2", 8))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=a:8@10.1.0.2"]);
    // The old one's device is there still.
    let mut world = World::new(&[("old", pod("10.1.0.2", 6))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=old:6@10.1.0.2"]);
    world.put("old", Pod { deleting: true, ..pod("10.1.0.2", 6) });
    world.put("new", pod("10.1.0.2", 9));
    let both = [veth(5, &["2/10.1.0.2"]), veth(6, &["2/10.1.0.2"])];
    assert_eq!(world.look(&both), ["5=old:6@", "6=new:9@10.1.0.2"]);
}

#[test]
fn who_has_been_a_pod_becomes_no_other() {
    let mut world = World::new(&[("web-0", pod("10.1.0.2", 7))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=web-0:7@10.1.0.2"]);
    // Made again under the same name, as a StatefulSet does: another Pod, behind another device.
    world.put("web-0", pod("10.1.0.3", 8));
    let both = [veth(5, &["2/10.1.0.3"]), veth(6, &["2/10.1.0.3"])];
    assert_eq!(world.look(&both), ["5=Impostor@", "6=web-0:8@10.1.0.3"]);
    // Gone.
    world.remove("web-0");
    world.put("vic", pod("10.1.0.4", 9));
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.4"])]), ["6=Impostor@"]);
    // A new sandbox: the Pod gets another address behind another device.
    let mut world = World::new(&[("web", pod("10.1.0.2", 7))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=web:7@10.1.0.2"]);
    world.put("web", pod("10.1.0.8", 7));
    let both = [veth(5, &["2/10.1.0.2"]), veth(6, &["2/10.1.0.8"])];
    assert_eq!(world.look(&both), ["5=Impostor@", "6=web:7@10.1.0.8"]);
    // A status without addresses, for a while: it keeps those that it had, until another has them.
    let mut world = World::new(&[("web", pod("10.1.0.2", 7))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=web:7@10.1.0.2"]);
    let device_part = world.bindings.device_part(&veth(5, &[]));
    world.put("web", Pod { ips: Box::default(), ..pod("10.1.0.2", 7) });
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=web:7@10.1.0.2"]);
    assert_eq!(world.bindings.device_part(&veth(5, &[])), device_part);
    // From manifests, without a UID, a Pod may be called otherwise.
    let mut world = World::new(&[("a", pod("10.1.0.2", 0))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=a:0@10.1.0.2"]);
    world.remove("a");
    world.put("b", pod("10.1.0.2", 0));
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=b:0@10.1.0.2"]);
}

#[test]
fn devices_without_a_pod_are_waited_for_a_while() {
    let mut world = World::new(&[]);
    assert_eq!(world.look(&[veth(5, &["2/172.17.0.2"])]), ["5=Unknown(2000)@172.17.0.2"]);
    world.now += 59;
    let late = || [veth(5, &["2/172.17.0.2"]), veth(6, &["2/172.17.0.2", "2/10.1.0.99"])];
    let got = world.look(&late());
    // The first device keeps an address; that of a remote Pod belongs to no device here.
    assert_eq!(got, ["5=Unknown(2000)@172.17.0.2", "6=Unknown(2059)@"]);
    world.now += 1;
    assert_eq!(world.look(&late()), ["5=NoPod@172.17.0.2", "6=Unknown(2059)@"]);
    world.now += 299;
    assert_eq!(world.look(&late()), ["5=NoPod@172.17.0.2", "6=NoPod@"]);
    assert_eq!(world.bindings.behind(6, world.time(), true), Behind::Unknown(2_059), "strict");
}

#[test]
fn a_wall_clock_that_is_set_changes_no_wait() {
    for set in [86_400, -86_400] {
        let mut world = World::new(&[]);
        assert_eq!(world.look(&[veth(5, &[])]), ["5=Unknown(2000)@"]);
        world.set = set;
        world.now += 59;
        assert_eq!(world.look(&[veth(5, &[])]), ["5=Unknown(2000)@"], "{set}");
        world.now += 1;
        assert_eq!(world.look(&[veth(5, &[])]), ["5=NoPod@"], "{set}");
    }
    // An agent that starts after that has another beginning, and waits no longer than any.
    let mut world = World::new(&[]);
    world.look(&[veth(5, &[])]);
    world.now -= 86_400;
    world.look(&[veth(5, &[])]);
    world.now += 300;
    assert_eq!(world.look(&[veth(5, &[])]), ["5=NoPod@"]);
}

#[test]
fn a_device_is_not_that_of_a_pod_that_has_left() {
    let mut world = World::new(&[("old", pod("10.1.0.2", 6))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=old:6@10.1.0.2"]);
    // It goes, and its address is given away again before its object is gone and before the new one has it by status.
    world.put("old", Pod { deleting: true, ..pod("10.1.0.2", 6) });
    assert_eq!(world.look(&[]), [""; 0]);
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=Unknown(2000)@10.1.0.2"]);
    world.put("new", pod("10.1.0.2", 9));
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=new:9@10.1.0.2"]);
    world.remove("old");
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=new:9@10.1.0.2"]);
    // One that is going, and whose device is there, keeps it; a restart of the agent finds it.
    let mut world = World::new(&[("old", Pod { deleting: true, ..pod("10.1.0.2", 6) })]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=old:6@10.1.0.2"]);
    // One that is not going gets another sandbox.
    let mut world = World::new(&[("web", pod("10.1.0.2", 6))]);
    assert_eq!(world.look(&[veth(5, &["2/10.1.0.2"])]), ["5=web:6@10.1.0.2"]);
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=web:6@10.1.0.2"]);
}

#[test]
fn a_match_by_an_old_status_is_revised() {
    // After a reboot: both have other addresses than their objects say still.
    let both = [veth(5, &["2/10.1.0.3"]), veth(6, &["2/10.1.0.2"])];
    let mut world = World::new(&[("a", pod("10.1.0.2", 7)), ("b", pod("10.1.0.3", 8))]);
    assert_eq!(world.look(&both), ["5=b:8@10.1.0.3", "6=a:7@10.1.0.2"]);
    world.put("a", pod("10.1.0.3", 7));
    world.look(&both);
    world.put("b", pod("10.1.0.2", 8));
    assert_eq!(world.look(&both), ["5=a:7@10.1.0.3", "6=b:8@10.1.0.2"]);
    assert_eq!(world.look(&both), ["5=a:7@10.1.0.3", "6=b:8@10.1.0.2"]);
    assert!(world.issues().is_empty());

    // The old one is going, and it was not noticed that its device has gone.
    let mut world = World::new(&[("old", Pod { deleting: true, ..pod("10.1.0.2", 6) })]);
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=old:6@10.1.0.2"]);
    world.put("new", pod("10.1.0.2", 9));
    assert_eq!(world.look(&[veth(6, &["2/10.1.0.2"])]), ["6=new:9@10.1.0.2"]);
}

#[test]
fn a_revision_does_not_make_one_pod_another() {
    let eve = || veth(5, &["2/10.1.0.2"]);
    let vic = |created: i64| Pod { created: NonZeroI64::new(created), ..pod("10.1.0.2", 9) };
    let bound = || {
        let mut world = World::new(&[("eve", pod("10.1.0.2", 6))]);
        assert_eq!(world.look(&[eve()]), ["5=eve:6@10.1.0.2"]);
        world
    };
    // It stays after its object is gone, and a Pod that is younger than it gets its address.
    let mut world = bound();
    world.remove("eve");
    world.now = 3_000;
    world.put("vic", vic(3_000));
    assert_eq!(world.look(&[eve()]), ["5=Impostor@"]);
    // That one's own device is there, or one that may be it.
    let mut world = bound();
    world.remove("eve");
    world.put("vic", vic(1_000));
    assert_eq!(world.look(&[eve(), veth(6, &[])]), ["5=Impostor@", "6=Unknown(2000)@"]);
    let both = [eve(), veth(6, &["2/10.1.0.2"])];
    assert_eq!(world.look(&both), ["5=Impostor@", "6=vic:9@10.1.0.2"]);
    // It has its address still, and is not going.
    let mut world = bound();
    world.put("vic", vic(1_001));
    assert_eq!(world.look(&[eve()]), ["5=eve:6@"]);
}

#[test]
fn containers_that_are_not_pods_are_recognized_by_their_addresses() {
    let bridged =
        |ifindex: u32, bridge: u32, inside: &[&str]| Veth { bridge, ..veth(ifindex, inside) };
    let docker = |inside: &[&str]| bridged(9, 3, inside);
    let world = || {
        let mut world = World::new(&[("web", pod("10.1.0.2", 7))]);
        world.ranges("10.1.0.0/16");
        world
    };
    let web = || bridged(5, 4, &["2/10.1.0.2"]);
    // What is in it, and whether it waits.
    let cases: [(&str, Veth, bool); 7] = [
        ("another network", docker(&["2/172.17.0.2"]), false),
        ("and one that is not the cluster's family", docker(&["2/172.17.0.2", "2/fd17::2"]), false),
        ("no address yet", docker(&[]), true),
        ("no address of the cluster's family", docker(&["2/fd17::2"]), true),
        ("one within the range of the Pods", docker(&["2/172.17.0.2", "3/10.1.0.9"]), true),
        ("on the bridge of Pods", bridged(9, 4, &["2/172.17.0.2"]), true),
        ("on no bridge", veth(9, &["2/172.17.0.2"]), true),
    ];
    for (what, device, waits) in cases {
        let mut world = world();
        world.look(&[web(), device.clone()]);
        let behind = world.bindings.behind(9, world.time(), false);
        assert_eq!(behind == Behind::Unknown(2_000), waits, "{what}: {behind:?}");
        assert_eq!(
            world.bindings.behind(9, world.time(), true),
            Behind::Unknown(2_000),
            "{what}, strict"
        );
    }
    let waits = |world: &mut World| {
        world.look(&[web(), docker(&["2/172.17.0.2"])]);
        world.bindings.behind(9, world.time(), false) == Behind::Unknown(2_000)
    };
    // Pods have other addresses, too: the ranges do not hold.
    let mut other = world();
    let elsewhere = Pod { node: "n2".into(), ..pod("192.168.0.7", 8) };
    other.put("calico", elsewhere);
    assert!(waits(&mut other));
    // No range is known.
    assert!(waits(&mut World::new(&[("web", pod("10.1.0.2", 7))])));
    // No Pod shows that it holds.
    let mut other = World::new(&[]);
    other.ranges("10.1.0.0/16");
    assert!(waits(&mut other));
    // A Pod that has its address by status is behind none that is known: it may have put another there.
    let mut other = world();
    other.put("eve", pod("10.1.0.66", 8));
    assert!(waits(&mut other));
    other.put("eve", Pod { ips: Box::default(), ..pod("10.1.0.66", 8) });
    assert!(!waits(&mut other), "one that is not started yet");
    // Not for good: it matches a Pod after all.
    other.put("late", pod("172.17.0.2", 10));
    assert_eq!(other.look(&[web(), docker(&["2/172.17.0.2"])])[1], "9=late:10@172.17.0.2");
}
