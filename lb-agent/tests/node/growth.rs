//! Tables that grow while packets come, and agents that end while a table grows.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap, IterableMap as _, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::flow::proto;
use lb_common::limits::{
    BACKENDS, BACKENDS_MAX, FRONTENDS, MAP_BACKENDS, MAP_FRONTENDS, SLOTS, SOURCE_RANGES,
};
use lb_common::service::{Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey, state};
use lb_core::cluster::Prefix;
use lb_core::plan::{MapStore as _, RangeKey, Write};
use lb_kernel::bpf::maps;
use lb_kernel::bpf::store::Maps;
use lb_testkit::packet;

use crate::node::{Node, in_node};

/// A packet leaves a Pod: what is sent.
fn leave(ebpf: &Ebpf, text: &str) -> String {
    let program: &SchedClassifier = ebpf.program("pod_out").unwrap().try_into().unwrap();
    let (bytes, mut out) = (packet::build(text), vec![0; 2000]);
    let mut options = TestRunOptions::new();
    options.data_in = Some(&bytes);
    options.data_out = Some(&mut out);
    let result = program.test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    if result.return_value as i32 != -1 {
        return "drop".to_owned();
    }
    let shown = packet::show(&out);
    shown.split(" seq=").next().unwrap().to_owned()
}

fn frontend_key(n: u32) -> FrontendKey {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + n);
    FrontendKey::new(Addr::from_ip(ip.into()), Be16::new(80), proto::TCP)
}

fn backend(last: u8) -> Backend {
    Backend {
        addr: Addr::from_ip(IpAddr::from([10, 2, 0, last])),
        port: Be16::new(8080),
        proto: proto::TCP,
        state: state::ACTIVE,
        generation: 1,
        flags: BackendFlags::CLUSTER,
        ..Backend::ZERO
    }
}

/// Service `n`, its only backend in this slot.
fn serve(maps: &mut Maps, n: u32, slot: u32, id: u32, flags: FrontendFlags) {
    let frontend = Frontend { service_id: n + 1, base: slot, n: 1, flags, ..Frontend::ZERO };
    for write in [
        Write::PutBackend { id, backend: backend(9) },
        Write::PutSlot { slot, backend_id: id },
        Write::PutFrontend { key: frontend_key(n), frontend },
    ] {
        maps.apply(&write).unwrap();
    }
}

#[test]
fn a_service_in_further_parts_is_served_and_outlives_the_agent() {
    in_node(|node: &Node| {
        let (far, slot) = (BACKENDS + 9, SLOTS + 70_000);
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        let from = |port: u16, flags: &str| format!("10.1.0.1:{port} > 10.96.0.0:80 tcp {flags}");
        let want = |port: u16, flags: &str| format!("10.1.0.1:{port} > 10.2.0.9:8080 tcp {flags}");
        serve(&mut maps, 0, 5, 7, FrontendFlags::LEAST_CONNECTIONS);
        assert_eq!(leave(&ebpf, &from(1, "S")), want(1, "S"));
        assert_eq!(maps.tables.backends.len(), BACKENDS, "no larger than it must be");
        serve(&mut maps, 0, slot, far, FrontendFlags::LEAST_CONNECTIONS);
        assert_eq!(
            (maps.tables.backends.len(), maps.tables.slots.len()),
            (2 * BACKENDS, 2 * SLOTS)
        );
        assert_eq!(leave(&ebpf, &from(1, "A")), want(1, "A"), "to its backend in the first part");
        assert_eq!(leave(&ebpf, &from(2, "S")), want(2, "S"));
        assert_eq!(leave(&ebpf, &from(2, "A")), want(2, "A"));
        // One part more: what the programs have counted stays.
        serve(&mut maps, 1, 6, 2 * BACKENDS, FrontendFlags::LEAST_CONNECTIONS);
        assert_eq!([7, far].map(|id| maps.tables.loads.get(id).unwrap()), [1, 1]);
        // Who reads the beginning of a table gets all of that, and no more.
        let slots = &maps.tables.slots;
        for (end, used) in
            [(5, &[][..]), (6, &[5]), (SLOTS, &[5, 6]), (slot, &[5, 6]), (slot + 1, &[5, 6, slot])]
        {
            let (mut n, mut found) = (0, Vec::new());
            let read = slots.for_each_below(end, |index, id| {
                n += 1;
                found.extend((*id != 0).then_some(index));
            });
            read.unwrap();
            assert_eq!((n, &found[..]), (end, used));
        }
        // Who reads what was written stops after it, unless more is known to be there.
        let backends = &maps.tables.backends;
        for (end, used) in [
            (0, &[7][..]),
            (BACKENDS, &[7]),
            (far + 1, &[7, far]),
            (2 * BACKENDS + 1, &[7, far, 2 * BACKENDS]),
        ] {
            let mut found = Vec::new();
            let is_written = |backend: &Backend| backend.generation != 0;
            backends.for_each_written(end, is_written, |id, _| found.push(id)).unwrap();
            assert_eq!(found, used, "{end}");
        }

        let before = maps.load().unwrap();
        drop(maps);
        let mut next = node.load();
        let mut maps = Maps::take(&mut next, Some(&node.pins())).unwrap();
        assert_eq!(maps.load().unwrap(), before);
        assert_eq!([7, far].map(|id| maps.tables.loads.get(id).unwrap()), [1, 1]);
        for programs in [&ebpf, &next] {
            assert_eq!(leave(programs, &from(2, "A")), want(2, "A"));
        }
        let dead = Backend { state: state::DEAD, generation: 2, ..backend(9) };
        maps.apply(&Write::PutBackend { id: far, backend: dead }).unwrap();
        for programs in [&ebpf, &next] {
            assert_ne!(leave(programs, &from(2, "A")), want(2, "A"), "in the same part");
        }
    });
}

