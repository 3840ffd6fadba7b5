//! Classes of packets between Pods, as rules of the node see them: all packets in one direction, of one family and one state of
//! their connection together. A field has a set of values in a class. A condition holds for all of them, for none, or for some.
//!
//! Packets that the connection tracking calls invalid are in no class: `ct state invalid drop` is there for what it has not seen
//! from the beginning.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::addr::Addr;

use super::{BaseChain, ChainHook, PacketField, RuleCondition, TableFamily, state};
use crate::cluster::Prefix;

/// What packets from and to Pods of this node look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTraffic {
    /// Addresses of the Pods, of both families.
    pub addresses: BTreeSet<Addr>,
    /// Devices by which their routed packets come in and leave: veths, and bridges that Pods' veths are ports of.
    pub routed: BTreeSet<(u32, String)>,
    /// Pods' veths that are ports of bridges.
    pub ports: BTreeSet<(u32, String)>,
    /// Devices by which packets from and to Pods of other nodes leave and come in.
    pub outward: BTreeSet<(u32, String)>,
    /// Ranges in which the addresses of these are, and perhaps other addresses.
    pub elsewhere: BTreeSet<Prefix>,
    /// Addresses of other nodes, from which packets to Pods of this node come, their own and those of clients that they masquerade.
    pub nodes: BTreeSet<Addr>,
}

/// Ranges of Pods of other nodes that are kept separate in each family: more make a judgement slow, so they become larger ones.
const RANGES: usize = 64;
/// Their bits, the smallest ranges first.
const BITS: ([u8; 5], [u8; 5]) = ([24, 20, 16, 12, 8], [64, 56, 48, 40, 32]);

impl PodTraffic {
    /// A few ranges in which all these are, and most likely what comes next.
    pub fn ranges(known: impl Iterator<Item = Prefix>) -> BTreeSet<Prefix> {
        let wider = |prefix: &Prefix, bits: u8| {
            Prefix::new(prefix.addr(), prefix.bits().min(bits)).unwrap_or(*prefix)
        };
        let first = |prefix: &Prefix| if prefix.addr().is_v4() { BITS.0[0] } else { BITS.1[0] };
        let known: BTreeSet<Prefix> = known.map(|prefix| wider(&prefix, first(&prefix))).collect();
        let family = |v4: bool, sizes: [u8; 5]| {
            let of = |bits: u8| -> BTreeSet<Prefix> {
                let same = known.iter().filter(move |prefix| prefix.addr().is_v4() == v4);
                same.map(|prefix| wider(prefix, bits)).collect()
            };
            let all = of(0);
            sizes.into_iter().map(of).find(|ranges| ranges.len() <= RANGES).unwrap_or(all)
        };
        family(true, BITS.0).into_iter().chain(family(false, BITS.1)).collect()
    }

    /// Whether all Pods of other nodes were in the ranges of another one, and it has all other nodes.
    pub fn is_elsewhere_within(&self, other: &Self) -> bool {
        let is_in = |range: &Prefix| other.elsewhere.iter().any(|wide| wide.covers(range));
        self.elsewhere.iter().all(is_in) && self.nodes.is_subset(&other.nodes)
    }

    /// The addresses of this node's Pods of a family, each alone.
    pub(super) fn own(&self, v4: bool) -> Vec<Prefix> {
        self.addresses.iter().filter(|addr| addr.is_v4() == v4).map(|a| Prefix::host(*a)).collect()
    }

    /// Those of other nodes, each alone if there are few.
    pub(super) fn of_nodes(&self, v4: bool) -> Vec<Prefix> {
        let nodes = self.nodes.iter().filter(|addr| addr.is_v4() == v4);
        let nodes: Vec<Prefix> = nodes.map(|addr| Prefix::host(*addr)).collect();
        if nodes.len() <= RANGES {
            nodes
        } else {
            Self::ranges(nodes.into_iter()).into_iter().collect()
        }
    }

    /// Those of other nodes' Pods.
    pub(super) fn others(&self, v4: bool) -> Vec<Prefix> {
        self.elsewhere.iter().filter(|range| range.addr().is_v4() == v4).copied().collect()
    }
}

/// Between which ends packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrafficLeg {
    /// Pods of this node.
    Within,
    /// From Pods of this node to those of others.
    Out,
    /// From Pods of other nodes to those of this one.
    In,
    /// From other nodes to Pods of this one.
    FromNodes,
    /// The answers to these: what Pods begin with nodes does not go past the stack.
    ToNodes,
}

