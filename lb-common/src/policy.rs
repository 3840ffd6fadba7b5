//! Network policies as the programs see them: bit vectors, one bit for each rule.
//!
//! What is enforced in one direction on a Pod is its *group*: the rules of all policies that select it. A rule is one
//! bit. Three tables say in which rules the bit is set: for the peer's identity ([`PeerKey`]), for protocol and
//! port ([`PortKey`]), and, of rules without peers, for all peers ([`Group::any`]). A rule applies where both have it:
//! `(peer | any) & port`. The bits are in the order of evaluation (Admin tier by priority, `NetworkPolicy`, Baseline
//! tier), so the first one that applies decides, however many policies there are.
//!
//! [`judge`] is compiled for the kernel and for `lbctl policy explain`: there is one evaluator.

use crate::addr::Addr;
use crate::be::Be16;
use crate::endpoint::{Ident, IdentFlags};
use crate::{flags, pod};

/// 64-bit words of a [`Group`].
pub const WORDS: usize = 4;
/// Rules of a group; more go on in [`Group::next`].
pub const RULES: usize = WORDS * 64;
/// Groups that may be chained for one direction of a Pod.
pub const CHAIN: u32 = 8;

pod! {
    /// Value of the array `groups`: up to [`RULES`] rules of one direction. Index 0 is unused: it stands for no policy.
    ///
    /// Every word belongs to one tier. Bits of a tier go on in the next word; unused bits of a word are 0 everywhere.
    pub struct Group: 112 {
        /// Rules without peers: they apply to every peer.
        pub any: [u64; WORDS],
        /// Rules that accept.
        pub accept: [u64; WORDS],
        /// Rules that deny. A rule that neither accepts nor denies passes on to the next tier.
        pub deny: [u64; WORDS],
        /// `tier::*` of each word.
        pub tiers: [u8; WORDS],
        /// Those of the first group of a chain hold for all of it.
        pub flags: GroupFlags,
        /// The group with the rules that follow; 0 = none.
        pub next: u32,
        /// Number of the first rule of this group in its chain.
        pub first: u32,
    }
}

/// Values of [`Group::tiers`], in the order of evaluation.
pub mod tier {
    /// No rule.
    pub const NONE: u8 = 0;
    /// Tier Admin of `ClusterNetworkPolicy`.
    pub const ADMIN: u8 = 1;
    /// `NetworkPolicy`.
    pub const NETWORK_POLICY: u8 = 2;
    /// Tier Baseline of `ClusterNetworkPolicy`.
    pub const BASELINE: u8 = 3;
}

flags! {
    /// Bits of [`Group::flags`].
    pub struct GroupFlags: u32 {
        /// Some `NetworkPolicy` selects the Pod in this direction: what none allows is denied.
        ISOLATED = 1 << 0;
        /// The Pod behind the device is not known yet, and may be one that a policy isolates.
        PENDING = 1 << 1;
        /// The tables could not take all of it: everything is denied.
        OVERFLOW = 1 << 2;
        /// Some rule about some ports does not accept, so that `port_bits` has elements for the guesses, too. In other groups a
        /// packet without a port is judged with port 0, which no rule about some ports has.
        SOME_PORTS = 1 << 3;
    }
}

pod! {
    /// Key of the map `peer_bits`: the rules of a group that have this identity as a peer.
    pub struct PeerKey: 8 {
        /// Index in `groups`.
        pub group: u32,
        /// Identity of the peer.
        pub ident: u32,
    }
}

pod! {
    /// Data of the key of the longest-prefix map `port_bits`: the rules of a group that apply to this protocol and
    /// destination port. The value found has the bits of all shorter prefixes, too. Prefix lengths: 40 = any protocol,
    /// 48 = any port of a protocol, 48 + k = the first k bits of the port, which is in network order.
    pub struct PortKey: 8 {
        /// Index in `groups`.
        pub group: u32,
        /// `guess::*`.
        pub guess: u8,
        /// IP protocol number.
        pub proto: u8,
        /// Destination port; 0 for protocols without ports, and where it is guessed.
        pub port: Be16,
    }
}

/// Values of [`PortKey::guess`]: what is taken for true of a packet whose port is not known. A rule about some ports that
/// accepts never applies to it.
pub mod guess {
    /// Nothing: the port is known.
    pub const NONE: u8 = 0;
    /// Rules about some ports that deny apply.
    pub const DENIES: u8 = 1;
    /// So do those that pass on to the next tier.
    pub const PASSES: u8 = 2;
}

