//! Follows packets between Pods through the firewall rules of the node: is there a rule that does something to them? If none
//! does, a flow that goes past netfilter arrives as it would through it.
//!
//! Packets are followed in classes ([`super::class`]).

use std::collections::BTreeMap;

use super::class::{PacketClass, PodTraffic, TrafficLeg, Truth, classes};
use super::{BaseChain, HostChain, HostRule, HostRuleset, HostTable, RuleStep, RuleVerdict};

/// What the rules of the node mean to flows between Pods. Texts name the rule.
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

/// Judges the rules for packets between Pods of this node.
pub fn judge(ruleset: &HostRuleset, traffic: &PodTraffic) -> HostJudgement {
    judge_for(ruleset, traffic, &[TrafficLeg::Within])
}

/// Judges the rules for packets between Pods of this node and Pods of others, in both directions, and for those of other nodes to
/// Pods of this one and their answers.
pub fn judge_across(ruleset: &HostRuleset, traffic: &PodTraffic) -> HostJudgement {
    use TrafficLeg::{FromNodes, In, Out, ToNodes};
    judge_for(ruleset, traffic, &[Out, In, FromNodes, ToNodes])
}

fn judge_for(ruleset: &HostRuleset, traffic: &PodTraffic, legs: &[TrafficLeg]) -> HostJudgement {
    let mut findings = RuleFindings::default();
    for table in &ruleset.tables {
        for (name, chain) in &table.chains {
            let Some(base) = &chain.base else { continue };
            let classes = legs.iter().flat_map(|leg| classes(*leg, table.family, base, traffic));
            for class in classes {
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
