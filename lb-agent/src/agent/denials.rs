//! Flows that policies deny → Events on the Pods that wanted them, for their owners, who see neither the agent's log nor
//! `lbctl`: at most one for each Pod, peer and policy in five minutes, and ten a minute for the whole node.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::event::outcome;
use lb_common::verdict::DropReason;
use tokio::sync::mpsc;

use lb_core::admin::{FlowOwner, FlowRecord};
use lb_core::annotation::EventReason;
use lb_core::cluster::Name;
use lb_core::uid::Uid;
use lb_ctl::flows;
use lb_kube::api_server::{ApiEvents, PodEvent};

/// Records that may wait; the others are not counted in Events.
const WAITING: usize = 1024;
/// What is counted at the same time.
const COUNTED: usize = 1024;
/// The first Event waits for repetitions.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two Events about the same Pod, peer and policy.
const PERIOD: Duration = Duration::from_secs(300);
/// Events of this node in [`MINUTE`].
const MOST: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// Where records go to become Events.
#[derive(Clone, Debug)]
pub(super) struct DenialEvents {
    waiting: mpsc::Sender<Arc<FlowRecord>>,
}

impl DenialEvents {
    /// Counts and writes in a task of its own, which ends with the runtime.
    pub(super) fn spawn(events: ApiEvents) -> Self {
        let (waiting, mut records) = mpsc::channel::<Arc<FlowRecord>>(WAITING);
        tokio::spawn(async move {
            let mut denials = Denials::default();
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    record = records.recv() => match record {
                        Some(record) => denials.count(&record, Instant::now()),
                        None => return,
                    },
                    _ = ticks.tick() => {
                        for event in denials.due(Instant::now()) {
                            events.tell_pod(event);
                        }
                    }
                }
            }
        });
        Self { waiting }
    }

    /// Takes a record, unless too many wait: the loop never does.
    pub(super) fn take(&self, record: &Arc<FlowRecord>) {
        if is_denied(record) {
            // The Events say "at least" where the programs left packets out; here it is the same.
            drop(self.waiting.try_send(Arc::clone(record)));
        }
    }
}

/// Whether policies denied it.
fn is_denied(record: &FlowRecord) -> bool {
    let reason = DropReason::from_number(record.reason);
    let by_policy = matches!(
        reason,
        Some(DropReason::PolicyDenied | DropReason::PolicyIsolated | DropReason::PolicyOverflow)
    );
    by_policy && matches!(record.outcome, outcome::DROPPED | outcome::WOULD_ALLOW)
}

/// What one Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DenialKey {
    /// The Pod whose Event it is.
    pod: (Name, Uid),
    /// Whether it wanted to open the flow.
    opened: bool,
    /// The other end.
    peer: String,
    /// The policies, and the rule.
    by: String,
}

/// How often, since the last Event.
#[derive(Clone, Debug)]
struct DenialCount {
    count: u64,
    /// Whether the programs left out packets in between.
    at_least: bool,
    first: Instant,
    /// Port and protocol of the last one.
    port: String,
    /// When the last Event was written.
    told: Option<Instant>,
}

/// Denials that were not told yet, and which were told recently.
#[derive(Debug, Default)]
struct Denials {
    counts: BTreeMap<DenialKey, DenialCount>,
    /// When the last Events were written.
    written: Vec<Instant>,
}

impl Denials {
    fn count(&mut self, record: &FlowRecord, now: Instant) {
        let Some(key) = key(record) else { return };
        if self.counts.len() >= COUNTED && !self.counts.contains_key(&key) {
            return;
        }
        let count = self.counts.entry(key).or_insert_with(|| DenialCount {
            count: 0,
            at_least: false,
            first: now,
            port: String::new(),
            told: None,
        });
        if count.count == 0 {
            count.first = now;
        }
        count.count += 1;
        count.at_least |= record.suppressed > 0;
        let row = flows::row(record);
        count.port = format!("{}/{}", record.dst.port(), row.protocol);
    }

    /// The Events that are due, as many as there may be now. Those with the most denials come first.
    fn due(&mut self, now: Instant) -> Vec<PodEvent> {
        self.written.retain(|at| now.duration_since(*at) < MINUTE);
        self.counts.retain(|_, count| {
            count.count > 0 || count.told.is_some_and(|at| now.duration_since(at) < PERIOD)
        });
        let is_due = |count: &DenialCount| {
            count.count > 0
                && match count.told {
                    None => now.duration_since(count.first) >= SETTLE,
                    Some(at) => now.duration_since(at) >= PERIOD,
                }
        };
        let mut due: Vec<_> = self.counts.iter_mut().filter(|(_, count)| is_due(count)).collect();
        due.sort_by_key(|(_, count)| std::cmp::Reverse(count.count));
        due.truncate(MOST.saturating_sub(self.written.len()));
        let events = due.into_iter().map(|(key, count)| {
            let note = note(key, count, now);
            (count.count, count.at_least, count.told) = (0, false, Some(now));
            let (pod, uid) = key.pod.clone();
            PodEvent { pod, uid, reason: EventReason::PolicyDenied, note }
        });
        let events: Vec<PodEvent> = events.collect();
        self.written.extend(events.iter().map(|_| now));
        events
    }
}