impl PortKey {
    /// Prefix length of a key for any protocol.
    pub const ANY_PROTOCOL: u32 = 40;
    /// Prefix length of a key for any port of a protocol.
    pub const ANY_PORT: u32 = 48;
    /// Prefix length of a key for one port.
    pub const ONE_PORT: u32 = 64;
}

pod! {
    /// Value of `peer_bits` and `port_bits`: a set of rules of a group.
    pub struct Bits: 32 {
        /// Bit `i % 64` of word `i / 64` is rule `i`.
        pub words: [u64; WORDS],
    }
}

pod! {
    /// Key of the per-CPU map `hits`, whose values (`u64`) count the new flows that a rule, or the isolation, decided.
    pub struct HitKey: 12 {
        /// Index in `groups` of the first of the chain.
        pub group: u32,
        /// Number of the [`Judgement`].
        pub judgement: u32,
        /// Number of the `verdict::Outcome`.
        pub outcome: u8,
        /// 1 = into the Pod.
        pub ingress: u8,
        /// Zero.
        pub zero: u16,
    }
}

pod! {
    /// The only element of the array `policy`: what changes as policies do.
    pub struct PolicyState: 16 {
        /// Number of the state of all policy tables, raised after each change; 0 while there is no policy. A flow that
        /// was judged under another number is judged again at its next packet.
        pub epoch: u32,
        /// What is turned on.
        pub flags: PolicyFlags,
        /// Group of what enters a Pod whose device has no entry in `pods` yet; 0 = everything is allowed.
        pub pending_ingress: u32,
        /// Group of what leaves such a Pod.
        pub pending_egress: u32,
    }
}

flags! {
    /// Bits of [`PolicyState::flags`].
    pub struct PolicyFlags: u32 {
        /// Report new flows that are allowed, too: a client follows them.
        REPORT_ALLOWED = 1 << 0;
    }
}

/// What the evaluator reads. In the kernel these are maps, in user space the same maps, pinned, or tables in a test.
pub trait PolicyLookup {
    /// Element of `ident`.
    fn ident(&self, addr: &Addr) -> Option<&Ident>;
    /// Best match in `cidrs`; 0 when there is none.
    fn cidr(&self, addr: &Addr) -> u32;
    /// Element of `groups`.
    fn group(&self, index: u32) -> Option<&Group>;
    /// Element of `peer_bits`.
    fn peer_bits(&self, key: &PeerKey) -> Option<&Bits>;
    /// Best match in `port_bits`.
    fn port_bits(&self, key: &PortKey) -> Option<&Bits>;
}

/// What the policies say of a flow in one direction, as one number (see [`Judgement::rule`]).
///
/// Bits 0-15: 1 + number of the rule that decided, 0 = none did. Bits 16-17: its tier. Bit 31: denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Judgement(u32);

impl Judgement {
    /// No policy has anything to say of it.
    pub const ALLOWED: Self = Self(0);
    const DENIED: u32 = 1 << 31;
    /// No rule of the Pod's `NetworkPolicy` objects allows it (or a flag of the group denies everything).
    pub const ISOLATED: Self = Self(Self::DENIED | (tier::NETWORK_POLICY as u32) << 16);

    /// From [`Judgement::number`].
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// As a number, for events.
    pub const fn number(self) -> u32 {
        self.0
    }

    #[inline(always)]
    const fn by(rule: u32, tier: u8, denied: bool) -> Self {
        Self((rule + 1) | (tier as u32) << 16 | if denied { Self::DENIED } else { 0 })
    }

    /// Whether the flow is denied.
    #[inline(always)]
    pub const fn denied(self) -> bool {
        self.0 & Self::DENIED != 0
    }

    /// Number of the deciding rule in its group's chain; `None` when none decided.
    pub const fn rule(self) -> Option<u32> {
        (self.0 & 0xffff).checked_sub(1)
    }

    /// `tier::*` that decided; `tier::NONE` = none did, so the flow is allowed.
    pub const fn tier(self) -> u8 {
        (self.0 >> 16) as u8 & 3
    }
}

/// Identity of a peer that may bear an address of this node without being it.
#[inline(always)]
pub fn identity(tables: &impl PolicyLookup, peer: &Addr) -> u32 {
    match tables.ident(peer) {
        Some(known) => known.ident,
        None => tables.cidr(peer),
    }
}

