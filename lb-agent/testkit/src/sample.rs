//! Tables of policies by hand: one Pod, two peers, one rule a line.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::policy::{Bits, Group, GroupFlags, PeerKey, PolicyState, PortKey, tier};

use crate::bed::{Bed, addr};

/// Networks of the addresses (`10.N.0.1`, `fd00:N::1`), which are the identities at the same time: the Pod's own,
pub const POD: u8 = 1;
/// a peer's,
pub const PEER: u8 = 2;
/// and another's.
pub const OTHER: u8 = 7;

/// A direction and its group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SampleDirection(u32);

/// Into the Pod.
pub const INGRESS: SampleDirection = SampleDirection(1);
/// Out of the Pod.
pub const EGRESS: SampleDirection = SampleDirection(2);

impl SampleDirection {
    /// Index of its group.
    pub const fn group(self) -> u32 {
        self.0
    }
}

/// The socket address of a network.
pub fn at(v4: bool, net: u8, port: u16) -> String {
    std::net::SocketAddr::new(addr(v4, net, 1), port).to_string()
}

/// The peers and ports that a rule allows or denies.
#[derive(Clone, Copy)]
struct SampleRule {
    tier: u8,
    denies: bool,
    ident: u8,
    what: Option<(u8, u16)>,
}

/// What isolates a Pod in a direction, and what it allows.
pub struct SamplePolicy {
    direction: SampleDirection,
    rules: Vec<SampleRule>,
}

impl SamplePolicy {
    /// Isolates in a direction, without a rule.
    pub fn new(direction: SampleDirection) -> Self {
        Self { direction, rules: Vec::new() }
    }

    /// Adds a rule that allows this.
    pub fn allow(mut self, ident: u8, protocol: u8, port: u16) -> Self {
        let what = Some((protocol, port));
        self.rules.push(SampleRule { tier: tier::NETWORK_POLICY, denies: false, ident, what });
        self
    }

    /// Every protocol and port.
    pub fn allow_all(mut self, ident: u8) -> Self {
        let rule = SampleRule { tier: tier::NETWORK_POLICY, denies: false, ident, what: None };
        self.rules.push(rule);
        self
    }

    /// Adds a rule of a tier that denies this.
    pub fn deny(mut self, tier: u8, ident: u8, protocol: u8, port: u16) -> Self {
        self.rules.push(SampleRule { tier, denies: true, ident, what: Some((protocol, port)) });
        self
    }

    /// Writes it as the group of its direction.
    pub fn put(&self, bed: &mut Bed) {
        self.put_as(bed, self.direction.group());
    }

    /// Writes it as this group; each rule a word of its own.
    pub fn put_as(&self, bed: &mut Bed, index: u32) {
        let mut group = Group { flags: GroupFlags::ISOLATED, ..Group::ZERO };
        for (word, rule) in self.rules.iter().enumerate() {
            group.tiers[word] = rule.tier;
            let actions = if rule.denies { &mut group.deny } else { &mut group.accept };
            actions[word] = 1;
            let mut bits = Bits::ZERO;
            bits.words[word] = 1;
            let key = PeerKey { group: index, ident: rule.ident.into() };
            let old: Bits = bed.get("peer_bits", key).unwrap_or(Bits::ZERO);
            let merged = Bits { words: std::array::from_fn(|i| old.words[i] | bits.words[i]) };
            bed.put("peer_bits", key, merged);
            let (plen, proto, port) = match rule.what {
                Some((proto, port)) => (PortKey::ONE_PORT, proto, port),
                None => (PortKey::ANY_PROTOCOL, 0, 0),
            };
            let key = PortKey { group: index, guess: 0, proto, port: Be16::new(port) };
            bed.put_prefix("port_bits", plen, key, bits);
        }
        bed.set("groups", index, group);
    }
}

/// The identities of all three.
pub fn idents(bed: &mut Bed, v4: bool) {
    for net in [POD, PEER, OTHER] {
        let ifindex = u32::from(net == POD);
        let ident = Ident { ident: net.into(), flags: IdentFlags::POD, ifindex, reserved: 0 };
        let words = Addr::from_ip(addr(v4, net, 1)).words().map(|word| word.to_wire());
        bed.put("ident", words, ident);
    }
}

fn known(v4: bool) -> PodEntry {
    let own = Addr::from_ip(addr(v4, POD, 1));
    let (ip4, ip6) = if v4 { (own, Addr::NONE) } else { (Addr::NONE, own) };
    PodEntry { ip4, ip6, ..PodEntry::ZERO }
}

/// The Pod, behind the device that packets are run through, with the groups of both directions; and all Pods'
/// identity.
pub fn pod(bed: &mut Bed, v4: bool) {
    let pod = PodEntry { ingress: INGRESS.group(), egress: EGRESS.group(), ..known(v4) };
    bed.put("pods", 1_u32, pod);
    idents(bed, v4);
}

/// The Pod with addresses of both families, and groups of both directions.
pub fn both(bed: &mut Bed) {
    let (ip4, ip6) = (known(true).ip4, known(false).ip6);
    let pod =
        PodEntry { ip4, ip6, ingress: INGRESS.group(), egress: EGRESS.group(), ..PodEntry::ZERO };
    bed.put("pods", 1_u32, pod);
}

/// The Pod with a shadow of its egress.
pub fn shadowed(bed: &mut Bed, enforced: bool, shadow: u32) {
    let egress = if enforced { EGRESS.group() } else { 0 };
    bed.put("pods", 1_u32, PodEntry { egress, shadow_egress: shadow, ..known(true) });
    idents(bed, true);
}

/// Puts the policies in force under a number.
pub fn epoch(bed: &mut Bed, epoch: u32) {
    bed.set("policy", 0, PolicyState { epoch, ..PolicyState::ZERO });
}

/// The same, with groups for devices that are not known.
pub fn pending(bed: &mut Bed, epoch: u32, both: bool) {
    let (pending_ingress, pending_egress) =
        if both { (INGRESS.group(), EGRESS.group()) } else { (0, 0) };
    let state = PolicyState { epoch, pending_ingress, pending_egress, ..PolicyState::ZERO };
    bed.set("policy", 0, state);
}
