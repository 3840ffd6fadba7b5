//! The real maps: every kind of write, and what a restart reads of it. The maps are private to the process; nothing
//! is attached.

use lb_common::be::Be16;
use lb_common::config::{Config, Settings};
use lb_common::flow::proto;
use lb_common::service::{
    Affinity, AffinityKey, Backend, Frontend, FrontendFlags, FrontendKey, state,
};
use lb_core::cluster::Prefix;
use lb_core::plan::{MapStore as _, RangeKey, Write};
use lb_kernel::bpf::load::{self, LoadOptions};
use lb_kernel::bpf::store::Maps;
use lb_testkit::objects::{addr, nth};

fn maps() -> Maps {
    let options = LoadOptions { pin_dir: None, config: Config::ZERO, ct_entries: 131_072 };
    Maps::take(&mut load::load(&options).unwrap(), None).unwrap()
}

fn range(service_id: u32, text: &str) -> RangeKey {
    RangeKey { service_id, clients: text.parse().unwrap() }
}

#[test]
fn what_was_written_is_read_after_a_restart() {
    let mut maps = maps();
    let backend = Backend {
        addr: addr("10.244.1.1"),
        port: Be16::new(8080),
        proto: proto::TCP,
        state: state::ACTIVE,
        generation: 1,
        ..Backend::ZERO
    };
    let key = FrontendKey::new(addr("203.0.113.1"), Be16::new(80), proto::TCP);
    let flags = FrontendFlags::EXTERNAL | FrontendFlags::SOURCE_RANGES;
    let frontend = Frontend { service_id: 7, flags, base: 5, n: 1, ..Frontend::ZERO };
    let settings = Settings { node4: addr("172.31.0.1"), n_service_cidrs: 1, ..Settings::ZERO };
    let pod_ranges: [Prefix; 2] =
        ["10.244.2.0/24", "fd44:0:0:2::/64"].map(|range| range.parse().unwrap());
    let ranges = ["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "::/0", "2001:db8::1/128"];
    let ops = [
        Write::PutBackend { id: 3, backend },
        Write::PutSlot { slot: 5, backend_id: 3 },
        Write::PutFrontendPorts { word: 1, bits: 1 << 16 },
        Write::PutHostPorts { word: 1023, bits: 1 << 63 },
        Write::PutFormerPorts { word: 0, bits: 2 },
        Write::PutFrontend { key, frontend },
        Write::PutSettings(Box::new(settings)),
    ];
    let put = |range: &RangeKey| Write::PutSourceRange { key: *range };
    let ranges: Vec<_> = ranges.iter().map(|text| range(7, text)).collect();
    let put_pods = |range: &Prefix| Write::PutPodRange { range: *range };
    for op in ranges.iter().map(put).chain(pod_ranges.iter().map(put_pods)).chain(ops) {
        // Twice: a write that came through without our hearing of it is tried again.
        maps.apply(&op).unwrap();
        maps.apply(&op).unwrap();
    }
    let actual = maps.load().unwrap();
    assert_eq!(actual.frontends.get(&key), Some(&frontend));
    assert_eq!(actual.slots, [0, 0, 0, 0, 0, 3]);
    assert_eq!(actual.backends.get(3), Some(&backend));
    assert_eq!(actual.source_ranges, ranges.iter().copied().collect());
    assert_eq!(actual.pod_ranges, pod_ranges.into());
    assert_eq!(actual.frontend_ports, [0, 1 << 16]);
    assert_eq!((actual.host_ports.len(), actual.host_ports.last()), (1024, Some(&(1 << 63))));
    assert_eq!(actual.former_ports, [2]);
    assert_eq!(actual.settings.as_deref(), Some(&settings));

    for key in &ranges {
        let op = Write::DeleteSourceRange { key: *key };
        maps.apply(&op).unwrap();
        maps.apply(&op).unwrap();
    }
    for range in pod_ranges {
        maps.apply(&Write::DeletePodRange { range }).unwrap();
        maps.apply(&Write::DeletePodRange { range }).unwrap();
    }
    maps.apply(&Write::DeleteFrontend { key }).unwrap();
    maps.apply(&Write::PutFrontendPorts { word: 1, bits: 0 }).unwrap();
    let actual = maps.load().unwrap();
    assert!(actual.source_ranges.is_empty() && actual.frontends.is_empty());
    assert!(actual.pod_ranges.is_empty());
    assert!(actual.frontend_ports.is_empty());
}

#[test]
fn the_longest_range_of_the_right_service_is_found() {
    let mut maps = maps();
    for key in [range(7, "10.0.0.0/8"), range(8, "0.0.0.0/0"), range(9, "2001:db8::/32")] {
        maps.apply(&Write::PutSourceRange { key }).unwrap();
    }
    for (service_id, client, want) in [
        (7, "10.1.2.3", true),
        (7, "11.1.2.3", false),
        (8, "11.1.2.3", true),
        (8, "2001:db8::1", false),
        (9, "2001:db8::1", true),
        (9, "10.1.2.3", false),
        (6, "10.1.2.3", false),
    ] {
        let host = RangeKey { service_id, clients: Prefix::host(addr(client)) };
        let (bits, data) = host.to_map();
        let found = maps.tables.source_ranges.get(&aya::maps::lpm_trie::Key::new(bits, data), 0);
        assert_eq!(found.is_ok(), want, "{client} of {service_id}");
    }
}

#[test]
fn s12_affinity_of_one_service_port_is_cleared() {
    let mut maps = maps();
    let key = |i: u32| AffinityKey { client: nth("10.0.0.0", i), service_id: 1 + i % 2 };
    for i in 0..1000 {
        maps.tables
            .affinity
            .insert(&key(i), &Affinity { backend_id: i, ..Affinity::ZERO }, 0)
            .unwrap();
    }
    maps.apply(&Write::ClearAffinity { service_id: 1 }).unwrap();
    maps.apply(&Write::ClearAffinity { service_id: 3 }).unwrap();
    let left: Vec<_> = maps.tables.affinity.keys().map(|key| key.unwrap().service_id).collect();
    assert_eq!((left.len(), left.iter().all(|id| *id == 2)), (500, true));
}
