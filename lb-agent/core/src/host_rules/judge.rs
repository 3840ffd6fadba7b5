//! Follows the packets between Pods of this node through the firewall rules of the node: is there a rule that does something to
//! them? If none does, a flow that goes past netfilter arrives as it would through it.
//!
//! Packets are followed in classes: all Pods' packets of one family and one state of their connection together. A field has a
//! set of values in a class. A condition holds for all of them, for none, or for some. Packets that the connection tracking
//! calls invalid are in no class: `ct state invalid drop` is there for what it has not seen from the beginning.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::addr::Addr;

use super::{
    BaseChain, ChainHook, HostChain, HostRule, HostRuleset, HostTable, PacketField, RuleCondition,
    RuleStep, RuleVerdict, TableFamily, state,
};

/// What packets between Pods of this node look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTraffic {
    /// Addresses of the Pods, of both families.
    pub addresses: BTreeSet<Addr>,
    /// Devices by which routed packets come in and leave: veths, and bridges that Pods' veths are ports of.
    pub routed: BTreeSet<(u32, String)>,
    /// Pods' veths that are ports of bridges.
    pub ports: BTreeSet<(u32, String)>,
}

/// What the rules of the node mean to flows between its Pods. Texts name the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostJudgement {
    /// No rule does anything to them.
    #[default]
    Harmless,
    /// A rule does.
    Rule(String),
    /// Another program enforces policies.
    Engine(String),
    /// The rules cannot be read.
    Unknown(String),
}

/// Beginnings of the names of chains of programs that enforce policies between Pods.
const ENGINE_CHAINS: [&str; 6] =
    ["cali-", "KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-", "ANTREA-", "WEAVE-NPC"];
/// Names of their tables in nf_tables (kindnet, kube-network-policies, Calico).
const ENGINE_TABLES: [&str; 4] =
    ["kindnet-network-policies", "kube-network-policies", "kindnet-fastpath-netpol", "calico"];
/// Chains in chains that are followed.
const DEPTH: usize = 32;

/// Judges the rules for these packets.
pub fn judge(ruleset: &HostRuleset, traffic: &PodTraffic) -> HostJudgement {
    let mut findings = RuleFindings::default();
    for table in &ruleset.tables {
        for (name, chain) in &table.chains {
            let Some(base) = &chain.base else { continue };
            for class in classes(table.family, base, traffic) {
                let mut walk =
                    ChainWalk { table, class, findings: &mut findings, seen: BTreeMap::new() };
                walk.base(name, chain, base);
            }
        }
    }
    match (findings.engine, findings.rule) {
        (Some(engine), _) => HostJudgement::Engine(engine),
        (None, Some(rule)) => HostJudgement::Rule(rule),
        (None, None) => HostJudgement::Harmless,
    }
}

/// What was found first.
#[derive(Debug, Default)]
struct RuleFindings {
    rule: Option<String>,
    engine: Option<String>,
}

/// Packets that are followed together.
#[derive(Clone, Copy)]
struct PacketClass<'a> {
    v4: bool,
    state: u32,
    addresses: &'a BTreeSet<Addr>,
    devices: &'a BTreeSet<(u32, String)>,
    hook: ChainHook,
}

/// The classes that get to a chain.
fn classes<'a>(
    family: TableFamily,
    base: &BaseChain,
    traffic: &'a PodTraffic,
) -> Vec<PacketClass<'a>> {
    let devices = match family {
        TableFamily::Bridge => &traffic.ports,
        TableFamily::V4 | TableFamily::V6 | TableFamily::Inet | TableFamily::Netdev => {
            &traffic.routed
        }
    };
    let is_here =
        |name: &String| traffic.routed.iter().chain(&traffic.ports).any(|(_, known)| known == name);
    if devices.is_empty() || !base.devices.is_empty() && !base.devices.iter().any(is_here) {
        return Vec::new();
    }
    let states: &[u32] = match base.first_only {
        true => &[state::NEW],
        false => &[state::NEW, state::ESTABLISHED, state::RELATED],
    };
    let has = |v4: bool| traffic.addresses.iter().any(|addr| addr.is_v4() == v4);
    let families = [
        (true, !matches!(family, TableFamily::V6) && has(true)),
        (false, !matches!(family, TableFamily::V4) && has(false)),
    ];
    let families = families.into_iter().filter(|(_, there)| *there);
    let class = |v4: bool, state: u32| PacketClass {
        v4,
        state,
        addresses: &traffic.addresses,
        devices,
        hook: base.hook,
    };
    families.flat_map(|(v4, _)| states.iter().map(move |state| class(v4, *state))).collect()
}

