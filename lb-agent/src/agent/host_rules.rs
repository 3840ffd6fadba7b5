//! A thread reads the node's firewall rules whenever they change, or the Pods do, and judges whether they matter to packets
//! between Pods. A ruleset can be large; it is not kept.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_common::addr::Addr;
use lb_common::endpoint::Ident;
use lb_core::host_rules::routing::RoutingDoubt;
use lb_core::host_rules::{HostJudgement, PodTraffic, judge, judge_across};
use lb_kernel::devices::{Devices, Veth};
use lb_kernel::netfilter::{self, legacy, nftables};
use lb_kernel::routing;
use tokio::sync::mpsc::Sender;
use tracing::{debug, info};

use crate::agent::Agent;
use crate::agent::background::News;
use crate::agent::past::JudgedRules;
use crate::config::PastStack;

/// Between two looks at the number of nf_tables' ruleset.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two readings of what has no such number: legacy tables, routing rules, policies of IPsec.
const LEGACY_INTERVAL: Duration = Duration::from_secs(8);
/// After a reading the thread rests for this many times as long as it took.
const REST: u32 = 10;

/// The thread's orders.
pub(super) struct HostRules {
    orders: Option<mpsc::Sender<PodTraffic>>,
    ordered: Option<PodTraffic>,
}

impl HostRules {
    /// Starts the thread, unless no flow goes past the IP stack anyway. It ends with the receiver of its news.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(super) fn spawn(mode: PastStack, news: Sender<News>) -> anyhow::Result<Self> {
        if mode == PastStack::Off {
            return Ok(Self { orders: None, ordered: None });
        }
        let (orders, ordered) = mpsc::channel();
        thread::Builder::new()
            .name("host-rules".to_owned())
            .spawn(move || watch(&news, &ordered))
            .context("start the thread that reads firewall rules")?;
        Ok(Self { orders: Some(orders), ordered: None })
    }

    /// Packets between Pods look like this now.
    pub(super) fn follow(&mut self, traffic: &PodTraffic) {
        if self.ordered.as_ref() == Some(traffic) {
            return;
        }
        if let Some(orders) = &self.orders
            && orders.send(traffic.clone()).is_err()
        {
            debug!("the thread that reads firewall rules has ended");
        }
        self.ordered = Some(traffic.clone());
    }
}

/// What packets between the Pods behind these devices look like, and by which devices others come from elsewhere. A packet from a Pod
/// on a bridge comes in by the bridge.
pub(super) fn traffic(
    veths: &[&Veth],
    idents: &BTreeMap<Addr, Ident>,
    devices: &Devices,
) -> PodTraffic {
    let outward = devices.outward().map(|(ifindex, uplink)| (ifindex, uplink.name.clone()));
    let mut traffic = PodTraffic { outward: outward.collect(), ..PodTraffic::default() };
    for (addr, ident) in idents {
        let Some(veth) = veths.iter().find(|veth| veth.ifindex == ident.ifindex) else { continue };
        traffic.addresses.insert(*addr);
        let own = (veth.ifindex, veth.name.clone());
        if veth.bridge == 0 {
            traffic.routed.insert(own);
        } else {
            traffic.ports.insert(own);
            traffic.routed.insert((veth.bridge, devices.name(veth.bridge).to_owned()));
        }
    }
    traffic
}

fn watch(news: &Sender<News>, orders: &Receiver<PodTraffic>) {
    let mut traffic: Option<PodTraffic> = None;
    let (mut generation, mut read_at) = (None, None::<Instant>);
    let mut last: Option<JudgedRules> = None;
    let mut pause = INTERVAL;
    loop {
        let mut is_new = false;
        match orders.recv_timeout(pause) {
            Ok(first) => {
                traffic = orders.try_iter().last().or(Some(first));
                is_new = true;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        pause = INTERVAL;
        let Some(traffic) = &traffic else { continue };
        let now = Instant::now();
        let current = nftables::generation().ok();
        let old = read_at.is_none_or(|at| now.duration_since(at) >= LEGACY_INTERVAL);
        let is_known = !is_new && current.is_some() && current == generation;
        if is_known && !old {
            continue;
        }
        let routing = match routing::read() {
            Ok(found) => found.doubt(traffic),
            Err(err) => Some(RoutingDoubt::Unknown(err.to_string())),
        };
        let judged = match &last {
            Some(known) if is_known && !has_legacy(known) => {
                JudgedRules { routing, ..known.clone() }
            }
            _ => judged(traffic, routing),
        };
        (generation, read_at) = (current, Some(now));
        pause = INTERVAL.max(now.elapsed() * REST);
        if last.as_ref() == Some(&judged) {
            continue;
        }
        last = Some(judged.clone());
        if news.blocking_send(News::HostRules(Box::new(judged))).is_err() {
            return;
        }
    }
}

/// Reads the firewall rules and judges them.
fn judged(traffic: &PodTraffic, routing: Option<RoutingDoubt>) -> JudgedRules {
    let (judgement, across) = match netfilter::read() {
        Ok(ruleset) => (judge(&ruleset, traffic), judge_across(&ruleset, traffic)),
        Err(err) => {
            let unknown = HostJudgement::Unknown(err.to_string());
            (unknown.clone(), unknown)
        }
    };
    let loose = netfilter::is_loose();
    JudgedRules { traffic: traffic.clone(), judgement, across, routing, loose }
}

/// Whether a legacy table is in use, or one was the reason of the last judgement.
fn has_legacy(last: &JudgedRules) -> bool {
    let is_listed = |path: &str| fs::read_to_string(path).is_ok_and(|names| !names.is_empty());
    let is_blamed = |judgement: &HostJudgement| *judgement != HostJudgement::Harmless;
    legacy::LISTS.iter().any(|(_, path)| is_listed(path))
        || is_blamed(&last.judgement)
        || is_blamed(&last.across)
}

impl Agent {
    /// The rules of the node were read.
    pub(super) fn judged(&mut self, judged: JudgedRules) {
        let known = self.past.judged_rules();
        if known.map(|known| &known.judgement) != Some(&judged.judgement) {
            tell("between Pods of this node", &judged.judgement);
        }
        if known.map(|known| &known.across) != Some(&judged.across) {
            tell("to and from Pods of other nodes", &judged.across);
        }
        if let Some(doubt) = &judged.routing
            && known.and_then(|known| known.routing.as_ref()) != Some(doubt)
        {
            info!(%doubt, "flows to and from Pods of other nodes must go through the IP stack");
        }
        self.past.judged(judged);
        self.write_past();
        self.write_locals();
        self.write_devs();
        self.housekeeping.touch();
    }

    /// Brings what the settings say about flows past the IP stack to what is known.
    pub(super) fn write_past(&mut self) {
        let plan = self.planner.plan_past(self.past.settings());
        self.write(plan);
    }
}

fn tell(flows: &str, judgement: &HostJudgement) {
    match judgement {
        HostJudgement::Harmless => {
            info!(flows, "no firewall rule of the node is about these flows")
        }
        HostJudgement::Rule(rule) | HostJudgement::Engine(rule) => {
            info!(flows, rule, "a firewall rule of the node is about these flows")
        }
        HostJudgement::Unknown(err) => {
            info!(flows, err, "cannot read the firewall rules of the node")
        }
    }
}