/// In which direction a leg goes through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heading {
    Within,
    Out,
    In,
}

impl TrafficLeg {
    const fn heading(self) -> Heading {
        match self {
            Self::Within => Heading::Within,
            Self::Out | Self::ToNodes => Heading::Out,
            Self::In | Self::FromNodes => Heading::In,
        }
    }

    /// The states of connections that its packets have.
    const fn states(self, first_only: bool) -> &'static [u32] {
        match (self, first_only) {
            (Self::ToNodes, true) => &[],
            (Self::ToNodes, false) => &[state::ESTABLISHED, state::RELATED],
            (_, true) => &[state::NEW],
            (_, false) => &[state::NEW, state::ESTABLISHED, state::RELATED],
        }
    }
}

/// For how many packets of a class something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    Never,
    Maybe,
    Always,
}

/// The devices of a class at one end.
type ClassDevices<'a> = Option<&'a BTreeSet<(u32, String)>>;

/// Packets that are followed together.
#[derive(Clone)]
pub(super) struct PacketClass<'a> {
    v4: bool,
    state: u32,
    source: Vec<Prefix>,
    destination: Vec<Prefix>,
    /// By which they come in; `None` = not known.
    in_by: ClassDevices<'a>,
    /// By which they leave; `None` = not known.
    out_by: ClassDevices<'a>,
    hook: ChainHook,
}

/// The classes of a leg that get to a chain.
pub(super) fn classes<'a>(
    leg: TrafficLeg,
    family: TableFamily,
    base: &BaseChain,
    traffic: &'a PodTraffic,
) -> Vec<PacketClass<'a>> {
    let Some((in_by, out_by)) = devices(leg.heading(), family, base, traffic) else {
        return Vec::new();
    };
    let states = leg.states(base.first_only);
    let families = [(true, TableFamily::V6), (false, TableFamily::V4)];
    let families = families.into_iter().filter(|(_, not)| family != *not);
    let mut classes = Vec::new();
    for (v4, _) in families {
        for (source, destination) in ends(leg, v4, traffic) {
            if source.is_empty() || destination.is_empty() {
                continue;
            }
            let hook = base.hook;
            let class = PacketClass { v4, state: 0, source, destination, in_by, out_by, hook };
            let in_state = |state: &u32| PacketClass { state: *state, ..class.clone() };
            classes.extend(states.iter().map(in_state));
        }
    }
    classes
}

/// Sources and destinations of the classes of a leg. Each node has its own: some have addresses in the network of the Pods, too, of
/// which rules say something else.
fn ends(leg: TrafficLeg, v4: bool, traffic: &PodTraffic) -> Vec<(Vec<Prefix>, Vec<Prefix>)> {
    let own = || traffic.own(v4);
    let nodes = || traffic.of_nodes(v4).into_iter().map(|node| vec![node]);
    match leg {
        TrafficLeg::Within => vec![(own(), own())],
        TrafficLeg::Out => vec![(own(), traffic.others(v4))],
        TrafficLeg::In => vec![(traffic.others(v4), own())],
        TrafficLeg::FromNodes => nodes().map(|node| (node, own())).collect(),
        TrafficLeg::ToNodes => nodes().map(|node| (own(), node)).collect(),
    }
}

/// By which devices packets that go in a direction come in and leave that get to a chain; `None` = none gets there.
fn devices<'a>(
    heading: Heading,
    family: TableFamily,
    base: &BaseChain,
    traffic: &'a PodTraffic,
) -> Option<(ClassDevices<'a>, ClassDevices<'a>)> {
    let PodTraffic { routed, ports, outward, .. } = traffic;
    let is_bridge = family == TableFamily::Bridge;
    let own = if is_bridge { ports } else { routed };
    if own.is_empty() || heading != Heading::Within && outward.is_empty() {
        return None;
    }
    // A chain for some devices sees what comes in by them.
    let entries: &[&BTreeSet<(u32, String)>] = match heading {
        Heading::Within | Heading::Out => &[routed, ports],
        Heading::In => &[outward],
    };
    let is_here =
        |name: &String| entries.iter().any(|set| set.iter().any(|(_, known)| known == name));
    if !base.devices.is_empty() && !base.devices.iter().any(is_here) {
        return None;
    }
    let between_bridges = routed.len() > 1;
    match (heading, base.hook) {
        // Between Pods of one bridge nothing is handed to the node.
        (Heading::Within, ChainHook::Input | ChainHook::Output) if !between_bridges => None,
        (Heading::Within, _) => Some((Some(own), Some(own))),
        (Heading::Out, ChainHook::Ingress) => Some((None, None)),
        (Heading::In, ChainHook::Ingress) => Some((None, None)),
        // A bridge sees what its Pods send before the node does, and what they receive after it.
        (Heading::Out, ChainHook::Output | ChainHook::Postrouting) if is_bridge => None,
        (Heading::In, ChainHook::Prerouting | ChainHook::Input) if is_bridge => None,
        (Heading::Out, _) if is_bridge => Some((Some(ports), None)),
        (Heading::In, _) if is_bridge => Some((None, Some(ports))),
        (Heading::Out, _) => Some((Some(routed), Some(outward))),
        (Heading::In, _) => Some((Some(outward), Some(routed))),
    }
}