impl PacketClass<'_> {
    /// The values that a field has in packets of the class; `None` = not known.
    fn values(&self, field: PacketField) -> Option<Vec<Vec<u8>>> {
        let number = |number: u32| Some(vec![number.to_ne_bytes().to_vec()]);
        match field {
            PacketField::Network { offset, length } => self.network(offset, length),
            PacketField::InName => Some(self.names()),
            PacketField::InIndex => Some(self.indexes()),
            // Where it leaves is not known before it is routed, and a condition about it does not hold.
            PacketField::OutName | PacketField::OutIndex
                if matches!(self.hook, ChainHook::Prerouting | ChainHook::Ingress) =>
            {
                Some(Vec::new())
            }
            PacketField::OutName => Some(self.names()),
            PacketField::OutIndex => Some(self.indexes()),
            PacketField::State => number(self.state),
            // A Pod cannot set it: the kernel clears it when a packet leaves its namespace.
            PacketField::Mark => number(0),
            PacketField::EtherType => {
                Some(vec![if self.v4 { vec![0x08, 0x00] } else { vec![0x86, 0xdd] }])
            }
            // NFPROTO_IPV4, NFPROTO_IPV6.
            PacketField::Family => Some(vec![vec![if self.v4 { 2 } else { 10 }]]),
            // RTN_UNICAST
            PacketField::SourceType | PacketField::DestinationType => number(1),
            PacketField::Other => None,
        }
    }

    fn names(&self) -> Vec<Vec<u8>> {
        let padded = |name: &String| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        };
        self.devices.iter().map(|(_, name)| padded(name)).collect()
    }

    fn indexes(&self) -> Vec<Vec<u8>> {
        self.devices.iter().map(|(index, _)| index.to_ne_bytes().to_vec()).collect()
    }

    /// Bytes of the network header: those of one of the addresses are known.
    fn network(&self, offset: u32, length: u32) -> Option<Vec<Vec<u8>>> {
        let (size, places) = if self.v4 { (4, [12, 16]) } else { (16, [8, 24]) };
        let end = offset.checked_add(length)?;
        let place = places.into_iter().find(|at| offset >= *at && end <= at + size)?;
        let (from, to) = ((offset - place) as usize, (end - place) as usize);
        let of = |addr: &Addr| {
            let bytes = match addr.to_ip() {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            bytes.get(from..to).map(<[u8]>::to_vec)
        };
        self.addresses.iter().filter(|addr| addr.is_v4() == self.v4).map(of).collect()
    }

    fn truth(&self, condition: &RuleCondition) -> Truth {
        let Some(values) = self.values(condition.field) else { return Truth::Maybe };
        let held = values.iter().filter(|value| condition.holds(value)).count();
        match held {
            0 => Truth::Never,
            n if n == values.len() => Truth::Always,
            _ => Truth::Maybe,
        }
    }
}

/// For how many packets of a class something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    Never,
    Maybe,
    Always,
}

/// What happens to the packets of a class in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChainEnd {
    /// All of them are accepted.
    Accepts,
    /// Some may come to its end, or return.
    Returns,
}

/// One class of packets in one table.
struct ChainWalk<'a> {
    table: &'a HostTable,
    class: PacketClass<'a>,
    findings: &'a mut RuleFindings,
    /// How chains end that were walked.
    seen: BTreeMap<&'a str, ChainEnd>,
}