#[test]
fn a_full_table_is_replaced_while_packets_come() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        serve(&mut maps, 0, 5, 7, FrontendFlags::default());
        let done = AtomicBool::new(false);
        let n_packets = std::thread::scope(|scope| {
            let packets = scope.spawn(|| {
                let mut n = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    let port = 1024 + n % 60_000;
                    let (address, flags) = (format!("10.1.{}.1:{port}", n / 60_000), "tcp S");
                    let sent = leave(&ebpf, &format!("{address} > 10.96.0.0:80 {flags}"));
                    assert_eq!(sent, format!("{address} > 10.2.0.9:8080 {flags}"), "packet {n}");
                    n += 1;
                }
                n
            });
            let frontend = Frontend { service_id: 1, base: 5, n: 1, ..Frontend::ZERO };
            for n in 1..=FRONTENDS {
                maps.apply(&Write::PutFrontend { key: frontend_key(n), frontend }).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            packets.join().unwrap()
        });
        println!("{n_packets} packets");
        assert!(n_packets > 1000, "{n_packets}");
        let capacity = || maps::pinned_capacity(&node.pins().map(&MAP_FRONTENDS));
        assert_eq!(capacity(), Some(2 * FRONTENDS));
        assert!(!node.pins().next(&MAP_FRONTENDS).exists());
        let last = frontend_key(FRONTENDS).addr;
        let to_last = format!("10.3.0.1:5 > {last}:80 tcp S");
        assert_eq!(leave(&ebpf, &to_last), "10.3.0.1:5 > 10.2.0.9:8080 tcp S");

        // The next agent begins with it, and its programs and those before use the same.
        let before = maps.load().unwrap();
        drop(maps);
        let mut next = node.load();
        let mut maps = Maps::take(&mut next, Some(&node.pins())).unwrap();
        assert_eq!(maps.load().unwrap(), before);
        maps.apply(&Write::DeleteFrontend { key: frontend_key(FRONTENDS) }).unwrap();
        for programs in [&ebpf, &next] {
            assert_eq!(leave(programs, &to_last.replace(":5", ":6")), to_last.replace(":5", ":6"));
        }
    });
}