/// Whose Event it is: the Pod's that opened the flow, or the receiver's if that one is not a Pod.
fn key(record: &FlowRecord) -> Option<DenialKey> {
    let row = flows::row(record);
    let ends = [(&record.src_owner, &row.dst), (&record.dst_owner, &row.src)];
    let pod = |owner: &FlowOwner| match owner {
        FlowOwner::Pod(name, uid) => Some((name.clone(), *uid)),
        FlowOwner::Unknown | FlowOwner::Node(_) => None,
    };
    let (at, (owner, peer)) =
        ends.into_iter().enumerate().find(|(_, (owner, _))| pod(owner).is_some())?;
    let address = peer.address.ip().to_string();
    Some(DenialKey {
        pod: pod(owner)?,
        opened: at == 0,
        peer: if peer.name.is_empty() { address } else { peer.name.clone() },
        by: row.by.to_string(),
    })
}

fn note(key: &DenialKey, count: &DenialCount, now: Instant) -> String {
    let DenialKey { opened, peer, by, .. } = key;
    let DenialCount { count, at_least, first, port, .. } = count;
    let least = if *at_least { "at least " } else { "" };
    let times = match count {
        1 => "once".to_owned(),
        n => format!("{least}{n} times in {}", period(now.duration_since(*first))),
    };
    match opened {
        true if peer.parse::<std::net::Ipv6Addr>().is_ok() => {
            format!("denied {times}: to [{peer}]:{port} by {by}")
        }
        true => format!("denied {times}: to {peer}:{port} by {by}"),
        false => format!("denied {times}: from {peer} to port {port} by {by}"),
    }
}

fn period(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..=59 => format!("{}s", secs.max(1)),
        secs => format!("{}m", (secs + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Denials, MOST, PERIOD, SETTLE, is_denied};
    use lb_common::policy::Judgement;
    use lb_common::verdict::DropReason;
    use lb_core::admin::{FlowDecision, FlowOwner, FlowRecord};
    use lb_core::cluster::Name;
    use lb_core::uid::Uid;

    fn denied(src: &str, dst: &str) -> FlowRecord {
        let owner = |name: &str| match name {
            "" => FlowOwner::Unknown,
            name => FlowOwner::Pod(Name::parse(name), Uid(7)),
        };
        FlowRecord {
            at_ms: 0,
            src: "10.1.0.2:40000".parse().unwrap(),
            dst: "10.1.0.3:5432".parse().unwrap(),
            protocol: 6,
            reason: DropReason::PolicyIsolated as u8,
            ingress: true,
            outcome: 0,
            ifindex: 1,
            suppressed: 0,
            group: 7,
            judgement: Judgement::ISOLATED.number(),
            ident: 1,
            src_owner: owner(src),
            dst_owner: owner(dst),
            via: "".into(),
            decision: Some(FlowDecision {
                policies: vec![Name::new("db", "default-deny")],
                rule: None,
            }),
        }
    }

    fn notes(denials: &mut Denials, now: Instant) -> Vec<String> {
        denials.due(now).into_iter().map(|event| format!("{}: {}", event.pod, event.note)).collect()
    }

    #[test]
    fn one_event_says_how_often_in_five_minutes() {
        let mut denials = Denials::default();
        let start = Instant::now();
        let record = denied("shop/cart", "db/orders");
        assert!(is_denied(&record));
        denials.count(&record, start);
        assert!(notes(&mut denials, start).is_empty(), "it waits for repetitions");
        let first = start + SETTLE;
        let want = "shop/cart: denied once: to db/orders:5432/TCP by db/default-deny default-deny";
        assert_eq!(notes(&mut denials, first), [want]);
        for second in 0..12 {
            denials.count(&record, first + Duration::from_secs(second));
        }
        denials.count(&FlowRecord { suppressed: 3, ..record.clone() }, first);
        let soon = first + PERIOD - Duration::from_secs(1);
        assert!(notes(&mut denials, soon).is_empty());
        let want = "shop/cart: denied at least 13 times in 5m: to db/orders:5432/TCP by \
                    db/default-deny default-deny";
        assert_eq!(notes(&mut denials, first + PERIOD), [want]);
        assert!(notes(&mut denials, first + PERIOD * 3).is_empty());
        assert!(denials.counts.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn clients_outside_are_told_to_the_receiver_and_unknown_ends_to_none() {
        let mut denials = Denials::default();
        let start = Instant::now();
        denials.count(&denied("", "db/orders"), start);
        denials.count(&denied("", ""), start);
        let want = "db/orders: denied once: from 10.1.0.2 to port 5432/TCP by db/default-deny default-deny";
        assert_eq!(notes(&mut denials, start + SETTLE), [want]);
    }

    #[test]
    fn a_node_writes_ten_events_a_minute_and_the_rest_later() {
        let mut denials = Denials::default();
        let start = Instant::now();
        for pod in 0..25 {
            denials.count(&denied(&format!("shop/cart-{pod}"), "db/orders"), start);
        }
        let mut told = 0;
        for (minute, want) in [(0, MOST), (0, 0), (1, MOST), (2, 5), (3, 0)] {
            let now = start + SETTLE + Duration::from_secs(60 * minute);
            let n = denials.due(now).len();
            assert_eq!(n, want, "after {minute} minutes");
            told += n;
        }
        assert_eq!(told, 25);
    }

    #[test]
    fn only_what_policies_deny_is_told() {
        let record = denied("shop/cart", "db/orders");
        let other = FlowRecord { reason: DropReason::NoEndpoints as u8, ..record.clone() };
        let allowed = FlowRecord { reason: 0, outcome: 1, ..record };
        assert!(!is_denied(&other) && !is_denied(&allowed));
    }
}