/// Identity of a peer; `None` = this node itself, which policies do not concern: "traffic to and from the node where
/// a Pod is running is always allowed" (NetworkPolicy v1).
#[inline(always)]
pub fn identify(tables: &impl PolicyLookup, peer: &Addr) -> Option<u32> {
    match tables.ident(peer) {
        Some(known) if known.flags.contains(IdentFlags::LOCAL_NODE) => None,
        Some(known) => Some(known.ident),
        None => Some(tables.cidr(peer)),
    }
}

/// The peer of a flow, and what it is for: protocol and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Group of the Pod in the direction of the flow; not 0.
    pub group: u32,
    /// Identity of the peer.
    pub ident: u32,
    /// IP protocol number.
    pub proto: u8,
    /// Destination port; 0 for protocols without ports.
    pub port: Be16,
    /// Whether the peer is the Pod itself, through a Service: `NetworkPolicy` always allows that,
    /// `ClusterNetworkPolicy` does not.
    pub own: bool,
    /// Whether the port of the packet is not known, and [`Question::port`] is 0: a later fragment whose first one was
    /// not seen. It is denied if it would be at some port.
    pub port_unknown: bool,
}

/// The verdict of the policies (NetworkPolicy v1; `ClusterNetworkPolicy` v1alpha2: Admin, then `NetworkPolicy` where one
/// selects the Pod, else Baseline, else allowed). Where the port is not known, that of the guess that denies.
///
/// What no policy may forbid has been let through before: the node's own traffic, replies, neighbor discovery.
#[inline(always)]
pub fn judge(tables: &impl PolicyLookup, question: &Question) -> Judgement {
    if !question.port_unknown {
        return judge_as(tables, question, guess::NONE);
    }
    let judgement = judge_as(tables, question, guess::DENIES);
    if judgement.denied() { judgement } else { judge_as(tables, question, guess::PASSES) }
}

/// The verdict under a guess, of [`guess`].
#[inline(always)]
pub fn judge_as(tables: &impl PolicyLookup, question: &Question, guess: u8) -> Judgement {
    let &Question { group: mut index, ident, proto, port, own, port_unknown: _ } = question;
    let mut guess = guess;
    let mut flags = GroupFlags::ISOLATED;
    let mut passed = false;
    let mut link = 0;
    while link < CHAIN {
        let Some(group) = tables.group(index) else { return Judgement::ISOLATED };
        if link == 0 {
            flags = group.flags;
            if !flags.contains(GroupFlags::SOME_PORTS) {
                guess = guess::NONE;
            }
            if flags.intersects(GroupFlags::PENDING | GroupFlags::OVERFLOW) {
                return Judgement::ISOLATED;
            }
        }
        if let Some(ports) = tables.port_bits(&PortKey { group: index, guess, proto, port }) {
            let peer = tables.peer_bits(&PeerKey { group: index, ident });
            let mut word = 0;
            while word < WORDS {
                let applies = applying(group, peer, ports, word);
                if applies != 0 {
                    match decide(group, word, applies, flags, &mut passed) {
                        JudgementStep::GO_ON => {}
                        step => return step.judgement(),
                    }
                }
                word += 1;
            }
        }
        index = group.next;
        if index == 0 {
            break;
        }
        link += 1;
    }
    if flags.contains(GroupFlags::ISOLATED) && !own {
        Judgement::ISOLATED
    } else {
        Judgement::ALLOWED
    }
}

/// The rules of a word that apply.
#[inline(always)]
fn applying(group: &Group, peer: Option<&Bits>, ports: &Bits, word: usize) -> u64 {
    let at = |words: &[u64; WORDS]| words.get(word).copied().unwrap_or_default();
    (at(&group.any) | peer.map_or(0, |peer| at(&peer.words))) & at(&ports.words)
}

/// A judgement, or none yet: one number, since an enum with a field would leave bits undefined for the verifier.
#[derive(Clone, Copy, PartialEq, Eq)]
struct JudgementStep(u32);

impl JudgementStep {
    /// Nothing is decided. No judgement has this number: no rule has the highest one.
    const GO_ON: Self = Self(u32::MAX);

    #[inline(always)]
    const fn judgement(self) -> Judgement {
        Judgement(self.0)
    }
}