/// The values of a field: the first and the last one of ranges.
type FieldValues = Vec<(Vec<u8>, Vec<u8>)>;

impl PacketClass<'_> {
    /// The values that a field has in packets of the class; `None` = not known.
    fn values(&self, field: PacketField) -> Option<FieldValues> {
        let one = |value: &[u8]| Some(vec![(value.to_vec(), value.to_vec())]);
        // Where it leaves is not known before it is routed, and a condition about it does not hold.
        let is_early = matches!(self.hook, ChainHook::Prerouting | ChainHook::Ingress);
        match field {
            PacketField::Network { offset, length } => self.network(offset, length),
            PacketField::InName => self.in_by.map(names),
            PacketField::InIndex => self.in_by.map(indexes),
            PacketField::OutName | PacketField::OutIndex if is_early => Some(Vec::new()),
            PacketField::OutName => self.out_by.map(names),
            PacketField::OutIndex => self.out_by.map(indexes),
            PacketField::State => one(&self.state.to_ne_bytes()),
            // No sender outside can set it: a packet that comes from another namespace or machine has none.
            PacketField::Mark => one(&0u32.to_ne_bytes()),
            PacketField::EtherType => one(if self.v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] }),
            // NFPROTO_IPV4, NFPROTO_IPV6.
            PacketField::Family => one(&[if self.v4 { 2 } else { 10 }]),
            // RTN_UNICAST
            PacketField::SourceType | PacketField::DestinationType => one(&1u32.to_ne_bytes()),
            PacketField::Other => None,
        }
    }

    /// Bytes of the network header: those of one of the addresses are known.
    fn network(&self, offset: u32, length: u32) -> Option<FieldValues> {
        let (size, source, destination) = if self.v4 { (4, 12, 16) } else { (16, 8, 24) };
        let end = offset.checked_add(length)?;
        let places = [(source, &self.source), (destination, &self.destination)];
        let is_at = |(place, _): &(u32, _)| offset >= *place && end <= place + size;
        let (place, ranges) = places.into_iter().find(is_at)?;
        let (from, to) = ((offset - place) as usize, (end - place) as usize);
        let part = |bytes: Vec<u8>| bytes.get(from..to).map(<[u8]>::to_vec);
        let of = |range: &Prefix| {
            let (first, last) = bounds(range);
            Some((part(first)?, part(last)?))
        };
        ranges.iter().map(of).collect()
    }

    pub(super) fn truth(&self, condition: &RuleCondition) -> Truth {
        let Some(values) = self.values(condition.field) else { return Truth::Maybe };
        let mut held = BTreeSet::new();
        held.extend(values.iter().map(|(low, high)| condition.holds((low, high))));
        if held.contains(&None) || held.len() > 1 {
            Truth::Maybe
        } else if held.contains(&Some(true)) {
            Truth::Always
        } else {
            Truth::Never
        }
    }
}

/// The first and the last address of a range, as packets have them.
fn bounds(range: &Prefix) -> (Vec<u8>, Vec<u8>) {
    let first = match range.addr().to_ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let fixed = usize::from(range.bits());
    let ones = |(i, byte): (usize, &u8)| {
        byte | 0xff_u8.checked_shr(fixed.saturating_sub(i * 8) as u32).unwrap_or(0)
    };
    let last = first.iter().enumerate().map(ones).collect();
    (first, last)
}

fn names(devices: &BTreeSet<(u32, String)>) -> FieldValues {
    let padded = |name: &String| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        (bytes.clone(), bytes)
    };
    devices.iter().map(|(_, name)| padded(name)).collect()
}

fn indexes(devices: &BTreeSet<(u32, String)>) -> FieldValues {
    let index = |index: &u32| (index.to_ne_bytes().to_vec(), index.to_ne_bytes().to_vec());
    devices.iter().map(|(number, _)| index(number)).collect()
}
