//! The map ABI between the eBPF programs and the agent, and the pure logic that both sides run.
//!
//! | map | key | value | writer | reader |
//! |---|---|---|---|---|
//! | `frontends` | [`service::FrontendKey`] | [`service::Frontend`] | agent | programs |
//! | `slots` | slot | backend id | agent | programs |
//! | `backends` | backend id | [`service::Backend`] | agent | programs |
//! | `pods` | ifindex | [`endpoint::PodEntry`] | agent | programs (new flows), lbctl |
//! | `ct` | [`conntrack::CtKey`] | [`conntrack::CtEntry`] | programs | programs, agent (expiry) |
//! | `kept` | [`conntrack::CtKey`] | [`conntrack::CtEntry`] | programs | programs, agent (expiry) |
//! | `fragments` | [`fragment::FragmentKey`] | [`fragment::FragmentPorts`] | programs | programs |
//! | `sk_nat` | socket | [`socket::SkNatRing`] | programs | programs |
//! | `sk_more` | [`socket::SkMoreKey`] | [`socket::SkNat`] | programs | programs |
//! | `counters` | index | packets per CPU | programs | agent, lbctl |
//! | `samples` | [`event::device_place`], [`event::sender_place`] | [`event::Sample`] per CPU | programs | programs |
//! | `events` | | [`event::FlowEvent`] | programs | agent |
//! | `affinity` | [`service::AffinityKey`] | [`service::Affinity`] | programs | programs, lbctl |
//! | `source_ranges` | [`service::SourceRange`] prefix | 1 | agent | programs |
//! | `ident` | [`addr::Addr`] | [`endpoint::Ident`] | agent | programs |
//! | `pod_ranges` | [`addr::Addr`] prefix | 1 | agent | programs |
//! | `devs` | ifindex | [`endpoint::Dev`] | agent | programs |
//! | `settings` | 0 | [`config::Settings`] | agent | programs |
//! | `frontend_ports`, `host_ports` | port / 64 | a bit for each port | agent | programs |
//! | `former_ports` | port / 64 | a bit for each port | agent | programs, agent (expiry) |
//! | `own_flows` | [`conntrack::CtKey`] | stamp | programs | programs |
//! | `loads` | backend id | live flows | programs, agent | programs |
//! | `groups` | index | [`policy::Group`] | agent | programs, lbctl |
//! | `peer_bits` | [`policy::PeerKey`] | [`policy::Bits`] | agent | programs, lbctl |
//! | `port_bits` | [`policy::PortKey`] prefix | [`policy::Bits`] | agent | programs, lbctl |
//! | `cidrs` | [`addr::Addr`] prefix | identity | agent | programs, lbctl |
//! | `policy` | 0 | [`policy::PolicyState`] | agent | programs, lbctl |
//! | `locals` | number of a Pod | [`past::LocalEnd`] | agent | programs |
//! | `frontends_now`, `ranges_now`, `ident_now` | 0 | the map `frontends`, `source_ranges`, `ident` | agent | programs |
//! | `slots_parts`, `backends_parts`, `loads_parts` | part | the map of that part | agent | programs |
//! | `accounts` | [`account::AccountKey`] | [`account::AccountEntry`] | programs, while flows are counted | lbctl, agent (expiry) |
//! | `CFG` (read-only global) | | [`config::Config`] | agent, at load | programs |
//!
//! Everything here is `no_std`, free of dependencies (but `aya` under the feature `user`) and cannot panic.
#![no_std]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(test)]
extern crate std;

pub mod flags;
pub mod listed;
pub mod pod;

pub mod addr;
pub mod be;
pub mod budget;
pub mod flow;

pub mod account;
pub mod conntrack;
pub mod earlier;
pub mod endpoint;
pub mod fragment;
pub mod hop;
pub mod listening;
pub mod outside;
pub mod past;
pub mod policy;
pub mod service;
pub mod socket;
pub mod tenure;

pub mod event;
pub mod verdict;

pub mod crc;
pub mod csum;
pub mod hash;

pub mod config;
pub mod limits;