impl<'a> ChainWalk<'a> {
    fn base(&mut self, name: &str, chain: &'a HostChain, base: &BaseChain) {
        if ENGINE_TABLES.contains(&self.table.name.as_str()) && !chain.rules.is_empty() {
            self.engine(name);
        }
        if self.chain(name, chain, 0) == ChainEnd::Returns && base.drops {
            self.found(name, "policy drop");
        }
    }

    fn found(&mut self, chain: &str, what: &str) {
        let Self { table, findings, .. } = self;
        findings.rule.get_or_insert_with(|| format!("{} {chain}: {what}", table.title));
    }

    fn engine(&mut self, chain: &str) {
        let Self { table, findings, .. } = self;
        findings.engine.get_or_insert_with(|| format!("{} {chain}", table.title));
    }

    fn chain(&mut self, name: &str, chain: &'a HostChain, depth: usize) -> ChainEnd {
        for rule in &chain.rules {
            match self.rule(name, rule, depth) {
                RuleEnd::Next => {}
                RuleEnd::Chain(end) => return end,
            }
        }
        ChainEnd::Returns
    }

    fn rule(&mut self, chain: &str, rule: &'a HostRule, depth: usize) -> RuleEnd {
        let mut truth = Truth::Always;
        for step in &rule.steps {
            match step {
                RuleStep::When(condition) => truth = truth.min(self.class.truth(condition)),
                RuleStep::Does(what) => self.found(chain, &format!("{}: {what}", rule.place)),
                RuleStep::Verdict(verdict) => {
                    return self.verdict((chain, rule), verdict, truth, depth);
                }
                RuleStep::Choice(cases) => {
                    for (condition, verdict) in cases {
                        let truth = truth.min(self.class.truth(condition));
                        if truth == Truth::Never {
                            continue;
                        }
                        let end = self.verdict((chain, rule), verdict, truth, depth);
                        if truth == Truth::Always {
                            return end;
                        }
                    }
                    // What no case decides goes on with the next rule.
                    return RuleEnd::Next;
                }
            }
            if truth == Truth::Never {
                break;
            }
        }
        RuleEnd::Next
    }

    fn verdict(
        &mut self,
        (chain, rule): (&str, &HostRule),
        verdict: &'a RuleVerdict,
        truth: Truth,
        depth: usize,
    ) -> RuleEnd {
        let ends = |end: ChainEnd| match truth {
            Truth::Always => RuleEnd::Chain(end),
            Truth::Maybe | Truth::Never => RuleEnd::Next,
        };
        match verdict {
            RuleVerdict::Continue => RuleEnd::Next,
            RuleVerdict::Accept => ends(ChainEnd::Accepts),
            RuleVerdict::Return => ends(ChainEnd::Returns),
            RuleVerdict::Stop(what) => {
                self.found(chain, &format!("{}: {what}", rule.place));
                RuleEnd::Next
            }
            RuleVerdict::Jump(to) => match self.jump(to, depth) {
                ChainEnd::Accepts => ends(ChainEnd::Accepts),
                ChainEnd::Returns => RuleEnd::Next,
            },
            RuleVerdict::Goto(to) => {
                let end = self.jump(to, depth);
                ends(end)
            }
        }
    }

    fn jump(&mut self, to: &'a str, depth: usize) -> ChainEnd {
        if let Some(end) = self.seen.get(to) {
            return *end;
        }
        if ENGINE_CHAINS.iter().any(|beginning| to.starts_with(beginning)) {
            self.engine(to);
        }
        let table = self.table;
        let end = match table.chains.get(to) {
            Some(chain) if depth < DEPTH => self.chain(to, chain, depth + 1),
            Some(_) => {
                self.found(to, "jumps are too deep");
                ChainEnd::Returns
            }
            // Of kube-proxy, and not read.
            None => ChainEnd::Returns,
        };
        self.seen.insert(to, end);
        end
    }
}

/// What follows a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuleEnd {
    Next,
    Chain(ChainEnd),
}