#[test]
fn an_agent_that_ends_while_a_table_grows_leaves_one_that_works() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        serve(&mut maps, 0, 5, 7, FrontendFlags::default());
        let before = maps.load().unwrap();
        let (pin, next_pin) = (node.pins().map(&MAP_FRONTENDS), node.pins().next(&MAP_FRONTENDS));
        let larger = || {
            let larger: HashMap<MapData, FrontendKey, Frontend> =
                HashMap::create(2 * FRONTENDS, 1).unwrap();
            larger.map().pin(&next_pin).unwrap();
            larger
        };
        let ports = std::cell::Cell::new(100);
        let served = |ebpf: &Ebpf, n: u32| {
            ports.set(ports.get() + 1);
            let from = format!("10.1.0.1:{}", ports.get());
            let sent = leave(ebpf, &format!("{from} > 10.96.0.{n}:80 tcp S"));
            sent == format!("{from} > 10.2.0.9:8080 tcp S")
        };
        // While it was filled.
        drop((larger(), maps));
        assert!(served(&ebpf, 0));
        let mut next = node.load();
        let mut maps = Maps::take(&mut next, Some(&node.pins())).unwrap();
        assert!(!next_pin.exists());
        assert_eq!(maps.load().unwrap(), before);
        assert_eq!(maps::pinned_capacity(&pin), Some(FRONTENDS));
        serve(&mut maps, 1, 6, 7, FrontendFlags::default());
        assert!(served(&ebpf, 1) && served(&next, 1));
        // When it had its name, but not its place yet.
        let before = maps.load().unwrap();
        let mut filled = larger();
        for (key, frontend) in &before.frontends {
            filled.insert(key, frontend, 0).unwrap();
        }
        fs::rename(&next_pin, &pin).unwrap();
        drop((filled, maps));
        assert!(served(&ebpf, 0) && served(&ebpf, 1), "from the one before");
        let mut last = node.load();
        let mut maps = Maps::take(&mut last, Some(&node.pins())).unwrap();
        assert_eq!(maps.load().unwrap(), before);
        assert_eq!(maps::pinned_capacity(&pin), Some(2 * FRONTENDS));
        serve(&mut maps, 2, 8, 7, FrontendFlags::default());
        for programs in [&ebpf, &next, &last] {
            assert!((0..3).all(|n| served(programs, n)));
        }
    });
}

#[test]
fn a_table_that_cannot_grow_stays_and_grows_later() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        let put = |id| Write::PutBackend { id, backend: backend(9) };
        let error = maps.apply(&put(BACKENDS_MAX)).unwrap_err();
        assert!(error.full && error.map == "backends", "{error}");
        assert_eq!(maps.tables.backends.len(), BACKENDS, "not for what there never is");
        let obstacle = node.pins().part(&MAP_BACKENDS, 1);
        fs::create_dir(&obstacle).unwrap();
        let refused = maps.apply(&put(BACKENDS)).unwrap_err();
        println!("{refused}");
        maps.apply(&put(BACKENDS - 1)).unwrap();
        fs::remove_dir(&obstacle).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        maps.apply(&put(BACKENDS)).unwrap();
    });
}

#[test]
fn source_ranges_grow_and_keep_strangers_out() {
    in_node(|node: &Node| {
        let mut ebpf = node.load();
        let mut maps = Maps::take(&mut ebpf, Some(&node.pins())).unwrap();
        serve(&mut maps, 0, 5, 7, FrontendFlags::SOURCE_RANGES);
        let range = |n: u32| {
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + n);
            let clients: Prefix = format!("{ip}/32").parse().unwrap();
            RangeKey { service_id: 1, clients }
        };
        for n in 0..=SOURCE_RANGES {
            maps.apply(&Write::PutSourceRange { key: range(n) }).unwrap();
        }
        assert_eq!(maps.load().unwrap().source_ranges.len(), SOURCE_RANGES as usize + 1);
        let to = "10.96.0.0:80 tcp S";
        for client in ["172.16.0.0:5", "172.16.64.0:5"] {
            let sent = leave(&ebpf, &format!("{client} > {to}"));
            assert_eq!(sent, format!("{client} > 10.2.0.9:8080 tcp S"));
        }
        let stranger = leave(&ebpf, &format!("172.16.64.1:5 > {to}"));
        assert_ne!(stranger, "172.16.64.1:5 > 10.2.0.9:8080 tcp S");
    });
}