/// What the rules of a word say that apply, of which there is one at least.
#[inline(always)]
fn decide(
    group: &Group,
    word: usize,
    applies: u64,
    flags: GroupFlags,
    passed: &mut bool,
) -> JudgementStep {
    let tier = group.tiers.get(word).copied().unwrap_or_default();
    match tier {
        tier::ADMIN if *passed => return JudgementStep::GO_ON,
        // `NetworkPolicy` is final for the Pods that one selects.
        tier::BASELINE if flags.contains(GroupFlags::ISOLATED) => return JudgementStep::GO_ON,
        _ => {}
    }
    let bit = applies.trailing_zeros();
    let has = |words: &[u64; WORDS]| words.get(word).is_some_and(|word| word >> bit & 1 != 0);
    let denies = has(&group.deny);
    if !denies && !has(&group.accept) {
        // Pass: on to the next tier, and behind Baseline everything is allowed.
        *passed = true;
        return if tier == tier::ADMIN {
            JudgementStep::GO_ON
        } else {
            JudgementStep(Judgement::ALLOWED.0)
        };
    }
    JudgementStep(Judgement::by(group.first + word as u32 * 64 + bit, tier, denies).0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::{
        Bits, Group, GroupFlags, Judgement, PeerKey, PolicyLookup, PortKey, Question, WORDS,
        identify, judge, tier,
    };
    use crate::addr::Addr;
    use crate::be::Be16;
    use crate::endpoint::{Ident, IdentFlags};

    /// Groups by index, peers by identity; every rule is for every port.
    #[derive(Default)]
    struct Sample {
        idents: BTreeMap<Addr, Ident>,
        groups: Vec<Group>,
        peers: BTreeMap<(u32, u32), Bits>,
        ports: BTreeMap<u32, Bits>,
    }

    impl PolicyLookup for Sample {
        fn ident(&self, addr: &Addr) -> Option<&Ident> {
            self.idents.get(addr)
        }

        fn cidr(&self, _: &Addr) -> u32 {
            5
        }

        fn group(&self, index: u32) -> Option<&Group> {
            self.groups.get(index as usize)
        }

        fn peer_bits(&self, key: &PeerKey) -> Option<&Bits> {
            self.peers.get(&(key.group, key.ident))
        }

        fn port_bits(&self, key: &PortKey) -> Option<&Bits> {
            self.ports.get(&key.group)
        }
    }

    #[derive(Clone, Copy)]
    enum Action {
        Accept,
        Deny,
        Pass,
    }

    /// Name, flags, rules; and the judgement: denied, tier, rule.
    type Case<'a> = (&'a str, GroupFlags, &'a [(u8, Action)], bool, u8, Option<u32>);

    /// A chain of one group: each rule a word of its own, for identity 7.
    fn sample(flags: GroupFlags, rules: &[(u8, Action)]) -> Sample {
        let mut group = Group { flags, ..Group::ZERO };
        let mut bits = Bits::ZERO;
        for (word, (tier, action)) in rules.iter().enumerate() {
            group.tiers[word] = *tier;
            bits.words[word] = 1 << (word + 3);
            match action {
                Action::Accept => group.accept[word] = bits.words[word],
                Action::Deny => group.deny[word] = bits.words[word],
                Action::Pass => {}
            }
        }
        Sample {
            idents: BTreeMap::new(),
            groups: std::vec![Group::ZERO, group],
            peers: BTreeMap::from([((1, 7), bits)]),
            ports: BTreeMap::from([(1, Bits { words: [u64::MAX; WORDS] })]),
        }
    }

    fn ask(sample: &Sample, ident: u32, own: bool) -> Judgement {
        judge(
            sample,
            &Question { group: 1, ident, proto: 6, port: Be16::new(80), own, port_unknown: false },
        )
    }

    #[test]
    fn tiers_in_their_order() {
        use Action::{Accept, Deny, Pass};
        const ISOLATED: GroupFlags = GroupFlags::ISOLATED;
        use tier::{ADMIN, BASELINE, NETWORK_POLICY as NP};
        let cases: [Case<'_>; 12] = [
            ("nothing applies", GroupFlags::NONE, &[], false, 0, None),
            ("isolated, nothing applies", ISOLATED, &[], true, NP, None),
            ("allowed by NetworkPolicy", ISOLATED, &[(NP, Accept)], false, NP, Some(3)),
            ("Admin accepts first", ISOLATED, &[(ADMIN, Accept)], false, ADMIN, Some(3)),
            (
                "Admin denies what NP allows",
                ISOLATED,
                &[(ADMIN, Deny), (NP, Accept)],
                true,
                ADMIN,
                Some(3),
            ),
            (
                "Admin passes to NP",
                ISOLATED,
                &[(ADMIN, Pass), (ADMIN, Deny), (NP, Accept)],
                false,
                NP,
                Some(133),
            ),
            (
                "Admin passes to isolation",
                ISOLATED,
                &[(ADMIN, Pass), (ADMIN, Accept)],
                true,
                NP,
                None,
            ),
            (
                "Admin passes to Baseline",
                GroupFlags::NONE,
                &[(ADMIN, Pass), (ADMIN, Accept), (BASELINE, Deny)],
                true,
                BASELINE,
                Some(133),
            ),
            ("Baseline denies", GroupFlags::NONE, &[(BASELINE, Deny)], true, BASELINE, Some(3)),
            ("Baseline is not for the isolated", ISOLATED, &[(BASELINE, Accept)], true, NP, None),
            (
                "Baseline passes",
                GroupFlags::NONE,
                &[(BASELINE, Pass), (BASELINE, Deny)],
                false,
                0,
                None,
            ),
            (
                "Baseline accepts",
                GroupFlags::NONE,
                &[(BASELINE, Accept), (BASELINE, Deny)],
                false,
                BASELINE,
                Some(3),
            ),
        ];
        for (name, flags, rules, denied, tier, rule) in cases {
            let got = ask(&sample(flags, rules), 7, false);
            assert_eq!((got.denied(), got.tier(), got.rule()), (denied, tier, rule), "{name}");
            assert_eq!(Judgement::from_number(got.number()), got);
        }
    }

    #[test]
    fn which_flows_policies_concern() {
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let of = |ident, flags| Ident { ident, flags, ..Ident::ZERO };
        let mut sample = sample(GroupFlags::NONE, &[]);
        sample.idents.insert(addr("192.0.2.1"), of(3, IdentFlags::LOCAL_NODE));
        sample.idents.insert(addr("192.0.2.2"), of(4, IdentFlags::NODE));
        sample.idents.insert(addr("10.1.0.2"), of(0, IdentFlags::POD));
        assert_eq!(identify(&sample, &addr("192.0.2.1")), None, "this node");
        assert_eq!(identify(&sample, &addr("192.0.2.2")), Some(4), "another node");
        assert_eq!(identify(&sample, &addr("10.1.0.2")), Some(0), "a Pod, not a range it is in");
        assert_eq!(identify(&sample, &addr("198.51.100.1")), Some(5), "a range");
    }

    #[test]
    fn the_pod_itself_as_peer() {
        use Action::{Accept, Deny};
        use tier::{ADMIN, BASELINE};
        let isolated = GroupFlags::ISOLATED;
        assert!(!ask(&sample(isolated, &[]), 9, true).denied(), "NetworkPolicy allows it");
        assert!(ask(&sample(isolated, &[(ADMIN, Deny)]), 7, true).denied());
        assert!(ask(&sample(GroupFlags::NONE, &[(BASELINE, Deny)]), 7, true).denied());
        assert!(!ask(&sample(isolated, &[(BASELINE, Accept)]), 7, true).denied());
    }

    #[test]
    fn pending_and_overflow_deny_everything() {
        for flag in [GroupFlags::PENDING, GroupFlags::OVERFLOW] {
            let sample = sample(flag, &[(tier::ADMIN, Action::Accept)]);
            assert_eq!(ask(&sample, 7, false), Judgement::ISOLATED);
        }
    }

    #[test]
    fn rules_without_peers_and_chained_groups() {
        let mut sample = sample(GroupFlags::ISOLATED, &[]);
        let mut second = Group { first: 256, tiers: [tier::NETWORK_POLICY; 4], ..Group::ZERO };
        second.any[3] = 1 << 63;
        second.accept[3] = 1 << 63;
        sample.groups.push(second);
        sample.groups[1].next = 2;
        assert!(ask(&sample, 9, false).denied(), "no port");
        sample.ports.insert(2, Bits { words: [0, 0, 0, 1 << 63] });
        assert_eq!(ask(&sample, 9, false).rule(), Some(511));
    }
}
