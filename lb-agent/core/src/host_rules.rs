//! The firewall rules of the node as records, and whether they matter to packets between its Pods ([`judge`]), or between them and
//! Pods of other nodes ([`judge_across`]).
//!
//! nf_tables and the legacy tables of iptables become the same records. A rule is a row of steps. What is not understood of a
//! condition is a condition that may hold or not; what is not understood of an action is an action that matters.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

mod class;
mod judge;
pub mod routing;
#[cfg(test)]
mod tests;

pub use self::class::PodTraffic;
pub use self::judge::{HostJudgement, judge, judge_across};

/// All tables with chains that forwarded packets pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRuleset {
    /// In the order in which they were read.
    pub tables: Vec<HostTable>,
}

/// A table of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTable {
    /// Which packets it sees.
    pub family: TableFamily,
    /// As an operator finds it: `inet firewalld`, `legacy ip filter`.
    pub title: String,
    /// Its name alone.
    pub name: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, HostChain>,
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Inet,
    /// What bridges pass on.
    Bridge,
    /// What comes in by some devices.
    Netdev,
}

/// A chain of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostChain {
    /// Where the kernel calls it; `None` = other chains jump to it.
    pub base: Option<BaseChain>,
    /// Its rules, in order.
    pub rules: Vec<HostRule>,
}

/// Where the kernel calls a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// At which point of a packet's path.
    pub hook: ChainHook,
    /// Only the first packet of a flow gets there, as in chains that translate.
    pub first_only: bool,
    /// What no rule decides is dropped.
    pub drops: bool,
    /// Only packets by these devices get there; empty = all.
    pub devices: Vec<String>,
}

/// At which point of a packet's path a chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainHook {
    /// Before it is routed.
    Prerouting,
    /// When it is forwarded.
    Forward,
    /// Before it leaves.
    Postrouting,
    /// When a bridge hands it to the node. Of bridges only: Pods' packets are for no address of the node.
    Input,
    /// When the node hands it to a bridge.
    Output,
    /// When it comes in by a device.
    Ingress,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRule {
    /// How it is found in its chain: `handle 7`, `rule 3`.
    pub place: String,
    /// What it does, in order; it ends with the first condition that does not hold.
    pub steps: Vec<RuleStep>,
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleStep {
    /// Goes on only if this holds.
    When(RuleCondition),
    /// Does something that matters to a packet, or to those who watch it: `log`, `MASQUERADE`.
    Does(Cow<'static, str>),
    /// Decides.
    Verdict(RuleVerdict),
    /// Decides by the first condition that holds.
    Choice(Vec<(RuleCondition, RuleVerdict)>),
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleVerdict {
    /// The packet passes this table's hook.
    Accept,
    /// Nothing: the next rule.
    Continue,
    /// The chain that jumped here goes on.
    Return,
    /// Another chain decides; then this one goes on.
    Jump(String),
    /// Another chain decides instead of the rest of this one.
    Goto(String),
    /// The packet does not pass, or not at once: `drop`, `queue`.
    Stop(Cow<'static, str>),
}

/// A condition about one field of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCondition {
    /// The field.
    pub field: PacketField,
    /// Bits of it that are compared; empty = all.
    pub mask: Vec<u8>,
    /// Bits that are flipped before it is compared; empty = none.
    pub flipped: Vec<u8>,
    /// What it is compared with: its beginning must be in one of these ranges, bounds included.
    pub ranges: Vec<(Vec<u8>, Vec<u8>)>,
    /// Holds if it is in none of them.
    pub inverted: bool,
}

/// A field of a packet, as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketField {
    /// Bytes of the network header.
    Network {
        /// The first of them.
        offset: u32,
        /// Number of them.
        length: u32,
    },
    /// Name of the device by which it comes in, 16 bytes.
    InName,
    /// Name of the device by which it leaves.
    OutName,
    /// ifindex of the device by which it comes in, host order.
    InIndex,
    /// ifindex of the device by which it leaves.
    OutIndex,
    /// The connection tracking's state, 4 bytes in host order.
    State,
    /// The packet's mark, 4 bytes in host order.
    Mark,
    /// The protocol of its frame, 2 bytes in network order.
    EtherType,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    Family,
    /// `RTN_*` of its source, 4 bytes in host order.
    SourceType,
    /// `RTN_*` of its destination.
    DestinationType,
    /// Another one.
    Other,
}

impl RuleCondition {
    /// Holds or not, it is not known.
    pub const UNKNOWN: Self = Self {
        field: PacketField::Other,
        mask: Vec::new(),
        flipped: Vec::new(),
        ranges: Vec::new(),
        inverted: false,
    };

    /// The field begins with these bytes.
    pub fn equal(field: PacketField, value: Vec<u8>) -> Self {
        Self { field, ranges: vec![(value.clone(), value)], ..Self::UNKNOWN }
    }

    /// Whether it holds for all values of its field from the first to the last one of a range, whose bits are those of both or any,
    /// or for none; `None` = for some, or it is not known.
    fn holds(&self, (low, high): (&[u8], &[u8])) -> Option<bool> {
        // Where bits are flipped, what lies between two values does not lie between them any more.
        if low != high && !self.flipped.is_empty() {
            return None;
        }
        let (low, high) = (self.compared(low), self.compared(high));
        let begin = |value: &[u8], bound: &[u8]| value.get(..bound.len()).unwrap_or(value).to_vec();
        let is_in = |(first, last): &(Vec<u8>, Vec<u8>)| {
            begin(&low, first) >= *first && begin(&high, last) <= *last
        };
        let is_out = |(first, last): &(Vec<u8>, Vec<u8>)| {
            begin(&high, first) < *first || begin(&low, last) > *last
        };
        if self.ranges.iter().any(is_in) {
            Some(!self.inverted)
        } else if self.ranges.iter().all(is_out) {
            Some(self.inverted)
        } else {
            None
        }
    }

    /// The bits of a value that are compared.
    fn compared(&self, value: &[u8]) -> Vec<u8> {
        let at = |bytes: &[u8], i: usize, default: u8| bytes.get(i).copied().unwrap_or(default);
        let bits = |(i, byte): (usize, &u8)| {
            let mask = if self.mask.is_empty() { 0xff } else { at(&self.mask, i, 0) };
            (byte & mask) ^ at(&self.flipped, i, 0)
        };
        value.iter().enumerate().map(bits).collect()
    }
}

/// Bits of [`PacketField::State`], as rules have them.
pub mod state {
    /// It belongs to no connection.
    pub const INVALID: u32 = 1;
    /// A packet of a connection with packets in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// An error about a connection, or the beginning of one that another one announced.
    pub const RELATED: u32 = 4;
    /// The first packet of a connection.
    pub const NEW: u32 = 8;
}
