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
use lb_core::host_rules::{HostJudgement, PodTraffic, judge};
use lb_kernel::devices::{Devices, Veth};
use lb_kernel::netfilter::{self, legacy, nftables};
use tokio::sync::mpsc::Sender;
use tracing::{debug, info};

use crate::agent::Agent;
use crate::agent::background::News;
use crate::agent::past::JudgedRules;
use crate::config::PastStack;

/// Between two looks at the number of nf_tables' ruleset.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two readings of legacy tables, which have no such number.
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
    pub(super) fn follow(&mut self, traffic: PodTraffic) {
        if self.ordered.as_ref() == Some(&traffic) {
            return;
        }
        if let Some(orders) = &self.orders
            && orders.send(traffic.clone()).is_err()
        {
            debug!("the thread that reads firewall rules has ended");
        }
        self.ordered = Some(traffic);
    }
}

/// What packets between the Pods behind these devices look like. A packet from a Pod on a bridge comes in by the bridge.
pub(super) fn traffic(
    veths: &[&Veth],
    idents: &BTreeMap<Addr, Ident>,
    devices: &Devices,
) -> PodTraffic {
    let mut traffic = PodTraffic::default();
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
        if !is_new && current.is_some() && current == generation && !(old && has_legacy(&last)) {
            continue;
        }
        let judgement = match netfilter::read() {
            Ok(ruleset) => judge(&ruleset, traffic),
            Err(err) => HostJudgement::Unknown(err.to_string()),
        };
        (generation, read_at) = (current, Some(now));
        pause = INTERVAL.max(now.elapsed() * REST);
        let loose = netfilter::is_loose();
        let judged = JudgedRules { traffic: traffic.clone(), judgement, loose };
        if last.as_ref() == Some(&judged) {
            continue;
        }
        last = Some(judged.clone());
        if news.blocking_send(News::HostRules(Box::new(judged))).is_err() {
            return;
        }
    }
}

/// Whether a legacy table is in use, or one was the reason of the last judgement.
fn has_legacy(last: &Option<JudgedRules>) -> bool {
    let is_listed = |path: &str| fs::read_to_string(path).is_ok_and(|names| !names.is_empty());
    let is_blamed = |judged: &JudgedRules| judged.judgement != HostJudgement::Harmless;
    legacy::LISTS.iter().any(|(_, path)| is_listed(path)) || last.as_ref().is_some_and(is_blamed)
}

impl Agent {
    /// The rules of the node were read.
    pub(super) fn judged(&mut self, judged: JudgedRules) {
        match &judged.judgement {
            now if self.past.judgement() == Some(now) => {}
            HostJudgement::Harmless => {
                info!("no firewall rule of the node is about packets between its Pods")
            }
            HostJudgement::Rule(rule) | HostJudgement::Engine(rule) => {
                info!(rule, "a firewall rule of the node is about packets between its Pods")
            }
            HostJudgement::Unknown(err) => info!(err, "cannot read the firewall rules of the node"),
        }
        self.past.judged(judged);
        let plan = self.planner.plan_past(self.past.settings());
        self.write(plan);
        self.write_locals();
        self.housekeeping.touch();
    }
}
