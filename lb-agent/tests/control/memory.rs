//! The limit on memory in `deploy/daemonset.yaml` holds what the kernel charges to the agent: the maps, grown and full, and the
//! agent itself at the worst input.

use std::mem::size_of;

use lb_common::account::{AccountEntry, AccountKey};
use lb_common::addr::Addr;
use lb_common::budget::Budget;
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::endpoint::{Dev, Ident, PodEntry, PodSource};
use lb_common::fragment::{FragmentKey, FragmentPorts};
use lb_common::limits;
use lb_common::past::LocalEnd;
use lb_common::policy::{Bits, Group, HitKey, PeerKey, PortKey};
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};
use lb_common::socket::{SkMoreKey, SkNat};

const MIB: u64 = 1 << 20;
/// What `the_worst_policies_stay_within_the_limit_and_cost_others_nothing` of `node::agent` allows.
const AGENT: u64 = 256 * MIB;
/// Programs, sockets, what per-CPU caches of the kernel's allocator hold.
const REST: u64 = 64 * MIB;
const CPUS: u64 = 256;
/// Conntrack entries by default, at most (`ct_default` of `config.rs`).
const CT: u64 = 1_048_576;

/// Bytes of an element of a hash table: 48 (`struct htab_elem`), key and value, and 8 of the allocator, in its size
/// classes; and two buckets of 16 bytes, since their number is rounded up.
fn hash(n: u32, key: usize, value: usize) -> u64 {
    let element = 56 + key.next_multiple_of(8) + value.next_multiple_of(8);
    let class = [96, 128, 192, 256, 512].into_iter().find(|class| element <= *class).unwrap();
    u64::from(n) * (class as u64 + 32)
}

/// Of a trie: 40 bytes (`struct lpm_trie_node`) and as many nodes between the elements.
fn trie(n: u32, key: usize, value: usize) -> u64 {
    let class = [64, 96, 128].into_iter().find(|class| 48 + key + value <= *class).unwrap();
    u64::from(n) * 2 * class as u64
}

fn array(n: u32, value: usize) -> u64 {
    u64::from(n) * value.next_multiple_of(8) as u64
}

#[test]
fn the_limit_on_memory_holds_the_worst() {
    let ct = hash(CT as u32, size_of::<CtKey>(), size_of::<CtEntry>());
    let addr = size_of::<Addr>();
    let bits = size_of::<Bits>();
    let size = |map: &str| match map {
        "frontends" => hash(limits::FRONTENDS_MAX, size_of::<FrontendKey>(), size_of::<Frontend>()),
        "slots" => array(limits::SLOTS_MAX, 4),
        "backends" => array(limits::BACKENDS_MAX, size_of::<Backend>()),
        "pods" => hash(limits::PODS, 4, size_of::<PodEntry>()),
        "fragments" => {
            hash(limits::FRAGMENTS, size_of::<FragmentKey>(), size_of::<FragmentPorts>())
        }
        "own_flows" => hash(limits::OWN_FLOWS, size_of::<CtKey>(), 4),
        "sk_more" => hash(limits::SK_MORE, size_of::<SkMoreKey>(), size_of::<SkNat>()),
        "affinity" => hash(limits::AFFINITY, size_of::<AffinityKey>(), size_of::<Affinity>()),
        "source_ranges" => trie(limits::SOURCE_RANGES_MAX, size_of::<SourceRange>(), 4),
        "ident" => hash(limits::IDENT_MAX, addr, size_of::<Ident>()),
        "devs" => hash(limits::DEVS, 4, size_of::<Dev>()),
        "loads" => array(limits::BACKENDS_MAX, 4),
        "groups" => array(limits::GROUPS, size_of::<Group>()),
        "peer_bits" => hash(limits::PEER_BITS, size_of::<PeerKey>(), bits),
        "port_bits" => trie(limits::PORT_BITS, size_of::<PortKey>(), bits),
        "cidrs" => trie(limits::CIDRS, addr, 4),
        "budgets" => array(limits::BUDGETS, size_of::<Budget>()),
        "links" => array(limits::LINKS, 8),
        "locals" => array(limits::PODS, size_of::<LocalEnd>()),
        "macs" => hash(limits::MACS, 8, 4),
        "pod_ranges" => trie(limits::POD_RANGES, addr, 4),
        "pod_sources" => trie(limits::POD_SOURCES, size_of::<PodSource>(), 4),
        "hits" => hash(limits::HITS, size_of::<HitKey>(), 8) + u64::from(limits::HITS) * 8 * CPUS,
        // Only while flows are counted, which the limit has to be raised for.
        "accounts" => 0,
        "counters" | "samples" | "sk_nat" | "events" | "settings" | "frontend_ports"
        | "host_ports" | "former_ports" | "policy" | "frontends_now" | "ranges_now"
        | "ident_now" | "slots_parts" | "backends_parts" | "loads_parts" => 4 * MIB,
        // The conntrack table, and what is as large as that at most.
        _ => ct,
    };
    let maps: Vec<(&str, u64)> =
        limits::MAPS.iter().map(|map| (map.name, size(map.name))).collect();
    for (map, bytes) in &maps {
        println!("{map:15} {:4} MiB", bytes.div_ceil(MIB));
    }
    let sum: u64 = maps.iter().map(|(_, bytes)| bytes).sum();
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/daemonset.yaml"))
            .unwrap();
    let limits = manifest.split_once("limits:").unwrap().1;
    let limit = limits.split_once("memory: ").unwrap().1.split_whitespace().next().unwrap();
    let limit = limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() * MIB;
    println!("maps {} MiB, limit {} MiB", sum.div_ceil(MIB), limit / MIB);
    // What `docs/src/sizing.md` says of counting flows: 320 bytes for each entry of `ct`.
    let accounts = limits::account_entries(CT as u32);
    let accounts = hash(accounts, size_of::<AccountKey>(), size_of::<AccountEntry>());
    println!("accounts {} MiB while flows are counted", accounts / MIB);
    assert_eq!(accounts, CT * 320);
    assert!(sum + AGENT + REST <= limit, "{sum} bytes of maps: {maps:?}");
}
